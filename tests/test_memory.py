"""Memory is used again, and nobody who can still see an array ever sees it change."""

import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tinycnn import (
    Adam,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    MaxPool2D,
    Normalize,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
    constant,
)
from tinycnn.kernels import memory
from tinycnn.training import train

FLOAT32 = np.dtype(np.float32)
SHAPE = (100, 1000)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture
def nothing_waits(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(memory, "_waiting", {})
    monkeypatch.setattr(memory, "_waiting_bytes", 0)
    monkeypatch.setattr(memory, "_scratch", [])


def test_a_block_is_used_again(nothing_waits):
    first = memory.empty(SHAPE, FLOAT32)
    assert (first.shape, first.dtype, address(first) % memory.ALIGNMENT) == (SHAPE, FLOAT32, 0)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    place, middle = address(first), address(first) + first.nbytes // 2
    del first
    assert address(memory.empty(SHAPE, FLOAT32)) == place
    # Smaller ones: their halves are in the same halves of the block, where the same core has written.
    for shape, dtype in (((99, 999), FLOAT32), ((50, 500), np.dtype(np.float64)), ((55, 1000), FLOAT32)):
        smaller = memory.empty(shape, dtype)
        assert address(smaller) % memory.ALIGNMENT == 0
        assert abs(address(smaller) + smaller.nbytes // 2 - middle) < memory.ALIGNMENT
        del smaller
    assert not place <= address(memory.empty((10, 1700), FLOAT32)) < place + 400_000  # not a fifth of it


def test_a_thread_gets_the_same_scratch_memory_again(nothing_waits):
    """Of the largest size that was asked for: a smaller one has its rows at the same places."""
    first = memory.take_scratch(3, 1000)
    assert first.shape == (3, 256)  # whole cache lines
    assert first.dtype == FLOAT32
    assert address(first) % memory.ALIGNMENT == 0
    second = memory.take_scratch(3, 1000)
    assert not np.shares_memory(first, second)  # somebody else computes at the same time
    for scratch in (second, first):
        memory.return_scratch(scratch)
    assert memory.take_scratch(3, 10) is first
    memory.return_scratch(first)
    larger = memory.take_scratch(3, 2000)
    assert larger.shape == (3, 512)
    memory.return_scratch(larger)
    assert memory.take_scratch(3, 1000) is larger
    memory.return_scratch(larger)
    memory.free_unused()
    assert memory._scratch == []


def test_given_back_is_given_back(nothing_waits):
    kept = memory.empty(SHAPE, FLOAT32)
    del kept
    assert memory._waiting_bytes > 0
    memory.free_unused()
    assert memory._waiting_bytes == 0
    assert not memory._waiting


@pytest.mark.parametrize(
    "view", [lambda a: a[1:2, ::7], lambda a: a.reshape(-1)[-1:], lambda a: a.T, memoryview, lambda a: a.view(np.uint8)]
)
def test_a_block_waits_for_the_last_view(nothing_waits, view):
    array = memory.empty(SHAPE, FLOAT32)
    place, kept = address(array), view(array)
    del array
    assert address(memory.empty(SHAPE, FLOAT32)) != place
    del kept
    assert place in [address(a) for a in [memory.empty(SHAPE, FLOAT32) for _ in range(2)]]


def test_a_slice_of_a_block_does_not_give_it_back(nothing_waits):
    """Only whoever went on to the base of an array can have one."""
    array = memory.empty(SHAPE, FLOAT32)
    part = array.base[:5]
    del part
    assert not memory._waiting


def test_only_so_much_waits(nothing_waits, monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 1_000_000)
    arrays = [memory.empty(SHAPE, FLOAT32) for _ in range(5)]
    del arrays
    assert memory._waiting_bytes == sum(block.size for blocks in memory._waiting.values() for block in blocks)
    assert 0 < memory._waiting_bytes <= 1_000_000


def test_what_waits_in_vain_makes_room(nothing_waits, monkeypatch):
    """After a large batch a small one's blocks are kept, too small to use the large ones."""
    monkeypatch.setattr(memory, "KEPT", 1_400_000)
    large = [memory.empty((150_000,), FLOAT32) for _ in range(2)]
    del large
    small = memory.empty((35_000,), FLOAT32)
    del small
    sizes = [block.size for blocks in memory._waiting.values() for block in blocks]
    assert sorted(size // 100_000 for size in sizes) == [1, 6]
    assert sum(sizes) == memory._waiting_bytes


@pytest.mark.parametrize("order", [(60_000, 150_000), (150_000, 60_000)])
def test_what_waits_longest_makes_room(order, nothing_waits, monkeypatch):
    """Whatever its size."""
    monkeypatch.setattr(memory, "KEPT", 700_000)
    for size in order:
        array = memory.empty((size,), FLOAT32)
        del array
    (last,) = [block for blocks in memory._waiting.values() for block in blocks]
    assert last.size // 100_000 == 4 * order[1] // 100_000


def test_of_one_size_those_that_are_not_used_make_room(nothing_waits, monkeypatch):
    """Also while another one of their size comes and goes."""
    monkeypatch.setattr(memory, "KEPT", 1_400_000)
    large = [memory.empty((150_000,), FLOAT32) for _ in range(2)]
    del large
    places = set()
    for _ in range(3):
        large, small = memory.empty((150_000,), FLOAT32), memory.empty((60_000,), FLOAT32)
        places.add((address(large), address(small)))
        del small
        del large
    assert len(places) == 1
    assert sorted(block.size // 100_000 for blocks in memory._waiting.values() for block in blocks) == [2, 6]


def test_threads_of_python_may_allocate_at_once(nothing_waits):
    """Nobody gets a block that another one has, and the books are right afterwards."""
    mixed_up = []

    def allocate(number: int) -> None:
        for _ in range(20000):
            array = memory.empty(SHAPE, FLOAT32)
            array[0, 0] = number
            if array[0, 0] != number:
                mixed_up.append(number)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(allocate, range(4)))  # raises what a thread has raised
    finally:
        sys.setswitchinterval(before)
    assert not mixed_up
    assert memory._waiting_bytes == sum(size * len(blocks) for size, blocks in memory._waiting.items()) > 0


def test_small_and_empty_arrays_are_ordinary():
    assert memory.empty((3, 4), FLOAT32).base is None
    assert memory.empty((0, 1 << 20), FLOAT32).shape == (0, 1 << 20)


def big_model(end: list[Layer]) -> Sequential:
    """Every layer, its arrays well over a megabyte for 64 images."""
    layers = [
        Normalize(0.1, 0.3),
        Conv2D(16, kernel_size=5),
        MaxPool2D(2),
        BatchNorm(),
        ReLU(),
        Conv2D(32, kernel_size=3, padding=1),
        Dropout(0.1),
        *end,
        ReLU(),
        Dense(10),
    ]
    return Sequential(layers, (28, 28, 1), seed=1)


ENDS = pytest.mark.parametrize("end", [lambda: [Flatten(), Dense(300)], lambda: [GlobalAveragePool2D()]])


@ENDS
def test_nothing_that_was_returned_changes(end, random):
    """Outputs of forward, backward, predict and of layers called by hand survive any number of later calls."""
    model, loss = big_model(end()), SoftmaxCrossEntropy()
    images, labels = random.integers(0, 256, (64, 28, 28), np.uint8), random.integers(0, 10, 64)

    def everything():
        x, kept = images, []
        for layer in model.layers:
            kept.append(x := layer.forward(x, training=True))
        loss.forward(x, labels)
        dy = loss.backward()
        for layer in reversed(model.layers):
            kept.append(dy := layer.backward(dy))
        kept += [model.forward(images), model.predict_proba(images), model.forward(images, training=True)]
        return [*kept, model.backward(loss.backward())]

    results = everything()
    copies = [result.copy() for result in results]
    for _ in range(3):
        everything()
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)


def peak_of(step: Callable) -> int:
    """The most that a step has allocated at once, after a few others."""
    for _ in range(3):
        step()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


@ENDS
def test_a_steady_step_asks_for_no_memory(end, random):
    """After a few steps, a whole step allocates less than a megabyte in all: no array over a megabyte can be in it."""
    model, loss = big_model(end()), SoftmaxCrossEntropy()
    optimizer = Adam(model.parameters())
    images, labels = random.integers(0, 256, (64, 28, 28), np.uint8), random.integers(0, 10, 64)

    def step():
        loss.forward(model.forward(images, training=True), labels)
        model.backward(loss.backward())
        optimizer.step()

    assert peak_of(step) < 1 << 20


def test_a_training_asks_for_no_memory(random):
    """Its own loop with whole batches: 1.6 MB of images each."""
    model = Sequential([Conv2D(8, 3), MaxPool2D(2), ReLU(), Flatten(), Dense(10)], (28, 28, 1), seed=1)
    images, labels = random.normal(size=(512 * 6, 28, 28, 1)).astype(np.float32), random.integers(0, 10, 512 * 6)
    most, before = [], [0]

    def measure(position):
        if position.step == 3:
            tracemalloc.start()
        now, peak = tracemalloc.get_traced_memory()
        most.append(peak - before[0])
        before[0] = now
        tracemalloc.reset_peak()

    try:
        train(model, Adam(model.parameters()), constant(1e-3), images, labels, 1, 512, random, after_step=measure)
    finally:
        tracemalloc.stop()
    assert len(most) == 5
    assert max(most) < 1 << 20


@pytest.mark.parametrize(
    ("layers", "images"),
    [
        (
            [Normalize(0.1, 0.3), Conv2D(8, 3), Dropout(0.2), GlobalAveragePool2D(), Dense(2000)],
            np.zeros((512, 28, 28)),
        ),
        ([Normalize(0.1, 0.3), Conv2D(8, 1), GlobalAveragePool2D()], np.zeros((512, 28, 28), np.uint8)),
        ([Conv2D(16, 3), GlobalAveragePool2D()], np.zeros((300, 30, 30, 1), np.uint8)),
        ([Conv2D(128, 5), Conv2D(128, 5), Flatten()], np.zeros((8, 20, 20, 1))),  # whose weights are large
        ([Conv2D(8, 7), Flatten()], np.zeros((2, 20, 20, 1000))),
        ([Conv2D(2, 7), Flatten()], np.zeros((2, 20, 20, 3001))),
    ],
)
def test_the_ends_of_a_large_step_ask_for_no_memory(layers, images):
    """Where numbers come in and go out, in what a layer makes of its weights, in the loss."""
    model, loss = Sequential(layers, (*images.shape[1:], 1)[:3], seed=1), SoftmaxCrossEntropy()
    labels = np.zeros(len(images), int)

    def step():
        loss.forward(model.forward(images, training=True), labels)
        model.backward(loss.backward())

    assert peak_of(step) < 1 << 20


class Slow(list):
    """Before something is taken from it, another thread has its turn."""

    def pop(self, *place):
        time.sleep(0.05)
        return super().pop(*place)


def test_two_threads_do_not_get_the_same_block(nothing_waits, monkeypatch):
    one = memory.empty(SHAPE, FLOAT32)
    del one
    monkeypatch.setattr(memory, "_waiting", {size: Slow(blocks) for size, blocks in memory._waiting.items()})
    with ThreadPoolExecutor(2) as pool:
        arrays = list(pool.map(lambda _: memory.empty(SHAPE, FLOAT32), range(2)))
    assert not np.shares_memory(*arrays)
    assert memory._waiting_bytes == 0


def test_an_array_may_die_while_its_thread_holds_the_lock():
    """When Python collects garbage, for example."""
    with memory._lock:
        assert memory._lock.acquire(timeout=0.1)
        memory._lock.release()


class Emptied(list):
    """Just before something is taken from it, arrays that die make room of all that is in it."""

    def pop(self, *place):
        while self:
            memory._waiting_bytes -= super().pop().size
        return super().pop(*place)


@pytest.mark.parametrize("kept", [0, memory.KEPT])
def test_what_waits_may_go_at_any_time(nothing_waits, monkeypatch, kept):
    """With nothing to be kept, it goes while room is made by another; else while somebody takes it."""
    one = memory.empty(SHAPE, FLOAT32)
    size = one.base.base.size
    monkeypatch.setattr(memory, "_waiting", {size: Emptied()})
    monkeypatch.setattr(memory, "KEPT", kept)
    del one
    assert memory._waiting_bytes == (size if kept else 0)
    assert memory.empty(SHAPE, FLOAT32).shape == SHAPE
