"""The optimizers against trajectories worked out by hand, the schedules at their corners, and the kernels behind."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest

from tinycnn import SGD, Adam, Parameter, constant, cosine, one_cycle, step_decay
from tinycnn.kernels import optimizers


def parameter(value: float = 1.0) -> Parameter:
    return Parameter("w", np.array([value]), np.zeros(1))


def trajectory(optimizer, p: Parameter, gradients: list[float]) -> list[float]:
    values = []
    for gradient in gradients:
        p.grad[:] = gradient
        optimizer.step()
        values.append(float(p.value[0]))
    return values


def test_sgd_by_hand():
    p = parameter()
    assert trajectory(SGD([p], 0.5), p, [1, -2, 4]) == [0.5, 1.5, -0.5]


def test_sgd_momentum_by_hand():
    """v = 1, then 0.5·1 + 2 = 2.5, then 0.5·2.5 − 1 = 0.25; each times 0.1 off the weight."""
    p = parameter()
    np.testing.assert_allclose(trajectory(SGD([p], 0.1, momentum=0.5), p, [1, 2, -1]), [0.9, 0.65, 0.625], rtol=1e-15)


def test_sgd_nesterov_by_hand():
    """As above, but g + 0.5·v: 1.5, then 2 + 1.25 = 3.25, then −1 + 0.125 = −0.875."""
    p = parameter()
    values = trajectory(SGD([p], 0.1, momentum=0.5, nesterov=True), p, [1, 2, -1])
    np.testing.assert_allclose(values, [0.85, 0.525, 0.6125], rtol=1e-15)


def test_sgd_weight_decay_by_hand():
    """g = 1 + 0.5·1, w = 1 − 0.1·1.5 = 0.85; then v = 0.5·1.5 + (0 + 0.5·0.85) = 1.175, w = 0.7325."""
    p = parameter()
    values = trajectory(SGD([p], 0.1, momentum=0.5, weight_decay=0.5), p, [1, 0])
    np.testing.assert_allclose(values, [0.85, 0.7325], rtol=1e-15)


def test_adam_by_hand():
    """Powers of two: beta1 = 1/2, beta2 = 3/4, epsilon = 0.

    t = 1, g = 2:  m = 1, v = 1;  m̂ = 2, v̂ = 4;              w = 1 − 0.1 · 2/2 = 0.9
    t = 2, g = −1: m = 0, v = 1;                              w stays
    t = 3, g = 3:  m = 3/2, v = 3; m̂ = 12/7, v̂ = 3/(37/64);   w = 0.9 − 0.1 · (12/7) / √(192/37)
    """
    p = parameter()
    values = trajectory(Adam([p], 0.1, beta1=0.5, beta2=0.75, epsilon=0), p, [2, -1, 3])
    np.testing.assert_allclose(values, [0.9, 0.9, 0.9 - 0.1 * (12 / 7) / np.sqrt(192 / 37)], rtol=1e-14)


def test_adam_epsilon_stands_outside_the_root():
    p = parameter()
    assert trajectory(Adam([p], 0.1, epsilon=1.0), p, [3]) == [pytest.approx(1 - 0.1 * 3 / (3 + 1), rel=1e-14)]


def test_adam_weight_decay_is_decoupled():
    """It shrinks the weight by rate · decay and does not enter m and v: with g = 0 nothing else happens."""
    p = parameter(2.0)
    values = trajectory(Adam([p], 0.5, weight_decay=0.1), p, [0, 0])
    np.testing.assert_allclose(values, [2 * 0.95, 2 * 0.95**2], rtol=1e-15)


def test_adam_first_step_is_the_rate_whatever_the_gradient():
    """Without the correction of its bias the first step would be √0.001/0.1 times as long."""
    for gradient in (1e-3, 1.0, 1e3):
        p = parameter(0.0)
        assert trajectory(Adam([p], 0.01), p, [gradient]) == [pytest.approx(-0.01, rel=1e-4)]


@pytest.mark.parametrize("make", [lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True), lambda ps: Adam(ps, 0.1)])
def test_parameters_do_not_mix_and_gradients_stay(make, random):
    """Each parameter has its own state; step() changes values in place and nothing else; dtype is kept."""
    together = [
        Parameter(n, random.normal(size=s).astype(np.float32), np.zeros(s, np.float32))
        for n, s in (("a", 3), ("b", (2, 4)))
    ]
    alone = [Parameter(p.name, p.value.copy(), p.grad.copy()) for p in together]
    joint, single = make(together), [make([p]) for p in alone]
    arrays = [p.value for p in together]
    for _ in range(3):
        for p, q in zip(together, alone, strict=True):
            p.grad[...] = q.grad[...] = random.normal(size=p.grad.shape)
        gradients = [p.grad.copy() for p in together]
        joint.step()
        for optimizer in single:
            optimizer.step()
        for p, gradient in zip(together, gradients, strict=True):
            np.testing.assert_array_equal(p.grad, gradient)
    for p, q, array in zip(together, alone, arrays, strict=True):
        np.testing.assert_array_equal(p.value, q.value)
        assert p.value is array
        assert p.value.dtype == np.float32


def test_learning_rate_can_be_set_between_steps():
    p = parameter()
    optimizer = SGD([p], 1.0)
    optimizer.learning_rate = 0.25
    assert trajectory(optimizer, p, [1]) == [0.75]
    adam = Adam([p], 1.0)
    adam.learning_rate = 0.0
    assert trajectory(adam, p, [5]) == [0.75]


def test_optimizers_find_a_minimum():
    """f(w) = (w − 3)²: momentum of the wrong sign or a step uphill would not get there."""
    for make in (
        lambda p: SGD([p], 0.1),
        lambda p: SGD([p], 0.02, momentum=0.9),
        lambda p: SGD([p], 0.02, momentum=0.9, nesterov=True),
        lambda p: Adam([p], 0.1),
    ):
        p = parameter(-5.0)
        optimizer = make(p)
        for _ in range(500):
            p.grad[:] = 2 * (p.value - 3)
            optimizer.step()
        assert p.value[0] == pytest.approx(3, abs=1e-3)


def test_schedules_at_their_limits():
    assert step_decay(1.0, every=1)(2) == pytest.approx(0.01)  # by a tenth unless told otherwise
    schedule = one_cycle(1.0, total_steps=4, warm_up=0.0)  # the first step is always on the way up
    assert [schedule(step) for step in range(5)] == pytest.approx([0.1, 1.0, 0.75, 0.25, 0.0])
    assert one_cycle(1.0, total_steps=1)(0) == pytest.approx(0.1)


def test_schedules():
    assert [constant(0.3)(step) for step in (0, 10**6)] == [0.3, 0.3]
    assert [step_decay(8.0, every=2, factor=0.5)(step) for step in range(5)] == [8, 8, 4, 4, 2]
    np.testing.assert_allclose([cosine(2.0, 4)(s) for s in (0, 1, 2, 4, 9)], [2, 1 + np.sqrt(0.5), 1, 0, 0], atol=1e-15)
    cycle = one_cycle(1.0, total_steps=20, warm_up=0.5, start=0.2)
    np.testing.assert_allclose([cycle(s) for s in (0, 5, 10, 15, 20)], [0.2, 0.6, 1, 0.5, 0], atol=1e-15)
    rates = [one_cycle(1.0, 37)(s) for s in range(37)]
    peak = int(np.argmax(rates))
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert min(rates) > 0
    assert [0 <= one_cycle(1.0, n)(s) <= 1 for n in (1, 2) for s in range(n)] == [True] * 3  # also a tiny training


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, Fraction])
def test_a_rate_may_be_any_kind_of_number(number):
    """As np.where(step < 3, …, …) gives an array without axes."""
    values = []
    for rate in (0.25, number(0.25)):
        parameter = Parameter("w", np.ones(3, np.float32), np.ones(3, np.float32))
        optimizer = SGD([parameter], 0.1, momentum=number(0.5))
        optimizer.learning_rate = rate
        optimizer.step()
        values.append(parameter.value)
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.999), (1e-8, 1e-8), (0.3, 0.6)])
def test_adam_that_hardly_remembers(beta1, beta2, dtype):
    """A large gradient before it must not swallow a small one."""
    parameter = Parameter("w", np.zeros(1, dtype), np.zeros(1, dtype))
    optimizer, m, v = Adam([parameter], 1.0, beta1, beta2), 0.0, 0.0
    for t, g in enumerate([1.0, 1e-4, -3e-4, 2.0, 1e-6], start=1):
        parameter.grad[0] = g
        g, before = float(parameter.grad[0]), float(parameter.value[0])
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        np.testing.assert_allclose([optimizer.means[0], optimizer.squares[0]], [[m], [v]], rtol=8 * np.finfo(dtype).eps)
        step = m / (1 - beta1**t) / ((v / (1 - beta2**t)) ** 0.5 + 1e-8)
        after = float(parameter.value[0])
        np.testing.assert_allclose(before - after, step, rtol=1e-5, atol=1e-6 * max(1, abs(after)))


@pytest.mark.parametrize("rate", [None, "0.1", -1.0, float("nan")])
@pytest.mark.parametrize("make", [SGD, Adam])
def test_what_is_no_learning_rate_is_refused_before_anything_changes(make, rate):
    """None is what a schedule without a return statement gives."""
    parameter = Parameter("w", np.ones(3, np.float32), np.ones(3, np.float32))
    optimizer = make([parameter], 0.1)
    optimizer.learning_rate = rate
    with pytest.raises(ValueError, match="learning_rate must be a number of at least 0"):
        optimizer.step()
    np.testing.assert_array_equal(parameter.value, 1)
    assert getattr(optimizer, "t", 0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SGD([], -0.1), "learning_rate must be a number of at least 0, got -0.1"),
        (lambda: SGD([], float("nan")), "learning_rate"),
        (lambda: SGD([], "0.1"), "learning_rate must be a number of at least 0, got '0.1'"),
        (lambda: SGD([], float("inf")), "learning_rate"),
        (lambda: SGD([], 0.1, momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: SGD([], 0.1, momentum="0.9"), "momentum must be at least 0 and below 1, got '0.9'"),
        (lambda: SGD([], np.array([0.1])), "learning_rate"),
        (lambda: SGD([], 0.1, weight_decay=-1), "weight_decay"),
        (lambda: Adam([], -1e-3), "learning_rate"),
        (lambda: Adam([], beta1=1), "beta1"),
        (lambda: Adam([], beta2=-0.5), "beta2"),
        (lambda: Adam([], epsilon=-1), "epsilon"),
        (lambda: Adam([], weight_decay=-1), "weight_decay"),
        (lambda: constant(-1), "learning_rate"),
        (lambda: step_decay(1, every=0), "every must be a whole number of at least 1"),
        (lambda: step_decay(1, every=5, factor=-1), "factor"),
        (lambda: cosine(-1, 5), "learning_rate"),
        (lambda: cosine(1, 0), "total_steps must be a whole number of at least 1"),
        (lambda: one_cycle(1, 0), "total_steps"),
        (lambda: one_cycle(1, 5, warm_up=1.5), "warm_up"),
        (lambda: one_cycle(1, 5, start=-1), "start"),
        (lambda: one_cycle(-1, 5), "learning_rate"),
    ],
)
def test_bad_numbers_name_the_thing(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_copy_changes_its_own_arrays(kind, copied):
    """A deep one those of its own parameters."""
    parameter = Parameter("w", np.ones(5), np.ones(5))
    optimizer = kind([parameter], learning_rate=0.5)
    optimizer.step()
    before, other = parameter.value.copy(), copied(optimizer)
    other.step()
    changed, same = other.parameters[0].value, parameter.value
    assert (changed < before).all()
    np.testing.assert_array_equal(same, changed if copied is copy.copy else before)


@pytest.mark.parametrize("sizes", [(5,), (3, 0, 50_001, 2, 50_000)])  # one part; eight
def test_steps_of_optimizers(random, sizes):
    x, dy = ([random.normal(size=size) for size in sizes] for _ in range(2))
    values, velocities, double = [a.copy() for a in x], [a.copy() for a in dy], [2 * a for a in x]
    optimizers.sgd(optimizers.Places(), values, double, velocities, 0.1, 0.9, False, 0.0)
    for value, velocity, a, b in zip(values, velocities, x, dy, strict=True):
        np.testing.assert_allclose(velocity, 0.9 * b + 2 * a, rtol=1e-13)
        np.testing.assert_allclose(value, a - 0.1 * velocity, rtol=1e-13)
    values, means, squares = [a.copy() for a in x], [a.copy() for a in dy], [a**2 for a in dy]
    optimizers.adam(optimizers.Places(), values, double, means, squares, 0.1, 0.8, 0.9, 1e-3, 0.01, 2)
    for value, mean, square, a, b in zip(values, means, squares, x, dy, strict=True):
        np.testing.assert_allclose(mean, 0.8 * b + 0.4 * a, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(square, 0.9 * b**2 + 0.4 * a**2, rtol=1e-9, atol=1e-12)
        step = 0.1 * mean / (1 - 0.8**2) / (np.sqrt(square / (1 - 0.9**2)) + 1e-3)
        np.testing.assert_allclose(value, 0.999 * a - step, rtol=1e-9, atol=1e-12)


def test_steps_of_optimizers_with_two_dtypes(random):
    """Each by itself comes to the same."""
    x = [random.normal(size=7).astype(dtype) for dtype in (np.float32, np.float64, np.float32)]
    together, apart = [a.copy() for a in x], [a.copy() for a in x]
    optimizers.sgd(optimizers.Places(), together, x, [0 * a for a in x], 0.1, 0.9, True, 0.1)
    for value, a in zip(apart, x, strict=True):
        optimizers.sgd(optimizers.Places(), [value], [a], [0 * a], 0.1, 0.9, True, 0.1)
    for a, b, begin in zip(together, apart, x, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, begin)


def test_steps_of_optimizers_follow_an_array_that_was_replaced():
    places, value, grad = optimizers.Places(), np.zeros(5), np.ones(5)
    for _ in range(2):
        optimizers.sgd(places, [value], [grad], [np.zeros(5)], 0.5, 0.9, False, 0.0)
    np.testing.assert_array_equal(value, -1)
    optimizers.sgd(places, [other := np.zeros(3)], [grad[:3]], [np.zeros(3)], 0.5, 0.9, False, 0.0)
    np.testing.assert_array_equal(other, -0.5)
    np.testing.assert_array_equal(value, -1)


READ_ONLY = np.ones((3, 4))
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("value", "grad"),
    [
        (np.ones((3, 4)), np.ones((4, 3)).T),
        (np.ones((3, 4)), np.ones((3, 4), np.float32)),
        (np.ones((3, 4)), np.ones(11)),
        (READ_ONLY, np.ones((3, 4))),
    ],
)
def test_steps_of_optimizers_refuse_what_they_can_not_change_in_place(value, grad):
    with pytest.raises(ValueError, match="must be contiguous, writable, of one size and dtype"):
        optimizers.sgd(optimizers.Places(), [value], [grad], [0 * value], 0.1, 0.9, True, 0.1)
    np.testing.assert_array_equal(value, 1)


@pytest.mark.parametrize("dtype", ["float16", "complex64", "int64", ">f8"])
def test_steps_of_optimizers_refuse_other_numbers(dtype):
    value = np.ones(4, dtype)
    with pytest.raises(ValueError, match="must be float32 or float64"):
        optimizers.sgd(optimizers.Places(), [value], [value], [0 * value], 0.1, 0.9, True, 0.1)


def test_steps_of_optimizers_refuse_a_parameter_twice():
    """Two threads would change it at once."""
    value, none = np.ones(4), np.ones(0)
    with pytest.raises(ValueError, match="parameter twice"):
        optimizers.sgd(optimizers.Places(), 2 * [value], 2 * [value], 2 * [0 * value], 0.1, 0.9, True, 0.1)
    optimizers.sgd(optimizers.Places(), 2 * [none], 2 * [none], 2 * [none], 0.1, 0.9, True, 0.1)
    neighbours, too_near = [value[:2], value[2:]], [value[2:], value[:3]]
    optimizers.sgd(optimizers.Places(), neighbours, neighbours, neighbours, 0.1, 0.9, True, 0.1)
    with pytest.raises(ValueError, match="a part of one"):
        optimizers.sgd(optimizers.Places(), too_near, *2 * [[np.ones(2), np.ones(3)]], 0.1, 0.9, True, 0.1)


def test_steps_of_optimizers_leave_alone_what_was_made_read_only():
    """Even if they have found its place before."""
    parameters = [Parameter(name, np.ones(2), np.ones(2)) for name in ("a", "b")]
    optimizer = SGD(parameters, 0.5)
    optimizer.step()
    parameters[1].value.flags.writeable = False
    with pytest.raises(ValueError, match="what is not to learn need not be given to the optimizer"):
        optimizer.step()
    np.testing.assert_array_equal([p.value for p in parameters], 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [lambda ps: SGD(ps, 0.1, 0.5, True), lambda ps: Adam(ps, 0.1, 0.5, 0.5)])
def test_what_remembers_gradients_fades_to_zero_and_is_never_subnormal(kind, dtype):
    """Half of it is left after each step without a gradient; a NaN stays one."""
    parameter = Parameter("w", np.ones(3, dtype), np.array([1, -1, np.nan], dtype))
    optimizer = kind([parameter])
    optimizer.step()
    parameter.grad[:2] = 0
    memory = optimizer.velocities if hasattr(optimizer, "velocities") else optimizer.means + optimizer.squares
    for _ in range(1100):
        optimizer.step()
        faded = np.abs([array[:2] for array in memory])
        assert ((faded == 0) | (faded > np.finfo(dtype).tiny)).all()
    assert (faded == 0).all()
    assert np.isfinite(parameter.value[:2]).all()
    assert all(np.isnan(array[2]) for array in [*memory, parameter.value])


@pytest.mark.parametrize("epsilon", [0, 1e-20, 1e-14, 1e-8])
def test_adam_takes_steps_of_the_learning_rate_whatever_size_the_gradients_have(epsilon):
    """The step is learning_rate · g / (|g| + epsilon), also if the square of g is nearly nothing."""
    g = 1e-15
    parameter = Parameter("w", np.zeros(1, np.float32), np.full(1, g, np.float32))
    Adam([parameter], 0.1, epsilon=epsilon).step()
    np.testing.assert_allclose(parameter.value, -0.1 * g / (g + epsilon), rtol=1e-3)


def test_adam_without_epsilon_stands_still_after_the_last_gradient():
    """Its square never becomes 0, and 0 / √0 does not happen."""
    parameter = Parameter("w", np.ones(1, np.float32), np.ones(1, np.float32))
    optimizer = Adam([parameter], 0.1, beta2=0.5, epsilon=0)
    optimizer.step()
    parameter.grad[:] = 0
    for _ in range(1000):
        optimizer.step()
    before = float(parameter.value[0])
    optimizer.step()
    assert float(parameter.value[0]) == before  # so it is no NaN
