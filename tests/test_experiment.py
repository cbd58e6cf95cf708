"""The main job and its command line, on small data: what it writes, what its options do, and how it fails."""

import csv
import errno
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from small_mnist import bright_quarters, noise, write_files

from tinycnn import Dense, Flatten, Layer, Sequential, archive, experiment, load_mnist, together
from tinycnn.experiment import Settings, run
from tinycnn.presets import PRESETS
from tinycnn.results import PICTURES

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_mnist.py"
main = runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """200 and 50 noisy images, 12 × 13, of four classes."""
    arrays = bright_quarters(np.random.default_rng(0), (200, 50), (12, 13), darkness=60, brightness=150)
    directory = tmp_path_factory.mktemp("data")
    write_files(directory, arrays)
    return directory


@pytest.fixture
def options(data_dir, tmp_path):
    """Options for a job of a second. classic is the only preset whose network fits 12 × 13 pixels."""
    return ["--preset", "classic", "--data-dir", str(data_dir), "--out", str(tmp_path / "out"), "--batch-size", "20"]


def metrics_of(out) -> dict:
    return json.loads((Path(out) / "metrics.json").read_text())


def history_of(out) -> list[dict]:
    with open(Path(out) / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


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


# ---------------------------------------------------------------------------------------------------- how it fails


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--limit", "0"], "--limit: must be at least 1, got 0"),
        (["--learning-rate", "-1"], "--learning-rate: must be at least 0, got -1"),
        (["--learning-rate", "nan"], "--learning-rate: must be at least 0, got nan"),
        (["--momentum", "-0.5"], "--momentum: must be at least 0"),
        (["--momentum", "1"], "--momentum: must be below 1, got 1"),
        (["--epochs", "0"], "--epochs: must be at least 1"),
        (["--batch-size", "x"], "invalid whole number value: 'x'"),
        (["--preset", "resnet"], "invalid choice: 'resnet'"),
        (["--optimizer", "lion"], "invalid choice: 'lion'"),
        (["--validation", "-1"], "--validation: must be at least 0"),
        (["--threads", "0"], "--threads: must be at least 1"),
    ],
)
def test_options_that_can_not_be(options, change, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*options, *change])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--validation", "200"], "leave images to train on; got 200 of 200"),
        (["--data-dir", "nowhere"], "there is no directory nowhere"),
        (["--preset", "standard"], "conv2d_13: got images of 2 × 2"),
        (["--threads", "999"], "threads"),
        (["--learning-rate", "1e30", "--optimizer", "sgd", "--schedule", "constant"], "learning rate 1e+30"),
    ],
)
def test_jobs_that_can_not_be(options, change, message, capsys):
    assert main([*options, "--epochs", "2", *change]) == 1
    printed = capsys.readouterr().err
    assert "error: " in printed
    assert message in printed
    assert "Traceback" not in printed


def test_unknown_preset_from_python(data_dir):
    with pytest.raises(
        ValueError, match="unknown preset 'resnet'; there are standard, fast, classic, lenet, small, best"
    ):
        run(Settings("resnet", data_dir=data_dir))


def test_an_out_that_can_not_be_written_is_said_before_training(options, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([*options, "--out", str(tmp_path / "file")]) == 1
    printed = capsys.readouterr()
    assert "can't write to" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("index", range(4))
def test_bad_files_are_said_before_training(options, tmp_path, capsys, index):
    arrays = noise(20, 10, size=(12, 12))
    write_files(tmp_path / "data", arrays)
    names = sorted(p for p in (tmp_path / "data").iterdir())
    names[index].write_bytes(b"<html>")
    assert main([*options, "--data-dir", str(tmp_path / "data")]) == 1
    assert f"{names[index]}: not an IDX file" in capsys.readouterr().err


def test_labels_and_images_that_can_not_be(options, tmp_path, capsys):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 9, size=(20, 12, 12)).astype(np.uint8), (np.arange(20) % 3).astype(np.uint8)
    bad_pixels = images.astype(np.float32)
    bad_pixels[3, 2, 1] = np.nan
    for name, arrays, message in (
        ("a", [images, labels, images, labels + 1], "label 3 is outside 0 … 2"),
        ("b", [images, labels.astype(np.int8) - 1, images, labels], "label -1 is outside"),
        ("c", [images[:0], labels[:0], images, labels], "there are no images"),
        ("d", [bad_pixels, labels, images, labels], "NaN or infinite pixels"),
        ("e", [images, labels, images[:, :10], labels], "training images are (12, 12), but test images (10, 12)"),
        ("f", [images, labels.astype(np.int32) * 10**9, images, labels], "label 1000000000 is outside"),
        ("g", [images, labels.astype(np.float32), images, labels], "labels must be whole numbers"),
    ):
        write_files(tmp_path / name, arrays)
        assert main([*options, "--data-dir", str(tmp_path / name), "--epochs", "1"]) == 1, name
        printed = capsys.readouterr()
        assert message in printed.err
        assert "epoch" not in printed.out


@pytest.mark.parametrize("name", ["model.npz", "history.csv", "metrics.json", "training.png"])
def test_a_result_that_can_not_be_replaced_is_said_before_training(options, tmp_path, capsys, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    assert main(options) == 1
    printed = capsys.readouterr()
    assert f"can't write to {tmp_path / 'out' / name}" in printed.err
    assert printed.out == ""


def test_results_in_a_directory_are_of_one_run(options, tmp_path, monkeypatch):
    """A run that stops in its second epoch leaves no figures of the run before beside its own model."""
    assert main([*options, "--epochs", "1", "--quiet"]) == 0
    monkeypatch.setattr(
        experiment, "make_schedule", lambda recipe, steps_an_epoch: lambda step: 0.01 if step < 10 else 1e30
    )
    assert main([*options, "--epochs", "3", "--optimizer", "sgd", "--quiet"]) == 1
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == ["checkpoint.npz", "history.csv", "model.npz"]


def test_a_diverged_training_keeps_what_was_saved_before(options, tmp_path, monkeypatch, capsys):

    monkeypatch.setattr(
        experiment, "make_schedule", lambda recipe, steps_an_epoch: lambda step: 0.01 if step < 10 else 1e30
    )
    assert main([*options, "--epochs", "3", "--optimizer", "sgd"]) == 1
    said = capsys.readouterr().err
    assert "of epoch 2, learning rate 1e+30" in said
    assert f"the last good checkpoint is {tmp_path / 'out' / 'checkpoint.npz'}" in said
    assert len(history_of(tmp_path / "out")) == 1
    assert all(np.isfinite(array).all() for _, array in Sequential.load(tmp_path / "out" / "model.npz").state())


def test_a_training_that_is_done_resumes_to_the_same_and_another_is_refused_by_name(
    options, data_dir, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main([*options, "--epochs", "2", "--resume"]) == 0
    assert f"there is no checkpoint in {out} to go on from: beginning anew" in capsys.readouterr().out
    weights, history = (out / "model.npz").read_bytes(), (out / "history.csv").read_bytes()
    assert main([*options, "--epochs", "2", "--resume"]) == 0
    assert ((out / "model.npz").read_bytes(), (out / "history.csv").read_bytes()) == (weights, history)
    assert "going on: 2 epochs and 0 steps are done" in capsys.readouterr().out
    others = ["--seed", "1", "--learning-rate", "0.5", "--validation", "5", "--limit", "9"]
    assert main([*options, "--epochs", "3", *others, "--resume"]) == 1
    said = capsys.readouterr().err
    for difference in ("seed was 0, is 1 now", "epochs was 2, is 3 now", "learning_rate was 0.01, is 0.5 now"):
        assert difference in said
    for difference in ("validation was 0, is 5 now", "limit was None, is 9 now"):
        assert difference in said
    arrays = [array for part in load_mnist(data_dir) for array in part]
    arrays[3] = arrays[3][::-1].copy()
    write_files(tmp_path / "other", arrays)
    assert main([*options, "--epochs", "2", "--resume", "--data-dir", str(tmp_path / "other")]) == 1
    said = capsys.readouterr().err
    assert "test labels was 50 uint8 with SHA-256" in said
    assert "training images" not in said
    assert (out / "model.npz").read_bytes() == weights


def test_the_seconds_before_a_resume_count(options, tmp_path, monkeypatch):
    restored = experiment._restored

    def of_long_ago(*arguments):
        position = restored(*arguments)
        position.history = [row | {"seconds": 1000.0} for row in position.history]
        return position

    monkeypatch.setattr(experiment, "_restored", of_long_ago)
    for _ in range(2):
        assert main([*options, "--epochs", "1", "--resume", "--quiet"]) == 0
    metrics = metrics_of(tmp_path / "out")
    assert metrics["seconds_training"] == 1000 < metrics["seconds_total"]


def test_resumed_in_the_middle_of_an_epoch_the_model_is_still_that_of_the_last_whole_one(
    options, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiment, "SAVE_EVERY", 0)
    rates = lambda recipe, steps_an_epoch: lambda step: 0.01 if step < 13 else 1e30  # noqa: E731
    monkeypatch.setattr(experiment, "make_schedule", rates)
    files = []
    for resume in ([], ["--resume"]):
        assert main([*options, "--epochs", "3", "--optimizer", "sgd", *resume]) == 1
        files.append([(tmp_path / "out" / name).read_bytes() for name in ("model.npz", "history.csv")])
    assert files[0] == files[1]
    with archive.reading(tmp_path / "out" / "checkpoint.npz", archive.CHECKPOINT) as (description, _):
        assert description["position"]["step"] > 0


def test_a_new_training_is_never_resumed_from_an_earlier_ones_checkpoint(options, tmp_path, monkeypatch, capsys):
    """Stopped before it has saved anything, it can only begin again."""
    assert main([*options, "--epochs", "1", "--quiet"]) == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupted)
    assert main([*options, "--epochs", "1", "--seed", "1"]) == 130
    assert "nothing to go on from" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.json").exists()  # the earlier results stay until there are new ones


def test_images_that_can_not_be_distorted_are_refused_before_any_training(tmp_path):
    """And before an earlier checkpoint is removed."""
    arrays = noise(20, 10, size=(28, 28))
    write_files(tmp_path / "data", [arrays[0].astype(np.int16), *arrays[1:]])
    (tmp_path / "checkpoint.npz").write_bytes(b"earlier")
    with pytest.raises(ValueError, match="images must be uint8"):
        run(Settings("small", data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
    assert (tmp_path / "checkpoint.npz").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    "changes", [{"schedule": "linear"}, {"label_smoothing": 1.0}, {"schedule": "one-cycle", "warm_up": 1.0}]
)
def test_a_recipe_that_can_not_be_leaves_an_earlier_checkpoint(tmp_path, changes):
    write_files(tmp_path / "data", noise(20, 10, size=(28, 28)))
    (tmp_path / "checkpoint.npz").write_bytes(b"earlier")
    with pytest.raises(ValueError, match=r"unknown schedule|label_smoothing|warm_up"):
        run(Settings("fast", changes, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
    assert (tmp_path / "checkpoint.npz").read_bytes() == b"earlier"


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 0}, {"batch_size": 1.5}])
def test_settings_that_can_not_work_are_refused_before_any_training(tmp_path, changes):
    write_files(tmp_path / "data", noise(20, 10))
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be a whole number"):
        run(Settings("classic", changes, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)


@pytest.mark.parametrize("when", ["before anything is saved", "after a while"])
def test_weights_that_are_not_finite_are_never_saved(options, tmp_path, monkeypatch, capsys, when):
    """Every step would be saved, but the ones that break the weights are caught before."""
    monkeypatch.setattr(experiment, "SAVE_EVERY", 0)
    good = 0 if when == "before anything is saved" else 4
    rates = lambda recipe, steps_an_epoch: lambda step: 0.01 if step < good else 1e30  # noqa: E731
    monkeypatch.setattr(experiment, "make_schedule", rates)
    assert main([*options, "--epochs", "2", "--optimizer", "sgd"]) == 1
    said, path = capsys.readouterr().err, tmp_path / "out" / "checkpoint.npz"
    if not good:
        assert "there is no checkpoint yet" in said
        assert not path.exists()
    else:
        with archive.reading(path, archive.CHECKPOINT) as (description, arrays):
            assert description["position"]["step"] == good
            assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.fixture
def own_ctrl_c():
    """As in a terminal: a program in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_it_at_once(own_ctrl_c):
    """The first one is noted, for the step that is being made to end."""
    with experiment._ctrl_c_noted() as noted:
        assert not noted()
        signal.raise_signal(signal.SIGINT)
        assert noted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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


def test_the_same_training_begun_again_keeps_its_checkpoint_until_it_has_a_newer_one(options, tmp_path, monkeypatch):
    """Who forgets --resume has not lost anything yet."""
    assert main([*options, "--epochs", "1", "--quiet"]) == 0
    before = (tmp_path / "out" / "checkpoint.npz").read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", killed)
    assert main([*options, "--epochs", "1"]) == 130
    assert (tmp_path / "out" / "checkpoint.npz").read_bytes() == before


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


def test_a_full_disk_leaves_the_results_that_are_there(options, tmp_path, monkeypatch, capsys):
    assert main([*options, "--epochs", "1", "--quiet"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([*options, "--epochs", "1", "--resume"]) == 1
    assert f"No space left on device: '{tmp_path / 'out' / 'model.npz'}'" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")} == before


def test_the_line_of_an_epoch():
    row = {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.75, "seconds": 3.21}
    row |= {"validation_loss": 0.25, "validation_accuracy": 0.875}
    said = experiment.line(row, epochs=5)
    assert said == "epoch 2/5  loss 0.5000  accuracy 75.00%  validation loss 0.2500  accuracy 87.50%  3.2 s"
    assert experiment.line(row | {"validation_accuracy": None}, 5) == "epoch 2/5  loss 0.5000  accuracy 75.00%  3.2 s"


def test_it_runs_in_any_thread_and_leaves_somebody_elses_ctrl_c():
    def noted() -> bool:
        with experiment._ctrl_c_noted() as interrupted:
            return interrupted()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(noted).result() is False
    before = signal.signal(signal.SIGINT, own := lambda *_: None)
    try:
        with experiment._ctrl_c_noted():
            assert signal.getsignal(signal.SIGINT) is own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


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
