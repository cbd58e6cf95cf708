"""What a recipe is made into before training: the data's parts, the statistics of the pixels, optimizer, schedule."""

import numpy as np
import pytest

from tinycnn import Sequential
from tinycnn.preparation import change, make_optimizer, make_schedule, pixel_statistics, split
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
