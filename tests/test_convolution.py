"""The middle rung, for convolutions: all their ways equal the reference over random shapes, and are its adjoints."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rounding import BATCHES, CHANNELS, DTYPES, FILTERS, assert_within, rounding_bound

from tinycnn import reference
from tinycnn.kernels import (
    convolution,
    convolution_backward,
    input_gradient,
    narrow_convolution,
    tile_shape,
    winograd,
    winograd_backward,
)
from tinycnn.kernels.convolution import convolve
from tinycnn.kernels.convolution_backward import convolve_backward, convolve_weight_gradient
from tinycnn.kernels.dense import dense
from tinycnn.kernels.input_gradient import convolve_input_gradient

# (width, kernel_w, stride, padding). The widths of x and y decide which tiles are compiled, so they are few.
WIDTHS = st.sampled_from(
    [
        (1, 1, 1, 0),
        (5, 5, 1, 0),  # a kernel as large as the image
        (5, 3, 1, 1),  # 5 -> 5
        (13, 2, 1, 0),  # 13 -> 12
        (13, 5, 2, 0),  # 13 -> 5
        (12, 4, 1, 2),  # 12 -> 13
        (5, 2, 3, 1),  # 5 -> 2, a column left over
        (12, 1, 1, 0),
        (1, 1, 2, 2),  # padding wider than the kernel
        (13, 3, 3, 2),  # 13 -> 5, two columns left over
    ]
)


@st.composite
def convolutions(draw):
    """(x's shape, kernel_size, filters, stride, padding) of a convolution that fits."""
    width, kernel_w, stride_w, padding_w = draw(WIDTHS)
    kernel_h, stride_h, padding_h = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 3))
    height = draw(st.integers(max(1, kernel_h - 2 * padding_h), kernel_h + 7))
    x_shape = draw(BATCHES), height, width, draw(CHANNELS)
    return x_shape, (kernel_h, kernel_w), draw(FILTERS), (stride_h, stride_w), (padding_h, padding_w)


WHOLE_IMAGE = ((3, 4, 7, 3), (4, 7), 17, (1, 1), (0, 0))
LEFT_OVER_ROWS = ((2, 8, 9, 2), (3, 3), 8, (3, 2), (0, 0))
FIRST_LAYER = ((9, 28, 28, 1), (5, 5), 16, (1, 1), (0, 0))
MANY_CHANNELS = ((5, 12, 13, 33), (5, 5), 65, (1, 1), (2, 1))  # w and the rows of z and dy are taken in pieces
WIDE_PADDING = ((2, 2, 3, 2), (1, 2), 3, (1, 2), (3, 2))
OVERLAPPING_TILES = ((2, 8, 13, 3), (5, 2), 17, (1, 1), (0, 0))  # with AVX-512 dw is made in tiles of three kernel rows
FEW_FILTERS = ((3, 9, 13, 4), (3, 3), 3, (1, 2), (1, 1))  # two or four terms of a sum at once, in rows not filled up
ODD_ROWS = ((3, 9, 13, 3), (4, 5), 3, (1, 1), (0, 0))  # whose last step takes what is behind the kernel
MANY_ODD_ROWS = ((3, 9, 13, 9), (3, 7), 4, (1, 2), (1, 1))  # so many that they don't stay in registers
ODD_FIRST_LAYER = ((9, 28, 28, 1), (5, 5), 6, (1, 1), (2, 2))  # the same with rows of w that stay in registers
FEW_ROWS = ((3, 7, 9, 6), (1, 1), 4, (1, 1), (0, 0))  # and in dw pixels take turns, and one is left over
FEW_CHANNELS = ((9, 7, 9, 4), (3, 2), 8, (2, 2), (1, 0))  # and in dx, across images


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=convolutions(), seed=st.integers(0, 99))
@example(WHOLE_IMAGE, 0)
@example(LEFT_OVER_ROWS, 0)
@example(FIRST_LAYER, 0)
@example(WIDE_PADDING, 0)
@example(MANY_CHANNELS, 0)
@example(OVERLAPPING_TILES, 0)
@example(FEW_FILTERS, 0)
@example(ODD_ROWS, 0)
@example(MANY_ODD_ROWS, 0)
@example(ODD_FIRST_LAYER, 0)
@example(FEW_ROWS, 0)
@example(FEW_CHANNELS, 0)
def test_convolution_equals_reference(dtype, case, seed):
    """Forward and both backwards, to 1e-12 in float64 and to the rounding bound in both."""
    shape, kernel, filters, stride, padding = case
    random = np.random.default_rng(seed)
    x, w, b = (random.normal(size=s).astype(dtype) for s in (shape, (*kernel, shape[3], filters), (filters,)))
    wide = [a.astype(np.float64) for a in (x, w, b)]
    exact = reference.conv2d(*wide, stride, padding)
    dy = random.normal(size=exact.shape).astype(dtype)
    exact_gradients = reference.conv2d_backward(dy.astype(np.float64), *wide[:2], stride, padding)
    magnitudes = reference.conv2d_backward(np.abs(dy).astype(np.float64), *map(np.abs, wide[:2]), stride, padding)

    y = convolve(x, w, b, exact.shape[1:3], stride, padding)
    dx, dw, db = convolve_backward(x, dy, w, stride, padding)

    pixels = dy[..., 0].size
    assert_within(y, exact, w[..., 0].size + 1, reference.conv2d(*map(np.abs, wide), stride, padding))
    for actual, exact_one, terms, magnitude in zip(
        (dx, dw, db), exact_gradients, (w[:, :, 0].size, pixels, pixels), magnitudes, strict=True
    ):
        assert actual.dtype == dtype
        assert_within(actual, exact_one, terms, magnitude)
        if dtype == np.float64:
            np.testing.assert_allclose(actual, exact_one, rtol=1e-12, atol=1e-12 * max(1, np.abs(exact_one).max()))
    if dtype == np.float64:  # and ⟨conv(x, w), dy⟩ = ⟨x, dx⟩ = ⟨w, dw⟩, kernels only
        terms = (reference.conv2d(*map(np.abs, wide), stride, padding) * np.abs(dy)).sum()
        assert abs(((y - b) * dy).sum() - (x * dx).sum()) <= 1e-13 * terms
        assert abs(((y - b) * dy).sum() - (w * dw).sum()) <= 1e-13 * terms


ON_ANOTHER_PROCESSOR = """
import numpy as np
from test_convolution import *
equals_reference = test_convolution_equals_reference.hypothesis.inner_test
winograd_equals_reference = test_winograd_equals_reference.hypothesis.inner_test
narrow = test_convolution_from_many_to_few_channels.hypothesis.inner_test
cases = WHOLE_IMAGE, LEFT_OVER_ROWS, FIRST_LAYER, WIDE_PADDING, MANY_CHANNELS, OVERLAPPING_TILES
for case in (*cases, FEW_FILTERS, ODD_ROWS, MANY_ODD_ROWS, ODD_FIRST_LAYER, FEW_ROWS, FEW_CHANNELS):
    equals_reference(np.float32, case, 0)
winograd_equals_reference(np.float32, 2, (10, 13), 17, 40, (1, 0), 0)
winograd_equals_reference(np.float32, 2, (10, 13), 9, 12, (1, 0), 0)
narrow(np.float32, (3, 9, 12), (20, 3), ((3, 5), (1, 1)), (1, 2), 0)
print(tile_shape.vector_registers())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for x86 only")
@pytest.mark.parametrize(
    ("processor", "features", "registers"),
    [("haswell", "+avx,+avx2,+fma", (32, 16)), ("nehalem", "+sse4.2", (16, 16))],  # no fused multiply-add
)
def test_convolution_equals_reference_on_another_processor(tmp_path, processor, features, registers):
    """Narrower vectors and fewer of them: other tiles."""
    here = os.path.dirname(__file__)
    variables = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ON_ANOTHER_PROCESSOR]
    result = subprocess.run(command, cwd=here, env={**os.environ, **variables}, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"{registers}\n"), result.stderr


@pytest.mark.parametrize(("kernel", "behind"), [((2, 3), 0), ((3, 3), 0), ((2, 3), 1)])
def test_several_terms_at_once_stay_apart(random, kernel, behind):
    """What is not a number is so where it is seen, or in a column behind the kernel, and no bias is rounded."""
    channels = 4 - behind  # of four, every T divides a row of w
    x, w, b = (random.normal(size=s).astype(np.float32) for s in ((2, 6, 9, channels), (*kernel, channels, 3), (3,)))
    out = 7 - kernel[0], 7
    assert convolution.way_of(x.shape, w.shape, x.dtype, out, (1, 1), (0, 0)) == "direct"
    x[0, 2, 4, 0], x[1] = np.nan, 0
    y = convolve(x, w, b, out)
    rows = slice(max(0, 3 - kernel[0]), 3)
    spoilt = np.zeros(out, bool)
    spoilt[rows, 2 - behind : 5] = True
    assert np.isnan(y[0, rows, 2:5]).all()
    assert not np.isnan(y[0, ~spoilt]).any()
    np.testing.assert_array_equal(y[1], np.broadcast_to(b, (*out, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("left_over", [0, 1, 2])
@pytest.mark.parametrize("kernel_w", [3, 5])
def test_several_terms_at_once_read_nothing_behind_x(random, dtype, kernel_w, left_over):
    """Where T does not divide a row of w, the last step takes what comes behind it: columns left over, or zeros."""
    around = np.full(1000, np.nan, dtype)
    x = around[400:463].reshape(1, 7, 9, 1)
    x[:] = random.normal(size=x.shape)
    w, b = random.normal(size=(3, kernel_w, 1, 2)).astype(dtype), np.zeros(2, dtype)
    y = convolve(x, w, b, (5, 10 - kernel_w - left_over))
    assert np.isfinite(y).all()
    dw, _ = convolve_weight_gradient(x, y, (3, kernel_w))
    assert np.isfinite(dw).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    size=st.tuples(st.sampled_from([1, 3]), st.integers(3, 9), st.sampled_from([5, 12])),
    wide_and_narrow=st.sampled_from([(8, 1), (16, 2), (40, 2), (20, 3), (19, 3), (40, 6)]),
    kernel_and_stride=st.sampled_from([((2, 3), (1, 1)), ((3, 5), (1, 1)), ((1, 1), (1, 1)), ((3, 3), (2, 2))]),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 99),
)
@example((3, 9, 12), (40, 6), ((3, 5), (1, 1)), (1, 2), 0)  # the rows of w for one column of the kernel are held
@example((3, 9, 12), (19, 3), ((3, 3), (2, 2)), (2, 1), 0)  # whole and other chunks; dx reads dy set apart
def test_convolution_from_many_to_few_channels(dtype, size, wide_and_narrow, kernel_and_stride, padding, seed):
    """y of such a convolution, and dx of one from few to many."""
    (many, few), (kernel, stride), random = wide_and_narrow, kernel_and_stride, np.random.default_rng(seed)
    x, w, b = (random.normal(size=s).astype(dtype) for s in ((*size, many), (*kernel, many, few), (few,)))
    wide = [a.astype(np.float64) for a in (x, w, b)]
    exact = reference.conv2d(*wide, stride, padding)
    y = convolve(x, w, b, exact.shape[1:3], stride, padding)
    assert_within(y, exact, w[..., 0].size + 1, reference.conv2d(*map(np.abs, wide), stride, padding))

    back = np.ascontiguousarray(w.swapaxes(2, 3)).astype(dtype)
    x = random.normal(size=(*size, few))
    dy = random.normal(size=(*exact.shape[:3], many)).astype(dtype)
    wide = dy.astype(np.float64), x, back.astype(np.float64)
    exact, *_ = reference.conv2d_backward(*wide, stride, padding)
    magnitude, *_ = reference.conv2d_backward(*map(np.abs, wide), stride, padding)
    dx = convolve_input_gradient(dy, back, size[1:], stride, padding)
    assert_within(dx, exact, w[..., 0].size, magnitude)


@pytest.mark.parametrize(
    ("registers", "many", "few", "pays"),
    [
        ((64, 32), 16, 1, True),
        ((64, 32), 8, 3, True),
        ((64, 32), 16, 7, True),
        ((64, 32), 16, 8, False),  # fill half a vector themselves
        ((64, 32), 8, 4, False),
        ((64, 32), 3, 3, False),
        ((64, 32), 2, 1, False),
        ((32, 16), 16, 3, True),
        ((32, 16), 16, 4, False),
        ((16, 32), 16, 1, True),  # NEON
    ],
)
def test_narrow_convolution_pays(monkeypatch, registers, many, few, pays):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert narrow_convolution.pays.__wrapped__((3, 3, many, few), np.dtype(np.float32)) is pays


@pytest.mark.parametrize(
    ("registers", "kernel", "many", "few", "pays"),
    [
        ((64, 32), (1, 1), 64, 3, True),  # four chunks
        ((64, 32), (1, 1), 48, 3, False),
        ((64, 32), (1, 1), 16, 1, True),
        ((64, 32), (2, 2), 16, 3, True),
        ((64, 32), (1, 3), 16, 3, False),
        ((32, 16), (1, 1), 32, 3, True),
        ((32, 16), (1, 1), 24, 3, False),
    ],
)
def test_narrow_convolution_pays_if_it_is_not_over_soon(monkeypatch, registers, kernel, many, few, pays):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert narrow_convolution.pays.__wrapped__((*kernel, many, few), np.dtype(np.float32)) is pays


def test_narrow_convolution_shows_not_a_number_where_it_is_seen(random):
    """Nowhere else, though what lies outside of the image, and beyond the last channel, is read as zeros."""
    for value in (np.nan, np.inf):
        x, w = random.normal(size=(1, 7, 7, 19)), random.normal(size=(3, 3, 19, 1))
        x[0, 0, 6, 18] = value
        y = convolve(x, w, np.zeros(1), (7, 7), (1, 1), (1, 1))
        seen = np.zeros((7, 7), bool)
        seen[:2, 5:] = True
        np.testing.assert_array_equal(np.isfinite(y[0, :, :, 0]), ~seen)
        assert np.isnan(y).any() == np.isnan(value)


@pytest.mark.parametrize(
    ("size", "kernel", "out", "stride", "padding", "way"),
    [
        ((4, 7), (4, 7), (1, 1), (1, 1), (0, 0), "dense"),
        ((1, 1), (1, 1), (1, 1), (2, 2), (0, 0), "dense"),
        ((4, 7), (4, 6), (1, 2), (1, 1), (0, 0), "direct"),
        ((4, 7), (4, 6), (1, 1), (1, 2), (0, 0), "direct"),  # a column is left over
        ((4, 7), (4, 7), (1, 1), (3, 3), (1, 1), "direct"),  # the kernel sticks out
    ],
)
def test_a_kernel_as_large_as_the_image_is_a_dense_layer(random, size, kernel, out, stride, padding, way):
    x, w, b = (random.normal(size=s) for s in ((3, *size, 5), (*kernel, 5, 9), (9,)))
    assert convolution.way_of(x.shape, w.shape, x.dtype, out, stride, padding) == way
    y, dy = convolve(x, w, b, out, stride, padding), random.normal(size=(3, *out, 9))
    np.testing.assert_allclose(y, reference.conv2d(x, w, b, stride, padding), rtol=1e-12, atol=1e-12)
    exact = reference.conv2d_backward(dy, x, w, stride, padding)
    for actual, wanted in zip(convolve_backward(x, dy, w, stride, padding), exact, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-12)
    if way == "dense":
        np.testing.assert_array_equal(y[:, 0, 0], dense(x.reshape(3, -1), w.reshape(-1, 9), b))


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    batch=st.sampled_from([1, 9, 17]),  # one image, and tiles that overlap
    channels=st.sampled_from([8, 33]),
    sizes=st.tuples(*[st.tuples(*[st.integers(1, most)] * 2) for most in (7, 4, 3)]),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    seed=st.integers(0, 99),
)
@example(9, 33, ((7, 7), (5, 5), (1, 1)), (0, 0), 0)
@example(9, 8, ((7, 5), (2, 1), (3, 2)), (0, 1), 0)  # pixels that nobody sees
@example(9, 33, ((12, 11), (5, 4), (1, 1)), (2, 0), 0)  # several parts
def test_input_gradient_across_images(dtype, batch, channels, sizes, padding, seed):
    """`gather` equals the reference, whether it pays or not."""
    size, kernel, stride = sizes
    kernel = [min(k, n + 2 * p) for k, n, p in zip(kernel, size, padding, strict=True)]
    random = np.random.default_rng(seed)
    x, w = random.normal(size=(batch, *size, channels)), random.normal(size=(*kernel, channels, 6)).astype(dtype)
    dy = random.normal(size=reference.conv2d(x, w, np.zeros(6), stride, padding).shape).astype(dtype)
    wide = dy.astype(np.float64), x, w.astype(np.float64)
    exact, *_ = reference.conv2d_backward(*wide, stride, padding)
    magnitude, *_ = reference.conv2d_backward(*map(np.abs, wide), stride, padding)
    assert_within(input_gradient.gather(dy, w, size, stride, padding), exact, w[:, :, 0].size, magnitude)


@pytest.mark.parametrize("registers", [(64, 32), (32, 16), (16, 32)])
@pytest.mark.parametrize(
    ("batch", "side", "shape", "stride", "padding", "pays"),
    [
        (64, 7, (5, 5, 32, 64), 1, 0, True),  # 3 of 7 columns of dx see the middle of the kernel
        (64, 14, (5, 5, 32, 64), 1, 0, True),
        (64, 56, (3, 3, 32, 8), 1, 1, False),  # few zeros
        (64, 14, (1, 1, 32, 64), 1, 0, False),  # none
        (1, 28, (5, 5, 32, 64), 1, 2, False),
        (1, 14, (3, 3, 32, 64), 2, 1, True),  # zeros between dy as well
        (64, 7, (5, 5, 32, 1), 1, 0, False),  # dy of one channel: w stays in registers instead
        (64, 12, (3, 3, 32, 64), 1, 0, False),  # Winograd's
        (0, 7, (5, 5, 32, 64), 1, 0, False),
    ],
)
def test_gathering_pays(monkeypatch, registers, batch, side, shape, stride, padding, pays):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    for module, name in ((input_gradient, "way_of"), (tile_shape, "tile_shape")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)  # which remembers nothing
    out = (side + 2 * padding - shape[0]) // stride + 1
    flipped, offset = (*shape[:2], *shape[:1:-1]), (shape[0] - 1 - padding,) * 2
    sizes = (batch, out, out, shape[3]), flipped, np.dtype(np.float32), (side, side), (stride,) * 2, offset
    assert input_gradient.gathering_pays.__wrapped__(*sizes) is pays


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    batch=st.sampled_from([1, 2, 9]),
    size=st.tuples(st.integers(3, 15), st.integers(3, 15)),
    channels=st.sampled_from([8, 11, 16, 17, 33]),
    filters=st.sampled_from([8, 13, 16, 40]),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 99),
)
@example(2, (13, 13), 33, 16, (0, 0), 0)
@example(2, (13, 13), 33, 9, (0, 0), 0)  # fewer channels than a vector has lanes
@example(2, (9, 13), 8, 40, (1, 1), 0)
@example(1, (3, 3), 16, 16, (0, 0), 0)
@example(2, (3, 15), 17, 40, (3, 0), 0)
@example(2, (10, 6), 17, 40, (0, 0), 0)  # dx is written where it is to stand
@example(1, (14, 130), 17, 16, (2, 2), 0)  # rows of patches that come in two groups add up as well
@example(1, (10, 122), 16, 16, (0, 0), 0)  # both
@example(2, (30, 31), 11, 8, (1, 1), 0)  # an image in more than two groups, and groups of two images
@example(1, (41, 5), 8, 8, (7, 6), 0)  # patches that see nothing of the image
def test_winograd_equals_reference(dtype, batch, size, channels, filters, padding, seed):
    """To 1e-12 in float64; in float32 to the rounding bound of the largest sum, for patches mix neighbouring pixels."""
    random = np.random.default_rng(seed)
    shape = (batch, *size, channels)
    x, w, b = (random.normal(size=s).astype(dtype) for s in (shape, (3, 3, channels, filters), (filters,)))
    wide = [a.astype(np.float64) for a in (x, w, b)]
    exact = reference.conv2d(*wide, (1, 1), padding)
    dy = random.normal(size=exact.shape).astype(dtype)
    exact_gradients = reference.conv2d_backward(dy.astype(np.float64), *wide[:2], (1, 1), padding)
    y_size = reference.conv2d(*map(np.abs, wide), (1, 1), padding)
    dx_size, *sizes = reference.conv2d_backward(np.abs(dy).astype(np.float64), *map(np.abs, wide[:2]), (1, 1), padding)
    magnitudes = y_size, dx_size, dx_size, *sizes
    dx, dw, db = winograd_backward.convolve_backward(x, dy, w, dy.shape[1:3], padding)
    without_dx = winograd_backward.convolve_backward(x, dy, None, dy.shape[1:3], padding)[1:]
    dx_alone = winograd_backward.convolve_input_gradient(dy, w, size, padding)
    for alone, together in zip((dx_alone, *without_dx), (dx, dw, db), strict=True):
        np.testing.assert_array_equal(alone, together)
    flipped = np.ascontiguousarray(w[::-1, ::-1].swapaxes(2, 3))
    around = 2 - padding[0], 2 - padding[1]
    dx_as_convolution, _, _ = winograd.convolve(dy, flipped, np.zeros(channels, dtype), size, around)
    results = winograd.convolve(x, w, b, exact.shape[1:3], padding)[0], dx_as_convolution, dx, dw, db
    pixels = dy[..., 0].size
    terms = 9 * channels, 9 * filters, 9 * filters, pixels, pixels
    exact = exact, exact_gradients[0], *exact_gradients
    for actual, wanted, count, magnitude in zip(results, exact, terms, magnitudes, strict=True):
        assert actual.dtype == dtype
        # Even a single product goes through two transformations there and two back, of six terms each.
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=rounding_bound(count + 24, magnitude.max(), dtype))
        if dtype == np.float64:
            np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-12 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("images", "side", "channels", "filters", "kernel", "pays"),
    [
        (30, 14, 8, 8, 3, True),  # the fewest channels that fill half a vector
        (4, 14, 8, 8, 3, True),  # 36 patches
        (3, 14, 8, 8, 3, False),  # 27
        (99, 14, 7, 8, 3, False),
        (99, 14, 8, 7, 3, False),
        (99, 14, 8, 8, 5, False),
        (1, 28, 32, 32, 3, True),
        (1, 14, 64, 64, 3, False),  # nine patches
        (4, 14, 128, 256, 3, False),  # few patches for so many weights
        (99, 5, 32, 32, 3, False),  # of a patch of 4 × 4 outputs only 3 × 3 are there
    ],
)
def test_where_winograd_pays(images, side, channels, filters, kernel, pays):
    shapes = (images, side, side, channels), (kernel, kernel, channels, filters), 2 * (side - kernel + 1,)
    assert winograd.pays(*shapes) == pays


def test_winograd_is_used_where_it_pays(random, monkeypatch):
    """The layers' functions give the same, up to rounding, whether they hand over to Winograd's way or not."""
    x, w, b = (random.normal(size=s) for s in ((17, 14, 12, 32), (3, 3, 32, 16), (16,)))
    dy = random.normal(size=(17, 12, 10, 16))
    assert winograd.pays(x.shape, w.shape, (12, 10))
    remembers_nothing = convolution.way_of.__wrapped__
    for module in (convolution, convolution_backward, input_gradient):
        monkeypatch.setattr(module, "way_of", remembers_nothing)
    results = convolve(x, w, b, (12, 10)), *convolve_backward(x, dy, w, (1, 1), (0, 0))
    one_by_one = convolve_input_gradient(dy, w, (14, 12), (1, 1), (0, 0)), *convolve_weight_gradient(x, dy, (3, 3))
    for alone, together in zip(one_by_one, results[1:], strict=True):
        np.testing.assert_array_equal(alone, together)
    monkeypatch.setattr(winograd, "pays", lambda *shapes: False)
    direct_results = convolve(x, w, b, (12, 10)), *convolve_backward(x, dy, w, (1, 1), (0, 0))
    for fast, direct in zip(results, direct_results, strict=True):
        np.testing.assert_allclose(fast, direct, rtol=1e-11, atol=1e-11)
        assert fast.tobytes() != direct.tobytes()  # or it was not used
