"""Proof that a backward is right: its gradients beside derivatives taken from the forward alone.

    print(check_gradients(Conv2D(3, kernel_size=3), x))          any layer, model, or object with their methods

Two ways to differentiate a function f at x in direction v, knowing only how to call it (`complex_step` is for the
formulas in reference.py, the rest of this file takes central differences, of four points instead of two):

    central difference   (f(x + h·v) − f(x − h·v)) / 2h    any f; the difference of near equals loses many digits
    complex step         Im f(x + i·h·v) / h               nothing is subtracted, so exact to the last digits with
                                                           h = 1e-30; but f must take complex numbers, as the
                                                           functions of tinycnn/reference.py do

A function with many outputs is first weighted to one number Σ dy · f(x) with random dy. Random, since with dy of ones
a softmax backward of zeros would pass, and so would a convolution's that takes dy[n, j, i] for dy[n, i, j].

What this file is not: a part of training; nothing there imports it.

Source of the complex step: Squire & Trapp, Using complex variables to estimate derivatives of real functions (1998).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinycnn.arguments import whole
from tinycnn.layers import Layer, Parameter
from tinycnn.model import Sequential
from tinycnn.tables import table


def complex_step(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, h: float = 1e-30) -> np.ndarray:
    """The gradient of a scalar function f at x (any shape, float64), element by element, from calls with complex x.

    >>> complex_step(lambda x: (x**3).sum(), np.array([1.0, 2.0]))
    array([ 3., 12.])
    """
    gradient = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        z = x.astype(np.complex128)
        z[index] += 1j * h
        gradient[index] = np.imag(f(z)) / h
    return gradient


def central_difference(f: Callable[[], float], x: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """The gradient of f() by the array x that f reads. x is changed one element at a time and put back.

    It uses four points instead of two, (8 [f(h) − f(−h)] − [f(2h) − f(−2h)]) / 12h, whose error is of order h⁴: with
    float64, about ten digits remain where f is smooth. Where it may not be, `check_gradients` looks more closely.

    >>> x = np.array([1.0, 2.0])
    >>> central_difference(lambda: float((x**3).sum()), x).round(9)
    array([ 3., 12.])
    """
    gradient = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        original = x[index]
        values = []
        for steps in (-2, -1, 1, 2):
            x[index] = original + steps * h
            values.append(f())
        x[index] = original
        gradient[index] = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)
    return gradient


def relative_error(a: np.ndarray, b: np.ndarray, floor: float = 1e-12) -> float:
    """The largest |a − b| / max(|a|, |b|) over all elements; two numbers below `floor` count as equal.

    NaN if an element is NaN, which is below no tolerance. Raises ValueError for arrays of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"arrays of different shapes, {a.shape} and {b.shape}")
    size = np.maximum(np.abs(a), np.abs(b))
    return float(np.max(np.abs(a - b) / np.maximum(size, floor), initial=0.0, where=~(size <= floor)))


# ------------------------------------------------------------------------------------------------------ the whole check

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # the smaller ones only near a kink, and where f bends sharply
EPSILON = np.finfo(np.float64).eps
RIGHT, WRONG, BETWEEN, OUTSIDE = "right", "wrong", "between a kink's slopes", "outside them"  # what a derivative can be


@dataclass
class Row:
    """How an array's gradient did: the worst of the elements (and directions) that were looked at."""

    name: str
    size: int
    checked: int
    error: float = 0.0
    where: str = ""
    analytic: float = 0.0
    numeric: float = 0.0
    kinks: int = 0
    undecided: int = 0  # of them
    passed: bool = True


@dataclass
class Report:
    """What `check_gradients` found. It prints as a table; `passed` says whether all is well."""

    subject: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    reason: str = ""  # for the tolerance

    @property
    def passed(self) -> bool:
        """Whether every gradient and every promise held."""
        return not self.faults and all(row.passed for row in self.rows)

    def failures(self) -> list[str]:
        """The arrays whose gradients are wrong, and the broken promises."""
        return [row.name for row in self.rows if not row.passed] + self.faults

    def __str__(self) -> str:
        cells = [("array", "elements", "worst error", "where", "analytic", "numeric", "")]
        for r in self.rows:
            elements = f"{r.checked} of {r.size}" + (f", kinks met: {r.kinks}" if r.kinks else "")
            verdict = "pass" if r.passed else "FAIL"
            cells.append(
                (r.name, elements, f"{r.error:.1e}", r.where, f"{r.analytic:.9g}", f"{r.numeric:.9g}", verdict)
            )
        lines = [table(cells)]
        kinks = sum(r.kinks for r in self.rows)
        if kinks:
            lines.append(
                f"At {kinks} kinks (a ReLU at 0, tied maxima) any slope from the left to the right one will do."
            )
        if undecided := sum(r.undecided for r in self.rows):
            lines.append(
                f"At {undecided} of them the slopes of the last layer's output don't tell what will do: "
                "so each layer was checked alone as well."
            )
        lines += [f"FAIL: {fault}" for fault in self.faults]
        verdict = "passed" if self.passed else "FAILED"
        reason = f": {self.reason}" if self.reason else ""
        lines.append(f"{self.subject} {verdict} with tolerance {self.tolerance:g}{reason}.")
        return "\n".join(lines)


def check_gradients(subject: Any, x: np.ndarray, tolerance: float = 1e-7, samples: int = 100, seed: int = 0) -> Report:
    """Compare every gradient of a layer or model with differences of its forward, and try the promises of a layer.

    subject: a layer (alone or in a model), a `Sequential`, or any object with forward(x, training) -> y, backward(dy)
    -> dx and, if it learns, parameters() -> a list of `Parameter`. It is copied, in float64, and left alone; the copy's
    parameters are moved a little at random, because an error can hide at a special start (gamma = 1, bias = 0).
    x: the input to check at.   tolerance: how far two derivatives may differ, relative to the larger one.
    samples: of an array with more elements only so many are looked at, drawn at random; and always two directions in
    which all elements move at once: a random one, and all by the same amount, in which tied maxima stay tied.
    A model whose output doesn't tell what will do at a kink passes there if each of its layers does alone.

    >>> print(check_gradients(Layer(), np.ones((2, 3))))
    Traceback (most recent call last):
    ...
    TypeError: Layer has no forward of its own
    """
    random = np.random.default_rng(seed)
    name = getattr(subject, "name", "") or type(subject).__name__
    reason = "differences in float64 keep about ten digits, and a wrong term changes the first ones"
    report = Report(name, tolerance, reason=reason)
    x = np.array(x, np.float64)
    if not x.size:
        raise ValueError(f"an input of shape {x.shape} has no numbers: nothing would be checked")
    whole(samples, "samples")
    copied = _in_dtype(subject, x, np.float64)
    parameters = _parameters(copied)
    for p in parameters:
        p.value += 0.3 * random.standard_normal(p.value.shape)
    forward = _repeatable(copied)
    y = forward(x.copy())
    if not isinstance(y, np.ndarray):
        raise TypeError(f"{name}: its forward must return an array, got {y!r}")
    dy = _cotangent(y.shape, random)
    gradients = _try_promises(copied, forward, x, dy, report)
    report.faults += _dtype_faults(subject, x)
    if gradients is None:
        return report

    several = len(getattr(copied, "layers", ())) > 1
    report.rows += _rows(copied, forward, x, dy, gradients, tolerance, samples, random, several)
    if any(row.undecided for row in report.rows):
        report.rows += _rows_of_each_layer(copied.layers, x, tolerance, samples, random)
    return report


def _rows_of_each_layer(layers, x, tolerance, samples, random) -> list[Row]:
    """The rows of each layer alone, at the input that it gets from the one before it."""
    result = []
    for layer in layers:
        forward = _repeatable(layer)
        y = forward(x.copy())
        dy = _cotangent(y.shape, random)
        gradients = [layer.backward(dy), *(p.grad.copy() for p in _parameters(layer))]
        for row in _rows(layer, forward, x, dy, gradients, tolerance, samples, random, several=False):
            row.name = f"{getattr(layer, 'name', '') or type(layer).__name__} alone, {row.name}"
            result.append(row)
        x = y
    return result


def _rows(subject, forward, x, dy, gradients, tolerance, samples, random, several) -> list[Row]:
    """A row for the input, and one for each parameter."""
    arrays = [("input", x), *((p.name, p.value) for p in _parameters(subject))]
    return [
        _check_array(name, array, gradient, lambda: forward(x), dy, tolerance, samples, random, several)
        for (name, array), gradient in zip(arrays, gradients, strict=True)
        if gradient.shape == array.shape
    ]


def _cotangent(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """What the output is weighted with."""
    return random.standard_normal(shape)


def _check_array(name, array, gradient, output, dy, tolerance, samples, random, several) -> Row:
    """The row of one array, which `output` reads. Its elements are changed and put back.

    several: whether the output is that of several layers. Where two of them have a kink, one may follow its left slope
    and the other its right one, and together they leave the slopes between which the output moves.
    """
    chosen = np.sort(random.permutation(array.size)[:samples])
    row = Row(name, array.size, len(chosen))
    original = array.copy()
    for where, direction in _directions(array.shape, chosen, random):

        def moved(distance, direction=direction):
            array[...] = original + distance * direction
            y = np.array(output())
            array[...] = original
            return y

        analytic = float((gradient * direction).sum())
        rounding = 8 * EPSILON * float(np.abs(gradient * direction).sum())
        numeric, error, verdict = _compare(analytic, rounding, moved, dy, tolerance)
        undecided = verdict == OUTSIDE and several
        row.kinks += verdict in (BETWEEN, OUTSIDE)
        row.undecided += undecided
        passed = verdict in (RIGHT, BETWEEN) or undecided
        if undecided:
            error = 0.0
        if not row.where or (passed, -error) < (row.passed, -row.error):  # the worst: a failure before any pass
            row.error, row.where, row.analytic, row.numeric = error, where, analytic, numeric
        row.passed &= passed
    return row


def _directions(shape, chosen, random) -> Iterator[tuple[str, np.ndarray]]:
    """Along each of the chosen elements alone; then two in which all elements move at once."""
    for index in np.stack(np.unravel_index(chosen, shape), axis=1):
        direction = np.zeros(shape)
        direction[tuple(index)] = 1
        yield str(index.tolist()), direction
    if len(chosen):
        yield "all equally", np.ones(shape)
        yield "all at random", random.standard_normal(shape)


def _compare(analytic, rounding, moved, dy, tolerance) -> tuple[float, float, str]:
    """(the derivative of Σ dy · moved(distance) at 0, the error of the analytic one, what to think of it).

    If the slopes to the left and to the right of the place agree, and a step before found the same derivative, it is
    that. If not, a kink is near or the function bends sharply, and smaller steps may do. A kink at the very place
    stays: then each output may follow its left slope, its right one, or any in between.
    """
    at_zero, before = moved(0), np.inf
    for h in STEPS:
        back_2, back, ahead, ahead_2 = (moved(s * h) for s in (-2, -1, 1, 2))
        numeric = float(((8 * (ahead - back) - (ahead_2 - back_2)) * dy).sum() / (12 * h))
        # What the rounding of the outputs that moved can amount to; or of all, if what would move them cancels out.
        have_moved = ahead != back if np.any(ahead != back) else True
        noise = 8 * EPSILON * float((np.abs(at_zero * dy) * have_moved).sum()) / h + rounding
        size = max(abs(analytic), abs(numeric))
        error = abs(analytic - numeric) / size if size > noise else 0.0
        if np.isnan(size):
            return numeric, np.inf, WRONG
        if abs(analytic - numeric) <= tolerance * size + noise:
            return numeric, error, RIGHT
        # One-sided: [4 (f(h) − f(0)) − (f(2h) − f(0))] / 2h, whose error is of order h².
        right = (4 * (ahead - at_zero) - (ahead_2 - at_zero)) * dy / (2 * h)
        left = (4 * (at_zero - back) - (at_zero - back_2)) * dy / (2 * h)
        smooth = np.abs(right - left).sum() <= 1e-6 * abs(numeric) + noise
        if smooth and abs(numeric - before) <= 0.1 * min(abs(numeric - analytic), abs(numeric)) + noise:
            return numeric, error, WRONG
        before = numeric
    slack = noise + tolerance * abs(analytic)
    inside = np.minimum(left, right).sum() - slack <= analytic <= np.maximum(left, right).sum() + slack
    return (numeric, 0.0, BETWEEN) if inside else (numeric, error, OUTSIDE)


def _try_promises(subject, forward, x, dy, report) -> list[np.ndarray] | None:
    """Run it twice, note every broken promise; the gradients by x and the parameters, or None if there are none."""
    parameters = _parameters(subject)
    inputs = {"the input": x, "dy": dy, **{p.name: p.value for p in parameters}}
    before = {name: array.copy() for name, array in inputs.items()}

    def run(x, dy):
        return _results(subject, forward(x), subject.backward(dy))

    first = run(x, dy)
    if not isinstance(first["dx"], np.ndarray):
        report.faults.append(f"backward returned {type(first['dx']).__name__}, not an array")
        return None
    copies = {name: array.copy() for name, array in first.items()}
    report.faults += [f"forward or backward changed {n}" for n, a in inputs.items() if not _same(a, before[n])]
    run(x[::-1] + 1, -2 * dy)
    overwritten = [name for name in ("the output", "dx") if not _same(first[name], copies[name])]
    report.faults += [f"{name} was overwritten by the next call" for name in overwritten]
    again = run(x, dy)
    differing = [name for name in copies if not _same(again[name], copies[name])]
    report.faults += [f"{name} differs when the same is computed again" for name in differing]
    gradients = list(copies.values())[1:]
    for array, (name, gradient) in zip((x, *(p.value for p in parameters)), list(copies.items())[1:], strict=True):
        if gradient.shape != array.shape:
            report.faults.append(f"{name} has shape {gradient.shape}, its array {array.shape}")
    return gradients


def _results(subject, y, dx) -> dict[str, np.ndarray]:
    """What forward and backward left, by what errors call it."""
    return {"the output": y, "dx": dx, **{f"the gradient of {p.name}": p.grad for p in _parameters(subject)}}


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


def _dtype_faults(subject, x) -> list[str]:
    """Whether float32 stays float32 and float64 float64."""
    faults = []
    for dtype in (np.float32, np.float64):
        copied = _in_dtype(subject, x, dtype)
        y = copied.forward(x.astype(dtype), True)
        results = _results(copied, y, copied.backward(np.ones(y.shape, dtype)))
        faults += [
            f"{name} is {array.dtype} for an input of {np.dtype(dtype)}"
            for name, array in results.items()
            if getattr(array, "dtype", dtype) != dtype
        ]
    return faults


def _in_dtype(subject, x: np.ndarray, dtype):
    """A copy of it in this dtype; a layer that has not been built yet is built for inputs like x."""
    subject = copy.deepcopy(subject)
    if isinstance(subject, Layer) and not subject.name:
        Sequential([subject], x.shape[1:])
    for owner in _owners(subject):
        for name, value in vars(owner).items():
            if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
                setattr(owner, name, value.astype(dtype))
            elif isinstance(value, np.dtype):
                setattr(owner, name, np.dtype(dtype))
    for p in _parameters(subject):
        p.value, p.grad = p.value.astype(dtype), np.zeros(p.grad.shape, dtype)
    return subject


def _repeatable(subject) -> Callable[[np.ndarray], np.ndarray]:
    """x -> forward(x, training=True), with every random generator at the place where it is now."""
    generators = [v for owner in _owners(subject) for v in vars(owner).values() if isinstance(v, np.random.Generator)]
    states = [g.bit_generator.state for g in generators]

    def forward(x):
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
        return subject.forward(x, True)

    return forward


def _parameters(subject) -> list[Parameter]:
    return subject.parameters() if hasattr(subject, "parameters") else []


def _owners(subject) -> Iterator[Any]:
    """The object, and its layers if it has some."""
    yield subject
    for layer in getattr(subject, "layers", ()):
        yield from _owners(layer)
