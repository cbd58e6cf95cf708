"""What inference takes together comes out bit for bit as if it had not."""

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from tinycnn import Conv2D, Dense, Flatten, MaxPool2D, ReLU, Sequential
from tinycnn.inference import groups


def one_by_one(model: Sequential, x: np.ndarray) -> np.ndarray:
    for layer in model.layers:
        x = layer.forward(x)
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    batch=st.integers(0, 5),
    side=st.integers(6, 14),
    channels=st.sampled_from([1, 3, 8, 16]),
    filters=st.sampled_from([1, 4, 10, 16, 24, 40]),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    pool=st.sampled_from([None, 1, 2, (3, 2), (1, 3), (2, 1)]),
    relu=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equal_to_one_by_one(dtype, batch, side, channels, filters, kernel, stride, padding, pool, relu, seed):
    layers = [
        Conv2D(filters, kernel, stride, padding),
        *([MaxPool2D(pool)] if pool else []),
        *([ReLU()] if relu else []),
    ]
    try:
        model = Sequential(layers, (side, side, channels), seed=seed, dtype=dtype)
    except ValueError:
        reject()  # the pool is larger than what is left
    random = np.random.default_rng(seed)
    model.layers[0].bias.value[:] = random.normal(size=filters)
    x = random.normal(size=(batch, side, side, channels)).astype(dtype)
    if seed % 3 == 0 and batch:
        x[0, side // 2, 1, 0], x[-1, 0, 0, 0] = np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(model.forward(x), one_by_one(model, x))


@pytest.mark.parametrize("batch", [1, 70])
@pytest.mark.parametrize("threads", [1, 2])
def test_of_the_tutorials_network(random, batch, threads, at_threads):
    """Its second convolution goes another way with many images, and the first is shared out."""
    layers = [Conv2D(32, 3), MaxPool2D(2), ReLU(), Conv2D(64, 3), MaxPool2D(2), ReLU(), Flatten(), Dense(10)]
    model = Sequential(layers, (28, 28, 1))
    x = random.normal(size=(batch, 28, 28, 1)).astype(np.float32)
    assert layers[0].forward_pooled(x, (2, 2), True) is not None
    middle = random.normal(size=(batch, 13, 13, 32)).astype(np.float32)
    assert (layers[3].forward_pooled(middle, (2, 2), True) is None) == (batch == 70)
    np.testing.assert_array_equal(at_threads(threads, lambda: model.forward(x)), one_by_one(model, x))


class OwnReLU(ReLU):
    """It may do anything."""


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([Conv2D(4, 3), MaxPool2D(2), ReLU()], 1),
        ([Conv2D(4, 3), ReLU(), MaxPool2D(2)], 2),
        ([Conv2D(4, 3), MaxPool2D(3, stride=2), ReLU()], 1),  # but one by one
        ([Conv2D(4, 3), MaxPool2D(2), OwnReLU()], 2),
        ([Conv2D(4, 3), Conv2D(4, 3), ReLU(), ReLU(), MaxPool2D(2), Flatten()], 5),
    ],
)
def test_what_goes_together(layers, expected, random):
    """Only a pool and a ReLU, in this order, of our own classes; and windows that overlap change nothing."""
    assert len(groups(layers)) == expected
    assert [layer for group in groups(layers) for layer in group] == layers
    model = Sequential(layers, (12, 12, 1))
    x = random.normal(size=(2, 12, 12, 1)).astype(np.float32)
    np.testing.assert_array_equal(model.forward(x), one_by_one(model, x))


def test_a_forward_that_was_put_into_a_layer_is_called(monkeypatch, random):
    """A hook, for example."""
    model = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU()], (12, 12, 1))
    seen, pool = [], model.layers[1].forward
    monkeypatch.setattr(model.layers[1], "forward", lambda x, training: seen.append(x.shape) or pool(x, training))
    model.forward(random.normal(size=(2, 12, 12, 1)))
    assert seen == [(2, 10, 10, 4)]


def test_another_layer_in_its_place_is_used(random):
    layers = [Conv2D(4, 3), MaxPool2D(2), ReLU()]
    model, x = Sequential(layers, (12, 12, 1)), random.normal(size=(2, 12, 12, 1)).astype(np.float32)
    model.forward(x)
    model.layers[2] = Flatten()
    np.testing.assert_array_equal(model.forward(x), one_by_one(model, x))
    model.layers[1].stride = (1, 1)
    np.testing.assert_array_equal(model.forward(x), one_by_one(model, x))


def test_a_wrong_input_is_named(random):
    model = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU()], (12, 12, 1))
    with pytest.raises(ValueError, match="conv2d_1: got an input of shape"):
        model.layers[0].forward_pooled(random.normal(size=(2, 12, 12, 3)), (2, 2), True)
