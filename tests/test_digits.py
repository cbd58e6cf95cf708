"""From a picture to MNIST's 28×28: whatever its size, colours, light and background, the same digit comes out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tinycnn import Sequential, load_mnist
from tinycnn.digits import NoDigitFound, stroke_width, to_mnist
from tinycnn.pictures import read_picture
from tinycnn.trained import TRAINED


@pytest.fixture(scope="module")
def model():
    return Sequential.load(TRAINED)


@pytest.fixture(scope="module")
def examples():
    """Three test images of each digit, and their labels."""
    _, (images, labels) = load_mnist()
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:3] for digit in range(10)])
    return images[chosen], labels[chosen]


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """0 … 1, ink 1."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255


def placed(ink: np.ndarray, height: int, width: int, top: int, left: int) -> np.ndarray:
    result = np.zeros((height, width), np.float32)
    result[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return result


VARIANTS = {
    "dark on light": lambda ink: 1 - ink,
    "light on dark": lambda ink: ink,
    "faint": lambda ink: 0.7 - 0.15 * ink,
    "in a shadow": lambda ink: (0.9 - 0.5 * np.linspace(0, 1, ink.shape[1])) * (1 - 0.7 * ink),
    "noisy": lambda ink: 0.8 - 0.6 * ink + np.random.default_rng(0).normal(0, 0.03, ink.shape),
    "with a frame": lambda ink: np.where(placed(np.ones((180, 220)), 200, 240, 10, 10) > 0, 0.9 - 0.8 * ink, 0.1),
    "with specks": lambda ink: 1 - np.maximum(ink, np.random.default_rng(0).random(ink.shape) > 0.9995),
    "0 … 255": lambda ink: 255 * (1 - ink),
    "0 … 10": lambda ink: 10 * (1 - ink),
    "−1 … 1": lambda ink: 2 * ink - 1,
    "standardised": lambda ink: (ink - 0.13) / 0.31,
    "a little more than 0 … 1": lambda ink: 1.06 * (1 - ink) - 0.03,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_digit_is_recognised_in_any_light(model, examples, variant):
    images, labels = examples
    seen = [
        to_mnist(VARIANTS[variant](placed(enlarged(i, 110), 200, 240, 30 + k, 20 + 3 * k)))
        for k, i in enumerate(images)
    ]
    assert (model.predict(np.stack(seen)) == labels).sum() >= 29


def test_mnist_itself_stays_what_it_is(model, examples):
    images, labels = examples
    again = np.stack([to_mnist(image) for image in images])
    assert (model.predict(again) == labels).all()
    assert np.abs(again.astype(int) - images).mean() < 10


def test_the_result_is_made_like_mnist():
    """Ink is 255 on 0, the longer side 20 pixels, the centre of mass in the middle."""
    picture = np.ones((90, 300))
    picture[20:70, 200:208] = 0.1
    seen = to_mnist(picture)
    assert seen.shape == (28, 28)
    assert seen.dtype == np.uint8
    assert seen.max() == 255
    assert len(np.flatnonzero(seen.max(axis=1))) == 20
    for axis in (0, 1):
        mass = seen.sum(axis=1 - axis)
        assert (mass * np.arange(28)).sum() / mass.sum() == pytest.approx(14, abs=0.6)


@pytest.mark.parametrize("pen", [3, 10, 30, 60])
def test_strokes_are_given_the_width_of_mnist(pen):
    picture = np.zeros((280, 280))
    picture[40:240, 140 - pen // 2 : 140 + pen - pen // 2] = 1
    assert 1.5 <= stroke_width(to_mnist(picture) / 255) <= 4.6


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((50, 60)),
        np.full((1, 1), 255.0),
        np.full((300, 20), 0.4),
        0.5 + 0.004 * np.random.default_rng(0).random((100, 100)),
        np.linspace(0.3, 0.7, 64)[None].repeat(64, 0),  # a smooth shadow
        0.004 * np.random.default_rng(0).standard_normal((100, 100)),
        1 + 0.004 * np.random.default_rng(0).standard_normal((100, 100)),
        np.full((9, 9), -3.0),
    ],
)
def test_nothing_is_found_where_nothing_is(picture):
    with pytest.raises(NoDigitFound, match="no digit found"):
        to_mnist(picture)


def test_a_single_pixel_of_nearly_the_paper_s_grey_does_no_harm():
    """The strokes then hold two greys that differ in the last digit of a float32. (`tests/fuzz.py` found that.)"""
    picture = np.full((50, 40), 0.94117653, np.float32)
    picture[16:39, 22:29], picture[7, 12] = 0.078431375, 0.94162357
    assert to_mnist(picture).max() == 255


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 99))
def test_any_numbers_give_a_picture_or_nothing(size, seed):
    try:
        seen = to_mnist(np.random.default_rng(seed).random(size) > 0.7)
    except NoDigitFound:
        return
    assert seen.shape == (28, 28)
    assert seen.any()


def test_shades_that_hardly_differ():
    """Two of ink, as near to each other as float32 can tell."""
    picture = np.zeros((48, 48), np.float32)
    picture[10:38, 20:26] = 128
    picture[10:38:2, 20:26] = np.nextafter(np.float32(128), np.float32(0))
    assert (to_mnist(picture)[:, 14] > 0).sum() == 20


@pytest.mark.parametrize("wrong", [np.zeros((3, 4, 3)), np.zeros((0, 5)), np.array([[np.nan]])])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(ValueError, match="picture"):
        to_mnist(wrong)


FILES = [("png", mode) for mode in ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")]
FILES += [("jpg", mode) for mode in ("L", "RGB", "CMYK")] + [("bmp", mode) for mode in ("L", "RGB", "1")]
FILES += [("webp", mode) for mode in ("RGB", "RGBA")] + [("gif", "P")]


@pytest.mark.parametrize(("kind", "mode"), FILES)
def test_files_of_every_colour_mode(tmp_path, model, examples, mode, kind):
    grey = 1 - placed(enlarged(examples[0][21], 100), 140, 160, 20, 30)
    picture = Image.fromarray((255 * np.clip(grey, 0, 1)).astype(np.uint8))
    picture = Image.fromarray((grey * 60000).clip(0).astype(np.uint16)) if mode == "I;16" else picture.convert(mode)
    picture.save(tmp_path / f"a.{kind}")
    seen = to_mnist(read_picture(tmp_path / f"a.{kind}"))
    assert model.predict(seen[None])[0] == examples[1][21]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_ink_on_a_transparent_ground(tmp_path, model, examples, colour):
    alpha = (255 * np.clip(placed(enlarged(examples[0][9], 90), 120, 120, 10, 20), 0, 1)).astype(np.uint8)
    pixels = np.concatenate([np.full((120, 120, 3), colour, np.uint8), alpha[..., None]], axis=2)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert model.predict(to_mnist(read_picture(tmp_path / "a.png"))[None])[0] == examples[1][9]


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path, model, examples):
    upright = Image.fromarray(
        (255 * (1 - placed(enlarged(examples[0][21], 90), 120, 150, 10, 20))).clip(0, 255).astype(np.uint8)
    )
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
    grey = read_picture(tmp_path / "a.jpg")
    assert grey.shape == (120, 150)
    assert model.predict(to_mnist(grey)[None])[0] == examples[1][21]


def test_files_that_are_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*nothing"):
        read_picture(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text.png is not a picture"):
        read_picture(tmp_path / "text.png")
    Image.new("L", (40, 40)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:45])
    with pytest.raises(ValueError, match=r"cut.png can't be read"):
        read_picture(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="is no picture: it is not a file"):
        read_picture(tmp_path)
