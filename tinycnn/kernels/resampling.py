"""Resampling as one hot loop: every pixel of the new image is read from some place, between pixels, in the old one.

The place (y, x) that pixel (i, j) is read from is an affine map of it, and a displacement of its own if there are any:

    y = m₀₀·i + m₀₁·j + m₀₂ + d₀[i, j]        top  = ⌊y⌋, v = y − top
    x = m₁₀·i + m₁₁·j + m₁₂ + d₁[i, j]        left = ⌊x⌋, u = x − left

    upper = old[top,     left] + u · (old[top,     left + 1] − old[top,     left])
    lower = old[top + 1, left] + u · (old[top + 1, left + 1] − old[top + 1, left])
    new[i, j] = upper + v · (lower − upper), rounded to the nearest whole number, halves up

This is bilinear interpolation. Around the image all is 0, so over the last step out brightness falls off evenly: what
SciPy calls map_coordinates(order=1, mode="grid-constant"). The images get a frame of zeros, and places beyond it are
moved onto it, so the loop never asks whether a neighbour exists.

What this file is not: it draws no random numbers and checks no shapes; `tinycnn/augment.py` does.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import numbers, parts_for, run, task
from tinycnn.kernels.vector import clear_numbers, copy_numbers


def resample(images: np.ndarray, maps: np.ndarray, displacements: np.ndarray | None = None) -> np.ndarray:
    """images (N, H, W, C) uint8 -> the new ones, of the same shape and dtype.

    maps (N, 2, 3): m of each image. displacements (H, N, 2, W), in pixels: d of each image, with the axes in the order
    in which they are made (`tinycnn/augment.py`). Both float32 and contiguous. All colours are read from one place.
    """
    n, height, width, channels = images.shape
    framed = np.zeros((n, height + 3, width + 3, channels), np.float32)  # one before, two after: y = H has a lower too
    framed[:, 1:-2, 1:-2] = images
    new = empty(images.shape, images.dtype)
    if new.size:
        parts = parts_for(n * height, 32 * new.size)
        kernel = _resample_task(channels, displacements is not None)
        run(kernel, parts, (parts, n, height, width), framed, maps, displacements, new)
    return new


def shift(images: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """new[n, i, j] = old[n, i − down[n], j − across[n]], or 0 where that is outside: no place is between pixels.

    images (N, H, W, …), contiguous, of any dtype but objects; down, across (N,) int64.
    """
    n, height, width = images.shape[:3]
    new = empty(images.shape, images.dtype)
    if new.size:
        parts = parts_for(n, 8 * new.size)
        sizes = (parts, n, height, width, new.nbytes // (n * height * width))
        run(_shift_task(), parts, sizes, images, down, across, new)
    return new


@cache
def _shift_task():
    """Pixels are only moved, so they are so many bytes, whatever they mean."""

    @task(np.uint8, np.int64, np.int64, np.uint8)
    def shift(part, sizes, images, down, across, new):
        parts, N, H, W, pixel = numbers(sizes, 5)
        line = W * pixel
        for n in range(part * N // parts, (part + 1) * N // parts):
            clear_numbers(new, n * H * line, H * line)
            left = max(0, across[n])
            count = max(0, min(W, W + across[n]) - left) * pixel
            for i in range(max(0, down[n]), min(H, H + down[n])):
                to, source = (n * H + i) * line, (n * H + i - down[n]) * line
                copy_numbers(new, to + left * pixel, images, source + (left - across[n]) * pixel, count)

    return shift


@cache
def _resample_task(C: int, elastic: bool):
    """C is known to the compiler: a loop over one colour would take a third longer."""
    zero, half, one = (np.float32(number) for number in (0, 0.5, 1))

    @task(np.float32, np.float32, np.float32, np.uint8)
    def resample(part, sizes, framed, maps, displacements, new):
        parts, N, H, W = numbers(sizes, 4)
        line, lowest, rightmost = (W + 3) * C, np.float32(H + 1), np.float32(W + 1)
        for row in range(part * N * H // parts, (part + 1) * N * H // parts):
            n, i = row // H, row % H
            m, d = n * 6, (i * N + n) * 2 * W
            y_first = maps[m] * np.float32(i) + maps[m + 2] + one  # in the frame all places are one further on
            x_first = maps[m + 3] * np.float32(i) + maps[m + 5] + one
            for j in range(W):
                y = maps[m + 1] * np.float32(j) + y_first
                x = maps[m + 4] * np.float32(j) + x_first
                if elastic:
                    y += displacements[d + j]
                    x += displacements[d + W + j]
                y, x = y if y > zero else zero, x if x > zero else zero  # also if it is not a number
                y, x = y if y < lowest else lowest, x if x < rightmost else rightmost
                top, left = np.int32(y), np.int32(x)
                v, u = y - np.float32(top), x - np.float32(left)
                place = (n * (H + 3) + top) * line + left * C
                for c in range(place, place + C):
                    upper = framed[c] + u * (framed[c + C] - framed[c])
                    lower = framed[c + line] + u * (framed[c + line + C] - framed[c + line])
                    new[(row * W + j) * C + c - place] = np.uint8(np.int32(upper + v * (lower - upper) + half))

    return resample
