"""The loss: softmax and cross-entropy in one, from logits and labels to a number and its gradient.

The two belong together: the joint gradient of a row is simply p − target, while the softmax alone has a full Jacobian
and the logarithm alone explodes near 0. Formula and derivation: `reference.softmax_cross_entropy` and its backward.

What this file is not: the model knows nothing of it. The loop in `tinycnn/training.py` brings them together.
"""

import numpy as np

from tinycnn.arguments import fraction
from tinycnn.kernels.cross_entropy import loss_and_gradient
from tinycnn.kernels.memory import contiguous, copy


def softmax(logits: np.ndarray) -> np.ndarray:
    """p[n, k] = exp(logits[n, k]) / Σ_m exp(logits[n, m]).  logits (N, K) -> p (N, K), rows that sum to 1."""
    x = np.asarray(logits)
    x = x.astype(np.result_type(x, np.float32), copy=False)
    e = np.exp(x - x.max(axis=1, keepdims=True))  # the largest exponent is 0: nothing overflows
    return e / e.sum(axis=1, keepdims=True)


class SoftmaxCrossEntropy:
    """loss = −1/N Σ_{n,k} target[n, k] · log softmax(logits)[n, k]: the mean over the batch.

    Labels are integers (N,) in 0 … K − 1, or rows of probabilities (N, K), one-hot or smoothed.
    label_smoothing: the part s of each label that goes to all classes alike, target = (1 − s) · label + s / K, so that
    the network has no reason to be ever more certain (`reference.smoothed`). Raises ValueError unless 0 ≤ s < 1.
    """

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = float(fraction(label_smoothing, "label_smoothing"))
        self._dlogits = None

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """The loss. Raises ValueError if the labels don't fit the logits (N, K)."""
        logits = np.asarray(logits)
        if logits.ndim != 2 or not logits.size:
            raise ValueError(f"SoftmaxCrossEntropy: got logits of shape {logits.shape}, needs (N, classes), not empty")
        if logits.dtype.kind not in "fiu":
            raise ValueError(f"SoftmaxCrossEntropy: got logits of type {logits.dtype}, needs real numbers")
        x = contiguous(logits, logits.dtype if logits.dtype in (np.float32, np.float64) else np.dtype(np.float64))
        labels = np.asarray(labels)
        loss, gradient, wrong = loss_and_gradient(x, _checked(labels, x), self.label_smoothing)
        if wrong:
            first = labels[(labels < 0) | (labels >= x.shape[1])][0]
            raise ValueError(f"SoftmaxCrossEntropy: label {first} is outside 0 … {x.shape[1] - 1}")
        self._dlogits = gradient.astype(logits.dtype, copy=False) if logits.dtype.kind == "f" else gradient
        return loss

    def backward(self) -> np.ndarray:
        """dlogits = (softmax(logits) − target) / N, of the last forward.  (N, K), in the dtype of the logits."""
        if self._dlogits is None:
            raise ValueError("SoftmaxCrossEntropy: backward needs a forward before it")
        return copy(self._dlogits)


def _checked(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The labels as the kernels take them: int64, or rows of probabilities in the logits' dtype."""
    n, classes = logits.shape
    if labels.shape == (n, classes):
        if not np.all((labels >= 0) & (labels <= 1)) or not np.allclose(labels.sum(axis=1), 1, atol=1e-3):
            raise ValueError("SoftmaxCrossEntropy: rows of label probabilities must be in 0 … 1 and sum to 1")
        return contiguous(labels, logits.dtype)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"SoftmaxCrossEntropy: got labels of shape {labels.shape} and type {labels.dtype} for logits of shape "
            f"{logits.shape}; needs {n} integers, or probabilities of shape {logits.shape}"
        )
    return contiguous(labels, np.dtype(np.int64))
