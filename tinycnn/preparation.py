"""From data and a recipe to what is trained: a model, an optimizer, a schedule, and which images are for what.

What this file is not: nothing is trained here, and nothing written.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from math import ceil

import numpy as np

from tinycnn.arguments import whole
from tinycnn.augment import random_distortion, random_shift
from tinycnn.averaging import WeightAverage
from tinycnn.mnist import Data
from tinycnn.model import Sequential
from tinycnn.more_layers import Normalize
from tinycnn.optim import SGD, Adam
from tinycnn.presets import PRESETS, Recipe
from tinycnn.schedules import Schedule, constant, cosine, one_cycle, step_decay
from tinycnn.training import check_data

ImagesAndLabels = tuple[np.ndarray, np.ndarray]
SCHEDULES: dict[str, Callable[[Recipe, int], Schedule]] = {  # from the recipe and the number of all steps
    "constant": lambda recipe, total: constant(recipe.learning_rate),
    "step": lambda recipe, total: step_decay(recipe.learning_rate, every=ceil(total / 3)),
    "cosine": lambda recipe, total: cosine(recipe.learning_rate, total),
    "one-cycle": lambda recipe, total: one_cycle(recipe.learning_rate, total, recipe.warm_up),
}


def preset(name: str) -> Callable[[int], Recipe]:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def change(recipe: Recipe, changes: dict) -> Recipe:
    """The recipe with some numbers replaced. Another optimizer, with another kind of weight decay, inherits none."""
    if unknown := changes.keys() - vars(recipe).keys():
        raise ValueError(f"a recipe has no {', '.join(sorted(unknown))} to change")
    if changes.get("optimizer", recipe.optimizer) != recipe.optimizer:
        changes = {"weight_decay": 0.0} | changes
    recipe = replace(recipe, **changes)
    if "momentum" in changes and recipe.optimizer != "sgd":
        raise ValueError("momentum is of the optimizer sgd: adam has its betas instead")
    for name in ("epochs", "batch_size"):
        whole(getattr(recipe, name), name)
    return recipe


def count_classes(data: Data) -> int:
    """The largest training label + 1. Raises ValueError unless all images and labels fit that and each other."""
    training, test = data
    most = 5000  # a larger label is no class, and the table of all pairs of classes might not fit into memory
    _check_part("training", training, most)
    classes = int(training[1].max()) + 1
    _check_part("test", test, classes)
    kind, test_kind = (f"{images.shape[1:]} of {images.dtype}" for images, _ in data)
    if kind != test_kind:
        raise ValueError(f"training images are {kind}, but test images {test_kind}")
    return classes


def _check_part(part: str, data: ImagesAndLabels, classes: int) -> None:
    try:
        check_data(*data, classes)
    except ValueError as error:
        raise ValueError(f"the {part} data: {error}") from error


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
    sums, dtype = np.zeros(2), np.float32 if images.dtype == np.uint8 else np.float64
    for i in range(0, len(images), 1000):
        pixels = images[i : i + 1000].astype(dtype) / 255
        sums += pixels.sum(dtype=np.float64), np.square(pixels).sum(dtype=np.float64)
    mean, mean_square = sums / max(1, images.size)
    equal = not images.size or images.min() == images.max()  # of which rounding would make a tiny std
    return float(mean), 1.0 if equal else float(np.sqrt(max(0.0, mean_square - mean**2))) or 1.0


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
    if recipe.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {recipe.schedule!r}; there are {', '.join(SCHEDULES)}")
    return SCHEDULES[recipe.schedule](recipe, recipe.epochs * steps_an_epoch)


def make_average(recipe: Recipe, model: Sequential) -> WeightAverage | None:
    """The average of the model's weights, if the recipe wants one."""
    return WeightAverage(model, recipe.averaging) if recipe.averaging else None


def make_augmentation(recipe: Recipe, generator: np.random.Generator) -> Callable[[np.ndarray], np.ndarray] | None:
    """From a batch of images to another, as the recipe says; None if it wants the images as they are."""

    def augment(images: np.ndarray) -> np.ndarray:
        if recipe.shift:
            images = random_shift(images, recipe.shift, generator)
        return random_distortion(images, recipe.distortion, generator) if recipe.distortion else images

    return augment if recipe.shift or recipe.distortion else None


def identity(recipe: Recipe, model: Sequential, data: Data) -> dict:
    """What is trained on what, by name, to be compared with another training's: what differs, differs by name."""
    result = asdict(replace(recipe, layers=[]))
    del result["layers"]
    for number, layer in enumerate(model.layers, start=1):
        result[f"layer {number}"] = [type(layer).__name__, layer.arguments()]
    for part, arrays in zip(("training", "test"), data, strict=True):
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]
            result[f"{part} {kind}"] = f"{' × '.join(map(str, array.shape))} {array.dtype} with SHA-256 {digest}…"
    return result
