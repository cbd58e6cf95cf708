"""A second opinion: the same networks with the same weights in PyTorch agree in logits, every gradient and Adam steps.

PyTorch is an optional peer (`pip install -e ".[peers]"`); without it these tests skip and say so.
"""

import copy

import numpy as np
import pytest

from tinycnn import (
    SGD,
    Adam,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    MaxPool2D,
    Normalize,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
)
from tinycnn.presets import PRESETS

torch = pytest.importorskip("torch", reason="PyTorch is not installed (it is an optional peer)")

NETWORKS = {
    "strides, paddings, overlapping pools": (
        lambda: [
            Conv2D(6, (3, 2), stride=(2, 1), padding=(1, 2)),
            ReLU(),
            MaxPool2D((3, 2), stride=(1, 2)),
            BatchNorm(momentum=0.8, epsilon=1e-3),
            ReLU(),
            Conv2D(7, 3, padding=1, use_bias=False),
            ReLU(),
            Flatten(),
            Dense(5),
        ],
        (15, 12, 3),
    ),
    "convolutions to the end": (
        lambda: [
            Conv2D(6, 3, use_bias=False),
            BatchNorm(),
            ReLU(),
            Conv2D(7, 3, stride=2),
            ReLU(),
            GlobalAveragePool2D(),
            Dense(5),
        ],
        (15, 12, 3),
    ),
    **{name: (lambda make=make: make(10).layers, (28, 28, 1)) for name, make in PRESETS.items()},
}


def in_torch(model: Sequential):
    """The same network with the same weights: NHWC becomes NCHW, (kh, kw, in, out) becomes (out, in, kh, kw)."""
    nn, parts, shape = torch.nn, [], model.input_shape
    for layer, output_shape in zip(model.layers, model.output_shapes, strict=True):
        match layer:
            case Conv2D():
                part = nn.Conv2d(
                    shape[2], layer.filters, layer.kernel_size, layer.stride, layer.padding, bias=layer.use_bias
                )
                part.weight.data = torch.tensor(layer.weight.value.transpose(3, 2, 0, 1))
                if layer.use_bias:
                    part.bias.data = torch.tensor(layer.bias.value)
            case Dense():
                part = nn.Linear(*layer.weight.value.shape, bias=layer.use_bias)
                part.weight.data = torch.tensor(layer.weight.value.T)
                part.bias.data = torch.tensor(layer.bias.value)
            case BatchNorm():
                kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
                part = kind(shape[-1], eps=layer.epsilon, momentum=1 - layer.momentum, dtype=torch.float64)
            case MaxPool2D():
                part = nn.MaxPool2d(layer.pool_size, layer.stride)
            case ReLU():
                part = nn.ReLU()
            case Flatten():
                part = nn.Sequential(ToNHWC(), nn.Flatten())
            case GlobalAveragePool2D():
                part = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            case Dropout():
                part = SameDropout(layer)
            case _:
                raise TypeError(f"no peer for {layer}")
        parts.append(part)
        shape = output_shape
    return nn.Sequential(*parts)


class ToNHWC(torch.nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


class SameDropout(torch.nn.Module):
    """Drops what the layer drops: it has a copy of its generator."""

    def __init__(self, layer: Dropout):
        super().__init__()
        self.rate, self.generator = layer.rate, copy.deepcopy(layer.generator)

    def forward(self, x):
        kept = self.generator.random(tuple(x.shape), dtype=np.float32) >= self.rate
        return torch.where(torch.tensor(kept), x / (1 - self.rate), 0.0)


def as_ours(parameter) -> np.ndarray:
    """A parameter's gradient or value in our order of axes."""
    array = parameter.detach().numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_logits_gradients_and_ten_steps(name, kind, random):
    make, shape = NETWORKS[name]
    model = Sequential(make(), shape, seed=2, dtype=np.float64)
    peer = in_torch(model)
    x, labels = random.normal(size=(8, *shape)), random.integers(0, model.output_shapes[-1][0], size=8)
    peer_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    loss, optimizer = SoftmaxCrossEntropy(), Adam(model.parameters(), 1e-3, weight_decay=0.01)
    peer_optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, weight_decay=0.01)
    if kind == "sgd":
        optimizer = SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=0.01)
        peer_optimizer = torch.optim.SGD(peer.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)

    for step in range(10):
        logits, peer_logits = model.forward(x, training=True), peer(peer_x)
        np.testing.assert_allclose(logits, peer_logits.detach().numpy(), rtol=1e-7, atol=1e-8, err_msg=f"step {step}")
        peer_loss = torch.nn.functional.cross_entropy(peer_logits, torch.tensor(labels))
        assert loss.forward(logits, labels) == pytest.approx(float(peer_loss.detach()), rel=1e-8)
        peer_optimizer.zero_grad()
        peer_x.grad = None
        peer_loss.backward()
        dx = model.backward(loss.backward())
        for p, q in zip([*model.parameters()], peer.parameters(), strict=True):
            exact = as_ours(q.grad)
            np.testing.assert_allclose(p.grad, exact, rtol=1e-6, atol=1e-7 * np.abs(exact).max(), err_msg=p.name)
        exact = peer_x.grad.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(dx, exact, rtol=1e-6, atol=1e-7 * np.abs(exact).max())
        optimizer.step()
        peer_optimizer.step()
    for p, q in zip(model.parameters(), peer.parameters(), strict=True):
        np.testing.assert_allclose(p.value, as_ours(q), rtol=1e-5, atol=1e-6, err_msg=p.name)


@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_same_loss_and_gradient_with_smoothed_labels(smoothing, as_rows, random):
    logits, labels = random.normal(0, 3, size=(9, 7)), random.integers(0, 7, size=9)
    if as_rows:
        labels = random.dirichlet(np.ones(7), size=9)
    peer_logits = torch.tensor(logits, requires_grad=True)
    peer_loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(peer_logits, torch.tensor(labels))
    peer_loss.backward()
    loss = SoftmaxCrossEntropy(label_smoothing=smoothing)
    assert loss.forward(logits, labels) == pytest.approx(float(peer_loss.detach()), rel=1e-12)
    np.testing.assert_allclose(loss.backward(), peer_logits.grad.numpy(), rtol=1e-11, atol=1e-14)


def test_first_gradients_in_float32(random):
    """What training really computes: single precision, raw images."""
    model = Sequential([Normalize(0.13, 0.31), *PRESETS["standard"](10).layers], (28, 28, 1), seed=2)
    images, labels = random.integers(0, 256, size=(16, 28, 28), dtype=np.uint8), random.integers(0, 10, size=16)
    bare = Sequential(PRESETS["standard"](10).layers, (28, 28, 1), seed=2, dtype=np.float64)
    peer = in_torch(bare)
    x = torch.tensor((images[:, None] / 255 - 0.13) / 0.31)
    peer_loss = torch.nn.functional.cross_entropy(peer(x), torch.tensor(labels))
    peer_loss.backward()
    loss = SoftmaxCrossEntropy()
    assert loss.forward(model.forward(images, training=True), labels) == pytest.approx(
        float(peer_loss.detach()), rel=1e-5
    )
    model.backward(loss.backward())
    for p, q in zip(model.parameters(), peer.parameters(), strict=True):
        exact = as_ours(q.grad)
        np.testing.assert_allclose(p.grad, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max(), err_msg=p.name)
