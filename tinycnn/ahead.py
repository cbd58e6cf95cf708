"""Kernels compiled by two processes at once: the first training on a computer waits for little else.

Forward has to compile its kernels before backward can ask for any. So as soon as Numba compiles something in the first
training step, a second process is started and told about the network. It goes forward and backward without running a
kernel, notes which would be called, and compiles them from the last one back, while the first process begins at the
front. Where they meet all are compiled; Numba's cache on the disk carries them from the one to the other. Kernels that
only differ in their constants share most of the work: if only the helper has begun with one, the others are left to it.

What this file is not: needed. If there can't be a second process, or it fails, the first compiles everything. There is
none if all the kernels are in the cache, for a single thread, or for layers of your own.
"""

import atexit
import json
import subprocess
import sys
import threading
from typing import BinaryIO

import numba
import numpy as np
from numba.core import event

from tinycnn.kernels import parallel
from tinycnn.kernels.parallel import Task

PATIENCE = 60.0  # seconds to wait for a task
MANY = 4096  # images; a larger batch nearly always takes the same kernels, and more memory of the helper
COMMAND = "import sys; sys.path[:] = {}; from tinycnn.ahead import help_to_compile; help_to_compile()"

_helper: "Helper | None" = None  # of this process's first training step


def before_training_step(model, batch_size: int) -> None:
    """What a Sequential, `model`, calls before it goes forward in training. The second call ends the help."""
    global _helper
    if _helper is None:
        ours = all(type(layer).__module__.startswith("tinycnn.") for layer in model.layers)
        interpreter = sys.executable and not getattr(sys, "frozen", False)
        able = ours and interpreter and numba.get_num_threads() > 1
        _helper = Helper({**model.description(), "batch_size": batch_size} if able else None)
    else:
        _helper.end()


class Helper(event.Listener):
    """The second process, seen from the first. It starts when Numba begins to compile one of our kernels."""

    def __init__(self, network: dict | None):
        """network: as `help_to_compile` reads it, or None if nobody is to help."""
        self.network, self.process, self.listening = network, None, network is not None
        self.news = threading.Condition()  # of the next two
        self.names, self.finished = [], 0  # of the helper's tasks in its order, and how many of them are finished
        self.own = set()  # functions of which this process has compiled a task
        if self.listening:
            event.register("numba:run_pass", self)

    def on_start(self, begun: event.Event) -> None:
        """Numba begins to compile something. It must not fail: it is called from the midst of that."""
        if not self.network or not begun.data["module"].startswith("tinycnn.kernels"):
            return
        network, self.network = self.network, None
        atexit.register(self.end)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            message = json.dumps(network).encode()
            command = [sys.executable, "-c", COMMAND.format(sys.path)]
            # In a session of its own: Ctrl-C is not meant for it.
            self.process = subprocess.Popen(command, **pipes, start_new_session=True)
            self.thread = threading.Thread(target=self._listen, args=[self.process.stdout], daemon=True)
            self.thread.start()
            with self.process.stdin as pipe:
                pipe.write(message)
        except Exception:  # no process, no thread, no pipe: then nobody helps
            self._stop()
            return
        parallel.before_compiling = self._before_compiling

    def on_end(self, _) -> None:
        """A listener has to have it."""

    def end(self) -> None:
        """The helper stops, if it still runs, and none will be started."""
        if self.listening:
            self.listening, self.network = False, None
            event.unregister("numba:run_pass", self)
        self._stop()

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process:
            parallel.before_compiling = None
            process.kill()
            process.wait()
            if self.thread.is_alive():
                self.thread.join(1)

    def _listen(self, lines: BinaryIO) -> None:
        """The first line names the helper's tasks. Then there is an empty one whenever it has finished one more."""
        with lines:
            names = lines.readline().decode().split()
            with self.news:
                self.names = names
            for _ in lines:
                with self.news:
                    self.finished += 1
                    self.news.notify_all()
        with self.news:
            del self.names[self.finished :]
            self.news.notify_all()

    def _before_compiling(self, task: Task) -> None:
        """Wait for what the helper has begun, or the like of it. Once it has finished what we need, they have met."""
        function = _function(task.name)
        with self.news:
            begun = self.names[: self.finished + 1]
            patient = True
            if task.name in begun or (function in map(_function, begun) and function not in self.own):
                patient = self.news.wait_for(lambda: task.name not in self.names[self.finished :], PATIENCE)
            met = task.name in self.names[: self.finished]
        if met or not patient:
            self._stop()
        self.own.add(function)


def _function(name: str) -> str:
    """A task's name without its last part, which stands for its constants."""
    return name.rpartition("_")[0]


def help_to_compile() -> None:
    """The second process: reads a network (`Sequential.description` and a batch size) and compiles for it."""
    from tinycnn.model import LAYERS, Sequential  # only here: the model imports this file
    from tinycnn.more_layers import Normalize

    network = json.load(sys.stdin)
    by_name = {layer.__name__: layer for layer in LAYERS}
    layers = [by_name[name](**arguments) for name, arguments in network["layers"]]
    model = Sequential(layers, network["input_shape"], dtype=network["dtype"])
    with parallel.noting() as tasks, np.errstate(all="ignore"):  # the numbers are what was in memory
        raw = type(layers[0]) is Normalize
        x = np.zeros((min(network["batch_size"], MANY), *model.input_shape), np.uint8 if raw else model.dtype)
        model.parameter_gradients(model.forward_through_layers(x, training=True))
    tasks = list(reversed(dict.fromkeys(tasks)))  # each once, the one that was first needed last first
    print(*(task.name for task in tasks), flush=True)
    for task in tasks:
        _ = task.compiled
        if parallel.cache_faults:
            return  # what is compiled here would stay here
        print(flush=True)
