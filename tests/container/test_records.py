"""Records of one form are checked once: with the same results and refusals as each alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from container_files import manifest_of, manifest_tree, reason_of, record, sound_header, tree_of, with_manifest

from obm_format.container import parse_header
from obm_format.container.canonical import encode_canonical
from obm_format.container.manifest import manifest_object
from obm_format.container.records import RecordParser, parse_record
from obm_format.errors import FormatError
from obm_format.limits import DEFAULT_LIMITS
from obm_format.model import AlphaLayout, SignParams

VECTORS = Path(__file__).parents[2] / "spec" / "vectors" / "valid"
SIGNS = SignParams(alpha=AlphaLayout(), rows=4)


def all_records() -> list[dict[str, Any]]:
    """Every record of every valid vector, as JSON."""
    found: list[dict[str, Any]] = []
    for path in sorted(VECTORS.glob("*.obm")):
        header = parse_header(path.read_bytes(), file_nbytes=None)
        tree: Any = manifest_object(header.manifest, header.pools)
        found += tree["tensors"]
    return found


def outcome(parse: Any, value: object) -> object:  # noqa: ANN401 - either of two ways to parse
    """What comes of it: the record, or everything that the refusal says."""
    try:
        return parse(value)
    except FormatError as error:
        return error.reason, error.where, str(error)


def both(parser: RecordParser, value: object) -> object:
    """What a parser that has seen others makes of it, found to be what it is alone."""
    alone = outcome(lambda item: parse_record(item, "tensors[7]", DEFAULT_LIMITS), copy.deepcopy(value))
    among = outcome(lambda item: parser.parse(item, "tensors[7]"), copy.deepcopy(value))
    assert among == alone
    return alone


def test_records_of_every_vector_are_the_same_among_others_as_alone() -> None:
    parser = RecordParser(DEFAULT_LIMITS)
    for name in ("first", "second.weight", "third"):
        for value in all_records():
            both(parser, value | {"name": name})


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": ["w"]},
        {"name": ""},
        {"name": "a#b"},
        {"name": "x" * 5000},
        {"more": 1},
        {"shape": [4, True]},
        {"shape": [4, 71]},
        {"shape": [2**40, 2**40]},
        {"mode": "delta"},
        {"mode": "added"},
        {"params": {"rows": True}},
        {"base": {"name": "other"}},
    ],
)
def test_record_that_is_nearly_like_one_before_is_judged_by_itself(change: dict[str, Any]) -> None:
    parser = RecordParser(DEFAULT_LIMITS)
    value = {"dtype": "BF16", "encoding": "sign1", "name": "w", "shape": [4, 70]}
    both(parser, value)
    both(parser, value | change)
    both(parser, value | {"name": "again"})


@pytest.mark.parametrize("value", [None, 1, [], "w", {}, {"dtype": "BF16", "encoding": "sign1", "shape": [4, 70]}])
def test_what_is_no_record_is_refused_among_others_too(value: object) -> None:
    parser = RecordParser(DEFAULT_LIMITS)
    both(parser, {"dtype": "BF16", "encoding": "sign1", "name": "w", "shape": [4, 70]})
    assert isinstance(both(parser, value), tuple)


@pytest.mark.parametrize("places", [[0], [2], [0, 1, 2], [1, 2]])
def test_default_that_is_written_out_in_any_of_several_is_refused(places: list[int]) -> None:
    head = sound_header(manifest_of(tuple(record(f"w{place}", SIGNS) for place in range(3))))
    tree: Any = manifest_tree(head)
    for place in places:
        tree["tensors"][place]["mode"] = "delta"
    table = {key: value for key, value in tree_of(head).items() if key != "__metadata__"}
    assert reason_of(with_manifest(encode_canonical(tree), table)) == "not_canonical"


def test_forms_beyond_those_that_are_kept_are_parsed_too() -> None:
    parser = RecordParser(DEFAULT_LIMITS)
    for rows in [*range(1, 2000), *range(1, 2000)]:
        value = {"dtype": "F32", "encoding": "zero", "name": f"w{rows}", "shape": [rows, 2]}
        assert parser.parse(value, "").spec.shape == (rows, 2)
