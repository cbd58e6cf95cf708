"""The presets: six networks, each with the recipe that trains it. A preset of your own is one more function here.

Where a pool and a ReLU follow each other the pool comes first: the result is the same, since max and ReLU may change
places, and the ReLU then has a quarter of the work. A convolution before a BatchNorm has no bias: the mean would take
it away again.

The numbers were chosen by the accuracy on 10,000 held-out training images, those of `best` by its loss, which is less
a matter of luck where so few images are misclassified.

What this file is not: nothing here runs; `tinycnn/experiment.py` does what a recipe says.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tinycnn.augment import Distortion
from tinycnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D, ReLU
from tinycnn.more_layers import BatchNorm, Dropout


@dataclass(frozen=True)
class Recipe:
    """How to train: the layers, and every number that the settings of a training can change.

    layers: of the network, without the Normalize that every network here begins with. schedule: "constant", "step",
    "cosine" or "one-cycle". shift: augmentation, in whole pixels; distortion: turned, stretched, slanted, rumpled, and
    moved, not only by whole pixels.
    """

    layers: list[Layer]
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adam"
    schedule: str = "one-cycle"
    warm_up: float = 0.3  # one-cycle only: the part of the steps in which the rate rises
    momentum: float = 0.9  # SGD only
    beta1: float = 0.9  # Adam only, as beta2
    beta2: float = 0.999
    weight_decay: float = 0.0
    shift: int = 0
    distortion: Distortion | None = None
    label_smoothing: float = 0.0
    averaging: float = 0.0  # of the weights, over about this last share of the steps; 0: none


def standard(classes: int, width: float = 1.0) -> Recipe:
    """43,194 parameters: four convolutions with batch normalisation, over randomly shifted images. The default."""
    few, some, many = (round(n * width) for n in (16, 32, 64))
    return Recipe(
        layers=[
            Conv2D(few, kernel_size=5, use_bias=False),
            MaxPool2D(2),
            BatchNorm(),
            ReLU(),
            *_block(some, padding=1),
            *_block(some, padding=1, pool=True),
            *_block(many),
            Flatten(),
            Dense(classes),
        ],
        epochs=5,
        batch_size=64,
        learning_rate=5e-3,
        beta2=0.99,
        weight_decay=0.05,
        shift=2,
    )


def fast(classes: int) -> Recipe:
    """Two convolutions and a wide dense layer, one epoch: over 99 % in a few seconds."""
    return Recipe(
        layers=[
            Conv2D(24, kernel_size=5),
            MaxPool2D(2),
            ReLU(),
            Conv2D(32, kernel_size=3),
            MaxPool2D(2),
            ReLU(),
            Flatten(),
            Dense(256),
            ReLU(),
            Dense(classes),
        ],
        epochs=1,
        batch_size=128,
        learning_rate=1e-2,
        warm_up=0.1,
        beta1=0.7,
        beta2=0.9,
        weight_decay=0.5,
        shift=1,
    )


def classic(classes: int) -> Recipe:
    """The network of a hundred tutorials, in the setting whose figures were published: batch 1313, 5 epochs."""
    return Recipe(
        layers=[
            Conv2D(32, kernel_size=3),
            MaxPool2D(2),
            ReLU(),
            Conv2D(64, kernel_size=3),
            MaxPool2D(2),
            ReLU(),
            Flatten(),
            Dense(128),
            ReLU(),
            Dense(classes),
        ],
        epochs=5,
        batch_size=1313,
        learning_rate=1e-2,
        warm_up=0.1,
        beta1=0.7,
        beta2=0.9,
    )


def lenet(classes: int) -> Recipe:
    """LeNet-5 (LeCun et al., Gradient-based learning, 1998) in its modern form, with plain SGD and momentum."""
    return Recipe(
        layers=[
            Conv2D(6, kernel_size=5, padding=2),
            MaxPool2D(2),
            ReLU(),
            Conv2D(16, kernel_size=5),
            MaxPool2D(2),
            ReLU(),
            Flatten(),
            Dense(120),
            ReLU(),
            Dense(84),
            ReLU(),
            Dense(classes),
        ],
        epochs=10,
        batch_size=64,
        learning_rate=0.02,
        optimizer="sgd",
        schedule="cosine",
        weight_decay=5e-4,
    )


def best(classes: int, width: float = 1.0) -> Recipe:
    """The most accurate, 244,666 parameters: seven layers that grow wider slowly, trained on distorted images.

    The README says what it was chosen from; its weights are averaged over about the last tenth of the steps.
    """
    return Recipe(
        layers=[
            *_block(round(16 * width)),
            *_block(round(32 * width), pool=True),
            *_block(round(64 * width), padding=1),
            *_block(round(64 * width), padding=1),
            *_block(round(64 * width), pool=True),
            *_block(round(96 * width), padding=1),
            *_block(round(96 * width)),
            Flatten(),
            Dropout(0.3),
            Dense(classes),
        ],
        epochs=24,
        batch_size=64,
        learning_rate=5e-3,
        beta2=0.99,
        weight_decay=0.05,
        distortion=Distortion(rotation=8, scaling=0.1, shift=1.5, shear=5, elastic=0.5),
        averaging=0.1,
    )


def small(classes: int, width: float = 1.0) -> Recipe:
    """7,986 parameters: narrow layers, many distorted images, and the average of their weights."""
    few, many = round(8 * width), round(16 * width)
    return Recipe(
        layers=[
            *_block(few),
            *_block(few, pool=True),
            *_block(many, padding=1),
            *_block(many, pool=True),
            *_block(many),
            Flatten(),
            Dense(classes),
        ],
        epochs=20,
        batch_size=64,
        learning_rate=1e-2,
        beta2=0.99,
        weight_decay=0.01,
        distortion=Distortion(rotation=5, scaling=0.1, shift=1.5, shear=5),
        averaging=0.2,
    )


def _block(filters: int, padding: int = 0, pool: bool = False) -> list[Layer]:
    """A 3 × 3 convolution, pooled or not, normalised, and a ReLU."""
    convolution = Conv2D(filters, kernel_size=3, padding=padding, use_bias=False)
    return [convolution, *([MaxPool2D(2)] if pool else []), BatchNorm(), ReLU()]


PRESETS: dict[str, Callable[[int], Recipe]] = {
    "standard": standard,
    "fast": fast,
    "classic": classic,
    "lenet": lenet,
    "small": small,
    "best": best,
}
