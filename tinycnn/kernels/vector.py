"""The register tile: the one low-level idea that makes every kernel in this folder fast.

A CPU multiplies fastest when it works on whole vectors (16 float32 numbers with AVX-512) and when the running sums stay
in its registers. So a kernel works on *rows*, each L numbers side by side, and keeps a *tile* of them, P running sums:

    acc = tile(P, L, like)                    P rows of L numbers each, in registers
    row = read(a, i, width, L)                row = a[i : i + width]
    acc[p] = multiply_add(x, row, acc[p])     acc[p] += x · row, rounded once; x is a number, or a row as well
    write(a, i, acc[p], width)                a[i : i + width] = acc[p]

and + − · between rows. Arrays are the flat memory they are (C order, index in numbers). `width` may be smaller than L:
the lanes beyond it read as zero and are not written, so a layer with 10 or 24 channels needs no special case.

P and L must be compile-time constants (LLVM unrolls the loop over p, then sees that nothing else can point at the tile
and keeps it in registers); every other size is an ordinary run-time number. So a kernel is compiled once for a tile
shape, not once for a layer. `tile_shape` chooses P and L, and explains how.

What this file is not: a vector library. It checks no bounds; the layers check every shape before they call a kernel.
"""

import operator
import platform
from functools import cache
from itertools import product
from math import ceil, inf

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

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
def tile_shape(rows: int, columns: int, dtype: np.dtype, steps: float = inf, multiple: int = 1) -> tuple[int, int]:
    """The tile (P, L) that covers an output of `rows` × `columns` in the least time; a row of columns is contiguous.

    L is V = 1, 2 or 4 vectors, halves of vectors where they suffice. A step of the tile reads V vectors of w and P
    numbers of x, and does P·V multiply-adds:

        registers   P·V sums, V vectors of w and one number of x must fit, or four if each is used only once, for LLVM
                    reads them ahead; with a sixteenth of the registers to spare, for a tile that spills to memory runs
                    at a third of the speed
        time        a core starts two multiply-adds and two reads in a cycle, finds w less near than x, and needs four
                    cycles for a multiply-add: max(P·V, P + 2V, 8) half cycles, and (V + 1) / 2 for the loop; the
                    innermost loop, of so many `steps`, takes some 5·P + 15 to begin, and 10·P·V more if the rows it
                    leads to are narrower than L, for only AVX-512 writes some lanes of a vector as fast as all

    Tiles that stick out of the output do work for nothing: 13 rows are better one tile of 13 than two of 7. That is why
    the best shape depends on the output. P never exceeds `rows`, and 14: more gains nothing and costs compile time.
    It is a multiple of `multiple`, which must be at most 7.
    """
    lanes = filled_lanes(columns, dtype)
    usable = usable_registers()
    shapes = [
        (P, V * lanes)
        for V, numbers in ((1, 4), (2, 1), (4, 1))
        for P in range(multiple, min(rows, 14) + 1, multiple)
        if P * V + V + numbers <= usable
    ]
    return min(shapes, key=lambda shape: _time(shape, rows, columns, lanes, steps))


def usable_registers() -> int:
    """A sixteenth of them is to spare: a tile that spills to memory runs at a third of the speed."""
    return vector_registers()[1] * 15 // 16


@cache
def holding_tile(rows: int, held: int, multiple: int = 1) -> int:
    """P for a tile of single vectors that holds `held` rows of w in registers beside its sums, and a number of x.

    As few tiles as cover so many rows, and then the smallest; at most 14, a multiple of `multiple`.
    """
    room = usable_registers() - held - 1
    largest = max(multiple, min(14, room) // multiple * multiple)
    tiles = ceil(rows / largest)
    return ceil(ceil(rows / tiles) / multiple) * multiple


@cache
def tile_time(rows: int, columns: int, dtype: np.dtype, steps: float = inf) -> float:
    """The half cycles of one step of all the tiles of `tile_shape`, by the same model."""
    shape = tile_shape(rows, columns, dtype, steps)
    return _time(shape, rows, columns, filled_lanes(columns, dtype), steps)


def _time(shape: tuple[int, int], rows: int, columns: int, lanes: int, steps: float) -> float:
    (P, L), V = shape, shape[1] // lanes
    begin = 5 * P + 15 + (10 * P * V if columns < L and not _masks_are_free() else 0)
    step = max(P * V, P + 2 * V, 8) + (V + 1) / 2 + begin / steps
    return ceil(rows / P) * ceil(columns / L) * step


def _masks_are_free() -> bool:
    """Whether to read or write only some lanes of a vector takes no longer than all: with AVX-512."""
    return vector_registers()[0] == 64


def register_lanes(dtype: np.dtype) -> int:
    """How many numbers a vector register holds."""
    return vector_registers()[0] // np.dtype(dtype).itemsize


def filled_lanes(columns: int, dtype: np.dtype) -> int:
    """The lanes of a vector register; or of half of one, if so few columns would leave the other half empty.

    No CPU takes longer for half a vector, and AMD's Zen 4 half the time.
    """
    lanes = register_lanes(dtype)
    return lanes // 2 if 2 * columns <= lanes else lanes


def row_lanes(dtype: np.dtype) -> int:
    """The L for code that goes through rows of any length: two vectors, whatever the length, so it compiles once."""
    return 2 * register_lanes(dtype)


# ------------------------------------------------------------------------------------------------------ rows and tiles


class Row(types.Type):
    """The Numba type of a row: an LLVM vector, which lies in one or more registers."""

    def __init__(self, dtype: types.Type, lanes: int):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Row({dtype} x {lanes})")


@register_model(Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, manager, row: Row):
        number = manager.lookup(row.dtype).get_value_type()
        super().__init__(manager, row, ir.VectorType(number, row.lanes))


class Tile(types.Type):
    """The Numba type of a tile: a pointer to rows on the stack (so, after LLVM, in registers)."""

    def __init__(self, row: Row):
        self.dtype = row
        super().__init__(name=f"Tile({row})")


register_model(Tile)(models.PointerModel)


@intrinsic(prefer_literal=True)
def tile(typing_context, rows, lanes, like):
    """P rows of L numbers of the dtype behind the pointer `like`. Rows and lanes must be literals."""
    result = Tile(Row(like.dtype, lanes.literal_value))

    def code(context, builder, signature, arguments):
        array = ir.ArrayType(context.get_value_type(result.dtype), rows.literal_value)
        return builder.bitcast(cgutils.alloca_once(builder, array), context.get_value_type(result))

    return result(rows, lanes, like), code


@type_callable(operator.getitem)
def _type_of_item(context):
    return lambda acc, p: acc.dtype if isinstance(acc, Tile) else None


@lower_builtin(operator.getitem, Tile, types.Integer)
def _get_row(context, builder, signature, arguments):
    """acc[p]"""
    return builder.load(_slot(context, builder, signature.args[0], *arguments))


@type_callable(operator.setitem)
def _type_of_set_item(context):
    return lambda acc, p, row: types.none if isinstance(acc, Tile) else None


@lower_builtin(operator.setitem, Tile, types.Integer, Row)
def _set_row(context, builder, signature, arguments):
    """acc[p] = row"""
    acc_, p_, row_ = arguments
    builder.store(row_, _slot(context, builder, signature.args[0], acc_, p_))


def _slot(context, builder, acc: Tile, acc_, p_):
    """Pointer to row p of the tile."""
    return builder.gep(builder.bitcast(acc_, context.get_value_type(acc.dtype).as_pointer()), [p_])


# ------------------------------------------------------------------------------------------------------ the operations


@intrinsic(prefer_literal=True)
def read(typing_context, array, i, width, lanes):
    """array[i : i + width] as a row of so many lanes, the lanes beyond width zero."""
    result = Row(array.dtype, lanes.literal_value)

    def code(context, builder, signature, arguments):
        return _read(context, builder, result, *arguments[:2], _known(width, arguments[2]))

    return result(array, types.intp, _index(width), lanes), code


@intrinsic(prefer_literal=True)
def write(typing_context, array, i, row, width):
    """array[i : i + width] = row."""

    def code(context, builder, signature, arguments):
        _write(context, builder, row, *arguments[:3], _known(width, arguments[3]))
        return context.get_dummy_value()

    return types.void(array, types.intp, row, _index(width)), code


@intrinsic(prefer_literal=True)
def read_rows(typing_context, array, i, step, count, width, rows, lanes):
    """A tuple of so many rows, each `step` numbers behind the other; those from the `count`-th on are zeros."""
    row = Row(array.dtype, lanes.literal_value)
    result = types.UniTuple(row, rows.literal_value)

    def code(context, builder, signature, arguments):
        array_, i_, step_, count_, width_, _, _ = arguments
        count_, width_ = _known(count, count_), _known(width, width_)
        values = []
        for number in range(result.count):
            width_here = width_
            if not isinstance(count_, int) or count_ <= number:  # else this row is known to be there
                inside = builder.icmp_signed(">", _value(count_), ir.Constant(_I64, number))
                width_here = builder.select(inside, _value(width_), ir.Constant(_I64, 0))
            values.append(_read(context, builder, row, array_, i_, width_here))
            i_ = builder.add(i_, step_)
        return context.make_tuple(builder, result, values)

    return result(array, types.intp, types.intp, _index(count), _index(width), rows, lanes), code


@intrinsic(prefer_literal=True)
def write_rows(typing_context, array, i, step, count, width, rows):
    """Write the first `count` rows of the tuple, each `step` numbers behind the other."""

    def code(context, builder, signature, arguments):
        array_, i_, step_, count_, width_, rows_ = arguments
        count_, width_ = _known(count, count_), _known(width, width_)
        for number in range(rows.count):
            with builder.if_then(builder.icmp_signed(">", _value(count_), ir.Constant(_I64, number))):
                _write(context, builder, rows.dtype, array_, i_, builder.extract_value(rows_, number), width_)
            i_ = builder.add(i_, step_)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _index(count), _index(width), rows), code


@intrinsic
def multiply_add(typing_context, x, row, total):
    """x · row + total, lane by lane, rounded once (a fused multiply-add). x: a number or a row."""

    def code(context, builder, signature, arguments):
        x_, row_, total_ = arguments
        if not isinstance(x, Row):
            x_ = _broadcast(builder, x_, row.lanes)
        fma = _llvm(builder, "llvm.fma", row_.type, [row_.type] * 3)
        return builder.call(fma, [x_, row_, total_])

    return row(x if isinstance(x, Row) else row.dtype, row, total), code


@intrinsic(prefer_literal=True)
def multiply_add_rows(typing_context, acc, groups, group_step, count, step, x, i, rows, row_step):
    """acc[g · count + r] += Σ_t x[i + g · group_step + r · step + t · row_step] · rows[t]  for g < groups, r < count.

    Each number of x is loaded once for all the sums that it goes into. All but group_step, i and what the arrays hold
    must be literals: every multiply-add is written out.
    """

    def code(context, builder, signature, arguments):
        acc_, _, group_step_, _, _, x_, i_, rows_, _ = arguments
        starts = [i_]
        for _ in range(1, groups.literal_value):
            starts.append(builder.add(starts[-1], group_step_))
        uses = {}  # of each number of x: (which sum, which row)
        for r, t in product(range(count.literal_value), range(rows.count)):
            for g in range(groups.literal_value):
                place = r * step.literal_value + t * row_step.literal_value, g
                uses.setdefault(place, []).append((g * count.literal_value + r, t))

        def number(place):
            pointer = builder.gep(x_, [builder.add(starts[place[1]], ir.Constant(_I64, place[0]))])
            return _broadcast(builder, builder.load(pointer), rows.dtype.lanes)

        _multiply_add_each(context, builder, rows.dtype, acc_, uses, number, rows_)
        return context.get_dummy_value()

    return types.void(acc, groups, types.intp, count, step, x, types.intp, rows, row_step), code


@intrinsic(prefer_literal=True)
def multiply_add_windows(typing_context, acc, count, stride, outputs, x, i, column, width, spread, pixel, lanes, rows):
    """acc[p · outputs + o] += Σ_t z[column + p · stride + t] · rows[t · outputs + o]  for p < count.

    z[v · spread], a row, is x[i + v · pixel : … + lanes] for 0 <= v < width; the others are zero.
    Each row of z is loaded once for all the sums that it goes into, as a number by `multiply_add_rows`.
    """

    def code(context, builder, signature, arguments):
        acc_, _, _, _, x_, i_, column_, width_, _, _, _, rows_ = arguments
        uses = {}  # of each row of z: (which sum, which of rows)
        for p, r in product(range(count.literal_value), range(rows.count)):
            t, o = divmod(r, outputs.literal_value)
            uses.setdefault(p * stride.literal_value + t, []).append((p * outputs.literal_value + o, r))
        spread_, pixel_ = (ir.Constant(_I64, literal.literal_value) for literal in (spread, pixel))
        zeros = ir.Constant(context.get_value_type(rows.dtype), None)
        zeros_ = builder.bitcast(cgutils.alloca_once_value(builder, zeros), x_.type)

        def row(place):
            here_ = builder.add(column_, ir.Constant(_I64, place))
            v_ = builder.sdiv(here_, spread_)
            inside = builder.icmp_unsigned("<", v_, width_)  # a negative number would be a large one
            inside = builder.and_(inside, builder.icmp_signed("==", builder.mul(v_, spread_), here_))
            pointer = builder.gep(x_, [builder.add(i_, builder.mul(v_, pixel_))])
            pointer = builder.select(inside, pointer, zeros_)
            return _read(context, builder, rows.dtype, pointer, ir.Constant(_I64, 0), lanes.literal_value)

        _multiply_add_each(context, builder, rows.dtype, acc_, uses, row, rows_)
        return context.get_dummy_value()

    x_types = x, types.intp, types.intp, types.intp
    return types.void(acc, count, stride, outputs, *x_types, spread, pixel, lanes, rows), code


def _multiply_add_each(context, builder, row: Row, acc_, uses: dict, load, rows_) -> None:
    """acc[q] += load(place) · rows[t] for all (q, t) in uses[place], place after place."""
    vector = context.get_value_type(row)
    sums, fma = builder.bitcast(acc_, vector.as_pointer()), _llvm(builder, "llvm.fma", vector, [vector] * 3)
    for place in sorted(uses):
        x_row = load(place)
        for q, t in uses[place]:
            slot = builder.gep(sums, [ir.Constant(_I64, q)])
            builder.store(builder.call(fma, [x_row, builder.extract_value(rows_, t), builder.load(slot)]), slot)


def _operator(symbol, instruction: str) -> None:
    """row ∘ row, lane by lane."""

    @type_callable(symbol)
    def type_of_result(context):
        return lambda a, b: a if isinstance(a, Row) and a == b else None

    @lower_builtin(symbol, Row, Row)
    def code(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


@intrinsic
def not_at_most(typing_context, a, b):
    """A row of truths: where a > b, or a is not a number and b is one."""

    def code(context, builder, signature, arguments):
        a_, b_ = arguments
        return builder.and_(builder.fcmp_unordered(">", a_, b_), builder.fcmp_ordered("ord", b_, b_))

    return Row(types.boolean, a.lanes)(a, b), code


@intrinsic
def more_than(typing_context, a, b):
    """A row of truths: where a > b, and both are numbers."""

    def code(context, builder, signature, arguments):
        return builder.fcmp_ordered(">", *arguments)

    return Row(types.boolean, a.lanes)(a, b), code


@intrinsic
def equals(typing_context, row, number):
    """A row of truths: where a row of integers holds this number."""

    def code(context, builder, signature, arguments):
        row_, number_ = arguments
        return builder.icmp_unsigned("==", row_, _broadcast(builder, _as(builder, number_, row_), row.lanes))

    return Row(types.boolean, row.lanes)(row, number), code


@intrinsic
def choose(typing_context, truths, a, b):
    """a where true, else b, lane by lane. b: a row; a: another, or an integer."""

    def code(context, builder, signature, arguments):
        truths_, a_, b_ = arguments
        if not isinstance(a, Row):
            a_ = _broadcast(builder, _as(builder, a_, b_), b.lanes)
        return builder.select(truths_, a_, b_)

    return b(truths, a, b), code


@intrinsic(prefer_literal=True)
def sums_of_lanes(typing_context, acc, first, count):
    """A row: the sums of the numbers of acc[first], acc[first + 1], … so many, at most L; then zeros.

    Two rows become one, half of it what is left of either, until there is one row.
    """
    row = acc.dtype

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(row)
        sums, zeros = builder.bitcast(arguments[0], vector.as_pointer()), ir.Constant(vector, None)
        rows = [
            builder.load(builder.gep(sums, [ir.Constant(_I64, first.literal_value + q)]))
            for q in range(count.literal_value)
        ]
        rows += [zeros] * (row.lanes - len(rows))
        while len(rows) > 1:
            lanes = [ir.Constant(ir.VectorType(_I32, row.lanes), half) for half in _to_add(row.lanes, len(rows))]
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [builder.fadd(*(builder.shuffle_vector(a, b, half) for half in lanes)) for a, b in pairs]
        return rows[0]

    return row(acc, first, count), code


def _to_add(lanes: int, rows: int) -> list[list[int]]:
    """Which lanes of two rows to add to which, if so many rows are left: those with an even place to the odd ones.

    At first within each four, which is faster, and then four by four.
    """
    if lanes < 4 or 4 * rows > lanes:
        group, size = min(4, lanes), 1
    else:
        group, size = lanes, 4
    return [
        [
            place + i
            for start in range(0, lanes, group)
            for row in (0, lanes)
            for place in range(row + start + odd, row + start + group, 2 * size)
            for i in range(size)
        ]
        for odd in (0, size)
    ]


@intrinsic
def copy_numbers(typing_context, to, i, source, j, count):
    """to[i : i + count] = source[j : j + count]."""

    def code(context, builder, signature, arguments):
        to_, i_, source_, j_, count_ = arguments
        size = to.dtype.bitwidth // 8
        cgutils.raw_memcpy(builder, builder.gep(to_, [i_]), builder.gep(source_, [j_]), count_, size)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp, types.intp), code


@intrinsic
def clear_numbers(typing_context, to, i, count):
    """to[i : i + count] = 0."""

    def code(context, builder, signature, arguments):
        to_, i_, count_ = arguments
        size = ir.Constant(count_.type, to.dtype.bitwidth // 8)
        cgutils.memset(builder, builder.gep(to_, [i_]), builder.mul(count_, size), 0)
        return context.get_dummy_value()

    return types.void(to, types.intp, types.intp), code


# -------------------------------------------------------------------------------- small pieces of LLVM for the above

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _index(kind: types.Type) -> types.Type:
    """The type to take an integer as: that of a literal if it is one, for then other code is made for it."""
    return kind if isinstance(kind, types.IntegerLiteral) else types.intp


def _known(kind: types.Type, value_):
    """The number itself if the compiler knows it, else its value in LLVM."""
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else value_


def _value(number):
    """What `_known` returned, as a value in LLVM again."""
    return ir.Constant(_I64, number) if isinstance(number, int) else number


def _read(context, builder, row: Row, array_, i_, width_):
    vector = context.get_value_type(row)
    pointer = builder.bitcast(builder.gep(array_, [i_]), vector.as_pointer())
    if width_ == 0:
        return ir.Constant(vector, None)
    if width_ == row.lanes:
        return builder.load(pointer, align=_alignment(row))
    slot = cgutils.alloca_once(builder, vector)
    with builder.if_else(_is_whole(builder, row, width_)) as (whole, narrower):
        with whole:
            builder.store(builder.load(pointer, align=_alignment(row)), slot)
        with narrower:
            mask = _first_lanes(builder, row.lanes, width_)
            load = _llvm(builder, "llvm.masked.load", vector, [pointer.type, _I32, mask.type, vector], ".p0")
            zeros, alignment = ir.Constant(vector, None), ir.Constant(_I32, _alignment(row))
            builder.store(builder.call(load, [pointer, alignment, mask, zeros]), slot)
    return builder.load(slot)


def _write(context, builder, row: Row, array_, i_, row_, width_):
    pointer = builder.bitcast(builder.gep(array_, [i_]), row_.type.as_pointer())
    if width_ == row.lanes:
        builder.store(row_, pointer, align=_alignment(row))
        return
    with builder.if_else(_is_whole(builder, row, width_)) as (whole, narrower):
        with whole:
            builder.store(row_, pointer, align=_alignment(row))
        with narrower:
            mask = _first_lanes(builder, row.lanes, width_)
            store = _llvm(
                builder, "llvm.masked.store", ir.VoidType(), [row_.type, pointer.type, _I32, mask.type], ".p0"
            )
            builder.call(store, [row_, pointer, ir.Constant(_I32, _alignment(row)), mask])


def _alignment(row: Row) -> int:
    """Bytes: a row may begin at any number."""
    return row.dtype.bitwidth // 8


def _is_whole(builder, row: Row, width_):
    """Whether all lanes are within the width, where it pays to ask."""
    if _masks_are_free():
        return ir.Constant(ir.IntType(1), 0)
    return builder.icmp_signed(">=", _value(width_), ir.Constant(_I64, row.lanes))


def _broadcast(builder, scalar, lanes: int):
    """A vector with `scalar` in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), None))


def _as(builder, integer, row_):
    """The integer in the (smaller) type of the row's lanes."""
    return builder.trunc(integer, row_.type.element)


def _first_lanes(builder, lanes: int, width_):
    """The mask of the lanes 0 … width − 1."""
    numbers = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _broadcast(builder, builder.trunc(_value(width_), _I32), lanes))


def _llvm(builder, name: str, result, arguments: list, suffix: str = ""):
    """The LLVM intrinsic `name` for the vector type among its result and arguments."""
    row = result if isinstance(result, ir.VectorType) else arguments[0]
    element = {"float": "f32", "double": "f64"}.get(str(row.element), str(row.element))
    full_name = f"{name}.v{row.count}{element}{suffix}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), full_name)
