"""The picture of a training: what is drawn is what was given."""

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.image import imread

from tinycnn import plots


def rows(epochs: int, validation: bool) -> list[dict]:
    return [
        {
            "epoch": e,
            "train_loss": 1 / e,
            "train_accuracy": 1 - 0.1 / e,
            "validation_loss": 2 / e if validation else None,
            "validation_accuracy": 1 - 0.2 / e if validation else None,
        }
        for e in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("epochs", [1, 4])
def test_training(tmp_path, random, validation, epochs):
    weights = random.normal(size=(5, 4, 3, 17))
    figure = plots.training(rows(epochs, validation), weights)
    loss, accuracy, filters, _ = figure.axes
    assert [axes.get_title() for axes in (loss, accuracy)] == ["Loss by epoch", "Accuracy by epoch"]
    assert [line.get_label() for line in loss.lines] == (["train", "validation"] if validation else ["train"])
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(e, 1 / e) for e in range(1, epochs + 1)])
    np.testing.assert_allclose(accuracy.lines[-1].get_ydata()[0], 0.8 if validation else 0.9)
    image = filters.images[0]
    mosaic = image.get_array().filled(np.nan)  # 17 filters of 5 × 4 in rows of 5, with a gap of one after each
    assert mosaic.shape == (4 * 6, 5 * 5)
    np.testing.assert_allclose(mosaic[18:23, 5:9], weights[..., 16].mean(axis=2))
    assert np.isnan(mosaic[5]).all()
    assert np.isnan(mosaic[18:, 10:]).all()
    assert image.get_clim()[0] == -image.get_clim()[1]
    plots.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_growth(tmp_path):
    points = [{"value": v, "seconds": 0.001 * v, "multiply_adds": 10 * v} for v in (1, 2, 4)]
    threads = [{"value": v, "seconds": 0.006 / v} for v in (1, 2)]
    figure = plots.growth({"batch": points, "threads": threads})
    batch, by_threads = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["A step by batch", "A step by threads"]
    np.testing.assert_allclose(batch.lines[0].get_xydata(), [(1, 1), (2, 2), (4, 4)])
    np.testing.assert_allclose(batch.lines[1].get_ydata(), [1, 2, 4])  # as the arithmetic
    np.testing.assert_allclose(by_threads.lines[1].get_ydata(), [6, 3])  # shared out evenly
    plots.save(figure, tmp_path / "a.png")


def test_learning_curves_have_the_rate():
    history = [{**row, "learning_rate": 0.1 / row["epoch"]} for row in rows(3, True)]
    loss, accuracy, rate = plots.learning_curves(history).axes
    assert [line.get_label() for line in accuracy.lines] == ["train", "validation"]
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.05, 0.1 / 3])
    assert loss.get_ylabel() == "loss (nats)"


def test_confusion_writes_every_count_and_colours_mistakes():
    matrix = np.array([[5, 2], [0, 7]])
    axes, bar = plots.confusion(matrix).axes
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((0, 0), "5"), ((1, 0), "2"), ((1, 1), "7")}
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 2], [0, 0]])
    assert axes.get_title() == "Confusion matrix: 85.71% right"
    assert bar.get_ylabel() == "mistakes"


@pytest.mark.parametrize("classes", [10, 62])
def test_confusion_has_room_for_its_counts(classes):
    figure = plots.confusion(np.full((classes, classes), 1000))
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    cell = axes.get_window_extent(renderer).width / classes
    assert all(text.get_window_extent(renderer).width < cell for text in axes.texts)


def test_confusion_of_a_thousand_classes_is_no_larger(tmp_path):
    figure = plots.confusion(np.ones((1000, 1000), int))
    assert max(figure.get_size_inches()) < 30
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticks()) <= 64
    plots.save(figure, tmp_path / "confusion.png")


def test_reliability_shows_what_is_right_beside_what_was_said(tmp_path):
    rows = np.array([[0, 0, 0], [0, 0, 0], [0.7, 0.9, 10], [0.95, 0.8, 1200]])
    figure = plots.reliability(rows, 0.1234)
    above, below = figure.axes
    right, gap = ([patch.get_bbox().bounds for patch in bars] for bars in above.containers)
    np.testing.assert_allclose(
        right, [(0.5, 0, 0.25, 0.9), (0.75, 0, 0.25, 0.8)], atol=1e-12
    )  # left, foot, width, height
    np.testing.assert_allclose([(foot, foot + height) for _, foot, _, height in gap], [(0.9, 0.7), (0.8, 0.95)])
    np.testing.assert_array_equal(above.lines[0].get_xydata(), [(0, 0), (1, 1)])
    assert [bar.get_height() for bar in below.patches] == [10, 1200]
    assert [text.get_text() for text in below.texts] == ["10", "1200"]
    assert [text.get_position()[0] for text in below.texts] == [0.625, 0.875]
    assert below.get_yscale() == "log"
    assert above.get_title() == "Expected calibration error 12.34%"
    assert above.get_xlim() == below.get_xlim() == (0, 1)
    assert all(axes.get_ylabel() for axes in figure.axes)
    plots.save(figure, tmp_path / "a.png")
    plots.save(plots.reliability(np.zeros((15, 3)), 0.0), tmp_path / "b.png")  # nothing is no error


def test_predictions_say_what_and_how_surely(random):
    images = random.integers(0, 256, (3, 28, 28), np.uint8)
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    (axes,) = plots.predictions(images, np.array([0, 0, 0]), probabilities, "three").axes
    assert [t.get_text() for t in axes.texts] == ["0  90%", "1  70%, is 0", "0  60%"]
    assert [t.get_color() for t in axes.texts] == ["black", plots.VALIDATION, "black"]
    mosaic = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(mosaic[10:38, 34:62], images[1])


def test_mistakes_are_the_most_confident_first(random):
    images = random.integers(0, 256, (4, 6, 6), np.uint8)
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]])
    (axes,) = plots.mistakes(images, np.array([0, 0, 0, 1]), probabilities, most=2).axes
    assert [t.get_text() for t in axes.texts] == ["1  80%, is 0", "1  70%, is 0"]
    assert axes.get_title() == "The most confident of 3 mistakes among 4"
    assert not plots.mistakes(images[:1], np.array([0]), probabilities[:1]).axes[0].texts  # none is no error


def test_filters_show_the_change(random):
    weights, start = random.normal(size=(2, 3, 3, 1, 4))
    left, right, *_ = plots.filters(weights, start).axes
    np.testing.assert_allclose(left.images[0].get_array().filled(0)[:3, :3], weights[:, :, 0, 0])
    np.testing.assert_allclose(right.images[0].get_array().filled(0)[:3, :3], (weights - start)[:, :, 0, 0])


def test_feature_maps_draw_every_layer(random):
    maps = [("conv", random.normal(size=(18, 18, 20))), ("flat", random.normal(size=30)), ("zero", np.zeros((2, 2, 1)))]
    figure, viridis = plots.feature_maps(np.eye(18), maps), colormaps["viridis"]
    assert [t.get_text() for t in figure.texts[1:]] == ["image", "conv", "flat", "zero"]
    image, conv, _, zero = (strip.get_array() for strip in figure.images)
    np.testing.assert_array_equal(image[:36, :36], viridis(np.eye(18).repeat(2, 0).repeat(2, 1), bytes=True))
    channel = maps[0][1][..., 17]  # in the second row of 16
    shades = (channel - maps[0][1].min()) / np.ptp(maps[0][1])
    np.testing.assert_array_equal(conv[38:74, 38:74], viridis(shades.repeat(2, 0).repeat(2, 1), bytes=True))
    assert not conv[:36, 36:38].any()  # the gaps are transparent
    np.testing.assert_array_equal(zero[:36, :36], viridis(np.zeros((36, 36)), bytes=True))


def test_feature_maps_are_all_inside_the_picture(random, tmp_path):
    """Each strip stands beside its name, below the one before it."""
    maps = [(f"conv{i}", random.normal(size=(9, 9, 32))) for i in range(3)]
    figure = plots.feature_maps(np.eye(9), maps)
    plots.save(figure, tmp_path / "maps.png")
    pixels = imread(tmp_path / "maps.png")
    height, width = pixels.shape[:2]
    tops = [height - image.oy - image.get_array().shape[0] for image in figure.images]
    assert tops == sorted(tops)
    assert tops[0] > 0
    assert min(image.oy for image in figure.images) >= 0
    for image, name in zip(figure.images, figure.texts[1:], strict=True):
        rows = image.get_array().shape[0]
        top = round(height - image.oy - rows)
        strip = (255 * pixels[top : top + rows, round(image.ox) : round(image.ox) + 36]).round()
        np.testing.assert_array_equal(strip[:36, :, :3], image.get_array()[:36, :36, :3])
        assert image.ox + image.get_array().shape[1] <= width
        assert name.get_position()[1] * height == pytest.approx(height - top - rows / 2)


def test_saliency_has_one_scale_for_both_signs(random):
    gradient = random.normal(size=(5, 5))
    _, right, _ = plots.saliency(np.eye(5), gradient, 3, 0.98).axes
    np.testing.assert_array_equal(right.images[1].get_array(), gradient)
    assert right.images[1].get_clim() == (-np.abs(gradient).max(), np.abs(gradient).max())
    assert "3" in right.get_title()


def test_augmented_stand_beside_their_original(random):
    originals, changed = random.random((2, 4, 4)), random.random((2, 3, 4, 4))
    (axes,) = plots.augmented(originals, changed).axes
    mosaic = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(mosaic[6:10, :4], originals[1])
    np.testing.assert_array_equal(mosaic[6:10, 12:16], changed[1, 1])


def test_prediction_marks_the_answer():
    left, middle, right = plots.prediction(np.zeros((9, 7)), np.eye(28), np.array([0.1, 0.7, 0.2])).axes
    assert [bar.get_width() for bar in right.patches] == [0.1, 0.7, 0.2]
    assert right.get_title() == "It is a 1 (70.0%)"
    assert left.images[0].get_array().shape == (9, 7)
    assert middle.images[0].get_array().shape == (28, 28)


def test_derivative_errors():
    steps = np.array([1.0, 0.1, 0.01])
    (axes,) = plots.derivative_errors(steps, {"a": np.array([1, 0.1, 0]), "b": np.array([0.5, 0, 0])}).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 0.1, 1e-16])
    assert [line.get_label() for line in axes.lines] == ["a", "b"]


def test_colours_say_what_the_captions_say(random):
    """Red is above 0, dark is ink; the answer's bar alone has the other colour."""
    gradient, weights = random.normal(size=(5, 5)), random.normal(size=(3, 3, 1, 4))
    left, right, _ = plots.saliency(np.eye(5), gradient, 3, 0.98).axes
    assert left.get_title() == "Taken for 3 (98.0%)"
    for image in (right.images[1], plots.filters(weights, 0 * weights).axes[0].images[0]):
        (low, _, _, _), (high, _, _, _) = image.cmap(0.0), image.cmap(1.0)
        assert low < 0.1 < 0.3 < high
    picture, seen = random.random((9, 7)), random.random((28, 28))
    left, middle, right = plots.prediction(picture, seen, np.array([0.1, 0.7, 0.2])).axes
    np.testing.assert_array_equal(left.images[0].get_array(), picture)
    np.testing.assert_array_equal(middle.images[0].get_array(), seen)
    assert (left.images[0].cmap.name, middle.images[0].cmap.name) == ("gray", "gray_r")
    colours = [bar.get_facecolor() for bar in right.patches]
    assert colours == [to_rgba(c) for c in (plots.TRAIN, plots.VALIDATION, plots.TRAIN)]
    axes = plots.confusion(np.eye(2, dtype=int)).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "true class")


def test_mistakes_are_in_the_order_of_their_own_confidence(random):
    """Not of how little the truth got: with three classes that is another order."""
    images = np.zeros((2, 6, 6))
    probabilities = np.array([[0.0, 0.6, 0.4], [0.1, 0.9, 0.0]])
    (axes,) = plots.mistakes(images, np.array([0, 0]), probabilities).axes
    assert [t.get_text() for t in axes.texts] == ["1  90%, is 0", "1  60%, is 0"]


def test_a_row_of_numbers_is_drawn_as_a_strip():
    values = np.linspace(0, 1, 4)
    strip = plots.feature_maps(np.eye(9), [("row", values)]).images[1].get_array()
    assert len({tuple(pixel) for pixel in strip[0]}) == 4


def test_trials_are_drawn_against_their_own_setting():
    rows = [{"a": k, "b": 10 + k % 2, "c": -k, "validation_accuracy": 0.9 + 0.01 * k} for k in range(1, 5)]
    figure = plots.trials(rows, ["a", "b", "c"])
    for axes, name in zip(figure.axes, ("a", "b", "c"), strict=False):
        drawn = axes.collections[0].get_offsets()
        np.testing.assert_allclose(drawn, [(row[name], row["validation_accuracy"]) for row in rows])
        assert axes.get_xlabel() == name
        assert axes.get_ylim()[1] > 0.94
