"""A training stopped anywhere and resumed ends the same bit for bit, and files are whole or not there."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kill_and_resume import kill_and_resume, results, train
from small_mnist import bright_quarters, write_files

from tinycnn import SGD, Adam, BatchNorm, Conv2D, Dense, Dropout, Flatten, ReLU, Sequential, archive, constant
from tinycnn.augment import random_shift
from tinycnn.averaging import WeightAverage
from tinycnn.checkpoint import Checkpoint
from tinycnn.files import alone_in, replacing
from tinycnn.training import COLUMNS, Position
from tinycnn.training import train as run_loop


class Stopped(Exception):
    """The process died."""


def parts(optimizer, path, seed=0, settings=None) -> Checkpoint:
    """All that a training consists of, before the first step. Another seed gives other numbers everywhere."""
    layers = [Conv2D(3, 3), BatchNorm(), ReLU(), Flatten(), Dropout(0.3), Dense(8), ReLU(), Dropout(0.2), Dense(3)]
    model = Sequential(layers, (6, 6, 1), seed=seed)
    generators = {name: np.random.default_rng([seed, n]) for n, name in enumerate(("shuffling", "augmentation"))}
    average = WeightAverage(model, 0.2)
    return Checkpoint(path, settings or {"seed": 0}, model, optimizer(model.parameters(), 0.01), generators, average)


def go_on(checkpoint, images, labels, position=None, stop_after=None):
    """Train to the end of two epochs of four steps, or until so many steps are made."""
    steps = []

    def after_step(position):
        steps.append(position.step)
        if len(steps) == stop_after:
            checkpoint.save(position)
            raise Stopped

    def after_epoch(position):
        steps.append("epoch")
        if len(steps) == stop_after:
            checkpoint.save(position)
            raise Stopped

    return run_loop(
        checkpoint.model,
        checkpoint.optimizer,
        constant(0.01),
        images,
        labels,
        epochs=2,
        batch_size=6,
        generator=checkpoint.generators["shuffling"],
        augment=lambda x: random_shift(x, 1, checkpoint.generators["augmentation"]),
        average=checkpoint.average,
        validation=(images, labels),
        position=position,
        after_step=after_step,
        after_epoch=after_epoch,
    )


def without_times(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.fixture
def data(random):
    return random.normal(size=(22, 6, 6, 1)).astype(np.float32), random.integers(0, 3, size=22)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("stop_after", range(1, 9))
def test_stopped_anywhere_and_resumed_it_is_the_same_bit_for_bit(data, tmp_path, optimizer, stop_after):
    """Model, optimizer, shuffling, augmentation, dropout, history; after each of the steps and each epoch."""
    undisturbed = parts(optimizer, tmp_path / "c.npz")
    history = go_on(undisturbed, *data)
    with pytest.raises(Stopped):
        go_on(parts(optimizer, tmp_path / "c.npz"), *data, stop_after=stop_after)
    resumed = parts(optimizer, tmp_path / "c.npz", seed=5)  # nothing of the start may be left
    position = resumed.restore()
    assert (position.epoch, position.step) == (1 + stop_after // 4, stop_after % 4)
    assert without_times(go_on(resumed, *data, position)) == without_times(history)
    for (name, a), (_, b) in zip(undisturbed.arrays().items(), resumed.arrays().items(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert getattr(undisturbed.optimizer, "t", 0) == getattr(resumed.optimizer, "t", 0)
    assert undisturbed.average.updates == resumed.average.updates == 8


def test_time_spent_before_counts(data, tmp_path):
    with pytest.raises(Stopped):
        go_on(parts(SGD, tmp_path / "c.npz"), *data, stop_after=2)
    resumed = parts(SGD, tmp_path / "c.npz")
    position = resumed.restore()
    position.seconds += 100
    assert 100 < go_on(resumed, *data, position)[0]["seconds"] < 200


def test_other_settings_are_refused_by_name_and_nothing_changes(tmp_path):
    parts(Adam, tmp_path / "c.npz", settings={"seed": 3, "rate": 0.1, "batch": 64}).save(Position())
    other = parts(Adam, tmp_path / "c.npz", seed=7, settings={"seed": 4, "rate": 0.1, "shift": 2})
    before = [array.copy() for array in other.arrays().values()]
    with pytest.raises(
        ValueError, match="another training: seed was 3, is 4 now; batch was 64, is None now; shift was None, is 2 now"
    ):
        other.restore()
    for array, old in zip(other.arrays().values(), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_settings_of_a_file_are_not_printed_as_they_are(tmp_path):
    """They might be commands for the terminal, or a million letters."""
    parts(SGD, tmp_path / "c.npz", settings={"\x1b]0;title\x07": "x" * 10**6}).save(Position())
    with pytest.raises(ValueError, match=r"another training: \?\]0;title\? was xxx") as refused:
        parts(SGD, tmp_path / "c.npz").restore()
    assert len(str(refused.value)) < 500 + len(str(tmp_path))


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """The last good checkpoint stays."""
    checkpoint = parts(Adam, tmp_path / "c.npz")
    checkpoint.save(Position())
    before = (tmp_path / "c.npz").read_bytes()
    checkpoint.optimizer.squares[0].flat[0] = np.inf
    with pytest.raises(ValueError, match=r"c\.npz is not written: conv2d_1\.weight\.squares holds NaN or infinite"):
        checkpoint.save(Position())
    assert (tmp_path / "c.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"position": {"epoch": 0}}, "epoch must be"),
        ({"position": {"step": -1}}, "step must be"),
        ({"position": {"step": 1.5}}, "step must be"),
        ({"position": {"loss": -0.5}}, "loss must be"),
        ({"position": {"seconds": -1.0}}, "seconds must be"),
        ({"position": {"epoch": 2}}, "history does not fit"),
        ({"position": {"epoch": 2, "history": [{"epoch": 1}]}}, "history does not fit"),
        ({"position": {"epoch": 2, "history": [dict.fromkeys(COLUMNS, "x")]}}, ""),
        ({"position": {"step": 1, "shuffling": {"bit_generator": "MT19937"}}}, ""),
        (
            {"position": {"step": 3, "seen": 2, "shuffling": np.random.default_rng(0).bit_generator.state}},
            "have seen 2",
        ),
        ({"position": {"shuffling": {"bit_generator": "PCG64"}}}, ""),
        ({"position": {"epoch": 2, "history": [dict.fromkeys(COLUMNS, None)]}}, ""),
        ({"position": {"surprise": 1}}, "surprise"),
        ({"generators": {}}, "shuffling"),
        ({"generators": {"shuffling": {}, "augmentation": {}}}, ""),
        ({"optimizer_steps": -1}, "optimizer_steps must be"),
        ({"averaged": "x"}, "averaged must be"),
        ({"settings": 3}, ""),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, change, fault):
    path = tmp_path / "c.npz"
    checkpoint = parts(Adam, path)
    checkpoint.save(Position())
    with archive.reading(path, archive.CHECKPOINT) as (description, stored):
        arrays = {name: np.asarray(array) for name, array in stored.items()}
    position = description["position"] | change.get("position", {})
    archive.write(path, archive.CHECKPOINT, description | change | {"position": position}, arrays)
    other = parts(Adam, path, seed=5)  # where everything that came from the file would show
    before = [array.copy() for array in other.arrays().values()], repr(states(other))
    with pytest.raises(ValueError, match=rf"c\.npz is not a tinycnn checkpoint file, or a damaged one: .*{fault}"):
        other.restore()
    for array, old in zip(other.arrays().values(), before[0], strict=True):
        np.testing.assert_array_equal(array, old)
    assert repr(states(other)) == before[1]


def states(checkpoint: Checkpoint) -> tuple:
    """What is restored beside the arrays."""
    generators = {name: g.bit_generator.state for name, g in checkpoint._all_generators().items()}
    return generators, checkpoint.optimizer.t, checkpoint.average.updates


def test_a_checkpoint_is_no_model_and_a_model_no_checkpoint(tmp_path):
    checkpoint = parts(SGD, tmp_path / "c.npz")
    checkpoint.save(Position())
    with pytest.raises(ValueError, match="is not a tinycnn model file"):
        Sequential.load(tmp_path / "c.npz")
    checkpoint.model.save(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="is not a tinycnn checkpoint file"):
        checkpoint.restore()


# ----------------------------------------------------------------------------------------------- as a user's process


@pytest.fixture
def job(tmp_path):
    write_files(tmp_path / "data", bright_quarters(np.random.default_rng(0)))
    return tmp_path


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_resumed(tmp_path, capfd):
    """The short form of `python tests/kill_and_resume.py`."""
    assert kill_and_resume(tmp_path, runs=1, seed=1) == 1
    assert "killed" in capfd.readouterr().out


def test_ctrl_c_saves_and_says_how_to_go_on(job):
    assert train(job, job / "undisturbed").wait() == 0
    process = train(job, job / "out", stderr=subprocess.PIPE)
    wait_for(job / "out" / "checkpoint.npz")
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "To go on: python" in said
    assert "--resume" in said
    assert not (job / "out" / "metrics.json").exists()
    assert train(job, job / "out").wait() == 0
    assert results(job / "out") == results(job / "undisturbed")


def test_two_trainings_into_the_same_directory(job):
    (job / "out").mkdir()
    with alone_in(job / "out"):
        second = train(job, job / "out", stderr=subprocess.PIPE)
        said = second.communicate()[1].decode()
    assert second.returncode == 1
    assert f"another process is writing to {job / 'out'}" in said
    assert "Traceback" not in said


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_system_without_locks_is_not_called_another_training(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("tinycnn.files.fcntl.flock", no_locks)
    with pytest.raises(OSError, match="No locks available"), alone_in(tmp_path):
        pass


def test_a_directory_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path):
            code = "import sys, pathlib, tinycnn.files as f\nwith f.alone_in(pathlib.Path(sys.argv[1])): pass"
            command = [sys.executable, "-c", code, tmp_path]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert "another process is writing" in result.stderr


def test_leftovers_of_a_killed_process_are_cleared_away(tmp_path):
    """And nobody else's files."""
    (tmp_path / ".model.npz.0123456789abcdef.part").write_bytes(b"half")
    for name in ("kept.part", ".film.part"):
        (tmp_path / name).write_bytes(b"whole")
    with alone_in(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".film.part", ".lock", "kept.part"]


def test_two_may_replace_a_file_at_once(tmp_path):
    """Threads, or processes that have the same number in two containers: the last one's whole file is there then."""
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        first.write(b"first" * 1000)
        second.write(b"2")
    assert (tmp_path / "a").read_bytes() == b"first" * 1000
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")

    def write_half():
        with replacing(tmp_path / "a") as file:
            file.write(b"ne")
            raise Stopped

    with pytest.raises(Stopped):
        write_half()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
