"""The dense layer as hot loops: two matrix products on the register tile of vector.py.

    dense:                  y[n, :]  = b + Σ_k x[n, k] · w[k, :]        tile: P images of the batch × L units
    dense_weight_gradient:  dw[k, :] =     Σ_n x[n, k] · dy[n, :]       tile: R inputs × L units

The input gradient dx = dy · wᵀ is `dense` again, on the transposed weights. Why not NumPy's `@`? It is as fast, but its
BLAS library keeps threads of its own, which spin while Numba's work and the other way round: a step then takes three
times as long.
"""

from functools import cache

import numpy as np
from numba import prange

from tinycnn.kernels.vector import kernel, load_row, multiply_add, store_row, tile, tile_shape


def dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y = x · w + b.  x (N, K), w (K, O), b (O,), contiguous and of one dtype -> y (N, O)."""
    y = np.empty((len(x), w.shape[1]), x.dtype)
    if y.size:
        _dense_kernel(*tile_shape(len(x), w.shape[1], x.dtype))(x, w, b, y)
    return y


def dense_weight_gradient(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dw = xᵀ · dy.  x (N, K), dy (N, O), contiguous and of one dtype -> dw (K, O)."""
    dw = np.empty((x.shape[1], dy.shape[1]), x.dtype)
    if dw.size:
        _weight_gradient_kernel(*tile_shape(x.shape[1], dy.shape[1], x.dtype))(x, dy, dw)
    return dw


@cache
def _dense_kernel(P: int, L: int):
    @kernel
    def dense_tiles(x, w, b, y):
        N, K = x.shape
        O = w.shape[1]
        for t in prange((N + P - 1) // P):
            acc = tile(P, L, x)
            n = min(t * P, N - P)  # the last tile may repeat rows of the one before it: the same values, twice
            for o in range(0, O, L):
                width = min(L, O - o)
                for p in range(P):
                    load_row(acc, p, b, o, width)
                for k in range(K):
                    for p in range(P):
                        multiply_add(acc, p, x, (n + p) * K + k, w, k * O + o, width)
                for p in range(P):
                    store_row(acc, p, y, (n + p) * O + o, width)

    return dense_tiles


@cache
def _weight_gradient_kernel(R: int, L: int):
    @kernel
    def dense_weight_gradient_tiles(x, dy, dw):
        N, K = x.shape
        O = dy.shape[1]
        zeros = np.zeros(L, x.dtype)
        for t in prange((K + R - 1) // R):
            acc = tile(R, L, x)
            k = min(t * R, K - R)
            for o in range(0, O, L):
                width = min(L, O - o)
                for r in range(R):
                    load_row(acc, r, zeros, 0, width)
                for n in range(N):
                    for r in range(R):
                        multiply_add(acc, r, x, n * K + k + r, dy, n * O + o, width)
                for r in range(R):
                    store_row(acc, r, dw, (k + r) * O + o, width)

    return dense_weight_gradient_tiles
