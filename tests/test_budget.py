"""A budget: every size between the least and the most is met, more bytes never keep less, and it says what it chose."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Tensors, shifted, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from obm_format.checkpoint import open_checkpoint
from obm_format.compress import CompressReport, Fitted, compress_checkpoint, parse_budget, parse_compress_options
from obm_format.compress.accounting import file_nbytes, fixed_nbytes, record_nbytes
from obm_format.compress.allocate import WHOLE, Option, allocate, ladder, steps
from obm_format.compress.measure import Fidelity, total
from obm_format.errors import ObmError
from obm_format.expert import open_expert
from obm_format.kernels import select_kernels
from obm_format.kernels.words import to_float32
from obm_format.layout import alpha_nbytes, frame_count, part_layouts
from obm_format.model import DType, Manifest

F16, BF16, F32, I64 = DType.F16, DType.BF16, DType.F32, DType.I64


LAYER = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
SHAPES = {
    "model.embed_tokens.weight": (80, 64),
    "model.norm.weight": (64,),
    **{f"model.layers.{i}.{name}.weight": shape for i in (0, 1) for name, shape in LAYER.items()},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in `base`, and a fine-tune of it in `tuned` whose rows moved by very different amounts."""
    place = tmp_path_factory.mktemp("budget")
    draw = np.random.default_rng(2)
    base, tuned = dict[str, Any](), dict[str, Any]()
    for name, shape in SHAPES.items():
        weights = draw.normal(size=shape)
        base[name] = (BF16, weights)
        tuned[name] = (
            BF16,
            weights + draw.normal(0, 0.05, shape) * draw.gamma(1, 1, (shape[0], *[1] * (len(shape) - 1))),
        )
    write_checkpoint(place / "base", base, config={"architectures": ["LlamaForCausalLM"]})
    write_checkpoint(place / "tuned", tuned, config={"architectures": ["LlamaForCausalLM"], "a": 1})
    return place


def fitted(folder: Path, tmp_path: Path, budget: str, **words: str) -> tuple[CompressReport, Fitted]:
    options = parse_compress_options(budget=budget, **words)
    report = compress_checkpoint(folder / "base", folder / "tuned", tmp_path / "x.obm", options)
    assert report.fitted is not None
    assert report.nbytes == (tmp_path / "x.obm").stat().st_size <= report.fitted.limit
    return report, report.fitted


@pytest.fixture(scope="module")
def ends(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(folder, tmp_path_factory.mktemp("ends"), "1.0")[1]


def between(ends: Fitted, part: int) -> str:
    """The least size, and one part of what lies between it and the most."""
    return str(ends.smallest + (ends.largest - ends.smallest) // part)


# --- the whole way ---


def test_every_budget_between_the_ends_is_met_and_more_never_keeps_less(
    folder: Path, tmp_path: Path, ends: Fitted
) -> None:
    budgets = np.linspace(ends.smallest, ends.largest, 13).astype(int)
    found = [fitted(folder, tmp_path, str(budget))[1].fidelity for budget in budgets]
    assert found[0].kept < 0.3
    assert found[-1].rel_error == 0
    for less, more in pairwise(found):
        assert more.kept >= less.kept - 2 * (1 - WHOLE)


def test_ends_are_met_to_the_byte_and_one_byte_less_is_refused(folder: Path, tmp_path: Path, ends: Fitted) -> None:
    for size in (ends.smallest, ends.largest):
        assert fitted(folder, tmp_path, str(size))[0].nbytes == size
    assert fitted(folder, tmp_path, str(ends.largest))[1].refused is None
    before = (tmp_path / "x.obm").read_bytes()
    with pytest.raises(ObmError) as caught:
        fitted(folder, tmp_path, str(ends.smallest - 1))
    assert caught.value.reason == "budget_too_small"
    assert f"at least {ends.smallest} bytes" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.obm"]
    assert (tmp_path / "x.obm").read_bytes() == before


def test_what_is_said_is_what_is_written(folder: Path, tmp_path: Path, ends: Fitted) -> None:
    report, found = fitted(folder, tmp_path, between(ends, 3))
    with open_expert(tmp_path / "x.obm") as expert:
        assert expert.verify("deep") == []
        words = {"affine": ("affine2", "affine3", "affine4", "affine8"), "xdelta": ("exact",), "raw": ("exact",)}
        for one in found.chosen:
            record = expert.records[one.name]
            assert one.choice.encoding in words.get(record.encoding, (record.encoding,))
            assert one.nbytes == sum(
                expert.header.parts[f"{one.name}#{suffix}"].nbytes
                for suffix in ("bits0", "bits1", "bits2", "bits3", "mask", "codes", "data", "counts", "index", "values")
                if f"{one.name}#{suffix}" in expert.header.parts
            ) + _pooled_nbytes(expert.header.manifest, one.name)
    payload = json.loads(json.dumps(report.as_json()))
    assert payload["budget"]["nbytes"] == found.limit
    assert payload["budget"]["next"]["nbytes"] > 0
    assert [item["name"] for item in payload["choices"]] == sorted(item["name"] for item in payload["choices"])
    assert {"name", "encoding", "choice", "nbytes", "kept", "rel_error"} <= payload["choices"][0].keys()
    assert sum(item["shift_share"] for item in payload["choices"]) == pytest.approx(1)


def _pooled_nbytes(manifest: Manifest, name: str) -> int:
    (record,) = (one for one in manifest.tensors if one.name == name)
    framed = [layout.raw_nbytes for layout in part_layouts(record) if layout.raw_nbytes is not None]
    return alpha_nbytes(record) + 36 * sum(map(frame_count, framed))


def test_fidelity_is_that_of_the_decoded_file(folder: Path, tmp_path: Path, ends: Fitted) -> None:
    _, found = fitted(folder, tmp_path, between(ends, 4))
    with (
        open_checkpoint(folder / "base") as base,
        open_checkpoint(folder / "tuned") as tuned,
        open_expert(tmp_path / "x.obm") as expert,
    ):
        for one in found.chosen:
            old = to_float32(base.words(one.name), BF16)
            d = (to_float32(tuned.words(one.name), BF16) - old).astype(np.float64)
            x = expert.values(one.name, base.words(one.name)).astype(np.float64)
            assert one.fidelity.kept == pytest.approx((d * x).sum() / (d * d).sum(), abs=1e-6)
            assert one.fidelity.rel_error == pytest.approx(np.sqrt(((d - x) ** 2).sum() / (d * d).sum()), abs=1e-6)


def test_numpy_and_fast_kernels_choose_alike(folder: Path, tmp_path: Path, ends: Fitted) -> None:
    options = parse_compress_options(budget=between(ends, 3))
    ids = {
        compress_checkpoint(
            folder / "base", folder / "tuned", tmp_path / f"{name}.obm", options, kernels=select_kernels(prefer=name)
        ).id
        for name in ("reference", "numba")
    }
    assert len(ids) == 1


def test_position_and_rest_bound_what_the_budget_may_touch(folder: Path, tmp_path: Path) -> None:
    _, found = fitted(folder, tmp_path, "1.0", rest="exact", position="mlp")
    assert {one.role for one in found.chosen} == {"mlp"}
    _, found = fitted(folder, tmp_path, "0.3", rest="drop", position="attention")
    assert {one.role for one in found.chosen} == {"attention"}
    _, found = fitted(folder, tmp_path, "0.5")
    outside = {one.choice.encoding for one in found.chosen if one.role == "other"}
    assert outside
    assert not outside & {"zero", "sign1", "tern1"}


def test_alpha_that_is_asked_for_is_the_only_one_tried(folder: Path, tmp_path: Path, ends: Fitted) -> None:
    words = set()
    for share in (12, 6, 4):
        _, found = fitted(folder, tmp_path, between(ends, share), alpha="mean/matrix")
        words |= {str(one.choice) for one in found.chosen if one.choice.alpha is not None}
    assert words
    assert all("mean/matrix" in word and "gain" not in word for word in words)


def test_few_changes_become_sparse_and_equal_tensors_are_no_choice(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    base: Tensors = {name: (F32, np.ones((96, 64))), "model.norm.weight": (F32, np.ones(64))}
    moved = np.ones((96, 64))
    moved[::24, 5] += [0.1, 0.3, -0.7, 0.2]
    tuned: Tensors = base | {name: (F32, moved)}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    _, found = fitted(tmp_path, tmp_path, "1.0")
    assert [(one.name, str(one.choice), one.fidelity.rel_error) for one in found.chosen] == [(name, "sparse", 0.0)]


VOCABULARY: Tensors = {
    "model.embed_tokens.weight": (F16, np.random.default_rng(1).normal(size=(6, 8))),
    "model.layers.0.mlp.up_proj.weight": (F16, np.random.default_rng(2).normal(size=(8, 8))),
    "ids": (I64, np.arange(4)),
}


def test_grown_added_integer_and_widened_tensors_pass_a_budget(tmp_path: Path) -> None:
    tuned = shifted(VOCABULARY, 3)
    tuned["model.embed_tokens.weight"] = (F16, np.random.default_rng(4).normal(size=(9, 8)))
    up = "model.layers.0.mlp.up_proj.weight"
    tuned |= {up: (F32, tuned[up][1]), "ids": (I64, np.arange(1, 5)), "head.weight": (F16, np.ones((3, 3)))}
    write_checkpoint(tmp_path / "base", VOCABULARY)
    write_checkpoint(tmp_path / "tuned", tuned)
    _, ends = fitted(tmp_path, tmp_path, "64kB")
    for budget in np.linspace(ends.smallest, ends.largest, 9).astype(int):
        _, found = fitted(tmp_path, tmp_path, str(budget))
        assert [one.name for one in found.chosen] == ["model.embed_tokens.weight", up]
        with open_expert(tmp_path / "x.obm") as expert:
            assert expert.verify("deep") == []


def test_tied_tensors_are_measured_once(tmp_path: Path) -> None:
    table = np.random.default_rng(1).normal(size=(8, 8))
    base: Tensors = {**VOCABULARY, "a.weight": (F16, table), "b.weight": (F16, table)}
    tuned = shifted(base, 3)
    tuned["b.weight"] = tuned["a.weight"]
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    report, found = fitted(tmp_path, tmp_path, "64kB")
    assert report.n_aliases == 1
    assert "b.weight" not in found.choices


# --- the arithmetic ---

fidelities = st.builds(
    lambda shift, kept, across: Fidelity(
        shift=shift, along=kept * shift, lost=shift * ((1 - kept) ** 2 + across), skew=shift * (1 - kept) ** 2
    ),
    st.floats(0, 1e3),
    st.floats(0, 1.2),
    st.floats(0, 2),
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, list[Option]]:
    found: dict[str, list[Option]] = {}
    for number in range(draw(st.integers(1, 6))):
        shift = draw(st.floats(0.01, 1e3))
        some = draw(st.lists(st.tuples(st.integers(0, 60), fidelities), min_size=1, max_size=7))
        found[f"t{number}"] = [
            Option(
                nbytes=nbytes,
                fidelity=Fidelity(
                    shift=shift,
                    along=one.kept * shift,
                    lost=one.rel_error**2 * shift,
                    skew=(1 - one.kept) ** 2 * shift,
                ),
            )
            for nbytes, one in some
        ]
    return found


@settings(max_examples=100, deadline=None)
@given(tensors(), st.integers(0, 300), st.integers(0, 300))
def test_more_bytes_never_keep_less_or_lose_more(options: dict[str, list[Option]], one: int, other: int) -> None:
    rungs = {name: ladder(some) for name, some in options.items()}
    ladders = {name: steps(name, some, rungs[name]) for name, some in options.items()}
    results = []
    for spare in sorted((one, other)):
        reached, refused = allocate(ladders, spare)
        taken = [options[name][rungs[name][rung]] for name, rung in reached.items()]
        least = sum(options[name][rungs[name][0]].nbytes for name in options)
        assert sum(option.nbytes for option in taken) <= least + spare
        assert refused is None or refused.nbytes > 0
        results.append((sum(option.kept for option in taken), -sum(option.lost for option in taken)))
    (less_kept, less_lost), (more_kept, more_lost) = results
    slack = 1e-9 * (1 + abs(less_kept) + abs(less_lost))
    assert more_kept >= less_kept - slack
    assert more_kept > less_kept + slack or more_lost >= less_lost - slack


@settings(max_examples=100, deadline=None)
@given(tensors())
def test_ladders_begin_with_the_cheapest_and_end_with_the_best(options: dict[str, list[Option]]) -> None:
    for name, some in options.items():
        rungs = ladder(some)
        assert some[rungs[0]].nbytes == min(option.nbytes for option in some)
        best = max(option.kept for option in some)
        assert some[rungs[-1]].kept == best
        assert some[rungs[-1]].lost <= min(o.lost for o in some if o.kept == best) * (1 + 1e-12)
        climbed = steps(name, some, rungs)
        assert all(step.nbytes > 0 and step.worth > 0 for step in climbed)
        for first, second in pairwise(climbed):
            assert first.phase <= second.phase
            assert first.phase < second.phase or first.worth > second.worth


def test_one_bit_with_the_whole_shift_goes_before_two_bits_with_less_error() -> None:
    # the numbers of a Gaussian: proj keeps all at an L2 error of 0.75, two mean planes keep 81 % at 0.36
    bit = Fidelity(shift=1, along=1.0, lost=0.57, skew=0.0)
    planes = Fidelity(shift=1, along=0.81, lost=0.13, skew=0.036)
    nothing = Fidelity(shift=1, along=0, lost=1, skew=1)
    options = [Option(nbytes=nbytes, fidelity=one) for nbytes, one in ((0, nothing), (10, bit), (20, planes))]
    assert ladder(options) == [0, 1]


def test_accounting_is_exact_and_its_parts_are_never_too_small(folder: Path, tmp_path: Path, ends: Fitted) -> None:
    for budget in np.linspace(ends.smallest, ends.largest, 4).astype(int):
        report, _ = fitted(folder, tmp_path, str(budget))
        with open_expert(tmp_path / "x.obm") as expert:
            manifest = expert.manifest
        assert file_nbytes(manifest) == report.nbytes
        digits = len(str(report.nbytes))
        bound = fixed_nbytes(manifest, digits) + sum(record_nbytes(record, digits) for record in manifest.tensors)
        assert report.nbytes <= bound <= report.nbytes + 1200


def test_sums_of_fidelities_are_one_vector() -> None:
    one, other = Fidelity(shift=1, along=1, lost=0.5, skew=0.1), Fidelity(shift=3, along=0, lost=3, skew=3)
    assert total([one, other]) == Fidelity(shift=4, along=1, lost=3.5, skew=3.1)
    assert total([]).kept == 1


# --- words ---


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("12000", 12_000),
        ("12MB", 12_000_000),
        ("12mb", 12_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2KiB", 2048),
    ],
)
def test_bytes(text: str, nbytes: int) -> None:
    assert parse_budget(text).limit(10**12) == nbytes


@pytest.mark.parametrize(("text", "ratio"), [("0.05", "1/20"), ("1.0", "1"), ("5%", "1/20"), ("0.1%", "1/1000")])
def test_ratio_is_of_the_dense_fine_tune(text: str, ratio: str) -> None:
    assert parse_budget(text).limit(999_999) == int(Fraction(ratio) * 999_999)


@pytest.mark.parametrize("text", ["", "0", "0.0", "-1", "1.5", "abc", "12XB", "1e6", "NaN", "0B", "101%", "0x10", "٣"])
def test_no_budget(text: str) -> None:
    with pytest.raises(ObmError) as caught:
        parse_budget(text)
    assert caught.value.reason == "usage"


@pytest.mark.parametrize("words", [{"encoding": "tern1"}, {"planes": 2}, {"planes": 1}, {"gain": "1"}])
def test_budget_goes_without_what_says_the_encoding(words: dict[str, Any]) -> None:
    with pytest.raises(ObmError) as caught:
        parse_compress_options(budget="0.1", **words)
    assert caught.value.reason == "usage"
