"""Routing: a text's features under the frozen backbone, probabilities of the routes, the expert to use.

Features and training need torch and transformers, which are loaded on first use; applying a router to
features needs NumPy alone. Source: obm-1 clause 5.10; design, "Loader"; reference 1.12.
"""

from obm_format.route.evaluation import Evaluation, evaluate_router
from obm_format.route.features import FeatureModel
from obm_format.route.prompts import read_prompts
from obm_format.route.router import Decision, Router, load_router
from obm_format.route.training import RouterReport, train_router

__all__ = [
    "Decision",
    "Evaluation",
    "FeatureModel",
    "Router",
    "RouterReport",
    "evaluate_router",
    "load_router",
    "read_prompts",
    "train_router",
]
