"""The gradients of a 3×3 convolution with four times fewer multiplications: `winograd.py` read backwards.

They are the adjoints of its formula. With E = A dy Aᵀ for every patch of 4×4 numbers of dy, and dd for the gradient by
a patch d of inputs,

    dw = Gᵀ [Σ over patches of (Bᵀ d B) ⊙ E] G
    dd = B [(G w Gᵀ) ⊙ E] Bᵀ                         the patches dd overlap by two pixels, and add up to dx

so both are matrix products again, and take the same E: dy is transformed once.

What this file is not: the place to learn what a pool and a ReLU are. Where they stand behind the convolution, it begins
with what they do to dy.
"""

from functools import cache, lru_cache

import numpy as np

from tinycnn.kernels.elementwise import BYTE, sum_of_parts
from tinycnn.kernels.memory import empty
from tinycnn.kernels.minimal_filtering import A, B, G_transposed
from tinycnn.kernels.padding import set_inside_zeros
from tinycnn.kernels.parallel import PARTS, in_tasks, numbers, run, task
from tinycnn.kernels.tile_shape import even_tile
from tinycnn.kernels.vector import (
    clear_numbers,
    copy_numbers,
    equals,
    multiply_add,
    read,
    read_rows,
    select,
    tile,
    transpose,
    write,
    write_rows,
    zeros,
)
from tinycnn.kernels.winograd import (
    LEVEL,
    ODD,
    U,
    begins,
    channels_at_once,
    fills_rows,
    layout,
    products,
    products_tile,
    transform_patches,
    transform_some_weights,
)


def convolve_backward(
    x: np.ndarray,
    dy: np.ndarray,
    w: np.ndarray | None,
    output_size: tuple[int, int],
    offset: tuple[int, int],
    winners: np.ndarray | None = None,
    active: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `convolve_backward` in convolution_backward.py, for a kernel of 3×3 that moves by one pixel.

    Without w dx is left out, empty. With winners, dy came back to the pool behind the convolution, and with active to
    the ReLU behind that.

    x (N, H, W, C), dy (N, *output_size, O) or (N, out_h // 2, out_w // 2, O), w (3, 3, C, O), contiguous and of one
    dtype; N ≥ 1, C and O ≥ LEAST -> dx (N, H, W, C), dw (3, 3, C, O), db (O,).
    """
    return _gradients(x, x.shape, dy, w, output_size, offset, winners, active)


def convolve_input_gradient(
    dy: np.ndarray, w: np.ndarray, input_size: tuple[int, int], offset: tuple[int, int]
) -> np.ndarray:
    """dx alone, without winners and active: dy (N, out_h, out_w, O), w (3, 3, C, O) -> dx (N, *input_size, C).

    (A layer needs dw as well, and has both from one call.)
    """
    return _gradients(None, (len(dy), *input_size, w.shape[2]), dy, w, dy.shape[1:3], offset)[0]


def _gradients(x, x_shape, dy, w, output_size, offset, winners=None, active=None):
    """As `convolve_backward`; without x only dx."""
    C, O = x_shape[3], dy.shape[3]
    kernel, parts, sizes, scratch = _plan(x_shape, (*output_size, O), dy.dtype, offset)
    of_parts = empty((parts, 9 * C * O + O), dy.dtype)  # dw, and db behind it
    dx = empty((0,) if w is None else x_shape, dy.dtype)
    sizes = *sizes, w is not None, x is not None, winners is not None, active is not None
    run(kernel, parts, sizes, dy, x, w, dx, of_parts, winners, active, scratch=scratch)
    if x is None:
        return dx, None, None
    gradients = sum_of_parts(of_parts)
    return dx, gradients[:-O].reshape(3, 3, C, O), gradients[-O:]


@lru_cache(maxsize=1000)
def _plan(x_shape, y_shape, dtype, offset):
    """(kernel, parts, sizes, scratch) for `run`: as in winograd.py."""
    C, O = x_shape[3], y_shape[2]
    S, (P, L) = channels_at_once(C, O, dtype), products_tile(C, dtype)
    _, sizes, scratch = layout(x_shape, y_shape, offset, S, P)
    parts = min(PARTS, x_shape[0])  # of whole images: the patches of one overlap in dx
    # rows of dw fill tiles of 8 well: the usual numbers of channels are multiples of it; smaller tiles are even ones
    R, L_out = products_tile(O, dtype, 8)
    R = even_tile(C, R)
    kernel = _backward_task(R, L_out, O % L_out == 0, P, L, C % L == 0, fills_rows(C, L), S, dtype)
    return kernel, parts, (parts, *sizes), scratch + 36 * (C * O + ODD)  # the last are the sums behind dw


@cache
def _backward_task(
    R: int,
    L_out: int,
    whole_out: bool,
    P: int,
    L_in: int,
    whole_in: bool,
    filled_in: bool,
    S: int,
    dtype: np.dtype,
):
    """dx, and for each part dw and db of its patches, one behind the other.

    whole_out, whole_in: whether no group of channels is narrower than L_out, L_in.   filled_in: see `fills_rows`.
    """

    @task(dtype, dtype, dtype, dtype, dtype, dtype, BYTE, BYTE, level=LEVEL)
    def backward_patches(part, sizes, scratch, dy, x, w, dx, of_parts, winners, active):
        (
            parts, N, _H, _W, C, _out_h, _out_w, O, _offset_h, _offset_w,
            patch_rows, columns, group, v, v_size, e_size, _z_w, z_size, dx_too, dw_too,
        ) = numbers(sizes, 20)  # fmt: skip
        e = v + 36 * v_size
        half = e + 36 * e_size
        z_start = half + 36 * columns * S
        dz_start = z_start + z_size
        sums = dz_start + z_size
        dw = part * (9 * C * O + O)
        db = dw + 9 * C * O
        clear_numbers(scratch, e, 36 * e_size)  # beyond the patches stands anything, and subnormal numbers are slow
        clear_numbers(scratch, z_start, z_size)
        if dw_too:
            clear_numbers(scratch, sums, 36 * (C * O + ODD))
        clear_numbers(of_parts, db, O)
        if dx_too:
            _transform_weights(w, scratch, v, C, O, S)
        last = (part + 1) * N // parts * patch_rows
        for first in range(part * N // parts * patch_rows, last, group):
            rows = min(group, last - first)
            _transform_gradients(dy, winners, active, sizes, first, rows, scratch, e, half, of_parts, db, S, whole_out)
            if dw_too:
                transform_patches(x, sizes, first, rows, scratch, half, z_start, S)
                _add_products(scratch, v, v_size, e, e_size, rows * columns, C, O, sums, R, L_out, whole_out)
            if dx_too:  # V has served; the products E[t] · U[t] take its place
                products(scratch, e, e_size, rows * columns, O, C, v, v_size, P, L_in, filled_in)
                _add_up_patches(dx, sizes, first, rows, scratch, v, half, dz_start, S, whole_in)
        # dw = Gᵀ (the sums) G, for S pairs of channels at once
        size = C * O if dw_too else 0
        for i in range(0, size, S):
            width, here = min(S, size - i), sums + i
            for b in range(6):
                column = read_rows(scratch, here + b * (size + ODD), 6 * (size + ODD), 6, width, 6, S)
                write_rows(scratch, half + b * S, 6 * S, 3, S, G_transposed(column))
            for a in range(3):
                row = read_rows(scratch, half + 6 * a * S, S, 6, S, 6, S)
                write_rows(of_parts, dw + 3 * a * size + i, size, 3, width, G_transposed(row))

    return backward_patches


@in_tasks
def _transform_weights(w, scratch, block, C, O, S):
    """As forward, of w with the two axes of channels exchanged. block: a place for 9 · S² numbers; V's, for now."""
    if not begins(scratch):
        return
    for tile_o in range(0, O, S):
        for tile_c in range(0, C, S):
            o, c = min(tile_o, O - S), min(tile_c, C - S)
            for ab in range(9):
                rows = read_rows(w, (ab * C + c) * O + o, O, S, S, S, S)
                write_rows(scratch, block + ab * S * S, S, S, S, transpose(rows))
            for i in range(S):
                to = U + (o + i) * C + c
                transform_some_weights(scratch, block + i * S, S * S, scratch, to, C * O + ODD, S, S)


@in_tasks
def _transform_gradients(dy, winners, active, sizes, first, rows, scratch, e, half, of_parts, db, S, whole):
    """E[t] = (A dy Aᵀ)[t] for every patch of these rows of patches, and db += Σ dy."""
    (
        _parts, _N, _H, _W, _C, out_h, out_w, O, _offset_h, _offset_w,
        patch_rows, columns, _group, _v, _v_size, e_size, _z_w, _z_size, _dx_too, _dw_too, pool, relu,
    ) = numbers(sizes, 22)  # fmt: skip
    for o in range(0, O, S):
        width = S if whole else min(S, O - o)
        total = read(of_parts, db + o, width, S)
        for row in range(rows):
            n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
            for column in range(columns):
                # Rows of zeros where the patch sticks out of dy.
                for a in range(4):
                    if pool:
                        here = ((n * (out_h // 2) + (i + a) // 2) * (out_w // 2) + 2 * column) * O + o
                        there = out_w // 2 - 2 * column if (i + a) // 2 < out_h // 2 else 0
                        dy_row = _unpooled(dy, winners, active, here, O, there, width, 2 * (a % 2), relu, S)
                    else:
                        here = ((n * out_h + i + a) * out_w + 4 * column) * O + o
                        there = out_w - 4 * column if i + a < out_h else 0
                        dy_row = _masked(dy, active, here, O, there, width, relu, S)
                    total = total + ((dy_row[0] + dy_row[1]) + (dy_row[2] + dy_row[3]))
                    write_rows(scratch, half + 6 * a * S, S, 6, S, A(dy_row))
                here = e + (row * columns + column) * O + o
                for b in range(6):
                    dy_column = read_rows(scratch, half + b * S, 6 * S, 4, S, 4, S)
                    write_rows(scratch, here + b * e_size, 6 * e_size, 6, width, A(dy_column))
        write(of_parts, db + o, total, width)


@in_tasks
def _masked(dy, active, here, O, count, width, relu, S):
    """Four pixels of dy, 0 where the ReLU was not active."""
    g0, g1, g2, g3 = read_rows(dy, here, O, count, width, 4, S)
    if relu:
        zero = zeros(dy, S)
        a0, a1, a2, a3 = read_rows(active, here, O, count, width, 4, S)
        g0, g1 = select(equals(a0, 1), g0, zero), select(equals(a1, 1), g1, zero)
        g2, g3 = select(equals(a2, 1), g2, zero), select(equals(a3, 1), g3, zero)
    return g0, g1, g2, g3


@in_tasks
def _unpooled(dy, winners, active, here, O, count, width, cell, relu, S):
    """The same four pixels in front of a pool: two windows' cells of this number and the next, 0 where they lost."""
    zero = zeros(dy, S)
    left, right = read_rows(dy, here, O, count, width, 2, S)
    if relu:
        left_active, right_active = read_rows(active, here, O, count, width, 2, S)
        left, right = select(equals(left_active, 1), left, zero), select(equals(right_active, 1), right, zero)
    left_winner, right_winner = read_rows(winners, here, O, count, width, 2, S)
    return (
        select(equals(left_winner, cell), left, zero),
        select(equals(left_winner, cell + 1), left, zero),
        select(equals(right_winner, cell), right, zero),
        select(equals(right_winner, cell + 1), right, zero),
    )


@in_tasks
def _add_products(scratch, v, v_size, e, e_size, patches, C, O, sums, R, L, whole):
    """sums[t] += Vᵀ[t] · E[t] for the 36 matrices.  V[t] (patches, C), E[t] (patches, O)."""
    acc = tile(R, L, scratch)
    for t in range(36):
        for o in range(0, O, L):
            width = L if whole else min(L, O - o)
            for tile_c in range(0, C, R):
                c = min(tile_c, C - R)
                here = sums + t * (C * O + ODD) + c * O + o
                for r in range(R):
                    acc[r] = read(scratch, here + r * O, width, L)
                for q in range(patches):
                    e_row = read(scratch, e + t * e_size + q * O + o, width, L)
                    for r in range(R):
                        acc[r] = multiply_add(scratch[v + t * v_size + q * C + c + r], e_row, acc[r])
                for r in range(R):
                    if c + r >= tile_c:  # the rows before were already summed by the tile before
                        write(scratch, here + r * O, acc[r], width)


@in_tasks
def _add_up_patches(dx, sizes, first, rows, scratch, m, half, dz_start, S, whole):
    """dz += B M Bᵀ for every patch of these rows of patches; dx is dz without the padding."""
    (
        _parts, _N, H, W, C, _out_h, _out_w, _O, offset_h, offset_w,
        patch_rows, columns, _group, _v, m_size, _e_size, z_w, z_size,  # M stands where V was
    ) = numbers(sizes, 18)  # fmt: skip
    z, row_size = (scratch, z_w * C) if z_size else (dx, W * C)
    for row in range(rows):
        n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
        if row == 0 or i == 0:
            top = i  # dz begins here
        start = dz_start + (i - top) * row_size if z_size else (n * H + i) * W * C
        for c in range(0, C, S):
            width, zero = S if whole else min(S, C - c), zeros(scratch, S)
            for column in range(columns):
                here = m + (row * columns + column) * C + c
                for b in range(6):
                    m_column = read_rows(scratch, here + b * m_size, 6 * m_size, 6, width, 6, S)
                    write_rows(scratch, half + (36 * column + b) * S, 6 * S, 6, S, B(m_column))
            for a in range(6):
                to = start + a * row_size + c
                left_0 = left_1 = zero  # what the patch to the left adds to this one
                for column in range(columns + 1):
                    count = 6 if column < columns else 0
                    m_row = read_rows(scratch, half + (36 * column + 6 * a) * S, S, count, S, 6, S)
                    z0, z1, z2, z3, z4, z5 = B(m_row)
                    pixels = z0 + left_0, z1 + left_1, z2, z3
                    if a < 2 and i > 0:  # and the one above
                        pixels = _sums(pixels, read_rows(z, to, C, 4, width, 4, S))
                    write_rows(z, to, C, 4 if column < columns else 2, width, pixels)
                    left_0, left_1, to = z4, z5, to + 4 * C
        last = i == 4 * (patch_rows - 1)
        if z_size and (last or row == rows - 1):
            done, offset = i - top + (6 if last else 4), (offset_h - top, offset_w)
            set_inside_zeros(dx, n * H * W * C, z, dz_start, (np.intp(0), done), (H, W, C), z_w, offset, back=True)
            if not last:  # the next patches add to two rows more
                copy_numbers(z, dz_start, z, dz_start + done * row_size, 2 * row_size)


@in_tasks
def _sums(a, b):
    (a0, a1, a2, a3), (b0, b1, b2, b3) = a, b
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3
