"""What a training leaves in its directory is of this training: the figures, and each picture."""

import numpy as np
import pytest
from small_mnist import noise, write_files

from tinycnn import Sequential, load_mnist, plots
from tinycnn.experiment import Settings, run
from tinycnn.explain import saliency
from tinycnn.metrics import cross_entropy
from tinycnn.preparation import make_model
from tinycnn.presets import PRESETS
from tinycnn.results import draw_test


def test_the_figures_are_those_of_the_model_that_is_kept(tmp_path):
    """Also where that is an average, which the last step's weights are not."""
    write_files(tmp_path / "data", noise(20, 10, size=(28, 28)))
    changes = {"epochs": 1, "batch_size": 5, "averaging": 0.5}
    metrics = run(Settings("small", changes, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
    _, (images, labels) = load_mnist(tmp_path / "data")
    probabilities = Sequential.load(tmp_path / "model.npz").predict_proba(images)
    assert metrics["test_loss"] == pytest.approx(cross_entropy(labels, probabilities), rel=1e-6)


def test_what_is_drawn_is_of_this_training(tmp_path, monkeypatch):
    """Each picture gets the numbers that its name says."""
    arrays = noise(200, 50, size=(28, 28))
    write_files(tmp_path / "data", arrays)
    given = {}
    names = ("learning_curves", "training", "filters", "augmented", "confusion", "mistakes", "predictions", "saliency")
    for name in names:
        draw = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *a, name=name, draw=draw: given.update({name: a}) or draw(*a))
    run(Settings("fast", {"epochs": 1, "batch_size": 100}, data_dir=tmp_path / "data", out=tmp_path), print, False)
    images, labels = arrays[2:]
    model = Sequential.load(tmp_path / "model.npz")
    p = model.predict_proba(images)
    guesses, kernel = p.argmax(axis=1), model.parameters()[0].value
    assert (guesses != labels).any()
    assert guesses[0] != 0
    start = make_model(PRESETS["fast"](3), arrays[0], seed=0).parameters()[0].value
    for drawn, wanted in zip(given["filters"], (kernel, start), strict=True):
        np.testing.assert_array_equal(drawn, wanted)
    originals, changed = given["augmented"]
    np.testing.assert_array_equal(originals, arrays[0][:6])
    assert all((changed[:, k] != originals).any() for k in range(7))
    matrix = given["confusion"][0]
    assert matrix.sum(axis=1).tolist() == np.bincount(labels).tolist()
    for name, count in (("mistakes", 50), ("predictions", 32)):
        for drawn, wanted in zip(given[name][:3], (images, labels, p), strict=True):
            np.testing.assert_allclose(drawn, wanted[:count], rtol=1e-5, atol=1e-7)
    assert given["saliency"][2] == guesses[0]
    np.testing.assert_allclose(given["saliency"][1], saliency(model, images[0], int(guesses[0])), rtol=1e-3, atol=1e-6)
    draw_test(tmp_path, model, images, labels, np.roll(p, 1, axis=1))  # as several models together may see it
    assert given["saliency"][2] == guesses[0]
    assert given["saliency"][3] == pytest.approx(p[0].max(), rel=1e-5)
