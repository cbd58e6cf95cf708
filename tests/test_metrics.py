"""Figures by class, against counting by hand."""

import numpy as np
import pytest

from tinycnn.metrics import (
    calibration,
    class_table,
    confusion_matrix,
    confusion_table,
    cross_entropy,
    expected_calibration_error,
    precision_recall_f1,
)
from tinycnn.tables import table

LABELS, GUESSES = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])


def test_confusion_matrix_of_so_many_classes_that_a_byte_does_not_hold_their_pairs():
    labels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(confusion_matrix(labels, labels[::-1], 256), np.eye(256)[::-1])


def test_confusion_matrix_counts():
    matrix = confusion_matrix(LABELS.astype(np.uint8), GUESSES, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_precision_recall_and_f1_by_hand():
    figures = precision_recall_f1(confusion_matrix(LABELS, GUESSES, 4))
    np.testing.assert_allclose(figures[0], [2 / 4, 2 / 3, 2 * (1 / 3) / (7 / 6)])
    np.testing.assert_allclose(figures[1], [1 / 2, 1 / 2, 1 / 2])
    np.testing.assert_array_equal(figures[2:], 0)


def test_tables():
    matrix = confusion_matrix(LABELS, GUESSES, 3)
    assert class_table(matrix).splitlines()[2].split() == ["0", "3", "50.00%", "66.67%", "57.14%"]
    assert confusion_table(matrix).splitlines()[2].split() == ["0", "2", "1", "·"]
    assert table([("of nothing",)]).splitlines() == ["of nothing", "──────────"]


def test_cross_entropy():
    p = np.array([[0.5, 0.5], [0.25, 0.75]])
    assert cross_entropy(np.array([0, 1]), p) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert np.isfinite(cross_entropy(np.array([0]), np.array([[0.0, 1.0]])))


def two_classes(*first: float, dtype=np.float64) -> np.ndarray:
    """Rows of probabilities, given that of class 0."""
    return np.array([(p, 1 - p) for p in first], dtype)


def test_calibration_by_hand():
    """Of five bins one gets 0.55 (right), one 0.65 (right), 0.7 (wrong), one 0.9 and 0.95 (right) and 0.85 (wrong)."""
    probabilities = two_classes(0.55, 0.65, 0.7, 0.1, 0.95, 0.15)
    rows = calibration(np.array([0, 0, 1, 1, 0, 0]), probabilities, bins=5)
    expected = [[0, 0, 0], [0, 0, 0], [0.55, 1, 1], [0.675, 1 / 2, 2], [0.9, 2 / 3, 3]]
    np.testing.assert_allclose(rows, expected, rtol=1e-14)
    error = 1 / 6 * (1 - 0.55) + 2 / 6 * (0.675 - 1 / 2) + 3 / 6 * (0.9 - 2 / 3)
    assert expected_calibration_error(rows) == pytest.approx(error, rel=1e-13)


def test_perfectly_calibrated():
    """Of ten with confidence 0.8 eight are right, of four with 0.75 three, of two with 0.5 one: no error."""
    probabilities = two_classes(*[0.8] * 10, *[0.75] * 4, *[0.5] * 2)
    rows = calibration(np.array([0] * 8 + [1] * 2 + [0] * 3 + [1] + [0, 1]), probabilities, bins=100)
    np.testing.assert_allclose(rows[rows[:, 2] > 0], [[0.5, 0.5, 2], [0.75, 0.75, 4], [0.8, 0.8, 10]], rtol=1e-14)
    assert expected_calibration_error(rows) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("bins", [1, 15])
def test_always_certain_and_always_wrong(bins):
    """A probability of exactly 1 is in the last bin."""
    rows = calibration(np.array([1, 1, 1]), two_classes(1, 1, 1), bins)
    assert rows[-1].tolist() == [1, 0, 3]
    assert not rows[:-1].any()
    assert expected_calibration_error(rows) == 1
    assert expected_calibration_error(calibration(np.array([0, 0]), two_classes(1, 1), bins)) == 0
    assert expected_calibration_error(calibration(np.array([1]), two_classes(1), bins)) == 1


def test_a_single_bin_compares_the_means(random):
    labels, probabilities = random.integers(0, 5, 50), random.dirichlet(np.ones(5), 50)
    rows = calibration(labels, probabilities, bins=1)
    confidence, accuracy = probabilities.max(axis=1).mean(), (probabilities.argmax(axis=1) == labels).mean()
    np.testing.assert_allclose(rows, [[confidence, accuracy, 50]], rtol=1e-13)
    assert expected_calibration_error(rows) == pytest.approx(abs(confidence - accuracy), rel=1e-12)


@pytest.mark.parametrize("bins", [3, 5, 7, 10, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_edge_belongs_to_the_bin_below(bins, dtype):
    """k / bins is the last number of bin k (counted from 1), the number after it the first of the next one."""
    for k in range(1, bins + 1):
        edge = dtype(k / bins)
        if float(edge) > k / bins:  # float32 has rounded it to the other side, where it then belongs
            edge = np.nextafter(edge, dtype(0))
        after = np.nextafter(edge, dtype(1))
        probabilities = np.array([[edge, 0], [after, 0]], dtype)
        counts = calibration(np.array([0, 0]), probabilities, bins)[:, 2]
        expected = np.zeros(bins)
        expected[k - 1] += 1
        expected[min(k, bins - 1)] += 1
        np.testing.assert_array_equal(counts, expected)


def test_of_tied_probabilities_the_first_class_is_the_answer():
    """As in predict: a label of the first is right, of the second wrong."""
    rows = calibration(np.array([0, 1, 1]), two_classes(0.5, 0.5, 0.5), bins=2)
    np.testing.assert_allclose(rows, [[0.5, 1 / 3, 3], [0, 0, 0]])


def test_calibration_of_many_images_in_single_precision_is_that_in_double(random):
    """What a network returns is float32; means over ten thousand keep their digits."""
    probabilities = random.dirichlet(np.full(10, 0.1), 10_000).astype(np.float32)
    labels = random.integers(0, 10, 10_000).astype(np.uint8)
    rows = calibration(labels, probabilities)
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, calibration(labels, probabilities.astype(np.float64)))
    assert rows[:, 2].sum() == 10_000
    mean = probabilities.max(axis=1).astype(np.float64).mean()
    assert (rows[:, 0] * rows[:, 2]).sum() / 10_000 == pytest.approx(mean, rel=1e-12)


def test_calibration_of_nothing_and_of_no_bins():
    empty = calibration(np.zeros(0, int), np.zeros((0, 3)))
    assert empty.shape == (15, 3)
    assert expected_calibration_error(empty) == 0
    with pytest.raises(ValueError, match="bins must be a whole number of at least 1, got 0"):
        calibration(np.array([0]), two_classes(1), bins=0)


@pytest.mark.parametrize(("labels", "predicted"), [([0], [3]), ([3], [0]), ([-1], [1]), ([1], [-1])])
def test_confusion_matrix_of_what_is_no_class(labels, predicted):
    with pytest.raises(ValueError, match="must be in 0 … 2"):
        confusion_matrix(np.array(labels), np.array(predicted), classes=3)


def test_a_loss_of_0_has_no_sign():
    assert not np.signbit(cross_entropy(np.array([0]), np.array([[1.0]])))


def test_confusion_matrix_of_nothing_and_of_no_whole_numbers():
    np.testing.assert_array_equal(confusion_matrix([], [], classes=2), np.zeros((2, 2)))
    np.testing.assert_array_equal(confusion_matrix(np.uint64([1]), [False], classes=2), [[0, 0], [1, 0]])
    for labels, predicted in (([0.7, 1.2], [0, 1]), ([0, 1], [0.7, 1.2]), (["0"], [0])):
        with pytest.raises(ValueError, match="whole numbers"):
            confusion_matrix(labels, predicted, classes=2)
