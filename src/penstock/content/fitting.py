"""Pictures converted and encoded so that they fit: upright, small enough, in 8 bits and a format that the API takes.

The rule here: no more is lost than must be. Drawings stay lossless while they are small; transparency stays; colours
keep their profile. A picture is scaled down before anything else is done to it, so that the rest is cheap. Everything
here blocks: it belongs in a worker thread.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, TypeAlias, cast

from penstock._core.images import seen_size
from penstock.content.sources import encoded, mebibytes
from penstock.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

    from penstock._core.models import Tier

__all__ = ["Fit", "MediaType", "Picture", "fitted", "orientation"]

MediaType: TypeAlias = Literal["image/jpeg", "image/png", "image/gif", "image/webp"]

# Drawings, screenshots and text keep their sharp edges up to this many bytes; above, they are encoded like photos.
_LOSSLESS_BYTES: Final = 1_000_000
_QUALITIES: Final = (85, 70, 50)
_SMALLER: Final = 0.7
_COLOR_PROFILE_BYTES: Final = 32 * 1024
_PROFILED: Final = frozenset({"L", "LA", "P", "PA", "RGB", "RGBA"})
_DEEP: Final = ("I", "F")
_BRIGHTEST: Final = {"I;16": 65_535.0, "I;16L": 65_535.0, "I;16B": 65_535.0, "I;16N": 65_535.0}
_ORIENTATION: Final = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a picture has to fit into.

    Attributes:
        max_side: Pixels of its longest side; `None` if only `tier` bounds it.
        tier: What the model sees; `None` if only `max_side` bounds it.
        max_bytes: Of its base64.
        max_pixels: That are decoded at all.
        max_input_bytes: That are read at all.
    """

    max_side: int | None
    tier: Tier | None
    max_bytes: int
    max_pixels: int
    max_input_bytes: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the largest size of that shape that fits."""
        if self.max_side is not None and max(width, height) > self.max_side:
            width, height = _scaled(width, height, self.max_side / max(width, height))
        return (width, height) if self.tier is None else seen_size(width, height, self.tier)

    @property
    def raw_bytes(self) -> int:
        """Bytes whose base64 fits."""
        return self.max_bytes // 4 * 3


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Picture:
    """A picture that is ready to be sent.

    Attributes:
        media_type: As the API calls it.
        data: In base64.
    """

    media_type: MediaType
    data: str

    def __repr__(self) -> str:
        return f"<Picture {self.media_type}, {mebibytes(len(self.data))}>"


def fitted(image: Image, fit: Fit, *, drawn: bool) -> Picture:
    """Return a loaded picture, converted so that it fits; the picture itself stays as it is.

    Args:
        image: The picture.
        fit: What it has to fit into.
        drawn: Whether it may be a drawing, which is worth keeping lossless.

    Raises:
        InvalidImage: It can't be converted, or not be made small enough.
    """
    try:
        for smaller in _ever_smaller(image, fit):
            for media_type, data in _encodings(smaller, _color_profile(image), drawn=drawn):
                most = min(fit.raw_bytes, _LOSSLESS_BYTES) if media_type == "image/png" else fit.raw_bytes
                if len(data) <= most:
                    return Picture(media_type=media_type, data=encoded(data))
    except Exception as error:  # noqa: BLE001 - a codec fails on exotic pictures in any way
        raise InvalidImage(f"it can't be converted: {type(error).__name__}") from None
    raise InvalidImage(f"no picture of {mebibytes(fit.max_bytes)} can be made of it")


def orientation(image: Image) -> int:
    """Return how the camera was held, from 1 (upright) to 8; 1 where that can't be read."""
    try:
        found: object = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - metadata that is nonsense must not spoil the picture
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _ever_smaller(image: Image, fit: Fit) -> Iterator[Image]:
    turn = orientation(image)
    scalable = _scalable(image)
    size = fit.size(*image.size)
    while True:
        yield _turned(_eight_bits(_resized(scalable, size), image.mode), turn)
        if max(size) == 1:
            return
        size = _scaled(*size, _SMALLER)


def _scalable(image: Image) -> Image:
    """Return it in one of the modes L, RGB, RGBA and F, which can be scaled."""
    if image.mode.startswith(_DEEP):
        return image.convert("F")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image, mode: str) -> Image:
    """Return it in 8 bits, and without transparency if nothing of it is transparent."""
    if image.mode == "RGBA":
        opaque = image.getchannel("A").getextrema() == (255, 255)
        return image.convert("RGB") if opaque else image
    if image.mode != "F":
        return image
    # 16 bits have a range of their own; of deeper ones, the picture itself says what is dark and what is bright.
    low, high = cast("tuple[float, float]", image.getextrema())
    low, high = (0.0, _BRIGHTEST[mode]) if mode in _BRIGHTEST else (low, high)
    factor = 255 / ((high - low) or 1.0)
    scaled = image.point(lambda value: value * factor - low * factor)  # pyright: ignore[reportUnknownMemberType]
    return scaled.convert("L")


def _resized(image: Image, size: tuple[int, int]) -> Image:
    from PIL.Image import Resampling  # noqa: PLC0415 - only with the extra

    if image.size == size:
        return image
    return image.resize(size, Resampling.LANCZOS)  # pyright: ignore[reportUnknownMemberType] - NumPy's arrays may be none


def _turned(image: Image, turn: int) -> Image:
    from PIL.Image import Transpose  # noqa: PLC0415 - only with the extra

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[turn]) if turn in turns else image


def _encodings(image: Image, profile: bytes | None, *, drawn: bool) -> Iterator[tuple[MediaType, bytes]]:
    """Give one encoding after the other, each smaller than the last."""
    if drawn:
        yield "image/png", _saved(image, "PNG", profile)
    for quality in _QUALITIES:
        if image.mode == "RGBA":
            yield "image/webp", _saved(image, "WEBP", profile, quality=quality)
        else:
            yield "image/jpeg", _saved(image, "JPEG", profile, quality=quality)


def _saved(image: Image, kind: str, profile: bytes | None, **options: int) -> bytes:
    with _file() as file:
        # Each is said, because what the original had would be written again otherwise.
        image.save(file, kind, icc_profile=profile, exif=b"", comment=b"", **options)
        file.seek(0)
        return file.read()


def _file() -> BinaryIO:
    """Return a file in memory; if the system can make one of its own, because then Pillow writes without the lock."""
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        return open(os.memfd_create("penstock"), "w+b")  # noqa: PTH123 - it has no path
    return io.BytesIO()


def _color_profile(image: Image) -> bytes | None:
    """Return the profile that says what its colours mean; `None` if the colours are converted anyway."""
    profile = image.info.get("icc_profile")
    usable = isinstance(profile, bytes) and len(profile) <= _COLOR_PROFILE_BYTES
    return profile if usable and image.mode in _PROFILED else None


def _scaled(width: int, height: int, factor: float) -> tuple[int, int]:
    return max(round(width * factor), 1), max(round(height * factor), 1)
