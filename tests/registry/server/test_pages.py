"""The page: what it shows, to whom, and that nothing in it can run or leak."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from registry_files import write_backbone, write_expert
from registry_server import RunningServer, push_blob, put_manifest, running_server

from obm_registry.embedded import open_embedded
from obm_registry.manifest.oci import TITLE, Descriptor, digest_of, encode_manifest, parse_manifest
from obm_registry.server.pages import cards

CARD = b"""# Chat <script>alert(1)</script>

Made with *care*. <img src=x onerror=alert(1)> ![p](http://acme.example/p.png)
[a](javascript:alert(1)) [b](data:text/html,x) [c](https://acme.example) [d](JaVaScRiPt:alert(1)) [e](//acme.example)
"""
HOSTILE = '"><script>alert(1)</script>{{7*7}}'


class Checker(HTMLParser):
    """Refuses everything in a page that could run, load from elsewhere or hide."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "base", "style", "math", "template"), tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in ("href", "src", "action"):
                assert re.match(r"[/?]|https?://|mailto:", value or ""), (tag, name, value)
                if name != "href" or tag == "link":
                    assert (value or "").startswith("/"), (tag, name, value)


def page(client: httpx.Client, path: str, status: int = 200) -> str:
    found = client.get(path)
    assert found.status_code == status, found.text
    assert found.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = found.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src" not in policy
    Checker().feed(found.text)
    return found.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A public and a private shop with an expert each; the public one has a card."""
    folder = tmp_path_factory.mktemp("pages")
    with running_server(folder / "home", "--anonymous", "pull") as running:
        write_backbone(folder / "base")
        with open_embedded(running.home, actor="shopkeeper") as registry:
            for name in ("acme/tiny", "secret/tiny"):
                registry.add_backbone(folder / "base", name)
                task = name.partition("/")[0]
                registry.push(write_expert(folder / f"{task}.obm", folder / "base", task=task), f"{name}:{task}-v1")
        admin = running.client()
        admin.put("/api/v1/namespaces/secret", json={"visibility": "private"})
        manifest = parse_manifest(admin.get("/v2/acme/tiny/manifests/acme-v1").content)
        push_blob(admin, "acme/tiny", CARD)
        card = Descriptor(
            media_type=cards.CARD_TYPE, digest=digest_of(CARD), size=len(CARD), annotations={TITLE: HOSTILE}
        )
        with_card = dataclasses.replace(manifest, layers=(*manifest.layers, card), annotations={"x": HOSTILE})
        assert put_manifest(admin, "acme/tiny", "acme-v2", encode_manifest(with_card)).status_code == 201
        yield running


def expert_url(server: RunningServer, tag: str) -> str:
    repo = f"{tag.partition('-')[0]}/tiny"
    digest = server.client().head(f"/v2/{repo}/manifests/{tag}").headers["Docker-Content-Digest"]
    return f"/experts/{repo}/{digest}"


def test_from_the_door_to_an_expert(server: RunningServer) -> None:
    stranger = server.client("")
    home = page(stranger, "/")
    assert "acme/tiny" in home
    (backbone,) = set(re.findall(r'href="(/backbones/[0-9a-f]{64})"', home))
    experts = re.findall(r'href="(/experts/[^"]+)"', page(stranger, backbone))
    assert sorted(experts) == sorted([expert_url(server, "acme-v1"), expert_url(server, "acme-v2")])
    text = page(stranger, expert_url(server, "acme-v2"))
    assert f"obm pull {server.host}/acme/tiny:acme-v2 -o acme.obm" in text
    assert "obm1-sha256:" in text
    assert "Made with <em>care</em>" in text
    assert "shopkeeper" in page(stranger, expert_url(server, "acme-v1"))


def test_s21_what_senders_write_is_text(server: RunningServer) -> None:
    text = page(server.client(""), expert_url(server, "acme-v2"))
    assert "<script>alert" not in text
    assert "{{7*7}}" in text
    assert set(re.findall(r'href="((?!/)[^"]*)"', text)) <= {"https://acme.example", "http://acme.example/p.png"}


@pytest.mark.parametrize("q", [HOSTILE, "'", "%", "\x00", "a" * 5000, "\ud7ff"])
def test_s21_search_for_anything(server: RunningServer, q: str) -> None:
    text = server.client("").get("/search", params={"q": q})
    assert text.status_code == 200
    Checker().feed(text.text)
    assert "<script>alert" not in text.text


def test_search_finds(server: RunningServer) -> None:
    assert expert_url(server, "acme-v1") in page(server.client(""), "/search?q=acme-v1")
    assert "Nothing that you may see" in page(server.client(""), "/search?q=absent")


def test_strangers_see_nothing_of_what_is_private(server: RunningServer) -> None:
    stranger = server.client("")
    private = expert_url(server, "secret-v1")
    fingerprint = re.findall(r"/backbones/([0-9a-f]{64})", page(stranger, "/"))[0]
    for path in ("/", f"/backbones/{fingerprint}", "/search?q=tiny", "/search?q=secret-v1"):
        text = page(stranger, path)
        assert "secret/tiny" not in text
        assert private not in text
    absent = private.replace("secret", "absent")
    assert page(stranger, private, 404) == page(stranger, absent, 404)


def test_asking_for_the_head_of_a_page_is_asking_for_the_page(server: RunningServer) -> None:
    stranger = server.client("")
    for path in ("/", "/login", "/search?q=tiny"):
        assert stranger.head(path).status_code == stranger.get(path).status_code == 200


def sign_in(server: RunningServer, token: str, **headers: str) -> httpx.Response:
    client = server.client("")
    return client.post("/login", data={"token": token}, headers=headers)


def test_sign_in_shows_what_the_token_may_read_and_no_more(server: RunningServer) -> None:
    token = server.token("visitor", {"secret": "admin"})
    done = sign_in(server, token, Origin=server.url)
    assert (done.status_code, done.headers["Location"]) == (303, "/")
    cookie = done.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/"))
    assert token not in cookie
    visit = server.client("")
    visit.cookies.set("obm_visit", cookie.partition(";")[0].partition("=")[2].strip('"'))
    assert "secret/tiny" in page(visit, "/")
    assert "visitor" in page(visit, expert_url(server, "secret-v1"))
    # the cookie is for the page alone
    assert visit.get("/v2/secret/tiny/tags/list").status_code == 401
    assert visit.get("/api/v1/whoami").status_code == 401
    # and what it holds only reads, even as a token
    shown = server.client(visit.cookies["obm_visit"])
    assert shown.get("/v2/secret/tiny/tags/list").status_code == 200
    assert shown.post("/v2/secret/tiny/blobs/uploads/").status_code == 401
    assert shown.get("/api/v1/namespaces/secret").status_code == 403
    assert shown.post("/api/v1/tokens", json={}).status_code == 403
    server.client().delete(f"/api/v1/tokens/{token.split('_')[1]}")
    assert "secret/tiny" not in page(visit, "/")


def test_s22_forms_of_other_sites_are_refused(server: RunningServer) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert sign_in(server, server.admin, **headers).status_code == 400
        assert server.client("").post("/logout", headers=headers).status_code == 400


def test_wrong_token_is_refused(server: RunningServer) -> None:
    for token in ("", "x", "obm_0123456789abcdef_" + "A" * 43):
        done = sign_in(server, token)
        assert done.status_code == 401
        assert "Set-Cookie" not in done.headers
        Checker().feed(done.text)


@pytest.mark.parametrize("path", ["/nowhere", "/experts/acme/tiny/x", "/backbones/x", "/experts/../x", "/search/x"])
def test_addresses_that_name_nothing(server: RunningServer, path: str) -> None:
    page(server.client(""), path, 404)


def test_a_closed_server_shows_its_door_only(tmp_path: Path) -> None:
    with running_server(tmp_path / "home") as closed:
        for path, status in (("/", 200), ("/search?q=x", 401), (f"/backbones/{'0' * 64}", 401)):
            assert "Sign in" in page(closed.client(""), path, status)


@pytest.mark.parametrize(
    "big", [b"x" * (cards.MAX_NBYTES + 1), b"> " * 20_000, b"[" * 20_000, b"\xff\xfe", b"*" * 20_000]
)
def test_hostile_cards_are_rendered(big: bytes) -> None:
    Checker().feed(str(cards.render(big[: cards.MAX_NBYTES])))


@pytest.mark.slow
def test_in_a_real_browser(server: RunningServer, tmp_path: Path) -> None:
    for width, height in ((1280, 1200), (400, 1200)):
        shot, dump = tmp_path / f"{width}.png", browser(server, tmp_path, "/", width, height)
        assert "acme/tiny" in dump
        browser(server, tmp_path, "/", width, height, f"--screenshot={shot}")
        assert shot.stat().st_size > 5000
    dump = browser(server, tmp_path, expert_url(server, "acme-v2"), 1280, 1200)
    assert "Chat &lt;script&gt;" in dump
    assert "<script" not in dump


def browser(server: RunningServer, folder: Path, path: str, width: int, height: int, *options: str) -> str:
    """Open a page in Chromium; the document as it is after loading."""
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},{height}",
            *(options or ("--dump-dom",)),
            server.url + path,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
