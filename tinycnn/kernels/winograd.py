"""3×3 convolution with four times fewer multiplications: Winograd's minimal filtering.

Four neighbouring outputs of a filter of three weights, y[i] = Σ_a d[i + a] · g[a], take 12 multiplications; 6 are
enough. That is easiest seen on the way back, where four gradients dy and the weights g make the six gradients dd:

    dd[i + a] += dy[i] · g[a]                the coefficients of a product of two polynomials

It has degree 5, so six of its values determine it. Evaluate both factors at six points, A dy and G g, multiply point by
point, and interpolate, which is a matrix B as well (G takes in what that divides by):

    dd = B [(G g) ⊙ (A dy)]                  A: 6 × 4,  G: 6 × 3,  B: 6 × 6

With g fixed this is a matrix times dy, B D A, where D has G g on its diagonal. Forward is its transpose, Aᵀ D Bᵀ, with
the same six multiplications; the sums around them are cheap if many channels share them:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]

The smallest case, to be tried by hand: two outputs by four multiplications, not six (at the points 0, 1, −1 and ∞):

    m = (d0 − d2) · g0,  (d1 + d2) · (g0 + g1 + g2) / 2,  (d2 − d1) · (g0 − g1 + g2) / 2,  (d1 − d3) · g2
    y = m0 + m1 + m2,  m1 − m2 − m3

    d = 1 2 3 4 and g = 1 2 3:   m = −2, 15, 1, −6;   y = 14, 20 = 1·1 + 2·2 + 3·3, 2·1 + 3·2 + 4·3

Done along both axes it makes a patch of 4×4 outputs from 6×6 inputs with 36 multiplications instead of 144:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A

With many channels U = G w Gᵀ is made of every pair of channels, V = Bᵀ d B of every patch. The numbers at one place t
of all of them are two matrices, and each of the 36 products is a matrix product, M[t] = V[t] · U[t] for t = 0 … 35.
That runs on the register tile of vector.py. The gradients are the same formula read backwards
(`winograd_backward.py`).

Any six points will do on paper, and the usual 0, ±1, ±2, ∞ give simple matrices. Rounding errors differ, though: with
0, ±3/4, ±3/2, ∞ they are 0.6 times as large on average, 0.3 times at worst, and about twice those of the direct sum.
They are relative to the largest number of a patch: one that is a million times the others, or infinite, spoils the
outputs around it. And where all that a window sees is 0, and so is the bias, as at first, the output may be 1e-8, and a
ReLU then lets its gradient pass. Of outputs that should be equal, a pool may choose another than the first.

Sources: Lavin & Gray, Fast algorithms for convolutional neural networks (2016), section 4; for the points Barabasz et
al., Error analysis and improving the accuracy of Winograd convolution for deep neural networks (2020).

What this file is not: the place to learn what a convolution is; that is `tinycnn/reference.py`, then `convolution.py`,
which calls this file where it pays.
"""

from functools import cache, lru_cache
from math import ceil

import numpy as np

from tinycnn.kernels.elementwise import BYTE, relu_of
from tinycnn.kernels.memory import empty
from tinycnn.kernels.minimal_filtering import A_transposed, B_transposed, G
from tinycnn.kernels.padding import scratch_size_for, set_inside_zeros
from tinycnn.kernels.parallel import PARTS, in_tasks, numbers, run, task
from tinycnn.kernels.pooling import lead
from tinycnn.kernels.tile_shape import masks_are_free, register_lanes, tile_shape, usable_registers
from tinycnn.kernels.vector import clear_numbers, multiply_add, read, read_rows, tile, write, write_rows, zeros

LEVEL = 2  # of optimisation: level 3 takes a fifth longer to compile and gains nothing, these tiles being small enough
# Patches that are transformed together: enough to fill tiles, few enough to stay in the cache. Fewer than two groups
# become about two smaller ones, for two cores.
GROUP = 30
LEAST = 8  # channels on either side: half of the widest vector, see `channels_at_once`
ODD = 16  # numbers between 36 matrices that are used at once: they would compete for the same places in the cache
U = 16  # where U begins in the scratch memory; the first of the numbers before says whether it is there (`begins`)


def pays(x_shape: tuple[int, ...], w_shape: tuple[int, ...], output_size: tuple[int, int]) -> bool:
    """Whether this is faster than the direct sum; the limits are measured.

    It is if there are patches enough to pay for the transformed weights, channels enough to fill vectors, and little of
    the patches sticks out of the image.
    """
    (N, _, _, C), (kernel_h, kernel_w, _, O) = x_shape, w_shape
    patches = ceil(output_size[0] / 4) * ceil(output_size[1] / 4)  # of an image
    all_patches = N * patches
    return (
        (kernel_h, kernel_w) == (3, 3)
        and all_patches >= 30
        and all_patches > C * O / 512
        and min(C, O) >= LEAST
        and 16 * patches <= 1.6 * output_size[0] * output_size[1]
    )


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    output_size: tuple[int, int],
    offset: tuple[int, int],
    pool: bool = False,
    relu: bool = False,
    remember: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """As `convolution.convolve`, for a kernel of 3×3 that moves by one pixel; then what `pooled_convolution.py` says,
    with windows of 2×2 if `pool`: a patch holds four of them. relu, remember: as there.

    x (N, H, W, C), w (3, 3, C, O), bias (O,), contiguous and of one dtype; N ≥ 1, C and O ≥ LEAST
    -> y (N, *output_size, O) or (N, out_h // 2, out_w // 2, O), winners or None, active or None.
    """
    O = w.shape[3]
    kernel, parts, sizes, scratch = _plan(x.shape, (*output_size, O), x.dtype, offset)
    rows, columns = (size // 2 if pool else size for size in output_size)
    y = empty((len(x), rows, columns, O), x.dtype)
    winners = empty(y.shape, BYTE) if remember and pool else None
    active = empty(y.shape, BYTE) if remember and relu else None
    run(kernel, parts, (*sizes, pool, relu, remember), x, w, bias, y, winners, active, scratch=scratch)
    return y, winners, active


@lru_cache(maxsize=1000)
def _plan(x_shape, y_shape, dtype, offset):
    """(kernel, parts, sizes, scratch) for `run`: all that depends on sizes only, the same at every step."""
    C, O = x_shape[3], y_shape[2]
    S, (P, L) = channels_at_once(C, O, dtype), products_tile(O, dtype)
    groups, sizes, scratch = layout(x_shape, y_shape, offset, S, P)
    parts = min(PARTS, groups)
    return _convolve_task(P, L, fills_rows(O, L), S, dtype), parts, (parts, *sizes), scratch


def channels_at_once(C: int, O: int, dtype: np.dtype) -> int:
    """S, so many channels of a patch are transformed together: a vector of them, or half of one if there are fewer.

    A block of S never reaches beyond the channels: so there must be at least LEAST.
    """
    lanes = register_lanes(dtype)
    return lanes if min(C, O) >= lanes else lanes // 2


def products_tile(columns: int, dtype: np.dtype, rows: int = 10) -> tuple[int, int]:
    """(P, L) for the 36 products of matrices, where so many rows are to be filled well.

    Groups of about 30 patches fill tiles of 10 well; one shape compiles once. Where rows are single vectors, a number
    of the left matrix is used only once, and in these loops LLVM reads all P of them ahead, more than `tile_shape`
    leaves room for: with P sums and the row of the right matrix, 16 registers hold 7.
    """
    P, L = tile_shape(rows, columns, dtype)
    if register_lanes(dtype) >= L:
        P = min(P, (usable_registers() - 1) // 2)
    return P, L


def fills_rows(columns: int, L: int) -> bool:
    """Whether `products` may always take L for the width.

    Either no group of columns is narrower; or masks take long, and what it writes beyond a row is put right by the next
    one, what it writes beyond the last row is unused (`ODD`).
    """
    return columns % L == 0 or (columns < L <= columns + ODD and not masks_are_free())


def layout(x_shape, y_shape, offset, S, P) -> tuple[int, tuple[int, ...], int]:
    """(whole groups of patches, the sizes that the tasks need, numbers of scratch memory).

    What the scratch memory holds, one behind the other, from number `U` on:

        forward     U    V            M    one stage of a patch's transform                z
        backward    U    V, then M    E    one stage of the transforms of a row of them    z    dz    the sums behind dw

    (E, dz: see winograd_backward.py.)
    """
    (N, H, W, C), (out_h, out_w, O) = x_shape, y_shape
    rows, columns = ceil(out_h / 4), ceil(out_w / 4)  # of patches in an image
    group = max(1, min(round(GROUP / columns), N * rows // 2))  # rows of patches
    room = ceil(group * columns / P) * P  # for patches: a tile may reach beyond the last one
    v_size, m_size, half_size = room * C + ODD, room * O + ODD, 36 * columns * S  # half_size: forward needs 36 * S
    z_h, z_w = 4 * rows + 2, 4 * columns + 2
    whole_image = scratch_size_for(x_shape, (z_h, z_w), offset)
    z_size = min(whole_image, (4 * group + 2) * z_w * C)  # a group meets no more rows, and they stay in the cache
    v = U + 36 * (C * O + ODD)
    scratch = v + 36 * (v_size + m_size) + half_size + 2 * z_size  # the second z is backward's dz
    sizes = (N, H, W, C, out_h, out_w, O, *offset, rows, columns, group, v, v_size, m_size, z_w, z_size)
    return N * rows // group, sizes, scratch


@in_tasks
def _transform_weights(w, scratch, size, S):
    """U = G w Gᵀ, a matrix for each of the 36 products, for S pairs of channels at once.

    Every thread does it once in a call, for itself: what one core has written takes long to reach another.
    """
    if begins(scratch):
        for i in range(0, size, S):
            transform_some_weights(w, i, size, scratch, U + i, size + ODD, min(S, size - i), S)


@in_tasks
def begins(scratch):
    """Whether this thread has not been here before in this call: its first scratch number then still is 0."""
    before, scratch[0] = scratch[0], 1
    return before == 0


@in_tasks
def transform_some_weights(w, i, step, scratch, to, u_step, width, S):
    """G w Gᵀ for `width` pairs of channels. step: numbers from weight to weight in w; u_step: matrix to matrix in U."""
    for b in range(3):  # G w, 6 × 3, stands for now where columns 3 to 5 of the 6 × 6 numbers will
        column = read_rows(w, i + b * step, 3 * step, 3, width, 3, S)
        write_rows(scratch, to + (3 + b) * u_step, 6 * u_step, 6, width, G(column))
    for a in range(6):
        row = read_rows(scratch, to + (6 * a + 3) * u_step, u_step, 3, width, 3, S)
        write_rows(scratch, to + 6 * a * u_step, u_step, 6, width, G(row))


@in_tasks
def transform_patches(x, sizes, first, rows, scratch, half, z_start, S):
    """V[t] = (Bᵀ d B)[t] for every patch d of these rows. In scratch Bᵀ d of one patch begins at half."""
    (
        _parts, _N, H, W, C, _out_h, _out_w, _O, offset_h, offset_w,
        patch_rows, columns, _group, v, v_size, _m_size, z_w, z_size,
    ) = numbers(sizes, 18)  # fmt: skip
    z, row_size = (scratch, z_w * C) if z_size else (x, W * C)
    for row in range(rows):
        n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
        if row == 0 or i == 0:
            top = i  # z begins here, and has what the group needs of this image
            if z_size:
                z_rows = np.intp(0), 4 * min(rows - row, patch_rows - i // 4) + 2
                set_inside_zeros(x, n * H * W * C, z, z_start, z_rows, (H, W, C), z_w, (offset_h - top, offset_w))
        start = z_start + (i - top) * row_size if z_size else (n * H + i) * W * C
        for column in range(columns):
            q = row * columns + column
            for block in range(0, C, S):
                c = min(block, C - S)  # the last block may repeat channels of the one before it
                d = start + 4 * column * C + c
                for b in range(6):
                    d_column = read_rows(z, d + b * C, row_size, 6, S, 6, S)
                    write_rows(scratch, half + b * S, 6 * S, 6, S, B_transposed(d_column))
                for a in range(6):
                    d_row = read_rows(scratch, half + 6 * a * S, S, 6, S, 6, S)
                    write_rows(scratch, v + 6 * a * v_size + q * C + c, v_size, 6, S, B_transposed(d_row))


@in_tasks
def products(scratch, v, v_size, patches, K, O, m, m_size, P, L, whole):
    """M[t] = V[t] · U[t] for the 36 matrices, from and to the scratch memory.  V[t] (patches, K), U[t] (K, O)."""
    acc = tile(P, L, scratch)
    for t in range(36):
        for o in range(0, O, L):
            width = L if whole else min(L, O - o)
            for q in range(0, patches, P):  # the last tile may reach beyond the patches: what it finds there is unused
                for p in range(P):
                    acc[p] = zeros(scratch, L)
                here = v + t * v_size + q * K
                for k in range(K):
                    u_row = read(scratch, U + t * (K * O + ODD) + k * O + o, width, L)
                    for p in range(P):
                        acc[p] = multiply_add(scratch[here + p * K + k], u_row, acc[p])
                for p in range(P):
                    write(scratch, m + t * m_size + (q + p) * O + o, acc[p], width)


@cache
def _convolve_task(P: int, L: int, whole: bool, S: int, dtype: np.dtype):
    """whole: see `fills_rows`."""

    @task(dtype, dtype, dtype, dtype, dtype, BYTE, BYTE, level=LEVEL)
    def convolve_patches(part, sizes, scratch, x, w, bias, y, winners, active):
        (
            parts, N, _H, _W, C, _out_h, _out_w, O, _offset_h, _offset_w,
            patch_rows, columns, group, v, v_size, m_size, _z_w, z_size,
        ) = numbers(sizes, 18)  # fmt: skip
        m = v + 36 * v_size
        half = m + 36 * m_size
        z_start = half + 36 * columns * S
        _transform_weights(w, scratch, C * O, S)
        clear_numbers(scratch, v, 36 * v_size)  # beyond the patches stands anything, and subnormal numbers are slow
        clear_numbers(scratch, z_start, z_size)
        last = (part + 1) * N * patch_rows // parts
        for first in range(part * N * patch_rows // parts, last, group):
            rows = min(group, last - first)
            transform_patches(x, sizes, first, rows, scratch, half, z_start, S)
            products(scratch, v, v_size, rows * columns, C, O, m, m_size, P, L, whole)
            _write_outputs(scratch, m, half, bias, sizes, first, rows, y, winners, active, S)

    return convolve_patches


@in_tasks
def _write_outputs(scratch, m, half, bias, sizes, first, rows, y, winners, active, S):
    """y = Aᵀ M A + bias for every patch of these rows, or what the pool and the ReLU make of that."""
    (
        _parts, _N, _H, _W, _C, out_h, out_w, O, _offset_h, _offset_w,
        patch_rows, columns, _group, _v, _v_size, m_size, _z_w, _z_size, pool, relu, remember,
    ) = numbers(sizes, 21)  # fmt: skip
    for row in range(rows):
        n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
        for column in range(columns):
            here = m + (row * columns + column) * O
            for block in range(0, O, S):
                o = min(block, O - S)
                bias_row = read(bias, o, S, S)
                for b in range(6):
                    m_column = read_rows(scratch, here + b * m_size + o, 6 * m_size, 6, S, 6, S)
                    write_rows(scratch, half + b * S, 6 * S, 4, S, A_transposed(m_column, zeros(scratch, S)))
                if pool:
                    to = ((n * (out_h // 2) + i // 2) * (out_w // 2) + 2 * column) * O + o
                    windows = min(2, out_h // 2 - i // 2), min(2, out_w // 2 - 2 * column)
                    steps = out_w // 2 * O, O
                    _write_maxima(scratch, half, bias_row, y, winners, active, to, windows, steps, relu, remember, S)
                    continue
                for a in range(min(4, out_h - i)):
                    m_row = read_rows(scratch, half + 6 * a * S, S, 6, S, 6, S)
                    to = ((n * out_h + i + a) * out_w + 4 * column) * O + o
                    pixels = A_transposed(m_row, bias_row)
                    if relu:
                        pixels, active_pixels = _relu_of_four(pixels, zeros(scratch, S), zeros(active, S))
                        if remember:
                            write_rows(active, to, O, out_w - 4 * column, S, active_pixels)
                    write_rows(y, to, O, out_w - 4 * column, S, pixels)


@in_tasks
def _relu_of_four(pixels, zero, none):
    y0, active_0 = relu_of(pixels[0], zero, none)
    y1, active_1 = relu_of(pixels[1], zero, none)
    y2, active_2 = relu_of(pixels[2], zero, none)
    y3, active_3 = relu_of(pixels[3], zero, none)
    return (y0, y1, y2, y3), (active_0, active_1, active_2, active_3)


@in_tasks
def _write_maxima(scratch, half, bias, y, winners, active, to, windows, steps, relu, remember, S):
    """y = the maxima of the patch's four windows of 2×2, from Aᵀ M; and, if `remember`, winners and active."""
    (down, across), zero, none = steps, zeros(scratch, S), zeros(winners, S)
    for i in range(windows[0]):
        top = A_transposed(read_rows(scratch, half + 12 * i * S, S, 6, S, 6, S), bias)
        bottom = A_transposed(read_rows(scratch, half + (12 * i + 6) * S, S, 6, S, 6, S), bias)
        left = _maximum(top[0], top[1], bottom[0], bottom[1], none)
        right = _maximum(top[2], top[3], bottom[2], bottom[3], none)
        here = to + i * down
        if remember:
            write_rows(winners, here, across, windows[1], S, (left[1], right[1]))
        best = left[0], right[0]
        if relu:
            best_left, left_active = relu_of(best[0], zero, none)
            best_right, right_active = relu_of(best[1], zero, none)
            best = best_left, best_right
            if remember:
                write_rows(active, here, across, windows[1], S, (left_active, right_active))
        write_rows(y, here, across, windows[1], S, best)


@in_tasks
def _maximum(a, b, c, d, none):
    """The first maximum of a window's four cells, and its number, as in `pooling.max_pool`."""
    best, winner = lead(a, none, b, 1)
    best, winner = lead(best, winner, c, 2)
    return lead(best, winner, d, 3)
