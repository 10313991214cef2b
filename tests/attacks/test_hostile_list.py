"""A list of attacks on a container, by number: each is a vector that all readers refuse, or a test that runs it.

The list is the one that the format was designed against; `CASES` says where each of its lines is shown.
"""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest

from obm_format.container import BytesSource, Container
from obm_format.errors import FormatError

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "spec" / "vectors" / "invalid"

# Number and words of the case: names of vectors, and after `+` tests as file::function below tests/.
CASES = """
1 empty file: empty
2 seven bytes: seven-bytes
3 N is 0: n-zero
4 N is 2^63: n-2-to-63
5 N is 2^64-1: n-wraps n-all-ones
6 N above the file: n-beyond-file header-cut
7 N cuts the last brace: n-not-aligned header-brace-missing
8 N above the limit, with the bytes: n-above-limit + attacks/test_frame_attacks.py::test_hostile_frame_refused
9 8+N not aligned: n-not-aligned
10 no fixed prefix: no-metadata metadata-order leading-space
11 byte order mark: byte-order-mark
12 UTF-16: utf-16
13 padding of newlines, tabs: padding-newline padding-tab
14 padding of NULs: padding-nul
15 an archive behind the last part: trailing-zip trailing-byte
16 last part cut: last-part-cut last-padding-cut
17 cut between parts: last-part-missing no-parts
18 no obm metadata: no-metadata + attacks/test_frame_attacks.py::test_ordinary_safetensors_file_refused
19 format is pt: dense-safetensors
20 archive, pickle, GGUF: zip pickle gguf
21 gzip: gzip
22 invalid UTF-8: utf-8-invalid
23 lone surrogate: escape-surrogate
24 part twice: duplicate-part
25 metadata twice: duplicate-metadata
26 key twice in metadata: duplicate-in-metadata
27 key twice in manifest: duplicate-in-manifest duplicate-in-ext
28 deep header: depth-in-header + attacks/test_frame_attacks.py::test_hostile_text_takes_little_time_and_memory
29 deep manifest: depth-13 depth-1100 + attacks/test_frame_attacks.py::test_hostile_text_refused
30 NaN, Infinity, 1e999: number-nan number-infinity number-huge-exponent
31 -1, -0: number-minus-one number-minus-zero
32 2^53: number-2-to-53
33 leading zero: number-leading-zero word-number-8
34 trailing comma, comment: trailing-comma comment
35 metadata that is no text: manifest-number manifest-inline
36 manifest that is no object: manifest-array manifest-text
37 field missing or of another type: kind-missing kind-type backbone-missing tensors-type
38 a million entries: + attacks/test_frame_attacks.py::test_hostile_text_takes_little_time_and_memory
39 same meaning, other bytes: space-in-manifest space-in-header manifest-key-order entry-key-order escape-letter
40 empty name: name-empty
41 long name: name-long
42 name that climbs: name-parent name-root name-backslash name-inner-parent
43 look-alike: name-look-alike
44 __metadata__: name-metadata
45 device name: + attacks/test_names_and_paths.py::test_names_of_devices_are_only_names
46 begin after end: offsets-reversed
47 overlap: parts-overlap
48 hole: parts-hole
49 other order: parts-swapped
50 part not padded: part-not-padded
51 part of another dtype or rank: part-dtype part-rank-2
52 shape and length differ: part-shape-length
53 part not in the table: part-missing
54 padding that holds something: alphas-padding signs-padding last-padding
55 product of 2^64: shape-wraps shape-2-to-53
56 too many dimensions: shape-rank-9 shape-rank-100 + attacks/test_names_and_paths.py::test_rank_of_ten_thousand_refused
57 dimension 0 beside huge ones: shape-hollow-wraps
58 other shape than the backbone's: base-other-shape delta-fewer-rows delta-other-columns
59 other dtype than the backbone's: base-other-dtype
60 unused sign bits: sign1-pad-bit sign1-pad-bit-last-row sign1-pad-bit-second-plane
61 sign part a byte short or long: part-not-padded part-too-long part-emptied
62 number of alphas: pool-size pool-size-alphas
63 bits of affine: affine-bits-0 affine-bits-1 affine-bits-5 affine-bits-9
64 multiplier: affine-s-zero affine-s-nan affine-s-infinite affine-s-negative affine-overflow
65 unused bits of codes: affine-pad-bit
66 place beyond the tensor: sparse-beyond
67 place twice: sparse-twice
68 more places than stored: sparse-nnz-beyond sparse-count-large sparse-count-huge
69 long runs: frame-block-run-above-128-kib + spec/test_large_files.py::test_frame_of_too_many_empty_blocks_refused
70 unknown encoding: encoding-unknown
71 unknown feature: requires-unknown requires-and-unknown-field
72 major version 2: version-major-2
73 parameter too many: params-unknown zero-params
74 lowrank: encoding-unknown
75 frame without content size: frame-no-content-size
76 other content size: frame-content-size-larger frame-content-size-smaller frame-content-size-huge
77 two frames: frame-two-frames frame-two-whole-frames
78 junk behind a frame: frame-junk-after
79 window: frame-window-2-tib frame-window-16-mib
80 dictionary: frame-dictionary frame-dictionary-zero
81 checksum: frame-checksum
82 zlib, lz4: frame-zlib frame-lz4
83 framed sign bits: sign1-framed
84 digest wrong by a bit: digests-flipped alphas-flipped signs-flipped
85 digest in capitals, or of 63 digits: backbone-fingerprint-upper backbone-fingerprint-63 pool-digest-upper
86 header changed, old id: + attacks/test_mutation.py::test_with_the_expected_id_every_changed_byte_is_refused
87 backbone's digest wrong, its total right: base-digest-forged base-other-bytes
88 digest of a rebuilt tensor: xdelta-output-digest sparse-output-digest
89 references in a circle: + attacks/test_references.py::test_references_do_not_chain
90 reference of another kind: + attacks/test_references.py::test_wrong_reference_refused
91 tensor not in the reference: + attacks/test_references.py::test_wrong_reference_refused
92 attachment that runs: attach-pickle attach-python
93 attachment that climbs: attach-traversal attach-folder attach-backslash
94 hostile router: + attacks/test_names_and_paths.py::test_router_is_read_by_the_strict_reader
95 chat template: + attacks/test_names_and_paths.py::test_template_is_opaque
96 file shrinks while it is read: + attacks/test_files_that_change.py::test_file_that_shrinks_is_refused
97 file replaced after its header: + attacks/test_files_that_change.py::test_file_replaced_behind_its_header_is_refused
98 other side sends fewer or more: + attacks/test_files_that_change.py::test_range_of_another_length_refused
99 pipe, device: + attacks/test_files_that_change.py::test_what_is_no_plain_file_refused
100 link at the target: + attacks/test_files_that_change.py::test_link_at_the_target_is_not_followed_elsewhere
"""


def cases() -> list[tuple[int, list[str], list[str]]]:
    """Number, vectors and tests of each case."""
    found = []
    for line in CASES.strip().splitlines():
        words, shown = line.split(": ", 1)
        vectors, _, tests = shown.partition("+ ")
        found.append((int(words.split()[0]), vectors.split(), tests.split()))
    return found


NAMED = sorted({name for _, vectors, _ in cases() for name in vectors})


def test_no_case_is_missing() -> None:
    assert [number for number, _, _ in cases()] == list(range(1, 101))
    assert all(vectors or tests for _, vectors, tests in cases())


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("test", sorted({test for _, _, tests in cases() for test in tests}))
def test_named_test_exists(test: str) -> None:
    file, function = test.split("::")
    assert function in functions_of(file)


class Watched(BytesSource):
    """Counts the bytes that were read."""

    total = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        self.total += nbytes
        return super().read(offset, nbytes)


@pytest.mark.parametrize("name", NAMED)
def test_vector_refused_within_what_a_header_may_cost(name: str) -> None:
    file, facts = (VECTORS / f"{name}.obm").read_bytes(), json.loads((VECTORS / f"{name}.json").read_text())
    source = Watched(file)
    if facts["stage"] != "header":
        Container.open(source).close()  # tests/spec shows what each reader says of it behind the header
        return
    with pytest.raises(FormatError) as caught:
        Container.open(source)
    assert caught.value.reason == facts["reason"]
    assert source.total <= int.from_bytes(file[:8].ljust(8, b"\0"), "little") + 65_536


def test_all_header_vectors_refused_within_what_a_header_may_cost() -> None:
    for path in sorted(VECTORS.glob("*.json")):
        file = path.with_suffix(".obm").read_bytes()
        source = Watched(file)
        if json.loads(path.read_text())["stage"] == "header":
            with pytest.raises(FormatError):
                Container.open(source)
            assert source.total <= int.from_bytes(file[:8].ljust(8, b"\0"), "little") + 65_536
