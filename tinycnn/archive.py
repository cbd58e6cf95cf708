"""A file of named arrays and a description of them: what a trained model and a checkpoint are on disk.

It is an .npz archive, a zip file with a .npy file for each array, none of them packed; one more, `description`, holds
JSON. It is written whole or not at all, so that a full disk or a lost process costs nothing that was there before.

It is read with distrust. Only what `write` makes is taken, and an array is read only when it is known to be wanted:
unless all its arrays are what they should be, a file of any size costs no more than some hundred megabytes.

What this file is not: it knows no model and no training, and never unpickles anything.
"""

import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinycnn.files import fault, open_file, replacing

MODEL, CHECKPOINT = "tinycnn model 2", "tinycnn checkpoint 1"  # what a file can be
LARGEST_FILE = 1 << 31  # bytes: beyond it zip files are of another make
LARGEST_DIRECTORY = 1 << 18  # bytes: some 3,000 arrays
LARGEST_DESCRIPTION = 1 << 22  # characters: some 20,000 epochs
NAME = re.compile(r"[\w.-]+\.npy")


def write(path: str | Path, format: str, description: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write the file, whole and such that it can be read again, or not at all.

    format: MODEL or CHECKPOINT; `reading` wants the same. description: anything JSON can hold, numbers finite.
    Raises ValueError for what `reading` would refuse.
    """
    with why_not_written(path):
        text = json.dumps({"format": format, **description}, allow_nan=False)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{path} is not written: {name} holds NaN or infinite numbers")
    with replacing(path) as file:
        np.savez(file, description=np.array(text), **arrays)
        file.flush()
        _look_into(file)


@contextmanager
def reading(path: str | Path, format: str) -> Iterator[tuple[dict, dict[str, "Stored"]]]:
    """description and arrays of the file. Whatever goes wrong in the with block is the file's fault too.

    Raises FileNotFoundError, or ValueError naming the file and the fault.
    """
    kind = format.rsplit(" ", 1)[0]
    with open_file(path, f"{kind} file") as file:
        try:
            description, arrays = _look_into(file)
            if description.get("format") != format:
                raise ValueError(f"its format is {description.get('format')!r}, not {format!r}")
            yield description, arrays
        except Exception as error:  # a damaged zip file can make its reader raise nearly anything
            raise ValueError(f"{path} is not a {kind} file, or a damaged one: {fault(error)}") from error


@contextmanager
def why_not_written(path: str | Path) -> Iterator[None]:
    """An error in the with block is why the file is not written."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not written, for it could not be read again: {fault(error)}") from error


def by_name(pairs: list[tuple[str, np.ndarray]], dtype: np.dtype) -> dict[str, np.ndarray]:
    """The arrays of the pairs (name, array) by their names, real numbers in this dtype.

    Raises ValueError for a name that a file can't have, or that two of them have.
    """
    arrays = {}
    for name, array in pairs:
        if name in arrays or name in ("file", "description") or not NAME.fullmatch(f"{name}.npy"):
            raise ValueError(f"{name!r} can't be the name of an array in a file, or two have it")
        arrays[name] = np.asarray(array, dtype if np.asarray(array).dtype.kind == "f" else None)
    return arrays


def check(arrays: dict[str, "Stored"], own: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless each of `own` is among the arrays, with its shape and dtype."""
    for name, array in own.items():
        if name not in arrays:
            raise ValueError(f"there is no array {name}")
        found = arrays[name]
        if (found.shape, found.dtype) != (array.shape, array.dtype):
            raise ValueError(f"{name} is {found.dtype} {found.shape}, not {array.dtype} {array.shape}")


def copy_all(arrays: dict[str, "Stored"], own: dict[str, np.ndarray]) -> None:
    """Copy the arrays of a file into those of the same name: all of them or, if anything is wrong, none.

    Raises ValueError unless names, shapes and dtypes are the same, all can be read and no number is NaN or infinite.
    """
    check(arrays, own)
    if arrays.keys() - own.keys():
        raise ValueError(f"arrays too many: {', '.join(sorted(arrays.keys() - own.keys()))}")
    for name, array in arrays.items():
        if not all(np.isfinite(piece).all() for piece in array.pieces()):
            raise ValueError(f"{name} holds NaN or infinite numbers")
    for name, array in arrays.items():
        own[name][...] = array


class Stored:
    """An array in a file: its shape and dtype are known and fit the file, its numbers are read by `np.asarray`."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo):
        self._archive, self._member = archive, member
        with archive.open(member) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{member.filename} has a header that is not of version 1.0")
            # Headers are Python text. NumPy evaluates only constants in it, but its length is up to us.
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file, max_header_size=1000)
            self._start = file.tell()
        size = self._start + math.prod(self.shape) * self.dtype.itemsize
        if self.dtype.kind not in "iufU":
            raise ValueError(f"{member.filename} is an array of {self.dtype}, not of plain numbers")
        if size != member.file_size:
            raise ValueError(f"{member.filename} has {member.file_size:,} bytes, but shape {self.shape} needs {size:,}")

    def pieces(self) -> Iterator[np.ndarray]:
        """All its numbers in pieces, none of them large. Raises an error at the end if the checksum is wrong."""
        with self._archive.open(self._member) as file:
            file.read(self._start)  # not seek: it may forget the checksum
            while piece := file.read(1 << 18):
                yield np.frombuffer(piece, self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        with self._archive.open(self._member) as file:  # which also compares the checksum
            return np.lib.format.read_array(file, allow_pickle=False).astype(dtype or self.dtype, copy=False)


def _look_into(file: BinaryIO) -> tuple[dict, dict[str, Stored]]:
    """The description and the arrays, of which no more is read than their headers."""
    _check_end(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what zipfile or NumPy finds only strange did not come from `write`
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        for member in members:
            if not NAME.fullmatch(member.orig_filename):
                raise ValueError(f"it holds {member.orig_filename!r}, which is no name of an array")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ~0x800:  # which says: a name in UTF-8
                raise ValueError(f"{member.filename} is packed or encrypted")
        if members and min(member.header_offset for member in members) > 0:
            raise ValueError("something comes before its arrays")
        if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("its arrays lie over each other")
        arrays = {member.filename.removesuffix(".npy"): Stored(archive, member) for member in members}
    if len(arrays) < len(members) or "description" not in arrays:
        raise ValueError("it has two arrays of the same name, or no description")
    return _description(arrays.pop("description")), arrays


def _check_end(file: BinaryIO) -> None:
    """Look at the last record of a zip file before Python's reader believes what is in it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    end = file.read(42)
    before, record = end[:-22], end[-22:]
    if record[:4] != b"PK\5\6" or record[20:] != b"\0\0":
        raise ValueError("it does not end as a zip file without a comment does")
    directory, offset = (int.from_bytes(record[place : place + 4], "little") for place in (12, 16))
    if size > LARGEST_FILE or directory > LARGEST_DIRECTORY or before[:4] == b"PK\6\7":
        raise ValueError(f"it has {size:,} bytes, or its directory {directory:,}: too many")
    if offset + directory + len(record) != size:
        raise ValueError("something in it is missing or too much")


def _description(stored: Stored) -> dict:
    if stored.dtype.kind != "U" or stored.shape or stored.dtype.itemsize > 4 * LARGEST_DESCRIPTION:
        raise ValueError(f"its description is {stored.dtype} {stored.shape}, not one text, or too long")
    # NumPy itself would make a str of anything, also of numbers that are no letters, which Python may not survive.
    text = np.asarray(stored).tobytes().decode("utf-32").rstrip("\0")
    description = json.loads(text, parse_float=_finite, parse_constant=_finite, parse_int=_whole)
    if not isinstance(description, dict):
        raise ValueError("its description is not a JSON object")
    return description


def _finite(text: str) -> float:
    """Python's JSON would also take NaN, Infinity and 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"its description holds the number {text}")
    return number


def _whole(text: str) -> int:
    if len(text) > 100:  # no number here needs more digits; a million of them would take long
        raise ValueError(f"its description holds a number of {len(text):,} digits")
    return int(text)
