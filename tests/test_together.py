"""What layers do together comes out bit for bit as if they had not, but for the rounding of a bias gradient."""

import copy
import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from tinycnn import BatchNorm, Conv2D, Dense, Flatten, MaxPool2D, ReLU, Sequential, together
from tinycnn.kernels import batch_norm, memory, pooled_convolution, winograd
from tinycnn.together import groups


def one_by_one(model: Sequential, x: np.ndarray) -> np.ndarray:
    for layer in model.layers:
        x = layer.forward(x)
    return x


def assert_same_memory(model: Sequential, x: np.ndarray) -> tuple[Sequential, np.ndarray]:
    """Together and one by one: the output and what is remembered; and that of inference, which remembers nothing.

    Returns the model that went one by one, and y.
    """
    single, y = copy.deepcopy(model), x
    for layer in single.layers:
        y = layer.forward(y, training=True)
    np.testing.assert_array_equal(model.forward(x, training=True), y)
    for layer, other in zip(model.layers, single.layers, strict=True):
        for mine, its in zip(layer.remembered(), other.remembered(), strict=True):
            np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(model.forward(x), one_by_one(single, x))
    return single, y


def assert_same_training(model: Sequential, x: np.ndarray, random) -> None:
    """Together and one by one: outputs, what is remembered, and gradients; the bias gradient up to rounding."""
    single, y = assert_same_memory(model, x)
    model.forward(x, training=True)
    dy = random.normal(size=y.shape).astype(y.dtype)
    dx = dy
    for layer in reversed(single.layers):
        dx = layer.backward(dx)
    size = max(1, np.abs(dy).sum())
    for backward in (model.backward, model.parameter_gradients):
        for parameter in model.parameters():
            parameter.grad[:] = 7
        result = backward(dy)
        if backward == model.backward:
            np.testing.assert_array_equal(result, dx)
        for parameter, other in zip(model.parameters(), single.parameters(), strict=True):
            tolerance = size * np.finfo(y.dtype).eps if parameter.name.endswith("bias") else 0
            np.testing.assert_allclose(parameter.grad, other.grad, rtol=0, atol=tolerance)


def pool_and_relu(pool, relu: str | None) -> list:
    """Layers; relu: in front of the pool, or behind it."""
    pools = [MaxPool2D(pool)] if pool else []
    return {None: pools, "before": [ReLU(), *pools], "behind": [*pools, ReLU()]}[relu]


@given(
    dtype=st.sampled_from([np.float32, np.float64]),
    batch=st.integers(0, 5),
    side=st.sampled_from([4, 6, 9, 14]),
    channels=st.sampled_from([1, 3, 8]),
    filters=st.sampled_from([1, 10, 24]),
    kernel=st.sampled_from([1, 3, 4]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    pool=st.sampled_from([None, 1, 2, (3, 2), (1, 3)]),
    relu=st.sampled_from([None, "before", "behind"]),
    seed=st.integers(0, 99),
)
@example(np.float32, 3, 14, 8, 10, 4, 2, 2, 2, None, 0)  # the upper row of a window sees only padding, the lower one x
@example(np.float32, 3, 14, 3, 24, 3, 2, 2, (3, 2), "behind", 0)
def test_equal_to_one_by_one(dtype, batch, side, channels, filters, kernel, stride, padding, pool, relu, seed):
    layers = [Conv2D(filters, kernel, stride, padding), *pool_and_relu(pool, relu)]
    try:
        model = Sequential(layers, (side, side, channels), seed=seed, dtype=dtype)
    except ValueError:
        reject()  # the pool is larger than what is left
    random = np.random.default_rng(seed)
    model.layers[0].bias.value[:] = random.normal(size=filters)
    x = random.normal(size=(batch, side, side, channels)).astype(dtype)
    if seed % 2:
        x = np.round(x)  # maxima that are equal
    assert_same_training(model, x, random)
    if seed % 3 == 0 and batch:
        x[0, side // 2, 1, 0], x[-1, 0, 0, 0] = np.nan, -np.inf
        with np.errstate(invalid="ignore"):
            assert_same_memory(model, x)


@pytest.mark.parametrize("relu", ["before", "behind"])
@pytest.mark.parametrize("pool", [(100, 7), (2, 16), (15, 1), (2, 4), (7, 1)])
def test_large_windows(pool, relu, random):
    """A byte can't number the first's cells, a tile has not the pixels of the next three: one by one. The last fits."""
    model = Sequential([Conv2D(16, 3, padding=1), *pool_and_relu(pool, relu)], (pool[0], 2 * pool[1], 3))
    assert_same_training(model, random.normal(size=(3, *model.input_shape)).astype(np.float32), random)


@pytest.mark.parametrize(("channels", "filters"), [(3, 10), (6, 4)])
def test_images_that_dw_takes_in_pieces(channels, filters, random):
    """The pieces end elsewhere if no window of a pool may be cut, and in a small tile pixels take turns."""
    model = Sequential([Conv2D(filters, 1), MaxPool2D(2), ReLU()], (24, 64, channels))
    assert_same_training(model, random.normal(size=(2, *model.input_shape)).astype(np.float32), random)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    size=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    filters=st.sampled_from([12, 32, 40]),
    padding=st.integers(0, 2),
    pool=st.sampled_from([None, 2, (2, 1)]),
    relu=st.sampled_from([None, "before", "behind"]),
    seed=st.integers(0, 99),
)
@example((13, 13), 40, 0, 2, "behind", 1)  # a row and a column that no window covers
@example((13, 13), 40, 0, 2, "before", 1)
@example((13, 13), 12, 0, 2, "before", 1)
@example((9, 14), 32, 1, 2, None, 0)
def test_winograd_equal_to_one_by_one(dtype, size, filters, padding, pool, relu, seed):
    """Behind a convolution that goes Winograd's way where there are images enough."""
    layers = [Conv2D(filters, 3, padding=padding), *pool_and_relu(pool, relu)]
    model = Sequential(layers, (*size, 16), seed=seed, dtype=dtype)
    random = np.random.default_rng(seed)
    x = np.round(random.normal(size=(60, *size, 16))).astype(dtype)
    if seed % 2:
        model.layers[0].weight.value[:] = np.round(4 * model.layers[0].weight.value)  # maxima that are nearly equal
    assert_same_training(model, x, random)


@pytest.mark.parametrize(("pool", "relu"), [(None, "behind"), (2, "behind"), (2, "before")])
def test_not_a_number_goes_through_winograds_pool(pool, relu, random):
    layers = [Conv2D(32, 3), *pool_and_relu(pool, relu)]
    model, x = Sequential(layers, (10, 10, 16)), random.normal(size=(60, 10, 10, 16)).astype(np.float32)
    x[3, 4, 5, 6], x[8, 0, 0, 0] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        assert_same_memory(model, x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (9, 4, 6, 33), (70, 9, 9, 16)])
def test_batch_norm_and_relu(shape, frozen, random):
    model = Sequential([BatchNorm(), ReLU()], shape[1:])
    model.layers[0].frozen = frozen
    for parameter in model.parameters():
        parameter.value[:] = random.normal(size=parameter.value.shape)
    x = random.normal(size=shape).astype(np.float32)
    x[0, ..., 0] = 0
    assert_same_training(model, x, random)


def test_flatten_and_dense(random):
    model = Sequential([ReLU(), Flatten(), Dense(7)], (3, 4, 2))
    x = random.normal(size=(5, 3, 4, 2)).astype(np.float32)
    assert_same_training(model, x, random)
    np.testing.assert_array_equal(model.forward(x[:0]), np.zeros((0, 7)))
    assert not np.shares_memory(model.backward(np.ones((5, 7))), model.backward(np.ones((5, 7))))


@pytest.mark.parametrize("relu", ["before", "behind"])
@pytest.mark.parametrize("batch", [1, 70])
@pytest.mark.parametrize("threads", [1, 2])
def test_of_the_tutorials_network(random, relu, batch, threads, at_threads):
    """Its second convolution goes another way with many images, and the first is shared out."""
    layers = [Conv2D(32, 3), *pool_and_relu(2, relu), Conv2D(64, 3), *pool_and_relu(2, relu), Flatten(), Dense(10)]
    model = Sequential(layers, (28, 28, 1))
    x = random.normal(size=(batch, 28, 28, 1)).astype(np.float32)
    np.testing.assert_array_equal(at_threads(threads, lambda: model.forward(x)), one_by_one(model, x))
    at_threads(threads, lambda: assert_same_training(model, x, random))


@pytest.mark.parametrize("relu", ["before", "behind"])
@pytest.mark.parametrize("batch", [1, 70])
def test_what_comes_between_is_never_written(random, monkeypatch, batch, relu):
    """Else nothing would be won: no function of a layer alone is called."""
    layers = [
        Conv2D(32, 3),
        *pool_and_relu(2, relu),
        Conv2D(64, 3),
        MaxPool2D(2),
        BatchNorm(),
        ReLU(),
        Flatten(),
        Dense(10),
    ]
    model = Sequential(layers, (28, 28, 1))
    for layer in layers[:-1]:
        if not isinstance(layer, BatchNorm):
            monkeypatch.setattr(type(layer), "forward", None)
            monkeypatch.setattr(type(layer), "backward", None)
    for kernel in ("convolve", "convolve_backward", "convolve_weight_gradient", "max_pool", "relu", "relu_backward"):
        if batch > 1 or kernel not in ("convolve_backward", "relu_backward"):  # dx of a few images is no Winograd's
            monkeypatch.setattr(pooled_convolution, kernel, None)
    y = model.forward(random.normal(size=(batch, 28, 28, 1)).astype(np.float32), training=True)
    model.parameter_gradients(y)


def test_a_first_convolution_gets_back_no_gradient_as_large_as_its_output(random, monkeypatch):
    model = Sequential([Conv2D(8, 3), ReLU()], (9, 9, 1))
    x, dy = (random.normal(size=(3, *shape)).astype(np.float32) for shape in ((9, 9, 1), (7, 7, 8)))
    assert_same_training(model, x, random)
    monkeypatch.setattr(pooled_convolution, "relu_backward", None)
    model.parameter_gradients(dy)


@pytest.mark.parametrize("batch", [1, 70])
def test_inference_makes_no_notes_for_backward(random, monkeypatch, batch):
    layers = [Conv2D(32, 3), MaxPool2D(2), ReLU(), Conv2D(64, 3), MaxPool2D(2), ReLU(), BatchNorm(), ReLU()]
    model, dtypes = Sequential(layers, (28, 28, 1)), []

    def empty(shape, dtype):
        dtypes.append(dtype)
        return memory.empty(shape, dtype)

    for kernels in (pooled_convolution, winograd, batch_norm):
        monkeypatch.setattr(kernels, "empty", empty)
    x = random.normal(size=(batch, 28, 28, 1)).astype(np.float32)
    model.forward(x)
    assert np.uint8 not in dtypes
    model.forward(x, training=True)
    assert dtypes.count(np.uint8) == 5  # of two pools and three ReLUs


class OwnReLU(ReLU):
    """It may do anything."""


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([Conv2D(4, 3), MaxPool2D(2), ReLU()], 1),
        ([Conv2D(4, 3), ReLU(), MaxPool2D(2)], 1),
        ([Conv2D(4, 3), ReLU(), MaxPool2D(3, stride=2)], 1),  # but only the first two do
        ([Conv2D(4, 3), MaxPool2D(3, stride=2), ReLU()], 1),  # but one by one
        ([Conv2D(4, 3), MaxPool2D(2), OwnReLU()], 2),
        ([Conv2D(4, 3), Conv2D(4, 3), ReLU(), ReLU(), MaxPool2D(2), Flatten()], 5),
        ([BatchNorm(), Conv2D(4, 3), BatchNorm(), ReLU(), Flatten(), Dense(3), ReLU()], 5),
    ],
)
def test_what_goes_together(layers, expected, random):
    """Only neighbours in this order, of our own classes; and windows that overlap change nothing."""
    assert len(groups(layers)) == expected
    assert [layer for group in groups(layers) for layer in group] == layers
    model = Sequential(layers, (12, 12, 1))
    x = random.normal(size=(2, 12, 12, 1)).astype(np.float32)
    np.testing.assert_array_equal(model.forward(x), one_by_one(model, x))


def test_gone_forward_together_and_back_one_by_one(random):
    """A ReLU in front of a pool then finds out what it has not seen."""
    model = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2)], (12, 12, 2))
    x, dy = (random.normal(size=size).astype(np.float32) for size in ((3, 12, 12, 2), (3, 5, 5, 4)))
    results = []
    for forward_alone, backward_alone in ((False, False), (False, True), (True, False), (True, True)):
        with together.one_by_one() if forward_alone else nullcontext():
            model.forward(x, training=True)
        with together.one_by_one() if backward_alone else nullcontext():
            results.append([model.backward(dy), *(p.grad.copy() for p in model.parameters())])
            model.parameter_gradients(dy)
            results.append([results[-1][0], *(p.grad.copy() for p in model.parameters())])
    for result in results[1:]:
        for array, first in zip(result, results[0], strict=True):
            np.testing.assert_allclose(array, first, rtol=1e-5, atol=1e-5)


def test_what_went_together_is_freed_with_the_model(random):
    """At once: nothing that it remembers keeps itself alive until Python looks for such garbage."""
    model = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2)], (12, 12, 2))
    model.forward(random.normal(size=(3, 12, 12, 2)).astype(np.float32), training=True)
    model.layers[1].remembered()
    remembered = [weakref.ref(layer._memory) for layer in model.layers[1:]]
    gc.disable()
    try:
        del model
        assert [memory() for memory in remembered] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("changed", [(1, 2), (3, 3), (40, 40)])  # of 5×5 numbers as many 3×3 as 2×2
@pytest.mark.parametrize("kinds", [(ReLU, MaxPool2D), (MaxPool2D, ReLU), (MaxPool2D,)])
@pytest.mark.parametrize("side", [5, 12])
def test_a_pool_that_changed_in_between_goes_back_as_it_came(random, kinds, changed, side):
    x, gradients = random.normal(size=(3, side + 2, side + 2, 2)).astype(np.float32), []
    dy = random.normal(size=(3, side // 2, side // 2, 4))
    for change in (False, True):
        layers = [kind(2) if kind is MaxPool2D else kind() for kind in kinds]
        model = Sequential([Conv2D(4, 3), *layers], x.shape[1:])
        for backward in (model.backward, model.parameter_gradients):
            model.forward(x, training=True)
            pool = next(layer for layer in layers if isinstance(layer, MaxPool2D))
            if change:
                pool.pool_size = pool.stride = changed
            backward(dy)
            pool.pool_size = pool.stride = (2, 2)
            gradients.append(model.layers[0].weight.grad.copy())
    for other in gradients[1:]:
        np.testing.assert_allclose(other, gradients[0], rtol=1e-5, atol=1e-6)


def test_a_pool_that_does_not_fit_is_named():
    """Somebody has put another one there."""
    model, x = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU()], (12, 12, 1)), np.zeros((2, 12, 12, 1), np.float32)
    model.layers[1] = MaxPool2D((2, 20))
    with pytest.raises(ValueError, match="MaxPool2D: got an input of shape"):
        model.forward(x)


def test_gradients_that_were_put_into_a_layer_are_called():
    model = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU()], (12, 12, 1))
    seen, conv = [], model.layers[0]
    conv.parameter_gradients = lambda dy: seen.append(dy.shape)
    model.parameter_gradients(model.forward(np.zeros((2, 12, 12, 1)), training=True))
    assert seen == [(2, 10, 10, 4)]


@pytest.mark.parametrize("training", [False, True])
def test_a_method_that_was_put_into_a_layer_is_called(monkeypatch, random, training):
    """A hook, for example."""
    model = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU()], (12, 12, 1))
    seen, forward, backward = [], model.layers[1].forward, model.layers[1].backward
    monkeypatch.setattr(model.layers[1], "forward", lambda x, training: seen.append(x.shape) or forward(x, training))
    monkeypatch.setattr(model.layers[1], "backward", lambda dy: seen.append(dy.shape) or backward(dy))
    model.forward(random.normal(size=(2, 12, 12, 1)), training)
    expected = [(2, 10, 10, 4)]
    if training:
        model.backward(np.ones((2, 5, 5, 4)))
        model.parameter_gradients(np.ones((2, 5, 5, 4)))
        expected += 2 * [(2, 5, 5, 4)]
    assert seen == expected


def test_one_by_one(monkeypatch, random):
    """Whoever has changed a layer wants to see what comes of it, and it is undone after the with block."""
    model = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU(), BatchNorm(), ReLU()], (12, 12, 1))
    calls, forward, backward = [], ReLU.forward, ReLU.backward
    monkeypatch.setattr(ReLU, "forward", lambda *a: calls.append("forward") or forward(*a))
    monkeypatch.setattr(ReLU, "backward", lambda *a: calls.append("backward") or backward(*a))
    x = random.normal(size=(2, 12, 12, 1)).astype(np.float32)
    for expected in (4, 0):
        calls.clear()
        with together.one_by_one() if expected else nullcontext():
            with together.one_by_one() if expected else nullcontext():
                pass  # the end of an inner block does not end the outer one
            model.parameter_gradients(model.forward(x, training=True))
        assert len(calls) == expected


def test_a_forward_of_another_batch_in_between_is_named(random):
    """Somebody has called one of the layers alone."""
    model, x = Sequential([Conv2D(4, 3), MaxPool2D(2), ReLU()], (12, 12, 1)), random.normal(size=(3, 12, 12, 1))
    for layer, other in ((0, (2, 12, 12, 1)), (1, (3, 8, 10, 4))):
        model.forward(x, training=True)
        model.layers[layer].forward(np.zeros(other), training=True)
        for backward in (model.backward, model.parameter_gradients):
            with pytest.raises(ValueError, match="conv2d_1: got a gradient of shape"):
                backward(np.ones((3, 5, 5, 4)))
        with pytest.raises(ValueError, match=r"relu_3: got a gradient of shape \(3, 5, 5, 5\)"):
            model.backward(np.ones((3, 5, 5, 5)))


def test_a_forward_in_between_is_named_also_with_the_pool_behind_the_relu(random):
    model, x = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2)], (12, 12, 1)), random.normal(size=(3, 12, 12, 1))
    named = "conv2d_1", "relu_2", "maxpool2d_3"
    for layer, other in enumerate(((2, 12, 12, 1), (3, 8, 10, 4), (3, 8, 10, 4))):
        model.forward(x, training=True)
        model.layers[layer].forward(np.zeros(other), training=True)
        for backward in (model.backward, model.parameter_gradients):
            with pytest.raises(ValueError, match=f"{named[layer]}: got a gradient of shape"):
                backward(np.ones((3, 5, 5, 4)))
    model.forward(x, training=True)
    for backward in (model.backward, model.parameter_gradients):
        with pytest.raises(ValueError, match=r"maxpool2d_3: got a gradient of shape \(3, 5, 5, 5\)"):
            backward(np.ones((3, 5, 5, 5)))


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
        together.forward(model.layers, random.normal(size=(2, 12, 12, 3)), training=False)


@pytest.mark.parametrize("stride", [(2, 1), (1, 2)])
@pytest.mark.parametrize("behind", [True, False])
def test_windows_that_overlap_one_way_only(stride, behind, random):
    layers = [MaxPool2D(2, stride), ReLU()] if behind else [ReLU(), MaxPool2D(2, stride)]
    model = Sequential([Conv2D(4, 3), *layers], (12, 12, 1))
    assert_same_training(model, random.normal(size=(2, 12, 12, 1)).astype(np.float32), random)
