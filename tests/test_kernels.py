"""The middle rung: every kernel equals its reference over random shapes; its adjoint identity and rounding hold.

The sizes are drawn freely: a kernel is compiled for a tile shape, of which there are few, not for a layer's sizes.
"""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinycnn import more_reference, reference
from tinycnn.kernels import (
    batch_norm,
    convolution,
    convolution_backward,
    elementwise,
    narrow_convolution,
    optimizers,
    parallel,
    pooled_convolution,
    pooling,
    tile_shape,
    winograd,
)
from tinycnn.kernels import dense as dense_kernels
from tinycnn.kernels.convolution import convolve
from tinycnn.kernels.convolution_backward import convolve_backward, convolve_input_gradient, convolve_weight_gradient
from tinycnn.kernels.dense import dense, dense_input_gradient, dense_weight_gradient
from tinycnn.kernels.pooled_convolution import convolve_and_pool
from tinycnn.kernels.pooling import max_pool, max_pool_backward

DTYPES = [np.float64, np.float32]
CHANNELS = st.sampled_from([1, 3, 8, 33])  # one, odd, half a vector of float32, a bit over two
FILTERS = st.sampled_from([1, 8, 17, 65])  # and a bit over one, and over a whole tile
BATCHES = st.sampled_from([1, 2, 3, 9])  # below and above the number of parts
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


def rounding_bound(terms: int, magnitude: np.ndarray, dtype) -> np.ndarray:
    """γ_k · Σ|x||w|: what a sum of k products may be off by, in any order of summation (Higham, 2002, section 3.1)."""
    unit = np.finfo(dtype).eps / 2
    return (terms + 2) * unit / (1 - (terms + 2) * unit) * magnitude + np.finfo(dtype).tiny


def assert_within(actual, exact, terms, magnitude):
    assert actual.shape == exact.shape
    error = np.abs(actual.astype(np.float64) - exact)
    assert (error <= rounding_bound(terms, magnitude, actual.dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=convolutions(), seed=st.integers(0, 99))
@example(WHOLE_IMAGE, 0)
@example(LEFT_OVER_ROWS, 0)
@example(FIRST_LAYER, 0)
@example(WIDE_PADDING, 0)
@example(MANY_CHANNELS, 0)
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


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    batch=st.sampled_from([1, 2, 9]),
    size=st.tuples(st.integers(3, 15), st.integers(3, 15)),
    channels=st.sampled_from([16, 17, 33]),
    filters=st.sampled_from([16, 40]),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 99),
)
@example(2, (13, 13), 33, 16, (0, 0), 0)
@example(1, (3, 3), 16, 16, (0, 0), 0)
@example(2, (3, 15), 17, 40, (3, 0), 0)
@example(2, (10, 6), 17, 40, (0, 0), 0)  # dx is written where it is to stand
@example(1, (14, 130), 17, 16, (2, 2), 0)  # rows of patches that come in two groups add up as well
@example(1, (10, 122), 16, 16, (0, 0), 0)  # both
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
    dx, dw, db = winograd.convolve_backward(x, dy, w, dy.shape[1:3], padding)
    without_dx = winograd.convolve_backward(x, dy, None, dy.shape[1:3], padding)[1:]
    for alone, together in zip(without_dx, (dw, db), strict=True):
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


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    size=st.tuples(st.sampled_from([1, 3]), st.integers(3, 9), st.sampled_from([5, 12])),
    wide_and_narrow=st.sampled_from([(8, 1), (16, 2), (40, 2), (20, 3), (19, 3), (40, 6)]),
    kernel_and_stride=st.sampled_from([((2, 3), (1, 1)), ((3, 5), (1, 1)), ((1, 1), (1, 1)), ((3, 3), (2, 2))]),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 99),
)
@example((3, 9, 12), (40, 6), ((3, 5), (1, 1)), (1, 2), 0)  # the rows of w for one column of the kernel are held
@example((3, 9, 12), (19, 3), ((3, 3), (2, 2)), (2, 1), 0)  # whole and other chunks; dx reads dy spread
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


def test_winograd_is_used_where_it_pays(random, monkeypatch):
    """The layers' functions give the same, up to rounding, whether they hand over to Winograd's way or not."""
    x, w, b = (random.normal(size=s) for s in ((17, 14, 12, 32), (3, 3, 32, 16), (16,)))
    dy = random.normal(size=(17, 12, 10, 16))
    assert winograd.pays(x.shape, w.shape, (12, 10))
    results = convolve(x, w, b, (12, 10)), *convolve_backward(x, dy, w, (1, 1), (0, 0))
    for alone, together in zip(convolve_weight_gradient(x, dy, (3, 3)), results[2:], strict=True):
        np.testing.assert_array_equal(alone, together)
    monkeypatch.setattr(winograd, "pays", lambda *shapes: False)
    direct_results = convolve(x, w, b, (12, 10)), *convolve_backward(x, dy, w, (1, 1), (0, 0))
    for fast, direct in zip(results, direct_results, strict=True):
        np.testing.assert_allclose(fast, direct, rtol=1e-11, atol=1e-11)
        assert fast.tobytes() != direct.tobytes()  # or it was not used


@given(case=convolutions(), seed=st.integers(0, 99))
def test_convolution_adjoint_identity(case, seed):
    """⟨conv(x, w), g⟩ = ⟨x, dx⟩ = ⟨w, dw⟩, kernels only."""
    shape, kernel, filters, stride, padding = case
    random = np.random.default_rng(seed)
    x, w = random.normal(size=shape), random.normal(size=(*kernel, shape[3], filters))
    out = [(s + 2 * p - k) // t + 1 for s, p, k, t in zip(shape[1:3], padding, kernel, stride, strict=True)]
    y = convolve(x, w, np.zeros(filters), tuple(out), stride, padding)
    g = random.normal(size=y.shape)
    dx, dw, _ = convolve_backward(x, g, w, stride, padding)
    terms = convolve(np.abs(x), np.abs(w), np.zeros(filters), tuple(out), stride, padding) * np.abs(g)
    assert abs((y * g).sum() - (x * dx).sum()) <= 1e-13 * terms.sum()
    assert abs((y * g).sum() - (w * dw).sum()) <= 1e-13 * terms.sum()


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    n=st.sampled_from([1, 2, 5, 13, 40]), k=st.sampled_from([1, 2, 5, 13, 70]), units=FILTERS, seed=st.integers(0, 99)
)
@example(1, 1, 1, 0)
@example(13, 25, 10, 0)
def test_dense_equals_reference(dtype, n, k, units, seed):
    random = np.random.default_rng(seed)
    x, w, b, dy = (random.normal(size=s).astype(dtype) for s in ((n, k), (k, units), (units,), (n, units)))
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    assert_within(dense(x, w, b), reference.dense(*wide[:3]), k + 1, reference.dense(*map(np.abs, wide[:3])))
    exact_dx, exact_dw, _ = reference.dense_backward(wide[3], *wide[:2])
    bound_dx, bound_dw, _ = reference.dense_backward(np.abs(wide[3]), *map(np.abs, wide[:2]))
    dx = dense_input_gradient(dy, w)
    assert_within(dx, exact_dx, units, bound_dx)
    assert_within(dense_weight_gradient(x, dy), exact_dw, n, bound_dw)


@st.composite
def pools(draw):
    """(x's shape, pool_size, stride) of a pooling that fits: overlapping, with gaps, with cells left over."""
    pool = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = [draw(st.integers(p, p + 7)) for p in pool]
    return (draw(BATCHES), *size, draw(CHANNELS)), pool, (draw(st.integers(1, 4)), draw(st.integers(1, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [2, 5, 10**6])  # few values: many ties
@given(case=pools(), seed=st.integers(0, 99))
@example(((2, 5, 7, 3), (2, 3), (1, 2)), 0)
@example(((1, 20, 20, 2), (17, 17), (1, 1)), 0)  # a window of more cells than a byte can number
def test_max_pool_equals_reference(dtype, values, case, seed):
    shape, pool, stride = case
    random = np.random.default_rng(seed)
    x = random.integers(-values, values, size=shape).astype(dtype)
    y, winners = max_pool(x, pool, stride)
    np.testing.assert_array_equal(y, reference.max_pool2d(x, pool, stride))
    dy = random.integers(-9, 9, size=y.shape).astype(dtype)  # whole numbers: sums are exact in any order
    dx = max_pool_backward(dy, winners, shape, pool, stride)
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, pool, stride))
    assert y.dtype == dx.dtype == dtype


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_max_pool_shows_not_a_number(order):
    """Wherever it stands in the window, NaN comes out, as it does from np.max."""
    x = np.array([np.nan, 1.0, 3.0])[list(order)].reshape(1, 1, 3, 1)
    assert np.isnan(max_pool(x, (1, 3), (1, 1))[0]).all()
    infinite = np.full((1, 2, 2, 1), -np.inf)
    assert max_pool(infinite, (2, 2), (2, 2))[0] == -np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=st.integers(1, 50), channels=CHANNELS, seed=st.integers(0, 99))
def test_batch_norm_equals_reference(dtype, rows, channels, seed):
    random = np.random.default_rng(seed)
    x, dy = (random.normal(3, 2, size=(rows, channels)).astype(dtype) for _ in range(2))
    gamma, beta = (random.normal(size=channels).astype(dtype) for _ in range(2))
    tolerance = 1e-12 if dtype == np.float64 else 1e-3
    running = np.full((2, channels), dtype(5))
    mean, variance = batch_norm.moments(x, *running, 0.25)
    np.testing.assert_allclose(running, 0.75 * 5 + 0.25 * np.array([mean, variance]), rtol=tolerance)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=0), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(axis=0), rtol=tolerance, atol=tolerance)
    sigma = np.sqrt(variance + dtype(0.1))
    wide = [a.astype(np.float64) for a in (dy, x, gamma)]
    y, _ = batch_norm.scale_and_shift(x, mean, gamma / sigma, beta)
    np.testing.assert_allclose(
        y, more_reference.batch_norm(wide[1], wide[2], beta, 0.1), rtol=tolerance, atol=tolerance
    )
    dx, dgamma, dbeta = more_reference.batch_norm_backward(*wide, 0.1)
    sums = batch_norm.gradient_sums(dy, x, mean)
    assert_within(sums[0], dbeta, rows, np.abs(wide[0]).sum(axis=0))
    # mean is itself rounded, after rows additions: each factor x − mean is off by that much
    assert_within(sums[1] / sigma, dgamma, 3 * rows + 9, (np.abs(wide[0]) * (np.abs(wide[1]) + 9)).sum(axis=0) / sigma)
    M = dtype(rows)
    actual = batch_norm.input_gradient(dy, x, mean, gamma / sigma, sums[0] / M, sums[1] / (M * sigma * sigma))
    np.testing.assert_allclose(actual, dx, rtol=tolerance, atol=10 * tolerance * np.abs(gamma / sigma).max())


def test_moments_keep_their_digits_where_the_mean_is_large():
    x = 1e6 + np.array([[0.0], [1.0], [2.0], [3.0]])
    assert batch_norm.moments(x, *np.zeros((2, 1)), 0.1)[1] == pytest.approx(1.25, rel=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_bit_for_bit_at_any_number_of_threads(random, threads, at_threads):
    """The order of every sum is fixed by the data's shape, not by who computes it."""
    x, w, b = (random.normal(size=s).astype(np.float32) for s in ((19, 12, 11, 8), (3, 3, 8, 24), (24,)))
    dy = random.normal(size=(19, 10, 9, 24)).astype(np.float32)

    def everything():
        rows = x.reshape(-1, 8)
        y, winners = max_pool(x, (2, 2), (1, 1))
        mean, variance = batch_norm.moments(rows, *np.zeros((2, 8), np.float32), 0.1)
        return [
            convolve(x, w, b, (10, 9)),
            winograd.convolve(dy, w[:, :, :1].repeat(24, 2), b, (12, 11), (2, 2))[0],
            *winograd.convolve_backward(dy, dy, w[:, :, :1].repeat(24, 2), (10, 9), (1, 1)),
            *pooled_gradients(dy, w[:, :, :1].repeat(24, 2), b, (10, 9), (1, 1)),
            *direct_pooled_gradients(x, w, b, (10, 9), (0, 0)),
            *direct_pooled_gradients(x[..., :1].copy(), w[:, :, :1].copy(), b, (12, 11), (1, 1)),
            *convolve_backward(x, dy, w, (1, 1), (0, 0)),
            convolve_input_gradient(dy, w[:, :, :1], (12, 11), (1, 1), (0, 0)),
            dense(dy.reshape(19, -1), w.reshape(-1, 24)[:1].repeat(2160, 0), b),
            dense_weight_gradient(dy.reshape(19, -1), x[:, 0, 0]),
            dense_input_gradient(x[:, 0, 0], w.reshape(-1, 8)),
            max_pool_backward(y, winners, x.shape, (2, 2), (1, 1)),
            mean,
            variance,
            *batch_norm.gradient_sums(rows, rows, mean),
        ]

    expected = everything()
    for a, b_ in zip(at_threads(threads, everything), expected, strict=True):
        np.testing.assert_array_equal(a, b_)


def direct_pooled_gradients(x, w, b, size, padding):
    """Of a convolution with a pool of 2×2 and a ReLU, all by the direct sum."""
    assert not winograd.pays(x.shape, w.shape, size)
    y, *behind = convolve_and_pool(x, w, b, size, (1, 1), padding, (2, 2), True)
    sizes = size, (3, 3), (1, 1), padding, (2, 2)
    return [y, *behind, *pooled_convolution.weight_gradient(x, y, *behind, *sizes)]


def pooled_gradients(x, w, b, size, padding):
    """The same Winograd's way, with dx."""
    y, *behind = winograd.convolve(x, w, b, size, padding, True, True)
    return [y, *behind, *winograd.convolve_backward(x, y, w, size, padding, *behind)]


@pytest.mark.parametrize("side", [12, 13])  # 13: a row and a column left over by the pool
def test_nothing_unwritten_reaches_a_result(random, monkeypatch, side):
    """Fresh memory is often zero by chance; here it is not."""
    x, w, b = (random.normal(size=s) for s in ((3, side, side, 17), (3, 3, 17, 24), (24,)))
    dy, few = random.normal(size=(3, side, side, 24)), random.normal(size=(3, 3, 17, 3))

    def everything():
        y, winners = max_pool(x, (2, 2), (2, 2))
        return [
            winograd.convolve(x, w, b, (side, side), (1, 1))[0],
            *winograd.convolve_backward(x, dy, w, (side, side), (1, 1)),
            *pooled_gradients(x, w, b, (side, side), (1, 1)),
            *direct_pooled_gradients(x, w, b, (side, side), (1, 1)),
            *direct_pooled_gradients(x[..., :1].copy(), w[:, :, :1].copy(), b, (side, side), (1, 1)),
            *batch_norm.scale_and_shift(dy.reshape(-1, 24), b, b, b, relu=True),
            *convolve_backward(x, dy, w, (1, 1), (1, 1)),
            convolve_input_gradient(dy[..., :3].copy(), few, (side, side), (1, 1), (1, 1)),
            convolve(x, few, b[:3], (side, side), (1, 1), (1, 1)),
            *convolve_and_pool(x, w, b, (side, side), (1, 1), (1, 1), (2, 3), True),
            dense(x.reshape(3 * side, -1), x.reshape(-1, 17)[: 17 * side], b[:17]),
            dense_input_gradient(dy.reshape(3 * side, -1), dy.reshape(-1, 24 * side)),
            dense_weight_gradient(x.reshape(3 * side, -1), dy.reshape(3 * side, -1)),
            y,
            winners,
            max_pool_backward(y, winners, x.shape, (2, 2), (2, 2)),
            *elementwise.relu(x),
        ]

    def not_empty(shape, dtype):
        return np.full(shape, 99 if dtype.kind == "u" else np.nan, dtype)

    expected = everything()
    for module in (
        batch_norm,
        convolution,
        convolution_backward,
        dense_kernels,
        elementwise,
        narrow_convolution,
        pooled_convolution,
        pooling,
        winograd,
    ):
        monkeypatch.setattr(module, "empty", not_empty)
    monkeypatch.setattr(parallel, "take_notepads", lambda threads, size: np.full((threads, size), np.nan).view("f4"))
    for actual, wanted in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
        assert np.isfinite(actual).all()


# Tiles of every kind of task, the first the largest: 13 × 32 numbers with AVX-512, 6 × 16 with AVX2.
COUNT_MULTIPLY_ADDS = """
import numpy as np
from tinycnn.kernels import convolution, convolution_backward, dense, narrow_convolution, tile_shape, winograd
float32 = np.dtype(np.float32)
P, L = tile_shape.tile_shape(26, 64, float32)
S = tile_shape.register_lanes(float32)
dw, dx = tile_shape.tile_shape(8, 64, float32), tile_shape.tile_shape(10, 64, float32)
for name, rows, task in (
    ("convolution", P, convolution._convolve_task(P, L, float32)),
    ("with a pool", P // 2 * 2, convolution._convolve_task(P // 2 * 2, L, float32, 2, 2, True)),
    ("its weight gradient", P, convolution_backward._weight_gradient_task(1, P, L, float32)),
    ("held", 12 * 5, convolution._convolve_task(12, S, float32, 1, 1, False, 5, 1)),
    ("held, with a pool", 6 * 3, convolution._convolve_task(6, S, float32, 2, 2, True, 3, 1)),
    ("held, its weight gradient", 40, convolution_backward._weight_gradient_task(2, 5, S, float32, 2, 2, True, 4, 1)),
    ("narrow", 2 * 2 * 3, narrow_convolution._task(2, 3, S, 3, S + 3, 2, (1, 1), (1, 1), float32)),
    ("dense", P, dense._product_task(P, L, float32)),
    ("its weight gradient", P, dense._weight_gradient_task(P, L, float32)),
    ("patches", dx[0], winograd._convolve_task(*dx, S, float32)),
    ("their gradients", dw[0] + dx[0], winograd._backward_task(*dw, *dx, S, float32)),
):
    print(name, task.compiled.inspect_llvm().count("@llvm.fma.v"), rows)
"""


@pytest.mark.parametrize("processor", [None, "haswell", "skylake-avx512"])
def test_tiles_are_unrolled(tmp_path, processor):
    """Each running sum has a multiply-add of its own in the code: in a loop they'd be in memory, not in registers."""
    features = {"haswell": "+avx2,+fma", "skylake-avx512": "+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx2,+fma"}
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    if processor:
        if platform.machine() != "x86_64":
            pytest.skip("compiles for x86 only")
        variables |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features[processor]}
    printed = subprocess.run(
        [sys.executable, "-c", COUNT_MULTIPLY_ADDS], capture_output=True, text=True, env=variables, check=True
    ).stdout
    assert len(printed.splitlines()) == 11
    for line in printed.splitlines():
        _, count, rows = line.rsplit(" ", 2)
        assert int(count) >= int(rows), printed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3), (3, 5, 7), (8, 100_003)])  # the last in eight parts
def test_sum_of_parts(random, dtype, shape):
    x = random.normal(size=shape).astype(dtype)
    total = x[0].copy()
    for other in x[1:]:
        total += other
    np.testing.assert_array_equal(elementwise.sum_of_parts(x), total)


def test_empty_batches():
    assert convolve(np.zeros((0, 5, 5, 2)), np.zeros((3, 3, 2, 4)), np.zeros(4), (3, 3)).shape == (0, 3, 3, 4)
    dw, db = convolve_weight_gradient(np.zeros((0, 5, 5, 2)), np.zeros((0, 3, 3, 4)), (3, 3))
    assert dw.shape == (3, 3, 2, 4)
    assert not dw.any()
    assert not db.any()
    dx, dw, db = convolve_backward(
        np.zeros((0, 5, 5, 2)), np.zeros((0, 3, 3, 4)), np.ones((3, 3, 2, 4)), (1, 1), (0, 0)
    )
    assert (dx.shape, dw.shape, db.shape) == ((0, 5, 5, 2), (3, 3, 2, 4), (4,))
    assert dense_input_gradient(np.zeros((0, 2)), np.zeros((3, 2))).shape == (0, 3)
    assert dense(np.zeros((0, 3)), np.zeros((3, 2)), np.zeros(2)).shape == (0, 2)
    np.testing.assert_array_equal(dense_weight_gradient(np.zeros((0, 3)), np.zeros((0, 2))), np.zeros((3, 2)))
    assert max_pool(np.zeros((0, 4, 4, 1)), (2, 2), (2, 2))[0].shape == (0, 2, 2, 1)


@pytest.mark.parametrize(
    ("registers", "rows", "columns", "expected"),
    [
        ((64, 32), 24, 16, (12, 16)),  # AVX-512, one vector a row
        ((64, 32), 12, 32, (12, 32)),  # two vectors a row
        ((64, 32), 13, 64, (13, 32)),  # one tile of 13, not two of 7: nothing sticks out
        ((64, 32), 26, 32, (13, 32)),
        ((64, 32), 4, 64, (4, 64)),  # few rows: four vectors each keep the multipliers busy
        ((64, 32), 12, 10, (12, 16)),  # fewer channels than lanes
        ((64, 32), 12, 40, (12, 16)),  # three blocks of one vector: of four, one would multiply zeros
        ((64, 32), 12, 8, (12, 8)),  # half a vector, filled
        ((64, 32), 1, 1, (1, 8)),
        ((32, 16), 7, 16, (4, 16)),  # a tile of 7 × 2 vectors would fill all sixteen registers, and spill
        ((32, 16), 24, 16, (6, 16)),  # AVX2: 12 sums, 2 vectors of w and a number of x in 16 registers
        ((32, 16), 24, 8, (8, 8)),  # sixteen registers hold a dozen sums, but not the numbers that are read ahead too
        ((32, 16), 14, 24, (7, 8)),  # three blocks of one vector, not two of two
        ((16, 32), 24, 16, (12, 8)),  # NEON: vectors of four
        ((16, 32), 6, 16, (6, 16)),
        ((16, 16), 24, 32, (6, 8)),  # SSE
    ],
)
def test_tile_shape_fits_the_registers(monkeypatch, registers, rows, columns, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.tile_shape.__wrapped__(rows, columns, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "rows", "held", "multiple", "expected"),
    [
        ((64, 32), 24, 5, 1, 12),  # two tiles of 12, none sticks out
        ((64, 32), 26, 3, 1, 13),
        ((64, 32), 26, 3, 2, 14),  # whole windows of a pool
        ((64, 32), 5, 3, 1, 5),
        ((32, 16), 24, 5, 1, 8),  # fifteen registers: eight sums, five of w, a number of x
        ((32, 16), 26, 3, 2, 10),
        ((32, 16), 24, 9, 1, 5),
        ((16, 32), 24, 5, 1, 12),  # NEON
    ],
)
def test_holding_tile_fits_the_registers(monkeypatch, registers, rows, held, multiple, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.holding_tile.__wrapped__(rows, held, multiple) == expected


@pytest.mark.parametrize(
    ("registers", "w_shape", "expected"),
    [
        ((64, 32), (5, 5, 1, 16), (5, 5, 16)),  # 25 sums, 4 pixels of dy and a number of x in 30 registers
        ((64, 32), (3, 3, 1, 16), (3, 3, 16)),
        ((64, 32), (3, 3, 1, 32), (3, 3, 32)),  # 18 sums, 8 vectors of dy and a number of x
        ((64, 32), (3, 3, 3, 16), (1, 9, 16)),  # two kernel rows would fit, but the third be alone
        ((32, 16), (5, 5, 1, 16), (2, 5, 8)),  # three tiles of ten sums, not five of five, which would wait in turn
        ((32, 16), (3, 3, 1, 32), (3, 3, 8)),
    ],
)
def test_weight_gradient_tile_of_few_rows(monkeypatch, registers, w_shape, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert convolution_backward._weight_gradient_tile(w_shape, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "columns", "expected"),
    [((64, 32), 8, 8), ((64, 32), 9, 16), ((64, 32), 24, 16), ((32, 16), 5, 8), ((32, 16), 4, 4), ((16, 32), 1, 2)],
)
def test_filled_lanes(monkeypatch, registers, columns, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.filled_lanes(columns, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "out_w", "kernel_w", "out_channels", "L", "expected"),
    [
        ((64, 32), 28, 3, 1, 16, (14, 3)),
        ((64, 32), 28, 3, 1, 8, (14, 3)),  # two rows of sums
        ((64, 32), 28, 5, 3, 16, (4, 5)),  # 12 sums and 15 rows of w, and three of z, in 30 registers
        ((64, 32), 14, 5, 6, 16, (2, 1)),  # 30 rows of w are too many, those for one column are not
        ((64, 32), 1, 3, 7, 16, (1, 1)),
        ((32, 16), 28, 3, 1, 8, (7, 3)),  # nine sums would fit; four tiles of seven are as many as of nine
        ((32, 16), 28, 3, 3, 8, (3, 1)),
        ((16, 32), 28, 3, 1, 4, (7, 3)),  # NEON
    ],
)
def test_narrow_tile_fits_the_registers(monkeypatch, registers, out_w, kernel_w, out_channels, L, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    P, B = narrow_convolution._tile(out_w, kernel_w, out_channels, L)
    assert expected == (P, B)
    assert P * out_channels <= 2 * L
    assert P * out_channels + B * out_channels + 3 <= registers[1] * 15 // 16


@pytest.mark.parametrize(
    ("machine", "features", "cpu_name", "expected"),
    [
        ("aarch64", "", None, (16, 32)),
        ("arm64", "", None, (16, 32)),
        ("x86_64", "+sse4.2,+avx,+avx2,+avx512f", None, (64, 32)),
        ("x86_64", "+sse4.2,+avx,+avx2", None, (32, 16)),
        ("x86_64", "+sse4.2", None, (16, 16)),
        ("x86_64", "+avx512f", "haswell", (32, 16)),  # told to compile for a CPU without
    ],
)
def test_vector_registers_of_other_processors(monkeypatch, machine, features, cpu_name, expected):
    monkeypatch.setattr(tile_shape.platform, "machine", lambda: machine)
    host = type("Features", (), {"flatten": lambda self: features})
    monkeypatch.setattr(tile_shape.llvmlite.binding, "get_host_cpu_features", host)
    monkeypatch.setattr(tile_shape.config, "CPU_NAME", cpu_name)
    monkeypatch.setattr(tile_shape.config, "CPU_FEATURES", None)
    assert tile_shape.vector_registers.__wrapped__() == expected


def test_two_pixels_as_one_are_the_same_convolution(random, monkeypatch):
    """The way for few output channels gives the direct sums, also where this processor would not take it."""
    x, w, b = (random.normal(size=s) for s in ((3, 6, 9, 5), (3, 2, 5, 7), (7,)))
    dy = random.normal(size=(3, 4, 8, 7))
    results = []
    for pays in (False, True):
        for module, name in ((convolution, "_pairs_pay"), (convolution_backward, "pairs_pay_in_dw")):
            monkeypatch.setattr(module, name, lambda out_w, shape, stride, dtype, pays=pays: pays and shape[3] == 7)
        results.append([convolve(x, w, b, (4, 8)), *convolve_weight_gradient(x, dy, (3, 2))])
    exact = [reference.conv2d(x, w, b), *reference.conv2d_backward(dy, x, w)[1:]]
    for direct, paired, formula in zip(*results, exact, strict=True):
        np.testing.assert_allclose(direct, formula, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(paired, formula, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [5, 100_003])  # one part, and eight of different lengths
def test_number_by_number_operations(random, size):
    x, dy = random.normal(size=(2, size))
    x[:3] = 0
    y, active = elementwise.relu(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(active, x > 0)
    np.testing.assert_array_equal(elementwise.relu_backward(dy, active), np.where(x > 0, dy, 0))


@pytest.mark.parametrize("sizes", [(5,), (3, 0, 50_001, 2, 50_000)])  # one part; eight, which end within parameters
def test_steps_of_optimizers(random, sizes):
    x, dy = ([random.normal(size=size) for size in sizes] for _ in range(2))
    values, velocities, double = [a.copy() for a in x], [a.copy() for a in dy], [2 * a for a in x]
    optimizers.sgd(optimizers.Places(), values, double, velocities, 0.1, 0.9, False, 0.0)
    for value, velocity, a, b in zip(values, velocities, x, dy, strict=True):
        np.testing.assert_allclose(velocity, 0.9 * b + 2 * a, rtol=1e-13)
        np.testing.assert_allclose(value, a - 0.1 * velocity, rtol=1e-13)
    values, means, squares = [a.copy() for a in x], [a.copy() for a in dy], [a**2 for a in dy]
    optimizers.adam(optimizers.Places(), values, double, means, squares, 0.1, 0.8, 0.9, 1e-3, 0.01, 2)
    for value, mean, square, a, b in zip(values, means, squares, x, dy, strict=True):
        np.testing.assert_allclose(mean, 0.8 * b + 0.4 * a, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(square, 0.9 * b**2 + 0.4 * a**2, rtol=1e-9, atol=1e-12)
        step = 0.1 * mean / (1 - 0.8**2) / (np.sqrt(square / (1 - 0.9**2)) + 1e-3)
        np.testing.assert_allclose(value, 0.999 * a - step, rtol=1e-9, atol=1e-12)


def test_steps_of_optimizers_with_two_dtypes(random):
    """Each by itself comes to the same."""
    x = [random.normal(size=7).astype(dtype) for dtype in (np.float32, np.float64, np.float32)]
    together, apart = [a.copy() for a in x], [a.copy() for a in x]
    optimizers.sgd(optimizers.Places(), together, x, [0 * a for a in x], 0.1, 0.9, True, 0.1)
    for value, a in zip(apart, x, strict=True):
        optimizers.sgd(optimizers.Places(), [value], [a], [0 * a], 0.1, 0.9, True, 0.1)
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, x[0])


def test_steps_of_optimizers_follow_an_array_that_was_replaced():
    places, value, grad = optimizers.Places(), np.zeros(5), np.ones(5)
    for _ in range(2):
        optimizers.sgd(places, [value], [grad], [np.zeros(5)], 0.5, 0.9, False, 0.0)
    np.testing.assert_array_equal(value, -1)
    optimizers.sgd(places, [other := np.zeros(3)], [grad[:3]], [np.zeros(3)], 0.5, 0.9, False, 0.0)
    np.testing.assert_array_equal(other, -0.5)
    np.testing.assert_array_equal(value, -1)


@pytest.mark.parametrize("grad", [np.ones((4, 3)).T, np.ones((3, 4), np.float32), np.ones(11)])
def test_steps_of_optimizers_refuse_what_they_can_not_change_in_place(grad):
    value = np.ones((3, 4))
    with pytest.raises(ValueError, match="must be contiguous, writable, of one size and dtype"):
        optimizers.sgd(optimizers.Places(), [value], [grad], [0 * value], 0.1, 0.9, True, 0.1)
    np.testing.assert_array_equal(value, 1)


def test_steps_of_optimizers_refuse_a_parameter_twice():
    """Two threads would change it at once."""
    value, none = np.ones(4), np.ones(0)
    with pytest.raises(ValueError, match="parameter twice"):
        optimizers.sgd(optimizers.Places(), 2 * [value], 2 * [value], 2 * [0 * value], 0.1, 0.9, True, 0.1)
    optimizers.sgd(optimizers.Places(), 2 * [none], 2 * [none], 2 * [none], 0.1, 0.9, True, 0.1)


@pytest.mark.parametrize("shape", [(70, 130, 75), (300, 40, 50)])
def test_large_dense_layers_are_shared_out(random, shape):
    """Large enough for eight parts, each of whole tiles."""
    n, k, o = shape
    x, w, b, dy = (random.normal(size=s) for s in ((n, k), (k, o), (o,), (n, o)))
    np.testing.assert_allclose(dense(x, w, b), x @ w + b, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dense_weight_gradient(x, dy), x.T @ dy, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dense_input_gradient(dy, w), dy @ w.T, rtol=1e-11, atol=1e-11)


def test_large_pools_are_shared_out(random):
    x = random.integers(0, 9, size=(21, 30, 31, 6)).astype(np.float64)
    y, winners = max_pool(x, (3, 2), (2, 2))
    np.testing.assert_array_equal(y, reference.max_pool2d(x, (3, 2), (2, 2)))
    dy = random.normal(size=y.shape)
    expected = reference.max_pool2d_backward(dy, x, (3, 2), (2, 2))
    np.testing.assert_allclose(
        max_pool_backward(dy, winners, x.shape, (3, 2), (2, 2)), expected, rtol=1e-12, atol=1e-12
    )
