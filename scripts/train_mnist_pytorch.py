"""The job of `train_mnist.py --preset fast` in plain PyTorch: what `benchmark.py` measures the whole job against.

The same network, data, optimizer, schedule, augmentation and evaluation, written as a PyTorch user would: tensors in
memory, no data loader (one would be slower), the faster memory layout, the fused optimizer.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

EPOCHS, BATCH, PEAK_RATE, WARM_UP, BETAS, WEIGHT_DECAY, SHIFT = 1, 128, 1e-2, 0.1, (0.7, 0.9), 0.5, 1
MEAN, STD = 0.1307, 0.3081  # of the training pixels / 255


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as PyTorch chooses")
    parser.add_argument("--data-dir", type=Path, required=True, help="with MNIST's four IDX files, unpacked")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started = time.perf_counter()

    train_images, train_labels = read(options.data_dir, "train")
    test_images, test_labels = read(options.data_dir, "t10k")

    def prepare(images: torch.Tensor) -> torch.Tensor:
        """(N, 28, 28) pixels -> (N, 1, 28, 28) numbers around zero."""
        return ((images.float() / 255 - MEAN) / STD).unsqueeze(1).contiguous(memory_format=torch.channels_last)

    model = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    steps = EPOCHS * -(-len(train_images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=WARM_UP, div_factor=10, cycle_momentum=False
    )
    loss_function = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        order = torch.randperm(len(train_images))
        for i in range(0, len(order), BATCH):
            chosen = order[i : i + BATCH]
            loss = loss_function(model(prepare(random_shift(train_images[chosen], SHIFT))), train_labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()

    model.eval()
    total_loss = correct = 0
    with torch.inference_mode():
        for i in range(0, len(test_images), 256):
            logits, labels = model(prepare(test_images[i : i + 256])), test_labels[i : i + 256]
            total_loss += loss_function(logits, labels).item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
    n = len(test_images)
    print(f"test accuracy {correct / n:.2%}, test loss {total_loss / n:.4f} ({time.perf_counter() - started:.1f} s)")


def read(directory: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 28, 28) in bytes, and labels."""
    images = np.fromfile(directory / f"{part}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(directory / f"{part}-labels-idx1-ubyte", np.uint8, offset=8)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def network() -> nn.Module:
    """As `tinycnn.presets.fast`."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def random_shift(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Move each image by −pixels … +pixels, down and across; what enters is background."""
    count, height, width = images.shape
    padded = nn.functional.pad(images, (pixels,) * 4)
    top, left = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1))
    rows, columns = torch.arange(height).view(1, -1, 1) + top, torch.arange(width).view(1, 1, -1) + left
    return padded[torch.arange(count).view(-1, 1, 1), rows, columns]


if __name__ == "__main__":
    main()
