"""Broken connections, broken bytes and killed processes: what was moved is not moved again, and nothing is believed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import client_jobs
import httpx
import pytest
from client_parts import log_in, open_there
from fault_proxy import Fault, FaultProxy, Seen, fault_proxy
from registry_files import write_expert

from obm_format.errors import RegistryError
from obm_registry.client import transfer, upload
from obm_registry.client.http import Patience
from obm_registry.client.registry import ClientRegistry
from obm_registry.manifest import segments
from obm_registry.manifest.oci import IMAGE_INDEX, OciManifest, encode_manifest

ONCE = Patience(stall_s=20.0, attempts=1)
_numbers = itertools.count()


@pytest.fixture
def proxy(stock: str) -> Iterator[FaultProxy]:
    with fault_proxy(stock) as running:
        yield running


@pytest.fixture
def registry(proxy: FaultProxy, tmp_path: Path) -> Iterator[ClientRegistry]:
    """The stock registry behind the proxy; closed before the proxy."""
    with open_there(proxy.address, tmp_path) as found:
        yield found


@pytest.fixture
def ref(registry: ClientRegistry, proxy: FaultProxy, base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tag in a repository of its own that has the backbone; segments and chunks are small."""
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", client_jobs.SEGMENT)
    monkeypatch.setattr(upload, "CHUNK_NBYTES", client_jobs.CHUNK)
    repository = f"acme/fault{next(_numbers)}"
    registry.add_backbone(base, repository)
    proxy.reset()
    return f"{repository}:chat"


def nth(method: str, number: int, fault: Fault, *, path: str = "/blobs/") -> object:
    """A rule that does something to the request of that number, and nothing to the others."""
    count = itertools.count(1)
    return lambda seen: fault if seen.method == method and path in seen.path and next(count) == number else None


# --- broken connections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("PATCH", Fault(cut_request=0)),
        ("PATCH", Fault(cut_request=500)),
        ("PATCH", Fault(cut_reply=0)),
        ("PATCH", Fault(status=500)),
        ("PATCH", Fault(status=503, headers={"Retry-After": "1"})),
        ("PATCH", Fault(status=416)),
        ("PUT", Fault(cut_request=0)),
        ("PUT", Fault(cut_reply=0)),
        ("PUT", Fault(status=502)),
        ("POST", Fault(status=500)),
        ("POST", Fault(cut_reply=0)),
        ("HEAD", Fault(status=429, headers={"Retry-After": "1"})),
    ],
)
def test_push_survives_one_fault(
    registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path, tmp_path: Path, method: str, fault: Fault
) -> None:
    proxy.rule = nth(method, 3, fault)  # type: ignore[assignment]
    registry.push(expert, ref)
    # no more than one segment went twice
    assert proxy.sent <= expert.stat().st_size + client_jobs.SEGMENT + 2000
    registry.pull(ref, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()


@pytest.mark.parametrize(
    "fault", [Fault(cut_reply=0), Fault(cut_reply=700), Fault(flip=5), Fault(status=500), Fault(status=429)]
)
def test_pull_survives_one_fault_and_fetches_little_twice(
    registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path, tmp_path: Path, fault: Fault
) -> None:
    registry.push(expert, ref)
    proxy.reset()
    proxy.rule = nth("GET", 3, fault)  # type: ignore[assignment]
    pulled = registry.pull(ref, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()
    size = expert.stat().st_size
    again = client_jobs.SEGMENT if fault.flip is not None else 0  # a bad segment is fetched again, and it alone
    assert size <= proxy.received <= size + again
    assert pulled.received_bytes <= size + again


def own_refusal(reason: str) -> bytes:
    """What our server says of an upload."""
    return json.dumps({"errors": [{"code": "BLOB_UPLOAD_INVALID", "detail": {"reason": reason}}]}).encode()


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503, body=own_refusal("busy")), Fault(status=404, body=own_refusal("upload_unknown"))],
    ids=["busy", "moved"],
)
def test_push_waits_for_a_server_that_still_holds_a_broken_upload(
    registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(transfer, "THREADS", 1)
    refused = itertools.count(1)
    proxy.rule = lambda seen: fault if seen.method == "PATCH" and next(refused) in (3, 4) else None
    pushed = registry.push(expert, ref)
    assert registry.resolve(ref).id == pushed.id


def test_a_segment_that_stays_bad_is_refused_and_the_good_ones_are_kept(
    registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path, tmp_path: Path
) -> None:
    registry.push(expert, ref)
    proxy.reset()
    bad: list[str] = []

    def rule(seen: Seen) -> Fault | None:
        if seen.method == "GET" and "/blobs/" in seen.path:
            bad[:] = bad or [seen.path]
            return Fault(flip=7) if seen.path == bad[0] else None
        return None

    proxy.rule = rule
    with pytest.raises(RegistryError) as caught:
        registry.pull(ref, tmp_path / "out.obm")
    assert (caught.value.reason, caught.value.exit_code) == ("blob_damaged", 4)
    assert not (tmp_path / "out.obm").exists()
    proxy.reset()
    pulled = registry.pull(ref, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()
    assert pulled.received_bytes == proxy.received < expert.stat().st_size


def test_a_registry_that_is_down_is_one_clear_error(tmp_path: Path) -> None:
    with fault_proxy("127.0.0.1:1") as gone:
        address = gone.address
    with open_there(address, tmp_path) as there, pytest.raises(RegistryError) as caught:
        there.resolve("acme/tiny:x")
    assert (caught.value.reason, caught.value.exit_code) == ("network", 8)


def test_a_registry_without_chunks_gets_blobs_whole(
    registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path
) -> None:
    proxy.rule = lambda seen: Fault(status=405) if seen.method == "PATCH" else None
    pushed = registry.push(expert, ref)
    assert pushed.sent_bytes >= expert.stat().st_size
    assert registry.resolve(ref).id == pushed.id


def test_least_size_of_a_chunk_is_kept(registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path) -> None:
    def rule(seen: Seen) -> Fault | None:
        return None

    proxy.rule = rule
    proxy.add_headers = {"OCI-Chunk-Min-Length": "3000"}
    registry.push(expert, ref)
    patches = [seen for seen in proxy.seen if seen.method == "PATCH"]
    sizes = {seen.body_nbytes for seen in patches}
    assert 3000 in sizes
    assert client_jobs.CHUNK not in sizes


def test_silence_is_given_up_and_slowness_is_not(
    registry: ClientRegistry, proxy: FaultProxy, ref: str, expert: Path, tmp_path: Path
) -> None:
    registry.push(expert, ref)
    silent = threading.Event()
    proxy.rule = lambda seen: (silent.wait(10), None)[1] if "/manifests/" in seen.path else None
    try:
        hurried = Patience(stall_s=0.2, attempts=1)
        with (
            open_there(proxy.address, tmp_path / "other", patience=hurried) as there,
            pytest.raises(RegistryError) as caught,
        ):
            there.resolve(ref)
    finally:
        silent.set()
    assert caught.value.reason == "network"
    assert "does not answer" in caught.value.message


# --- later runs -------------------------------------------------------------------------------------------------


def test_a_push_that_broke_off_goes_on_where_it_was(
    proxy: FaultProxy,
    registry: ClientRegistry,
    ref: str,
    expert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "THREADS", 1)
    count = itertools.count(1)
    proxy.rule = lambda seen: Fault(cut_request=0) if seen.method == "PATCH" and next(count) > 9 else None
    with open_there(proxy.address, tmp_path, patience=ONCE) as there, pytest.raises(RegistryError):
        there.push(expert, ref)
    first = proxy.sent
    assert first > 8 * client_jobs.CHUNK
    proxy.reset()
    pushed = registry.push(expert, ref)
    total = pushed.sent_bytes + pushed.reused_bytes
    assert proxy.sent == pushed.sent_bytes == total - first
    notes = [path.read_text() for path in (tmp_path / "cache" / "uploads").iterdir()]
    assert not any("location" in note for note in notes)
    registry.pull(ref, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()


def test_a_note_that_leads_elsewhere_is_not_followed(
    proxy: FaultProxy, registry: ClientRegistry, ref: str, expert: Path, tmp_path: Path
) -> None:
    proxy.rule = lambda seen: Fault(cut_request=0) if seen.method == "PATCH" else None
    with open_there(proxy.address, tmp_path, patience=ONCE) as there, pytest.raises(RegistryError):
        there.push(expert, ref)
    proxy.reset()
    for note in (tmp_path / "cache" / "uploads").iterdir():
        assert note.stat().st_mode & 0o077 == 0
        note.write_text('{"at": 99999999999, "location": "http://evil.example/x", "offset": 5}')
    pushed = registry.push(expert, ref)
    assert registry.resolve(ref).id == pushed.id


def test_a_blob_goes_to_a_second_repository_without_being_sent(
    proxy: FaultProxy, registry: ClientRegistry, ref: str, base: Path, expert: Path, tmp_path: Path
) -> None:
    registry.push(expert, ref)
    second = f"acme/second{next(_numbers)}"
    registry.add_backbone(base, second)
    proxy.reset()
    pushed = registry.push(expert, f"{second}:chat")
    small = expert.stat().st_size - 8 * 5056  # what is smaller than a note is sent
    assert proxy.sent == pushed.sent_bytes < small + 1000
    assert any("mount=" in seen.path and "from=" in seen.path for seen in proxy.seen)
    registry.pull(f"{second}:chat", tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()


def test_a_mount_that_is_refused_is_sent(
    proxy: FaultProxy, registry: ClientRegistry, ref: str, base: Path, expert: Path
) -> None:
    registry.push(expert, ref)
    second = f"acme/second{next(_numbers)}"
    registry.add_backbone(base, second)
    proxy.reset()
    proxy.rule = lambda seen: Fault(status=403) if "mount=" in seen.path else None
    pushed = registry.push(expert, f"{second}:chat")
    assert pushed.sent_bytes >= expert.stat().st_size


def test_an_index_of_referrers_that_others_overwrite_is_written_again(
    stock: str, proxy: FaultProxy, registry: ClientRegistry, ref: str, base: Path, expert: Path, tmp_path: Path
) -> None:
    repository = ref.partition(":")[0]
    registry.push(write_expert(tmp_path / "first.obm", base, seed=3), f"{repository}:first")
    proxy.reset()
    empty = encode_manifest(OciManifest(media_type=IMAGE_INDEX))
    count = itertools.count(1)

    def rule(seen: Seen) -> None:
        # whenever the client looks whether its entry is there, somebody who knew of none has just written
        if seen.method == "GET" and "/manifests/sha256-" in seen.path and next(count) in (2, 3):
            url = f"http://{stock}{seen.path}"
            done = httpx.put(url, content=empty, headers={"Content-Type": IMAGE_INDEX}, trust_env=False)
            assert done.status_code == 201

    proxy.rule = rule  # type: ignore[assignment]
    registry.push(expert, ref)
    assert next(count) >= 5
    assert registry.backbone(repository).n_experts == 2


def kill_at(
    proxy: FaultProxy,
    number: int,
    fault: Fault,
    child: multiprocessing.process.BaseProcess,
    wait: Callable[[Seen], None] = lambda seen: None,
) -> None:
    """Kill the child when it is about to move blob bytes for the `number`-th time, after a wait."""
    count, cut = itertools.count(1), []

    def then() -> None:
        wait(cut[0])
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    fault.then = then
    method = "PATCH" if fault.cut_request is not None else "GET"

    def rule(seen: Seen) -> Fault | None:
        if seen.method != method or "/blobs/" not in seen.path or next(count) != number:
            return None
        proxy.gate.clear()  # nothing else gets through before the kill
        cut.append(seen)
        return fault

    proxy.rule = rule


def children() -> multiprocessing.context.ForkServerContext:
    """Where child processes come from: a server that has loaded all there is to load."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client_jobs"])
    return context


def kept_by_stock(seen: list[Seen], number: int, cut: int) -> int:
    """Bytes that a stock registry still has after a kill: whole blobs, and the upload that was cut between chunks.

    It drops an upload that stopped within a chunk, or whose last answer the client never got.
    """
    last = [one for one in seen if one.method == "PATCH" and "/blobs/" in one.path][number - 1]
    uploads = {one.path.partition("?")[0] for one in seen if one.method == "PUT" and one.status == 201}
    if not cut:
        uploads.add(last.path.partition("?")[0])
    bodies = (one for one in seen if one is not last and one.path.partition("?")[0] in uploads)
    return sum(one.body_nbytes for one in bodies if one.status in (201, 202))


@pytest.mark.parametrize("cut", [0, 300])
@pytest.mark.parametrize("number", [1, 4, *[pytest.param(n, marks=pytest.mark.slow) for n in range(5, 42, 3)]])
def test_a_killed_push_ends_well_the_next_time(
    proxy: FaultProxy, registry: ClientRegistry, ref: str, expert: Path, tmp_path: Path, number: int, cut: int
) -> None:
    child = children().Process(target=client_jobs.push, args=(proxy.address, tmp_path, expert, ref))
    kill_at(proxy, number, Fault(cut_request=cut), child)
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    kept = kept_by_stock(list(proxy.seen), number, cut)
    proxy.reset()
    pushed = registry.push(expert, ref)
    total = pushed.sent_bytes + pushed.reused_bytes
    assert proxy.sent == pushed.sent_bytes
    assert proxy.sent <= total - kept
    registry.pull(ref, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()


def wait_for(arrived: int, address: str, seen: Seen) -> None:
    """Wait until our server has noted the bytes of a chunk that was cut, and nobody writes to the upload any more."""
    start = int(seen.headers["Content-Range"].partition("-")[0])
    headers = {"Authorization": seen.headers["Authorization"]}
    for _ in range(3000):
        noted = httpx.get(f"http://{address}{seen.path}", headers=headers, trust_env=False).headers.get("Range")
        if noted == f"0-{max(start + arrived - 1, 0)}":
            return
        time.sleep(0.02)
    raise AssertionError(f"{arrived} bytes from {start} were not kept: {noted}")


@pytest.mark.parametrize("number", [2, *[pytest.param(n, marks=pytest.mark.slow) for n in range(5, 42, 3)]])
@pytest.mark.parametrize("cut", [0, 300])
def test_on_our_own_server_a_killed_push_loses_nothing_that_arrived(
    own: tuple[str, str],
    base: Path,
    expert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    cut: int,
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", client_jobs.SEGMENT)
    monkeypatch.setattr(upload, "CHUNK_NBYTES", client_jobs.CHUNK)
    repository = f"acme/killed{next(_numbers)}"
    with fault_proxy(own[0]) as proxy:
        log_in(proxy.address, own[1], tmp_path)
        with open_there(proxy.address, tmp_path) as registry:
            registry.add_backbone(base, repository)
        proxy.reset()
        arguments = (proxy.address, tmp_path, expert, f"{repository}:chat")
        child = children().Process(target=client_jobs.push, args=arguments)
        kill_at(proxy, number, Fault(cut_request=cut), child, partial(wait_for, cut, own[0]))
        child.start()
        child.join(600)
        assert child.exitcode == -signal.SIGKILL
        before = proxy.sent
        proxy.reset()
        with open_there(proxy.address, tmp_path) as registry:
            pushed = registry.push(expert, f"{repository}:chat")
            assert proxy.sent == pushed.sent_bytes
            # the other threads' chunks were stopped by the proxy before they arrived
            assert proxy.sent <= pushed.sent_bytes + pushed.reused_bytes - before + 4 * client_jobs.CHUNK
            registry.pull(f"{repository}:chat", tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()


@pytest.mark.parametrize("number", [1, 4, *[pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, 6)]])
@pytest.mark.parametrize("cut", [0, 5000])
def test_a_killed_pull_fetches_only_the_rest(
    proxy: FaultProxy, registry: ClientRegistry, ref: str, expert: Path, tmp_path: Path, number: int, cut: int
) -> None:
    registry.push(expert, ref)
    proxy.reset()
    out = tmp_path / "out.obm"
    child = children().Process(target=client_jobs.pull, args=(proxy.address, tmp_path, ref, out))
    kill_at(proxy, number, Fault(cut_reply=cut), child)
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()
    before = proxy.received
    proxy.reset()
    pulled = registry.pull(ref, out)
    assert out.read_bytes() == expert.read_bytes()
    size = expert.stat().st_size
    assert pulled.received_bytes == proxy.received
    assert pulled.received_bytes + pulled.reused_bytes == size
    # what was on the way to the four threads when it died may come again
    assert proxy.received <= size - before + 4 * client_jobs.SEGMENT


def test_two_processes_share_one_download(
    proxy: FaultProxy, registry: ClientRegistry, ref: str, expert: Path, tmp_path: Path
) -> None:
    registry.push(expert, ref)
    proxy.reset()
    context = children()
    outs = [tmp_path / f"out{i}.obm" for i in range(4)]
    running = [context.Process(target=client_jobs.pull, args=(proxy.address, tmp_path, ref, out)) for out in outs]
    for child in running:
        child.start()
    for child in running:
        child.join(600)
    assert [child.exitcode for child in running] == [0] * 4
    assert {out.read_bytes() for out in outs} == {expert.read_bytes()}
    assert proxy.received == expert.stat().st_size
