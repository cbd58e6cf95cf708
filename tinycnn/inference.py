"""Inference takes some layers together: a pool and a ReLU behind a convolution see its numbers before they are written.

The results are the same bit for bit. What comes between is never there, so training, whose backward asks for it, goes
through the layers one by one.

What this file is not: it knows which layers can go together; how they do is in the convolution's kernel.
"""

from collections.abc import Sequence

import numpy as np

from tinycnn.layers import Conv2D, Layer, MaxPool2D, ReLU


def groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in the same order, those that may go together in one list."""
    result, rest = [], list(layers)
    while rest:
        count = _count(rest)
        result.append(rest[:count])
        rest = rest[count:]
    return result


def forward(group: list[Layer], x: np.ndarray) -> np.ndarray:
    """What the group's layers make of x in inference, all together or one by one."""
    y = _together(group, x) if len(group) > 1 else None
    if y is None:
        y = x
        for layer in group:
            y = layer.forward(y, False)
    return y


def _together(group: list[Layer], x: np.ndarray) -> np.ndarray | None:
    """None if they have to go one by one after all."""
    conv, pool = group[0], group[1] if isinstance(group[1], MaxPool2D) else None
    overlap = pool and pool.stride != pool.pool_size
    # A forward that somebody has put into a layer, to listen or to change something, wants to be called.
    if overlap or any("forward" in vars(layer) for layer in group):
        return None
    return conv.forward_pooled(x, pool.pool_size if pool else (1, 1), isinstance(group[-1], ReLU))


def _count(layers: list[Layer]) -> int:
    """How many of the first layers may go together: a convolution, then a pool, a ReLU or both.

    Only those of these very classes: one that somebody has made from them may do something else.
    """
    kinds = [type(layer) for layer in layers[:3]]
    for together in ([Conv2D, MaxPool2D, ReLU], [Conv2D, MaxPool2D], [Conv2D, ReLU]):
        if kinds[: len(together)] == together:
            return len(together)
    return 1
