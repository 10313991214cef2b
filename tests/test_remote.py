"""An expert at an http address: read by ranges, the same checks as for a file, and a line for every wrong server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint
from range_server import RangeServer, serving

import obm_format.remote as remote
from obm_format.compress import compress_checkpoint
from obm_format.diff import diff_experts
from obm_format.errors import FormatError, ObmError
from obm_format.expert import open_expert
from obm_format.model import DType
from obm_format.remote import HttpSource, is_url
from obm_format.stats import expert_stats
from obm_format.verify import verify_expert

FIRST = 65_536


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and an expert of more tensors than 64 KiB of header hold, `x.obm`; a small one, `small.obm`."""
    place = tmp_path_factory.mktemp("remote")
    base = tiny_llama(1, DType.F16, layers=40)
    wide = {"model.extra.weight": (DType.F16, np.random.default_rng(3).normal(size=(512, 512)))}
    write_checkpoint(place / "base", base | wide)
    write_checkpoint(place / "tuned", shifted(base | wide, 2))
    compress_checkpoint(place / "base", place / "tuned", place / "x.obm")
    write_checkpoint(place / "base2", tiny_llama(1))
    write_checkpoint(place / "tuned2", shifted(tiny_llama(1), 2))
    compress_checkpoint(place / "base2", place / "tuned2", place / "small.obm")
    return place


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with serving({f"/{name}": (folder / name).read_bytes() for name in ("x.obm", "small.obm")}) as state:
        yield state


def header_nbytes(folder: Path, name: str = "x.obm") -> int:
    return 8 + int.from_bytes((folder / name).read_bytes()[:8], "little")


# --- reading ---


def test_header_and_digests_take_one_or_two_requests(folder: Path, server: RangeServer) -> None:
    assert header_nbytes(folder) > FIRST
    for name, requests in (("x.obm", 2), ("small.obm", 1)):
        server.asked.clear()
        server.sent = 0
        with open_expert(f"{server.url}/{name}") as expert, open_expert(folder / name) as local:
            for tensor in expert.records:
                assert expert.digests(tensor) == local.digests(tensor)
            assert (expert.id, expert.nbytes) == (local.id, local.nbytes)
        assert len(server.asked) == requests
        assert server.sent <= max(FIRST, header_nbytes(folder, name)) + FIRST


def test_bad_header_is_refused_before_more_than_64_kib_beyond_it(folder: Path, server: RangeServer) -> None:
    data = bytearray(server.files["/x.obm"])
    data[header_nbytes(folder) - 200] ^= 1
    server.files["/x.obm"] = bytes(data)
    with pytest.raises(FormatError):
        open_expert(f"{server.url}/x.obm")
    assert server.sent <= header_nbytes(folder) + FIRST


def test_every_tensor_is_that_of_the_file(folder: Path, server: RangeServer) -> None:
    with open_expert(f"{server.url}/x.obm") as expert, open_expert(folder / "x.obm") as local:
        for name, record in expert.records.items():
            if not record.is_exact:
                np.testing.assert_array_equal(expert.values(name), local.values(name))


def test_one_tensor_is_one_request(server: RangeServer) -> None:
    with open_expert(f"{server.url}/x.obm") as expert:
        expert.values("model.layers.7.mlp.up_proj.weight")  # alphas, and its part
        before = len(server.asked)
        expert.values("model.layers.9.mlp.up_proj.weight")
        assert len(server.asked) == before + 1


@pytest.mark.parametrize("mode", ["good", "no_ranges"])
def test_tools_take_an_address(folder: Path, server: RangeServer, mode: str) -> None:
    server.mode = mode
    url = f"{server.url}/x.obm"
    assert verify_expert(url, base=folder / "base", deep=True).ok
    assert expert_stats(url).id == expert_stats(folder / "x.obm").id
    assert diff_experts(url, folder / "x.obm").identical
    assert not diff_experts(url, f"{server.url}/small.obm").identical


def test_damaged_part_is_listed_as_for_a_file(folder: Path, server: RangeServer, tmp_path: Path) -> None:
    data = bytearray(server.files["/x.obm"])
    data[-1000] ^= 1
    data[-200_000] ^= 1
    server.files["/x.obm"] = bytes(data)
    (tmp_path / "x.obm").write_bytes(data)
    found = verify_expert(f"{server.url}/x.obm").defects
    assert len(found) == 2
    assert found == verify_expert(tmp_path / "x.obm").defects


def test_reads_are_bounded_and_cheap(server: RangeServer) -> None:
    with HttpSource(f"{server.url}/x.obm") as source:
        assert source.nbytes == len(server.files["/x.obm"])
        assert source.read(5, 0) == b""
        assert len(server.asked) == 1
        assert source.read(FIRST - 3, 6) == server.files["/x.obm"][FIRST - 3 : FIRST + 3]
        with pytest.raises(FormatError):
            source.read(source.nbytes - 1, 2)


def test_secret_part_of_an_address_is_in_no_message(server: RangeServer) -> None:
    server.mode = "broken"
    with pytest.raises(ObmError) as caught:
        HttpSource(f"{server.url}/x.obm?token=hush#hush")
    assert "hush" not in str(caught.value)


# --- redirects ---


@pytest.mark.parametrize("mode", ["moved", "expiring"])
def test_redirect_is_followed(server: RangeServer, mode: str) -> None:
    server.mode = mode
    with HttpSource(f"{server.url}/moved.obm") as source:
        assert source.read(100_000, 50) == server.files["/x.obm"][100_000:100_050]
        assert source.read(200_000, 50) == server.files["/x.obm"][200_000:200_050]


def test_no_request_carries_credentials(server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hush\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    server.mode = "moved"
    with HttpSource(f"{server.url}/moved.obm") as source:
        source.read(100_000, 50)
    assert not {"authorization", "cookie", "proxy-authorization"} & {name for _, sent in server.asked for name in sent}
    with pytest.raises(ObmError) as caught:
        HttpSource(server.url.replace("http://", "http://me:hush@"))
    assert caught.value.reason == "usage"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("mode", ["loop", "to_file"])
def test_redirect_without_end_or_to_elsewhere_refused(server: RangeServer, mode: str) -> None:
    server.mode = mode
    with pytest.raises(ObmError) as caught:
        HttpSource(f"{server.url}/x.obm")
    assert caught.value.reason == "network"
    assert len(server.asked) <= remote.MOST_REDIRECTS + 1


# --- servers that misbehave ---


@pytest.mark.parametrize(
    ("mode", "reason", "word"),
    [
        ("no_ranges_no_length", "network", "how large"),
        ("other_range", "network", "another range"),
        ("no_content_range", "network", "no Content-Range"),
        ("short", "network", "fewer bytes"),
        ("cut_off", "network", "transfer failed"),
        ("endless", "network", "more bytes"),
        ("compressed", "network", "gzip"),
        ("denied", "denied", "no credentials"),
        ("broken", "network", "HTTP 500"),
    ],
)
def test_wrong_answer_is_one_line(server: RangeServer, mode: str, reason: str, word: str) -> None:
    server.mode = mode
    with pytest.raises(ObmError) as caught:
        HttpSource(f"{server.url}/x.obm")
    assert caught.value.reason == reason
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.sent < 16 << 20


@pytest.mark.parametrize("mode", ["forgets_ranges", "other_tag"])
def test_server_that_changes_its_mind_is_noticed(server: RangeServer, mode: str) -> None:
    server.mode = mode
    with HttpSource(f"{server.url}/x.obm") as source, pytest.raises(ObmError) as caught:
        source.read(100_000, 50)
    assert caught.value.reason == "network"
    assert "changed" in str(caught.value)


@pytest.mark.parametrize("grown", [0, 100])
def test_file_replaced_while_it_is_read_is_noticed(server: RangeServer, grown: int) -> None:
    with HttpSource(f"{server.url}/x.obm") as source:
        assert server.ranges == [f"bytes=0-{FIRST - 1}"]
        server.files["/x.obm"] = bytes(len(server.files["/x.obm"]) + grown)
        server.tags["/x.obm"] = '"another"'
        with pytest.raises(ObmError) as caught:
            source.read(100_000, 50)
    assert "changed" in str(caught.value)
    assert server.asked[-1][1]["if-range"].startswith('"')


def test_silence_is_no_wait_without_end(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "IDLE_SECONDS", 0.2)
    server.mode = "silent"
    with pytest.raises(ObmError) as caught:
        HttpSource(f"{server.url}/x.obm")
    assert caught.value.reason == "network"
    assert "silent" in str(caught.value)


def test_nobody_there_and_no_such_file(server: RangeServer) -> None:
    with pytest.raises(ObmError) as caught:
        HttpSource(f"{server.url}/nothing.obm")
    assert caught.value.reason == "not_found"
    with pytest.raises(ObmError) as caught:
        HttpSource("http://127.0.0.1:9/x.obm")
    assert caught.value.reason == "network"


def test_server_without_ranges_is_read_from_the_start_up_to_a_bound(
    folder: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mode = "no_ranges"
    with HttpSource(f"{server.url}/x.obm") as source:
        assert source.read(100_000, 50) == server.files["/x.obm"][100_000:100_050]
        assert source.read(70_000, 50) == server.files["/x.obm"][70_000:70_050]
        assert len(server.asked) == 2
    monkeypatch.setattr(remote, "WITHOUT_RANGES_NBYTES", 120_000)
    with open_expert(f"{server.url}/x.obm") as expert:
        assert expert.id
        with pytest.raises(ObmError) as caught:
            expert.verify()
    assert caught.value.reason == "network"
    assert "download" in str(caught.value)


def test_empty_file_is_truncated(server: RangeServer) -> None:
    server.files["/empty.obm"], server.tags["/empty.obm"] = b"", '"0"'
    with pytest.raises(FormatError) as caught:
        open_expert(f"{server.url}/empty.obm")
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x.obm",
        "https://host:0/x",
        "http://host:99999/x",
        "http://ho st/x",
        "http://h\u00f6st/x",
        "http://[::1/x",
    ],
)
def test_what_is_no_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(ObmError) as caught:
        HttpSource(url)
    assert caught.value.reason == "usage"


def test_what_counts_as_an_address() -> None:
    assert is_url("HTTPS://example.org/x.obm")
    assert not any(map(is_url, ("x.obm", "ftp://example.org/x", "http:/x", Path("http://x"), b"http://x")))
