"""Sequential: shapes, seeds, prediction, the summary, and files that come back the same or not at all."""

import io
import json
import re
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest

import tinycnn
from tinycnn import (
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    MaxPool2D,
    Normalize,
    Parameter,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
)
from tinycnn.model import LARGE, LAYERS


def every_layer() -> list[Layer]:
    return [
        Normalize(0.1, 0.5),
        Conv2D(4, (3, 2), stride=(2, 1), padding=(1, 0), use_bias=False),
        BatchNorm(momentum=0.8, epsilon=1e-3),
        ReLU(),
        MaxPool2D((2, 2), stride=(1, 2)),
        Conv2D(5, 1),
        Flatten(),
        Dropout(0.25),
        Dense(6, use_bias=False),
        Dense(3),
    ]


@pytest.fixture
def images(random):
    return random.integers(0, 256, size=(7, 9, 8), dtype=np.uint8)


@pytest.fixture
def model(images):
    """With running statistics and weights that are not those it started with."""
    model = Sequential(every_layer(), (9, 8, 1), seed=4)
    loss = SoftmaxCrossEntropy()
    loss.forward(model.forward(images, training=True), np.arange(7) % 3)
    model.backward(loss.backward())
    for p in model.parameters():
        p.value -= 0.1 * p.grad
    return model


def test_shapes_are_computed_for_the_user():
    model = Sequential(every_layer(), (9, 8, 1))
    assert model.output_shapes == [
        (9, 8, 1),
        (5, 7, 4),
        (5, 7, 4),
        (5, 7, 4),
        (4, 3, 4),
        (4, 3, 5),
        (60,),
        (60,),
        (6,),
        (3,),
    ]
    assert model.layers[1].weight.value.shape == (3, 2, 1, 4)
    assert model.layers[8].weight.value.shape == (60, 6)
    for layer, shape in zip(model.layers, model.output_shapes, strict=True):
        assert layer.name == f"{type(layer).__name__.lower()}_{model.layers.index(layer) + 1}", shape


def test_parameters_are_in_order_and_named():
    names = [p.name for p in Sequential(every_layer(), (9, 8, 1)).parameters()]
    assert names == [
        "conv2d_2.weight",
        "batchnorm_3.gamma",
        "batchnorm_3.beta",
        "conv2d_6.weight",
        "conv2d_6.bias",
        "dense_9.weight",
        "dense_10.weight",
        "dense_10.bias",
    ]


@pytest.mark.parametrize(
    ("layers", "input_shape", "name", "came", "needs"),
    [
        ([Conv2D(4, 9)], (8, 10, 1), "conv2d_1", "8 × 10", r"\(9, 9\)"),
        ([Flatten(), Conv2D(4, 3)], (8, 8, 1), "conv2d_2", r"\(64,\)", "height, width, channels"),
        ([Dense(4)], (8, 8, 1), "dense_1", r"\(8, 8, 1\)", "Flatten"),
        ([Conv2D(4, 3), MaxPool2D(7)], (8, 8, 1), "maxpool2d_2", r"\(6, 6, 4\)", r"\(7, 7\)"),
        ([Flatten(), MaxPool2D(2)], (8, 8, 1), "maxpool2d_2", r"\(64,\)", "height, width, channels"),
        ([Flatten(), GlobalAveragePool2D()], (8, 8, 1), "globalaveragepool2d_2", r"\(64,\)", "height, width, channels"),
    ],
)
def test_a_layer_that_does_not_fit_is_named_with_what_came_and_what_it_needs(layers, input_shape, name, came, needs):
    for part in (name, came, needs):
        with pytest.raises(ValueError, match=part):
            Sequential([type(layer)(**layer.arguments()) for layer in layers], input_shape)


def test_other_misuse(model):
    with pytest.raises(ValueError, match="at least one layer"):
        Sequential([], (8, 8, 1))
    for shape in ((8, 0, 1), (8.5, 8, 1), (None, 8, 8), (), None, True, {8: 1}):
        with pytest.raises(ValueError, match="input_shape must have sizes of at least 1, whole numbers"):
            Sequential([Flatten()], shape)
    with pytest.raises(ValueError, match="float32 or float64, got int32"):
        Sequential([Flatten()], (8, 8, 1), dtype=np.int32)
    with pytest.raises(ValueError, match="layer 1, flatten_7, is already in a model"):
        Sequential([model.layers[6]], (8, 8, 1))
    flatten, dense = Flatten(), Dense(2)
    with pytest.raises(ValueError, match="layer 3, Dense, is already in a model"):
        Sequential([flatten, dense, dense], (8, 8, 1))
    assert Sequential([flatten, dense], (8, 8, 1)).layers == [flatten, dense]  # they are in no model after that
    with pytest.raises(ValueError, match=r"needs images of shape \(N, 9, 8, 1\), got \(2, 8, 9\)"):
        model.forward(np.zeros((2, 8, 9)))
    with pytest.raises(ValueError, match="needs images of shape"):
        Sequential([Flatten(), Dense(2)], (9, 8, 1)).forward(np.zeros((2, 9, 8)))  # without Normalize no axis is added
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.predict(np.full((1, 9, 8), np.inf))
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        model.predict(np.zeros((1, 9, 8)), batch_size=0)
    with pytest.raises(TypeError, match="Layer has no forward"):
        Layer().forward(np.zeros(1))
    with pytest.raises(TypeError, match="Layer has no backward"):
        Layer().backward(np.zeros(1))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((2, 4, 4, 1), np.nan), "NaN or infinite"),
        (np.full((2, 4, 4, 1), -1e300), "NaN or infinite"),  # in the model's float32
        (np.full((2, 4, 4, 1), np.nan, object), r"needs images of .*, got \(2, 4, 4, 1\) of object"),
        (np.zeros((2, 4, 4, 1), "M8[s]"), "of datetime64"),
        (np.zeros((2, 4, 4, 1), np.complex64), "of complex64"),
        (np.zeros((300, 4, 5, 1)), r"needs images of shape \(N, 4, 4, 1\), got \(300, 4, 5, 1\)"),
        (5, r"needs images of shape \(N, 4, 4, 1\), got \(\)"),
    ],
)
def test_what_are_no_images_has_no_class(pixels, message):
    for first in (Flatten(), Normalize(0, 1)):
        with pytest.raises(ValueError, match=message):
            Sequential([first, Flatten(), Dense(3)], (4, 4, 1)).predict(pixels)


def test_layers_that_did_not_fit_may_be_tried_in_another_model():
    layers = [Conv2D(2, 5), Flatten(), Dense(2)]
    with pytest.raises(ValueError, match="conv2d_1"):
        Sequential(layers, (3, 3, 1))
    assert Sequential(layers, (5, 5, 1)).output_shapes == [(1, 1, 2), (2,), (2,)]


@pytest.mark.parametrize("arrange", [np.asfortranarray, lambda a: a.astype(np.float64), lambda a: a.astype(">f4")])
def test_weights_from_elsewhere(model, images, arrange):
    """Put there by assignment, in another memory order or precision: the same numbers, so the same results."""
    model.layers[7].generator = np.random.default_rng(1)  # Dropout's
    expected = model.forward(images, training=True)
    dx = model.backward(expected)
    model.layers[7].generator = np.random.default_rng(1)
    for p in model.parameters():
        p.value = arrange(p.value)
    np.testing.assert_array_equal(model.forward(images, training=True), expected)
    np.testing.assert_array_equal(model.backward(expected), dx)


@pytest.mark.parametrize(
    "make", [lambda: Conv2D(4, 3, use_bias=False), lambda: Conv2D(4, 3), BatchNorm, lambda: Dense(4)]
)
def test_arrays_of_another_shape_are_refused(make):
    """Weight and gradient alike: a kernel would read what is behind the other arrays."""
    layer = make()
    model = Sequential([layer], (8,) if isinstance(layer, Dense) else (6, 6, 8))
    x = np.ones((2, *model.input_shape), np.float32)
    for parameter in (getattr(layer, name) for name in ("weight", "bias", "gamma", "beta") if hasattr(layer, name)):
        value, grad = parameter.value, parameter.grad
        for shape in ((3, 3), (*value.shape[:-1], 2), (*value.shape[:-1], 40), (7, *value.shape)):
            other = np.zeros(shape, np.float32)
            needs = f"{parameter.name} has shape {shape}, but needs {value.shape}"
            for both in ((other, other), (other, grad), (value, other)):
                parameter.value, parameter.grad = both
                with pytest.raises(ValueError, match=re.escape(needs)):
                    model.forward(x)
        parameter.value, parameter.grad = value, grad
    y = model.forward(x, training=True)
    name = "gamma" if isinstance(layer, BatchNorm) else "weight"
    setattr(layer, name, Parameter("another", np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float32)))
    for call in (lambda: model.forward(x), lambda: model.backward(y)):
        with pytest.raises(ValueError, match=r"another has shape \(3, 3\), but needs"):
            call()


def test_images_may_be_any_real_numbers():
    model = Sequential([Flatten(), Dense(2)], (2, 2, 1))
    x = np.random.default_rng(0).integers(0, 2, size=(3, 2, 2, 1))
    for dtype in (bool, np.uint64, np.float16, np.longdouble, ">f8"):
        np.testing.assert_array_equal(model.predict_proba(x.astype(dtype)), model.predict_proba(x))
    large = np.full((1, 2, 2, 1), 1e300)
    assert np.isfinite(Sequential([Flatten(), Dense(2)], (2, 2, 1), dtype=np.float64).predict_proba(large)).all()


def test_normalize_needs_one_mean_or_one_a_channel():
    with pytest.raises(ValueError, match=r"normalize_1: got images of shape \(8, 8, 1\), but has 3 means"):
        Sequential([Normalize([0.1, 0.2, 0.3], 1)], (8, 8, 1))


def test_input_is_taken_to_the_model_dtype(random):
    model = Sequential([Flatten(), Dense(2)], (3, 3, 1))
    assert model.forward(random.normal(size=(2, 3, 3, 1))).dtype == np.float32
    assert model.forward(np.ones((2, 3, 3, 1), np.uint8)).dtype == np.float32
    assert (
        Sequential([Normalize(0, 1)], (3, 3, 1), dtype=np.float64).forward(np.ones((2, 3, 3), np.uint8)).dtype
        == np.float64
    )


def test_same_seed_same_weights():
    a, b, c = (Sequential(every_layer(), (9, 8, 1), seed=seed) for seed in (7, 7, 8))
    for p, q, r in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        np.testing.assert_array_equal(p.value, q.value)
        assert p.value.std() == 0 or (p.value != r.value).any()


def test_weights_start_as_he_where_a_relu_follows():
    """Variance 2 / fan_in before a ReLU (also behind a pool or a BatchNorm), else 1 / fan_in; the last layer small."""
    layers = [
        Conv2D(200, 5),
        MaxPool2D(2),
        BatchNorm(),
        ReLU(),
        Conv2D(100, 3),
        Flatten(),
        Dense(300),
        ReLU(),
        Dense(200),
    ]
    model = Sequential(layers, (12, 12, 3))
    for layer, gain, fan_in in ((layers[0], 2, 75), (layers[4], 1, None), (layers[6], 2, None), (layers[8], 0.01, 300)):
        w = layer.weight.value
        fan_in = fan_in or w.size // w.shape[-1]
        assert w.var() * fan_in == pytest.approx(gain, rel=0.1)
        assert abs(w.mean()) < 0.1 * w.std()
        assert not layer.bias.value.any()
    assert len(model.parameters()) == 10


def test_predict_any_number_of_images(model, images):
    p = model.predict_proba(images)
    assert p.shape == (7, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.predict(images), p.argmax(axis=1))
    for batch_size in (1, 3, 7, 100):  # bounded memory: in batches, which change nothing
        np.testing.assert_allclose(model.predict_proba(images, batch_size), p, rtol=1e-5)
    assert model.predict(images[:0]).shape == (0,)
    assert model.predict_proba(images[:0]).shape == (0, 3)
    np.testing.assert_array_equal(model.predict(images), model.predict(images[..., None]))


def test_prediction_changes_nothing(model, images):
    before = [(name, array.copy()) for name, array in model.state()]
    model.predict(images)
    for (name, old), (_, new) in zip(before, model.state(), strict=True):
        np.testing.assert_array_equal(old, new, err_msg=name)


def test_summary_counts():
    lines = Sequential(every_layer(), (9, 8, 1)).summary().splitlines()
    rows = [line.split("  ") for line in lines]
    table = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert table["layer"] == ["output shape", "parameters", "multiply-adds"]
    assert table["conv2d_2"] == ["5 × 7 × 4", "24", f"{5 * 7 * 4 * 6}"]
    assert table["batchnorm_3"] == ["5 × 7 × 4", "8", "0"]
    assert table["conv2d_6"] == ["4 × 3 × 5", "25", f"{4 * 3 * 5 * 4}"]
    assert table["dense_9"] == ["6", "360", "360"]
    assert table["dense_10"] == ["3", "21", "18"]
    assert table["total"] == ["438", f"{840 + 240 + 360 + 18:,}"]
    assert len(set(map(len, lines))) == 1  # a rectangle


@dataclass
class Scale(Layer):
    """Equal to another one of the same factor, which doesn't make it the same layer."""

    factor: float = 2.0

    def forward(self, x, training=False):
        return x * x.dtype.type(self.factor)

    def backward(self, dy):
        return dy * dy.dtype.type(self.factor)


def test_equal_layers_are_not_the_same_layer():
    model = Sequential([Scale(), Flatten(), Scale()], (3, 3, 1))
    x = np.ones((1, 3, 3, 1), np.float32)
    assert model.forward(x).max() == 4

    another = Scale()
    another.forward = lambda x, training=False: 3 * x
    model.layers[0] = another
    assert model.forward(x).max() == 6


def test_layers_are_free_again_whatever_goes_wrong():
    layers = [Flatten(), Dense(2)]

    class Greedy(Layer):
        def build(self, *_):
            raise MemoryError

    with pytest.raises(MemoryError):
        Sequential([*layers, Greedy()], (8, 8, 1))
    assert Sequential(layers, (8, 8, 1)).output_shapes[-1] == (2,)


# --------------------------------------------------------------------------------------------------------------- files


def test_saved_and_loaded_is_the_same(model, images, tmp_path):
    path = tmp_path / "a model"  # any name, with .npz or without
    model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a model"]
    loaded = Sequential.load(str(path))
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert [layer.arguments() for layer in loaded.layers] == [layer.arguments() for layer in model.layers]
    for (name, a), (_, b) in zip(model.state(), loaded.state(), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert loaded.dtype == np.float32
    loaded.forward(images, training=True)  # it can be trained on


def test_every_layer_of_the_package_can_be_saved(tmp_path, random):
    """Also the one that no model can have together with Flatten."""
    public = {kind for kind in vars(tinycnn).values() if isinstance(kind, type) and issubclass(kind, Layer)} - {Layer}
    assert public == set(LAYERS) == {type(layer) for layer in every_layer()} | {GlobalAveragePool2D}
    model = Sequential([Conv2D(4, 3), GlobalAveragePool2D(), Dense(3)], (9, 8, 1), seed=4)
    assert model.output_shapes == [(7, 6, 4), (4,), (3,)]
    model.save(tmp_path / "m.npz")
    x = random.normal(size=(5, 9, 8, 1))
    np.testing.assert_array_equal(Sequential.load(tmp_path / "m.npz").forward(x), model.forward(x))


def test_numpy_numbers_as_arguments_are_saved(tmp_path):
    layers = [Flatten(), Dense(np.int64(2), use_bias=np.True_), BatchNorm(np.float32(0.5)), Dropout(np.float32(0.5))]
    Sequential(layers, (2, 2, 1)).save(tmp_path / "m.npz")
    assert Sequential.load(tmp_path / "m.npz").layers[2].momentum == 0.5


def test_double_precision_is_saved_too(tmp_path):
    model = Sequential([Flatten(), Dense(2)], (2, 2, 1), dtype=np.float64)
    model.save(tmp_path / "m.npz")
    assert Sequential.load(tmp_path / "m.npz").parameters()[0].value.dtype == np.float64


def test_arrays_of_another_precision_are_saved_in_the_models(tmp_path, random):
    model, x = Sequential([Dense(2), BatchNorm()], (3,)), random.normal(size=(4, 3))
    model.parameters()[0].value = random.normal(size=(3, 2))
    model.parameters()[1].value = np.ones(2, ">f4")
    model.layers[1].running_mean = random.normal(size=2)
    model.save(tmp_path / "m.npz")
    np.testing.assert_array_equal(Sequential.load(tmp_path / "m.npz").forward(x), model.forward(x))


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    """The names of the arrays are those of the layers' first places, and sizes those that were asked for."""
    inserted, shortened, other = (Sequential([ReLU(), Flatten(), Dense(3)], (4, 4, 1)) for _ in range(3))
    inserted.layers.insert(1, ReLU())
    del shortened.layers[0]
    other.layers[2].weight = Parameter("dense_3.weight", np.zeros((16, 5)), np.zeros((16, 5)))
    other.layers[2]._parameters = (other.layers[2].weight, other.layers[2].bias)
    large = Sequential([ReLU()], (9000, 9000, 1))
    for model, message in (
        (inserted, "no array dense_4.weight"),
        (shortened, "no array dense_2.weight"),
        (other, r"dense_3.weight is float32 \(16, 5\), not float32 \(16, 3\)"),
        (large, "too large to be believed"),
    ):
        with pytest.raises(ValueError, match=f"m.npz is not written.* {message}"):
            model.save(tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="layers were put in or taken out"):
        inserted.summary()


def test_saving_replaces_the_old_file_whole_or_not_at_all(model, tmp_path, monkeypatch):
    path = tmp_path / "m.npz"
    model.save(path)
    before = path.read_bytes()

    def break_off(file, **arrays):
        file.write(b"half a mod")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", break_off)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


class Twice(Layer):
    """A layer that tinycnn does not know."""

    def forward(self, x, training=False):
        return 2 * x

    def backward(self, dy):
        return 2 * dy


def test_own_layers(tmp_path, random):
    x = random.normal(size=(2, 3)).astype(np.float32)
    model = Sequential([Twice(), Dense(2)], (3,))
    model.save(tmp_path / "m.npz")
    with pytest.raises(ValueError, match="classes that must be given as own_layers: Twice"):
        Sequential.load(tmp_path / "m.npz")
    loaded = Sequential.load(tmp_path / "m.npz", own_layers=(Twice,))
    np.testing.assert_array_equal(loaded.forward(x), model.forward(x))


class Times(Twice):
    """It keeps its argument as it comes, or forgets it."""

    def __init__(self, factor, forgetful=False):
        self.factor = factor
        if not forgetful:
            self.forgetful = forgetful


@pytest.mark.parametrize(
    ("layer", "why"),
    [(Times(b"2"), "bytes is not JSON"), (Times(float("nan")), "not JSON"), (Times(2, True), "'forgetful'")],
)
def test_arguments_that_can_not_be_saved(layer, why, tmp_path):
    with pytest.raises(ValueError, match=f"m.npz is not written.*{why}"):
        Sequential([layer], (3,)).save(tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())


def test_a_number_of_numpy_is_saved_as_a_number(tmp_path):
    Sequential([Times(np.float32(0.5))], (3,)).save(tmp_path / "m.npz")
    assert Sequential.load(tmp_path / "m.npz", own_layers=(Times,)).layers[0].factor == 0.5


def saved_array(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def rewrite(path, **changes):
    """The model file with some arrays changed, or left out where the change is None."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    with open(path, "wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def damaged_description(path, **changes):
    with np.load(path) as file:
        description = json.loads(str(file["description"])) | changes
    rewrite(path, description=np.array(json.dumps(description)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a zip file at all"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"NUMPY", b"NUMPI")),
        lambda path: path.write_bytes(saved_array(np.zeros(3))),
        lambda path: zipfile.ZipFile(path, "w").close(),
        lambda path: rewrite(path, description=np.array("{")),
        lambda path: rewrite(path, description=np.array("[" * 100_000)),
        lambda path: damaged_description(path, input_shape=["a"]),
    ],
)
def test_a_file_that_is_no_model_is_an_error_that_names_it(model, tmp_path, damage):
    path = tmp_path / "m.npz"
    model.save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"m\.npz is not a tinycnn model file, or a damaged one"):
        Sequential.load(path)


def test_a_missing_model_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no tinycnn model file .*nothing"):
        Sequential.load(tmp_path / "nothing.npz")


def test_inference_in_pieces_is_inference(random, monkeypatch):
    """A batch larger than a piece gives the same rows, in order."""
    layers = [Conv2D(4, kernel_size=3), BatchNorm(), ReLU(), MaxPool2D(2), Flatten(), Dense(3)]
    model = Sequential(layers, (8, 8, 1), seed=3)
    images = random.normal(size=(7, 8, 8, 1)).astype(np.float32)
    model.forward(images, training=True)  # running statistics
    whole = model.forward(images)
    sizes = []
    forward = model.layers[0].forward
    monkeypatch.setattr(model.layers[0], "forward", lambda x, training: sizes.append(len(x)) or forward(x, training))
    assert model._piece == LARGE // (6 * 6 * 4 * 4)  # images whose largest layer is of that many bytes
    monkeypatch.setattr(model, "_piece", 3)
    np.testing.assert_array_equal(model.forward(images), whole)
    assert sizes == [3, 3, 1]
    model.forward(images, training=True)  # never in pieces: BatchNorm needs the whole batch
    assert sizes[3:] == [7]


class Counted(Layer):
    """y = scale · x, with a parameter made before the layer has a name, and a count of its calls."""

    def __init__(self, size):
        self.size, self.calls = size, np.zeros(1, np.int64)
        self.scale = Parameter("scale", np.ones(size, np.float32), np.zeros(size, np.float32))
        self._parameters = (self.scale,)

    def forward(self, x, training=False):
        self.calls += 1
        if training:
            self.x = x
        return self.scale.value * x

    def backward(self, dy):
        self.scale.grad[:] = (dy * self.x).sum(axis=0)
        return self.scale.value * dy

    def statistics(self):
        return [(f"{self.name}.calls", self.calls)]


def test_parameters_of_one_name_in_two_layers(tmp_path, random):
    model = Sequential([Counted(4), Dense(3), Counted(3)], (4,))
    assert [p.name for p in model.parameters()] == ["scale", "dense_2.weight", "dense_2.bias", "counted_3.scale"]
    for p in model.parameters():
        p.value[:] = random.normal(size=p.value.shape)
    x = random.normal(size=(2, 4)).astype(np.float32)
    y = model.forward(x)
    model.save(tmp_path / "m.npz")
    loaded = Sequential.load(tmp_path / "m.npz", own_layers=(Counted,))
    assert loaded.layers[0].calls == 1
    np.testing.assert_array_equal(loaded.forward(x), y)


def test_arrays_of_one_name_or_of_none_are_not_saved(tmp_path):
    model = Sequential([Counted(4), Counted(4)], (4,))
    for name in ("counted_2.calls", "description", "a/b", ""):
        model.layers[0].statistics = lambda name=name: [(name, np.zeros(1))]
        with pytest.raises(ValueError, match="can't be the name of an array in a file, or two have it"):
            model.save(tmp_path / "m.npz")


def test_a_class_with_the_name_of_another_is_not_saved_for_it(tmp_path):
    own = type("ReLU", (Twice,), {})
    model = Sequential([own()], (4,))
    with pytest.raises(ValueError, match="two classes of layers are called ReLU"):
        model.save(tmp_path / "m.npz")


@pytest.mark.parametrize("size", [(784,), 784])
def test_a_row_of_numbers_as_input(size):
    assert Sequential([Dense(2)], size).forward(np.zeros((3, 784))).shape == (3, 2)


def test_what_is_no_class_for_each_image_is_not_predicted():
    with pytest.raises(ValueError, match=r"the model makes \(3, 3, 2\) of an image"):
        Sequential([Conv2D(2, 2)], (4, 4, 1)).predict(np.zeros((5, 4, 4, 1)))


def test_what_is_no_layer_is_refused():
    for wrong in (ReLU, None, Sequential([ReLU()], (3,))):
        with pytest.raises(ValueError, match="layer 2 must be a layer, got"):
            Sequential([ReLU(), wrong], (3,))

    class Forgetful(Twice):
        def build(self, input_shape, generator, dtype, gain):
            super().build(input_shape, generator, dtype, gain)

    with pytest.raises(ValueError, match="forgetful_1: its build must return the shape of its output"):
        Sequential([Forgetful(), ReLU()], (3,))


def test_prediction_goes_in_batches(monkeypatch):
    model, sizes = Sequential([Flatten(), Dense(3)], (4, 4, 1)), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: sizes.append(len(x)) or forward(x))
    model.predict(np.zeros((7, 4, 4, 1)), batch_size=3)
    model.predict_proba(np.zeros((600, 4, 4, 1)))
    assert sizes == [3, 2, 2, 200, 200, 200]


def test_training_makes_no_gradient_for_the_images(random, monkeypatch):
    model = Sequential([Normalize(0.1, 0.3), Conv2D(3, 3), Flatten(), Dense(2)], (6, 5, 1))
    y = model.forward(random.integers(0, 256, (4, 6, 5), np.uint8), training=True)
    for kind in (Normalize, Conv2D):
        monkeypatch.setattr(kind, "backward", None)
    model.parameter_gradients(np.ones_like(y))
