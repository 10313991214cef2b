"""The registry as a user sees it, over any `Store`: backbones, push, pull, tags, withdrawal.

Checks on this side what a stock registry does not: that an expert belongs to its backbone, and that no tag moves
unasked. What is told of an expert that somebody else pushed is what its manifest says, until it is pulled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from obm_format.checkpoint import open_checkpoint
from obm_format.container.reader import Container
from obm_format.container.sources import PathSource
from obm_format.errors import RegistryError, UsageError
from obm_format.progress import Progress, silent
from obm_registry import reports
from obm_registry.client.attachments import publish_attached, read_signatures
from obm_registry.client.cache import Cache
from obm_registry.client.extras import Extras
from obm_registry.client.listing import find_table, list_backbone, list_experts, require_room
from obm_registry.client.store import FoundManifest, ReadFrom, Store, TagRule
from obm_registry.client.transfer import push_blobs
from obm_registry.client.weights import pull_weights, push_weights
from obm_registry.client.withdrawal import is_withdrawn, withdraw
from obm_registry.durable import copy_file
from obm_registry.manifest.backbone import (
    BACKBONE_TAG,
    BACKBONE_TYPE,
    BackbonePackage,
    BackboneTable,
    backbone_descriptor,
    other_backbone,
    package_checkpoint,
    require_untagged,
)
from obm_registry.manifest.bases import missing_files, open_bases, require_sound
from obm_registry.manifest.expert import (
    EXPERT_TYPE,
    ExpertLayers,
    ExpertPackage,
    package_expert,
    parse_layers,
)
from obm_registry.manifest.lineage import require_match
from obm_registry.manifest.oci import IMAGE_MANIFEST, Descriptor, digest_of, parse_manifest
from obm_registry.manifest.signature import (
    SIGNATURE_LAYER,
    SIGNATURE_TYPE,
    require_signs,
    signatures_for,
    write_signatures,
)
from obm_registry.manifest.weights import WEIGHTS_TYPE, require_expert_tag
from obm_registry.refs import Ref, parse_ref, require_tag, require_target

T = TypeVar("T")
_ATTEMPTS = 3


class ClientRegistry:
    """Backbones and experts on the other side; get one from `client.open`.

    Args:
        store: the other side; closed with the registry.
        cache: where pulled experts are kept.
        host: what a reference may begin with.
        extras: what OCI has no word for.
    """

    def __init__(self, store: Store, cache: Cache, host: str | None, extras: Extras) -> None:
        self._store = store
        self._cache = cache
        self._host = host
        self._extras = extras

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._store.close()

    # --- backbones ------------------------------------------------------------------------------------------

    def add_backbone(
        self, checkpoint: str | Path, ref: str, *, with_weights: bool = False, progress: Progress = silent
    ) -> reports.ListedBackbone:
        """Register a backbone; see `ExpertRegistry.add_backbone`."""
        where = self._parse(ref)
        require_untagged(where)
        with open_checkpoint(checkpoint) as opened:
            package, table = package_checkpoint(opened, progress)
            there = self._find_backbone(where.repository)
            if there is None:
                self._publish_backbone(where.repository, package, progress)
            elif there[1].fingerprint != table.fingerprint:
                raise other_backbone(where.repository, there[1].fingerprint, table.fingerprint)
            if with_weights:
                found, _ = self._require_backbone(where.repository)
                push_weights(self._store, where.repository, found, (opened, table), progress)
        return self.backbone(ref, tensors=False)

    def _publish_backbone(self, repository: str, package: BackbonePackage, progress: Progress) -> None:
        push_blobs(
            self._store, repository, [(_describe(data), _reader(data)) for data in package.blobs.values()], progress
        )
        self._store.put_manifest(repository, package.body, IMAGE_MANIFEST, TagRule(name=BACKBONE_TAG, now=None))

    def pull_backbone(self, ref: str, out: str | Path, *, progress: Progress = silent) -> reports.PulledBackbone:
        """Write a backbone's checkpoint folder; see `ExpertRegistry.pull_backbone`."""
        began = time.perf_counter()
        repository = self._parse(ref).repository
        found, table = self._require_backbone(repository)
        done = pull_weights(
            self._store,
            repository,
            (found.digest, table),
            Path(out),
            progress=progress,
            patience=self._cache.patience,
        )
        return reports.PulledBackbone(
            ref=repository,
            fingerprint=table.fingerprint,
            manifest_digest=found.digest,
            weights_digest=done.digest,
            n_tensors=len(table.tensors),
            received_bytes=done.received,
            reused_bytes=done.reused,
            seconds=time.perf_counter() - began,
        )

    def backbones(self) -> list[reports.ListedBackbone]:
        """See `ExpertRegistry.backbones`."""
        found = []
        for repository in self._store.repositories():
            if (there := self._find_backbone(repository)) is not None:
                found.append(list_backbone(self._store, repository, *there))
        return found

    def backbone(self, ref: str, *, tensors: bool = True) -> reports.ListedBackbone:
        """See `ExpertRegistry.backbone`."""
        repository = self._parse(ref).repository
        return list_backbone(self._store, repository, *self._require_backbone(repository), tensors=tensors)

    def _require_backbone(self, repository: str) -> tuple[FoundManifest, BackboneTable]:
        there = self._find_backbone(repository)
        if there is None:
            raise RegistryError("not_found", "the repository has no backbone", where=repository)
        return there

    def _find_backbone(self, repository: str) -> tuple[FoundManifest, BackboneTable] | None:
        try:
            found = self._store.manifest(repository, BACKBONE_TAG)
        except RegistryError as error:
            if error.reason != "not_found":
                raise
            return None
        return found, find_table(self._store, repository, found)

    # --- push -----------------------------------------------------------------------------------------------

    def push(
        self,
        file: str | Path,
        ref: str,
        *,
        move: bool = False,
        bases: Sequence[str | Path] = (),
        progress: Progress = silent,
    ) -> reports.Transfer:
        """Publish an `.obm` file; see `ExpertRegistry.push`."""
        began = time.perf_counter()
        where = self._parse(ref)
        require_expert_tag(require_tag(where))
        source = PathSource(file)
        with Container.open(source) as container, open_bases(container, Path(file), bases, progress) as opened:
            require_sound(container, progress)
            subject = self._subject(where.repository, container)
            package = package_expert(container, source, subject, bases=opened, progress=progress)
            rule = require_room(self._store, where, package.digest, move=move)
            sent, warnings = self._publish(where.repository, package, rule, progress)
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
            warnings=warnings,
        )

    def _subject(self, repository: str, container: Container) -> Descriptor:
        there = self._find_backbone(repository)
        if there is None:
            raise RegistryError(
                "backbone_unknown",
                "the repository does not have the expert's backbone",
                where=repository,
                expected=f"fingerprint {container.manifest.backbone.fingerprint}",
                got="no backbone",
                hint=f"run `obm backbone add BASE {repository}` with the checkpoint that it was made from",
            )
        found, table = there
        require_match(container, table, repository)
        return backbone_descriptor(found.digest, len(found.body))

    def _publish(
        self, repository: str, package: ExpertPackage, rule: TagRule, progress: Progress
    ) -> tuple[int, tuple[str, ...]]:
        blobs: list[tuple[Descriptor, ReadFrom]] = [(_describe(package.config), _reader(package.config))]
        blobs += [(layer.descriptor, layer.chunks) for layer in package.layers]
        sent = 0
        for attempt in range(_ATTEMPTS):
            sent += push_blobs(self._store, repository, blobs, progress)
            progress("waiting for the registry", 0, 1)
            try:
                warnings = self._store.put_manifest(repository, package.body, IMAGE_MANIFEST, rule)
            except RegistryError as error:
                # a collection with a short grace period can take what was just found there
                if error.reason != "blob_unknown" or attempt == _ATTEMPTS - 1:
                    raise
            else:
                progress("waiting for the registry", 1, 1)
                return sent, warnings
        raise RegistryError("internal", "a push ended without a result", where=repository)

    # --- pull -----------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> reports.Resolved:
        """What a reference to an expert stands for; see `ExpertRegistry.resolve`."""
        where, found, layers = self._find_expert(ref)
        return reports.Resolved(ref=str(where), manifest_digest=found.digest, id=layers.artifact_id)

    def pull(self, ref: str, out: str | Path, *, progress: Progress = silent) -> reports.Transfer:
        """Write an expert to a file; see `ExpertRegistry.pull`."""
        began = time.perf_counter()
        where, found, layers = self._find_expert(ref)
        withdrawn = self._told(lambda: is_withdrawn(self._store, where.repository, found.digest), "")
        received = reused = 0
        none: list[bytes] = []
        signatures = self._told(lambda: read_signatures(self._store, where.repository, found.digest), none)
        for path, one in missing_files(layers, Path(out)).items():
            held = self._cache.hold(one, partial(self._store.read_blob, where.repository), progress)
            received, reused = received + held.received, reused + held.reused
            if path != held.path:
                copy_file(held.path, path)
        if signatures:
            write_signatures(Path(out), signatures)
        warnings = (f"{where} was withdrawn: {withdrawn}",) if withdrawn else ()
        return reports.Transfer(
            ref=str(where),
            manifest_digest=found.digest,
            id=layers.artifact_id,
            sent_bytes=0,
            received_bytes=received,
            reused_bytes=reused,
            seconds=time.perf_counter() - began,
            warnings=tuple(dict.fromkeys((*found.warnings, *warnings))),
        )

    def _told(self, ask: Callable[[], T], otherwise: T) -> T:
        """What refers to an expert; a registry that gives no list of referrers does not stop a pull."""
        try:
            return ask()
        except RegistryError as error:
            if error.reason == "network":
                raise
            return otherwise

    def _find_expert(self, ref: str) -> tuple[Ref, FoundManifest, ExpertLayers]:
        where = self._parse(ref)
        target = require_target(where)
        found = self._store.manifest(where.repository, target)
        manifest = parse_manifest(found.body, media_type=found.media_type)
        layers = parse_layers(manifest)
        self._cache.remember(self._store.name, where.repository, target, found.body)
        return where, found, layers

    # --- signatures -----------------------------------------------------------------------------------------

    def signatures(self, ref: str) -> list[bytes]:
        """The signatures of an expert; see `ExpertRegistry.signatures`."""
        where, found, _ = self._find_expert(ref)
        return read_signatures(self._store, where.repository, found.digest)

    def add_signature(self, ref: str, signature: bytes) -> reports.Named:
        """Publish a signature of an expert; see `ExpertRegistry.add_signature`."""
        where, found, layers = self._find_expert(ref)
        require_signs(signature, layers.artifact_id)
        layer = [(SIGNATURE_LAYER, signature)]
        digest = publish_attached(self._store, where.repository, found, SIGNATURE_TYPE, layer, {})
        return reports.Named(ref=str(where), manifest_digest=digest)

    # --- listing, tags, removal -----------------------------------------------------------------------------

    def experts(self, ref: str | None = None) -> list[reports.ListedExpert]:
        """See `ExpertRegistry.experts`."""
        if ref is None:
            return [row for name in self._store.repositories() for row in list_experts(self._store, self._shown, name)]
        where = self._parse(ref)
        if where.target is None:
            return list_experts(self._store, self._shown, where.repository)
        return list_experts(self._store, self._shown, where.repository, where.target)

    def _shown(self, repository: str) -> str:
        return f"{self._host}/{repository}" if self._host else repository

    def tag(self, ref: str, name: str, *, move: bool = False) -> reports.Named:
        """See `ExpertRegistry.tag`."""
        where = self._parse(ref)
        require_expert_tag(name)
        found = self._store.manifest(where.repository, require_target(where))
        named = where.with_tag(name)
        parse_ref(str(named))
        rule = require_room(self._store, named, found.digest, move=move)
        self._store.put_manifest(where.repository, found.body, found.media_type or IMAGE_MANIFEST, rule)
        return reports.Named(ref=str(named), manifest_digest=found.digest)

    def log(self, ref: str) -> list[reports.LogEntry]:
        """See `ExpertRegistry.log`; a stock registry does not tell."""
        where = self._parse(ref)
        names = [where.tag] if where.tag is not None else self._store.tags(where.repository)
        events = [event for name in names for event in self._extras.history(where.repository, name)]
        return sorted(events, key=lambda event: event.at, reverse=True) if where.tag is None else events

    def remove(self, ref: str) -> reports.Named:
        """See `ExpertRegistry.remove`."""
        where = self._parse(ref)
        found = self._store.manifest(where.repository, require_target(where))
        if where.digest is None:
            self._store.remove_tag(where.repository, require_target(where))
            return reports.Named(ref=str(where), manifest_digest=found.digest)
        if parse_manifest(found.body, media_type=found.media_type).artifact_type == BACKBONE_TYPE:
            kinds = (EXPERT_TYPE, WEIGHTS_TYPE)
            needed_by = sum(len(self._store.referrers(where.repository, found.digest, kind)) for kind in kinds)
            if needed_by:
                raise RegistryError(
                    "in_use",
                    f"{needed_by} others need this manifest",
                    where=ref,
                    hint="remove them first; `obm ls` lists the experts of a backbone",
                )
        self._store.remove_manifest(where.repository, found.digest)
        return reports.Named(ref=str(where), manifest_digest=found.digest)

    def yank(self, ref: str, *, reason: str = "", undo: bool = False) -> reports.Named:
        """See `ExpertRegistry.yank`.

        Our own server notes it; elsewhere the mark is a manifest that refers to the expert, and travels with it.
        """
        where, found, _ = self._find_expert(ref)
        noted = self._extras.withdraw(where.repository, found.digest, reason, undo=undo)
        if undo or not noted:
            withdraw(self._store, where.repository, found, reason=reason, undo=undo)
        return reports.Named(ref=str(where), manifest_digest=found.digest)

    def _parse(self, ref: str) -> Ref:
        where = parse_ref(ref)
        if where.host is not None and where.host not in (self._host, f"{self._host}:443"):
            raise UsageError(
                "bad_ref", "the reference names another registry", where=ref, expected=self._host or where.repository
            )
        return where


def _describe(data: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=digest_of(data), size=len(data))


def _reader(data: bytes) -> ReadFrom:
    return lambda start: iter([data[start:]])
