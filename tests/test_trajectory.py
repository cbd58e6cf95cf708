"""Training as a whole: a recorded run, repeated to ten digits; one batch learned by heart; no rate, no learning."""

import json
from math import log

import golden_trajectory as golden
import numpy as np
import pytest
from reference_network import reference_gradients

from tinycnn import Adam, BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Sequential, SoftmaxCrossEntropy
from tinycnn.presets import PRESETS

LOSSES = json.loads(golden.FILE.read_text())["losses"]


def golden_model() -> Sequential:
    """The network of golden_trajectory.py, at its start."""
    layers = [
        Conv2D(4, 3, padding=1),
        MaxPool2D((3, 2), stride=2),
        BatchNorm(),
        ReLU(),
        Conv2D(5, (2, 3), stride=(2, 1)),
        ReLU(),
        Flatten(),
        Dense(6),
    ]
    model, start = Sequential(layers, (9, 8, 2), dtype=np.float64), golden.weights()
    for p in model.parameters():
        p.value[...] = start[p.name]
    assert [p.name for p in model.parameters()] == list(start)
    return model


def test_the_kernels_follow_the_golden_trajectory():
    model, loss = golden_model(), SoftmaxCrossEntropy()
    optimizer = Adam(model.parameters(), golden.LEARNING_RATE, weight_decay=golden.WEIGHT_DECAY)
    losses = []
    for step in range(golden.STEPS):
        x, labels = golden.batch(step)
        losses.append(loss.forward(model.forward(x, training=True), labels))
        model.parameter_gradients(loss.backward())
        optimizer.step()
    np.testing.assert_allclose(losses, LOSSES, rtol=0, atol=1e-10)


def test_the_reference_follows_the_golden_trajectory():
    """With nothing of the fast code: reference formulas, and Adam written out again."""
    model, losses = golden_model(), []
    means = {p.name: np.zeros_like(p.value) for p in model.parameters()}
    squares = {p.name: np.zeros_like(p.value) for p in model.parameters()}
    for step in range(golden.STEPS):
        x, labels = golden.batch(step)
        value, gradients = reference_gradients(model, x, np.eye(6)[labels])
        losses.append(value)
        for p in model.parameters():
            g = gradients[p.name]
            means[p.name] = 0.9 * means[p.name] + 0.1 * g
            squares[p.name] = 0.999 * squares[p.name] + 0.001 * g**2
            mean, square = means[p.name] / (1 - 0.9 ** (step + 1)), squares[p.name] / (1 - 0.999 ** (step + 1))
            p.value *= 1 - golden.LEARNING_RATE * golden.WEIGHT_DECAY
            p.value -= golden.LEARNING_RATE * mean / (np.sqrt(square) + 1e-8)
    np.testing.assert_allclose(losses, LOSSES, rtol=0, atol=1e-10)


def test_the_recording_is_repeated_by_pytorch():
    pytest.importorskip("torch", reason="PyTorch is not installed (it is an optional peer)")
    np.testing.assert_allclose(golden.record(), LOSSES, rtol=0, atol=1e-12)


STEPS = {"small": 400}  # so few numbers take longer to learn a batch by heart


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_starts_knowing_nothing_and_learns_one_batch_by_heart(name, random):
    """The first loss is ln 10; with a rate of zero it stays, with a sensible one it falls below 1e-3."""
    images, labels = random.normal(size=(32, 28, 28, 1)).astype(np.float32), random.integers(0, 10, 32)
    for rate in (0.0, 2e-3):
        model, loss = Sequential(PRESETS[name](10).layers, (28, 28, 1), seed=1), SoftmaxCrossEntropy()
        optimizer = Adam(model.parameters(), rate)
        losses = []
        for _ in range(3 if rate == 0 else STEPS.get(name, 150)):
            for layer in model.layers:
                if isinstance(layer, Dropout) and rate == 0:
                    layer.generator = np.random.default_rng(0)  # the same mask at every step
            losses.append(loss.forward(model.forward(images, training=True), labels))
            model.parameter_gradients(loss.backward())
            optimizer.step()
        assert losses[0] == pytest.approx(log(10), rel=0.05)
        if rate == 0:
            assert losses == [losses[0]] * 3
        else:
            assert losses[-1] < 1e-3
