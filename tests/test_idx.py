"""IDX: every type and rank there and back, packed or not; and each way in which a file can be wrong."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tinycnn import idx, read_idx, write_idx
from tinycnn.idx import MAX_DIMENSIONS

DTYPES = ["u1", "i1", "i2", "i4", "f4", "f8"]


@given(
    array=arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4))
)
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_there_and_back(tmp_path_factory, name, array):
    path = tmp_path_factory.mktemp("idx") / name
    write_idx(path, array)
    back = read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)
    assert back.tobytes() == array.tobytes()  # also the sign of zero and the bits of NaN


@pytest.mark.parametrize(("code", "letter", "dtype"), list(zip([8, 9, 11, 12, 13, 14], "Bbhifd", DTYPES, strict=True)))
def test_the_format_byte_by_byte(tmp_path, code, letter, dtype):
    """Written here with struct: 00 00 code rank, sizes and numbers big-endian, the last dimension fastest."""
    numbers = [1, 2, 3, 100, 101, 102]
    content = bytes([0, 0, code, 2]) + struct.pack(">II", 2, 3)
    content += struct.pack(f">6{letter}", *numbers)
    path = tmp_path / "file"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_idx(path), np.array([[1, 2, 3], [100, 101, 102]], dtype))
    assert read_idx(path).dtype == np.dtype(dtype)
    write_idx(path, np.array([[1, 2, 3], [100, 101, 102]], dtype))
    assert path.read_bytes() == content


def test_byte_order_and_memory_layout_do_not_matter(tmp_path, random):
    array = random.normal(size=(4, 5)).astype(">f4")
    for variant in (array, array.astype("<f4"), np.asfortranarray(array), array[::-1].copy()[::-1]):
        write_idx(str(tmp_path / "a"), variant)  # a path may be a string
        np.testing.assert_array_equal(read_idx(str(tmp_path / "a")), array)


def test_packed_is_told_by_content_not_by_name(tmp_path):
    array = np.arange(5, dtype=np.uint8)
    write_idx(tmp_path / "packed.gz", array)
    (tmp_path / "packed.gz").rename(tmp_path / "plain")
    np.testing.assert_array_equal(read_idx(tmp_path / "plain"), array)
    write_idx(tmp_path / "plain2", array)
    (tmp_path / "plain2").rename(tmp_path / "file.gz")
    np.testing.assert_array_equal(read_idx(tmp_path / "file.gz"), array)


def test_the_same_array_gives_the_same_packed_file(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, np.arange(9, dtype=np.int32))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


GOOD = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (GOOD[:3], "truncated: the magic number should be 4 bytes, 3 are there"),
        (GOOD[:6], "truncated: the sizes of 1 dimensions"),
        (GOOD[:-1], "can't hold them"),
        (GOOD + b"!", "more bytes than the 3"),
        (b"\1" + GOOD[1:], "not an IDX file: it begins with 01 00 08 01"),
        (b"\0\1" + GOOD[2:], "not an IDX file"),
        (b"\0\0\x0a\1" + GOOD[4:], "not an IDX file"),
        (b"<!DOCTYPE html><html>403 Forbidden</html>", "not an IDX file"),
        (bytes([0, 0, 8, 200]) + bytes(800), "200 dimensions"),
        (bytes([0, 0, 14, 3]) + b"\xff" * 12 + b"data", "promises"),
        (PACKED[:-9], "truncated|damaged"),
        (PACKED[:-1], "damaged gzip"),
        (PACKED[:10] + b"\xff" * 20, "damaged gzip"),
        (gzip.compress(GOOD[:-1], mtime=0), "truncated: the numbers of an array of shape"),
        (PACKED + b"!", "more behind the end of the gzip file"),
        (PACKED + PACKED, "more behind the end of the gzip file"),
        (gzip.compress(GOOD + b"!", mtime=0), "more bytes"),
        (gzip.compress(bytes([0, 0, 14, 3]) + b"\xff" * 12, mtime=0), "can't hold them"),
        (b"\x1f\x8b", "damaged gzip"),
    ],
)
def test_bad_files_name_file_and_fault(tmp_path, content, message):
    path = tmp_path / "bad-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_promise_is_refused_before_memory_is_taken(tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 2**32 - 1) + b"short")
    # a packed file that could, by its size, hold the promised 500 MB: only what is really there may be taken
    header = bytes([0, 0, 8, 1]) + struct.pack(">I", 500_000_000)
    packed.write_bytes(gzip.compress(header + np.random.default_rng(0).bytes(1_000_000)))
    for path in (plain, packed):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"promises|truncated"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


def test_no_file_and_no_ordinary_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no IDX file .*missing"):
        read_idx(tmp_path / "missing")
    with pytest.raises(ValueError, match="not a file"):
        read_idx(tmp_path)


def test_a_packed_file_is_believed_more_the_larger_it_is(tmp_path, random, monkeypatch):
    """Real data, which hardly pack, may be of any size; zeros only up to a limit."""
    monkeypatch.setattr(idx, "SMALL", 5000)
    for name, array in (("data.gz", random.integers(0, 256, 9000, np.uint8)), ("zeros.gz", np.zeros(4000, np.uint8))):
        write_idx(tmp_path / name, array)
        np.testing.assert_array_equal(read_idx(tmp_path / name), array)
    write_idx(tmp_path / "bomb.gz", np.zeros(9000, np.uint8))
    with pytest.raises(ValueError, match="can't hold them"):
        read_idx(tmp_path / "bomb.gz")


def test_no_more_than_at_most(tmp_path):
    for name in ("a", "a.gz"):
        write_idx(tmp_path / name, np.zeros(100, np.uint8))
        assert read_idx(tmp_path / name, at_most=108).size == 100
        with pytest.raises(ValueError, match="can't hold them"):
            read_idx(tmp_path / name, at_most=107)


@pytest.mark.parametrize("dtype", ["u2", "i8", "f2", "c8", "b1", "U3", "O"])
def test_types_that_idx_does_not_have(tmp_path, dtype):
    with pytest.raises(ValueError, match="IDX can't hold"):
        write_idx(tmp_path / "a", np.zeros(3, dtype))
    assert not (tmp_path / "a").exists()


def test_as_many_dimensions_as_numpy_has(tmp_path):
    write_idx(tmp_path / "a", np.zeros((1,) * MAX_DIMENSIONS, np.uint8))
    assert read_idx(tmp_path / "a").shape == (1,) * MAX_DIMENSIONS
