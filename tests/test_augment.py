"""The random shift: every image moved as a whole, each way equally often, the rest background."""

import numpy as np
import pytest

from tinycnn.augment import random_shift


@pytest.mark.parametrize("shape", [(300, 6, 5), (300, 6, 5, 3)])
def test_each_image_is_one_of_its_shifts(random, shape):
    images = random.integers(1, 256, size=shape, dtype=np.uint8)
    before = images.copy()
    shifted = random_shift(images, 2, random)
    assert shifted.shape == shape
    assert shifted.dtype == np.uint8
    seen = np.zeros((5, 5), int)
    for image, result in zip(images, shifted, strict=True):
        canvas = np.zeros((10, 9, *shape[3:]), np.uint8)
        canvas[2:8, 2:7] = image
        matches = [(i, j) for i in range(5) for j in range(5) if (canvas[i : i + 6, j : j + 5] == result).all()]
        assert len(matches) == 1
        seen[matches[0]] += 1
    assert seen.min() > 0
    assert seen.max() < 40  # 12 expected of each of the 25
    np.testing.assert_array_equal(images, before)


def test_no_shift_and_no_images(random):
    images = random.integers(0, 256, size=(3, 4, 4), dtype=np.uint8)
    result = random_shift(images, 0, random)
    np.testing.assert_array_equal(result, images)
    assert not np.shares_memory(result, images)
    assert random_shift(images[:0], 2, random).shape == (0, 4, 4)


def test_same_generator_same_shifts(random):
    images = random.integers(0, 256, size=(50, 4, 4), dtype=np.uint8)
    a, b, c = (random_shift(images, 2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
