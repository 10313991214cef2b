"""What may be loaded when: start-up stays light, the core runs without torch, generic folder names stay free."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "boto3", "sqlalchemy", "numba", "httpx"}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_obm_start_loads_nothing_heavy(argument: str) -> None:
    code = f"from obm_cli.main import main\nassert main(['{argument}']) == 0"
    assert not loaded_after(code) & (HEAVY | {"numpy", "zstandard", "rich"})


def test_format_package_import_loads_nothing_heavy() -> None:
    assert not loaded_after("import obm_format") & (HEAVY | {"numpy"})


def test_format_core_runs_without_torch_and_sql() -> None:
    code = "import obm_format.expert, obm_format.compress, obm_format.merge, obm_format.verify, obm_format.loader"
    assert not loaded_after(code) & {"torch", "triton", "transformers", "boto3", "sqlalchemy", "httpx"}


def test_device_loads_neither_torch_nor_triton_before_it_is_asked_for_kernels() -> None:
    assert not loaded_after("import obm_format.device") & {"torch", "triton", "numpy"}


def test_embedded_registry_runs_without_torch() -> None:
    assert not loaded_after("import obm_registry.embedded") & {"torch", "transformers", "boto3", "numba"}


def test_client_runs_without_torch_and_sql() -> None:
    code = "import obm_registry.client.open, obm_registry.interface"
    assert not loaded_after(code) & {"torch", "transformers", "boto3", "numba", "sqlalchemy", "alembic"}


def test_server_starts_without_torch_and_boto3() -> None:
    assert not loaded_after("import obm_registry.server.run") & {"torch", "transformers", "boto3", "numba"}


def test_every_public_name_resolves() -> None:
    import obm_format

    assert sorted(obm_format.__all__) == obm_format.__all__
    for name in obm_format.__all__:
        assert getattr(obm_format, name).__name__ == name


@pytest.mark.parametrize("folder", ["registry", "cli"])
def test_generic_folder_is_no_package(folder: str) -> None:
    spec = importlib.util.find_spec(folder)
    assert spec is None or spec.origin is None
