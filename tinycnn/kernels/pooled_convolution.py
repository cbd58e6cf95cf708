"""A convolution with a max-pool and a ReLU behind it, all at once: what comes between is not written, where it pays.

    convolve_and_pool    convolve, then max_pool, then relu
    weight_gradient      relu_backward, then max_pool_backward, then convolve_weight_gradient
    backward             the same, then convolve_backward

What comes between the layers is four times as much as what leaves a pool of 2×2, and more than a processor's cache
holds; so writing and reading it can take longer than the convolution. Here the pool takes its maxima from the
registers; on the way back, what it passed on is unpacked a few rows at a time and stays in the cache. That is done
in Winograd's form both ways, and in the direct sum forward and in the gradient of a first layer's weights. Elsewhere
one function is called after the other. The results are the same bit for bit, but for the bias gradient of
`weight_gradient`: it is summed over dy as it comes back to the pool, over fewer numbers, and rounded otherwise.

What this file is not: it has no loops of its own; they are the convolution's, which can do a little more.
"""

from functools import lru_cache
from math import prod

import numpy as np

from tinycnn.kernels import winograd, winograd_backward
from tinycnn.kernels.convolution import convolve, covers_image, in_columns, plan, way_of
from tinycnn.kernels.convolution_backward import convolve_backward, convolve_weight_gradient, direct_weight_gradient
from tinycnn.kernels.elementwise import BYTE, relu, relu_backward
from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import run
from tinycnn.kernels.pooling import max_pool, max_pool_backward

Pair = tuple[int, int]
NONE = (1, 1)  # the pool where there is none
MOST_CELLS = 7  # of a window, all in one tile: where there are 16 registers, not many more have room
WINOGRAD_POOLS = NONE, (2, 2)  # whose windows fill a patch of 4×4


def convolve_and_pool(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    output_size: Pair,
    stride: Pair,
    offset: Pair,
    pool: Pair,
    with_relu: bool,
    remember: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The first six arguments: as for `convolve`. pool: the size of its windows, which stand side by side.

    remember: whether backward will need winners and active; else they are not made where that saves time.

    x (N, H, W, C), w (kh, kw, C, O), bias (O,), contiguous and of one dtype
    -> y (N, out_h // pool_h, out_w // pool_w, O), winners (or None without a pool), active (or None without a ReLU).
    """
    way, shape, plan_of_it = _way(x.shape, w.shape, x.dtype, output_size, stride, offset, pool, with_relu, remember)
    if way == "winograd":
        return winograd.convolve(x, w, bias, output_size, offset, pool != NONE, with_relu, remember)
    if way == "direct":
        kernel, columns, parts, scratch, sizes = plan_of_it
        y = empty(shape, x.dtype)
        winners = empty(shape, BYTE) if remember and pool != NONE else None
        active = empty(shape, BYTE) if remember and with_relu else None
        if columns:
            w = in_columns(w, *columns)
        run(kernel, parts, sizes, x, w, bias, y, winners, active, scratch=scratch)
        return y, winners, active
    y, winners, active = convolve(x, w, bias, output_size, stride, offset), None, None
    if pool != NONE:
        y, winners = max_pool(y, pool, pool)
    if with_relu:
        y, active = relu(y)
    return y, winners, active


@lru_cache(maxsize=1000)
def _way(x_shape, w_shape, dtype, output_size, stride, offset, pool, with_relu, remember):
    """How to do it, the shape of y, and the `plan` if it is the direct sum."""
    size = output_size[0] // pool[0], output_size[1] // pool[1]
    shape = (x_shape[0], *size, w_shape[3])
    alone = way_of(x_shape, w_shape, dtype, output_size, stride, offset)  # how the convolution goes without them
    if alone == "winograd" and pool in WINOGRAD_POOLS:
        return "winograd", shape, None
    fits = min(shape) > 0 and prod(pool) <= MOST_CELLS
    if fits and alone == "direct":
        covered = size[0] * pool[0], size[1] * pool[1]
        plan_of_it = plan(x_shape, w_shape, dtype, covered, stride, offset, pool, with_relu, remember)
        return "direct", shape, plan_of_it
    return "apart", shape, None


def weight_gradient(
    x: np.ndarray,
    dy: np.ndarray,
    winners: np.ndarray | None,
    active: np.ndarray | None,
    output_size: Pair,
    kernel_size: Pair,
    stride: Pair,
    offset: Pair,
    pool: Pair,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of a convolution, from the dy that came back to the pool and the ReLU behind it.

    winners, active: as `convolve_and_pool` returned them. output_size: of the convolution.

    x (N, H, W, C), dy (N, out_h // pool_h, out_w // pool_w, O), contiguous, of one dtype -> dw (kh, kw, C, O), db (O,).
    """
    w_shape = (*kernel_size, x.shape[3], dy.shape[3])
    by_winograd = way_of(x.shape, w_shape, x.dtype, output_size, stride, offset) == "winograd"
    if by_winograd and pool in WINOGRAD_POOLS:
        return winograd_backward.convolve_backward(x, dy, None, output_size, offset, winners, active)[1:]
    direct = not by_winograd and not covers_image(x.shape, w_shape, output_size, offset)
    possible = active is not None if pool == NONE else winners.dtype == BYTE  # for the kernel to undo them
    if direct and possible:
        return direct_weight_gradient(x, dy, output_size, kernel_size, stride, offset, pool, winners, active)
    return convolve_weight_gradient(x, _in_front(dy, winners, active, output_size, pool), kernel_size, stride, offset)


def backward(
    x: np.ndarray,
    dy: np.ndarray,
    winners: np.ndarray | None,
    active: np.ndarray | None,
    output_size: Pair,
    w: np.ndarray,
    stride: Pair,
    offset: Pair,
    pool: Pair,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `weight_gradient`, and the gradient by x: dx (N, H, W, C), dw (kh, kw, C, O), db (O,)."""
    by_winograd = way_of(x.shape, w.shape, x.dtype, output_size, stride, offset) == "winograd"
    if by_winograd and pool in WINOGRAD_POOLS:
        return winograd_backward.convolve_backward(x, dy, w, output_size, offset, winners, active)
    return convolve_backward(x, _in_front(dy, winners, active, output_size, pool), w, stride, offset)


def _in_front(dy, winners, active, output_size, pool) -> np.ndarray:
    """dy in front of the ReLU and the pool."""
    if active is not None:
        dy = relu_backward(dy, active)
    if winners is not None:
        dy = max_pool_backward(dy, winners, (len(dy), *output_size, dy.shape[3]), pool, pool)
    return dy
