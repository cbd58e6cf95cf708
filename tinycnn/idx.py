"""The IDX file format, in which MNIST and its relatives come: read it, write it, packed with gzip or not.

An IDX file is    0x00 0x00 | type code | number of dimensions | each dimension, 4 bytes | the numbers
with every number of more than one byte big-endian, and the last dimension running fastest.
Source: LeCun, Cortes & Burges, The MNIST database (yann.lecun.com/exdb/mnist), "The IDX file format".

What this file is not: it knows nothing of images or labels; `tinycnn/mnist.py` does.
"""

import gzip
import os
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinycnn.files import fault, open_file

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 32 if np.__version__ < "2" else 64  # what NumPy can hold; the format would allow 255
AT_MOST = 1 << 30  # bytes: the largest of MNIST's relatives, EMNIST, has half of it
SMALL, RATIO = 1 << 26, 20  # packed, digits become 2 to 5 times smaller; a bomb of zeros, a thousand times
_CHUNK = 1 << 20


def read_idx(path: str | Path, at_most: int = AT_MOST) -> np.ndarray:
    """The array in an IDX file, in this machine's byte order. Packed or not is told by the content, not by the name.

    Raises FileNotFoundError if there is no such file, and ValueError, naming the file and the fault, if it is not one
    whole IDX file and nothing else, or larger than at_most bytes. What the header promises is compared with the size
    of the file before memory is taken; a packed one is believed up to 64 MiB, or 20 times its own size.
    """
    with open_file(path, "IDX file") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                return _read(_Unpacked(file), min(at_most, max(SMALL, RATIO * size)))
            return _read(file, min(at_most, size))
        except (OSError, ValueError, MemoryError) as error:
            raise ValueError(f"{path}: {fault(error)}") from error


def write_idx(path: str | Path, array: np.ndarray) -> None:
    """Write an array as an IDX file; packed with gzip if the name ends in .gz. Byte order does not matter.

    Raises ValueError for a dtype that the format does not have: it has uint8, int8, int16, int32, float32, float64.
    """
    array = np.asarray(array)
    codes = {np.dtype(t).newbyteorder("="): code for code, t in TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        raise ValueError(f"IDX can't hold {array.dtype}, only {', '.join(str(t) for t in codes)}")
    if array.ndim > MAX_DIMENSIONS or max(array.shape, default=0) >= 1 << 32:
        raise ValueError(f"IDX can't hold shape {array.shape}: at most {MAX_DIMENSIONS} dimensions, each below 2³²")
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(TYPES[code]).tobytes()
    # Without a time or a name in it, the same array always gives the same packed file.
    Path(path).write_bytes(gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)


class _Unpacked:
    """A gzip file of one member, read as if it were not packed.

    Python's gzip module reads more: any number of members, and of zeros between them, one by one - for hours.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.waiting, self.unpacker = file, b"", zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    def read(self, size: int) -> bytes:
        """From 1 to `size` bytes, or none at the end of a whole gzip file."""
        try:
            while not self.unpacker.eof:
                packed = self.waiting or self.file.read(_CHUNK // 16)
                if not packed:
                    raise ValueError("damaged gzip file: truncated")
                piece = self.unpacker.decompress(packed, size)
                self.waiting = self.unpacker.unconsumed_tail
                if piece:
                    return piece
        except zlib.error as error:
            raise ValueError(f"damaged gzip file: {error}") from error
        if self.unpacker.unused_data or self.file.read(1):
            raise ValueError("there is more behind the end of the gzip file")
        return b""


def _read(file: BinaryIO | _Unpacked, at_most: int) -> np.ndarray:
    """The array in an unpacked IDX stream of at most `at_most` bytes."""
    magic = _read_exactly(file, 4, "the magic number")
    if magic[:2] != b"\0\0" or magic[2] not in TYPES:
        raise ValueError(f"not an IDX file: it begins with {magic.hex(' ')}, not with 00 00 and a type code")
    dtype, dimensions = np.dtype(TYPES[magic[2]]), magic[3]
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"{dimensions} dimensions, but at most {MAX_DIMENSIONS} can be held")
    header = _read_exactly(file, 4 * dimensions, f"the sizes of {dimensions} dimensions")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    size = prod(shape) * dtype.itemsize
    if size > at_most - 4 - len(header):
        raise ValueError(f"the header promises {size:,} bytes of numbers (shape {shape}), the file can't hold them")
    content = _read_exactly(file, size, f"the numbers of an array of shape {shape}")
    if file.read(1):
        raise ValueError(f"more bytes than the {size:,} that the header promises (shape {shape})")
    array = np.frombuffer(content, dtype).reshape(shape)
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))


def _read_exactly(file: BinaryIO | _Unpacked, size: int, what: str) -> bytearray:
    """The next `size` bytes, taken in pieces: memory grows with what is really there."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(min(_CHUNK, size - len(content)))
        if not piece:
            raise ValueError(f"truncated: {what} should be {size:,} bytes, {len(content):,} are there")
        content += piece
    return content
