"""The dense layer as hot loops: two matrix products on the register tile of vector.py.

    dense:                  y[n, :]  = b + Σ_k x[n, k] · w[k, :]        tile: P images of the batch × L units
    dense_weight_gradient:  dw[k, :] =     Σ_n x[n, k] · dy[n, :]       tile: R inputs × L units

The input gradient dx = dy · wᵀ is `dense` again, on the transposed weights. Why not NumPy's `@`? It is as fast, but its
BLAS library keeps threads of its own, which spin while Numba's work and the other way round: a step then takes three
times as long.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import numbers, parts_for, run, task
from tinycnn.kernels.vector import multiply_add, read, tile, tile_shape, write


def dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y = x · w + b.  x (N, K), w (K, O), b (O,), contiguous and of one dtype -> y (N, O)."""
    y = empty((len(x), w.shape[1]), x.dtype)
    if y.size:
        P, L = tile_shape(len(x), w.shape[1], x.dtype)
        parts = parts_for(-(-len(x) // P) * -(-w.shape[1] // L), w.size * len(x))
        run(_dense_task(P, L, x.dtype), parts, (parts, *x.shape, w.shape[1]), x, w, b, y)
    return y


def dense_weight_gradient(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dw = xᵀ · dy.  x (N, K), dy (N, O), contiguous and of one dtype -> dw (K, O)."""
    dw = empty((x.shape[1], dy.shape[1]), x.dtype)
    if dw.size:
        R, L = tile_shape(x.shape[1], dy.shape[1], x.dtype)
        parts = parts_for(-(-x.shape[1] // R), dw.size * len(x))
        run(_weight_gradient_task(R, L, x.dtype), parts, (parts, *x.shape, dy.shape[1]), x, dy, dw)
    return dw


@cache
def _dense_task(P: int, L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype)
    def dense_tiles(part, sizes, x, w, b, y):
        parts, N, K, O = numbers(sizes, 4)
        acc = tile(P, L, x)
        down, across = (N + P - 1) // P, (O + L - 1) // L
        # Down first: all the images meet the same columns of w while those are in the cache.
        for t in range(part * down * across // parts, (part + 1) * down * across // parts):
            n = min(t % down * P, N - P)  # the last tile may repeat rows of the one before it: the same values, twice
            o = t // down * L
            width = min(L, O - o)
            for p in range(P):
                acc[p] = read(b, o, width, L)
            for k in range(K):
                w_row = read(w, k * O + o, width, L)
                for p in range(P):
                    acc[p] = multiply_add(x[(n + p) * K + k], w_row, acc[p])
            for p in range(P):
                write(y, (n + p) * O + o, acc[p], width)

    return dense_tiles


@cache
def _weight_gradient_task(R: int, L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype)
    def dense_weight_gradient_tiles(part, sizes, x, dy, dw):
        parts, N, K, O = numbers(sizes, 4)
        acc = tile(R, L, x)
        tiles = (K + R - 1) // R
        for t in range(part * tiles // parts, (part + 1) * tiles // parts):
            k = min(t * R, K - R)
            for o in range(0, O, L):
                width = min(L, O - o)
                for r in range(R):
                    acc[r] = read(x, 0, 0, L)  # no lanes: zeros
                for n in range(N):
                    dy_row = read(dy, n * O + o, width, L)
                    for r in range(R):
                        acc[r] = multiply_add(x[n * K + k + r], dy_row, acc[r])
                for r in range(R):
                    write(dw, (k + r) * O + o, acc[r], width)

    return dense_weight_gradient_tiles
