"""Files are written whole or not at all, and read whole or not at all."""

import os

import numpy as np
import pytest

from tinycnn import archive
from tinycnn.files import replacing


@pytest.mark.parametrize("damage", ["not a number", "a flipped bit"])
def test_of_a_file_with_one_bad_array_none_is_copied(tmp_path, damage):
    path, names = tmp_path / "a.npz", ("a", "b", "c")
    archive.write(path, archive.MODEL, {}, {name: np.full(40, 7.5) for name in names})
    if damage == "a flipped bit":
        content = bytearray(path.read_bytes())
        content[content.rindex(np.full(40, 7.5).tobytes())] ^= 1  # in the last one
        path.write_bytes(content)
    else:
        with open(path, "wb") as file:
            description = np.array('{"format": "tinycnn model 2"}')
            np.savez(file, description=description, a=np.ones(40), b=np.ones(40), c=np.full(40, np.nan))
    own = {name: np.zeros(40) for name in names}
    with pytest.raises(ValueError, match="damaged"), archive.reading(path, archive.MODEL) as (_, arrays):
        archive.copy_all(arrays, own)
    assert not any(array.any() for array in own.values())


def test_a_file_is_on_the_disk_before_it_takes_the_olds_place(tmp_path, monkeypatch):
    """Else a power cut could leave the new name with nothing behind it."""
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: done.append(name) or real(*a))
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert done == ["fsync", "replace"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.npz'"), replacing(tmp_path / "nowhere" / "a.npz"):
        pass
