"""Draw a digit in the browser and look into the network: python scripts/draw.py"""

import argparse
import errno
import sys
import threading
import webbrowser

import numpy as np
from predict import load_model

from tinycnn import command_line, load_mnist
from tinycnn.server import make_server
from tinycnn.studio import Studio
from tinycnn.trained import TRAINED


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        server = make_server(Studio(load_model(options.model), test_set(options.data_dir)), options.port)
    except (ValueError, OSError, OverflowError) as error:  # the last for a port over 65535
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        why = f"port {options.port} is in use; without --port a free one is taken" if taken else error
        print(f"error: {why}", file=sys.stderr)
        return 1
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    print(f"draw a digit at {address}  (Ctrl-C ends it)", flush=True)
    if not options.no_browser:  # in a thread, because a browser in this terminal would return only when it is closed
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--model", default=TRAINED, metavar="FILE", help="model.npz (default: comes with tinycnn)")
    result.add_argument("--port", type=int, default=0, metavar="N", help="(default: a free one)")
    result.add_argument("--no-browser", action="store_true", help="only print the address")
    result.add_argument(
        "--data-dir", metavar="DIR", help="test images to start from (default: those of tinycnn[mnist])"
    )
    return result


def test_set(data_dir: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The test images to start from, if they are here; nothing is downloaded for that."""
    try:
        images, labels = load_mnist(data_dir, mirrors=())[1]
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or not len(images) == len(labels) > 0:
            raise ValueError(f"the page wants grey images of 28 × 28 bytes; got {images.shape} of {images.dtype}")
        return images, labels
    except (ValueError, OSError):
        if data_dir is not None:
            raise
        return None


if __name__ == "__main__":
    command_line.run(main)
