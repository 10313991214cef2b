"""How often a router is right, on prompts that it has not seen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from obm_format.errors import UsageError
from obm_format.route.features import FeatureModel
from obm_format.route.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate_router` counted.

    Args:
        accuracy: share of texts that go to their route, 0 to 1.
        n: number of texts.
        confusion: texts by true route, then by the route they go to.
    """

    accuracy: float
    n: int
    confusion: dict[str, dict[str, int]]


def evaluate_router(
    router: Router, prompts: Mapping[str, Sequence[str]], base: FeatureModel | str | os.PathLike[str]
) -> Evaluation:
    """Route prompts whose route is known.

    Args:
        router: the router.
        prompts: route name to texts; at least one text.
        base: the router's backbone, as `Router.route` takes it.

    Raises:
        UsageError: a route that the router does not have, or no text (`usage`).
        BackboneMismatch: the folder is another checkpoint.
    """
    for route in prompts:
        if route not in router.routes:
            raise UsageError("usage", "the router has no such route", where=route, expected=", ".join(router.routes))
    known = [(route, text) for route in sorted(prompts) for text in prompts[route]]
    decisions = router.route([text for _, text in known], base)
    confusion = {route: dict.fromkeys(router.routes, 0) for route in sorted(prompts)}
    for (route, _), decision in zip(known, decisions, strict=True):
        confusion[route][decision.route] += 1
    right = sum(confusion[route][route] for route in confusion)
    return Evaluation(accuracy=right / len(known), n=len(known), confusion=confusion)
