"""The training loop: epochs of batches, each batch one forward, loss, backward and step; and evaluation.

What this file is not: it reads and writes no file and knows no preset; `tinycnn/experiment.py` does.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from tinycnn.arguments import whole
from tinycnn.averaging import WeightAverage
from tinycnn.kernels.memory import empty
from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.model import Sequential
from tinycnn.optim import SGD, Adam
from tinycnn.schedules import Schedule

# The columns of a history row. Training figures are means over the epoch, while the weights were still changing and
# with augmentation and dropout; validation figures are those of the epoch's final weights, or of their average.
COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
)


class TrainingDiverged(ValueError):
    """The loss became NaN or infinite."""


@dataclass
class Position:
    """Where a training stands: what it needs, besides its arrays and generators, to go on as if it had not stopped."""

    epoch: int = 1
    step: int = 0  # steps made in this epoch
    shuffling: dict | None = None  # the generator's state before it drew this epoch's order
    loss: float = 0.0  # a sum over the images seen in this epoch, as the next two
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)


def train(
    model: Sequential,
    optimizer: SGD | Adam,
    schedule: Schedule,
    images: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    batch_size: int,
    generator: np.random.Generator,
    augment: Callable[[np.ndarray], np.ndarray] | None = None,
    loss: SoftmaxCrossEntropy | None = None,
    average: WeightAverage | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    position: Position | None = None,
    after_step: Callable[[Position], None] | None = None,
    after_epoch: Callable[[Position], None] | None = None,
    progress: bool = False,
) -> list[dict]:
    """Train the model in place; return the history: a dict with the keys COLUMNS for each epoch.

    images (N, *model.input_shape), labels (N,) integers. The images are shuffled anew each epoch, by `generator`.
    schedule: the learning rate as a function of the number of steps made. augment: from a batch of images to another.
    loss: one that smooths labels, for example. average: of the model's weights, updated after each step; validation is
    then with the averaged weights. position: where an earlier training stopped; model, optimizer, average and
    generators must be what they were there.
    after_step is called with the position after each step but the last of an epoch, after_epoch with that at the
    beginning of the next epoch.

    Raises ValueError for data that doesn't fit, and TrainingDiverged if a loss is NaN or infinite: the model is then
    again what it was after the last whole epoch, or at `position`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    for data in [(images, labels)] + ([validation] if validation is not None else []):
        check_data(*data, classes=model.output_shapes[-1][0])
    whole(epochs, "epochs", minimum=0)
    whole(batch_size, "batch_size")
    loss, position = loss or SoftmaxCrossEntropy(), replace(position) if position else Position()
    steps = math.ceil(len(images) / batch_size)
    while position.epoch <= epochs:
        started = time.perf_counter() - position.seconds
        with _restored_if_it_diverges(model, average), _bar(position, epochs, len(images), progress) as bar:
            for x, y in _batches(images, labels, batch_size, generator, augment, position):
                optimizer.learning_rate = schedule((position.epoch - 1) * steps + position.step)
                _train_step(model, optimizer, loss, x, y, position)
                if average:
                    average.update()
                position.seconds = time.perf_counter() - started
                _show(bar, position)
                if after_step and position.step < steps:
                    after_step(position)
            first = slice(batch_size)
            check_weights(model, images[first], labels[first], f"after epoch {position.epoch}", optimizer.learning_rate)
            with average.swapped() if average else nullcontext():
                row = _history_row(model, optimizer.learning_rate, validation, position)
        position = Position(position.epoch + 1, history=[*position.history, row])
        if after_epoch:
            after_epoch(position)
    return position.history


def evaluate(model: Sequential, images: np.ndarray, labels: np.ndarray, batch_size: int = 128) -> tuple[float, float]:
    """(mean loss, accuracy) of the model in inference.  images (N, ...), labels (N,), N ≥ 1."""
    images, labels = np.asarray(images), np.asarray(labels)
    check_data(images, labels, classes=model.output_shapes[-1][0])
    loss, total_loss, correct = SoftmaxCrossEntropy(), 0.0, 0
    for i in range(0, len(images), whole(batch_size, "batch_size")):
        batch = slice(i, i + batch_size)
        logits = model.forward(images[batch])
        total_loss += loss.forward(logits, labels[batch]) * len(logits)
        correct += int((logits.argmax(axis=1) == labels[batch]).sum())
    return total_loss / len(images), correct / len(images)


def check_data(images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Raises ValueError unless there is a finite image for each label, at least one, and labels are 0 … classes − 1."""
    images, labels = np.asarray(images), np.asarray(labels)
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    if not len(images):
        raise ValueError("there are no images")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be whole numbers of shape (N,), got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"label {wrong} is outside 0 … {classes - 1}")
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        raise ValueError("the images hold NaN or infinite pixels")


def check_weights(model: Sequential, images: np.ndarray, labels: np.ndarray, when: str, learning_rate: float) -> None:
    """Raises TrainingDiverged unless the images have a finite loss: only then are an epoch's weights worth keeping."""
    _check_finite("loss", evaluate(model, images, labels)[0], when, learning_rate)


def _check_finite(what: str, loss: float, when: str, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the {what} is {loss} {when}, learning rate {learning_rate:.3g}; a lower learning rate may help"
        )


@contextmanager
def _restored_if_it_diverges(model: Sequential, average: WeightAverage | None) -> Iterator[None]:
    before = [(array, array.copy()) for _, array in model.state() + (average.state() if average else [])]
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is reported, once
            yield
    except TrainingDiverged:
        for array, old in before:
            array[...] = old
        raise


def _batches(images, labels, batch_size, generator, augment, position) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The epoch's batches from the position on; the order is drawn again from the state in which the epoch began."""
    position.shuffling = position.shuffling or generator.bit_generator.state
    generator.bit_generator.state = position.shuffling
    order = generator.permutation(len(images))
    for start in range(position.step * batch_size, len(images), batch_size):
        chosen = order[start : start + batch_size]
        x = empty((len(chosen), *images.shape[1:]), images.dtype)
        np.take(images, chosen, axis=0, out=x, mode="clip")  # by default it would go through an array of its own
        yield augment(x) if augment else x, labels[chosen]


def _train_step(model, optimizer, loss, x, y, position) -> None:
    """One step of gradient descent: x (N, ...) forward, loss, backward, better weights."""
    logits = model.forward(x, training=True)
    batch_loss = loss.forward(logits, y)
    position.step += 1
    when = f"at step {position.step} of epoch {position.epoch}"
    _check_finite("loss", batch_loss, when, optimizer.learning_rate)
    model.parameter_gradients(loss.backward())
    optimizer.step()
    position.loss += batch_loss * len(x)
    position.correct += int((logits.argmax(axis=1) == y).sum())
    position.seen += len(x)


def _history_row(model, learning_rate, validation, position) -> dict:
    """The figures of an epoch whose steps are made."""
    validation_loss = validation_accuracy = None
    if validation is not None:
        validation_loss, validation_accuracy = evaluate(model, *validation)
        _check_finite("validation loss", validation_loss, f"after epoch {position.epoch}", learning_rate)
    figures = (
        position.epoch,
        learning_rate,
        position.loss / position.seen,
        position.correct / position.seen,
        validation_loss,
        validation_accuracy,
        position.seconds,
    )
    return dict(zip(COLUMNS, figures, strict=True))


def _bar(position: Position, epochs: int, images: int, progress: bool) -> tqdm:
    name = f"epoch {position.epoch}/{epochs}"
    return tqdm(total=images, initial=position.seen, desc=name, unit=" images", disable=not progress, leave=False)


def _show(bar: tqdm, position: Position) -> None:
    if bar.update(position.seen - bar.n):  # drawn just now; texts for every step would take as long as a small layer
        loss, accuracy = position.loss / position.seen, position.correct / position.seen
        bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.2%}")
