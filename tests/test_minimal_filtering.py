"""Winograd's six matrices are those of interpolation through six points, and these points round better than usual."""

import numpy as np
import pytest

from tinycnn.kernels import minimal_filtering

POINTS, USUAL_POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2), (0, 1, -1, 2, -2)  # and ∞


def matrices(points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A and G evaluate polynomials of degree 3 and 2, B interpolates one of degree 5; what B divides by is in G."""
    distances = np.array([*(np.prod([x - other for other in points if other != x]) for x in points), 1])
    infinity = [np.eye(count)[-1] for count in (4, 3, 6)]  # where a polynomial's value is its last coefficient
    a, g, values = (np.vstack([np.vander(points, len(row), increasing=True), row]) for row in infinity)
    return a, g / distances[:, None], np.linalg.inv(values) * distances


def matrix_of(function, *constant: float) -> np.ndarray:
    """The matrix that the function multiplies by: what it makes of each unit vector is a column."""
    counts = {"A": 4, "G": 3, "G_transposed": 6, "A_transposed": 6, "B": 6, "B_transposed": 6}
    units = np.eye(counts[function.py_func.__name__])
    return np.array([function.py_func(tuple(unit), *constant) for unit in units]).T


@pytest.fixture
def numbers_for_rows(monkeypatch):
    monkeypatch.setattr(minimal_filtering, "multiply_add", lambda x, row, total: x * row + total)


def test_the_matrices_interpolate(numbers_for_rows):
    a, g, b = matrices(POINTS)
    close = {"rtol": 1e-14, "atol": 1e-14}
    np.testing.assert_allclose(matrix_of(minimal_filtering.A), a, **close)
    np.testing.assert_allclose(matrix_of(minimal_filtering.G), g, **close)
    np.testing.assert_allclose(matrix_of(minimal_filtering.B), b, **close)
    np.testing.assert_allclose(matrix_of(minimal_filtering.A_transposed, 0.0), a.T, **close)
    np.testing.assert_allclose(matrix_of(minimal_filtering.G_transposed), g.T, **close)
    np.testing.assert_allclose(matrix_of(minimal_filtering.B_transposed), b.T, **close)
    assert minimal_filtering.A_transposed.py_func((0.0,) * 6, 5.0) == (5.0,) * 4
    for weights in np.eye(3):
        for dy in np.eye(4):  # B [(G g) ⊙ (A dy)]: six multiplications for the twelve of the product
            np.testing.assert_allclose(b @ ((g @ weights) * (a @ dy)), np.convolve(weights, dy), **close)


def test_these_points_round_better_than_the_usual_ones(random):
    """As `winograd.py` says: 0.6 times on average, 0.3 times at worst, and about twice the direct sum's errors."""
    x, w = random.normal(size=(300, 6, 6, 32)).astype(np.float32), random.normal(size=(3, 3, 32, 16)).astype(np.float32)
    exact, direct = (direct_sum(x.astype(dtype), w.astype(dtype)) for dtype in (np.float64, np.float32))
    ours, usual = (patches(x, w, *(m.astype(np.float32) for m in matrices(p))) for p in (POINTS, USUAL_POINTS))
    assert ours.dtype == usual.dtype == direct.dtype == np.float32
    errors = [np.abs(y - exact) for y in (ours, usual, direct)]
    ours, usual, direct = ((error.mean(), error.max()) for error in errors)
    assert 0.5 < ours[0] / usual[0] < 0.7
    assert 0.2 < ours[1] / usual[1] < 0.4
    assert 1.7 < ours[0] / direct[0] < 2.7


def direct_sum(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The 4×4 outputs of each patch (N, 6, 6, C), one term after the other."""
    y = np.zeros((len(x), 4, 4, w.shape[3]), x.dtype)
    for a, b, c in np.ndindex(w.shape[:3]):
        y += x[:, a : a + 4, b : b + 4, c, None] * w[a, b, c]
    return y


def patches(x: np.ndarray, w: np.ndarray, a: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A, the sum over channels one term after the other."""
    u = np.einsum("si,ijco,tj->stco", g, w, g, optimize=True)
    v = np.einsum("is,nijc,jt->nstc", b, x, b, optimize=True)
    m = np.zeros((*v.shape[:3], w.shape[3]), x.dtype)
    for c in range(x.shape[3]):
        m += v[..., c, None] * u[:, :, c]
    return np.einsum("si,nsto,tj->nijo", a, m, a, optimize=True)
