"""Machine code of compiled loops on disk: read without numba, written from what numba compiled.

One file per loop and signature: a JSON line that says how to call it, and an object file of LLVM's. A file is known by
the sources of the loops, the versions of numba and llvmlite, and the processor; it is believed only if it belongs to
this user or to root, nobody else may write it, and its digest is right. numba's own files cannot be run without numba:
they hold calls into Python and into it. Source: ADR 0043.
"""

# ruff: noqa: ANN401 - LLVM's and numba's objects are untyped
from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np

from obm_format.kernels.cpu_processor import llvm, processor_features, processor_name

Signature = tuple[object, ...]

SUFFIX = ".machine"
_BY_ROWS, _BY_COLUMNS = 0x501, 0x502  # flags of an array that numba compiles for: contiguous, aligned, writeable
_OK = (0, -2)  # what a loop returns that did not fail; -2: it returned None
_C_TYPES = {
    "ptr": ctypes.c_void_p,
    "i64": ctypes.c_int64,
    "i32": ctypes.c_int32,
    "i16": ctypes.c_int16,
    "i8": ctypes.c_int8,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
_LIBC = {"malloc", "free", "memset", "memcpy", "memmove"}  # what machine code may call

# numba's arrays are counted; those that a loop makes for itself come from malloc, with numba's head before the data:
# count, destructor, its argument, address, size, allocator
_ARRAYS = """
declare ptr @malloc(i64)
declare void @free(ptr)
define ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {
  %step = zext i32 %align to i64
  %room = add i64 %step, 48
  %all = add i64 %size, %room
  %head = call ptr @malloc(i64 %all)
  %failed = icmp eq ptr %head, null
  br i1 %failed, label %out, label %fill
fill:
  %address = ptrtoint ptr %head to i64
  %last = add i64 %address, %room
  %over = urem i64 %last, %step
  %start = sub i64 %last, %over
  %data = inttoptr i64 %start to ptr
  store i64 1, ptr %head
  %destructor = getelementptr i64, ptr %head, i64 1
  store i64 0, ptr %destructor
  %argument = getelementptr i64, ptr %head, i64 2
  store i64 0, ptr %argument
  %where = getelementptr i64, ptr %head, i64 3
  store ptr %data, ptr %where
  %bytes = getelementptr i64, ptr %head, i64 4
  store i64 %size, ptr %bytes
  %allocator = getelementptr i64, ptr %head, i64 5
  store i64 0, ptr %allocator
  br label %out
out:
  ret ptr %head
}
define void @NRT_MemInfo_call_dtor(ptr %head) {
  call void @free(ptr %head)
  ret void
}
"""


@dataclass(frozen=True, slots=True)
class Code:
    """A loop, ready to run.

    Args:
        function: takes an address for results, one for an exception, and the flat arguments; releases the GIL.
        results: int64 that it returns.
        engine: keeps the machine code in memory.
    """

    function: Callable[..., int]
    results: int
    engine: object

    def __call__(self, flat: list[Any]) -> Any:
        """Run it with what `signature_of` gave."""
        out, error = (ctypes.c_int64 * max(1, self.results))(), ctypes.c_void_p()
        if self.function(out, ctypes.byref(error), *flat) not in _OK:
            raise MemoryError("no memory for the scratch of a compiled loop")
        return None if not self.results else out[0] if self.results == 1 else tuple(out)


class Images:
    """The files of one version of all loops on one kind of processor.

    Args:
        folder: where they lie; made when the first is written.
        known_by: digest of all that they depend on.
        sources: digest of the sources of the loops.
    """

    def __init__(self, folder: Path, known_by: str, sources: str) -> None:
        self.sources = sources
        self._folder, self._known_by = folder, known_by

    @classmethod
    def for_package(cls, package: Path, sources: str) -> Self:
        """Those of the loops in a folder of sources.

        Raises:
            ImportError: numba or llvmlite is not installed.
        """
        versions = [_version_digest(name) for name in ("numba", "llvmlite")]
        facts = (sources, *versions, processor_name(), processor_features())
        known_by = sha256("\0".join(facts).encode()).hexdigest()
        return cls(_home(package), known_by, sources)

    @property
    def are_there(self) -> bool:
        """Whether any loop has been compiled and kept."""
        return any(self._folder.glob(f"*{self._known_by[:16]}{SUFFIX}"))

    def load(self, function: Callable[..., Any], signature: Signature) -> Code | None:
        """The machine code of a loop, or None where there is none that can be believed."""
        path = self._path(function, signature)
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
                    return None
                head, _, machine = file.read().partition(b"\n")
            said = json.loads(head)
        except (OSError, ValueError):
            return None
        if said.pop("sha256", None) != _digest(said, machine):
            return None
        return _linked(machine, said["symbol"], said["takes"], said["results"])

    def keep(self, function: Callable[..., Any], signature: Signature, compiled: Any) -> Code | None:
        """Write the machine code of a loop that numba has compiled, and load it.

        Args:
            function: the loop.
            signature: of the arguments that it was compiled for.
            compiled: numba's result for them.

        Returns:
            what `load` gives from now on; None where the loop needs numba when it runs, or there is no place for it.
        """
        try:
            made = _machine_code(compiled)
        except AttributeError:  # a version of numba or llvmlite that has this elsewhere
            made = None
        if made is None:
            return None
        said, machine = made
        head = json.dumps({**said, "sha256": _digest(said, machine)}).encode()
        path = self._path(function, signature)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            spare = path.with_suffix(f".{secrets.token_hex(4)}")
            descriptor = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(head + b"\n" + machine)
            spare.replace(path)
        return self.load(function, signature)

    def _path(self, function: Callable[..., Any], signature: Signature) -> Path:
        module = function.__module__.rpartition(".")[2]
        digest = sha256(repr(signature).encode()).hexdigest()[:12]
        return self._folder / f"{module}.{function.__name__}-{digest}-{self._known_by[:16]}{SUFFIX}"


def signature_of(args: tuple[Any, ...]) -> tuple[Signature, list[Any]]:
    """What numba would compile for these arguments, and all of them in the order in which machine code takes them.

    Returns:
        (signature, arguments): whole numbers, floats, and for an array owner, parent, size, item size, address, shape
        and strides. The arrays must outlive the arguments.
    """
    signature: list[object] = []
    flat: list[Any] = []
    _flatten(args, signature, flat)
    return tuple(signature), flat


def _flatten(args: tuple[Any, ...], signature: list[object], flat: list[Any]) -> None:
    for arg in args:
        kind = type(arg)
        if kind is int or kind is bool or kind is float:
            signature.append(kind.__name__)
            flat.append(arg)
        elif kind is np.ndarray:
            layout = arg.flags.num
            signature += (arg.dtype.str, arg.ndim, layout & (_BY_ROWS if layout & 1 else _BY_COLUMNS))
            flat += (None, None, arg.size, arg.itemsize, arg.__array_interface__["data"][0], *arg.shape, *arg.strides)
        elif isinstance(arg, tuple):
            signature.append(kind.__name__)
            _flatten(arg, signature, flat)
            signature.append(")")
        elif isinstance(arg, np.generic):
            signature.append(arg.dtype.str)
            flat.append(arg.item())
        else:
            raise TypeError(f"compiled loops take no {kind.__name__}")


def _home(package: Path) -> Path:
    """Where numba would keep its files, or the user's cache."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    beside = package / "__pycache__"
    if os.access(beside if beside.exists() else package, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "obm" / "kernels"


def _version_digest(package: str) -> str:
    """Digest of the file in which a package says its version, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return sha256((Path(spec.origin).parent / "_version.py").read_bytes()).hexdigest()


def _target() -> Any:
    binding = llvm()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=processor_name(),
        features=processor_features(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


def _linked(machine: bytes, symbol: str, takes: list[str], results: int) -> Code:
    binding = llvm()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target())
    engine.add_object_file(binding.ObjectFileRef.from_data(machine))
    engine.finalize_object()
    kinds = [_C_TYPES[kind] for kind in ("ptr", "ptr", *takes)]  # for results and an exception first
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(engine.get_function_address(symbol))
    return Code(function, results, engine)


def _machine_code(compiled: Any) -> tuple[dict[str, Any], bytes] | None:
    """How to call what numba compiled, and an object file of it that needs nothing but libc."""
    results = _results(compiled.signature.return_type)
    symbol = compiled.fndesc.llvm_func_name
    binding = llvm()
    # numba keeps it for loops that call this one: optimised, with its wrappers for Python beside it
    module = binding.parse_bitcode(compiled.library._get_module_for_linking().as_bitcode())
    if any(function.name in ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_call_dtor") for function in module.functions):
        module.link_in(binding.parse_assembly(_ARRAYS))
    for part in (*module.functions, *module.global_variables):
        if not part.is_declaration:
            part.linkage = "external" if part.name == symbol else "internal"
    target = _target()
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(target, binding.create_pipeline_tuning_options(speed_level=0)))
    outside = {part.name for part in (*module.functions, *module.global_variables) if part.is_declaration}
    takes = [str(argument.type) for argument in module.get_function(symbol).arguments][2:]
    if results is None or not all(name.startswith("llvm.") or name in _LIBC for name in outside):
        return None
    if not all(kind in _C_TYPES for kind in takes):
        return None
    return {"symbol": symbol, "takes": takes, "results": results}, target.emit_object(module)


def _results(returned: Any) -> int | None:
    """How many int64 numba's type of a result is, or None where it is something else."""
    names = [str(one) for one in getattr(returned, "types", (returned,))]
    if names == ["none"]:
        return 0
    return len(names) if all(name == "int64" for name in names) else None


def _digest(said: dict[str, Any], machine: bytes) -> str:
    return sha256(json.dumps(said, sort_keys=True).encode() + b"\n" + machine).hexdigest()
