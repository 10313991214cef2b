"""How the command starts and ends: few looks for garbage while it loads, and no work once the result is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checkpoints import shifted, tiny_llama, write_checkpoint

from obm_format.model import DType

ENDING = """
import atexit, sys
import obm_cli.commands.ls as ls
class Late:
    def __del__(self):
        sys.stderr.write("taken apart\\n")
late = Late()
def work(**_):
    atexit.register(lambda: sys.stderr.write("asked\\n"))
    sys.stdout.write("result")
ls.command.callback = work
from obm_cli.__main__ import run
run()
"""


def test_the_end_hands_over_all_output_and_takes_nothing_apart() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, "ls"], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "result"
    assert done.stderr.splitlines() == ["asked"]


LOOKS = """
import gc
from obm_cli.__main__ import run
import obm_cli.commands.ls as ls
def work(**_):
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(10_000)]
    print(gc.isenabled(), gc.get_stats()[0]["collections"] - before)
ls.command.callback = work
run()
"""


def test_garbage_is_looked_for_now_and_then() -> None:
    done = subprocess.run([sys.executable, "-c", LOOKS, "ls"], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["True", "0"]


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
from obm_cli.__main__ import run
run()
"""


def test_without_numba_one_line_says_so_and_what_helps(tmp_path: Path) -> None:
    weights = tiny_llama(0, DType.BF16)
    write_checkpoint(tmp_path / "base", weights)
    write_checkpoint(tmp_path / "tuned", shifted(weights, 1))
    arguments = ["materialize", "--base", "base", "--expert", "tuned", "--method", "ties", "-o", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "OBM_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert "numba is not installed" in line
    assert "pip install 'obm-format[fast]'" in line
    assert "reference kernels" in done.stdout
