"""From any picture of a digit to the 28×28 that a network trained on MNIST expects.

MNIST was made so: a scanned digit in black and white was fitted into 20×20, keeping its aspect (which left grey edges),
and put into 28×28 with its centre of mass in the middle; ink is 255, paper 0. `to_mnist` does the same to a picture of
any size, colour and lighting: it finds what is ink, drops specks and what touches the edge, and gives strokes that are
much thinner or thicker than MNIST's about their width.

Source: LeCun et al., Gradient-based learning applied to document recognition (1998), section III.A.

What this file is not: it finds one digit, not several, and turns nothing upright.
"""

import numpy as np
from PIL import Image, ImageFilter

SIDE, BOX = 28, 20  # of the result, and of the square that the digit fits into
WORKING_SIDE = 160  # pictures are made this small first: enough to see every stroke
LEAST_CONTRAST = 0.06  # between ink and paper, of the whole range from black to white
THIN, THICK = 2.0, 4.0  # strokes in MNIST are about as wide, in pixels of the result


class NoDigitFound(ValueError):
    """There is nothing in the picture that could be a digit."""


def to_mnist(grey: np.ndarray) -> np.ndarray:
    """grey (H, W), any size, dark on light or light on dark -> uint8 (28, 28), ink 255 on 0.

    From black to white it is 0 … 255 or 0 … 1; real numbers may have another range, from their least to their largest.

    Raises NoDigitFound for a blank picture.
    """
    grey = np.asarray(grey)
    if grey.ndim != 2 or not grey.size:
        raise ValueError(f"a grey picture has the shape (height, width), not {grey.shape}")
    if not np.isfinite(grey).all():
        raise ValueError("the picture holds NaN or infinite pixels")
    return centred(fitted(_cropped(find_ink(_shrunk(_from_0_to_1(grey))))))


def _from_0_to_1(grey: np.ndarray) -> np.ndarray:
    """The picture in float32, from black to white 0 … 1."""
    real, grey = grey.dtype.kind == "f", grey.astype(np.float32)
    low, high = grey.min(), grey.max()
    if real and high <= 16:  # not 0 … 255; 0 … 1, if need be with what resizing adds to it, or another range
        return grey if low >= -0.5 and high <= 1.5 else (grey - low) / max(high - low, 1e-6)
    return grey / 255 if high > 1 else grey


def find_ink(grey: np.ndarray) -> np.ndarray:
    """How much of each pixel is ink, 0 … 1, of the same shape. Raises NoDigitFound."""
    grey = np.pad(grey, 2, mode="edge")
    span = float(grey.max() - grey.min())
    ink = _stands_out(grey if _is_dark_on_light(grey) else -grey)
    strongest = float(np.percentile(ink, 99.7))
    if strongest < LEAST_CONTRAST or span < LEAST_CONTRAST:
        raise NoDigitFound("no digit found: the picture is blank, or nearly")
    threshold = min(strongest, _otsu(ink[ink > 0.1 * strongest]))
    full = float(np.median(ink[ink >= threshold]))
    ink = np.clip((ink - 0.35 * threshold) / (full - 0.35 * threshold), 0, 1)
    return _without_specks(ink)[2:-2, 2:-2]


def _is_dark_on_light(grey: np.ndarray) -> bool:
    """Which way the picture departs further from its paper: a plane laid through most of it, for light comes askew."""
    i, j = np.mgrid[: grey.shape[0] : 2, : grey.shape[1] : 2]
    values, places = grey[::2, ::2].ravel(), np.stack([np.ones(i.size), i.ravel(), j.ravel()], axis=1)
    departure = values - np.median(values)
    for _ in range(4):  # what departs far is no paper, and is left out of the next fit
        paper = np.abs(departure) <= 2 * np.median(np.abs(departure)) + 1e-3
        plane, *_ = np.linalg.lstsq(places[paper], values[paper], rcond=None)
        departure = values - places @ plane
    return -np.percentile(departure, 0.5) > np.percentile(departure, 99.5)


def fitted(ink: np.ndarray) -> np.ndarray:
    """The cropped digit (H, W) with its longer side at 20 pixels, strokes about as wide as MNIST's."""
    fine = 4  # strokes are measured and mended at four times the size
    large = _scaled(ink, BOX * fine / max(ink.shape))
    width = stroke_width(large) / fine
    if width < THIN:
        large = _grown(large, round((THIN + 0.4 - width) * fine / 2))
    elif width > THICK:
        large = 1 - _grown(1 - np.pad(large, fine), round((width - THICK) * fine / 2))
        large = _cropped(large)
    return _scaled(large, BOX / max(large.shape))


def centred(ink: np.ndarray) -> np.ndarray:
    """ink (h, w ≤ 20) -> uint8 (28, 28), its centre of mass in pixel (14, 14), like MNIST, as near as may be."""
    result = np.zeros((SIDE, SIDE), np.float32)
    corner = []
    for axis, length in enumerate(ink.shape):
        mass = ink.sum(axis=1 - axis)
        centre = float((mass * np.arange(length)).sum() / mass.sum())
        corner.append(int(np.clip(round(SIDE / 2 - centre), 0, SIDE - length)))
    result[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink
    return np.round(255 * np.clip(result, 0, 1)).astype(np.uint8)


def stroke_width(ink: np.ndarray) -> float:
    """The typical width of a stroke in pixels: twice the area over the length of the outline."""
    solid = np.pad(ink > 0.5, 1)
    outline = np.diff(solid, axis=0).sum() + np.diff(solid, axis=1).sum()  # where neighbours differ
    # Counted along pixels an outline is 4/π times too long on average over all directions.
    return 2 * float(solid.sum()) / max(1.0, outline * np.pi / 4)


def _shrunk(grey: np.ndarray) -> np.ndarray:
    """At most WORKING_SIDE pixels high and wide."""
    scale = WORKING_SIDE / max(grey.shape)
    return grey if scale >= 1 else _scaled(grey, scale)


def _stands_out(grey: np.ndarray) -> np.ndarray:
    """How much darker a pixel is than the paper around it, whose light may change slowly over the picture."""
    small = Image.fromarray(_resized(grey, [max(1, n // 3) for n in grey.shape]))
    window = max(small.size) // 3 | 1  # wider than any stroke
    if window > 1:  # Pillow 12.3.0 ends the process when asked for a window of one pixel
        small = small.filter(ImageFilter.MaxFilter(window)).filter(ImageFilter.MinFilter(window))
    paper = np.asarray(small, np.float32)
    paper = _resized(_resized(paper, [max(1, n // 4) for n in paper.shape]), grey.shape)  # smooth
    return np.maximum(0, paper - grey)


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts the values into the two most uniform groups (Otsu, 1979)."""
    counts, edges = np.histogram(values.astype(np.float64), 64)  # float32 can't part what differs in its last digit
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    apart = sums / np.maximum(1, below) - (sums[-1] - sums) / np.maximum(1, above)
    between = below * above * apart**2
    return float(centres[between.argmax()]) if between.any() else float(values.mean())


def _without_specks(ink: np.ndarray) -> np.ndarray:
    """Only connected parts that are large beside the largest; those at the edge of the picture go if others stay."""
    labels, count = _connected(ink > 0.4)
    if not count:
        raise NoDigitFound("no digit found: nothing in the picture stands out")
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    sides = labels[:4], labels[-4:], labels[:, :4], labels[:, -4:]  # two of the four were added by find_ink
    edge = np.unique(np.concatenate([side.ravel() for side in sides]))
    inside = np.ones(count, bool)
    inside[edge[edge > 0] - 1] = False
    if inside.any() and areas[inside].max() >= min(0.1 * areas.max(), 0.004 * ink.size):
        areas = np.where(inside, areas, 0)
    if areas.max() < 6:
        raise NoDigitFound("no digit found: only specks")
    kept = np.concatenate([[False], areas >= 0.06 * areas.max()])
    near = np.asarray(Image.fromarray((255 * kept[labels]).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))) > 0
    return np.where(near, ink, 0)


def _connected(solid: np.ndarray) -> tuple[np.ndarray, int]:
    """(a number for each pixel, the same for all that hang together, 0 outside; how many). In blocks of 2×2 pixels."""
    even = np.pad(solid, ((0, solid.shape[0] % 2), (0, solid.shape[1] % 2)))
    blocks = np.pad(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).any(axis=(1, 3)), 1)
    labels, count = np.zeros(blocks.shape, int), 0
    for start in map(tuple, np.argwhere(blocks)):
        if labels[start]:
            continue
        count += 1
        labels[start], waiting = count, [start]
        while waiting:
            i, j = waiting.pop()
            for place in ((a, b) for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1)):
                if blocks[place] and not labels[place]:
                    labels[place] = count
                    waiting.append(place)
    labels = labels[1:-1, 1:-1].repeat(2, axis=0).repeat(2, axis=1)
    return np.where(solid, labels[: solid.shape[0], : solid.shape[1]], 0), count


def _grown(ink: np.ndarray, pixels: int) -> np.ndarray:
    """Every stroke wider by so many pixels on each side, with room for it around."""
    padded = np.pad(ink, pixels)
    for _ in range(pixels):
        padded = np.asarray(Image.fromarray(padded).filter(ImageFilter.MaxFilter(3)))
    return padded


def _cropped(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(ink.max(axis=1) > 0.3), np.flatnonzero(ink.max(axis=0) > 0.3)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink


def _scaled(grey: np.ndarray, scale: float) -> np.ndarray:
    return _resized(grey, [max(1, round(n * scale)) for n in grey.shape])


def _resized(grey: np.ndarray, size) -> np.ndarray:
    """The mean over what each new pixel covers when smaller, smooth when larger."""
    height, width = size
    smaller = height < grey.shape[0]
    kind = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(grey, np.float32)).resize((width, height), kind), np.float32)
