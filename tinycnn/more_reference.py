"""The layers of `tinycnn/more_layers.py` as formulas, to be read like those of `tinycnn/reference.py`.

What this file is not: necessary to understand backpropagation, as the layers are not; and nothing that trains uses it.
"""

import numpy as np

# ------------------------------------------------------------------------------------------------- batch normalisation


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """y = gamma · x̂ + beta,  x̂ = (x − mean) / √(variance + epsilon),  for each channel over the batch and all pixels.

    The mean and the variance, Σ (x − mean)² / M for M numbers, are over all axes but the last.
    x (..., C), gamma (C,), beta (C,) -> y (..., C).
    Source: Ioffe & Szegedy, Batch Normalization (2015), algorithm 1.

    >>> batch_norm(np.array([[1.0], [3.0]]), np.array([2.0]), np.array([5.0]), epsilon=0.0)
    array([[3.],
           [7.]])
    """
    x_hat, _ = _standardise(x, epsilon)
    return gamma * x_hat + beta


def batch_norm_backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx, dgamma, dbeta of `batch_norm`. With M numbers in a channel and σ = √(variance + epsilon):

        dbeta = Σ dy        dgamma = Σ dy · x̂
        dx    = gamma / σ · (dy − dbeta / M − x̂ · dgamma / M)

    Every x acts on y in three ways: directly (dy · gamma / σ); through the mean, which it moves by 1/M and which moves
    every x̂ by −1/σ (the term dbeta / M); and through the variance, which it moves by 2(x − mean)/M and which moves
    every x̂ by −x̂ / 2σ² (the term x̂ · dgamma / M). So dx sums to zero over a channel, and but for epsilon is
    orthogonal to x̂: what only shifts or scales a channel can't change y.

    dy, x (..., C) -> dx (..., C), dgamma (C,), dbeta (C,).
    Proven by: `tests/test_reference.py::test_batch_norm_backward_is_the_derivative`.
    """
    x_hat, sigma = _standardise(x, epsilon)
    axes = tuple(range(x.ndim - 1))
    dbeta, dgamma = dy.sum(axis=axes), (dy * x_hat).sum(axis=axes)
    M = x.size // x.shape[-1]
    return gamma / sigma * (dy - dbeta / M - x_hat * dgamma / M), dgamma, dbeta


def _standardise(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """x̂ and σ. The square is written out: np.var would take |x − mean|², which has no complex derivative."""
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axis=axes)
    sigma = np.sqrt((centred * centred).mean(axis=axes) + epsilon)
    return centred / sigma, sigma


# ------------------------------------------------------------------------------------------------------------- dropout


def dropout(x: np.ndarray, keep: np.ndarray, rate: float) -> np.ndarray:
    """y = x / (1 − rate) where keep, else 0. keep: booleans of x's shape, each True with probability 1 − rate.

    The division keeps the expected y equal to x, so that nothing is to be done at inference ("inverted" dropout).
    Source: Srivastava et al., Dropout (2014), section 10.

    >>> dropout(np.array([1.0, 2.0]), np.array([True, False]), rate=0.5)
    array([2., 0.])
    """
    return x * keep / (1 - rate)


def dropout_backward(dy: np.ndarray, keep: np.ndarray, rate: float) -> np.ndarray:
    """dx = dy / (1 − rate) where keep, else 0: y is x times a number, so dx is dy times the same number.

    Proven by: `tests/test_reference.py::test_dropout_backward_is_the_derivative`.
    """
    return dy * keep / (1 - rate)


# ---------------------------------------------------------------------------------------------- global average pooling


def global_average_pool2d(x: np.ndarray) -> np.ndarray:
    """y[n, c] = Σ_{i,j} x[n, i, j, c] / (H · W): the mean of each channel over the whole image.

    x (N, H, W, C) -> y (N, C).
    Source: Lin, Chen & Yan, Network in network (2014), section 3.2.

    >>> global_average_pool2d(np.array([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 2, 2, 1))
    array([[3.]])
    """
    return x.mean(axis=(1, 2))


def global_average_pool2d_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dx[n, i, j, c] = dy[n, c] / (H · W): each number counts for 1 / (H · W) in its channel's mean, and nowhere else.

    dy (N, C), x (N, H, W, C) -> dx (N, H, W, C).
    Proven by: `tests/test_reference.py::test_global_average_pool2d_backward_is_the_derivative`.
    """
    height, width = x.shape[1:3]
    return (dy / (height * width))[:, None, None].repeat(height, axis=1).repeat(width, axis=2)
