"""Memory that is used again: `empty` hands out arrays like `np.empty`, from blocks that earlier arrays have given back.

A training step needs the same megabytes at every step. Fresh ones would have to come from the operating system, which
clears each page before it hands it over: that costs about as much as the arithmetic. So a block is kept when its array
dies, and the next array of its size gets it.

An array is never overwritten while anybody can see it: the block comes back when the last array that looks at it is
gone, views and slices included. NumPy tells us so, because every view keeps the owner of its memory alive (`a.base`).

What this file is not: it knows nothing of steps or layers; nobody has to reserve or give back anything.
"""

from math import prod

import numpy as np

SMALL = 1 << 17  # bytes; below this NumPy's own allocator is as fast
KEPT = 1 << 29  # bytes that may lie unused, waiting; a block that would be too much is left to Python instead
ALIGNMENT = 64  # bytes of a cache line: a vector that lies in two lines costs two reads

_waiting: dict[int, list["_Block"]] = {}  # unused blocks by their size
_waiting_bytes = 0


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array with arbitrary content. shape, dtype: as for `np.empty`, but a tuple and a dtype."""
    size = prod(shape) * dtype.itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    return np.asarray(_Owner(_block(size), shape, dtype))


def copy(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """The array again, contiguous, in another place; converted if a dtype is given."""
    result = empty(array.shape, array.dtype if dtype is None else dtype)
    np.copyto(result, array, casting="unsafe")
    return result


def give_back() -> None:
    """Leave all blocks that wait to the operating system: for after the training, when something else needs memory."""
    global _waiting_bytes
    _waiting.clear()
    _waiting_bytes = 0


class _Block:
    """Memory for an array that begins at the aligned `address`; so many bytes of it altogether."""

    __slots__ = "address", "memory", "size"

    def __init__(self, size: int):
        self.size, self.memory = size, np.empty(size, np.uint8)
        self.address = -(-self.memory.__array_interface__["data"][0] // ALIGNMENT) * ALIGNMENT  # the next multiple


class _Owner:
    """Owns a block for an array and all its views. When they are gone so is it, and the block waits for another."""

    __slots__ = "__array_interface__", "block"

    def __init__(self, block: _Block, shape: tuple[int, ...], dtype: np.dtype):
        self.block = block
        self.__array_interface__ = {"data": (block.address, False), "shape": shape, "typestr": dtype.str, "version": 3}

    def __del__(self):
        global _waiting_bytes
        if _waiting_bytes + self.block.size <= KEPT:
            _waiting_bytes += self.block.size
            _waiting.setdefault(self.block.size, []).append(self.block)


def _block(size: int) -> _Block:
    """A block for so many bytes: one that waits, up to four times as large, or a new one.

    Sizes come in steps of about an eighth, so that a slightly different batch finds blocks as well.
    """
    global _waiting_bytes
    size += ALIGNMENT
    step = 1 << (size.bit_length() - 4)
    size = -(-size // step) * step
    candidate = size
    while candidate <= 4 * size:
        if _waiting.get(candidate):
            _waiting_bytes -= candidate
            return _waiting[candidate].pop()
        candidate += 1 << (candidate.bit_length() - 4)
    return _Block(size)
