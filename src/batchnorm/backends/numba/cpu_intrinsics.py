"""The few operations that kernels need below Numba's own: typed memory at an address, and sums LLVM may reorder.

Kernels are written once. What differs between their specialisations (dtype, activation, residual, mask) is
the type of their argument, `Arguments(spec)`, and the functions here and in `cpu_activations` choose by it.
"""

import ctypes
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, overload, register_model

from .cpu_args import Args, Spec

# mypy: disable-error-code="no-untyped-def"

# Contraction only (fused multiply-add): no flag that would let LLVM reorder (x − mean_hi) − mean_lo,
# and none that would let it assume that NaN and Inf do not occur.
FLAGS: Any = {"fastmath": {"contract"}, "error_model": "numpy"}
# For what is only ever inlined: wrappers for other callers would take a third of Numba's time.
INLINED: Any = FLAGS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inline = njit(forceinline=True, **INLINED)

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_REAL = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class Arguments(types.Type):
    """The address of an `Args`, carrying its `Spec` in the type."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.real = types.float64 if spec.dtype == "float64" else types.float32
        super().__init__(name=f"Arguments{tuple(spec)}")


@register_model(Arguments)
class _ArgumentsModel(models.PrimitiveModel):
    def __init__(self, manager, kind: Arguments):
        super().__init__(manager, kind, _I8.as_pointer())


_FIELDS = dict(Args._fields_)


@infer_getattr
class _ArgumentsFields(AttributeTemplate):
    key = Arguments

    def generic_resolve(self, kind, name):
        return {ctypes.c_int64: types.int64, ctypes.c_double: types.float64}.get(_FIELDS.get(name))


@lower_getattr_generic(Arguments)
def _read_field(context, builder, kind, value, name):
    of = ir.DoubleType() if _FIELDS[name] is ctypes.c_double else _I64
    offset = ir.Constant(_I64, getattr(Args, name).offset)
    field = builder.load(builder.bitcast(builder.gep(value, [offset]), of.as_pointer()))
    # only the ticket changes while a kernel runs, so a field need not be read again after every store
    field.set_metadata("invariant.load", builder.module.add_metadata([]))
    return field


@intrinsic
def ticket(typing, a):
    """The next piece of work: 0, 1, 2, … each given to one thread only, whichever asks first."""

    def code(context, builder, signature, args):
        counter = builder.bitcast(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), "monotonic")

    return types.int64(a), code


@intrinsic(prefer_literal=True)
def scratch(typing, a, size):
    """Room for `size` values of the computing type on the stack."""

    def code(context, builder, signature, args):
        room = cgutils.alloca_once(builder, ir.ArrayType(_REAL[a.real], size.literal_value))
        room.align = 64
        return builder.bitcast(room, _REAL[a.real].as_pointer())

    return types.CPointer(a.real)(a, size), code


@intrinsic(prefer_literal=True)
def scratch64(typing, size):
    """Room for `size` float64 values on the stack."""

    def code(context, builder, signature, args):
        return cgutils.alloca_once(builder, ir.DoubleType(), size=ir.Constant(_I64, size.literal_value))

    return types.CPointer(types.float64)(size), code


@intrinsic
def address(typing, buffer):
    """Where scratch lies, for what is otherwise done to tensors."""

    def code(context, builder, signature, args):
        return builder.ptrtoint(args[0], _I64)

    return types.int64(buffer), code


@intrinsic
def accumulate(typing, total, value):
    """`total + value`, and LLVM may do a loop's additions in another order: what it takes to vectorise a sum."""

    def code(context, builder, signature, args):
        return builder.fadd(*args, flags=("reassoc", "nsz", "contract"))

    return total(total, total), code


@intrinsic
def choose(typing, condition, yes, no):
    """`yes` if `condition` else `no`, both computed: a branch would keep LLVM from vectorising the loop."""

    def code(context, builder, signature, args):
        return builder.select(*args)

    return yes(types.boolean, yes, yes), code


@intrinsic
def like(typing, value, number):
    """`number` in the floating type of `value`."""

    def code(context, builder, signature, args):
        return context.cast(builder, args[1], number, value)

    return value(value, number), code


@intrinsic
def real(typing, a, number):
    """`number` in the type that kernels of this dtype compute in."""

    def code(context, builder, signature, args):
        return context.cast(builder, args[1], number, a.real)

    return a.real(a, number), code


def _inputs(builder):
    """Metadata: the tensors a kernel reads. Outputs are elsewhere."""
    add = builder.module.add_metadata
    return add([add(["batchnorm inputs", add(["batchnorm"])])])


def _at(builder, address, index, of):
    return builder.gep(builder.inttoptr(address, of.as_pointer()), [index])


def _read(builder, address, index, dtype, is_input=True):
    def get(of):
        value = builder.load(_at(builder, address, index, of))
        if is_input:
            value.set_metadata("alias.scope", _inputs(builder))
        return value

    if dtype == "float64":
        return get(ir.DoubleType())
    if dtype == "float32":
        return get(ir.FloatType())
    if dtype == "float16":
        return builder.fpext(get(ir.HalfType()), ir.FloatType())
    return builder.bitcast(builder.shl(builder.zext(get(_I16), _I32), ir.Constant(_I32, 16)), ir.FloatType())


def _round_bfloat16(builder, value):
    """Round to nearest even by integer arithmetic: LLVM's own truncation flushes subnormals where it has hardware."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(builder.add(bits, ir.Constant(_I32, 0x7FFF)), odd)
    nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nan, ir.Constant(_I32, 0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)


def _write(builder, address, index, value, dtype):
    if dtype == "float16":
        value = builder.fptrunc(value, ir.HalfType())
    elif dtype == "bfloat16":
        value = _round_bfloat16(builder, value)
    builder.store(value, _at(builder, address, index, value.type)).set_metadata("noalias", _inputs(builder))


@intrinsic
def read(typing, a, address, index):
    """Element `index` of the tensor at `address`, in the computing type."""

    def code(context, builder, signature, args):
        return _read(builder, args[1], args[2], a.spec.dtype)

    return a.real(a, types.int64, types.int64), code


@intrinsic
def store(typing, a, address, index, value):
    """Writes `value`, rounded once to the tensor's dtype, to element `index` of the tensor at `address`."""

    def code(context, builder, signature, args):
        _write(builder, args[1], args[2], args[3], a.spec.dtype)
        return context.get_dummy_value()

    return types.void(a, types.int64, types.int64, a.real), code


@intrinsic
def _copy(typing, target, source, size):
    """`size` bytes from one address to another."""

    def code(context, builder, signature, args):
        target, source = (builder.inttoptr(value, _I8.as_pointer()) for value in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def _copy_line(typing, target, source):
    """A whole cache line to where it belongs, without reading what was there or keeping it in cache."""

    def code(context, builder, signature, args):
        line = ir.VectorType(_I64, 8)
        value = builder.load(builder.inttoptr(args[1], line.as_pointer()), align=64)
        stored = builder.store(value, builder.inttoptr(args[0], line.as_pointer()), align=64)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def itemsize(typing, a):
    """Bytes of an element."""

    def code(context, builder, signature, args):
        return ir.Constant(_I64, {"float64": 8, "float32": 4}.get(a.spec.dtype, 2))

    return types.int64(a), code


@inline
def place(a, tensor, index, buffer):
    """Address and index to write a run's output to: `tensor`, or for what is to be streamed `buffer`."""
    offset = (tensor // itemsize(a) + index) % (64 // itemsize(a))
    return (buffer, offset) if a.stream != 0 else (tensor, index)


@inline
def stream(a, tensor, index, buffer, count):
    """Moves `count` elements from `buffer` to `index` of `tensor` past the cache; nothing where they are there already.

    Other threads see them in time: the next ticket is drawn by a locked instruction, which waits for them.
    """
    if a.stream == 0:
        return
    start = tensor + index * itemsize(a)
    end = start + count * itemsize(a)
    first, last = (start + 63) // 64 * 64, end // 64 * 64
    buffer += start % 64 - start
    if first >= last:
        _copy(start, buffer + start, end - start)
        return
    _copy(start, buffer + start, first - start)
    for line in range(first // 64, last // 64):
        _copy_line(64 * line, buffer + 64 * line)
    _copy(last, buffer + last, end - last)


def _typed_access(dtype):
    """Scalar load and store of one dtype as float64, for parameters and buffers."""
    narrow = dtype != "float64"

    @intrinsic
    def get(typing, address, index):
        def code(context, builder, signature, args):
            value = _read(builder, *args, dtype, is_input=False)  # what one kernel writes there it also reads
            return builder.fpext(value, ir.DoubleType()) if narrow else value

        return types.float64(types.int64, types.int64), code

    @intrinsic
    def put(typing, address, index, value):
        def code(context, builder, signature, args):
            value = builder.fptrunc(args[2], ir.FloatType()) if narrow else args[2]
            _write(builder, args[0], args[1], value, dtype)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float64), code

    return get, put


@intrinsic
def _weight(typing, a, index):
    """Element `index` of the mask, which is of the computing type."""

    def code(context, builder, signature, args):
        return _read(builder, _read_field(context, builder, a, args[0], "mask"), args[1], a.real.name)

    return a.real(a, types.int64), code


_load32, _store32 = _typed_access("float32")
load64, store64 = _typed_access("float64")
_load_bf16, _store_bf16 = _typed_access("bfloat16")
_load_f16, _store_f16 = _typed_access("float16")


@inline
def load_kind(address, kind, index, absent):
    """Element of a parameter in its own dtype (`KINDS`), or `absent`."""
    if kind == 1:
        return _load32(address, index)
    if kind == 2:
        return load64(address, index)
    if kind == 3:
        return _load_bf16(address, index)
    if kind == 4:
        return _load_f16(address, index)
    return absent


@inline
def store_kind(address, kind, index, value):
    """Writes an element of a parameter in its own dtype; nothing where it is absent."""
    if kind == 1:
        _store32(address, index, value)
    elif kind == 2:
        store64(address, index, value)
    elif kind == 3:
        _store_bf16(address, index, value)
    elif kind == 4:
        _store_f16(address, index, value)


def plus_residual(a, z, index):
    """`z` plus element `index` of the residual, where the kernel has one; or that of the output, in place of both."""


@overload(plus_residual, jit_options=INLINED)
def _plus_residual(a, z, index):
    if a.spec.output:
        return lambda a, z, index: read(a, a.residual, index)
    if a.spec.residual:
        return lambda a, z, index: z + read(a, a.residual, index)
    return lambda a, z, index: z


def pass_residual(a, address, index, slope):
    """Writes element `index` of the residual's gradient at `address`, where it is wanted."""


@overload(pass_residual, jit_options=INLINED)
def _pass_residual(a, address, index, slope):
    if not a.spec.residual:
        return lambda a, address, index, slope: None

    def write(a, address, index, slope):
        if a.dresidual != 0:
            store(a, address, index, slope)

    return write


def stream_residual(a, index, buffer, count):
    """As `stream`, the residual's gradient, where it is wanted."""


@overload(stream_residual, jit_options=INLINED)
def _stream_residual(a, index, buffer, count):
    if not a.spec.residual:
        return lambda a, index, buffer, count: None

    def move(a, index, buffer, count):
        if a.dresidual != 0:
            stream(a, a.dresidual, index, buffer, count)

    return move


def counted(a, index):
    """The mask's weight at `index`, or one where the kernel has no mask."""


def where_counted(a, weight, value):
    """`value`, or zero where the weight is zero: a NaN under the mask goes no further."""


@overload(counted, jit_options=INLINED)
def _counted(a, index):
    if a.spec.mask:
        return lambda a, index: _weight(a, index)
    return lambda a, index: real(a, 1.0)


@overload(where_counted, jit_options=INLINED)
def _where_counted(a, weight, value):
    if a.spec.mask:
        return lambda a, weight, value: choose(weight != real(a, 0.0), value, real(a, 0.0))
    return lambda a, weight, value: value
