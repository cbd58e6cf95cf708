"""Files that nobody should trust: each reader must read them rightly or refuse them by name, soon and in little memory.

    python tests/fuzz.py --inputs 20000 --seed 0 [--reader idx|model|checkpoint|picture]
    python tests/fuzz.py --reader idx --only 4711        one input alone, left in the current directory

First come the special cases of `tests/hostile_files.py`, then good files with random changes. A process of its own
reads them, one after the other. What a reader returns is compared with what another program finds in the file; what it
raises must be a FileNotFoundError or a ValueError whose text holds the path and a fault. Input number n of a seed is
always the same.

What this file is not: run by pytest with all its inputs; `tests/test_fuzz.py` takes a few hundred.
"""

import argparse
import contextlib
import faulthandler
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import hostile_files
import mutations
import numpy as np

from tinycnn import Sequential, read_idx
from tinycnn.digits import NoDigitFound, to_mnist
from tinycnn.pictures import read_picture

SECONDS, MEGABYTES, HANGS = 1.0, 200, 60  # of CPU time; above the idle program; seconds of waiting
LIMIT = 4 << 30  # bytes of address space that the reading process may take besides those of the idle program


# ------------------------------------------------------------------------------------------- reading, and what is right


def idx(path: str | Path) -> None:
    """The array is all that the file holds."""
    array = read_idx(path)
    content = mutations.unpacked(Path(path).read_bytes())
    assert array.dtype.isnative
    assert array.flags.writeable
    assert content[4 + 4 * array.ndim :] == array.astype(array.dtype.newbyteorder(">")).tobytes()
    assert [*array.shape] == np.frombuffer(content[4 : 4 + 4 * array.ndim], ">u4").tolist()


def model(path: str | Path) -> None:
    """The network's arrays are those that NumPy finds."""
    network = Sequential.load(path)
    assert len(network.output_shapes) == len(network.layers)
    state = dict(network.state())
    with np.load(path, allow_pickle=False) as file:
        assert {*file.files} == {*state, "description"}
        assert all(np.isfinite(a).all() and np.array_equal(a, file[name]) for name, a in state.items())


def checkpoint(path: str | Path) -> None:
    """All arrays are those that NumPy finds, and finite; from a file that is refused nothing is taken."""
    training = mutations.training(path)
    for array in training.arrays().values():
        array += 1  # or what is in the file could be what is there already
    before = {name: array.copy() for name, array in training.arrays().items()}
    try:
        position = training.restore()
    except ValueError:
        assert all(np.array_equal(array, before[name]) for name, array in training.arrays().items())
        raise
    assert position.epoch >= 1
    with np.load(path, allow_pickle=False) as file:
        assert {*file.files} == {*before, "description"}
        assert all(np.isfinite(a).all() and np.array_equal(a, file[name]) for name, a in training.arrays().items())


def picture(path: str | Path) -> None:
    """Grey from 0 to 1, and a digit of MNIST's form or none."""
    grey = read_picture(path)
    assert grey.ndim == 2
    assert grey.dtype == np.float32
    assert grey.min() >= 0
    assert grey.max() <= 1 + 1e-6
    try:
        seen = to_mnist(grey)
    except NoDigitFound:
        return
    assert (seen.shape, seen.dtype) == ((28, 28), np.uint8)


READERS = {"idx": idx, "model": model, "checkpoint": checkpoint, "picture": picture}


def outcome(reader: str, path: str | Path) -> str:
    """If all is well "read", or "refused: " and why; else what is not well."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            READERS[reader](path)
    except (FileNotFoundError, ValueError) as error:
        text = str(error)
        told = type(error) in (FileNotFoundError, ValueError) and str(path) in text
        told = told and 8 < len(text) - len(str(path)) < 500 and text.replace(str(path), "").isprintable()
        return f"refused: {text}" if told else f"an error that tells too little or too much: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read"


# ------------------------------------------------------------------------------------------------------------ inputs


def mutant(reader: str, seed: int, number: int) -> bytes:
    return mutations.mutated(reader, random.Random(f"{reader} {seed} {number}"))


def inputs(reader: str, seed: int, start: int, count: int, directory: Path) -> Iterator[tuple[int, str | Path]]:
    """(number, path): special cases have the numbers below 0. Each file is gone when the next one is made."""
    for number in range(start, count):
        if number < 0:
            with hostile_files.made(reader, list(hostile_files.CASES[reader])[number], directory) as path:
                yield number, path
        else:
            path = directory / "input"
            path.write_bytes(mutant(reader, seed, number))
            yield number, path


def read_all(reader: str, seed: int, start: int, count: int) -> None:
    """Print a line of JSON for each input: number, outcome, seconds of CPU time, megabytes above the start."""
    with tempfile.TemporaryDirectory() as directory:
        for content in mutations.seeds(reader):  # what is only needed once
            (Path(directory) / "seed").write_bytes(content)
            assert outcome(reader, Path(directory) / "seed") == "read", reader
        idle = _memory("VmRSS")
        _limit_memory()
        for number, path in inputs(reader, seed, start, count, Path(directory)):
            faulthandler.dump_traceback_later(HANGS, exit=True)
            _forget_peak()
            started = time.process_time()
            what = outcome(reader, path)
            print(json.dumps([number, what, time.process_time() - started, _memory("VmHWM") - idle]), flush=True)


def _limit_memory() -> None:
    """A broken reader may take what it likes, but not the whole machine."""
    if idle := _memory("VmSize"):
        import resource  # not on Windows

        limit = int(idle * 2**20) + LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _memory(which: str) -> float:
    """Resident megabytes of this process: VmRSS now, VmHWM at most since _forget_peak. 0 where nobody counts them."""
    try:
        return int(re.search(rf"{which}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        return 0.0


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # where it is not Linux
        Path("/proc/self/clear_refs").write_text("5")


# ------------------------------------------------------------------------------------------------------------- report


def results(reader: str, seed: int, count: int) -> Iterator[tuple[int, str, float, float]]:
    """What read_all prints, in another process; where that one ends early, or hangs, a new one goes on behind."""
    number = -len(hostile_files.CASES[reader])
    while number < count:
        command = [sys.executable, __file__, "--child", str(number), "--reader", reader, "--seed", str(seed)]
        with subprocess.Popen([*command, "--inputs", str(count)], stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                number, *row = json.loads(line)
                yield number, *row
                number += 1
        if number < count:
            yield number, f"the process ended with status {child.returncode}", 0.0, 0.0
            number += 1


def fault(number: int, what: str, seconds: float, megabytes: float) -> str:
    """Why this is not what a reader should do, or nothing. No special case may be read."""
    if not what.startswith("refused") and (number < 0 or what != "read"):
        return what
    if seconds > SECONDS or megabytes > MEGABYTES:
        return f"{seconds:.2f} s and {megabytes:.0f} MB, then {what}"
    return ""


def report(reader: str, seed: int, count: int) -> bool:
    """Print a line of the table, and the inputs that misbehave; return whether there are any."""
    rows = list(results(reader, seed, count))
    read = sum(row[1] == "read" for row in rows)
    refused = sum(row[1].startswith("refused") for row in rows)
    slowest, most = max(row[2] for row in rows), max(row[3] for row in rows)
    print(f"{reader:<12}{len(rows):>8,}{read:>10,}{refused:>10,}{slowest:>14.2f}{most:>16.1f}", flush=True)
    faults = [(row[0], what) for row in rows if (what := fault(*row))]
    for number, what in faults:
        name = list(hostile_files.CASES[reader])[number] if number < 0 else f"--seed {seed} --only {number}"
        print(f"    {reader} {name}: {what}")
    return bool(faults)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    parser.add_argument("--child", type=int, metavar="START", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        read_all(options.reader, options.seed, options.child, options.inputs)
        return 0
    if options.only is not None:
        path = Path(f"fuzz-{options.reader}-{options.seed}-{options.only}")
        path.write_bytes(mutant(options.reader, options.seed, options.only))
        print(f"{path}: {outcome(options.reader, path)}")
        return 0
    print(f"{'reader':<12}{'inputs':>8}{'read':>10}{'refused':>10}{'slowest (s)':>14}{'most (MB)':>16}")
    readers = [options.reader] if options.reader else list(READERS)
    return int(any([report(reader, options.seed, options.inputs) for reader in readers]))


if __name__ == "__main__":
    sys.exit(main())
