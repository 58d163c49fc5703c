"""Compile every kernel that the launcher can ask for ahead of time, without a device, and show what it needs.

    python -m batchnorm.backends.triton.compile              every specialisation, for every target: takes hours
    python -m batchnorm.backends.triton.compile --heaviest   of every tile those that need the most registers
    python -m batchnorm.backends.triton.compile --sample     every kernel once for planes and once for rows

Status 1 if one does not compile, spills registers to memory, or needs more than the smallest card of its target has.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from batchnorm.backends.triton.calls import Call, every_call, heaviest, sample
from batchnorm.backends.triton.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that a program has without asking for more, the least of any card of these targets, and
# registers that a thread can have.
SHARED, REGISTERS = 48 * 1024, {"cuda": 255, "hip": 512}

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


class Specialisation(NamedTuple):
    """A kernel with all that changes its compiled code."""

    launch: Launch
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    multiples: tuple[str, ...]  # arguments that are multiples of 16

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches that run the same code."""
        return self.launch.name, self.signature, self.constants, self.multiples, self.launch.plan.warps

    def __str__(self) -> str:
        shown = {k: v for k, v in self.constants if k.isupper() and v not in (None, False, 0)}
        types = dict(self.signature)
        return f"{self.launch.name.removesuffix('_kernel')} {types['x'][1:]} " + " ".join(
            k if v is True else f"{k}={v}" for k, v in shown.items()
        )


class Needs(NamedTuple):
    """The resources of a compiled kernel: registers of a thread, bytes that it spills to memory, shared memory."""

    registers: int
    spilled: int
    shared: int


def specialise(launch: Launch) -> Specialisation:
    """The types and constants of a launch, as Triton's own launcher derives them."""
    signature, constants, multiples = {}, {}, []
    fixed = {p.name for p in launch.kernel.params if p.is_constexpr}
    for name, value in launch.arguments.items():
        if name in fixed or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            multiples.append(name)  # torch's allocators align memory to 16 bytes and more
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            multiples += [name] if value % 16 == 0 else []
    return Specialisation(launch, tuple(signature.items()), tuple(constants.items()), tuple(multiples))


def specialisations(calls: Iterable[Call]) -> Iterator[Specialisation]:
    """Those of all launches of the calls, each once."""
    seen = set()
    for call in calls:
        for launch in call.launches():
            found = specialise(launch)
            if found.key not in seen:
                seen.add(found.key)
                yield found


def chosen(arguments: list[str]) -> list[Specialisation]:
    """Those that the command line asks for."""
    if "--sample" in arguments:
        return _first_of_each(sample(), lambda s: (s.launch.name, s.launch.plan.view.rows))
    if "--heaviest" in arguments:
        return _first_of_each(
            heaviest(),
            lambda s: (
                s.launch.name,
                s.launch.plan[1:3],
                s.launch.arguments["x"].dtype,
                s.launch.arguments.get("MASK"),
            ),
        )
    return list(specialisations(every_call()))


def _first_of_each(calls: Iterable[Call], kind: Callable[[Specialisation], Any]) -> list[Specialisation]:
    found: dict[Any, Specialisation] = {}
    for s in specialisations(calls):
        found.setdefault(kind(s), s)
    return list(found.values())


def compiled(s: Specialisation, target: GPUTarget) -> Needs:
    """Compile for a target and read the needs off the machine code."""
    names = s.launch.kernel.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in s.multiples}
    source = ASTSource(s.launch.kernel, dict(s.signature), dict(s.constants), attributes)
    made = triton.compile(source, target=target, options={"num_warps": s.launch.plan.warps})
    if target.backend == "hip":
        return _needs_on_amd(made.asm["amdgcn"], made.metadata.shared)
    return _needs_on_nvidia(made.asm["cubin"], made.metadata.shared)


def _needs_on_nvidia(cubin: bytes, shared: int) -> Needs:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout)}
    return Needs(found["REG"], found["STACK"] + found["LOCAL"], shared)


def _needs_on_amd(assembly: str, shared: int) -> Needs:
    def of(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert found is not None, f"the compiler does not report {name}"
        return int(found[1])

    return Needs(of("vgpr_count"), of("vgpr_spill_count") + of("private_segment_fixed_size"), shared)


def complaint(needs: Needs, target: GPUTarget) -> str:
    """Why a kernel does not fit; empty if it does."""
    if needs.spilled:
        return f"spills {needs.spilled} bytes"
    if needs.shared > SHARED:
        return f"needs {needs.shared} bytes of shared memory; {SHARED} are there"
    limit = REGISTERS[target.backend]
    return f"needs {needs.registers} registers; there are {limit}" if needs.registers > limit else ""


def main(arguments: list[str]) -> int:
    """Print the table; the status."""
    found, bad = chosen(arguments), 0
    print(f"{len(found)} specialisations, {len(TARGETS)} targets: registers/shared bytes each")
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for s in found:
            cells = []
            for target in TARGETS.values():
                try:
                    needs = compiled(s, target)
                    wrong = complaint(needs, target)
                    cells.append(wrong or f"{needs.registers}/{needs.shared}")
                except Exception as error:  # whatever a compiler raises
                    wrong = f"does not compile: {' '.join(str(error).split())[:300]}"
                    cells.append(wrong)
                bad += bool(wrong)
            print(" | ".join((str(s), *cells)), flush=True)
    print(f"{bad} that do not fit" if bad else "all compile, without spills, within the limits")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
