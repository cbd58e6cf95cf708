"""`run` shares a task's parts out: each is done, none is done twice, whoever does it.

What this file is not: the proof that results don't depend on the threads; every kernel's own tests have that.
"""

import numpy as np
import pytest

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


@task(np.dtype(np.float64), np.dtype(np.float64))
def remember(part, sizes, scratch, found):
    (size,) = numbers(sizes, 1)
    for _ in range(50):
        for i in range(size):
            scratch[i] = part
        for i in range(size):
            found[part] += scratch[i]


@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_memory_is_a_threads_own(at_threads, threads):
    """What a part notes there is still there when it looks, whatever the others do."""
    found = np.zeros(8)
    at_threads(threads, lambda: run(remember, 8, (10_000,), found, scratch=10_000))
    np.testing.assert_array_equal(found, 50 * 10_000 * np.arange(8))
