"""The layers that a network can do without, and often does better with.

Normalize, BatchNorm, Dropout and GlobalAveragePool2D are written like the layers of `tinycnn/layers.py`, the place to
begin. BatchNorm and Dropout do one thing in training and another in inference. The formulas are in
`tinycnn/more_reference.py`, but for Normalize's, which is too short to hide a mistake.

What this file is not: necessary to understand backpropagation.
"""

from numbers import Real

import numpy as np

from tinycnn.kernels import batch_norm as kernels
from tinycnn.kernels.elementwise import normalize
from tinycnn.kernels.memory import contiguous, copy, empty
from tinycnn.layers import Layer, Parameter


class Normalize(Layer):
    """y = (pixel / 255 − mean) / std: raw uint8 images in, numbers around zero out, in the model's dtype.

    mean and std are numbers or one number a channel. Images without a channel axis, (N, H, W), get one.
    """

    def __init__(self, mean: float | list[float], std: float | list[float]):
        if not np.all(np.isfinite(mean)) or not np.all(np.isfinite(std) & (np.asarray(std) > 0)):
            raise ValueError(f"Normalize: needs a finite mean and a std greater than 0, got {mean} and {std}")
        if max(np.ndim(mean), np.ndim(std)) > 1 or min(np.size(mean), np.size(std)) == 0:
            raise ValueError(f"Normalize: needs numbers or one number a channel, got {mean} and {std}")
        self.mean, self.std = np.asarray(mean).tolist(), np.asarray(std).tolist()
        self.dtype = np.dtype(np.float32)

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        shape = (*input_shape, 1) if len(input_shape) == 2 else input_shape
        if not {np.size(self.mean), np.size(self.std)} <= {1, shape[-1]}:
            raise ValueError(
                f"{self.label()}: got images of shape {shape}, but has {np.size(self.mean)} means and "
                f"{np.size(self.std)} standard deviations: it needs one, or one a channel"
            )
        return shape

    def forward(self, x, training=False):
        x = np.asarray(x)
        images = contiguous(x[..., None] if x.ndim == 3 else x, x.dtype if x.dtype == np.uint8 else self.dtype)
        mean, std = (np.full(images.shape[-1], of_channel, self.dtype) for of_channel in (self.mean, self.std))
        y = normalize(images, mean, std)
        if training:
            self.remember(y.shape, x.shape)
        return y

    def backward(self, dy):
        dy, input_shape = self.recall(dy)
        dx = np.divide(dy, np.asarray(self.std, self.dtype), out=empty(dy.shape, self.dtype))
        dx /= 255
        return dx.reshape(input_shape)


class BatchNorm(Layer):
    """y = gamma · (x − mean) / √(variance + epsilon) + beta, channel by channel   (`more_reference.batch_norm`).

    x (..., C) -> y (..., C). In training, mean and variance are those of the batch, over all axes but the last, and
    running = momentum · running + (1 − momentum) · batch keeps their average, which inference then uses. (That is the
    sense of momentum in Keras; PyTorch's is 1 − ours. The variance is the biased one, also in the running average.)
    A frozen BatchNorm uses the running ones in training as well, and leaves them as they are. (`frozen` is not saved.)
    """

    frozen = False

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5):
        numbers = isinstance(momentum, Real) and isinstance(epsilon, Real)
        if not (numbers and 0 <= momentum <= 1 and 1e-37 <= epsilon <= 1e37):  # what float32 can hold
            raise ValueError(
                f"BatchNorm: needs 0 ≤ momentum ≤ 1 and 1e-37 ≤ epsilon ≤ 1e37, got {momentum!r} and {epsilon!r}"
            )
        self.momentum, self.epsilon = float(momentum), float(epsilon)
        self.gamma = self.beta = self.running_mean = self.running_variance = None

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        channels = input_shape[-1]
        self.gamma = Parameter(f"{self.name}.gamma", np.ones(channels, dtype), np.zeros(channels, dtype))
        self.beta = Parameter(f"{self.name}.beta", np.zeros(channels, dtype), np.zeros(channels, dtype))
        self._parameters, self._weight_shape = (self.gamma, self.beta), (channels,)
        self.running_mean, self.running_variance = np.zeros(channels, dtype), np.ones(channels, dtype)
        return input_shape

    def forward(self, x, training=False):
        return self.forward_with_relu(x, training, relu=False)[0]

    def forward_with_relu(self, x, training=False, relu=True) -> tuple[np.ndarray, np.ndarray | None]:
        """What a ReLU makes of forward(x), all at once; and in training what it would remember."""
        gamma, beta = self.value(self.gamma, self._weight_shape), self.value(self.beta, self._weight_shape)
        x, channels = np.asarray(x), len(gamma)
        x = self._input(x, x.ndim >= 2 and x.shape[-1] == channels, "(..., {})", channels)
        rows = x.reshape(-1, channels)
        mean, variance = running = self._running(channels)
        if training and not self.frozen:
            if not len(rows):
                raise ValueError(f"{self.label()}: an empty batch has no mean")
            # which also changes both in place: running += (1 − momentum) · (batch − running)
            mean, sigma = kernels.mean_and_sigma(rows, *running, 1 - self.momentum, self.epsilon)
            self.running_mean[:], self.running_variance[:] = running  # which may be copies, of somebody's arrays
        else:
            sigma = np.sqrt(variance + variance.dtype.type(self.epsilon))
        y, active = kernels.scale_and_shift(rows, mean, sigma, gamma, beta, relu, remember=training)
        if training:
            self.remember(x.shape, rows, mean, sigma, self.frozen)
        return y.reshape(x.shape), None if active is None else active.reshape(x.shape)

    def backward(self, dy, active: np.ndarray | None = None):
        """active: of a ReLU behind this, to which dy came back; its own backward is done here as well."""
        dy, x, mean, sigma, frozen = self.recall(dy)
        dx, self.gamma.grad[:], self.beta.grad[:] = kernels.backward(
            dy.reshape(x.shape), x, mean, sigma, self.value(self.gamma, self._weight_shape), frozen, active
        )
        return dx.reshape(dy.shape)

    def _running(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """running_mean and running_variance as the kernels take them; somebody may have put others there."""
        if np.shape(self.running_mean) != (channels,) or np.shape(self.running_variance) != (channels,):
            raise ValueError(f"{self.label()}: running_mean and running_variance must have shape ({channels},)")
        return self._numbers(np.asarray(self.running_mean)), self._numbers(np.asarray(self.running_variance))

    def statistics(self):
        return [
            (f"{self.name}.running_mean", self.running_mean),
            (f"{self.name}.running_variance", self.running_variance),
        ]


class Dropout(Layer):
    """y = x / (1 − rate) with probability 1 − rate, else 0; in inference y = x   (`more_reference.dropout`).

    The mask comes from `generator`, which the model seeds.
    """

    def __init__(self, rate: float):
        if not (isinstance(rate, Real) and 0 <= rate < 1 - 2**-25):
            raise ValueError(f"Dropout: needs 0 ≤ rate < 1, got {rate!r} (rounded to float32)")
        self.rate = float(rate)
        self.generator = np.random.default_rng(0)

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        self.generator = generator.spawn(1)[0]
        return input_shape

    def forward(self, x, training=False):
        x = self._numbers(np.asarray(x))
        if not training:
            return copy(x)
        random = self.generator.random(dtype=np.float32, out=empty(x.shape, np.dtype(np.float32)))
        factor = np.greater_equal(random, self.rate, out=empty(x.shape, x.dtype))
        factor /= 1 - self.rate
        y = np.multiply(x, factor, out=empty(x.shape, x.dtype))
        self.remember(y.shape, factor)
        return y

    def backward(self, dy):
        dy, factor = self.recall(dy)
        return np.multiply(dy, factor, out=empty(dy.shape, dy.dtype))


class GlobalAveragePool2D(Layer):
    """y[n, c] = the mean of channel c over the whole image   (`more_reference.global_average_pool2d`).

    x (N, H, W, C) -> y (N, C). Where Flatten hands every number on to a wide Dense, this hands on one a channel: few
    weights, and it doesn't matter where in the image something was found.
    """

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        if len(input_shape) != 3:
            raise ValueError(f"{self.label()}: needs images (height, width, channels), got {input_shape}")
        return input_shape[2:]

    def forward(self, x, training=False):
        x = np.asarray(x)
        x = self._input(x, x.ndim == 4 and min(x.shape[1:3]) >= 1, "(N, H, W, C) with H, W of at least 1")
        # First down, then across: a number is rounded H + W times, not H · W; and NumPy's mean over both is slower.
        rows = np.add.reduce(x, axis=1, out=empty((len(x), *x.shape[2:]), x.dtype))
        y = np.add.reduce(rows, axis=1) / (x.shape[1] * x.shape[2])
        if training:
            self.remember(y.shape, x.shape)
        return y

    def backward(self, dy):
        dy, input_shape = self.recall(dy)
        share = dy / (input_shape[1] * input_shape[2])
        return copy(np.broadcast_to(share[:, None, None], input_shape))
