"""Operations on rows that all stay in registers: every multiply-add is written out, none is in a loop.

In `vector.py`'s tile each row of w is loaded, used P times, and forgotten. Where w has few of them, as a first layer's
has three under each row of a 3×3 kernel, they stay in registers beside the running sums. Then it pays to go the other
way: to load each number (or row) of x once, and to use it at once for all the sums that it goes into, whichever pixels
they are of.

    multiply_add_rows       numbers of x times held rows: `convolution.py`, `convolution_backward.py`
    multiply_add_windows    rows of x times held rows, lane by lane: `narrow_convolution.py`
    sums_of_lanes           adds up the lanes of each of the latter's sums

What this file is not: for more rows than have room beside the sums. LLVM would put them on the stack.
"""

from itertools import product

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinycnn.kernels.llvm import I64, Row, instruction, pick, read_lanes, read_lanes_repeated


@intrinsic(prefer_literal=True)
def multiply_add_rows(typing_context, acc, groups, group_step, count, step, x, i, rows, row_step, T):
    """acc[g · count + r] += Σ_t x[i + g · group_step + r · step + t · row_step] · rows[t]  for g < groups, r < count.

    x[…] is the number there; or T numbers from there on, over and over (`read_repeated`). Each is loaded once for all
    the sums that it goes into. All but group_step, i and what the arrays hold must be literals: every multiply-add is
    written out.
    """

    def code(context, builder, signature, arguments):
        acc_, _, group_step_, _, _, x_, i_, rows_, _, _ = arguments
        starts = [i_]
        for _ in range(1, groups.literal_value):
            starts.append(builder.add(starts[-1], group_step_))
        uses = {}  # of each number of x: (which sum, which row)
        for r, t in product(range(count.literal_value), range(rows.count)):
            for g in range(groups.literal_value):
                place = r * step.literal_value + t * row_step.literal_value, g
                uses.setdefault(place, []).append((g * count.literal_value + r, t))

        def row_of_x(place):
            there_ = builder.add(starts[place[1]], ir.Constant(I64, place[0]))
            return read_lanes_repeated(context, builder, rows.dtype, x_, there_, T.literal_value)

        rows_of_w = [builder.extract_value(rows_, t) for t in range(rows.count)]
        _multiply_add_each(context, builder, rows.dtype, acc_, uses, row_of_x, rows_of_w)
        return context.get_dummy_value()

    return types.void(acc, groups, types.intp, count, step, x, types.intp, rows, row_step, T), code


@intrinsic(prefer_literal=True)
def multiply_add_windows(
    typing_context, acc, count, stride, outputs, x, i, column, width, spread, pixel, lanes, no_pixel, first, end,
    w, j, columns, held,
):  # fmt: skip
    """acc[p · outputs + o] += Σ_t z[column + p · stride + t] · w_row[t · outputs + o]  for p < count, t < columns.

    z is a line of pixels, a row each: pixel v of x, `lanes` numbers from x[i + v · pixel] on, is z[v · spread] for
    0 <= v < width; all else is zeros, of the padding or between pixels that stand apart. They are read from no_pixel:
    if the compiler knew that they are zeros, it would branch instead, and load all rows of z before their first use.
    first, end: from z[column + first] on and before z[column + end] all are pixels, whatever the column is.

    The rows of w stand one behind the other at w[j]; those of so many t stay in registers together (`held`), and
    meanwhile each row of z is loaded once for all the sums that it goes into, as a number by `multiply_add_rows`: with
    count = 2, a stride of 1 and three t, z[0] for (p, t) = (0, 0), z[1] for (0, 1) and (1, 0), z[2] for (0, 2) and
    (1, 1), z[3] for (1, 2).
    """
    row = acc.dtype

    def code(context, builder, signature, arguments):
        acc_, _, _, _, x_, i_, column_, width_, _, _, _, no_pixel_, _, _, w_, j_, _, _ = arguments
        spread_, pixel_ = (ir.Constant(I64, literal.literal_value) for literal in (spread, pixel))

        def row_of_z(place):
            here_ = builder.add(column_, ir.Constant(I64, place))
            v_ = builder.sdiv(here_, spread_)
            pointer = builder.gep(x_, [builder.add(i_, builder.mul(v_, pixel_))])
            if not first.literal_value <= place < end.literal_value:
                inside = builder.icmp_unsigned("<", v_, width_)  # a negative number would be a large one
                inside = builder.and_(inside, builder.icmp_signed("==", builder.mul(v_, spread_), here_))
                pointer = builder.select(inside, pointer, no_pixel_)
            return read_lanes(context, builder, row, pointer, ir.Constant(I64, 0), lanes.literal_value)

        for first_t in range(0, columns.literal_value, held.literal_value):
            uses, rows = {}, []  # of each row of z: (which sum, which of rows)
            for t, o in product(range(first_t, first_t + held.literal_value), range(outputs.literal_value)):
                for p in range(count.literal_value):
                    use = p * outputs.literal_value + o, len(rows)
                    uses.setdefault(p * stride.literal_value + t, []).append(use)
                there_ = builder.add(j_, ir.Constant(I64, (t * outputs.literal_value + o) * row.lanes))
                rows.append(read_lanes(context, builder, row, w_, there_, row.lanes))
            _multiply_add_each(context, builder, row, acc_, uses, row_of_z, rows)
        return context.get_dummy_value()

    z_types = x, types.intp, types.intp, types.intp, spread, pixel, lanes, no_pixel, first, end
    return types.void(acc, count, stride, outputs, *z_types, w, types.intp, columns, held), code


def _multiply_add_each(context, builder, row: Row, acc_, uses: dict, load, rows: list) -> None:
    """acc[q] += load(place) · rows[t] for all (q, t) in uses[place], place after place."""
    vector = context.get_value_type(row)
    fma = instruction(builder, "llvm.fmuladd", vector, [vector] * 3)
    sums = builder.bitcast(acc_, vector.as_pointer())
    for place in sorted(uses):
        x_row = load(place)
        for q, t in uses[place]:
            slot = builder.gep(sums, [ir.Constant(I64, q)])
            builder.store(builder.call(fma, [x_row, rows[t], builder.load(slot)]), slot)


@intrinsic(prefer_literal=True)
def sums_of_lanes(typing_context, acc, first, count):
    """A row: its lane q is the sum of the lanes of acc[first + q] for q < count ≤ L; the other lanes are 0.

    Two rows become one, each lane of it the sum of two: rows a and b of four lanes are first

        a0 + a1   b0 + b1   a2 + a3   b2 + b3

    and, with what c and d have become, a0 + a1 + a2 + a3 and so on. What stays in its lane needs no shuffle.
    """
    row = acc.dtype

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(row)
        sums, zeros = builder.bitcast(arguments[0], vector.as_pointer()), ir.Constant(vector, None)
        rows = [
            builder.load(builder.gep(sums, [ir.Constant(I64, first.literal_value + q)]))
            for q in range(count.literal_value)
        ]
        rows += [zeros] * (row.lanes - len(rows))
        distance = 1  # between the two lanes of a sum
        while len(rows) > 1:
            # Lane i of the sum is of row a, or of b if i has that bit.
            own = [i + (row.lanes if i & distance else 0) for i in range(row.lanes)]
            other = [lane ^ distance for lane in own]
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [builder.fadd(pick(builder, a, b, own), pick(builder, a, b, other)) for a, b in pairs]
            distance *= 2
        return rows[0]

    return row(acc, first, count), code
