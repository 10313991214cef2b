"""`compat` gives what the peers themselves gave on the same tensors: equal numbers, F32, not one bit off.

Two things are near, not equal: mergekit's `linear`, in which torch fuses multiplications with additions, and its
L1 rescale, a quotient of two sums that torch adds up in an order of its own. Their results lie in `peers/*.json`,
with how they were made. Of mergekit, the whole command was run; peft and the official code give what is to be
added to the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_experts import save, tensor

from obm_format.checkpoint import open_checkpoint
from obm_format.kernels.reference import ReferenceKernels
from obm_format.merge import WeightStream, parse_recipe
from obm_format.merge.dare import Drawn, tensor_key
from obm_format.merge.dense import open_dense

PEERS = Path(__file__).parent / "peers"
DOCUMENTS = {path.stem: json.loads(path.read_text()) for path in sorted(PEERS.glob("*.json"))}
CASES = [(peer, case) for peer, document in DOCUMENTS.items() for case in document["cases"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Base and fine-tunes of every set of every peer, as checkpoints."""
    found = {}
    for peer, document in DOCUMENTS.items():
        for name, content in document["sets"].items():
            folder = tmp_path_factory.mktemp("set")
            save(folder / "base", tensors(content["base"], content["shapes"]))
            for place, tuned in enumerate(content["tuned"]):
                save(folder / f"m{place}", tensors(tuned, content["shapes"]))
            found[peer, name] = folder
    return found


def tensors(numbers: dict[str, list[float]], shapes: dict[str, list[int]]) -> dict[str, Any]:
    return {name: tensor(np.array(values, np.float32).reshape(shapes[name])) for name, values in numbers.items()}


def merged(folder: Path, fields: dict[str, object]) -> Iterator[tuple[str, np.ndarray]]:
    with open_checkpoint(folder / "base") as base:
        count = len(list(folder.iterdir())) - 1
        tuned = [open_dense(folder / f"m{place}", base, place + 1) for place in range(count)]
        stream = WeightStream(base, tuned, parse_recipe(fields), kernels=ReferenceKernels())
        for spec, words in stream:
            yield spec.name, words.view(np.float32).reshape(-1).copy()
        for one in tuned:
            one.close()


def is_near(recipe: dict[str, object]) -> bool:
    """Whether the peer's own sums run in an order, or with a rounding, that cannot be told."""
    return recipe["method"] == "average" or recipe.get("rescale") == "l1"


def give_masks(monkeypatch: pytest.MonkeyPatch, masks: list[dict[str, list[int]]]) -> None:
    """Let chance keep what it kept when the peer was run."""
    known = {
        tensor_key(0, f"dense:{place:04d}", name): np.array(mask, bool)
        for place, one in enumerate(masks, 1)
        for name, mask in one.items()
    }

    def apply(self: Drawn, values: np.ndarray, start: int, kernels: object) -> np.ndarray:
        del kernels
        keep = known[self.key][start : start + values.size].reshape(values.shape)
        return np.where(keep, values, np.float32(0))

    monkeypatch.setattr(Drawn, "apply", apply)


def label(case: tuple[str, dict[str, Any]]) -> str:
    peer, content = case
    options = ",".join(f"{key}={value}" for key, value in content["recipe"].items())
    mask = " mask" if "mask" in content else ""
    return f"{peer} {content['set']} {options} {content.get('weights', '')}{mask}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_compat_equals_the_peer(
    case: tuple[str, dict[str, Any]], folders: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, content = case
    if "mask" in content:
        give_masks(monkeypatch, content["mask"])
    fields = {"compat": peer, **content["recipe"]}
    if "weights" in content:
        fields["weight"] = {f"#{place}": weight for place, weight in enumerate(content["weights"], 1)}
    if "lambda" not in fields and fields["method"] != "average":
        fields["lambda"] = 1
    got = dict(merged(folders[peer, content["set"]], fields))
    document = DOCUMENTS[peer]["sets"][content["set"]]
    for name, words in got.items():
        if "result" in content:
            wanted = np.array(content["result"][name], np.float32)
        else:
            wanted = np.array(document["base"][name], np.float32) + np.array(content["combined"][name], np.float32)
        if is_near(content["recipe"]):
            scale = max(abs(wanted).max(), *(abs(x) for t in document["tuned"] for x in t[name]))
            np.testing.assert_allclose(words, wanted, rtol=0, atol=3e-7 * scale)
        else:
            assert words.tolist() == wanted.tolist(), name


def test_there_are_cases_of_every_peer_and_method() -> None:
    methods = {(peer, content["recipe"]["method"]) for peer, content in CASES}
    assert {method for peer, method in methods if peer == "mergekit"} == {
        "ties",
        "task-arithmetic",
        "dare",
        "dare-ties",
        "average",
    }
    assert {method for peer, method in methods if peer == "peft"} == {"ties", "task-arithmetic", "dare", "dare-ties"}
    assert {method for peer, method in methods if peer == "official"} == {"ties", "task-arithmetic"}
