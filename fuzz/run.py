"""Fuzz one target with atheris for as long as asked: `python -m fuzz.run TARGET [libFuzzer options]`.

A finding ends the run with its input in `build/fuzz`; make it a test, then mend it. Guided by coverage; half of the
inputs come from `mutator`, half from libFuzzer. Arithmetic is the NumPy one, whose coverage can be seen, unless
OBM_KERNELS says otherwise.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import atheris

os.environ.setdefault("OBM_KERNELS", "reference")
with atheris.instrument_imports(include=["obm_format", "obm_registry"]):
    from fuzz.targets import TARGETS, guarded, seeds

from fuzz.mutator import MUTATORS

WORK = Path("build/fuzz")


def main() -> None:
    """Set libFuzzer up for the target named first, and run it; it ends the process."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m fuzz.run {'|'.join(TARGETS)} [libFuzzer options]")
    name = sys.argv[1]
    corpus = WORK / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (corpus / f"seed-{number:03}").write_bytes(data)
    options = [f"-artifact_prefix={WORK}/{name}-", "-rss_limit_mb=4096", "-timeout=20", "-print_final_stats=1"]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = MUTATORS[name](data, rng) if rng.random() < 0.5 else atheris.Mutate(data, max_size)
        return bytes(changed[:max_size])

    atheris.Setup(
        [sys.argv[0], *options, *sys.argv[2:], str(corpus)],
        lambda data: guarded(TARGETS[name], data),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
