"""Figures by class, against counting by hand."""

import numpy as np
import pytest

from tinycnn.metrics import class_table, confusion_matrix, confusion_table, cross_entropy, precision_recall_f1

LABELS, GUESSES = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])


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


def test_cross_entropy():
    p = np.array([[0.5, 0.5], [0.25, 0.75]])
    assert cross_entropy(np.array([0, 1]), p) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert np.isfinite(cross_entropy(np.array([0]), np.array([[0.0, 1.0]])))
