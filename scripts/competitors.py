"""The same work in tinycnn, PyTorch, Keras and NumPy, ready to be timed: training steps, inference, epochs, kernels.

A competitor is a function of sizes that returns functions by name: "step" and "inference", or "epoch", for
`scripts/benchmark.py` to time; or kernels, which time themselves because they are over so soon (`_rate`). All get the
same kind of data, ready in memory: random images and labels, twenty batches in turn, so that nobody learns them by
heart (gradients that vanish into denormal numbers would slow everybody down, but not equally).

What this file is not: it compares nothing; `scripts/benchmark.py` does.
"""

import time
import tracemalloc
from collections.abc import Callable
from functools import cache, partial
from itertools import cycle

import numpy as np

import tinycnn as ours
from tinycnn import Adam, Conv2D, Dense, Flatten, MaxPool2D, ReLU, Sequential, SoftmaxCrossEntropy
from tinycnn.kernels.convolution import convolve
from tinycnn.kernels.convolution_backward import convolve_backward, convolve_weight_gradient
from tinycnn.kernels.input_gradient import convolve_input_gradient
from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, numbers, run, task
from tinycnn.kernels.tile_shape import register_lanes
from tinycnn.kernels.vector import multiply_add, read, tile, write, zeros
from tinycnn.presets import PRESETS

Functions = dict[str, Callable[[], object]]
BATCHES = 20  # different ones, shown in turn
SUMS = 12  # in registers: enough for the multipliers never to wait for one


def keras_net(channels: int = 32) -> list:
    """The network of the Keras tutorial; peers have the pool before the ReLU as well, it is faster for all."""
    return [
        Conv2D(channels, kernel_size=3),
        MaxPool2D(2),
        ReLU(),
        Conv2D(2 * channels, kernel_size=3),
        MaxPool2D(2),
        ReLU(),
        Flatten(),
        Dense(10),
    ]


def network(name: str) -> Sequential:
    """A network by its name: a preset, "keras-net", or "keras-net CHANNELS SIDE" for images of another size."""
    kind, *sizes = name.split()
    if kind != "keras-net":
        return Sequential(PRESETS[kind](10).layers, (28, 28, 1))
    channels, side = map(int, sizes or (32, 28))
    return Sequential(keras_net(channels), (side, side, 1))


def data(model: Sequential, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of random images and labels."""
    random = np.random.default_rng(0)
    shape = (batch, *model.input_shape)
    return [
        (random.standard_normal(shape, dtype=np.float32), random.integers(0, 10, batch, dtype=np.int64))
        for _ in range(BATCHES)
    ]


def tinycnn(name: str, batch: int) -> Functions:
    """Ours."""
    model, loss = network(name), SoftmaxCrossEntropy()
    optimizer, batches = Adam(model.parameters()), data(model, batch)
    turns, images = cycle(batches), batches[0][0]

    def step():
        x, y = next(turns)
        loss.forward(model.forward(x, training=True), y)
        model.parameter_gradients(loss.backward())
        optimizer.step()

    functions = {"step": step, "inference": lambda: model.forward(images)}
    return {**functions, "allocated": lambda name: _allocated(functions[name])}


def _allocated(function: Callable) -> int:
    """Bytes: the most that Python and NumPy have at once during a call, beyond what they had before it."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def pytorch(name: str, batch: int, channels_last: bool = False) -> Functions:
    """PyTorch in one of its two memory layouts, with its fused Adam."""
    import torch

    original = network(name)
    model, batches = torch_model(original), data(original, batch)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    tensors = [
        (torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout), torch.from_numpy(y))
        for x, y in batches
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    turns, images = cycle(tensors), tensors[0][0]

    def step():
        x, y = next(turns)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def inference():
        with torch.inference_mode():
            return evaluating(images)

    evaluating = torch_model(original).to(memory_format=layout).eval()
    return {"step": step, "inference": inference}


def torch_model(model: Sequential):
    """The same layers in PyTorch, with its own random weights."""
    from torch import nn

    def layer(one, input_shape):
        if isinstance(one, ours.Conv2D):
            return nn.Conv2d(input_shape[-1], one.filters, one.kernel_size, one.stride, one.padding, bias=one.use_bias)
        if isinstance(one, ours.MaxPool2D):
            return nn.MaxPool2d(one.pool_size, one.stride)
        if isinstance(one, ours.BatchNorm):
            return nn.BatchNorm2d(input_shape[-1])
        if isinstance(one, ours.Dense):
            return nn.Linear(input_shape[0], one.units, bias=one.use_bias)
        return {ours.ReLU: nn.ReLU, ours.Flatten: nn.Flatten}[type(one)]()

    shapes = [model.input_shape, *model.output_shapes]
    return nn.Sequential(*map(layer, model.layers, shapes))


def keras_model(model: Sequential, jit_compile: bool):
    """The same layers (those of keras-net: no padding, no BatchNorm) in Keras, with Adam, compiled."""
    import keras

    def layer(one):
        if isinstance(one, ours.Conv2D):
            return keras.layers.Conv2D(one.filters, one.kernel_size, one.stride, use_bias=one.use_bias)
        if isinstance(one, ours.Dense):
            return keras.layers.Dense(one.units, use_bias=one.use_bias)
        kinds = {ours.MaxPool2D: lambda: keras.layers.MaxPool2D(one.pool_size, one.stride)}
        kinds |= {ours.ReLU: keras.layers.ReLU, ours.Flatten: keras.layers.Flatten}
        return kinds[type(one)]()

    result = keras.Sequential([keras.layers.Input(model.input_shape), *map(layer, model.layers)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = 1 if jit_compile else 20  # that Python hands over at once; with XLA it makes no difference
    optimizer = keras.optimizers.Adam(1e-3)
    result.compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, steps_per_execution=steps)
    return result


def epoch_of_tinycnn(name: str, batch: int, images: int) -> Functions:
    """An epoch of so many images, in memory, shuffled."""
    from tinycnn.schedules import constant
    from tinycnn.training import train

    model, (x, y) = network(name), epoch_data(images)
    optimizer, generator = Adam(model.parameters()), np.random.default_rng(1)
    return {"epoch": lambda: train(model, optimizer, constant(1e-3), x, y, 1, batch, generator)}


def epoch_of_keras(name: str, batch: int, images: int, jit_compile: bool) -> Functions:
    """The same in Keras' own loop, `fit`."""
    model, (x, y) = keras_model(network(name), jit_compile), epoch_data(images)
    return {"epoch": lambda: model.fit(x, y, batch_size=batch, epochs=1, verbose=0)}


def epoch_data(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels in MNIST's shape."""
    random = np.random.default_rng(0)
    return random.standard_normal((images, 28, 28, 1), dtype=np.float32), random.integers(0, 10, images)


def kernels() -> dict[str, Callable[..., float]]:
    """GFLOP/s of the convolution's directions, each from a shape; and of the bare machine.

    "forward roof" and so on: what there would be if the arithmetic took no time.
    """
    result = {"peak": peak_rate}
    for direction in ("forward", "dw", "dx", "backward"):
        result[direction] = partial(_convolution_rate, direction=direction)
        result[f"{direction} roof"] = partial(_roof_rate, direction=direction)
    return result


def matrix_product() -> dict[str, Callable[..., float]]:
    """GFLOP/s of NumPy's matrix product on what a forward convolution would be after im2col (itself not counted)."""

    def sgemm(shape):
        side, channels, filters, k, padding = shape
        pixels = _batch_for(shape) * (side + 2 * padding - k + 1) ** 2
        patches = np.ones((min(pixels, 50_000_000 // (k * k * channels)), k * k * channels), np.float32)
        weights = np.ones((k * k * channels, filters), np.float32)
        return _rate(2 * len(patches) * weights.size, lambda: patches @ weights)

    return {"sgemm": sgemm}


def _convolution_rate(shape: tuple, direction: str) -> float:
    (x, dy, w), operations = _arrays_and_operations(shape, direction)
    side, _, filters, k, padding = shape
    out, around = dy.shape[1], (padding, padding)
    no_bias = np.zeros(filters, np.float32)
    functions = {
        "forward": lambda: convolve(x, w, no_bias, (out, out), offset=around),
        "dw": lambda: convolve_weight_gradient(x, dy, (k, k), offset=around),
        "dx": lambda: convolve_input_gradient(dy, w, (side, side), (1, 1), around),
        "backward": lambda: convolve_backward(x, dy, w, (1, 1), around),
    }
    return _rate(operations, functions[direction])


def _roof_rate(shape: tuple, direction: str) -> float:
    """As _convolution_rate, for a kernel that reads and writes so many numbers, and does nothing with them."""
    (x, dy, w), operations = _arrays_and_operations(shape, direction)
    moved = {"forward": (x, dy), "dw": (x, dy, w), "dx": (dy, x), "backward": (x, dy, x, w)}
    *inputs, output = moved[direction]
    source = np.concatenate([array.ravel() for array in inputs])
    kernel, sizes = _memory_task(SUMS, register_lanes(x.dtype)), (PARTS, source.size, output.size)
    return _rate(operations, lambda: run(kernel, PARTS, sizes, source, empty(output.shape, x.dtype)))


def _arrays_and_operations(shape: tuple, direction: str) -> tuple[tuple[np.ndarray, ...], float]:
    """x, dy and w of a convolution of this shape, and its multiplications and additions as a direct sum."""
    side, channels, filters, k, padding = shape
    batch, out = _batch_for(shape), side + 2 * padding - k + 1
    random = np.random.default_rng(0)
    sizes = (batch, side, side, channels), (batch, out, out, filters), (k, k, channels, filters)
    x, dy, w = (random.standard_normal(size, dtype=np.float32) for size in sizes)
    products = 2 if direction == "backward" else 1
    return (x, dy, w), 2 * products * batch * out * out * w.size


def _batch_for(shape: tuple) -> int:
    """So many images that a convolution takes about a millisecond, and fits into the cache as in training."""
    side, channels, filters, k, padding = shape
    work = 2 * (side + 2 * padding - k + 1) ** 2 * k * k * channels * filters
    memory = 4 * side * side * (channels + filters)
    return int(max(8, min(256, 4e8 / work, 8e6 / memory)))


def _rate(operations: float, function: Callable) -> float:
    """GFLOP/s, by the median of the calls in about 20 ms."""
    function()
    started = time.perf_counter()
    function()
    repetitions = max(3, int(0.02 / (time.perf_counter() - started)))
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return operations / float(np.median(times)) / 1e9


def peak_rate() -> float:
    """GFLOP/s of multiply-adds that only touch registers, on all threads: what no kernel can exceed."""
    lanes, steps, parts = register_lanes(np.float32), 20000, 32
    peak, x = _peak_task(SUMS, lanes), np.arange(SUMS * lanes, dtype=np.float32)
    return _rate(2 * parts * steps * SUMS * lanes, lambda: run(peak, parts, (steps,), x))


@cache
def _peak_task(P: int, lanes: int):
    @task(np.float32)
    def only_registers(part, sizes, x):
        (steps,) = numbers(sizes, 1)
        acc = tile(P, lanes, x)
        for p in range(P):
            acc[p] = read(x, p * lanes, lanes, lanes)
        for _ in range(steps):
            for p in range(P):
                acc[p] = multiply_add(acc[p], acc[p], acc[p])
        for p in range(P):
            write(x, p * lanes, acc[p], lanes)

    return only_registers


@cache
def _memory_task(P: int, lanes: int):
    @task(np.float32, np.float32)
    def only_memory(part, sizes, x, y):
        parts, reads, writes = numbers(sizes, 3)
        acc = tile(P, lanes, x)
        for p in range(P):
            acc[p] = zeros(x, lanes)
        for i in range(part * reads // parts, (part + 1) * reads // parts - P * lanes, P * lanes):
            for p in range(P):
                acc[p] = acc[p] + read(x, i + p * lanes, lanes, lanes)
        for i in range(part * writes // parts, (part + 1) * writes // parts - P * lanes, P * lanes):
            for p in range(P):
                write(y, i + p * lanes, acc[p], lanes)

    return only_memory


COMPETITORS: dict[str, Callable[..., Functions]] = {
    "tinycnn": tinycnn,
    "PyTorch": pytorch,
    "PyTorch channels_last": lambda name, batch: pytorch(name, batch, channels_last=True),
    "tinycnn epoch": epoch_of_tinycnn,
    "kernels": kernels,
    "matrix product": matrix_product,
    "Keras epoch": lambda *sizes: epoch_of_keras(*sizes, jit_compile=False),
    "Keras epoch, XLA": lambda *sizes: epoch_of_keras(*sizes, jit_compile=True),
}
