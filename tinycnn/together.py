"""Some neighbouring layers are faster together: a number is used while it is still in the processor.

    Conv2D, MaxPool2D, ReLU     the pool and the ReLU see the convolution's numbers before they are written; on the way
                                back what the pool passed on is unpacked a few rows at a time (where that pays)
    Conv2D, ReLU, MaxPool2D     the same: the largest of a window is still the largest behind the ReLU
    Conv2D, MaxPool2D           the same
    Conv2D, ReLU                the same without a pool
    BatchNorm, ReLU             the ReLU takes no pass of its own over the numbers, it goes along with the other's
    Flatten, Dense              nobody sees what is between, so it need not be copied

What comes out is the same bit for bit as one by one (but for the rounding of a first convolution's bias gradient), and
each layer remembers what it would have remembered alone, so what went forward together can go back one by one. Only the
layers' own `forward` and `backward` are not called; inside `with one_by_one()` they are.

What this file is not: arithmetic. It knows which layers can go together; how they do is in the kernels.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np

from tinycnn.kernels import pooled_convolution
from tinycnn.kernels.pooled_convolution import NONE
from tinycnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D, ReLU
from tinycnn.more_layers import BatchNorm

METHODS = frozenset(("forward", "backward", "parameter_gradients"))
_together = True  # see `one_by_one`
# The longest first, for the first that fits is taken. Each without its last layer is in the list too, or one layer.
TOGETHER = (
    [Conv2D, MaxPool2D, ReLU],
    [Conv2D, ReLU, MaxPool2D],
    [Conv2D, MaxPool2D],
    [Conv2D, ReLU],
    [BatchNorm, ReLU],
    [Flatten, Dense],
)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Inside the with block models call each layer's own forward and backward: for whoever has changed one."""
    global _together
    before, _together = _together, False
    try:
        yield
    finally:
        _together = before


def groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in the same order, those that may go together in one list."""
    result, rest = [], list(layers)
    while rest:
        count = _count(rest)
        result.append(rest[:count])
        rest = rest[count:]
    return result


def forward(group: list[Layer], x: np.ndarray, training: bool) -> np.ndarray:
    """What the group's layers make of x, as many together as may be."""
    first, last = group[0], group[-1]
    if len(group) == 1:
        return first.forward(x, training)
    if not _may(group):
        return last.forward(forward(group[:-1], x, training), training)
    if isinstance(first, Conv2D):
        return _convolve_and_pool(group, x, training)
    if isinstance(first, BatchNorm):
        y, active = first.forward_with_relu(x, training)
        if training:
            last.remember(y.shape, active)
        return y
    flat = x.reshape(len(x), prod(x.shape[1:]))
    if training:
        first.remember(flat.shape, x.shape)
    return last.forward(flat, training)


def backward(group: list[Layer], dy: np.ndarray) -> np.ndarray:
    """The gradient by the group's input; fills the gradients of its parameters."""
    first, last = group[0], group[-1]
    if len(group) == 1:
        return first.backward(dy)
    if not _may(group) or not _went_together(group, dy):
        return backward(group[:-1], last.backward(dy))
    if isinstance(first, Conv2D):
        w = first.value(first.weight, first._weight_shape)
        dx, *gradients = pooled_convolution.backward(*_behind(group, dy), w, *_sizes(*_parts(group)[:2]))
        first.weight.grad[:], first.bias.grad[:] = gradients
        return dx
    if isinstance(first, BatchNorm):
        return first.backward(*last.recall(dy))
    dx, shape = first.recall(last.backward(dy))
    return dx.reshape(shape)


def parameter_gradients(group: list[Layer], dy: np.ndarray) -> None:
    """backward for the group with the first layer that learns: nobody asks for what would come before it."""
    first, last = group[0], group[-1]
    if last.parameters() or len(group) == 1:
        last.parameter_gradients(dy)
    elif isinstance(first, Conv2D) and _may(group) and _went_together(group, dy):
        sizes = first.kernel_size, *_sizes(*_parts(group)[:2])
        gradients = pooled_convolution.weight_gradient(*_behind(group, dy), *sizes)
        first.weight.grad[:], first.bias.grad[:] = gradients
    else:
        parameter_gradients(group[:-1], last.backward(dy))


def _convolve_and_pool(group: list[Layer], x: np.ndarray, training: bool) -> np.ndarray:
    conv, pool, relu = _parts(group)
    x, w, b, output_size = conv.ready(x)
    if pool and (output_size[0] < pool.pool_size[0] or output_size[1] < pool.pool_size[1]):
        return pool.forward(conv.forward(x))  # which tells what is wrong
    y, winners, active = pooled_convolution.convolve_and_pool(
        x, w, b, output_size, *_sizes(conv, pool), relu is not None, remember=training
    )
    if training:
        between = len(x), *output_size, conv.filters
        conv.remember(between, x)
        if _pool_is_behind_relu(group):
            relu._memory, pool._memory = Later(group[:2], x), Later(group, x, winners, active)
            return y
        if pool:
            pool.remember(y.shape, winners, between, pool.pool_size, pool.stride)
        if relu:
            relu.remember(y.shape, active)
    return y


class Later:
    """What the last of the layers would have remembered alone, computed if somebody asks, from x and the weights.

    A ReLU in front of a pool has not seen the numbers one by one. The group itself needs only what the pool passed on.

    x: the first one's input. winners, active: as `convolve_and_pool` returned them.
    """

    def __init__(self, layers: list[Layer], x: np.ndarray, winners=None, active=None):
        self.layers, self.x, self.winners, self.active = list(map(copy.copy, layers)), x, winners, active
        for layer in self.layers:
            layer._memory = None  # or this would keep itself alive

    def __iter__(self) -> Iterator:
        y = self.x
        for layer in self.layers:
            y = type(layer).forward(layer, y, training=True)
        return iter(layer.remembered())


def _went_together(group: list[Layer], dy: np.ndarray) -> bool:
    """Whether the layers remember one forward of the group, to which such a dy belongs.

    Without a `Later`, `_behind` looks at the shapes. A pool that has changed goes back as it came, one by one.
    """
    if not _pool_is_behind_relu(group):
        pools = [layer for layer in group if type(layer) is MaxPool2D]
        return all(pool.remembered()[-2:] == (pool.pool_size, pool.stride) for pool in pools)
    (_, x), *others = group[0].remembered(), *(layer._memory for layer in group[1:])
    if not all(isinstance(later, Later) and later.x is x for later in others):
        return False
    return np.shape(dy) == others[-1].active.shape and others[-1].layers[2].pool_size == group[2].pool_size


def _behind(group: list[Layer], dy: np.ndarray) -> tuple:
    """x, dy, winners, active and the size of the convolution's output."""
    conv, pool, relu = _parts(group)
    (n, out_h, out_w, filters), x = conv.remembered()
    pool_h, pool_w = pool.pool_size if pool else NONE
    if _pool_is_behind_relu(group):
        dy, winners, active = pool._numbers(np.asarray(dy)), pool._memory.winners, pool._memory.active
    else:
        dy, *_ = group[-1].recall(dy)
        winners, active = (layer.remembered()[1] if layer else None for layer in (pool, relu))
    for array in (dy, winners, active):  # somebody may have called one of the layers alone
        if array is not None and array.shape != (n, out_h // pool_h, out_w // pool_w, filters):
            raise ValueError(
                f"{conv.label()}: got a gradient of shape {array.shape} for an output of {(n, out_h, out_w, filters)}"
            )
    return x, dy, winners, active, (out_h, out_w)


def _parts(group: list[Layer]) -> tuple[Conv2D, MaxPool2D | None, ReLU | None]:
    conv, pool, relu = group[0], None, None
    for layer in group[1:]:
        if type(layer) is MaxPool2D:
            pool = layer
        else:
            relu = layer
    return conv, pool, relu


def _pool_is_behind_relu(group: list[Layer]) -> bool:
    """Whether it is a convolution, a ReLU and then a pool."""
    return len(group) == 3 and type(group[2]) is MaxPool2D


def _sizes(conv: Conv2D, pool: MaxPool2D | None) -> tuple:
    """The convolution's stride and padding, and the size of the pool's windows."""
    return conv.stride, conv.padding, pool.pool_size if pool else NONE


def _may(group: list[Layer]) -> bool:
    """Whether the group may go together: not if a layer has got a method of somebody's own, which is then to be called.

    A pool's windows must stand side by side, and hold more than a number: else there is little to win.
    """
    if not _together:
        return False
    for layer in group:
        if not METHODS.isdisjoint(vars(layer)):
            return False
        if type(layer) is MaxPool2D and (layer.stride != layer.pool_size or layer.pool_size == NONE):
            return False
    return True


def _count(layers: list[Layer]) -> int:
    """How many of the first layers may go together.

    Only those of these very classes: one that somebody has made from them may do something else.
    """
    for kinds in TOGETHER:
        if [type(layer) for layer in layers[: len(kinds)]] == kinds:
            return len(kinds)
    return 1
