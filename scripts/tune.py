"""Look for better settings of a preset: draw them at random, train, and judge on held-out training images.

python scripts/tune.py --preset standard --trials 20
python scripts/tune.py --preset small --trials 40 --epochs 8 --images 20000        shorter trials, more of them

The last --validation training images are held out of the training and judge it; the test images are never looked at.
Each trial is a row of OUT/trials.csv, the same for the same --seed. Called again with more --trials it goes on where it
stopped. OUT/trials.png shows the accuracy against each setting.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from inspect import signature
from math import ceil
from pathlib import Path

import numpy as np
from tqdm import tqdm
from train_mnist import whole

from tinycnn import command_line
from tinycnn.augment import Distortion
from tinycnn.experiment import ctrl_c_noted
from tinycnn.files import alone_in, fault, open_file
from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.mnist import load_mnist
from tinycnn.preparation import (
    count_classes,
    identity,
    make_augmentation,
    make_average,
    make_model,
    make_optimizer,
    make_schedule,
    split,
)
from tinycnn.presets import PRESETS, Recipe
from tinycnn.results import write_rows
from tinycnn.tables import table
from tinycnn.training import TrainingDiverged, train

Draw = Callable[[np.random.Generator], float]


def between(low: float, high: float) -> Draw:
    """All equally likely."""
    return lambda generator: float(f"{generator.uniform(low, high):.3g}")


def between_by_factors(low: float, high: float) -> Draw:
    """As likely between 1 and 2 as between 2 and 4."""
    return lambda generator: float(f"{np.exp(generator.uniform(np.log(low), np.log(high))):.3g}")


def one_of(*values: float) -> Draw:
    return lambda generator: values[generator.integers(len(values))]


RANGES = {
    "learning_rate": between_by_factors(1e-3, 3e-2),
    "batch_size": one_of(32, 64, 128, 256),
    "weight_decay": between_by_factors(1e-3, 0.5),
    "label_smoothing": one_of(0.0, 0.05, 0.1),
    "averaging": one_of(0.0, 0.05, 0.2, 0.5),
    "augmentation": between(0, 2),  # times the preset's own
    "width": between(0.5, 1.5),  # times the preset's own, if it can be another
}
JUDGED = ("parameters", "validation_loss", "validation_accuracy", "seconds")
COLUMNS = ("preset", "seed", "epochs", "images", "validation", "preset_and_data", "trial", *RANGES, *JUDGED)


def main(arguments: list[str] | None = None) -> int:
    """Make the trials that are missing; return the exit status."""
    options = parser().parse_args(arguments)
    out, settings = Path(options.out or f"runs/tune-{options.preset}"), settings_of(options.preset)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with alone_in(out):
            rows = tune(options, out / "trials.csv")
            from tinycnn import plots

            plots.save(plots.trials(rows, settings), out / "trials.png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on after the trials in {out / 'trials.csv'}", file=sys.stderr)
        return 130
    print(summary(rows, settings))
    print(f"\nall {len(rows)} trials are in {out / 'trials.csv'}, drawn in {out / 'trials.png'}")
    return 0


def tune(options: argparse.Namespace, path: Path) -> list[dict]:
    """The rows of all trials, those that the file has and those that it lacks."""
    job = {name: getattr(options, name) for name in ("preset", "seed", "epochs", "images", "validation")}
    training = load_mnist(options.data_dir)[0]
    classes = count_classes((training, training))
    job["preset_and_data"] = digest(PRESETS[options.preset](classes), training)
    rows = read_rows(path, job)
    train_set, held_out, _ = split((training, None), options.validation, options.images)
    bar = tqdm(total=options.trials, initial=len(rows), unit=" trials", disable=options.quiet)
    with bar, ctrl_c_noted() as interrupted:
        for trial in range(len(rows), options.trials):
            drawn = draw(options.seed, trial)
            started = time.perf_counter()
            recipe = recipe_of(options.preset, drawn, classes, options.epochs)
            judged = judge(recipe, train_set, held_out, options.seed, interrupted)
            rows.append({**job, "trial": trial, **drawn, **judged, "seconds": time.perf_counter() - started})
            write_rows(path, COLUMNS, rows)
            bar.update()
            bar.set_postfix(best=f"{max(row['validation_accuracy'] for row in rows):.2%}")
    return rows


def digest(recipe: Recipe, training: tuple[np.ndarray, np.ndarray]) -> str:
    """Sixteen letters that are others if the data or the preset are: their trials can't be compared."""
    facts = identity(recipe, make_model(recipe, training[0], seed=0), (training, training))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def settings_of(preset: str) -> list[str]:
    """The names in RANGES, without those that can't change this preset."""
    recipe = PRESETS[preset](10)
    fixed = {"width"} - set(signature(PRESETS[preset]).parameters)
    if not (recipe.shift or recipe.distortion):
        fixed.add("augmentation")
    return [name for name in RANGES if name not in fixed]


def draw(seed: int, trial: int) -> dict:
    """Settings at random from RANGES, by a generator for each trial: it does not matter which were made before."""
    generator = np.random.default_rng([seed, trial])
    return {name: drawn(generator) for name, drawn in RANGES.items()}


def recipe_of(preset: str, drawn: dict, classes: int, epochs: int | None) -> Recipe:
    """The preset's recipe with what was drawn."""
    make = PRESETS[preset]
    recipe = make(classes, width=drawn["width"]) if "width" in signature(make).parameters else make(classes)
    direct = {name: drawn[name] for name in RANGES if hasattr(recipe, name)}
    recipe = replace(recipe, **direct, shift=round(recipe.shift * drawn["augmentation"]))
    if recipe.distortion:
        recipe = replace(recipe, distortion=stronger(recipe.distortion, drawn["augmentation"]))
    return replace(recipe, epochs=epochs) if epochs else recipe


def stronger(distortion: Distortion, factor: float) -> Distortion:
    """Every strength times the factor; the smoothness is none."""
    return Distortion(**{name: s * (factor if name != "smoothness" else 1) for name, s in asdict(distortion).items()})


def judge(recipe: Recipe, train_set, held_out, seed: int, interrupted: Callable[[], bool] = lambda: False) -> dict:
    """Train on the one, judge on the other. A training that diverges knows nothing.

    interrupted: asked after each step; if it says so, KeyboardInterrupt is raised.
    """

    def after_step(_) -> None:
        if interrupted():
            raise KeyboardInterrupt

    model = make_model(recipe, train_set[0], seed)
    optimizer, average = make_optimizer(recipe, model), make_average(recipe, model)
    shuffling, augmentation = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    judged = {"parameters": sum(p.value.size for p in model.parameters())}
    try:
        history = train(
            model,
            optimizer,
            make_schedule(recipe, steps_an_epoch=ceil(len(train_set[0]) / recipe.batch_size)),
            *train_set,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            generator=shuffling,
            augment=make_augmentation(recipe, augmentation),
            loss=SoftmaxCrossEntropy(recipe.label_smoothing),
            average=average,
            validation=held_out,
            after_step=after_step,
            after_epoch=after_step,  # the last step of an epoch
        )
    except TrainingDiverged:
        classes = model.output_shapes[-1][0]
        return judged | {"validation_loss": float(np.log(classes)), "validation_accuracy": 1 / classes}
    return judged | {name: history[-1][name] for name in ("validation_loss", "validation_accuracy")}


def read_rows(path: Path, job: dict) -> list[dict]:
    """The rows of an earlier call. Raises ValueError if they are of another search."""
    if not path.exists():
        return []
    with open_file(path, "file of trials") as file:
        try:
            header, *lines = csv.reader(io.StringIO(file.read().decode(), newline=""), strict=True)
            if tuple(header) != COLUMNS:
                raise ValueError(f"its columns are {header}")
            rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
            known = [{name: json.loads(row[name]) for name in (*RANGES, *JUDGED)} for row in rows]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is not a file of this script: {fault(error)}") from error
    for number, row in enumerate(rows):
        for name, value in {**job, "trial": number, **draw(job["seed"], number)}.items():
            if row[name] != ("" if value is None else str(value)):
                raise ValueError(f"{path} is of another search: {name} is {row[name]!r} there, {value!r} now")
    return [{**job, "trial": number, **values} for number, values in enumerate(known)]


def summary(rows: list[dict], settings: list[str]) -> str:
    """The best five trials as a table, and what each of the settings has to do with it as another."""
    shown = ("trial", *settings, "parameters", "validation_loss", "validation_accuracy")
    ranked = sorted(rows, key=lambda row: -row["validation_accuracy"])[:5]
    few = table([shown, *([f"{row[name]:.6g}" for name in shown] for row in ranked)], right=range(len(shown)))
    lines = [[name, *(median_of(group, name) for group in groups(rows, name))] for name in settings]
    widest = max(map(len, lines))
    header = ("setting", "values: median accuracy", *[""] * (widest - 2))
    return f"{few}\n\n{table([header, *(line + [''] * (widest - len(line)) for line in lines)])}"


def groups(rows: list[dict], name: str) -> list[list[dict]]:
    """The trials with each value of a setting; where there are more than five values, those of each third."""
    values = sorted({row[name] for row in rows})
    if len(values) <= 5:
        return [[row for row in rows if row[name] == value] for value in values]
    ordered, n = sorted(rows, key=lambda row: row[name]), len(rows)
    return [ordered[n * third // 3 : n * (third + 1) // 3] for third in range(3)]


def median_of(group: list[dict], name: str) -> str:
    lowest, highest = (f"{limit(row[name] for row in group):.3g}" for limit in (min, max))
    median = np.median([row["validation_accuracy"] for row in group])
    return f"{lowest if lowest == highest else f'{lowest} … {highest}'}: {median:.2%}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--preset", choices=PRESETS, default="standard", help="whose network and recipe to vary (default: standard)")
    add("--trials", type=whole(1), default=20, metavar="N", help="in all, with those of earlier calls (default: 20)")
    add("--epochs", type=whole(1), metavar="N", help="of each trial (default: the preset's)")
    add("--images", type=whole(1), metavar="N", help="train on the first N only (default: all that are not held out)")
    add("--validation", type=whole(1), default=10_000, metavar="N", help="held-out images (default: 10,000)")
    add("--seed", type=whole(0), default=0, metavar="N", help="of the drawn settings and each training (default: 0)")
    add("--data-dir", metavar="DIR", help="with the four IDX files (default: found or downloaded)")
    add("--out", metavar="DIR", help="(default: runs/tune-PRESET)")
    add("--quiet", action="store_true", help="no progress bar")
    return result


if __name__ == "__main__":
    command_line.run(main, to_the_end=True)
