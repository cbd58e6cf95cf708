"""How good is a trained model? Accuracy, loss, calibration, each class, confusions; with --plots, pictures as well.

python scripts/evaluate.py runs/standard/model.npz
python scripts/evaluate.py runs/a/model.npz runs/b/model.npz        the mean of their probabilities
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from predict import check_takes_bytes, load_classifier
from train_mnist import show

from tinycnn import Sequential, command_line, load_mnist
from tinycnn.metrics import (
    calibration,
    class_table,
    confusion_matrix,
    confusion_table,
    cross_entropy,
    expected_calibration_error,
)
from tinycnn.preparation import count_classes
from tinycnn.results import draw_test

PICTURES = ("confusion", "mistakes", "calibration", "predictions", "feature_maps", "saliency")


def main(arguments: list[str] | None = None) -> int:
    """Load, predict, print; return the exit status."""
    options = parser().parse_args(arguments)
    if options.show and not options.plots:
        parser().error("--show needs --plots, where the pictures are to be")
    try:
        models = [load_classifier(path) for path in options.models]
        data = load_mnist(options.data_dir, options.mirror)
        count_classes(data)
        images, labels = data[1]
        if images.dtype == np.uint8:
            for model, path in zip(models, options.models, strict=True):
                check_takes_bytes(model, path)
        probabilities = mean_probabilities(models, images)
        if labels.max() >= probabilities.shape[1]:
            raise ValueError(
                f"the data have {int(labels.max()) + 1} classes, but the models know {probabilities.shape[1]}"
            )
        bins = calibration(labels, probabilities)
        calibration_error = expected_calibration_error(bins)
        if options.plots:
            from tinycnn import plots  # not before it is needed: Matplotlib takes long to load

            options.plots.mkdir(parents=True, exist_ok=True)
            draw_test(options.plots, models[0], images, labels, probabilities)
            plots.save(plots.reliability(bins, calibration_error), options.plots / "calibration.png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    who = options.models[0] if len(models) == 1 else f"the mean of {len(models)} models"
    print(f"{who} on {len(labels):,} test images")
    print(f"accuracy {np.trace(confusion) / len(labels):.2%}, loss {cross_entropy(labels, probabilities):.4f}")
    print(f"expected calibration error {calibration_error:.2%}")
    print(f"\n{class_table(confusion)}\n\n{confusion_table(confusion)}")
    if options.plots:
        print(f"\ndrawn in {options.plots}: {', '.join(PICTURES)} (.png)")
    return show([options.plots / f"{name}.png" for name in PICTURES]) if options.show else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("models", nargs="+", metavar="MODEL", help="model.npz of a training")
    result.add_argument("--data-dir", metavar="DIR", help="with the four IDX files (default: found or downloaded)")
    result.add_argument(
        "--mirror",
        action="append",
        metavar="URL",
        help="download from this directory on the web; may be repeated (default: TINYCNN_MIRRORS, or public ones)",
    )
    result.add_argument("--plots", type=Path, metavar="DIR", help="draw pictures there")
    result.add_argument("--show", action="store_true", help="open the pictures of --plots in windows")
    return result


def mean_probabilities(models: list[Sequential], images: np.ndarray) -> np.ndarray:
    """Every model has one vote.  (N, classes). Raises ValueError if they don't know the same number of classes."""
    probabilities = [model.predict_proba(images) for model in models]
    if len({p.shape for p in probabilities}) > 1:
        raise ValueError(f"the models know different numbers of classes: {sorted({p.shape[1] for p in probabilities})}")
    return np.mean(probabilities, axis=0)


if __name__ == "__main__":
    command_line.run(main)
