"""3×3 convolution with 2.25 times fewer multiplications: Winograd's minimal filtering.

Two neighbouring outputs of a filter of three weights, y0 = d0·g0 + d1·g1 + d2·g2 and y1 = d1·g0 + d2·g1 + d3·g2, take
six multiplications. Winograd found a way with four, from sums that are cheap by comparison:

    m0 = (d0 − d2) · g0                          y0 = m0 + m1 + m2
    m1 = (d1 + d2) · (g0 + g1 + g2) / 2          y1 = m1 − m2 − m3
    m2 = (d2 − d1) · (g0 − g1 + g2) / 2
    m3 = (d1 − d3) · g2                          in matrices:  y = Aᵀ [(G g) ⊙ (Bᵀ d)]

Done along both axes it makes a patch of 2×2 outputs from 4×4 inputs with 16 multiplications instead of 36:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A

With many channels each of the 16 products becomes a matrix product over all patches, M[t] = V[t] · U[t] for t = 0 … 15,
and that runs on the register tile of vector.py. The weight gradient is the same formula read backwards (its adjoint):

    dw = Gᵀ [Σ over patches of (A dy Aᵀ) ⊙ (Bᵀ d B)] G

Source: Lavin & Gray, Fast algorithms for convolutional neural networks (2016), section 4.1.

What this file is not: the place to learn what a convolution is; that is `tinycnn/reference.py`, then `convolution.py`,
which calls this file where it pays. Results are those of the direct sum but for rounding errors of the same size.
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
    row_lanes,
    tile,
    tile_shape,
    write,
)

GROUP = 48


@cache
def pays(x_shape: tuple[int, ...], w_shape: tuple[int, ...], output_size: tuple[int, int]) -> bool:
    """Whether this is faster than the direct sum; the limits are measured.

    It is if there are patches enough to pay for the transformed weights, channels enough to pay for the sums around
    the products, little of the patches sticks out of the image, and an image fits into a core's cache.
    """
    N, H, W, C = x_shape
    kernel_h, kernel_w, _, O = w_shape
    patches = ((output_size[0] + 1) // 2) * ((output_size[1] + 1) // 2)
    return (
        (kernel_h, kernel_w) == (3, 3)
        and N * patches >= 500
        and min(C, O) >= 16
        and C * O >= 512
        and 4 * patches <= 1.25 * output_size[0] * output_size[1]
        and H * W * C <= 1 << 16
    )


def convolve(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, output_size: tuple[int, int], offset: tuple[int, int]
) -> np.ndarray:
    """As `convolution.convolve`, for a kernel of 3×3 that moves by one pixel.

    x (N, H, W, C), w (3, 3, C, O), b (O,), contiguous and of one dtype, N ≥ 1 -> y (N, *output_size, O).
    """
    _, _, C, O = w.shape
    y, u = empty((len(x), *output_size, O), x.dtype), empty((16, C, O), x.dtype)
    run(_weights_task(row_lanes(x.dtype), x.dtype), 1, (C * O,), w, u)
    parts, sizes, scratch_size = _plan(x.shape, (*output_size, O), offset)
    P, L = tile_shape(
        10, O, x.dtype
    )  # groups of 48, 49 or 50 patches all fill tiles of 10 well; one shape compiles once
    kernel = _convolve_task(P, L, row_lanes(x.dtype), x.dtype)
    run(kernel, parts, sizes, x, u, b, y, empty((scratch_size,), x.dtype))
    return y


def convolve_weight_gradient(x: np.ndarray, dy: np.ndarray, offset: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """As `convolution.convolve_weight_gradient`, for a kernel of 3×3 that moves by one pixel, and at least 16 channels.

    x (N, H, W, C), dy (N, out_h, out_w, O), contiguous and of one dtype, N ≥ 1 -> dw (3, 3, C, O), db (O,).
    """
    C, O = x.shape[3], dy.shape[3]
    R, L = tile_shape(8, O, x.dtype)  # the usual numbers of channels are multiples of 8
    parts, sizes, scratch_size = _plan(x.shape, dy.shape[1:], offset)
    sums, db_parts = empty((parts, 16, C, O), x.dtype), empty((parts, O), x.dtype)
    lanes = row_lanes(x.dtype)
    run(_gradient_task(R, L, lanes, x.dtype), parts, sizes, x, dy, sums, db_parts, empty((scratch_size,), x.dtype))
    dw = empty((3, 3, C, O), x.dtype)
    run(_gradient_end_task(lanes, x.dtype), PARTS, (parts, C * O), sums, dw)
    return dw, db_parts.sum(axis=0)


@cache
def _plan(x_shape, y_shape, offset) -> tuple[int, tuple[int, ...], int]:
    """(parts, the sizes that the tasks need, numbers of scratch memory)."""
    (N, H, W, C), (out_h, out_w, O) = x_shape, y_shape
    rows, columns = (out_h + 1) // 2, (out_w + 1) // 2  # of patches in an image
    group = max(1, round(GROUP / columns))  # rows of patches
    # A tile may reach beyond the last patch. The odd cache line between the 16 matrices keeps them from competing for
    # the same places in the cache.
    room = group * columns + 16
    v_size, m_size = room * C + 16, room * O + 16
    z_h, z_w = 2 * rows + 2, 2 * columns + 2
    as_it_is = offset == (0, 0) and z_h <= H and z_w <= W
    z_size = 0 if as_it_is else z_h * z_w * C
    parts = min(PARTS, N * rows)
    sizes = (parts, N, H, W, C, out_h, out_w, O, *offset, rows, columns, group, v_size, m_size, z_w, z_size)
    return parts, sizes, parts * (16 * (v_size + m_size) + z_size)


# ------------------------------------------------------------------------------------------------ forward (and dx)


@cache
def _weights_task(L: int, dtype: np.dtype):
    """U = G w Gᵀ, for L pairs of channels at once."""
    half = dtype.type(0.5)

    @task(dtype, dtype)
    def transform_weights(part, sizes, w, u):
        (size,) = numbers(sizes, 1)
        half_g = tile(12, L, w)
        for i in range(0, size, L):
            width, zero = min(L, size - i), read(w, 0, 0, L)
            for b in range(3):
                g0, g1 = read(w, b * size + i, width, L), read(w, (3 + b) * size + i, width, L)
                g2 = read(w, (6 + b) * size + i, width, L)
                outer, inner = multiply_add(half, g0 + g2, zero), multiply_add(half, g1, zero)
                half_g[b], half_g[3 + b], half_g[6 + b], half_g[9 + b] = g0, outer + inner, outer - inner, g2
            for a in range(4):
                g0, g1, g2 = half_g[3 * a], half_g[3 * a + 1], half_g[3 * a + 2]
                outer, inner = multiply_add(half, g0 + g2, zero), multiply_add(half, g1, zero)
                write(u, 4 * a * size + i, g0, width)
                write(u, (4 * a + 1) * size + i, outer + inner, width)
                write(u, (4 * a + 2) * size + i, outer - inner, width)
                write(u, (4 * a + 3) * size + i, g2, width)

    return transform_weights


@njit(inline="always")
def _transform_patches(x, sizes, first, rows, scratch, v, z_start, S):
    """V[t] = (Bᵀ d B)[t] for every patch d of these rows of patches; V is in the scratch memory from v on."""
    _, _, H, W, C, _, _, _, offset_h, offset_w, patch_rows, columns, _, v_size, _, z_w, z_size = numbers(sizes, 17)
    patch = tile(16, S, x)
    z, start, width_z, image = x, 0, W, -1
    for row in range(rows):
        n, i = (first + row) // patch_rows, 2 * ((first + row) % patch_rows)
        if z_size == 0:
            start = n * H * W * C
        elif n != image:
            z, start, width_z, image = scratch, z_start, z_w, n
            left, right = max(0, offset_w), min(z_w, offset_w + W)
            for z_i in range(max(0, offset_h), min(z_size // (z_w * C), offset_h + H)):
                there = ((n * H + z_i - offset_h) * W + left - offset_w) * C
                copy_numbers(scratch, z_start + (z_i * z_w + left) * C, x, there, (right - left) * C)
        for column in range(columns):
            d = start + (i * width_z + 2 * column) * C
            for c in range(0, C, S):
                width = min(S, C - c)
                for t in range(16):
                    patch[t] = read(z, d + (t // 4 * width_z + t % 4) * C + c, width, S)
                for t in range(4):
                    d0, d1, d2, d3 = patch[t], patch[4 + t], patch[8 + t], patch[12 + t]
                    patch[t], patch[4 + t], patch[8 + t], patch[12 + t] = d0 - d2, d1 + d2, d2 - d1, d1 - d3
                for t in range(4):
                    d0, d1, d2, d3 = patch[4 * t], patch[4 * t + 1], patch[4 * t + 2], patch[4 * t + 3]
                    to = v + 4 * t * v_size + (row * columns + column) * C + c
                    write(scratch, to, d0 - d2, width)
                    write(scratch, to + v_size, d1 + d2, width)
                    write(scratch, to + 2 * v_size, d2 - d1, width)
                    write(scratch, to + 3 * v_size, d1 - d3, width)


@cache
def _convolve_task(P: int, L: int, S: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype, dtype)
    def convolve_patches(part, sizes, x, u, b, y, scratch):
        parts, N, _, _, C, out_h, out_w, O, _, _, patch_rows, columns, group, v_size, m_size, _, z_size = numbers(
            sizes, 17
        )
        acc, patch = tile(P, L, x), tile(16, S, x)
        v = part * (16 * (v_size + m_size) + z_size)
        m = v + 16 * v_size
        z_start = m + 16 * m_size
        clear_numbers(scratch, v, 16 * v_size)
        clear_numbers(scratch, z_start, z_size)
        last = (part + 1) * N * patch_rows // parts
        for first in range(part * N * patch_rows // parts, last, group):
            rows = min(group, last - first)
            _transform_patches(x, sizes, first, rows, scratch, v, z_start, S)
            # M[t] = V[t] · U[t]
            for t in range(16):
                for o in range(0, O, L):
                    width = min(L, O - o)
                    for q in range(0, rows * columns, P):
                        for p in range(P):
                            acc[p] = read(x, 0, 0, L)  # no lanes: zeros
                        here = v + t * v_size + q * C
                        for k in range(C):
                            u_row = read(u, (t * C + k) * O + o, width, L)
                            for p in range(P):
                                acc[p] = multiply_add(scratch[here + p * C + k], u_row, acc[p])
                        for p in range(P):
                            write(scratch, m + t * m_size + (q + p) * O + o, acc[p], width)
            # y = Aᵀ M A + b
            for row in range(rows):
                n, i = (first + row) // patch_rows, 2 * ((first + row) % patch_rows)
                for column in range(columns):
                    for o in range(0, O, S):
                        width = min(S, O - o)
                        for t in range(16):
                            patch[t] = read(scratch, m + t * m_size + (row * columns + column) * O + o, width, S)
                        for t in range(4):
                            m0, m1, m2, m3 = patch[t], patch[4 + t], patch[8 + t], patch[12 + t]
                            patch[t], patch[4 + t] = m0 + m1 + m2, m1 - m2 - m3
                        bias = read(b, o, width, S)
                        for t in range(2):
                            m0, m1, m2, m3 = patch[4 * t], patch[4 * t + 1], patch[4 * t + 2], patch[4 * t + 3]
                            if i + t < out_h:
                                to = ((n * out_h + i + t) * out_w + 2 * column) * O + o
                                write(y, to, m0 + m1 + m2 + bias, width)
                                write(y, to + O, m1 - m2 - m3 + bias, width if 2 * column + 1 < out_w else 0)

    return convolve_patches


# ------------------------------------------------------------------------------------------------ the weight gradient


@cache
def _gradient_task(R: int, L: int, S: int, dtype: np.dtype):
    """sums[t] = Σ V[t]ᵀ · E[t] over patches, with E = A dy Aᵀ.  db is the sum of E[5], the sum of a patch of dy."""

    @task(dtype, dtype, dtype, dtype, dtype)
    def weight_gradient_patches(part, sizes, x, dy, sums, db, scratch):
        parts, N, _, _, C, out_h, out_w, O, _, _, patch_rows, columns, group, v_size, m_size, _, z_size = numbers(
            sizes, 17
        )
        acc, patch = tile(R, L, x), tile(16, S, x)
        v = part * (16 * (v_size + m_size) + z_size)
        e = v + 16 * v_size
        z_start = e + 16 * m_size
        clear_numbers(scratch, z_start, z_size)
        clear_numbers(sums, part * 16 * C * O, 16 * C * O)
        clear_numbers(db, part * O, O)
        last = (part + 1) * N * patch_rows // parts
        for first in range(part * N * patch_rows // parts, last, group):
            rows = min(group, last - first)
            _transform_patches(x, sizes, first, rows, scratch, v, z_start, S)
            for o in range(0, O, S):
                width, zero = min(S, O - o), read(x, 0, 0, S)
                total = read(db, part * O + o, width, S)
                for row in range(rows):
                    n, i = (first + row) // patch_rows, 2 * ((first + row) % patch_rows)
                    for column in range(columns):
                        here = ((n * out_h + i) * out_w + 2 * column) * O + o
                        right = width if 2 * column + 1 < out_w else 0
                        below, corner = (width, right) if i + 1 < out_h else (0, 0)
                        d00, d01 = read(dy, here, width, S), read(dy, here + O, right, S)
                        d10, d11 = read(dy, here + out_w * O, below, S), read(dy, here + (out_w + 1) * O, corner, S)
                        patch[0], patch[1] = d00, d01
                        patch[2], patch[3] = d00 + d10, d01 + d11
                        patch[4], patch[5] = d00 - d10, d01 - d11
                        patch[6], patch[7] = zero - d10, zero - d11
                        total = total + (patch[2] + patch[3])
                        for t in range(4):
                            d0, d1 = patch[2 * t], patch[2 * t + 1]
                            to = e + 4 * t * m_size + (row * columns + column) * O + o
                            write(scratch, to, d0, width)
                            write(scratch, to + m_size, d0 + d1, width)
                            write(scratch, to + 2 * m_size, d0 - d1, width)
                            write(scratch, to + 3 * m_size, zero - d1, width)
                write(db, part * O + o, total, width)
            for t in range(16):
                for o in range(0, O, L):
                    width = min(L, O - o)
                    for tile_k in range(0, C, R):
                        k = min(tile_k, C - R)
                        here = ((part * 16 + t) * C + k) * O + o
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
    """dw = Gᵀ (the sums of all parts) G, for S pairs of channels at once."""
    half = dtype.type(0.5)

    @task(dtype, dtype)
    def weight_gradient_end(part, sizes, sums, dw):
        parts, size = numbers(sizes, 2)
        patch = tile(16, S, sums)
        blocks = (size + S - 1) // S
        for block in range(part * blocks // PARTS, (part + 1) * blocks // PARTS):
            i = block * S
            width, zero = min(S, size - i), read(sums, 0, 0, S)
            for t in range(16):
                total = read(sums, t * size + i, width, S)
                for other in range(1, parts):
                    total = total + read(sums, (other * 16 + t) * size + i, width, S)
                patch[t] = total
            for t in range(4):
                s0, s3 = patch[t], patch[12 + t]
                plus, minus = patch[4 + t] + patch[8 + t], patch[4 + t] - patch[8 + t]
                patch[t], patch[4 + t] = multiply_add(half, plus, s0), multiply_add(half, minus, zero)
                patch[8 + t] = multiply_add(half, plus, s3)
            for a in range(3):
                s0, s3 = patch[4 * a], patch[4 * a + 3]
                plus, minus = patch[4 * a + 1] + patch[4 * a + 2], patch[4 * a + 1] - patch[4 * a + 2]
                write(dw, 3 * a * size + i, multiply_add(half, plus, s0), width)
                write(dw, (3 * a + 1) * size + i, multiply_add(half, minus, zero), width)
                write(dw, (3 * a + 2) * size + i, multiply_add(half, plus, s3), width)

    return weight_gradient_end
