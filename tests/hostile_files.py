"""Files made to hurt their reader, one function for each trick. All of them must be refused.

What this file is not: it holds no accidents; those are made by `tests/mutations.py`.
"""

import contextlib
import functools
import gzip
import io
import json
import math
import os
import re
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from mutations import npy, png, png_chunks, seeds
from PIL import Image

TEN_GB = 10 * 10**9


@contextlib.contextmanager
def made(reader: str, name: str, directory: Path) -> Iterator[str | Path]:
    """The path of this case, while there is such a file."""
    place = directory / "hostile"
    place.mkdir()
    try:
        yield _written(CASES[reader][name], place / "file")
    finally:
        shutil.rmtree(place)


def _written(case: Callable, path: Path) -> str | Path:
    """A case either gives the content of the file, or makes it (and may give another path, as a text)."""
    content = case(path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    return content if isinstance(content, str) else path


# --------------------------------------------------------------------------------------------------- no ordinary files


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(here)


def _sparse(beginning: bytes, end: bytes, path: Path) -> None:
    """10 GB that take no room on the disk."""
    with open(path, "wb") as file:
        file.write(beginning)
        file.seek(TEN_GB)
        file.write(end)
        file.truncate(TEN_GB + len(end))


def _places(reader: str) -> dict[str, Callable]:
    good = seeds(reader)[0]
    return {
        "empty": lambda path: b"",
        "directory": lambda path: path.mkdir(),
        "fifo": lambda path: os.mkfifo(path),
        "socket": _socket,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "nothing": lambda path: None,
        "link to nothing": lambda path: path.symlink_to("nothing"),
        "link to itself": lambda path: path.symlink_to(path),
        "below a file": lambda path: (path.write_bytes(good), f"{path}/file")[1],
        "name with NUL": lambda path: f"{path}\0",
        "name too long": lambda path: str(path.with_name("a" * 300)),
        "10 GB of zeros": functools.partial(_sparse, b"", b""),
        "10 GB with a good beginning": functools.partial(_sparse, good, b""),
        "10 GB with a good end": functools.partial(_sparse, b"", good),
        "noise": lambda path: np.random.default_rng(0).bytes(100_000),
    }


# ------------------------------------------------------------------------------------------------------------------ IDX


def header(*shape: int, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)


def zeros_packed(beginning: bytes, megabytes: int) -> bytes:
    """A gzip file (with no checksum at its end) that unpacks to so many megabytes of zeros after the beginning."""
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(beginning) + packer.flush(zlib.Z_FULL_FLUSH)
    block = zlib.compressobj(9, wbits=-15)
    return start + (block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)) * megabytes


def _gzip_of(content: bytes, size: int) -> bytes:
    """A gzip file of exactly this size: a name fills it up."""
    packed = gzip.compress(content, mtime=0)
    return packed[:3] + b"\x08" + packed[4:10] + b"a" * (size - len(packed) - 1) + b"\0" + packed[10:]


IDX_CASES = {
    "one byte more": lambda path: header(3) + bytes(4),
    "one byte less": lambda path: header(3) + bytes(2),
    "one byte more, packed": lambda path: gzip.compress(header(3) + bytes(4)),
    "only a header": lambda path: header(3),
    "a second gzip member": lambda path: gzip.compress(header(3) + bytes(3)) + gzip.compress(b"more"),
    "one byte behind 64 KiB of gzip": lambda path: _gzip_of(header(3) + bytes(3), 1 << 16) + b"!",
    "two halves in two gzip members": lambda path: gzip.compress(header(3)) + gzip.compress(bytes(3)),
    "a million empty gzip members": lambda path: gzip.compress(header(3) + bytes(3)) + gzip.compress(b"") * 10**6,
    "gzip, then 10 GB of zeros": functools.partial(_sparse, gzip.compress(header(3) + bytes(3)), b""),
    "1 MB that unpacks to 1 GB": lambda path: zeros_packed(header(2**30), 1024),
    "10 MB that unpack to 10 GB": lambda path: zeros_packed(header(10, 2**30), 10 * 1024),
    "10 MB that unpack to 10 GB, 3 promised": lambda path: zeros_packed(header(3), 10 * 1024),
    "gzip with a name of 100 MB": lambda path: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 10**8,
    "a product beyond 64 bits": lambda path: header(*[2**32 - 1] * 60) + bytes(100),
    "a product that wraps to 0": lambda path: header(2**31, 2**31, 4) + bytes(100),
    "255 dimensions": lambda path: bytes([0, 0, 8, 255]) + bytes(2000),
    "10 GB, as promised": functools.partial(_sparse, header(10**9, 10), b""),
}


# -------------------------------------------------------------------------------------------------------- zip archives


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)  # with a date that never changes
    return file.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def text(description: str) -> dict[str, bytes]:
    return {"description.npy": npy(np.array(description))}


def headed(npy_header: str, content: bytes = b"") -> bytes:
    """A .npy file with this text for a header."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(npy_header)) + npy_header.encode() + content


def _encrypted(good: bytes) -> bytes:
    """The flag in the directory and in the members."""
    changed = bytearray(good)
    for place in [found.start() for found in re.finditer(rb"PK\x01\x02", good)]:
        changed[place + 8] |= 1
    return bytes(changed)


def _overlapping(good: bytes) -> bytes:
    """Each array holds the next one, with its header: read one by one they are far more than the file."""
    content, directory = npy(np.zeros(10_000, np.uint64)), b""
    for number in range(20):
        name = b"%02d.npy" % number
        facts = struct.pack("<HHHHHIIIHH", 45, 0, 0, 0, 33, zlib.crc32(content), *[len(content)] * 2, len(name), 0)
        offset = (19 - number) * (30 + len(name) + 128)  # behind the headers of those around it
        directory += b"PK\1\2\0\0" + facts + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name
        whole = b"PK\3\4" + facts + name + content
        content = npy(np.frombuffer(whole + bytes(-len(whole) % 8), np.uint64))
    return whole + directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 20, 20, len(directory), len(whole), 0)


def _moved(good: bytes, before: bytes) -> bytes:
    """Something before the archive, and every offset in it increased by that."""
    changed = bytearray(before + good)
    for place in [found.start() + 42 for found in re.finditer(rb"PK\x01\x02", changed)] + [len(changed) - 6]:
        struct.pack_into("<I", changed, place, struct.unpack_from("<I", changed, place)[0] + len(before))
    return bytes(changed)


def _zip64(good: bytes) -> bytes:
    """A second end record whose directory is the whole file of 10 GB."""
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 9, 9, TEN_GB - 200, 0)
    return record + struct.pack("<IIQI", 0x07064B50, 0, 0, 1) + good[-22:]


def _huge(name: str, shape: str) -> dict[str, bytes]:
    return {name: headed(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n")}


class Bomb:
    """What a pickle can do: anything. This one would end the process."""

    def __reduce__(self):
        return os._exit, (77,)


def _archive_cases(reader: str) -> dict[str, Callable]:
    good = seeds(reader)[0]
    inside = members(good)
    plain = json.loads(str(np.load(io.BytesIO(inside["description.npy"]))))
    last = list(inside)[-1]
    spoilt = inside["description.npy"].replace("tiny".encode("utf-32")[4:], b"\xff\xff\xff\x7f" * 4)
    bad_headers = (
        "(" * 900,
        "-" * 900 + "1",
        "9" * 900,
        "[" * 60_000,
        "'\\d'",
        "{'shape': (1,)}",
        "",
        "{}",
        "__import__('os')",
    )
    return {
        "pickle": lambda path: npz(inside | {last: npy(np.array([Bomb()], dtype=object))}),
        "pickled description": lambda path: npz(inside | {"description.npy": npy(np.array(Bomb(), dtype=object))}),
        "structured": lambda path: npz(inside | {last: npy(np.zeros(3, [("a", "<f4")]))}),
        "packed": lambda path: npz(inside, zipfile.ZIP_DEFLATED),
        "a bomb": lambda path: npz(inside | {"a.npy": bytes(2**26)}, zipfile.ZIP_DEFLATED),
        "encrypted": lambda path: _encrypted(good),
        "overlapping": lambda path: _overlapping(good),
        "twice the same name": lambda path: npz(inside | {"x" * len(last): inside[last]}).replace(
            b"x" * len(last), last.encode()
        ),
        "absolute name": lambda path: npz(inside | {"/etc/a.npy": npy(np.zeros(3))}),
        "name with ..": lambda path: npz(inside | {"../a.npy": npy(np.zeros(3))}),
        "a directory": lambda path: npz(inside | {"a/": b""}),
        "something before it": lambda path: b"#!/bin/sh\n" + good,
        "something before it, well hidden": lambda path: _moved(good, b"#!/bin/sh\n"),
        "something behind it": lambda path: good + b"\n",
        "a comment": lambda path: good[:-2] + b"\1\0!",
        "itself twice": lambda path: good + good,
        "10 GB of directory": lambda path: _sparse(b"", _zip64(good), path),
        "a directory that is elsewhere": lambda path: good[:-22] + _zip64(good),
        "10 GB of directory, simply": lambda path: _sparse(b"", good[-22:-10] + b"\xff\xff\xff\x7f" + good[-6:], path),
        "10,000 arrays": lambda path: npz({f"{n}.npy": b"" for n in range(10_000)}),
        "no array at all": lambda path: npz({}),
        "only an array": lambda path: npy(np.zeros(3)),
        "an array of 10 GB": lambda path: npz(inside | _huge(last, f"({TEN_GB},)")),
        "a shape below 0": lambda path: npz(
            inside | {last: headed(_huge("a", "(-1, -1)")["a"][10:].decode(), bytes(4))}
        ),
        "a shape beyond 64 bits": lambda path: npz(inside | _huge(last, "(1" + "0" * 30 + ",)")),
        **{f"header {h[:9]}": (lambda path, h=h: npz(inside | {last: headed(h)})) for h in bad_headers},
        "a header of version 3": lambda path: npz(inside | {last: inside[last].replace(b"Y\1", b"Y\3", 1)}),
        "no description": lambda path: npz({n: c for n, c in inside.items() if n != "description.npy"}),
        "a description of bytes": lambda path: npz(inside | {"description.npy": npy(np.array(b"{}"))}),
        "a description that is a number": lambda path: npz(inside | {"description.npy": npy(np.array(3))}),
        "two descriptions": lambda path: npz(inside | {"description.npy": npy(np.array(["{}", "{}"]))}),
        "letters that are none": lambda path: npz(inside | {"description.npy": spoilt}),
        "a deep description": lambda path: npz(inside | text("[" * 100_000)),
        "a long description": lambda path: npz(inside | text(json.dumps({**plain, "x": "a" * (1 << 22)}))),
        "a long number": lambda path: npz(inside | text(json.dumps(plain)[:-1] + ', "x": ' + "9" * 100_000 + "}")),
        "NaN": lambda path: npz(inside | text(json.dumps({**plain, "x": float("nan")}))),
        "infinity": lambda path: npz(inside | text(json.dumps(plain)[:-1] + ', "x": 1e999}')),
        "another format": lambda path: npz(inside | text(json.dumps({**plain, "format": "tinycnn model 99"}))),
        "a format that is a list": lambda path: npz(inside | text(json.dumps({**plain, "format": [plain["format"]]}))),
        "a description that is a list": lambda path: npz(inside | text("[]")),
    }


# -------------------------------------------------------------------------------------------------------------- models


def _described(**changes) -> Callable:
    """A model file whose description is changed."""
    inside = members(seeds("model")[0])
    plain = json.loads(str(np.load(io.BytesIO(inside["description.npy"]))))
    return lambda path: npz(inside | text(json.dumps({**plain, **changes})))


def model_of(*layers: tuple[str, dict], input_shape=(6, 6, 1), **arrays: tuple[int, ...]) -> Callable:
    """A model file of these layers, and arrays of ones of these shapes (a dot in a name is written as __)."""
    description = {"format": "tinycnn model 2", "input_shape": input_shape, "dtype": "float32", "layers": layers}
    inside = {f"{name.replace('__', '.')}.npy": npy(np.ones(shape, np.float32)) for name, shape in arrays.items()}
    return lambda path: npz({**text(json.dumps(description)), **inside})


def _model_cases() -> dict[str, Callable]:
    good = seeds("model")[0]
    inside = members(good)
    wide = model_of(("Dense", {"units": 1000, "use_bias": False}), input_shape=(60_000,))(None)
    last = list(inside)[-1]
    flatten, one = ("Flatten", {}), {"conv2d_1__weight": (1, 1, 1, 1), "conv2d_1__bias": (1,)}
    norm = {f"batchnorm_1__{n}": (1 << 20,) for n in ("gamma", "beta", "running_mean", "running_variance")}
    shapes = (7, "66", "661", [6.0, 6, 1], [True, 6, 1], ["6", 6, 1], [-6, -6, 1], [0, 6, 1], [], None, {"6": 1})
    shapes += ([10**10, 1, 1], [10**90] * 3, [2**16, 2**16, 2**16], [1] * 100_000)
    dtypes = (None, "object", "float16", "f4," * 9999, [], {"names": []}, 7)
    lists = (
        7,
        {},
        "Dense",
        [],
        [7],
        ["Dense"],
        [["Dense"]],
        [["Dense", []]],
        [[["Dense"], {}]],
        [["Dense", {"units": 0}]],
    )
    lists += ([["Dense", {"unit": 3}]], [["os.system", {}]], [["Layer", {}]], [["Flatten", {"self": 1}]])
    return {
        **{f"input_shape {str(s)[:20]}": _described(input_shape=s) for s in shapes},
        **{f"layers {layers}": _described(layers=layers) for layers in lists},
        **{f"dtype {str(d)[:20]}": _described(dtype=d) for d in dtypes},
        "a wide layer": model_of(flatten, ("Dense", {"units": 10**9})),
        "many filters": model_of(("Conv2D", {"filters": 10**7, "kernel_size": 3})),
        "many filters over a large image": model_of(
            ("Conv2D", {"filters": 16, "kernel_size": 1}),
            input_shape=(4096, 4096, 1),
            conv2d_1__weight=(1, 1, 1, 16),
            conv2d_1__bias=(16,),
        ),
        "a large kernel": model_of(("Conv2D", {"filters": 1, "kernel_size": 10**5, "padding": 10**5})),
        "a large stride": model_of(("MaxPool2D", {"pool_size": 1, "stride": 10**90})),
        "padding": model_of(("Conv2D", {"filters": 1, "kernel_size": 1, "padding": 10**6}), **one),
        "padding and stride": model_of(
            ("Conv2D", {"filters": 1, "kernel_size": 1, "padding": 10**6, "stride": 10**6}), **one
        ),
        "padding again and again": model_of(
            *[("Conv2D", {"filters": 1, "kernel_size": 1, "padding": 10**3})] * 9, **one
        ),
        "many channels": model_of(("BatchNorm", {}), input_shape=(1, 1, 10**10)),
        "padding to many channels": model_of(
            ("Conv2D", {"filters": 1, "kernel_size": 1, "padding": 2000}), flatten, ("BatchNorm", {}), **one
        ),
        "a hundred times a million channels": model_of(*[("BatchNorm", {})] * 100, input_shape=(1 << 20,), **norm),
        "60,000 layers": model_of(*[flatten] * 60_000),
        "a rate of 1": model_of(flatten, ("Dropout", {"rate": 1})),
        "a rate that is a list": model_of(flatten, ("Dropout", {"rate": [0.1]})),
        "means of means": model_of(("Normalize", {"mean": [[0.1], [0.2]], "std": 1}), input_shape=(6, 6, 2)),
        "NaN in a weight": lambda path: npz(
            inside | {last: npy(np.full_like(np.load(io.BytesIO(inside[last])), np.nan))}
        ),
        "float64": lambda path: npz(inside | {last: npy(np.load(io.BytesIO(inside[last])).astype(float))}),
        "big-endian": lambda path: npz(inside | {last: npy(np.load(io.BytesIO(inside[last])).astype(">f4"))}),
        "another shape": lambda path: npz(inside | {last: npy(np.load(io.BytesIO(inside[last]))[None])}),
        "an array less": lambda path: npz({name: content for name, content in inside.items() if name != last}),
        "an array more": lambda path: npz(inside | {"a.npy": npy(np.zeros(3))}),
        "an array of 500 MB more": functools.partial(_with_sparse_array, good, "a.npy", (125, 10**6)),
        "a wrong checksum of 240 MB": functools.partial(_with_sparse_array, wide, "dense_1.weight.npy", (60_000, 1000)),
        "a checkpoint": lambda path: seeds("checkpoint")[0],
    }


def _with_sparse_array(content: bytes, name: str, shape: tuple[int, ...], path: Path) -> None:
    """The archive and one more array, of zeros that take no room on the disk. Its checksum is wrong."""
    size = 4 * math.prod(shape)
    good = npz(members(content) | _huge(name, str(shape)))
    directory = struct.unpack("<I", good[-6:-2])[0]
    changed = bytearray(good)
    for place in (20, 24):  # the two sizes in the last entry of the directory
        old = struct.unpack_from("<I", good, good.rindex(b"PK\1\2") + place)[0]
        struct.pack_into("<I", changed, good.rindex(b"PK\1\2") + place, old + size)
    struct.pack_into("<I", changed, len(good) - 6, directory + size)
    with open(path, "wb") as file:
        file.write(changed[:directory])
        file.seek(directory + size)
        file.write(changed[directory:])


# ------------------------------------------------------------------------------------------------------------ pictures


def _png_of(width: int, height: int, rows: bytes = b"", more: tuple = ()) -> bytes:
    head = b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return png([head, *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def _jpeg(width: int, height: int, progressive: bool = True) -> bytes:
    """A progressive one is kept in memory as a whole by its decoder."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "JPEG", progressive=progressive)
    return file.getvalue()


def _scans(count: int) -> bytes:
    """The last scan comes many times: each looks at all the pixels, and takes 26 bytes."""
    content = _jpeg(1000, 1000)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + content[-2:]


def _bmp_of(width: int, height: int, runs: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024) + head + bytes(1024) + runs


def _picture_cases() -> dict[str, Callable]:
    jpeg = next(content for content in seeds("picture") if content.startswith(b"\xff\xd8"))
    gif = next(content for content in seeds("picture") if content.startswith(b"GIF"))
    webp = next(content for content in seeds("picture") if content.startswith(b"RIFF"))
    good = seeds("picture")[0]
    emoji = b"key\0\1\0\0\0" + zlib.compress(("a" * 1_000_000 + "😀").encode())
    return {
        "10,000,000,000 pixels": lambda path: _png_of(100_000, 100_000, bytes(10**7)),
        "150,000,000 pixels": lambda path: _png_of(15_000, 10_000, bytes(10**7)),
        "a line": lambda path: _png_of(2_000_000, 1, bytes(10**7)),
        "no pixels": lambda path: _png_of(0, 0),
        "cut": lambda path: good[: len(good) // 2],
        "texts": lambda path: _png_of(9, 9, bytes(333), more=((b"iTXt", emoji),) * 64),
        "a text of 100 MB": lambda path: _png_of(
            9, 9, bytes(333), more=((b"zTXt", b"key\0\0" + zlib.compress(bytes(10**8))),)
        ),
        "a profile of 100 MB": lambda path: _png_of(9, 9, more=((b"iCCP", b"key\0\0" + zlib.compress(bytes(10**8))),)),
        "200,000 chunks": lambda path: _png_of(9, 9, bytes(333), more=((b"teSt", b""),) * 200_000),
        "pixels in 200,000 chunks": lambda path: png([*png_chunks(good)[:1], *[(b"IDAT", b"")] * 200_000]),
        "a thousand scans": lambda path: _scans(1000),
        "forty scans": lambda path: _scans(40),
        "a progressive JPEG of 48 megapixels": lambda path: _jpeg(8000, 6000),
        "a long JPEG, which can't be decoded smaller": lambda path: _jpeg(60_000, 600, progressive=False),
        "eight million comments": lambda path: jpeg[:2] + b"\xff\xfe\0\2" * 8_000_000 + jpeg[2:],
        "a large JPEG": lambda path: re.sub(rb"(?s)(?<=\xff\xc0..\x08)....", b"\xff" * 4, jpeg),
        "a large GIF": lambda path: gif[:6] + b"\xff" * 4 + gif[10:],
        "a million GIF blocks": lambda path: gif[:13] + b"!\xfe\1a\0" * 10**6 + gif[13:],
        "a large BMP": lambda path: _bmp_of(65535, 65535, bytes(99)),
        "a packed BMP": lambda path: _bmp_of(3000, 3000, b"\1\1" * 4_500_000),
        "a cut WebP": lambda path: webp[: len(webp) // 2],
        "PostScript": lambda path: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "PPM": lambda path: b"P5 3 3 255\n" + bytes(9),
        "TIFF": lambda path: b"II*\0" + bytes(99),
        "text": lambda path: b"hello",
    }


CASES: dict[str, dict[str, Callable]] = {
    "idx": _places("idx") | IDX_CASES,
    "model": _places("model") | _archive_cases("model") | _model_cases(),
    "checkpoint": _places("checkpoint") | _archive_cases("checkpoint"),
    "picture": _places("picture") | _picture_cases(),
}
