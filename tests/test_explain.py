"""Looking into a network: maps are outputs, saliency is a derivative, fields hold just the pixels that act."""

import numpy as np
import pytest

from tinycnn import (
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    MaxPool2D,
    Normalize,
    ReLU,
    Sequential,
)
from tinycnn.explain import feature_maps, for_looking, receptive_field, saliency


@pytest.fixture(params=[Flatten, GlobalAveragePool2D])
def model(random, request):
    layers = [
        Normalize(0.2, 0.4),
        Conv2D(3, (3, 2), stride=(2, 1), padding=(1, 0)),
        BatchNorm(),
        ReLU(),
        MaxPool2D(2),
        Conv2D(2, 2),
        request.param(),
        Dropout(0.5),
        Dense(4),
    ]
    model = Sequential(layers, (11, 9, 1), dtype=np.float64)
    for _ in range(3):
        model.forward(random.uniform(0, 255, size=(8, 11, 9)), training=True)
    return model


def test_looking_computes_what_inference_computes_and_changes_nothing(model, random):
    x = random.uniform(0, 255, size=(5, 11, 9))
    before = [array.copy() for _, array in model.state()]
    looking = for_looking(model)
    np.testing.assert_allclose(looking.forward(x, training=True), model.forward(x), rtol=1e-13)
    for (_, after), old in zip(looking.state(), before, strict=True):
        np.testing.assert_array_equal(after, old)
    assert not model.layers[2].frozen
    assert model.layers[7].rate == 0.5


def test_feature_maps_are_the_outputs_of_the_layers(model, random):
    x = random.uniform(0, 255, size=(11, 9))
    maps = feature_maps(model, x)
    assert [name for name, _ in maps] == [layer.name for layer in model.layers]
    assert [m.shape for _, m in maps] == model.output_shapes
    np.testing.assert_array_equal(maps[-1][1], model.forward(x[None])[0])
    for (name, one), (_, of_five) in zip(maps, feature_maps(model, x, copies=5), strict=True):
        np.testing.assert_allclose(of_five, one, rtol=1e-12, atol=1e-12, err_msg=name)


def test_saliency_is_the_derivative_of_the_logit(model, random):
    x = random.uniform(0, 255, size=(11, 9))
    gradient = saliency(model, x, 2)
    assert gradient.shape == (11, 9)
    np.testing.assert_allclose(saliency(model, x, 2, copies=5), gradient, rtol=1e-12, atol=1e-12)
    for i, j in [(0, 0), (5, 4), (10, 8), (3, 7)]:
        step = np.zeros_like(x)
        step[i, j] = 1e-4
        slope = (model.forward((x + step)[None]) - model.forward((x - step)[None]))[0, 2] / 2e-4
        assert gradient[i, j] == pytest.approx(slope, rel=1e-6, abs=1e-10)
    with pytest.raises(ValueError, match="label 4 is outside"):
        saliency(model, x, 4)


def test_a_receptive_field_holds_exactly_the_pixels_that_can_act(model):
    """With weights above 0 and every ReLU open a much brighter pixel changes the output if, and only if, it is seen."""
    for number, shape in enumerate(model.output_shapes):
        if len(shape) != 3:
            assert receptive_field(model, number, 0, 0) == (0, 0, 11, 9)
            continue
        for i, j in {(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, 0)}:
            touched = np.zeros((11, 9), bool)
            for pixel in np.ndindex(11, 9):
                a, b = (np.full((1, 11, 9), 60.0) for _ in range(2))
                b[(0, *pixel)] = 1e6
                for layer in model.layers[: number + 1]:
                    open_layer = layer if not isinstance(layer, ReLU) else None
                    if isinstance(layer, Conv2D):
                        layer.weight.value[...] = np.abs(layer.weight.value) + 0.1
                    a, b = (open_layer.forward(v) if open_layer else v for v in (a, b))
                touched[pixel] = (a[0, i, j] != b[0, i, j]).any()
            top, left, bottom, right = receptive_field(model, number, i, j)
            expected = np.zeros((11, 9), bool)
            expected[top:bottom, left:right] = True
            np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize(
    ("layers", "place", "rows"),
    [  # worked out by hand: padding shows none of the image, in the middle as well
        ([Conv2D(1, 3, padding=1)], 13, (12, 14)),
        ([Conv2D(1, 3, stride=2, padding=1), Conv2D(1, 3, padding=1)], 0, (0, 4)),
        ([Conv2D(1, 1, stride=3), Conv2D(1, 2, padding=1)], 5, (12, 13)),  # row 13 is seen by nobody
        ([Conv2D(1, 2), MaxPool2D(1, stride=4), Conv2D(1, 3, padding=2)], 5, (12, 14)),
        ([Conv2D(1, 2), MaxPool2D(1, stride=4), Conv2D(1, 3, padding=2)], 4, (8, 14)),
        ([Conv2D(1, 3), Conv2D(1, 1, padding=(1, 0))], 0, (0, 0)),
        ([Conv2D(1, 3), Conv2D(1, 1, padding=(0, 1))], 0, (0, 0)),
    ],
)
def test_padding_shows_nothing(layers, place, rows):
    model = Sequential(layers, (14, 14, 1))
    top, left, bottom, right = receptive_field(model, len(layers) - 1, place, place)
    assert ((top, bottom), (left, right)) == (rows, rows)


def test_the_receptive_field_of_an_output_that_sees_only_padding_is_empty():
    model = Sequential([Conv2D(1, 1, padding=2)], (3, 4, 1))
    assert receptive_field(model, 0, 0, 0) == (0, 0, 0, 0)
    assert receptive_field(model, 0, 2, 2) == (0, 0, 1, 1)
    assert receptive_field(model, 0, 6, 7) == (0, 0, 0, 0)
