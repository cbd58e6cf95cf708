"""The dense layer as hot loops: three matrix products on the register tile of vector.py.

    dense:                  y[n, :]  = b + Σ_k x[n, k] · w[k, :]        tile: P images of the batch × L units
    dense_input_gradient:   dx = dy · wᵀ                                the same, with dy for x and wᵀ for w
    dense_weight_gradient:  dw[k, :] =     Σ_n x[n, k] · dy[n, :]       tile: P inputs × L units

Tile after tile meets the same L columns of a matrix. In memory their rows are far from each other, which a CPU's cache
and prefetcher handle badly, so the columns are first copied side by side; but not where only one tile uses them, or
where there are no others. Those of wᵀ are always copied: in w they are rows, which are transposed in registers, a
square of them at a time.

Why not NumPy's `@`? It is as fast, but its BLAS library keeps threads of its own, which spin while Numba's work and the
other way round: a step then takes three times as long.

What this file is not: a general matrix product; its matrices lie as the layer has them.
"""

from functools import cache
from math import ceil

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import register_lanes, tile_shape
from tinycnn.kernels.vector import multiply_add, read, read_rows, tile, transpose, write, write_rows

FEW = 16  # terms of a sum: dx of a classifier's last layer has no more, one for each class


def dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y = x · w + b.  x (N, K), w (K, O), b (O,), contiguous and of one dtype -> y (N, O)."""
    return _product(x, w, b)


def dense_input_gradient(dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """dx = dy · wᵀ.  dy (N, O), w (K, O), contiguous and of one dtype -> dx (N, K)."""
    return _product(dy, w, np.zeros(len(w), w.dtype), w_transposed=True)


def dense_weight_gradient(x: np.ndarray, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """dw = xᵀ · dy.  x (N, K), dy (N, O), contiguous and of one dtype -> dw (K, O), which is `out` if that is given."""
    return _product(x, dy, np.zeros(dy.shape[1], dy.dtype), x_transposed=True, out=out)


def _product(x, w, b, x_transposed: bool = False, w_transposed: bool = False, out=None) -> np.ndarray:
    """y = x · w + b, with xᵀ for x or wᵀ for w if they are transposed."""
    (N, K), O = x.shape[::-1] if x_transposed else x.shape, len(b)
    y = empty((N, O), x.dtype) if out is None else out
    if y.size:
        P, L = tile_shape(N, O, x.dtype)
        down, across = ceil(N / P), ceil(O / L)
        parts = parts_for(down * across, K * y.size)
        copied = w_transposed or (down > 1 and across > 1)
        sizes = (parts, N, K, O, w_transposed, copied, K <= FEW)
        run(_product_task(P, L, x.dtype, x_transposed), parts, sizes, x, w, b, y, scratch=K * L if copied else 0)
    return y


@cache
def _product_task(P: int, L: int, dtype: np.dtype, x_transposed: bool = False):
    S = min(L, register_lanes(dtype))  # the side of the blocks in which wᵀ is copied

    @task(dtype, dtype, dtype, dtype, dtype)
    def product_tiles(part, sizes, columns, x, w, b, y):
        parts, N, K, O, w_transposed, copied, across_first = numbers(sizes, 7)
        acc = tile(P, L, x)
        down, across, last_o = (N + P - 1) // P, (O + L - 1) // L, -1
        for t in range(part * down * across // parts, (part + 1) * down * across // parts):
            # Down first: all the images meet the same columns of w. Across first: a part has some images whole, which
            # stay in one core; but the columns are copied anew for each tile, which costs little if terms are few.
            tile_n, tile_o = (t // across, t % across) if across_first else (t % down, t // down)
            n = min(tile_n * P, N - P)  # the last tile may repeat rows of the one before it: the same values, twice
            o = tile_o * L
            width = min(L, O - o)
            source, start, step = (columns, 0, L) if copied else (w, o, O)
            if copied and o != last_o:
                if not x_transposed and w_transposed:  # never both; said so, the compiler leaves this out of dw
                    for k in range(0, K, S):
                        for i in range(0, width, S):
                            block = read_rows(w, (o + i) * K + k, K, width - i, min(S, K - k), S, S)
                            write_rows(columns, k * L + i, L, K - k, S, transpose(block))
                else:
                    for k in range(K):
                        write(columns, k * L, read(w, k * O + o, width, L), L)
            last_o = o
            for p in range(P):
                acc[p] = read(b, o, width, L)
            for k in range(K):
                w_row = read(source, start + k * step, width, L)
                for p in range(P):
                    place = k * N + n + p if x_transposed else (n + p) * K + k
                    acc[p] = multiply_add(x[place], w_row, acc[p])
            for p in range(P):
                write(y, (n + p) * O + o, acc[p], width)

    return product_tiles
