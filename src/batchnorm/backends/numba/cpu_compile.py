"""Machine code for a kernel's specialisation: from disk, or compiled by Numba and kept there.

Why not `cache=True`: Numba's cache needs all of Numba loaded and started (0.6 s before the first kernel runs,
against 0.05 s for llvmlite alone); it notices a change in the file of the kernel but not in those it calls; and
when processes that start together compile different specialisations of one function, one can overwrite the code
that the other's index points to. Here a file is one specialisation, its name a digest of everything that the
code depends on, and it appears whole or not at all.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from .cpu_args import Spec
from .threads import Kernel

_lock = threading.Lock()  # LLVM's engine is one object that all kernels are added to


@functools.cache
def _machine() -> tuple[str, str]:
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


_SHARED = ("args", "compile", "intrinsics", "activations", "channel", "plan")


@functools.cache
def _origin(module: str) -> str:
    """Everything that a module's machine code depends on besides kernel and specialisation."""
    digest = hashlib.sha256()
    for part in (*_machine(), version("numba"), version("llvmlite"), sys.platform, sys.version):
        digest.update(part.encode())
    for name in sorted({*_SHARED, module}):
        digest.update(Path(__file__).with_name(f"cpu_{name}.py").read_bytes())
    return digest.hexdigest()


@functools.cache
def cache_directory() -> Path | None:
    """Where machine code is kept: `BATCHNORM_CACHE_DIR`, or the user's cache; None where neither can be written."""
    chosen = os.environ.get("BATCHNORM_CACHE_DIR")
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = Path(chosen) if chosen else home / "batchnorm"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return directory


@functools.cache
def _engine() -> tuple[Any, Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = _machine()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine), machine


@contextlib.contextmanager
def _unoptimised() -> Iterator[None]:
    """Keeps Numba from optimising: it works on each function before inlining it, when nothing is known of what may
    overlap, and the checks it leaves there keep LLVM from knowing it later."""
    import numba

    config: Any = numba.core.config
    level = config.OPT
    config.OPT = type(level)(0)
    try:
        yield
    finally:
        config.OPT = level


def _build(module: str, kernel: str, spec: Spec, symbol: str) -> bytes:
    """Numba as far as optimised LLVM code, then an object file."""
    from numba import cfunc, types

    from .cpu_intrinsics import FLAGS, Arguments

    function = getattr(importlib.import_module(f".cpu_{module}", __package__), kernel)
    with _unoptimised():
        compiled = cfunc(types.void(Arguments(spec)), forceinline=True, **FLAGS)(function)
        code = compiled.inspect_llvm().replace(compiled.native_name, symbol)
    optimised = llvm.parse_assembly(code)
    machine = _engine()[1]
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(optimised, passes)
    # What Numba puts around a function that may raise calls into Numba, which a later process does not load;
    # kernels raise nothing, and once inlined LLVM sees that.
    if "numba_gil_ensure" in str(optimised):
        raise RuntimeError(f"kernel {symbol} may raise, so it cannot be kept: look for a range() with a variable step")
    return machine.emit_object(optimised)


def _read(path: Path | None) -> bytes | None:
    """The code in a file, or None: also where it is not what was written, which LLVM would end the process over."""
    try:
        data = path.read_bytes() if path else b""
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _keep(path: Path | None, code: bytes) -> None:
    """Writes beside the place and moves there, so that no other process sees a part. A full disk is no error."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(name, path)
        except OSError:
            os.unlink(name)


@functools.cache
def get(module: str, kernel: str, spec: Spec) -> tuple[Kernel, int]:
    """The kernel as a ctypes function of one address, and where its code lies."""
    parts = (module, kernel, *map(str, spec))
    symbol = "batchnorm_" + "_".join(parts)
    name = hashlib.sha256("/".join((_origin(module), *parts)).encode()).hexdigest()[:24]
    directory = cache_directory()
    path = directory / f"{module}-{kernel}-{name}.o" if directory else None
    with _lock:
        code = _read(path)
        if code is None:
            code = _build(module, kernel, spec, symbol)
            _keep(path, code)
        engine = _engine()[0]
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        address = engine.get_function_address(symbol)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address
