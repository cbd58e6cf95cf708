"""The loop: it learns, repeats itself bit for bit, stops at a bad loss with what it had, and refuses bad data."""

import math
import time

import numpy as np
import pytest

from tinycnn import (
    SGD,
    Adam,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    MaxPool2D,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
    constant,
)
from tinycnn.averaging import WeightAverage
from tinycnn.training import COLUMNS, Position, TrainingDiverged, evaluate, train


def small_model(seed=0) -> Sequential:
    return Sequential([Conv2D(8, 3), MaxPool2D(2), BatchNorm(), ReLU(), Flatten(), Dense(3)], (8, 8, 1), seed=seed)


@pytest.fixture
def stripes(random):
    """Three classes that differ by the direction of their stripes: 90 noisy images."""
    i, j = np.mgrid[:8, :8]
    patterns = np.stack([i % 2, j % 2, (i + j) % 2]).astype(np.float32)
    labels = random.integers(0, 3, size=90)
    images = patterns[labels] + random.normal(0, 0.3, size=(90, 8, 8)).astype(np.float32)
    return images[..., None].astype(np.float32), labels


def run(stripes, model=None, rate=0.01, optimizer=Adam, **changes):
    model = model or small_model()
    arguments = {"epochs": 3, "batch_size": 16, "generator": np.random.default_rng(1)} | changes
    return model, train(model, optimizer(model.parameters(), rate), constant(rate), *stripes, **arguments)


def test_it_learns(stripes):
    model, history = run(stripes, epochs=8, validation=stripes)
    assert evaluate(model, *stripes)[1] > 0.98
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert all(tuple(row) == COLUMNS for row in history)
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]
    assert history[-1]["train_accuracy"] > history[0]["train_accuracy"]
    assert (history[-1]["validation_loss"], history[-1]["validation_accuracy"]) == evaluate(model, *stripes)
    assert history[-1]["learning_rate"] == 0.01
    assert all(row["seconds"] > 0 for row in history)


def test_without_a_learning_rate_it_does_not(stripes):
    """Weights stay as they are, so a network that "learns" in the test above does so by its gradients."""
    model, untouched = small_model(), small_model()
    run(stripes, model, rate=0.0)
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        np.testing.assert_array_equal(p.value, q.value)


@pytest.mark.parametrize(("optimizer", "rate"), [(SGD, 0.3), (Adam, 0.01)])
def test_one_batch_can_be_learned_by_heart(stripes, optimizer, rate):
    model, _ = run((stripes[0][:16], stripes[1][:16]), epochs=150, batch_size=16, optimizer=optimizer, rate=rate)
    loss = SoftmaxCrossEntropy()
    assert loss.forward(model.forward(stripes[0][:16], training=True), stripes[1][:16]) < 1e-2


def test_figures_of_an_epoch_are_means_over_images(stripes):
    """With a rate of 0 nothing moves: the epoch's loss must equal that of one pass, also with a smaller last batch."""
    model = Sequential([Flatten(), Dense(3)], (8, 8, 1))
    _, history = run(stripes, model, rate=0.0, epochs=1, batch_size=32)  # 90 = 32 + 32 + 26
    loss, accuracy = evaluate(model, *stripes, batch_size=7)
    assert history[0]["train_loss"] == pytest.approx(loss, rel=1e-6)
    assert history[0]["train_accuracy"] == accuracy
    assert loss == pytest.approx(SoftmaxCrossEntropy().forward(model.forward(stripes[0]), stripes[1]), rel=1e-6)
    assert accuracy == (model.predict(stripes[0]) == stripes[1]).mean()


def test_every_image_is_shown_once_an_epoch_in_a_new_order(stripes):
    batches = []
    run(
        (np.arange(90.0).reshape(90, 1, 1, 1) * np.ones((1, 8, 8, 1)), stripes[1]),
        epochs=2,
        augment=lambda x: batches.append(x[:, 0, 0, 0]) or x,
    )
    assert [len(b) for b in batches] == [16, 16, 16, 16, 16, 10] * 2
    first, second = np.concatenate(batches[:6]), np.concatenate(batches[6:])
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(90))
    assert (first != second).any()
    assert (first != np.arange(90)).any()


def test_the_schedule_is_asked_for_every_step(stripes):
    steps = []
    model = small_model()
    train(
        model,
        Adam(model.parameters()),
        lambda step: steps.append(step) or 0.001 * step,
        *stripes,
        epochs=2,
        batch_size=40,
        generator=np.random.default_rng(0),
    )
    assert steps == [0, 1, 2, 3, 4, 5]


def test_the_average_is_of_every_step_and_is_what_validation_sees(stripes):
    model = small_model()
    average = WeightAverage(model, 0.2)
    run(stripes, model, average=average, epochs=1, batch_size=30)
    assert average.updates == 3
    model = small_model()
    average = WeightAverage(model, 0.2)
    _, history = run(stripes, model, average=average, validation=stripes, epochs=2)
    own = evaluate(model, *stripes)
    with average.swapped():
        averaged = evaluate(model, *stripes)
    assert (history[-1]["validation_loss"], history[-1]["validation_accuracy"]) == averaged != own


def test_the_average_does_not_touch_the_training(stripes):
    alone, _ = run(stripes)
    model = small_model()
    run(stripes, model, average=WeightAverage(model, 0.2), validation=stripes)
    for (name, a), (_, b) in zip(alone.state(), model.state(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_smoothed_labels_reach_the_loss(stripes):
    """It can't get below the entropy of a smoothed label, and comes near."""
    rows = [run(stripes, epochs=8, loss=SoftmaxCrossEntropy(s))[1][-1] for s in (0.0, 0.2)]
    least = -(1 - 0.2 * 2 / 3) * np.log(1 - 0.2 * 2 / 3) - 0.4 / 3 * np.log(
        0.2 / 3
    )  # the entropy of the smoothed label
    assert rows[0]["train_loss"] < 0.1 < least < rows[1]["train_loss"] < least + 0.1


def test_a_validation_loss_that_is_not_finite_stops(stripes):
    huge = (np.float32(1e38) * stripes[0], stripes[1])
    with pytest.raises(TrainingDiverged, match=r"the validation loss is (nan|inf) after epoch \d, learning rate 0\.01"):
        run(stripes, Sequential([Flatten(), Dense(20), Dense(3)], (8, 8, 1)), validation=huge)


def test_same_seeds_same_weights_bit_for_bit(stripes):
    (a, history_a), (b, history_b) = run(stripes), run(stripes)
    for (name, x), (_, y) in zip(a.state(), b.state(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert [row["train_loss"] for row in history_a] == [row["train_loss"] for row in history_b]


def test_each_epoch_is_reported(stripes):
    seen = []
    _, history = run(stripes, after_epoch=lambda position: seen.append(position.history[-1]))
    assert seen == history


def test_progress_shows_loss_accuracy_and_speed(stripes, capsys):
    run(stripes, epochs=1, progress=True, augment=lambda x: time.sleep(0.15) or x)  # the bar is redrawn every 0.1 s
    shown = capsys.readouterr().err
    for part in ("epoch 1/1", "loss=", "accuracy=", " images/s", "80/90"):
        assert part in shown
    run(stripes, epochs=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("poison", [np.float32(np.inf), np.float32(3e38)])
def test_a_loss_that_is_not_finite_stops_and_restores(stripes, poison):
    """In the second epoch the third batch is poisoned: all ends as the first epoch left it, statistics and average."""
    after_first, of_second = [], []

    def augment(images):
        of_second.extend([images] if after_first else [])
        return images * poison if len(of_second) == 3 else images

    model = small_model()
    average = WeightAverage(model, 0.5)
    state = lambda: model.state() + average.state()  # noqa: E731
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d of epoch 2, learning rate 0\.01"):
        run(
            stripes,
            model,
            augment=augment,
            average=average,
            after_epoch=lambda _: after_first.extend(a.copy() for _, a in state()),
        )
    for (name, now), then in zip(state(), after_first, strict=True):
        np.testing.assert_array_equal(now, then, err_msg=name)
    assert math.isfinite(evaluate(model, *stripes)[0])


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_last_step_that_destroys_is_not_kept(stripes, epochs):
    """One step an epoch: the step that breaks the weights is followed by no other loss in its epoch."""
    model = Sequential([Flatten(), Dense(20), ReLU(), Dense(3)], (8, 8, 1))
    before = [array.copy() for _, array in model.state()]
    with pytest.raises(TrainingDiverged, match="after epoch 1"):
        run(stripes, model, rate=1e30, optimizer=SGD, epochs=epochs, batch_size=90)
    for (name, now), then in zip(model.state(), before, strict=True):
        np.testing.assert_array_equal(now, then, err_msg=name)


def test_a_rate_far_too_high_is_reported_as_such(stripes):
    model = Sequential([Flatten(), Dense(50), ReLU(), Dense(3)], (8, 8, 1))
    with pytest.raises(TrainingDiverged, match="a lower learning rate may help"):
        run(stripes, model, rate=1e30, optimizer=SGD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, np.where(y == 2, 3, y)), "label 3 is outside 0 … 2"),
        (lambda x, y: (x, y - 1), "label -1 is outside 0 … 2"),
        (lambda x, y: (x[:-1], y), "89 images, but 90 labels"),
        (lambda x, y: (x[:0], y[:0]), "there are no images"),
        (lambda x, y: (x, y.astype(float)), "labels must be whole numbers"),
        (lambda x, y: (x, y[:, None]), "labels must be whole numbers"),
        (lambda x, y: (np.where(x > 1, np.nan, x), y), "NaN or infinite pixels"),
        (lambda x, y: (np.where(x == x.max(), np.inf, x), y), "NaN or infinite pixels"),
        (lambda x, y: (x[:, :5], y), "needs images of shape"),
    ],
)
def test_bad_data_is_refused(stripes, change, message):
    bad = change(*stripes)
    with pytest.raises(ValueError, match=message):
        run(bad)
    with pytest.raises(ValueError, match=message):
        evaluate(small_model(), *bad)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"epochs": -1}])
def test_bad_settings_are_refused(stripes, changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
        run(stripes, **changes)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        evaluate(small_model(), *stripes, batch_size=-1)


def test_bad_validation_data_are_refused_before_the_first_step(stripes):
    model, untouched = small_model(), small_model()
    with pytest.raises(ValueError, match="label 3 is outside"):
        run(stripes, model, validation=(stripes[0], stripes[1] + 1))
    np.testing.assert_array_equal(model.parameters()[0].value, untouched.parameters()[0].value)


def test_the_position_that_is_given_stays_as_it_is(stripes):
    beginning = Position()
    _, history = run(stripes, position=beginning)
    assert beginning == Position()
    assert run(stripes, position=beginning)[1][0]["train_loss"] == history[0]["train_loss"]


def test_no_epoch_and_one_image(stripes):
    assert run(stripes, epochs=0)[1] == []
    _, history = run((stripes[0][:1], stripes[1][:1]), batch_size=8)
    assert len(history) == 3


def test_the_loss_at_the_start_is_that_of_knowing_nothing(random):
    """ln 10: no class is favoured."""
    layers = [Conv2D(16, 3), MaxPool2D(2), ReLU(), Conv2D(32, 3), ReLU(), Flatten(), Dense(64), ReLU(), Dense(10)]
    model = Sequential(layers, (14, 14, 1))
    loss, _ = evaluate(model, random.normal(size=(200, 14, 14, 1)).astype(np.float32), random.integers(0, 10, size=200))
    assert loss == pytest.approx(np.log(10), abs=0.05)


def test_lists_will_do_as_well(stripes):
    images, labels = stripes
    model = small_model()
    assert evaluate(model, images.tolist(), labels.tolist()) == evaluate(model, images, labels)


class Noting(SGD):
    """Notes the rate of each step, and a weight behind it."""

    def __init__(self, parameters, rate):
        super().__init__(parameters, rate)
        self.rates, self.weights = [], [self.parameters[0].value.copy()]

    def step(self):
        super().step()
        self.rates.append(self.learning_rate)
        self.weights.append(self.parameters[0].value.copy())


def test_each_step_is_made_at_the_schedules_rate(stripes):
    model = small_model()
    optimizer, generator = Noting(model.parameters(), 9.0), np.random.default_rng(0)
    train(model, optimizer, lambda step: 0.001 * step, *stripes, epochs=2, batch_size=40, generator=generator)
    assert optimizer.rates == [0.001 * step for step in range(6)]


def test_the_average_takes_in_the_weights_behind_each_step(stripes):
    model, generator = small_model(), np.random.default_rng(0)
    optimizer, average = Noting(model.parameters(), 0.1), WeightAverage(model, 1.0)  # the plain mean, with the start
    train(model, optimizer, constant(0.1), *stripes, epochs=2, batch_size=30, generator=generator, average=average)
    np.testing.assert_allclose(average.state()[0][1], np.mean(optimizer.weights, axis=0), rtol=1e-5, atol=1e-7)


def test_an_augmented_image_keeps_its_label(stripes):
    """Each image is of the grey that its label says."""
    labels, shown, told = stripes[1], [], []

    class Told(SoftmaxCrossEntropy):
        def forward(self, logits, labels):
            told.append(labels)
            return super().forward(logits, labels)

    images = labels[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)
    run((images, labels), augment=lambda x: shown.append(x[:, 0, 0, 0]) or x, loss=Told())
    np.testing.assert_array_equal(np.concatenate(shown), np.concatenate(told))


def test_the_seconds_of_an_epoch_are_its_own(stripes):
    started = time.perf_counter()
    _, history = run(stripes, epochs=6)
    assert sum(row["seconds"] for row in history) <= time.perf_counter() - started
