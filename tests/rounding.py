"""What the kernels' tests share: how far a sum may be off, and the sizes they draw from.

A kernel is compiled for a tile shape. So numbers of channels and filters are few, one for each kind; the other sizes
are drawn freely.
"""

import numpy as np
from hypothesis import strategies as st

DTYPES = [np.float64, np.float32]
CHANNELS = st.sampled_from([1, 3, 8, 33])  # one, odd, half a vector of float32, a bit over two
FILTERS = st.sampled_from([1, 8, 17, 65])  # and a bit over one, and over a whole tile
BATCHES = st.sampled_from([1, 2, 3, 9])  # below and above the number of parts


def rounding_bound(terms: int, magnitude: np.ndarray, dtype) -> np.ndarray:
    """γ_k · Σ|x||w|: what a sum of k products may be off by, in any order of summation (Higham, 2002, section 3.1)."""
    unit = np.finfo(dtype).eps / 2
    return (terms + 2) * unit / (1 - (terms + 2) * unit) * magnitude + np.finfo(dtype).tiny


def assert_within(actual, exact, terms, magnitude):
    assert actual.shape == exact.shape
    error = np.abs(actual.astype(np.float64) - exact)
    assert (error <= rounding_bound(terms, magnitude, actual.dtype)).all()
