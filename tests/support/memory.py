"""What a materialize takes of private memory, watched from a thread of its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MEASURE = """
import json, sys, tempfile, threading, time
from pathlib import Path
from obm_format import materialize, parse_recipe
from obm_format.merge.meter import private_bytes

folder, experts, recipe, threads = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
paths = [folder / expert for expert in experts]

def run():
    with tempfile.TemporaryDirectory(dir=folder) as out:
        return materialize(folder / "base", paths, parse_recipe(recipe), out, threads=threads)

run()
idle, peak, over = private_bytes(), 0, threading.Event()

def watch():
    global peak
    while not over.is_set():
        peak = max(peak, private_bytes())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
made = run()
over.set()
watcher.join()
print(json.dumps({"taken": peak - idle, "reported": made.peak_private_bytes - idle}))
"""


@dataclass(frozen=True)
class Memory:
    """Private bytes above those of the process after a first run, at most: seen from outside, and by the report."""

    taken: int
    reported: int


def memory_of(folder: Path, experts: Sequence[str], recipe: Mapping[str, object], threads: int) -> Memory:
    """Run a merge of `folder/base` with experts in that folder twice in a new process, and watch the second."""
    arguments = [str(folder), json.dumps(list(experts)), json.dumps(dict(recipe)), str(threads)]
    done = subprocess.run([sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout))
