"""Checks of arguments: a setting that makes no sense is refused where it is given, by its name.

What this file is not: needed to understand anything else.
"""

from numbers import Real

import numpy as np

TOO_LARGE = 1 << 31  # for a size: the kernels count in 64 bits, and multiply two of them


def real_dtype(dtype: np.dtype, name: str) -> np.dtype:
    """float32, or float64 where that is needed to hold numbers of this dtype."""
    for real in map(np.dtype, (np.float32, np.float64)):
        if np.can_cast(dtype, real):
            return real
    raise ValueError(f"{name}: got numbers of type {dtype}, which float64 can't hold")


def whole(value, name: str, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return int(value)


def pair(value, name: str, minimum: int = 1) -> tuple[int, int]:
    """(height, width) from an int or a pair."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be a number or a pair (height, width), got {value!r}")
    height, width = whole(both[0], name, minimum), whole(both[1], name, minimum)
    if max(height, width) >= TOO_LARGE:
        raise ValueError(f"{name} must be below {TOO_LARGE:,}, got {value!r}")
    return height, width


def sizes(value, name: str) -> tuple[int, ...]:
    """A shape: whole numbers of at least 1, or one of them."""
    found = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value,)
    if not found or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1 for n in found):
        raise ValueError(f"{name} must have sizes of at least 1, whole numbers, got {value!r}")
    return tuple(map(int, found))


def plain(values: dict) -> dict:
    """The same, but a value that is a number of NumPy's becomes one of Python's: JSON knows no others."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def new_layers(layers, kind: type) -> list:
    """The layers of a new model, as a list: each is of that kind and belongs to no model, and none comes twice."""
    layers = list(layers)
    if not layers:
        raise ValueError("Sequential: needs at least one layer")
    for number, layer in enumerate(layers, start=1):
        if not isinstance(layer, kind):
            raise ValueError(f"Sequential: layer {number} must be a layer, got {layer!r}")
        if layer.name or any(layer is other for other in layers[: number - 1]):
            raise ValueError(f"Sequential: layer {number}, {layer.label()}, is already in a model; make a new one")
    return layers


def not_negative(value: float, name: str) -> float:
    value = _without_axes(value)
    if not (isinstance(value, Real) and 0 <= value < float("inf")):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return value


def fraction(value: float, name: str) -> float:
    value = _without_axes(value)
    if not (isinstance(value, Real) and 0 <= value < 1):
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    return value


def _without_axes(value):
    """The number in an array without axes; anything else as it is."""
    return value[()] if isinstance(value, np.ndarray) else value
