"""Train a convolutional network on MNIST, from scratch, on the CPU. Without options: 5 epochs, to about 99.5 %."""

import argparse
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numba

from tinycnn import command_line, together
from tinycnn.experiment import Settings, run
from tinycnn.preparation import SCHEDULES
from tinycnn.presets import PRESETS
from tinycnn.results import PICTURES

CHANGES = ("epochs", "batch_size", "learning_rate", "optimizer", "momentum", "weight_decay", "schedule")


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, print; return the exit status."""
    options = parser().parse_args(arguments)
    changes = {name: getattr(options, name) for name in CHANGES if getattr(options, name) is not None}
    if options.no_augment:
        changes |= {"shift": 0, "distortion": None}
    out = options.out or f"runs/{options.preset}"
    earlier = when_saved(out)
    settings = Settings(
        preset=options.preset,
        changes=changes,
        seed=options.seed,
        validation=options.validation,
        limit=options.limit,
        data_dir=options.data_dir,
        mirrors=options.mirror,
        out=out,
        resume=options.resume,
    )
    try:
        if options.threads:
            numba.set_num_threads(options.threads)
        with together.one_by_one() if options.one_by_one else nullcontext():
            metrics = run(settings, say=(lambda line: None) if options.quiet else print, progress=not options.quiet)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = how_to_resume(sys.argv[1:] if arguments is None else arguments, out, earlier)
        print(f"\nstopped. {how}", file=sys.stderr)
        return 130
    print(
        f"test accuracy {metrics['test_accuracy']:.2%}, test loss {metrics['test_loss']:.4f} "
        f"({metrics['seconds_total']:.1f} s in all, {metrics['images_per_second']:,.0f} images/s in training)\n"
        f"saved in {out}: model.npz, history.csv, metrics.json, training.png and other pictures"
    )
    return show([picture for name in PICTURES if (picture := Path(out) / name).exists()]) if options.show else 0


def when_saved(out: str) -> int | None:
    """When the checkpoint was written, if there is one."""
    try:
        return (Path(out) / "checkpoint.npz").stat().st_mtime_ns
    except OSError:
        return None


def how_to_resume(arguments: list[str], out: str, earlier: int | None) -> str:
    """The command that goes on. earlier: when a checkpoint had been saved before the training began."""
    saved = when_saved(out)
    if saved is None:
        return "Nothing was saved yet, so there is nothing to go on from."
    again = [*arguments, *(["--resume"] if "--resume" not in arguments else [])]
    command = shlex.join(["python", sys.argv[0], *again])
    if saved == earlier and "--resume" not in arguments:
        return f"Nothing was saved yet. To go on from the training before, if it had the same settings: {command}"
    return f"To go on: {command}"


def show(pictures: list[Path]) -> int:
    """Open them in windows; the exit status is 1 if there is no display."""
    from tinycnn import plots

    try:
        plots.show(pictures)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples: train_mnist.py --preset fast;  train_mnist.py --validation 5000 --learning-rate 0.02;  "
        "train_mnist.py --data-dir my-fashion-mnist/",
    )
    add = result.add_argument_group("what to train").add_argument
    add("--preset", choices=PRESETS, default="standard", help="network and recipe (default: standard)")
    add("--seed", type=whole(0), default=0, metavar="N", help="of all that is random (default: 0)")
    add(
        "--validation",
        type=whole(0),
        default=0,
        metavar="N",
        help="hold the last N training images out, report on them",
    )
    add("--limit", type=whole(1), metavar="N", help="train on the first N training images only")
    add("--no-augment", action="store_true", help="show the images as they are, neither shifted nor distorted")

    add = result.add_argument_group("changes to the preset's recipe (default: as in tinycnn/presets.py)").add_argument
    add("--epochs", type=whole(1), metavar="N", help="times that every image is shown")
    add("--batch-size", type=whole(1), metavar="N", help="images a step")
    add("--learning-rate", type=number, metavar="RATE", help="the schedule's highest rate")
    add(
        "--optimizer",
        choices=("sgd", "adam"),
        help="another one wants another --learning-rate as well, and has no --weight-decay unless given",
    )
    add("--momentum", type=fraction, metavar="M", help="of sgd, at least 0 and below 1 (adam has its betas instead)")
    add("--weight-decay", type=number, metavar="D", help="how strongly weights are drawn to 0")
    add("--schedule", choices=SCHEDULES, help="the learning rate over the steps")

    add = result.add_argument_group("where and how").add_argument
    add("--data-dir", metavar="DIR", help="with the four IDX files, packed or not (default: found or downloaded)")
    add(
        "--mirror",
        action="append",
        metavar="URL",
        help="download from this directory on the web; may be repeated (default: TINYCNN_MIRRORS, or public ones)",
    )
    add("--out", metavar="DIR", help="where the results go (default: runs/PRESET)")
    add("--resume", action="store_true", help="go on with the training that stopped in the same --out")
    add("--threads", type=whole(1), metavar="N", help="CPU threads (default: all)")
    add("--one-by-one", action="store_true", help="call every layer's own code, for whoever has changed it (slower)")
    add("--show", action="store_true", help="open the pictures in windows at the end")
    add("--quiet", action="store_true", help="print the final result only")
    return result


def whole(minimum: int) -> Callable[[str], int]:
    """An argument type: a whole number of at least `minimum`."""

    def convert(text: str) -> int:
        if (value := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    convert.__name__ = "whole number"  # argparse names the type in its error
    return convert


def number(text: str) -> float:
    """An argument type: a finite number of at least 0."""
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def fraction(text: str) -> float:
    """An argument type: a number of at least 0 and below 1."""
    if number(text) >= 1:
        raise argparse.ArgumentTypeError(f"must be below 1, got {text}")
    return float(text)


if __name__ == "__main__":
    command_line.run(main, to_the_end=True)  # the results are in files
