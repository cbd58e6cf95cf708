"""The average of a model's weights over the last steps: often a better model than the last step's weights.

Each step follows one batch and goes a little astray. The average over many steps does not, and costs next to nothing.

    average = WeightAverage(model, decay=0.999)
    for batch in batches:
        ...  # forward, loss, backward, optimizer.step()
        average.update()
    with average.swapped():
        model.predict(images)  # with the averaged weights

Sources: Polyak & Juditsky, Acceleration of stochastic approximation by averaging (1992); Tarvainen & Valpola, Mean
teachers are better role models (2017), section 2, for the exponential average of a network's weights.

What this file is not: a part of learning. The steps never see the average.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tinycnn.arguments import fraction
from tinycnn.kernels.memory import empty
from tinycnn.model import Sequential


class WeightAverage:
    """For every array of the model, after each step:

        average ← d · average + (1 − d) · value        d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, 2, …

    Steps long ago count less and less: it is an average over about the last 1 / (1 − decay) steps. While there are not
    nine times as many yet, it is one over about the last ninth of them, so that the random start is soon forgotten:
    after ten updates it counts for a hundred-thousandth. (TensorFlow's ExponentialMovingAverage does it so.)

    BatchNorm's running statistics are averaged like the weights. They are those of what the weights of the last steps
    made of the images, so what belongs to an average of weights is nearly the same average of statistics.
    """

    def __init__(self, model: Sequential, decay: float):
        """Begin with the weights as they are. Raises ValueError unless 0 ≤ decay < 1."""
        self.model, self.decay, self.updates = model, fraction("decay", decay), 0
        self._averages = [(f"average.{name}", array.copy()) for name, array in model.state()]

    def update(self) -> None:
        """Take in the model's weights: to be called after each step of the optimizer."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for (_, average), (_, value) in zip(self._averages, self.model.state(), strict=True):
            difference = np.subtract(value, average, out=empty(value.shape, value.dtype))
            difference *= 1 - decay
            average += difference  # d · average + (1 − d) · value, and unchanged to the last bit where they are equal

    def state(self) -> list[tuple[str, np.ndarray]]:
        """The averages by name, to save, or to write what was saved into; beside them only `updates` is needed."""
        return list(self._averages)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the with block the model has the averaged weights, after it its own again. Not to train in."""
        own = [(array, array.copy()) for _, array in self.model.state()]
        for (array, _), (_, average) in zip(own, self._averages, strict=True):
            array[...] = average
        try:
            yield
        finally:
            for array, value in own:
                array[...] = value
