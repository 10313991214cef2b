"""Recipes in mergekit's YAML, as far as this project can honour them: read, checked, and put in our words.

What it asks for and cannot have is refused by name, with advice; nothing is ignored but what changes no number.
Source: mergekit's configuration as its users write it; reference 3.1, 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from obm_format.errors import UsageError

METHODS = {
    "ties": "ties",
    "task_arithmetic": "task-arithmetic",
    "dare_ties": "dare-ties",
    "dare_linear": "dare",
    "linear": "average",
}
_TOP = {"models", "base_model", "merge_method", "parameters", "dtype", "out_dtype", "tokenizer_source"}
_ADVICE = {
    "slices": "list whole models under `models`; layers cannot be stacked here",
    "modules": "list whole models under `models`",
    "tokenizer": "leave it out: tokenizer files are the backbone's",
    "chat_template": "leave it out: the chat template is the backbone's",
}
_PER_MODEL = {"weight": "a number", "density": "a number from 0 to 1"}
_SHARED = {"normalize", "lambda", "int8_mask", "rescale"}
_OF_METHOD = {  # which parameters mean something to which method
    "ties": {"weight", "density", *_SHARED},
    "task_arithmetic": {"weight", "density", *_SHARED},
    "dare_ties": {"weight", "density", *_SHARED},
    "dare_linear": {"weight", "density", *_SHARED},
    "linear": {"weight", "normalize"},
}


def is_mergekit(content: Mapping[str, object]) -> bool:
    """Whether a mapping is a recipe in mergekit's words."""
    return "merge_method" in content


def translate(content: Mapping[str, object]) -> dict[str, object]:
    """Put a recipe of mergekit's in our words.

    Args:
        content: what its YAML holds.

    Returns:
        fields for `parse_recipe`, with `compat: mergekit`.

    Raises:
        UsageError: `bad_recipe`, naming the key that cannot be honoured.
    """
    for key in content:
        if key not in _TOP:
            hint = _ADVICE.get(key, f"known are {', '.join(sorted(_TOP))}")
            raise _bad("this key of mergekit's cannot be honoured", where=key, hint=hint)
    method = content["merge_method"]
    if not isinstance(method, str) or method not in METHODS:
        raise _bad(
            "this method of mergekit's is not known", where="merge_method", expected=", ".join(METHODS), got=method
        )
    _check_tokenizer(content)
    shared = _parameters(content.get("parameters"), method, "parameters")
    models = _models(content.get("models"), method)
    backbone = _backbone(content.get("base_model"), models, method)
    if method != "linear":  # a task vector against itself is nothing
        models = [(path, own) for path, own in models if path != backbone]
    if not models:
        raise _bad("there is no model but the base", where="models")
    return {
        "backbone": backbone,
        "experts": [path for path, _ in models],
        "method": METHODS[method],
        "compat": "mergekit",
        "dtype": content.get("out_dtype") or content.get("dtype"),
        **_numbers(models, shared, method),
        **_switches(shared, method),
    }


def _numbers(
    models: Sequence[tuple[str, Mapping[str, object]]], shared: Mapping[str, object], method: str
) -> dict[str, object]:
    """Weights and densities, each model's own before the shared one; models go by their place."""
    weights, densities = {}, {}
    for place, (path, own) in enumerate(models, 1):
        values = {**shared, **own}
        if "weight" not in values:
            raise _bad("a model has no weight", where=f"models, {path}", hint="add parameters: {weight: 1.0}")
        weights[f"#{place}"] = values["weight"]
        densities[f"#{place}"] = values.get("density", 1.0)
    if method in ("linear", "task_arithmetic"):  # mergekit itself does not look at a density here
        return {"weight": weights}
    return {"weight": weights, "densities": densities}


def _switches(shared: Mapping[str, object], method: str) -> dict[str, object]:
    fields: dict[str, object] = {"lambda": shared.get("lambda", 1.0)}
    if "normalize" in shared:
        fields["normalize"] = shared["normalize"]
    if "rescale" in shared and method not in ("linear", "task_arithmetic"):
        if not isinstance(shared["rescale"], bool):
            raise _bad("rescale is true or false", where="parameters, rescale", got=shared["rescale"])
        fields["rescale"] = "l1" if shared["rescale"] else "none"
    if method == "linear":
        del fields["lambda"]
    return fields


def _models(value: object, method: str) -> list[tuple[str, Mapping[str, object]]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _bad("models is a list of models", where="models", hint="- model: PATH")
    found = []
    for place, entry in enumerate(value, 1):
        where = f"models, entry {place}"
        if not isinstance(entry, Mapping) or not set(entry) <= {"model", "parameters"} or "model" not in entry:
            raise _bad("an entry has a model and its parameters", where=where, expected="model, parameters", got=entry)
        path = _path(entry["model"], where)
        own = _parameters(entry.get("parameters"), method, f"{where}, parameters")
        for key in own:
            if key not in _PER_MODEL:
                raise _bad("is a parameter of the merge, not of one model", where=f"{where}, parameters, {key}")
        found.append((path, own))
    return found


def _backbone(value: object, models: Sequence[tuple[str, object]], method: str) -> str:
    if value is not None:
        return _path(value, "base_model")
    if method != "linear":
        raise _bad("this method needs a base", where="base_model", hint="name the model that all were made from")
    return models[0][0]  # whole weights are averaged: any of them may stand for the backbone


def _path(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _bad("a model is a path or a reference", where=where, got=value)
    if "+" in value:
        hint = "convert the adapter: obm convert --from peft-lora"
        raise _bad("an adapter on top of a model cannot be honoured", where=where, got=value, hint=hint)
    return value


def _parameters(value: object, method: str, where: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _bad("parameters is a mapping", where=where, got=value)
    for key, setting in value.items():
        if key not in _OF_METHOD[method]:
            known = ", ".join(sorted(_OF_METHOD[method]))
            raise _bad(f"this parameter cannot be honoured with {method}", where=f"{where}, {key}", expected=known)
        if isinstance(setting, (list, Mapping)):
            hint = f"give one {'number' if key in _PER_MODEL or key == 'lambda' else 'value'} for all tensors"
            raise _bad("gradients and filters by tensor cannot be honoured", where=f"{where}, {key}", hint=hint)
    return value


def _check_tokenizer(content: Mapping[str, object]) -> None:
    if content.get("tokenizer_source") not in (None, "base"):
        hint = "leave it out: tokenizer files are the backbone's"
        raise _bad("only the base's tokenizer can be had", where="tokenizer_source", hint=hint)
    if content.get("base_model") is None and content.get("tokenizer_source") == "base":
        raise _bad("there is no base to take a tokenizer from", where="tokenizer_source", hint="leave it out")


def _bad(
    message: str, *, where: str, expected: object = None, got: object = None, hint: str | None = None
) -> UsageError:
    return UsageError("bad_recipe", message, where=where, expected=expected, got=got, hint=hint)
