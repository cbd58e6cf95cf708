"""A model computed a second time, by the reference formulas instead of the layers: slow, open to complex numbers."""

import numpy as np

from tinycnn import more_reference, reference
from tinycnn.layers import Conv2D, Dense, Flatten, MaxPool2D, ReLU
from tinycnn.model import Sequential
from tinycnn.more_layers import BatchNorm, Dropout, GlobalAveragePool2D, Normalize


def reference_forward(model: Sequential, x: np.ndarray, changed: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """model.forward(x, training=True) by formula, with some parameters replaced. Dropout uses its latest mask."""
    values = {p.name: p.value for p in model.parameters()} | (changed or {})
    for layer in model.layers:
        x = _apply(layer, x, values)
    return x


def _apply(layer, x, values):
    match layer:
        case Normalize():
            return (x.reshape(*x.shape[:3], -1) / 255 - layer.mean) / layer.std
        case Conv2D():
            w = values[f"{layer.name}.weight"]
            b = values[f"{layer.name}.bias"] if layer.use_bias else np.zeros(w.shape[3])
            return reference.conv2d(x, w, b, layer.stride, layer.padding)
        case Dense():
            w = values[f"{layer.name}.weight"]
            return reference.dense(x, w, values[f"{layer.name}.bias"] if layer.use_bias else np.zeros(w.shape[1]))
        case MaxPool2D():
            return reference.max_pool2d(x, layer.pool_size, layer.stride)
        case ReLU():
            return reference.relu(x)
        case BatchNorm():
            gamma, beta = values[f"{layer.name}.gamma"], values[f"{layer.name}.beta"]
            return more_reference.batch_norm(x, gamma, beta, layer.epsilon)
        case Dropout():
            return more_reference.dropout(x, layer._memory[1] != 0, layer.rate)
        case Flatten():
            return x.reshape(len(x), -1)
        case GlobalAveragePool2D():
            return more_reference.global_average_pool2d(x)
    raise TypeError(f"no reference for {layer}")


def reference_gradients(model: Sequential, x: np.ndarray, targets: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and its gradient by every parameter, by the reference's forward and backward functions alone."""
    inputs = []
    values = {p.name: p.value for p in model.parameters()}
    for layer in model.layers:
        inputs.append(x)
        x = _apply(layer, x, values)
    loss, dy = reference.softmax_cross_entropy(x, targets), reference.softmax_cross_entropy_backward(x, targets)
    gradients = {}
    for layer, x in zip(reversed(model.layers), reversed(inputs), strict=True):
        match layer:
            case Conv2D():
                dy, dw, db = reference.conv2d_backward(dy, x, layer.weight.value, layer.stride, layer.padding)
                gradients |= {f"{layer.name}.weight": dw, f"{layer.name}.bias": db}
            case Dense():
                dy, dw, db = reference.dense_backward(dy, x, layer.weight.value)
                gradients |= {f"{layer.name}.weight": dw, f"{layer.name}.bias": db}
            case BatchNorm():
                dy, dgamma, dbeta = more_reference.batch_norm_backward(dy, x, layer.gamma.value, layer.epsilon)
                gradients |= {f"{layer.name}.gamma": dgamma, f"{layer.name}.beta": dbeta}
            case MaxPool2D():
                dy = reference.max_pool2d_backward(dy, x, layer.pool_size, layer.stride)
            case ReLU():
                dy = reference.relu_backward(dy, x)
            case Flatten():
                dy = dy.reshape(x.shape)
            case GlobalAveragePool2D():
                dy = more_reference.global_average_pool2d_backward(dy, x)
            case _:
                raise TypeError(f"no reference for {layer}")
    return float(loss), gradients
