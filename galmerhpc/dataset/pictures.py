"""Images as services and folders give them: decoded, or refused with the reason."""

import io
import warnings

from PIL import ExifTags, Image, UnidentifiedImageError

from galmerhpc.errors import brief

FORMATS = ("GIF", "PNG", "JPEG")
"""What is decoded; Pillow's other formats are not previews, and some start programs."""

_MODES = ("1", "L", "P", "RGB")
"""Pillow's names of what becomes grey or RGB without loss of meaning."""
_PNG_DEPTH = 24  # where a PNG has its bits per channel: Pillow opens 16 of RGB as if they were 8

# An image of more pixels than Pillow's limit is refused, not warned of.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class PictureError(ValueError):
    """Bytes that are not the image that was asked for; the text says why."""


class BrokenPictureError(PictureError):
    """Bytes that do not decode; fetched again they may be intact."""


class NoPictureError(BrokenPictureError):
    """Bytes of another kind."""


class WrongSizeError(PictureError):
    """An image of another size."""


def decode(body: bytes, nbins: int, still: bool = False) -> Image.Image:
    """Decode an image of `nbins` x `nbins` pixels.

    Parameters
    ----------
    body : bytes
        GIF, PNG or JPEG.
    nbins : int
        Width and height that it must have, pixels.
    still : bool
        Refuse an animated one, which takes another look through all of a GIF's bytes. Without, the
        first frame is decoded.

    Returns
    -------
    Image
        Grey, palette or RGB, as stored, except that what a GIF's transparent colour covers is
        black, like the sky. Many programs declare one that no pixel has.

    Raises
    ------
    BrokenPictureError
        It does not decode; NoPictureError if it is of another kind.
    WrongSizeError
        It has another size.
    PictureError
        It is animated, transparent, turned, or of other pixels than 8-bit grey, palette or RGB.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as picture:
            animated = still and getattr(picture, "is_animated", False)
            # Only an image of the right size is decoded: a bomb is told by its header.
            if picture.size == (nbins, nbins) and not animated:
                picture.load()
    except UnidentifiedImageError:
        raise NoPictureError(f"{len(body)} bytes that are not {' or '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise WrongSizeError("an image of far more pixels than asked for") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged files
        raise BrokenPictureError(f"a broken image ({brief(error)})") from None
    if picture.size != (nbins, nbins):
        width, height = picture.size
        raise WrongSizeError(f"an image of {width} x {height} pixels, not {nbins} x {nbins}")
    if animated:
        raise PictureError("an animated image")
    deep = picture.format == "PNG" and body[_PNG_DEPTH] > 8
    if picture.mode not in _MODES or deep:
        raise PictureError(
            f"pixels of kind {picture.mode}{', 16 bits per channel' if deep else ''}; only 8-bit "
            "grey, palette and RGB without alpha can be taken"
        )
    # What other programs turn when they show it, `predict` among them, is not what is stored.
    if picture.format != "GIF" and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        raise PictureError("an image that its EXIF data turn; save it upright, without them")
    if "transparency" not in picture.info:
        return picture
    if picture.format != "GIF":
        raise PictureError("an image with a transparent colour; save it without")
    return _on_black(picture)


def _on_black(picture: Image.Image) -> Image.Image:
    black = Image.new("RGBA", picture.size, "black")
    black.alpha_composite(picture.convert("RGBA"))
    final = black.convert("RGB")
    final.format = picture.format
    return final


def is_blank(picture: Image.Image) -> bool:
    """Return whether all pixels of an image are alike."""
    return picture.convert("RGB").getcolors(1) is not None
