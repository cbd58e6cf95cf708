"""What a row and a tile (`vector.py`) are to the compiler, and small pieces of code that the operations are made of.

How an operation is written, and what a name that ends in _ stands for: see `vector.py`.

What this file is not: something to call from a kernel.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from tinycnn.kernels.tile_shape import masks_are_free

I32, I64 = ir.IntType(32), ir.IntType(64)


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


def index_type(kind: types.Type) -> types.Type:
    """The type to take an integer as: a literal stays one, and code of its own is made for it."""
    return kind if isinstance(kind, types.IntegerLiteral) else types.intp


def known(kind: types.Type, value_):
    """The number itself if the compiler knows it, else its value in LLVM."""
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else value_


def as_value(number):
    """What `known` returned, as a value in LLVM again."""
    return ir.Constant(I64, number) if isinstance(number, int) else number


def read_lanes(context, builder, row: Row, array_, i_, width_):
    """array[i : i + width] as a row, zero beyond. width_: what `known` returned."""
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
            load = instruction(builder, "llvm.masked.load", vector, [pointer.type, I32, mask.type, vector], ".p0")
            zeros, alignment = ir.Constant(vector, None), ir.Constant(I32, _alignment(row))
            builder.store(builder.call(load, [pointer, alignment, mask, zeros]), slot)
    return builder.load(slot)


def read_lanes_repeated(context, builder, row: Row, array_, i_, count: int):
    """A row of array[i : i + count], over and over."""
    if count == 1:
        return broadcast(builder, builder.load(builder.gep(array_, [i_])), row.lanes)
    numbers_ = read_lanes(context, builder, Row(row.dtype, count), array_, i_, count)
    return pick(builder, numbers_, numbers_, [lane % count for lane in range(row.lanes)])


def write_lanes(context, builder, row: Row, array_, i_, row_, width_):
    """array[i : i + width] = row. width_: what `known` returned."""
    pointer = builder.bitcast(builder.gep(array_, [i_]), row_.type.as_pointer())
    if width_ == row.lanes:
        builder.store(row_, pointer, align=_alignment(row))
        return
    if isinstance(width_, int) and not masks_are_free():
        _write_pieces(builder, row, array_, i_, row_, width_)
        return
    with builder.if_else(_is_whole(builder, row, width_)) as (whole, narrower):
        with whole:
            builder.store(row_, pointer, align=_alignment(row))
        with narrower:
            mask = _first_lanes(builder, row.lanes, width_)
            store = instruction(
                builder, "llvm.masked.store", ir.VoidType(), [row_.type, pointer.type, I32, mask.type], ".p0"
            )
            builder.call(store, [row_, pointer, ir.Constant(I32, _alignment(row)), mask])


def _write_pieces(builder, row: Row, array_, i_, row_, width: int):
    """array[i : i + width] = row, in halves, quarters, … of a row. width: below its lanes."""
    first, size = 0, row.lanes // 2
    while first < width:
        if first + size <= width:
            piece_ = pick(builder, row_, row_, range(first, first + size))
            there_ = builder.gep(array_, [builder.add(i_, ir.Constant(I64, first))])
            builder.store(piece_, builder.bitcast(there_, piece_.type.as_pointer()), align=_alignment(row))
            first += size
        size //= 2


def _alignment(row: Row) -> int:
    """Bytes: a row may begin at any number."""
    return row.dtype.bitwidth // 8


def _is_whole(builder, row: Row, width_):
    """Whether all lanes are within the width, where it pays to ask."""
    if masks_are_free():
        return ir.Constant(ir.IntType(1), 0)
    return builder.icmp_signed(">=", as_value(width_), ir.Constant(I64, row.lanes))


def broadcast(builder, number_, lanes: int):
    """A vector with the number in every lane."""
    undefined = ir.Constant(ir.VectorType(number_.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number_, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), None))


def pick(builder, a_, b_, lanes):
    """A vector of these lanes, counted through the vectors a and b."""
    return builder.shuffle_vector(a_, b_, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def truncated(builder, number_, row_):
    """The integer in the (smaller) type of the row's lanes."""
    return builder.trunc(number_, row_.type.element)


def _first_lanes(builder, lanes: int, width_):
    """The mask of the lanes 0 … width − 1."""
    numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, broadcast(builder, builder.trunc(as_value(width_), I32), lanes))


def instruction(builder, name: str, result, arguments: list, suffix: str = ""):
    """The LLVM intrinsic `name` for the vector type among its result and arguments."""
    row = result if isinstance(result, ir.VectorType) else arguments[0]
    element = {"float": "f32", "double": "f64"}.get(str(row.element), str(row.element))
    full_name = f"{name}.v{row.count}{element}{suffix}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), full_name)
