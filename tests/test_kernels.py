"""The middle rung, for all but convolutions (`test_convolution.py`): every kernel equals its reference, up to rounding.

And for them as well: the same bits at any number of threads, and nothing that was not written reaches a result.
"""

import ctypes
from math import prod

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rounding import BATCHES, CHANNELS, DTYPES, FILTERS, assert_within

from tinycnn import SoftmaxCrossEntropy, more_reference, reference
from tinycnn.kernels import (
    batch_norm,
    convolution,
    convolution_backward,
    elementwise,
    input_gradient,
    narrow_convolution,
    parallel,
    pooled_convolution,
    pooling,
    winograd,
    winograd_backward,
)
from tinycnn.kernels import dense as dense_kernels
from tinycnn.kernels.convolution import convolve
from tinycnn.kernels.convolution_backward import convolve_backward, convolve_weight_gradient
from tinycnn.kernels.dense import dense, dense_input_gradient, dense_weight_gradient
from tinycnn.kernels.elementwise import sum_of_parts
from tinycnn.kernels.input_gradient import convolve_input_gradient
from tinycnn.kernels.pooled_convolution import convolve_and_pool
from tinycnn.kernels.pooling import max_pool, max_pool_backward

BEHIND = 64  # numbers


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
@given(values=st.sampled_from([2, 5, 10**6]), case=pools(), seed=st.integers(0, 99))  # few values: many ties
@example(2, ((2, 5, 7, 3), (2, 3), (1, 2)), 0)
@example(2, ((1, 20, 20, 2), (17, 17), (1, 1)), 0)  # a window of more cells than a byte can number
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
    running, epsilon = np.full((2, channels), dtype(5)), 0.1
    mean, sigma = batch_norm.mean_and_sigma(x, *running, 0.25, epsilon)
    exact_mean, exact_variance = x.astype(np.float64).mean(axis=0), x.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(running, 0.75 * 5 + 0.25 * np.array([exact_mean, exact_variance]), rtol=tolerance)
    np.testing.assert_allclose(mean, exact_mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(sigma, np.sqrt(exact_variance + epsilon), rtol=tolerance, atol=tolerance)
    wide = [a.astype(np.float64) for a in (dy, x, gamma)]
    y, _ = batch_norm.scale_and_shift(x, mean, sigma, gamma, beta)
    np.testing.assert_allclose(
        y, more_reference.batch_norm(wide[1], wide[2], beta, epsilon), rtol=tolerance, atol=tolerance
    )
    dx, dgamma, dbeta = more_reference.batch_norm_backward(*wide, epsilon)
    actual = batch_norm.backward(dy, x, mean, sigma, gamma)
    np.testing.assert_allclose(actual[0], dx, rtol=tolerance, atol=10 * tolerance * np.abs(gamma / sigma).max())
    # mean is itself rounded, after rows additions: each factor x − mean is off by that much
    assert_within(actual[1], dgamma, 3 * rows + 9, (np.abs(wide[0]) * (np.abs(wide[1]) + 9)).sum(axis=0) / sigma)
    assert_within(actual[2], dbeta, rows, np.abs(wide[0]).sum(axis=0))
    frozen = batch_norm.backward(dy, x, mean, sigma, gamma, frozen=True)
    np.testing.assert_allclose(frozen[0], dy * (gamma / sigma), rtol=tolerance)
    np.testing.assert_array_equal(frozen[1:], actual[1:])


def test_moments_keep_their_digits_where_the_mean_is_large():
    """Within each part of the rows, and where the parts are put together."""
    x = 1e6 + np.tile(np.arange(4.0), 100)[:, None]
    assert batch_norm.mean_and_sigma(x, *np.zeros((2, 1)), 0.1, 0.0)[1] ** 2 == pytest.approx(1.25, rel=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
def test_bit_for_bit_at_any_number_of_threads(random, threads, at_threads, monkeypatch):
    """The order of every sum is fixed by the data's shape, not by who computes it."""
    # 7 channels: with one more it would be Winograd's way
    x, w, b = (random.normal(size=s).astype(np.float32) for s in ((79, 12, 11, 7), (3, 3, 7, 24), (24,)))
    dy = random.normal(size=(79, 10, 9, 24)).astype(np.float32)
    wide, column = dy.reshape(79, -1), np.ascontiguousarray(w.reshape(-1, 24)[:1].repeat(2160, 0))
    logits, labels = random.normal(size=(20_011, 10)), random.integers(0, 10, 20_011)

    def everything():
        rows, loss = dy.reshape(-1, 8), SoftmaxCrossEntropy()  # 21,330 of them: they go side by side by twos
        y, winners = max_pool(x, (2, 2), (1, 1))
        mean, sigma = batch_norm.mean_and_sigma(rows, *np.zeros((2, 8), np.float32), 0.1, 1e-5)
        return [
            convolve(x, w, b, (10, 9)),
            winograd.convolve(dy, w[:, :, :1].repeat(24, 2), b, (12, 11), (2, 2))[0],
            *winograd_backward.convolve_backward(dy, dy, w[:, :, :1].repeat(24, 2), (10, 9), (1, 1)),
            *pooled_gradients(dy, w[:, :, :1].repeat(24, 2), b, (10, 9), (1, 1)),
            *pooled_gradients(dy[..., :9].copy(), w[:, :, :1].repeat(9, 2), b, (10, 9), (1, 1)),
            *direct_pooled_gradients(x, w, b, (10, 9), (0, 0)),
            *direct_pooled_gradients(x, w[..., :7].copy(), b[:7].copy(), (10, 9), (0, 0)),
            *direct_pooled_gradients(x[..., :1].copy(), w[:, :, :1].copy(), b, (12, 11), (1, 1)),
            *direct_pooled_gradients(x[..., :1].repeat(8, 0), w[:, :, :1, :1].copy(), b[:1].copy(), (12, 11), (1, 1)),
            *convolve_backward(x, dy, w, (1, 1), (0, 0)),
            convolve_input_gradient(dy, w[:, :, :1], (12, 11), (1, 1), (0, 0)),
            convolve_input_gradient(dy, w, (21, 19), (2, 2), (0, 0)),
            dense(wide, column, b),
            dense_weight_gradient(wide, x[:, 0, 0].copy()),
            dense_input_gradient(dy[:, 0, 0].copy(), column),
            sum_of_parts(x),
            loss.forward(logits, labels),
            loss.backward(),
            max_pool_backward(y, winners, x.shape, (2, 2), (1, 1)),
            mean,
            sigma,
            *batch_norm.backward(rows, rows, mean, sigma, sigma),
        ]

    most = {}

    def backwards(address, parts, threads, stride, *ids):
        most[address] = max(parts, most.get(address, 1))
        task = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * len(ids))(address)
        flags_and_sizes, *arrays = [ctypes.cast(array, ctypes.py_object).value for array in ids]
        if threads:
            arrays[0][0, :2] = 0
        pointers = [array.ctypes.data for array in (flags_and_sizes[parts:], *arrays)]
        for part in reversed(range(parts)):  # the order of the parts is nobody's business either
            task(part, *pointers)

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "_in_parallel", lambda: backwards)
        expected = everything()
    for a, b_ in zip(at_threads(threads, everything), expected, strict=True):
        np.testing.assert_array_equal(a, b_)
    assert min(most.values()) > 1  # all have parts to share out


def direct_pooled_gradients(x, w, b, size, padding):
    """Of a convolution with a pool of 2×2 and a ReLU, all by the direct sum."""
    assert not winograd.pays(x.shape, w.shape, size)
    y, *behind = convolve_and_pool(x, w, b, size, (1, 1), padding, (2, 2), True)
    sizes = size, (3, 3), (1, 1), padding, (2, 2)
    return [y, *behind, *pooled_convolution.weight_gradient(x, y, *behind, *sizes)]


def pooled_gradients(x, w, b, size, padding):
    """The same Winograd's way, with dx."""
    y, *behind = winograd.convolve(x, w, b, size, padding, True, True)
    return [y, *behind, *winograd_backward.convolve_backward(x, y, w, size, padding, *behind)]


@pytest.mark.parametrize("side", [12, 13, 30])  # 13: a row and a column left over by the pool; 30: several groups
def test_nothing_unwritten_reaches_a_result(random, monkeypatch, side):
    """Fresh memory is often zero by chance; here it is not. And nobody writes behind the end of what he was given."""
    x, w, b = (random.normal(size=s) for s in ((3, side, side, 17), (3, 3, 17, 24), (24,)))
    dy, few = random.normal(size=(3, side, side, 24)), random.normal(size=(3, 3, 17, 3))

    def everything():
        y, winners = max_pool(x, (2, 2), (2, 2))
        return [
            winograd.convolve(x, w, b, (side, side), (1, 1))[0],
            *winograd_backward.convolve_backward(x, dy, w, (side, side), (1, 1)),
            winograd_backward.convolve_input_gradient(dy, w, (side, side), (1, 1)),
            *pooled_gradients(x, w, b, (side, side), (1, 1)),
            *pooled_gradients(x[..., :9].copy(), w[:, :, :9].copy(), b, (side, side), (1, 1)),
            *direct_pooled_gradients(x[..., :7].copy(), w[:, :, :7].copy(), b, (side, side), (1, 1)),
            *direct_pooled_gradients(x[..., :7].copy(), w[:, :, :7, :7].copy(), b[:7].copy(), (side, side), (1, 1)),
            *direct_pooled_gradients(x[..., :1].copy(), w[:, :, :1].copy(), b, (side, side), (1, 1)),
            *direct_pooled_gradients(x[..., :1].copy(), w[:, :, :1, :1].copy(), b[:1].copy(), (side, side), (1, 1)),
            *direct_pooled_gradients(x[..., :1].copy(), w[:, :, :1, :3].copy(), b[:3].copy(), (side, side), (1, 1)),
            *batch_norm.scale_and_shift(dy.reshape(-1, 24), b, b, b, b, relu=True),
            *batch_norm.scale_and_shift(dy.reshape(-1, 2), *b.reshape(4, -1)[:, :2].copy(), relu=True),
            *batch_norm.mean_and_sigma(dy.reshape(-1, 2), *np.zeros((2, 2)), 0.1, 0.1),
            *batch_norm.backward(dy.reshape(-1, 2), dy.reshape(-1, 2)[::-1].copy(), *b.reshape(3, -1)[:, :2].copy()),
            batch_norm.scale_and_shift(dy.reshape(-1, 24), b, b, b, b, relu=True, remember=False)[0],
            winograd.convolve(x, w, b, (side, side), (1, 1), pool=True, relu=True, remember=False)[0],
            convolve_and_pool(x, w, b, (side, side), (1, 1), (1, 1), (2, 2), with_relu=True, remember=False)[0],
            *convolve_backward(x, dy, w, (1, 1), (1, 1)),
            convolve_input_gradient(dy[..., :3].copy(), few, (side, side), (1, 1), (1, 1)),
            convolve_input_gradient(dy, w, (3 * side, 3 * side), (3, 3), (0, 0)),
            convolve_input_gradient(dy, w[:, :, :7].copy(), (3 * side, 3 * side), (3, 3), (0, 0)),
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
        handed_out.append(np.full(prod(shape) + BEHIND, 99 if dtype.kind == "u" else np.nan, dtype))
        return handed_out[-1][:-BEHIND].reshape(shape)

    def take_scratch(threads, size):
        taken.append((size, np.full((threads, size), np.nan)))  # eight times as large
        return taken[-1][1].view("f4")

    handed_out, taken = [], []
    expected = everything()
    for module in (
        batch_norm,
        convolution,
        convolution_backward,
        dense_kernels,
        elementwise,
        input_gradient,
        narrow_convolution,
        pooled_convolution,
        pooling,
        winograd,
        winograd_backward,
    ):
        monkeypatch.setattr(module, "empty", not_empty)
    monkeypatch.setattr(parallel, "take_scratch", take_scratch)
    for actual, wanted in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
        assert np.isfinite(actual).all()
    for size, scratch in taken:
        assert np.isnan(scratch[:, size // 8 :]).all()
    for array in handed_out:
        np.testing.assert_array_equal(array[-BEHIND:], 99 if array.dtype == np.uint8 else np.nan)


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
    one_pixel, whole = np.zeros((0, 1, 1, 4)), np.ones((5, 5, 2, 4))
    assert convolve(np.zeros((0, 5, 5, 2)), whole, np.zeros(4), (1, 1)).shape == (0, 1, 1, 4)
    dx, dw, db = convolve_backward(np.zeros((0, 5, 5, 2)), one_pixel, whole, (1, 1), (0, 0))
    assert (dx.shape, dw.shape, db.shape) == ((0, 5, 5, 2), (5, 5, 2, 4), (4,))
    assert not dw.any()
    assert dense_input_gradient(np.zeros((0, 2)), np.zeros((3, 2))).shape == (0, 3)
    assert dense(np.zeros((0, 3)), np.zeros((3, 2)), np.zeros(2)).shape == (0, 2)
    np.testing.assert_array_equal(dense_weight_gradient(np.zeros((0, 3)), np.zeros((0, 2))), np.zeros((3, 2)))
    assert max_pool(np.zeros((0, 4, 4, 1)), (2, 2), (2, 2))[0].shape == (0, 2, 2, 1)


@pytest.mark.parametrize("size", [5, 100_003])  # one part, and eight of different lengths
def test_number_by_number_operations(random, size):
    x, dy = random.normal(size=(2, size))
    x[:3] = 0
    y, active = elementwise.relu(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(active, x > 0)
    np.testing.assert_array_equal(elementwise.relu_backward(dy, active), np.where(x > 0, dy, 0))


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
