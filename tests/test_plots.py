"""The picture of a training: what is drawn is what was given."""

import numpy as np
import pytest

from tinycnn import plots


def rows(epochs: int, validation: bool) -> list[dict]:
    return [
        {
            "epoch": e,
            "train_loss": 1 / e,
            "train_accuracy": 1 - 0.1 / e,
            "validation_loss": 2 / e if validation else None,
            "validation_accuracy": 1 - 0.2 / e if validation else None,
        }
        for e in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("epochs", [1, 4])
def test_training(tmp_path, random, validation, epochs):
    weights = random.normal(size=(5, 4, 3, 17))
    figure = plots.training(rows(epochs, validation), weights)
    loss, accuracy, filters, _ = figure.axes
    assert [axes.get_title() for axes in (loss, accuracy)] == ["Loss by epoch", "Accuracy by epoch"]
    assert [line.get_label() for line in loss.lines] == (["train", "validation"] if validation else ["train"])
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(e, 1 / e) for e in range(1, epochs + 1)])
    np.testing.assert_allclose(accuracy.lines[-1].get_ydata()[0], 0.8 if validation else 0.9)
    image = filters.images[0]
    mosaic = image.get_array().filled(np.nan)  # 17 filters of 5 × 4 in rows of 5, with a gap of one after each
    assert mosaic.shape == (4 * 6, 5 * 5)
    np.testing.assert_allclose(mosaic[18:23, 5:9], weights[..., 16].mean(axis=2))
    assert np.isnan(mosaic[5]).all()
    assert np.isnan(mosaic[18:, 10:]).all()
    assert image.get_clim()[0] == -image.get_clim()[1]
    plots.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_growth(tmp_path):
    points = [{"value": v, "seconds": 0.001 * v, "multiply_adds": 10 * v} for v in (1, 2, 4)]
    threads = [{"value": v, "seconds": 0.006 / v} for v in (1, 2)]
    figure = plots.growth({"batch": points, "threads": threads})
    batch, by_threads = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["A step by batch", "A step by threads"]
    np.testing.assert_allclose(batch.lines[0].get_xydata(), [(1, 1), (2, 2), (4, 4)])
    np.testing.assert_allclose(batch.lines[1].get_ydata(), [1, 2, 4])  # as the arithmetic
    np.testing.assert_allclose(by_threads.lines[1].get_ydata(), [6, 3])  # shared out evenly
    plots.save(figure, tmp_path / "a.png")
