"""How a script runs: its output may be closed, or full, or know no "×", and its reader may have left (`| head`).

What this file is not: it knows no options; each script has its own.
"""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

PIPE_CLOSED = 141  # what a shell reports of any program that was ended by SIGPIPE


def run(main: Callable[[], int], to_the_end: bool = False) -> None:
    """Exit with the status that main returns; or with 1 and one line if it raises OSError: a file can't be written.

    If the reader of the standard output has left, the script ends with PIPE_CLOSED; if it can't be written, with 1 and
    one line. to_the_end: neither is a reason to end, because the results go to files.
    """
    _prepare_matplotlib()
    sys.stdout = _Output(sys.stdout, to_the_end)
    sys.stderr = _Output(sys.stderr, to_the_end=True)
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports of any program that was ended by Ctrl-C
    finally:
        gc.freeze()  # or Python would end with a quarter of a second's search for garbage in all that Numba has loaded


def _prepare_matplotlib() -> None:
    """Take away what can keep it from loading."""
    if os.environ.get("MPLBACKEND", "").startswith("module://"):  # a notebook's, which may not be known here
        del os.environ["MPLBACKEND"]
    try:
        Path.home()
    except RuntimeError:  # there is none: before 3.11 Matplotlib would give up, so it has to find a place by itself
        os.environ.setdefault("MPLCONFIGDIR", os.devnull)


class _Output:
    """Standard output or error that nothing which is written to it can break. stream: None if it is closed (`>&-`)."""

    def __init__(self, stream: TextIO | None, to_the_end: bool):
        self._stream = stream or open(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)  # noqa: SIM115
        self._to_the_end = to_the_end
        if hasattr(self._stream, "reconfigure"):  # else somebody has put something of his own there
            self._stream.reconfigure(errors="replace", line_buffering=True)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any text file."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As of any file."""
        self._try(self._stream.flush)

    def _try(self, method: Callable, *arguments) -> None:
        try:
            method(*arguments)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # or Python's last flush would complain
            if self._to_the_end:
                return
            if isinstance(error, BrokenPipeError):
                sys.exit(PIPE_CLOSED)
            sys.exit(f"error: can't write the standard output: {error}")
