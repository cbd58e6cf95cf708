"""Twenty training steps, recorded from an independent implementation: `python tests/golden_trajectory.py` (PyTorch).

It writes golden_trajectory.json beside it: every loss of the run in float64. The weights and the data come from a rule
of whole numbers, so nothing but the arithmetic of training itself can make a difference.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
STEPS, LEARNING_RATE, WEIGHT_DECAY = 20, 0.01, 0.02
SHAPES = {  # in the order of the layers
    "conv2d_1.weight": (3, 3, 2, 4),
    "conv2d_1.bias": (4,),
    "batchnorm_3.gamma": (4,),
    "batchnorm_3.beta": (4,),
    "conv2d_5.weight": (2, 3, 4, 5),
    "conv2d_5.bias": (5,),
    "dense_8.weight": (20, 6),
    "dense_8.bias": (6,),
}


def numbers(shape: tuple[int, ...], start: int) -> np.ndarray:
    """Between −0.5 and 0.5, scattered, exact in binary."""
    i = np.arange(start, start + np.prod(shape, dtype=int))
    return (((i * 7919 + 4099) % 1021 - 510) / 1024).reshape(shape)


def weights() -> dict[str, np.ndarray]:
    """The fixed start."""
    return {name: numbers(shape, 1000 * i) + ("gamma" in name) for i, (name, shape) in enumerate(SHAPES.items())}


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (7, 9, 8, 2) and labels (7,); three batches that take turns."""
    i = np.arange(7) + 7 * (step % 3)
    return 4 * numbers((7, 9, 8, 2), 10_000 * (step % 3 + 1)), (i * 5 + 2) % 6


def record() -> list[float]:
    """The losses, from PyTorch."""
    import torch

    torch.set_default_dtype(torch.float64)
    w = {name: torch.tensor(value, requires_grad=True) for name, value in weights().items()}
    optimizer = torch.optim.AdamW(w.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    f, losses = torch.nn.functional, []
    for step in range(STEPS):
        images, labels = batch(step)
        x = torch.tensor(images.transpose(0, 3, 1, 2))
        x = f.conv2d(x, w["conv2d_1.weight"].permute(3, 2, 0, 1), w["conv2d_1.bias"], padding=1)
        x = f.max_pool2d(x, (3, 2), stride=2)
        x = f.relu(f.batch_norm(x, None, None, w["batchnorm_3.gamma"], w["batchnorm_3.beta"], training=True))
        x = f.relu(f.conv2d(x, w["conv2d_5.weight"].permute(3, 2, 0, 1), w["conv2d_5.bias"], stride=(2, 1)))
        logits = x.permute(0, 2, 3, 1).flatten(1) @ w["dense_8.weight"] + w["dense_8.bias"]
        loss = f.cross_entropy(logits, torch.tensor(labels))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    FILE.write_text(json.dumps({"losses": record()}, indent=1) + "\n")
