"""The gradient of a convolution by its input as hot loops: `convolve_input_gradient`.

The kernel spread every dy[i, j] over x, so every x[u, v] gathers from the dy that saw it (`reference.conv2d_backward`):

    dx[n, u, v, :] = Σ_{a,b} Σ_o  dy[n, i, j, o] · w[a, b, :, o]

    for all a, b with a dy at i · stride + a = u + padding, j · stride + b = v + padding

With a stride of 1 that is a convolution once more: of dy inside zeros, with the kernel flipped, its in and out channels
swapped. It can go all the ways of `convolution.py`; but where y went Winograd's way, that read backwards takes fewer
patches (`winograd_backward.py`). And in the direct sum a tile is neighbouring pixels, which have to see the same part
of the kernel, and so they meet the zeros around and between dy. A kernel of 5×5 makes 3×3 numbers of an image of 7×7:
fifteen products with a dy along a row of dx, and twenty with a zero. And with a stride dy would have to stand apart,
with zeros between.

Here the tile (see vector.py) is the same pixel of P images × L channels of x. All of it sees the same dy and the same
w, so zeros are neither made nor multiplied: the loops go over the dy that are there.

What this file is not: it has no way of its own to very few channels; `narrow_convolution.py` has.
"""

from functools import cache, lru_cache
from math import ceil

import numpy as np

from tinycnn.kernels import narrow_convolution, winograd_backward
from tinycnn.kernels.convolution import (
    convolve,
    covers_image,
    few_enough_to_hold,
    in_columns,
    terms_at_once,
    way_of,
    width_before,
)
from tinycnn.kernels.dense import dense_input_gradient
from tinycnn.kernels.memory import copy, empty
from tinycnn.kernels.parallel import in_tasks, numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import even_tile, tile_shape, tile_time
from tinycnn.kernels.vector import add_neighbours, multiply_add, read, read_repeated, tile, write, zeros

# At most so many in a tile. The same pixel of all of them goes to the same place of a core's nearest cache where an
# image is a multiple of 4 KiB long, and there is room for eight.
IMAGES = 8


def convolve_input_gradient(
    dy: np.ndarray, w: np.ndarray, input_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """dx of y = convolve(x, w, b, …, stride, padding).

    dy (N, out_h, out_w, O), w (kh, kw, C, O), contiguous and of one dtype -> dx (N, *input_size, C).
    """
    x_shape = len(dy), *input_size, w.shape[2]
    if covers_image(x_shape, w.shape, dy.shape[1:3], padding):
        dx = dense_input_gradient(dy.reshape(len(dy), w.shape[3]), w.reshape(-1, w.shape[3]))
        return dx.reshape(len(dy), *w.shape[:3])
    if way_of(x_shape, w.shape, w.dtype, dy.shape[1:3], stride, padding) == "winograd":
        return winograd_backward.convolve_input_gradient(dy, w, input_size, padding)
    flipped = w[::-1, ::-1].transpose(0, 1, 3, 2)
    offset = w.shape[0] - 1 - padding[0], w.shape[1] - 1 - padding[1]
    no_bias = np.zeros(w.shape[2], w.dtype)
    if narrow_convolution.pays(flipped.shape, w.dtype):
        return narrow_convolution.convolve(dy, flipped, no_bias, input_size, (1, 1), offset, stride)
    if gathering_pays(dy.shape, flipped.shape, w.dtype, input_size, stride, offset):
        return gather(dy, w, input_size, stride, padding)
    return convolve(dy, copy(flipped), no_bias, input_size, offset=offset)


@lru_cache(maxsize=1000)
def gathering_pays(dy_shape, flipped_shape, dtype, input_size, stride, offset) -> bool:
    """Whether `gather` is faster than to convolve dy inside zeros, by the model of `tile_shape.py`.

    With a stride no other is left. With few rows of w (`few_enough_to_hold`) the other is faster than the model says.
    """
    (N, _, out_w, _), (_, kernel_w, O, C), W = dy_shape, flipped_shape, input_size[1]
    if stride != (1, 1):
        return True
    T = terms_at_once(flipped_shape, dtype)
    if min(N, out_w) == 0 or few_enough_to_hold(flipped_shape, T):
        return False
    if way_of(dy_shape, flipped_shape, dtype, input_size, stride, offset) != "direct":
        return False
    products = O * sum(0 <= offset[1] + j - b < W for j in range(out_w) for b in range(kernel_w))
    P, T_gathered, rows_of_w = even_tile(N, IMAGES), terms_at_once((1, 1, O, C), dtype), ceil(kernel_w * O / T)
    steps = products / T_gathered
    gathered = ceil(N / P) / N * tile_time(P, T_gathered * C, dtype, steps / W) * steps
    return gathered < 0.9 * tile_time(W, T * C, dtype, rows_of_w) * rows_of_w


def gather(
    dy: np.ndarray, w: np.ndarray, input_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """As `convolve_input_gradient`, across images."""
    C, O = w.shape[2:]
    dx = empty((len(dy), *input_size, C), dy.dtype)
    if dx.size:
        T = terms_at_once((1, 1, O, C), dy.dtype)
        P, L = tile_shape(even_tile(len(dy), IMAGES), T * C, dy.dtype)
        rows = ceil(len(dy) / P) * input_size[0]
        parts = parts_for(rows, dy[..., 0].size * w.size)
        sizes = (parts, *dy.shape, *w.shape[:2], *input_size, C, *stride, *padding)
        kernel = _gather_task(P, L, T, C % (L // T) == 0, dy.dtype)
        run(kernel, parts, sizes, dy, in_columns(copy(w.swapaxes(2, 3)), L, T), dx)
    return dx


@in_tasks
def seen_by(place, kernel_size, stride, out_size):
    """(first, last + 1) of the i in 0 … out_size − 1 with a = place − i · stride in 0 … kernel_size − 1."""
    return max(0, -((kernel_size - 1 - place) // stride)), min(out_size, place // stride + 1)


@cache
def _gather_task(P: int, L: int, T: int, whole: bool, dtype: np.dtype):
    """T, whole: as in convolution.py."""
    channels = L // T  # in a group

    @task(dtype, dtype, dtype)
    def gather_tiles(part, sizes, dy, w, dx):
        (
            parts, N, out_h, out_w, O, kernel_h, kernel_w, H, W, C, stride_h, stride_w, padding_h, padding_w,
        ) = numbers(sizes, 14)  # fmt: skip
        acc, sums = tile(P, L, dy), tile(P, channels, dy)
        rows, groups, w_rows = (N + P - 1) // P * H, (C + channels - 1) // channels, O // T
        for row in range(part * rows // parts, (part + 1) * rows // parts):
            n, u = min(row // H * P, N - P), row % H  # the last tile may repeat images of the one before it
            first_i, last_i = seen_by(u + padding_h, kernel_h, stride_h, out_h)
            for group in range(groups):
                c = group * channels
                width = channels if whole else min(channels, C - c)
                for v in range(W):
                    first_j, last_j = seen_by(v + padding_w, kernel_w, stride_w, out_w)
                    for p in range(P):
                        acc[p] = zeros(dy, L)
                    for i in range(first_i, last_i):
                        for j in range(first_j, last_j):
                            a, b = u + padding_h - i * stride_h, v + padding_w - j * stride_w
                            here = ((n * out_h + i) * out_w + j) * O
                            there = ((group * kernel_h + a) * kernel_w + b) * w_rows * L
                            for o in range(w_rows):
                                w_row = read(w, there + o * L, L, L)
                                for p in range(P):
                                    dy_p = here + p * out_h * out_w * O + o * T
                                    acc[p] = multiply_add(read_repeated(dy, dy_p, T, L), w_row, acc[p])
                    written = channels if whole else width_before(W - v - 1, C, width, channels)
                    add_neighbours(acc, P, T, sums)
                    for p in range(P):
                        write(dx, (((n + p) * H + u) * W + v) * C + c, sums[p], written)

    return gather_tiles
