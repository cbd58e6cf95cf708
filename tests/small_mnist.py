"""Small data sets in MNIST's form, made up: noise, and classes that a network can tell apart."""

from pathlib import Path

import numpy as np

from tinycnn import write_idx
from tinycnn.mnist import FILES


def noise(n_train=6, n_test=4, size=(5, 4), classes=3) -> list[np.ndarray]:
    """Four arrays in the order of FILES."""
    random = np.random.default_rng(n_train)
    images = [random.integers(0, 256, size=(n, *size), dtype=np.uint8) for n in (n_train, n_test)]
    labels = [random.integers(0, classes, size=n).astype(np.uint8) for n in (n_train, n_test)]
    return [images[0], labels[0], images[1], labels[1]]


def bright_quarters(random, counts=(450, 100), size=(28, 28), darkness=120, brightness=60) -> list[np.ndarray]:
    """The same, of four classes: a noisy image has one quarter that is brighter than the others."""
    (height, width), arrays = (size[0] // 2, size[1] // 2), []
    for n in counts:
        labels = random.integers(0, 4, size=n)
        images = random.integers(0, darkness, size=(n, *size))
        for image, label in zip(images, labels, strict=True):
            image[(label // 2) * height :][:height, (label % 2) * width :][:, :width] += brightness
        arrays += [images.astype(np.uint8), labels.astype(np.uint8)]
    return arrays


def write_files(directory: Path, arrays: list[np.ndarray], spelling=lambda name: name) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file, array in zip(FILES, arrays, strict=True):
        write_idx(directory / spelling(file.name), array)
