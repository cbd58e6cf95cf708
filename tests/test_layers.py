"""The top rung: layers and whole networks against the reference, and the contracts that every layer keeps."""

import numpy as np
import pytest
from reference_network import reference_forward

from tinycnn import (
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    MaxPool2D,
    Normalize,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
    reference,
)
from tinycnn.gradcheck import central_difference, complex_step, relative_error

LAYERS = {
    "conv": (lambda: Conv2D(3, 3), (6, 5, 2)),
    "conv, stride and padding": (lambda: Conv2D(5, (3, 2), stride=(2, 1), padding=(1, 2)), (6, 5, 2)),
    "conv, no bias": (lambda: Conv2D(17, 1, use_bias=False), (3, 2, 4)),
    "conv, whole image": (lambda: Conv2D(4, (4, 5)), (4, 5, 3)),
    "pool": (lambda: MaxPool2D(2), (6, 4, 3)),
    "pool, overlapping": (lambda: MaxPool2D((3, 2), stride=(1, 2)), (6, 5, 2)),
    "relu": (lambda: ReLU(), (4, 3, 2)),
    "flatten": (lambda: Flatten(), (4, 3, 2)),
    "dense": (lambda: Dense(7), (11,)),
    "dense, no bias": (lambda: Dense(1, use_bias=False), (3,)),
    "batch norm": (lambda: BatchNorm(epsilon=1e-3), (4, 3, 5)),
    "batch norm of rows": (lambda: BatchNorm(), (6,)),
    "dropout": (lambda: Dropout(0.4), (4, 3, 2)),
    "global average pool": (lambda: GlobalAveragePool2D(), (4, 3, 5)),
    "global average pool of a pixel": (lambda: GlobalAveragePool2D(), (1, 1, 2)),
    "normalize": (lambda: Normalize(0.2, 0.5), (4, 3, 1)),
    "normalize, colours": (lambda: Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), (4, 3, 3)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    return LAYERS[request.param]


def build(case, dtype=np.float64, seed=3) -> tuple[Sequential, Layer, tuple[int, ...]]:
    """The layer alone in a model, its parameters away from their special start (zero biases, unit gammas)."""
    make, shape = case
    model = Sequential([make()], shape, seed=seed, dtype=dtype)
    random = np.random.default_rng(seed)
    for p in model.parameters():
        p.value[...] = random.normal(size=p.value.shape)
    return model, model.layers[0], shape


# -------------------------------------------------------------------------------------------------- right, to the digit


def test_layer_gradients_are_the_derivatives(case, random):
    """Input and every parameter, with a random cotangent, against complex steps through the reference formulas."""
    model, _, shape = build(case)
    x = random.normal(size=(4, *shape))
    y = model.forward(x, training=True)
    np.testing.assert_allclose(y, reference_forward(model, x), rtol=1e-12, atol=1e-12)
    dy = random.normal(size=y.shape)
    dx = model.backward(dy)
    exact = complex_step(lambda x: (reference_forward(model, x) * dy).sum(), x)
    assert relative_error(dx, exact, floor=1e-9) < 1e-10
    for p in model.parameters():
        exact = complex_step(lambda v, p=p: (reference_forward(model, x, {p.name: v}) * dy).sum(), p.value)
        assert relative_error(p.grad, exact, floor=1e-9) < 1e-10, p.name


NETWORKS = {
    "conv, pool, dense": (
        lambda: [Conv2D(4, 3), MaxPool2D(2), ReLU(), Conv2D(5, 2, padding=1), ReLU(), Flatten(), Dense(4)],
        (8, 7, 1),
    ),
    "batch norm everywhere": (
        lambda: [
            Normalize(0.1, 0.3),
            Conv2D(3, 3, use_bias=False, padding=1),
            BatchNorm(),
            ReLU(),
            MaxPool2D((3, 2), stride=(2, 1)),
            Conv2D(4, (2, 3), stride=(1, 2), use_bias=False),
            BatchNorm(),
            ReLU(),
            Flatten(),
            Dense(5),
        ],
        (7, 6, 1),
    ),
    "convolutions to the end": (
        lambda: [Conv2D(6, 3), BatchNorm(), ReLU(), Conv2D(4, 1), GlobalAveragePool2D()],
        (6, 5, 2),
    ),
    "global average pool in the middle": (
        lambda: [Conv2D(6, 3), ReLU(), GlobalAveragePool2D(), BatchNorm(), Dense(5), ReLU(), Dense(4)],
        (6, 5, 2),
    ),
    "dropout and dense": (
        lambda: [Flatten(), Dense(9), BatchNorm(), ReLU(), Dropout(0.3), Dense(6), ReLU(), Dropout(0.1), Dense(3)],
        (4, 3, 2),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("smoothed", [False, True])
def test_network_gradients_are_the_derivatives_of_the_loss(name, smoothed, random):
    """Every element of every parameter, and of the input, to 1e-7 of itself."""
    make, shape = NETWORKS[name]
    model = Sequential(make(), shape, seed=1, dtype=np.float64)
    for p in model.parameters():
        p.value += 0.1 * random.normal(size=p.value.shape)
    classes = model.output_shapes[-1][0]
    x = (
        random.uniform(0, 255, size=(6, *shape))
        if isinstance(model.layers[0], Normalize)
        else random.normal(size=(6, *shape))
    )
    labels = random.dirichlet(np.ones(classes), size=6) if smoothed else random.integers(0, classes, size=6)
    targets = labels if smoothed else np.eye(classes)[labels]

    loss = SoftmaxCrossEntropy()
    value = loss.forward(model.forward(x, training=True), labels)
    dx = model.backward(loss.backward())
    exact = reference.softmax_cross_entropy(reference_forward(model, x), targets)
    assert value == pytest.approx(exact, rel=1e-13)

    def reference_loss(x, changed=None):
        return reference.softmax_cross_entropy(reference_forward(model, x, changed), targets)

    assert relative_error(dx, complex_step(reference_loss, x)) < 1e-7
    for p in model.parameters():
        exact = complex_step(lambda v, p=p: reference_loss(x, {p.name: v}), p.value)
        assert relative_error(p.grad, exact, floor=1e-13) < 1e-7, p.name


@pytest.mark.parametrize("name", ["conv, pool, dense", "batch norm everywhere", "convolutions to the end"])
def test_network_gradients_by_central_differences(name, random):
    """A second witness that shares nothing with the reference: the model's own forward, called with changed weights."""
    make, shape = NETWORKS[name]
    model = Sequential(make(), shape, seed=1, dtype=np.float64)
    x, labels = random.uniform(0, 255, size=(5, *shape)), random.integers(0, 4, size=5)
    loss = SoftmaxCrossEntropy()
    loss.forward(model.forward(x / 100, training=True), labels)
    model.backward(loss.backward())
    for p in model.parameters():
        analytic = p.grad.copy()
        numeric = central_difference(
            lambda: SoftmaxCrossEntropy().forward(model.forward(x / 100, training=True), labels), p.value, h=1e-5
        )
        np.testing.assert_allclose(
            analytic, numeric, rtol=1e-7, atol=1e-8 * np.abs(analytic).max() + 1e-10, err_msg=p.name
        )


def test_parameter_gradients_alone_are_the_same(random):
    """What training calls: everything but the gradient by the images."""
    make, shape = NETWORKS["batch norm everywhere"]
    model = Sequential(make(), shape, dtype=np.float64)
    y = model.forward(random.uniform(0, 255, size=(3, *shape)), training=True)
    dy = random.normal(size=y.shape)
    model.backward(dy)
    expected = [p.grad.copy() for p in model.parameters()]
    for p in model.parameters():
        p.grad[...] = np.nan
    model.parameter_gradients(dy)
    for p, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_array_equal(p.grad, grad)


def test_a_model_without_parameters_has_a_gradient_too(random):
    model = Sequential([MaxPool2D(2), Flatten()], (4, 4, 1), dtype=np.float64)
    y = model.forward(random.normal(size=(2, 4, 4, 1)), training=True)
    model.parameter_gradients(y)
    assert model.backward(y).shape == (2, 4, 4, 1)


# ----------------------------------------------------------------------------------------------------------- contracts


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_are_left_alone_and_dtype_is_kept(case, dtype, random):
    model, layer, shape = build(case, dtype)
    x = random.normal(size=(3, *shape)).astype(dtype)
    x_before = x.copy()
    for training in (False, True):
        y = layer.forward(x, training)
        assert y.dtype == dtype
    dy = random.normal(size=y.shape).astype(dtype)
    dy_before = dy.copy()
    assert layer.backward(dy).dtype == dtype
    assert layer.backward(dy).shape == x.shape
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(dy, dy_before)
    assert all(p.value.dtype == p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_the_other_dtype_are_converted(case, dtype, random):
    """Inputs, gradients and parameter values: nothing reads a float32 array as if it were float64."""
    _, layer, shape = build(case, dtype)
    other = np.float32 if dtype == np.float64 else np.float64
    x, weights = random.normal(size=(3, *shape)).astype(np.float32), [p.value for p in layer.parameters()]
    if isinstance(layer, Dropout):
        layer.rate = 0.0
    dy = random.normal(size=layer.forward(x).shape).astype(np.float32)
    results = []
    for kind in (dtype, other):
        for p, value in zip(layer.parameters(), weights, strict=True):
            p.value = value.astype(np.float32).astype(kind)
        y = layer.forward(x.astype(kind), training=True)
        dx = layer.backward(dy.astype(kind))
        assert y.dtype == dx.dtype == dtype
        results.append([y, dx, *(p.grad.copy() for p in layer.parameters())])
    for own, converted in zip(*results, strict=True):
        np.testing.assert_array_equal(own, converted)


def test_results_belong_to_the_caller(case, random):
    """A later call overwrites nothing that an earlier one returned."""
    _, layer, shape = build(case)
    first, second = random.normal(size=(2, 3, *shape))
    y = layer.forward(first, training=True)
    y_inference = layer.forward(first)
    dy = random.normal(size=y.shape)
    dx = layer.backward(dy)
    kept = [a.copy() for a in (y, y_inference, dx)]
    layer.forward(second, training=True)
    layer.forward(second)
    layer.backward(2 * dy)
    for result, copy in zip((y, y_inference, dx), kept, strict=True):
        np.testing.assert_array_equal(result, copy)


def test_an_output_may_be_changed(case, random):
    """backward does not look at what forward returned: it belongs to the caller, who may write into it."""
    _, layer, shape = build(case)
    y = layer.forward(random.normal(size=(3, *shape)), training=True)
    dy = random.normal(size=y.shape)
    dx = layer.backward(dy)
    y[...] = -7
    np.testing.assert_array_equal(layer.backward(dy), dx)


def test_results_share_no_memory_with_inputs(case, random):
    """So that changing a result changes nothing else."""
    _, layer, shape = build(case)
    x = random.normal(size=(3, *shape))
    for training in (False, True):
        y = layer.forward(x, training)
        assert not np.shares_memory(x, y)
    assert not np.shares_memory(y, layer.backward(y))


def test_backward_of_zeros_is_zero(case, random):
    model, layer, shape = build(case)
    y = layer.forward(random.normal(size=(3, *shape)), training=True)
    assert not layer.backward(np.zeros_like(y)).any()
    assert not any(p.grad.any() for p in model.parameters())


def test_backward_overwrites(case, random):
    """Gradients are those of the last backward, not sums over all of them."""
    model, layer, shape = build(case)
    y = layer.forward(random.normal(size=(3, *shape)), training=True)
    dy = random.normal(size=y.shape)
    first = [layer.backward(dy), *(p.grad.copy() for p in model.parameters())]
    second = [layer.backward(dy), *(p.grad for p in model.parameters())]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_runs_agree_bit_for_bit(case, random):
    x = random.normal(size=(9, *case[1])).astype(np.float32)

    def once():
        model, layer, _ = build(case, np.float32)
        y = layer.forward(x, training=True)
        return [y, layer.backward(y), *(p.grad for p in model.parameters()), *(a for _, a in layer.statistics())]

    for a, b in zip(once(), once(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_arrays_of_any_memory_layout_work(case, random):
    """Strided, reversed, transposed and read-only arrays give what a plain copy gives."""
    x = random.normal(size=(3, *case[1]))

    def run(arrange):
        model, layer, _ = build(case)
        y = layer.forward(arrange(x), training=True)
        return [y, layer.backward(arrange(np.cos(y))), *(p.grad for p in model.parameters())]

    def strided(a):
        padded = np.full((2 * len(a), *a.shape[1:]), np.nan)
        padded[::2] = a
        return padded[::2]

    def read_only(a):
        a = a.copy()
        a.flags.writeable = False
        return a

    def fortran(a):
        return np.asfortranarray(a)

    expected = run(np.copy)
    for arrange in (strided, read_only, fortran, lambda a: a[::-1].copy()[::-1]):
        for a, b in zip(run(arrange), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_backward_without_a_training_forward_is_an_error(case, random):
    _, layer, shape = build(case)
    y = layer.forward(random.normal(size=(2, *shape)))
    with pytest.raises(ValueError, match=rf"{layer.name}: backward needs a forward\(x, training=True\)"):
        layer.backward(y)


def test_a_gradient_of_the_wrong_shape_is_an_error(case, random):
    _, layer, shape = build(case)
    y = layer.forward(random.normal(size=(2, *shape)), training=True)
    with pytest.raises(ValueError, match=layer.name):
        layer.backward(y[:1])


def test_one_image_is_a_batch(case, random):
    _, layer, shape = build(case)
    y = layer.forward(random.normal(size=(1, *shape)), training=True)
    assert len(y) == 1
    assert np.isfinite(layer.backward(np.ones_like(y))).all()


def test_an_empty_batch_passes_in_inference(case):
    _, layer, shape = build(case)
    assert len(layer.forward(np.zeros((0, *shape)))) == 0


# ---------------------------------------------------------------------------------------------- one layer, one promise


def test_conv2d_takes_images_of_another_size(random):
    """A convolution is not bound to the size it was built with, only to its channels."""
    model = Sequential([Conv2D(3, 3)], (8, 8, 2), dtype=np.float64)
    x = random.normal(size=(2, 5, 11, 2))
    y = model.layers[0].forward(x)
    np.testing.assert_allclose(y, reference_forward(model, x), rtol=1e-12)


def test_batch_norm_running_statistics(random):
    layer = BatchNorm(momentum=0.75)
    Sequential([layer], (2,), dtype=np.float64)
    a, b = random.normal(3, 2, size=(2, 5, 2))
    layer.forward(a, training=True)
    layer.forward(b, training=True)
    expected_mean = 0.75 * (0.25 * a.mean(axis=0)) + 0.25 * b.mean(axis=0)
    expected_variance = 0.75 * (0.75 + 0.25 * a.var(axis=0)) + 0.25 * b.var(axis=0)  # biased; starts at 1
    np.testing.assert_allclose(layer.running_mean, expected_mean, rtol=1e-13)
    np.testing.assert_allclose(layer.running_variance, expected_variance, rtol=1e-13)
    expected = (a - expected_mean) / np.sqrt(expected_variance + 1e-5)
    np.testing.assert_allclose(layer.forward(a), expected, rtol=1e-13)
    np.testing.assert_allclose(layer.running_mean, expected_mean, rtol=1e-13)  # inference changes nothing


def test_dropout_drops_at_its_rate_and_only_in_training():
    layer = Dropout(0.3)
    Sequential([layer], (1000,), seed=5)
    x = np.full((50, 1000), 2.0, np.float32)
    np.testing.assert_array_equal(layer.forward(x), x)
    y = layer.forward(x, training=True)
    assert set(np.unique(y)) == {0, np.float32(2) / np.float32(0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.01  # five standard deviations
    assert (layer.forward(x, training=True) != y).any()
    np.testing.assert_array_equal(Dropout(0.0).forward(x, training=True), x)


def test_dropout_repeats_with_the_model_seed():
    masks = []
    for seed in (1, 1, 2):
        layer = Dropout(0.5)
        Sequential([Dense(3), layer], (3,), seed=seed)
        masks.append(layer.forward(np.ones((40, 3), np.float32), training=True))
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_global_average_keeps_its_digits(dtype):
    """A sum is rounded H + W times. Rounded H · W times, as NumPy's mean is here, it would be off by 1,000 and more."""
    y = GlobalAveragePool2D().forward(np.full((2, 100, 100, 3), 0.1, dtype))
    np.testing.assert_allclose(y, dtype(0.1), rtol=(100 + 100) * np.finfo(dtype).eps / 2)


def test_a_global_average_takes_images_of_any_size(random):
    """As a convolution does: it was built with one size, and is bound to none. An image's mean is its own."""
    model = Sequential([GlobalAveragePool2D()], (8, 8, 2))
    x = random.normal(size=(4, 5, 11, 2)).astype(np.float32)
    y = model.layers[0].forward(x)
    np.testing.assert_allclose(y, x.mean(axis=(1, 2)), rtol=1e-4, atol=1e-6)
    for k in range(4):
        np.testing.assert_array_equal(model.layers[0].forward(x[k : k + 1]), y[k : k + 1])
    grey = np.full((1, 20, 20, 2), 200, np.uint8)
    np.testing.assert_array_equal(GlobalAveragePool2D().forward(grey), [[200, 200]])  # the sum is no byte


def test_normalize_takes_raw_images(random):
    images = random.integers(0, 256, size=(3, 5, 4), dtype=np.uint8)
    model = Sequential([Normalize(0.25, 0.5)], (5, 4, 1))
    expected = (images / 255 - 0.25) / 0.5
    for x in (images, images[..., None]):
        y = model.forward(x)
        assert y.dtype == np.float32
        assert y.shape == (3, 5, 4, 1)
        np.testing.assert_allclose(y[..., 0], expected, atol=1e-6)
    assert Normalize(0, 1).forward(images).dtype == np.float32  # also on its own
    flat = Sequential([Normalize(0.25, 0.5), Dense(3)], (20,))
    np.testing.assert_array_equal(flat.layers[0].forward(images.reshape(3, 20)), y.reshape(3, 20))
    assert flat.forward(images.reshape(3, 20)).shape == (3, 3)


def test_relu_on_its_own_follows_the_input(random):
    for dtype in (np.float32, np.float64):
        assert ReLU().forward(random.normal(size=(2, 3)).astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Conv2D(0, 3), "filters must be a whole number of at least 1, got 0"),
        (lambda: Conv2D(2.5, 3), "filters must be a whole number"),
        (lambda: Conv2D(True, 3), "filters must be a whole number"),
        (lambda: Conv2D(4, 0), "kernel_size must be a whole number of at least 1"),
        (lambda: Conv2D(4, (3, 3, 3)), "kernel_size must be a number or a pair"),
        (lambda: Conv2D(4, 3, stride=0), "stride must be"),
        (lambda: Conv2D(4, 3, padding=-1), "padding must be a whole number of at least 0"),
        (lambda: Conv2D(4, 3, padding="same"), "padding must be"),
        (lambda: MaxPool2D(0), "pool_size must be"),
        (lambda: MaxPool2D(2, stride=(1, 0)), "stride must be"),
        (lambda: Dense(-3), "units must be"),
        (lambda: Dropout(1.0), "needs 0 ≤ rate < 1, got 1.0"),
        (lambda: Dropout(-0.1), "rate"),
        (lambda: Dropout(1 - 1e-10), "rate"),  # in float32 that is 1
        (lambda: Dropout(None), "rate"),
        (lambda: Dropout(10**400), "rate"),
        (lambda: BatchNorm(momentum=1.5), "momentum"),
        (lambda: BatchNorm(momentum="0.9"), "momentum"),
        (lambda: BatchNorm(epsilon=0), "epsilon"),
        (lambda: BatchNorm(epsilon=1e-60), "epsilon"),
        (lambda: BatchNorm(epsilon=1e300), "epsilon"),
        (lambda: BatchNorm(epsilon="1e-5"), "epsilon"),
        (lambda: BatchNorm(epsilon=float("inf")), "epsilon"),
        (lambda: Normalize(0.5, 0), "std greater than 0"),
        (lambda: Normalize(float("nan"), 1), "finite mean"),
        (lambda: Normalize([], []), "one number a channel"),
        (lambda: Conv2D(4, 3).forward(np.zeros((1, 5, 5, 1))), "Conv2D has no parameters yet"),
        (lambda: Dense(4).forward(np.zeros((1, 5))), "Dense has no parameters yet"),
        (lambda: BatchNorm().forward(np.zeros((1, 5))), "BatchNorm has no parameters yet"),
        (lambda: MaxPool2D(3).forward(np.zeros((1, 2, 5, 1))), r"MaxPool2D: got an input of shape \(1, 2, 5, 1\)"),
    ],
)
def test_bad_arguments_name_the_thing(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("layer", "shape", "wrong"),
    [
        (Conv2D(4, 3), (5, 5, 2), (1, 5, 5, 3)),
        (Conv2D(4, 3), (5, 5, 2), (5, 5, 2)),
        (Conv2D(4, 3), (5, 5, 2), (1, 2, 5, 2)),
        (Dense(4), (6,), (1, 7)),
        (Dense(4), (6,), (1, 2, 3)),
        (BatchNorm(), (5, 5, 2), (1, 5, 5, 3)),
        (MaxPool2D(2), (5, 5, 2), (5, 5)),
        (GlobalAveragePool2D(), (5, 5, 2), (1, 2)),
        (GlobalAveragePool2D(), (5, 5, 2), (1, 0, 5, 2)),
    ],
)
def test_an_input_that_does_not_fit_names_layer_shape_and_need(layer, shape, wrong):
    Sequential([layer], shape)
    with pytest.raises(ValueError, match="needs") as error:
        layer.forward(np.zeros(wrong, np.float32))
    assert layer.name in str(error.value)
    assert str(wrong) in str(error.value)


def test_batch_norm_of_an_empty_batch_is_an_error():
    layer = BatchNorm()
    Sequential([layer], (3,))
    with pytest.raises(ValueError, match="empty batch"):
        layer.forward(np.zeros((0, 3), np.float32), training=True)


def test_a_pool_may_be_as_large_as_the_image(random):
    model = Sequential([MaxPool2D((3, 2))], (3, 2, 4), dtype=np.float64)
    x = random.normal(size=(2, 3, 2, 4))
    np.testing.assert_array_equal(model.layers[0].forward(x), x.max(axis=(1, 2), keepdims=True))
    for shape in ((2, 2, 4), (3, 1, 4), (12,)):
        with pytest.raises(ValueError, match=r"MaxPool2D|maxpool2d"):
            Sequential([MaxPool2D((3, 2))], shape)


def test_relu_stays_shut_at_zero():
    layer = ReLU()
    layer.forward(np.array([-1.0, 0.0, 1.0]), training=True)
    np.testing.assert_array_equal(layer.backward(np.ones(3)), [0, 0, 1])


def test_normalize_gives_images_without_channels_one(random):
    model = Sequential([Normalize(0.25, 0.5), Conv2D(2, 3)], (6, 5))
    assert model.output_shapes == [(6, 5, 1), (4, 3, 2)]
    assert model.forward(random.integers(0, 256, (3, 6, 5), np.uint8)).shape == (3, 4, 3, 2)


@pytest.mark.parametrize("like", [lambda g: np.asfortranarray(g), lambda g: g.astype(np.float64), lambda g: g[::-1]])
def test_a_gradient_is_filled_whatever_array_it_is(like, random):
    """Dense writes into it at once if it can."""
    model = Sequential([Dense(3)], (4,))
    x, dy, weight = random.normal(size=(5, 4)).astype(np.float32), np.ones((5, 3), np.float32), model.layers[0].weight
    model.forward(x, training=True)
    model.backward(dy)
    expected, weight.grad = weight.grad, like(np.zeros_like(weight.grad))
    model.backward(dy)
    np.testing.assert_array_equal(weight.grad, expected)
    weight.grad = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"dense_1\.weight has shape \(2, 3\), but needs \(4, 3\)"):
        model.backward(dy)
    with pytest.raises(ValueError, match="broadcast"):
        model.parameter_gradients(dy)


def test_running_statistics_are_checked(random):
    layer = BatchNorm()
    Sequential([layer], (40,))
    x, whole = random.normal(size=(5, 40)).astype(np.float32), np.full(40, 7, np.float32)
    for training in (False, True):
        for wrong in (whole[:1], np.zeros(41), 0.0):
            layer.running_mean = wrong
            with pytest.raises(ValueError, match=r"batchnorm_1: running_mean and .* must have shape \(40,\)"):
                layer.forward(x, training)
    np.testing.assert_array_equal(whole, 7)
    layer.running_mean = kept = np.zeros(80)[::2]  # in another dtype, and not contiguous
    layer.forward(x, training=True)
    np.testing.assert_allclose(kept, 0.1 * x.mean(axis=0), rtol=1e-5)
    assert layer.running_mean is kept


def test_a_frozen_batch_norm_takes_an_empty_batch():
    layer = BatchNorm()
    layer.build((3,), np.random.default_rng(0), np.float32, 1.0)
    layer.frozen = True
    assert layer.backward(layer.forward(np.zeros((0, 3)), training=True)).shape == (0, 3)
    np.testing.assert_array_equal([layer.gamma.grad, layer.beta.grad], np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f4", bool, np.int64, object])
@pytest.mark.parametrize("count", [3, 5000])  # on one core, and shared out
def test_flatten_takes_any_dtype(dtype, count):
    x = (np.arange(count * 60) % 7).reshape(count, 5, 4, 3).astype(dtype)
    layer = Flatten()
    y = layer.forward(x, training=True)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x.reshape(count, 60))
    np.testing.assert_array_equal(layer.backward(y), x)
    assert not np.shares_memory(x, y)


@pytest.mark.parametrize("stride", [(4, 4), (40, 40), (1, 1)])
def test_a_pool_that_changed_goes_back_as_it_came(stride, random):
    """Else its kernel would write beyond the array."""
    x, dy = random.normal(size=(3, 8, 8, 5)), random.normal(size=(3, 4, 4, 5))
    layer, other = MaxPool2D(2), MaxPool2D(2)
    for pool in (layer, other):
        pool.forward(x, training=True)
    other.pool_size, other.stride = (4, 4), stride
    np.testing.assert_array_equal(other.backward(dy), layer.backward(dy))


@pytest.mark.parametrize("layer", [ReLU, lambda: MaxPool2D(2), lambda: Dropout(0.5), GlobalAveragePool2D])
def test_a_layer_without_a_model_computes_in_floats(layer):
    """Also GlobalAveragePool2D, though a float16 could hold the mean, but not the sum before it."""
    x = np.full((1, 40, 40, 1), 100)
    for dtype in (np.float16, ">f4", ">f8", bool, np.uint8, np.int64, np.float32, np.float64):
        alone = layer()
        y = alone.forward(x.astype(dtype), training=True)
        assert y.dtype in (np.float32, np.float64)
        expected = layer().forward(x.astype(dtype).astype(np.float64), training=True)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        dx = alone.backward(np.ones(y.shape, dtype))
        assert dx.dtype in (np.float32, np.float64)
        np.testing.assert_allclose(dx, alone.backward(np.ones(y.shape)), rtol=1e-6)
    for dtype in (complex, object, "U3"):
        with pytest.raises(ValueError, match="can't hold"):
            layer().forward(x.astype(dtype))


@pytest.mark.parametrize("count", [3, 300])
def test_normalize_is_its_formula(count, random):
    images = random.integers(0, 256, size=(count, 28, 28, 3), dtype=np.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    model = Sequential([Normalize(mean, std)], (28, 28, 3), dtype=np.float64)
    np.testing.assert_allclose(model.forward(images), (images / 255 - mean) / std, rtol=1e-14)


def test_two_dropouts_of_a_model_drop_other_numbers():
    layers = [Dropout(0.5), Dropout(0.5)]
    Sequential(layers, (40,))
    first, second = (layer.forward(np.ones((30, 40), np.float32), training=True) for layer in layers)
    assert (first != second).any()
