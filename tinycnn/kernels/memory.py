"""Memory that is used again: `empty` hands out arrays like `np.empty`, from blocks that earlier arrays have given back.

A training step needs the same megabytes at every step. Fresh ones would have to come from the operating system, which
clears each page before it hands it over: that costs about as much as the arithmetic. So a block is kept when its array
dies, and the next array of its size gets it.

An array is never overwritten while anybody can see it: the block comes back when the last array that looks at it is
gone, views and slices included. NumPy tells us so, because every view keeps the owner of its memory alive: `a.base`.
(Whoever goes on to the base's base has found the block itself, and sees it used again.)

What a kernel needs for itself, its *scratch memory*, is another matter: it is over when the kernel ends, and each
thread has one place for all of it.

What this file is not: it knows nothing of steps or layers; nobody has to reserve an array or give it back.
"""

import threading
from contextlib import suppress
from math import ceil, prod

import numpy as np

SMALL = 1 << 17  # bytes; below this NumPy's own allocator is as fast
KEPT = 1 << 31  # bytes that may lie unused, waiting; those that have waited for longest make room
ALIGNMENT = 64  # bytes of a cache line: a vector that lies in two lines costs two reads

_waiting: dict[int, list["_Block"]] = {}  # unused blocks by size, in each list the one that came back last at the end
_waiting_bytes = 0
_returns = 0  # so many blocks have come back
# For all three. Who holds it may come again, at nearly any step: Python collects garbage, and then arrays die.
_lock = threading.RLock()
_scratch: list[np.ndarray] = []  # what is unused of it; more than one only if several threads of Python compute at once


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array with arbitrary content. shape, dtype: as for `np.empty`, but a tuple and a dtype."""
    size = prod(shape) * dtype.itemsize
    if size < SMALL or dtype.hasobject:
        return np.empty(shape, dtype)
    block = _block(size)
    # In the middle: of every array a thread writes its part, the first half for example. What it has of the block in
    # its core's cache then is its part of this array as well, whatever the size of the one before.
    begin = (block.size - size) // 2 // ALIGNMENT * ALIGNMENT
    return np.ndarray(shape, dtype, block.view(_Owner), begin)


def copy(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """The array again, contiguous, in another place; converted if a dtype is given.

    Raises TypeError if that is of another kind: complex numbers or objects, say, become no real numbers.
    """
    result = empty(array.shape, array.dtype if dtype is None else dtype)
    np.copyto(result, array, casting="same_kind")
    return result


def contiguous(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """The array if it is contiguous, writable and of the dtype (if one is given); else a copy that is."""
    if array.flags.carray and (dtype is None or dtype == array.dtype):  # numpy takes None for float64
        return array
    return copy(array, dtype)


def take_scratch(threads: int, size: int) -> np.ndarray:
    """A row of at least so many bytes for each thread, of arbitrary float32 numbers, until `return_scratch`.

    It is the same one again and again, as large as was asked for before. So a thread writes where it wrote before,
    which its core still has at hand; memory that another core wrote last would take several times as long.
    """
    try:
        scratch = _scratch.pop()
    except IndexError:
        scratch = None
    if scratch is None or scratch.nbytes < threads * size:
        size = ceil(size / ALIGNMENT) * ALIGNMENT
        scratch = np.ndarray((threads, size // 4), np.float32, _block(threads * size))
    return scratch


def return_scratch(scratch: np.ndarray) -> None:
    """What `take_scratch` returned is not used any more."""
    if scratch.nbytes <= KEPT:
        _scratch.append(scratch)


def free_unused() -> None:
    """Leave all blocks that wait to the operating system: for after the training, when something else needs memory."""
    global _waiting_bytes
    with _lock:
        _scratch.clear()
        _waiting.clear()
        _waiting_bytes = 0


class _Block(np.ndarray):
    """Memory that is used again, as an array of bytes. `returned`: when it came back, counted in `_returns`."""


class _Owner(np.ndarray):
    """A block while it is in use. The array in it, and so all its views, keep this alive; then the block waits again.

    (NumPy shortens chains of views of one class: a view of a view would keep only what the first one looks at. Two
    classes keep the chain, array -> owner -> block.)
    """

    def __del__(self):
        global _waiting_bytes, _returns
        block = self.base
        if type(block) is not _Block:
            return
        with _lock:
            _returns += 1
            block.returned = _returns
            _waiting.setdefault(block.size, []).append(block)
            _waiting_bytes += block.size
            while _waiting_bytes > KEPT:
                _, oldest = min((blocks[0].returned, size) for size, blocks in list(_waiting.items()) if blocks)
                with suppress(IndexError):
                    block = _waiting[oldest].pop(0)
                    _waiting_bytes -= block.size


def _block(size: int) -> _Block:
    """A block for so many bytes: one that waits, up to twice as large, or a new one.

    Sizes come in steps of about an eighth, so that a slightly different batch finds blocks as well.
    """
    global _waiting_bytes
    step = 1 << (size.bit_length() - 4)
    size = ceil(size / step) * step
    candidate = size
    with _lock:
        while candidate <= 2 * size:
            try:
                block = _waiting[candidate].pop()
            except (KeyError, IndexError):
                candidate += 1 << (candidate.bit_length() - 4)
            else:
                _waiting_bytes -= candidate
                return block
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(_Block)
