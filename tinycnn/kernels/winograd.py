"""3×3 convolution with four times fewer multiplications: Winograd's minimal filtering.

Four neighbouring outputs of a filter of three weights take 12 multiplications. But they are the coefficients of a
product of polynomials, in disguise, and a polynomial of degree 5 is known by its values at six points. Evaluate both
factors at six points, multiply point by point, and go back: 6 multiplications, beside sums that are cheap if they are
shared by many channels. In matrices, for inputs d0 … d5 and weights g0 … g2:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]                  Aᵀ: 4 × 6,  G: 6 × 3,  Bᵀ: 6 × 6

Done along both axes it makes a patch of 4×4 outputs from 6×6 inputs with 36 multiplications instead of 144:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A

With many channels each of the 36 products becomes a matrix product over all patches, M[t] = V[t] · U[t] for t = 0 … 35,
and that runs on the register tile of vector.py. The weight gradient is the same formula read backwards (its adjoint):

    dw = Gᵀ [Σ over patches of (A dy Aᵀ) ⊙ (Bᵀ d B)] G

Any six points will do on paper, and the usual 0, ±1, ±2, ∞ give simple matrices. Rounding errors differ, though: with
0, ±3/4, ±3/2, ∞ they are four times smaller, about twice those of the direct sum.

Sources: Lavin & Gray, Fast algorithms for convolutional neural networks (2016), section 4; for the points Barabasz et
al., Error analysis and improving the accuracy of Winograd convolution for deep neural networks (2020).

What this file is not: the place to learn what a convolution is; that is `tinycnn/reference.py`, then `convolution.py`,
which calls this file where it pays.
"""

from functools import cache

import numpy as np
from numba import njit

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, numbers, run, task
from tinycnn.kernels.vector import (
    clear_numbers,
    copy_numbers,
    multiply_add,
    read,
    read_rows,
    row_lanes,
    tile,
    tile_shape,
    write,
    write_rows,
)

GROUP = 30  # patches that are transformed together: enough to fill tiles, few enough to stay in the cache
ODD = 16  # numbers between 36 matrices that are used at once: they would compete for the same places in the cache


@cache
def pays(x_shape: tuple[int, ...], w_shape: tuple[int, ...], output_size: tuple[int, int]) -> bool:
    """Whether this is faster than the direct sum; the limits are measured.

    It is if there are patches enough to pay for the transformed weights, channels enough to pay for the sums around
    the products, little of the patches sticks out of the image, and an image fits into a core's cache.
    """
    N, H, W, C = x_shape
    kernel_h, kernel_w, _, O = w_shape
    patches = -(-output_size[0] // 4) * -(-output_size[1] // 4)
    return (
        (kernel_h, kernel_w) == (3, 3)
        and N * patches >= 60
        and min(C, O) >= 16
        and C * O >= 512
        and 16 * patches <= 1.6 * output_size[0] * output_size[1]
        and H * W * C <= 1 << 16
    )


def convolve(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, output_size: tuple[int, int], offset: tuple[int, int]
) -> np.ndarray:
    """As `convolution.convolve`, for a kernel of 3×3 that moves by one pixel.

    x (N, H, W, C), w (3, 3, C, O), b (O,), contiguous and of one dtype, N ≥ 1 -> y (N, *output_size, O).
    """
    (_, _, C, O), S = w.shape, row_lanes(x.dtype)
    y, u = empty((len(x), *output_size, O), x.dtype), empty((36, C * O + ODD), x.dtype)
    run(_weights_task(S, x.dtype), 1, (C * O,), w, u)
    parts, sizes, scratch_size = _plan(x.shape, (*output_size, O), offset, S)
    P, L = tile_shape(10, O, x.dtype)  # groups of about 30 patches fill tiles of 10 well; one shape compiles once
    kernel = _convolve_task(P, L, S, x.dtype)
    run(kernel, parts, sizes, x, u, b, y, empty((scratch_size,), x.dtype))
    return y


def convolve_weight_gradient(x: np.ndarray, dy: np.ndarray, offset: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """As `convolution.convolve_weight_gradient`, for a kernel of 3×3 that moves by one pixel, and at least 16 channels.

    x (N, H, W, C), dy (N, out_h, out_w, O), contiguous and of one dtype, N ≥ 1 -> dw (3, 3, C, O), db (O,).
    """
    C, O, S = x.shape[3], dy.shape[3], row_lanes(x.dtype)
    R, L = tile_shape(8, O, x.dtype)  # the usual numbers of channels are multiples of 8
    parts, sizes, scratch_size = _plan(x.shape, dy.shape[1:], offset, S)
    sums, db_parts = empty((parts, 36, C * O + ODD), x.dtype), empty((parts, O), x.dtype)
    run(_gradient_task(R, L, S, x.dtype), parts, sizes, x, dy, sums, db_parts, empty((scratch_size,), x.dtype))
    dw = empty((3, 3, C, O), x.dtype)
    run(_gradient_end_task(S, x.dtype), PARTS, (parts, C * O), sums, dw)
    return dw, db_parts.sum(axis=0)


@cache
def _plan(x_shape, y_shape, offset, S) -> tuple[int, tuple[int, ...], int]:
    """(parts, the sizes that the tasks need, numbers of scratch memory)."""
    (N, H, W, C), (out_h, out_w, O) = x_shape, y_shape
    rows, columns = -(-out_h // 4), -(-out_w // 4)  # of patches in an image
    group = max(1, round(GROUP / columns))  # rows of patches
    room = group * columns + 16  # a tile may reach beyond the last patch
    v_size, m_size = room * C + ODD, room * O + ODD
    z_h, z_w = 4 * rows + 2, 4 * columns + 2
    as_it_is = offset == (0, 0) and z_h <= H and z_w <= W
    z_size = 0 if as_it_is else z_h * z_w * C
    parts = max(1, min(PARTS, N * rows // group))
    sizes = (parts, N, H, W, C, out_h, out_w, O, *offset, rows, columns, group, v_size, m_size, z_w, z_size)
    return parts, sizes, parts * (36 * (v_size + m_size + S) + z_size)


# -------------------------------------------------------------------------------- the matrices, for rows of channels


@njit(forceinline=True)
def _B_transposed(d):
    d0, d1, d2, d3, d4, d5 = d
    even, odd = multiply_add(-9 / 4, d2, d4), multiply_add(-9 / 4, d1, d3)
    even_2, odd_2 = multiply_add(-9 / 16, d2, d4), multiply_add(-9 / 16, d1, d3)
    return (
        multiply_add(81 / 64, d0, multiply_add(-45 / 16, d2, d4)),
        multiply_add(3 / 4, odd, even),
        multiply_add(-3 / 4, odd, even),
        multiply_add(3 / 2, odd_2, even_2),
        multiply_add(-3 / 2, odd_2, even_2),
        multiply_add(81 / 64, d1, multiply_add(-45 / 16, d3, d5)),
    )


@njit(forceinline=True)
def _G(g, zero):
    """g0 + g1·x + g2·x² at x = 0, ±3/4, ±3/2 and ∞, divided by the product of x's distances from the other points."""
    g0, g1, g2 = g
    even, odd = multiply_add(9 / 16, g2, g0), multiply_add(3 / 4, g1, zero)
    even_2, odd_2 = multiply_add(9 / 4, g2, g0), multiply_add(3 / 2, g1, zero)
    return (
        multiply_add(64 / 81, g0, zero),
        multiply_add(-128 / 243, even + odd, zero),
        multiply_add(-128 / 243, even - odd, zero),
        multiply_add(32 / 243, even_2 + odd_2, zero),
        multiply_add(32 / 243, even_2 - odd_2, zero),
        g2,
    )


@njit(forceinline=True)
def _G_transposed(s, zero):
    s0, s1, s2, s3, s4, s5 = s
    even, odd, even_2, odd_2 = s1 + s2, s1 - s2, s3 + s4, s3 - s4
    return (
        multiply_add(64 / 81, s0, multiply_add(-128 / 243, even, multiply_add(32 / 243, even_2, zero))),
        multiply_add(-32 / 81, odd, multiply_add(16 / 81, odd_2, zero)),
        multiply_add(8 / 27, even_2 - even, s5),
    )


@njit(forceinline=True)
def _A(y):
    """y0 + y1·x + y2·x² + y3·x³ at x = 0, ±3/4, ±3/2 and ∞."""
    y0, y1, y2, y3 = y
    even, odd = multiply_add(9 / 16, y2, y0), multiply_add(9 / 16, y3, y1)
    even_2, odd_2 = multiply_add(9 / 4, y2, y0), multiply_add(9 / 4, y3, y1)
    return (
        y0,
        multiply_add(3 / 4, odd, even),
        multiply_add(-3 / 4, odd, even),
        multiply_add(3 / 2, odd_2, even_2),
        multiply_add(-3 / 2, odd_2, even_2),
        y3,
    )


@njit(forceinline=True)
def _A_transposed(m, constant):
    """`constant` is added to each of the four."""
    m0, m1, m2, m3, m4, m5 = m
    even, odd, even_2, odd_2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + even + even_2 + constant,
        multiply_add(3 / 4, odd, multiply_add(3 / 2, odd_2, constant)),
        multiply_add(9 / 16, even, multiply_add(9 / 4, even_2, constant)),
        multiply_add(27 / 64, odd, multiply_add(27 / 8, odd_2, m5 + constant)),
    )


# ------------------------------------------------------------------------------------------------ forward (and dx)


@cache
def _weights_task(S: int, dtype: np.dtype):
    """U = G w Gᵀ, for S pairs of channels at once."""

    @task(dtype, dtype)
    def transform_weights(part, sizes, w, u):
        (size,) = numbers(sizes, 1)
        step = size + ODD
        for i in range(0, size, S):
            width, zero = min(S, size - i), read(w, 0, 0, S)
            for b in range(3):  # the first half of the way, G w, stands where the end of U will
                column = read_rows(w, b * size + i, 3 * size, 3, width, 3, S)
                write_rows(u, (3 + b) * step + i, 6 * step, 6, width, _G(column, zero))
            for a in range(6):
                row = read_rows(u, (6 * a + 3) * step + i, step, 3, width, 3, S)
                write_rows(u, 6 * a * step + i, step, 6, width, _G(row, zero))

    return transform_weights


@njit(forceinline=True)
def _image_inside_zeros(x, n, sizes, z, z_start):
    """Image n of x, set inside the zeros at `offset`, in scratch memory."""
    _, _, H, W, C, _, _, _, offset_h, offset_w, _, _, _, _, _, z_w, z_size = numbers(sizes, 17)
    left, right = max(0, offset_w), min(z_w, offset_w + W)
    for row in range(max(0, offset_h), min(z_size // (z_w * C), offset_h + H)):
        there = ((n * H + row - offset_h) * W + left - offset_w) * C
        copy_numbers(z, z_start + (row * z_w + left) * C, x, there, (right - left) * C)


@njit(forceinline=True)
def _transform_patches(x, sizes, first, rows, scratch, v, half, z_start, S):
    """V[t] = (Bᵀ d B)[t] for every patch d of these rows of patches; V is in the scratch memory from v on."""
    _, _, H, W, C, _, _, _, _, _, patch_rows, columns, _, v_size, _, z_w, z_size = numbers(sizes, 17)
    z, start, row_size, image = x, 0, W * C, -1
    for row in range(rows):
        n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
        if z_size == 0:
            start = n * H * W * C
        elif n != image:
            z, start, row_size, image = scratch, z_start, z_w * C, n
            _image_inside_zeros(x, n, sizes, z, z_start)
        for column in range(columns):
            q = row * columns + column
            for c in range(0, C, S):
                width, d = min(S, C - c), start + i * row_size + 4 * column * C + c
                for t in range(6):
                    d_column = read_rows(z, d + t * C, row_size, 6, width, 6, S)
                    write_rows(scratch, half + t * S, 6 * S, 6, S, _B_transposed(d_column))
                for t in range(6):
                    d_row = read_rows(scratch, half + 6 * t * S, S, 6, S, 6, S)
                    write_rows(scratch, v + 6 * t * v_size + q * C + c, v_size, 6, width, _B_transposed(d_row))


@cache
def _convolve_task(P: int, L: int, S: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype, dtype)
    def convolve_patches(part, sizes, x, u, b, y, scratch):
        parts, N, _, _, C, out_h, out_w, O, _, _, patch_rows, columns, group, v_size, m_size, _, z_size = numbers(
            sizes, 17
        )
        acc = tile(P, L, x)
        v = part * (36 * (v_size + m_size + S) + z_size)
        m = v + 36 * v_size
        half = m + 36 * m_size
        z_start = half + 36 * S
        clear_numbers(scratch, z_start, z_size)
        last = (part + 1) * N * patch_rows // parts
        for first in range(part * N * patch_rows // parts, last, group):
            rows = min(group, last - first)
            _transform_patches(x, sizes, first, rows, scratch, v, half, z_start, S)
            for t in range(36):  # what the last tile reads beyond the patches counts for nothing, but may be anything
                clear_numbers(scratch, v + t * v_size + rows * columns * C, P * C)
            # M[t] = V[t] · U[t]
            for t in range(36):
                for o in range(0, O, L):
                    width = min(L, O - o)
                    for q in range(0, rows * columns, P):
                        for p in range(P):
                            acc[p] = read(x, 0, 0, L)  # no lanes: zeros
                        here = v + t * v_size + q * C
                        for k in range(C):
                            u_row = read(u, t * (C * O + ODD) + k * O + o, width, L)
                            for p in range(P):
                                acc[p] = multiply_add(scratch[here + p * C + k], u_row, acc[p])
                        for p in range(P):
                            write(scratch, m + t * m_size + (q + p) * O + o, acc[p], width)
            # y = Aᵀ M A + b
            for row in range(rows):
                n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
                for column in range(columns):
                    here = m + (row * columns + column) * O
                    for o in range(0, O, S):
                        width = min(S, O - o)
                        for t in range(6):
                            m_column = read_rows(scratch, here + t * m_size + o, 6 * m_size, 6, width, 6, S)
                            m_column = _A_transposed(m_column, read(x, 0, 0, S))
                            write_rows(scratch, half + t * S, 6 * S, 4, S, m_column)
                        for a in range(min(4, out_h - i)):
                            m_row = read_rows(scratch, half + 6 * a * S, S, 6, S, 6, S)
                            to = ((n * out_h + i + a) * out_w + 4 * column) * O + o
                            write_rows(y, to, O, out_w - 4 * column, width, _A_transposed(m_row, read(b, o, width, S)))

    return convolve_patches


# ------------------------------------------------------------------------------------------------ the weight gradient


@cache
def _gradient_task(R: int, L: int, S: int, dtype: np.dtype):
    """sums[t] = Σ V[t]ᵀ · E[t] over patches, with E = A dy Aᵀ."""

    @task(dtype, dtype, dtype, dtype, dtype)
    def weight_gradient_patches(part, sizes, x, dy, sums, db, scratch):
        parts, N, _, _, C, out_h, out_w, O, _, _, patch_rows, columns, group, v_size, m_size, _, z_size = numbers(
            sizes, 17
        )
        acc = tile(R, L, x)
        v = part * (36 * (v_size + m_size + S) + z_size)
        e = v + 36 * v_size
        half = e + 36 * m_size
        z_start = half + 36 * S
        clear_numbers(scratch, z_start, z_size)
        clear_numbers(sums, part * 36 * (C * O + ODD), 36 * (C * O + ODD))
        clear_numbers(db, part * O, O)
        last = (part + 1) * N * patch_rows // parts
        for first in range(part * N * patch_rows // parts, last, group):
            rows = min(group, last - first)
            _transform_patches(x, sizes, first, rows, scratch, v, half, z_start, S)
            for o in range(0, O, S):
                width = min(S, O - o)
                total = read(db, part * O + o, width, S)
                for row in range(rows):
                    n, i = (first + row) // patch_rows, 4 * ((first + row) % patch_rows)
                    for column in range(columns):
                        # Rows of zeros where the patch sticks out of dy.
                        for a in range(4):
                            here = ((n * out_h + i + a) * out_w + 4 * column) * O + o
                            there = out_w - 4 * column if i + a < out_h else 0
                            dy_row = read_rows(dy, here, O, there, width, 4, S)
                            total = total + ((dy_row[0] + dy_row[1]) + (dy_row[2] + dy_row[3]))
                            write_rows(scratch, half + 6 * a * S, S, 6, S, _A(dy_row))
                        here = e + (row * columns + column) * O + o
                        for t in range(6):
                            dy_column = read_rows(scratch, half + t * S, 6 * S, 4, S, 4, S)
                            write_rows(scratch, here + t * m_size, 6 * m_size, 6, width, _A(dy_column))
                write(db, part * O + o, total, width)
            for t in range(36):
                for o in range(0, O, L):
                    width = min(L, O - o)
                    for tile_k in range(0, C, R):
                        k = min(tile_k, C - R)
                        here = (part * 36 + t) * (C * O + ODD) + k * O + o
                        for r in range(R):
                            acc[r] = read(sums, here + r * O, width, L)
                        for q in range(rows * columns):
                            e_row = read(scratch, e + t * m_size + q * O + o, width, L)
                            for r in range(R):
                                acc[r] = multiply_add(scratch[v + t * v_size + q * C + k + r], e_row, acc[r])
                        for r in range(R):
                            if k + r >= tile_k:  # the rows before were already summed by the tile before
                                write(sums, here + r * O, acc[r], width)

    return weight_gradient_patches


@cache
def _gradient_end_task(S: int, dtype: np.dtype):
    """dw = Gᵀ (the sums of all parts) G, for S pairs of channels at once. It uses the first part's place for sums."""

    @task(dtype, dtype)
    def weight_gradient_end(part, sizes, sums, dw):
        parts, size = numbers(sizes, 2)
        step, blocks = size + ODD, (size + S - 1) // S
        for block in range(part * blocks // PARTS, (part + 1) * blocks // PARTS):
            i = block * S
            width, zero = min(S, size - i), read(sums, 0, 0, S)
            for t in range(36):
                total = read(sums, t * step + i, width, S)
                for other in range(1, parts):
                    total = total + read(sums, (other * 36 + t) * step + i, width, S)
                write(sums, t * step + i, total, width)
            for t in range(6):
                column = read_rows(sums, t * step + i, 6 * step, 6, width, 6, S)
                write_rows(sums, t * step + i, 6 * step, 3, width, _G_transposed(column, zero))
            for a in range(3):
                row = read_rows(sums, 6 * a * step + i, step, 6, width, 6, S)
                write_rows(dw, 3 * a * size + i, size, 3, width, _G_transposed(row, zero))

    return weight_gradient_end
