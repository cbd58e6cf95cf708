"""Softmax and cross-entropy as a hot loop; the formula is in `tinycnn/loss.py`.

In NumPy they would be a dozen small operations. Each takes little time by itself, but it comes once a step, when the
layers have long driven its code and data out of the CPU's cache, and then it takes five times as long.

What this file is not: checks of shapes and types; those are the loss's.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import numbers, parts_for, run, task


def loss_and_gradient(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[float, np.ndarray, int]:
    """The mean of −Σ_k target · log p over the rows, its gradient (p − target) / N, and how many labels are no class.

    logits (N, K), contiguous; labels: (N,) int64, or rows of probabilities (N, K) of the logits' dtype.
    target = (1 − smoothing) · label + smoothing / K; one of 0 counts as 0 even where log p is −∞.
    """
    n, classes = logits.shape
    gradient, parts = empty(logits.shape, logits.dtype), parts_for(n, 128 * logits.size)  # exp takes so long
    totals, smoothed = np.empty((parts, 2), np.float64), np.array([1 - smoothing, smoothing / classes], logits.dtype)
    kernel = _loss_and_gradient_task(labels.ndim == 2, logits.dtype)
    run(kernel, parts, (parts, n, classes), logits, labels, smoothed, gradient, totals)
    loss, wrong = np.add.reduce(totals).tolist()
    return loss / n, gradient, int(wrong)


@cache
def _loss_and_gradient_task(labels_are_rows: bool, dtype: np.dtype):
    """With `best` for the largest logit of a row, e = exp(logit − best), and `others` for Σ e but for the best's own 1:

        p = e / (1 + others)        log p = logit − best − log(1 + others)

    So it is never the log of a p that has rounded to 0 or to 1: others counts even where it is tiny beside the 1.
    """
    number = dtype.type
    zero, one = number(0), number(1)

    @task(dtype, dtype if labels_are_rows else np.int64, dtype, dtype, np.float64)
    def loss_and_gradient(part, sizes, logits, labels, smoothed, gradient, totals):
        parts, N, K = numbers(sizes, 3)
        count, loss, wrong = number(N), 0.0, 0
        for n in range(part * N // parts, (part + 1) * N // parts):
            row, b = n * K, 0
            for k in range(1, K):
                if logits[row + k] > logits[row + b]:
                    b = k
            best = logits[row + b]
            others = np.float64(best - best)  # 0, or NaN if the largest is NaN or infinite
            for k in range(K):
                gradient[row + k] = np.exp(logits[row + k] - best)  # e, for a while
                if k != b:
                    others += gradient[row + k]
            total, log_of_total = number(1 + others), number(np.log1p(others))
            if not labels_are_rows and not 0 <= labels[n] < K:
                wrong += 1
            for k in range(K):
                i = row + k
                label = labels[i] if labels_are_rows else one if labels[n] == k else zero
                target = smoothed[0] * label + smoothed[1]
                if target != 0:
                    loss -= target * ((zero if k == b else logits[i] - best) - log_of_total)
                gradient[i] = (gradient[i] / total - target) / count
        totals[2 * part], totals[2 * part + 1] = loss, wrong

    return loss_and_gradient
