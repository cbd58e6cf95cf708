"""Augmentation: every distorted pixel is what the formula says, every strength is reached and never exceeded."""

import tracemalloc
from math import cos, exp, sin, tan

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinycnn.augment import (
    Distortion,
    _smoothing,
    random_displacements,
    random_distortion,
    random_maps,
    random_shift,
)
from tinycnn.kernels.memory import free_unused
from tinycnn.kernels.resampling import resample

ALL = Distortion(rotation=25, scaling=0.3, shift=2.5, shear=15, elastic=1.5, smoothness=3.5)
OFF = Distortion()

# A place has a handful of float32 roundings, of numbers below 64: less than 4e-6 of a pixel, and brightness changes by
# at most 255 a pixel, each way. Where the exact value is so close to a half, either neighbour is right.
ROUNDING = 2e-3


def read_between(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear interpolation as one formula: each pixel is a tent of its height, and 0 is all around.

    image (H, W), y and x of any one shape, float64.
    """
    down = np.maximum(0, 1 - np.abs(y[..., None] - np.arange(image.shape[0])))
    across = np.maximum(0, 1 - np.abs(x[..., None] - np.arange(image.shape[1])))
    return np.einsum("...i,ij,...j->...", down, image.astype(np.float64), across)


def assert_rounded(result: np.ndarray, exact: np.ndarray):
    assert result.dtype == np.uint8
    assert np.abs(result - exact).max(initial=0) <= 0.5 + ROUNDING
    halves = np.abs(exact % 1 - 0.5) < ROUNDING
    np.testing.assert_array_equal(result[~halves], np.rint(exact)[~halves])


def places(maps: np.ndarray, displacements: np.ndarray | None, height: int, width: int) -> tuple[np.ndarray, ...]:
    """y and x (N, H, W), float64: the place that each pixel is read from."""
    pixels = np.stack([*np.mgrid[:height, :width], np.ones((height, width))])
    both = np.einsum("nak,kij->anij", maps.astype(np.float64), pixels)
    return tuple(both if displacements is None else both + displacements.transpose(2, 1, 0, 3))


def some_maps(random, count: int, displaced: bool, height: int, width: int):
    """Maps that turn, stretch and move in any way, in part far out of the image, and a displacement of each pixel."""
    maps = random.uniform(-1.5, 1.5, size=(count, 2, 3)).astype(np.float32)
    maps[:, :, 2] = random.uniform(-2, max(height, width) + 2, size=(count, 2))
    displacements = random.normal(size=(height, count, 2, width)).astype(np.float32) if displaced else None
    return maps, displacements


# ------------------------------------------------------------------------------------------------------- resampling


@given(
    shape=st.tuples(st.sampled_from([1, 2, 9]), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    displaced=st.booleans(),
    seed=st.integers(0, 99),
)
@example(shape=(40, 28, 28, 1), displaced=True, seed=0)  # shared out to threads
@example(shape=(40, 28, 20, 3), displaced=False, seed=0)
def test_resampling_is_the_formula(shape, displaced, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, size=shape, dtype=np.uint8)
    maps, displacements = some_maps(random, shape[0], displaced, *shape[1:3])
    y, x = places(maps, displacements, *shape[1:3])
    result = resample(images, maps, displacements)
    for n in range(shape[0]):
        for c in range(shape[3]):
            assert_rounded(result[n, :, :, c], read_between(images[n, :, :, c], y[n], x[n]))


@pytest.mark.parametrize("displaced", [False, True])
def test_resampling_is_scipys(random, displaced):
    """Also at places exactly on the last pixel, just outside and beyond."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed (it is an optional peer)")
    images = random.integers(0, 256, size=(30, 11, 14), dtype=np.uint8)
    maps, displacements = some_maps(random, 30, displaced, 11, 14)
    maps[:5] = [[1, 0, 0], [0, 1, 0]]
    maps[:5, 0, 2], maps[:5, 1, 2] = [0, -1, 1, 0.5, -0.5], [0, 1, -0.25, -1, 14]
    y, x = places(maps, displacements, 11, 14)
    result = resample(images[..., None], maps, displacements)[..., 0]
    for n, image in enumerate(images.astype(np.float64)):
        assert_rounded(result[n], ndimage.map_coordinates(image, [y[n], x[n]], order=1, mode="grid-constant"))
        if not displaced:
            matrix, offset = maps[n, :, :2].astype(np.float64), maps[n, :, 2].astype(np.float64)
            exact = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
            assert_rounded(result[n], exact)


@pytest.mark.parametrize("far", [1e30, -1e30, np.inf, -np.inf, np.nan, 8.0, -1.0])
def test_places_far_outside_are_background(far):
    """Never memory beside the image."""
    images = np.full((3, 8, 8, 1), 255, np.uint8)
    for axis in range(2):
        maps = np.tile(np.float32([[1, 0, 0], [0, 1, 0]]), (3, 1, 1))
        maps[:, axis] = (0, 0, far)
        assert not resample(images, maps).any()


@pytest.mark.parametrize(("down", "across"), [(0, 0), (2, 0), (0, -3), (-1, 4), (5, 5), (-9, 0)])
def test_a_whole_shift_moves_the_pixels(random, down, across):
    images = random.integers(0, 256, size=(4, 7, 6, 2), dtype=np.uint8)
    maps = np.tile(np.float32([[1, 0, -down], [0, 1, -across]]), (4, 1, 1))
    canvas = np.pad(images, ((0, 0), (9, 9), (9, 9), (0, 0)))
    expected = canvas[:, 9 - down : 16 - down, 9 - across : 15 - across]
    np.testing.assert_array_equal(resample(images, maps), expected)


# ------------------------------------------------------------------------------------------------- what is drawn


class Always:
    """A generator that draws the same number each time: −1 and 1 are the ends of every range."""

    def __init__(self, number: float):
        self.number = number

    def uniform(self, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
        assert low <= self.number <= high
        return np.full(size, float(self.number))


@pytest.mark.parametrize("size", [5, 6])
def test_a_quarter_turn(random, size):
    images = random.integers(0, 256, size=(3, size, size), dtype=np.uint8)
    for sign in (-1, 1):  # 1: counterclockwise
        turned = random_distortion(images, Distortion(rotation=90), Always(sign))
        np.testing.assert_array_equal(turned, np.rot90(images, sign, axes=(1, 2)))


def test_shift_shear_and_scaling_by_whole_pixels(random):
    images = random.integers(1, 256, size=(2, 5, 5), dtype=np.uint8)
    moved = random_distortion(images, Distortion(shift=2), Always(1))
    np.testing.assert_array_equal(moved[:, 2:, 2:], images[:, :3, :3])
    assert not moved[:, :2].any()
    assert not moved[:, :, :2].any()
    slanted = random_distortion(images, Distortion(shear=45), Always(1))
    for row in range(5):  # below the centre to the right, above to the left
        np.testing.assert_array_equal(slanted[:, row], np.pad(images[:, row], ((0, 0), (9, 9)))[:, 11 - row : 16 - row])
    smaller = random_distortion(images, Distortion(scaling=0.5), Always(-1))
    np.testing.assert_array_equal(smaller[:, 1:4, 1:4], images[:, ::2, ::2])
    assert smaller.sum() == smaller[:, 1:4, 1:4].sum()


def test_maps_are_evenly_drawn_from_their_ranges(random):
    """Rotation, shear, scaling and shift, got back from the maps: all reached, none exceeded, none tied to another."""
    distortion = Distortion(rotation=20, scaling=0.25, shift=3, shear=12)
    maps = random_maps(2000, (28, 20), distortion, random).astype(np.float64)
    A = np.linalg.inv(maps[:, :, :2])
    centre = np.array([13.5, 9.5])
    shift = np.linalg.solve(maps[:, :, :2], (centre - maps[:, :, 2])[:, :, None])[:, :, 0] - centre
    angle = np.arctan2(-A[:, 0, 1], A[:, 1, 1])
    wide = np.hypot(A[:, 0, 1], A[:, 1, 1])
    tall = np.linalg.det(A) / wide
    slant = np.arctan((A * A[:, :, 1:]).sum(axis=1)[:, 0] / wide**2)
    drawn = [np.rad2deg(angle) / 20, np.rad2deg(slant) / 12, (tall - 1) / 0.25, (wide - 1) / 0.25, *shift.T / 3]
    for values in drawn:
        assert np.abs(np.sort(values) - np.linspace(-1, 1, 2000)).max() < 0.08  # Kolmogorov: 0.07 once in 100 times
        assert np.abs(values).max() < 1 + 1e-5
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.1


def test_displacements_are_noise_under_a_gaussian(random):
    """Variance elastic², and exp(−d² / 4σ²) of it in common at a distance of d: as white noise on every pixel gives."""
    elastic, sigma = 1.5, 3.5
    fields = random_displacements(4000, (9, 12), Distortion(elastic=elastic, smoothness=sigma), random)
    assert fields.shape == (9, 4000, 2, 12)
    assert fields.dtype == np.float32
    flat = fields.transpose(0, 3, 1, 2).reshape(9 * 12, -1) / elastic  # (pixels, images and directions)
    rows, columns = np.divmod(np.arange(9 * 12), 12)
    squared_distance = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], np.exp(-squared_distance / (4 * sigma**2)), atol=0.06)
    assert np.abs(flat.mean(axis=1)).max() < 0.06
    # The two directions, and an image and the next, have nothing in common.
    down, across = fields[:, :, 0], fields[:, :, 1]
    assert abs((down * across).mean()) < 0.06 * elastic**2
    assert abs((down[:, 1:] * down[:, :-1]).mean()) < 0.06 * elastic**2


def test_few_points_of_noise_are_as_good_as_many():
    """Along one axis, exactly: what two places have in common, at the edges as well."""
    for length, sigma in [(28, 4), (29, 4), (28, 6.5), (28, 1), (1, 3)]:
        G = _smoothing(length, sigma).astype(np.float64)
        distance = np.subtract.outer(np.arange(length), np.arange(length))
        np.testing.assert_allclose(G @ G.T, np.exp(-(distance**2) / (4 * sigma**2)), atol=0.004)


# ---------------------------------------------------------------------------------------------------- the whole


def distorted(images: np.ndarray, distortion: Distortion, seed: int) -> np.ndarray:
    """The formula at the head of `tinycnn/augment.py`, image by image and pixel by pixel, in float64, not rounded."""
    random = np.random.default_rng(seed)
    count, height, width = images.shape
    draws, sigma = random.uniform(-1, 1, size=(6, count)), distortion.smoothness
    down, across = (1 + int(np.ceil((length - 1) / sigma)) + 2 for length in (height, width))  # points, σ apart
    noise = (random.random((down, count, 2, across), np.float32) - 0.5) * 12**0.5 * distortion.elastic

    def weights(pixel: int, points: int) -> np.ndarray:
        row = np.array([exp(-((pixel - sigma * (point - 1)) ** 2) / (2 * sigma**2)) for point in range(points)])
        return row / (row**2).sum() ** 0.5

    centre, result = np.array([(height - 1) / 2, (width - 1) / 2]), np.empty(images.shape)
    for n, (angle, slant, tall, wide, *shift) in enumerate(draws.T):
        angle, slant = np.deg2rad(distortion.rotation * angle), np.deg2rad(distortion.shear * slant)
        rotation = [[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]
        scaling = np.diag([1 + distortion.scaling * tall, 1 + distortion.scaling * wide])
        back = np.linalg.inv(rotation @ scaling @ [[1, 0], [tan(slant), 1]])
        for i, j in np.ndindex(height, width):
            displacement = np.einsum("p,paq,q->a", weights(i, down), noise[:, n], weights(j, across))
            place = centre + back @ ([i, j] - centre - distortion.shift * np.array(shift)) + displacement
            result[n, i, j] = read_between(images[n], *place[:, None])[0]
    return result


@pytest.mark.parametrize("distortion", [ALL, Distortion(rotation=180, shift=0.5), Distortion(elastic=2, smoothness=1)])
@pytest.mark.parametrize("shape", [(6, 12, 9), (1, 1, 20)])
def test_distortion_is_the_formula(random, distortion, shape):
    images = random.integers(0, 256, size=shape, dtype=np.uint8)
    assert_rounded(random_distortion(images, distortion, np.random.default_rng(7)), distorted(images, distortion, 7))


def test_nothing_switched_on_changes_nothing(random):
    for shape in [(30, 28, 28), (3, 5, 8, 3)]:
        images = random.integers(0, 256, size=shape, dtype=np.uint8)
        result = random_distortion(images, OFF, random)
        np.testing.assert_array_equal(result, images)
        assert not np.shares_memory(result, images)


def test_colours_are_distorted_alike(random):
    images = random.integers(0, 256, size=(4, 9, 7, 3), dtype=np.uint8)
    result = random_distortion(images, ALL, np.random.default_rng(1))
    assert result.shape == images.shape
    for c in range(3):
        alone = random_distortion(images[..., c], ALL, np.random.default_rng(1))
        np.testing.assert_array_equal(result[..., c], alone)


def test_a_seed_fixes_every_pixel_at_any_number_of_threads(random, at_threads):
    images = random.integers(0, 256, size=(200, 28, 28), dtype=np.uint8)

    def at(threads: int, seed: int) -> np.ndarray:
        return at_threads(threads, lambda: random_distortion(images, ALL, np.random.default_rng(seed)))

    first = at(1, seed=1)
    np.testing.assert_array_equal(at(2, seed=1), first)
    assert (at(1, seed=2) != first).any(axis=(1, 2)).all()
    generator = np.random.default_rng(1)
    random_distortion(images, ALL, generator)
    assert (random_distortion(images, ALL, generator) != first).any(axis=(1, 2)).all()  # and the next time others


def test_any_batch_and_any_memory_order(random):
    images = random.integers(0, 256, size=(6, 11, 8), dtype=np.uint8)
    assert random_distortion(images[:0], ALL, random).shape == (0, 11, 8)
    assert random_distortion(images[:, :0], ALL, random).shape == (6, 0, 8)
    assert random_distortion(images[:1], ALL, random).shape == (1, 11, 8)
    views = [images[::-1, :, ::2], images.transpose(0, 2, 1), np.asfortranarray(images)]
    for view in views:
        view.flags.writeable = False
        before = view.copy()
        a, b = (random_distortion(x, ALL, np.random.default_rng(3)) for x in (view, np.ascontiguousarray(view)))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(view, before)
        assert a.flags.c_contiguous


def test_memory_is_bounded(random):
    images = random.integers(0, 256, size=(2000, 28, 28), dtype=np.uint8)
    free_unused()  # memory that is kept for the next step would not be counted
    tracemalloc.start()
    try:
        random_distortion(images, Distortion(rotation=15, elastic=1), random)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * images.size


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in Distortion.__dataclass_fields__ for value in (-0.1, np.nan, np.inf)]
    + [("scaling", 1), ("shear", 90), ("smoothness", 0.5)],
)
def test_senseless_strengths_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        Distortion(**{field: value})


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4)), np.zeros((4, 4), np.uint8), np.zeros((1,) * 5, np.uint8)])
def test_other_images_are_refused(random, images):
    with pytest.raises(ValueError, match=r"images must be uint8, \(N, H, W\) or \(N, H, W, C\), got"):
        random_distortion(images, ALL, random)


# ------------------------------------------------------------------------------------------------- the random shift


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
    with pytest.raises(ValueError, match="pixels must be at least 0, got -1"):
        random_shift(images, -1, random)


def test_same_generator_same_shifts(random):
    images = random.integers(0, 256, size=(50, 4, 4), dtype=np.uint8)
    a, b, c = (random_shift(images, 2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize("count", [3, 200])  # on one core, and shared out
@pytest.mark.parametrize(("dtype", "colours"), [(np.uint8, ()), (np.float32, (3,)), (bool, ())])
@pytest.mark.parametrize("pixels", [1, np.uint64(9), 40])
def test_shifts_are_slices_of_padded_images(count, dtype, colours, pixels, random):
    images = random.integers(0, 200, size=(count, 28, 20, *colours)).astype(dtype)
    shifted = random_shift(images, pixels, np.random.default_rng(5))
    p = int(pixels)
    top, left = np.random.default_rng(5).integers(0, 2 * p + 1, size=(2, count))
    padded = np.pad(images, [(0, 0), (p, p), (p, p), *((0, 0) for _ in colours)])
    assert shifted.dtype == dtype
    for n in range(count):
        np.testing.assert_array_equal(shifted[n], padded[n, top[n] : top[n] + 28, left[n] : left[n] + 20])


def test_shifts_are_whole_pixels_of_numbers(random):
    with pytest.raises(TypeError):
        random_shift(np.zeros((2, 4, 4)), 1.5, random)
    with pytest.raises(ValueError, match="must be numbers"):
        random_shift(np.zeros((2, 4, 4), object), 1, random)
