"""Which digit is in a picture? Any PNG or JPEG: photo, scan or screenshot, dark on light or light on dark.

python scripts/predict.py photo.jpg
python scripts/predict.py *.png --plot runs/seen.png        also draw what the network saw
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from train_mnist import show

from tinycnn import Normalize, Sequential, command_line
from tinycnn.digits import NoDigitFound, to_mnist
from tinycnn.pictures import read_picture
from tinycnn.trained import TRAINED


def main(arguments: list[str] | None = None) -> int:
    """A line for each picture; the exit status is 1 if one of them could not be read."""
    options = parser().parse_args(arguments)
    if options.show and not options.plot:
        parser().error("--show needs --plot, where the pictures are to be")
    if options.plot and not options.plot.name:
        parser().error(f"--plot needs the name of a file, got {options.plot}")
    plots = [plot_path(options.plot, i, len(options.pictures)) for i in range(len(options.pictures)) if options.plot]
    read = {os.path.realpath(options.model): "model"} | {os.path.realpath(p): "picture" for p in options.pictures}
    for path in map(os.path.realpath, plots):
        if path in read:
            parser().error(f"--plot would replace the {read[path]} {path}; it needs the name of a new file")
    try:
        model = load_model(options.model)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status, drawn = 0, []
    for number, path in enumerate(options.pictures):
        try:
            grey = read_picture(path)
            seen = to_mnist(grey)
        except NoDigitFound as nothing:
            print(f"{path}: {nothing}")
            continue
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        probabilities = model.predict_proba(seen[None])[0]
        print(f"{path}: {line(probabilities)}")
        if options.plot:
            drawn.append(plots[number])
            draw(drawn[-1], grey, seen, probabilities)
    return (show(drawn) if options.show else 0) or status


def load_model(path: str | Path) -> Sequential:
    """A model for pictures as `to_mnist` makes them. Raises ValueError or FileNotFoundError."""
    model = load_classifier(path)
    if model.input_shape != (28, 28, 1):
        raise ValueError(f"{path} is for images of {model.input_shape}, not of 28 × 28 grey pixels")
    check_takes_bytes(model, path)
    return model


def load_classifier(path: str | Path) -> Sequential:
    """A model for images of any kind that ends in a number for each class. Raises ValueError or FileNotFoundError."""
    model = Sequential.load(path)
    if len(model.output_shapes[-1]) != 1:
        raise ValueError(f"{path} ends in {model.output_shapes[-1]} numbers, not in one for each class")
    return model


def check_takes_bytes(model: Sequential, path: str | Path) -> None:
    """Raises ValueError if the model is not for raw images."""
    if not isinstance(model.layers[0], Normalize):
        raise ValueError(f"{path} does not begin with Normalize, so it is not for raw images, whose pixels are 0 … 255")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("pictures", nargs="+", metavar="IMAGE", help="PNG or JPEG files")
    result.add_argument("--model", default=TRAINED, metavar="FILE", help="model.npz (default: comes with tinycnn)")
    result.add_argument("--plot", type=Path, metavar="FILE", help="PNG; with several pictures a number is added")
    result.add_argument("--show", action="store_true", help="open the pictures of --plot in windows")
    return result


def line(probabilities: np.ndarray) -> str:
    """The digit, how sure, and what else it might be."""
    order = np.argsort(-probabilities, kind="stable")
    others = ", ".join(f"{k} {probabilities[k]:.1%}" for k in order[1:] if probabilities[k] >= 0.001)
    return f"{order[0]} ({probabilities[order[0]]:.1%})" + (f", or {others}" if others else "")


def plot_path(path: Path, number: int, count: int) -> Path:
    """seen.png, or seen-1.png, seen-2.png, … for several pictures."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{number + 1}")


def draw(path: Path, grey: np.ndarray, seen: np.ndarray, probabilities: np.ndarray) -> None:
    """What came in, what the network saw, what it thinks."""
    from tinycnn import plots

    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.prediction(grey, seen, probabilities), path)
    print(f"  drawn in {path}")


if __name__ == "__main__":
    command_line.run(main)
