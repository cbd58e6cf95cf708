"""Convolution to few output channels, as the input gradient of a first layer is one: `convolve`.

The tile of convolution.py has output channels side by side, and of each perhaps some terms of its sum. Here there are
terms only: a row is L channels of the input, a *chunk*, and each sum is a row as well, whose lanes are added up at its
end:

    acc[p, o] = Σ_a Σ_chunks Σ_t  z[n, i·stride_h + a, (j + p)·stride_w + t, chunk] · w[a, t, chunk, o]    (rows)
    y[n, i, j + p, o] = bias[o] + the sum of the lanes of acc[p, o]

The tile is P pixels × all output channels. The rows of w for a chunk and a kernel row stay in registers beside it (or
those for one t, where they are too many), so every row of z is loaded once for all pixels and channels that see it.
Nothing is set inside zeros: where a row of z may lie outside of x, the kernel asks, and reads zeros if it does.

What this file is not: another operation. `convolution.convolve` comes here where it is faster.
"""

from functools import cache, lru_cache
from math import ceil, prod

import numpy as np

from tinycnn.kernels.held_rows import multiply_add_windows, sums_of_lanes
from tinycnn.kernels.memory import copy, empty
from tinycnn.kernels.parallel import numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import even_tile, filled_lanes, usable_registers
from tinycnn.kernels.vector import read, tile, write, zeros

MOST_SUMS = 16  # in a tile: more gain nothing


@cache
def pays(w_shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether this is faster than the tile of convolution.py; the limits are measured.

    A place in the kernel takes chunks · out_channels multiply-adds of rows here, and channels / T in the other tile
    (`terms_at_once`); they are compared with half of the channels. Adding up the lanes counts if a tile is over sooner
    than four chunks; but not for one output channel, whose lanes the other tile would have to add up as well.
    """
    kernel_h, kernel_w, channels, out_channels = w_shape
    chunks = ceil(channels / filled_lanes(channels, dtype))
    if kernel_h * kernel_w * chunks < 4 and out_channels > 1:
        return False
    return 2 * chunks * out_channels < channels


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    output_size: tuple[int, int],
    stride: tuple[int, int],
    offset: tuple[int, int],
    spread: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """As `convolution.convolve`, but z[offset + i · spread] = x[i], in both directions. w need not be contiguous.

    (Only `convolve_input_gradient` has a spread: the stride.)
    """
    y = empty((len(x), *output_size, w.shape[3]), x.dtype)
    if y.size:
        kernel, parts, sizes, P, L = _plan(x.shape, w.shape, x.dtype, output_size, stride, offset, spread)
        biases, no_pixel = empty((P, len(bias)), x.dtype), np.zeros(L, x.dtype)
        biases[:] = bias  # one for each sum of the tile
        run(kernel, parts, sizes, x, in_chunks(w, L), biases, no_pixel, y)
    return y


def in_chunks(w: np.ndarray, L: int) -> np.ndarray:
    """w (kh, kw, C, O) -> (kh, chunks, kw, O, L), filled up with zeros."""
    kernel_h, kernel_w, channels, out_channels = w.shape
    if channels % L:
        filled = empty((kernel_h, kernel_w, ceil(channels / L) * L, out_channels), w.dtype)
        filled[:, :, :channels], filled[:, :, channels:] = w, 0
        w = filled
    return copy(w.reshape(kernel_h, kernel_w, -1, L, out_channels).transpose(0, 2, 1, 4, 3))


@lru_cache(maxsize=1000)
def _plan(x_shape, w_shape, dtype, output_size, stride, offset, spread):
    """Everything that only depends on the sizes."""
    kernel_h, kernel_w, channels, out_channels = w_shape
    L = filled_lanes(channels, dtype)
    P, B = _tile(output_size[1], kernel_w, out_channels, L)
    # The columns of z, counted from the first that a tile sees, which are x's own in the first tile and in the last one
    # and so in all. Where pixels stand apart, none is sure to be one.
    first, end = offset[1], offset[1] + x_shape[2] - (output_size[1] - P) * stride[1]
    seen = (P - 1) * stride[1] + kernel_w
    inside = (max(0, first), min(end, seen)) if spread[1] == 1 else (0, 0)
    kernel = _task(P, B, L, kernel_w, channels, out_channels, stride, spread, inside, dtype)
    rows = x_shape[0] * output_size[0]
    parts = parts_for(rows, rows * output_size[1] * prod(w_shape))
    sizes = (parts, *x_shape[:3], kernel_h, *output_size, *offset, ceil(channels / L))
    return kernel, parts, sizes, P, L


def _tile(out_w: int, kernel_w: int, out_channels: int, L: int) -> tuple[int, int]:
    """(P, B): pixels of a tile, and how many t the rows of w are held for, all or one.

    The sums, the rows of w and, because they are read ahead, three of z must fit into the registers. The sums leave as
    two rows at most, a lane each.
    """
    for B in (kernel_w, 1):
        most = min(MOST_SUMS, 2 * L, usable_registers() - 3 - B * out_channels) // out_channels
        if most >= min(2, out_w):
            break
    return even_tile(out_w, max(1, most)), B


@cache
def _task(P: int, B: int, L: int, kernel_w: int, C: int, O: int, stride, spread, inside, dtype: np.dtype):
    chunks, rest = C // L, C % L  # whole ones, and channels of one more
    sums = P * O
    first_sums, other_sums = min(sums, L), max(0, sums - L)
    all_chunks = ceil(C / L)
    known_chunks = all_chunks if all_chunks == 1 else 0  # else LLVM would read rows of all of them ahead
    (stride_h, stride_w), (spread_h, spread_w), (first_inside, end_inside) = stride, spread, inside

    @task(dtype, dtype, dtype, dtype, dtype)
    def convolve_narrow_tiles(part, sizes, x, w, biases, no_pixel, y):
        parts, N, H, W, kernel_h, out_h, out_w, offset_h, offset_w, run_time_chunks = numbers(sizes, 10)
        acc = tile(sums, L, x)
        w_step = all_chunks * kernel_w * O * L  # from one row of the kernel to the next

        # This part computes the rows from `first` to `last`, counted through all images.
        first, last = part * N * out_h // parts, (part + 1) * N * out_h // parts
        for line in range(first, last):
            n, i = line // out_h, line % out_h
            for tile_j in range(0, out_w, P):
                j = min(tile_j, out_w - P)  # the last tile may repeat pixels of the one before it
                first_column = j * stride_w - offset_w  # of x, that the tile sees
                for q in range(sums):
                    acc[q] = zeros(x, L)
                for a in range(kernel_h):
                    z_i = i * stride_h + a - offset_h
                    if z_i < 0 or z_i >= H * spread_h or z_i % spread_h:
                        continue  # a row of zeros
                    here, there = (n * H + z_i // spread_h) * W * C, a * w_step
                    for chunk in range(known_chunks or run_time_chunks):
                        place, w_place = here + chunk * L, there + chunk * kernel_w * O * L
                        if rest and chunk == chunks:
                            multiply_add_windows(
                                acc, P, stride_w, O, x, place, first_column, W, spread_w, C, rest, no_pixel,
                                first_inside, end_inside, w, w_place, kernel_w, B,
                            )  # fmt: skip
                        else:
                            multiply_add_windows(
                                acc, P, stride_w, O, x, place, first_column, W, spread_w, C, L, no_pixel,
                                first_inside, end_inside, w, w_place, kernel_w, B,
                            )  # fmt: skip
                place = (line * out_w + j) * O
                write(y, place, read(biases, 0, first_sums, L) + sums_of_lanes(acc, 0, first_sums), first_sums)
                if other_sums:
                    write(y, place + L, read(biases, L, other_sums, L) + sums_of_lanes(acc, L, other_sums), other_sums)

    return convolve_narrow_tiles
