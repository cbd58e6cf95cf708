"""What a recipe is made into before training: the data's parts, the statistics of the pixels, optimizer, schedule."""

from dataclasses import replace

import numpy as np
import pytest
from small_mnist import noise

from tinycnn import Sequential
from tinycnn.augment import Distortion, random_distortion, random_shift
from tinycnn.preparation import (
    change,
    identity,
    make_augmentation,
    make_model,
    make_optimizer,
    make_schedule,
    pixel_statistics,
    split,
)
from tinycnn.presets import PRESETS, Recipe


def test_split():
    arrays = [np.arange(10), np.arange(10) + 100]
    data = (tuple(arrays), ("test images", "test labels"))
    train_set, held_out, test = split(data, validation=3, limit=4)
    assert train_set[0].tolist() == [0, 1, 2, 3]
    assert held_out[0].tolist() == [7, 8, 9]
    assert held_out[1].tolist() == [107, 108, 109]
    assert test == ("test images", "test labels")
    assert split(data, 0, None)[1] is None
    assert len(split(data, 0, 99)[0][0]) == 10


def test_another_optimizer_does_not_inherit_the_weight_decay():
    recipe = PRESETS["standard"](10)
    assert change(recipe, {"optimizer": "sgd"}).weight_decay == 0
    assert change(recipe, {"optimizer": "sgd", "weight_decay": 0.1}).weight_decay == 0.1
    assert change(recipe, {"optimizer": "adam"}).weight_decay == recipe.weight_decay > 0


def test_momentum_is_refused_where_it_would_do_nothing():
    recipe = PRESETS["standard"](10)
    assert change(recipe, {"optimizer": "sgd", "momentum": 0.5}).momentum == 0.5
    with pytest.raises(ValueError, match="momentum is of the optimizer sgd"):
        change(recipe, {"momentum": 0.5})


def test_optimizer_and_schedule_follow_the_recipe():
    model = Sequential(PRESETS["classic"](3).layers, (12, 12, 1))
    recipe = Recipe(
        [], epochs=3, batch_size=1, learning_rate=0.2, momentum=0.7, weight_decay=0.01, beta1=0.6, beta2=0.8
    )
    adam = make_optimizer(recipe, model)
    assert (adam.learning_rate, adam.beta1, adam.beta2, adam.weight_decay) == (0.2, 0.6, 0.8, 0.01)
    sgd = make_optimizer(Recipe([], 3, 1, 0.2, optimizer="sgd", momentum=0.7, weight_decay=0.01), model)
    assert (sgd.learning_rate, sgd.momentum, sgd.weight_decay) == (0.2, 0.7, 0.01)
    rates = {}
    for name in ("constant", "step", "cosine", "one-cycle"):
        schedule = make_schedule(Recipe([], 3, 1, 0.2, schedule=name), steps_an_epoch=100)
        rates[name] = [round(schedule(s), 4) for s in (0, 90, 150, 299)]
    assert rates == {
        "constant": [0.2, 0.2, 0.2, 0.2],
        "step": [0.2, 0.2, 0.02, 0.002],
        "cosine": [0.2, 0.1588, 0.1, 0.0],
        "one-cycle": [0.02, 0.2, 0.1623, 0.0],
    }
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        make_schedule(Recipe([], 1, 1, 0.1, schedule="linear"), 1)
    with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
        make_optimizer(Recipe([], 1, 1, 0.1, optimizer="lion"), model)


def test_pixel_statistics(random):
    images = random.integers(0, 256, size=(2500, 3, 4), dtype=np.uint8)
    mean, std = pixel_statistics(images)
    assert mean == pytest.approx(images.mean() / 255, rel=1e-6)
    assert std == pytest.approx(images.std() / 255, rel=1e-6)
    assert pixel_statistics(np.zeros((0, 3, 3), np.uint8)) == (0, 1)
    for grey in range(256):
        assert pixel_statistics(np.full((2, 3, 3), grey, np.uint8)) == (pytest.approx(grey / 255), 1)


@pytest.mark.parametrize("images", [[[1e6, 1e6 + 50]], [[60000, 60001]], [[0, 1e-30]]])
def test_pixel_statistics_far_from_a_bytes(images):
    images = np.array(images, np.float64)
    assert pixel_statistics(images) == pytest.approx((images.mean() / 255, images.std() / 255), rel=1e-3, abs=0)


def test_a_network_begins_with_the_statistics_of_its_images(random):
    images = random.integers(0, 100, (9, 28, 28), np.uint8)
    first = make_model(PRESETS["fast"](10), images, seed=0).layers[0]
    assert (first.mean, first.std) == pixel_statistics(images)
    assert first.mean != first.std


def test_images_are_shifted_and_distorted_as_the_recipe_says(random):
    images = random.integers(1, 256, (200, 9, 9), np.uint8)
    recipe = Recipe([], epochs=1, batch_size=1, learning_rate=0.1, shift=2)
    shifted = make_augmentation(recipe, np.random.default_rng(3))(images)
    np.testing.assert_array_equal(shifted, random_shift(images, 2, np.random.default_rng(3)))
    both = replace(recipe, distortion=Distortion(rotation=20))
    generator = np.random.default_rng(3)
    expected = random_distortion(random_shift(images, 2, generator), both.distortion, generator)
    np.testing.assert_array_equal(make_augmentation(both, np.random.default_rng(3))(images), expected)
    assert make_augmentation(replace(recipe, shift=0), random) is None


def test_every_array_and_every_layer_is_part_of_a_trainings_identity(random):
    recipe = PRESETS["fast"](10)
    model = make_model(recipe, np.zeros((3, 28, 28), np.uint8), seed=0)
    arrays = noise(6, 4, size=(28, 28))
    known = identity(recipe, model, (arrays[:2], arrays[2:]))
    for k, name in enumerate(("training images", "training labels", "test images", "test labels")):
        changed = [array.copy() for array in arrays]
        changed[k].flat[-1] ^= 1
        now = identity(recipe, model, (changed[:2], changed[2:]))
        assert [key for key in known if known[key] != now[key]] == [name]
    model.layers[1].filters += 1
    now = identity(recipe, model, (arrays[:2], arrays[2:]))
    assert [key for key in known if known[key] != now[key]] == ["layer 2"]
