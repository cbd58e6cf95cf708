"""The shape of the register tile, chosen from the processor's vector width and number of registers.

What a tile is: see `vector.py`. A kernel asks `tile_shape` for (P, L), P rows of L numbers; one that keeps rows of w in
registers as well asks `holding_tile`, or counts with `usable_registers` what else it keeps there. There is room for
13 × 32 float32 numbers with AVX-512, for 6 × 16 with AVX2, for 13 × 8 with ARM's NEON; only `vector_registers`
looks at the processor.

What this file is not: measurements of this machine. It is a model of a core, coarse enough to hold for all of them.
"""

import platform
from functools import cache, lru_cache
from math import ceil, inf

import llvmlite.binding
import numpy as np
from numba.core import config

MOST_ROWS = 14  # of a tile: more gain nothing and cost compile time


@cache
def vector_registers() -> tuple[int, int]:
    """(bytes in a vector register, number of them) of the CPU that Numba compiles for."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16, 32  # NEON
    features = llvmlite.binding.get_host_cpu_features().flatten()
    if config.CPU_NAME or config.CPU_FEATURES is not None:  # compiling for another CPU: the host's don't count
        features = config.CPU_FEATURES or ("" if config.CPU_NAME == "generic" else "+avx2")
    if "+avx512f" in features:
        return 64, 32
    return (32, 16) if "+avx" in features else (16, 16)


@lru_cache(maxsize=1000)
def tile_shape(rows: int, columns: int, dtype: np.dtype, steps: float = inf, multiple: int = 1) -> tuple[int, int]:
    """The tile (P, L) that covers an output of `rows` × `columns` in the least time; a row of columns is contiguous.

    L is V = 1, 2 or 4 vectors, halves of vectors where they suffice. A step of the tile reads V vectors of w and P
    numbers of x, and does P·V multiply-adds:

        registers   P·V sums, V vectors of w and one number of x must fit into `usable_registers`; with V = 1 four
                    numbers, for each is used only once, and LLVM reads them ahead
        time        a core starts two multiply-adds in a cycle (AMD's Zen 4 one, if of 64 bytes) and two reads (one of
                    w counts as two, because it is less near than x), and needs four cycles for a multiply-add:
                    max(P·V, P + 2V, 8) half cycles, and (V + 1) / 2 for the loop; the innermost loop, of so many
                    `steps`, takes some 5·P + 15 to begin, and 10·P·V more if the output's rows are narrower than L,
                    because only AVX-512 writes some lanes of a vector as fast as all

    Tiles that stick out of the output do work for nothing: 13 rows are better one tile of 13 than two of 7. That is why
    the best shape depends on the output. P never exceeds `rows` and MOST_ROWS. It is a multiple of `multiple`, which
    must be at most 10, or 16 registers leave no tile.
    """
    lanes = filled_lanes(columns, dtype)
    usable = usable_registers()
    shapes = [
        (P, V * lanes)
        for V, numbers in ((1, 4), (2, 1), (4, 1))
        for P in range(multiple, min(rows, MOST_ROWS) + 1, multiple)
        if P * V + V + numbers <= usable
    ]
    return min(shapes, key=lambda shape: _time(shape, rows, columns, lanes, steps))


def usable_registers() -> int:
    """How many a tile may fill: all but a sixteenth, because one that spills to memory runs at a third of the speed."""
    return vector_registers()[1] * 15 // 16


def holding_tile(rows: int, held: int, multiple: int = 1) -> int:
    """P for a tile of single vectors that holds `held` rows of w in registers beside its sums, and a number of x.

    An `even_tile` of at most MOST_ROWS, a multiple of `multiple`.
    """
    room = usable_registers() - held - 1
    largest = max(multiple, min(MOST_ROWS, room) // multiple * multiple)
    return ceil(even_tile(rows, largest) / multiple) * multiple


def even_tile(rows: int, most: int) -> int:
    """P at most `most`: as few tiles as cover so many rows, and then the smallest."""
    return ceil(rows / ceil(rows / most))


def tile_time(rows: int, columns: int, dtype: np.dtype, steps: float = inf) -> float:
    """The half cycles of one step of all the tiles of `tile_shape`, by the same model."""
    shape = tile_shape(rows, columns, dtype, steps)
    return _time(shape, rows, columns, filled_lanes(columns, dtype), steps)


def _time(shape: tuple[int, int], rows: int, columns: int, lanes: int, steps: float) -> float:
    (P, L), V = shape, shape[1] // lanes
    begin = 5 * P + 15 + (10 * P * V if columns < L and not masks_are_free() else 0)
    step = max(P * V, P + 2 * V, 8) + (V + 1) / 2 + begin / steps
    return ceil(rows / P) * ceil(columns / L) * step


def masks_are_free() -> bool:
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
