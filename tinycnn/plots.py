"""Every picture, drawn with Matplotlib: arrays in, a Figure out. No window is opened and no display is needed.

What this file is not: it computes nothing but what drawing needs.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of Okabe and Ito: told apart by everyone
TRAIN, VALIDATION = PALETTE[:2]


def training(history: list[dict], first_weights: np.ndarray) -> Figure:
    """Loss and accuracy an epoch, and the filters of the first convolution.

    history: rows as `tinycnn.training.train` returns them; first_weights (kernel_h, kernel_w, channels, filters).
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _curve(left, history, "loss", "loss (nats)")
    _curve(middle, history, "accuracy", "accuracy")
    _filters(right, first_weights)
    return figure


def growth(sweeps: dict[str, list[dict]]) -> Figure:
    """The time of a training step against what is named by the keys of sweeps, a panel each, on logarithmic scales.

    Each value is a list of points {"value", "seconds"} and, where the arithmetic grows, its "multiply_adds"; a dashed
    line then shows a time that grows like them, from the largest point down.
    """
    figure = Figure(figsize=(3.4 * len(sweeps), 3.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items(), strict=True):
        values, seconds = [p["value"] for p in points], np.array([p["seconds"] for p in points])
        axes.loglog(values, 1e3 * seconds, color=TRAIN, marker="o", label="measured")
        if "multiply_adds" in points[-1]:
            work = np.array([p["multiply_adds"] for p in points])
            expected, label = seconds[-1] * work / work[-1], "as the arithmetic"
        else:
            expected, label = seconds[0] / np.array(values), "shared out evenly"
        axes.loglog(values, 1e3 * expected, color=VALIDATION, linestyle="--", label=label)
        axes.set(title=f"A step by {name}", xlabel=name, ylabel="time of a step (ms)")
        axes.set_xticks(values[:: 1 + len(values) // 8], [str(v) for v in values[:: 1 + len(values) // 8]])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def derivative_errors(steps: np.ndarray, errors: dict[str, np.ndarray]) -> Figure:
    """Relative error of a derivative against the step size (S,), a curve a method (S,), on logarithmic scales.

    An error of 0 is drawn at the precision of float64, about 1e-16.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, marker in zip(errors.items(), PALETTE, "s^o", strict=False):
        axes.loglog(steps, np.maximum(values, 1e-16), color=colour, marker=marker, markersize=4, label=name)
    axes.set(title="Error of a derivative by step size", xlabel="step size h", ylabel="relative error")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend()
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


def _filters(axes, weights: np.ndarray) -> None:
    """Each filter of the first convolution, its channels averaged; one scale for all, blue below 0 and red above."""
    pictures = np.moveaxis(weights.mean(axis=2), 2, 0)
    count, height, width = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    # One picture of them all, with gaps: as many little axes would take half a second to draw.
    cells = np.full((-(-count // columns) * columns, height + 1, width + 1), np.nan)
    cells[:count, :height, :width] = pictures
    mosaic = np.block([list(row) for row in cells.reshape(-1, columns, height + 1, width + 1)])
    limit = np.abs(pictures).max()
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title("Filters of the first convolution")
    axes.axis("off")
    axes.figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
