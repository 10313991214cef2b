"""The read side: recipes, plans, and one streaming pass from backbone and experts to merged weights."""

from obm_format.merge.execute import WeightStream
from obm_format.merge.folder import materialize
from obm_format.merge.methods import Compat, Cut, Method, Rescale, Scope, TrimScope, When
from obm_format.merge.plan import MergePlan, plan_merge
from obm_format.merge.recipe import Recipe, parse_recipe, read_recipe
from obm_format.merge.report import ExpertReport, MergeReport

__all__ = [
    "Compat",
    "Cut",
    "ExpertReport",
    "MergePlan",
    "MergeReport",
    "Method",
    "Recipe",
    "Rescale",
    "Scope",
    "TrimScope",
    "WeightStream",
    "When",
    "materialize",
    "parse_recipe",
    "plan_merge",
    "read_recipe",
]
