"""Trainings killed at random moments, also while they write, and resumed until they are done, end like one left alone.

    python tests/kill_and_resume.py --runs 30

Each run is a real process of scripts/train_mnist.py on small data, killed with SIGKILL up to five times. At the end its
model, history and metrics must equal those of a run that nobody disturbed, bit for bit; only times may differ.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from small_mnist import bright_quarters, write_files

ROOT = Path(__file__).parents[1]
# It saves after nearly every step, so that there is much to resume from, and writing is always near.
# What a shell starts in the background ignores Ctrl-C: not here.
CHILD = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv.pop(1))
import train_mnist
from tinycnn import experiment
experiment.SAVE_EVERY = 0.01
sys.exit(train_mnist.main())
"""
TIMES = ("seconds", "seconds_total", "seconds_training", "images_per_second")


def main() -> int:
    """The exit status is 1 if a run did not end like the one left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        identical = kill_and_resume(Path(directory), options.runs, options.seed)
    print(f"{identical} of {options.runs} identical")
    return 0 if identical == options.runs else 1


def kill_and_resume(directory: Path, runs: int, seed: int) -> int:
    """How many of the runs ended like the one left alone."""
    random = np.random.default_rng(seed)
    write_files(directory / "data", bright_quarters(random))
    undisturbed = directory / "undisturbed"
    started = time.monotonic()
    assert train(directory, undisturbed).wait() == 0
    seconds = time.monotonic() - started
    print(f"left alone, a run takes {seconds:.1f} s")
    identical = 0
    for number in range(runs):
        out = directory / f"run{number}"
        kills = [kill(directory, out, seconds, random) for _ in range(random.integers(1, 6))]
        assert train(directory, out).wait() == 0, f"run {number} could not be resumed"
        same = results(out) == results(undisturbed)
        identical += same
        print(f"run {number}: {', '.join(kills)}; then {'identical' if same else 'DIFFERENT'}", flush=True)
    return identical


def train(directory: Path, out: Path, **how) -> subprocess.Popen:
    """A training as a process of its own, resumed if there is what to resume."""
    what = ["--preset", "standard", "--epochs", "3", "--batch-size", "16", "--validation", "50"]
    where = ["--data-dir", str(directory / "data"), "--out", str(out), "--quiet", "--resume"]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, ROOT / "scripts", *what, *where], stdout=subprocess.DEVNULL, **how
    )


def kill(directory: Path, out: Path, seconds: float, random: np.random.Generator) -> str:
    """Start or resume the training and kill it, at a random moment or in the middle of writing; says when."""
    process = train(directory, out)
    if random.random() < 0.5:
        time.sleep(random.uniform(0.3, 1.1) * seconds)
    else:
        writes = random.integers(1, 30)
        while process.poll() is None and writes:
            if any(out.glob(".*.part")):
                writes -= 1
            time.sleep(random.uniform(0, 0.002))
    if process.poll() is not None:
        return "had ended"
    process.kill()
    process.wait()
    return "killed in a write" if any(out.glob(".*.part")) else "killed"


def results(out: Path) -> tuple[bytes, list[dict], dict]:
    """Everything a training leaves but times."""
    with open(out / "history.csv", newline="", encoding="utf-8") as file:
        history = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    return (out / "model.npz").read_bytes(), history, {k: v for k, v in metrics.items() if k not in TIMES}


if __name__ == "__main__":
    sys.exit(main())
