"""The checks that prove this package: functions that return a `Report`, by name in CHECKS.

They are run by `scripts/check_gradients.py`, and against planted bugs by `tests/test_planted_bugs.py`.
What this file is not: the method (`tinycnn/gradcheck.py`).
"""

from collections.abc import Callable

import numpy as np

from tinycnn import (
    SGD,
    Adam,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    MaxPool2D,
    Normalize,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
)
from tinycnn.gradcheck import Report, Row, check_gradients, relative_error
from tinycnn.layers import Parameter
from tinycnn.loss import softmax
from tinycnn.presets import PRESETS


def normal(*shape: int, seed: int = 5) -> np.ndarray:
    """The same random numbers for everyone."""
    return np.random.default_rng(seed).standard_normal(shape)


def whole_numbers(*shape: int) -> np.ndarray:
    """−1, 0 and 1: full of tied maxima and of zeros."""
    return np.random.default_rng(6).integers(-1, 2, shape)


def frozen(layer: BatchNorm) -> BatchNorm:
    """The layer as it is when only looked at."""
    layer.frozen = True
    return layer


class LossAsLayer:
    """The loss seen as a layer with fixed labels: logits in, one number out."""

    def __init__(self, labels: np.ndarray, label_smoothing: float = 0.0):
        self.loss, self.labels = SoftmaxCrossEntropy(label_smoothing), labels

    def forward(self, x, training=False):
        """The loss, as an array of one number."""
        return np.array([self.loss.forward(x, self.labels)], x.dtype)

    def backward(self, dy):
        """The chain rule's last factor times the loss's own gradient."""
        return dy * self.loss.backward()


class SoftmaxWithoutGradient:
    """A wrong layer: with dy of ones its zeros are right, since every softmax sums to 1 whatever the logits."""

    def forward(self, x, training=False):
        """Probabilities."""
        return softmax(x)

    def backward(self, dy):
        """Zeros."""
        return np.zeros_like(dy)


def check_of_the_check() -> Report:
    """A backward of zeros must not pass."""
    report = check_gradients(SoftmaxWithoutGradient(), normal(3, 4))
    return Report("the check itself", report.tolerance, faults=["a backward of zeros passed"] if report.passed else [])


def check_optimizer(make: Callable, formula: Callable) -> Report:
    """Five steps with random gradients beside the formula, number by number."""
    report = Report(make.__name__, 1e-12)
    parameter = Parameter("weight", normal(3, 4), normal(3, 4, seed=1))
    optimizer, expected, memory = make([parameter]), parameter.value.copy(), {"m": 0.0, "v": 0.0}
    for t in range(1, 6):
        parameter.grad[...] = normal(3, 4, seed=t)
        optimizer.step()
        expected = formula(expected, parameter.grad, memory, t)
    error = relative_error(parameter.value, expected)
    where = np.unravel_index(np.argmax(np.abs(parameter.value - expected)), expected.shape)
    numbers = float(parameter.value[where]), float(expected[where])
    report.rows.append(Row("weight", 12, 12, error, str([int(i) for i in where]), *numbers, passed=error <= 1e-12))
    return report


def sgd(parameters):
    """SGD with everything switched on."""
    return SGD(parameters, learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def sgd_formula(w, g, memory, t):
    """See `tinycnn.optim.SGD`."""
    g = g + 0.01 * w
    memory["v"] = 0.9 * memory["v"] + g
    return w - 0.1 * (g + 0.9 * memory["v"])


def adam(parameters):
    """Adam with everything switched on."""
    return Adam(parameters, learning_rate=0.1, beta1=0.8, beta2=0.95, weight_decay=0.01)


def adam_formula(w, g, memory, t):
    """See `tinycnn.optim.Adam`."""
    memory["m"] = 0.8 * memory["m"] + 0.2 * g
    memory["v"] = 0.95 * memory["v"] + 0.05 * g**2
    mean, square = memory["m"] / (1 - 0.8**t), memory["v"] / (1 - 0.95**t)
    return w - 0.1 * 0.01 * w - 0.1 * mean / (np.sqrt(square) + 1e-8)


def check_preset(name: str) -> Report:
    """A whole network, two images, a sample of every array."""
    model = Sequential(PRESETS[name](10).layers, (28, 28, 1), seed=1)
    return check_gradients(model, normal(2, 28, 28, 1), tolerance=1e-6, samples=10)


CHECKS: dict[str, Callable[[], Report]] = {
    "conv2d": lambda: check_gradients(Conv2D(3, (3, 2), stride=(2, 1), padding=(1, 1)), normal(4, 6, 5, 2)),
    "conv2d, square": lambda: check_gradients(Conv2D(2, 3, padding=1), normal(3, 5, 5, 2)),
    "maxpool2d": lambda: check_gradients(MaxPool2D(2), normal(3, 6, 4, 2)),
    "maxpool2d, overlapping": lambda: check_gradients(MaxPool2D((3, 2), stride=(1, 2)), normal(3, 6, 5, 2)),
    "maxpool2d, tied": lambda: check_gradients(MaxPool2D(2), whole_numbers(3, 6, 4, 2)),
    "relu": lambda: check_gradients(ReLU(), normal(4, 5)),
    "relu, at the kink": lambda: check_gradients(ReLU(), whole_numbers(4, 5)),
    "dense": lambda: check_gradients(Dense(5), normal(4, 5)),
    "batchnorm": lambda: check_gradients(BatchNorm(), normal(4, 3, 5)),
    "batchnorm, frozen": lambda: check_gradients(frozen(BatchNorm()), normal(4, 3, 5)),
    "dropout": lambda: check_gradients(Dropout(0.4), normal(4, 3, 2)),
    "flatten": lambda: check_gradients(Flatten(), normal(4, 3, 2, 2)),
    "globalaveragepool2d": lambda: check_gradients(GlobalAveragePool2D(), normal(4, 3, 5, 2)),
    "normalize": lambda: check_gradients(Normalize([0.1, 0.2], [0.5, 0.6]), normal(4, 3, 3, 2)),
    "softmax and cross-entropy": lambda: check_gradients(LossAsLayer(np.array([2, 0, 1, 1])), normal(4, 3)),
    "smoothed labels": lambda: check_gradients(LossAsLayer(np.array([2, 0, 1, 1]), 0.2), normal(4, 3)),
    "sgd": lambda: check_optimizer(sgd, sgd_formula),
    "adam": lambda: check_optimizer(adam, adam_formula),
    "the check itself": check_of_the_check,
    **{f"preset {name}": lambda name=name: check_preset(name) for name in PRESETS},
}
