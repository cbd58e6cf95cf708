"""The training loop: epochs of batches, each batch one forward, loss, backward and step; and evaluation.

What this file is not: it reads and writes no file and knows no preset; `tinycnn/experiment.py` does.
"""

import math
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.model import Sequential
from tinycnn.optim import SGD, Adam
from tinycnn.schedules import Schedule

# The columns of a history row. Training figures are means over the epoch, while the weights were still changing and
# with augmentation and dropout; validation figures are those of the epoch's final weights.
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
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    after_epoch: Callable[[dict], None] | None = None,
    progress: bool = False,
) -> list[dict]:
    """Train the model in place; return the history: a dict with the keys COLUMNS for each epoch.

    images (N, *model.input_shape), labels (N,) integers. The images are shuffled anew each epoch, by `generator`.
    schedule: the learning rate as a function of the number of steps made. augment: from a batch of images to another.
    after_epoch is called with each new row of the history.

    Raises ValueError for data that doesn't fit, and TrainingDiverged if a loss is NaN or infinite: the model is then
    again what it was after the last whole epoch.
    """
    check_data(images, labels, classes=model.output_shapes[-1][0])
    if epochs < 0 or batch_size < 1:
        raise ValueError(f"needs at least 0 epochs and batches of at least 1 image, got {epochs} and {batch_size}")
    history = []
    for epoch in range(1, epochs + 1):
        before = [(array, array.copy()) for _, array in model.state()]
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is reported, once
                row = _train_epoch(
                    model, optimizer, schedule, images, labels, epoch, epochs, batch_size, generator, augment, progress
                )
        except TrainingDiverged:
            for array, old in before:
                array[...] = old
            raise
        if validation is not None:
            row["validation_loss"], row["validation_accuracy"] = evaluate(model, *validation)
        history.append(row)
        if after_epoch:
            after_epoch(row)
    return history


def evaluate(model: Sequential, images: np.ndarray, labels: np.ndarray, batch_size: int = 128) -> tuple[float, float]:
    """(mean loss, accuracy) of the model in inference.  images (N, ...), labels (N,), N ≥ 1."""
    check_data(images, labels, classes=model.output_shapes[-1][0])
    loss, total_loss, correct = SoftmaxCrossEntropy(), 0.0, 0
    for i in range(0, len(images), batch_size):
        batch = slice(i, i + batch_size)
        logits = model.forward(images[batch])
        total_loss += loss.forward(logits, labels[batch]) * len(logits)
        correct += int((logits.argmax(axis=1) == labels[batch]).sum())
    return total_loss / len(images), correct / len(images)


def check_data(images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Raises ValueError unless there is a finite image for each label, at least one, and labels are 0 … classes − 1."""
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


def _train_epoch(
    model, optimizer, schedule, images, labels, epoch, epochs, batch_size, generator, augment, progress
) -> dict:
    started = time.perf_counter()
    loss = SoftmaxCrossEntropy()
    steps = math.ceil(len(images) / batch_size)
    order = generator.permutation(len(images))
    total_loss, correct, seen = 0.0, 0, 0
    with tqdm(
        total=len(images), desc=f"epoch {epoch}/{epochs}", unit=" images", disable=not progress, leave=False
    ) as bar:
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            x, y = images[chosen], labels[chosen]
            if augment:
                x = augment(x)
            optimizer.learning_rate = schedule((epoch - 1) * steps + step)
            logits = model.forward(x, training=True)
            batch_loss = loss.forward(logits, y)
            if not math.isfinite(batch_loss):
                raise TrainingDiverged(
                    f"the loss is {batch_loss} at step {step + 1} of epoch {epoch}, learning rate "
                    f"{optimizer.learning_rate:.3g}; a lower learning rate may help"
                )
            model.parameter_gradients(loss.backward())
            optimizer.step()
            total_loss += batch_loss * len(x)
            correct += int((logits.argmax(axis=1) == y).sum())
            seen += len(x)
            bar.update(len(x))
            bar.set_postfix(loss=f"{total_loss / seen:.4f}", accuracy=f"{correct / seen:.2%}", refresh=False)
    # The last step's weights have made no loss yet: they must not be kept unseen.
    if not math.isfinite(final := loss.forward(model.forward(x), y)):
        raise TrainingDiverged(
            f"the loss is {final} after epoch {epoch}, learning rate {optimizer.learning_rate:.3g}; "
            f"a lower learning rate may help"
        )
    return {
        "epoch": epoch,
        "learning_rate": optimizer.learning_rate,
        "train_loss": total_loss / seen,
        "train_accuracy": correct / seen,
        "validation_loss": None,
        "validation_accuracy": None,
        "seconds": time.perf_counter() - started,
    }
