"""The classic mistakes of backpropagation, each a small patch that is planted on request.

A `Bug` knows which check of `gradient_checks.py` must catch it, and by what. `scripts/check_gradients.py` shows them,
`tests/test_planted_bugs.py` proves that every one is caught.

What this file is not: part of the package; nothing is changed unless a bug's `planted` says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinycnn import (
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    MaxPool2D,
    Normalize,
    ReLU,
    SoftmaxCrossEntropy,
    gradcheck,
    layers,
    more_layers,
    optim,
)
from tinycnn.kernels import convolution_backward
from tinycnn.loss import softmax


@dataclass
class Bug:
    """A mistake: owner.attribute becomes patch(the original) while it is planted."""

    name: str
    check: str  # the one that must catch it
    caught_by: str  # the array whose gradient is wrong, or the beginning of the promise that breaks
    does: str
    shows: str
    owner: Any
    attribute: str
    patch: Callable

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug is there inside the with block, and gone after it."""
        original = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, self.patch(original))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, original)


def in_result(change: Callable) -> Callable:
    """A patch that changes what a function or method returns: change(result, *arguments)."""

    def patch(original):
        return lambda *arguments, **keywords: change(original(*arguments, **keywords), *arguments)

    return patch


def in_arguments(change: Callable) -> Callable:
    """A patch that changes what a function or method is given: change(*arguments) -> arguments."""

    def patch(original):
        return lambda *arguments: original(*change(*arguments))

    return patch


def instead(function: Callable) -> Callable:
    """A patch that puts another function there."""
    return lambda original: function


def accumulating(original):
    """backward that adds to the gradient that is there."""

    def backward(self, dy):
        before = self.weight.grad.copy()
        dx = original(self, dy)
        self.weight.grad += before
        return dx

    return backward


def averaging_bias(original):
    """parameter_gradients with the mean where the sum belongs."""

    def parameter_gradients(self, dy):
        original(self, dy)
        self.bias.grad /= len(dy)

    return parameter_gradients


def in_float32(original):
    """A convolution in single precision, whatever is asked for."""

    def convolve(x, w, b, *sizes, **keywords):
        single = [a.astype(np.float32) for a in (x, w, b)]
        return original(*single, *sizes, **keywords).astype(x.dtype)

    return convolve


def keeping_x(backward: Callable) -> Callable:
    """A patch of MaxPool2D.forward that makes backward(layer, dy, x) the layer's own."""

    def patch(original):
        def forward(self, x, training=False):
            y = original(self, x, training)
            self.backward = lambda dy: backward(self, dy, np.asarray(x))
            return y

        return forward

    return patch


def to_every_maximum(layer, dy, x):
    """2×2 windows side by side: all cells that equal the maximum receive dy."""
    y = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1)
    return ((y == y.max(axis=(2, 4), keepdims=True)) * dy[:, :, None, :, None]).reshape(x.shape).astype(dy.dtype)


def to_all_evenly(layer, dy, x):
    """As an average pool would."""
    return np.kron(dy, np.ones((1, 2, 2, 1), dy.dtype)) / 4


def overwriting(layer, dy, x):
    """Windows overlap, but each writes = where += belongs."""
    dx = np.zeros_like(x, dtype=dy.dtype)
    (pool_h, pool_w), (stride_h, stride_w) = layer.pool_size, layer.stride
    for n, i, j, c in np.ndindex(dy.shape):
        window = x[n, i * stride_h : i * stride_h + pool_h, j * stride_w : j * stride_w + pool_w, c]
        a, b = np.unravel_index(window.argmax(), window.shape)
        dx[n, i * stride_h + a, j * stride_w + b, c] = dy[n, i, j, c]
    return dx


def relu_in_place(self, x, training=False):
    """Saves memory, and ruins the input for everyone else."""
    self._memory = (x.shape, (x > 0).astype(np.uint8))
    np.maximum(x, 0, out=x)
    return x.copy()


def one_buffer(original):
    """forward that returns the same memory each time."""
    buffers = {}

    def forward(self, x, training=False):
        y = original(self, x, training)
        buffer = buffers.setdefault((y.shape, y.dtype), y)
        buffer[...] = y
        return buffer

    return forward


def without_the_mean_term(result, dy, x, mean, sigma, gamma, *_):
    """BatchNorm's gradients, with what the mean contributes to dx put back."""
    dx, dgamma, dbeta = result
    return dx + gamma / sigma * dbeta / len(x), dgamma, dbeta


def without_the_variance_term(result, dy, x, mean, sigma, gamma, *_):
    """The same for the variance."""
    dx, dgamma, dbeta = result
    return dx + gamma / sigma * (x - mean) / sigma * dgamma / len(x), dgamma, dbeta


def new_mask(self, dy):
    """Dropout's backward with a mask of its own."""
    return dy * (self.generator.random(dy.shape) >= self.rate) / (1 - self.rate)


def without_target(original):
    """The gradient of the softmax part alone."""

    def forward(self, logits, labels):
        value = original(self, logits, labels)
        self._dlogits = softmax(logits) / logits.dtype.type(len(logits))
        return value

    return forward


def smoothing_the_value_only(original):
    """SoftmaxCrossEntropy.forward whose gradient is that of the labels as they were."""

    def forward(self, logits, labels):
        value, smoothing = original(self, logits, labels), self.label_smoothing
        self.label_smoothing = 0.0
        original(self, logits, labels)
        self.label_smoothing = smoothing
        return value

    return forward


def decay_in_the_gradients(places, values, grads, means, squares, rate, beta1, beta2, epsilon, decay, t):
    """Arguments of Adam with the decay where SGD has it."""
    grads = [g + decay * w for w, g in zip(values, grads, strict=True)]
    return places, values, grads, means, squares, rate, beta1, beta2, epsilon, 0.0, t


def resetting(original):
    """Adam that forgets what it has seen."""

    def adam(places, values, grads, means, squares, *rates):
        for moment in (*means, *squares):
            moment[...] = 0
        original(places, values, grads, means, squares, *rates)

    return adam


BUGS = [
    Bug(
        "conv-kernel-not-flipped",
        "conv2d",
        "input",
        "dX convolves dy with the kernel as it is, not turned by 180 degrees.",
        "dX is right only where a kernel is symmetric; the layer still learns, the layers before it get nonsense.",
        convolution_backward,
        "convolve_input_gradient",
        in_arguments(lambda dy, w, *sizes: (dy, w[::-1, ::-1].copy(), *sizes)),
    ),
    Bug(
        "conv-channels-not-swapped",
        "conv2d, square",
        "input",
        "dX uses w[a, b, c, o] with c and o in each other's place.",
        "Shapes fit only where a layer has as many filters as channels, and there it goes unseen.",
        convolution_backward,
        "convolve_input_gradient",
        in_arguments(lambda dy, w, *sizes: (dy, w.transpose(0, 1, 3, 2).copy(), *sizes)),
    ),
    Bug(
        "conv-padding-forgotten-in-dx",
        "conv2d",
        "input",
        "dX is cut out of dz without moving by the padding.",
        "Every gradient arrives a few pixels away from where it belongs.",
        convolution_backward,
        "convolve_input_gradient",
        in_arguments(lambda dy, w, size, stride, padding: (dy, w, size, stride, (0, 0))),
    ),
    Bug(
        "conv-stride-forgotten-in-dx",
        "conv2d",
        "input",
        "dX takes neighbouring dy for neighbouring windows, though the kernel jumped.",
        "Right for stride 1, wrong for every other.",
        convolution_backward,
        "convolve_input_gradient",
        in_arguments(lambda dy, w, size, stride, padding: (dy, w, size, (1, 1), padding)),
    ),
    Bug(
        "conv-stride-forgotten-in-dw",
        "conv2d",
        "conv2d_1.weight",
        "dW pairs dy[i, j] with the input at (i, j), not at (i · stride, j · stride).",
        "Right for stride 1, wrong for every other.",
        convolution_backward,
        "convolve_weight_gradient",
        in_arguments(lambda x, dy, kernel, stride, padding: (x, dy, kernel, (1, 1), padding)),
    ),
    Bug(
        "conv-padding-forgotten-in-dw",
        "conv2d",
        "conv2d_1.weight",
        "dW reads the input without the zeros around it.",
        "Right without padding, shifted with it.",
        convolution_backward,
        "convolve_weight_gradient",
        in_arguments(lambda x, dy, kernel, stride, padding: (x, dy, kernel, stride, (0, 0))),
    ),
    Bug(
        "conv-bias-gradient-missing",
        "conv2d",
        "conv2d_1.bias",
        "db is left at zero.",
        "The biases never learn; with BatchNorm behind, nobody would notice.",
        convolution_backward,
        "convolve_weight_gradient",
        in_result(lambda result, *_: (result[0], 0 * result[1])),
    ),
    Bug(
        "conv-height-and-width-swapped",
        "conv2d, square",
        "conv2d_1.weight",
        "dW[a, b] and dW[b, a] change places.",
        "Shapes fit for square kernels; with dy of ones and symmetric inputs even the numbers do.",
        convolution_backward,
        "convolve_weight_gradient",
        in_result(lambda result, *_: (result[0].transpose(1, 0, 2, 3), result[1])),
    ),
    Bug(
        "conv-last-image-left-out",
        "conv2d",
        "conv2d_1.weight",
        "dW sums over all images but the last.",
        "A slightly noisier gradient: training looks normal.",
        convolution_backward,
        "convolve_weight_gradient",
        in_arguments(lambda x, dy, *sizes: (x[:-1], dy[:-1], *sizes)),
    ),
    Bug(
        "conv-float32-inside",
        "conv2d",
        "input",
        "The kernel works in float32 even if the layer is in float64.",
        "Differences of the forward lose all their digits: no gradient could be checked any more.",
        layers,
        "convolve",
        in_float32,
    ),
    Bug(
        "conv-batch-rolled",
        "conv2d",
        "input",
        "Each image receives the dX of its neighbour in the batch.",
        "Sums over the batch stay right: only a check of single elements sees it.",
        Conv2D,
        "backward",
        in_result(lambda dx, *_: np.roll(dx, 1, axis=0)),
    ),
    Bug(
        "conv-gradient-accumulated",
        "conv2d",
        "the gradient of conv2d_1.weight differs",
        "dW is added to the one before where it should replace it.",
        "The first step is right, each later one drags all the earlier gradients along.",
        Conv2D,
        "backward",
        accumulating,
    ),
    Bug(
        "pool-every-tied-maximum",
        "maxpool2d, tied",
        "input",
        "Every cell that equals the maximum receives all of dy.",
        "Unseen with random inputs; in plain areas of real images a gradient is counted up to four times.",
        MaxPool2D,
        "forward",
        keeping_x(to_every_maximum),
    ),
    Bug(
        "pool-spread-evenly",
        "maxpool2d",
        "input",
        "dy is shared out to all cells, as an average pool does.",
        "The sum is right, so a check with dy of ones passes.",
        MaxPool2D,
        "forward",
        keeping_x(to_all_evenly),
    ),
    Bug(
        "pool-windows-overwrite",
        "maxpool2d, overlapping",
        "input",
        "A cell that is the maximum of two windows keeps the gradient of the last one only.",
        "Right as long as windows stand side by side.",
        MaxPool2D,
        "forward",
        keeping_x(overwriting),
    ),
    Bug(
        "relu-gated-by-the-gradient",
        "relu",
        "input",
        "dx = dy where dy > 0; it should be where x > 0.",
        "Every gradient that passes is positive: biases can only fall.",
        layers,
        "relu_backward",
        instead(lambda dy, active: dy * (dy > 0)),
    ),
    Bug(
        "relu-lets-all-through",
        "relu",
        "input",
        "dx = dy everywhere.",
        "Units that did not fire are blamed as well.",
        layers,
        "relu_backward",
        instead(lambda dy, active: dy.copy()),
    ),
    Bug(
        "relu-in-place",
        "relu",
        "forward or backward changed the input",
        "forward writes its result over its input.",
        "Whoever else uses that array, a branch of the network or the next epoch, finds it changed.",
        ReLU,
        "forward",
        instead(relu_in_place),
    ),
    Bug(
        "relu-one-buffer",
        "relu",
        "the output was overwritten",
        "forward returns the same memory each time.",
        "A result that somebody kept changes behind his back.",
        ReLU,
        "forward",
        one_buffer,
    ),
    Bug(
        "dense-weights-not-transposed",
        "dense",
        "input",
        "dx = dy · w; it should be dy · wᵀ.",
        "Shapes fit where a layer has as many units as inputs.",
        Dense,
        "backward",
        in_result(lambda dx, self, dy: dy @ self.weight.value),
    ),
    Bug(
        "dense-bias-gradient-averaged",
        "dense",
        "dense_1.bias",
        "db is the mean over the batch, but the loss has already divided by it.",
        "Biases learn slower, the more the larger the batch.",
        Dense,
        "parameter_gradients",
        averaging_bias,
    ),
    Bug(
        "batchnorm-without-the-mean-term",
        "batchnorm",
        "input",
        "dx forgets that every x moves the mean.",
        "dx no longer sums to zero over a channel.",
        more_layers.kernels,
        "backward",
        in_result(without_the_mean_term),
    ),
    Bug(
        "batchnorm-without-the-variance-term",
        "batchnorm",
        "input",
        "dx forgets that every x moves the variance.",
        "Training still works, a little worse: the mistake of most first versions.",
        more_layers.kernels,
        "backward",
        in_result(without_the_variance_term),
    ),
    Bug(
        "batchnorm-gamma-forgotten",
        "batchnorm",
        "input",
        "dx lacks the factor gamma.",
        "Unseen at the start, where gamma is 1: that is why the check moves the parameters first.",
        BatchNorm,
        "backward",
        in_result(lambda dx, self, dy: dx / self.gamma.value),
    ),
    Bug(
        "batchnorm-unbiased-variance",
        "batchnorm",
        "input",
        "forward divides by M − 1, backward believes it was M.",
        "Off by 1/M: lost in any check with a tolerance of a percent.",
        more_layers.kernels,
        "mean_and_sigma",
        in_result(lambda result, x, *_: (result[0], result[1] * np.sqrt(len(x) / (len(x) - 1)))),
    ),
    Bug(
        "dropout-unscaled",
        "dropout",
        "input",
        "backward masks dy but does not divide by 1 − rate.",
        "Layers before it learn at a smaller rate.",
        Dropout,
        "backward",
        in_result(lambda dx, self, dy: dx * (1 - self.rate)),
    ),
    Bug(
        "dropout-new-mask",
        "dropout",
        "input",
        "backward draws another mask than forward.",
        "Numbers that were dropped are blamed, others that counted are not.",
        Dropout,
        "backward",
        instead(new_mask),
    ),
    Bug(
        "flatten-in-another-order",
        "flatten",
        "input",
        "backward reads the row column by column.",
        "All gradients are there, at the wrong pixels.",
        Flatten,
        "backward",
        in_result(lambda dx, self, dy: dy.reshape(dx.shape, order="F")),
    ),
    Bug(
        "average-not-shared-out",
        "globalaveragepool2d",
        "input",
        "Every pixel receives all of dy, not its part of it.",
        "As if the layers before it had a learning rate H · W times as large.",
        GlobalAveragePool2D,
        "backward",
        in_result(lambda dx, *_: dx * dx.shape[1] * dx.shape[2]),
    ),
    Bug(
        "average-channels-mixed-up",
        "globalaveragepool2d",
        "input",
        "backward repeats each channel's number side by side, where the whole row of channels should repeat.",
        "Pixels are blamed for channels they had no part in; the sum over an image is right.",
        GlobalAveragePool2D,
        "backward",
        in_result(lambda dx, self, dy: dx[:, 0, 0].repeat(dx[0, ..., 0].size, axis=1).reshape(dx.shape)),
    ),
    Bug(
        "normalize-255-forgotten",
        "normalize",
        "input",
        "backward divides by std but not by 255.",
        "Only a saliency map would show it, by its scale.",
        Normalize,
        "backward",
        in_result(lambda dx, *_: dx * 255),
    ),
    Bug(
        "loss-mean-twice",
        "softmax and cross-entropy",
        "input",
        "The gradient is divided by the batch size once more.",
        "As if the learning rate were N times smaller; Adam hides it nearly.",
        SoftmaxCrossEntropy,
        "backward",
        in_result(lambda d, self: d / len(d)),
    ),
    Bug(
        "loss-mean-never",
        "softmax and cross-entropy",
        "input",
        "The gradient is that of the sum over the batch, the loss the mean.",
        "As if the learning rate were N times larger.",
        SoftmaxCrossEntropy,
        "backward",
        in_result(lambda d, self: d * len(d)),
    ),
    Bug(
        "loss-target-forgotten",
        "softmax and cross-entropy",
        "input",
        "The gradient is p, not p − target.",
        "All logits fall; the loss does not.",
        SoftmaxCrossEntropy,
        "forward",
        without_target,
    ),
    Bug(
        "loss-smoothing-without-gradient",
        "smoothed labels",
        "input",
        "The loss is that of smoothed labels, the gradient still p − the plain label.",
        "Printed losses look smoothed, but the network learns as if they were not.",
        SoftmaxCrossEntropy,
        "forward",
        smoothing_the_value_only,
    ),
    Bug(
        "sgd-momentum-sign",
        "sgd",
        "weight",
        "v ← g − momentum · v.",
        "It brakes where it should gather speed.",
        optim.kernels,
        "sgd",
        in_arguments(lambda p, w, g, v, rate, momentum, *rest: (p, w, g, v, rate, -momentum, *rest)),
    ),
    Bug(
        "sgd-nesterov-ignored",
        "sgd",
        "weight",
        "nesterov=True does plain momentum.",
        "Slightly slower, never wrong enough to notice.",
        optim.kernels,
        "sgd",
        in_arguments(lambda p, w, g, v, rate, momentum, nesterov, decay: (p, w, g, v, rate, momentum, False, decay)),
    ),
    Bug(
        "adam-without-bias-correction",
        "adam",
        "weight",
        "m and v are used as they are, too small in the first steps.",
        "The first steps are too large, since v is the smaller one.",
        optim.kernels,
        "adam",
        in_arguments(lambda *arguments: (*arguments[:-1], 10**9)),
    ),
    Bug(
        "adam-moments-reset",
        "adam",
        "weight",
        "m and v start at zero at every step.",
        "All weights move equally far, whatever the size of their gradients: sign descent.",
        optim.kernels,
        "adam",
        resetting,
    ),
    Bug(
        "adam-decay-in-the-gradient",
        "adam",
        "weight",
        "Weight decay is added to the gradient, as in SGD.",
        "Adam then divides it by √v: weights with large gradients hardly decay.",
        optim.kernels,
        "adam",
        in_arguments(decay_in_the_gradients),
    ),
    Bug(
        "cotangent-of-ones",
        "the check itself",
        "a backward of zeros passed",
        "The check weighs all outputs alike instead of at random.",
        "A softmax whose backward is zero passes, and so does whatever only mixes up equals.",
        gradcheck,
        "_cotangent",
        instead(lambda shape, random: np.ones(shape)),
    ),
]
