"""Images supplied by the user, brought into the form of training images, or refused by name.

Training images are squares with the pair in the middle on a black sky, whose grey levels grow as
the inverse hyperbolic sine of the surface brightness (`simulate.render`). So for a photograph

- 8 bits per channel are taken as they are: such an image was already stretched for the eye, colour
  images of SDSS by the same function (Lupton et al. 2004, PASP 116, 133);
- anything else (16 bits, floating point, FITS) is assumed to be linear and stretched (`stretched`);
- colours are converted to grey if training images are grey (`trains_grey`);
- the central square is resized with the same filter as training images (`preprocess.finished`).

The format is determined from a file's content, not its name. The size is read from the header, and
images that are too large are refused before their pixels are read.
"""

import contextlib
import functools
import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from galmerhpc.config import Config
from galmerhpc.dataset.pictures import is_blank
from galmerhpc.dataset.preprocess import finished
from galmerhpc.dataset.shards import Images, all_grey
from galmerhpc.errors import InputError, brief

FORMATS = ("JPEG", "PNG", "GIF", "TIFF")
"""Pillow formats; some of the others start programs. NumPy and FITS files are read separately."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".npy", ".fits", ".fit", ".fts")
"""Suffixes by which the images in a folder are recognised."""

MOST_PIXELS = 50_000_000
"""Size limit of images, about 7,000 x 7,000; floating-point copies stay below a gigabyte."""

FEWEST_PIXELS = 16
"""Least length of the shorter side; a pair has no shape in fewer pixels."""

DYNAMIC_RANGE = 1000.0
"""Largest ratio of white to the surface brightness where the scale turns from linear to
logarithmic: that of the mirror's images (`simulate.render`)."""

NOISE_SIGMAS = 3.0
"""Least such surface brightness in units of the sky's noise, to keep noise dark."""

WHITE_PERCENTILE = 99.9

_SAMPLE = 1_000_000  # pixels from which sky, noise and white are measured
_CLIPPINGS = 5
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_EIGHT_BITS = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_ALPHA)


def paths_of(names: Sequence[str]) -> list[Path]:
    """Return the files that names denote: themselves, images in a folder, matches of a pattern.

    Parameters
    ----------
    names : sequence of str
        Files, folders (their files with one of `SUFFIXES`, by name) and patterns with ``*``, ``?``
        or ``[]`` that the shell did not expand.

    Returns
    -------
    list of Path
        Without duplicates. A folder without images and a pattern without matches are returned
        themselves, so that `read` refuses them by name.

    Raises
    ------
    InputError
        A name is empty.
    """
    found: list[Path] = []
    for name in names:
        if not name:
            raise InputError("an image's name is empty; is a variable of the shell not set?")
        # A file may be named like a pattern.
        matches = [] if os.path.lexists(name) else _matches(name)
        for path in map(Path, matches or [name]):
            found += _pictures_in(path) or [path]
    return list(dict.fromkeys(found))


def _matches(pattern: str) -> list[str]:
    """Return what matches a pattern, by name; ``**`` follows no links, which may lead in circles.

    The module glob takes any name and skips folders that it may not read, where the methods of Path
    raise.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))  # noqa: PTH207
    place = parts.index("**")
    before, after = Path(*parts[:place]), parts[place + 1 :] or ("*",)
    found: set[str] = set()
    for top in glob.glob(str(before)):  # noqa: PTH207
        for folder, inside, _ in os.walk(top):
            inside[:] = [name for name in inside if not name.startswith(".")]
            found.update(_matches(str(Path(glob.escape(folder), *after))))
    return sorted(found)


def _pictures_in(folder: Path) -> list[Path]:
    """Return the images in a folder by name; none if it is not a folder or cannot be read."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return []
    return [path for path in inside if not os.path.isdir(path)]  # noqa: PTH112 - as above


def trains_grey(config: Config) -> bool:
    """Return whether all training images of a run are grey.

    They are with one channel, from the mirror, or if the run's shards say so; a network that has
    only seen grey must not be shown colours.
    """
    drawn = config.scrape.source == "mirror" and not (config.catalogue and config.catalogue.images)
    return config.preprocess.channels == 1 or drawn or _shards_are_grey(config.run_dir / "shards")


# A table of a thousand photographs asks a thousand times.
_shards_are_grey = functools.cache(all_grey)


def training_form(picture: Image.Image, config: Config) -> Images:
    """Return the central square of an image in the form of a run's training images.

    Parameters
    ----------
    picture : Image
        Of mode L or RGB.
    config : Config
        The run.

    Returns
    -------
    ndarray, shape (H, W, C), uint8
    """
    size, channels = config.preprocess.image_size, config.preprocess.channels
    side = min(picture.size)
    left, upper = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, upper, left + side, upper + side))
    if trains_grey(config):
        square = square.convert("L")
    return np.asarray(finished(square, config.preprocess)).reshape(size, size, channels)


def read(path: Path) -> Image.Image:
    """Read an image.

    Parameters
    ----------
    path : Path
        JPEG, PNG, GIF, TIFF, NumPy (H, W) or (H, W, 1 | 3 | 4), or FITS (H, W) or (1 | 3, H, W).

    Returns
    -------
    Image
        Of mode L or RGB.

    Raises
    ------
    ValueError
        It is not an image, broken, too large, too small, blank, or several images; the message
        gives the reason but not the file.
    """
    try:
        if path.is_dir():
            raise ValueError(f"a folder with no readable image ({', '.join(SUFFIXES)})")
        if not path.is_file():
            raise ValueError("not a regular file" if path.exists() else "no such file")
        with path.open("rb") as file:
            head = file.read(10)
        with _quiet():
            if head.startswith(b"\x93NUMPY"):
                picture = _of_numbers(_numpy(path))
            elif head.startswith(b"SIMPLE  ="):
                picture = _of_numbers(_fits(path))
            else:
                picture = decode(path)
    except OSError as error:
        raise ValueError(f"cannot be read ({brief(error.strerror or error)})") from None
    if is_blank(picture):
        raise ValueError("a blank image")
    return picture


def decode(file: Path | IO[bytes]) -> Image.Image:
    """Decode an image file in one of `FORMATS`; the result is of mode L or RGB.

    Raises
    ------
    ValueError
        As for `read`, except that blank images are accepted.
    """
    try:
        with _quiet(), Image.open(file, formats=FORMATS) as picture:
            _check_size(*picture.size)
            # Cameras add previews of the same image to a JPEG.
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise ValueError("several images in one file")
            if picture.mode in _EIGHT_BITS and _is_deep(picture):
                raise ValueError(
                    "16 bits per channel in colour or with transparency, of which only 8 would be "
                    "read; save it in grey without transparency, or as NumPy or FITS"
                )
            if picture.mode not in _EIGHT_BITS and picture.mode[0] not in "IF":
                raise ValueError(f"colours of mode {picture.mode}; save it as RGB")
            if picture.mode not in _EIGHT_BITS and _white_is_zero(picture):
                raise ValueError("16 bits per pixel with zero as white; save it with zero as black")
            return _decoded(picture)
    except UnidentifiedImageError:
        raise ValueError(f"not a {', '.join(FORMATS)}, NumPy or FITS image") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged files
        raise ValueError(f"a broken image ({brief(error)})") from None


def stretched(brightness: NDArray[np.floating]) -> Images:
    """Return grey levels of linear brightness: an asinh stretch from black sky to white.

    The sky and its noise are measured after clipping at three sigmas; white is the brightness that
    one pixel in a thousand exceeds. The scale turns from linear to logarithmic at a thousandth of
    white (`DYNAMIC_RANGE`), or above the noise.

    Parameters
    ----------
    brightness : ndarray, shape (H, W)
        In any unit; NaN counts as sky, infinity as white.

    Returns
    -------
    ndarray, shape (H, W), uint8

    Raises
    ------
    ValueError
        All pixels are equally bright, or none is finite.
    """
    step = max(1, round((brightness.size / _SAMPLE) ** 0.5))
    sample = np.asarray(brightness[::step, ::step], np.float64)
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        raise ValueError("no pixel is a finite number")
    sky, noise = sky_of(sample)
    white = np.percentile(sample, WHITE_PERCENTILE) - sky
    if not 0 < white < np.inf:
        raise ValueError("a blank image")
    knee = max(white / DYNAMIC_RANGE, NOISE_SIGMAS * noise)
    light = np.clip(np.nan_to_num((brightness - sky) / knee, nan=0.0), 0.0, white / knee)
    levels = 255 * np.arcsinh(light) / np.arcsinh(white / knee)
    return np.rint(levels).astype(np.uint8)


def sky_of(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the brightness of the sky and its noise (standard deviation).

    Median and median absolute deviation, with iterative clipping at three sigmas.
    """
    for _ in range(_CLIPPINGS):
        sky = float(np.median(values))
        noise = 1.4826 * float(np.median(np.abs(values - sky)))  # for a Gaussian
        values = values[np.abs(values - sky) <= 3 * noise]
    return sky, noise


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS:,}; make it smaller")
    if min(width, height) < FEWEST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, too few to show a pair")


def _of_numbers(values: NDArray[Any]) -> Image.Image:
    """Return an array (H, W) or (H, W, C) as an image: uint8 as it is, others stretched."""
    if values.dtype == np.uint8:
        picture = Image.fromarray(np.ascontiguousarray(np.squeeze(values)))
        return _on_black(picture) if picture.mode == "RGBA" else picture
    brightness = np.asarray(values, np.float32)
    if brightness.ndim == 3:
        brightness = brightness[..., :3].mean(axis=2)
    return Image.fromarray(stretched(brightness))


def _numpy(path: Path) -> NDArray[Any]:
    """Return the array of a file, (H, W) or (H, W, C), without executing pickled code."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - NumPy lets Python parse the header
        raise ValueError(f"a broken NumPy file ({brief(error)})") from None
    if values.dtype.kind not in "uif":
        raise ValueError(f"a NumPy array of {brief(values.dtype)}, not of numbers")
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"a NumPy array of shape {values.shape}, not (H, W) or (H, W, 3)")
    _check_size(values.shape[1], values.shape[0])
    return values


def _fits(path: Path) -> NDArray[Any]:
    """Return the first image of a FITS file, (H, W, C), with the top row first."""
    try:
        from astropy.io import fits
    except ImportError:
        raise ValueError("FITS needs astropy: pip install 'galmerhpc[fits]'") from None
    try:
        with fits.open(path) as file:
            images = (h for h in file if h.is_image and len(h.shape) in (2, 3))
            image = next(images, None)
            if image is None:
                raise ValueError("a FITS file without an image")
            *planes, height, width = image.shape
            _check_size(width, height)
            if planes not in ([], [1], [3]):
                raise ValueError(f"a FITS cube of {planes[0]} planes, not 1 or 3")
            values = np.array(image.data).reshape(-1, height, width)  # (C, H, W)
    except (OSError, ValueError):
        raise
    except Exception as error:  # noqa: BLE001 - astropy raises nearly anything on damaged files
        raise ValueError(f"a broken FITS file ({brief(error)})") from None
    if values.dtype.kind not in "uif":
        raise ValueError(f"a FITS image of {values.dtype}, not of numbers")
    return np.moveaxis(values, 0, 2)[::-1]


def _is_deep(picture: ImageFile.ImageFile) -> bool:
    """Return whether a file has 16 bits per channel; in colour Pillow decodes only 8 of them."""
    return any(";16" in str(tile[3]) for tile in picture.tile)  # such as RGB;16B


def _white_is_zero(picture: ImageFile.ImageFile) -> bool:
    """Return whether a TIFF is a negative, which Pillow inverts only up to 8 bits."""
    tags = getattr(picture, "tag_v2", {})
    return tags.get(ExifTags.Base.PhotometricInterpretation) == 0


def _decoded(picture: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode not in _EIGHT_BITS:
        return _of_numbers(np.asarray(upright))
    if upright.mode in _ALPHA or "transparency" in upright.info:
        upright = _on_black(upright)
    return upright.convert("L" if upright.mode in ("1", "L") else "RGB")


def _on_black(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    ground = Image.new("RGBA", layer.size, (0, 0, 0, 255))
    ground.alpha_composite(layer)
    return ground.convert("RGB")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings about odd files and numbers: a file is either read or refused."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def shown(path: Path) -> str:
    """Return a file's name in printable form, with undecodable and control characters escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
