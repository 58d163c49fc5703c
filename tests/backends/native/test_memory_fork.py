"""Outputs across fork, and at the end of a process."""

from .memory_library import program


def test_a_child_forked_while_threads_allocate_does_not_hang() -> None:
    program("""
import os, time
def allocate():
    while True:
        output(4), output(6)
for _ in range(4):
    threading.Thread(target=allocate, daemon=True).start()
for _ in range(100):
    child = os.fork()
    if child == 0:
        [output(8) for _ in range(3)]
        os._exit(0)
    deadline = time.monotonic() + 20
    while (state := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            raise AssertionError("the child hangs")
        time.sleep(0.001)
    assert state[1] == 0, state
os._exit(0)
""")


def test_a_child_has_its_own_copy_of_live_memory_and_no_idle_memory() -> None:
    program("""
import os
y = output(8).fill_(1)
output(16).fill_(2)
assert memory.statistics()[1] == 16 * MIB
child = os.fork()
if child == 0:
    try:
        assert memory.statistics()[:2] == [8 * MIB, 0]
        assert y.eq(1).all()
        y.fill_(3)
        z = output(16).fill_(4)
        del y, z
        assert memory.empty_cache() > 0
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert y.eq(1).all()
assert memory.statistics()[1] == 16 * MIB
""")


def test_tensors_may_outlive_everything_else() -> None:
    program("""
import builtins, ctypes
builtins.last = [output(8), output(8).untyped_storage()]
forever = output(16)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(forever))
""")
