"""A registry over the loopback: how fast blobs go in and come out, and the server's memory under many clients.

    python benchmarks/registry.py push-pull push-many [--repeats N] [--mib N] [--clients N] [--json]

`push-pull` moves blobs of 64 MiB with the client of `obm push`, four at once, to `obm serve` and to docker-registry in
turn, beside plain files of the same bytes that are synced one by one. Ratio, push: the time that the slower of
docker-registry and 0.8 of the disk takes / own time; pull: docker-registry's time / own time. What is pulled is hashed.
`push-many` lets clients push different blobs at the same time, and samples the server's memory.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from harness import machine, timed
from registry_server import RunningServer, running_server
from stock_registry import stock_registry

from obm_format.limits import MIB
from obm_format.progress import silent
from obm_registry.client.credentials import Credential
from obm_registry.client.http import Session
from obm_registry.client.journal import Journal
from obm_registry.client.origin import Origin, parse_origin
from obm_registry.client.remote import RemoteStore
from obm_registry.client.transfer import THREADS, push_blobs
from obm_registry.manifest.oci import Descriptor

BLOB_NBYTES = 64 * MIB
DISK_SHARE = 0.8
REPOSITORY = "bench/blobs"
_SAMPLE_S = 0.05


class Blobs:
    """Blobs of random bytes that differ in their last eight; their digests cost next to nothing."""

    def __init__(self) -> None:
        self._common = os.urandom(BLOB_NBYTES - 8)
        self._hash = hashlib.sha256(self._common)
        self._numbers = itertools.count()
        self._run = os.urandom(4)

    def new(self) -> tuple[Descriptor, Callable[[int], Iterator[bytes]]]:
        """A blob that was never made before, and its bytes from an offset on."""
        end = self._run + next(self._numbers).to_bytes(4, "little")
        total = self._hash.copy()
        total.update(end)
        descriptor = Descriptor(media_type="", digest=f"sha256:{total.hexdigest()}", size=BLOB_NBYTES)
        return descriptor, partial(self._chunks, end)

    def _chunks(self, end: bytes, start: int) -> Iterator[bytes]:
        for at in range(start, BLOB_NBYTES, MIB):
            piece = self._common[at : at + MIB]
            yield piece if at + MIB < BLOB_NBYTES else piece + end


def connect(address: str, token: str, folder: Path) -> RemoteStore:
    """The client of a registry."""
    origin = parse_origin(address)

    def credential(asked: Origin) -> Credential | None:
        return Credential(username="token", secret=token) if token and asked == origin else None

    return RemoteStore(Session(origin, credential), Journal(folder))


def pull(store: RemoteStore, blobs: list[Descriptor]) -> bool:
    """Read blobs, four at once; whether each hashes to its digest."""

    def right(blob: Descriptor) -> bool:
        total = hashlib.sha256()
        for chunk in store.read_blob(REPOSITORY, blob):
            total.update(chunk)
        return f"sha256:{total.hexdigest()}" == blob.digest

    with ThreadPoolExecutor(THREADS) as pool:
        return all(pool.map(right, blobs))


def write_plain(folder: Path, blobs: list[tuple[Descriptor, Callable[[int], Iterator[bytes]]]]) -> None:
    """The same bytes into files, each synced."""
    for blob, read in blobs:
        with (folder / blob.digest[7:]).open("wb") as file:
            for chunk in read(0):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())


class PushPull:
    """Rounds of the same work on both registries and the disk, and the seconds that each took."""

    def __init__(self, folder: Path, stores: dict[str, RemoteStore], count: int) -> None:
        self._folder = folder
        self._stores = stores
        self._count = count
        self._source = Blobs()
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.exact = True

    def run(self) -> None:
        """One round."""
        for name, store in self._stores.items():
            blobs = self._new()
            self._note(name, "push", lambda store=store, blobs=blobs: push_blobs(store, REPOSITORY, blobs, silent))
            self._note(name, "pull", lambda store=store, blobs=blobs: self._pull(store, [blob for blob, _ in blobs]))
        plain = self._folder / "plain"
        plain.mkdir()
        blobs = self._new()
        self._note("disk", "push", lambda: write_plain(plain, blobs))
        shutil.rmtree(plain)

    def _new(self) -> list[tuple[Descriptor, Callable[[int], Iterator[bytes]]]]:
        os.sync()
        return [self._source.new() for _ in range(self._count)]

    def _note(self, name: str, kind: str, work: Callable[[], object]) -> None:
        self.seconds.setdefault((name, kind), []).append(timed(work))

    def _pull(self, store: RemoteStore, blobs: list[Descriptor]) -> None:
        self.exact &= pull(store, blobs)


def push_pull(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both rows of `push-pull`."""
    count = arguments.mib * MIB // BLOB_NBYTES
    with ExitStack() as stack:
        own = stack.enter_context(running_server(folder / "own" / "home"))
        stock = stack.enter_context(stock_registry(folder / "stock"))
        stores = {
            "obm": stack.enter_context(closing(connect(own.host, own.admin, folder / "journal-own"))),
            "docker-registry": stack.enter_context(closing(connect(stock, "", folder / "journal-stock"))),
        }
        rounds = PushPull(folder, stores, count)
        for _ in range(arguments.repeats + 1):
            rounds.run()
    seconds = {key: values[1:] for key, values in rounds.seconds.items()}  # the first round warms up
    return [_push_pull_row(kind, seconds, count, exact=rounds.exact) for kind in ("push", "pull")]


def _push_pull_row(
    kind: str, seconds: dict[tuple[str, str], list[float]], count: int, *, exact: bool
) -> dict[str, Any]:
    own, stock = seconds["obm", kind], seconds["docker-registry", kind]
    disk = seconds["disk", "push"] if kind == "push" else []
    limits = [max(pair) for pair in zip(stock, (value / DISK_SHARE for value in disk), strict=True)] if disk else stock
    return {
        "case": "push-pull",
        "dtype": "",
        "kernel": kind,
        "threads": THREADS,
        "output": "file",
        "bytes": count * BLOB_NBYTES,
        "seconds": own,
        "memcpy_seconds": [],
        "limit": "docker-registry, or 0.8 of the disk" if kind == "push" else "docker-registry",
        "limit_seconds": limits,
        "docker_registry_seconds": stock,
        "disk_seconds": disk,
        "ratio": statistics.median(limit / mine for limit, mine in zip(limits, own, strict=True)),
        "load": os.getloadavg()[0],
        "exact": exact,
    }


@dataclass(frozen=True)
class Sample:
    """Bytes that were pushed, and the server's resident memory then, both in MiB."""

    pushed: float
    resident: float


def resident_mib(server: RunningServer) -> float:
    """Resident memory of the server, without pages of files."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def push_many(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The row of `push-many`."""
    each = max(1, arguments.many_mib * MIB // BLOB_NBYTES // arguments.clients)
    source, pushed, lock = Blobs(), [0], threading.Lock()
    with running_server(folder / "many" / "home") as server:
        idle = resident_mib(server)

        def client(number: int) -> None:
            with closing(connect(server.host, server.admin, folder / f"journal{number}")) as store:
                for _ in range(each):
                    blob, read = source.new()
                    store.put_blob(f"bench/many{number}", blob, read)
                    with lock:
                        pushed[0] += blob.size

        with sampled(lambda: Sample(pushed[0] / MIB, resident_mib(server))) as samples:
            began = time.perf_counter()
            with ThreadPoolExecutor(arguments.clients) as pool:
                list(pool.map(client, range(arguments.clients)))
            seconds = time.perf_counter() - began
    peaks = peaks_by_eighths(samples, pushed[0] / MIB)
    return [
        {
            "case": "push-many",
            "dtype": "",
            "kernel": f"{arguments.clients} clients",
            "threads": arguments.clients,
            "output": "file",
            "bytes": pushed[0],
            "seconds": [seconds],
            "memcpy_seconds": [],
            "idle_mib": idle,
            "peak_mib_by_eighths": peaks,
            "ratio": peaks[1] / max(peaks[2:]) if peaks[1] else 0.0,
            "load": os.getloadavg()[0],
            "exact": True,
        }
    ]


@contextmanager
def sampled(take: Callable[[], Sample]) -> Iterator[list[Sample]]:
    """Take samples in a thread while the block runs."""
    samples: list[Sample] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_S):
            samples.append(take())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        over.set()
        watcher.join()


def peaks_by_eighths(samples: list[Sample], total: float) -> list[float]:
    """The largest resident memory in each eighth of the bytes."""
    return [
        max((s.resident for s in samples if total * i / 8 <= s.pushed <= total * (i + 1) / 8), default=0.0)
        for i in range(8)
    ]


CASES = {"push-pull": push_pull, "push-many": push_many}


def main() -> int:
    """Run the cases named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=sorted(CASES), metavar="CASE")
    parser.add_argument("--threads", type=int, help="not used: the client has four")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512, help="size of one push in MiB")
    parser.add_argument("--many-mib", type=int, default=8192, help="size of all pushes of push-many in MiB")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where the registries keep their bytes [default: a temporary one]")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.cases:
        with tempfile.TemporaryDirectory(prefix="obm-bench-", dir=arguments.folder) as folder:
            rows += CASES[name](Path(folder), arguments)
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
        return 0 if all(row["exact"] for row in rows) else 1
    for row in rows:
        rate = row["bytes"] / MIB / statistics.median(row["seconds"])
        print(
            f"{row['case']:10} {row['kernel']:12} {rate:6.0f} MiB/s  ratio {row['ratio']:.2f}  load {row['load']:.1f}"
        )
        for key in ("seconds", "docker_registry_seconds", "disk_seconds", "peak_mib_by_eighths"):
            if row.get(key):
                print(f"    {key:24} {' '.join(f'{value:.2f}' for value in row[key])}")
    return 0 if all(row["exact"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
