"""The average of the weights is what its formula says, survives a file, and leaves training alone."""

import tracemalloc
from math import comb

import numpy as np
import pytest

from tinycnn import (
    Adam,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
    WeightAverage,
    archive,
)


def make_model(dtype=np.float32) -> Sequential:
    layers = [Conv2D(4, 3, use_bias=False), BatchNorm(), ReLU(), Flatten(), Dense(3)]
    return Sequential(layers, (6, 5, 1), seed=1, dtype=dtype)


def trainer(model: Sequential):
    """A function that makes one step, on a batch that depends on its number alone."""
    loss, optimizer = SoftmaxCrossEntropy(), Adam(model.parameters(), 1e-2)

    def step(number: int) -> None:
        random = np.random.default_rng(number)
        logits = model.forward(random.normal(size=(8, 6, 5, 1)), training=True)
        loss.forward(logits, random.integers(0, 3, 8))
        model.parameter_gradients(loss.backward())
        optimizer.step()

    return step


def arrays(state) -> list[np.ndarray]:
    return [array.copy() for _, array in state]


def assert_same_bits(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.01])
def test_the_average_is_what_the_formula_says(share, random):
    """Written out as a sum over all steps: each with 1 − d of its own, times every later d."""
    model = make_model(np.float64)
    average, values = WeightAverage(model, share), [arrays(model.state())]
    for _ in range(30):
        for _, array in model.state():
            array[...] = random.normal(size=array.shape)
        average.update()
        values.append(arrays(model.state()))
    decays = [(1 + t) / (1 + t + 1 / share) for t in range(30)]
    weights = [np.prod(decays)] + [(1 - d) * np.prod(decays[t + 1 :]) for t, d in enumerate(decays)]
    assert sum(weights) == pytest.approx(1, rel=1e-13)
    if share == 1:
        assert weights == pytest.approx([1 / 31] * 31, rel=1e-13)  # the plain mean
    for k, (_, array) in enumerate(average.state()):
        expected = sum(weight * step[k] for weight, step in zip(weights, values, strict=True))
        np.testing.assert_allclose(array, expected, rtol=1e-12, atol=1e-13)


def test_everything_that_is_saved_with_a_model_is_averaged():
    """The running statistics of BatchNorm too."""
    model = make_model()
    average = WeightAverage(model, 0.2)
    assert [name for name, _ in average.state()] == [f"average.{name}" for name, _ in model.state()]
    assert "average.batchnorm_2.running_variance" in dict(average.state())
    start = arrays(average.state())
    trainer(model)(1)
    assert_same_bits(arrays(average.state()), start)  # not before update
    average.update()
    for (name, new), old in zip(average.state(), start, strict=True):
        assert (new != old).any(), name


def impulse_response(share: float, updates: int) -> np.ndarray:
    """How much the value at the start and at each update counts for the average after the last of them."""
    model = Sequential([Dense(updates + 1, use_bias=False)], (1,), dtype=np.float64)
    weight = model.parameters()[0].value  # at step t only the t-th number is 1
    weight[...] = np.eye(1, updates + 1)
    average = WeightAverage(model, share)
    for t in range(updates):
        weight[...] = np.eye(1, updates + 1, t + 1)
        average.update()
    return average.state()[0][1].ravel()


def test_the_start_is_soon_forgotten():
    """Π (1 + t) / (6 + t) over ten updates is 10! · 5! / 15!, one over a binomial coefficient."""
    assert impulse_response(0.2, 10)[0] == pytest.approx(1 / comb(15, 5), rel=1e-12)


@pytest.mark.parametrize("updates", [50, 500])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_it_is_one_over_the_last_share_of_all_steps(share, updates):
    """However many there are: the steps that it is made of are on the average share / (1 + share) of them ago."""
    weights = impulse_response(share, updates)
    age = (weights * np.arange(updates, -1, -1)).sum()
    assert age / updates == pytest.approx(share / (1 + share), rel=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_average_of_what_never_changes_is_that(dtype):
    """To the last bit, and in the model's own precision."""
    model = make_model(dtype)
    trainer(model)(1)
    average = WeightAverage(model, np.float64(0.2))
    for _ in range(50):
        average.update()
    assert_same_bits(arrays(average.state()), arrays(model.state()))


def test_training_does_not_notice():
    """With an average that is updated and looked through at every step, the same weights come out, bit for bit."""
    plain, watched = make_model(), make_model()
    plain_step, watched_step = trainer(plain), trainer(watched)
    average = WeightAverage(watched, 0.2)
    for number in range(12):
        plain_step(number)
        watched_step(number)
        average.update()
        with average.swapped():
            watched.predict(np.ones((2, 6, 5, 1)))
    assert_same_bits(arrays(watched.state()), arrays(plain.state()))


def test_swapped_puts_the_averages_into_the_model_and_takes_them_out_again(tmp_path):
    model = make_model()
    average, step = WeightAverage(model, 0.2), trainer(model)
    for number in range(5):
        step(number)
        average.update()
    own, averages, parameters = arrays(model.state()), arrays(average.state()), model.parameters()
    with average.swapped():
        assert_same_bits(arrays(model.state()), averages)
        assert_same_bits(arrays(average.state()), averages)
        model.save(tmp_path / "m.npz")
    assert_same_bits(arrays(model.state()), own)
    assert_same_bits(arrays(average.state()), averages)
    assert_same_bits(arrays(Sequential.load(tmp_path / "m.npz").state()), averages)
    with pytest.raises(RuntimeError, match="in the middle"), average.swapped():
        raise RuntimeError("in the middle")
    assert_same_bits(arrays(model.state()), own)
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))  # an optimizer holds on to these


def test_saved_and_restored_it_goes_on_as_if_nothing_had_happened(tmp_path):
    model = make_model()
    average, step = WeightAverage(model, 0.2), trainer(model)
    for number in range(4):
        step(number)
        average.update()
    everything = dict(model.state()) | dict(average.state())
    archive.write(tmp_path / "c.npz", archive.CHECKPOINT, {"updates": average.updates}, everything)

    other = make_model()
    restored = WeightAverage(other, 0.2)
    with archive.reading(tmp_path / "c.npz", archive.CHECKPOINT) as (description, found):
        archive.copy_all(found, dict(other.state()) | dict(restored.state()))
        restored.updates = description["updates"]
    assert_same_bits(arrays(restored.state()), arrays(average.state()))
    for _, value in model.state():
        value *= 1.5
    for _, value in other.state():
        value *= 1.5
    average.update()
    restored.update()
    assert_same_bits(arrays(restored.state()), arrays(average.state()))


def test_it_is_better_than_the_last_step_where_steps_are_noisy():
    """Labels of which a third is wrong, and a rate that never falls: the weights dance about their best place."""
    random = np.random.default_rng(3)
    truth, images = random.normal(size=(20, 4)), random.normal(size=(3000, 20)).astype(np.float32)
    labels = (images @ truth).argmax(axis=1)
    taught = np.where(random.random(3000) < 1 / 3, random.integers(0, 4, 3000), labels)
    model = Sequential([Dense(4)], (20,))
    loss, optimizer = SoftmaxCrossEntropy(), Adam(model.parameters(), 0.05)
    average = WeightAverage(model, 0.2)
    for i in range(0, 2000, 8):
        loss.forward(model.forward(images[i : i + 8], training=True), taught[i : i + 8])
        model.parameter_gradients(loss.backward())
        optimizer.step()
        average.update()
    rest = images[2000:], labels[2000:]
    last = (model.predict(rest[0]) == rest[1]).mean()
    with average.swapped():
        averaged = (model.predict(rest[0]) == rest[1]).mean()
    assert averaged > last + 0.02


def test_an_update_asks_for_no_memory():
    model = Sequential([Dense(600), Dense(10)], (1000,))  # 2.4 MB of weights
    average = WeightAverage(model, 0.2)
    for _ in range(3):
        average.update()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        average.update()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1 << 16


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.01, np.nan, "0.5", None])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        WeightAverage(make_model(), share)


def test_what_a_layer_counts_is_not_averaged():
    class Counting(ReLU):
        calls = np.zeros(1, np.int64)

        def statistics(self):
            return [("calls", self.calls)]

    average = WeightAverage(model := Sequential([Counting()], (3,)), share=0.5)
    model.layers[0].calls += 7
    average.update()
    assert average.state() == [("average.calls", 7)]
