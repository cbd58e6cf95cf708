"""Inference takes some layers together: a pool and a ReLU behind a convolution see its numbers before they are written.

The results are the same bit for bit. What comes between is never there, so training, whose backward asks for it, goes
through the layers one by one.

What this file is not: it knows which layers can go together; how they do is in the convolution's kernel.
"""

from collections.abc import Sequence

import numpy as np

from tinycnn.layers import Conv2D, Layer, MaxPool2D, ReLU


def groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in the same order, those that can go together in one list."""
    result, rest = [], list(layers)
    while rest:
        count = _together(rest)
        result.append(rest[:count])
        rest = rest[count:]
    return result


def forward(group: list[Layer], x: np.ndarray) -> np.ndarray:
    """What the group's layers make of x in inference, all together or one by one."""
    y = None
    # A forward that somebody has put into a layer, to listen or to change something, wants to be called.
    if len(group) > 1 and not any("forward" in vars(layer) for layer in group):
        pool_size = group[1].pool_size if isinstance(group[1], MaxPool2D) else (1, 1)
        y = group[0].forward_pooled(x, pool_size, isinstance(group[-1], ReLU))
    if y is None:
        y = x
        for layer in group:
            y = layer.forward(y, False)
    return y


def _together(layers: list[Layer]) -> int:
    """How many of the first layers can go together: a convolution, then a pool, a ReLU or both.

    Only those of these very classes: one that somebody has made from them may do something else.
    """
    if type(layers[0]) is not Conv2D:
        return 1
    following = [type(layer) for layer in layers[1:3]]
    if following[:1] == [MaxPool2D] and layers[1].stride == layers[1].pool_size:
        return 3 if following == [MaxPool2D, ReLU] else 2
    return 2 if following[:1] == [ReLU] else 1
