"""The register tile: the one low-level idea that makes every kernel in this folder fast.

A CPU multiplies fastest when it works on whole vectors (16 float32 numbers with AVX-512) and when the running sums stay
in its registers. So a kernel works on *rows* of L numbers, each in a *lane*, and keeps a *tile*, P of them, as sums:

    acc = tile(P, L, like)                    P rows of L numbers each, in registers (a Tile)
    row = read(a, i, width, L)                row = a[i : i + width] (a Row)
    acc[p] = multiply_add(x, row, acc[p])     acc[p] += x · row (rounded once, if the CPU can); x: a number, or a row
    write(a, i, acc[p], width)                a[i : i + width] = acc[p]

    zeros(like, L)                            a row of zeros
    read_rows, write_rows                     several rows at once, some numbers apart
    read_repeated(a, i, T, L)                 a row of a[i : i + T], over and over
    repeated(rows, T)                         each number of one or more rows T times, side by side
    add_neighbours(acc, P, T, sums)           sums[p] = the sums of T numbers each that stand side by side in acc[p]
    transpose(rows)                           a square of rows, its columns as rows
    greater_or_nan, greater, equals           comparisons, lane by lane: a mask
    select(mask, a, b)                        a where the mask is true, else b
    copy_numbers, clear_numbers               memory as it is

and + − · / between rows, a number · a row, a row / a number. Most kernels end in a product of matrices, whose innermost
loop takes a *step* for each k and loads a row of w once for P multiply-adds:

    for k in range(K):
        row = read(w, k * O, L, L)
        for p in range(P):
            acc[p] = multiply_add(x[p * K + k], row, acc[p])

Arrays are the flat memory they are (C order, index in numbers). `width` may be smaller than L: the lanes beyond it read
as zero and are not written, so a layer with 10 or 24 channels needs no special case.

P and L must be compile-time constants (LLVM unrolls the loop over p, then sees that nothing else can point at the tile
and keeps it in registers); most other sizes are ordinary run-time numbers. So most kernels are compiled once for a tile
shape, not once for a layer. `tile_shape.py` chooses P and L, and explains how.

Numba compiles a kernel to LLVM's language, and lets an operation, an *intrinsic*, say itself what it becomes there. It
is called then, with the Numba *types* of its arguments (a constant's type holds its value), and returns the type of its
result and a function `code(context, builder, signature, arguments)`, which appends instructions by the builder. A name
that ends in _ stands for a value in the program that is being written, as opposed to one known while it is written;
`index_type` and `known` let a constant stay one (`llvm.py`).

What this file is not: a vector library. It checks no bounds; the layers check every shape before they call a kernel.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, type_callable

from tinycnn.kernels.llvm import (
    I64,
    Row,
    Tile,
    as_value,
    broadcast,
    index_type,
    instruction,
    known,
    pick,
    read_lanes,
    read_lanes_repeated,
    truncated,
    write_lanes,
)


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


@intrinsic(prefer_literal=True)
def read(typing_context, array, i, width, lanes):
    """array[i : i + width] as a row of so many lanes, the lanes beyond width zero."""
    result = Row(array.dtype, lanes.literal_value)

    def code(context, builder, signature, arguments):
        return read_lanes(context, builder, result, *arguments[:2], known(width, arguments[2]))

    return result(array, types.intp, index_type(width), lanes), code


@intrinsic(prefer_literal=True)
def zeros(typing_context, like, lanes):
    """A row of so many zeros, of the dtype behind the pointer `like`."""
    result = Row(like.dtype, lanes.literal_value)

    def code(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(result), None)

    return result(like, lanes), code


@intrinsic(prefer_literal=True)
def write(typing_context, array, i, row, width):
    """array[i : i + width] = row."""

    def code(context, builder, signature, arguments):
        write_lanes(context, builder, row, *arguments[:3], known(width, arguments[3]))
        return context.get_dummy_value()

    return types.void(array, types.intp, row, index_type(width)), code


@intrinsic(prefer_literal=True)
def read_rows(typing_context, array, i, step, count, width, rows, lanes):
    """A tuple of so many rows, each `step` numbers behind the other; those from the `count`-th on are zeros."""
    row = Row(array.dtype, lanes.literal_value)
    result = types.UniTuple(row, rows.literal_value)

    def code(context, builder, signature, arguments):
        array_, i_, step_, count_, width_, _, _ = arguments
        count_, width_ = known(count, count_), known(width, width_)
        values = []
        for number in range(result.count):
            width_here = width_
            if not isinstance(count_, int) or count_ <= number:  # else this row is known to be there
                inside = builder.icmp_signed(">", as_value(count_), ir.Constant(I64, number))
                width_here = builder.select(inside, as_value(width_), ir.Constant(I64, 0))
            values.append(read_lanes(context, builder, row, array_, i_, width_here))
            i_ = builder.add(i_, step_)
        return context.make_tuple(builder, result, values)

    return result(array, types.intp, types.intp, index_type(count), index_type(width), rows, lanes), code


@intrinsic(prefer_literal=True)
def write_rows(typing_context, array, i, step, count, width, rows):
    """Write the first `count` rows of the tuple, each `step` numbers behind the other."""

    def code(context, builder, signature, arguments):
        array_, i_, step_, count_, width_, rows_ = arguments
        count_, width_ = known(count, count_), known(width, width_)
        for number in range(rows.count):
            with builder.if_then(builder.icmp_signed(">", as_value(count_), ir.Constant(I64, number))):
                write_lanes(context, builder, rows.dtype, array_, i_, builder.extract_value(rows_, number), width_)
            i_ = builder.add(i_, step_)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, index_type(count), index_type(width), rows), code


@intrinsic(prefer_literal=True)
def read_repeated(typing_context, array, i, count, lanes):
    """A row of array[i : i + count], over and over."""
    row = Row(array.dtype, lanes.literal_value)

    def code(context, builder, signature, arguments):
        return read_lanes_repeated(context, builder, row, *arguments[:2], count.literal_value)

    return row(array, types.intp, count, lanes), code


@intrinsic(prefer_literal=True)
def repeated(typing_context, rows, count):
    """Each number of a row so many times, side by side. rows: one, or a tuple of them."""
    row = rows if isinstance(rows, Row) else rows.dtype
    result = Row(row.dtype, row.lanes * count.literal_value)

    def code(context, builder, signature, arguments):
        def of_one(row_):
            return pick(builder, row_, row_, [lane // count.literal_value for lane in range(result.lanes)])

        if rows is row:
            return of_one(arguments[0])
        values = [of_one(builder.extract_value(arguments[0], number)) for number in range(rows.count)]
        return context.make_tuple(builder, signature.return_type, values)

    return (result if rows is row else types.UniTuple(result, rows.count))(rows, count), code


@intrinsic(prefer_literal=True)
def add_neighbours(typing_context, acc, count, T, sums):
    """sums[p] = the sums of T numbers each that stand side by side in acc[p], for p < count. T: a power of two.

    Of two rows one shuffle picks the even lanes and another the odd ones, and their sum is one row. So T rows become
    one, which takes half as long as to add them up one by one.
    """
    lanes, together = acc.dtype.lanes, T.literal_value

    def code(context, builder, signature, arguments):
        def slot(rows, rows_, p):
            return _slot(context, builder, rows, rows_, ir.Constant(I64, p))

        def sums_of_two(a_, b_):
            return builder.fadd(*(pick(builder, a_, b_, range(first, 2 * lanes, 2)) for first in (0, 1)))

        acc_, _, _, sums_ = arguments
        for first in range(0, count.literal_value, together):
            here = range(first, min(first + together, count.literal_value))
            rows = [builder.load(slot(acc, acc_, p)) for p in here]
            rows += rows[:1] * (together - len(rows))  # any will do
            while len(rows) > 1:
                rows = [sums_of_two(a_, b_) for a_, b_ in zip(rows[::2], rows[1::2], strict=True)]
            for t, p in enumerate(here):
                own = range(t * lanes // together, (t + 1) * lanes // together)
                builder.store(pick(builder, rows[0], rows[0], own), slot(sums, sums_, p))
        return context.get_dummy_value()

    return types.void(acc, count, T, sums), code


@intrinsic
def transpose(typing_context, rows):
    """The transpose of a square of rows: row i of the result holds number i of each.

    Twos, then fours, and so on: of each square of 2·d × 2·d the upper right and the lower left quarter change places.
    """
    row = rows.dtype

    def code(context, builder, signature, arguments):
        values, lanes = [builder.extract_value(arguments[0], i) for i in range(row.lanes)], range(row.lanes)
        for d in [1 << n for n in range(row.lanes.bit_length() - 1)]:
            upper = [lane + row.lanes - d if lane & d else lane for lane in lanes]
            lower = [lane + row.lanes if lane & d else lane + d for lane in lanes]
            for i in lanes:
                if not i & d:
                    pair = values[i], values[i + d]
                    values[i], values[i + d] = (pick(builder, *pair, places) for places in (upper, lower))
        return context.make_tuple(builder, rows, values)

    return rows(rows), code


@intrinsic
def multiply_add(typing_context, x, row, total):
    """x · row + total, lane by lane, in a fused multiply-add if the CPU has one: rounded once. x: a number or a row."""

    def code(context, builder, signature, arguments):
        x_, row_, total_ = arguments
        if not isinstance(x, Row):
            x_ = broadcast(builder, x_, row.lanes)
        fma = instruction(builder, "llvm.fmuladd", row_.type, [row_.type] * 3)  # llvm.fma would be imitated, slowly
        return builder.call(fma, [x_, row_, total_])

    return row(x if isinstance(x, Row) else row.dtype, row, total), code


def _operator(symbol, name: str) -> None:
    """row ∘ row, lane by lane."""

    @type_callable(symbol)
    def type_of_result(context):
        return lambda a, b: a if isinstance(a, Row) and a == b else None

    @lower_builtin(symbol, Row, Row)
    def code(context, builder, signature, arguments):
        return getattr(builder, name)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


@type_callable(operator.mul)
def _type_of_number_times_row(context):
    return lambda x, row: row if isinstance(x, types.Number) and isinstance(row, Row) else None


@lower_builtin(operator.mul, types.Number, Row)
def _number_times_row(context, builder, signature, arguments):
    """x · row, lane by lane, the number x first rounded to the row's dtype."""
    (x_, row_), (x, row) = arguments, signature.args
    return builder.fmul(broadcast(builder, context.cast(builder, x_, x, row.dtype), row.lanes), row_)


@type_callable(operator.truediv)
def _type_of_row_by_number(context):
    return lambda row, x: row if isinstance(row, Row) and isinstance(x, types.Number) else None


@lower_builtin(operator.truediv, Row, types.Number)
def _row_by_number(context, builder, signature, arguments):
    """row / x, in the same way."""
    (row_, x_), (row, x) = arguments, signature.args
    return builder.fdiv(row_, broadcast(builder, context.cast(builder, x_, x, row.dtype), row.lanes))


@intrinsic
def greater_or_nan(typing_context, a, b):
    """A mask: where a > b, or a is NaN and b is not."""

    def code(context, builder, signature, arguments):
        a_, b_ = arguments
        return builder.and_(builder.fcmp_unordered(">", a_, b_), builder.fcmp_ordered("ord", b_, b_))

    return Row(types.boolean, a.lanes)(a, b), code


@intrinsic
def greater(typing_context, a, b):
    """A mask: where a > b."""

    def code(context, builder, signature, arguments):
        return builder.fcmp_ordered(">", *arguments)

    return Row(types.boolean, a.lanes)(a, b), code


@intrinsic
def equals(typing_context, row, number):
    """A mask: where a row of integers holds this number."""

    def code(context, builder, signature, arguments):
        row_, number_ = arguments
        return builder.icmp_unsigned("==", row_, broadcast(builder, truncated(builder, number_, row_), row.lanes))

    return Row(types.boolean, row.lanes)(row, number), code


@intrinsic
def select(typing_context, mask, a, b):
    """a where the mask is true, else b, lane by lane. b: a row; a: another, or an integer."""

    def code(context, builder, signature, arguments):
        mask_, a_, b_ = arguments
        if not isinstance(a, Row):
            a_ = broadcast(builder, truncated(builder, a_, b_), b.lanes)
        return builder.select(mask_, a_, b_)

    return b(mask, a, b), code


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
