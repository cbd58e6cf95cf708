"""The main job and its command line, on small data: what it writes, and what its options do."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numba
import numpy as np
import pytest
from small_job import SCRIPT, history_of, main, metrics_of
from small_mnist import noise, write_files

from tinycnn import Dense, Flatten, Layer, Sequential, experiment, load_mnist, together
from tinycnn.experiment import Settings, run
from tinycnn.presets import PRESETS
from tinycnn.results import PICTURES


def test_what_it_prints_and_writes(options, data_dir, tmp_path, capsys):
    assert main([*options, "--epochs", "4"]) == 0
    printed = capsys.readouterr()
    out = tmp_path / "out"
    for part in ("conv2d_2", "total", "epoch 1/4", "epoch 4/4", "test accuracy", "test loss", "images/s", str(out)):
        assert part in printed.out
    assert "epoch 4/4" in printed.err  # the progress bar
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [".lock", "checkpoint.npz", "history.csv", "metrics.json", "model.npz", *PICTURES]
    )

    metrics = metrics_of(out)
    _, (test_images, test_labels) = load_mnist(data_dir)
    model = Sequential.load(out / "model.npz")
    assert metrics["test_accuracy"] == (model.predict(test_images) == test_labels).mean() > 0.9
    p = model.predict_proba(test_images)[np.arange(50), test_labels]
    assert metrics["test_loss"] == pytest.approx(-np.log(p).mean(), rel=1e-4, abs=1e-6)
    assert metrics["preset"] == "classic"
    assert (metrics["seed"], metrics["epochs"]) == (0, 4)
    assert metrics["changes"] == {"epochs": 4, "batch_size": 20}
    assert (metrics["limit"], metrics["validation"]) == (None, 0)
    assert metrics["parameters"] == sum(q.value.size for q in model.parameters())
    assert 0 < metrics["seconds_training"] <= metrics["seconds_total"]
    assert metrics["images_per_second"] == pytest.approx(800 / metrics["seconds_training"])
    rows = history_of(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_accuracy"]) == metrics["train_accuracy"]
    assert rows[-1]["validation_accuracy"] == ""


def test_what_is_trained_is_what_the_settings_say(tmp_path, monkeypatch):
    """The loop gets the images that are left, those that are held out, and all that the recipe asks for."""
    arrays = noise(20, 10, size=(28, 28))
    write_files(tmp_path / "data", arrays)
    seen = {}

    def note(model, optimizer, schedule, images, labels, **others):
        seen.update(others, train_set=(images, labels))
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", note)
    changes = {"label_smoothing": 0.25, "averaging": 0.5, "epochs": 3, "batch_size": 4}
    settings = Settings("small", changes, validation=6, limit=9, data_dir=tmp_path / "data", out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(settings, print, progress=False)
    for given, start, end in ((seen["train_set"], 0, 9), (seen["validation"], 14, 20)):
        for array, whole in zip(given, arrays[:2], strict=True):
            np.testing.assert_array_equal(array, whole[start:end])
    assert (seen["loss"].label_smoothing, seen["average"].share) == (0.25, 0.5)
    assert (seen["epochs"], seen["batch_size"]) == (3, 4)
    assert (seen["augment"](arrays[0]) != arrays[0]).any()


def test_numbers_of_numpy_are_numbers(tmp_path):
    """Also where they come to be saved as JSON."""
    write_files(tmp_path / "data", noise(20, 10, size=(28, 28)))
    changes = {"epochs": np.int64(1), "learning_rate": np.float32(0.25), "batch_size": np.int32(8)}
    settings = Settings("fast", changes, seed=np.int64(3), limit=np.int64(16), data_dir=tmp_path / "data", out=tmp_path)
    metrics = run(settings, print, progress=False)
    assert (metrics["seed"], metrics["limit"], metrics["epochs"]) == (3, 16, 1)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    same = replace(settings, changes={"epochs": 1, "learning_rate": 0.25, "batch_size": 8}, seed=3, limit=16)
    assert run(replace(same, resume=True), print, progress=False)["test_loss"] == metrics["test_loss"]


def test_the_model_that_is_kept_is_the_average(tmp_path):
    write_files(tmp_path / "data", noise(20, 10, size=(28, 28)))
    changes = {"epochs": 1, "batch_size": 5, "averaging": 0.5}
    run(Settings("small", changes, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
    kept = dict(Sequential.load(tmp_path / "model.npz").state())
    with np.load(tmp_path / "checkpoint.npz") as file:
        for name, array in kept.items():
            np.testing.assert_array_equal(array, file[f"average.{name}"], err_msg=name)
        assert any((array != file[name]).any() for name, array in kept.items())


def test_quiet_prints_the_result_only(options, capsys):
    assert main([*options, "--epochs", "1", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert len(printed.out.splitlines()) == 2
    assert printed.out.startswith("test accuracy")


def test_validation_holds_the_last_images_out(options, tmp_path, capsys):
    assert main([*options, "--epochs", "2", "--validation", "60"]) == 0
    assert "validation loss" in capsys.readouterr().out
    rows, metrics = history_of(tmp_path / "out"), metrics_of(tmp_path / "out")
    assert 0 < float(rows[-1]["validation_accuracy"]) == metrics["validation_accuracy"] <= 1
    assert math.isfinite(float(rows[-1]["validation_loss"]))


def test_options_reach_the_recipe(options, monkeypatch):
    """Each one changes what is trained."""
    seen = []
    monkeypatch.setitem(
        main.__globals__,
        "run",
        lambda settings, say, progress: (
            seen.append(settings)
            or dict.fromkeys(("test_accuracy", "test_loss", "seconds_total", "images_per_second"), 0)
        ),
    )
    main([*options, "--epochs", "7", "--learning-rate", "0.25", "--optimizer", "sgd", "--momentum", "0.5"])
    main(
        [
            "--weight-decay",
            "0.125",
            "--schedule",
            "step",
            "--seed",
            "9",
            "--limit",
            "50",
            "--validation",
            "5",
            "--no-augment",
        ]
    )
    assert seen[0].preset == "classic"
    assert seen[0].changes == {
        "epochs": 7,
        "batch_size": 20,
        "learning_rate": 0.25,
        "optimizer": "sgd",
        "momentum": 0.5,
    }
    assert seen[1].changes == {"weight_decay": 0.125, "schedule": "step", "shift": 0, "distortion": None}
    assert (seen[1].preset, seen[1].seed, seen[1].limit, seen[1].validation) == ("standard", 9, 50, 5)
    assert seen[1].out == "runs/standard"


def test_same_seed_same_result_another_seed_another(options, tmp_path):
    """Bit for bit, at one thread or all."""
    files = []
    all_threads = numba.get_num_threads()
    try:
        for seed, threads in (("3", all_threads), ("3", 1), ("4", all_threads)):
            assert main([*options, "--epochs", "1", "--seed", seed, "--threads", str(threads), "--quiet"]) == 0
            files.append((tmp_path / "out" / "model.npz").read_bytes())
    finally:
        numba.set_num_threads(all_threads)
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_threads(options):
    all_threads = numba.get_num_threads()
    try:
        assert main([*options, "--epochs", "1", "--threads", "1", "--quiet"]) == 0
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(all_threads)


def test_images_that_are_all_equal_can_be_trained_on(tmp_path):
    """Nothing to learn from, but no division by a deviation of 0 either."""
    arrays = [np.full((20, 12, 12), 7, np.uint8), np.arange(20, dtype=np.uint8) % 2] * 2
    write_files(tmp_path / "data", arrays)
    metrics = run(Settings("classic", {"epochs": 1}, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
    assert math.isfinite(metrics["test_loss"])


@pytest.mark.parametrize(
    "what",
    ["one class", "a class that is missing", "one image of each", "one white pixel", "one test image", "no zeros"],
)
def test_odd_data_are_no_reason_to_warn_or_to_fail(tmp_path, what, script):
    """Trained, drawn and evaluated: warnings are errors here."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, size=(30, 12, 12), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 3
    test = images, labels
    if what == "one class":
        labels = 0 * labels
        test = images, labels
    elif what == "a class that is missing":
        labels = 2 * (labels > 0).astype(np.uint8)
        test = images, labels
    elif what == "one image of each":
        images, labels = images[:3], labels[:3]
    elif what == "one white pixel":
        images = np.zeros_like(images)
        images[0, 5, 5] = 255
    elif what == "one test image":
        test = images[:1], labels[:1]
    else:
        images = np.maximum(images, 200)
    write_files(tmp_path / "data", [images, labels, *test])
    settings = Settings("classic", {"epochs": 1, "batch_size": 7}, data_dir=tmp_path / "data", out=tmp_path)
    metrics = run(settings, print, progress=False)
    assert math.isfinite(metrics["test_loss"])
    assert all(math.isfinite(float(v)) for row in history_of(tmp_path) for v in row.values() if v)
    assert (
        script("evaluate").main(
            [str(tmp_path / "model.npz"), "--data-dir", str(tmp_path / "data"), "--plots", str(tmp_path / "plots")]
        )
        == 0
    )


@pytest.mark.parametrize("preset", ["standard", "best", "small"])
def test_other_sizes_colours_and_class_counts(tmp_path, preset):
    """32 × 30 pixels of three colours, 13 classes: no change of code."""
    random = np.random.default_rng(0)
    arrays = []
    for n in (39, 13):
        arrays += [random.integers(0, 256, size=(n, 32, 30, 3), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 13]
    write_files(tmp_path / "data", arrays)
    settings = Settings(preset, {"epochs": 1, "batch_size": 13}, data_dir=tmp_path / "data", out=tmp_path)
    assert math.isfinite(run(settings, print, progress=False)["test_loss"])
    model = Sequential.load(tmp_path / "model.npz")
    assert (model.input_shape, model.output_shapes[-1]) == ((32, 30, 3), (13,))
    assert {path.name for path in tmp_path.glob("*.png")} == set(PICTURES)


@pytest.mark.parametrize("preset", ["standard", "fast", "small"])
def test_batches_of_one_image(tmp_path, preset):
    """Batch normalisation too has an image's pixels to take a mean of."""
    arrays = noise(5, 3, size=(28, 28))
    write_files(tmp_path / "data", arrays)
    settings = Settings(preset, {"epochs": 1, "batch_size": 1}, data_dir=tmp_path / "data", out=tmp_path)
    assert math.isfinite(run(settings, print, progress=False)["test_loss"])


def test_the_option_one_by_one_switches_together_off(options, monkeypatch):
    """Where somebody has changed it."""
    seen = []

    def note(*_, **__):
        seen.append(together._together)
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__, "run", note)
    assert (main(options), main([*options, "--one-by-one"])) == (130, 130)
    assert seen == [True, False]


def test_as_a_command(options, tmp_path):
    """As a user starts it: a process of its own, from another directory."""
    environment = {**os.environ, "PYTHONWARNINGS": "error,ignore::DeprecationWarning"}
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--epochs", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "test accuracy" in result.stdout
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    options = "preset epochs batch-size learning-rate optimizer momentum weight-decay schedule seed validation limit"
    for option in f"{options} data-dir out threads no-augment one-by-one quiet".split():
        assert f"--{option} " in result.stdout


class Half(Layer):
    """A layer that tinycnn does not know."""

    def forward(self, x, training=False):
        return x / 2

    def backward(self, dy):
        return dy / 2


def test_a_preset_with_a_layer_of_ones_own(tmp_path, monkeypatch):
    write_files(tmp_path / "data", noise(20, 10, size=(4, 4)))
    monkeypatch.setitem(
        PRESETS, "own", lambda classes: replace(PRESETS["fast"](classes), layers=[Half(), Flatten(), Dense(classes)])
    )
    metrics = run(Settings("own", data_dir=tmp_path / "data", out=tmp_path / "out"), print, progress=False)
    assert metrics == metrics_of(tmp_path / "out")
    with pytest.raises(ValueError, match="own_layers: Half"):
        Sequential.load(tmp_path / "out" / "model.npz")


def test_the_line_of_an_epoch():
    row = {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.75, "seconds": 3.21}
    row |= {"validation_loss": 0.25, "validation_accuracy": 0.875}
    said = experiment.line(row, epochs=5)
    assert said == "epoch 2/5  loss 0.5000  accuracy 75.00%  validation loss 0.2500  accuracy 87.50%  3.2 s"
    assert experiment.line(row | {"validation_accuracy": None}, 5) == "epoch 2/5  loss 0.5000  accuracy 75.00%  3.2 s"


def test_the_seed_reaches_weights_order_and_augmentation(tmp_path, monkeypatch):
    write_files(tmp_path / "data", noise(20, 10, size=(28, 28)))
    made = []

    def note(model, optimizer, schedule, images, labels, generator, augment, **others):
        made.append((model.parameters()[0].value.copy(), generator.permutation(20), augment(images)))
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", note)
    for seed in (3, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run(Settings("fast", seed=seed, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
    for first, again, other in zip(*made, strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
