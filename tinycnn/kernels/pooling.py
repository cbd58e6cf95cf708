"""Max-pooling as hot loops. Every loop's innermost index is the channel, which the compiler turns into vectors.

    max_pool:           y[n, i, j, c] = max over the window of x, and winners[n, i, j, c] = which cell of it that was
    max_pool_backward:  dx of the winning cell += dy; the other cells of the window get nothing

The cells of a window are numbered in reading order, and a cell takes the lead only if it is strictly greater: among
equal maxima the first one wins, and it alone receives the gradient.
"""

import numpy as np
from numba import prange

from tinycnn.kernels.vector import kernel


def max_pool(x: np.ndarray, pool_size: tuple[int, int], stride: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x (N, H, W, C), contiguous -> y and winners, both (N, (H − ph) // sh + 1, (W − pw) // sw + 1, C).

    winners holds a·pw + b for the cell (a, b) of the window, in the smallest unsigned integer type that fits.
    """
    n, height, width, channels = x.shape
    out = (n, (height - pool_size[0]) // stride[0] + 1, (width - pool_size[1]) // stride[1] + 1, channels)
    y, winners = np.empty(out, x.dtype), np.empty(out, np.min_scalar_type(pool_size[0] * pool_size[1] - 1))
    if y.size:
        _max_pool(x, y, winners, pool_size, stride)
    return y, winners


def max_pool_backward(
    dy: np.ndarray,
    winners: np.ndarray,
    input_shape: tuple[int, int, int, int],
    pool_size: tuple[int, int],
    stride: tuple[int, int],
) -> np.ndarray:
    """dy and winners (N, out_h, out_w, C), contiguous -> dx of input_shape (N, H, W, C). Overlapping windows add up."""
    dx = np.empty(input_shape, dy.dtype)
    if dx.size:
        _max_pool_backward(dy, winners, dx, pool_size, stride)
    return dx


@kernel
def _max_pool(x, y, winners, pool_size, stride):
    N, out_h, out_w, C = y.shape
    for n in prange(N):
        for i in range(out_h):
            for j in range(out_w):
                top, left = i * stride[0], j * stride[1]
                best, winner = y[n, i, j], winners[n, i, j]
                for c in range(C):
                    best[c], winner[c] = x[n, top, left, c], 0
                for a in range(pool_size[0]):
                    for b in range(pool_size[1]):
                        cell, number = x[n, top + a, left + b], a * pool_size[1] + b
                        for c in range(C):
                            # Not a number counts as the greatest: it must come out, or nobody would notice it.
                            leads = cell[c] > best[c] or (cell[c] != cell[c] and best[c] == best[c])
                            best[c] = cell[c] if leads else best[c]
                            winner[c] = number if leads else winner[c]


@kernel
def _max_pool_backward(dy, winners, dx, pool_size, stride):
    N, out_h, out_w, C = dy.shape
    for n in prange(N):
        dx[n] = 0
        for i in range(out_h):
            for j in range(out_w):
                gradient, winner = dy[n, i, j], winners[n, i, j]
                for a in range(pool_size[0]):
                    for b in range(pool_size[1]):
                        cell, number = dx[n, i * stride[0] + a, j * stride[1] + b], a * pool_size[1] + b
                        for c in range(C):
                            cell[c] += gradient[c] if winner[c] == number else 0
