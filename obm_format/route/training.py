"""Train a router: fit a small head on frozen features, its decay chosen on held-out prompts; write it.

Deterministic: full batches in float64, a seed for the split and the start. Nothing but prompts of the
training set is looked at. Source: reference 1.12; obm-1 clause 5.10.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from obm_format.checkpoint import open_checkpoint
from obm_format.codecs import raw
from obm_format.container.names import TASK
from obm_format.digest import sha256
from obm_format.errors import UsageError
from obm_format.expert import ExpertWriter
from obm_format.kernels.words import Float32
from obm_format.model import BackboneId, DType, Kind, Mode, RouterInfo, TensorSpec
from obm_format.progress import Progress, silent
from obm_format.route.features import FeatureModel
from obm_format.route.router import Float64, Layer, apply_layers, softmax, standardised

MAX_TOKENS = 256
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # strongest first: of equals the first wins
HELD_OUT = 0.2
ITERATIONS = 200
LEAST_SPREAD = 1e-6  # features that vary less say nothing, and would be blown up

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReport:
    """What `train_router` made.

    Args:
        file: the router's path, as it was given.
        id: artifact id.
        nbytes: bytes of the file.
        routes: route names in output order.
        n: prompts by route, without repeats.
        hidden: width of the hidden layer, 0 for a linear head.
        decay: the weight decay that was chosen.
        held_out_accuracy: on the prompts that the choice was made on, before the last fit on all.
        held_out_n: how many those are.
        seconds: of features and fitting.
    """

    file: str
    id: str
    nbytes: int
    routes: tuple[str, ...]
    n: dict[str, int]
    hidden: int
    decay: float
    held_out_accuracy: float
    held_out_n: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A fitted head: standardiser and layers, float32 as they are stored."""

    mean: Float32
    scale: Float32
    layers: tuple[Layer, ...]

    def outputs(self, features: Float32) -> Float64:
        """The outputs of the last layer, float64[n, routes]."""
        return apply_layers(standardised(features, self.mean, self.scale), self.layers)


def train_router(
    base: str | os.PathLike[str],
    prompts: Mapping[str, Sequence[str]],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
    hidden: int = 0,
    progress: Progress = silent,
) -> RouterReport:
    """Train a router for a backbone and write it as an `.obm`.

    Args:
        base: the backbone's folder, with configuration and tokenizer.
        prompts: route name to texts; at least two routes with two different texts each.
        out: the file to write.
        seed: of the held-out split and of the start of a hidden layer.
        max_tokens: tokens of a text that count.
        hidden: width of a hidden layer; 0 for a linear head.
        progress: told the bytes of the backbone that are hashed.

    Raises:
        UsageError: `usage`, the prompts or numbers do not make sense; `missing_dependency`.
        CheckpointError: the backbone cannot be loaded.
    """
    routes, texts, labels = _flattened(prompts)
    if max_tokens < 1 or hidden < 0:
        raise UsageError("usage", "max_tokens is at least 1, hidden at least 0", got=(max_tokens, hidden))
    started = time.perf_counter()
    model = FeatureModel(base)
    max_tokens = min(max_tokens, model.max_tokens)
    features = model.features(texts, max_tokens)
    featured = time.perf_counter()
    head, decay, (accuracy, held_out) = choose_head(features, labels, len(routes), seed=seed, hidden=hidden)
    fitted = time.perf_counter()
    with open_checkpoint(base) as checkpoint:
        backbone = BackboneId(
            fingerprint=checkpoint.fingerprint(progress),
            n_tensors=len(checkpoint.tensors),
            n_params=sum(spec.numel for spec in checkpoint.tensors.values()),
            architecture=checkpoint.architecture,
        )
    info = RouterInfo(routes=routes, max_tokens=max_tokens)
    return RouterReport(
        file=str(out),
        id=write_router(Path(out), head, info, backbone),
        nbytes=Path(out).stat().st_size,
        routes=routes,
        n={route: int(np.count_nonzero(labels == i)) for i, route in enumerate(routes)},
        hidden=hidden,
        decay=decay,
        held_out_accuracy=accuracy,
        held_out_n=held_out,
        seconds={"features": round(featured - started, 3), "fit": round(fitted - featured, 3)},
    )


def choose_head(
    features: Float32, labels: Labels, routes: int, *, seed: int = 0, hidden: int = 0
) -> tuple[Head, float, tuple[float, int]]:
    """Fit a head on all rows, with the decay that does best on rows held out of a first fit.

    Args:
        features: float32[n, d].
        labels: int64[n], each of 0 to routes-1 at least twice.
        routes: number of outputs.
        seed: of the split.
        hidden: width of the hidden layer, 0 for none.

    Returns:
        the head, the decay, and accuracy and number of the held-out rows. The best decay is the most accurate
        one; of equals the one of least cross entropy, then the strongest.
    """
    held = _held_out(labels, seed)
    tried = []
    for decay in DECAYS:
        head = fit_head(features[~held], labels[~held], routes, decay=decay, hidden=hidden, seed=seed)
        probabilities = softmax(head.outputs(features[held]))
        hits = float(np.mean(probabilities.argmax(axis=1) == labels[held]))
        right = probabilities[np.arange(len(probabilities)), labels[held]]
        tried.append((-hits, float(-np.log(np.maximum(right, 1e-300)).mean()), -decay))
    best = min(tried)
    head = fit_head(features, labels, routes, decay=-best[2], hidden=hidden, seed=seed)
    return head, -best[2], (-best[0], int(held.sum()))


def fit_head(features: Float32, labels: Labels, routes: int, *, decay: float, hidden: int = 0, seed: int = 0) -> Head:
    """Minimise cross entropy plus decay / 2 times the squared weights, by L-BFGS in float64.

    Args:
        features: float32[n, d].
        labels: int64[n], 0 to routes-1.
        routes: number of outputs.
        decay: of the weights, on standardised features.
        hidden: width of the hidden layer, 0 for none.
        seed: of the start of a hidden layer.
    """
    import torch

    spread = features.std(axis=0, dtype=np.float64)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.where(spread > LEAST_SPREAD, 1 / np.maximum(spread, LEAST_SPREAD), 0).astype(np.float32)
    rows = torch.from_numpy(standardised(features, mean, scale))
    target = torch.from_numpy(labels)
    parameters = [torch.from_numpy(start).requires_grad_() for start in _starts(rows.shape[1], hidden, routes, seed)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        h = rows
        for i in range(0, len(parameters), 2):
            h = torch.nn.functional.linear(torch.relu(h) if i else h, parameters[i], parameters[i + 1])
        value = torch.nn.functional.cross_entropy(h, target)
        value = value + decay / 2 * sum(weight.square().sum() for weight in parameters[::2])
        value.backward()
        return value

    optimizer.step(loss)
    arrays = [parameter.detach().numpy().astype(np.float32) for parameter in parameters]
    return Head(
        mean=mean,
        scale=scale,
        layers=tuple(Layer(arrays[i], arrays[i + 1]) for i in range(0, len(arrays), 2)),
    )


def write_router(path: Path, head: Head, info: RouterInfo, backbone: BackboneId) -> str:
    """Write a router as an artifact; returns its id."""
    arrays = {"mean": head.mean, "scale": head.scale}
    for i, layer in enumerate(head.layers):
        arrays |= {f"{i}.weight": layer.weight, f"{i}.bias": layer.bias}
    with ExpertWriter(path) as writer:
        for name, array in sorted(arrays.items()):
            words = np.ascontiguousarray(array, dtype="<f4").view(np.uint32)
            spec = TensorSpec(name, DType.F32, array.shape)
            encoded = raw.encode(words, DType.F32)
            writer.add(spec, None, Mode.ADDED, encoded, out_sha256=sha256(words.tobytes()))
        return writer.commit(kind=Kind.ROUTER, backbone=backbone, router=info).id


def _flattened(prompts: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], list[str], Labels]:
    """Routes in order of names, the texts without repeats, and the route of each."""
    routes = tuple(sorted(prompts))
    if len(routes) < 2:
        raise UsageError("usage", "a router needs at least two routes", got=len(routes))
    texts: list[str] = []
    labels: list[int] = []
    for label, route in enumerate(routes):
        if not route or TASK.fullmatch(route) is None:
            raise UsageError("bad_name", "a route is no task name", where="routes", got=route)
        own = list(dict.fromkeys(prompts[route]))
        if len(own) < 2:
            raise UsageError("usage", "a route needs at least two different prompts", where=route, got=len(own))
        texts += own
        labels += [label] * len(own)
    return routes, texts, np.array(labels, np.int64)


def _held_out(labels: Labels, seed: int) -> npt.NDArray[np.bool_]:
    """Of each route a fifth of the rows, at least one, but not all."""
    rng = np.random.default_rng(seed)
    held = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held[rng.permutation(rows)[: max(1, round(HELD_OUT * len(rows)))]] = True
    return held


def _starts(width: int, hidden: int, routes: int, seed: int) -> list[Float64]:
    """Weights and biases of the layers to begin with: a hidden layer at random, the last one at 0."""
    rng = np.random.default_rng(seed)
    widths = [width, *([hidden] if hidden else []), routes]
    starts: list[Float64] = []
    for inner, outer in pairwise(widths):
        last = outer == routes and len(starts) == 2 * (len(widths) - 2)
        weight = np.zeros((outer, inner)) if last else rng.normal(size=(outer, inner)) / np.sqrt(inner)
        starts += [weight, np.zeros(outer)]
    return starts
