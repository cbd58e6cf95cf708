"""Convolution as hot loops: `convolve` for forward and for the input gradient, `convolve_weight_gradient`.

Both do what the formulas in `tinycnn/reference.py` say, on NHWC arrays. In that layout the kernel_w × channels numbers
under one row of a kernel are neighbours in memory, and so are the out_channels of one weight. A convolution is
therefore a few nested loops over flat memory, with k running over kernel_w × channels:

    y[n, i, j, :] = b + Σ_a Σ_k  x[n, i·stride + a, j·stride·C + k] · w[a, k, :]

The tile (see vector.py) is P neighbouring output pixels × L output channels. Each row of w that is loaded serves P
multiply-adds, and the sums leave the registers only when they are finished.

The input gradient is a convolution as well: the kernel spread every dy[i, j] over x, so every x gathers from dy with
the kernel flipped, in and out channels swapped. dy then stands `stride` apart inside zeros, as x stands inside its
padding. Both are set inside zeros one image at a time, in a scratch image that stays in the CPU's cache.

What this file is not: it has no FFT, Winograd or im2col; the direct sum already runs near the peak of the CPU.
"""

from functools import cache

import numpy as np
from numba import njit, prange

from tinycnn.kernels.vector import add_row, kernel, load_row, multiply_add, store_row, tile, tile_shape

# The images are shared out in a fixed number of parts, whatever the number of threads. So the order of every sum is
# fixed too, and results are equal bit for bit on one thread or eight. More parts would scale to more cores, but each
# needs a weight gradient of its own.
PARTS = 8


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    output_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    offset: tuple[int, int] = (0, 0),
    spread: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """y[n, i, j, o] = b[o] + Σ_{a,b,c} z[n, i·stride_h + a, j·stride_w + b, c] · w[a, b, c, o].

    z is x set inside zeros: z[n, offset_h + i·spread_h, offset_w + j·spread_w] = x[n, i, j], as large as y needs it.

    x (N, H, W, C), w (kh, kw, C, O), b (O,), contiguous and of one dtype -> y (N, *output_size, O).
    """
    y = np.empty((len(x), *output_size, w.shape[3]), x.dtype)
    if y.size:
        _convolve_kernel(*tile_shape(output_size[1], w.shape[3], x.dtype))(x, w, b, y, stride, offset, spread)
    return y


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
    channels, out_channels = x.shape[3], dy.shape[3]
    rows = kernel_size[1] * channels
    parts = max(1, min(PARTS, len(x)))
    R, L = tile_shape(rows, out_channels, x.dtype)
    dw = np.zeros((parts, kernel_size[0], rows, out_channels), x.dtype)
    db = np.zeros((parts, R, out_channels), x.dtype)
    if dy.size:
        _weight_gradient_kernel(R, L)(x, dy, dw, db, stride, offset)
    return dw.sum(axis=0).reshape(*kernel_size, channels, out_channels), db.sum(axis=(0, 1))


@njit(cache=True, nogil=True)
def _scratch_image(x, z_h, z_w, offset, spread):
    """Zeros to set an image inside, or an empty array where x can be read as it is."""
    as_it_is = offset == (0, 0) and spread == (1, 1) and z_h <= x.shape[1] and z_w <= x.shape[2]
    return np.zeros((0, 0, 0) if as_it_is else (z_h, z_w, x.shape[3]), x.dtype)


@njit(cache=True, nogil=True)
def _image_inside_zeros(x, n, scratch, offset, spread):
    """Where z[n] is: (flat memory, index of its first number, numbers in one of its rows).

    That is image n of x itself, or the scratch image z, with z[offset + i·spread] = x[n, i] wherever that lies inside.
    """
    _, H, W, C = x.shape
    z_h, z_w, _ = scratch.shape
    if scratch.size == 0:
        return x.reshape(-1), n * H * W * C, W * C
    for i in range(H):
        row = offset[0] + i * spread[0]
        if 0 <= row < z_h:
            for j in range(W):
                column = offset[1] + j * spread[1]
                if 0 <= column < z_w:
                    for c in range(C):
                        scratch[row, column, c] = x[n, i, j, c]
    return scratch.reshape(-1), 0, z_w * C


@cache
def _convolve_kernel(P: int, L: int):
    @kernel
    def convolve_tiles(x, w, b, y, stride, offset, spread):
        N, _, _, C = x.shape
        kernel_h, kernel_w, _, O = w.shape
        _, out_h, out_w, _ = y.shape
        z_h, z_w = (out_h - 1) * stride[0] + kernel_h, (out_w - 1) * stride[1] + kernel_w
        K, step = kernel_w * C, stride[1] * C
        parts = min(PARTS, N)

        for part in prange(parts):
            acc = tile(P, L, x)
            scratch = _scratch_image(x, z_h, z_w, offset, spread)
            for n in range(part * N // parts, (part + 1) * N // parts):
                z, start, row = _image_inside_zeros(x, n, scratch, offset, spread)
                for o in range(0, O, L):
                    width = min(L, O - o)
                    for i in range(out_h):
                        for tile_j in range(0, out_w, P):
                            j = min(tile_j, out_w - P)  # the last tile may repeat pixels of the one before it
                            for p in range(P):
                                load_row(acc, p, b, o, width)
                            for a in range(kernel_h):
                                here = start + (i * stride[0] + a) * row + j * step
                                for k in range(K):
                                    for p in range(P):
                                        multiply_add(acc, p, z, here + p * step + k, w, (a * K + k) * O + o, width)
                            for p in range(P):
                                store_row(acc, p, y, ((n * out_h + i) * out_w + j + p) * O + o, width)

    return convolve_tiles


@cache
def _weight_gradient_kernel(R: int, L: int):
    """The same tile the other way round: R rows of dw × L output channels, summed over the pixels of an image."""

    @kernel
    def weight_gradient_tiles(x, dy, dw, db, stride, offset):
        N, _, _, C = x.shape
        parts, kernel_h, K, O = dw.shape
        _, out_h, out_w, _ = dy.shape
        z_h, z_w = (out_h - 1) * stride[0] + kernel_h, (out_w - 1) * stride[1] + K // C
        step, pixels = stride[1] * C, out_h * out_w

        for part in prange(parts):
            acc = tile(R, L, x)
            scratch = _scratch_image(x, z_h, z_w, offset, (1, 1))
            for n in range(part * N // parts, (part + 1) * N // parts):
                z, start, row = _image_inside_zeros(x, n, scratch, offset, (1, 1))
                for o in range(0, O, L):
                    width = min(L, O - o)
                    for a in range(kernel_h):
                        for tile_k in range(0, K, R):
                            k = min(tile_k, K - R)
                            for r in range(R):
                                load_row(acc, r, dw, ((part * kernel_h + a) * K + k + r) * O + o, width)
                            for i in range(out_h):
                                here = start + (i * stride[0] + a) * row + k
                                for j in range(out_w):
                                    pixel = n * pixels + i * out_w + j
                                    for r in range(R):
                                        multiply_add(acc, r, z, here + j * step + r, dy, pixel * O + o, width)
                            for r in range(R):
                                if k + r >= tile_k:  # the rows before were already summed by the tile before
                                    store_row(acc, r, dw, ((part * kernel_h + a) * K + k + r) * O + o, width)
                    # The bias gradient in R sums side by side: one alone would wait for each of its additions.
                    for r in range(R):
                        load_row(acc, r, db, (part * R + r) * O + o, width)
                    for pixel in range(0, pixels, R):
                        for r in range(R):
                            if pixel + r < pixels:
                                add_row(acc, r, dy, (n * pixels + pixel + r) * O + o, width)
                    for r in range(R):
                        store_row(acc, r, db, (part * R + r) * O + o, width)

    return weight_gradient_tiles
