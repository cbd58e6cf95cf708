"""The optimizers, which turn gradients into better weights: by steps against them, as they point where the loss rises.

An optimizer knows a list of parameters and nothing else. `step()` changes each `value` in place, led by its `grad`.

    for batch in batches:
        ...  # forward, loss, backward: every parameter.grad is now filled
        optimizer.learning_rate = schedule(step)
        optimizer.step()

What this file is not: it plans no learning rate; whoever trains sets it.
"""

import numpy as np

from tinycnn.arguments import fraction, not_negative
from tinycnn.kernels import optimizers as kernels
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
        self.learning_rate = not_negative(learning_rate, "learning_rate")
        self.momentum = fraction(momentum, "momentum")
        self.nesterov = nesterov
        self.weight_decay = not_negative(weight_decay, "weight_decay")
        self._places = kernels.Places()  # of the arrays in memory, found once
        self.velocities = [np.zeros_like(p.value) for p in self.parameters]

    def step(self) -> None:
        rates = not_negative(self.learning_rate, "learning_rate"), self.momentum, self.nesterov, self.weight_decay
        values, grads = [p.value for p in self.parameters], [p.grad for p in self.parameters]
        kernels.sgd(self._places, values, grads, self.velocities, *rates)


class Adam:
    """Adam, with decoupled weight decay (AdamW). For each parameter w with gradient g, at step t = 1, 2, …:

        m ← beta1 · m + (1 − beta1) · g         the gradient's running mean
        v ← beta2 · v + (1 − beta2) · g²        and that of its square
        w ← w − learning_rate · weight_decay · w
        w ← w − learning_rate · m̂ / (√v̂ + epsilon)   with  m̂ = m / (1 − beta1ᵗ),  v̂ = v / (1 − beta2ᵗ)

    m and v start at 0 and would be too small at first; the division by 1 − betaᵗ makes up for it.
    Sources: Kingma & Ba, Adam (2015), algorithm 1; Loshchilov & Hutter, Decoupled weight decay (2019), algorithm 2,
    where the decay is not multiplied by the learning rate; here it is, as in PyTorch.
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
        self.learning_rate = not_negative(learning_rate, "learning_rate")
        self.beta1, self.beta2 = fraction(beta1, "beta1"), fraction(beta2, "beta2")
        self.epsilon = not_negative(epsilon, "epsilon")
        self.weight_decay = not_negative(weight_decay, "weight_decay")
        self.t = 0
        self._places = kernels.Places()  # of the arrays in memory, found once
        self.means = [np.zeros_like(p.value) for p in self.parameters]
        self.squares = [np.zeros_like(p.value) for p in self.parameters]

    def step(self) -> None:
        learning_rate = not_negative(self.learning_rate, "learning_rate")
        rates = learning_rate, self.beta1, self.beta2, self.epsilon, self.weight_decay
        self.t += 1
        values, grads = [p.value for p in self.parameters], [p.grad for p in self.parameters]
        kernels.adam(self._places, values, grads, self.means, self.squares, *rates, self.t)
