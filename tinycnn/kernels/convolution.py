"""Convolution as hot loops: `convolve`. Its gradients are in `input_gradient.py` and `convolution_backward.py`.

It does what the formula in `tinycnn/reference.py` says, on NHWC arrays. In that layout the kernel_w × channels numbers
under one row of a kernel are neighbours in memory, and so are the out_channels of one weight. A convolution is
therefore a few nested loops over flat memory, with k running over kernel_w × channels:

    y[n, i, j, :] = bias + Σ_a Σ_k  x[n, i·stride + a, j·stride·C + k] · w[a, k, :]

The tile (see vector.py) is P neighbouring output pixels × L output channels. Each row of w that is loaded serves P
multiply-adds, and the sums leave the registers only when they are finished.

Padding is zeros, and x is set inside them one image at a time, in a scratch image that stays in the CPU's cache.

Some kinds of shapes take another way to the same result, where it is faster:

    3×3 kernels over 8 channels or more     `winograd.py` does with fewer multiplications
    kernels over few channels, in a first   the rows w[a, k, :] of one kernel row a stay in registers, so each number of
    layer                                   x is loaded once a kernel row, for all pixels that see it (`held`)
    few output channels                     2, 4, … terms of a sum are added up side by side (`terms_at_once`)
    fewer still, as dx of a first layer     the lanes of a vector are input channels (`narrow_convolution.py`)
    kernels as large as the image           the sum is that of a dense layer, so `dense.py` computes it

`convolve_tiles` can also take the maxima of a max-pool behind the convolution, noting which cell of each window won
(`winners`), and then be a ReLU, noting where it let the number through (`active`): see `pooled_convolution.py`.

What this file is not: it has no FFT or im2col; the direct sum already runs near the peak of the CPU.
"""

from functools import cache, lru_cache
from math import ceil, prod

import numpy as np

from tinycnn.kernels import narrow_convolution, winograd
from tinycnn.kernels.dense import dense
from tinycnn.kernels.elementwise import BYTE, relu_of
from tinycnn.kernels.held_rows import multiply_add_rows
from tinycnn.kernels.memory import copy, empty
from tinycnn.kernels.padding import scratch_size_for, set_inside_zeros
from tinycnn.kernels.parallel import PARTS, in_tasks, numbers, parts_for, run, task
from tinycnn.kernels.pooling import lead
from tinycnn.kernels.tile_shape import filled_lanes, holding_tile, register_lanes, tile_shape
from tinycnn.kernels.vector import (
    add_neighbours,
    clear_numbers,
    multiply_add,
    read,
    read_repeated,
    read_rows,
    repeated,
    tile,
    write,
    zeros,
)

HELD = 9  # rows of w that belong to one row of the kernel: no more than these stay in registers,
WORTH_HOLDING = 8  # and only if the whole kernel has at least these
FEW = 4  # rows of w under one row of the kernel: their loop would be over before it is under way, so it is written out
NEAR = 24 << 10  # bytes that stay in a core's nearest cache (32 to 64 KiB), beside what else a loop needs


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    output_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    offset: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """y[n, i, j, o] = bias[o] + Σ_{a,b,c} z[n, i·stride_h + a, j·stride_w + b, c] · w[a, b, c, o].

    z is x set inside zeros: z[n, offset_h + i, offset_w + j] = x[n, i, j], as large as y needs it: padding.

    x (N, H, W, C), w (kh, kw, C, O), bias (O,), contiguous and of one dtype -> y (N, *output_size, O).
    """
    way = way_of(x.shape, w.shape, x.dtype, output_size, stride, offset)
    if way == "winograd":
        return winograd.convolve(x, w, bias, output_size, offset)[0]
    if way == "narrow":
        return narrow_convolution.convolve(x, w, bias, output_size, stride, offset)
    if way == "dense":
        flat = w.reshape(-1, len(bias))
        return dense(x.reshape(len(x), len(flat)), flat, bias).reshape(len(x), 1, 1, len(bias))
    y = empty((len(x), *output_size, w.shape[3]), x.dtype)
    if y.size:
        kernel, columns, parts, scratch, sizes = plan(x.shape, w.shape, x.dtype, output_size, stride, offset)
        if columns:
            w = in_columns(w, *columns)
        run(kernel, parts, sizes, x, w, bias, y, scratch=scratch)
    return y


@lru_cache(maxsize=1000)
def way_of(x_shape, w_shape, dtype, output_size, stride, offset) -> str:
    """Which way `convolve` goes, of the table above: "direct" is this file's tile, in either form."""
    if stride == (1, 1) and winograd.pays(x_shape, w_shape, output_size):
        return "winograd"
    if narrow_convolution.pays(w_shape, dtype):
        return "narrow"
    if covers_image(x_shape, w_shape, output_size, offset):
        return "dense"
    return "direct"


def covers_image(x_shape, w_shape, output_size, offset) -> bool:
    """Whether the kernel is as large as the image, and is applied once, without padding."""
    return w_shape[:2] == x_shape[1:3] and output_size == (1, 1) and offset == (0, 0)


@lru_cache(maxsize=1000)
def plan(x_shape, w_shape, dtype, output_size, stride, offset, pool=(1, 1), relu=False, remember=False):
    """(kernel, columns, parts, scratch, sizes) for `run`: all that depends on sizes only, the same at every step.

    If there are columns, w goes through `in_columns` with them first. pool, relu, remember: as in
    `pooled_convolution.py`.
    """
    out_channels, held = w_shape[3], 0
    T = terms_at_once(w_shape, dtype)
    rows_of_w = ceil(w_shape[1] * w_shape[2] / T)  # for a row of the kernel
    row_of_windows, window = pool[0] * output_size[1], prod(pool)  # so many pixels
    P, L = tile_shape(row_of_windows, T * out_channels, dtype, rows_of_w, multiple=window)
    # With one column no two pixels see the same number of x. (If T > 1 rows are so few that it pays nevertheless.)
    if few_enough_to_hold(w_shape, T) and (w_shape[1] > 1 or T > 1):
        P, L = holding_tile(row_of_windows, rows_of_w, window), filled_lanes(T * out_channels, dtype)
        held = rows_of_w
    channels = L // T  # in a group
    whole = out_channels % channels == 0
    known_rows = rows_of_w if rows_of_w <= FEW else 0
    known_step = stride[1] * w_shape[2] if known_rows or register_lanes(dtype) >= L else 0
    kernel = _convolve_task(P, L, T, whole, dtype, *pool, relu, held, known_step, known_rows)
    rows = x_shape[0] * output_size[0] // pool[0]
    pixels = rows * pool[0] * output_size[1]
    parts = parts_for(rows, pixels * prod(w_shape))
    # So few rows can't be shared out evenly, but their groups of output channels can.
    shares = out_channels // channels if 1 < parts < PARTS and whole else 1
    parts *= shares
    z_size = size_of_z(output_size, w_shape, stride, T)
    scratch = scratch_size_for(x_shape, z_size, offset)
    # Tile after tile meets the same L columns of w. If there are pixels enough, it pays to move those of a large w to
    # stand side by side, and to fill up too few of them.
    moved = out_channels < L or (out_channels > L and prod(w_shape) * dtype.itemsize > NEAR)
    columns = (L, T) if T > 1 or (moved and pixels > 500) else None  # or w stays as it is
    sizes = (
        parts, *x_shape, *w_shape[:2], *output_size, out_channels,
        z_size[1], *stride, *offset, scratch, columns is not None, shares, remember,
    )  # fmt: skip
    return kernel, columns, parts, scratch, sizes


def in_columns(w: np.ndarray, L: int, T: int) -> np.ndarray:
    """w (kh, kw, C, O) -> (groups, rows, L): L output channels in a group (or zeros), row after row.

    In w they are O numbers apart, and where that is a power of two they compete for the same places in a CPU's cache.
    T > 1: L / T channels, in rows of which each is T rows of w, number by number (`terms_at_once`).
    """
    if T > 1:
        w = _rows_side_by_side(w, T)
    rows, columns = prod(w.shape[:3]), w.shape[3]
    w = w.reshape(rows, columns)
    if columns % L:
        filled = empty((rows, ceil(columns / L) * L), w.dtype)
        filled[:, :columns], filled[:, columns:] = w, 0
        w = filled
    return copy(w.reshape(rows, -1, L).transpose(1, 0, 2))


def _rows_side_by_side(w: np.ndarray, T: int) -> np.ndarray:
    """w (kh, kw, C, O) -> (kh, ⌈kw · C / T⌉, 1, O · T): T rows number by number. Those that are missing are zeros."""
    kernel_h, K, O = w.shape[0], prod(w.shape[1:3]), w.shape[3]
    filled = empty((kernel_h, ceil(K / T) * T, O), w.dtype)
    filled[:, :K], filled[:, K:] = w.reshape(kernel_h, K, O), 0
    return copy(filled.reshape(kernel_h, -1, T, O).swapaxes(2, 3)).reshape(kernel_h, -1, 1, O * T)


def few_enough_to_hold(w_shape: tuple[int, ...], T: int) -> bool:
    """Whether one kernel row has so few rows of w that they, or pixels of dy, can stay in registers beside the sums."""
    kernel_h, K = w_shape[0], w_shape[1] * w_shape[2]
    return ceil(K / T) <= HELD and kernel_h * K >= WORTH_HOLDING


def terms_at_once(w_shape: tuple[int, ...], dtype: np.dtype) -> int:
    """T: how many of a sum's K = kernel_w · channels terms are added up side by side, where few output channels leave
    lanes free.

    Lane o · T + t of a row is then the sum over k = t, t + T, t + 2·T, … for channel o, and in the end the T of them
    become one. A step takes T numbers of x, which stand side by side, and T rows of w in one (`in_columns`). With two
    channels in four lanes, T = 2, the first step is

        x0 x1 x0 x1  times  w00 w10 w01 w11      (w[k, o])

    If T does not divide K, the last step also takes what comes behind, times zeros, and z has to have it (`size_of_z`).
    (So a NaN or an infinity there, in columns to the right of the kernel, spoils y: 0 · NaN is NaN.) With a kernel of
    one column that would not pay: there T always divides K, which `input_gradient.gather` relies on.
    """
    _, kernel_w, channels, out_channels = w_shape
    T, K = 1, kernel_w * channels
    while K > T and 2 * T * out_channels <= register_lanes(dtype) and (kernel_w > 1 or K % (2 * T) == 0):
        T *= 2
    return T


def size_of_z(output_size, w_shape, stride, T: int) -> tuple[int, int]:
    """How much of z such an output needs, also of what comes behind the K terms (`terms_at_once`)."""
    rows, columns = ((out - 1) * step + k for out, step, k in zip(output_size, stride, w_shape[:2], strict=True))
    K, channels = w_shape[1] * w_shape[2], w_shape[2]
    return rows, columns + ceil(-K % T / channels)


@in_tasks
def width_before(pixels, O, width, L):
    """How much of a row of L to write for a pixel of O channels, of which `width` are in the row.

    To write only some lanes of a vector can take longer than all. If there are no other channels, all will do: the
    `pixels` behind this one are written after it, and put right what is beyond the O, if it is no more than theirs.
    """
    return L if O < L <= (1 + pixels) * O else width


@in_tasks
def _write_window(acc, first, across, pool, relu, remember, y, winners, active, place, width, L):
    """y[place] = the maximum of the window that begins at acc[first], as in `max_pool`; then comes the ReLU, if any.

    across: from a row of the window to the next. Without a pool windows are 1 × 1.
    """
    pool_h, pool_w = pool
    best, winner = acc[first], zeros(winners, L)
    for cell in range(1, pool_h * pool_w):
        best, winner = lead(best, winner, acc[first + cell // pool_w * across + cell % pool_w], cell)
    if remember and pool_h * pool_w > 1:
        write(winners, place, winner, width)
    if relu:
        best, active_row = relu_of(best, zeros(y, L), zeros(active, L))
        if remember:
            write(active, place, active_row, width)
    write(y, place, best, width)


@cache
def _convolve_task(
    P: int,
    L: int,
    T: int,
    whole: bool,
    dtype: np.dtype,
    pool_h: int = 1,
    pool_w: int = 1,
    relu: bool = False,
    held: int = 0,
    known_step: int = 0,
    known_rows: int = 0,
):
    """The tile is pool_h rows of pixels, a few whole windows. With windows of 1 × 1 and no ReLU it is the convolution.

    T: see `terms_at_once`. whole: whether no group of channels is narrower than L / T. The compiler knows it, and then
    needs no masks.

    held: the rows of w for one kernel row, if they are so few that they stay in registers as well, or 0. Then each
    number of x is loaded once a kernel row, for all pixels that see it.

    known_step: stride · C, or 0 if the compiler is not to know it, which then need not compile a kernel for each. Where
    rows are single vectors, a number of x is loaded for each multiply-add, and there is no time to look up where its
    pixel stands. For P places there are too few scalar registers, for one place and known distances from it there are
    enough.

    known_rows: the rows of w under one row of the kernel, if the compiler is to write out their loop, or 0.
    """
    pool, across, channels = (pool_h, pool_w), P // pool_h, L // T

    @task(dtype, dtype, dtype, dtype, dtype, BYTE, BYTE)
    def convolve_tiles(part, sizes, scratch, x, w, bias, y, winners, active):
        (
            parts, N, H, W, C, kernel_h, kernel_w, out_h, out_w, O,
            z_w, stride_h, stride_w, offset_h, offset_w, scratch_size, columns, shares, remember,
        ) = numbers(sizes, 19)  # fmt: skip
        rows_of_w, step = known_rows or (kernel_w * C + T - 1) // T, known_step or stride_w * C
        acc, sums = tile(P, L, x), tile(P, channels, x)
        z, start, row_size = x, np.intp(0), W * C
        if scratch_size:
            z, row_size = scratch, z_w * C
            clear_numbers(scratch, 0, scratch_size)

        # This part computes the rows from `first` to `last`, counted through all images, those of a window together;
        # all groups of their channels, or one share of them.
        windows, share, part, parts = N * out_h // pool_h, part % shares, part // shares, parts // shares
        first, last = part * windows // parts * pool_h, (part + 1) * windows // parts * pool_h
        down = stride_h * row_size  # from what a row of y sees of z to what the next one does
        while first < last:
            n = first // out_h
            i_first, i_last = first - n * out_h, min(out_h, last - n * out_h)
            if scratch_size:
                rows = (i_first * stride_h, (i_last - 1) * stride_h + kernel_h)
                set_inside_zeros(x, n * H * W * C, z, start, rows, (H, W, C), z_w, (offset_h, offset_w))
            else:
                start = n * H * row_size
            for group in range(share * channels, O, shares * channels):
                # Reading only some lanes can take longer. In columns the missing channels are zeros; else the last
                # group repeats channels of the one before it, if there is one.
                o = group if columns else min(group, max(0, O - channels))
                width = channels if whole else min(channels, O - o)
                # If T > 1, there are columns: to ask for T as well lets the compiler know it.
                w_start, w_step, w_width = (o * kernel_h * rows_of_w, L, L) if columns or T > 1 else (o, O, width)
                bias_row = 1 / T * repeated(read(bias, o, width, channels), T)  # T of these are the bias
                for i in range(i_first, i_last, pool_h):
                    for tile_j in range(0, out_w, across):
                        j = min(tile_j, out_w - across)  # the last tile may repeat pixels of the one before it
                        for p in range(P):
                            acc[p] = bias_row
                        for a in range(kernel_h):
                            z_i = i * stride_h + a
                            if z_i + (pool_h - 1) * stride_h < offset_h or z_i >= offset_h + H:
                                continue  # nothing but rows of zeros
                            here, there = start + z_i * row_size + j * step, w_start + a * rows_of_w * w_step
                            if held:
                                w_rows = read_rows(w, there, w_step, held, w_width, held, L)
                                multiply_add_rows(acc, pool_h, down, across, known_step, z, here, w_rows, T, T)
                                continue
                            for k in range(rows_of_w):
                                w_row = read(w, there + k * w_step, w_width, L)
                                for p in range(P):
                                    pixel = p // across * down + p % across * step
                                    x_row = read_repeated(z, here + pixel + k * T, T, L)
                                    acc[p] = multiply_add(x_row, w_row, acc[p])
                        add_neighbours(acc, P, T, sums)
                        place_of_tile = (n * out_h + i) // pool_h * (out_w // pool_w) + j // pool_w
                        for q in range(across // pool_w):
                            place, behind = (place_of_tile + q) * O + o, (out_w - j) // pool_w - q - 1
                            written = channels if whole else width_before(behind, O, width, channels)
                            _write_window(
                                sums, q * pool_w, across, pool, relu, remember,
                                y, winners, active, place, written, channels,
                            )  # fmt: skip
            first = (n + 1) * out_h

    return convolve_tiles
