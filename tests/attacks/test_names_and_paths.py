"""What a file says never becomes a path, code or a template; and files that pretend to be routers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from container_files import (
    add_all,
    dumps,
    manifest_of,
    manifest_tree,
    record,
    sample,
    tree_of,
    with_manifest,
)

from obm_format.checkpoint import is_side_file
from obm_format.container import Container, ContainerWriter
from obm_format.errors import FormatError
from obm_format.model import Attachment, DType, Mode, RawParams
from obm_format.route import load_router

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"


def test_names_of_devices_are_only_names(tmp_path: Path) -> None:
    names = ("AUX", "CON", "NUL.txt", "com1", "prn/lpt1")
    tensors = tuple(
        record(name, RawParams(value_dtype=DType.U8), shape=(1,), dtype=DType.U8, mode=Mode.ADDED) for name in names
    )
    with ContainerWriter(tmp_path / "x.obm") as writer:
        add_all(writer, tensors)
        writer.attach("CON.txt", b"hi")
        writer.commit(manifest_of(tensors, attachments=(Attachment(name="CON.txt", nbytes=2),)))
    with Container.open(tmp_path / "x.obm") as container:
        assert container.verify() == []
        assert container.attachment("CON.txt") == b"hi"
    assert [path.name for path in tmp_path.iterdir()] == ["x.obm"]
    # and of attachments only known names ever come to lie in a folder
    assert not any(map(is_side_file, ("CON.txt", "model.safetensors.index.json", "run.json", "../a.json", "CON.json")))


def test_rank_of_ten_thousand_refused() -> None:
    tree = manifest_tree(sample())
    tree["tensors"][0]["shape"] = [1] * 10_000  # type: ignore[index]
    table = {key: value for key, value in tree_of(sample()).items() if key != "__metadata__"}
    with pytest.raises(FormatError) as caught:
        Container.open(with_manifest(dumps(tree), table))
    assert caught.value.reason == "limit_exceeded"


@pytest.mark.parametrize(
    "name", ["dense-safetensors", "pickle", "zip", "router-f16", "router-weight-turned", "alpha-nan"]
)
def test_router_is_read_by_the_strict_reader(name: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the reason is compared with that of a plain open
        load_router(VECTORS / "invalid" / f"{name}.obm")
    try:
        Container.open(VECTORS / "invalid" / f"{name}.obm").close()
        expected = "usage"  # sound up to its parts, and no router
    except FormatError as error:
        expected = error.reason
    assert caught.value.reason == expected  # type: ignore[attr-defined]


TEMPLATE = b"{{ cycler.__init__.__globals__.os.system('touch pwned') }}{% for i in range(10**9) %}{% endfor %}"

READ_TEMPLATE = """
import sys
from obm_format import open_expert
with open_expert(sys.argv[1]) as expert:
    assert expert.verify("deep") == []
    sys.stdout.buffer.write(expert.attachment("chat_template.jinja"))
assert "jinja2" not in sys.modules
"""


def test_template_is_opaque(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.obm") as writer:
        writer.attach("chat_template.jinja", TEMPLATE)
        attachments = (Attachment(name="chat_template.jinja", nbytes=len(TEMPLATE)),)
        writer.commit(manifest_of((), attachments=attachments))
    command = [sys.executable, "-c", READ_TEMPLATE, str(tmp_path / "x.obm")]
    done = subprocess.run(
        command, capture_output=True, check=False, timeout=300, cwd=Path(__file__).resolve().parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == TEMPLATE
    assert [path.name for path in tmp_path.iterdir()] == ["x.obm"]
