"""Images and documents as content blocks, ready to stand in a message.

The rule here: nothing blocks the event loop. Files are read and pictures decoded in worker threads, few at a time, so
that memory stays bounded however many are asked for at once; nothing is ever fetched from a URL.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from penstock._core.images import image_size, seen_tokens
from penstock._core.models import known
from penstock._core.threads import Threads
from penstock.content.fitting import Fit
from penstock.content.pdf import check_pdf
from penstock.content.pictures import is_picture, prepared
from penstock.content.sources import encoded, mebibytes, read, remote_source
from penstock.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic.types import DocumentBlockParam, ImageBlockParam
    from PIL.Image import Image

__all__ = ["document", "image", "image_tokens"]

Given: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview"

_MAX_SIDE: Final = 8_000
_SMALLEST_BYTES: Final = 4_096
_MEBIBYTE: Final = 1024 * 1024
# A request holds no more, and base64 takes a third on top.
_REQUEST_BYTES: Final = 32 * _MEBIBYTE
_DOCUMENT_BYTES: Final = _REQUEST_BYTES // 4 * 3
_MOST_PAGES: Final = 600
_TEXT: Final = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_FOREIGN: Final = (
    (b"PK\x03\x04", "an office document or another archive; save it as PDF or text"),
    (b"\xd0\xcf\x11\xe0", "an old office document; save it as PDF or text"),
    (b"\xff\xd8\xff", "a picture, which penstock.image takes"),
    (b"\x89PNG", "a picture, which penstock.image takes"),
    (b"GIF8", "a picture, which penstock.image takes"),
)

# More threads than cores take memory and gain nothing.
_threads: Final = Threads("penstock-content", max(2, min(4, os.cpu_count() or 2)))


async def image(
    source: Given | Image,
    *,
    max_side: int | Literal["model"] = 1080,
    max_bytes: int = 5_000_000,
    model: str | None = None,
    max_pixels: int = 100_000_000,
    max_input_bytes: int = 50 * _MEBIBYTE,
) -> ImageBlockParam:
    """Return a picture as a content block: upright, no larger than useful, in a format that the API takes.

    A picture that is fine already is sent byte for byte as it is. Others are scaled down and encoded anew: photos as
    JPEG, drawings and screenshots as PNG while that is small, transparent ones as PNG or WebP. Of animations, the first
    picture counts. A URL or a file id is passed on and never fetched: the API does that, and checks it.

    The work is done in worker threads, two to four at a time for each event loop. One that has begun can't be
    interrupted: whoever is cancelled goes on at once, while the thread keeps its place until it has done its work,
    which `max_pixels` bounds to seconds.

    Args:
        source: A path, bytes, `https://…`, `file_…` (Files API), `data:…;base64,…`, or an image of Pillow. Text that
            comes from users must not be given here, because it may be a path; their bytes may.
        max_side: Pixels of the longest side, 1 to 8,000; `"model"` for all that `model` can see.
        max_bytes: Of its base64, 4,096 or more. 5 MB is what every provider takes.
        model: Never send more than this model can see.
        max_pixels: Pixels that are decoded at all, 1 or more; it bounds memory, 4 bytes each.
        max_input_bytes: Bytes that are read at all, 1 or more.

    Raises:
        InvalidImage: It is no picture, damaged, truncated, or too large; says which.
        OSError: A file can't be read, e.g. `FileNotFoundError`.
        ImportError: Pillow is not installed: `pip install "penstock[vision]"`.
        ValueError: An argument is out of its range.
        TypeError: `source` is something else.

    Example:
        >>> import anyio
        >>> from PIL import Image
        >>> block = anyio.run(image, Image.new("RGB", (1600, 1200), "navy"))
        >>> block["source"]["media_type"], image_tokens(block, "claude-sonnet-5-5")
        ('image/png', 1131)
    """
    fit = _fit(max_side, max_bytes, model, max_pixels, max_input_bytes)
    remote = remote_source(source)
    if remote is not None:
        return cast("ImageBlockParam", {"type": "image", "source": remote})
    _check_given(source, "an image")
    picture = await _threads.run(partial(prepared, source, fit))
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": picture.media_type, "data": picture.data},
    }


async def document(
    source: Given | None = None,
    *,
    text: str | None = None,
    title: str | None = None,
    context: str | None = None,
    citations: bool = False,
    max_pages: int = _MOST_PAGES,
) -> DocumentBlockParam:
    """Return a PDF or a text as a document block.

    What a file is follows from its content: a PDF, or else text in UTF-8 or UTF-16. A URL or a file id is passed on
    and never fetched.

    Args:
        source: A path, bytes, `https://…`, `file_…` (Files API) or `data:…;base64,…`; not together with `text`. Text
            that comes from users must not be given here, because it may be a path.
        text: The text itself.
        title: Shown to the model; not cited from.
        context: What the model should know about the document; not cited from.
        citations: Whether the model is to cite from it.
        max_pages: Pages that a PDF may have, 1 or more; models with a window of 200,000 tokens take 100.

    Raises:
        InvalidImage: It is neither PDF nor text, encrypted, empty, or too large; says which.
        OSError: A file can't be read, e.g. `FileNotFoundError`.
        ValueError: An argument is out of its range.
        TypeError: Neither or both of `source` and `text`, or `source` is something else.

    Example:
        >>> import anyio
        >>> from functools import partial
        >>> anyio.run(partial(document, text="Rivers flow.", title="Notes", citations=True))["citations"]
        {'enabled': True}
    """
    if (source is None) == (text is None):
        raise TypeError("give either a source or text=…")
    if max_pages < 1:
        raise ValueError(f"max_pages must be 1 or more, not {max_pages}")
    if text is not None:
        found: Mapping[str, str] = _text_source(text)
    elif remote := remote_source(source):
        found = remote
    else:
        _check_given(source, "a document")
        found = await _threads.run(partial(_read, source, max_pages))
    block: dict[str, object] = {"type": "document", "source": found}
    if title is not None:
        block["title"] = title
    if context is not None:
        block["context"] = context
    if citations:
        block["citations"] = {"enabled": True}
    return cast("DocumentBlockParam", block)


def image_tokens(block: ImageBlockParam, model: str) -> int:
    """Return what an image block costs, in tokens, by the rule that the API documents.

    Args:
        block: Of `penstock.image`, or one like it. Where its size can't be read (URLs, file ids), it counts as the
            largest that the model can see.
        model: Newer models (4.7 and up) see larger images.

    Raises:
        ValueError: It is no image block.

    Example:
        >>> block = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
        >>> image_tokens(block, "claude-haiku-4-5")
        1568
    """
    given: Mapping[str, object] = cast("Mapping[str, object]", block)
    source = given.get("source")
    if given.get("type") != "image" or not isinstance(source, dict):
        raise ValueError("this is no image block")
    tier = known(model).tier
    data = cast("dict[str, object]", source).get("data")
    size = image_size(data) if isinstance(data, str) else None
    return tier[1] if size is None else seen_tokens(*size, tier)


# Checking


def _fit(
    max_side: int | Literal["model"], max_bytes: int, model: str | None, max_pixels: int, max_input_bytes: int
) -> Fit:
    if max_side == "model" and model is None:
        raise ValueError('max_side="model" needs a model')
    if max_side != "model" and not 1 <= max_side <= _MAX_SIDE:
        raise ValueError(f'max_side must be 1 to {_MAX_SIDE} pixels, or "model", not {max_side!r}')
    if max_bytes < _SMALLEST_BYTES:
        raise ValueError(f"max_bytes must be {_SMALLEST_BYTES} or more, not {max_bytes}")
    for name, value in (("max_pixels", max_pixels), ("max_input_bytes", max_input_bytes)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")
    return Fit(
        max_side=None if max_side == "model" else max_side,
        tier=None if model is None else known(model).tier,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_input_bytes=max_input_bytes,
    )


def _check_given(source: object, what: str) -> None:
    known = isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
    if not known and not (what == "an image" and is_picture(source)):
        raise TypeError(f"{what} is given as a path, bytes, URL or file id, not as {type(source).__name__}")


# Working


def _read(source: object, max_pages: int) -> Mapping[str, str]:
    data = read(source, most=_DOCUMENT_BYTES, what="a document")
    if b"%PDF-" in data[:1024]:
        check_pdf(data, max_pages=max_pages)
        return {"type": "base64", "media_type": "application/pdf", "data": encoded(data)}
    return _text_source(_decoded(data))


def _decoded(data: bytes) -> str:
    for beginning, what in _FOREIGN:
        if data.startswith(beginning):
            raise InvalidImage(f"it is {what}")
    encoding = next((name for beginning, name in _TEXT if data.startswith(beginning)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidImage(f"it is neither a PDF nor text in UTF-8: no character at byte {error.start}") from None
    if "\0" in text:
        raise InvalidImage("it is neither a PDF nor text: it holds NUL characters")
    return text


def _text_source(text: str) -> dict[str, str]:
    if not text.strip():
        raise InvalidImage("it is empty, or white space only")
    if len(text) > _REQUEST_BYTES:
        raise InvalidImage(f"{mebibytes(len(text))} of text are more than a request may hold")
    return {"type": "text", "media_type": "text/plain", "data": text}
