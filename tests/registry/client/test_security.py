"""What a hostile registry, or somebody on the way to a good one, must not achieve.

The numbers are those of the security cases that the registry is built against: S-01 digests, S-03 file names, S-24
redirects, S-25 secrets, S-28 terminal escapes, S-29 plain HTTP, S-30 manifests, S-31 endless replies, S-32 file modes.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_parts import HASTE, open_there, places
from hostile_server import Answer, Asked, HostileServer, hostile_server
from registry_files import write_expert

from obm_cli.main import main
from obm_format.errors import ObmError, RegistryError, UsageError
from obm_registry.client.cache import Cache
from obm_registry.client.credentials import Credential, CredentialFile
from obm_registry.client.http import Request, Session
from obm_registry.client.open import open_client
from obm_registry.client.origin import Origin, parse_origin
from obm_registry.client.registry import ClientRegistry
from obm_registry.manifest.expert import EXPERT_CONFIG, EXPERT_TYPE, INDEX_TYPE, SEGMENT_TYPE
from obm_registry.manifest.oci import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    OciManifest,
    describe,
    digest_of,
    encode_manifest,
)

SECRET = "s3cret-token"  # noqa: S105 - a test's
REF = "acme/tiny:chat"


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with hostile_server() as running:
        yield running


@pytest.fixture
def other() -> Iterator[HostileServer]:
    """A second origin: same host, another port."""
    with hostile_server() as running:
        yield running


@pytest.fixture
def registry(server: HostileServer, tmp_path: Path) -> Iterator[ClientRegistry]:
    """The client of the server, which has a secret for it."""
    store_secret(server, tmp_path)
    with open_there(server.address, tmp_path) as found:
        yield found


def store_secret(server: HostileServer, folder: Path, secret: str = SECRET) -> None:
    origin = parse_origin(server.address)
    CredentialFile(folder / "home" / "credentials.json").put(origin, Credential(username="me", secret=secret))


def manifest_answer(body: bytes, media_type: str = IMAGE_MANIFEST, **headers: str) -> Answer:
    return Answer(body=body, headers={"Content-Type": media_type, **headers})


def expert_manifest(*layers: Descriptor, **changes: object) -> bytes:
    config = describe(b"{}", EXPERT_CONFIG)
    fields: dict[str, object] = {"artifact_type": EXPERT_TYPE, "config": config, "layers": layers, **changes}
    return encode_manifest(OciManifest(**fields))  # type: ignore[arg-type]


def serve_expert(server: HostileServer, body: bytes, blobs: Callable[[Asked], Answer]) -> None:
    def answer(asked: Asked) -> Answer:
        if "/blobs/" in asked.path:
            return blobs(asked)
        return manifest_answer(body) if asked.path.endswith("/manifests/chat") else Answer(404)

    server.answer = answer


def refusal(call: Callable[[], object]) -> ObmError:
    with pytest.raises(ObmError) as caught:
        call()
    return caught.value


def everything(error: BaseException) -> str:
    """All that an error could show, its causes included."""
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        text += f"{cause!r} {cause} {vars(cause)}"
        cause = cause.__cause__
    return text


# --- S-01: digests ----------------------------------------------------------------------------------------------

BAD_DIGESTS = [
    "sha256:../../../../tmp/x",
    "sha256:" + "A" * 64,
    "sha256:%2e%2e%2f" + "0" * 55,
    "sha256:" + "0" * 63 + "\0",
    "sha256:" + "0" * 10_240,
    "md5:" + "0" * 32,
    "../../x",
    "",
]


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_s01_a_digest_of_another_form_never_gets_anywhere(
    server: HostileServer, registry: ClientRegistry, tmp_path: Path, digest: str
) -> None:
    good = json.loads(expert_manifest(describe(b"x", INDEX_TYPE)))
    good["layers"][0]["digest"] = digest
    serve_expert(server, json.dumps(good).encode(), lambda asked: Answer(body=b"x"))
    error = refusal(lambda: registry.pull(REF, tmp_path / "out.obm"))
    assert error.reason == "bad_digest"
    assert all("/blobs/" not in asked.path for asked in server.asked)
    assert not (tmp_path / "cache").exists()
    layout = tmp_path / "layout"
    with open_client(f"file://{layout}", places(tmp_path)) as there:
        assert refusal(lambda: there.pull(f"acme/tiny@{digest}", tmp_path / "out.obm")).exit_code == 2


def test_s01_a_digest_in_a_header_or_a_list_is_checked_too(server: HostileServer, registry: ClientRegistry) -> None:
    body = expert_manifest(describe(b"x", INDEX_TYPE))
    server.answer = lambda asked: manifest_answer(body, **{"Docker-Content-Digest": "sha256:../../x"})
    assert registry.resolve(REF).manifest_digest == digest_of(body)
    index = json.loads(encode_manifest(OciManifest(media_type=IMAGE_INDEX, children=(describe(body, IMAGE_MANIFEST),))))
    index["manifests"][0]["digest"] = "sha256:../../x"
    server.answer = lambda asked: (
        manifest_answer(json.dumps(index).encode(), IMAGE_INDEX)
        if "/referrers/" in asked.path
        else manifest_answer(body)
    )
    assert refusal(lambda: registry.experts(REF)).reason in ("bad_digest", "blob_damaged", "network")


# --- S-03: file names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["../../evil.obm", "/etc/evil", "C:\\evil", "CON", "a/b"])
def test_s03_a_title_never_becomes_a_path(
    server: HostileServer, registry: ClientRegistry, base: Path, tmp_path: Path, title: str
) -> None:
    data = write_expert(tmp_path / "x.obm", base).read_bytes()
    n = 8 + int.from_bytes(data[:8], "little")
    blobs = {digest_of(part): part for part in (data[:n], data[n:])}
    annotations = {"org.opencontainers.image.title": title}
    layers = [
        Descriptor(media_type=kind, digest=digest, size=len(part), annotations=annotations)
        for kind, (digest, part) in zip((INDEX_TYPE, SEGMENT_TYPE), blobs.items(), strict=True)
    ]
    serve_expert(server, expert_manifest(*layers), lambda asked: Answer(body=blobs.get(asked.path.split("/")[-1], b"")))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    registry.pull(REF, tmp_path / "out.obm")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before == {tmp_path / "out.obm"}


def test_s03_a_link_at_the_target_is_replaced_and_not_followed(
    server: HostileServer, registry: ClientRegistry, base: Path, tmp_path: Path
) -> None:
    data = write_expert(tmp_path / "x.obm", base).read_bytes()
    n = 8 + int.from_bytes(data[:8], "little")
    blobs = {digest_of(part): part for part in (data[:n], data[n:])}
    layers = [describe(data[:n], INDEX_TYPE), describe(data[n:], SEGMENT_TYPE)]
    serve_expert(server, expert_manifest(*layers), lambda asked: Answer(body=blobs.get(asked.path.split("/")[-1], b"")))
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "out.obm").symlink_to(tmp_path / "victim")
    registry.pull(REF, tmp_path / "out.obm")
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert (tmp_path / "out.obm").read_bytes() == data


def test_f13_an_address_that_ran_out_is_asked_for_anew(
    server: HostileServer, other: HostileServer, registry: ClientRegistry, base: Path, tmp_path: Path
) -> None:
    data = write_expert(tmp_path / "x.obm", base).read_bytes()
    n = 8 + int.from_bytes(data[:8], "little")
    blobs = {digest_of(part): part for part in (data[:n], data[n:])}
    layers = [describe(data[:n], INDEX_TYPE), describe(data[n:], SEGMENT_TYPE)]
    numbers = itertools.count()

    def away(asked: Asked) -> Answer:
        digest = asked.path.split("/")[-1]
        location = f"http://{other.address}/{digest}?expires={next(numbers)}"
        return Answer(307, headers={"Location": location}) if digest in blobs else Answer(404)

    serve_expert(server, expert_manifest(*layers), away)
    other.answer = lambda asked: (
        Answer(body=blobs[asked.path[1:].partition("?")[0]]) if asked.path[-1] not in "01" else Answer(403)
    )
    registry.pull(REF, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == data
    assert len(other.asked) == 4
    assert not other.authorizations()


# --- S-24: credentials and where they go --------------------------------------------------------------------------


def basic_guard(asked: Asked) -> Answer | None:
    """A registry that wants Basic credentials."""
    wanted = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    if asked.headers.get("authorization") == wanted:
        return None
    return Answer(401, headers={"WWW-Authenticate": 'Basic realm="here"'})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_s24_a_redirect_elsewhere_carries_no_credentials(
    server: HostileServer, other: HostileServer, registry: ClientRegistry, status: int
) -> None:
    body = expert_manifest(describe(b"x", INDEX_TYPE))
    other.answer = lambda asked: manifest_answer(body)
    away = {"Location": f"http://{other.address}/elsewhere?sig=1"}
    server.answer = lambda asked: basic_guard(asked) or Answer(status, headers=away)
    registry.resolve(REF)
    assert server.authorizations()
    assert [asked.path for asked in other.asked] == ["/elsewhere?sig=1"]
    assert not other.authorizations()


def test_s24_a_challenge_elsewhere_gets_no_credentials(
    server: HostileServer, other: HostileServer, registry: ClientRegistry
) -> None:
    other.answer = lambda asked: Answer(401, headers={"WWW-Authenticate": 'Basic realm="give me"'})
    server.answer = lambda asked: Answer(307, headers={"Location": f"http://{other.address}/x"})
    assert refusal(lambda: registry.resolve(REF)).exit_code == 6
    assert not other.authorizations()


def test_s24_a_foreign_token_endpoint_gets_what_is_stored_for_it_or_nothing(
    server: HostileServer, other: HostileServer, registry: ClientRegistry, tmp_path: Path
) -> None:
    body = expert_manifest(describe(b"x", INDEX_TYPE))
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{other.address}/token",service="s",scope="x"'}

    def guarded(asked: Asked) -> Answer:
        good = asked.headers.get("authorization") == "Bearer short-lived"
        return manifest_answer(body) if good else Answer(401, headers=challenge)

    server.answer = guarded
    other.answer = lambda asked: Answer(body=b'{"token":"short-lived"}')
    registry.resolve(REF)
    assert not other.authorizations()
    assert all(SECRET not in value for value in server.authorizations())
    store_secret(other, tmp_path, "for-the-other")
    with open_there(server.address, tmp_path) as again:
        again.resolve(REF)
    assert other.authorizations() == {"Basic " + base64.b64encode(b"me:for-the-other").decode()}


def test_s24_an_upload_address_elsewhere_carries_no_credentials(
    server: HostileServer, other: HostileServer, tmp_path: Path, base: Path
) -> None:
    store_secret(server, tmp_path)
    other.answer = lambda asked: Answer(201)
    away = {"Location": f"http://{other.address}/upload"}

    def answer(asked: Asked) -> Answer:
        guarded = basic_guard(asked)
        if guarded is not None:
            return guarded
        return Answer(202, headers=away) if asked.method == "POST" else Answer(201 if asked.method == "PUT" else 404)

    server.answer = answer
    with open_there(server.address, tmp_path) as registry:
        refusal(lambda: registry.add_backbone(base, "acme/tiny"))
    assert {asked.path.partition("?")[0] for asked in other.asked} == {"/upload"}
    assert not other.authorizations()


def test_s24_cookies_are_not_kept(server: HostileServer, registry: ClientRegistry) -> None:
    body = expert_manifest(describe(b"x", INDEX_TYPE))
    server.answer = lambda asked: manifest_answer(body, **{"Set-Cookie": "session=1; Path=/"})
    registry.resolve(REF)
    registry.resolve(REF)
    assert all("cookie" not in asked.headers for asked in server.asked)


# --- S-25: secrets ------------------------------------------------------------------------------------------------


def test_s25_no_error_shows_a_secret(server: HostileServer, registry: ClientRegistry) -> None:
    server.answer = lambda asked: Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    error = refusal(lambda: registry.resolve(REF))
    assert error.exit_code == 6
    realm = {"WWW-Authenticate": f'Bearer realm="http://{server.address}/token?key=hidden-key"'}
    for reply in (b'{"token": "bad token\\u0000hidden-key"}', b'{"token": "hidden-key', b"hidden-key"):
        server.answer = lambda asked, reply=reply: (  # type: ignore[misc]
            Answer(body=reply) if "/token" in asked.path else Answer(401, headers=realm)
        )
        error = refusal(lambda: registry.resolve(REF))
        assert "hidden-key" not in everything(error)
    assert SECRET not in everything(error)
    encoded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert encoded not in everything(error)
    assert SECRET not in repr(Credential(username="me", secret=SECRET))


def test_s25_a_signed_address_is_not_shown(
    server: HostileServer, other: HostileServer, registry: ClientRegistry
) -> None:
    other.answer = lambda asked: Answer(403, body=b"<xml>no</xml>")
    away = {"Location": f"http://{other.address}/blob?X-Amz-Signature=hidden-key"}
    server.answer = lambda asked: Answer(307, headers=away)
    error = refusal(lambda: registry.resolve(REF))
    assert "/blob" in str(error)
    assert "hidden-key" not in str(error)


def test_s25_a_password_in_an_address_is_refused_and_not_shown(tmp_path: Path) -> None:
    error = refusal(lambda: open_there("https://me:hidden-key@registry.example", tmp_path))
    assert error.exit_code == 2
    assert "hidden-key" not in everything(error)


# --- S-28: terminals ------------------------------------------------------------------------------------------------


def test_s28_no_escape_of_a_registry_reaches_the_terminal(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    config = json.dumps({"task": "\x1b[31mred", "position": "\x07\u202ebell", "kind": "\x9b1m"}).encode()
    body = expert_manifest(describe(b"x", INDEX_TYPE), config=describe(config, EXPERT_CONFIG))
    yank = describe(b"y", IMAGE_MANIFEST)
    index = OciManifest(
        media_type=IMAGE_INDEX,
        children=(
            Descriptor(
                media_type=IMAGE_MANIFEST,
                digest=yank.digest,
                size=1,
                artifact_type="application/vnd.obm.yank.v1",
                annotations={"io.obm.yank.reason": "\x1b]0;owned\x07"},
            ),
        ),
    )

    def answer(asked: Asked) -> Answer:
        if "/referrers/" in asked.path:
            return manifest_answer(encode_manifest(index), IMAGE_INDEX)
        if "/blobs/" in asked.path:
            return Answer(body=config)
        return manifest_answer(body, Warning='299 - "\x1b[2Jgone"')

    server.answer = answer
    assert main(["ls", f"{server.address}/{REF}"]) == 0
    detail = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[31mno", "detail": {"reason": "denied"}}]})
    server.answer = lambda asked: Answer(403, body=detail.encode())
    assert main(["ls", f"{server.address}/{REF}"]) == 6
    shown = "".join(capfd.readouterr())
    assert "red" in shown
    assert not [c for c in shown if not c.isprintable() and c != "\n"]


# --- S-29: plain HTTP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://registry.example", "http://10.0.0.1:5000", "http://127.0.0.1.example:80"])
def test_s29_plain_http_off_this_machine_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError):
        open_there(url, tmp_path)


def test_s29_a_host_without_scheme_means_https() -> None:
    assert str(parse_origin("registry.example")) == "https://registry.example"
    assert str(parse_origin("127.0.0.1:5000")) == "http://127.0.0.1:5000"
    assert str(parse_origin("localhost:5000")) == "http://localhost:5000"


@pytest.mark.parametrize(
    "target", ["http://registry.example/x", "http://127.0.0.1.nip.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd",
               "http://me:pw@127.0.0.1:1/x", "//registry.example/x", "http://[::1", ""]
)  # fmt: skip
def test_s29_no_reply_leads_to_plain_http_elsewhere(
    server: HostileServer, registry: ClientRegistry, target: str
) -> None:
    server.answer = lambda asked: Answer(307, headers={"Location": target})
    error = refusal(lambda: registry.resolve(REF))
    assert error.reason == "network"


def test_s29_https_never_leads_to_http() -> None:
    import httpx

    from obm_registry.client.origin import follow

    with pytest.raises(RegistryError):
        follow(httpx.URL("https://registry.example/v2/"), "http://127.0.0.1:9/x")
    assert str(follow(httpx.URL("https://registry.example/v2/a"), "../b")) == "https://registry.example/b"


# --- S-30: manifests and blobs that are something else ----------------------------------------------------------------


def test_s30_a_manifest_with_other_bytes_is_refused(server: HostileServer, registry: ClientRegistry) -> None:
    body = expert_manifest(describe(b"x", INDEX_TYPE))
    server.answer = lambda asked: manifest_answer(body)
    error = refusal(lambda: registry.resolve(f"acme/tiny@sha256:{'0' * 64}"))
    assert (error.reason, error.exit_code) == ("blob_digest", 4)
    server.answer = lambda asked: manifest_answer(body, **{"Docker-Content-Digest": f"sha256:{'0' * 64}"})
    assert refusal(lambda: registry.resolve(REF)).reason == "blob_digest"


@pytest.mark.parametrize(
    ("size", "sent"), [(10, b"x" * 9), (10, b"x" * 11), (10, b"y" * 10), (10, b""), (1 << 50, b"x" * 10)]
)
def test_s30_a_blob_of_other_bytes_or_size_is_refused(
    server: HostileServer, registry: ClientRegistry, tmp_path: Path, size: int, sent: bytes
) -> None:
    layer = Descriptor(media_type=INDEX_TYPE, digest=digest_of(b"x" * 10), size=size)
    serve_expert(server, expert_manifest(layer), lambda asked: Answer(body=sent))
    error = refusal(lambda: registry.pull(REF, tmp_path / "out.obm"))
    assert error.reason in ("blob_damaged", "network", "io", "disk_full", "limit_exceeded")
    assert not (tmp_path / "out.obm").exists()


def test_s30_right_blobs_that_are_no_expert_are_refused(
    server: HostileServer, registry: ClientRegistry, tmp_path: Path
) -> None:
    data = b"no expert at all" * 10
    serve_expert(server, expert_manifest(describe(data, INDEX_TYPE)), lambda asked: Answer(body=data))
    assert refusal(lambda: registry.pull(REF, tmp_path / "out.obm")).exit_code == 4
    assert not (tmp_path / "out.obm").exists()
    assert Cache(tmp_path / "cache").entries() == []


# --- S-31: what does not end ------------------------------------------------------------------


def endless(served: list[int]) -> Iterator[bytes]:
    while True:
        served[0] += 65_536
        yield b"x" * 65_536


def test_s31_an_endless_manifest_is_cut_off(server: HostileServer, registry: ClientRegistry) -> None:
    served = [0]
    server.answer = lambda asked: Answer(body=endless(served), headers={"Content-Type": IMAGE_MANIFEST})
    assert refusal(lambda: registry.resolve(REF)).reason == "network"
    assert served[0] < HASTE.attempts * (64 << 20)


def test_s31_an_endless_blob_is_cut_off(server: HostileServer, registry: ClientRegistry, tmp_path: Path) -> None:
    served = [0]
    layer = Descriptor(media_type=INDEX_TYPE, digest=digest_of(b"x" * 10), size=10)
    serve_expert(server, expert_manifest(layer), lambda asked: Answer(body=endless(served)))
    assert refusal(lambda: registry.pull(REF, tmp_path / "out.obm")).reason in ("network", "blob_damaged")
    assert served[0] < HASTE.attempts * (64 << 20)
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.part")) <= 10


def test_s31_an_endless_error_is_cut_off(server: HostileServer, registry: ClientRegistry) -> None:
    served = [0]
    server.answer = lambda asked: Answer(403, body=endless(served))
    assert refusal(lambda: registry.resolve(REF)).exit_code == 6
    assert served[0] < 64 << 20


def test_s31_redirects_end(server: HostileServer, registry: ClientRegistry) -> None:
    count = itertools.count()
    server.answer = lambda asked: Answer(302, headers={"Location": f"/hop{next(count)}"})
    assert refusal(lambda: registry.resolve(REF)).reason == "network"
    assert len(server.asked) <= 6 * HASTE.attempts


@pytest.mark.parametrize("link", ["</v2/acme/tiny/tags/list>", "</v2/_catalog?n=1>"])
def test_s31_pages_in_a_circle_end(server: HostileServer, registry: ClientRegistry, link: str) -> None:
    header = {"Link": f'{link}; rel="next"'}
    server.answer = lambda asked: Answer(body=b'{"repositories":[],"tags":[]}', headers=header)
    assert refusal(lambda: registry.experts("acme/tiny")).reason == "network"
    assert len(server.asked) < 10


def test_s31_pages_never_lead_elsewhere(server: HostileServer, other: HostileServer, registry: ClientRegistry) -> None:
    other.answer = lambda asked: Answer(body=b'{"tags":[]}')
    header = {"Link": f'<http://{other.address}/x>; rel="next"'}
    server.answer = lambda asked: Answer(body=b'{"tags":[]}', headers=header)
    assert refusal(lambda: registry.experts("acme/tiny")).reason == "network"
    assert other.asked == []


def test_s31_pages_without_end_end(
    server: HostileServer, registry: ClientRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from obm_registry.client import remote

    monkeypatch.setattr(remote, "MAX_PAGES", 20)
    count = itertools.count()
    server.answer = lambda asked: Answer(
        body=b'{"tags":["a"]}', headers={"Link": f'</v2/acme/tiny/tags/list?last={next(count)}>; rel="next"'}
    )
    assert refusal(lambda: registry.experts("acme/tiny")).reason == "network"
    assert len(server.asked) == 20


def test_s31_a_compressed_reply_is_refused(server: HostileServer, registry: ClientRegistry) -> None:
    bomb = gzip.compress(b"\0" * (64 << 20), 1)
    server.answer = lambda asked: Answer(
        body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": IMAGE_MANIFEST}
    )
    error = refusal(lambda: registry.resolve(REF))
    assert (error.reason, error.got) == ("network", "gzip")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"schemaVersion":2,"schemaVersion":2}',
        b'{"schemaVersion":NaN}',
        b"9" * 5000,
    ],
)
def test_malformed_manifests_are_refused(server: HostileServer, registry: ClientRegistry, body: bytes) -> None:
    server.answer = lambda asked: manifest_answer(body)
    assert refusal(lambda: registry.resolve(REF)).exit_code == 4


# --- S-32: the file of credentials ------------------------------------------------------------------


def test_s32_credentials_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "credentials.json"
    file, origin = CredentialFile(path), parse_origin("registry.example")
    file.put(origin, Credential(username="me", secret=SECRET))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = file.get(origin)
    assert found is not None
    assert found.secret == SECRET
    for near in ("registry.example:444", "other.example", "sub.registry.example"):
        assert file.get(parse_origin(near)) is None
    assert file.get(Origin("http", "registry.example", 443)) is None
    path.chmod(0o644)
    error = refusal(lambda: file.get(origin))
    assert "chmod 600" in str(error.hint)
    assert SECRET not in everything(error)
    path.chmod(0o600)
    file.put(origin, None)
    assert SECRET not in path.read_text()
    path.write_text('{"secret": "' + SECRET)
    assert SECRET not in everything(refusal(lambda: file.get(origin)))


def test_login_takes_the_token_from_a_pipe_or_file_and_shows_it_nowhere(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    (tmp_path / "token").write_text(f"{SECRET}\n")
    server.answer = lambda asked: basic_guard(asked) or Answer(200)
    login = ["login", server.address, "--username", "me", "--token-file", str(tmp_path / "token")]
    assert main(login) == 0
    assert server.asked[-1].path == "/v2/"
    (tmp_path / "token").write_text("wrong")
    assert main(login) == 6
    file = CredentialFile(tmp_path / "home" / "credentials.json")
    kept = file.get(parse_origin(server.address))
    assert kept == Credential(username="me", secret=SECRET)
    assert main(["login", server.address, "--logout"]) == 0
    assert file.get(parse_origin(server.address)) is None
    assert SECRET not in "".join(capfd.readouterr())


def test_a_token_file_is_for_the_registry_of_the_environment_alone(
    server: HostileServer, other: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OBM_REGISTRY", f"http://{server.address}")
    monkeypatch.setenv("OBM_TOKEN_FILE", str(tmp_path / "token"))
    (tmp_path / "token").write_text(SECRET)
    for one in (server, other):
        one.answer = lambda asked: Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    assert main(["log", REF]) == 6
    assert main(["log", f"{other.address}/{REF}"]) == 6
    assert len(server.authorizations()) == 1
    assert not other.authorizations()


def test_an_expired_token_is_asked_anew_in_the_middle(server: HostileServer, tmp_path: Path) -> None:
    store_secret(server, tmp_path)
    issued = itertools.count(1)
    current = [""]

    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            current[0] = f"t{next(issued)}"
            return Answer(body=json.dumps({"access_token": current[0]}).encode())
        if asked.headers.get("authorization") != f"Bearer {current[0]}" or not current[0]:
            return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="/token",service="x"'})
        return Answer(200, body=asked.body)

    server.answer = answer
    origin = parse_origin(server.address)
    with Session(origin, CredentialFile(tmp_path / "home" / "credentials.json").get, HASTE) as session:
        request = Request(
            method="PUT",
            url=origin.url("/x"),
            headers={"Content-Length": "6"},
            body=lambda: iter([b"abc", b"def"]),
            scopes=("repository:a/b:pull,push", "repository:c/d:pull"),
        )
        assert session.exchange(request, expect=(200,)).body == b"abcdef"
        current[0] = "revoked meanwhile"
        assert session.exchange(request, expect=(200,)).body == b"abcdef"
    tokens = [asked.path for asked in server.asked if asked.path.startswith("/token")]
    assert len(tokens) == 2
    assert all(path.count("scope=") == 2 and "service=x" in path for path in tokens)
