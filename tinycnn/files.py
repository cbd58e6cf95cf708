"""Files in a world that can't be trusted: opened only if ordinary, never half there, written by one process at a time.

What this file is not: it knows no format. Those who do are `idx.py`, `archive.py` and `pictures.py`.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


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
    return printable(text[:300])


def printable(text: str) -> str:
    """The text without what a terminal might take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when all is in it and on the disk; until then the old stays.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_text()
    'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # nobody else's: others may be writing too
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the new name might reach the disk before the content does
        os.replace(temporary, path)
    except OSError as error:
        # Not the temporary one, which nobody has heard of. (os.replace names both.)
        if error.errno and not error.filename2 and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Nobody else is in this block with the same directory. A process that dies leaves it, whatever kills it.

    Raises ValueError if somebody is. What an earlier one was still writing when it was killed is cleared away.
    """
    with open(directory / ".lock", "wb") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"another process is writing to {directory}: wait for it, or name another directory"
            ) from error
        for leftover in directory.glob(f".*.{'[0-9a-f]' * 16}.part"):  # as `replacing` names them
            leftover.unlink(missing_ok=True)
        yield
