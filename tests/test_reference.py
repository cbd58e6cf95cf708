"""The bottom rung: the reference against complex-step derivatives, the adjoint identity and examples by hand."""

import numpy as np
import pytest

from tinycnn import more_reference, reference
from tinycnn.gradcheck import complex_step

# (H, W), (kernel_h, kernel_w), stride, padding: H ≠ W, leftover rows, a kernel as large as the image, a larger padding
CONVOLUTIONS = [
    ((5, 4), (3, 3), (1, 1), (0, 0)),
    ((5, 4), (2, 3), (1, 1), (1, 2)),
    ((6, 5), (3, 2), (2, 1), (0, 1)),
    ((6, 7), (2, 2), (3, 2), (1, 0)),
    ((4, 3), (4, 3), (1, 1), (0, 0)),
    ((4, 3), (1, 1), (1, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1), (2, 3)),
]
POOLS = [
    ((4, 6), (2, 2), (2, 2)),
    ((5, 7), (2, 3), (2, 3)),  # rows and columns left over
    ((5, 4), (3, 2), (1, 1)),  # overlapping
    ((5, 5), (2, 2), (3, 3)),  # with gaps
]


def assert_derivative(analytic, f, x):
    """`analytic` is the gradient of the scalar f at x, to 1e-12 of the gradient's own size, at every element."""
    exact = complex_step(f, x)
    assert analytic.shape == x.shape
    np.testing.assert_allclose(analytic, exact, rtol=1e-12, atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_conv2d_backward_is_the_derivative(random, size, kernel, stride, padding):
    x, w, b = random.normal(size=(2, *size, 3)), random.normal(size=(*kernel, 3, 2)), random.normal(size=2)
    dy = random.normal(size=reference.conv2d(x, w, b, stride, padding).shape)
    dx, dw, db = reference.conv2d_backward(dy, x, w, stride, padding)
    assert_derivative(dx, lambda x: (reference.conv2d(x, w, b, stride, padding) * dy).sum(), x)
    assert_derivative(dw, lambda w: (reference.conv2d(x, w, b, stride, padding) * dy).sum(), w)
    assert_derivative(db, lambda b: (reference.conv2d(x, w, b, stride, padding) * dy).sum(), b)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_conv2d_adjoint_identity(random, size, kernel, stride, padding):
    """A convolution is linear in x and in w: ⟨conv(x, w), g⟩ = ⟨x, dx⟩ = ⟨w, dw⟩."""
    x, w = random.normal(size=(2, *size, 3)), random.normal(size=(*kernel, 3, 2))
    y = reference.conv2d(x, w, np.zeros(2), stride, padding)
    g = random.normal(size=y.shape)
    dx, dw, _ = reference.conv2d_backward(g, x, w, stride, padding)
    scale = np.abs(y * g).sum()
    assert abs((y * g).sum() - (x * dx).sum()) < 1e-13 * scale
    assert abs((y * g).sum() - (w * dw).sum()) < 1e-13 * scale


def test_conv2d_by_hand():
    """A kernel that is not symmetric, so that flipping it or swapping its axes would show."""
    x = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]).reshape(1, 2, 3, 1)
    w = np.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)
    y = reference.conv2d(x, w, np.array([0.5]))
    # 1·1 + 2·10 + 0·100 + 1·1000 + 0.5,   2·1 + 0·10 + 1·100 + 3·1000 + 0.5
    np.testing.assert_array_equal(y[0, 0, :, 0], [1021.5, 3102.5])
    dx, dw, db = reference.conv2d_backward(np.array([1.0, 2.0]).reshape(1, 1, 2, 1), x, w)
    # every x receives w · dy from each window it lies in; the middle column lies in both
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 10 + 2 * 1, 2 * 10], [100, 1000 + 2 * 100, 2 * 1000]])
    # every w receives the x under it, times dy
    np.testing.assert_array_equal(dw[:, :, 0, 0], [[1 + 2 * 2, 2 + 2 * 0], [0 + 2 * 1, 1 + 2 * 3]])
    np.testing.assert_array_equal(db, [3])


def test_conv2d_by_hand_with_stride_and_padding():
    x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    w = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    y = reference.conv2d(x, w, np.zeros(1), stride=(2, 2), padding=(1, 1))
    # the windows' corners: each sees one pixel, under w[1, 1], w[1, 0], w[0, 1], w[0, 0]
    np.testing.assert_array_equal(y[0, :, :, 0], [[4 * 1, 3 * 2], [2 * 3, 1 * 4]])


@pytest.mark.parametrize(("size", "pool", "stride"), POOLS)
def test_max_pool2d_backward_is_the_derivative(random, size, pool, stride):
    x = random.normal(size=(2, *size, 3))
    dy = random.normal(size=reference.max_pool2d(x, pool, stride).shape)
    dx = reference.max_pool2d_backward(dy, x, pool, stride)
    assert_derivative(dx, lambda x: (reference.max_pool2d(x, pool, stride) * dy).sum(), x)


def test_max_pool2d_by_hand_first_of_equals():
    x = np.array([[1.0, 5.0, 5.0], [5.0, 0.0, 2.0]]).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(reference.max_pool2d(x, (2, 2), (1, 1))[0, :, :, 0], [[5, 5]])
    dx = reference.max_pool2d_backward(np.array([3.0, 4.0]).reshape(1, 1, 2, 1), x, (2, 2), (1, 1))
    # both windows' first maximum, in reading order, is the cell (0, 1): it gets both gradients
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 7, 0], [0, 0, 0]])


def test_dense_backward_is_the_derivative(random):
    x, w, b = random.normal(size=(3, 4)), random.normal(size=(4, 5)), random.normal(size=5)
    dy = random.normal(size=(3, 5))
    dx, dw, db = reference.dense_backward(dy, x, w)
    assert_derivative(dx, lambda x: (reference.dense(x, w, b) * dy).sum(), x)
    assert_derivative(dw, lambda w: (reference.dense(x, w, b) * dy).sum(), w)
    assert_derivative(db, lambda b: (reference.dense(x, w, b) * dy).sum(), b)


def test_dense_by_hand():
    x, w = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(reference.dense(x, w, np.array([0.5, 0.25])), [[13.5, 16.25]])
    dx, dw, db = reference.dense_backward(np.array([[1.0, 10.0]]), x, w)
    np.testing.assert_array_equal(dx, [[3 + 40, 5 + 60]])
    np.testing.assert_array_equal(dw, [[1, 10], [2, 20]])
    np.testing.assert_array_equal(db, [1, 10])


def test_relu_backward_is_the_derivative(random):
    x, dy = random.normal(size=(3, 4)), random.normal(size=(3, 4))
    assert_derivative(reference.relu_backward(dy, x), lambda x: (reference.relu(x) * dy).sum(), x)


def test_relu_by_hand():
    """0 passes nothing, forward or back; not a number stays visible."""
    np.testing.assert_array_equal(reference.relu(np.array([-2.0, 0.0, 3.0, np.nan])), [0, 0, 3, np.nan])
    np.testing.assert_array_equal(
        reference.relu_backward(np.array([5.0, 6.0, 7.0]), np.array([-2.0, 0.0, 3.0])), [0, 0, 7]
    )


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 2)])
def test_batch_norm_backward_is_the_derivative(random, shape):
    x, gamma, beta = random.normal(3, 2, size=shape), random.normal(size=shape[-1]), random.normal(size=shape[-1])
    dy = random.normal(size=shape)
    dx, dgamma, dbeta = more_reference.batch_norm_backward(dy, x, gamma, 1e-3)
    assert_derivative(dx, lambda x: (more_reference.batch_norm(x, gamma, beta, 1e-3) * dy).sum(), x)
    assert_derivative(dgamma, lambda gamma: (more_reference.batch_norm(x, gamma, beta, 1e-3) * dy).sum(), gamma)
    assert_derivative(dbeta, lambda beta: (more_reference.batch_norm(x, gamma, beta, 1e-3) * dy).sum(), beta)


def test_batch_norm_by_hand():
    """Mean 3, variance 5 and epsilon 4, so σ = 3: the numbers are thirds."""
    x = np.array([[0.0], [2.0], [4.0], [6.0]])
    y = more_reference.batch_norm(x, np.array([3.0]), np.array([10.0]), epsilon=4.0)
    np.testing.assert_allclose(y, [[7], [9], [11], [13]], rtol=1e-15)
    dx, dgamma, dbeta = more_reference.batch_norm_backward(
        np.array([[1.0], [0.0], [0.0], [0.0]]), x, np.array([3.0]), 4.0
    )
    np.testing.assert_allclose(dgamma, [-1], rtol=1e-15)  # x̂ of the first row
    np.testing.assert_allclose(dbeta, [1], rtol=1e-15)
    # gamma / σ = 1;  dy − 1/4 − x̂ · (−1)/4  with x̂ = −1, −1/3, 1/3, 1
    np.testing.assert_allclose(dx[:, 0], [1 - 1 / 4 - 1 / 4, -1 / 4 - 1 / 12, -1 / 4 + 1 / 12, 0], atol=1e-15)


def test_dropout_backward_is_the_derivative(random):
    x, dy, keep = random.normal(size=(3, 4)), random.normal(size=(3, 4)), random.random((3, 4)) > 0.3
    assert 0 < keep.sum() < keep.size
    assert_derivative(
        more_reference.dropout_backward(dy, keep, 0.3), lambda x: (more_reference.dropout(x, keep, 0.3) * dy).sum(), x
    )


def test_dropout_by_hand():
    keep = np.array([True, False])
    np.testing.assert_array_equal(more_reference.dropout(np.array([3.0, 4.0]), keep, 0.75), [12, 0])
    np.testing.assert_array_equal(more_reference.dropout_backward(np.array([1.0, 1.0]), keep, 0.75), [4, 0])


def test_global_average_pool2d_backward_is_the_derivative(random):
    x, dy = random.normal(size=(2, 3, 5, 4)), random.normal(size=(2, 4))
    dx = more_reference.global_average_pool2d_backward(dy, x)
    assert_derivative(dx, lambda x: (more_reference.global_average_pool2d(x) * dy).sum(), x)


def test_global_average_pool2d_by_hand():
    """Two channels over 1 × 3 pixels, so that height and width, or pixels and channels, can't change places unseen."""
    x = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]]).reshape(1, 1, 3, 2)
    np.testing.assert_array_equal(more_reference.global_average_pool2d(x), [[3, 20]])
    dx = more_reference.global_average_pool2d_backward(np.array([[3.0, 6.0]]), x)
    np.testing.assert_array_equal(dx[0, 0], [[1, 2]] * 3)


@pytest.mark.parametrize("smoothed", [False, True])
def test_softmax_cross_entropy_backward_is_the_derivative(random, smoothed):
    logits = random.normal(size=(4, 5))
    targets = random.dirichlet(np.ones(5), size=4) if smoothed else np.eye(5)[[0, 4, 2, 2]]
    dlogits = reference.softmax_cross_entropy_backward(logits, targets)
    assert_derivative(dlogits, lambda logits: reference.softmax_cross_entropy(logits, targets), logits)


def test_softmax_cross_entropy_by_hand():
    """Logits ln 1, ln 2, ln 5: the probabilities are 1/8, 2/8, 5/8."""
    logits, targets = np.log([[1.0, 2.0, 5.0]]), np.array([[0.0, 1.0, 0.0]])
    assert reference.softmax_cross_entropy(logits, targets) == pytest.approx(np.log(4), rel=1e-15)
    np.testing.assert_allclose(
        reference.softmax_cross_entropy_backward(logits, targets), [[1 / 8, -6 / 8, 5 / 8]], rtol=1e-15
    )


def test_smoothed_by_hand():
    """Three classes, s = 0.3: a tenth goes to each. Rows still sum to 1, and certain is what was certain."""
    targets = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(reference.smoothed(targets, 0.3), [[0.1, 0.8, 0.1], [0.45, 0.45, 0.1]], rtol=1e-15)
    np.testing.assert_array_equal(reference.smoothed(targets, 0.0), targets)


def test_smoothed_labels_have_their_least_loss_at_finite_logits(random):
    """Where the softmax equals them; every other place has a larger loss."""
    targets = reference.smoothed(np.eye(4)[[2]], 0.2)
    best = np.log(targets)
    np.testing.assert_allclose(reference.softmax_cross_entropy_backward(best, targets), 0, atol=1e-15)
    least = reference.softmax_cross_entropy(best, targets)
    assert least == pytest.approx(-(targets * np.log(targets)).sum(), rel=1e-14)
    for move in random.normal(size=(20, 1, 4)):
        assert reference.softmax_cross_entropy(best + move, targets) > least


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept(random, dtype):
    x, w, b = (random.normal(size=s).astype(dtype) for s in ((2, 4, 4, 2), (3, 3, 2, 2), (2,)))
    y = reference.conv2d(x, w, b)
    targets = np.eye(2, dtype=dtype)[[0, 1]]
    results = [
        y,
        *reference.conv2d_backward(y, x, w),
        reference.max_pool2d(x, (2, 2), (2, 2)),
        reference.max_pool2d_backward(x[:, :2, :2], x, (2, 2), (2, 2)),
        reference.dense(x[0, 0], w[0, 0], b),
        *reference.dense_backward(x[0, 0], x[0, 0], w[0, 0]),
        reference.relu(x),
        reference.relu_backward(x, x),
        more_reference.batch_norm(x, b, b, 1e-5),
        *more_reference.batch_norm_backward(x, x, b, 1e-5),
        more_reference.dropout(x, x.real > 0, 0.5),
        more_reference.dropout_backward(x, x.real > 0, 0.5),
        more_reference.global_average_pool2d(x),
        more_reference.global_average_pool2d_backward(x[:, 0, 0], x),
        reference.smoothed(targets, 0.1),
        reference.softmax_cross_entropy(w[0, 0], targets),
        reference.softmax_cross_entropy_backward(w[0, 0], targets),
    ]
    assert [r.dtype for r in results] == [dtype] * len(results)
