"""The manifest: from a JSON object to a checked `Manifest` with its pools, and back.

One function per field or group of fields; records and parameters have their own modules. Source: obm-1
clauses 5, 6.7 and 12.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from obm_format.container.canonical import encode_canonical
from obm_format.container.fields import Fields, typed
from obm_format.container.names import (
    ARCHITECTURE,
    FEATURE,
    POSITION,
    PREFIX,
    ROUTE,
    TASK,
    VENDOR_KEY,
    check_artifact_id,
    check_attachment_name,
    check_digest,
    check_sorted,
    check_tensor_name,
    grammatical,
)
from obm_format.container.records import RecordParser, record_object
from obm_format.container.router import check_router
from obm_format.errors import FormatError
from obm_format.limits import Limits
from obm_format.model import (
    POOL_NAMES,
    Attachment,
    BackboneId,
    Kind,
    Manifest,
    Pool,
    Prefix,
    RouterInfo,
    RtvqParams,
    TensorRecord,
)

KNOWN_FEATURES: Final[frozenset[str]] = frozenset()  # obm-1 clause 12.2: version 1.0 defines none

_KEYS: Final = frozenset(
    {"alias", "attach", "backbone", "ext", "kind", "pools", "position", "prefix"}
    | {"refs", "removed", "requires", "router", "task", "tensors"}
)
_KINDS: Final = {kind.value: kind for kind in Kind}
_SIDES: Final = {side: side for side in ("tuned", "backbone")}


def parse_manifest(value: object, limits: Limits) -> tuple[Manifest, dict[str, Pool]]:
    """Parse and check a manifest.

    Args:
        value: what `parse_canonical` gave; fields that have their defaults are taken out of it, so that it is what
            `manifest_object` makes of the result.
        limits: bounds on what is accepted.

    Returns:
        the manifest, and the pools by name, which only the header needs.

    Raises:
        FormatError: `manifest_field`, `unsupported_feature`, `bad_name`, `duplicate_name`, `bad_shape`,
            `unknown_encoding`, `bad_params`, `bad_digest`, `limit_exceeded`.
    """
    # First, because a file that needs an unknown feature may hold anything.
    requires = _requires(typed(value, dict, "manifest"))
    fields = Fields(value, "", _KEYS)
    kind = fields.choice("kind", _KINDS, "manifest_field")
    tensors = _tensors(fields, limits)
    manifest = Manifest(
        kind=kind,
        task=grammatical(fields.get("task", str, ""), TASK, "task"),
        position=grammatical(fields.get("position", str, "none"), POSITION, "position"),
        backbone=_backbone(fields),
        tensors=tensors,
        aliases=_aliases(fields, tensors, limits),
        removed=_removed(fields, limits),
        prefix=_prefix(fields),
        attachments=_attachments(fields, limits),
        refs=_refs(fields, limits),
        router=_router(fields, kind),
        requires=requires,
        ext=_ext(fields, limits),
    )
    pools = _pools(fields)
    _check_names(manifest)
    _check_rtvq(manifest)
    check_router(manifest)
    return manifest, pools


def _requires(tree: dict[str, object]) -> tuple[str, ...]:
    requires = Fields(tree, "", frozenset(tree)).texts("requires")
    for feature in requires:
        grammatical(feature, FEATURE, "requires")
    # obm-1 clause 12.2
    unknown = sorted(set(requires) - KNOWN_FEATURES)
    if unknown:
        raise FormatError(
            "unsupported_feature", "the file needs a newer obm", where="requires", got=", ".join(unknown[:8])
        )
    return requires


def _tensors(fields: Fields, limits: Limits) -> tuple[TensorRecord, ...]:
    items = fields.get("tensors", list)
    # obm-1 clause 3.1, before any record is made
    count = len(items) + len(fields.get("alias", list, [])) + len(fields.get("removed", list, []))
    if count > limits.tensors:
        raise FormatError(
            "limit_exceeded",
            "too many tensors, aliases and removed names",
            where="tensors",
            expected=f"at most {limits.tensors}",
            got=count,
        )
    records = RecordParser(limits)
    return tuple([records.parse(item, f"tensors[{index}]") for index, item in enumerate(items)])


def _backbone(fields: Fields) -> BackboneId:
    known = frozenset({"architecture", "fingerprint", "n_params", "n_tensors"})
    backbone = Fields(fields.value("backbone"), "backbone", known)
    fingerprint = backbone.get("fingerprint", str)
    check_digest(fingerprint, "backbone.fingerprint")
    return BackboneId(
        fingerprint=fingerprint,
        n_tensors=backbone.get("n_tensors", int),
        n_params=backbone.get("n_params", int),
        architecture=grammatical(backbone.get("architecture", str, ""), ARCHITECTURE, "backbone.architecture"),
    )


def _aliases(fields: Fields, tensors: tuple[TensorRecord, ...], limits: Limits) -> tuple[tuple[str, str], ...]:
    targets = {record.name for record in tensors}
    aliases: list[tuple[str, str]] = []
    for item in fields.get("alias", list, []):
        pair = typed(item, list, "alias")
        if len(pair) != 2:
            raise FormatError("manifest_field", "an alias is a pair", where="alias", got=f"{len(pair)} items")
        name = check_tensor_name(typed(pair[0], str, "alias"), limits, "alias")
        target = typed(pair[1], str, "alias")
        # obm-1 clause 5.8
        if target not in targets:
            raise FormatError(
                "manifest_field",
                "the target of an alias is no tensor record",
                where=name,
                got=ascii(target[:80]),
            )
        aliases.append((name, target))
    return tuple(aliases)


def _removed(fields: Fields, limits: Limits) -> tuple[str, ...]:
    return tuple([check_tensor_name(name, limits, "removed") for name in fields.texts("removed")])


def _prefix(fields: Fields) -> Prefix | None:
    if "prefix" not in fields:
        return None
    prefix = Fields(fields.value("prefix"), "prefix", frozenset({"side", "text"}))
    return Prefix(
        side=prefix.choice("side", _SIDES, "manifest_field"),
        text=grammatical(prefix.get("text", str), PREFIX, "prefix.text"),
    )


def _attachments(fields: Fields, limits: Limits) -> tuple[Attachment, ...]:
    items = fields.get("attach", list, [])
    # obm-1 clause 3.1
    if len(items) > limits.attachments:
        raise FormatError(
            "limit_exceeded", "too many attachments", expected=f"at most {limits.attachments}", got=len(items)
        )
    return tuple([_attachment(item, f"attach[{index}]", limits) for index, item in enumerate(items)])


def _attachment(item: object, where: str, limits: Limits) -> Attachment:
    fields = Fields(item, where, frozenset({"name", "nbytes"}))
    name = check_attachment_name(fields.get("name", str), where)
    nbytes = fields.get("nbytes", int)
    # obm-1 clause 3.1
    if nbytes > limits.attachment_nbytes:
        raise FormatError(
            "limit_exceeded",
            "the attachment is too large",
            where=name,
            expected=f"at most {limits.attachment_nbytes}",
            got=nbytes,
        )
    return Attachment(name=name, nbytes=nbytes)


def _refs(fields: Fields, limits: Limits) -> tuple[str, ...]:
    refs = fields.texts("refs")
    # obm-1 clause 3.1
    if len(refs) > limits.refs:
        raise FormatError("limit_exceeded", "too many refs", expected=f"at most {limits.refs}", got=len(refs))
    checked = tuple([check_artifact_id(ref, "refs") for ref in refs])
    check_sorted(checked, "refs")
    return checked


def _router(fields: Fields, kind: Kind) -> RouterInfo | None:
    # obm-1 clause 5.1: exactly for kind router
    if ("router" in fields) != (kind is Kind.ROUTER):
        raise FormatError("manifest_field", "`router` belongs to kind router, and to no other", where="router")
    if kind is not Kind.ROUTER:
        return None
    router = Fields(fields.value("router"), "router", frozenset({"max_tokens", "routes"}))
    router.get("routes", list)
    routes = tuple([grammatical(route, ROUTE, "router.routes") for route in router.texts("routes")])
    max_tokens = router.get("max_tokens", int)
    if not routes or len(set(routes)) != len(routes) or not max_tokens:
        raise FormatError(
            "manifest_field",
            "a router needs unique routes and a token limit",
            where="router",
            got=f"{len(routes)} routes, max_tokens {max_tokens}",
        )
    return RouterInfo(routes=routes, max_tokens=max_tokens)


def _ext(fields: Fields, limits: Limits) -> dict[str, object]:
    ext = typed(fields.value("ext"), dict, "ext")
    for key in ext:
        grammatical(key, VENDOR_KEY, "ext")
    nbytes = len(encode_canonical(ext))
    # obm-1 clause 3.1
    if nbytes > limits.ext_nbytes:
        raise FormatError(
            "limit_exceeded",
            "too much vendor data",
            where="ext",
            expected=f"at most {limits.ext_nbytes}",
            got=nbytes,
        )
    fields.settle("ext")
    return ext


def _pools(fields: Fields) -> dict[str, Pool]:
    pools = Fields(fields.value("pools"), "pools", frozenset(POOL_NAMES))
    fields.settle("pools")
    return {name: _pool(pools.value(name), pools.path(name)) for name in POOL_NAMES if name in pools}


def _pool(value: object, where: str) -> Pool:
    fields = Fields(value, where, frozenset({"nbytes", "sha256"}))
    return Pool(nbytes=fields.get("nbytes", int), sha256=check_digest(fields.get("sha256", str), fields.path("sha256")))


def _check_names(manifest: Manifest) -> None:
    """Refuse names out of order or used twice (obm-1 clauses 5.3 and 5.7)."""
    names = [record.name for record in manifest.tensors]
    aliases = [name for name, _ in manifest.aliases]
    check_sorted(names, "tensors")
    check_sorted(aliases, "alias")
    check_sorted(manifest.removed, "removed")
    check_sorted([attachment.name for attachment in manifest.attachments], "attach")
    _check_unique((*names, *aliases, *manifest.removed), "a name occurs twice")
    fresh, removed = new_names(manifest), frozenset(manifest.removed)
    for record in manifest.tensors:
        if record.base is not None and (record.base.name in fresh or record.base.name in removed):
            raise FormatError(
                "duplicate_name", "the counterpart has the name of a new or a removed tensor", where=record.base.name
            )
    if manifest.prefix is not None:
        _check_prefix(manifest.prefix, [name for name in (*names, *aliases) if name not in fresh], fresh)


def _check_prefix(prefix: Prefix, kept: list[str], fresh: frozenset[str]) -> None:
    """Refuse names for which the fine-tune has no name of its own (obm-1 clause 5.7).

    Args:
        prefix: the prefix.
        kept: names of tensors with a counterpart.
        fresh: names of those without.
    """
    if prefix.side == "backbone":
        for name in kept:
            if not name.startswith(prefix.text) or name == prefix.text:
                raise FormatError("manifest_field", "the name lacks the prefix", where=name, expected=prefix.text)
        called = [name.removeprefix(prefix.text) for name in kept]
    else:
        called = [prefix.text + name for name in kept]
    _check_unique((*called, *fresh), "the fine-tune calls two tensors so")


def _check_unique(names: Iterable[str], message: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FormatError("duplicate_name", message, where=name)
        seen.add(name)


def new_names(manifest: Manifest) -> frozenset[str]:
    """Names of the tensors that the fine-tune has and the backbone must not have (obm-1 clauses 5.4 and 5.8).

    They are the added tensors and the aliases of such. A router has none: its tensors are no fine-tune's.
    """
    if manifest.kind is Kind.ROUTER:
        return frozenset()
    added = {record.name for record in manifest.tensors if record.base is None}
    return frozenset(added | {name for name, target in manifest.aliases if target in added})


def _check_rtvq(manifest: Manifest) -> None:
    """Refuse an `rtvq` record whose reference does not exist (obm-1 clause 6.7)."""
    for record in manifest.tensors:
        if isinstance(record.params, RtvqParams) and record.params.ref >= len(manifest.refs):
            raise FormatError(
                "bad_params",
                "there is no such ref",
                where=f"{record.name}.params.ref",
                expected=f"less than {len(manifest.refs)}",
                got=record.params.ref,
            )


def manifest_object(manifest: Manifest, pools: Mapping[str, Pool]) -> dict[str, object]:
    """The JSON object of a manifest and its pools, without fields that have their defaults (clause 4.2)."""
    optional: dict[str, tuple[object, object]] = {
        "alias": ([list(alias) for alias in manifest.aliases], []),
        "attach": ([{"name": item.name, "nbytes": item.nbytes} for item in manifest.attachments], []),
        "ext": (manifest.ext, {}),
        "pools": (
            {name: {"nbytes": pool.nbytes, "sha256": pool.sha256.hex()} for name, pool in pools.items()},
            {},
        ),
        "position": (manifest.position, "none"),
        "prefix": (_prefix_object(manifest.prefix), {}),
        "refs": (list(manifest.refs), []),
        "removed": (list(manifest.removed), []),
        "requires": (list(manifest.requires), []),
        "router": (_router_object(manifest.router), {}),
        "task": (manifest.task, ""),
    }
    return {
        "backbone": _backbone_object(manifest.backbone),
        "kind": manifest.kind.value,
        "tensors": [record_object(record) for record in manifest.tensors],
        **{key: value for key, (value, default) in optional.items() if value != default},
    }


def _backbone_object(backbone: BackboneId) -> dict[str, object]:
    made: dict[str, object] = {
        "fingerprint": backbone.fingerprint,
        "n_params": backbone.n_params,
        "n_tensors": backbone.n_tensors,
    }
    return made | ({"architecture": backbone.architecture} if backbone.architecture else {})


def _prefix_object(prefix: Prefix | None) -> dict[str, object]:
    return {} if prefix is None else {"side": prefix.side, "text": prefix.text}


def _router_object(router: RouterInfo | None) -> dict[str, object]:
    return {} if router is None else {"max_tokens": router.max_tokens, "routes": list(router.routes)}
