"""Builds the wheel, installs it with its core dependencies alone, and uses it from outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import sys
import obm_format, obm_registry.embedded, obm_cli.main
from pathlib import Path
assert not Path(obm_format.__file__).is_relative_to({root!r}), obm_format.__file__
loaded = {{"torch", "transformers", "numba", "boto3"}} & set(sys.modules)
assert not loaded, loaded
"""


def main() -> int:
    """Build, install, probe; the exit status says whether all went well."""
    with tempfile.TemporaryDirectory(prefix="obm-wheel-") as name:
        folder = Path(name)
        _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        constraints = str(ROOT / "constraints.txt")
        _run(str(python), "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel), cwd=folder)
        _run(str(python), "-I", "-c", PROBE.format(root=str(ROOT)), cwd=folder)
        vector = next((ROOT / "spec" / "vectors" / "valid").glob("*.obm"))
        _run(str(folder / "venv" / "bin" / "obm"), "verify", str(vector), "--json", cwd=folder)
        _run(str(folder / "venv" / "bin" / "obm"), "--help", cwd=folder)
    print("wheel: builds, installs with core dependencies alone, works outside the repository")  # noqa: T201
    return 0


def _run(*command: str, cwd: Path = ROOT) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(command, cwd=cwd, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
