"""What all tests share: hypothesis without a time limit (a kernel's first use compiles it), and the rule for skips.

In CI (the environment variable CI is set) a skipped test is a failure, unless its reason is one of these.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import settings
from small_mnist import bright_quarters, write_files

from tinycnn.kernels import parallel

os.environ["no_proxy"] = "127.0.0.1"  # where the servers of the tests are, in this process or in another one

settings.register_profile("tinycnn", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.load_profile("tinycnn")


@pytest.fixture
def random() -> np.random.Generator:
    """The same random numbers at every run."""
    return np.random.default_rng(20)


@pytest.fixture(scope="session", autouse=True)
def kernels_get_only_contiguous_arrays() -> Iterator[None]:
    """And aligned ones. `run` takes its callers' word for it; here it asks."""

    def id_of(array: np.ndarray) -> int:
        assert array.flags.c_contiguous
        assert array.flags.aligned
        return id(array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "id", id_of, raising=False)
        yield


@pytest.fixture
def at_threads() -> Iterator[Callable]:
    """at_threads(n, f): what f() returns when Numba uses n threads."""
    all_threads = numba.get_num_threads()

    def run(threads: int, f: Callable):
        if threads > numba.config.NUMBA_NUM_THREADS:
            pytest.skip("this machine has one CPU")
        numba.set_num_threads(threads)
        return f()

    yield run
    numba.set_num_threads(all_threads)


@pytest.fixture
def script(monkeypatch) -> Callable:
    """script("predict") is the module scripts/predict.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """200 and 50 noisy images, 12 × 13, of four classes."""
    arrays = bright_quarters(np.random.default_rng(0), (200, 50), (12, 13), darkness=60, brightness=150)
    directory = tmp_path_factory.mktemp("data")
    write_files(directory, arrays)
    return directory


@pytest.fixture
def options(data_dir, tmp_path):
    """Options for a job of a second. classic is the only preset whose network fits 12 × 13 pixels."""
    return ["--preset", "classic", "--data-dir", str(data_dir), "--out", str(tmp_path / "out"), "--batch-size", "20"]


ALLOWED_SKIPS = "this machine has one CPU", "compiles for x86 only"  # what can't be tried there


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    unexpected = [reason for reason in reasons if not any(allowed in reason for allowed in ALLOWED_SKIPS)]
    if os.environ.get("CI") and unexpected:
        reporter.write_line("skipped, which is a failure in CI: " + "; ".join(unexpected), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
