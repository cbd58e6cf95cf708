"""What a training leaves in its directory: the model, the history, the pictures.

What this file is not: the checkpoint, which a training leaves for itself (`tinycnn/checkpoint.py`).
"""

import csv
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from tinycnn.averaging import WeightAverage
from tinycnn.explain import feature_maps, saliency
from tinycnn.files import replacing
from tinycnn.metrics import confusion_matrix
from tinycnn.model import Sequential
from tinycnn.training import COLUMNS

PICTURES = [f"{name}.png" for name in ("training", "learning_curves", "filters", "augmented")]
PICTURES += [f"{name}.png" for name in ("confusion", "mistakes", "predictions", "feature_maps", "saliency")]
COPIES = 64  # of the image that is looked into: as many as most trainings have in a batch, see `feature_maps`


def writable_directory(path: Path) -> Path:
    """The directory, made if need be. Finding out after the training that it can't be written would be too late."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"can't write to {path}: {error}") from error
    for file in (path / name for name in ("model.npz", "checkpoint.npz", "history.csv", "metrics.json", *PICTURES)):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise ValueError(f"can't write to {file}: it is there, and not a file that may be replaced")
    return path


def write_results(out: Path, model: Sequential, average: WeightAverage | None, history: list[dict]) -> None:
    """model.npz, with the average of its weights if there is one, and history.csv.

    What an earlier run has left of other results does not fit them, and goes.
    """
    with average.swapped() if average else nullcontext():
        model.save(out / "model.npz")
    write_rows(out / "history.csv", COLUMNS, history)
    for of_an_earlier_run in ("metrics.json", *PICTURES):
        (out / of_an_earlier_run).unlink(missing_ok=True)


def write_rows(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """A CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([row[name] for name in columns] for row in rows)])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def draw_training(
    out: Path,
    history: list[dict],
    model: Sequential,
    start: np.ndarray,
    samples: np.ndarray,
    augment: Callable[[np.ndarray], np.ndarray] | None,
) -> None:
    """training.png, learning_curves.png, filters.png and augmented.png. start: the first weights before training."""
    from tinycnn import plots  # not before it is needed: Matplotlib takes as long to load as everything else together

    weights = model.parameters()[0].value
    plots.save(plots.learning_curves(history), out / "learning_curves.png")
    if weights.ndim == 4:
        plots.save(plots.training(history, weights), out / "training.png")
        plots.save(plots.filters(weights, start), out / "filters.png")
    changed = np.stack([augment(samples) if augment else samples for _ in range(7)], axis=1)
    plots.save(plots.augmented(samples, changed), out / "augmented.png")


def draw_test(out: Path, model: Sequential, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """confusion.png, mistakes.png, predictions.png, feature_maps.png and saliency.png.

    probabilities: of the model, or of several together. The last two pictures are the model's own.
    """
    from tinycnn import plots

    guesses = probabilities.argmax(axis=1)
    plots.save(plots.confusion(confusion_matrix(labels, guesses, probabilities.shape[1])), out / "confusion.png")
    plots.save(plots.mistakes(images, labels, probabilities), out / "mistakes.png")
    first = slice(0, 32)
    title = f"The first {len(images[first])} test images"
    plots.save(plots.predictions(images[first], labels[first], probabilities[first], title), out / "predictions.png")
    grey = images[0].reshape(*images.shape[1:3], -1).mean(axis=2)
    plots.save(plots.feature_maps(grey, feature_maps(model, images[0], COPIES)), out / "feature_maps.png")
    own = model.predict_proba(np.repeat(images[:1], COPIES, axis=0))[0]
    guess = int(own.argmax())
    gradient = saliency(model, images[0], guess, COPIES).reshape(*images.shape[1:3], -1).sum(axis=2)
    plots.save(plots.saliency(grey, gradient, guess, own[guess]), out / "saliency.png")
