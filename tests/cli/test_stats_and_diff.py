"""`obm stats` and `obm diff` as a user runs them, and the page that `--html` writes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint

from obm_cli.heatmap import stats_page
from obm_cli.main import main
from obm_format.model import DType

VOID = {"meta", "br"}


class Page(HTMLParser):
    """The elements of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a backbone and two experts."""
    base = tiny_llama(0, DType.BF16, layers=3)
    write_checkpoint(tmp_path / "base", base, config={"architectures": ["LlamaForCausalLM"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OBM_REGISTRY", raising=False)
    for seed, name in enumerate(("math", "chat"), start=1):
        write_checkpoint(tmp_path / name, shifted(base, seed), config={"architectures": ["LlamaForCausalLM"]})
        assert main(["compress", "base", name, "-o", f"{name}.obm", "--task", name]) == 0
    return tmp_path


def ok(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    capfd.readouterr()
    status = main([*args])
    out, err = capfd.readouterr()
    assert status == 0, err
    return out


def test_stats_json(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(ok(capfd, "stats", "math.obm", "--base", "base", "--json"))
    assert found["schema"] == "obm.stats/1"
    assert sum(found["bytes"].values()) == found["nbytes"] == (folder / "math.obm").stat().st_size
    assert set(found["roles"]) == {"attention", "mlp", "other"}
    assert found["total"]["tensors"] == len(found["tensors"]) == 3 * 8 + 3
    for one in found["tensors"]:
        assert (one["alpha"] is None) == (one["sign_set"] is None) == (one["encoding"] != "sign1")
        assert (one["sign1_error"] is None) == (one["encoding"] == "sign1")
        assert 0 <= one["absorbed_fraction"] <= 1


def test_stats_for_people(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone = ok(capfd, "stats", "math.obm")
    assert "ABSORBED" not in alone
    line = next(line for line in ok(capfd, "stats", "math.obm", "--base", "base").splitlines() if "2.mlp.up" in line)
    assert line.split()[1:3] == ["mlp", "sign1"]
    assert "ABSORBED" in ok(capfd, "stats", "math.obm", "--base", "base")


def test_page_is_whole_and_needs_nothing_from_elsewhere(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ok(capfd, "stats", "math.obm", "--base", "base", "--html", "math.html")
    text = (folder / "math.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not {"src", "href", "srcset", "onload"} & {name for _, attributes in page.elements for name in attributes}
    assert "url(" not in text
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.count("svg") == 3  # bytes, alphas, absorbed
    assert page.count("details") == 1
    assert {"0.0%", "1-bit error", "|d|/|w|"} <= set(page.text)
    assert page.count("title") == 1 + 2 * 3 * 7  # the page, and every cell of two maps of 3 layers x 7 matrices
    assert {"self_attn.q_proj", "mlp.down_proj", "model.layers 2"} <= set(page.text)
    assert not list(folder.glob(".*.part"))


def test_page_without_backbone_has_one_map(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ok(capfd, "stats", "math.obm", "--html", "math.html")
    page = Page((folder / "math.html").read_text())
    assert page.count("svg") == 2
    assert page.count("title") == 1 + 3 * 7


def test_text_from_the_file_is_escaped(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trap = "<script>alert(1)</script>&"
    ok(capfd, "compress", "base", "math", "-o", "p.obm", "--position", f"re:lm_head|q_proj|{trap}")
    target = folder / "<b>.obm"
    (folder / "p.obm").rename(target)
    ok(capfd, "stats", target.name, "--html", "p.html")
    page = Page((folder / "p.html").read_text())
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert "<b>.obm" in page.text
    assert any(trap in text for text in page.text)
    assert "lm_head.weight" in page.text  # it has an alpha and no layer


def test_many_columns_and_other_names_are_drawn() -> None:
    names = [f"decoder.block.{layer}.experts.{place}.w1.weight" for layer in range(2) for place in range(40)]
    sizes: dict[str, Any] = {"nbytes": 0, "bits_per_weight": None, "zero_fraction": None}
    tensors: list[dict[str, Any]] = [
        {"name": name, "mode": "delta", "encoding": "sign1", "alpha": {"mean": 0.5}, **sizes} for name in names
    ]
    tensors.append({"name": "shared.weight", "mode": "delta", "encoding": "zero", "alpha": None, **sizes})
    totals = {"tensors": 81, "numel": 0, "alpha": None, **sizes}
    found = {
        "id": "x", "kind": "task-vector", "task": "", "position": "linear", "nbytes": 1, "with_base": False,
        "backbone": {"architecture": "", "fingerprint": "f"}, "bytes": {"header": 1}, "roles": {}, "total": totals,
        "tensors": tensors,
    }  # fmt: skip
    page = Page(stats_page(found, "x"))
    assert page.count("title") == 1 + 80
    assert "decoder.block 1" in page.text
    assert "0.5" not in page.text[page.text.index("decoder.block 1") :][:40]  # narrow cells carry no numbers
    assert page.count("svg") == 2
    empty = Page(stats_page({**found, "tensors": tensors[-1:]}, "x"))
    assert empty.count("svg") == 1


def test_page_that_cannot_be_written_leaves_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "taken.html").mkdir()
    before = sorted(folder.iterdir())
    for target in ("nowhere/x.html", "taken.html"):
        assert main(["stats", "math.obm", "--html", target, "--json"]) != 0
        out, err = capfd.readouterr()
        assert out == ""
        assert json.loads(err.splitlines()[-1])["schema"] == "obm.error/1"
    assert sorted(folder.iterdir()) == before


def test_wrong_backbone_exits_5(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "math.obm", "--base", "math", "--html", "x.html", "--json"]) == 5
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["reason"] == "base_digest"
    assert not (folder / "x.html").exists()


def test_diff_says_identical_and_exits_0_in_both_cases(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "copy.obm").write_bytes((folder / "math.obm").read_bytes())
    assert ok(capfd, "diff", "math.obm", "copy.obm").startswith("identical: obm1-sha256:")
    same = json.loads(ok(capfd, "diff", "math.obm", "copy.obm", "--json"))
    assert (same["schema"], same["identical"]) == ("obm.diff/1", True)
    found = json.loads(ok(capfd, "diff", "math.obm", "chat.obm", "--json"))
    assert found["identical"] is False
    assert found["fields"] == {"task": {"a": "math", "b": "chat"}}
    assert 0.3 < found["signs"]["equal_fraction"] < 0.7
    lines = ok(capfd, "diff", "math.obm", "chat.obm").splitlines()
    assert lines[0] == "the experts differ"
    assert "  task: math -> chat" in lines


def test_diff_names_what_a_manifest_says_by_leaving_it_out(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ok(capfd, "compress", "base", "math", "-o", "exact.obm", "--position", "none")
    lines = ok(capfd, "diff", "math.obm", "exact.obm").splitlines()
    assert "  position: linear -> none" in lines
    assert "  task: math -> -" in lines


def test_diff_and_stats_take_references(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ok(capfd, "backbone", "add", "base", "acme/tiny")
    ok(capfd, "push", "math.obm", "acme/tiny:v1")
    assert json.loads(ok(capfd, "diff", "acme/tiny:v1", "math.obm", "--json"))["identical"] is True
    assert json.loads(ok(capfd, "stats", "acme/tiny:v1", "--json"))["task"] == "math"
