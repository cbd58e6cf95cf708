"""The register tile: the one low-level idea that makes every kernel in this folder fast.

A CPU multiplies fastest when it works on whole vectors (16 float32 numbers with AVX-512) and when the running sums stay
in its registers. So a kernel keeps a *tile*: P accumulators, each a row of L numbers, and does to it only four things:

    acc = tile(P, L, like)                          P rows of L accumulators, in registers
    load_row(acc, p, a, i, width)                   acc[p]  = a[i : i + width]
    multiply_add(acc, p, x, i, w, j, width)         acc[p] += x[i] * w[j : j + width]
    store_row(acc, p, a, i, width)                  a[i : i + width] = acc[p]

Each is a Numba intrinsic of a few lines that emits the LLVM instruction of that name. Arrays are addressed as the flat
memory they are (C order, index in elements). `width` may be smaller than L: the lanes beyond it read as zero and are
not written, so a layer with 10 or 24 channels needs no special case.

P and L must be compile-time constants (LLVM unrolls the loop over p, then sees that nothing else can point at the tile
and keeps it in registers); every other size is an ordinary run-time number. So a kernel is compiled once for a tile
shape, not once for a layer. `tile_shape` chooses P and L, and explains how.

What this file is not: a vector library. It checks no bounds; the layers check every shape before they call a kernel.
"""

import hashlib
import math
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array

# ------------------------------------------------------------------------------------------------ the shape of a tile


@cache
def vector_registers() -> tuple[int, int]:
    """(bytes in a vector register, number of them) of the CPU that Numba compiles for."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16, 32  # NEON
    features = llvmlite.binding.get_host_cpu_features().flatten()
    if config.CPU_NAME:  # compiling for another CPU (NUMBA_CPU_NAME=haswell): believe only the features that were named
        features = config.CPU_FEATURES or "+avx2"
    if "+avx512f" in features:
        return 64, 32
    return (32, 16) if "+avx" in features else (16, 16)


@cache
def tile_shape(rows: int, columns: int, dtype: np.dtype) -> tuple[int, int]:
    """The tile (P, L) for an output of `rows` × `columns`, where a row of columns is contiguous in memory.

    L is 1, 2 or 4 vectors: enough to cover the columns if that is possible. P × L accumulators may take three quarters
    of the registers, because a step also needs one row of w and one number of x in registers; a larger tile spills to
    memory and runs at a third of the speed. At least eight vectors should be in flight (a multiply-add takes 4 cycles
    and two start in each), at most 12 rows are used: more gains nothing and costs compile time.

    P then shrinks until the tiles share the rows evenly (13 rows are 7 + 6, not 12 + 1), so P never exceeds `rows`.
    """
    register_bytes, register_count = vector_registers()
    lanes = register_bytes // np.dtype(dtype).itemsize
    budget = register_count * 3 // 4
    vectors = 1
    while vectors * lanes < columns and vectors < budget // 6:
        vectors *= 2
    tiles = math.ceil(rows / min(12, budget // vectors))
    return math.ceil(rows / tiles), vectors * lanes


# ----------------------------------------------------------------------------------------------- compiling the kernels

_SOURCES = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()[:12]


def kernel(function: Callable) -> Callable:
    """Compile `function` with Numba: parallel loops, the GIL released, machine code cached on disk.

    Numba's cache notices an edit only in the file that the function stands in, but a kernel also consists of the
    intrinsics below. A digest of this folder in the function's name makes every edit recompile every kernel.
    """
    function.__qualname__ += f"_{_SOURCES}"
    return numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")(function)


# ------------------------------------------------------------------------------------------------------ the intrinsics


class Tile(types.Type):
    """The Numba type of a tile: a pointer to rows of `lanes` numbers on the stack (so, after LLVM, in registers)."""

    def __init__(self, dtype: types.Type, lanes: int):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Tile({dtype} x {lanes})")


register_model(Tile)(models.PointerModel)


@intrinsic(prefer_literal=True)
def tile(typing_context, rows, lanes, like):
    """P rows of L accumulators of the dtype of the array `like`. Rows and lanes must be literals."""
    result = Tile(like.dtype, lanes.literal_value)

    def code(context, builder, signature, arguments):
        stack = cgutils.alloca_once(builder, ir.ArrayType(_row_type(context, result), rows.literal_value))
        return builder.bitcast(stack, context.get_value_type(result))

    return result(rows, lanes, like), code


@intrinsic
def load_row(typing_context, acc, p, array, i, width):
    """acc[p] = array[i : i + width], the lanes beyond width zero."""

    def code(context, builder, signature, arguments):
        acc_, p_, array_, i_, width_ = arguments
        row = _load(context, builder, acc, array, array_, i_, width_)
        builder.store(row, _slot(context, builder, acc, acc_, p_))
        return context.get_dummy_value()

    return types.void(acc, types.intp, array, types.intp, types.intp), code


@intrinsic
def add_row(typing_context, acc, p, array, i, width):
    """acc[p] += array[i : i + width]."""

    def code(context, builder, signature, arguments):
        acc_, p_, array_, i_, width_ = arguments
        slot = _slot(context, builder, acc, acc_, p_)
        row = _load(context, builder, acc, array, array_, i_, width_)
        builder.store(builder.fadd(builder.load(slot), row), slot)
        return context.get_dummy_value()

    return types.void(acc, types.intp, array, types.intp, types.intp), code


@intrinsic
def multiply_add(typing_context, acc, p, x, i, w, j, width):
    """acc[p] += x[i] * w[j : j + width], rounded once (a fused multiply-add)."""

    def code(context, builder, signature, arguments):
        acc_, p_, x_, i_, w_, j_, width_ = arguments
        slot = _slot(context, builder, acc, acc_, p_)
        factor = _broadcast(builder, builder.load(_pointer(context, builder, x, x_, i_)), acc.lanes)
        row = _load(context, builder, acc, w, w_, j_, width_)
        fma = _llvm(builder, "llvm.fma", row.type, [row.type, row.type, row.type])
        builder.store(builder.call(fma, [factor, row, builder.load(slot)]), slot)
        return context.get_dummy_value()

    return types.void(acc, types.intp, x, types.intp, w, types.intp, types.intp), code


@intrinsic
def store_row(typing_context, acc, p, array, i, width):
    """array[i : i + width] = acc[p]."""

    def code(context, builder, signature, arguments):
        acc_, p_, array_, i_, width_ = arguments
        row = builder.load(_slot(context, builder, acc, acc_, p_))
        pointer = builder.bitcast(_pointer(context, builder, array, array_, i_), row.type.as_pointer())
        mask = _first_lanes(builder, acc.lanes, width_)
        store = _llvm(builder, "llvm.masked.store", ir.VoidType(), [row.type, pointer.type, _I32, mask.type], ".p0")
        builder.call(store, [row, pointer, _alignment(array), mask])
        return context.get_dummy_value()

    return types.void(acc, types.intp, array, types.intp, types.intp), code


# -------------------------------------------------------------------------------- small pieces of LLVM for the above

_I32 = ir.IntType(32)


def _row_type(context, acc: Tile) -> ir.VectorType:
    return ir.VectorType(context.get_value_type(acc.dtype), acc.lanes)


def _slot(context, builder, acc: Tile, acc_, p_):
    """Pointer to row p of the tile."""
    return builder.gep(builder.bitcast(acc_, _row_type(context, acc).as_pointer()), [p_])


def _pointer(context, builder, array: types.Array, array_, i_):
    """Pointer to element i of the array's flat memory."""
    return builder.gep(make_array(array)(context, builder, array_).data, [i_])


def _alignment(array: types.Array) -> ir.Constant:
    return ir.Constant(_I32, array.dtype.bitwidth // 8)


def _broadcast(builder, scalar, lanes: int):
    """A vector with `scalar` in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), None))


def _first_lanes(builder, lanes: int, width_):
    """The mask of the lanes 0 … width − 1."""
    numbers = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _broadcast(builder, builder.trunc(width_, _I32), lanes))


def _load(context, builder, acc: Tile, array: types.Array, array_, i_, width_):
    """array[i : i + width] as a vector of acc.lanes, the rest zero."""
    row = _row_type(context, acc)
    pointer = builder.bitcast(_pointer(context, builder, array, array_, i_), row.as_pointer())
    mask = _first_lanes(builder, acc.lanes, width_)
    load = _llvm(builder, "llvm.masked.load", row, [pointer.type, _I32, mask.type, row], ".p0")
    return builder.call(load, [pointer, _alignment(array), mask, ir.Constant(row, None)])


def _llvm(builder, name: str, result, arguments: list, suffix: str = ""):
    """The LLVM intrinsic `name` for the vector type among its result and arguments."""
    row = result if isinstance(result, ir.VectorType) else arguments[0]
    element = "f32" if isinstance(row.element, ir.FloatType) else "f64"
    full_name = f"{name}.v{row.count}{element}{suffix}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), full_name)
