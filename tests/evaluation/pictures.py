"""Odd, broken and huge image files."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from astropy.io import fits
from PIL import Image

SIDE = 40


def scene(width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Return two blobs on a dark sky, (H, W) float64, of a brightness from 0 to 1."""
    y, x = np.mgrid[:height, :width]
    first, second = (
        np.exp(-((x - width * a) ** 2 + (y - height * b) ** 2) / (0.01 * width * height))
        for a, b in ((0.4, 0.45), (0.65, 0.6))
    )
    return np.clip(first + 0.5 * second, 0, 1)


def grey(width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Return `scene` in grey levels, uint8."""
    return np.rint(255 * scene(width, height)).astype(np.uint8)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def array_bytes(array: np.ndarray, **options: object) -> bytes:
    """Return a NumPy file's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def fits_bytes(*hdus: fits.hdu.base.ExtensionHDU) -> bytes:
    """Return a FITS file's bytes."""
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


def odd_files() -> dict[str, bytes]:
    """Return unusual but valid image files, by name."""
    picture, linear = Image.fromarray(grey()), (3000 * scene()).astype(np.float32)
    colour = picture.convert("RGB")
    red = np.zeros((SIDE, SIDE, 3), np.uint8)
    red[..., 0] = grey()
    with_alpha = colour.convert("RGBA")
    with_alpha.putalpha(picture)
    holes = np.where(scene() > 0.5, np.nan, linear)
    return {
        "grey.png": encode(picture, "PNG"),
        "colour.jpg": encode(colour, "JPEG"),
        "progressive.jpg": encode(colour, "JPEG", progressive=True),
        "cmyk.jpg": encode(colour.convert("CMYK"), "JPEG"),
        "turned.jpg": encode(colour, "JPEG", exif=_turned_exif()),
        "red.png": encode(Image.fromarray(red), "PNG"),
        "alpha.png": encode(with_alpha, "PNG"),
        "grey_alpha.png": encode(picture.convert("LA"), "PNG"),
        "palette.png": encode(colour.quantize(16), "PNG"),
        "transparent.png": encode(colour.quantize(16), "PNG", transparency=15),
        "one_bit.png": encode(picture.convert("1"), "PNG"),
        "sixteen.png": encode(Image.fromarray(linear.astype(np.uint16)), "PNG"),
        "turned_sixteen.png": encode(
            Image.fromarray(linear.astype(np.uint16)), "PNG", exif=_turned_exif()
        ),
        "plain.gif": encode(picture, "GIF"),
        "plain.tif": encode(colour, "TIFF"),
        "deflate.tif": encode(picture, "TIFF", compression="tiff_adobe_deflate"),
        "sixteen.tif": encode(Image.fromarray(linear.astype(np.uint16)), "TIFF"),
        "float.tif": encode(Image.fromarray(linear), "TIFF"),
        "wide.png": encode(Image.fromarray(grey(120, 50)), "PNG"),
        "high.jpg": encode(Image.fromarray(grey(50, 300)), "JPEG"),
        "smallest.png": encode(Image.fromarray(grey(16, 16)), "PNG"),
        "large.png": encode(Image.fromarray(grey(3000, 2000)), "PNG"),
        "a jpeg by another name.png": encode(colour, "JPEG"),
        "no_suffix": encode(picture, "PNG"),
        "\u00e4\u661f $x_1$ %s.png": encode(picture, "PNG"),
        "two\nlines.png": encode(picture, "PNG"),
        os.fsdecode(b"no-utf8-\xff.png"): encode(picture, "PNG"),
        "grey.npy": array_bytes(grey()),
        "channel.npy": array_bytes(grey()[..., None]),
        "colour.npy": array_bytes(np.asarray(colour)),
        "alpha.npy": array_bytes(np.asarray(with_alpha)),
        "float32.npy": array_bytes(linear),
        "float64.npy": array_bytes(linear.astype(np.float64)),
        "float16.npy": array_bytes(scene().astype(np.float16)),
        "big_endian.npy": array_bytes(linear.astype(">f4")),
        "fortran.npy": array_bytes(np.asfortranarray(linear)),
        "negative.npy": array_bytes((linear - 5000).astype(np.int16)),
        "holes.npy": array_bytes(holes),
        "infinite.npy": array_bytes(np.where(scene() > 0.9, np.inf, linear)),
        "float.fits": fits_bytes(fits.PrimaryHDU(linear)),
        "unsigned.fits": fits_bytes(fits.PrimaryHDU(linear.astype(np.uint16))),
        "bytes.fits": fits_bytes(fits.PrimaryHDU(grey())),
        "holes.fits": fits_bytes(fits.PrimaryHDU(holes)),
        "cube.fits": fits_bytes(fits.PrimaryHDU(np.stack([linear] * 3))),
        "extension.fits": fits_bytes(fits.PrimaryHDU(), fits.ImageHDU(linear)),
        "packed.fits": fits_bytes(
            fits.PrimaryHDU(), fits.CompImageHDU(linear.astype(np.int16), compression_type="RICE_1")
        ),
    }


def _white_is_zero(tiff: bytes) -> bytes:
    """Return a TIFF with its tag of the photometric interpretation changed."""
    black, white = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert tiff.count(black) == 1
    return tiff.replace(black, white)


def bad_files() -> dict[str, bytes]:
    """Return files that are not images, or not usable ones, by name."""
    odd, picture = odd_files(), Image.fromarray(grey())
    other = Image.fromarray(255 - grey())
    linear = (3000 * scene()).astype(np.uint16)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.arange(5.0))])
    files = {
        "empty.png": b"",
        "cielab.tif": encode(Image.frombytes("LAB", (SIDE, SIDE), bytes(3 * SIDE**2)), "TIFF"),
        "white_is_zero.tif": _white_is_zero(odd["sixteen.tif"]),
        "one_byte.jpg": b"\x89",
        "text.png": b"this is no picture\n" * 100,
        "page.gif": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "drawing.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>',
        "paper.png": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\nshowpage\n",
        "bitmap.png": encode(picture, "BMP"),
        "web.png": encode(picture, "WEBP"),
        "zipped.png": _zip(odd["grey.png"]),
        "hdf5.fits": b"\x89HDF\r\n\x1a\n" + bytes(500),
        "noise.png": np.random.default_rng(1).bytes(5000),
        "noise_after_head.png": odd["grey.png"][:33] + np.random.default_rng(2).bytes(5000),
        "noise_after_head.jpg": odd["colour.jpg"][:20] + np.random.default_rng(3).bytes(5000),
        "only_head.npy": b"\x93NUMPY",
        "long_head.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 4000,
        "code.npy": _npy("__import__('os').abort()"),
        "objects.npy": array_bytes(np.array([[Abort()]], object), allow_pickle=True),
        "pickle.npy": pickle.dumps(Abort()),
        "records.npy": array_bytes(np.zeros((SIDE, SIDE), [("a", "f4"), ("b", "i2")])),
        "complex.npy": array_bytes(scene() + 1j),
        "words.npy": array_bytes(np.full((SIDE, SIDE), "bright")),
        "times.npy": array_bytes(np.zeros((SIDE, SIDE), "datetime64[s]")),
        "line.npy": array_bytes(np.arange(1000.0)),
        "stack.npy": array_bytes(np.zeros((5, SIDE, SIDE, 3), np.uint8)),
        "planes.npy": array_bytes(np.zeros((3, SIDE, SIDE), np.uint8)),
        "nothing.npy": array_bytes(np.zeros((0, SIDE))),
        "no_number.npy": array_bytes(np.full((SIDE, SIDE), np.nan)),
        "flat.npy": array_bytes(np.ones((SIDE, SIDE))),
        "overflow.npy": array_bytes(np.where(scene() > 0.1, np.finfo(float).max, -1e308)),
        "huge.npy": _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000)}"),
        "beyond.npy": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2**62, 2**62)}"),
        "less_than_none.npy": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-40, -40)}"),
        "huge.png": _png_head(60_000, 60_000),
        "bomb.png": _png_bomb(20_000),
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(20),
        "huge.jpg": _jpeg_head(odd["colour.jpg"], 65_000, 65_000),
        "huge.tif": _tiff_head(100_000, 100_000),
        "huge.fits": _fits_head(1_000_000, 1_000_000),
        "thin.png": encode(Image.fromarray(grey(1, 3000)), "PNG"),
        "dot.png": encode(Image.fromarray(grey(1, 1)), "PNG"),
        "tiny.gif": encode(Image.fromarray(grey(15, 15)), "GIF"),
        "black.png": encode(Image.new("L", (SIDE, SIDE)), "PNG"),
        "white.jpg": encode(Image.new("RGB", (SIDE, SIDE), "white"), "JPEG"),
        "invisible.png": encode(Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 0)), "PNG"),
        # Pillow would read the upper half of each number.
        "sixteen_colour.png": _png_of(np.stack([linear] * 3, axis=2)),
        "sixteen_alpha.png": _png_of(np.stack([linear, np.full_like(linear, 65535)], axis=2)),
        "sixteen_colour.tif": _tiff_of(np.stack([linear] * 3, axis=2)),
        "film.gif": encode(picture, "GIF", save_all=True, append_images=[other]),
        "film.png": encode(picture, "PNG", save_all=True, append_images=[other]),
        "pages.tif": encode(picture, "TIFF", save_all=True, append_images=[other]),
        "table.fits": fits_bytes(fits.PrimaryHDU(), table),
        "no_image.fits": fits_bytes(fits.PrimaryHDU()),
        "line.fits": fits_bytes(fits.PrimaryHDU(np.arange(1000.0))),
        "planes.fits": fits_bytes(fits.PrimaryHDU(np.ones((7, SIDE, SIDE)))),
        "flat.fits": fits_bytes(fits.PrimaryHDU(np.ones((SIDE, SIDE)))),
        "only_card.fits": b"SIMPLE  =                    T",
    }
    for name in ("grey.png", "colour.jpg", "plain.gif", "plain.tif", "float32.npy", "float.fits"):
        content = odd[name]
        for share in (0.02, 0.3, 0.6):
            files[f"cut_{share}_{name}"] = content[: int(share * len(content))]
    return files


def write_nuisances(folder: Path) -> list[Path]:
    """Make things with an image's name that are not regular files, and return them."""
    made = [
        folder / name
        for name in ("folder.png", "pipe.png", "nowhere.png", "circle.png", "gone.png")
    ]
    made[0].mkdir()
    (made[0] / "inside.txt").write_text("no picture")
    os.mkfifo(made[1])
    made[2].symlink_to(folder / "not_there")
    made[3].symlink_to(made[3])
    return made


class Abort:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return os.abort, ()


def _turned_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return exif.tobytes()


def _zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.png", content)
    return buffer.getvalue()


def _npy(head: str) -> bytes:
    text = (head + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(1000)


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def _png_head(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(99)))


def _png_of(values: np.ndarray) -> bytes:
    """Return a PNG of 16 bits per channel, which Pillow cannot write in colour, from (H, W, C)."""
    height, width, channels = values.shape
    kind = {2: 4, 3: 2}[channels]
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _tiff_of(values: np.ndarray) -> bytes:
    """Return an uncompressed RGB TIFF of 16 bits per channel, from (H, W, 3)."""
    height, width, _ = values.shape
    body = values.astype("<u2").tobytes()
    end = 8 + 2 + 12 * 9 + 4  # of the directory, where the three depths begin
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, end), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, end + 6), (277, 3, 1, 3), (278, 4, 1, height),
            (279, 4, 1, len(body))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<HHH", 16, 16, 16) + body


def _png_bomb(side: int) -> bytes:
    """Return a file of 50 kB that is a black image of `side` x `side` pixels."""
    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [_chunk(b"IHDR", head), _chunk(b"IDAT", packed), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _jpeg_head(content: bytes, width: int, height: int) -> bytes:
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def _tiff_head(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height),
            (279, 100)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)


def _fits_head(width: int, height: int) -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                  -64",
             "NAXIS   =                    2", f"NAXIS1  = {width:20d}", f"NAXIS2  = {height:20d}",
             "END"]  # fmt: skip
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)
