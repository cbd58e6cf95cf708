"""No file is trusted: every trick is refused by name, whatever is changed in a good file is noticed or harmless.

`tests/fuzz.py` says what is right; here it reads some hundred files, and hypothesis looks for others.
"""

import io
import json
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import fuzz
import hostile_files
import mutations
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tinycnn import BatchNorm, Conv2D, Dense, Dropout, Flatten, Sequential, archive, pictures, rebuild
from tinycnn.pictures import read_picture

READERS = list(fuzz.READERS)


def is_right(outcome: str) -> bool:
    return outcome == "read" or outcome.startswith("refused")


# ------------------------------------------------------------------------------------------------------ the fuzz script


@pytest.mark.parametrize("reader", READERS)
def test_hundreds_of_files_and_every_trick(reader, capsys):
    """In a process of its own: at most a second of CPU time and 200 MB for each, and it never hangs."""
    misbehaved = fuzz.report(reader, seed=1, count=100)
    assert not misbehaved, capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "right"),
    [
        (ValueError("{path}: it is broken"), True),
        (FileNotFoundError("there is no file {path}"), True),
        (ValueError("it is broken"), False),
        (ValueError("{path}"), False),
        (ValueError("{path}: " + "a" * 1000), False),
        (ValueError("{path}: \x1b[2J"), False),
        (OSError("{path}: it is broken"), False),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "{path}: it is broken"), False),
        (MemoryError("{path}: it is broken"), False),
        (UserWarning("{path}: it is strange"), False),
    ],
)
def test_the_script_knows_right_from_wrong(monkeypatch, tmp_path, error, right):
    def read(path):
        error.args = tuple(a.format(path=path) if isinstance(a, str) else a for a in error.args)
        if isinstance(error, Warning):
            warnings.warn(error, stacklevel=1)
        raise type(error)(*error.args)

    monkeypatch.setitem(fuzz.READERS, "idx", read)
    assert is_right(fuzz.outcome("idx", tmp_path / "file")) == right


def test_the_script_notices_time_memory_and_tricks_that_are_read():
    assert not fuzz.fault(3, "read", 0.5, 100)
    assert not fuzz.fault(-3, "refused: it is broken", 0.5, 100)
    assert fuzz.fault(3, "read", 1.5, 0)
    assert fuzz.fault(3, "read", 0, 250)
    assert fuzz.fault(-3, "read", 0, 0)
    assert fuzz.fault(3, "KeyError: 'a'", 0, 0)


@pytest.mark.parametrize(
    ("reader", "case", "reason"),
    [
        ("idx", "empty", "it is empty"),
        ("idx", "fifo", "it is not a file"),
        ("idx", "below a file", "there is no IDX file"),
        ("idx", "name with NUL", "can't be read"),
        ("idx", "10 MB that unpack to 10 GB", "promises .* can't hold them"),
        ("idx", "255 dimensions", "at most"),
        ("idx", "one byte behind 64 KiB of gzip", "more behind the end"),
        ("idx", "gzip, then 10 GB of zeros", "more behind the end"),
        ("idx", "10 GB, as promised", "can't hold them"),
        ("checkpoint", "pickle", "an array of object"),
        ("checkpoint", "structured", r"an array of \["),
        ("checkpoint", "packed", "packed or encrypted"),
        ("checkpoint", "encrypted", "packed or encrypted"),
        ("checkpoint", "overlapping", "lie over each other"),
        ("checkpoint", "twice the same name", "two arrays of the same name"),
        ("checkpoint", "absolute name", "'/etc/a.npy', which is no name"),
        ("checkpoint", "something before it", "missing or too much"),
        ("checkpoint", "something before it, well hidden", "something comes before"),
        ("checkpoint", "something behind it", "does not end as a zip file"),
        ("checkpoint", "a comment", "does not end as a zip file"),
        ("checkpoint", "10 GB with a good end", "bytes, or its directory .*: too many"),
        ("checkpoint", "a directory that is elsewhere", "bytes, or its directory .*: too many"),
        ("checkpoint", "10,000 arrays", "bytes, or its directory .*: too many"),
        ("checkpoint", "an array of 10 GB", "has 78 bytes, but"),
        ("checkpoint", "a header of version 3", "not of version 1.0"),
        ("checkpoint", "header [[[[[[[[[", "Header info length"),
        ("checkpoint", "header '\\d'", "header"),
        ("checkpoint", "no description", "no description"),
        ("checkpoint", "a description that is a number", "not one text"),
        ("checkpoint", "two descriptions", "not one text"),
        ("checkpoint", "letters that are none", "can't decode"),
        ("checkpoint", "a long description", "too long"),
        ("checkpoint", "a long number", "a number of 100,000 digits"),
        ("checkpoint", "NaN", "the number NaN"),
        ("checkpoint", "infinity", "the number 1e999"),
        ("checkpoint", "another format", "its format is 'tinycnn model 99'"),
        ("checkpoint", "a description that is a list", "not a JSON object"),
        ("model", "input_shape 661", "its input_shape is '661'"),
        ("model", "input_shape [True, 6, 1]", "its input_shape is"),
        ("model", "dtype None", "its dtype is None"),
        ("model", "dtype f4,f4,f4,f4,f4,f4,f4", "its dtype is 'f4,f4"),
        ("model", "a wide layer", "more than the 0 numbers in the file"),
        ("model", "a large stride", "must be below"),
        ("model", "padding", "too large to be believed"),
        ("model", "padding and stride", "too large to be believed"),
        ("model", "many filters over a large image", "too large to be believed"),
        ("model", "many channels", "channels, but the file has"),
        ("model", "a hundred times a million channels", "no array batchnorm_2.gamma"),
        ("model", "60,000 layers", "60,000 layers"),
        ("model", "means of means", "one number a channel"),
        ("model", "NaN in a weight", "holds NaN"),
        ("model", "an array of 500 MB more", "too many: a"),
        ("model", "a wrong checksum of 240 MB", "Bad CRC"),
        ("picture", "10 GB with a good beginning", "more than 33,554,432 bytes"),
        ("picture", "150,000,000 pixels", "pixels are more than"),
        ("picture", "a line", "pixels are more than"),
        ("picture", "texts", "too many texts"),
        ("picture", "200,000 chunks", "too many pieces"),
        ("picture", "pixels in 200,000 chunks", "too many pieces"),
        ("picture", "a thousand scans", "too many scans"),
        ("picture", "forty scans", "too many scans"),
        ("picture", "eight million comments", "too many scans or segments"),
        ("picture", "a progressive JPEG of 48 megapixels", "pixels are more than"),
        ("picture", "a long JPEG, which can't be decoded smaller", "pixels are more than"),
        ("picture", "a packed BMP", "packed BMP"),
        ("picture", "PPM", "not a picture in a known format"),
        ("picture", "TIFF", "not a picture in a known format"),
    ],
)
def test_a_trick_is_refused_for_what_it_is(tmp_path, reader, case, reason):
    """And neither Python nor a library has anything to say about it besides."""
    with hostile_files.made(reader, case, tmp_path) as path, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            fuzz.READERS[reader](path)
        assert fuzz.outcome(reader, path).startswith("refused")
    assert not seen


@pytest.mark.parametrize("reader", READERS)
def test_inputs_can_be_repeated(reader):
    made = [[fuzz.mutant(reader, 0, n) for n in range(30)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 25


# ----------------------------------------------------------------------------------------------------------- hypothesis


def assert_right(tmp_path_factory, reader: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(content)
    assert is_right(outcome := fuzz.outcome(reader, path)), outcome


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
def test_any_change_of_bytes(tmp_path_factory, reader, data):
    content = bytearray(data.draw(st.sampled_from(mutations.seeds(reader))))
    for place, new in data.draw(st.lists(st.tuples(st.integers(0, len(content)), st.binary(max_size=9)), max_size=3)):
        content[place : place + data.draw(st.sampled_from([0, len(new), 100]))] = new
    assert_right(tmp_path_factory, reader, bytes(content))


@given(
    code=st.sampled_from([*range(16), 255]),
    sizes=st.lists(st.one_of(st.integers(0, 4), st.sampled_from([2**31, 2**32 - 1])), max_size=70),
    numbers=st.binary(max_size=100),
    packed=st.booleans(),
)
@example(8, [0, 2**32 - 1, 2**32 - 1], b"", False)
@example(14, [0] * 64, b"", True)
@example(14, [1] * 65, bytes(8), True)
def test_any_idx_header(tmp_path_factory, code, sizes, numbers, packed):
    content = hostile_files.header(*sizes, code=code) + numbers
    packer = zlib.compressobj(wbits=31)
    assert_right(tmp_path_factory, "idx", packer.compress(content) + packer.flush() if packed else content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["Dense", "Flatten"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@pytest.mark.parametrize("reader", ["model", "checkpoint"])
@given(data=st.data())
def test_any_description(tmp_path_factory, reader, data):
    inside = hostile_files.members(mutations.seeds(reader)[0])
    good = json.loads(str(np.load(io.BytesIO(inside["description.npy"]))))
    good[data.draw(st.sampled_from(sorted(good)))] = data.draw(JSON)
    assert_right(tmp_path_factory, reader, hostile_files.npz(inside | hostile_files.text(json.dumps(good))))


SETTINGS = st.one_of(st.integers(-2, 9), st.sampled_from([10**5, 10**9, 2**31, 10**30]), JSON)


@given(
    layers=st.lists(
        st.tuples(st.sampled_from(["Conv2D", "MaxPool2D", "BatchNorm", "Flatten", "Dense"]), st.data()), max_size=4
    ),
    input_shape=st.lists(SETTINGS, max_size=4),
)
def test_any_layers(tmp_path_factory, layers, input_shape):
    """However the layers are chosen: they are not in the file, and nothing large is made of them."""
    names = {"Conv2D": ["filters", "kernel_size", "stride", "padding"], "MaxPool2D": ["pool_size"], "Dense": ["units"]}
    made = [(name, {n: data.draw(SETTINGS) for n in names.get(name, [])}) for name, data in layers]
    content = hostile_files.model_of(*made, input_shape=input_shape)(None)
    assert_right(tmp_path_factory, "model", content)


@given(
    header=st.one_of(
        st.text(max_size=99), st.fixed_dictionaries({"descr": JSON, "fortran_order": JSON, "shape": JSON}).map(repr)
    )
)
def test_any_npy_header(tmp_path_factory, header):
    inside = hostile_files.members(mutations.seeds("checkpoint")[0])
    content = hostile_files.headed(header.encode("utf-8", "replace").decode("latin1")[:20_000], bytes(72))
    assert_right(tmp_path_factory, "checkpoint", hostile_files.npz(inside | {"order.npy": content}))


@given(
    head=st.tuples(*[st.one_of(st.integers(0, 40), st.sampled_from([5000, 2**31]))] * 2, *[st.integers(0, 17)] * 5),
    pixels=st.binary(max_size=300),
    more=st.lists(st.tuples(st.sampled_from(mutations.NASTY_CHUNKS), st.binary(max_size=30)), max_size=3),
)
def test_any_png(tmp_path_factory, head, pixels, more):
    chunks = [(b"IHDR", struct.pack(">II5B", *head)), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    assert_right(tmp_path_factory, "picture", mutations.png(chunks))


# ------------------------------------------------------------------------------------- what is good must not be refused


def test_a_model_with_dropout_and_statistics_is_loaded_as_it_was(tmp_path):
    """Built without random numbers, it has those of the file; its layers and its Dropout are like any others'."""
    model = Sequential([Conv2D(2, 3, padding=1), BatchNorm(), Dropout(0.5), Flatten(), Dense(3)], (6, 6, 1), seed=5)
    model.save(tmp_path / "m.npz")
    loaded = Sequential.load(tmp_path / "m.npz")
    for (name, array), (_, again) in zip(model.state(), loaded.state(), strict=True):
        np.testing.assert_array_equal(array, again, err_msg=name)
    assert all("build" not in vars(layer) for layer in loaded.layers)
    assert isinstance(loaded.layers[2].generator, np.random.Generator)
    assert all(p.grad.shape == p.value.shape and not p.grad.any() for p in loaded.parameters())


def test_as_many_channels_as_the_file_has_numbers(tmp_path, monkeypatch):
    """More than MANY_CHANNELS are believed if there are arrays of that size."""
    monkeypatch.setattr(rebuild, "MANY_CHANNELS", 10)
    Sequential([BatchNorm()], (50,)).save(tmp_path / "m.npz")
    assert Sequential.load(tmp_path / "m.npz").input_shape == (50,)


def test_arrays_are_copied_all_or_none(tmp_path):
    """The last one is damaged: the first keeps its numbers."""
    path, own = tmp_path / "a", {"first": np.zeros(3), "last": np.zeros(3)}
    archive.write(path, archive.CHECKPOINT, {}, {"first": np.ones(3), "last": np.arange(3.0)})
    path.write_bytes(path.read_bytes().replace(np.arange(3.0).tobytes(), np.arange(1, 4.0).tobytes()))
    with (
        pytest.raises(ValueError, match=r"a is not a tinycnn checkpoint file, or a damaged one: .*CRC"),
        archive.reading(path, archive.CHECKPOINT) as (_, arrays),
    ):
        archive.copy_all(arrays, own)
    assert not own["first"].any()


@pytest.mark.parametrize(
    ("description", "arrays", "message"),
    [
        ({"loss": float("nan")}, {}, "JSON"),
        ({"text": "a" * archive.LARGEST_DESCRIPTION}, {}, "too long"),
        ({}, {"a/b": np.zeros(3)}, "no name of an array"),
        ({}, {"a": np.array([object()])}, "an array of object"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, description, arrays, message):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        archive.write(tmp_path / "a", archive.CHECKPOINT, description, arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_arrays_in_any_order_of_memory(tmp_path, random):
    arrays = {"a": np.asfortranarray(random.random((3, 4))), "b": np.zeros((0, 5), np.int64), "c": np.float64(3)}
    archive.write(tmp_path / "a", archive.CHECKPOINT, {"epoch": 2**100}, arrays)
    with archive.reading(tmp_path / "a", archive.CHECKPOINT) as (description, stored):
        assert description["epoch"] == 2**100
        for name, array in arrays.items():
            np.testing.assert_array_equal(np.asarray(stored[name]), array)


def test_a_photo_of_fifty_megapixels_is_read(tmp_path):
    """As a JPEG it is decoded small. Any other picture of that size is refused."""
    photo = Image.new("L", (8000, 6000), 255)
    photo.paste(0, (3000, 2000, 5000, 4000))
    photo.save(tmp_path / "a.jpg")
    grey = read_picture(tmp_path / "a.jpg")
    assert max(grey.shape) < 2 * pictures.ENOUGH
    assert grey.mean() == pytest.approx(1 - 2000 * 2000 / (8000 * 6000), abs=0.01)
    photo.save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="8000 × 6000 pixels are more than"):
        read_picture(tmp_path / "a.gif")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_a_large_picture_is_made_smaller_by_means(tmp_path, random, mode):
    """Also at the edges, where less than a whole square is left."""
    coarse = random.integers(0, 2, (13, 9)) * 255
    fine = np.repeat(np.repeat(coarse, 160, 0), 160, 1)[:2003, :1400].astype(np.uint8)
    picture = Image.fromarray(fine).convert(mode) if mode != "I;16" else Image.fromarray(fine.astype(np.uint16) * 257)
    picture.save(tmp_path / "a.png")
    grey, factor = read_picture(tmp_path / "a.png"), 2003 // pictures.ENOUGH
    assert grey.shape == (-(-2003 // factor), -(-1400 // factor))
    expected = fine[:2001:3, :1398:3] / 255
    assert np.abs(grey[:667, :466] - expected).mean() < 0.01  # they differ where a square lies across an edge


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "note", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", *map(mutations.orientation, (b"abc\0", b"\6"))]
)
def test_a_damaged_note_about_itself_does_not_make_a_photo_unreadable(tmp_path, kind, note):
    Image.new("L", (40, 50), 128).save(tmp_path / f"a.{kind}", exif=b"Exif\0\0" + note)
    assert sorted(read_picture(tmp_path / f"a.{kind}").shape) == [40, 50]


def test_a_note_of_ten_megabytes_is_not_looked_at(tmp_path):
    """It says how the camera was held, five million times."""
    chunks = mutations.png_chunks(mutations.seeds("picture")[0])
    note = mutations.orientation(b"\7\7" * 5_000_000, kind=3)
    (tmp_path / "a.png").write_bytes(mutations.png([*chunks[:-1], (b"eXIf", note), chunks[-1]]))
    tracemalloc.start()
    try:
        assert read_picture(tmp_path / "a.png").shape == (50, 40)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


def test_a_picture_of_several_megabytes_is_read(tmp_path, random):
    """The patience is for headers; pixels may take more."""
    Image.fromarray(random.integers(0, 256, (1500, 1500, 3), np.uint8)).save(tmp_path / "a.png", compress_level=0)
    assert read_picture(tmp_path / "a.png").shape == (750, 750)


def test_what_is_transparent_is_so_before_the_mean(tmp_path):
    """Stripes of black and of a red that stands for nothing: half black on white, not half red."""
    stripes = np.zeros((1500, 1500, 3), np.uint8)
    stripes[:, ::2] = 255, 0, 0
    Image.fromarray(stripes).save(tmp_path / "a.png", transparency=(255, 0, 0))
    assert read_picture(tmp_path / "a.png").mean() == pytest.approx(0.5, abs=0.02)


def test_zip_files_of_other_programs_are_refused_though_numpy_reads_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in hostile_files.members(mutations.seeds("model")[0]).items():
            file.writestr(name, content)
    with np.load(tmp_path / "a") as file:
        assert "description" in file.files
    with pytest.raises(ValueError, match="packed or encrypted"):
        Sequential.load(tmp_path / "a")
