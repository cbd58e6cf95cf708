"""The main job: from data and a preset to a trained model, its history and its figures in a directory.

`scripts/train_mnist.py` is the command line of this file. What this file is not: the loop itself
(`tinycnn/training.py`), or the networks (`tinycnn/presets.py`).
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np

from tinycnn.arguments import plain
from tinycnn.checkpoint import Checkpoint
from tinycnn.files import alone_in, replacing
from tinycnn.kernels.memory import free_unused
from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.metrics import cross_entropy
from tinycnn.mnist import Data, load_mnist
from tinycnn.model import Sequential
from tinycnn.preparation import (
    ImagesAndLabels,
    change,
    count_classes,
    identity,
    make_augmentation,
    make_average,
    make_model,
    make_optimizer,
    make_schedule,
    preset,
    split,
)
from tinycnn.presets import Recipe
from tinycnn.results import draw_test, draw_training, writable_directory, write_results
from tinycnn.training import Position, TrainingDiverged, check_weights, train

SAVE_EVERY = 30.0  # seconds: so much of a training can be lost


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
    mirrors: str | Sequence[str] | None = None  # to download from; default: as `load_mnist`
    resume: bool = False  # go on with the training that stopped in `out`, if there is one


def run(settings: Settings, say: Callable[[str], None] = print, progress: bool = True) -> dict:
    """Train as the settings say; write model.npz, history.csv, metrics.json and the PICTURES; return the metrics.

    A checkpoint is written after every epoch and every SAVE_EVERY seconds. At Ctrl-C the step that is being made is
    finished, a checkpoint is written and KeyboardInterrupt raised; resumed, the training ends with the same numbers,
    bit for bit.

    Raises ValueError or FileNotFoundError, before any training, for settings or data that can't work, for a checkpoint
    of other ones, and if another process is training into the same directory; and TrainingDiverged, after which
    model.npz and history.csv are those of the last whole epoch, or what was there before the first.
    """
    started = time.perf_counter()
    settings = replace(settings, **plain(vars(settings) | {"changes": plain(settings.changes)}))
    recipe_of = preset(settings.preset)
    out = writable_directory(Path(settings.out or f"runs/{settings.preset}"))
    with alone_in(out):
        data = load_mnist(settings.data_dir, settings.mirrors)
        recipe = change(recipe_of(count_classes(data)), settings.changes)
        train_set, validation_set, test_set = split(data, settings.validation, settings.limit)
        model = make_model(recipe, train_set[0], settings.seed)
        recipe = replace(recipe, layers=[])  # they are the model's now, to be given back with it
        if augment := make_augmentation(recipe, np.random.default_rng(0)):
            augment(train_set[0][:1])  # refuses what it can't distort, before an earlier checkpoint is removed
        first_weights = model.parameters()[0].value.copy()
        say(model.summary())
        checkpoint = _checkpoint(settings, recipe, model, data, out / "checkpoint.npz")
        position = _restored(checkpoint, out, say) if settings.resume else Position()
        earlier = position.seconds + sum(row["seconds"] for row in position.history)
        history = _train(checkpoint, recipe, train_set, validation_set, position, out, say, progress)

        free_unused()  # batches of another size follow
        model = Sequential.load(out / "model.npz", own_layers=tuple(map(type, model.layers)))
        probabilities = model.predict_proba(test_set[0])
        metrics = _metrics(settings, recipe, model, history, len(train_set[0]), probabilities, test_set[1])
        samples = train_set[0][:6].copy()
        # Drawing needs memory as well: away with the images, and with all that layers and optimizer remember.
        del data, train_set, validation_set, checkpoint
        free_unused()
        draw_training(out, history, model, first_weights, samples, make_augmentation(recipe, np.random.default_rng(0)))
        draw_test(out, model, *test_set, probabilities)
        metrics["seconds_total"] = earlier + time.perf_counter() - started
        with replacing(out / "metrics.json") as file:
            file.write((json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


def _checkpoint(settings: Settings, recipe: Recipe, model: Sequential, data: Data, path: Path) -> Checkpoint:
    """All that the training consists of, at its beginning."""
    choices = {name: getattr(settings, name) for name in ("preset", "seed", "validation", "limit")}
    shuffling, augmentation = (np.random.default_rng([settings.seed, n]) for n in (1, 2))
    generators = {"shuffling": shuffling, "augmentation": augmentation}
    optimizer, average = make_optimizer(recipe, model), make_average(recipe, model)
    return Checkpoint(path, choices | identity(recipe, model, data), model, optimizer, generators, average)


def _metrics(
    settings: Settings,
    recipe: Recipe,
    model: Sequential,
    history: list[dict],
    images: int,
    probabilities: np.ndarray,
    labels: np.ndarray,
) -> dict:
    """What metrics.json holds, but for the total time. images: how many in an epoch; the last two: of the test."""
    seconds = sum(row["seconds"] for row in history)
    return {
        "preset": settings.preset,
        "seed": settings.seed,
        "epochs": recipe.epochs,
        "changes": settings.changes,
        "limit": settings.limit,
        "validation": settings.validation,
        "parameters": sum(p.value.size for p in model.parameters()),
        "test_accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "test_loss": cross_entropy(labels, probabilities),
        "train_accuracy": history[-1]["train_accuracy"],
        "validation_accuracy": history[-1]["validation_accuracy"],
        "seconds_training": seconds,
        "images_per_second": recipe.epochs * images / seconds,
    }


def _train(
    checkpoint: Checkpoint,
    recipe: Recipe,
    train_set: ImagesAndLabels,
    validation_set: ImagesAndLabels | None,
    position: Position,
    out: Path,
    say: Callable[[str], None],
    progress: bool,
) -> list[dict]:
    """From the position to the end of the recipe; returns the history."""
    model, optimizer, generators = checkpoint.model, checkpoint.optimizer, checkpoint.generators
    schedule = make_schedule(recipe, steps_an_epoch=ceil(len(train_set[0]) / recipe.batch_size))
    loss = SoftmaxCrossEntropy(recipe.label_smoothing)
    if not checkpoint.is_there():
        checkpoint.path.unlink(missing_ok=True)  # another training's, from which this one could not go on
    saved_at = time.monotonic()

    def save(position: Position) -> None:
        nonlocal saved_at
        checkpoint.save(position)
        saved_at = time.monotonic()

    def after_step(position: Position) -> None:
        if interrupted() or time.monotonic() - saved_at > SAVE_EVERY:
            when = f"after step {position.step} of epoch {position.epoch}"
            check_weights(model, train_set[0][:100], train_set[1][:100], when, optimizer.learning_rate)
            save(position)
        if interrupted():
            raise KeyboardInterrupt

    def after_epoch(position: Position) -> None:
        write_results(out, model, checkpoint.average, position.history)
        save(position)
        say(line(position.history[-1], recipe.epochs))
        if interrupted():
            raise KeyboardInterrupt

    with ctrl_c_noted() as interrupted:
        try:
            return train(
                model,
                optimizer,
                schedule,
                *train_set,
                epochs=recipe.epochs,
                batch_size=recipe.batch_size,
                generator=generators["shuffling"],
                augment=make_augmentation(recipe, generators["augmentation"]),
                loss=loss,
                average=checkpoint.average,
                validation=validation_set,
                position=position,
                after_step=after_step,
                after_epoch=after_epoch,
                progress=progress,
            )
        except TrainingDiverged as error:
            there = checkpoint.path.exists()  # perhaps of a training with the same settings before this one
            last = f"the last good checkpoint is {checkpoint.path}" if there else "there is no checkpoint yet"
            raise TrainingDiverged(f"{error}; {last}") from None


def _restored(checkpoint: Checkpoint, out: Path, say: Callable[[str], None]) -> Position:
    """The position of the checkpoint, if there is one, else the beginning."""
    if not checkpoint.path.exists():
        say(f"there is no checkpoint in {out} to go on from: beginning anew")
        return Position()
    position = checkpoint.restore()
    say(f"going on: {position.epoch - 1} epochs and {position.step} steps are done")
    if position.history and not position.step:  # else these are no whole epoch's weights
        write_results(out, checkpoint.model, checkpoint.average, position.history)
    return position


@contextmanager
def ctrl_c_noted() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed. Pressed once more it does what it always does."""
    pressed = []

    def note(*_) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False  # somebody else minds it
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def line(row: dict, epochs: int) -> str:
    validation = ""
    if row["validation_accuracy"] is not None:
        validation = f"  validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:.2%}"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.2%}{validation}"
        f"  {row['seconds']:.1f} s"
    )
