"""Routers: features, training, the artifact and its arithmetic, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import WORDS, save_model, tiny_bert, tiny_llama
from transformers import AutoModel, AutoTokenizer

from obm_format.digest import sha256
from obm_format.errors import ObmError
from obm_format.expert import open_expert
from obm_format.model import BackboneId, Kind, RouterInfo
from obm_format.route import (
    FeatureModel,
    evaluate_router,
    load_router,
    read_prompts,
    train_router,
)
from obm_format.route.router import Layer
from obm_format.route.training import Head, choose_head, fit_head, write_router

COLOURS, NUMBERS = WORDS[:6], WORDS[6:12]


def phrases(words: list[str], count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"the {rng.choice(words)} and {rng.choice(words)} {rng.choice(WORDS[12:])}" for _ in range(count)]


PROMPTS = {"colour": phrases(COLOURS, 30, 1), "number": phrases(NUMBERS, 30, 2)}
UNSEEN = {"colour": phrases(COLOURS, 20, 3), "number": phrases(NUMBERS, 20, 4)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_llama(), tmp_path_factory.mktemp("llama") / "base")


def test_features_are_the_mean_last_hidden_state(base: Path) -> None:
    texts = ["the red thing", "one", "a very black and white thing is the thing"]
    model, tokenizer = AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    wanted = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"][:6]])
            wanted.append(model(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy())
    got = FeatureModel(base).features(texts, 6)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.stack(wanted), rtol=1e-4, atol=1e-5)


def test_features_of_bert_and_long_texts(tmp_path: Path) -> None:
    model = FeatureModel(save_model(tiny_bert(), tmp_path / "bert"))
    assert model.max_tokens == 32
    long = "red " * 500
    assert np.array_equal(model.features([long], 9999), model.features(["red " * 32], 9999))


def test_features_of_nothing_refused(base: Path) -> None:
    model = FeatureModel(base)
    for texts in ([], [""], ["red", "  "]):
        with pytest.raises(ObmError) as caught:
            model.features(texts, 8)
        assert caught.value.reason == "usage"


def test_train_route_evaluate(base: Path, tmp_path: Path) -> None:
    report = train_router(base, PROMPTS, tmp_path / "r.obm", seed=1)
    assert report.routes == ("colour", "number")
    assert report.n == {route: len(set(texts)) for route, texts in PROMPTS.items()}
    assert report.held_out_accuracy >= 0.9
    router = load_router(tmp_path / "r.obm")
    assert (router.id, router.routes) == (report.id, report.routes)
    found = evaluate_router(router, UNSEEN, base)
    assert found.accuracy >= 0.9
    assert found.n == 40
    assert sum(sum(row.values()) for row in found.confusion.values()) == 40
    decision = router.route(["the red and blue thing"], base)[0]
    assert decision.route == "colour"
    assert sum(decision.probabilities.values()) == pytest.approx(1)
    assert decision.probabilities["colour"] > 0.5


def test_train_twice_gives_the_same_file(base: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_router(base, PROMPTS, tmp_path / name, seed=3, hidden=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_artifact_is_what_the_spec_says(base: Path, tmp_path: Path) -> None:
    train_router(base, PROMPTS, tmp_path / "r.obm", hidden=5, max_tokens=16)
    with open_expert(tmp_path / "r.obm") as artifact:
        assert artifact.manifest.kind is Kind.ROUTER
        assert artifact.manifest.router == RouterInfo(routes=("colour", "number"), max_tokens=16)
        shapes = {name: record.spec.shape for name, record in artifact.records.items()}
        assert shapes == {
            "0.bias": (5,),
            "0.weight": (5, 32),
            "1.bias": (2,),
            "1.weight": (2, 5),
            "mean": (32,),
            "scale": (32,),
        }
        assert artifact.verify("deep") == []


def tiny_router(path: Path, layers: tuple[Layer, ...]) -> Path:
    head = Head(mean=np.array([1, 0], np.float32), scale=np.array([2, 1], np.float32), layers=layers)
    backbone = BackboneId(fingerprint=sha256(b"").hex(), n_tensors=1, n_params=1)
    routes = tuple("abcdefgh"[: len(layers[-1].bias)])
    write_router(path, head, RouterInfo(routes=routes, max_tokens=8), backbone)
    return path


def test_outputs_by_hand(tmp_path: Path) -> None:
    layer = Layer(np.array([[1, 2], [0, -1], [1, 2]], np.float32), np.array([0.5, 0, 0.5], np.float32))
    router = load_router(tiny_router(tmp_path / "r.obm", (layer,)))
    outputs = router.outputs(np.array([[2, 3], [1, 0]], np.float32))  # h = (2, 3) and (0, 0)
    assert outputs.tolist() == [[8.5, -3, 8.5], [0.5, 0, 0.5]]
    assert router.predict(np.array([[1, 0]], np.float32)).argmax() == 0, "the first of equals"


def test_two_layers_by_hand(tmp_path: Path) -> None:
    first = Layer(np.array([[1, 0], [0, -1]], np.float32), np.zeros(2, np.float32))
    last = Layer(np.array([[1, 1], [1, -1]], np.float32), np.array([0, 1], np.float32))
    router = load_router(tiny_router(tmp_path / "r.obm", (first, last)))
    outputs = router.outputs(np.array([[2, 3]], np.float32))  # h = (2, 3); layer 0: (2, -3) -> (2, 0)
    assert outputs.tolist() == [[2, 3]]


def test_outputs_of_other_width_refused(tmp_path: Path) -> None:
    layer = Layer(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    router = load_router(tiny_router(tmp_path / "r.obm", (layer,)))
    with pytest.raises(ObmError) as caught:
        router.outputs(np.zeros((1, 3), np.float32))
    assert caught.value.reason == "bad_shape"


def separable(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(99).normal(size=(3, d))
    features = centres[labels] + 0.3 * rng.normal(size=(n, d))
    return features.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("hidden", [0, 6])
def test_choose_head_generalises(hidden: int) -> None:
    head, decay, (accuracy, held_out) = choose_head(*separable(60, 8, 0), 3, hidden=hidden)
    features, labels = separable(60, 8, 1)
    assert np.mean(head.outputs(features).argmax(axis=1) == labels) >= 0.9
    assert (accuracy >= 0.9, held_out, decay > 0) == (True, 12, True)


def test_fit_head_reaches_the_minimum() -> None:
    """The gradient of the documented loss vanishes."""
    features, labels = separable(45, 4, 0)
    head = fit_head(features, labels, 3, decay=0.1)
    h = (features.astype(np.float64) - head.mean) * head.scale
    outputs = h @ head.layers[0].weight.T.astype(np.float64) + head.layers[0].bias
    p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(3)[labels]).T @ h / len(h) + 0.1 * head.layers[0].weight
    assert np.abs(gradient).max() < 1e-5


def test_fit_head_passes_over_features_that_never_change() -> None:
    features, labels = separable(30, 4, 0)
    features[:, 2] = 7
    head = fit_head(features, labels, 3, decay=0.1)
    assert head.scale[2] == 0
    assert np.isfinite(head.outputs(features)).all()


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ({"a": ["x", "y"]}, "usage"),
        ({}, "usage"),
        ({"a": ["x", "y"], "b": ["x", "x"]}, "usage"),
        ({"a": ["x", "y"], "b c": ["x", "z"]}, "bad_name"),
        ({"a": ["x", "y"], "": ["x", "z"]}, "bad_name"),
    ],
)
def test_train_on_bad_prompts_refused(tmp_path: Path, prompts: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(ObmError) as caught:
        train_router(tmp_path, prompts, tmp_path / "r.obm")
    assert caught.value.reason == reason
    assert not (tmp_path / "r.obm").exists()


def test_router_of_another_backbone_refused(base: Path, tmp_path: Path) -> None:
    train_router(base, PROMPTS, tmp_path / "r.obm")
    other = save_model(tiny_llama(seed=1), tmp_path / "other")
    with pytest.raises(ObmError) as caught:
        load_router(tmp_path / "r.obm").route(["red"], other)
    assert (caught.value.reason, caught.value.exit_code) == ("backbone_mismatch", 5)


def test_unknown_route_in_evaluation_refused(base: Path, tmp_path: Path) -> None:
    train_router(base, PROMPTS, tmp_path / "r.obm")
    with pytest.raises(ObmError) as caught:
        evaluate_router(load_router(tmp_path / "r.obm"), {"shape": ["red"]}, base)
    assert caught.value.reason == "usage"


def test_folder_without_tokenizer_or_with_a_pickle_refused(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((base / name).read_bytes())
    with pytest.raises(ObmError) as caught:
        FeatureModel(bare)
    assert caught.value.reason == "bad_checkpoint"
    assert "\n" not in str(caught.value)
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(ObmError) as caught:
        FeatureModel(bare)
    assert caught.value.reason == "pickle_refused"


def test_folder_for_which_transformers_would_make_an_empty_tokenizer_refused(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "bert")
    with pytest.raises(ObmError, match="tokenizer") as caught:
        FeatureModel(tmp_path / "bert")
    assert caught.value.reason == "bad_checkpoint"


def test_read_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "red"}\n\n{"text": "blue\\u00e9", "label": 3}\n', encoding="utf-8")
    assert read_prompts(path) == ["red", "blueé"]


@pytest.mark.parametrize("line", ["red", "[]", "{}", '{"text": 3}', '{"text": " "}', "[" * 100_000])
def test_read_bad_prompts_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"text": "ok"}) + "\n" + line)
    with pytest.raises(ObmError) as caught:
        read_prompts(path)
    assert caught.value.reason == "usage"
    assert "line 2" in str(caught.value)


def test_without_torch_the_need_is_named(base: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from obm_format.route import FeatureModel\n"
        "from obm_format.errors import ObmError\n"
        f"try: FeatureModel({str(base)!r})\n"
        "except ObmError as e: print(e.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "missing_dependency"
