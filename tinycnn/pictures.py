"""Picture files of anybody's making, as grey numbers. Pillow decodes them; this file bounds what that may cost.

A small file can unpack to any number of pixels, or be so made that its reader is busy for hours. So the formats are
few, the size is known before anything is decoded, large pictures are made smaller piece by piece, and only so many
reads are allowed.

What this file is not: it knows nothing of digits; `tinycnn/digits.py` does.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tinycnn.files import fault, open_file

ENOUGH = 640  # pixels: what has twice that width or height is made smaller
LARGEST_FILE = 1 << 25  # bytes
MOST_PIXELS = 12_500_000  # to be decoded: what fits into 150 MB and a second, and a photo of a phone
MOST_WEBP = 1 << 23  # whose decoder needs 16 bytes a pixel
MOST_JPEG = 1 << 26  # which is decoded at about the size that is wanted, unless it comes in several scans
LONGEST_SIDE = 1 << 16
MOST_SCANS, MOST_SEGMENTS, MOST_TEXTS = 32, 1000, 32
LONGEST_EXIF = 1 << 16  # bytes: what fits into the segment of a JPEG that was made for it
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a segment of a JPEG whose length follows
ORIENTATION = 0x0112


def read_picture(path: str | Path) -> np.ndarray:
    """A PNG, JPEG, GIF, BMP or WebP file as grey numbers (H, W) from 0 (black) to 1 (white), float32.

    H and W are those of the picture, or divided by a whole number if they are large. Of 16 bits the brightest pixel is
    white. A photo is turned the way the camera was held. What is transparent takes the colour that its ink stands out
    from. Of several pictures in a file the first is taken. Raises FileNotFoundError, or ValueError naming the file and
    the fault: it can't be read, or is larger than the limits above.
    """
    with open_file(path, "picture") as file:
        try:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                raise ValueError(f"more than {LARGEST_FILE:,} bytes")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a picture either can be read or can't
                return _grey(_decoded(_Patient(file.raw)))
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not a picture in a known format: PNG, JPEG, GIF, BMP or WebP") from None
        except Exception as error:  # a damaged file can make its reader raise nearly anything
            raise ValueError(f"{path} can't be read as a picture: {fault(error)}") from error


class _Patient(io.BufferedReader):
    """A file with patience for so many bytes, and fewer in many pieces: Pillow reads them one by one, in Python."""

    patience = 1 << 20  # for all that comes before the pixels

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if size is not None and size >= 0:
            self.patience -= 256 + len(content)
        if self.patience < 0:
            raise ValueError("its header is too long, or it is in too many pieces")
        return content


def _decoded(file: _Patient) -> Image.Image:
    """The picture with its pixels in memory. Raises ValueError if that would be too many of them, or too much work."""
    content = file.read()
    is_jpeg = content.startswith(b"\xff\xd8")
    scans = _scans(content) if is_jpeg else []
    if not is_jpeg and content.count(b"iTXt") + content.count(b"zTXt") > MOST_TEXTS:
        raise ValueError("it holds too many texts")  # in a PNG each may be packed, and be a megabyte when it is not
    del content
    file.seek(0)
    picture = Image.open(file, formats=["JPEG", "PNG", "GIF", "BMP", "WEBP"])
    in_one_scan = is_jpeg and scans == [picture.layers] and "progressive" not in picture.info
    _check_size(picture, MOST_JPEG if in_one_scan else MOST_WEBP if picture.format == "WEBP" else MOST_PIXELS)
    picture.draft("L", (ENOUGH, ENOUGH))
    _check_size(picture, MOST_PIXELS)
    if picture.tile and picture.tile[0][0] == "bmp_rle":
        raise ValueError("a packed BMP, which Pillow unpacks slowly")
    file.patience = 1 << 26
    picture.load()
    return picture


def _check_size(picture: Image.Image, most: int) -> None:
    width, height = picture.size
    if width * height > most or max(width, height) > LONGEST_SIDE:
        raise ValueError(f"{width} × {height} pixels are more than the {most:,} that are taken from such a file")


def _scans(content: bytes) -> list[int]:
    """How many colours each scan of a JPEG file brings. Raises ValueError if there are too many scans.

    In a photo there is one, of all colours. Otherwise each may improve all pixels, and take a moment from a few bytes.
    """
    scans, place = [], 2
    for _ in range(MOST_SEGMENTS):
        marker = MARKER.search(content, place)
        if not marker or marker[0] == b"\xff\xd9":  # the end of the picture
            return scans
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        if marker[0] == b"\xff\xda":
            scans += content[marker.end() + 2 : marker.end() + 3]
        if len(scans) > MOST_SCANS:
            break
    raise ValueError("it is in too many scans or segments")


def _grey(picture: Image.Image) -> np.ndarray:
    """See read_picture."""
    small = Image.fromarray(np.concatenate(list(_strips(picture, max(1, max(picture.size) // ENOUGH)))))
    small.getexif()[ORIENTATION] = _orientation(picture)
    pixels = np.asarray(ImageOps.exif_transpose(small), np.float32)
    if pixels.ndim == 2:
        return pixels / max(1.0, float(pixels.max()))
    colours = pixels / 255
    grey, alpha = colours[..., :3] @ np.float32([0.299, 0.587, 0.114]), colours[..., 3]
    if alpha.min() == 1:
        return grey
    behind = 0.0 if (grey * alpha).sum() > 0.5 * alpha.sum() else 1.0
    return grey * alpha + behind * (1 - alpha)


def _strips(picture: Image.Image, factor: int) -> Iterator[np.ndarray]:
    """The picture from top to bottom, each pixel the mean of factor × factor: RGBA, or one number if it is deep."""
    by_palette = picture.mode in ("P", "1") or "transparency" in picture.info  # a mean of palette indices is nothing
    for top in range(0, picture.height, 64 * factor):
        strip = picture.crop((0, top, picture.width, min(picture.height, top + 64 * factor)))
        if picture.mode.startswith("I"):
            yield np.asarray(strip.convert("I").reduce(factor), np.float32)
        else:
            strip = strip.convert("RGBA") if by_palette else strip
            yield np.asarray(strip.reduce(factor).convert("RGBA"))


def _orientation(picture: Image.Image) -> int:
    """How the camera was held, as in EXIF; 1 is upright. A photo with a damaged note about itself is still a photo."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1)) if len(picture.info.get("exif", b"")) <= LONGEST_EXIF else 1
    except Exception:
        return 1
