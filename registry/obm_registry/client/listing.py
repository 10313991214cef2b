"""What a store's manifests tell: the backbone of a repository, its experts, and whether a tag is free.

Numbers of an expert are those that its manifest states; sizes and ids are those of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from obm_format.errors import RegistryError
from obm_registry import reports
from obm_registry.client.store import FoundManifest, Store, TagRule
from obm_registry.client.transfer import read_whole
from obm_registry.client.withdrawal import is_withdrawn
from obm_registry.manifest.backbone import (
    BACKBONE_CONFIG,
    BACKBONE_TAG,
    BACKBONE_TYPE,
    MAX_CONFIG_NBYTES,
    BackboneTable,
    parse_backbone,
)
from obm_registry.manifest.expert import EXPERT_TYPE, parse_layers
from obm_registry.manifest.oci import OciManifest, bad_manifest, parse_manifest
from obm_registry.manifest.strictjson import parse_json
from obm_registry.manifest.weights import WEIGHTS_TAG
from obm_registry.refs import Ref, is_digest, printable

MAX_EXPERT_CONFIG = 1 << 20
_THREADS = 8
_WITHDRAWN = "withdrawn: "  # how our own server's warning begins


def find_table(store: Store, repository: str, found: FoundManifest) -> BackboneTable:
    """The tensor table of a backbone manifest.

    Raises:
        RegistryError: `bad_manifest` when it is no backbone, `limit_exceeded`, `blob_damaged`.
    """
    manifest = parse_manifest(found.body, media_type=found.media_type)
    config = manifest.config
    if manifest.artifact_type != BACKBONE_TYPE or config is None or config.media_type != BACKBONE_CONFIG:
        raise bad_manifest(f"{repository}:{BACKBONE_TAG}", BACKBONE_TYPE, manifest.artifact_type)
    return parse_backbone(read_whole(store, repository, config, MAX_CONFIG_NBYTES))


def find_weights(store: Store, repository: str, backbone: str) -> FoundManifest | None:
    """The manifest of the weights of the backbone with this digest; None where they are not stored.

    Raises:
        RegistryError: `bad_manifest`.
    """
    try:
        found = store.manifest(repository, WEIGHTS_TAG)
    except RegistryError as error:
        if error.reason != "not_found":
            raise
        return None
    subject = parse_manifest(found.body, media_type=found.media_type).subject
    return found if subject is not None and subject.digest == backbone else None


def list_backbone(
    store: Store, repository: str, found: FoundManifest, table: BackboneTable, *, tensors: bool = False
) -> reports.ListedBackbone:
    """What is told of a backbone."""
    rows = (
        reports.ListedTensor(name=t.name, dtype=t.dtype_name, shape=list(t.shape), sha256=t.sha256.hex())
        for t in table.tensors.values()
    )
    facts, weights = table.facts, find_weights(store, repository, found.digest)
    return reports.ListedBackbone(
        ref=repository,
        fingerprint=facts.fingerprint,
        manifest_digest=found.digest,
        architecture=printable(facts.architecture),
        n_tensors=facts.n_tensors,
        n_params=facts.n_params,
        n_experts=len(store.referrers(repository, found.digest, EXPERT_TYPE)),
        weights_digest=weights.digest if weights else None,
        tensors=tuple(rows) if tensors else (),
    )


def list_experts(
    store: Store, shown: Callable[[str], str], repository: str, target: str | None = None
) -> list[reports.ListedExpert]:
    """The experts of a repository, by tag.

    Args:
        store: where.
        shown: how a repository's name reads in a reference.
        repository: which.
        target: only the expert that this tag or digest names.

    Raises:
        RegistryError: `not_found` for a target that is not there, or a repository that has nothing.
    """
    tags = [target] if target is not None else [tag for tag in store.tags(repository) if tag != BACKBONE_TAG]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda tag: _find(store, repository, tag, target), tags))
        named = [(tag, one) for tag, one in zip(tags, found, strict=True) if one is not None]
        if target is None:
            known = {one.digest for _, one in named}
            bare = [digest for digest in _untagged(store, repository) if digest not in known]
            named += [(digest, store.manifest(repository, digest)) for digest in bare]
        rows = list(pool.map(lambda pair: _row(store, shown(repository), repository, *pair), named))
    if target is None and not tags and not rows:
        store.manifest(repository, BACKBONE_TAG)  # raises where there is no such repository
    return [row for row in rows if row is not None]


def _find(store: Store, repository: str, tag: str, target: str | None) -> FoundManifest | None:
    try:
        return store.manifest(repository, tag)
    except RegistryError as error:
        if error.reason == "not_found" and target is None:
            return None  # removed between two requests
        raise


def _untagged(store: Store, repository: str) -> Iterable[str]:
    try:
        backbone = store.manifest(repository, BACKBONE_TAG)
    except RegistryError as error:
        if error.reason != "not_found":
            raise
        return ()
    return [row.digest for row in store.referrers(repository, backbone.digest, EXPERT_TYPE)]


def _row(store: Store, shown: str, repository: str, tag: str, found: FoundManifest) -> reports.ListedExpert | None:
    manifest = parse_manifest(found.body, media_type=found.media_type)
    if manifest.artifact_type != EXPERT_TYPE:
        return None
    layers, stated = parse_layers(manifest), _stated(store, repository, manifest)
    encodings = stated.get("encodings")
    return reports.ListedExpert(
        ref=f"{shown}@{tag}" if is_digest(tag) else f"{shown}:{tag}",
        id=layers.artifact_id,
        manifest_digest=found.digest,
        kind=_text(stated, "kind"),
        task=_text(stated, "task"),
        position=_text(stated, "position"),
        nbytes=layers.nbytes,
        n_tensors=_count(stated.get("n_tensors")),
        encodings={printable(str(k)): _count(v) for k, v in encodings.items()} if isinstance(encodings, dict) else {},
        alpha_min=None,
        alpha_mean=None,
        alpha_max=None,
        fingerprint=_text(stated, "backbone"),
        pushed_by="",
        pushed_at="",
        yanked=_noted(found) or is_withdrawn(store, repository, found.digest) or None,
    )


def _noted(found: FoundManifest) -> str:
    """Why our own server says that a manifest was withdrawn; "" when it does not."""
    marks = (text.removeprefix(_WITHDRAWN) for text in found.warnings if text.startswith(_WITHDRAWN))
    return next(marks, "")


def _stated(store: Store, repository: str, manifest: OciManifest) -> dict[str, object]:
    if manifest.config is None:
        return {}
    body = read_whole(store, repository, manifest.config, MAX_EXPERT_CONFIG)
    document = parse_json(body, max_nbytes=MAX_EXPERT_CONFIG, where="expert config")
    return document if isinstance(document, dict) else {}


def _text(row: dict[str, object], key: str) -> str:
    value = row.get(key, "")
    return printable(value) if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def require_room(store: Store, where: Ref, digest: str, *, move: bool) -> TagRule:
    """Refuse before anything is sent what would move a tag that nobody asked to move.

    Args:
        store: where.
        where: a reference with a tag.
        digest: what the tag shall name.
        move: whether it may leave another manifest.

    Returns:
        What the tag names now, which is to hold still when the manifest arrives.

    Raises:
        RegistryError: `tag_exists`.
    """
    tag = where.tag or ""
    try:
        now = store.manifest(where.repository, tag).digest
    except RegistryError as error:
        if error.reason != "not_found":
            raise
        return TagRule(name=tag, now=None)
    if now != digest and not move:
        hint = "choose another tag, or move this one with --move"
        raise RegistryError("tag_exists", "the tag names another manifest", where=str(where), got=now, hint=hint)
    return TagRule(name=tag, now=now)
