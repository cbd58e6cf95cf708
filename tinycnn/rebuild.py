"""The layers of a network again, from a description that nobody vouches for.

A few words can ask for a layer of any size, and building it takes the memory before the arrays in the file can be
compared. So each layer is compared as soon as it is built, none gets random numbers (zeros cost no memory until they
are used), and what the file can't hold is refused before.

What this file is not: it reads no file (`tinycnn/archive.py` does), and puts no network together.
"""

from collections.abc import Iterable
from math import prod

import numpy as np

from tinycnn import archive
from tinycnn.layers import Conv2D, Layer

MOST_LAYERS = 1000
MANY_CHANNELS = 1 << 20  # more only if the file holds as many numbers
LARGEST_IMAGE = 1 << 26  # numbers that one image may become between two layers


def layers_from(description: dict, arrays: dict[str, archive.Stored], classes: Iterable[type[Layer]]) -> list[Layer]:
    """The layers that `Sequential.save` described, to be built once, as a network that has these arrays.

    Raises errors of many kinds if the description is not one (`archive.reading` makes one kind of them). The layers'
    build raises ValueError if the file can't hold its arrays, or one image would become LARGEST_IMAGE numbers.
    """
    shape, dtype, layers = (description[key] for key in ("input_shape", "dtype", "layers"))
    if not all(type(n) is int for n in shape):
        raise ValueError(f"its input_shape is {shape!r}")
    if dtype not in ("float32", "float64"):  # NumPy would take a great many things for a dtype
        raise ValueError(f"its dtype is {dtype!r}")
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"it has {len(layers):,} layers, more than {MOST_LAYERS:,}")
    by_name = {}
    for layer in classes:
        if by_name.setdefault(layer.__name__, layer) is not layer:
            raise ValueError(f"two classes of layers are called {layer.__name__}, and the file knows only names")
    if unknown := {name for name, _ in layers} - by_name.keys():
        raise ValueError(f"it has layers of classes that must be given as own_layers: {', '.join(sorted(unknown))}")
    numbers = sum(prod(array.shape) for array in arrays.values())
    names = set()
    return [_as_saved(by_name[name](**arguments), arrays, numbers, names) for name, arguments in layers]


def name_parameters(layer: Layer, taken: set[str]) -> None:
    """Where a layer before it has taken a parameter's name, the layer's own goes before it."""
    for parameter in layer.parameters():
        if parameter.name in taken:
            parameter.name = f"{layer.name}.{parameter.name}"
        taken.add(parameter.name)


def _as_saved(layer: Layer, arrays: dict[str, archive.Stored], numbers: int, names: set[str]) -> Layer:
    """The layer, whose build makes arrays like those in the file (of so many numbers) or raises ValueError.

    names: of the parameters before, for `name_parameters`.
    """

    def build(input_shape, generator, dtype, gain):
        del layer.build  # from now on it is its class's again
        if input_shape[-1] > max(MANY_CHANNELS, numbers):
            raise ValueError(f"{layer.label()}: {input_shape[-1]:,} channels, but the file has {numbers:,} numbers")
        shape = layer.build(input_shape, _Zeros(generator, numbers, dtype), dtype, gain)
        name_parameters(layer, names)
        archive.check(arrays, {p.name: p.value for p in layer.parameters()} | dict(layer.statistics()))
        if max(_inside_zeros(layer, input_shape), prod(shape)) > LARGEST_IMAGE:
            raise ValueError(f"{layer.label()}: an image of {input_shape}, then {shape}, is too large to be believed")
        return shape

    layer.build = build
    return layer


def _inside_zeros(layer: Layer, shape: tuple[int, ...]) -> int:
    """How many numbers an image of this shape becomes inside a convolution's padding."""
    padding = (*layer.padding, 0) if isinstance(layer, Conv2D) else [0] * len(shape)
    return prod(n + 2 * p for n, p in zip(shape, padding, strict=True))


class _Zeros:
    """A generator of random numbers whose normal ones are all zero, and not more than `at_most` at a time."""

    def __init__(self, generator: np.random.Generator, at_most: int, dtype: np.dtype):
        self.generator, self.at_most, self.dtype = generator, at_most, dtype

    def normal(self, loc=0.0, scale=1.0, size=()) -> np.ndarray:
        if np.prod(size, dtype=object) > self.at_most:
            raise ValueError(f"weights of shape {size} are more than the {self.at_most:,} numbers in the file")
        return np.zeros(size, self.dtype)

    def __getattr__(self, name: str):
        return getattr(self.generator, name)
