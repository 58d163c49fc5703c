"""Compile every kernel that the launcher can ask for ahead of time, without a device, and show what it needs.

    python -m batchnorm.backends.triton.compile              every specialisation, for every target: takes hours
    python -m batchnorm.backends.triton.compile --pairs      some of them, which cover every pair of choices
    python -m batchnorm.backends.triton.compile --heaviest   for every tile, those that need the most registers
    python -m batchnorm.backends.triton.compile --sample     every kernel once for planes and once for rows
    python -m batchnorm.backends.triton.compile --random=7   12 launches of random calls, from the seed 7

`--sm_90` compiles for this target alone, and likewise the other targets; `--list` compiles nothing.

The exit status is 1 if a kernel does not compile, spills because it needs too many registers, or needs more than the
smallest card of its target has.
"""

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from batchnorm.backends.triton.calls import Call, every_call, heaviest, populations, random_calls, sample
from batchnorm.backends.triton.cover import pairs
from batchnorm.backends.triton.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that a program has by default on every card of these targets, and registers that a thread can
# have.
SHARED, REGISTERS = 48 * 1024, {"cuda": 255, "hip": 512}
# NVIDIA's assembler sometimes keeps one value in memory, even if only 32 of 255 registers are used: probably so that
# more programs share a multiprocessor. More than one value means that the tile is too large.
ONE_VALUE = {"cuda": 8, "hip": 0}

RANDOM = 12  # specialisations of a random sample

# Arguments that a call may leave out.
OPTIONAL = (
    "residual", "extra", "mask", "weight", "bias", "shift", "sums", "dx", "dresidual", "dweight", "running_mean",
)  # fmt: skip

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
        words = [self.launch.name.removesuffix("_kernel"), self.dtype[1:]]
        words += [k if v is True else f"{k}={v}" for k, v in shown.items()]
        given = [k for k in OPTIONAL if dict(self.signature).get(k, "constexpr") != "constexpr"]
        aligned = [f"{k}%16" for k in ("C", "S") if k in self.multiples]
        return " ".join([*words, *given, *aligned])

    @property
    def dtype(self) -> str:
        """The type of the input, or of the running statistics if there is no input."""
        types = dict(self.signature)
        return types.get("x", types.get("running_mean", ""))

    def choices(self) -> dict[str, Hashable]:
        """All that its code depends on, by name, for `cover.pairs`: the tile and the dtype are one choice each."""
        constants, name = dict(self.constants), self.launch.name
        tile = tuple(constants.pop(k, None) for k in ("ROWS", "P", "Q", "WIDE", "MERGED")), self.launch.plan.warps
        types = {k: "input" if v == self.dtype else v for k, v in self.signature}
        fixed = {k: v for k, v in constants.items() if k.isupper()}
        aligned = tuple(k for k in ("C", "S") if k in self.multiples)
        every = {"tile": tile, "dtype": self.dtype, "aligned": aligned} | types | fixed
        return {f"{name}.{k}": v for k, v in every.items()}


class Needs(NamedTuple):
    """The resources of a compiled kernel: registers of a thread, bytes that it spills to memory, shared memory."""

    registers: int
    spilled: int
    shared: int

    def __str__(self) -> str:
        kept = f" ({self.spilled} in memory)" if self.spilled else ""
        return f"{self.registers}/{self.shared}{kept}"


def specialise(launch: Launch) -> Specialisation:
    """The types and constants of a launch, as Triton's own launcher derives them."""
    signature, constants, multiples = {}, {}, []
    fixed = {p.name for p in launch.kernel.params if p.is_constexpr}
    anything = {p.name for p in launch.kernel.params if p.do_not_specialize}
    for name, value in launch.arguments.items():
        if name in fixed or value is None or (type(value) is int and value == 1 and name not in anything):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            multiples.append(name)  # torch's allocators align memory to 16 bytes and more
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            multiples += [name] if value % 16 == 0 and name not in anything else []
    return Specialisation(launch, tuple(signature.items()), tuple(constants.items()), tuple(multiples))


def specialisations(launches: Iterable[Launch]) -> Iterator[Specialisation]:
    """The specialisations of the launches, each once."""
    seen = set()
    for launch in launches:
        found = specialise(launch)
        if found.key not in seen:
            seen.add(found.key)
            yield found


def _launches(calls: Iterable[Call]) -> Iterator[Launch]:
    return itertools.chain.from_iterable(call.launches() for call in calls)


def _any_of(calls: Iterable[Call]) -> Iterator[Launch]:
    """One launch of each call: the first of the first call, the second of the second, and so on."""
    for turn, call in enumerate(calls):
        launches = call.launches()
        yield launches[turn % len(launches)]


def chosen(arguments: list[str]) -> list[Specialisation]:
    """The specialisations that the command line asks for."""
    if "--sample" in arguments:
        launches = itertools.chain(_launches(sample()), populations()[:1])
        return _first_of_each(launches, lambda s: (s.launch.name, s.launch.plan.view.rows))
    if seed := next((a.removeprefix("--random=") for a in arguments if a.startswith("--random=")), None):
        return list(itertools.islice(specialisations(_any_of(random_calls(int(seed)))), RANDOM))
    if "--heaviest" in arguments:
        return _first_of_each(
            _launches(heaviest()),
            lambda s: (s.launch.name, s.launch.plan[1:3], s.dtype, s.launch.arguments.get("MASK")),
        )
    every = list(specialisations(itertools.chain(_launches(every_call()), populations())))
    return pairs(every, Specialisation.choices) if "--pairs" in arguments else every


def _first_of_each(launches: Iterable[Launch], kind: Callable[[Specialisation], Any]) -> list[Specialisation]:
    found: dict[Any, Specialisation] = {}
    for s in specialisations(launches):
        found.setdefault(kind(s), s)
    return list(found.values())


def compiled(s: Specialisation, target: GPUTarget) -> Needs:
    """Compile for a target, and read the resources from the machine code."""
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
    """The reason why a kernel does not fit; empty if it does."""
    if needs.spilled > ONE_VALUE[target.backend]:
        return f"spills {needs.spilled} bytes"
    if needs.shared > SHARED:
        return f"needs {needs.shared} bytes of shared memory; {SHARED} are there"
    limit = REGISTERS[target.backend]
    return f"needs {needs.registers} registers; there are {limit}" if needs.registers > limit else ""


def main(arguments: list[str]) -> int:
    """Print the table; returns the exit status."""
    found, bad = chosen(arguments), 0
    if "--list" in arguments:
        print("\n".join(map(str, found)))
        return 0
    targets = {name: target for name, target in TARGETS.items() if f"--{name}" in arguments} or TARGETS
    print(f"{len(found)} specialisations, registers/shared bytes on each of: {', '.join(targets)}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for s in found:
            cells = []
            for target in targets.values():
                try:
                    needs = compiled(s, target)
                    wrong = complaint(needs, target)
                    cells.append(wrong or str(needs))
                except Exception as error:  # whatever a compiler raises
                    wrong = f"does not compile: {' '.join(str(error).split())[:300]}"
                    cells.append(wrong)
                bad += bool(wrong)
            print(" | ".join((str(s), *cells)), flush=True)
    print(f"{bad} that do not fit" if bad else "all compile, within the limits")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
