"""The presets: the networks they are said to be, and that each learns real digits."""

import re
from pathlib import Path

import numpy as np
import pytest

from tinycnn import load_mnist
from tinycnn.experiment import Settings, run
from tinycnn.preparation import make_model
from tinycnn.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("standard", 43_194, 2_526_208),
        ("fast", 215_194, 1_244_160),
        # 320 + 18,496 + 1600 · 128 + 128 + 1,290
        ("classic", 225_034, 26 * 26 * 32 * 9 + 11 * 11 * 64 * 288 + 1600 * 128 + 1280),
        # LeNet-5: 156 + 2,416 + 48,120 + 10,164 + 850
        ("lenet", 61_706, 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 840),
        # convolutions 72 + 576 + 1,152 + 2,304 + 2,304, batch normalisation 2 · (8 + 8 + 16 + 16 + 16), dense 1,450
        ("small", 7_986, 798_912),
        # 1 → 16 → 32 channels on 26×26 and 24×24, → 64 → 64 on 12×12, → 64 on 10×10, → 96 on 5×5, → 96; dense 864 → 10
        (
            "best",
            244_666,
            9 * (676 * 16 + 576 * 512 + 144 * (2048 + 4096) + 100 * 4096 + 25 * 6144 + 9 * 9216) + 8_640,
        ),
    ],
)
def test_size(name, parameters, multiply_adds):
    images = load_mnist()[0][0][:10]
    model = make_model(PRESETS[name](10), images, seed=0)
    assert sum(p.value.size for p in model.parameters()) == parameters
    assert sum(layer.multiply_adds() for layer in model.layers) == multiply_adds
    assert model.predict(images).shape == (10,)  # raw images: every preset begins with Normalize
    assert model.output_shapes[-1] == (10,)


def test_classes_and_recipes_are_new_each_time():
    for make in PRESETS.values():
        assert make(7).layers[-1].units == 7
        assert make(7).layers[0] is not make(7).layers[0]


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [("standard", 0.93), ("fast", 0.88), ("classic", 0.8), ("lenet", 0.9), ("small", 0.8), ("best", 0.9)],
)
def test_every_preset_learns_real_digits(tmp_path, name, accuracy):
    """6,000 of the images, one epoch or two: far from what it can do, far above what it could without learning."""
    changes = {"epochs": 2 if name in ("classic", "lenet") else 1}
    changes |= {"batch_size": 100} if name == "classic" else {}
    metrics = run(Settings(name, changes, limit=6000, out=tmp_path), say=lambda line: None, progress=False)
    assert metrics["test_accuracy"] > accuracy


def test_the_table_of_results_names_the_presets_as_they_are():
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) \| ([\d,]+) \| (\d+) \|", readme, re.MULTILINE)
    shown = {name: tuple(int(n.replace(",", "")) for n in numbers) for name, *numbers in rows}
    actual = {}
    for name, make in PRESETS.items():
        recipe = make(10)
        model = make_model(recipe, np.zeros((1, 28, 28), np.uint8), seed=0)
        sizes = sum(p.value.size for p in model.parameters()), sum(layer.multiply_adds() for layer in model.layers)
        actual[name] = (*sizes, recipe.epochs)
    assert shown == actual
    assert (PRESETS["classic"](10).batch_size, PRESETS["lenet"](10).optimizer) == (1313, "sgd")
    printed = readme.split("prints:\n\n")[1].split("    epoch 1/5")[0]
    summary = make_model(PRESETS["standard"](10), np.zeros((1, 28, 28), np.uint8), seed=0).summary()
    assert [line[4:] for line in printed.splitlines()] == summary.splitlines()
