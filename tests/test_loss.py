"""The loss: equal to its formula, exact for huge logits, and clear about labels that don't fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycnn import SoftmaxCrossEntropy, reference, softmax
from tinycnn.gradcheck import central_difference, complex_step


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@given(n=st.integers(1, 9), classes=st.integers(1, 12), seed=st.integers(0, 99))
def test_equals_the_reference(smoothing, n, classes, seed):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, 3, size=(n, classes)), random.integers(0, classes, size=n)
    for given_labels, targets in (
        (labels, np.eye(classes)[labels]),
        (np.eye(classes)[labels], np.eye(classes)[labels]),
        (smooth := random.dirichlet(np.ones(classes), size=n), smooth),
    ):
        loss = SoftmaxCrossEntropy(smoothing)
        targets = reference.smoothed(targets, smoothing)
        expected = reference.softmax_cross_entropy(logits, targets)
        assert loss.forward(logits, given_labels) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        expected = reference.softmax_cross_entropy_backward(logits, targets)
        np.testing.assert_allclose(loss.backward(), expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_exact(dtype, size):
    """Right by a mile: loss 0. Wrong by a mile: the loss is the distance itself. Never inf, never NaN, no warning."""
    logits = np.array([[size, 0, -size], [0, size, size]], dtype)
    loss = SoftmaxCrossEntropy()
    best = int(logits[0].argmax())
    right = loss.forward(logits[:1], np.array([best]))
    assert str(right) == "0.0"
    np.testing.assert_array_equal(loss.backward(), 0)
    assert loss.forward(logits[:1], np.array([2 - best])) == 2e4
    np.testing.assert_array_equal(loss.backward(), [[1 if i == best else -1 if i == 2 - best else 0 for i in range(3)]])
    equals = loss.forward(logits[1:], np.array([1]))
    assert equals == pytest.approx(np.log(2) if size > 0 else 1e4 + np.log(1), rel=1e-6)


def test_a_nearly_certain_answer_is_exact_too():
    """p = 1 / (1 + e^−40): its logarithm would be lost if p were rounded to 1 first."""
    assert SoftmaxCrossEntropy().forward(np.array([[40.0, 0.0]]), np.array([0])) == pytest.approx(
        np.exp(-40), rel=1e-15
    )


def test_a_target_of_zero_costs_nothing_even_where_the_logit_is_minus_infinity():
    loss = SoftmaxCrossEntropy()
    assert loss.forward(np.array([[0.0, 0.0, -np.inf]]), np.array([1])) == pytest.approx(np.log(2))
    np.testing.assert_allclose(loss.backward(), [[0.5, -0.5, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_gradient_is_the_derivative_of_the_loss(smoothing, random):
    """By the loss's own values alone, and exactly, through the formula."""
    logits, labels = random.normal(size=(3, 5)), np.array([4, 0, 2])
    loss = SoftmaxCrossEntropy(label_smoothing=smoothing)
    loss.forward(logits, labels)
    gradient = loss.backward()
    numeric = central_difference(lambda: SoftmaxCrossEntropy(smoothing).forward(logits, labels), logits)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-9, atol=1e-11)
    targets = reference.smoothed(np.eye(5)[labels], smoothing)
    exact = complex_step(lambda logits: reference.softmax_cross_entropy(logits, targets), logits)
    np.testing.assert_allclose(gradient, exact, rtol=1e-13, atol=1e-15)


def test_smoothing_by_hand():
    """Logits ln 1, ln 2, ln 5 have the probabilities 1/8, 2/8, 5/8; s = 0.3 makes label 1 to 0.1, 0.8, 0.1."""
    loss = SoftmaxCrossEntropy(label_smoothing=0.3)
    value = loss.forward(np.log([[1.0, 2.0, 5.0]]), np.array([1]))
    assert value == pytest.approx(0.1 * np.log(8) + 0.8 * np.log(4) + 0.1 * np.log(8 / 5), rel=1e-14)
    np.testing.assert_allclose(loss.backward(), [[1 / 8 - 0.1, 2 / 8 - 0.8, 5 / 8 - 0.1]], rtol=1e-14)


def test_smoothing_makes_certainty_expensive():
    """Right by a mile costs a mile times what the other classes should have got; without smoothing it costs nothing."""
    logits = np.array([[1e4, 0, 0, 0]], np.float32)
    assert SoftmaxCrossEntropy().forward(logits, np.array([0])) == 0
    assert SoftmaxCrossEntropy(0.2).forward(logits, np.array([0])) == pytest.approx(1e4 * 3 * 0.2 / 4)
    impossible = np.array([[0.0, -np.inf]])
    assert SoftmaxCrossEntropy(0.2).forward(impossible, np.array([0])) == np.inf  # as the formula has it


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, np.nan])
def test_smoothing_is_a_part_of_the_label(smoothing):
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1, got"):
        SoftmaxCrossEntropy(smoothing)


def test_mean_over_the_batch(random):
    """Twice the batch, twice: the same loss and half the gradient a row."""
    logits, labels = random.normal(size=(3, 4)), np.array([0, 1, 3])
    loss = SoftmaxCrossEntropy()
    once, gradient = loss.forward(logits, labels), loss.backward()
    assert loss.forward(np.tile(logits, (2, 1)), np.tile(labels, 2)) == pytest.approx(once, rel=1e-14)
    np.testing.assert_allclose(loss.backward()[:3], gradient / 2, rtol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, np.float64(0.1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contracts(dtype, smoothing, random):
    logits, labels = random.normal(size=(5, 3)).astype(dtype), np.array([0, 1, 2, 1, 0], np.uint8)
    before = logits.copy()
    loss = SoftmaxCrossEntropy(smoothing)
    assert isinstance(loss.forward(logits, labels), float)
    first = loss.backward()
    assert first.dtype == dtype
    kept = first.copy()
    first[:] = 7  # the caller's to change
    np.testing.assert_array_equal(loss.backward(), kept)
    loss.forward(-logits, labels)
    np.testing.assert_array_equal(first, 7)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_allclose(kept.sum(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("row", [[np.nan, 0, 1], [0, np.nan, 1], [np.inf, 0, 1], [0, np.inf, np.inf], [-np.inf] * 3])
def test_not_a_number_is_not_hidden(row):
    """Nor is an infinite logit, whose probability would be ∞ / ∞."""
    loss = SoftmaxCrossEntropy()
    assert np.isnan(loss.forward(np.array([[0.0, 1, 2], row]), np.array([0, 2])))
    np.testing.assert_array_equal(np.isnan(loss.backward()), [[False] * 3, [True] * 3])


def test_many_small_probabilities_add_up():
    """In float32 as well: e^−10 a million times is 45, to all its digits."""
    logits = np.full((1, 1_000_001), -10, np.float32)
    logits[0, 500] = 0
    assert SoftmaxCrossEntropy().forward(logits, np.array([500])) == pytest.approx(
        np.log1p(1e6 * np.exp(-10)), rel=1e-6
    )


def test_softmax_rows_are_probabilities(random):
    p = softmax(random.normal(0, 500, size=(6, 10)))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0]])), [[0.25, 0.75]], rtol=1e-14)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 3]), "label 3 is outside 0 … 2"),
        (np.array([0, -1, 2]), "label -1 is outside"),
        (np.array([0, 1]), "needs 3 integers"),
        (np.array([0.0, 1.0, 2.0]), "float64"),
        (np.full((3, 3), 0.5), "sum to 1"),
        (np.array([[2.0, -1.0, 0.0]] * 3), "in 0 … 1"),
        (np.full((3, 3), np.nan), "in 0 … 1"),
        (np.zeros((3, 4)), "needs 3 integers"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxCrossEntropy().forward(np.zeros((3, 3)), labels)


def test_misuse():
    with pytest.raises(ValueError, match="needs a forward"):
        SoftmaxCrossEntropy().backward()
    for shape in ((0, 3), (3,), (3, 0)):
        with pytest.raises(ValueError, match="needs \\(N, classes\\), not empty"):
            SoftmaxCrossEntropy().forward(np.zeros(shape), np.zeros(shape[:1], int))


@pytest.mark.parametrize("kind", ["labels", "rows"])
def test_large_batches_are_shared_out(kind, random):
    logits, labels = random.normal(0, 3, size=(20_011, 10)), random.integers(0, 10, size=20_011)
    targets = np.eye(10)[labels]
    loss = SoftmaxCrossEntropy()
    value = loss.forward(logits, labels if kind == "labels" else targets)
    assert value == pytest.approx(reference.softmax_cross_entropy(logits, targets), rel=1e-12)
    expected = reference.softmax_cross_entropy_backward(logits, targets)
    np.testing.assert_allclose(loss.backward(), expected, rtol=1e-11, atol=1e-18)
    if kind == "labels":
        labels[[20_000, 20_001]] = 10, -1
        with pytest.raises(ValueError, match="label 10 is outside"):
            loss.forward(logits, labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_the_gradient_has_the_dtype_of_the_logits(dtype, random):
    loss, logits = SoftmaxCrossEntropy(), random.normal(size=(3, 4)).astype(dtype)
    loss.forward(logits, np.array([0, 3, 1]))
    assert loss.backward().dtype == dtype
    with pytest.raises(ValueError, match="needs real numbers"):
        loss.forward(logits.astype(complex), np.array([0, 3, 1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, list])
def test_softmax_of_other_numbers(dtype):
    logits = [[1, 2, 3]] if dtype is list else np.array([[1, 2, 3]], dtype)
    np.testing.assert_allclose(softmax(logits), [[0.09003057, 0.24472847, 0.66524096]], rtol=1e-6)
