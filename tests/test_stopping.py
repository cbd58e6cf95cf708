"""A training that stops, for whatever reason: what it leaves, and how it goes on."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_job import history_of, main, metrics_of
from small_mnist import write_files

from tinycnn import Sequential, archive, experiment, load_mnist


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

    # The same again, but it goes wrong before it saves anything: then the first one's checkpoint is still there.
    monkeypatch.setattr(experiment, "make_schedule", lambda recipe, steps_an_epoch: lambda step: 1e30)
    assert main([*options, "--epochs", "3", "--optimizer", "sgd"]) == 1
    assert f"the last good checkpoint is {tmp_path / 'out' / 'checkpoint.npz'}" in capsys.readouterr().err
    assert (tmp_path / "out" / "checkpoint.npz").exists()


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
    with experiment.ctrl_c_noted() as noted:
        assert not noted()
        signal.raise_signal(signal.SIGINT)
        assert noted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_same_training_begun_again_keeps_its_checkpoint_until_it_has_a_newer_one(
    options, tmp_path, monkeypatch, capsys
):
    """Who forgets --resume has not lost anything yet."""
    assert main([*options, "--epochs", "1", "--quiet"]) == 0
    before = (tmp_path / "out" / "checkpoint.npz").read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", killed)
    assert main([*options, "--epochs", "1"]) == 130
    assert (tmp_path / "out" / "checkpoint.npz").read_bytes() == before
    said = capsys.readouterr().err
    assert (
        "stopped. Nothing was saved yet. To go on from the training before, if it had the same settings: python" in said
    )
    assert main([*options, "--epochs", "1", "--resume"]) == 130
    assert "stopped. To go on: python" in capsys.readouterr().err
    (tmp_path / "out" / "checkpoint.npz").unlink()
    assert main([*options, "--epochs", "1"]) == 130
    assert "stopped. Nothing was saved yet, so there is nothing to go on from." in capsys.readouterr().err


def test_a_full_disk_leaves_the_results_that_are_there(options, tmp_path, monkeypatch, capsys):
    assert main([*options, "--epochs", "1", "--quiet"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([*options, "--epochs", "1", "--resume"]) == 1
    assert f"No space left on device: '{tmp_path / 'out' / 'model.npz'}'" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")} == before


def test_a_training_may_run_in_any_thread_and_leaves_somebody_elses_ctrl_c():
    def noted() -> bool:
        with experiment.ctrl_c_noted() as interrupted:
            return interrupted()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(noted).result() is False
    before = signal.signal(signal.SIGINT, own := lambda *_: None)
    try:
        with experiment.ctrl_c_noted():
            assert signal.getsignal(signal.SIGINT) is own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
