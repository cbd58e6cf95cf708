"""`Sequential`: a network as a list of layers. Forward goes down the list, backward goes up, and that is all there is.

    for layer in layers:            x = layer.forward(x, training)
    for layer in reversed(layers):  dy = layer.backward(dy)

(Some neighbours do it together, which is faster: `together.py`.) A model also builds its layers (shapes, weights),
predicts, sums itself up in a table, and saves and loads itself.

What this file is not: no graph of layers, no loss and no optimizer; training is in `tinycnn/training.py`.
"""

from math import ceil, prod
from pathlib import Path

import numpy as np

from tinycnn import archive, together
from tinycnn.ahead import before_training_step
from tinycnn.arguments import new_layers, sizes, whole
from tinycnn.kernels.memory import copy
from tinycnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D, Parameter, ReLU
from tinycnn.loss import softmax
from tinycnn.more_layers import BatchNorm, Dropout, GlobalAveragePool2D, Normalize
from tinycnn.rebuild import layers_from, name_parameters
from tinycnn.tables import table

LARGE = 1 << 25  # bytes; in inference no layer hands more than that to the next, unless it is a single image
LAYERS = (Normalize, Conv2D, MaxPool2D, BatchNorm, ReLU, Dropout, Flatten, GlobalAveragePool2D, Dense)


class Sequential:
    """Layers one after the other.

    layers: a list of layers, each used once.   input_shape: of one image, as (28, 28, 1).
    seed: of the weights and of Dropout; the same seed gives the same numbers, bit for bit.
    dtype: float32 to train, float64 to check gradients.
    Raises ValueError, naming the layer, if a shape doesn't fit.

    >>> layers = [Conv2D(4, kernel_size=3), ReLU(), MaxPool2D(2), Flatten(), Dense(10)]
    >>> model = Sequential(layers, input_shape=(8, 8, 1))
    >>> model.forward(np.zeros((5, 8, 8, 1), np.float32)).shape
    (5, 10)
    """

    def __init__(self, layers: list[Layer], input_shape: tuple[int, ...], seed: int = 0, dtype=np.float32):
        self.layers, self.input_shape = new_layers(layers, Layer), sizes(input_shape, "input_shape")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"Sequential: dtype must be float32 or float64, got {self.dtype}")
        self.output_shapes = self._build(np.random.default_rng(seed))
        self._grouped = [], []  # see `_groups`
        self._piece = max(1, LARGE // (max(map(prod, self.output_shapes)) * self.dtype.itemsize))

    def _build(self, generator: np.random.Generator) -> list[tuple[int, ...]]:
        """Name the layers and tell each its input shape; returns their output shapes."""
        shapes, names = [self.input_shape], set()
        try:
            for number, layer in enumerate(self.layers, start=1):
                layer.name = f"{type(layer).__name__.lower()}_{number}"
                shapes.append(layer.build(shapes[-1], generator, self.dtype, _gain(self.layers[number:])))
                if shapes[-1] is None:
                    raise ValueError(f"{layer.label()}: its build must return the shape of its output")
                name_parameters(layer, names)
        except BaseException:  # they belong to no model, and may be tried in another
            for layer in self.layers:
                layer.name = ""
            raise
        return shapes[1:]

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """The output of the last layer.  x (N, *input_shape) -> (N, ...). training=True prepares for backward.

        Without training no image depends on another, and a large batch goes through in pieces, which need less memory.
        """
        x = self._check(x)
        if x.dtype != self.dtype and not isinstance(self.layers[0], Normalize):  # which wants the raw images
            x = copy(x, self.dtype)
        if training:
            before_training_step(self, len(x))  # it may let a second process compile backward's kernels
            # Memory that is freed last is used again first (`kernels/memory.py`): so each layer gets its own once more.
            for layer in reversed(self.layers):
                layer._memory = None
        if training or len(x) <= self._piece:
            return self.forward_through_layers(x, training)
        pieces = [x[i : i + self._piece] for i in range(0, len(x), self._piece)]
        return np.concatenate([self.forward_through_layers(piece, training) for piece in pieces])

    def forward_through_layers(self, x: np.ndarray, training: bool) -> np.ndarray:
        for group in self._groups():
            x = together.forward(group, x, training)
        return x

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Fill every parameter's grad; return the gradient by the input. dy: the gradient by forward's output."""
        for group in reversed(self._groups()):
            dy = together.backward(group, dy)
        return dy

    def parameter_gradients(self, dy: np.ndarray) -> None:
        """As backward, but stop at the first layer that learns: training has no use for the gradient by the images."""
        groups = self._groups()
        learns = (i for i, group in enumerate(groups) if any(layer.parameters() for layer in group))
        first = next(learns, 0)
        for group in reversed(groups[first + 1 :]):
            dy = together.backward(group, dy)
        together.parameter_gradients(groups[first], dy)

    def _groups(self) -> list[list[Layer]]:
        """The layers, those that are faster together in one list."""
        layers, groups = self._grouped
        if list(map(id, layers)) != list(map(id, self.layers)):  # at first, or somebody has put other layers there
            groups = together.groups(self.layers)
            self._grouped = list(self.layers), groups
        return groups

    def parameters(self) -> list[Parameter]:
        """All parameters, from the first layer to the last."""
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def state(self) -> list[tuple[str, np.ndarray]]:
        """Every array that makes this model what it is: parameters and running statistics, by name."""
        learned = [(p.name, p.value) for p in self.parameters()]
        return learned + [pair for layer in self.layers for pair in layer.statistics()]

    def predict(self, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """The most probable class of each image.  x (N, *input_shape), any N -> integers (N,)."""
        return self._logits(x, batch_size).argmax(axis=1)

    def predict_proba(self, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """The probability of each class.  x (N, *input_shape), any N -> (N, classes)."""
        return softmax(self._logits(x, batch_size))

    def summary(self) -> str:
        """A table: layer, output shape, parameters, multiply-adds of one image."""
        if len(self.layers) != len(self.output_shapes):
            raise ValueError("layers were put in or taken out: make a new Sequential, of new layers")
        rows = [("layer", "output shape", "parameters", "multiply-adds")]
        counts = [(sum(p.value.size for p in layer.parameters()), layer.multiply_adds()) for layer in self.layers]
        for layer, shape, of_layer in zip(self.layers, self.output_shapes, counts, strict=True):
            rows.append((layer.label(), " × ".join(map(str, shape)), *(f"{count:,}" for count in of_layer)))
        rows.append(("total", "", *(f"{sum(column):,}" for column in zip(*counts, strict=True))))
        return table(rows, right=(2, 3), rules=(1, -1))

    def description(self) -> dict:
        """Everything but the arrays, in plain numbers, texts and lists."""
        layers = [[type(layer).__name__, layer.arguments()] for layer in self.layers]
        return {"input_shape": self.input_shape, "dtype": self.dtype.name, "layers": layers}

    def save(self, path: str | Path) -> None:
        """Write architecture and weights to an .npz file, whole or not at all; ValueError if `load` would refuse it."""
        with archive.why_not_written(path):  # Somebody may have changed layers: build them again, as `load` does.
            description, arrays = self.description(), archive.by_name(self.state(), self.dtype)
            layers = layers_from(description, arrays, (*LAYERS, *map(type, self.layers)))
            Sequential(layers, self.input_shape, dtype=self.dtype)
        archive.write(path, archive.MODEL, description, arrays)

    @classmethod
    def load(cls, path: str | Path, own_layers: tuple[type[Layer], ...] = ()) -> "Sequential":
        """The model that `save` wrote. own_layers: layer classes of your own that it uses.

        Raises FileNotFoundError, or ValueError if the file is no tinycnn model or a damaged one.
        """
        with archive.reading(path, archive.MODEL) as (found, arrays):
            layers = layers_from(found, arrays, (*LAYERS, *own_layers))
            model = cls(layers, found["input_shape"], dtype=found["dtype"])
            archive.copy_all(arrays, dict(model.state()))
        return model

    def _check(self, x: np.ndarray) -> np.ndarray:
        """x as an array, after checking its shape and dtype."""
        x, shapes = np.asarray(x), [self.input_shape]
        if isinstance(self.layers[0], Normalize) and self.input_shape[2:] == (1,):
            shapes.append(self.input_shape[:2])
        if x.shape[1:] not in shapes or not (x.dtype.kind in "biuf" or np.can_cast(x.dtype, self.dtype, "same_kind")):
            needs = str(self.input_shape)[1:-1]
            raise ValueError(f"the model needs images of shape (N, {needs}), got {x.shape} of {x.dtype}")
        return x

    def _logits(self, x: np.ndarray, batch_size: int) -> np.ndarray:
        x, logits = self._check(x), []
        # Pieces of nearly one size: for a small last one other kernels may be faster, and have to be compiled.
        for batch in np.array_split(x, max(1, ceil(len(x) / whole(batch_size, "batch_size")))):
            most = np.finfo(self.dtype).max
            if batch.dtype.kind == "f" and not (-most <= batch.min(initial=0) and batch.max(initial=0) <= most):
                raise ValueError(f"the images hold NaN or infinite pixels (in {self.dtype})")
            logits.append(self.forward(batch))
        if logits[0].ndim != 2:
            raise ValueError(f"the model makes {logits[0].shape[1:]} of an image, not one number for each class")
        return np.concatenate(logits)


def _gain(following: list[Layer]) -> float:
    """2 if a ReLU comes before the next Conv2D or Dense (it takes away half of the mean square), else 1.

    With none of them 0.01: from outputs near 0 all classes begin equally probable, and the loss at ln(classes).
    """
    for layer in following:
        if isinstance(layer, ReLU):
            return 2.0
        if isinstance(layer, (Conv2D, Dense)):
            return 1.0
    return 0.01
