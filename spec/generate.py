"""Writes the conformance vectors of obm-1.md, or checks that those on disk are what it would write.

`generate.py [OUT]` writes `base/`, `valid/` and `invalid/` (default: `vectors/` beside this file) and removes
vectors that are no longer made; `generate.py --check [OUT]` only compares, and exits with 1 where they differ.
The layout is told in `vectors/README.md`. Standard library only; never imports `obm_format`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vector_writer import Json, artifact_id, checkpoint_bytes, dumps, file_bytes, sha
from vectors_invalid import invalid_vectors
from vectors_spoilt import Invalid
from vectors_valid import BACKBONES, Valid, valid_vectors

HERE = Path(__file__).resolve().parent / "vectors"


def describe_valid(vector: Valid, file: bytes) -> Json:
    """The JSON beside a valid vector."""
    tensors = {}
    for tensor in vector.draft.tensors:
        digests = [None if part is None else sha(part).hex() for part in (tensor.values, tensor.rebuilt)]
        tensors[tensor.record["name"]] = {
            "dtype": tensor.record["dtype"],
            "shape": tensor.record["shape"],
            "f32_sha256": digests[0],
            "out_sha256": digests[1],
        }
    described: Json = {"base": f"base/{vector.base}.safetensors", "clause": vector.clause, "id": artifact_id(file)}
    described |= {"needs": vector.needs, "tensors": tensors}
    return described | _refs(vector.refs)


def describe_invalid(vector: Invalid) -> Json:
    """The JSON beside an invalid vector."""
    base = f"base/{vector.base}.safetensors" if vector.base else None
    described: Json = {"base": base, "clause": vector.clause, "reason": vector.reason, "stage": vector.stage}
    return described | _refs(vector.refs)


def _refs(names: Sequence[str]) -> Json:
    return {"refs": [f"valid/{name}.obm" for name in names]} if names else {}


def pretty(described: Json) -> bytes:
    """One key per line at the top, one tensor per line below it."""
    lines = []
    for key, value in sorted(described.items()):
        text = dumps(value)
        if key == "tensors" and value:
            text = "{\n" + ",\n".join(f'    "{name}": {dumps(entry)}' for name, entry in value.items()) + "\n  }"
        lines.append(f'  "{key}": {text}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def all_files() -> dict[str, bytes]:
    """Every generated file by its path below the vectors' folder."""
    files = {f"base/{name}.safetensors": checkpoint_bytes(tensors) for name, tensors in BACKBONES.items()}
    for valid in valid_vectors():
        content = file_bytes(valid.draft)
        files[f"valid/{valid.name}.obm"] = content
        files[f"valid/{valid.name}.json"] = pretty(describe_valid(valid, content))
    for invalid in invalid_vectors():
        files[f"invalid/{invalid.name}.obm"] = invalid.file
        files[f"invalid/{invalid.name}.json"] = pretty(describe_invalid(invalid))
        if invalid.checkpoint is not None:
            files[f"base/{invalid.base}.safetensors"] = invalid.checkpoint
    return files


def files_on_disk(out: Path) -> dict[str, bytes]:
    """What lies in the folders that this module owns."""
    folders = [out / name for name in ("base", "valid", "invalid")]
    paths = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def main(arguments: list[str]) -> int:
    """Write or compare; 0 if the folder holds exactly the vectors afterwards."""
    check = "--check" in arguments
    out = next((Path(a) for a in arguments if a != "--check"), HERE)
    made, found = all_files(), files_on_disk(out)
    differing = sorted(name for name in {*made, *found} if made.get(name) != found.get(name))
    for name in differing:
        sys.stderr.write(f"{name}\n")
        if check:
            continue
        path = out / name
        if name in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made[name])
        else:
            path.unlink()
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
