"""Several processes on one registry at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from registry_files import REPOSITORY, registry_with_backbone, write_expert

from obm_format.errors import ObmError
from obm_registry.embedded import EmbeddedRegistry, open_embedded

PROCESSES = 4
ROUNDS = 4
COLLECTIONS = 10


def _push(home: Path, base: Path, number: int) -> None:
    """Push own experts, one that all push, and race for one tag; no error but a lost race is allowed."""
    with open_embedded(home, actor=f"p{number}") as registry:
        for i in range(ROUNDS):
            own = write_expert(base.parent / f"own{number}" / f"{i}.obm", base, seed=100 * number + i)
            _persist(registry, own, f"{REPOSITORY}:p{number}-{i}")
            _persist(registry, base.parent / "shared.obm", f"{REPOSITORY}:shared")
            _persist(registry, own, f"{REPOSITORY}:latest", move=True)
            try:
                _persist(registry, own, f"{REPOSITORY}:first-{i}")
            except ObmError as error:
                if error.reason != "tag_exists":
                    raise
            registry.pull(f"{REPOSITORY}:shared", base.parent / f"own{number}" / "back.obm")


def _persist(registry: EmbeddedRegistry, file: Path, ref: str, *, move: bool = False) -> None:
    """Push, and again when collections took from under it what it sent, each time that it sent: a disk may be slow."""
    for left in reversed(range(COLLECTIONS)):
        try:
            registry.push(file, ref, move=move)
        except ObmError as error:
            if error.reason != "blob_unknown" or not left:
                raise
        else:
            return


def _collect(home: Path) -> None:
    """Collect over and over, with hardly any grace: pushes send again what was taken from under them."""
    with open_embedded(home, actor="gc") as registry:
        for _ in range(COLLECTIONS):
            registry.gc(grace_s=0.5)


def test_four_processes_push_and_one_collects_and_nothing_is_lost(tmp_path: Path) -> None:
    registry_with_backbone(tmp_path).close()
    shared = write_expert(tmp_path / "shared.obm", tmp_path / "base", seed=9, task="shared")
    spawn = multiprocessing.get_context("spawn")
    home = tmp_path / "home"
    processes = [spawn.Process(target=_push, args=(home, tmp_path / "base", i)) for i in range(PROCESSES)]
    processes.append(spawn.Process(target=_collect, args=(home,)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * (PROCESSES + 1)
    with open_embedded(home) as registry:
        assert registry.fsck().problems == ()
        tags = {row.ref.partition(":")[2] for row in registry.experts()}
        own = {f"p{number}-{i}" for number in range(PROCESSES) for i in range(ROUNDS)}
        assert tags == own | {"shared", "latest"} | {f"first-{i}" for i in range(ROUNDS)}
        for tag in tags:
            registry.pull(f"{REPOSITORY}:{tag}", tmp_path / "out.obm")
        registry.pull(f"{REPOSITORY}:shared", tmp_path / "out.obm")
        assert (tmp_path / "out.obm").read_bytes() == shared.read_bytes()
        events = [e for e in registry.log(f"{REPOSITORY}:first-0") if e.new_digest]
        assert len(events) == 1
