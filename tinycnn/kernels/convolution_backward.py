"""The gradient of a convolution by its weights as hot loops: `convolve_weight_gradient`; and all its gradients at once,
`convolve_backward`. The formulas are in `tinycnn/reference.py`.

The weight gradient is the forward's sum read the other way: the tile is A rows of the kernel × R of the rows of dw that
belong to each × some output channels, and each row of dy that is loaded serves all of them:

    dw[a, k, :] = Σ_{n,i,j}  x[n, i·stride + a, j·stride·C + k] · dy[n, i, j, :]

With a row x = 1 2 3 of one channel, a kernel of two and so dy = 10 100, it is dw[0] = 1·10 + 2·100 and
dw[1] = 2·10 + 3·100.

Some kinds of shapes take another way here as well: `winograd_backward.py`; pixels of dy that stay in registers
(`held_pixels`); T rows of dw in one (`terms_at_once`); kernels as large as the image (`dense.py`). And the weight
gradient can begin with what a ReLU and a pool in front of dy do on the way back (`pooled_convolution.py`).

What this file is not: loops for the gradient by x; they are in `input_gradient.py`.
"""

from functools import cache, lru_cache
from math import ceil, prod

import numpy as np

from tinycnn.kernels import winograd_backward
from tinycnn.kernels.convolution import (
    NEAR,
    covers_image,
    few_enough_to_hold,
    size_of_z,
    terms_at_once,
    way_of,
    width_before,
)
from tinycnn.kernels.dense import dense_weight_gradient
from tinycnn.kernels.elementwise import BYTE, sum_of_parts, where_active
from tinycnn.kernels.held_rows import multiply_add_rows
from tinycnn.kernels.input_gradient import convolve_input_gradient
from tinycnn.kernels.memory import copy, empty
from tinycnn.kernels.padding import scratch_size_for, set_inside_zeros
from tinycnn.kernels.parallel import PARTS, in_tasks, numbers, run, task
from tinycnn.kernels.tile_shape import filled_lanes, register_lanes, tile_shape, usable_registers
from tinycnn.kernels.vector import (
    clear_numbers,
    equals,
    multiply_add,
    read,
    read_repeated,
    read_rows,
    repeated,
    select,
    tile,
    write,
    zeros,
)

PIXELS = 4  # of dy that a tile of dw leaves registers for
MOST_PIXELS = 7  # that stay there if more are free
UNDER_WAY = 8  # multiply-adds that a core has under way at once
SUMS = 8  # vectors that db is summed in, side by side: one alone would wait for each of its additions


def convolve_backward(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx, dw, db of y = convolve(x, w, b, …, stride, padding)   (`reference.conv2d_backward`).

    x (N, H, W, C), dy (N, out_h, out_w, O), w (kh, kw, C, O), contiguous and of one dtype
    -> dx (N, H, W, C), dw (kh, kw, C, O), db (O,).
    """
    if way_of(x.shape, w.shape, x.dtype, dy.shape[1:3], stride, padding) == "winograd":
        return winograd_backward.convolve_backward(x, dy, w, dy.shape[1:3], padding)
    dw, db = convolve_weight_gradient(x, dy, w.shape[:2], stride, padding)
    return convolve_input_gradient(dy, w, x.shape[1:3], stride, padding), dw, db


def convolve_weight_gradient(
    x: np.ndarray,
    dy: np.ndarray,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    offset: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """dw[a, b, c, o] = Σ_{n,i,j} z[n, i·stride_h + a, j·stride_w + b, c] · dy[n, i, j, o];  db[o] = Σ dy[n, i, j, o].

    z is x set inside zeros at `offset`, as in `convolve`.

    x (N, H, W, C), dy (N, out_h, out_w, O), contiguous and of one dtype -> dw (kh, kw, C, O), db (O,).
    """
    w_shape = (*kernel_size, x.shape[3], dy.shape[3])
    if way_of(x.shape, w_shape, x.dtype, dy.shape[1:3], stride, offset) == "winograd":
        return winograd_backward.convolve_backward(x, dy, None, dy.shape[1:3], offset)[1:]
    if covers_image(x.shape, w_shape, dy.shape[1:3], offset):
        dy = dy.reshape(len(dy), w_shape[3])
        dw = dense_weight_gradient(x.reshape(len(x), prod(w_shape[:3])), dy)
        return dw.reshape(w_shape), np.add.reduce(dy, axis=0)
    return direct_weight_gradient(x, dy, dy.shape[1:3], kernel_size, stride, offset)


def direct_weight_gradient(
    x, dy, output_size, kernel_size, stride, offset, pool=(1, 1), winners=None, active=None
) -> tuple[np.ndarray, np.ndarray]:
    """`convolve_weight_gradient` as the direct sum; with winners or active, `pooled_convolution.weight_gradient`."""
    w_shape = (*kernel_size, x.shape[3], dy.shape[3])
    if not dy.size:
        return np.zeros(w_shape, x.dtype), np.zeros(w_shape[3], x.dtype)
    kernel, T, parts, scratch, sizes = _weight_gradient_plan(
        x.shape, w_shape, x.dtype, output_size, stride, offset, pool, active is not None
    )
    kernel_h, K, O = w_shape[0], prod(w_shape[1:3]), w_shape[3]
    of_parts = empty((parts, (kernel_h * ceil(K / T) * T + 1) * O), x.dtype)  # dw, and db behind it
    run(kernel, parts, sizes, x, dy, of_parts, winners, active, scratch=scratch)
    gradients = sum_of_parts(of_parts)
    dw, db = gradients[:-O], gradients[-O:]
    if T > 1:  # back from how w is in `_rows_side_by_side`
        rows = copy(dw.reshape(kernel_h, -1, O, T).swapaxes(2, 3))
        dw = copy(rows.reshape(kernel_h, -1, O)[:, :K])
    return dw.reshape(w_shape), db


@lru_cache(maxsize=1000)
def _weight_gradient_plan(x_shape, w_shape, dtype, output_size, stride, offset, pool, relu):
    """Everything about it that only depends on the sizes."""
    *kernel_size, channels, out_channels = w_shape
    parts = min(PARTS, x_shape[0])
    A, R, L, T = _weight_gradient_tile(w_shape, dtype)
    z_size = size_of_z(output_size, w_shape, stride, T)
    z_end = scratch_size_for(x_shape, z_size, offset)
    # Tile after tile meets the same rows of z and dy, so only as many at a time as stay near; but at least 32 pixels,
    # or the tile would mostly be fetched and put back. A window of the pool is never cut.
    row_bytes = (stride[0] * z_size[1] * channels + output_size[1] * out_channels) * dtype.itemsize
    rows = max(NEAR // row_bytes, ceil(32 / output_size[1]))
    rows = ceil(rows / pool[0]) * pool[0]
    held = (0, 0)
    if _holds_pixels(w_shape, T):
        V = ceil(L / register_lanes(dtype))
        room = (usable_registers() - 1) // V - A * R
        held = max(n for n in range(1, min(MOST_PIXELS, room) + 1) if output_size[1] % n == 0), stride[1] * channels
    kernel = _weight_gradient_task(A, R, L, T, out_channels % (L // T) == 0, dtype, *pool, relu, *held)
    # In the scratch memory: z, up to z_end; a few rows of dy, as they are in front of a ReLU and a pool; sums for db.
    sums = z_end + (rows * output_size[1] * out_channels if relu or prod(pool) > 1 else 0)
    sizes = (parts, *x_shape, *kernel_size, *output_size, out_channels, *z_size, *stride, *offset, z_end, sums, rows)
    return kernel, T, parts, sums + _bias_sums(L // T, dtype) * out_channels, sizes


def _weight_gradient_tile(w_shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int, int]:
    """(A, R, L, T): kernel rows of the tile, rows of dw in each, numbers in a row, and T of `terms_at_once`."""
    kernel_h, kernel_w, channels, out_channels = w_shape
    T, usable = terms_at_once(w_shape, dtype), usable_registers()
    rows_of_dw, lanes = ceil(kernel_w * channels / T), filled_lanes(T * out_channels, dtype)
    if not _holds_pixels(w_shape, T):
        return 1, *tile_shape(rows_of_dw, T * out_channels, dtype), T
    if out_channels % (2 * lanes) == 0 and 2 * (kernel_h * rows_of_dw + PIXELS) + 1 <= usable:
        return kernel_h, rows_of_dw, 2 * lanes, T
    most = (usable - PIXELS - 1) // rows_of_dw
    A = min(range(1, min(kernel_h, most) + 1), key=lambda A: (ceil(kernel_h / A) * max(A * rows_of_dw, UNDER_WAY), -A))
    return A, rows_of_dw, lanes, T


def _holds_pixels(w_shape: tuple[int, ...], T: int) -> bool:
    """Whether a few pixels of dy stay in registers. With one place in the kernel no two of them meet a number of x."""
    return prod(w_shape[:2]) > 1 and few_enough_to_hold(w_shape, T)


def _bias_sums(L: int, dtype: np.dtype) -> int:
    """How many rows of L channels db is summed in."""
    return SUMS * register_lanes(dtype) // max(L, register_lanes(dtype))


@in_tasks
def _unpack(dy, winners, active, n, rows, out_size, pool, O, unpacked, start, relu, L):
    """What `relu_backward`, if `relu`, and `max_pool_backward` make of dy, for the given rows of the convolution."""
    (first, last), (out_h, out_w), (pool_h, pool_w) = rows, out_size, pool
    windows_h, windows_w = out_h // pool_h, out_w // pool_w
    if windows_h * pool_h < out_h or windows_w * pool_w < out_w:
        clear_numbers(unpacked, start, (last - first) * out_w * O)
    zero = zeros(dy, L)
    for i in range(first // pool_h, min(windows_h, last // pool_h)):
        for j in range(windows_w):
            there = ((n * windows_h + i) * windows_w + j) * O
            here = start + ((i * pool_h - first) * out_w + j * pool_w) * O
            for group in range(0, O, L):
                o = min(group, max(0, O - L))  # the last group may repeat channels of the one before it
                width = width_before(windows_w - j - 1, O, min(L, O), L)
                gradient = where_active(dy, active, there + o, width, relu, L)
                if pool_h * pool_w == 1:
                    write(unpacked, here + o, gradient, width)
                    continue
                winner = read(winners, there + o, width, L)
                for a in range(pool_h):
                    for b in range(pool_w):
                        won = equals(winner, a * pool_w + b)
                        write(unpacked, here + (a * out_w + b) * O + o, select(won, gradient, zero), width)


@in_tasks
def _add_bias_gradient(dy, active, first, last, scratch, sums, O, relu, P, L, whole):
    """P sums += dy of the pixels from `first` to `last`, by turns; 0 where not active, if `relu`."""
    acc = tile(P, L, dy)
    for o in range(0, O, L):
        width = L if whole else min(L, O - o)
        for p in range(P):
            acc[p] = read(scratch, sums + p * O + o, width, L)
        for pixel in range(first, last, P):
            place, rest = pixel * O + o, last - pixel
            if rest >= P:
                for p in range(P):
                    acc[p] = acc[p] + where_active(dy, active, place + p * O, width, relu, L)
            else:
                for p in range(P):
                    if p < rest:
                        acc[p] = acc[p] + where_active(dy, active, place + p * O, width, relu, L)
        for p in range(P):
            write(scratch, sums + p * O + o, acc[p], width)


@cache
def _weight_gradient_task(
    A: int,
    R: int,
    L: int,
    T: int,
    whole: bool,
    dtype: np.dtype,
    pool_h: int = 1,
    pool_w: int = 1,
    relu: bool = False,
    held_pixels: int = 0,
    held_step: int = 0,
):
    """The tile of convolution.py the other way round: A × R·T rows of dw × L / T channels, a few image rows at a time.

    With a pool of more than 1 × 1 or a ReLU, dy is the gradient by their output.
    T, whole: as in convolution.py. A row of dw is T · O numbers here, and has T of its rows side by side.
    held_pixels: so many of dy that stay in registers as well, if `_holds_pixels`, or 0; held_step = stride · C.
    """
    P, channels, S = A * R, L // T, _bias_sums(L // T, dtype)
    # A pixel would wait for the sums of the one before: so a small tile has several sets of sums, which take turns.
    turns = 1 if held_pixels else max(1, UNDER_WAY // (P * ceil(L / register_lanes(dtype))))
    all_sums = turns * P
    behind = relu or pool_h * pool_w > 1  # whether dy comes from behind a ReLU or a pool

    @task(dtype, dtype, dtype, dtype, BYTE, BYTE)
    def weight_gradient_tiles(part, sizes, scratch, x, dy, of_parts, winners, active):
        (
            parts, N, H, W, C, kernel_h, kernel_w, out_h, out_w, O,
            z_h, z_w, stride_h, stride_w, offset_h, offset_w, z_end, sums, rows,
        ) = numbers(sizes, 19)  # fmt: skip
        rows_of_dw, row, step = (kernel_w * C + T - 1) // T, T * O, stride_w * C
        acc = tile(all_sums, L, x)
        z, start, row_size = x, np.intp(0), W * C
        if z_end:
            z, row_size = scratch, z_w * C
            clear_numbers(scratch, 0, z_end)
        dw = part * (kernel_h * rows_of_dw * row + O)
        clear_numbers(of_parts, dw, kernel_h * rows_of_dw * row)
        clear_numbers(scratch, sums, S * O)
        pixels = (out_h // pool_h) * (out_w // pool_w)  # of dy

        for n in range(part * N // parts, (part + 1) * N // parts):
            if z_end:
                set_inside_zeros(x, n * H * W * C, z, start, (np.intp(0), z_h), (H, W, C), z_w, (offset_h, offset_w))
            else:
                start = n * H * row_size
            for i_first in range(0, out_h, rows):
                i_last = min(out_h, i_first + rows)
                dy_rows, dy_start = dy, (n * out_h + i_first) * out_w * O
                if behind:
                    dy_rows, dy_start = scratch, z_end
                    _unpack(
                        dy, winners, active, n, (i_first, i_last), (out_h, out_w), (pool_h, pool_w), O,
                        scratch, z_end, relu, channels,
                    )  # fmt: skip
                for o in range(0, O, channels):
                    width = channels if whole else min(channels, O - o)
                    for tile_a in range(0, kernel_h, A):
                        a = min(tile_a, kernel_h - A)
                        for tile_k in range(0, rows_of_dw, R):
                            k = min(tile_k, rows_of_dw - R)
                            for p in range(P):
                                place = dw + ((a + p // R) * rows_of_dw + k + p % R) * row + o
                                acc[p] = read(of_parts, place, T * width, L)
                            for i in range(i_first, i_last):
                                here = start + (i * stride_h + a) * row_size + k * T
                                if held_pixels:
                                    for j in range(0, out_w, held_pixels):
                                        place, there = dy_start + ((i - i_first) * out_w + j) * O + o, here + j * step
                                        held = read_rows(dy_rows, place, O, held_pixels, width, held_pixels, channels)
                                        held = repeated(held, T)
                                        multiply_add_rows(acc, A, row_size, R, T, z, there, held, held_step, T)
                                    continue
                                for p in range(P, all_sums):
                                    acc[p] = zeros(x, L)
                                for j_first in range(0, out_w, turns):
                                    for turn in range(turns):
                                        j = j_first + turn
                                        if turn > 0 and j >= out_w:  # the first one's turn always comes
                                            continue
                                        place = dy_start + ((i - i_first) * out_w + j) * O + o
                                        dy_row = repeated(read(dy_rows, place, width, channels), T)
                                        for p in range(P):  # A is 1
                                            x_row = read_repeated(z, here + j * step + p * T, T, L)
                                            acc[turn * P + p] = multiply_add(x_row, dy_row, acc[turn * P + p])
                                for turn in range(1, turns):
                                    for p in range(P):
                                        acc[p] = acc[p] + acc[turn * P + p]
                            for p in range(P):
                                # The rows before were already summed by the tile before.
                                if a + p // R >= tile_a and k + p % R >= tile_k:
                                    place = dw + ((a + p // R) * rows_of_dw + k + p % R) * row + o
                                    write(of_parts, place, acc[p], T * width)
                first = n * pixels + i_first // pool_h * (out_w // pool_w)  # dy of these rows again, while it is near
                last = n * pixels + i_last // pool_h * (out_w // pool_w)
                _add_bias_gradient(dy, active, first, last, scratch, sums, O, relu, S, channels, whole)
        for o in range(0, O, channels):
            width = channels if whole else min(channels, O - o)
            total = read(scratch, sums + o, width, channels)
            for p in range(1, S):
                total = total + read(scratch, sums + p * O + o, width, channels)
            write(of_parts, dw + kernel_h * rows_of_dw * row + o, total, width)

    return weight_gradient_tiles
