"""A file of named arrays and a description of them: what a trained model and a checkpoint are on disk.

It is an .npz archive, a zip file with a .npy file for each array, none of them packed; one more, `description`, holds
JSON. It is written whole or not at all, so that a full disk or a lost process costs nothing that was there before.

What this file is not: it knows no model and no training, and never unpickles anything.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tinycnn.files import replacing

MODEL, CHECKPOINT = "tinycnn model 2", "tinycnn checkpoint 1"  # what a file can be


def write(path: str | Path, format: str, description: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write the file, whole or not at all.

    format: MODEL or CHECKPOINT; `reading` wants the same. description: anything JSON can hold.
    """
    with replacing(path) as file:
        np.savez(file, description=np.array(json.dumps({"format": format, **description})), **arrays)


@contextmanager
def reading(path: str | Path, format: str) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """description and arrays of the file. Whatever goes wrong in the with block is the file's fault too.

    Raises FileNotFoundError, or ValueError naming the file and the fault.
    """
    path = Path(path)
    kind = format.rsplit(" ", 1)[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        description = json.loads(str(arrays.pop("description")))
        if description["format"] != format:
            raise ValueError(f"its format is {description['format']!r}, not {format!r}")
        yield description, arrays
    except Exception as error:  # a damaged zip file can make its reader raise nearly anything
        raise ValueError(f"{path} is not a {kind} file, or a damaged one: {error}") from error


def copy_all(arrays: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> None:
    """Copy arrays into those of the same name. Raises ValueError unless names, shapes and dtypes are the same."""
    if own.keys() != arrays.keys():
        raise ValueError(f"arrays missing or too many: {', '.join(sorted(own.keys() ^ arrays.keys()))}")
    for name, array in arrays.items():
        if (array.shape, array.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {own[name].dtype} {own[name].shape}")
    for name, array in arrays.items():
        own[name][...] = array
