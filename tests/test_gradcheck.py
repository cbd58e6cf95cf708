"""The tools of proof, themselves proven: on functions whose derivative is known, and on gradients that are wrong."""

import re

import numpy as np
import pytest

from tinycnn import BatchNorm, Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, Parameter, ReLU, Sequential
from tinycnn.gradcheck import central_difference, check_gradients, complex_step, relative_error
from tinycnn.together import one_by_one


def test_complex_step_is_exact(random):
    x = random.normal(size=(3, 2))
    np.testing.assert_allclose(
        complex_step(lambda x: np.exp(np.sin(x)).sum(), x), np.exp(np.sin(x)) * np.cos(x), rtol=1e-15
    )


def test_central_difference_has_ten_digits_and_puts_back(random):
    x = random.normal(size=(3, 2))
    before = x.copy()
    np.testing.assert_allclose(
        central_difference(lambda: float(np.exp(np.sin(x)).sum()), x), np.exp(np.sin(x)) * np.cos(x), rtol=1e-10
    )
    np.testing.assert_array_equal(x, before)


def test_relative_error():
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == 0.5
    assert relative_error(np.array([0.0]), np.array([1.0])) == 1
    assert relative_error(np.array([1e-14]), np.array([-1e-14])) == 0  # both below the floor
    assert relative_error(np.array([]), np.array([])) == 0
    for a, b in ((np.nan, 1.0), (1.0, np.nan), (np.nan, np.nan), (np.inf, 1.0)):
        with np.errstate(invalid="ignore"):
            assert not relative_error(np.array([0.0, a]), np.array([0.0, b])) < 1
    with pytest.raises(ValueError, match="shapes"):
        relative_error(np.ones((2, 3)), np.ones(3))


def test_a_wrong_gradient_has_a_large_error(random):
    x, dy = random.normal(size=(4, 3)), random.normal(size=(4, 3))
    exact = complex_step(lambda x: (x**2 * dy).sum(), x)
    for wrong in (0 * x, x * dy, -2 * x * dy, 2 * x, 2 * x * dy[::-1], (2 * x * dy) / len(x)):
        assert relative_error(wrong, exact) > 0.4
    assert relative_error(2 * x * dy, exact) < 1e-14


@pytest.mark.parametrize("factor", [1.001, 1 + 1e-6])
def test_even_a_small_error_shows(random, factor):
    x = random.normal(size=5)
    assert relative_error(factor * 2 * x, complex_step(lambda x: (x * x).sum(), x)) > 1e-7


class Cube:
    """An object of nobody's class: no parameters, no build, only forward and backward."""

    def forward(self, x, training=False):
        self.x = x
        return x**3

    def backward(self, dy):
        return 3 * self.x**2 * dy


class Scale:
    """With a parameter."""

    def __init__(self):
        self.factor = Parameter("factor", np.float32([2.0]), np.zeros(1, np.float32))

    def parameters(self):
        return [self.factor]

    def forward(self, x, training=False):
        self.x = x
        return x * self.factor.value

    def backward(self, dy):
        self.factor.grad = np.array([(dy * self.x).sum()], self.x.dtype)
        return dy * self.factor.value


def test_any_object_with_the_protocol_is_checked_and_left_alone(random):
    scale = Scale()
    report = check_gradients(scale, random.normal(size=(2, 3)))
    assert report.passed
    assert [(row.name, row.size) for row in report.rows] == [("input", 6), ("factor", 1)]
    assert scale.factor.value.dtype == np.float32
    assert scale.factor.value == 2
    assert not scale.factor.grad.any()
    assert check_gradients(Cube(), random.normal(size=5)).passed


def test_a_layer_alone_is_built_and_a_model_is_copied(random):
    layer = Conv2D(2, 3)
    assert check_gradients(layer, random.normal(size=(2, 5, 4, 3))).passed
    assert layer.weight is None
    assert layer.name == ""
    model = Sequential([Dense(3), ReLU(), Dropout(0.5), Dense(2)], (4,))  # float32, and random in training
    before = [p.value.copy() for p in model.parameters()]
    assert check_gradients(model, random.normal(size=(6, 4))).passed
    for p, value in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.value, value)
        assert p.value.dtype == np.float32


def test_the_table_shows_where_and_by_how_much(random, monkeypatch):
    x = random.normal(size=(4, 3))

    def wrong_at_one_place(self, dy):
        dx = 3 * self.x**2 * dy
        dx[self.x == x[2, 1]] *= 1.5
        return dx

    monkeypatch.setattr(Cube, "backward", wrong_at_one_place)
    report = check_gradients(Cube(), x)
    (row,) = report.rows
    assert not report.passed
    assert row.where == "[2, 1]"
    assert row.error == pytest.approx(1 / 3, abs=1e-6)
    assert row.analytic == pytest.approx(1.5 * row.numeric, rel=1e-6)
    lines = str(report).splitlines()
    assert lines[0].split() == ["array", "elements", "worst", "error", "where", "analytic", "numeric"]
    assert lines[2].split()[:4] == ["input", "12", "of", "12"]
    assert lines[2].endswith("FAIL")
    assert "Cube FAILED with tolerance 1e-07: " in lines[-1]
    assert report.failures() == ["input"]


def test_large_arrays_are_sampled_but_every_element_counts(random, monkeypatch):
    """One wrong element out of 10,000 that no sample meets shows in the directions in which all move."""
    x = random.normal(size=(100, 100))
    monkeypatch.setattr(Cube, "backward", lambda self, dy: 3 * self.x**2 * dy + (self.x == x[71, 13]))
    (row,) = check_gradients(Cube(), x, samples=5).rows
    assert (row.size, row.checked, row.passed) == (10_000, 5, False)
    assert row.where.startswith("all")


def test_kinks_are_noticed_and_any_slope_between_will_do():
    x = np.array([[-1.0, 0.0, 0.0, 2.0]])
    (row,) = check_gradients(ReLU(), x).rows
    assert row.passed
    assert row.kinks == 4  # along two elements and in both directions of all
    assert "kinks met: 4" in str(check_gradients(ReLU(), x))

    class Steeper(ReLU):
        def backward(self, dy):
            return super().backward(dy) + 2 * dy * (x == 0)

    assert not check_gradients(Steeper(), x).passed


def test_a_kink_nearby_is_stepped_around(random):
    x = random.normal(size=(5, 6))
    x[0, :3] = [1e-3, -2e-5, 3e-7]
    report = check_gradients(ReLU(), x)
    assert report.passed
    assert report.rows[0].kinks == 0


class Careless(Layer):
    """Breaks one promise a time."""

    def __init__(self, how):
        self.how = how

    def forward(self, x, training=False):
        self.calls = getattr(self, "calls", 0) + 1
        if self.how == "changes its input":
            x *= 1
            x[0] += 1
        if self.how == "is in float32":
            x = x.astype(np.float32)
        if self.how == "is in float64":
            x = x.astype(np.float64)
        return 2 * x + (self.calls if self.how == "counts" else 0)

    def backward(self, dy):
        if self.how == "changes dy":
            dy *= 2
            return dy.copy()
        if self.how == "returns nothing":
            return None
        return (2 * dy)[:, :2] if self.how == "loses a column" else 2 * dy


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("changes its input", "forward or backward changed the input"),
        ("changes dy", "forward or backward changed dy"),
        ("counts", "the output differs when the same is computed again"),
        ("is in float32", "the output is float32 for an input of float64"),
        ("is in float64", "the output is float64 for an input of float32"),
        ("returns nothing", "backward returned NoneType, not an array"),
        ("loses a column", r"dx has shape \(2, 2\), its array \(2, 3\)"),
    ],
)
def test_broken_promises_are_named(how, fault, random):
    report = check_gradients(Careless(how), random.normal(size=(2, 3)))
    assert not report.passed
    assert any(re.match(fault, f) for f in report.faults), report.faults
    assert f"FAIL: {report.faults[0]}" in str(report)


def test_not_a_number_fails():
    assert not check_gradients(Cube(), np.array([1.0, np.nan])).passed


def test_what_cancels_out_exactly_is_zero_on_both_sides(random):
    """BatchNorm takes away what a bias in front of it adds: the true gradient is 0, the computed one a rounding."""
    model = Sequential([Dense(8), BatchNorm()], (5,))
    report = check_gradients(model, random.normal(size=(4, 5)))
    assert report.passed
    assert next(row.analytic for row in report.rows if row.name == "dense_1.bias") != 0


def test_a_function_that_bends_sharply_takes_smaller_steps(monkeypatch):
    """A constant channel has no variance: there BatchNorm is curved within √epsilon, three times the first step."""
    assert check_gradients(BatchNorm(), np.ones((4, 2))).passed
    assert check_gradients(BatchNorm(epsilon=1e-12), np.ones((4, 2))).passed
    right = BatchNorm.backward
    monkeypatch.setattr(BatchNorm, "backward", lambda self, dy: 1.00001 * right(self, dy))
    assert not check_gradients(BatchNorm(), np.ones((4, 2))).passed


def picture_of_a_dot():
    """A model, and an image whose background ties in the pool; a convolution of mixed signs sees what comes out."""
    image = np.zeros((1, 8, 8, 1))
    image[0, 3:5, 3:5, 0] = np.random.default_rng(0).random((2, 2))
    return Sequential([Conv2D(3, 3), MaxPool2D(2), Conv2D(2, 2), Flatten(), Dense(2)], (8, 8, 1)), image


def test_where_the_output_does_not_tell_each_layer_is_checked_alone():
    report = check_gradients(*picture_of_a_dot())
    assert report.passed
    assert sum(row.undecided for row in report.rows) > 0
    assert [row.name for row in report.rows if "alone" in row.name] == [
        "conv2d_1 alone, input",
        "conv2d_1 alone, conv2d_1.weight",
        "conv2d_1 alone, conv2d_1.bias",
        "maxpool2d_2 alone, input",
        "conv2d_3 alone, input",
        "conv2d_3 alone, conv2d_3.weight",
        "conv2d_3 alone, conv2d_3.bias",
        "flatten_4 alone, input",
        "dense_5 alone, input",
        "dense_5 alone, dense_5.weight",
        "dense_5 alone, dense_5.bias",
    ]
    assert "each layer was checked alone as well" in str(report)


@pytest.mark.parametrize("slope", [5, -1, 1.1, 1 + 1e-5])
def test_a_wrong_slope_at_a_kink_is_seen_in_a_model_too(slope, random):
    class Wrong(ReLU):
        def forward(self, x, training=False):
            self.x = x.copy()
            return np.maximum(x, 0)

        def backward(self, dy):
            return (dy * np.where(self.x == 0, slope, self.x > 0)).astype(dy.dtype)

    x = random.normal(size=(3, 6))
    x[:, :3] = 0
    assert not check_gradients(Wrong(), x).passed
    assert not check_gradients(Sequential([Wrong(), Dense(4)], (6,)), x).passed
    assert check_gradients(Sequential([ReLU(), Dense(4)], (6,)), x).passed


@pytest.mark.parametrize("factor", [3, 0.5])
def test_a_wrong_gradient_at_the_ties_of_a_model_is_seen(factor, monkeypatch):
    """Right wherever a window has one maximum."""
    forward, backward = MaxPool2D.forward, MaxPool2D.backward

    def remember_x(self, x, training=False):
        self.x = x.copy()
        return forward(self, x, training)

    def wrong_at_ties(self, dy):
        n, height, width, channels = self.x.shape
        windows = self.x.reshape(n, height // 2, 2, width // 2, 2, channels)
        ties = (windows == windows.max(axis=(2, 4), keepdims=True)).sum(axis=(2, 4)) > 1
        return backward(self, dy * np.where(ties, factor, 1))

    monkeypatch.setattr(MaxPool2D, "forward", remember_x)
    monkeypatch.setattr(MaxPool2D, "backward", wrong_at_ties)
    with one_by_one():
        assert not check_gradients(*picture_of_a_dot()).passed


class CarelessScale(Layer):
    """With a weight; breaks one promise a time."""

    def __init__(self, how):
        self.how = how

    def build(self, input_shape, generator, dtype, gain):
        self.weight = Parameter("weight", np.full(input_shape, 2.0, dtype), np.zeros(input_shape, dtype))
        self._parameters = (self.weight,)
        return super().build(input_shape, generator, dtype, gain)

    def forward(self, x, training=False):
        self.x = x.copy()
        if self.how == "changes its weight":
            self.weight.value += 1
        return x * self.weight.value

    def backward(self, dy):
        grad = (self.x * dy).sum(axis=0)
        self.weight.grad = grad.astype(np.float64) if self.how == "gradient in float64" else grad
        dx = dy * self.weight.value
        return dx.astype(np.float64) if self.how == "dx in float64" else dx


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("changes its weight", "forward or backward changed weight"),
        ("dx in float64", "dx is float64 for an input of float32"),
        ("gradient in float64", "the gradient of weight is float64 for an input of float32"),
    ],
)
def test_broken_promises_about_a_weight_are_named(how, fault, random):
    assert check_gradients(CarelessScale(""), random.normal(size=(4, 3))).passed
    assert fault in check_gradients(CarelessScale(how), random.normal(size=(4, 3))).faults


def test_the_tolerance_is_the_callers(random):
    class Rough(ReLU):
        def backward(self, dy):
            return dy.dtype.type(1.001) * super().backward(dy)

    x = random.normal(size=(4, 3))
    assert not check_gradients(Rough(), x).passed
    assert check_gradients(Rough(), x, tolerance=0.01).passed


def test_a_check_of_nothing_is_refused():
    """It would pass whatever the gradient."""
    with pytest.raises(ValueError, match="nothing would be checked"):
        check_gradients(ReLU(), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        check_gradients(ReLU(), np.ones((2, 3)), samples=0)


def test_a_forward_that_forgets_to_return_is_named():
    class Forgetful(Layer):
        def forward(self, x, training=False):
            x + 1

    with pytest.raises(TypeError, match="Forgetful: its forward must return an array, got None"):
        check_gradients(Forgetful(), np.ones((2, 3)))
