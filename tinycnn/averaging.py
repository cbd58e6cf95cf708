"""The average of a model's weights over the last steps: often a better model than the last step's weights.

Each step follows one batch and goes a little astray. The average over many steps does not, and costs next to nothing.

    average = WeightAverage(model, share=0.2)
    for batch in batches:
        ...  # forward, loss, backward, optimizer.step()
        average.update()
    with average.swapped():
        model.predict(images)  # with the averaged weights

Sources: Polyak & Juditsky, Acceleration of stochastic approximation by averaging (1992); Shamir & Zhang, Stochastic
gradient descent for non-smooth optimization (2013), section 4, for an average that forgets in proportion to its age.

What this file is not: a part of learning. The steps never see the average.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.model import Sequential


class WeightAverage:
    """For every array of the model, after each step:

        average ← d · average + (1 − d) · value        d = (1 + t) / (1 + t + 1 / share) at update t = 0, 1, 2, …

    A moving average whose memory grows with the training: steps long ago count less and less. The last `share` of all
    steps so far soon has 1 − (1 − share)^(1 / share) of its weight, for share = 0.2 two thirds. So the same share is
    right for short and long trainings, and the random start is soon forgotten: with 0.2, after ten updates it counts
    for a three-thousandth. With share = 1 it is the plain mean of the start and every step.

    BatchNorm's running statistics are averaged as well. Each belongs to the weights of its own step; but those differ
    little, so the average of the statistics is close to the statistics that the averaged weights would have.
    """

    def __init__(self, model: Sequential, share: float):
        """Begin with the weights as they are. Raises ValueError unless 0 < share ≤ 1."""
        if not (isinstance(share, Real) and 0 < share <= 1):
            raise ValueError(f"share must be above 0 and at most 1, got {share!r}")
        self.model, self.share, self.updates = model, share, 0
        self._averages = [(f"average.{name}", array.copy()) for name, array in model.state()]

    def update(self) -> None:
        """Take in the model's weights: to be called after each step of the optimizer."""
        d = (1 + self.updates) / (1 + self.updates + 1 / float(self.share))
        self.updates += 1
        for (_, average), (_, value) in zip(self._averages, self.model.state(), strict=True):
            if value.dtype.kind != "f":  # a layer of somebody's own may count something
                average[...] = value
                continue
            difference = np.subtract(value, average, out=empty(value.shape, value.dtype))
            difference *= 1 - d
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
