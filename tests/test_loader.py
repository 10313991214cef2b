"""The loader: merged weights in existing storage, all or none; transformers models without a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_experts import load as load_tensors
from tiny_experts import write_expert
from tiny_models import save_model, tiny_llama, tuned
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from obm_format import loader as loader_module
from obm_format.errors import ObmError
from obm_format.integrations.transformers import load
from obm_format.loader import Loader, Residents
from obm_format.merge import Recipe, materialize, parse_recipe

IDS = torch.tensor([[1, 2, 3, 4, 5]])
LINEAR = [f"model.layers.{i}.mlp.{m}_proj.weight" for i in (0, 1) for m in ("gate", "up", "down")]


@pytest.fixture(scope="module", params=["F32", "BF16 tied"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, and an exact and a 1-bit expert, with the exact one's fine-tune."""
    folder = tmp_path_factory.mktemp("family")
    options = {"dtype": torch.bfloat16, "tied": True} if "tied" in request.param else {"dtype": torch.float32}
    save_model(tiny_llama(**options), folder / "base")
    for seed, name in ((1, "a"), (2, "b")):
        save_model(tuned(tiny_llama(**options), seed), folder / f"tuned-{name}")
    base = load_tensors(folder / "base")
    write_expert(folder / "a.obm", base, load_tensors(folder / "tuned-a"), task="a")
    write_expert(folder / "b.obm", base, load_tensors(folder / "tuned-b"), task="b", compressed=LINEAR)
    return folder


def experts(family: Path) -> list[Path]:
    return [family / "a.obm", family / "b.obm"]


def assert_same_model(got: torch.nn.Module, wanted: torch.nn.Module) -> None:
    """Equal weights bit for bit, and outputs as close as the place of arrays in memory leaves them."""
    ours, theirs = got.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    torch.testing.assert_close(logits(got), logits(wanted))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def fresh(family: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(family / "base").eval()


ROUTE_A = parse_recipe({"method": "routing", "route": "a"})
ROUTE_B = parse_recipe({"method": "routing", "route": "b"})


def test_materialized_folder_loads_and_generates_as_the_fine_tune(family: Path, tmp_path: Path) -> None:
    materialize(family / "base", experts(family), ROUTE_A, tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    wanted = AutoModelForCausalLM.from_pretrained(family / "tuned-a").eval()
    assert_same_model(got, wanted)
    assert torch.equal(
        got.generate(IDS, max_new_tokens=4, do_sample=False),
        wanted.generate(IDS, max_new_tokens=4, do_sample=False),
    )


def test_activate_writes_into_the_same_storage(family: Path) -> None:
    model = fresh(family)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    wanted = AutoModelForCausalLM.from_pretrained(family / "tuned-a").eval()
    with Loader(family / "base", experts(family)) as loader:
        active = loader.activate(model.state_dict(), ROUTE_A)
        assert (active.route, active.method, loader.active) == ("a", "routing", active)
        assert active.nbytes == sum(t.words.nbytes for t in load_tensors(family / "base").values())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert_same_model(model, wanted)


def test_activate_again_starts_from_the_pristine_backbone(family: Path, tmp_path: Path) -> None:
    recipe = parse_recipe({"route": "b", "lam": 0.5, "scope": "all"})
    materialize(family / "base", experts(family), recipe, tmp_path / "out")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    model = fresh(family)
    with Loader(family / "base", experts(family)) as loader:
        for step in (ROUTE_A, ROUTE_B, ROUTE_A, recipe):
            loader.activate(model.state_dict(), step)
    assert_same_model(model, wanted)


def test_failure_leaves_the_old_weights(family: Path, tmp_path: Path) -> None:
    model = fresh(family)
    with Loader(family / "base", experts(family)) as good:
        active = good.activate(model.state_dict(), ROUTE_A)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ObmError):
            good.activate(model.state_dict(), parse_recipe({"route": "nobody"}))
        assert good.active is active
    damaged = bytearray((family / "b.obm").read_bytes())
    damaged[-64] ^= 1  # in the last tensor
    (tmp_path / "b.obm").write_bytes(damaged)
    with Loader(family / "base", [tmp_path / "b.obm"]) as bad, pytest.raises(ObmError):
        bad.activate(model.state_dict(), Recipe())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_interrupt_while_copying_completes_the_copy(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(family)
    wanted = AutoModelForCausalLM.from_pretrained(family / "tuned-a").eval()
    whole, calls = loader_module._copy_all, []

    def interrupted(target: dict[str, torch.Tensor], staged: dict[str, torch.Tensor]) -> None:
        calls.append(1)
        if len(calls) == 1:
            first = next(iter(staged))
            whole(target, {first: staged[first]})
            raise KeyboardInterrupt
        whole(target, staged)

    monkeypatch.setattr(loader_module, "_copy_all", interrupted)
    with Loader(family / "base", experts(family)) as loader, pytest.raises(KeyboardInterrupt):
        loader.activate(model.state_dict(), ROUTE_A)
    assert_same_model(model, wanted)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_target_that_does_not_fit_refused(family: Path, change: str) -> None:
    state = dict(fresh(family).state_dict())
    norm = state["model.norm.weight"]
    if change == "missing":
        del state["model.norm.weight"]
    elif change == "extra":
        state["more"] = torch.zeros(1)
    else:
        other = {"shape": norm.repeat(2), "dtype": norm.to(torch.float64)}
        state["model.norm.weight"] = other[change]
    before = {name: tensor.clone() for name, tensor in state.items()}
    with Loader(family / "base", experts(family)) as loader, pytest.raises(ObmError) as caught:
        loader.activate(state, ROUTE_A)
    assert caught.value.reason == "usage"
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_residents_keep_to_the_budget(family: Path) -> None:
    sizes = [path.stat().st_size for path in experts(family)]
    for budget, held in ((0, 0), (sizes[0], sizes[0]), (sum(sizes), sum(sizes))):
        residents = Residents(experts(family), budget)
        first = [expert.id for expert in residents.experts()]
        assert residents.nbytes == held <= budget
        assert [expert.id for expert in residents.experts()] == first
        residents.close()
        assert residents.nbytes == 0


def test_other_devices_refused(family: Path) -> None:
    with pytest.raises(ObmError) as caught:
        Loader(family / "base", experts(family), device="cuda")
    assert caught.value.reason == "usage"


@pytest.mark.parametrize("cls", [AutoModelForCausalLM, LlamaForCausalLM])
def test_transformers_load_gives_the_folders_model(family: Path, cls: type, tmp_path: Path) -> None:
    recipe = parse_recipe({"route": "b", "lam": 0.2})
    materialize(family / "base", experts(family), recipe, tmp_path / "out")
    wanted = cls.from_pretrained(tmp_path / "out").eval()
    got = load(family / "base", experts(family), recipe, cls=cls)
    assert got.dtype == wanted.dtype
    assert_same_model(got, wanted)


def test_transformers_load_defaults_to_automodel(family: Path) -> None:
    got = load(family / "base", [family / "a.obm"])
    wanted = AutoModel.from_pretrained(family / "tuned-a").eval()
    ours, theirs = got.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_transformers_load_without_config_refused(family: Path) -> None:
    with pytest.raises(ObmError) as caught:
        load(family / "base" / "model.safetensors", [family / "a.obm"])
    assert caught.value.reason == "bad_checkpoint"
