"""The six small matrices of Winograd's minimal filtering, each as sums of rows of channels.

For the points 0, ±3/4, ±3/2 and ∞, as `winograd.py` explains. What two of the points share, sums of even and of odd
powers, is added up once.

              forward                               backward
    G         three weights -> six values           G_transposed: six sums of products -> three gradients
    Bᵀ        six inputs -> six values              B: six values of a polynomial -> its six coefficients
    Aᵀ        six products -> four outputs          A: four gradients -> six values

What this file is not: it knows nothing of images; a row is whatever stands side by side.
"""

from tinycnn.kernels.parallel import in_tasks
from tinycnn.kernels.vector import multiply_add


@in_tasks
def B_transposed(d):
    """The transpose of `B`."""
    d0, d1, d2, d3, d4, d5 = d
    even, odd = multiply_add(-9 / 4, d2, d4), multiply_add(-9 / 4, d1, d3)
    even_2, odd_2 = multiply_add(-9 / 16, d2, d4), multiply_add(-9 / 16, d1, d3)
    return (
        multiply_add(81 / 64, d0, multiply_add(-45 / 16, d2, d4)),
        multiply_add(3 / 4, odd, even),
        multiply_add(-3 / 4, odd, even),
        multiply_add(3 / 2, odd_2, even_2),
        multiply_add(-3 / 2, odd_2, even_2),
        multiply_add(81 / 64, d1, multiply_add(-45 / 16, d3, d5)),
    )


@in_tasks
def B(m):
    """The coefficients of a polynomial of degree 5, from G's values times A's."""
    m0, m1, m2, m3, m4, m5 = m
    even, even_2 = m1 + m2, m3 + m4
    odd, odd_2 = 3 / 4 * (m1 - m2), 3 / 2 * (m3 - m4)
    return (
        81 / 64 * m0,
        multiply_add(81 / 64, m5, multiply_add(-9 / 4, odd, -9 / 16 * odd_2)),
        multiply_add(-45 / 16, m0, multiply_add(-9 / 4, even, -9 / 16 * even_2)),
        multiply_add(-45 / 16, m5, odd + odd_2),
        m0 + even + even_2,
        m5,
    )


@in_tasks
def G(g):
    """g0 + g1·x + g2·x² at x = 0, ±3/4, ±3/2, divided by ∏ (x − each other of these points); and at ∞, which is g2."""
    g0, g1, g2 = g
    even, odd = multiply_add(9 / 16, g2, g0), 3 / 4 * g1
    even_2, odd_2 = multiply_add(9 / 4, g2, g0), 3 / 2 * g1
    return (
        64 / 81 * g0,
        -128 / 243 * (even + odd),
        -128 / 243 * (even - odd),
        32 / 243 * (even_2 + odd_2),
        32 / 243 * (even_2 - odd_2),
        g2,
    )


@in_tasks
def G_transposed(s):
    """The transpose of `G`."""
    s0, s1, s2, s3, s4, s5 = s
    even, odd, even_2, odd_2 = s1 + s2, s1 - s2, s3 + s4, s3 - s4
    return (
        multiply_add(64 / 81, s0, multiply_add(-128 / 243, even, 32 / 243 * even_2)),
        multiply_add(-32 / 81, odd, 16 / 81 * odd_2),
        multiply_add(8 / 27, even_2 - even, s5),
    )


@in_tasks
def A(y):
    """y0 + y1·x + y2·x² + y3·x³ at x = 0, ±3/4, ±3/2 and ∞."""
    y0, y1, y2, y3 = y
    even, odd = multiply_add(9 / 16, y2, y0), multiply_add(9 / 16, y3, y1)
    even_2, odd_2 = multiply_add(9 / 4, y2, y0), multiply_add(9 / 4, y3, y1)
    return (
        y0,
        multiply_add(3 / 4, odd, even),
        multiply_add(-3 / 4, odd, even),
        multiply_add(3 / 2, odd_2, even_2),
        multiply_add(-3 / 2, odd_2, even_2),
        y3,
    )


@in_tasks
def A_transposed(m, constant):
    """The transpose of `A`. `constant` is added to each of the four."""
    m0, m1, m2, m3, m4, m5 = m
    even, odd, even_2, odd_2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + even + even_2 + constant,
        multiply_add(3 / 4, odd, multiply_add(3 / 2, odd_2, constant)),
        multiply_add(9 / 16, even, multiply_add(9 / 4, even_2, constant)),
        multiply_add(27 / 64, odd, multiply_add(27 / 8, odd_2, m5 + constant)),
    )
