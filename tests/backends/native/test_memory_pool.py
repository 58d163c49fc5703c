"""The pool of blocks: which are reused, and how much memory stays idle."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .memory_library import MIB, idle, live, mapped, operators, output, program, resident


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    operators().empty_cache()
    yield
    operators().set_cgroup_root("")


def step(sizes: list[float]) -> None:
    """The outputs of a network's layers, then one gradient for each, in reverse."""
    outputs = [output(size) for size in sizes]
    while outputs:
        gradient = output(outputs[-1].nbytes / MIB)
        outputs.pop()
        del gradient


def test_a_repeated_step_takes_no_new_memory() -> None:
    sizes = [8.0, 8, 12, 16.5, 16, 4, 4, 30, 5.3]
    step(sizes)
    step(sizes)
    before = mapped()
    for _ in range(5):
        step(sizes)
    assert mapped() == before
    assert live() == 0


def test_one_block_serves_all_layers_in_evaluation() -> None:
    for size in (32, 16, 10, 6):
        output(size)
    before = mapped()
    for size in (32, 16, 10, 6):
        output(size)
    assert mapped() == before
    assert idle() <= 36 * MIB


def test_idle_memory_is_an_eighth_of_the_peak_above_what_is_live() -> None:
    torch.use_deterministic_algorithms(False)  # nothing is written: fast
    draw, outputs, peak = random.Random(0), [output(4) for _ in range(8)], 0
    for _ in range(1000):
        del outputs[draw.randrange(8)]
        outputs.append(output(draw.uniform(4, 64)))
        peak = max(peak, live())
        assert live() + idle() <= 1.125 * peak


def test_a_small_output_does_not_hold_a_large_block() -> None:
    output(64, 1)
    before = mapped()
    small = output(16, 2)
    assert mapped() == before  # in the block of 64 MiB
    held = resident()
    large = output(64, 3)
    assert resident() - held < 20 * MIB  # the other 48 MiB went back
    assert small.eq(2).all()
    assert large.eq(3).all()


def test_smaller_outputs_let_the_memory_of_larger_ones_go() -> None:
    torch.use_deterministic_algorithms(False)
    output(64)
    assert idle() == 64 * MIB
    for _ in range(2 * 4096):
        output(4)
    assert idle() <= 5 * MIB


def test_empty_cache_gives_idle_memory_back() -> None:
    held, freed = output(16, 1), [output(16, 2) for _ in range(8)]
    freed.clear()
    before = resident()
    assert operators().empty_cache() == 8 * 16 * MIB
    assert before - resident() > 7 * 16 * MIB
    assert idle() == 0
    assert operators().empty_cache() == 0
    assert held.eq(1).all()


# path of a file below the root: its text
V1 = {
    "proc/self/cgroup": "5:devices:/a\n4:cpu,memory:/a/b\n0::/\n",
    "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(128 * MIB),
}
V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/b/memory.max": "max",
    "sys/fs/cgroup/a/memory.max": str(128 * MIB),
}
HIGH = V2 | {"sys/fs/cgroup/a/b/memory.max": str(256 * MIB), "sys/fs/cgroup/a/b/memory.high": str(128 * MIB)}
CONTAINER = {"proc/self/cgroup": "0::/docker/unknown\n", "sys/fs/cgroup/memory.max": str(128 * MIB)}
HYBRID = {"proc/self/cgroup": "1:name=systemd:/a\n0::/a\n", "sys/fs/cgroup/unified/a/memory.max": str(128 * MIB)}


@pytest.mark.parametrize("files", [V1, V2, HIGH, CONTAINER, HYBRID], ids=["v1", "v2", "high", "container", "hybrid"])
def test_idle_memory_is_at_most_an_eighth_of_the_control_groups_limit(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    outputs = [output(6) for _ in range(5)]
    operators().set_cgroup_root(str(tmp_path))
    assert operators().statistics()[4] == 16 * MIB
    last = outputs[-1].data_ptr()
    while outputs:
        del outputs[0]
    assert idle() == 12 * MIB
    assert output(6).data_ptr() == last  # the longest idle went first
    output(20)
    assert idle() == 12 * MIB  # a block above the limit goes at once, and displaces no other


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    operators().set_cgroup_root(str(tmp_path))
    total = int(Path("/proc/meminfo").read_text().split()[1]) << 10
    assert operators().statistics()[4] == pytest.approx(total / 8, rel=0.01)


def test_when_the_system_refuses_idle_memory_goes_back_before_an_error() -> None:
    program("""
import resource
outputs = [output(120).fill_(1) for _ in range(2)]
outputs.clear()
assert memory.statistics()[1] == 240 * MIB
limit = status("VmSize") + 25 * MIB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
y = output(28).fill_(1)  # within the budget, so nothing is unmapped until the system refuses
assert memory.statistics()[:2] == [28 * MIB, 0]
try:
    output(1000)
except RuntimeError as error:
    assert "allocate memory" in str(error), error
else:
    raise AssertionError
assert memory.statistics()[0] == 28 * MIB
""")


def test_it_can_be_turned_off() -> None:
    program("y = output(16); assert memory.statistics()[:4] == [0, 0, 0, 0]", BATCHNORM_HUGE_PAGES="0")


def test_many_shapes_take_little_more_memory_than_with_torch() -> None:
    """5,000 outputs, no two sizes alike: a network whose every step has another batch and image size."""
    code = """
import random
draw, before = random.Random(0), status("VmHWM")
make = output if sys.argv[2] == "pool" else lambda mib: torch.empty(int(mib * MIB), dtype=torch.uint8)
def written(y):
    y[::4096] = 1  # each page becomes resident
    return y
for step in range(125):
    scale, outputs = draw.uniform(0.5, 1), []
    for layer in range(20):
        outputs.append(written(make(draw.uniform(8, 24) * scale)))
    while outputs:
        written(make(outputs[-1].nbytes / MIB))
        outputs.pop()
print(status("VmHWM") - before)
"""
    ours, torchs = int(program(code, "pool")), int(program(code, "torch"))
    assert ours <= 1.2 * torchs, f"peak {ours / MIB:.0f} MiB, with torch {torchs / MIB:.0f} MiB"
