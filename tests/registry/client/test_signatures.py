"""Signatures: made, kept beside the file, pushed and pulled along, and believed only from a trusted key."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_parts import open_there
from registry_files import write_expert

from obm_cli.main import main
from obm_format.errors import ObmError
from obm_registry.embedded import open_embedded
from obm_registry.interface import ExpertRegistry
from obm_registry.manifest.signature import (
    TrustedKey,
    new_key,
    parse_signature,
    read_signatures,
    read_trusted,
    sign,
    signature_file,
    signers,
)

REF = "acme/tiny:chat"
ID = "obm1-sha256:" + "ab" * 32


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public one lies beside it."""
    new_key(tmp_path / "alice.key")
    return tmp_path / "alice.key"


def trusted(key: Path) -> list[TrustedKey]:
    return read_trusted(key.with_name(key.name + ".pub"))


def test_a_signature_holds_for_its_id_and_key_alone(key: Path, tmp_path: Path) -> None:
    made = sign(ID, key)
    assert parse_signature(made.encode()) == made
    assert sign(ID, key) == made
    assert signers(ID, [made.encode()], trusted(key)) == ["alice.key.pub"]
    other = "obm1-sha256:" + "cd" * 32
    assert signers(other, [made.encode()], trusted(key)) == []
    assert signers(other, [made.encode().replace(b"ab" * 32, b"cd" * 32)], trusted(key)) == []
    new_key(tmp_path / "mallory.key")
    forged = sign(ID, tmp_path / "mallory.key")
    assert signers(ID, [forged.encode()], trusted(key)) == []
    as_alice = forged.encode().replace(forged.key.encode(), made.key.encode())
    assert signers(ID, [as_alice, b"nonsense", b"{}"], trusted(key)) == []
    assert signers(ID, [as_alice, made.encode()], trusted(key)) == ["alice.key.pub"]


def test_it_is_plain_ed25519(key: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    made = sign(ID, key)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(made.key.partition(":")[2]))
    public.verify(made.value, f"obm.signature/1\n{ID}\n".encode())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "obm.signature/2"},
        {"id": "sha256:" + "ab" * 32},
        {"key": "ed25519:" + "AB" * 32},
        {"key": 5},
        {"signature": "00"},
        {"more": 1},
    ],
)
def test_a_malformed_signature_is_refused(key: Path, change: dict[str, object]) -> None:
    row = json.loads(sign(ID, key).encode()) | change
    with pytest.raises(ObmError) as caught:
        parse_signature(json.dumps(row).encode())
    assert (caught.value.reason, caught.value.exit_code) == ("bad_signature", 4)


def test_a_key_is_private_and_never_overwritten(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(ObmError) as caught:
        new_key(key)
    assert caught.value.reason == "exists"
    key.chmod(0o644)
    with pytest.raises(ObmError, match="others can read"):
        sign(ID, key)


def test_a_list_of_keys_has_names_and_comments(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# ours\n\ned25519:{'ab' * 32} alice at acme # since May\ned25519:{'cd' * 32}\n")
    assert [row.name for row in read_trusted(tmp_path / "keys")] == ["alice at acme", "keys"]
    (tmp_path / "keys").write_text("ssh-ed25519 AAAA\n")
    with pytest.raises(ObmError) as caught:
        read_trusted(tmp_path / "keys")
    assert caught.value.exit_code == 2


@pytest.fixture(params=["embedded", "stock", "file"])
def there(request: pytest.FixtureRequest, tmp_path: Path, base: Path) -> Iterator[ExpertRegistry]:
    """A registry of each kind with the backbone in it."""
    if request.param == "embedded":
        registry: ExpertRegistry = open_embedded(tmp_path / "home", actor="tester")
    else:
        stock = request.param == "stock"
        registry = open_there(request.getfixturevalue("stock") if stock else f"file://{tmp_path / 'layout'}", tmp_path)
    with registry:
        registry.add_backbone(base, f"acme/{request.param}")
        yield registry


def test_signatures_go_and_come_along(
    there: ExpertRegistry, request: pytest.FixtureRequest, expert: Path, key: Path, tmp_path: Path
) -> None:
    ref = f"acme/{request.node.callspec.params['there']}:chat"
    first = there.push(expert, ref)
    assert there.signatures(ref) == []
    there.pull(ref, tmp_path / "bare.obm")
    assert not signature_file(tmp_path / "bare.obm").exists()
    made = sign(first.id, key)
    stray = sign(ID, key)
    signature_file(expert).write_bytes(made.encode() + b"\n" + stray.encode() + b"\nnonsense\n")
    there.push(expert, ref)
    new_key(tmp_path / "bob.key")
    second = sign(first.id, tmp_path / "bob.key")
    there.add_signature(ref, second.encode())
    there.add_signature(ref, second.encode())
    assert there.signatures(ref) == sorted([made.encode(), second.encode()])
    there.pull(ref, tmp_path / "out.obm")
    assert signers(first.id, read_signatures(tmp_path / "out.obm"), trusted(key)) == ["alice.key.pub"]
    with pytest.raises(ObmError) as caught:
        there.add_signature(ref, stray.encode())
    assert caught.value.reason == "bad_signature"
    assert len(there.experts(ref.partition(":")[0])) == 1


def test_commands(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    write_expert(tmp_path / "x.obm", base)
    assert main(["sign", "--new-key", "alice.key"]) == 0
    assert main(["verify", "x.obm", "--key", "alice.key.pub"]) == 4
    assert main(["sign", "x.obm", "--key", "alice.key"]) == 0
    assert main(["sign", "x.obm", "--key", "alice.key"]) == 0
    assert len(read_signatures(tmp_path / "x.obm")) == 1
    assert main(["verify", "x.obm", "--signature"]) == 3  # nobody is trusted yet
    public = Path("alice.key.pub").read_text().strip()
    Path("home").mkdir()
    Path("home/trusted_keys").write_text(f"{public} alice\n")
    capfd.readouterr()
    assert main(["verify", "x.obm", "--signature", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["signed_by"] == ["alice"]
    assert main(["backbone", "add", str(base), "acme/tiny"]) == 0
    assert main(["push", "x.obm", REF]) == 0
    assert main(["verify", REF, "--signature"]) == 0
    assert main(["sign", "--new-key", "bob.key"]) == 0
    assert main(["verify", REF, "--key", "bob.key.pub"]) == 4
    assert main(["sign", REF, "--key", "bob.key"]) == 0
    assert main(["verify", REF, "--key", "bob.key.pub"]) == 0
    data = bytearray(Path("x.obm").read_bytes())
    data[-1] ^= 1
    Path("x.obm").write_bytes(data)
    assert main(["verify", "x.obm", "--signature"]) == 4
    assert main(["sign", "x.obm", "--key", "alice.key"]) == 4
    for wrong in (["sign"], ["sign", "x.obm"], ["sign", "x.obm", "--key", "alice.key", "--new-key", "k"]):
        assert main(wrong) == 2
    assert main(["sign", "x.obm", "--key", "x.obm"]) in (2, 4)
    capfd.readouterr()
