"""Measure the README's table of accuracies anew, a training at a time; when stopped, the same command goes on.

python scripts/reproduce.py                              every preset
python scripts/reproduce.py --presets fast --seeds 2     one row, fewer seeds

Each preset is trained on all training images, once for each of the seeds 0, 1, 2, …, and measured on the test images
after its last epoch. The trainings are kept in OUT, the table of these presets is written to OUT/table.md. A training
that is there is only measured again; one of an earlier state of the preset is refused.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from evaluate import mean_probabilities
from tqdm import tqdm
from train_mnist import whole

from tinycnn import command_line
from tinycnn.experiment import Settings, run
from tinycnn.files import replacing
from tinycnn.mnist import load_mnist
from tinycnn.model import Sequential
from tinycnn.presets import PRESETS

HEADER = ("preset", "parameters", "multiply-adds", "epochs", "seconds", "test accuracy", "test loss", "together")


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print the table; return the exit status."""
    options = parser().parse_args(arguments)
    rows = []
    try:
        for preset in options.presets:
            models = [options.out / f"{preset}-{seed}" / "model.npz" for seed in range(options.seeds)]
            metrics = [train(options, preset, seed) for seed in range(options.seeds)]
            rows.append(row(preset, metrics, [Sequential.load(path) for path in models], options.data_dir))
            with replacing(options.out / "table.md") as file:
                file.write(markdown(rows).encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    print(markdown(rows), end="")
    return 0


def train(options: argparse.Namespace, preset: str, seed: int) -> dict:
    """The metrics of one training."""
    tqdm.write(f"{preset}, seed {seed}", file=sys.stderr)
    settings = Settings(preset, seed=seed, data_dir=options.data_dir, out=options.out / f"{preset}-{seed}", resume=True)
    return run(settings, say=lambda line: None, progress=not options.quiet)


def row(preset: str, metrics: list[dict], models: list[Sequential], data_dir: Path | None) -> tuple[str, ...]:
    """Means over the seeds, with the accuracy's standard deviation; the median of the seconds; all models together."""
    accuracy, loss, seconds = (
        np.array([m[name] for m in metrics]) for name in ("test_accuracy", "test_loss", "seconds_training")
    )
    spread = f" ± {100 * accuracy.std(ddof=1):.2f}" if len(metrics) > 1 else ""
    images, labels = load_mnist(data_dir)[1]
    together = (mean_probabilities(models, images).argmax(axis=1) == labels).mean()
    return (
        f"`{preset}`",
        f"{metrics[0]['parameters']:,}",
        f"{sum(layer.multiply_adds() for layer in models[0].layers):,}",
        str(metrics[0]["epochs"]),
        f"{np.median(seconds):,.0f}",
        f"**{100 * accuracy.mean():.2f} %**{spread} ({100 * accuracy.min():.2f}–{100 * accuracy.max():.2f})",
        f"{loss.mean():.4f}",
        f"{100 * together:.2f} %",
    )


def markdown(rows: list[tuple[str, ...]]) -> str:
    """The table as Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), metavar="PRESET", help="(default: all)")
    add("--seeds", type=whole(1), default=5, metavar="N", help="of each preset (default: 5)")
    add("--data-dir", type=Path, metavar="DIR", help="with the four IDX files (default: found or downloaded)")
    add("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="(default: runs/reproduce)")
    add("--quiet", action="store_true", help="no progress bars")
    return result


if __name__ == "__main__":
    command_line.run(main, to_the_end=True)
