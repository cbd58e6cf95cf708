"""Looking into a trained network: what every layer makes of an image, which pixels decide, and what a pixel sees.

All of it is the network's own forward and backward. In training BatchNorm looks at the batch and Dropout at chance;
here both do what they do in inference, but remember what backward needs: `for_looking` makes such a copy.

What this file is not: it draws nothing (`tinycnn/plots.py`).
"""

import copy

import numpy as np

from tinycnn.layers import Conv2D, MaxPool2D
from tinycnn.model import Sequential
from tinycnn.more_layers import BatchNorm, Dropout


def for_looking(model: Sequential) -> Sequential:
    """A copy whose forward(x, training=True) computes what inference computes."""
    result = copy.deepcopy(model)
    for layer in result.layers:
        if isinstance(layer, BatchNorm):
            layer.frozen = True
        if isinstance(layer, Dropout):
            layer.rate = 0.0
    return result


def feature_maps(model: Sequential, image: np.ndarray, copies: int = 1) -> list[tuple[str, np.ndarray]]:
    """(name, output) of every layer for one image of the model's input shape, or without its channel axis.

    copies: so many of the image go through the network at once. After a training with batches of that size it takes
    less time than a single image, for which other kernels would have to be compiled.
    """
    x, result = _copies(model, np.asarray(image), copies), []
    for layer in model.layers:
        x = layer.forward(x)
        result.append((layer.name, x[0]))
    return result


def saliency(model: Sequential, image: np.ndarray, label: int, copies: int = 1) -> np.ndarray:
    """∂ logit[label] / ∂ pixel: how much the score of a class would rise with each pixel.  (H, W) or the image's shape.

    copies: as for `feature_maps`. Source: Simonyan, Vedaldi & Zisserman, Deep inside convolutional networks (2014).
    """
    looking = for_looking(model)
    logits = looking.forward(_copies(model, np.asarray(image, model.dtype), copies), training=True)
    if not 0 <= label < logits.shape[1]:
        raise ValueError(f"label {label} is outside 0 … {logits.shape[1] - 1}")
    dlogits = np.zeros_like(logits)
    dlogits[0, label] = 1
    return looking.backward(dlogits)[0].reshape(np.shape(image))


def _copies(model: Sequential, image: np.ndarray, copies: int) -> np.ndarray:
    return np.broadcast_to(image.reshape(model.input_shape), (copies, *model.input_shape))


def receptive_step(model: Sequential, layer: int) -> dict[str, tuple[int, int]]:
    """What output (i, j) of a layer of images sees: the pixels from start + step · (i, j) on, `size` of them.

    All are (down, across). Padding counts as pixels: start may be negative. layer counts from 0.
    """
    start, step, size = [0, 0], [1, 1], [1, 1]
    for one in reversed(model.layers[: layer + 1]):
        if isinstance(one, (Conv2D, MaxPool2D)):
            window, padding = _window_and_padding(one)
            for axis in (0, 1):
                start[axis] = start[axis] * one.stride[axis] - padding[axis]
                step[axis] *= one.stride[axis]
                size[axis] = (size[axis] - 1) * one.stride[axis] + window[axis]
    return {"start": tuple(start), "step": tuple(step), "size": tuple(size)}


def receptive_field(model: Sequential, layer: int, i: int, j: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the pixels that output (i, j) of a layer can see, every padding cut off.

    layer counts from 0. A layer after Flatten or GlobalAveragePool2D sees the whole image. All 0: it sees none.
    """
    if len(model.output_shapes[layer]) != 3:
        return 0, 0, *model.input_shape[:2]
    rows, columns = (_seen(model, layer, axis, place) for axis, place in ((0, i), (1, j)))
    if not (rows and columns):
        return 0, 0, 0, 0
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def _seen(model: Sequential, layer: int, axis: int, place: int) -> set[int]:
    """The rows (axis 0) or columns (1) of the image that this one of a layer's output depends on."""
    seen, inputs = {place}, [model.input_shape, *model.output_shapes]
    for number in reversed(range(layer + 1)):
        one = model.layers[number]
        if isinstance(one, (Conv2D, MaxPool2D)):
            window, padding = _window_and_padding(one)
            first = [i * one.stride[axis] - padding[axis] for i in seen]
            seen = {i + a for i in first for a in range(window[axis]) if 0 <= i + a < inputs[number][axis]}
    return seen


def _window_and_padding(layer: Conv2D | MaxPool2D) -> tuple[tuple[int, int], tuple[int, int]]:
    return (layer.kernel_size, layer.padding) if isinstance(layer, Conv2D) else (layer.pool_size, (0, 0))
