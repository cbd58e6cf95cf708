"""The README keeps its word: its code runs and prints what it says, and the files it names are there."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_blocks_run_and_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    names = {}  # a later block may use what an earlier one has made
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), names)
        assert printed.getvalue().split("\n")[:-1] == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)


def test_files_are_there():
    for path in re.findall(r"`((?:tinycnn|scripts|tests)/[\w/.]+)`", README) + re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / path).exists() or path.endswith("__pycache__"), path  # that is where Python may put it


def test_every_module_is_in_the_reading_order():
    table = README.split("## Read it in this order")[1].split("\n## ")[0]
    for module in (ROOT / "tinycnn").rglob("*.py"):
        assert f"`{module.relative_to(ROOT).as_posix()}`" in table or module.name == "__init__.py", module


def test_tests_that_are_cited_are_there():
    """`tests/file.py::test_name`, in the README and in the docstrings of the package and the scripts."""
    texts = [README, *(p.read_text("utf-8") for d in ("tinycnn", "scripts") for p in (ROOT / d).rglob("*.py"))]
    cited = [pair for text in texts for pair in re.findall(r"`(tests/\w+\.py)::(\w+)`", text)]
    assert len(cited) >= 7
    for file, name in cited:
        assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8"), (file, name)


def test_line_counts_are_true_and_the_core_stays_short():
    """The reading order names each file's length; the five files of the core have at most 900 lines in all."""
    table = README.split("## Read it in this order")[1].split("\n## ")[0]
    counts = {name: int(lines) for name, lines in re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", table, re.MULTILINE)}
    actual = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in counts}
    assert counts == actual
    core = [f"tinycnn/{name}.py" for name in ("reference", "layers", "loss", "optim", "model")]
    assert sum(actual[name] for name in core) <= 900
