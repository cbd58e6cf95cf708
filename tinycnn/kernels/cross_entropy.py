"""Softmax and cross-entropy as hot loops; the formula is in `tinycnn/loss.py`.

In NumPy they would be a dozen small operations. Each takes little time by itself, but it comes once a step, when the
layers have long driven its code and data out of the CPU's cache, and then it takes five times as long.

What this file is not: exp and its sums, which stay in NumPy.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import numbers, parts_for, run, task


def shifted_logits(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """shifted[n, k] = logits[n, k] − logits[n, best[n]], where best[n] is the first of the row's largest.

    There it is −∞ and not 0: Σ exp(shifted) is to be the sum of the others, which counts even where it is tiny beside
    exp(0) = 1. (NaN if the largest is NaN or infinite.)  logits (N, K), contiguous -> (N, K), (N,).
    """
    shifted, best = empty(logits.shape, logits.dtype), np.empty(len(logits), np.int64)
    parts = parts_for(len(logits), 8 * logits.size)
    run(_shifted_logits_task(logits.dtype), parts, (parts, *logits.shape), logits, shifted, best)
    return shifted, best


def loss_and_gradient(
    shifted: np.ndarray, best: np.ndarray, e: np.ndarray, others: np.ndarray, labels: np.ndarray, smoothing: float
) -> tuple[float, int]:
    """The mean of −Σ_k target · log p over the rows, and how many labels are no class. e becomes (p − target) / N.

    e = exp(shifted) (N, K) and others = Σ_k e (N,), of one dtype; so p = e / (1 + others), but for the best, whose e is
    counted as 1. labels: (N,) int64, or rows of probabilities (N, K) like e. target = (1 − smoothing) · label +
    smoothing / K; one of 0 counts as 0 even where log p is −∞.
    """
    n, classes = shifted.shape
    parts = parts_for(n, 32 * shifted.size)
    totals, smoothed = np.empty((parts, 2), np.float64), np.array([1 - smoothing, smoothing / classes], e.dtype)
    kernel = _loss_and_gradient_task(labels.ndim == 2, e.dtype)
    run(kernel, parts, (parts, n, classes), shifted, best, e, others, labels, smoothed, totals)
    loss, wrong = np.add.reduce(totals).tolist()
    return loss / n, int(wrong)


@cache
def _shifted_logits_task(dtype: np.dtype):
    infinity = dtype.type(np.inf)

    @task(dtype, dtype, np.int64)
    def shifted_logits(part, sizes, logits, shifted, best):
        parts, N, K = numbers(sizes, 3)
        for n in range(part * N // parts, (part + 1) * N // parts):
            row = n * K
            b = 0
            for k in range(1, K):
                if logits[row + k] > logits[row + b]:
                    b = k
            for k in range(K):
                shifted[row + k] = logits[row + k] - logits[row + b]
            shifted[row + b] -= infinity
            best[n] = b

    return shifted_logits


@cache
def _loss_and_gradient_task(labels_are_rows: bool, dtype: np.dtype):
    zero, one = dtype.type(0), dtype.type(1)

    @task(dtype, np.int64, dtype, dtype, dtype if labels_are_rows else np.int64, dtype, np.float64)
    def loss_and_gradient(part, sizes, shifted, best, e, others, labels, smoothed, totals):
        parts, N, K = numbers(sizes, 3)
        count, loss, wrong = dtype.type(N), 0.0, 0
        for n in range(part * N // parts, (part + 1) * N // parts):
            log_of_sum = np.log1p(others[n])
            if not labels_are_rows and not 0 <= labels[n] < K:
                wrong += 1
            for k in range(K):
                i = n * K + k
                label = labels[i] if labels_are_rows else one if labels[n] == k else zero
                target = smoothed[0] * label + smoothed[1]
                is_best = best[n] == k
                if target != 0:
                    loss -= target * ((zero if is_best else shifted[i]) - log_of_sum)
                e[i] = ((one if is_best else e[i]) / (one + others[n]) - target) / count
        totals[2 * part], totals[2 * part + 1] = loss, wrong

    return loss_and_gradient
