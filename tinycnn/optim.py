"""The optimizers, which turn gradients into better weights, and schedules for their learning rate.

An optimizer knows a list of parameters and nothing else. `step()` changes each `value` in place, led by its `grad`.

    for batch in batches:
        ...  # forward, loss, backward: every parameter.grad is now filled
        optimizer.learning_rate = schedule(step)
        optimizer.step()
"""

from collections.abc import Callable
from math import cos, pi

import numpy as np

from tinycnn.kernels import elementwise
from tinycnn.layers import Parameter


class SGD:
    """Stochastic gradient descent, with momentum if wanted. For each parameter w with gradient g:

        g ← g + weight_decay · w            (the gradient of weight_decay/2 · w²)
        v ← momentum · v + g                (v starts at 0)
        w ← w − learning_rate · v           or, nesterov:  w − learning_rate · (g + momentum · v)

    Source: Sutskever et al., On the importance of initialization and momentum (2013), with the learning rate outside
    of v, as in PyTorch, so that a changed rate acts at once.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        learning_rate: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        self.parameters = list(parameters)
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.momentum = _fraction("momentum", momentum)
        self.nesterov = nesterov
        self.weight_decay = _positive("weight_decay", weight_decay)
        self.velocities = [np.zeros_like(p.value) for p in self.parameters]

    def step(self) -> None:
        for p, v in zip(self.parameters, self.velocities, strict=True):
            elementwise.sgd(p.value, p.grad, v, self.learning_rate, self.momentum, self.nesterov, self.weight_decay)


class Adam:
    """Adam, with decoupled weight decay (AdamW). For each parameter w with gradient g, at step t = 1, 2, …:

        m ← beta1 · m + (1 − beta1) · g         the gradient's running mean
        v ← beta2 · v + (1 − beta2) · g²        and that of its square
        w ← w − learning_rate · weight_decay · w
        w ← w − learning_rate · m̂ / (√v̂ + epsilon)   with  m̂ = m / (1 − beta1ᵗ),  v̂ = v / (1 − beta2ᵗ)

    m and v start at 0 and would be too small at first; the division by 1 − betaᵗ makes up for it.
    Sources: Kingma & Ba, Adam (2015), algorithm 1; Loshchilov & Hutter, Decoupled weight decay (2019), algorithm 2.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        self.parameters = list(parameters)
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.beta1, self.beta2 = _fraction("beta1", beta1), _fraction("beta2", beta2)
        self.epsilon = _positive("epsilon", epsilon)
        self.weight_decay = _positive("weight_decay", weight_decay)
        self.t = 0
        self.means = [np.zeros_like(p.value) for p in self.parameters]
        self.squares = [np.zeros_like(p.value) for p in self.parameters]

    def step(self) -> None:
        self.t += 1
        rates = self.learning_rate, self.beta1, self.beta2, self.epsilon, self.weight_decay
        for p, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            elementwise.adam(p.value, p.grad, m, v, *rates, self.t)


# ----------------------------------------------------------------------------------------------------------- schedules

# A schedule is a function of the number of steps already made: learning_rate = schedule(step), step = 0, 1, 2, …
Schedule = Callable[[int], float]


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step."""
    _positive("learning_rate", learning_rate)
    return lambda step: learning_rate


def step_decay(learning_rate: float, every: int, factor: float = 0.1) -> Schedule:
    """The rate times `factor` after every `every` steps.

    >>> schedule = step_decay(1.0, every=10, factor=0.5)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """
    _positive("learning_rate", learning_rate)
    _positive("factor", factor)
    _steps("every", every)
    return lambda step: learning_rate * factor ** (step // every)


def cosine(learning_rate: float, total_steps: int) -> Schedule:
    """From the rate down to 0 along half a cosine.  Source: Loshchilov & Hutter, SGDR (2017), equation 5.

    >>> schedule = cosine(1.0, total_steps=10)
    >>> [round(schedule(step), 3) for step in (0, 5, 10)]
    [1.0, 0.5, 0.0]
    """
    _positive("learning_rate", learning_rate)
    _steps("total_steps", total_steps)
    return lambda step: _half_cosine(learning_rate, 0.0, step / total_steps)


def one_cycle(peak: float, total_steps: int, warm_up: float = 0.3, start: float = 0.1) -> Schedule:
    """From start · peak up to the peak in the first warm_up of the steps, then down to 0, both along half a cosine.

    Source: Smith & Topin, Super-Convergence (2018).

    >>> schedule = one_cycle(1.0, total_steps=100)
    >>> [round(schedule(step), 3) for step in (0, 15, 30, 65, 100)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    _positive("learning_rate", peak)
    _positive("start", start)
    _fraction("warm_up", warm_up)
    _steps("total_steps", total_steps)
    up = max(1.0, warm_up * total_steps)

    def schedule(step: int) -> float:
        if step < up:
            return _half_cosine(start * peak, peak, step / up)
        return _half_cosine(peak, 0.0, (step - up) / max(1.0, total_steps - up))

    return schedule


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + cos(pi * min(1.0, progress))) / 2


def _steps(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1 step, got {value}")


def _positive(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a number of at least 0, got {value}")
    return value


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    return value
