"""The operations of a network as formulas, in plain NumPy and Python loops: the first thing to read.

Each operation stands beside its backward function. That is given dy, the gradient of the loss by the operation's
output y, of y's shape: dy[m] = ∂loss / ∂y[m], how fast the loss rises with y[m]. It returns the gradient of the loss by
each input. A number x[k] acts on the loss through every output that it goes into, so their effects add up:

    dx[k] = Σ_m dy[m] · ∂y[m] / ∂x[k]           the chain rule, which each backward function writes out

(The loss is given no dy: its own would be 1. Its targets need no gradient.)

These functions are slow, keep no state, and work for float32, float64 and complex128 alike. They accept complex numbers
so that their derivatives can be proven to the last digits (a complex step, see `tinycnn/gradcheck.py`); comparisons
then look at the real part. The fast kernels are tested to equal these functions.

What this file is not: nothing that trains uses it. The layers that a network can do without are in
`tinycnn/more_reference.py`.

Shapes: images are (N, H, W, C): image, row, column, channel. "Convolution" means cross-correlation (the kernel is not
flipped), as in every framework. Pairs are (height, width): stride (sh, sw), padding (ph, pw), kernel (kh, kw).
"""

import numpy as np

Pair = tuple[int, int]

# --------------------------------------------------------------------------------------------------------- convolution


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> np.ndarray:
    """y[n, i, j, o] = bias[o] + Σ_{a,b,c} z[n, i·sh + a, j·sw + b, c] · w[a, b, c, o].  z: x inside `padding` zeros.

    x (N, H, W, C), w (kh, kw, C, O), bias (O,) -> y (N, (H + 2·ph − kh) // sh + 1, (W + 2·pw − kw) // sw + 1, O).
    Source: Dumoulin & Visin, A guide to convolution arithmetic for deep learning (2016), relationship 6.

    >>> x = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> conv2d(x, np.ones((2, 2, 1, 1)), np.zeros(1))[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    z = _pad(x, padding)
    kernel_h, kernel_w, _, out_channels = w.shape
    out_h, out_w = (z.shape[1] - kernel_h) // stride[0] + 1, (z.shape[2] - kernel_w) // stride[1] + 1
    y = np.empty((len(x), out_h, out_w, out_channels), np.result_type(x, w, bias))
    for i in range(out_h):
        for j in range(out_w):
            patch = z[:, i * stride[0] : i * stride[0] + kernel_h, j * stride[1] : j * stride[1] + kernel_w]
            y[:, i, j] = np.tensordot(patch, w, axes=3) + bias
    return y


def conv2d_backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx, dw, dbias of `conv2d`.

    Each y[n, i, j, o] is a sum of products z · w, so the chain rule gives each factor the other one times dy:

        dbias[o]                = Σ_{n,i,j} dy[n, i, j, o]
        dw[a, b, c, o]          = Σ_{n,i,j} z[n, i·sh + a, j·sw + b, c] · dy[n, i, j, o]
        dz[n, i·sh + a, j·sw + b, c] += Σ_o w[a, b, c, o] · dy[n, i, j, o]      for every i, j, a, b

    and dx is dz without the padding. Read the last line from the receiving end, with stride 1, u = i + a, v = j + b:

        dz[n, u, v, c] = Σ_{a,b,o} dy[n, u − a, v − b, o] · w[a, b, c, o]       dy outside its shape is 0

    The indices of dy fall where those of w rise: a convolution of dy with w flipped, its in and out channels swapped.
    Some kernels compute it so (`kernels/input_gradient.py`); here it is the scatter above.

    dy (N, out_h, out_w, O) -> dx (N, H, W, C), dw (kh, kw, C, O), dbias (O,).
    Proven by: `tests/test_reference.py::test_conv2d_backward_is_the_derivative`.
    """
    z = _pad(x, padding)
    dz, dw = np.zeros_like(z, dtype=np.result_type(dy, w)), np.zeros_like(w, dtype=np.result_type(dy, x))
    kernel_h, kernel_w = w.shape[:2]
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            rows = slice(i * stride[0], i * stride[0] + kernel_h)
            columns = slice(j * stride[1], j * stride[1] + kernel_w)
            dw += np.tensordot(z[:, rows, columns], dy[:, i, j], axes=(0, 0))
            dz[:, rows, columns] += np.tensordot(dy[:, i, j], w, axes=(1, 3))
    (top, left), (height, width) = padding, x.shape[1:3]
    return dz[:, top : top + height, left : left + width], dw, dy.sum(axis=(0, 1, 2))


def _pad(x: np.ndarray, padding: Pair) -> np.ndarray:
    return np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))


# --------------------------------------------------------------------------------------------------------- max-pooling


def max_pool2d(x: np.ndarray, pool_size: Pair, stride: Pair) -> np.ndarray:
    """y[n, i, j, c] = the largest x[n, i·sh + a, j·sw + b, c] of the window, a < kh, b < kw; only whole windows count.

    x (N, H, W, C) -> y (N, (H − kh) // sh + 1, (W − kw) // sw + 1, C).  pool_size (kh, kw), stride (sh, sw).

    >>> max_pool2d(np.array([[1, 2, 5], [4, 3, 6]]).reshape(1, 2, 3, 1), (2, 2), (1, 1))[0, :, :, 0]
    array([[4, 6]])
    """
    out_h, out_w = (x.shape[1] - pool_size[0]) // stride[0] + 1, (x.shape[2] - pool_size[1]) // stride[1] + 1
    y = np.empty((len(x), out_h, out_w, x.shape[3]), x.dtype)
    for n, i, j, c in np.ndindex(y.shape):
        y[n, i, j, c] = x[(n, *_first_maximum(x, n, i, j, c, pool_size, stride), c)]
    return y


def max_pool2d_backward(dy: np.ndarray, x: np.ndarray, pool_size: Pair, stride: Pair) -> np.ndarray:
    """dx of `max_pool2d`: each window hands its dy to its maximum; overlapping windows add up.

        dx[n, u, v, c] = Σ dy[n, i, j, c]  over the windows (i, j) whose maximum is the cell (u, v)

    Of equal maxima the first one in reading order receives all of it: y follows one of them only, and a gradient handed
    to each would count it several times. (There the maximum has no derivative; this is one of its subgradients.)

    dy (N, out_h, out_w, C), x (N, H, W, C) -> dx (N, H, W, C).
    Proven by: `tests/test_reference.py::test_max_pool2d_backward_is_the_derivative`.
    """
    dx = np.zeros(x.shape, dy.dtype)
    for n, i, j, c in np.ndindex(dy.shape):
        dx[(n, *_first_maximum(x, n, i, j, c, pool_size, stride), c)] += dy[n, i, j, c]
    return dx


def _first_maximum(x: np.ndarray, n: int, i: int, j: int, c: int, pool_size: Pair, stride: Pair) -> Pair:
    """Row and column of the first maximum, in reading order, of one window."""
    top, left = i * stride[0], j * stride[1]
    window = x[n, top : top + pool_size[0], left : left + pool_size[1], c].real
    row, column = np.unravel_index(np.argmax(window), window.shape)  # argmax takes the first of equals
    return top + row, left + column


# --------------------------------------------------------------------------------------------------------------- dense


def dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y[n, o] = b[o] + Σ_k x[n, k] · w[k, o].  x (N, K), w (K, O), b (O,) -> y (N, O).

    >>> dense(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([5.0]))
    array([[16.]])
    """
    return x @ w + b


def dense_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx, dw, db of `dense`: in each product x · w, each factor receives the other one times dy.

        dx[n, k] = Σ_o dy[n, o] · w[k, o]        dw[k, o] = Σ_n x[n, k] · dy[n, o]        db[o] = Σ_n dy[n, o]

    dy (N, O) -> dx (N, K), dw (K, O), db (O,).
    Proven by: `tests/test_reference.py::test_dense_backward_is_the_derivative`.
    """
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


# ---------------------------------------------------------------------------------------------------------------- ReLU


def relu(x: np.ndarray) -> np.ndarray:
    """y = max(x, 0), element by element; any shape.

    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return np.where(x.real <= 0, 0, x)


def relu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dx = dy where x > 0, else 0: y moves with x there and stays 0 elsewhere. At the kink x = 0 we choose 0.

    Proven by: `tests/test_reference.py::test_relu_backward_is_the_derivative`.
    """
    return np.where(x.real > 0, dy, 0)


# ------------------------------------------------------------------------------------------- softmax and cross-entropy


def softmax_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """loss = −1/N Σ_{n,k} targets[n, k] · log p[n, k],  p[n, k] = exp(logits[n, k]) / Σ_m exp(logits[n, m]).

    logits (N, K), targets (N, K), rows of probabilities that sum to 1 (one-hot for a plain label) -> a scalar.
    Logits: a network's output, any numbers; p, their softmax, are probabilities. One-hot: 1 at the label, else 0.
    The row's maximum is taken off first: p is the same, and no exp overflows.

    >>> round(float(softmax_cross_entropy(np.zeros((1, 10)), np.eye(10)[:1])), 6)   # knowing nothing: ln 10
    2.302585
    """
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -(targets * log_p).sum(axis=1).mean()


def softmax_cross_entropy_backward(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """dlogits[n, k] = (p[n, k] − targets[n, k]) / N.

    In one row, log p[k] = logits[k] − log Σ_j exp(logits[j]), whose derivative by logits[m] is (1 if k = m) − p[m].
    Summed over k with the weights −targets[k], which sum to −1, that is p[m] − targets[m]; and the loss is a mean.

    logits, targets (N, K) -> dlogits (N, K).
    Proven by: `tests/test_reference.py::test_softmax_cross_entropy_backward_is_the_derivative`.
    """
    e = np.exp(logits - logits.real.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True) - targets) / len(logits)


def smoothed(targets: np.ndarray, smoothing: float) -> np.ndarray:
    """(1 − s) · targets[n, k] + s / K, for a smoothing s: each row gives a part s of itself to all K classes alike.

    The loss of plain labels falls as long as their logits grow, without end. That of smoothed ones is least at
    p[label] = 1 − s + s / K: there p equals the target, and p − target, the gradient, is zero.
    Source: Szegedy et al., Rethinking the Inception Architecture (2016), section 7.

    >>> smoothed(np.array([[0.0, 1.0]]), smoothing=0.2)
    array([[0.1, 0.9]])
    """
    return (1 - smoothing) * targets + smoothing / targets.shape[1]
