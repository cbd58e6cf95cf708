"""What all tests share: hypothesis without a time limit, since the first use of a kernel compiles it."""

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("tinycnn", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.load_profile("tinycnn")


@pytest.fixture
def random() -> np.random.Generator:
    """The same random numbers at every run."""
    return np.random.default_rng(20)
