"""Images and PDFs of a request: types, sizes, and how many there may be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from penstock.simulator.media import HIGH_RESOLUTION, STANDARD, pdf_pages, picture, seen_size
from penstock.simulator.validate import checks
from penstock.simulator.wire import invalid, is_list, is_object

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["MediaCheck", "refuse_remote_media"]

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_IMAGE_BYTES = 10 * 1024 * 1024
_IMAGE_SIDE = 8000
_MANY = 20
_MANY_SIDE = 2000
_SMALL_WINDOW = 200_000
_DOCUMENT_SOURCES = ("base64", "text", "content", "url", "file")


class MediaCheck:
    """What all media of one request add up to."""

    __slots__ = ("_images", "_largest_side", "_limit", "_pages", "_tier")

    def __init__(self, model: Model) -> None:
        self._limit = 100 if model.window <= _SMALL_WINDOW else 600
        self._tier = HIGH_RESOLUTION if model.high_resolution else STANDARD
        self._images = 0
        self._pages = 0
        self._largest_side = 0

    def check(self, block: Json, kind: str, at: str) -> None:
        """Raise where the API would refuse this image or document."""
        source = checks.mapping(checks.required(block, "source", f"{at}.source"), f"{at}.source")
        if kind == "image":
            self._image(block, source, at)
        else:
            self._document(source, at)

    def check_count(self) -> None:
        """Raise where there are too many, or some are too large to be many."""
        if self._images > self._limit:
            raise invalid(f"messages: Too many images: {self._images} > {self._limit} maximum")
        if self._pages > self._limit:
            raise invalid(f"messages: A maximum of {self._limit} PDF pages may be provided.")
        if self._images > _MANY and self._largest_side > _MANY_SIDE:
            raise invalid(
                "messages: At least one of the image dimensions exceed max allowed size for many-image requests: "
                f"{_MANY_SIDE} pixels"
            )

    def _image(self, block: Json, source: Json, at: str) -> None:
        self._images += 1
        kind = checks.choice(source.get("type"), ("base64", "url", "file"), f"{at}.source.type")
        if kind != "base64":
            name = "url" if kind == "url" else "file_id"
            checks.string(checks.required(source, name, f"{at}.source.{kind}.{name}"), f"{at}.source.{kind}.{name}")
            return
        data, media_type = _base64(source, f"{at}.source.base64")
        checks.choice(media_type, _IMAGE_TYPES, f"{at}.source.base64.media_type")
        if len(data) > _IMAGE_BYTES:
            raise invalid(f"{at}.source.base64: image exceeds 10 MB maximum: {len(data)} bytes > {_IMAGE_BYTES} bytes")
        self._pixels(block, data, media_type, at)

    def _pixels(self, block: Json, data: str, media_type: str, at: str) -> None:
        found = picture(data)
        if found is None:
            raise invalid(f"{at}.source.base64.data: Could not process image")
        actual, width, height = found
        if actual != media_type:
            raise invalid(f"{at}.source.base64.data: Image does not match the provided media type {media_type}")
        self._largest_side = max(self._largest_side, width, height)
        if max(width, height) > _IMAGE_SIDE:
            raise invalid(f"{at}.source.base64.data: image dimensions exceed max allowed size: {_IMAGE_SIDE} pixels")
        wanted = block.get("transformations")
        seen = seen_size(width, height, *self._tier)
        if is_object(wanted) and wanted.get("oversized_image") == "error" and seen != (width, height):
            raise invalid(
                f"{at}: image dimensions {width}x{height} exceed the largest that fit this model: {seen[0]}x{seen[1]}"
            )

    def _document(self, source: Json, at: str) -> None:
        kind = checks.choice(source.get("type"), _DOCUMENT_SOURCES, f"{at}.source.type")
        if kind != "base64":
            return
        data, media_type = _base64(source, f"{at}.source.base64")
        checks.choice(media_type, ("application/pdf",), f"{at}.source.base64.media_type")
        if not data.startswith("JVBERi"):
            raise invalid(f"{at}.source.base64.data: The PDF specified was not valid.")
        self._pages += pdf_pages(data)


def _base64(source: Json, at: str) -> tuple[str, Any]:
    data = checks.string(checks.required(source, "data", f"{at}.data"), f"{at}.data")
    if not data or len(data) % 4 or not _BASE64.fullmatch(data):
        raise invalid(f"{at}: invalid base64 data")
    return data, source.get("media_type")


def refuse_remote_media(messages: list[Json]) -> None:
    """Tokens of media that are not in the request cannot be counted."""
    for index, message in enumerate(messages):
        blocks = message["content"] if is_list(message["content"]) else []
        for block in blocks:
            source = block.get("source")
            kind = source.get("type") if is_object(source) else None
            if kind in ("url", "file"):
                raise invalid(f"messages.{index}: `{kind}` sources are not supported in the count_tokens endpoint")
