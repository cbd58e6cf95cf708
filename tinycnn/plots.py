"""Every picture, drawn with Matplotlib: arrays in, a Figure out. No window is opened and no display is needed.

What this file is not: it computes nothing but what drawing needs.
"""

from math import ceil
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of Okabe and Ito: told apart by everyone
TRAIN, VALIDATION = PALETTE[:2]
DPI = 100  # of a saved picture
WIDE = {"left": 0.06, "right": 0.98, "top": 0.9, "bottom": 0.15, "wspace": 0.25}


def training(history: list[dict], first_weights: np.ndarray) -> Figure:
    """Loss and accuracy an epoch, and the filters of the first convolution.

    history: rows as `tinycnn.training.train` returns them; first_weights (kernel_h, kernel_w, channels, filters).
    """
    figure = Figure(figsize=(12, 3.6))
    left, middle, right = figure.subplots(1, 3, gridspec_kw={**WIDE, "right": 0.95})
    _curve(left, history, "loss", "loss (nats)")
    _curve(middle, history, "accuracy", "accuracy")
    _filters(right, first_weights)
    return figure


def learning_curves(history: list[dict]) -> Figure:
    """Loss, accuracy and learning rate by epoch; history as `tinycnn.training.train` returns it."""
    figure = Figure(figsize=(12, 3.6))
    left, middle, right = figure.subplots(1, 3, gridspec_kw=WIDE)
    _curve(left, history, "loss", "loss (nats)")
    _curve(middle, history, "accuracy", "accuracy")
    epochs, rates = [row["epoch"] for row in history], [row["learning_rate"] for row in history]
    right.plot(epochs, rates, color=PALETTE[2], marker="o")
    _by_epoch(right, len(epochs), "Learning rate at the end of each epoch", "learning rate")
    right.set_ylim(0, None)
    right.yaxis.set_major_formatter("{x:g}")
    return figure


def confusion(matrix: np.ndarray) -> Figure:
    """matrix (K, K): counts of true class (row) against predicted class (column). The colours show mistakes only."""
    # There is room for the counts of 16 classes. For more the picture grows, but not without end: above 64 it has none.
    size = min(max(1, len(matrix) / 16), 4)
    figure = Figure(figsize=(6.4 * size, 5.6 * size))
    axes = figure.add_axes((0.08, 0.1, 0.77, 0.8))
    mistakes = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    image = axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(1, mistakes.max()))
    for (i, j), count in np.ndenumerate(matrix):
        if count and len(matrix) <= 64:
            dark = mistakes[i, j] > 0.6 * max(1, mistakes.max())
            axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    right = np.trace(matrix) / max(1, matrix.sum())
    axes.set(title=f"Confusion matrix: {right:.2%} right", xlabel="taken for", ylabel="true class")
    ticks = range(0, len(matrix), ceil(len(matrix) / 64))
    axes.set(xticks=ticks, yticks=ticks)
    bar = figure.add_axes((0.87, 0.1, 0.025, 0.8))
    figure.colorbar(image, cax=bar, label="mistakes").locator = MaxNLocator(integer=True)
    return figure


def reliability(rows: np.ndarray, error: float) -> Figure:
    """How often the network is right against how sure it is, and below it, how many images that is about.

    rows (bins, 3) as `tinycnn.metrics.calibration` returns them; error: their expected calibration error.
    """
    width, used = 1 / len(rows), rows[:, 2] > 0
    middles, (confidence, accuracy, counts) = (np.flatnonzero(used) + 0.5) * width, rows[used].T
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    above.bar(middles, accuracy, width, color=TRAIN, alpha=0.6, edgecolor="white", label="accuracy")
    gap = {"color": "none", "edgecolor": VALIDATION, "hatch": "////", "label": "gap to the mean confidence"}
    above.bar(middles, confidence - accuracy, 0.85 * width, bottom=accuracy, **gap)
    above.plot((0, 1), (0, 1), color="black", linestyle="--", label="right as often as it says")
    above.set(title=f"Expected calibration error {error:.2%}", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    below.bar(middles, counts, width, color=TRAIN, alpha=0.6, edgecolor="white")
    for x, count in zip(middles, counts, strict=True):
        below.text(x, 1.2 * count, f"{count:.0f}", ha="center", fontsize=8)
    below.set(xlabel="confidence (the highest probability)", ylabel="images", yscale="log")
    below.set_ylim(0.5, 5 * counts.max(initial=1))
    below.minorticks_off()
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def predictions(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, title: str) -> Figure:
    """A grid of images (N, H, W), each with what it was taken for and how surely; mistakes in vermilion with the truth.

    labels (N,), probabilities (N, K).
    """
    columns = min(8, max(1, len(images)))
    rows = max(1, ceil(len(images) / columns))
    figure = Figure(figsize=(1.25 * columns, 1.5 * rows + 0.5))
    axes = figure.add_axes((0.01, 0.01, 0.98, 1 - 0.55 / (1.5 * rows + 0.5)))
    axes.set_title(title)
    axes.axis("off")
    if not len(images):
        return figure
    height, width = images.shape[1:3]
    cell_h, cell_w = height + 10 * height // 28, width + 4
    cells = np.full((rows * columns, cell_h, cell_w), np.nan)
    cells[: len(images), cell_h - height :, 2 : 2 + width] = images.reshape(len(images), height, width, -1).mean(axis=3)
    axes.imshow(np.block([list(row) for row in cells.reshape(rows, columns, cell_h, cell_w)]), cmap="gray_r")
    for k, (label, p) in enumerate(zip(labels, probabilities, strict=True)):
        guess = int(p.argmax())
        right = guess == label
        text = f"{guess}  {p[guess]:.0%}" if right else f"{guess}  {p[guess]:.0%}, is {label}"
        x, y = (k % columns + 0.5) * cell_w, k // columns * cell_h + 0.5 * (cell_h - height)
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color="black" if right else VALIDATION)
    return figure


def mistakes(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, most: int = 32) -> Figure:
    """The images that were taken for another class with the most confidence, the worst first."""
    guesses = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[np.argsort(-probabilities[wrong, guesses[wrong]], kind="stable")][:most]
    title = f"The most confident of {len(wrong):,} mistakes among {len(labels):,}"
    return predictions(images[worst], labels[worst], probabilities[worst], title)


def filters(weights: np.ndarray, start: np.ndarray) -> Figure:
    """The first convolution's filters (kernel_h, kernel_w, channels, filters), and their change since the start."""
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    _filters(left, weights)
    _filters(right, weights - start)
    right.set_title("Their change since the start")
    return figure


def feature_maps(image: np.ndarray, maps: list[tuple[str, np.ndarray]]) -> Figure:
    """The image (H, W), and below it what every layer makes of it: (name, (h, w, channels) or a row of numbers) each.

    The first 32 channels are shown; each layer has its own scale, from dark for its lowest number to bright.
    """
    cell, gap, columns = 36, 2, 16
    left, above, width = 115, 40, columns * (cell + gap)  # pixels: for the names, for the title, of the picture
    strips = []
    for name, values in [("image", image[..., None]), *maps]:
        low, high = float(values.min()), float(values.max())
        shades = (values - low) / ((high - low) or 1.0)
        if values.ndim == 3:
            shown = shades[..., :32]
            strip = np.full((ceil(shown.shape[2] / columns) * (cell + gap), width), np.nan)
            for c in range(shown.shape[2]):
                down, across = c // columns * (cell + gap), c % columns * (cell + gap)
                strip[down : down + cell, across : across + cell] = _stretched(shown[..., c], cell, cell)
        else:
            strip = _stretched(shades.reshape(1, -1), cell // 2, width - gap)
        strips.append((name, strip))
    all_across, all_down = left + width, above + sum(len(strip) + 8 for _, strip in strips)
    figure = Figure(figsize=(all_across / DPI, all_down / DPI), dpi=DPI)
    middle, title = (left + width / 2) / all_across, "One image through every layer"
    figure.text(middle, 1 - 20 / all_down, title, size=12, ha="center", va="center")
    bottom = all_down - above
    for name, strip in strips:  # one by one: Matplotlib needs fifteen times the memory of what it draws at once
        bottom -= len(strip)
        figure.figimage(colormaps["viridis"](strip, bytes=True), left, bottom, origin="upper")
        middle = (bottom + len(strip) / 2) / all_down
        figure.text((left - 8) / all_across, middle, name, size=9, ha="right", va="center")
        bottom -= 8
    return figure


def _stretched(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each number repeated over its part of height × width."""
    rows, columns = np.arange(height) * values.shape[0] // height, np.arange(width) * values.shape[1] // width
    return values[np.ix_(rows, columns)]


def saliency(image: np.ndarray, gradient: np.ndarray, label: int, probability: float) -> Figure:
    """The image (H, W), and over it the gradient of a class's score by its pixels: red raises it, blue lowers."""
    figure = Figure(figsize=(8.6, 4))
    left, right = (figure.add_axes((x, 0.03, 0.42, 0.86)) for x in (0.01, 0.45))
    left.imshow(image, cmap="gray_r")
    left.set_title(f"Taken for {label} ({probability:.1%})")
    limit = float(np.abs(gradient).max()) or 1.0
    right.imshow(image, cmap="gray_r", alpha=0.5)
    drawn = right.imshow(gradient, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.75)
    right.set_title(f"What more ink would do to the score of {label}")
    for axes in (left, right):
        axes.axis("off")
    figure.colorbar(drawn, cax=figure.add_axes((0.885, 0.08, 0.02, 0.76)), label="∂ score / ∂ pixel")
    return figure


def augmented(originals: np.ndarray, changed: np.ndarray) -> Figure:
    """originals (N, H, W) in the first column, their variants changed (N, V, H, W) beside them.

    Channels may follow as a last dimension; their mean is drawn.
    """
    count, variants = changed.shape[:2]
    figure = Figure(figsize=(1.0 * (variants + 1), 1.0 * count + 0.5))
    axes = figure.add_axes((0.01, 0.01, 0.98, 1 - 0.55 / (count + 0.5)))
    cells = np.concatenate([originals[:, None], changed], axis=1)
    cells = cells.reshape(*cells.shape[:4], -1).mean(axis=4)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=np.nan)
    axes.imshow(np.block([list(row) for row in cells]), cmap="gray_r")
    axes.set_title("Original (left), and as training sees it")
    axes.axis("off")
    return figure


def prediction(picture: np.ndarray, seen: np.ndarray, probabilities: np.ndarray) -> Figure:
    """The picture that came in (H, W) grey, the 28×28 that the network saw, and the probability of each class (K,)."""
    figure = Figure(figsize=(11, 3.6))
    left, middle, right = figure.subplots(1, 3)
    left.imshow(picture, cmap="gray")
    left.set_title("What came in")
    middle.imshow(seen, cmap="gray_r")
    middle.set_title("What the network sees")
    for axes in (left, middle):
        axes.axis("off")
    best = int(probabilities.argmax())
    colours = [VALIDATION if k == best else TRAIN for k in range(len(probabilities))]
    right.barh(range(len(probabilities)), probabilities, color=colours)
    right.set(title=f"It is a {best} ({probabilities[best]:.1%})", xlabel="probability", ylabel="class", xlim=(0, 1))
    right.set_yticks(range(len(probabilities)))
    right.invert_yaxis()
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
        if "multiply_adds" not in points[-1]:  # too narrow a range for a logarithmic scale: there may be no tick in it
            axes.set_yscale("linear")
            axes.set_ylim(bottom=0)
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


def trials(rows: list[dict], settings: list[str]) -> Figure:
    """The validation accuracy of every trial against each of its settings.  rows: numbers by name, a dict a trial."""
    figure = Figure(figsize=(12, 6.2))
    accuracy = np.array([row["validation_accuracy"] for row in rows])
    columns = ceil(len(settings) / 2)
    spaces = {**WIDE, "left": 0.08, "hspace": 0.35, "wspace": 0.08}
    grid = figure.subplots(2, columns, sharey=True, squeeze=False, gridspec_kw=spaces)
    for axes, name in zip(grid.flat, settings, strict=False):
        values = np.array([row[name] for row in rows])
        axes.scatter(values, accuracy, s=18, alpha=0.7, color=PALETTE[0], linewidths=0)
        if values.min() > 0 and values.max() >= 20 * values.min():
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(settings) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("validation accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        lowest = max(0, 2 * np.median(accuracy) - accuracy.max() - 0.002)
        axes.set_ylim(lowest, accuracy.max() + 0.05 * (accuracy.max() - lowest))
    figure.suptitle(f"{len(rows)} trials; those far below the others are not shown")
    return figure


def show(paths: list[Path]) -> None:
    """Open saved pictures in windows, and wait until they are closed. Raises RuntimeError where there is no display."""
    from matplotlib import pyplot  # only here: it looks for a display when it is loaded

    if (backend := pyplot.get_backend().lower()) in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
        raise RuntimeError(f"there is no display to show pictures on (only {backend}); they are saved all the same")
    for path in paths:
        picture = pyplot.imread(path)
        figure = pyplot.figure(path.name, figsize=(picture.shape[1] / 100, picture.shape[0] / 100))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture)
        axes.axis("off")
    pyplot.show()


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, whatever the path ends in."""
    for axes in figure.axes:
        axes.set_title(axes.get_title(), y=1)  # or Matplotlib would lay out all labels to find a place for it
    figure.savefig(path, format="png", dpi=DPI, pil_kwargs={"compress_level": 2})  # half the time, a tenth more bytes


def _curve(axes, history: list[dict], quantity: str, label: str) -> None:
    epochs = [row["epoch"] for row in history]
    for name, colour, marker in (("train", TRAIN, "o"), ("validation", VALIDATION, "s")):
        values = [row[f"{name}_{quantity}"] for row in history]
        if None not in values:
            axes.plot(epochs, values, color=colour, marker=marker, label=name)
    _by_epoch(axes, len(epochs), f"{quantity.capitalize()} by epoch", label)
    axes.legend()


def _by_epoch(axes, epochs: int, title: str, label: str) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=label, xlim=(0.5, epochs + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def _filters(axes, weights: np.ndarray) -> None:
    """Each filter of the first convolution, its channels averaged; one scale for all, blue below 0 and red above."""
    pictures = np.moveaxis(weights.mean(axis=2), 2, 0)
    count, height, width = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    # One picture of them all, with gaps: as many little axes would take half a second to draw.
    cells = np.full((ceil(count / columns) * columns, height + 1, width + 1), np.nan)
    cells[:count, :height, :width] = pictures
    mosaic = np.block([list(row) for row in cells.reshape(-1, columns, height + 1, width + 1)])
    limit = np.abs(pictures).max()
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title("Filters of the first convolution")
    axes.axis("off")
    axes.figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
