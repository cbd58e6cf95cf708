"""Good files of each kind, and random changes to them: to bytes, and to what the bytes mean.

A change of bytes rarely comes far: a checksum stands before it. So files are also taken apart, changed inside, and put
together again with right checksums: what is packed in gzip, the members of a zip file and the headers and the JSON in
them, the chunks of a PNG.

What this file is not: it reads nothing by tinycnn; `tests/fuzz.py` does.
"""

import contextlib
import functools
import gzip
import io
import json
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from tinycnn import (
    Adam,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool2D,
    Normalize,
    ReLU,
    Sequential,
    write_idx,
)
from tinycnn.averaging import WeightAverage
from tinycnn.checkpoint import Checkpoint
from tinycnn.training import COLUMNS, Position

NASTY_WHOLE = (0, 1, 2, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
NASTY_JSON = (None, True, False, -1, 0, 1, 7, 1e308, -1e-308, 0.5, 10**6, 10**9, 10**10, 2**63, 10**30, "", "8", [], {})
NASTY_JSON += (float("nan"), float("inf"), [1] * 1000, [[[[]]]], "\ud800", "a" * 100_000, ["ReLU", {}], "float16", "O")
NASTY_NAMES = ("/etc/passwd", "../a.npy", "a/b.npy", "description.npy", "a.txt", "", "a\x00.npy", "ä.npy", "C:\\a.npy")
NASTY_DTYPES = ("|O", "<f4", ">f4", "<f8", "<U8", "|S8", "<M8[s]", "<c16", "|b1", "<f2", "|V0", [("a", "<f4")], "f4,f4")
NASTY_CHUNKS = b"IHDR PLTE tRNS IDAT IEND iTXt zTXt tEXt iCCP eXIf acTL fdAT".split()


# -------------------------------------------------------------------------------------------------------- good files


@functools.cache
def seeds(reader: str) -> list[bytes]:
    """Small good files of all the forms that the reader knows."""
    with tempfile.TemporaryDirectory() as directory:
        make = {"idx": _idx, "model": _models, "checkpoint": _checkpoints, "picture": _pictures}[reader]
        return make(Path(directory))


def _idx(directory: Path) -> list[bytes]:
    result = []
    shapes = {"u1": (9, 4, 4), "i1": (20,), "i2": (3, 5), "f8": (2, 1, 3), "i4": (), "f4": (0, 7)}
    for dtype, shape in shapes.items():
        for name in ("a", "a.gz"):
            write_idx(directory / name, np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype))
            result.append((directory / name).read_bytes())
    return result


def _models(directory: Path) -> list[bytes]:
    layers = [Normalize([0.1], [0.3]), Conv2D(2, 3, padding=1), MaxPool2D(2), BatchNorm(), ReLU(), Dropout(0.1)]
    models = [
        Sequential([*layers, Flatten(), Dense(3)], (6, 6, 1)),
        Sequential([Dense(4), ReLU(), Dense(2, use_bias=False)], (5,), dtype=np.float64),
        Sequential([Conv2D(1, (1, 2), stride=(2, 1), use_bias=False), Flatten()], (4, 4, 2)),
    ]
    for number, model in enumerate(models):
        model.save(directory / str(number))
    return [(directory / str(number)).read_bytes() for number in range(len(models))]


def training(path: str | Path) -> Checkpoint:
    """A small training whose checkpoint is at the path. Before the first step; always the same."""
    layers = [Conv2D(2, 3, use_bias=False), BatchNorm(), ReLU(), Flatten(), Dropout(0.1), Dense(3)]
    model = Sequential(layers, (5, 5, 1))
    generators = {name: np.random.default_rng(n) for n, name in enumerate(("shuffling", "augmentation"))}
    optimizer, average = Adam(model.parameters()), WeightAverage(model, 0.2)
    return Checkpoint(Path(path), {"seed": 0, "rate": 0.01}, model, optimizer, generators, average)


def _checkpoints(directory: Path) -> list[bytes]:
    row = dict.fromkeys(COLUMNS, 0.5) | {"epoch": 1, "validation_loss": None, "validation_accuracy": None}
    positions = [Position(), Position(2, history=[row])]
    positions += [Position(2, 7, np.random.default_rng(3).bit_generator.state, 1.5, 40, 70, 0.25, [row])]
    for number, position in enumerate(positions):
        training(directory / str(number)).save(position)
    return [(directory / str(number)).read_bytes() for number in range(len(positions))]


def _pictures(directory: Path) -> list[bytes]:
    image = Image.new("L", (40, 50), 240)
    ImageDraw.Draw(image).line([(10, 8), (30, 8), (18, 42)], 20, 5)
    exif = image.getexif()
    exif[0x0112] = 6
    forms = [(mode, {"format": "PNG"}) for mode in ("L", "RGB", "RGBA", "P", "1", "LA")]
    forms += [(mode, {"format": "JPEG"}) for mode in ("L", "RGB", "CMYK")]
    forms += [("RGB", {"format": "JPEG", "progressive": True, "exif": exif}), ("L", {"format": "GIF"})]
    forms += [("L", {"format": "GIF", "save_all": True, "append_images": [image.rotate(9)]}), ("1", {"format": "BMP"})]
    forms += [("RGB", {"format": "BMP"}), ("RGB", {"format": "WEBP"}), ("RGBA", {"format": "WEBP", "lossless": True})]
    forms += [("P", {"format": "PNG", "transparency": 0, "exif": exif})]
    result = []
    for mode, how in forms:
        file = io.BytesIO()
        image.convert(mode).save(file, **how)
        result.append(file.getvalue())
    deep = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint16) * 200).save(deep, "PNG")
    return [*result, deep.getvalue()]


# ------------------------------------------------------------------------------------------------- changes of bytes


def mutated(reader: str, random: Random) -> bytes:
    """A good file with one to four changes."""
    content = random.choice(seeds(reader))
    for _ in range(random.choice((1, 1, 2, 4))):
        inside = INSIDE[reader] if random.random() < 0.7 else change_bytes
        with contextlib.suppress(Exception), warnings.catch_warnings():  # an earlier change may have left nothing
            warnings.simplefilter("ignore")  # that can be taken apart
            content = inside(random, content)
        if random.random() < 0.05:
            other = random.choice(seeds(reader))
            content = content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]
    return content


def change_bytes(random: Random, content: bytes) -> bytes:
    return random.choice((_cut, _flip, _integer, _insert, _repeat, _delete, _append))(random, content)


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content))]


def _flip(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 3, 20))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _integer(random: Random, content: bytes) -> bytes:
    """Another number where one may stand: multiplied, or one at the edge of what fits."""
    order, letter = random.choice("<>"), random.choice("HIQ")
    place = random.randrange(max(1, len(content) - struct.calcsize(letter)))
    (old,) = struct.unpack_from(order + letter, content, place)
    new = random.choice((old * random.choice((2, 10, 1000)), old + 1, old - 1, *NASTY_WHOLE))
    changed = bytearray(content)
    struct.pack_into(order + letter, changed, place, new % 256 ** struct.calcsize(letter))
    return bytes(changed)


def _insert(random: Random, content: bytes) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + random.randbytes(random.choice((1, 4, 100))) + content[place:]


def _repeat(random: Random, content: bytes) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + content[place : place + 64] * random.choice((2, 2, 100, 5000)) + content[place + 64 :]


def _delete(random: Random, content: bytes) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + content[place + random.choice((1, 4, 64)) :]


def _append(random: Random, content: bytes) -> bytes:
    return content + random.choice((b"\0", content, bytes(1000), random.randbytes(30), b"PK\5\6" + bytes(18)))


# ------------------------------------------------------------------------------------------- changes of the meaning


def unpacked(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _idx_inside(random: Random, content: bytes) -> bytes:
    """Another header, or other bytes, behind a right checksum."""
    plain = bytearray(unpacked(content))
    if random.random() < 0.3:
        plain[random.choice((2, 3))] = random.randrange(16)
    elif random.random() < 0.5 and plain[3]:
        struct.pack_into(">I", plain, 4 + 4 * random.randrange(plain[3]), random.choice(NASTY_WHOLE) % 2**32)
    changed = bytes(plain) if random.random() < 0.5 else change_bytes(random, bytes(plain))
    return gzip.compress(changed, mtime=0) if random.random() < 0.5 else changed


def _zip_inside(random: Random, content: bytes) -> bytes:
    """Take the archive apart, change one thing, write it again."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    number = 0 if random.random() < 0.5 else random.randrange(len(members))  # the description is the first
    change = random.choice((*[_member_json] * 4, _member_header, _member_header, _member_bytes, _member_name, _members))
    with contextlib.suppress(Exception):
        change(random, members, number)
    result = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(result, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two may have the same name
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, method)  # with a date that never changes
        file.comment = b"!" if random.random() < 0.02 else b""
    return result.getvalue()


def _member_json(random: Random, members: list, number: int) -> None:
    names = [name for name, _ in members]
    number = names.index("description.npy")
    description = json.loads(str(np.load(io.BytesIO(members[number][1]))))
    text = json.dumps(change_json(random, description))
    if random.random() < 0.1:
        text = change_bytes(random, text.encode()).decode()
    members[number] = names[number], npy(np.array(text))


def change_json(random: Random, value):
    """The value with one thing somewhere in it replaced, left out or doubled."""
    if random.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return random.choice(NASTY_JSON)
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    place = random.randrange(len(pairs))
    key, inner = pairs[place]
    other = key, change_json(random, inner)
    pairs[place : place + 1] = random.choice([[], [(key, inner)] * 2, *[[other]] * 8])
    return dict(pairs) if isinstance(value, dict) else [inner for _, inner in pairs]


def _member_header(random: Random, members: list, number: int) -> None:
    """Another dtype, shape, version or length in the header of one array."""
    name, data = members[number]
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    header = {"descr": dtype.str, "fortran_order": fortran, "shape": shape}
    key = random.choice(("descr", "fortran_order", "shape", "more"))
    sizes = random.choice(
        ((*shape, 1), shape[::-1], shape[1:], (-1,), (-2, -3), (2**63,), (0, 2**40), 7, (True,), (10**30,))
    )
    header[key] = {"descr": random.choice(NASTY_DTYPES), "fortran_order": not fortran, "shape": sizes, "more": 1}[key]
    text = repr(header)
    if random.random() < 0.2:
        text = random.choice(
            ("(" * 300, "-" * 900 + "1", "{" + text, "'\\d'", "9" * 5000, text + " " * 20_000, "__import__('os')")
        )
    version = random.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text) + 1)
    members[number] = name, b"\x93NUMPY" + version + length + text.encode() + b"\n" + file.read()


def _member_bytes(random: Random, members: list, number: int) -> None:
    members[number] = members[number][0], change_bytes(random, members[number][1])


def _member_name(random: Random, members: list, number: int) -> None:
    members[number] = random.choice((*NASTY_NAMES, members[-1][0])), members[number][1]


def _members(random: Random, members: list, number: int) -> None:
    """One member less, one twice, one more, or another order."""
    extra = random.choice((np.zeros(3), np.full(3, np.nan), np.array("text"), np.zeros(2, "V8"), np.zeros((0, 5))))
    random.choice((members.pop, lambda n: members.append(members[n]), lambda n: random.shuffle(members)))(number)
    if random.random() < 0.3:
        members.append(("more.npy", npy(extra)))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _picture_inside(random: Random, content: bytes) -> bytes:
    """Change a chunk of a PNG, or the pixels packed in it; of another picture, numbers near its beginning."""
    if not content.startswith(b"\x89PNG"):
        return _integer(random, content[:64]) + content[64:]
    chunks = png_chunks(content)
    number = random.randrange(len(chunks))
    kind, data = chunks[number]
    what = random.random()
    if kind == b"IDAT" and what < 0.7:
        data = zlib.compress(change_bytes(random, zlib.decompress(data)))
    elif kind == b"IHDR" and what < 0.7:
        data = _integer(random, data) if random.random() < 0.5 else data[:8] + _flip(random, data[8:])
    elif what < 0.8:
        data = change_bytes(random, data)
    elif what < 0.9:
        chunks.insert(number, (random.choice(NASTY_CHUNKS), random.randbytes(random.choice((0, 4, 30)))))
    else:
        kind = random.choice(NASTY_CHUNKS)
    chunks[number] = kind, data
    return png(chunks)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks, with right lengths and checksums."""
    whole = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def orientation(value: bytes, kind: int = 2) -> bytes:
    """EXIF that says how the camera was held, in numbers of a kind (2: letters, 3: of two bytes)."""
    entry = struct.pack("<HHII", 0x0112, kind, len(value) // (kind - 1), 26)
    return b"II*\0\x08\0\0\0\x01\0" + entry[: 8 if len(value) <= 4 else 12] + value.ljust(4, b"\0") + bytes(4)


INSIDE: dict[str, Callable[[Random, bytes], bytes]] = {
    "idx": _idx_inside,
    "model": _zip_inside,
    "checkpoint": _zip_inside,
    "picture": _picture_inside,
}
