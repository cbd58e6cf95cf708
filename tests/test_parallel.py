"""`run` shares a task's parts out: each is done, none is done twice, whoever does it.

What this file is not: the proof that results don't depend on the threads; every kernel's own tests have that.
"""

import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

from tinycnn.kernels import waiting
from tinycnn.kernels.parallel import numbers, run, task


@task(np.dtype(np.float32), np.dtype(np.float32))
def note(part, sizes, visits, turns):
    parts, once = numbers(sizes, 2)
    visits[part] += once
    turns[part] = turns[parts]  # of all: how many came before (but several threads may count at the same time)
    turns[parts] += 1


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_part_is_done_once(at_threads, parts, threads):
    visits = np.zeros(parts, np.float32)

    def many_times():
        for _ in range(300):
            run(note, parts, (parts, 3), visits, np.zeros(parts + 1, np.float32))

    at_threads(threads, many_times)
    np.testing.assert_array_equal(visits, 3 * 300)


def test_one_thread_takes_the_parts_in_their_order(at_threads):
    """So it finds in its cache what it has just written."""
    turns = np.zeros(9, np.float32)
    at_threads(1, lambda: run(note, 8, (8, 3), np.zeros(8, np.float32), turns))
    np.testing.assert_array_equal(turns, [*range(8), 8])


PATIENCE = 10**9  # looks at what another thread is to do: some seconds


@task(np.dtype(np.float64), np.dtype(np.float64))
def wait_for_the_others(part, sizes, done, turns):
    parts, patience = numbers(sizes, 2)
    while part == 0 and turns[0] < patience:
        others = 0
        for other in range(1, parts):
            others += done[other]
        if others == parts - 1:
            break
        turns[0] += 1  # memory that may be anywhere: so `done` is looked at again
    done[part] = 1


def test_a_thread_takes_what_others_have_not_begun(at_threads):
    """While one waits in the first part, the other does its neighbours, which would have been next."""
    done, turns = np.zeros(8), np.zeros(1)
    at_threads(2, lambda: run(wait_for_the_others, 8, (8, PATIENCE), done, turns))
    assert turns < PATIENCE


@task(np.dtype(np.float64), np.dtype(np.float64), np.dtype(np.float64), np.dtype(np.float64))
def remember(part, sizes, scratch, noted, turns, found):
    (patience,) = numbers(sizes, 1)
    scratch[0] = part
    noted[part] = 1
    while noted[1 - part] == 0 and turns[part] < patience:
        turns[part] += 1
    found[part] = scratch[0]


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)])
def test_a_thread_that_begins_finds_a_0(at_threads, dtype):
    """In every call; later it finds what it has left there, so it knows what it has done for the parts before."""

    @task(dtype, dtype)
    def look(part, sizes, scratch, found):
        found[part] = scratch[0]
        scratch[0] = -1 - part

    for _ in range(2):
        found = np.ones(8, dtype)
        at_threads(1, lambda found=found: run(look, 8, (), found, scratch=1))
        np.testing.assert_array_equal(found, -np.arange(8))


@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_memory_is_a_threads_own(at_threads, threads):
    """What a part notes there is still there when it looks, after another thread has made its notes too."""
    noted, turns, found = (np.zeros(2) for _ in range(3))
    at_threads(threads, lambda: run(remember, 2, (PATIENCE if threads > 1 else 0,), noted, turns, found, scratch=1))
    np.testing.assert_array_equal(found, [0, 1])
    if threads > 1:
        assert max(turns) < PATIENCE  # or they have not met


FORKED = """
import multiprocessing, sys
import numpy as np
from tinycnn.kernels.elementwise import relu

def compute(x):
    return relu(x)[0].sum()

x = np.ones(3, np.float32)
if sys.argv[1] == "after":
    compute(x)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply_async(compute, (x,)).get(60))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_forked_off_after_the_threads_began_says_that_it_can_not_compute(when):
    """The threads are not in it, so it would wait for them for ever."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": "omp"}
    run = subprocess.run([sys.executable, "-c", FORKED, when], capture_output=True, text=True, env=environment)
    if when == "before":
        assert run.stdout.strip() == "3.0"
    else:
        assert "RuntimeError: tinycnn can't compute in a process that was forked off" in run.stderr


ON_X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.skipif(not ON_X86_LINUX, reason="OpenMP is left as it is here")
@pytest.mark.parametrize("mine", [None, "77"])
def test_threads_that_wait_sleep_soon_unless_the_user_has_said_when(mine):
    """OpenMP says what it goes by when it is loaded. Nothing of it is left in the environment."""
    pytest.importorskip("numba.np.ufunc.omppool")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | ({"GOMP_SPINCOUNT": mine} if mine else {})
    code = "import os, tinycnn, numba.np.ufunc.omppool; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    looks = int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", run.stderr)[1])
    assert looks == 77 if mine else 300 <= looks < 300_000  # pauses of more than a nanosecond, at most a microsecond
    assert run.stdout == f"{mine}\n"


@pytest.mark.skipif(not ON_X86_LINUX, reason="OpenMP is left as it is here")
def test_threads_that_wait_look_less_often_if_the_pause_between_is_longer(monkeypatch):
    seen = []
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(waiting.importlib, "import_module", lambda name: seen.append(os.environ["GOMP_SPINCOUNT"]))
    for seconds in (1e-8, 5e-8):
        monkeypatch.setattr(waiting, "_seconds_of_a_pause", lambda seconds=seconds: seconds)
        waiting.wait_briefly()
    assert seen == ["30000", "6000"]
