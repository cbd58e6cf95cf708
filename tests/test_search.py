"""tune.py and reproduce.py: what they draw, judge by, write and go on from."""

import csv
import json
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
from small_mnist import bright_quarters, write_files

from tinycnn import Sequential, load_mnist, read_idx, write_idx
from tinycnn.presets import PRESETS, lenet


@pytest.fixture
def data_dir(tmp_path):
    write_files(tmp_path / "data", bright_quarters(np.random.default_rng(0)))
    return tmp_path / "data"


def tune(script, tmp_path, data_dir, *more) -> list[dict]:
    arguments = ["--preset", "small", "--epochs", "1", "--images", "200", "--validation", "100", "--quiet"]
    out = ["--out", str(tmp_path / "out"), "--data-dir", str(data_dir)]
    assert script("tune").main([*arguments, *out, *more]) == 0
    with open(tmp_path / "out" / "trials.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_second_call_goes_on_and_ends_like_one_call(script, tmp_path, data_dir, capsys):
    first = tune(script, tmp_path, data_dir, "--trials", "1")
    both = tune(script, tmp_path, data_dir, "--trials", "2")
    assert both[0] == first[0]  # not made again: its seconds are the same
    assert "all 2 trials are in" in capsys.readouterr().out
    assert (tmp_path / "out" / "trials.png").stat().st_size > 10_000
    (tmp_path / "out" / "trials.csv").unlink()
    assert without_seconds(tune(script, tmp_path, data_dir, "--trials", "2")) == without_seconds(both)
    assert both[0]["learning_rate"] != both[1]["learning_rate"]


def test_the_test_images_are_never_looked_at(script, tmp_path, data_dir):
    """Other test images, the same rows; other held-out images, others."""
    rows = tune(script, tmp_path, data_dir, "--trials", "1")
    (tmp_path / "out" / "trials.csv").unlink()
    write_idx(data_dir / "t10k-images-idx3-ubyte", np.zeros((100, 28, 28), np.uint8))
    assert without_seconds(tune(script, tmp_path, data_dir, "--trials", "1")) == without_seconds(rows)
    (tmp_path / "out" / "trials.csv").unlink()
    labels = read_idx(data_dir / "train-labels-idx1-ubyte")
    labels[-100:] = (labels[-100:] + 1) % 4
    write_idx(data_dir / "train-labels-idx1-ubyte", labels)
    assert without_seconds(tune(script, tmp_path, data_dir, "--trials", "1")) != without_seconds(rows)


def test_what_is_drawn_reaches_the_training(script, monkeypatch, random):
    module, seen = script("tune"), {}

    def train(model, optimizer, schedule, images, labels, **how):
        seen.update(how, optimizer=optimizer, schedule=schedule, images=images)
        return [{"validation_loss": 1.0, "validation_accuracy": 0.5}]

    monkeypatch.setattr(module, "train", train)
    train_set, held_out = ((random.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n) % 10) for n in (60, 20))
    drawn = {"learning_rate": 0.02, "batch_size": 32, "weight_decay": 0.3, "label_smoothing": 0.1, "averaging": 0.5}
    recipe = module.recipe_of("best", drawn | {"augmentation": 2.0, "width": 0.5}, 10, 2)
    judged = module.judge(recipe, train_set, held_out, seed=0)
    assert (judged["validation_loss"], judged["validation_accuracy"]) == (1.0, 0.5)
    assert seen["validation"] is held_out
    assert seen["images"] is train_set[0]
    assert (seen["epochs"], seen["batch_size"], seen["optimizer"].weight_decay) == (2, 32, 0.3)
    assert max(map(seen["schedule"], range(4))) == pytest.approx(0.02, rel=0.1)
    assert seen["loss"].label_smoothing == 0.1
    assert seen["average"].share == 0.5
    assert (seen["augment"](train_set[0]) != train_set[0]).any()


def test_ctrl_c_stops_it_after_the_step(script, tmp_path, data_dir, monkeypatch, capsys):
    """Not at any moment: Numba swallows a KeyboardInterrupt while it compiles."""
    module, steps = script("tune"), []
    real = module.train

    def train(*arguments, after_step, **how):
        def pressed(position):
            signal.raise_signal(signal.SIGINT)
            steps.append(position.step)
            after_step(position)

        return real(*arguments, after_step=pressed, **how)

    monkeypatch.setattr(module, "train", train)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    try:
        out = ["--out", str(tmp_path / "out"), "--data-dir", str(data_dir)]
        assert (
            module.main([*out, "--preset", "small", "--epochs", "1", "--images", "200", "--validation", "100"]) == 130
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(steps) == 1
    assert "stopped; the same command goes on" in capsys.readouterr().err


def test_rows_of_another_search_are_refused(script, tmp_path, data_dir, capsys):
    tune(script, tmp_path, data_dir, "--trials", "1")
    out = ["--out", str(tmp_path / "out"), "--data-dir", str(data_dir)]
    same = ["--preset", "small", "--epochs", "1", "--images", "200", "--validation", "100"]
    assert script("tune").main([*out, *same, "--epochs", "2"]) == 1
    assert "is of another search: epochs is '1' there, 2 now" in capsys.readouterr().err
    path = tmp_path / "out" / "trials.csv"
    text = path.read_text()
    rate = text.splitlines()[1].split(",")[7]
    path.write_text(text.replace(rate, "0.5"))
    assert script("tune").main([*out, *same]) == 1
    assert f"is of another search: learning_rate is '0.5' there, {rate} now" in capsys.readouterr().err
    for damaged in ("a,b\n1,2\n", text.rsplit(",", 1)[0], text.replace(rate, "x"), text + "\0", text[:-2] + ',"', "\n"):
        path.write_text(damaged)
        assert script("tune").main([*out, *same]) == 1
        assert f"{path} is not a file of this script" in capsys.readouterr().err, damaged
    path.write_text(text)
    write_idx(data_dir / "train-labels-idx1-ubyte", read_idx(data_dir / "train-labels-idx1-ubyte")[::-1])
    assert script("tune").main([*out, *same]) == 1
    assert "is of another search: preset_and_data is" in capsys.readouterr().err


def test_settings_are_drawn_from_their_ranges_and_reach_the_recipe(script):
    module = script("tune")
    drawn = [module.draw(0, trial) for trial in range(300)]
    rates, factors = (np.array([d[name] for d in drawn]) for name in ("learning_rate", "augmentation"))
    assert 1e-3 <= rates.min() < 1.1e-3 < 2.7e-2 < rates.max() <= 3e-2
    assert 90 < (rates < np.sqrt(1e-3 * 3e-2)).sum() < 210  # by factors
    assert 0 <= factors.min() < 0.05 < 1.95 < factors.max() <= 2
    assert {d["batch_size"] for d in drawn} == {32, 64, 128, 256}
    d = drawn[0] | {"augmentation": 0.5, "width": 0.5}
    recipe, preset = module.recipe_of("best", d, 10, 3), PRESETS["best"](10)
    for name in ("learning_rate", "batch_size", "weight_decay", "label_smoothing", "averaging"):
        assert getattr(recipe, name) == d[name]
    assert recipe.epochs == 3
    assert recipe.distortion.rotation == preset.distortion.rotation / 2
    assert recipe.distortion.smoothness == preset.distortion.smoothness
    assert recipe.layers[0].filters == preset.layers[0].filters // 2
    assert module.recipe_of("lenet", d, 10, None).epochs == PRESETS["lenet"](10).epochs
    assert module.recipe_of("standard", d, 10, None).shift == 1


def test_the_summary_says_what_each_setting_has_to_do_with_the_accuracy(script):
    """Thirds of what is drawn from a range, single values of what is one of a few."""
    module = script("tune")
    rows = [
        module.draw(0, trial) | {"trial": trial, "parameters": 1, "validation_loss": 1.0, "validation_accuracy": 0.5}
        for trial in range(9)
    ]
    for row, width in zip(rows, (0.9, 0.5, 0.6, 0.7, 0.8, 1.4, 1.0, 1.2, 1.3), strict=True):
        row |= {"width": width, "validation_accuracy": width / 2, "batch_size": 32 if width < 1 else 64}
    said = module.summary(rows, list(module.RANGES))
    assert re.search(r"width +0.5 … 0.7: 30.00% +0.8 … 1: 45.00% +1.2 … 1.4: 65.00%", said)
    assert re.search(r"batch_size +32: 35.00% +64: 62.50%", said)
    assert said.splitlines()[2].split()[0] == "5"  # the best trial


def test_settings_that_change_nothing_are_not_shown(script):
    settings_of = script("tune").settings_of
    assert set(settings_of("best")) - set(settings_of("fast")) == {"width"}
    assert set(settings_of("best")) - set(settings_of("lenet")) == {"width", "augmentation"}


def test_a_trial_that_diverges_is_a_row(script, tmp_path, data_dir, monkeypatch):
    module = script("tune")
    monkeypatch.setitem(module.RANGES, "learning_rate", lambda generator: 1e30)
    row = tune(script, tmp_path, data_dir, "--trials", "1")[0]
    assert float(row["validation_accuracy"]) == 0.25


def test_reproduce(script, tmp_path, data_dir, monkeypatch, capsys):
    """Two trainings, their means; the second call trains nothing; another recipe under the same name is refused."""
    module, out = script("reproduce"), tmp_path / "out"
    monkeypatch.setitem(module.PRESETS, "lenet", lambda classes: replace(lenet(classes), epochs=2))
    command = ["--presets", "lenet", "--seeds", "2", "--data-dir", str(data_dir), "--out", str(out), "--quiet"]
    assert module.main(command) == 0
    first = capsys.readouterr().out
    metrics = [json.loads((out / f"lenet-{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    accuracy = np.array([m["test_accuracy"] for m in metrics])
    assert f"**{100 * accuracy.mean():.2f} %** ± {100 * accuracy.std(ddof=1):.2f}" in first
    models = [Sequential.load(out / f"lenet-{seed}" / "model.npz") for seed in (0, 1)]
    images, labels = load_mnist(data_dir)[1]
    together = sum(model.predict_proba(images) for model in models).argmax(axis=1) == labels
    assert f"| {100 * together.mean():.2f} % |\n" in first
    assert (out / "table.md").read_text("utf-8") == first
    weights = (out / "lenet-1" / "model.npz").read_bytes()
    assert module.main(command) == 0
    assert capsys.readouterr().out == first
    assert (out / "lenet-1" / "model.npz").read_bytes() == weights
    monkeypatch.setitem(module.PRESETS, "lenet", lambda classes: replace(lenet(classes), epochs=2, momentum=0.5))
    assert module.main(command) == 1
    assert "is of another training: momentum was 0.9, is 0.5 now" in capsys.readouterr().err
