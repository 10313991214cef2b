"""Run a push or a pull killed by SIGKILL at one step, then at a later one, and so on through all of them.

Called as `registry_killer.py push|pull FIRST STRIDE HOME FILE WORK`; prints how many steps there are. Steps are what
changes something outside the process: files made, flushed, renamed and removed, statements and commits of the
database. Every run starts from a copy of HOME, and is a child of this process, so that nothing is imported again.
After every kill what is visible must be whole, and the same command must end well.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, event

from obm_registry.embedded import open_embedded
from obm_registry.manifest import segments

REF = "acme/tiny:chat"
STEP_LIMIT = 1000


def arm(step: int) -> list[int]:
    """Make this process kill itself at step number `step`; gives the running count."""
    count = [0]

    def tick(*_: object, **__: object) -> None:
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1

    def stepped(call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            tick()
            result = call(*args, **kwargs)
            tick()
            return result

        return run

    os.fsync = stepped(os.fsync)  # type: ignore[assignment]  # the point of this program
    for name in ("mkdir", "open", "unlink", "replace"):
        setattr(Path, name, stepped(getattr(Path, name)))
    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(Engine, name, tick)
    return count


def run(kind: str, home: Path, file: Path, out: Path) -> None:
    with open_embedded(home, actor="victim") as registry:
        if kind == "push":
            registry.push(file, REF)
        else:
            registry.pull(REF, out)


def killed(step: int, kind: str, home: Path, file: Path, out: Path) -> bool:
    """Run in a child that kills itself at `step`; False when it came through."""
    child = os.fork()
    if child == 0:
        arm(step)
        run(kind, home, file, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        require(os.WEXITSTATUS(status) == 0, "the run failed by itself")
        return False
    require(os.WTERMSIG(status) == signal.SIGKILL, "the run died otherwise")
    return True


def check(kind: str, home: Path, file: Path, out: Path) -> None:
    """What is visible after a kill is whole; the same command then ends well, and leaves nothing uncollectable."""
    with open_embedded(home, actor="checker") as registry:
        require(not registry.fsck().problems, "problems after a kill")
        if kind == "push" and registry.experts():
            registry.pull(REF, out)
        require(not out.exists() or out.read_bytes() == file.read_bytes(), "a broken file is visible")
    run(kind, home, file, out)
    with open_embedded(home, actor="checker") as registry:
        registry.pull(REF, out)
        require(out.read_bytes() == file.read_bytes(), "other bytes after the second try")
        registry.gc(grace_s=-1)
        require(not registry.fsck().problems, "problems after a collection")
        # backbone: table and empty layer; expert: config and one blob per segment
        objects = [path for path in (home / "data").rglob("*") if path.is_file()]
        require(len(objects) == registry.fsck().blobs, "a collection left objects behind")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def main() -> None:
    kind, first, stride = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    template, file, work = map(Path, sys.argv[4:])
    segments.SEGMENT_NBYTES = 1024
    for step in range(first, STEP_LIMIT, stride):
        home, out = work / f"home{step}", work / f"out{step}" / "x.obm"
        shutil.copytree(template, home)
        out.parent.mkdir()
        if not killed(step, kind, home, file, out):
            sys.stdout.write(f"{step}\n")
            return
        check(kind, home, file, out)
    raise SystemExit("more steps than the limit")


if __name__ == "__main__":
    main()
