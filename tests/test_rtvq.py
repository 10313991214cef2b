"""Several fine-tunes onto one base vector: values by the formula, sizes, and that the base vector is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import Tensors, shifted, tiny_llama, write_checkpoint

from obm_cli.main import main
from obm_format.checkpoint import open_checkpoint
from obm_format.compress import (
    CompressOptions,
    RtvqOptions,
    RtvqReport,
    compress_rtvq,
    parse_rtvq_options,
)
from obm_format.errors import ObmError
from obm_format.expert import Expert, References, open_expert
from obm_format.kernels.words import from_float32, to_float32
from obm_format.loader import Residents
from obm_format.merge import materialize, parse_recipe
from obm_format.model import AffineParams, DType, Kind, RtvqParams
from obm_format.verify import verify_expert

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
Array = npt.NDArray[np.float32]
ROUTING = {"method": "routing"}


def family(folder: Path, dtype: DType = BF16, count: int = 3) -> list[Path]:
    """A backbone in `folder`/pre and `count` fine-tunes, which have a shift in common."""
    pre = tiny_llama(0, dtype)
    write_checkpoint(folder / "pre", pre)
    common = shifted(pre, 100, by=0.05)
    return [write_checkpoint(folder / f"task{i}", shifted(common, i, by=0.02)) for i in range(count)]


def compress(folder: Path, tuned: Sequence[Path], options: RtvqOptions | None = None) -> RtvqReport:
    return compress_rtvq(folder / "pre", tuned, folder / "out", options)


def floats(path: Path) -> dict[str, Array]:
    with open_checkpoint(path) as checkpoint:
        return {name: to_float32(checkpoint.words(name), spec.dtype) for name, spec in checkpoint.tensors.items()}


def quantised(x: Array, bits: int) -> Array:
    """TVQ as the paper's code has it (algorithms 1.11), in float32, with the rule for constants."""
    top = np.float32(2**bits - 1)
    low, high = x.min(), x.max()
    if low == high:
        return np.full_like(x, low)
    s = top * (np.float32(1) / (high - low))  # as torch divides an integer by a tensor
    z = np.float32(-np.round(s * low))
    q = np.clip(np.round(s * x + z), np.float32(0), top)
    found: Array = (q - z) / s
    return found


def by_formula(pre: Array, tuned: Sequence[Array], bits: tuple[int, int]) -> tuple[Array, list[Array]]:
    """The decoded base vector, and the decoded task vector of each fine-tune."""
    mean = sum((one.astype(np.float64) for one in tuned), np.zeros(pre.shape)) / len(tuned)
    base = quantised((mean - pre.astype(np.float64)).astype(np.float32), bits[0])
    return base, [quantised((one - pre) - base, bits[1]) + base for one in tuned]


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("bits", [(3, 2), (8, 4)])
def test_values_are_those_of_the_formula(tmp_path: Path, dtype: DType, bits: tuple[int, int]) -> None:
    tuned = family(tmp_path, dtype)
    compress(tmp_path, tuned, RtvqOptions(base_bits=bits[0], offset_bits=bits[1]))
    pre, shifts = floats(tmp_path / "pre"), [floats(path) for path in tuned]
    with open_expert(tmp_path / "out" / "base.obm") as shared:
        assert shared.manifest.kind is Kind.RTVQ_BASE
        assert len(shared.records) == 14
        for name, record in shared.records.items():
            assert isinstance(record.params, AffineParams)
            base, values = by_formula(pre[name], [one[name] for one in shifts], bits)
            np.testing.assert_array_equal(shared.values(name), base)
            for path, expected in zip(tuned, values, strict=True):
                with open_expert(tmp_path / "out" / f"{path.name}.obm", refs={shared.id: shared}) as expert:
                    assert isinstance(expert.records[name].params, RtvqParams)
                    assert expert.manifest.refs == (shared.id,)
                    np.testing.assert_array_equal(expert.values(name), expected)


def test_error_correction_keeps_the_error_of_the_offset_alone(tmp_path: Path) -> None:
    tuned = family(tmp_path)
    report = compress(tmp_path, tuned, RtvqOptions(base_bits=2, offset_bits=8))
    assert report.base.rel_error > 0.2
    assert all(expert.rel_error < 0.01 for expert in report.experts)


def test_rest_is_exact(tmp_path: Path) -> None:
    tuned = family(tmp_path)
    compress(tmp_path, tuned)
    with (
        open_checkpoint(tmp_path / "pre") as pre,
        open_checkpoint(tuned[1]) as wanted,
        open_expert(tmp_path / "out" / "task1.obm") as expert,
    ):
        rest = [name for name, record in expert.records.items() if record.is_exact]
        assert "model.norm.weight" in rest
        for name in rest:
            np.testing.assert_array_equal(expert.exact(name, pre.words(name)), wanted.words(name))


def test_eight_tasks_at_three_and_two_bits_take_seven_and_a_half_percent(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pre: Tensors = {"a.weight": (F32, draw.normal(0, 1, (1000, 1000)))}
    write_checkpoint(tmp_path / "pre", pre)
    tuned = [write_checkpoint(tmp_path / f"t{i}", shifted(pre, i)) for i in range(1, 9)]
    report = compress(tmp_path, tuned, RtvqOptions(common=CompressOptions(position="*.weight")))
    files = (report.base, *report.experts)
    assert [one.bytes["sign"] for one in files] == [375_000] + [250_000] * 8
    assert sum(one.bytes["sign"] for one in files) / report.dense_nbytes <= 0.0743
    assert report.ratio <= 0.075
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) == report.nbytes


def test_same_bytes_again_and_elsewhere(tmp_path: Path) -> None:
    tuned = family(tmp_path)
    compress(tmp_path, tuned)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(first) == {"base.obm", "task0.obm", "task1.obm", "task2.obm"}
    (tmp_path / "elsewhere").mkdir()
    moved = [path.rename(tmp_path / "elsewhere" / path.name) for path in tuned]
    compress_rtvq(tmp_path / "pre", moved, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == first


def test_tied_unchanged_and_grown_tensors(tmp_path: Path) -> None:
    pre = dict(tiny_llama(0, F32))
    pre["lm_head.weight"] = pre["model.embed_tokens.weight"]
    write_checkpoint(tmp_path / "pre", pre)
    unchanged = "model.layers.0.mlp.up_proj.weight"
    tuned = []
    for i in (1, 2):
        one = shifted(pre, i)
        one["lm_head.weight"] = one["model.embed_tokens.weight"]
        one[unchanged] = pre[unchanged]
        if i == 2:
            grown = np.vstack((np.asarray(one["model.embed_tokens.weight"][1]), np.ones((3, 16))))
            one["model.embed_tokens.weight"] = one["lm_head.weight"] = (F32, grown)
        tuned.append(write_checkpoint(tmp_path / f"t{i}", one))
    compress(tmp_path, tuned, RtvqOptions(common=CompressOptions(position="*")))
    with open_expert(tmp_path / "out" / "base.obm") as shared:
        assert "model.embed_tokens.weight" not in shared.records or "lm_head.weight" not in shared.records
        assert shared.records[unchanged].encoding == "zero"
    for path in tuned:
        materialize(tmp_path / "pre", [tmp_path / "out" / f"{path.name}.obm"], parse_recipe(ROUTING), tmp_path / "m")
        wanted, got = floats(path), floats(tmp_path / "m")
        assert got.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], atol=0.06)
        np.testing.assert_array_equal(got[unchanged], wanted[unchanged])
        shutil.rmtree(tmp_path / "m")


def test_fine_tunes_equal_to_the_backbone_refer_to_nothing(tmp_path: Path) -> None:
    tuned = family(tmp_path, count=1)
    shutil.rmtree(tuned[0])
    shutil.copytree(tmp_path / "pre", tuned[0])
    compress(tmp_path, tuned)
    with open_expert(tmp_path / "out" / "task0.obm") as expert:
        assert expert.manifest.refs == ()
        assert expert.missing_refs == ()


# --- the base vector is found -------------------------------------------------------------------------------


def routed(folder: Path, experts: Sequence[Path | Expert], refs: Sequence[Path] = ()) -> dict[str, Array]:
    recipe = parse_recipe({**ROUTING, "route": "task1"})
    materialize(folder / "pre", experts, recipe, folder / "m", refs=refs)
    return floats(folder / "m")


def check_merged(folder: Path, merged: dict[str, Array]) -> None:
    """Each tensor in the position is f32(backbone) + value, rounded to the backbone's dtype."""
    with (
        open_expert(folder / "reference.obm") as shared,
        open_expert(folder / "x.obm", refs={shared.id: shared}) as expert,
    ):
        pre = floats(folder / "pre")
        for name in shared.records:
            expected = to_float32(from_float32(pre[name] + expert.values(name), BF16), BF16)
            np.testing.assert_array_equal(merged[name], expected)


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """An expert `x.obm` of task1, and copies of its base vector beside it and in a folder of its own."""
    compress(tmp_path, family(tmp_path))
    shutil.copy(tmp_path / "out" / "base.obm", tmp_path / "reference.obm")
    shutil.copy(tmp_path / "out" / "task1.obm", tmp_path / "x.obm")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "x.obm", tmp_path / "alone" / "x.obm")
    return tmp_path


def test_materialize_finds_it_beside_the_expert(apart: Path) -> None:
    (apart / "broken.obm").write_bytes(b"no artifact")
    (apart / "folder.obm").mkdir()
    check_merged(apart, routed(apart, [apart / "x.obm"]))


def test_materialize_finds_it_among_the_experts_where_it_takes_no_part(apart: Path) -> None:
    check_merged(apart, routed(apart, [apart / "reference.obm", apart / "alone" / "x.obm"]))


def test_materialize_takes_it_by_name(apart: Path) -> None:
    check_merged(apart, routed(apart, [apart / "alone" / "x.obm"], refs=[apart / "reference.obm"]))


def test_open_experts_keep_nothing_that_was_closed(apart: Path) -> None:
    with open_expert(apart / "alone" / "x.obm") as expert:
        check_merged(apart, routed(apart, [expert], refs=[apart / "reference.obm"]))
        assert len(expert.missing_refs) == 1


def test_missing_base_vector_is_named(apart: Path) -> None:
    (apart / "alone" / "other.obm").write_bytes((apart / "out" / "task2.obm").read_bytes())
    with open_expert(apart / "reference.obm") as shared:
        wanted = shared.id
    with pytest.raises(ObmError) as caught:
        routed(apart, [apart / "alone" / "x.obm"], refs=[apart / "out" / "task0.obm"])
    assert caught.value.reason == "bad_reference"
    assert wanted in str(caught.value)
    assert not (apart / "m").exists()


def test_named_file_must_be_an_artifact(apart: Path) -> None:
    for named, reason in ((apart / "nowhere.obm", "not_found"), (apart / "pre" / "model.safetensors", "not_obm")):
        with pytest.raises(ObmError) as caught:
            routed(apart, [apart / "alone" / "x.obm"], refs=[named])
        assert caught.value.reason == reason


def test_only_so_many_neighbours_are_looked_at(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obm_format.expert.references.MOST_NEIGHBOURS", 2)
    for name in ("a.obm", "b.obm"):
        (apart / name).write_bytes(b"")
    with References() as references, open_expert(apart / "x.obm") as expert:
        with pytest.raises(ObmError):
            references.attach(expert, apart / "x.obm")
        # its likely names come first, wherever they stand in the alphabet
        (apart / "reference.obm").rename(apart / "base.obm")
        references.attach(expert, apart / "x.obm")
        assert expert.missing_refs == ()
        assert expert.verify("deep") == []
    assert len(expert.missing_refs) == 1


def test_verify_deep_needs_it(apart: Path) -> None:
    pre = apart / "pre"
    assert verify_expert(apart / "x.obm", base=pre, deep=True).ok
    assert verify_expert(apart / "alone" / "x.obm", base=pre).ok
    assert verify_expert(apart / "alone" / "x.obm", base=pre, deep=True, refs=[apart / "reference.obm"]).ok
    for base in (None, pre):
        found = verify_expert(apart / "alone" / "x.obm", base=base, deep=True)
        assert [defect.reason for defect in found.defects] == ["bad_reference"]


@pytest.mark.parametrize("deep_with_base", [True, False])
def test_verify_deep_reads_it(apart: Path, deep_with_base: bool) -> None:
    data = bytearray((apart / "reference.obm").read_bytes())
    data[-64] ^= 1
    (apart / "reference.obm").write_bytes(data)
    found = verify_expert(apart / "x.obm", base=apart / "pre" if deep_with_base else None, deep=True)
    assert {defect.reason for defect in found.defects} == {"part_digest"}


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_loader_keeps_it_at_hand(apart: Path, budget: int) -> None:
    residents = Residents([apart / "alone" / "x.obm", apart / "reference.obm"], budget)
    expected = read_values(apart)
    for _ in range(2):
        (expert,) = residents.experts()
        assert expert.manifest.task == "task1"
        assert residents.nbytes == (expert.nbytes if budget else 0)
        for name, values in expected.items():
            np.testing.assert_array_equal(expert.values(name), values)
    residents.close()


def read_values(folder: Path) -> dict[str, Array]:
    with (
        open_expert(folder / "reference.obm") as shared,
        open_expert(folder / "x.obm", refs={shared.id: shared}) as expert,
    ):
        return {name: expert.values(name) for name in shared.records}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "word"),
    [
        (("a", "b"), "3 names"),
        (("a", "b", "base"), "base"),
        (("a", "b", "A"), "A"),
        (("a", "b", "../c"), "../c"),
        (("a", "b", ""), "''"),
    ],
)
def test_names_are_refused(tmp_path: Path, tasks: tuple[str, ...], word: str) -> None:
    tuned = family(tmp_path)
    with pytest.raises(ObmError) as caught:
        compress(tmp_path, tuned, RtvqOptions(tasks=tasks))
    assert caught.value.reason == "usage"
    assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_default_names(tmp_path: Path) -> None:
    tuned = family(tmp_path)
    odd = tuned[1].rename(tmp_path / "a b")
    report = compress(tmp_path, [tuned[0], odd, tuned[2] / "model.safetensors"])
    assert [expert.task for expert in report.experts] == ["task0", "expert-2", "model"]
    assert [Path(expert.file).name for expert in report.experts] == ["task0.obm", "expert-2.obm", "model.obm"]


@pytest.mark.parametrize("bits", ["3", "3+", "3+5", "1+2", "3+2+2", "+3+2", "3 + 2", "３+2"])
def test_bits_are_refused(bits: str) -> None:
    with pytest.raises(ObmError) as caught:
        parse_rtvq_options(bits, (), CompressOptions())
    assert caught.value.reason == "usage"


def test_occupied_target_and_bad_fine_tune_leave_nothing(tmp_path: Path) -> None:
    tuned = family(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ObmError) as caught:
        compress(tmp_path, tuned)
    assert caught.value.reason == "exists"
    shutil.rmtree(tmp_path / "out")
    before = sorted(tmp_path.iterdir())
    broken = {**shifted(tiny_llama(0, BF16), 9), "model.norm.weight": (BF16, np.full(16, np.nan))}
    write_checkpoint(tmp_path / "nan", broken)
    with pytest.raises(ObmError) as caught:
        compress(tmp_path, [*tuned, tmp_path / "nan"])
    assert caught.value.reason == "not_finite_input"
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "nan"])


# --- command line -------------------------------------------------------------------------------------------


def run(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    return status, out, err


def test_commands_from_fine_tunes_to_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    family(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    names = ("--task", "math", "--task", "chat")
    status, out, _ = run(capfd, "compress", "pre", "task0", "task1", "--rtvq", "3+2", *names, "-o", "experts", "--json")
    assert status == 0
    made = json.loads(out)
    assert [one["task"] for one in made["experts"]] == ["math", "chat"]
    assert made["experts"][0]["file"] == "experts/math.obm"
    assert Path(made["experts"][0]["file"]).stat().st_size == made["experts"][0]["nbytes"]
    assert run(capfd, "verify", "experts/math.obm", "--base", "pre", "--deep")[0] == 0
    experts = ("--expert", "experts/math.obm", "--expert", "experts/chat.obm", "--route", "math")
    assert run(capfd, "materialize", "--base", "pre", *experts, "--dry-run")[0] == 0
    assert run(capfd, "materialize", "--base", "pre", *experts, "-o", "merged")[0] == 0

    Path("math.obm").write_bytes(Path("experts/math.obm").read_bytes())
    status, _, err = run(capfd, "materialize", "--base", "pre", "--expert", "math.obm", "-o", "out")
    assert (status, "base vector" in err, made["base"]["id"] in err) == (4, True, True)
    assert run(capfd, "verify", "math.obm", "--deep")[0] == 4
    ref = ("--ref", "experts/base.obm")
    assert run(capfd, "verify", "math.obm", "--deep", *ref)[0] == 0
    for more in (["--dry-run"], ["-o", "out"]):
        assert run(capfd, "materialize", "--base", "pre", "--expert", "math.obm", *ref, *more)[0] == 0

    assert run(capfd, "backbone", "add", "pre", "acme/tiny")[0] == 0
    status, _, err = run(capfd, "push", "math.obm", "acme/tiny:math")
    assert (status, "base vector" in err) == (4, True)
    assert run(capfd, "push", "math.obm", "acme/tiny:math", *ref)[0] == 0
    by_reference = ("materialize", "--base", "pre", "--expert", "acme/tiny:math", "-o")
    assert run(capfd, *by_reference, "pulled")[0] == 0
    (tmp_path / "cache" / "experts" / f"{made['base']['id'].rpartition(':')[2]}.obm").unlink()
    assert run(capfd, *by_reference, "again")[0] == 0


@pytest.mark.parametrize(
    "more",
    [
        ["task1"],
        ["--task", "a", "--task", "b"],
        ["--rtvq", "3+2", "--encoding", "sign1"],
        ["--rtvq", "3+2", "--planes", "1"],
        ["--rtvq", "3+2", "--alpha", "mean"],
        ["--rtvq", "9+2"],
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str]) -> None:
    family(tmp_path)
    words = [str(tmp_path / word) if word.startswith("task") else word for word in more]
    status, _, _ = run(capfd, "compress", tmp_path / "pre", tmp_path / "task0", *words, "-o", tmp_path / "out")
    assert status == 2
    assert not (tmp_path / "out").exists()
