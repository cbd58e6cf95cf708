"""Every classic mistake is caught, by the check that is said to catch it; and without a mistake all checks pass."""

import importlib
import re
import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
sys.path.insert(0, SCRIPTS)
check_gradients = importlib.import_module("check_gradients")
sys.path.remove(SCRIPTS)
BUGS, CHECKS = check_gradients.BUGS, check_gradients.CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_all_is_well(name):
    report = CHECKS[name]()
    assert report.passed, str(report)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bug_is_caught(bug):
    """By the array or the promise that it breaks; and afterwards it is gone."""
    with bug.planted():
        report = CHECKS[bug.check]()
    assert check_gradients.was_caught(bug, report), str(report)
    assert CHECKS[bug.check]().passed


def test_there_are_many_and_each_has_a_name_of_its_own():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 25
    assert all(re.fullmatch(r"[a-z0-9-]+", bug.name) for bug in BUGS)  # to be typed into any shell


def test_the_script_lists_breaks_and_draws(capsys, tmp_path):
    assert check_gradients.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [bug.name for bug in BUGS]
    assert check_gradients.main(["--break", "relu-lets-all-through"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "caught by the check of relu: input" in printed
    assert check_gradients.main(["--break", "no-such-bug"]) == 2
    assert check_gradients.main(["--plot", str(tmp_path / "errors.png")]) == 0
    assert (tmp_path / "errors.png").read_bytes()[:4] == b"\x89PNG"
