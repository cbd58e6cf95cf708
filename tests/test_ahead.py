"""The second process that helps to compile: it compiles what is needed, is waited for, and is never in the way.

What this file is not: a measurement. How long a first step takes is in `scripts/benchmark.py` (the section `job`).
"""

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tinycnn import Conv2D, Dense, Flatten, Layer, MaxPool2D, Normalize, ReLU, Sequential, ahead
from tinycnn.kernels import parallel

LAYERS = "Conv2D(3, kernel_size=2), MaxPool2D(2), ReLU(), Flatten(), Dense(4)"
FIRST_STEP = f"""
import numpy as np
from tinycnn import *
from tinycnn import ahead
from tinycnn.kernels import parallel
model = Sequential([{LAYERS}], input_shape=(6, 6, 1))
x = np.random.default_rng(0).integers(256, size=(5, 6, 6, 1)).astype(np.float32)
processes, start = [], ahead.subprocess.Popen
ahead.subprocess.Popen = lambda *a, **k: processes.append(start(*a, **k)) or processes[-1]
"""


def small_model(*first: Layer) -> Sequential:
    layers = [*first, Conv2D(3, kernel_size=2), MaxPool2D(2), ReLU(), Flatten(), Dense(4)]
    return Sequential(layers, input_shape=(6, 6, 1))


def step(model: Sequential) -> None:
    model.parameter_gradients(model.forward(np.ones((5, *model.input_shape), np.float32), training=True))


def python(code: str, cache: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


class FakeProcess:
    """In the place of `subprocess.Popen`: a helper that writes what the test tells it to."""

    def __init__(self, command, **options):
        reading, self.writing = os.pipe()
        self.options = options
        self.stdin, self.stdout, self.killed = io.BytesIO(), os.fdopen(reading, "rb"), False

    def says(self, line: str) -> None:
        os.write(self.writing, f"{line}\n".encode())

    def kill(self) -> None:
        before, self.killed = self.killed, True
        if not before:
            os.close(self.writing)

    def wait(self) -> None:
        assert self.killed


def compiling(module: str) -> ahead.event.Event:
    """What Numba says when it begins to compile a function of this module."""
    return ahead.event.Event("numba:run_pass", ahead.event.EventStatus.START, data={"module": module})


COMPILING = compiling("tinycnn.kernels.dense")


class FakeTask:
    def __init__(self, name: str):
        self.name = name


@pytest.fixture
def helper(monkeypatch):
    """A Helper whose process is a FakeProcess; Numba has just begun to compile."""
    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    monkeypatch.setattr(parallel, "before_compiling", None)
    helper = ahead.Helper({"a": "network"})
    helper.on_start(COMPILING)
    yield helper
    helper.end()


def eventually(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("raw", [False, True])
def test_the_helper_compiles_what_a_step_needs_from_the_last_task_back(raw, tmp_path):
    """Exactly the tasks that a step in another process asks for, under the same names; then they are in the cache.

    raw: whether the images are bytes, as a network that begins with Normalize takes them.
    """
    first_step, model = FIRST_STEP, small_model()
    if raw:
        model = small_model(Normalize(0.5, 0.5))
        first_step = first_step.replace(LAYERS, f"Normalize(0.5, 0.5), {LAYERS}").replace("np.float32", "np.uint8")
    asked_for = """
import tinycnn.model
tinycnn.model.before_training_step = lambda model, batch_size: None
parallel.before_compiling = lambda task: print(task.name)
model.parameter_gradients(model.forward(x, training=True))
"""
    needed = python(first_step + asked_for, tmp_path / "a")
    assert needed.stderr == ""
    assert len(needed.stdout.splitlines()) >= 4
    network = {**model.description(), "batch_size": 5}
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "b"), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", ahead.COMMAND.format(sys.path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(json.dumps(network).encode())
        process.stdin.close()
        names = process.stdout.readline().decode().split()  # comes before the work is done
        assert len(list((tmp_path / "b").rglob("*.nbc"))) <= 1
        assert process.stdout.readlines() == [b"\n"] * len(names)
    assert names == needed.stdout.splitlines()[::-1]
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.nbc")}
    # A list of its own for each task, in which two processes can't spoil each other's.
    assert len(list((tmp_path / "b").rglob("*.nbi"))) == len(names) == len(set(names))
    again = python(first_step + "model.parameter_gradients(model.forward(x, training=True))", tmp_path / "b")
    assert (again.returncode, again.stderr) == (0, "")
    files_now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.nbc")}
    assert files.items() <= files_now.items()
    assert [name for name in files_now.keys() - files.keys() if "_call_in_parallel" not in name] == []


def test_a_first_step_with_help_is_the_same_and_leaves_nothing_behind(tmp_path):
    """Compiled by two processes: the same gradients, no process, no word on the standard error."""
    code = """
for _ in range(2):
    model.parameter_gradients(model.forward(x, training=True))
assert ahead._helper.process is None and parallel.before_compiling is None
print([p.grad.tolist() for p in model.parameters()], len(processes), [p.poll() is None for p in processes])
"""
    cold, warm = (python(FIRST_STEP + code, tmp_path) for _ in range(2))
    assert (cold.returncode, cold.stderr, warm.stderr) == (0, "", "")
    assert cold.stdout.strip().endswith("] 1 [False]")
    assert warm.stdout.strip().endswith("] 0 []")  # nothing to compile, nobody to help
    assert cold.stdout.split("] 1 ")[0] == warm.stdout.split("] 0 ")[0]


def test_a_process_that_ends_within_its_first_step_takes_the_helper_with_it(tmp_path):
    result = python(FIRST_STEP + "model.forward(x, training=True); print(processes[0].pid)", tmp_path)
    assert result.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)


def test_a_helper_that_dies_is_not_missed(tmp_path):
    code = """
ahead.COMMAND = "print('nothing that is needed', flush=True); 1 / 0"
model.parameter_gradients(model.forward(x, training=True))
print("done")
"""
    result = python(FIRST_STEP + code, tmp_path)
    assert (result.stdout, result.stderr) == ("done\n", "")


def waiting_for(name: str) -> threading.Thread:
    """A thread that has been waiting for this task for a while."""
    waiting = threading.Thread(target=parallel.before_compiling, args=[FakeTask(name)])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    return waiting


def test_a_task_that_the_helper_has_begun_is_waited_for(helper):
    helper.process.says("last_1 between_1 first_1")
    eventually(lambda: helper.names)
    parallel.before_compiling(FakeTask("first_1"))  # nobody is at it
    parallel.before_compiling(FakeTask("last_9"))  # nor will be
    assert not helper.process.killed
    waiting = waiting_for("last_1")
    process = helper.process
    process.says("")
    waiting.join(30)
    assert not waiting.is_alive()
    assert process.killed  # for they have met: everything before is done here, everything after there
    assert parallel.before_compiling is None


def test_so_is_one_that_it_will_come_to_if_only_the_helper_has_begun_one_like_it(helper):
    """The two share most of what is to be compiled."""
    helper.process.says("tiles_1 between_1 tiles_2 first_1")
    parallel.before_compiling(FakeTask("first_2"))
    eventually(lambda: helper.names)
    waiting = waiting_for("tiles_2")
    for finished in (1, 2):
        helper.process.says("")
        eventually(lambda finished=finished: helper.finished == finished)
        assert waiting.is_alive()
    helper.process.says("")
    waiting.join(30)
    assert not waiting.is_alive()


def test_but_not_if_one_like_it_has_been_compiled_here(helper):
    parallel.before_compiling(FakeTask("tiles_3"))
    helper.process.says("tiles_1 between_1 tiles_2 first_1")
    eventually(lambda: helper.names)
    parallel.before_compiling(FakeTask("tiles_2"))
    assert not helper.process.killed
    waiting_for("tiles_1")


def test_ctrl_c_is_not_meant_for_the_helper(helper):
    assert helper.process.options["start_new_session"]


def test_a_helper_that_stops_in_the_middle_is_waited_for_no_longer(helper):
    helper.process.says("last_1")
    eventually(lambda: helper.names)
    waiting = waiting_for("last_1")
    helper.process.kill()
    waiting.join(30)
    assert not waiting.is_alive()


def test_patience_has_an_end(helper, monkeypatch):
    """With this helper: no task is waited for again."""
    monkeypatch.setattr(ahead, "PATIENCE", 0.01)
    helper.process.says("last_1")
    eventually(lambda: helper.names)
    process, started = helper.process, time.monotonic()
    parallel.before_compiling(FakeTask("last_1"))
    assert time.monotonic() - started < 5
    assert process.killed
    assert parallel.before_compiling is None


def test_a_second_step_ends_the_help(helper, monkeypatch):
    monkeypatch.setattr(ahead, "_helper", helper)
    process = helper.process
    ahead.before_training_step(small_model(), 5)
    assert process.killed
    assert helper.process is None
    assert parallel.before_compiling is None
    ahead.before_training_step(small_model(), 5)  # and a third has nothing to end


class Own(Layer):
    def forward(self, x, training=False):
        return x

    def backward(self, dy):
        return dy


@pytest.mark.parametrize(
    "why", ["own layer", "one thread", "no interpreter", "frozen", "no process", "not our kernels", "no JSON"]
)
def test_nobody_helps_where_it_could_not_work(monkeypatch, why):
    """And the step is made all the same."""
    monkeypatch.setattr(ahead, "_helper", None)
    monkeypatch.setattr(ahead.numba, "get_num_threads", lambda: 2)
    model = small_model()
    if why == "own layer":
        model = Sequential([Own(), Flatten(), Dense(2)], input_shape=(6, 6, 1))
    elif why == "one thread":
        monkeypatch.setattr(ahead.numba, "get_num_threads", lambda: 1)
    elif why == "no interpreter":
        monkeypatch.setattr(sys, "executable", None)
    elif why == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    started = []

    def no_process(*arguments, **options):
        started.append(arguments)
        raise PermissionError(1, "not here")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    if why == "no JSON":
        model.layers[0].kernel_size = (np.int64(2), np.int64(2))
    ahead.before_training_step(model, 5)
    ahead.event.broadcast(compiling("somebody.elses") if why == "not our kernels" else COMPILING)
    assert len(started) == (why == "no process")
    assert parallel.before_compiling is None
    ahead._helper.end()  # or it would wait for other tests' kernels
    step(model)


def test_noting_computes_nothing(monkeypatch):
    model = small_model()
    with monkeypatch.context() as nothing, parallel.noting() as tasks:
        nothing.setattr(parallel, "_in_parallel", None)
        y = model.layers[0].forward(np.full((1, 6, 6, 1), 7, np.float32), training=True)
    assert y.shape == (1, 5, 5, 3)
    assert [type(task) for task in tasks] == [parallel.Task]
    assert parallel._noted is None
    np.testing.assert_allclose(
        model.layers[0].forward(np.ones((1, 6, 6, 1), np.float32))[0, 0, 0],
        model.layers[0].weight.value.sum(axis=(0, 1, 2)),
        rtol=1e-5,
    )
