"""Check every gradient of tinycnn, and see the check catch mistakes.

python scripts/check_gradients.py                       every layer, the loss, the optimizers and the presets
python scripts/check_gradients.py --list                the mistakes that can be planted
python scripts/check_gradients.py --break NAME          plant one of them and see it caught
python scripts/check_gradients.py --plot FILE           draw why the complex step is exact and a difference is not
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from gradient_checks import CHECKS
from planted_bugs import BUGS, Bug

from tinycnn import command_line, reference
from tinycnn.gradcheck import Report


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; the exit status is 0 if all is as it should be."""
    options = parser().parse_args(arguments)
    bugs = {bug.name: bug for bug in BUGS}
    if options.list:
        for bug in BUGS:
            print(f"{bug.name:<38}{bug.does}")
        return 0
    if options.plot:
        from tinycnn import plots  # not before it is needed: it takes long to load

        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plots.save(plots.derivative_errors(*step_sizes_and_errors()), options.plot)
        print(f"drawn in {options.plot}")
        return 0
    if options.bug is not None:
        if options.bug not in bugs:
            print(f"there is no bug {options.bug!r}; --list shows them", file=sys.stderr)
            return 2
        return show(bugs[options.bug])
    return check_everything()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = result.add_mutually_exclusive_group()
    what.add_argument("--break", dest="bug", metavar="NAME", help="plant this bug and show the check catching it")
    what.add_argument("--list", action="store_true", help="list the bugs")
    what.add_argument("--plot", type=Path, metavar="FILE", help="draw error against step size as PNG")
    return result


def check_everything() -> int:
    """Every check's table."""
    failed = []
    for name, check in CHECKS.items():
        report = check()
        print(f"\n{name}\n{report}")
        if not report.passed:
            failed.append(name)
    print(f"\n{len(CHECKS) - len(failed)} of {len(CHECKS)} checks passed" + "".join(f"; FAILED: {f}" for f in failed))
    return 1 if failed else 0


def show(bug: Bug) -> int:
    """The check with the bug in place."""
    print(f"{bug.name}\n  what it does    {bug.does}\n  how it shows    {bug.shows}\n")
    with bug.planted():
        report = CHECKS[bug.check]()
    print(report)
    caught = was_caught(bug, report)
    print(f"\n{'caught' if caught else 'NOT CAUGHT'} by the check of {bug.check}: {'; '.join(report.failures())}")
    return 0 if caught else 1


def was_caught(bug: Bug, report: Report) -> bool:
    """Whether it failed by what the bug breaks."""
    return any(failure.startswith(bug.caught_by) for failure in report.failures())


def step_sizes_and_errors() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The relative error of the derivative of a softmax cross-entropy, by step size and method."""
    logits, targets = np.array([[1.0, -0.5, 2.0]]), np.array([[0.0, 1.0, 0.0]])
    exact = reference.softmax_cross_entropy_backward(logits, targets)[0, 0]

    def loss(change):
        return reference.softmax_cross_entropy(logits + change * np.array([[1.0, 0.0, 0.0]]), targets)

    steps = 10.0 ** np.arange(0, -16.5, -0.5)
    slopes = {
        "one-sided difference": [(loss(h) - loss(0)) / h for h in steps],
        "central difference": [(loss(h) - loss(-h)) / (2 * h) for h in steps],
        "complex step": [np.imag(loss(1j * h)) / h for h in steps],
    }
    return steps, {name: np.abs(np.array(values) / exact - 1) for name, values in slopes.items()}


if __name__ == "__main__":
    command_line.run(main)
