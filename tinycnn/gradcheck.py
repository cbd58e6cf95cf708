"""Proof that a backward is right: its gradients beside derivatives taken from the forward alone.

Two ways to differentiate a function f at x in direction v, knowing only how to call it:

    central difference   (f(x + h·v) − f(x − h·v)) / 2h    any f; the difference of near equals loses many digits
    complex step         Im f(x + i·h·v) / h               nothing is subtracted, so exact to the last digits with
                                                           h = 1e-30; but f must take complex numbers, as the
                                                           functions of tinycnn/reference.py do

A function with many outputs is first weighted to one number Σ dy · f(x) with random dy. Random, since with dy of ones
a softmax backward of zeros would pass, and so would a convolution that mixes up height and width.

Source of the complex step: Squire & Trapp, Using complex variables to estimate derivatives of real functions (1998).
"""

from collections.abc import Callable

import numpy as np


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
    float64, about ten digits remain where f is smooth.

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
    """The largest |a − b| / max(|a|, |b|) over all elements; two numbers below `floor` count as equal."""
    size = np.maximum(np.abs(a), np.abs(b))
    return float(np.max(np.abs(a - b) / np.maximum(size, floor), initial=0.0, where=size > floor))
