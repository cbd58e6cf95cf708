"""The layers: what a network is made of. Each is a thin class around functions of `tinycnn/kernels/`.

Every layer has two methods that do all the work:

    forward(x, training=False) -> y        training=True also remembers what backward needs (x itself, where it needs x)
    backward(dy) -> dx                     the gradient by its input; overwrites the gradients of its parameters

What they return never shares memory with what they were given. Until backward, x and the weights must stay as they are.

A layer learns its input shape, its dtype and its random start from the model (`build`). The formulas and where they
come from are in `tinycnn/reference.py`. Within a model some neighbours go forward and back together, which is faster,
with the same results (but for a rounding, `together.py`); `train_mnist.py --one-by-one` shows what a change here does.

What this file is not: a layer knows no loss, no optimizer and no other layer, and never changes a weight.
"""

from dataclasses import dataclass
from inspect import signature
from math import prod, sqrt

import numpy as np

from tinycnn.arguments import pair, plain, real_dtype, whole
from tinycnn.kernels.convolution import convolve
from tinycnn.kernels.convolution_backward import convolve_backward, convolve_weight_gradient
from tinycnn.kernels.dense import dense, dense_input_gradient, dense_weight_gradient
from tinycnn.kernels.elementwise import copy_shared, relu, relu_backward
from tinycnn.kernels.memory import contiguous
from tinycnn.kernels.pooling import max_pool, max_pool_backward

Shape = tuple[int, ...]


@dataclass(eq=False)
class Parameter:
    """A named array that learns, and the gradient of the loss by it (of the same shape)."""

    name: str
    value: np.ndarray
    grad: np.ndarray


class Layer:
    """What all layers share. A layer of your own overrides forward and backward, and of the rest only what differs."""

    name = ""  # given by the model: "conv2d_1"
    dtype: np.dtype | None = None  # given by the model; until then a layer works in the dtype of its input
    _memory = None  # what forward leaves for backward, see `remember`
    _parameters: tuple[Parameter, ...] = ()  # what learns
    _weight_shape: Shape = ()  # the bias has the last of it

    def build(self, input_shape: Shape, generator: np.random.Generator, dtype: np.dtype, gain: float) -> Shape:
        """Prepare for inputs of this shape (without the batch), create the parameters; return the output's shape.

        gain / (number of inputs that one output sums) is the variance of a new weight; the model chooses gain.
        Raises ValueError if the shape can't fit.
        """
        self.dtype = np.dtype(dtype)
        return input_shape

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} has no forward of its own")

    def backward(self, dy: np.ndarray) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} has no backward of its own")

    def parameter_gradients(self, dy: np.ndarray) -> None:
        """backward for the first layer that learns: nobody asks for its dx, so it may save the work."""
        self.backward(dy)

    def parameters(self) -> list[Parameter]:
        """What an optimizer changes, always in the same order."""
        return list(self._parameters)

    def statistics(self) -> list[tuple[str, np.ndarray]]:
        """Arrays of the trained layer that no gradient changes; they are saved. Real numbers must be of its dtype."""
        return []

    def arguments(self) -> dict:
        """What to call the class with to make this layer again, in plain numbers and lists (it is saved as JSON).

        A layer keeps each argument of its __init__ as an attribute of that name.
        """
        return plain({name: getattr(self, name) for name in signature(type(self)).parameters})

    def multiply_adds(self) -> int:
        """Multiply-adds of one image's forward pass."""
        return 0

    def label(self) -> str:
        """How errors and tables call this layer."""
        return self.name or type(self).__name__

    def _input(self, x: np.ndarray, fits: bool, needs: str, *sizes) -> np.ndarray:
        """x as the kernels take it. needs: what would fit, for the error, with a {} for each of the sizes."""
        if not fits:
            raise ValueError(f"{self.label()}: got an input of shape {x.shape}, but needs {needs.format(*sizes)}")
        return self._numbers(x)

    def _numbers(self, array: np.ndarray) -> np.ndarray:
        """The array as the kernels take it."""
        return contiguous(array, real_dtype(array.dtype, self.label()) if self.dtype is None else self.dtype)

    def value(self, parameter: Parameter | None, shape: Shape | None = None) -> np.ndarray:
        """A parameter's value as the kernels take it, of that shape (or its gradient's), whoever put it there."""
        if parameter is None:
            raise ValueError(
                f"{self.label()} has no parameters yet: put it into a Sequential, which knows its input shape"
            )
        found, of_grad = parameter.value.shape, parameter.grad.shape
        if not found == of_grad == (shape or of_grad):
            wrong, needed = (of_grad, found) if found == shape else (found, shape or of_grad)
            raise ValueError(f"{parameter.name} has shape {wrong}, but needs {needed}")
        return contiguous(parameter.value, self.dtype)

    def remember(self, output_shape: Shape, *what: np.ndarray) -> None:
        """What backward will need, with the layer's settings, which must stay the same until then."""
        self._memory = (output_shape, *what)

    def recall(self, dy: np.ndarray) -> tuple[np.ndarray, ...]:
        """dy as the kernels take it, and what was remembered."""
        output_shape, *what = self.remembered()
        if np.shape(dy) != output_shape:
            raise ValueError(f"{self.label()}: got a gradient of shape {np.shape(dy)} for an output of {output_shape}")
        return self._numbers(np.asarray(dy)), *what

    def remembered(self) -> tuple:
        """The shape of the output, and what else was remembered."""
        if self._memory is None:
            raise ValueError(f"{self.label()}: backward needs a forward(x, training=True) before it")
        return tuple(self._memory)  # which may be computed only now: `Later` in together.py


class Conv2D(Layer):
    """y[n, i, j, o] = bias[o] + Σ_{a,b,c} z[n, i·sh + a, j·sw + b, c] · w[a, b, c, o]   (`reference.conv2d`).

    x (N, H, W, C) -> y (N, (H + 2·padding − kh) // sh + 1, the same for W, filters); w (kh, kw, C, filters); z is x
    inside `padding` zeros, (sh, sw) the stride. kernel_size, stride and padding: an int, or a pair (height, width).
    """

    def __init__(self, filters: int, kernel_size, stride=1, padding=0, use_bias: bool = True):
        self.filters = whole(filters, "Conv2D: filters")
        self.kernel_size = pair(kernel_size, "Conv2D: kernel_size")
        self.stride = pair(stride, "Conv2D: stride")
        self.padding = pair(padding, "Conv2D: padding", minimum=0)
        self.use_bias = bool(use_bias)
        self.weight = self.bias = None

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        if len(input_shape) != 3:
            raise ValueError(f"{self.label()}: needs images (height, width, channels), got {input_shape}")
        out = self._output_size(input_shape)
        if min(out) < 1:
            raise ValueError(
                f"{self.label()}: got images of {input_shape[0]} × {input_shape[1]}, but a kernel of "
                f"{self.kernel_size} with padding {self.padding} needs larger ones"
            )
        _create_parameters(self, (*self.kernel_size, input_shape[2], self.filters), generator, gain)
        self._multiply_adds = prod(out) * self.weight.value.size
        return (*out, self.filters)

    def forward(self, x, training=False):
        x, *others = self.ready(x)
        y = convolve(x, *others, self.stride, self.padding)
        if training:
            self.remember(y.shape, x)
        return y

    def ready(self, x) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
        """x, w and b as the kernels take them, and the size of the output."""
        w, b = self.value(self.weight, self._weight_shape), self.value(self.bias, self._weight_shape[-1:])
        x, channels = np.asarray(x), w.shape[2]
        output_size = self._output_size(x.shape[1:]) if x.ndim == 4 else (0, 0)
        fits = min(output_size) >= 1 and x.shape[3] == channels
        x = self._input(x, fits, "(N, H, W, {}) with padded H, W no smaller than {}", channels, self.kernel_size)
        return x, w, b, output_size

    def backward(self, dy):
        dy, x = self.recall(dy)
        w = self.value(self.weight, self._weight_shape)
        dx, self.weight.grad[:], self.bias.grad[:] = convolve_backward(x, dy, w, self.stride, self.padding)
        return dx

    def parameter_gradients(self, dy):
        dy, x = self.recall(dy)
        self.weight.grad[:], self.bias.grad[:] = convolve_weight_gradient(
            x, dy, self.kernel_size, self.stride, self.padding
        )

    def multiply_adds(self):
        return self._multiply_adds

    def _output_size(self, shape: Shape) -> tuple[int, int]:
        return _windows(shape[0] + 2 * self.padding[0], shape[1] + 2 * self.padding[1], self.kernel_size, self.stride)


class MaxPool2D(Layer):
    """y[n, i, j, c] = max of the window at (i·stride, j·stride); the first maximum wins   (`reference.max_pool2d`).

    x (N, H, W, C) -> y (N, (H − pool_h) // stride + 1, the same for W, C): whole windows only. They may overlap.
    pool_size and stride: an int, or a pair (height, width); without a stride the windows stand side by side.
    """

    def __init__(self, pool_size, stride=None):
        self.pool_size = pair(pool_size, "MaxPool2D: pool_size")
        self.stride = self.pool_size if stride is None else pair(stride, "MaxPool2D: stride")

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        if len(input_shape) != 3 or min(_windows(*input_shape[:2], self.pool_size, self.stride)) < 1:
            raise ValueError(
                f"{self.label()}: got {input_shape}, but needs (height, width, channels) of at least {self.pool_size}"
            )
        return (*_windows(*input_shape[:2], self.pool_size, self.stride), input_shape[2])

    def forward(self, x, training=False):
        x = np.asarray(x)
        fits = x.ndim == 4 and min(_windows(*x.shape[1:3], self.pool_size, self.stride)) >= 1
        x = self._input(x, fits, "(N, H, W, C) with H, W no smaller than the window {}", self.pool_size)
        y, winners = max_pool(x, self.pool_size, self.stride)
        if training:
            self.remember(y.shape, winners, x.shape, self.pool_size, self.stride)
        return y

    def backward(self, dy):
        return max_pool_backward(*self.recall(dy))


class ReLU(Layer):
    """y = max(x, 0)   (`reference.relu`). Any shape."""

    def forward(self, x, training=False):
        y, active = relu(self._numbers(np.asarray(x)))
        if training:
            self.remember(y.shape, active)
        return y

    def backward(self, dy):
        return relu_backward(*self.recall(dy))


class Flatten(Layer):
    """(N, H, W, C) -> (N, H·W·C): every number of an image in one row."""

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        return (prod(input_shape),)

    def _numbers(self, array):
        return contiguous(array, self.dtype)  # they are only copied, so without a model any type will do

    def forward(self, x, training=False):
        x = np.asarray(x)
        y = copy_shared(self._input(x, x.ndim >= 1, "a batch"), (len(x), prod(x.shape[1:])))
        if training:
            self.remember(y.shape, x.shape)
        return y

    def backward(self, dy):
        dy, input_shape = self.recall(dy)
        return copy_shared(dy, input_shape)


class Dense(Layer):
    """y[n, o] = b[o] + Σ_k x[n, k] · w[k, o]   (`reference.dense`).  x (N, K) -> y (N, units); w (K, units)."""

    def __init__(self, units: int, use_bias: bool = True):
        self.units = whole(units, "Dense: units")
        self.use_bias = bool(use_bias)
        self.weight = self.bias = None

    def build(self, input_shape, generator, dtype, gain):
        super().build(input_shape, generator, dtype, gain)
        if len(input_shape) != 1:
            raise ValueError(f"{self.label()}: got {input_shape}, but needs one row an image: put Flatten() before it")
        _create_parameters(self, (input_shape[0], self.units), generator, gain)
        return (self.units,)

    def forward(self, x, training=False):
        w, b = self.value(self.weight, self._weight_shape), self.value(self.bias, self._weight_shape[-1:])
        x = np.asarray(x)
        x = self._input(x, x.ndim == 2 and x.shape[1] == len(w), "(N, {})", len(w))
        y = dense(x, w, b)
        if training:
            self.remember(y.shape, x)
        return y

    def backward(self, dy):
        w = self.value(self.weight, self._weight_shape)
        self.parameter_gradients(dy)
        return dense_input_gradient(self.recall(dy)[0], w)

    def parameter_gradients(self, dy):
        dy, x = self.recall(dy)
        dw = self.weight.grad
        if dw.flags.carray and dw.dtype == x.dtype and dw.shape == (x.shape[1], dy.shape[1]):
            dense_weight_gradient(x, dy, out=dw)
        else:
            dw[:] = dense_weight_gradient(x, dy)
        self.bias.grad[:] = np.add.reduce(dy, axis=0)

    def multiply_adds(self):
        return self.weight.value.size


def _windows(height: int, width: int, size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """How many whole windows fit, down and across (none if the image is smaller than a window)."""
    return max(0, (height - size[0]) // stride[0] + 1), max(0, (width - size[1]) // stride[1] + 1)


def _create_parameters(layer: Conv2D | Dense, shape: Shape, generator: np.random.Generator, gain: float) -> None:
    """The weights: normal numbers of variance gain / fan_in. By gain 1 sums of fan_in inputs keep their mean square.

    Source: He et al., Delving Deep into Rectifiers (2015), equation 10 (gain 2, where a ReLU takes away half).
    """
    layer._weight_shape, fan_in, dtype = shape, prod(shape[:-1]), layer.dtype
    weight = generator.normal(0, sqrt(gain / fan_in), shape).astype(dtype, copy=False)
    layer.weight = Parameter(f"{layer.name}.weight", weight, np.zeros(shape, dtype))
    layer.bias = Parameter(f"{layer.name}.bias", np.zeros(shape[-1], dtype), np.zeros(shape[-1], dtype))
    layer._parameters = (layer.weight, layer.bias) if layer.use_bias else (layer.weight,)
