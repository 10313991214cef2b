"""The registry without a server: the same use cases, in process, over SQLite and files under one folder.

Never does what a use case of `service` should do. Several processes may use one folder at the same time.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from obm_format.checkpoint import open_checkpoint
from obm_format.container.reader import Container
from obm_format.container.sources import PathSource
from obm_format.errors import RegistryError, UsageError
from obm_format.progress import Progress, silent
from obm_registry import reports
from obm_registry.blobs.local import LocalBlobs
from obm_registry.blobs.place import require_place
from obm_registry.catalog.rows import BackboneRow, Manifest
from obm_registry.catalog.store import FILE_NAME, open_catalog
from obm_registry.durable import disk_errors
from obm_registry.manifest.assemble import assemble
from obm_registry.manifest.attached import attach
from obm_registry.manifest.backbone import (
    BACKBONE_TAG,
    BackbonePackage,
    other_backbone,
    package_checkpoint,
    require_untagged,
)
from obm_registry.manifest.bases import missing_files, open_bases, require_sound
from obm_registry.manifest.expert import (
    ExpertPackage,
    package_expert,
    parse_layers,
)
from obm_registry.manifest.oci import Descriptor, digest_of, parse_manifest
from obm_registry.manifest.signature import (
    MAX_NBYTES,
    MAX_SIGNATURES,
    SIGNATURE_LAYER,
    SIGNATURE_TYPE,
    require_signs,
    signatures_for,
    write_signatures,
)
from obm_registry.manifest.weights import require_expert_tag
from obm_registry.refs import Ref, parse_ref, require_tag, require_target
from obm_registry.service import backbones, blobs, listing, lookup, publish, tags, weights
from obm_registry.service.collect import DEFAULT_GRACE_S, Collected, collect
from obm_registry.service.fsck import examine
from obm_registry.service.registry import Registry

_ATTEMPTS = 3


class EmbeddedRegistry:
    """A registry in a folder; get one from `open_embedded`.

    Args:
        registry: catalog and blobs.
        actor: who does what is done here, for the history.
    """

    def __init__(self, registry: Registry, actor: str) -> None:
        self._registry = registry
        self._actor = actor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog."""
        self._registry.catalog.close()

    # --- backbones ------------------------------------------------------------------------------------------

    def add_backbone(
        self, checkpoint: str | Path, ref: str, *, with_weights: bool = False, progress: Progress = silent
    ) -> reports.ListedBackbone:
        """Register a backbone: the names, shapes and digests of its tensors, and its weights where asked for.

        Args:
            checkpoint: a checkpoint folder or one safetensors file.
            ref: `namespace/backbone`.
            with_weights: whether to store the weights too, and the files beside them.
            progress: told how many bytes are hashed and stored.

        Returns:
            The backbone, also when it was there already.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            RegistryError: `tag_exists` when the repository has another backbone, or its weights with other files
                beside them.
            UsageError: `bad_ref`.
        """
        where = _local(ref)
        require_untagged(where)
        with open_checkpoint(checkpoint) as opened:
            package, table = package_checkpoint(opened, progress)
            here = self._backbones_of(where.repository)
            if not any(row.facts.fingerprint == table.fingerprint for row in here):
                if here:
                    raise other_backbone(where.repository, here[0].facts.fingerprint, table.fingerprint)
                self._publish_backbone(where.repository, package)
            if with_weights:
                row = self._backbone(where.repository)
                weights.store_weights(self._registry, row, opened, table, actor=self._actor, progress=progress)
        return self.backbone(where.repository, tensors=False)

    def _publish_backbone(self, repository: str, package: BackbonePackage) -> None:
        for digest, data in package.blobs.items():
            blobs.send_blob(self._registry, repository, digest, [data])
        change = tags.TagChange(actor=self._actor)
        publish.put_manifest(self._registry, repository, package.body, change=change, tags=[BACKBONE_TAG])

    def _backbones_of(self, repository: str) -> list[BackboneRow]:
        try:
            return lookup.list_backbones(self._registry, repository)
        except RegistryError as error:
            if error.reason != "not_found":
                raise
            return []

    def backbones(self) -> list[reports.ListedBackbone]:
        """Every backbone of the registry, by repository."""
        return [listing.list_backbone(row) for row in lookup.list_backbones(self._registry)]

    def backbone(self, ref: str, *, tensors: bool = True) -> reports.ListedBackbone:
        """The backbone of a repository.

        Args:
            ref: `namespace/backbone`.
            tensors: whether to read its tensor table too.

        Raises:
            RegistryError: `not_found`.
        """
        row = self._backbone(_local(ref).repository)
        if not tensors:
            return listing.list_backbone(row)
        table = backbones.table_of(self._registry, row.repository, row.manifest_digest)
        rows = tuple(
            reports.ListedTensor(name=t.name, dtype=t.dtype_name, shape=list(t.shape), sha256=t.sha256.hex())
            for t in table.tensors.values()
        )
        return listing.list_backbone(row, rows)

    def _backbone(self, repository: str) -> BackboneRow:
        found = lookup.list_backbones(self._registry, repository)
        if not found:
            raise RegistryError("not_found", "the repository has no backbone", where=repository)
        return found[0]

    def pull_backbone(self, ref: str, out: str | Path, *, progress: Progress = silent) -> reports.PulledBackbone:
        """Write a backbone's checkpoint folder; see `ExpertRegistry.pull_backbone`."""
        began = time.perf_counter()
        row = self._backbone(_local(ref).repository)
        digest, received = weights.write_weights(self._registry, row, Path(out), progress)
        return reports.PulledBackbone(
            ref=row.repository,
            fingerprint=row.facts.fingerprint,
            manifest_digest=row.manifest_digest,
            weights_digest=digest,
            n_tensors=row.facts.n_tensors,
            received_bytes=received,
            reused_bytes=0,
            seconds=time.perf_counter() - began,
        )

    # --- push and pull --------------------------------------------------------------------------------------

    def push(
        self,
        file: str | Path,
        ref: str,
        *,
        move: bool = False,
        bases: Sequence[str | Path] = (),
        progress: Progress = silent,
    ) -> reports.Transfer:
        """Publish an `.obm` file.

        The file is verified first, and only blobs that the registry lacks are stored. Pushing the same file
        again changes nothing.

        Args:
            file: the file.
            ref: `namespace/backbone:tag`.
            move: whether the tag may leave another expert.
            bases: files of base vectors that the expert refers to; those beside it are found without.
            progress: told how many bytes are verified, hashed and stored.

        Raises:
            FormatError: the file is damaged; `bad_reference` without a base vector that it refers to.
            RegistryError: `backbone_unknown`, `tag_exists`, `tag_immutable`, `quota_exceeded`, `disk_full`.
            BackboneMismatch: `backbone_mismatch`.
            UsageError: `bad_ref`.
        """
        began = time.perf_counter()
        where = _local(ref)
        require_expert_tag(require_tag(where))
        change = tags.TagChange(move=move, actor=self._actor)
        source = PathSource(file)
        with Container.open(source) as container, open_bases(container, Path(file), bases, progress) as opened:
            require_sound(container, progress)
            backbone = backbones.find_backbone(self._registry, where.repository, container)
            package = package_expert(container, source, backbone, bases=opened, progress=progress)
            self._check_tag(where, package.digest, change)
            sent, published = self._publish_expert(where, package, change, progress)
        for signature in signatures_for(Path(file), package.facts.artifact_id):
            self.add_signature(str(where), signature)
        return reports.Transfer(
            ref=str(where),
            manifest_digest=package.digest,
            id=package.facts.artifact_id,
            sent_bytes=sent,
            received_bytes=0,
            reused_bytes=max(0, package.nbytes - sent),
            seconds=time.perf_counter() - began,
            warnings=published.warnings,
        )

    def _check_tag(self, where: Ref, digest: str, change: tags.TagChange) -> None:
        """Refuse before anything is sent what would be refused after it."""
        with self._registry.catalog.read() as session:
            repo = session.names.repository(where.repository)
            if repo is not None and where.tag is not None:
                tags.check_tag(session, repo, where.tag, digest, change)

    def _publish_expert(
        self,
        where: Ref,
        package: ExpertPackage,
        change: tags.TagChange,
        progress: Progress,
    ) -> tuple[int, publish.Published]:
        sent = 0
        for attempt in range(_ATTEMPTS):
            sent += self._send_expert(where.repository, package, progress)
            try:
                done = publish.put_manifest(
                    self._registry, where.repository, package.body, change=change, tags=[where.tag or ""]
                )
            except RegistryError as error:
                # a collection with a short grace period can take what was just found there
                if error.reason != "blob_unknown" or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return sent, done
        raise RegistryError("internal", "a push ended without a result", where=str(where))

    def _send_expert(self, repository: str, package: ExpertPackage, progress: Progress) -> int:
        sent, done = blobs.send_blob(self._registry, repository, digest_of(package.config), [package.config]), 0
        for layer in package.layers:
            sent += blobs.send_blob(self._registry, repository, layer.descriptor.digest, layer.chunks())
            done += layer.segment.nbytes
            progress("push", done, package.nbytes)
        return sent

    def resolve(self, ref: str) -> reports.Resolved:
        """What a reference to an expert stands for.

        Raises:
            RegistryError: `not_found`; `bad_manifest` when it is no expert.
            UsageError: `bad_ref`.
        """
        where, found = self._find(ref)
        layers = parse_layers(parse_manifest(found.body, media_type=found.media_type))
        return reports.Resolved(ref=str(where), manifest_digest=found.digest, id=layers.artifact_id)

    def pull(self, ref: str, out: str | Path, *, progress: Progress = silent) -> reports.Transfer:
        """Write an expert to a file: the very bytes that were pushed, each segment checked.

        Args:
            ref: `namespace/backbone:tag` or `...@sha256:digest`.
            out: the file; it appears whole or not at all. Base vectors that the expert refers to are written
                beside it, under their ids.
            progress: told how many bytes are there.

        Raises:
            RegistryError: `not_found`, `bad_manifest` when it is no expert, `blob_damaged`, `disk_full`,
                `io`.
            FormatError: the segments are no `.obm` file.
            UsageError: `bad_ref`.
        """
        began = time.perf_counter()
        where, found = self._find(ref)
        layers = parse_layers(parse_manifest(found.body, media_type=found.media_type))
        files = missing_files(layers, Path(out))
        for path, one in files.items():
            assemble(
                one,
                lambda layer: blobs.read_blob(self._registry, where.repository, layer.digest),
                path,
                progress=progress,
            )
        if signatures := self.signatures(ref):
            write_signatures(Path(out), signatures)
        warnings = (f"{where} was withdrawn: {found.yank_reason or 'no reason given'}",) if found.yanked_at else ()
        return reports.Transfer(
            ref=str(where),
            manifest_digest=found.digest,
            id=layers.artifact_id,
            sent_bytes=0,
            received_bytes=sum(one.nbytes for one in files.values()),
            reused_bytes=sum(one.nbytes for one in (layers, *layers.shared) if one not in files.values()),
            seconds=time.perf_counter() - began,
            warnings=warnings,
        )

    # --- signatures -----------------------------------------------------------------------------------------

    def signatures(self, ref: str) -> list[bytes]:
        """The signatures of an expert, whether they hold or not.

        Raises:
            RegistryError: `not_found`.
            UsageError: `bad_ref`.
        """
        where, found = self._find(ref)
        page, _ = lookup.list_referrers(
            self._registry, where.repository, found.digest, artifact_type=SIGNATURE_TYPE, limit=MAX_SIGNATURES
        )
        rows = [lookup.find_manifest(self._registry, where.repository, row.digest) for row in page]
        layers = [layer for row in rows for layer in parse_manifest(row.body, media_type=row.media_type).layers[:1]]
        return sorted(
            b"".join(blobs.read_blob(self._registry, where.repository, layer.digest))
            for layer in layers
            if layer.media_type == SIGNATURE_LAYER and layer.size <= MAX_NBYTES
        )

    def add_signature(self, ref: str, signature: bytes) -> reports.Named:
        """Publish a signature of an expert; the same again changes nothing.

        Raises:
            RegistryError: `not_found`; `bad_signature` when it is about something else.
            UsageError: `bad_ref`.
        """
        where, found = self._find(ref)
        manifest = parse_manifest(found.body, media_type=found.media_type)
        require_signs(signature, parse_layers(manifest).artifact_id)
        subject = Descriptor(media_type=manifest.media_type, digest=found.digest, size=len(found.body))
        package = attach(subject, SIGNATURE_TYPE, [(SIGNATURE_LAYER, signature)], {})
        for row, data in package.blobs:
            blobs.send_blob(self._registry, where.repository, row.digest, [data])
        publish.put_manifest(self._registry, where.repository, package.body, change=tags.TagChange(actor=self._actor))
        return reports.Named(ref=str(where), manifest_digest=package.digest)

    # --- listing, tags, removal -----------------------------------------------------------------------------

    def experts(self, ref: str | None = None) -> list[reports.ListedExpert]:
        """The experts of the registry, of a repository, or the one that a reference names.

        Raises:
            RegistryError: `not_found`.
            UsageError: `bad_ref`.
        """
        if ref is None:
            return [listing.list_expert(row) for row in lookup.list_experts(self._registry)]
        where = _local(ref)
        rows = lookup.list_experts(self._registry, where.repository)
        if where.target is not None:
            found = lookup.find_manifest(self._registry, where.repository, where.target)
            rows = [row for row in rows if row.manifest_digest == found.digest]
            rows = [row for row in rows if where.digest or row.tag == where.tag]
        return [listing.list_expert(row) for row in rows]

    def tag(self, ref: str, name: str, *, move: bool = False) -> reports.Named:
        """Give what a reference names another tag in the same repository.

        Raises:
            RegistryError: `not_found`, `tag_exists`, `tag_immutable`.
            UsageError: `bad_ref`.
        """
        where = _local(ref)
        require_expert_tag(name)
        change = tags.TagChange(move=move, actor=self._actor)
        found = tags.move_tag(self._registry, where.repository, require_target(where), name, change)
        return reports.Named(ref=str(where.with_tag(name)), manifest_digest=found.digest)

    def log(self, ref: str) -> list[reports.LogEntry]:
        """The moves of a tag, or of all tags of a repository, the latest first.

        Raises:
            RegistryError: `not_found`.
            UsageError: `bad_ref`.
        """
        where = _local(ref)
        return [listing.log_entry(event) for event in tags.tag_history(self._registry, where.repository, where.tag)]

    def remove(self, ref: str) -> reports.Named:
        """Remove a tag, or with a digest an expert (or a backbone without experts) and all its tags.

        Raises:
            RegistryError: `not_found`, `in_use`.
            UsageError: `bad_ref`.
        """
        where, found = self._find(ref)
        tags.remove(self._registry, where.repository, require_target(where), self._actor)
        return reports.Named(ref=str(where), manifest_digest=found.digest)

    def yank(self, ref: str, *, reason: str = "", undo: bool = False) -> reports.Named:
        """Withdraw an expert, or take that back; it stays where it is.

        Raises:
            RegistryError: `not_found`.
            UsageError: `bad_ref`.
        """
        where = _local(ref)
        if undo:
            found = tags.unyank(self._registry, where.repository, require_target(where), actor=self._actor)
        else:
            found = tags.yank(self._registry, where.repository, require_target(where), reason, actor=self._actor)
        return reports.Named(ref=str(where), manifest_digest=found.digest)

    def _find(self, ref: str) -> tuple[Ref, Manifest]:
        where = _local(ref)
        return where, lookup.find_manifest(self._registry, where.repository, require_target(where))

    # --- upkeep ---------------------------------------------------------------------------------------------

    def gc(self, *, dry_run: bool = False, grace_s: float = DEFAULT_GRACE_S) -> Collected:
        """Delete stored bytes that nothing refers to; see `service.collect.collect`."""
        return collect(self._registry, dry_run=dry_run, grace_s=grace_s)

    def fsck(self, *, progress: Progress = silent) -> reports.FsckReport:
        """Check every blob and manifest; see `service.fsck.examine`."""
        found = examine(self._registry, progress=progress)
        return reports.FsckReport(
            blobs=found.blobs,
            nbytes=found.nbytes,
            manifests=found.manifests,
            problems=tuple(f"{p.reason}: {p.where}: {p.detail}" for p in found.problems),
        )


def open_embedded(home: str | Path, *, actor: str | None = None) -> EmbeddedRegistry:
    """Open or create the registry under `home`: `registry.sqlite3` and `data/`.

    Args:
        home: the folder; made, for its owner alone, when it is not there. It must be on a local disk.
        actor: who does what is done here; None for the user's login name.

    Raises:
        RegistryError: `io`, `busy` or `disk_full`.
        UsageError: `usage` when a server keeps the bytes of this registry elsewhere.
    """
    folder = Path(home)
    with disk_errors(str(folder)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_place(folder / FILE_NAME, None)
    catalog = open_catalog(folder / FILE_NAME)
    return EmbeddedRegistry(
        Registry(catalog=catalog, blobs=LocalBlobs(folder / "data")), _login() if actor is None else actor
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run under a number without a name
        return "unknown"


def _local(ref: str) -> Ref:
    where = parse_ref(ref)
    if where.host is not None:
        raise UsageError(
            "bad_ref",
            "the embedded registry has no host",
            where=ref,
            expected=where.repository,
            got=where.host,
        )
    return where
