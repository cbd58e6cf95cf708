"""The dense layer as hot loops: three matrix products on the register tile of vector.py.

    dense:                  y[n, :]  = b + Σ_k x[n, k] · w[k, :]        tile: P images of the batch × L units
    dense_input_gradient:   dx = dy · wᵀ                                the same
    dense_weight_gradient:  dw[k, :] =     Σ_n x[n, k] · dy[n, :]       tile: R inputs × L units

Tile after tile meets the same L columns of a matrix. In memory their rows are far from each other, which a CPU's cache
and its foresight handle badly, so the columns are first copied side by side; but not where only one tile uses them, or
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
from tinycnn.kernels.vector import multiply_add, read, read_rows, tile, transpose, write, write_rows, zeros


def dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y = x · w + b.  x (N, K), w (K, O), b (O,), contiguous and of one dtype -> y (N, O)."""
    return _product(x, w, b)


def dense_input_gradient(dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """dx = dy · wᵀ.  dy (N, O), w (K, O), contiguous and of one dtype -> dx (N, K)."""
    return _product(dy, w, np.zeros(len(w), w.dtype), transposed=True)


def _product(x: np.ndarray, w: np.ndarray, b: np.ndarray, transposed: bool = False) -> np.ndarray:
    """x · w + b, or x · wᵀ + b."""
    K, O = w.shape[::-1] if transposed else w.shape
    y = empty((len(x), O), x.dtype)
    if y.size:
        P, L = tile_shape(len(x), O, x.dtype)
        down, across = ceil(len(x) / P), ceil(O / L)
        parts = parts_for(down * across, w.size * len(x))
        copied = transposed or (down > 1 and across > 1)
        sizes = (parts, len(x), K, O, transposed, copied)
        run(_product_task(P, L, x.dtype), parts, sizes, x, w, b, y, scratch=K * L if copied else 0)
    return y


def dense_weight_gradient(x: np.ndarray, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """dw = xᵀ · dy.  x (N, K), dy (N, O), contiguous and of one dtype -> dw (K, O), which is `out` if that is given."""
    dw = empty((x.shape[1], dy.shape[1]), x.dtype) if out is None else out
    if dw.size:
        R, L = tile_shape(*dw.shape, x.dtype)
        down, across = ceil(x.shape[1] / R), ceil(dy.shape[1] / L)
        parts = parts_for(down * across, dw.size * len(x))
        copied = down > 1 and across > 1
        sizes = (parts, *x.shape, dy.shape[1], copied)
        run(_weight_gradient_task(R, L, x.dtype), parts, sizes, x, dy, dw, scratch=len(x) * L if copied else 0)
    return dw


@cache
def _product_task(P: int, L: int, dtype: np.dtype):
    S = min(L, register_lanes(dtype))  # the side of the blocks in which wᵀ is copied

    @task(dtype, dtype, dtype, dtype, dtype)
    def product_tiles(part, sizes, columns, x, w, b, y):
        parts, N, K, O, transposed, copied = numbers(sizes, 6)
        acc = tile(P, L, x)
        down, across, last_o = (N + P - 1) // P, (O + L - 1) // L, -1
        # Down first: all the images meet the same columns of w.
        for t in range(part * down * across // parts, (part + 1) * down * across // parts):
            n = min(t % down * P, N - P)  # the last tile may repeat rows of the one before it: the same values, twice
            o = t // down * L
            width = min(L, O - o)
            source, start, step = (columns, 0, L) if copied else (w, o, O)
            if copied and o != last_o:
                if transposed:
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
                    acc[p] = multiply_add(x[(n + p) * K + k], w_row, acc[p])
            for p in range(P):
                write(y, (n + p) * O + o, acc[p], width)

    return product_tiles


@cache
def _weight_gradient_task(R: int, L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype)
    def dense_weight_gradient_tiles(part, sizes, columns, x, dy, dw):
        parts, N, K, O, copied = numbers(sizes, 5)
        acc = tile(R, L, x)
        down, across, last_o = (K + R - 1) // R, (O + L - 1) // L, -1
        for t in range(part * down * across // parts, (part + 1) * down * across // parts):
            k = min(t % down * R, K - R)
            o = t // down * L
            width = min(L, O - o)
            source, start, step = (columns, 0, L) if copied else (dy, o, O)
            if copied and o != last_o:
                for n in range(N):
                    write(columns, n * L, read(dy, n * O + o, width, L), L)
            last_o = o
            for r in range(R):
                acc[r] = zeros(x, L)
            for n in range(N):
                dy_row = read(source, start + n * step, width, L)
                for r in range(R):
                    acc[r] = multiply_add(x[n * K + k + r], dy_row, acc[r])
            for r in range(R):
                write(dw, (k + r) * O + o, acc[r], width)

    return dense_weight_gradient_tiles
