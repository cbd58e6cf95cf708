"""The main job as a command, and what it has written. (The data that it is tried on: `data_dir` in conftest.py.)"""

import csv
import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_mnist.py"
main = runpy.run_path(str(SCRIPT))["main"]


def metrics_of(out) -> dict:
    return json.loads((Path(out) / "metrics.json").read_text())


def history_of(out) -> list[dict]:
    with open(Path(out) / "history.csv", newline="") as file:
        return list(csv.DictReader(file))
