"""How good is the suite? Change one thing in the package, see whether a test fails; again and again.

    python tests/mutate.py --count 200 --seed 1 --workers 2 --out runs/mutants.csv

A mutant is one arithmetic operator, comparison, sign, constant, index or `and`/`or` in the files below replaced by
another. Each is tried in a copy of the repository, with the tests of its own file first, until one fails. What no test
notices is printed: either a test is missing, or the change changes no result (a buffer larger than needed, a limit of
when to use which of two ways). The second kind can only be told by a person.

What this file is not: run by pytest. It takes about an hour.
"""

import argparse
import ast
import csv
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
WINOGRAD = ["tests/test_convolution.py", "tests/test_together.py", "-k", "winograd or together"]
TARGETS = {  # the file: the tests that know it best, the fastest first
    "tinycnn/layers.py": ["tests/test_layers.py", "tests/test_planted_bugs.py"],
    "tinycnn/more_layers.py": ["tests/test_layers.py", "tests/test_planted_bugs.py"],
    "tinycnn/loss.py": ["tests/test_loss.py"],
    "tinycnn/ahead.py": ["tests/test_ahead.py"],
    "tinycnn/averaging.py": ["tests/test_averaging.py"],
    "tinycnn/metrics.py": ["tests/test_metrics.py"],
    "tinycnn/optim.py": ["tests/test_optim.py"],
    "tinycnn/schedules.py": ["tests/test_optim.py"],
    "tinycnn/augment.py": ["tests/test_augment.py"],
    "tinycnn/together.py": ["tests/test_together.py"],
    "tinycnn/idx.py": ["tests/test_idx.py"],
    "tinycnn/archive.py": ["tests/test_fuzz.py", "-k", "not hundreds"],
    "tinycnn/files.py": ["tests/test_fuzz.py", "-k", "not hundreds"],
    "tinycnn/pictures.py": ["tests/test_fuzz.py", "-k", "not hundreds"],
    "tinycnn/rebuild.py": ["tests/test_fuzz.py", "-k", "not hundreds"],
    "tinycnn/kernels/batch_norm.py": ["tests/test_kernels.py", "-k", "batch_norm or moments"],
    "tinycnn/kernels/convolution.py": ["tests/test_convolution.py"],
    "tinycnn/kernels/convolution_backward.py": ["tests/test_convolution.py", "tests/test_together.py"],
    "tinycnn/kernels/input_gradient.py": ["tests/test_convolution.py", "-k", "across or gathering or as_large or few"],
    "tinycnn/kernels/narrow_convolution.py": [
        "tests/test_convolution.py",
        "tests/test_tile_shape.py",
        "-k",
        "narrow or few_channels",
    ],
    "tinycnn/kernels/pooled_convolution.py": ["tests/test_together.py"],
    "tinycnn/kernels/dense.py": ["tests/test_kernels.py", "-k", "dense"],
    "tinycnn/kernels/cross_entropy.py": ["tests/test_loss.py"],
    "tinycnn/kernels/elementwise.py": [
        "tests/test_kernels.py",
        "tests/test_layers.py",
        "-k",
        "number_by or sum_of_parts or normalize",
    ],
    "tinycnn/kernels/memory.py": ["tests/test_memory.py"],
    "tinycnn/kernels/optimizers.py": ["tests/test_optim.py"],
    "tinycnn/kernels/parallel.py": ["tests/test_parallel.py", "tests/test_kernels.py", "tests/test_memory.py"],
    "tinycnn/kernels/pooling.py": ["tests/test_kernels.py", "-k", "pool"],
    "tinycnn/kernels/resampling.py": ["tests/test_augment.py"],
    "tinycnn/kernels/tile_shape.py": ["tests/test_tile_shape.py"],
    "tinycnn/kernels/waiting.py": ["tests/test_parallel.py"],
    "tinycnn/kernels/vector.py": ["tests/test_kernels.py", "tests/test_convolution.py"],
    "tinycnn/kernels/llvm.py": ["tests/test_kernels.py", "tests/test_convolution.py"],
    "tinycnn/kernels/held_rows.py": ["tests/test_convolution.py"],
    "tinycnn/kernels/winograd.py": WINOGRAD,
    "tinycnn/kernels/winograd_backward.py": WINOGRAD,
    "tinycnn/kernels/minimal_filtering.py": ["tests/test_minimal_filtering.py"],
}
OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "+"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}


def mutants(path: str) -> list[tuple[int, int, str, str]]:
    """(line, offset, old text, new text) of every change that can be made to the file."""
    text = (ROOT / path).read_text("utf-8")
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    data, found = text.encode(), []

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    def between(left, right, operator) -> None:
        old, new = OPERATORS.get(type(operator), (None, None))
        begin, end = place(left.end_lineno, left.end_col_offset), place(right.lineno, right.col_offset)
        at = data.find(old.encode(), begin, end) if old else -1
        if at >= 0:
            found.append((left.end_lineno, at, old, new))

    annotations = {id(n) for node in ast.walk(ast.parse(text)) for n in _annotations(node)}
    for node in ast.walk(ast.parse(text)):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.BinOp):
            between(node.left, node.right, node.op)
        elif isinstance(node, ast.AugAssign):
            between(node.target, node.value, node.op)
        elif isinstance(node, ast.Compare):
            for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                between(left, right, operator)
        elif isinstance(node, ast.BoolOp):
            between(node.values[0], node.values[1], node.op)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            found.append((node.lineno, place(node.lineno, node.col_offset), "-", ""))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            old = data[place(node.lineno, node.col_offset) : place(node.end_lineno, node.end_col_offset)].decode()
            new = str(not node.value) if isinstance(node.value, bool) else f"({old} + 1)"
            found.append((node.lineno, place(node.lineno, node.col_offset), old, new))
    return sorted(set(found))


def _annotations(node) -> list[ast.AST]:
    """Everything inside type annotations: changing it changes nothing."""
    places = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [n for place in places if place is not None for n in ast.walk(place)]


def try_one(copy: Path, path: str, mutant: tuple[int, int, str, str], timeout: float, own_only: bool) -> str:
    """The first test that fails with this change, "a timeout", or "" if none does."""
    _, offset, old, new = mutant
    original = (ROOT / path).read_bytes()
    (copy / path).write_bytes(original[:offset] + new.encode() + original[offset + len(old.encode()) :])
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=no"]
    try:
        for tests in (TARGETS[path],) if own_only else (TARGETS[path], ["tests", "tinycnn"]):
            run = subprocess.run(
                [*pytest, *tests], cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout
            )
            if run.returncode:
                failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return failed[0] if failed else f"exit status {run.returncode}"
    except subprocess.TimeoutExpired:
        return "a timeout"
    finally:
        (copy / path).write_bytes(original)
    return ""


def main() -> int:
    """Try a random sample; print what survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run of tests")
    parser.add_argument("--own-only", action="store_true", help="only the tests of the mutant's own file: quick")
    parser.add_argument("--out", type=Path, default=Path("runs/mutants.csv"))
    options = parser.parse_args()
    everything = [(path, mutant) for path in TARGETS for mutant in mutants(path)]
    sample = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    print(f"{len(sample)} of {len(everything)} mutants")
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))  # bytes: some mutants would take all that there is

    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as directory:
        for i in range(options.workers):
            copy = Path(directory) / str(i)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "runs", ".hypothesis"))
            copies.put(copy)

        def work(item):
            path, mutant = item
            copy = copies.get()
            killer = try_one(copy, path, mutant, options.timeout, options.own_only)
            copies.put(copy)
            line = (ROOT / path).read_text("utf-8").splitlines()[mutant[0] - 1].strip()
            row = [path, mutant[0], mutant[1], mutant[2], mutant[3], line, killer]
            print("killed  " if killer else "SURVIVED", *row[:2], f"{mutant[2]} -> {mutant[3]}", "|", line, flush=True)
            return row

        with ThreadPoolExecutor(options.workers) as pool:
            rows = list(pool.map(work, sample))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "line", "offset", "old", "new", "source", "killed by"], *rows])
    killed = sum(bool(row[-1]) for row in rows)
    print(f"{killed} of {len(rows)} killed ({killed / len(rows):.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
