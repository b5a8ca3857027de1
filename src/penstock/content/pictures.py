"""Pictures as they are given: recognised, checked, decoded, and left alone if they are fine.

The rule here: what a picture is follows from its first bytes, never from its name, and its size is checked before
anything is decoded. A picture that fits already leaves byte for byte as it came. Everything here blocks: it belongs
in a worker thread, where Pillow releases the interpreter's lock while it works.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from penstock.content.fitting import Fit, MediaType, Picture, fitted, orientation
from penstock.content.sources import encoded, read
from penstock.errors import InvalidImage

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["is_picture", "prepared"]

_Kind: TypeAlias = Literal["JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF"]

# What a picture of each kind begins with, and the class that reads it. Only these decoders ever see a file: Pillow has
# dozens more, for formats that nobody sends.
_KINDS: Final[tuple[tuple[_Kind, tuple[bytes, ...], str, str], ...]] = (
    ("JPEG", (b"\xff\xd8\xff",), "PIL.JpegImagePlugin", "JpegImageFile"),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), "PIL.PngImagePlugin", "PngImageFile"),
    ("GIF", (b"GIF87a", b"GIF89a"), "PIL.GifImagePlugin", "GifImageFile"),
    ("WebP", (b"RIFF",), "PIL.WebPImagePlugin", "WebPImageFile"),
    ("BMP", (b"BM",), "PIL.BmpImagePlugin", "BmpImageFile"),
    ("TIFF", (b"II*\0", b"MM\0*"), "PIL.TiffImagePlugin", "TiffImageFile"),
)
_MEDIA_TYPES: Final[dict[str, MediaType]] = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WebP": "image/webp",
}
# What a model has certainly seen; CMYK, Lab and more than 8 bits are converted.
_PLAIN_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
_PHOTOS: Final = frozenset({"JPEG", "MPO", "WEBP", "WebP"})
# A progressive JPEG has about ten; each costs a pass over the whole picture, so that thousands are a trap.
_MOST_SCANS: Final = 100
_SCAN: Final = b"\xff\xda"
_STEP: Final = 1024 * 1024
_PNG_END: Final = b"IEND"
_HTML: Final = "a page of HTML, perhaps a server's answer in place of a picture"
_HEIC: Final = "a HEIC picture; convert it to JPEG first"
_FOREIGN: Final = (
    (b"%pdf-", "a PDF, which penstock.document takes"),
    (b"<svg", "an SVG, which is no picture of pixels; render it first"),
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"ftyphe", _HEIC),
    (b"ftypmif1", _HEIC),
    (b"ftypavif", "an AVIF picture; convert it to JPEG first"),
)


def is_picture(given: object) -> bool:
    """Whether it is an image of Pillow; says so without loading Pillow."""
    return any((kind.__module__, kind.__name__) == ("PIL.Image", "Image") for kind in type(given).__mro__)


def prepared(given: object, fit: Fit) -> Picture:
    """Return a picture that fits.

    Args:
        given: A path, bytes, a `data:` URL, or an image of Pillow.
        fit: What it has to fit into.

    Raises:
        InvalidImage: It can't be sent.
        OSError: A file can't be read.
        TypeError: It is something else.
        ImportError: Pillow is not installed.
    """
    _load_pillow()
    if is_picture(given):
        image = cast("Image", given)
        _check_pixels(image, fit)
        _load(image, image.format or "image")
        return fitted(image, fit, drawn=image.format not in _PHOTOS)
    return _read_picture(read(given, most=fit.max_input_bytes, what="an image"), fit)


def _read_picture(data: bytes, fit: Fit) -> Picture:
    kind, image = _opened(data)
    with image:
        _check_pixels(image, fit)
        _check_scans(kind, data)
        target = fit.size(*image.size)
        fits = target == image.size
        if not fits:
            # A JPEG can be decoded at a half, a quarter or an eighth of its size, for a fraction of time and memory.
            image.draft(None, target)
        # Also if it is to be left alone: only its end shows that it isn't truncated.
        _load(image, kind)
        if kind == "PNG" and _PNG_END not in data:
            raise InvalidImage("the PNG is truncated")
        if fits and len(data) <= fit.raw_bytes and _is_plain(kind, image):
            return Picture(media_type=_MEDIA_TYPES[kind], data=encoded(data))
        return fitted(image, fit, drawn=kind not in _PHOTOS)


def _load_pillow() -> None:
    try:
        # Those that write: left to itself, Pillow loads all of its dozens to find one.
        for name in ("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.WebPImagePlugin"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            'penstock.image needs Pillow to read pictures: install the extra "penstock[vision]". '
            "URLs and file ids work without."
        ) from error


def _opened(data: bytes) -> tuple[_Kind, Image]:
    for kind, beginnings, module, name in _KINDS:
        if data.startswith(beginnings) and (kind != "WebP" or data[8:12] == b"WEBP"):
            # Not by Image.open, which warns of large pictures by a setting that all of the process shares.
            opener = getattr(importlib.import_module(module), name)
            try:
                return kind, opener(io.BytesIO(data))
            except Exception as error:  # noqa: BLE001 - a decoder fails on nonsense in any way
                raise InvalidImage(f"the {kind} is truncated or damaged: {type(error).__name__}") from None
    raise InvalidImage(_why_foreign(data))


def _why_foreign(data: bytes) -> str:
    if not data:
        return "it is empty, 0 bytes"
    head = data[:1024].lower()
    for mark, what in _FOREIGN:
        # Not only at the start: text may begin with a byte order mark, an XML declaration or a comment.
        if mark in head:
            return f"it is {what}"
    return "it is none of JPEG, PNG, GIF, WebP, BMP and TIFF, whatever its name says"


def _check_pixels(image: Image, fit: Fit) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"{width} × {height} pixels are no picture")
    if width * height > fit.max_pixels:
        raise InvalidImage(f"{width} × {height} pixels are more than the {fit.max_pixels} of max_pixels")


def _check_scans(kind: _Kind, data: bytes) -> None:
    # In steps, between which other threads may run.
    if kind == "JPEG" and sum(data.count(_SCAN, at, at + _STEP) for at in range(0, len(data), _STEP)) > _MOST_SCANS:
        raise InvalidImage(f"the JPEG has more than {_MOST_SCANS} scans, which no camera makes")


def _load(image: Image, kind: str) -> None:
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 - a decoder fails on nonsense in any way
        raise InvalidImage(f"the {kind} is truncated or damaged: {type(error).__name__}") from None


def _is_plain(kind: _Kind, image: Image) -> bool:
    still = kind != "WebP" or not getattr(image, "is_animated", False)
    return kind in _MEDIA_TYPES and still and image.mode in _PLAIN_MODES and orientation(image) == 1
