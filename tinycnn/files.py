"""Opening a file that anybody may have made: an ordinary file or a clear refusal, and faults that are safe to print.

What this file is not: it knows no format. Those who do are `idx.py`, `archive.py` and `pictures.py`.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: str | Path, kind: str) -> BinaryIO:
    """The file, open for reading, if it is an ordinary one: a pipe would wait for ever, and a device never end.

    kind: what errors call it. Raises FileNotFoundError, or ValueError naming the file and why it can't be read.
    """
    try:
        found = os.stat(Path(path))
        if stat.S_ISREG(found.st_mode) and found.st_size:
            return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no {kind} {path}") from None
    except (OSError, ValueError) as error:  # not permitted, or a name that no file can have
        raise ValueError(f"{path} can't be read: {fault(error)}") from error
    raise ValueError(f"{path} is no {kind}: it is {'empty' if stat.S_ISREG(found.st_mode) else 'not a file'}")


def fault(error: BaseException) -> str:
    """What the error says in one short line, safe to print even where it quotes bytes of the file."""
    text = str(error)
    if not isinstance(error, ValueError) or not text:  # "'layers'" alone would say little
        text = f"{type(error).__name__}: {text}"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])
