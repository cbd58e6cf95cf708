"""Augmentation: each time an image is shown in training it is changed a little, so that it can't be learned by heart.

What this file is not: it holds the random shift only, on the uint8 images, before the network normalises them.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def random_shift(images: np.ndarray, pixels: int, generator: np.random.Generator) -> np.ndarray:
    """Move each image by −pixels … +pixels, down and across, each way equally likely; what enters is background (0).

    images (N, H, W) or (N, H, W, C), any dtype -> the same shape and dtype, a new array.
    """
    height, width = images.shape[1:3]
    around = ((0, 0), (pixels, pixels), (pixels, pixels)) + ((0, 0),) * (images.ndim - 3)
    windows = sliding_window_view(np.pad(images, around), (height, width), axis=(1, 2))
    top, left = generator.integers(0, 2 * pixels + 1, size=(2, len(images)))
    shifted = windows[np.arange(len(images)), top, left]  # (N, H, W), with colours (N, C, H, W)
    return shifted if images.ndim == 3 else np.ascontiguousarray(np.moveaxis(shifted, 1, 3))
