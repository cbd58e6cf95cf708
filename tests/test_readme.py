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
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), {})
        assert printed.getvalue().split("\n")[:-1] == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)


def test_files_are_there():
    for path in re.findall(r"`((?:tinycnn|scripts|tests)/[\w/.]+)`", README) + re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_every_module_is_in_the_reading_order():
    table = README.split("## Read it in this order")[1].split("\n## ")[0]
    for module in (ROOT / "tinycnn").glob("*.py"):
        assert module.name in table or module.name == "__init__.py", module.name
