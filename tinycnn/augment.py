"""Augmentation: each time an image is shown in training it is changed a little, so that it can't be learned by heart.

For each pixel of a distorted image the question is which place of the original it shows. `random_distortion` draws the
answers of an image, each a sum of two:

    place = centre + A⁻¹ · (pixel − centre − shift) + displacement[pixel]        A = rotation · scaling · shear

A and shift, the same for all pixels, turn, stretch, slant and move; the displacements let strokes waver as a hand does.
`tinycnn/kernels/resampling.py` then reads the places. Whatever is combined, an image is read, and blurred, only once.

What this file is not: it works on the uint8 images, before the network normalises them, and knows no labels. How far a
6 may be turned before it is a 9 is for the caller to say. For MNIST's digits, rotation 15, scaling 0.15, shift 2.5,
shear 10 and elastic 1 still look like writing; elastic above a third of smoothness tears strokes.
"""

import operator
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from tinycnn.arguments import not_negative
from tinycnn.kernels.dense import dense
from tinycnn.kernels.resampling import resample, shift


@dataclass(frozen=True)
class Distortion:
    """How far each distortion may go; 0 switches it off. Everything is drawn anew for each image.

    Raises ValueError for strengths that make no sense, by their name.
    """

    rotation: float = 0.0  # degrees, −rotation … rotation, all equally likely
    scaling: float = 0.0  # height and width are multiplied, each with its own factor in 1 − scaling … 1 + scaling
    shift: float = 0.0  # pixels, −shift … shift, down and across; not only whole ones
    shear: float = 0.0  # degrees, −shear … shear, by which upright lines are slanted
    elastic: float = 0.0  # pixels: the standard deviation of the displacements, down and across
    smoothness: float = 4.0  # pixels: the σ of the Gaussian that smooths the displacements; at least 1

    def __post_init__(self):
        for field in fields(self):
            not_negative(getattr(self, field.name), field.name)
        if self.scaling >= 1:
            raise ValueError(f"scaling must be below 1, got {self.scaling}")
        if self.shear >= 90:
            raise ValueError(f"shear must be below 90 degrees, got {self.shear}")
        if self.smoothness < 1:
            raise ValueError(f"smoothness must be at least 1 pixel, got {self.smoothness}")


def random_distortion(images: np.ndarray, distortion: Distortion, generator: np.random.Generator) -> np.ndarray:
    """Distort each image in its own way; what enters from outside is background (0).

    images (N, H, W) or (N, H, W, C), uint8 -> the same shape and dtype, a new array. The same generator state gives the
    same result, bit for bit, at any number of threads. It takes up to 20 bytes of memory a pixel meanwhile, a few more
    for images smaller than 12 × 12 or with a smoothness below the default.
    Raises ValueError for other images.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"to be distorted, images must be uint8, (N, H, W) or (N, H, W, C), got {images.dtype} {images.shape}"
        )
    count, height, width = images.shape[:3]
    maps = random_maps(count, (height, width), distortion, generator)
    displacements = random_displacements(count, (height, width), distortion, generator) if distortion.elastic else None
    colours = images.reshape(count, height, width, *(images.shape[3:] or (1,)))
    return resample(colours, maps, displacements).reshape(images.shape)


def random_maps(
    count: int, size: tuple[int, int], distortion: Distortion, generator: np.random.Generator
) -> np.ndarray:
    """pixel -> centre + A⁻¹ · (pixel − centre − shift), for each image: (count, 2, 3) float32.

    Each is to be multiplied by (row, column, 1).
    A shears, then scales, then rotates: A⁻¹ undoes it in the other order. Positive angles turn counterclockwise.
    """
    draws = generator.uniform(-1, 1, size=(6, count))
    angle, slant = np.deg2rad(distortion.rotation) * draws[0], np.tan(np.deg2rad(distortion.shear) * draws[1])
    tall, wide = 1 + distortion.scaling * draws[2:4]
    zero, one = np.zeros(count), np.ones(count)
    unrotate = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    unscale = np.array([[1 / tall, zero], [zero, 1 / wide]])
    unshear = np.array([[one, zero], [-slant, one]])
    inverse = np.einsum("abn,bcn,cdn->nad", unshear, unscale, unrotate)
    centre = (np.array(size) - 1) / 2
    offset = centre - np.einsum("nab,nb->na", inverse, centre + distortion.shift * draws[4:].T)
    return np.ascontiguousarray(np.concatenate([inverse, offset[:, :, None]], axis=2, dtype=np.float32))


def random_displacements(
    count: int, size: tuple[int, int], distortion: Distortion, generator: np.random.Generator
) -> np.ndarray:
    """White noise, smoothed by a Gaussian (Simard, Steinkraus & Platt, 2003): (H, count, 2, W) float32, in pixels.

    For each image and direction it is G · noise · Gᵀ: two matrix products for all of them at once, if the axis that a
    product sums over is the outermost or the innermost. Hence the order of the axes.
    """
    down, across = (_smoothing(length, distortion.smoothness) for length in size)
    (height, points_down), (width, points_across) = down.shape, across.shape
    noise = generator.random((points_down, count * 2 * points_across), np.float32) - np.float32(0.5)
    noise *= np.float32(distortion.elastic * np.sqrt(12))  # the variance of numbers in −1/2 … 1/2 is 1/12
    half = dense(down, noise, np.zeros(noise.shape[1], np.float32)).reshape(height * count * 2, points_across)
    field = dense(half, np.ascontiguousarray(across.T), np.zeros(width, np.float32))
    return field.reshape(height, count, 2, width)


@cache
def _smoothing(length: int, sigma: float) -> np.ndarray:
    """G (length, points): G · noise is the noise smoothed by a Gaussian of this σ, along one axis of the image.

    Noise on points only σ apart is enough: the correlation of the places i and j, (G · Gᵀ)[i, j], is within 0.007 of
    exp(−(i − j)² / 4σ²), that of noise everywhere. Each row of G has length 1: the variance stays.
    """
    points = sigma * np.arange(-1, np.ceil((length - 1) / sigma) + 2)  # one more on either side
    weights = np.exp(-(((np.arange(length)[:, None] - points) / sigma) ** 2) / 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def random_shift(images: np.ndarray, pixels: int, generator: np.random.Generator) -> np.ndarray:
    """Move each image by −pixels … +pixels, down and across, each way equally likely; what enters is background (0).

    images (N, H, W) or (N, H, W, C), of any dtype but objects -> the same shape and dtype, a new array.
    """
    if images.dtype.hasobject:
        raise ValueError(f"images must be numbers, got {images.dtype}")
    if (pixels := operator.index(pixels)) < 0:
        raise ValueError(f"pixels must be at least 0, got {pixels}")
    down, across = generator.integers(0, 2 * pixels + 1, size=(2, len(images)))
    return shift(np.ascontiguousarray(images), pixels - down, pixels - across)
