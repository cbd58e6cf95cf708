"""What the page is answered, asked of the Studio itself: each number is what its name says."""

import json

import numpy as np
import pytest
from drawn_seven import SEVEN

from tinycnn import Conv2D, Dense, Flatten, GlobalAveragePool2D, MaxPool2D, Normalize, ReLU, Sequential
from tinycnn.studio import Studio
from tinycnn.trained import TRAINED

DRAWN = {"ink": SEVEN.tolist()}


def test_a_network_without_flatten_is_looked_into_and_taught():
    layers = [Normalize(0.1, 0.3), Conv2D(4, 5), MaxPool2D(2), ReLU(), Conv2D(10, 3), GlobalAveragePool2D()]
    studio = Studio(Sequential(layers, (28, 28, 1), seed=2))
    about = json.loads(json.dumps(studio.describe({})))["layers"]
    assert about[-1] == {"name": "globalaveragepool2d_6", "shape": [10]}  # sees all: no step from feature to feature
    assert about[-2]["sees"] == {"start": [0, 0], "step": [2, 2], "size": [10, 10]}
    ink = np.zeros((56, 56), int)
    ink[10:46, 24:32] = 255
    question = {"ink": ink.tolist(), "label": 4, "maps": True, "saliency": 4}
    taught = json.loads(json.dumps(studio.teach(question)))
    assert [m["shape"] for m in taught["maps"]] == [layer["shape"] for layer in about]
    assert np.shape(taught["saliency"]["gradient"]) == (28, 28)
    assert np.abs(taught["saliency"]["gradient"]).max() == 1
    assert taught["course"][-1]["probabilities"][4] > taught["course"][0]["probabilities"][4]


@pytest.fixture
def studio():
    """Each of its test images is of the grey that its label says."""
    images = np.stack([np.full((28, 28), label, np.uint8) for label in range(10)])
    return Studio(Sequential.load(TRAINED), (images, np.arange(10)))


def test_saliency_is_of_the_class_that_was_asked_for(studio):
    maps = [studio.look({**DRAWN, "saliency": wanted})["saliency"] for wanted in (0, 3, 7, True)]
    assert [m["label"] for m in maps] == [0, 3, 7, 7]
    assert maps[2] == maps[3]
    zero, three, seven = (m["gradient"] for m in maps[:3])
    assert zero != three != seven != zero


def test_a_test_image_comes_with_its_own_label(studio):
    samples = [studio.sample({}) for _ in range(200)]
    assert all(np.unique(sample["ink"]).tolist() == [sample["label"]] for sample in samples)
    assert {sample["label"] for sample in samples} == set(range(10))


def test_teaching_stops_when_the_label_is_nearly_certain(studio):
    studio.rate = 0.003  # so that it takes some steps
    course = studio.teach({**DRAWN, "label": 4, "steps": 50})["course"]
    *before, last = [step["probabilities"][4] for step in course]
    assert before
    assert max(before) <= 0.9 < last


def test_the_course_shows_what_each_step_has_changed(studio):
    question = {**DRAWN, "label": 4, "steps": 1}
    taught = studio.teach(question)
    assert taught["course"][-1]["probabilities"] == taught["probabilities"]


def test_teaching_leaves_the_loaded_network(studio):
    question = {**DRAWN, "label": 4, "steps": 3}
    before = studio.look(question)
    studio.teach(question)
    assert studio.look(question) != before
    studio.reset({})
    assert studio.look(question) == before


def test_the_first_convolutions_numbers_are_its_own():
    model = Sequential([Normalize(0.1, 0.3), Conv2D(2, (3, 5)), Flatten(), Dense(10)], (28, 28, 1))
    model.layers[1].bias.value[:] = 1, 2
    first = Studio(model).describe({})["first"]
    assert first["layer"] == 1
    np.testing.assert_allclose(first["weights"], model.layers[1].weight.value, atol=1e-5)
    assert first["bias"] == [1, 2]
