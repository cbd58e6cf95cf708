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
    loss, accuracy, *filters = figure.axes
    assert [axes.get_title() for axes in (loss, accuracy)] == ["Loss by epoch", "Accuracy by epoch"]
    assert [line.get_label() for line in loss.lines] == (["train", "validation"] if validation else ["train"])
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(e, 1 / e) for e in range(1, epochs + 1)])
    np.testing.assert_allclose(accuracy.lines[-1].get_ydata()[0], 0.8 if validation else 0.9)
    images = [axes.images[0].get_array() for axes in filters if axes.images]
    assert len(images) == 17
    np.testing.assert_allclose(images[16], weights[..., 16].mean(axis=2))
    assert all(axes.images[0].get_clim()[0] == -axes.images[0].get_clim()[1] for axes in filters if axes.images)
    plots.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
