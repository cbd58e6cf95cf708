"""The file of a trained model: an .npz archive of its arrays, with its architecture beside them as JSON.

What this file is not: it knows no layer and no model (`Sequential.save` and `load` do), and never unpickles anything.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

FORMAT = "tinycnn model 1"
TRAINED = Path(__file__).parent / "trained" / "standard.npz"  # comes with the package


def write(
    path: str | Path,
    input_shape: tuple[int, ...],
    dtype: np.dtype,
    layers: list[list],
    arrays: dict[str, np.ndarray],
) -> None:
    """Write the file beside its place first, so that an old one is replaced by a whole one only.

    layers: [name of the class, its arguments] each.
    """
    architecture = {"format": FORMAT, "input_shape": input_shape, "dtype": dtype.name, "layers": layers}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, architecture=np.array(json.dumps(architecture)), **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def reading(path: str | Path) -> Iterator[tuple[list, str, list, dict[str, np.ndarray]]]:
    """input_shape, dtype, layers and arrays of the file. Whatever goes wrong in the with block is the file's fault too.

    Raises FileNotFoundError, or ValueError naming the file and the fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        architecture = json.loads(str(arrays.pop("architecture")))
        if architecture["format"] != FORMAT:
            raise ValueError(f"its format is {architecture['format']!r}, not {FORMAT!r}")
        yield architecture["input_shape"], architecture["dtype"], architecture["layers"], arrays
    except Exception as error:  # a damaged zip file can make its reader raise nearly anything
        raise ValueError(f"{path} is not a tinycnn model file, or a damaged one: {error}") from error


def copy_all(arrays: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> None:
    """Copy arrays into those of the same name. Raises ValueError unless names, shapes and dtypes are the same."""
    if own.keys() != arrays.keys():
        raise ValueError(f"arrays missing or too many: {', '.join(sorted(own.keys() ^ arrays.keys()))}")
    for name, array in arrays.items():
        if (array.shape, array.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {own[name].dtype} {own[name].shape}")
        own[name][...] = array
