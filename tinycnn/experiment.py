"""The main job: from data and a preset to a trained model, its history and its figures in a directory.

`scripts/train_mnist.py` is the command line of this file. What this file is not: the loop itself is in
`tinycnn/training.py`, the networks are in `tinycnn/presets.py`.
"""

import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np

from tinycnn.augment import random_shift
from tinycnn.explain import feature_maps, saliency
from tinycnn.kernels.memory import give_back
from tinycnn.metrics import confusion_matrix, cross_entropy
from tinycnn.mnist import Data, load_mnist
from tinycnn.model import Sequential
from tinycnn.more_layers import Normalize
from tinycnn.optim import SGD, Adam
from tinycnn.presets import PRESETS, Recipe
from tinycnn.schedules import Schedule, constant, cosine, one_cycle, step_decay
from tinycnn.training import COLUMNS, check_data, train

PICTURES = [f"{name}.png" for name in ("training", "learning_curves", "filters", "augmented")]
PICTURES += [f"{name}.png" for name in ("confusion", "mistakes", "predictions", "feature_maps", "saliency")]
ImagesAndLabels = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """What to run. `changes` replaces numbers of the preset's Recipe, under their names there."""

    preset: str = "standard"
    changes: dict = field(default_factory=dict)
    seed: int = 0
    validation: int = 0  # so many of the last training images are held out and reported on
    limit: int | None = None  # train on the first so many of the others only
    data_dir: str | Path | None = None
    out: str | Path | None = None  # default: runs/<preset>
    mirrors: Sequence[str] | None = None  # to download from; default: as `load_mnist`


def run(settings: Settings, say: Callable[[str], None] = print, progress: bool = True) -> dict:
    """Train as the settings say; write model.npz, history.csv, metrics.json and the PICTURES; return the metrics.

    Raises ValueError or FileNotFoundError, before any training, for settings or data that can't work; and
    TrainingDiverged, after which model.npz and history.csv are those of the last whole epoch.
    """
    started = time.perf_counter()
    recipe_of = _preset(settings.preset)
    out = _writable_directory(Path(settings.out or f"runs/{settings.preset}"))
    data = load_mnist(settings.data_dir, settings.mirrors)
    classes = count_classes(data)
    train_set, validation_set, test_set = split(data, settings.validation, settings.limit)

    recipe = change(recipe_of(classes), settings.changes)
    model = make_model(recipe, train_set[0], settings.seed)
    optimizer = make_optimizer(recipe, model)
    first_weights = model.parameters()[0].value.copy()
    schedule = make_schedule(recipe, steps_an_epoch=ceil(len(train_set[0]) / recipe.batch_size))
    say(model.summary())
    shuffling, shifting = (np.random.default_rng([settings.seed, stream]) for stream in (1, 2))
    history = []

    def after_epoch(row: dict) -> None:
        history.append(row)
        model.save(out / "model.npz")
        for of_an_earlier_run in ("metrics.json", *PICTURES):
            (out / of_an_earlier_run).unlink(missing_ok=True)
        write_history(out / "history.csv", history)
        say(_line(row, recipe.epochs))

    training_started = time.perf_counter()
    train(
        model,
        optimizer,
        schedule,
        *train_set,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        generator=shuffling,
        augment=(lambda images: random_shift(images, recipe.shift, shifting)) if recipe.shift else None,
        validation=validation_set,
        after_epoch=after_epoch,
        progress=progress,
    )
    seconds_training = time.perf_counter() - training_started

    probabilities = model.predict_proba(test_set[0])
    test_loss = cross_entropy(test_set[1], probabilities)
    test_accuracy = float((probabilities.argmax(axis=1) == test_set[1]).mean())
    images = recipe.epochs * len(train_set[0])
    samples = train_set[0][:6].copy()
    # Drawing needs memory as well: away with the images, and with all that the layers and the optimizer remember.
    del data, train_set, validation_set, optimizer
    model = Sequential.load(out / "model.npz") if history else model
    give_back()
    draw_training(out, history, model, first_weights, samples, recipe.shift)
    draw_test(out, model, *test_set, probabilities)
    metrics = {
        "preset": settings.preset,
        "seed": settings.seed,
        "epochs": recipe.epochs,
        "parameters": sum(p.value.size for p in model.parameters()),
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "train_accuracy": history[-1]["train_accuracy"],
        "validation_accuracy": history[-1]["validation_accuracy"],
        "seconds_total": time.perf_counter() - started,
        "seconds_training": seconds_training,
        "images_per_second": images / sum(row["seconds"] for row in history),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def draw_training(out: Path, history: list[dict], model, start: np.ndarray, samples: np.ndarray, shift: int) -> None:
    """training.png, learning_curves.png, filters.png and augmented.png. start: the first weights before training."""
    from tinycnn import plots  # not before it is needed: Matplotlib takes as long to load as everything else together

    weights = model.parameters()[0].value
    plots.save(plots.learning_curves(history), out / "learning_curves.png")
    if weights.ndim == 4:
        plots.save(plots.training(history, weights), out / "training.png")
        plots.save(plots.filters(weights, start), out / "filters.png")
    if samples.ndim == 3:
        generator = np.random.default_rng(0)
        changed = np.stack([random_shift(samples, shift, generator) for _ in range(7)], axis=1)
        plots.save(plots.augmented(samples, changed), out / "augmented.png")


def draw_test(out: Path, model: Sequential, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """confusion.png, mistakes.png, predictions.png, feature_maps.png and saliency.png."""
    from tinycnn import plots

    guesses = probabilities.argmax(axis=1)
    plots.save(plots.confusion(confusion_matrix(labels, guesses, probabilities.shape[1])), out / "confusion.png")
    plots.save(plots.mistakes(images, labels, probabilities), out / "mistakes.png")
    first = slice(0, 32)
    title = f"The first {len(images[first])} test images"
    plots.save(plots.predictions(images[first], labels[first], probabilities[first], title), out / "predictions.png")
    grey = images[0].reshape(*images.shape[1:3], -1).mean(axis=2)
    plots.save(plots.feature_maps(grey, feature_maps(model, images[0])), out / "feature_maps.png")
    gradient = saliency(model, images[0], int(guesses[0])).reshape(*images.shape[1:3], -1).sum(axis=2)
    plots.save(plots.saliency(grey, gradient, int(guesses[0]), probabilities[0].max()), out / "saliency.png")


def count_classes(data: Data) -> int:
    """The largest training label + 1. Raises ValueError unless all images and labels fit that and each other."""
    (images, labels), (test_images, test_labels) = data
    most = max(1000, len(labels))  # a larger label is no class, and a network for it might not fit into memory
    check_data(images, labels, classes=most)
    classes = int(labels.max()) + 1
    check_data(test_images, test_labels, classes)
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(f"training images are {images.shape[1:]}, but test images {test_images.shape[1:]}")
    return classes


def change(recipe: Recipe, changes: dict) -> Recipe:
    """The recipe with some numbers replaced. Another optimizer does not inherit the weight decay: its sense differs."""
    if changes.get("optimizer", recipe.optimizer) != recipe.optimizer:
        changes = {"weight_decay": 0.0} | changes
    return replace(recipe, **changes)


def split(
    data: Data, validation: int, limit: int | None
) -> tuple[ImagesAndLabels, ImagesAndLabels | None, ImagesAndLabels]:
    """(training, validation or None, test): the last `validation` training images held out, `limit` others kept."""
    (images, labels), test_set = data
    if validation < 0 or validation >= max(1, len(images)):
        raise ValueError(
            f"validation must be at least 0 and leave images to train on; got {validation} of {len(images)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
    kept = len(images) - validation
    held_out = (images[kept:], labels[kept:]) if validation else None
    return (images[:kept][:limit], labels[:kept][:limit]), held_out, test_set


def make_model(recipe: Recipe, images: np.ndarray, seed: int) -> Sequential:
    """The recipe's network for images like these (N, H, W) or (N, H, W, C), beginning with their own Normalize."""
    mean, std = pixel_statistics(images)
    input_shape = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
    return Sequential([Normalize(mean, std), *recipe.layers], input_shape, seed=seed)


def pixel_statistics(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all pixels / 255, a thousand images at a time. Where all are equal, std is 1.

    >>> pixel_statistics(np.array([[[0, 255]]], np.uint8))
    (0.5, 0.5)
    """
    sums = np.zeros(2)
    for i in range(0, len(images), 1000):
        pixels = images[i : i + 1000].astype(np.float32) / 255
        sums += pixels.sum(dtype=np.float64), np.square(pixels).sum(dtype=np.float64)
    mean, mean_square = sums / max(1, images.size)
    return float(mean), float(np.sqrt(max(0.0, mean_square - mean**2))) or 1.0


def make_optimizer(recipe: Recipe, model: Sequential) -> SGD | Adam:
    """The recipe's optimizer over the model's parameters."""
    if recipe.optimizer == "sgd":
        return SGD(model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adam":
        return Adam(
            model.parameters(), recipe.learning_rate, recipe.beta1, recipe.beta2, weight_decay=recipe.weight_decay
        )
    raise ValueError(f"unknown optimizer {recipe.optimizer!r}; there are sgd and adam")


def make_schedule(recipe: Recipe, steps_an_epoch: int) -> Schedule:
    """The recipe's schedule over all of its steps. "step" divides the rate by 10 after each third."""
    total = recipe.epochs * steps_an_epoch
    if recipe.schedule == "constant":
        return constant(recipe.learning_rate)
    if recipe.schedule == "step":
        return step_decay(recipe.learning_rate, every=ceil(total / 3))
    if recipe.schedule == "cosine":
        return cosine(recipe.learning_rate, total)
    if recipe.schedule == "one-cycle":
        return one_cycle(recipe.learning_rate, total, recipe.warm_up)
    raise ValueError(f"unknown schedule {recipe.schedule!r}; there are constant, step, cosine and one-cycle")


def write_history(path: Path, history: list[dict]) -> None:
    """A CSV file with a row an epoch."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(history)


def _preset(name: str) -> Callable[[int], Recipe]:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _writable_directory(path: Path) -> Path:
    """The directory, made if need be. Finding out after the training that it can't be written would be too late."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"can't write to {path}: {error}") from error
    for file in (path / name for name in ("model.npz", "history.csv", "metrics.json", *PICTURES)):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise ValueError(f"can't write to {file}: it is there, and not a file that may be replaced")
    return path


def _line(row: dict, epochs: int) -> str:
    validation = ""
    if row["validation_accuracy"] is not None:
        validation = f"  validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:.2%}"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.2%}{validation}"
        f"  {row['seconds']:.1f} s"
    )
