"""How good a trained network is, class by class, and how honest about it, from labels and probabilities.

What this file is not: it runs no network and draws nothing.
"""

import numpy as np

from tinycnn.arguments import whole
from tinycnn.tables import table


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """counts[i, j] = how many images of class i were taken for class j.  Integers (N,), (N,) -> (classes, classes).

    Raises ValueError for other numbers than whole ones in 0 … classes − 1.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2)
    array([[1, 1],
           [0, 1]])
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if any(array.size and array.dtype.kind not in "biu" for array in (labels, predicted)):
        raise ValueError("labels and predicted must be whole numbers")
    labels, predicted = labels.astype(np.intp), predicted.astype(np.intp)
    if len(labels) and not (0 <= min(labels.min(), predicted.min()) <= max(labels.max(), predicted.max()) < classes):
        raise ValueError(f"labels and predicted must be in 0 … {classes - 1}")
    cells = labels * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(confusion: np.ndarray) -> np.ndarray:
    """For each class (a row): precision = the share of the images taken for it that are of it; recall = the share of
    its images that were taken for it; F1 = their harmonic mean. 0 where there are none.  (K, K) -> (K, 3).
    """
    right = np.diag(confusion).astype(float)
    precision = right / np.maximum(1, confusion.sum(axis=0))
    recall = right / np.maximum(1, confusion.sum(axis=1))
    f1 = 2 * precision * recall / np.where(precision + recall == 0, 1, precision + recall)
    return np.stack([precision, recall, f1], axis=1)


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """−mean log p[label], in nats. A probability of 0, or one that has rounded to it, counts as 10⁻³⁰⁸: 708 nats."""
    p = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(p, np.finfo(np.float64).tiny)).mean()) + 0.0  # never −0


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> np.ndarray:
    """Is the network right as often as it says? 0 … 1 is cut into equal parts, the bins, and each image put into the
    one that its highest probability lies in. For each bin (a row): the mean of those probabilities, the confidence; the
    share of its images whose most probable class is the right one, the accuracy; and how many images there are.

    An edge belongs to the bin below it. All three are 0 where there are no images.
    labels (N,), probabilities (N, K) -> (bins, 3).
    Source: Guo et al., On calibration of modern neural networks (2017), section 2.

    >>> calibration(np.array([0, 1]), np.array([[0.8, 0.2], [0.75, 0.25]]), bins=2)
    array([[0.   , 0.   , 0.   ],
           [0.775, 0.5  , 2.   ]])
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    chosen = np.searchsorted(np.arange(1, whole(bins, "bins")) / bins, confidence)
    counts = np.bincount(chosen, minlength=bins)
    sums = [np.bincount(chosen, values, minlength=bins) for values in (confidence, right)]
    return np.stack([*(sums / np.maximum(1, counts)), counts], axis=1)


def expected_calibration_error(rows: np.ndarray) -> float:
    """The mean of |accuracy − confidence| over all images, from the rows of `calibration`: 0 is perfect."""
    confidence, accuracy, counts = rows.T
    return float((counts * np.abs(accuracy - confidence)).sum() / max(1, counts.sum()))


def class_table(confusion: np.ndarray) -> str:
    """Images, precision, recall and F1 of each class as text."""
    rows = [("class", "images", "precision", "recall", "F1")]
    for k, figures in enumerate(precision_recall_f1(confusion)):
        rows.append((str(k), f"{confusion[k].sum():,}", *(f"{value:.2%}" for value in figures)))
    return table(rows, right=(1, 2, 3, 4))


def confusion_table(confusion: np.ndarray) -> str:
    """The matrix as text: a row for each true class, a column for what it was taken for; · for never."""
    rows = [("true \\ taken for", *map(str, range(len(confusion))))]
    rows += [(str(i), *(str(n) if n else "·" for n in row)) for i, row in enumerate(confusion)]
    return table(rows, right=range(1, len(confusion) + 1))
