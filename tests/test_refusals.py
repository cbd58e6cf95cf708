"""Jobs that can't be are refused with a line that says why, before any training and before anything is removed."""

import numpy as np
import pytest
from small_job import main
from small_mnist import noise, write_files

from tinycnn.experiment import Settings, run


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
        ("c", [images[:0], labels[:0], images, labels], "the training data: there are no images"),
        ("d", [bad_pixels, labels, images, labels], "NaN or infinite pixels"),
        (
            "e",
            [images, labels, images[:, :10], labels],
            "training images are (12, 12) of uint8, but test images (10, 12)",
        ),
        ("f", [images, labels.astype(np.int32) * 10**9, images, labels], "label 1000000000 is outside"),
        ("g", [images, labels.astype(np.float32), images, labels], "labels must be whole numbers"),
        ("h", [images, labels, images[:0], labels[:0]], "the test data: there are no images"),
        ("i", [images, labels, images / np.float32(255), labels], "are (12, 12) of uint8, but test images (12, 12) of"),
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


def test_images_that_can_not_be_distorted_are_refused_before_any_training(tmp_path):
    """And before an earlier checkpoint is removed."""
    arrays = noise(20, 10, size=(28, 28))
    write_files(tmp_path / "data", [a.astype(np.int16) if a.ndim == 3 else a for a in arrays])
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


def test_a_change_of_nothing_that_a_recipe_has_is_refused(tmp_path):
    write_files(tmp_path / "data", noise(20, 10))
    with pytest.raises(ValueError, match="a recipe has no rate to change"):
        run(Settings("classic", {"rate": 1}, data_dir=tmp_path / "data", out=tmp_path), print, progress=False)
