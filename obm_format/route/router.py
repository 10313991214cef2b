"""A router: from features to probabilities of the routes; an `.obm` of kind `router`.

Bound to one backbone, whose features it was trained on. Source: obm-1 clause 5.10.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from obm_format.checkpoint import open_checkpoint
from obm_format.errors import BackboneMismatch, UsageError
from obm_format.expert import Expert, open_expert
from obm_format.kernels.words import Float32, to_float32
from obm_format.merge.recipe import NO_ROUTE
from obm_format.model import BackboneId, DType, Kind
from obm_format.route.features import FeatureModel

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """h W^T + b: `weight` float32[out, in], `bias` float32[out]."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """Where a text goes.

    Args:
        route: the most probable route, the first of equals.
        probabilities: of every route; they sum to 1.
    """

    route: str
    probabilities: dict[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """The factors of experts under soft routing: the probabilities, but for the route of nobody."""
        return {name: p for name, p in self.probabilities.items() if name != NO_ROUTE}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Router:
    """A standardiser and one or two layers.

    Args:
        id: artifact id.
        backbone: the backbone whose features it takes.
        routes: route names in the order of the outputs.
        max_tokens: tokens of a text that count.
        mean: float32[d], subtracted from features.
        scale: float32[d], multiplied afterwards.
        layers: one or two.
    """

    id: str
    backbone: BackboneId
    routes: tuple[str, ...]
    max_tokens: int
    mean: Float32
    scale: Float32
    layers: tuple[Layer, ...]

    def outputs(self, features: Float32) -> Float64:
        """The outputs of the last layer.

        Args:
            features: float32[n, d].

        Returns:
            float64[n, routes].

        Raises:
            UsageError: `bad_shape`: features of another width.
        """
        if features.ndim != 2 or features.shape[1:] != self.mean.shape:
            raise UsageError(
                "bad_shape", "features do not fit the router", expected=self.mean.shape[0], got=features.shape
            )
        return apply_layers(standardised(features, self.mean, self.scale), self.layers)

    def predict(self, features: Float32) -> Float64:
        """The probabilities of the routes, float64[n, routes], for features float32[n, d]."""
        return softmax(self.outputs(features))

    def route(self, texts: Sequence[str], base: FeatureModel | str | os.PathLike[str]) -> list[Decision]:
        """Say where texts go.

        Args:
            texts: at least one.
            base: the router's backbone: its folder, whose fingerprint is checked, or a model made of that.

        Raises:
            BackboneMismatch: the folder is another checkpoint.
            UsageError: what `FeatureModel` refuses.
        """
        model = base if isinstance(base, FeatureModel) else self.feature_model(base)
        probabilities = self.predict(model.features(texts, self.max_tokens))
        return [
            Decision(
                route=self.routes[int(row.argmax())],
                probabilities=dict(zip(self.routes, (float(p) for p in row), strict=True)),
            )
            for row in probabilities
        ]

    def feature_model(self, base: str | os.PathLike[str]) -> FeatureModel:
        """Load the router's backbone from a checkpoint folder.

        Raises:
            BackboneMismatch: it is another checkpoint (`backbone_mismatch`).
        """
        with open_checkpoint(base) as checkpoint:
            found = checkpoint.fingerprint()
        if found != self.backbone.fingerprint:
            raise BackboneMismatch(
                "backbone_mismatch",
                "the checkpoint is not the backbone that the router was trained on",
                where=str(base),
                expected=self.backbone.fingerprint,
                got=found,
            )
        return FeatureModel(base)


def load_router(path: str | os.PathLike[str]) -> Router:
    """Read a router.

    Raises:
        UsageError: the artifact is an expert, no router (`usage`).
        FormatError: the file is not sound.
    """
    with open_expert(path) as artifact:
        manifest = artifact.manifest
        if manifest.kind is not Kind.ROUTER or manifest.router is None:
            raise UsageError("usage", f"is a {manifest.kind.value}, no router", where=str(path))
        depth = sum(name.endswith(".weight") for name in artifact.records)
        return Router(
            id=artifact.id,
            backbone=manifest.backbone,
            routes=manifest.router.routes,
            max_tokens=manifest.router.max_tokens,
            mean=_array(artifact, "mean"),
            scale=_array(artifact, "scale"),
            layers=tuple(Layer(_array(artifact, f"{i}.weight"), _array(artifact, f"{i}.bias")) for i in range(depth)),
        )


def _array(artifact: Expert, name: str) -> Float32:
    return to_float32(artifact.exact(name), DType.F32).copy()


# obm-1 clause 5.10; in float64, which the clause leaves open


def standardised(features: Float32, mean: Float32, scale: Float32) -> Float64:
    """(x - mean) * scale, float64."""
    return (features.astype(np.float64) - mean) * scale


def apply_layers(h: Float64, layers: Sequence[Layer]) -> Float64:
    """The outputs of the last layer, with max(h, 0) between two layers."""
    for before, layer in pairwise((None, *layers)):
        if before is not None:
            h = np.maximum(h, 0)
        if layer is not None:
            h = h @ layer.weight.T.astype(np.float64) + layer.bias
    return h


def softmax(outputs: Float64) -> Float64:
    """Probabilities along the last axis."""
    shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
