"""Every picture, drawn with Matplotlib: arrays in, a Figure out. No window is opened and no display is needed.

What this file is not: it computes nothing but what drawing needs.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN, VALIDATION = "#0072B2", "#D55E00"  # blue and vermilion of Okabe and Ito: told apart by everyone


def training(history: list[dict], first_weights: np.ndarray) -> Figure:
    """Loss and accuracy an epoch, and the filters of the first convolution.

    history: rows as `tinycnn.training.train` returns them; first_weights (kernel_h, kernel_w, channels, filters).
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1, 1.2))
    _curve(left.subplots(), history, "loss", "loss (nats)")
    _curve(middle.subplots(), history, "accuracy", "accuracy")
    _filters(right, first_weights)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, dpi=120)


def _curve(axes, history: list[dict], quantity: str, label: str) -> None:
    epochs = [row["epoch"] for row in history]
    for name, colour, marker in (("train", TRAIN, "o"), ("validation", VALIDATION, "s")):
        values = [row[f"{name}_{quantity}"] for row in history]
        if None not in values:
            axes.plot(epochs, values, color=colour, marker=marker, label=name)
    axes.set(title=f"{quantity.capitalize()} by epoch", xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, len(epochs) + 0.5)
    axes.grid(alpha=0.3)
    axes.legend()


def _filters(figure, weights: np.ndarray) -> None:
    """Each filter of the first convolution, its channels averaged; one scale for all, blue below 0 and red above."""
    pictures = weights.mean(axis=2)
    columns = int(np.ceil(np.sqrt(pictures.shape[2])))
    rows = int(np.ceil(pictures.shape[2] / columns))
    limit = np.abs(pictures).max()
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, filter_ in zip(grid, np.moveaxis(pictures, 2, 0), strict=False):
        image = axes.imshow(filter_, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(image, ax=grid, label="weight", shrink=0.8)
    figure.suptitle("Filters of the first convolution")
