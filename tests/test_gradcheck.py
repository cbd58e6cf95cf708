"""The tools of proof, themselves proven: on functions whose derivative is known, and on gradients that are wrong."""

import numpy as np
import pytest

from tinycnn.gradcheck import central_difference, complex_step, relative_error


def test_complex_step_is_exact(random):
    x = random.normal(size=(3, 2))
    np.testing.assert_allclose(
        complex_step(lambda x: np.exp(np.sin(x)).sum(), x), np.exp(np.sin(x)) * np.cos(x), rtol=1e-15
    )


def test_central_difference_has_ten_digits_and_puts_back(random):
    x = random.normal(size=(3, 2))
    before = x.copy()
    np.testing.assert_allclose(
        central_difference(lambda: float(np.exp(np.sin(x)).sum()), x), np.exp(np.sin(x)) * np.cos(x), rtol=1e-10
    )
    np.testing.assert_array_equal(x, before)


def test_relative_error():
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == 0.5
    assert relative_error(np.array([0.0]), np.array([1.0])) == 1
    assert relative_error(np.array([1e-14]), np.array([-1e-14])) == 0  # both below the floor
    assert relative_error(np.array([]), np.array([])) == 0


def test_a_wrong_gradient_has_a_large_error(random):
    x, dy = random.normal(size=(4, 3)), random.normal(size=(4, 3))
    exact = complex_step(lambda x: (x**2 * dy).sum(), x)
    for wrong in (0 * x, x * dy, -2 * x * dy, 2 * x, 2 * x * dy[::-1], (2 * x * dy) / len(x)):
        assert relative_error(wrong, exact) > 0.4
    assert relative_error(2 * x * dy, exact) < 1e-14


@pytest.mark.parametrize("factor", [1.001, 1 + 1e-6])
def test_even_a_small_error_shows(random, factor):
    x = random.normal(size=5)
    assert relative_error(factor * 2 * x, complex_step(lambda x: (x * x).sum(), x)) > 1e-7
