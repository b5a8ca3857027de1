from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import stat
import subprocess
import sys
import threading
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

import penstock
from penstock import InvalidImage
from penstock._core.models import HIGH_RESOLUTION, STANDARD
from penstock.content.fitting import Picture
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.simulator import Simulator

MODEL = "claude-sonnet-5-5"
SECRET = "sesame"
ORIENTATION = 0x0112


def photo(width: int = 640, height: int = 480, mode: str = "RGB") -> Image.Image:
    """A picture with something in every corner, which no encoder makes tiny."""
    noise = Image.frombytes("RGB", (64, 48), random.Random(7).randbytes(64 * 48 * 3))
    return noise.resize((width, height)).convert(mode)


def file_of(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_of(block: Any) -> bytes:
    """The picture in a block."""
    assert block["type"] == "image"
    assert block["source"]["type"] == "base64"
    return base64.b64decode(block["source"]["data"], validate=True)


def opened(block: Any) -> Image.Image:
    """The picture in a block, opened; its media type is what it is."""
    image = Image.open(io.BytesIO(data_of(block)))
    assert Image.MIME[image.format or ""] == block["source"]["media_type"]
    image.load()
    return image


# Pictures that are fine, and those that are not.


class TestUntouched:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
    async def test_a_fine_picture_leaves_byte_for_byte(self, kind: str) -> None:
        """Nothing is encoded anew without need."""
        data = file_of(photo(1080, 810), kind)
        for given_ in (data, bytearray(data), memoryview(data)):
            assert data_of(await penstock.image(given_)) == data

    async def test_nothing_is_stripped_of_it(self) -> None:
        """Neither its metadata nor what cameras put behind the picture."""
        exif = Image.Exif()
        exif[0x010F] = "A camera"
        data = file_of(photo(), exif=exif) + b"a short film"
        assert data_of(await penstock.image(data)) == data

    async def test_an_animation_that_is_fine_keeps_moving(self) -> None:
        """The API looks at the first picture."""
        data = file_of(photo(60, 40), "GIF", save_all=True, append_images=[photo(60, 40, "L")])
        assert data_of(await penstock.image(data)) == data

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    async def test_usual_kinds_of_pixels_are_fine(self, mode: str) -> None:
        """Black and white, grey, palettes, transparency."""
        data = file_of(photo(60, 40, "RGBA").convert(mode), "PNG")
        assert data_of(await penstock.image(data)) == data

    async def test_an_extended_jpeg_of_a_phone_is_a_jpeg(self) -> None:
        """Some hold several pictures; the first one counts."""
        data = file_of(photo(), "MPO", save_all=True, append_images=[photo(60, 40)])
        block: Any = await penstock.image(data)
        assert (block["source"]["media_type"], data_of(block)) == ("image/jpeg", data)


class TestSize:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("size", [(1081, 500), (1400, 1050), (1050, 1400), (2160, 1620), (9000, 20)])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    async def test_the_longest_side_is_1080_at_most(self, size: tuple[int, int], kind: str) -> None:
        """And the shape stays as it is."""
        image = opened(await penstock.image(file_of(photo(*size), kind)))
        assert max(image.size) == 1080
        assert abs(min(image.size) - 1080 * min(size) / max(size)) <= 1

    async def test_another_side_can_be_set(self) -> None:
        """In pixels."""
        data = file_of(photo(1000, 600))
        assert opened(await penstock.image(data, max_side=100)).size == (100, 60)
        assert data_of(await penstock.image(data, max_side=1000)) == data
        assert opened(await penstock.image(file_of(photo(100, 4)), max_side=1)).size == (1, 1)

    @pytest.mark.lengthy
    @pytest.mark.parametrize(("model", "tier"), [("claude-haiku-4-5", STANDARD), (MODEL, HIGH_RESOLUTION)])
    async def test_all_that_the_model_sees_can_be_sent(self, model: str, tier: tuple[int, int]) -> None:
        """And no pixel more, which would cost the same and be seen scaled down."""
        block = await penstock.image(file_of(photo(3840, 2160)), max_side="model", model=model)
        assert opened(block).size == {STANDARD: (1456, 819), HIGH_RESOLUTION: (2576, 1449)}[tier]
        assert penstock.image_tokens(block, model) == {STANDARD: 1560, HIGH_RESOLUTION: 4784}[tier]

    @pytest.mark.lengthy
    async def test_a_model_bounds_a_set_side_too(self) -> None:
        """Whichever is less."""
        data = file_of(photo(3000, 3000))
        assert opened(await penstock.image(data, max_side=2000, model="claude-haiku-4-5")).size == (1092, 1092)
        assert opened(await penstock.image(data, max_side=700, model="claude-haiku-4-5")).size == (700, 700)

    @pytest.mark.lengthy
    async def test_noise_is_made_to_fit_the_bytes(self) -> None:
        """First by quality, then by size."""
        noise = Image.frombytes("RGB", (300, 300), random.Random(7).randbytes(300 * 300 * 3))
        for most in (100_000, 20_000, 4_096):
            for image in (noise, noise.convert("RGBA"), _half_transparent(noise)):
                block: Any = await penstock.image(file_of(image, "PNG"), max_bytes=most)
                assert len(block["source"]["data"]) <= most
                opened(block)

    async def test_a_small_picture_of_many_bytes_is_encoded_anew(self) -> None:
        """The bytes count in base64, as they are sent."""
        noise = Image.frombytes("RGB", (100, 100), random.Random(7).randbytes(30_000))
        data = file_of(noise, "PNG")
        block: Any = await penstock.image(data, max_bytes=len(data))
        assert block["source"]["media_type"] == "image/jpeg"
        assert opened(block).size == (100, 100)

    @pytest.mark.lengthy
    async def test_what_can_not_be_made_small_enough_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends, at a single pixel."""
        monkeypatch.setattr("penstock.content.fitting._encodings", lambda *_, **__: [("image/png", b"x" * 4_000)])
        with pytest.raises(InvalidImage, match="4096 bytes can be made"):
            await penstock.image(file_of(photo(2000, 1000)), max_bytes=4_096)


def _half_transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


class TestOrientation:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("turn", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("side", [40, 20])
    async def test_pictures_leave_upright(self, turn: int, kind: str, side: int) -> None:
        """However the camera was held; scaled or not."""
        colours = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)]
        corners = Image.new("RGB", (2, 2))
        corners.putdata(colours)
        taken = corners.resize((40, 24), Image.Resampling.NEAREST)
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        data = file_of(taken, kind, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        block = await penstock.image(data, max_side=side)
        image = opened(block).convert("RGB")
        assert max(image.size) == side
        assert (image.width > image.height) == (upright.width > upright.height)
        assert image.getexif().get(ORIENTATION, 1) == 1 or side == 40
        assert _corners(image) == _corners(upright)
        assert (data_of(block) == data) is (turn == 1 and side == 40 and kind != "TIFF")

    async def test_an_image_of_pillow_is_turned_too(self) -> None:
        """As a file would be; the caller's own stays as it is."""
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        mine = Image.open(io.BytesIO(file_of(photo(40, 20), exif=exif)))
        assert opened(await penstock.image(mine)).size == (20, 40)
        assert mine.size == (40, 20)

    @pytest.mark.parametrize("value", [0, 9, 70_000, "x", b"\0"])
    async def test_an_orientation_that_is_none_is_upright(self, value: Any) -> None:
        """Damaged metadata doesn't spoil the picture."""
        mine = photo(40, 20)
        mine.getexif()[ORIENTATION] = value
        assert opened(await penstock.image(mine)).size == (40, 20)

    async def test_metadata_that_can_not_be_read_is_upright(self) -> None:
        """Whatever is wrong with it."""
        mine = photo(40, 20)
        mine.info["exif"] = 7
        assert opened(await penstock.image(mine)).size == (40, 20)


def _corners(image: Image.Image) -> list[int]:
    """Which of red, green and blue is brightest at each corner, and whether red is."""
    width, height = image.size
    places = [(3, 3), (width - 4, 3), (3, height - 4), (width - 4, height - 4)]
    pixels: list[Any] = [image.getpixel(place) for place in places]
    return [sum(1 << number for number, value in enumerate(pixel) if value > 120) for pixel in pixels]


class TestPixels:
    async def test_cmyk_becomes_rgb(self) -> None:
        """Of a printer's colours no model knows."""
        image = opened(await penstock.image(file_of(Image.new("CMYK", (50, 40), (0, 255, 255, 0)))))
        red, green, blue = image.getpixel((20, 20))  # type: ignore[misc]
        assert (image.mode, red > 200, green < 60, blue < 60) == ("RGB", True, True, True)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    async def test_sixteen_bits_are_scaled_not_cut_off(self, kind: str) -> None:
        """From the darkest to the brightest that there can be."""
        values = b"".join(number.to_bytes(2, "little") for number in range(0, 65_536, 16))
        image = opened(await penstock.image(file_of(Image.frombytes("I;16", (64, 64), values), kind)))
        assert (image.mode, image.getextrema()) == ("L", (0, 254))
        assert abs(int(image.getpixel((0, 32))) - 127) <= 1  # type: ignore[arg-type]

    @pytest.mark.parametrize(("mode", "values"), [("F", (-1.5, 3.0)), ("I", (-70_000, 1_000_000)), ("F", (2.0, 2.0))])
    async def test_deeper_pixels_are_scaled_by_what_is_there(self, mode: str, values: tuple[float, float]) -> None:
        """Measurements have no range of their own; a flat one is black."""
        deep = Image.new(mode, (10, 10), values[0])
        deep.putpixel((5, 5), values[1])
        image = opened(await penstock.image(file_of(deep, "TIFF")))
        assert image.getextrema() == (0, 255 if values[0] != values[1] else 0)

    async def test_a_palette_is_scaled_in_full_colours(self) -> None:
        """Its numbers mean nothing between them."""
        image = opened(await penstock.image(file_of(photo(200, 100, "P"), "PNG"), max_side=50))
        assert (image.mode, image.size) == ("RGB", (50, 25))

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
    async def test_transparency_stays(self, kind: str) -> None:
        """A logo without ground keeps none."""
        clear = Image.new("RGBA", (100, 80), (200, 0, 0, 0))
        clear.paste((0, 0, 200, 255), (0, 0, 50, 80))
        image = opened(await penstock.image(file_of(clear, kind, lossless=True), max_side=50)).convert("RGBA")
        alphas = [image.getpixel(place)[3] for place in ((5, 20), (45, 20))]  # type: ignore[index]
        assert alphas == [255, 0]

    @pytest.mark.lengthy
    async def test_a_large_transparent_picture_becomes_a_webp(self) -> None:
        """Lossless would take megabytes."""
        noise = Image.frombytes("RGB", (1500, 1500), random.Random(7).randbytes(1500 * 1500 * 3))
        block: Any = await penstock.image(file_of(_half_transparent(noise), "PNG", compress_level=0))
        image = opened(block)
        assert (block["source"]["media_type"], image.mode) == ("image/webp", "RGBA")

    @pytest.mark.lengthy
    async def test_transparency_that_shows_nothing_is_left_out(self) -> None:
        """A photo as PNG with an alpha channel is a photo."""
        noise = Image.frombytes("RGB", (1500, 1500), random.Random(7).randbytes(1500 * 1500 * 3))
        block: Any = await penstock.image(file_of(noise.convert("RGBA"), "PNG", compress_level=0))
        assert block["source"]["media_type"] == "image/jpeg"

    @pytest.mark.lengthy
    async def test_drawings_stay_sharp_and_photos_small(self) -> None:
        """PNG for what was one, while it is small; JPEG for photos."""
        drawing: Any = await penstock.image(file_of(Image.new("RGB", (2000, 900), "navy"), "PNG"))
        shot: Any = await penstock.image(file_of(photo(2000, 900)))
        assert drawing["source"]["media_type"] == "image/png"
        assert shot["source"]["media_type"] == "image/jpeg"

    @pytest.mark.parametrize("kind", ["BMP", "TIFF"])
    async def test_what_the_api_does_not_take_is_converted(self, kind: str) -> None:
        """Without losing a pixel, if that is small."""
        image = opened(await penstock.image(file_of(photo(60, 40), kind)))
        assert image.tobytes() == photo(60, 40).tobytes()

    async def test_an_animated_webp_becomes_its_first_picture(self) -> None:
        """Only of GIF does the API say that it takes animations."""
        first, second = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (50, 50), "blue")
        data = file_of(first, "WEBP", save_all=True, append_images=[second])
        image = opened(await penstock.image(data))
        assert not getattr(image, "is_animated", False)
        assert image.convert("RGB").getpixel((25, 25))[0] > 200  # type: ignore[index]

    @pytest.mark.lengthy
    async def test_colours_keep_their_profile(self) -> None:
        """Phones take pictures in wider colours than screens had; converted ones and huge profiles are left out."""
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image = opened(await penstock.image(file_of(photo(2000, 1000), icc_profile=profile)))
        assert image.info["icc_profile"] == profile
        for other in (
            file_of(photo(2000, 1000), icc_profile=profile + b"\0" * 40_000),
            file_of(photo(2000, 1000, "CMYK"), icc_profile=profile),
        ):
            assert "icc_profile" not in opened(await penstock.image(other)).info

    @pytest.mark.lengthy
    async def test_what_is_encoded_anew_tells_nothing_else(self) -> None:
        """Neither where a photo was taken nor what was written about it."""
        exif = Image.Exif()
        exif[0x010F] = SECRET
        for kind in ("JPEG", "PNG", "WEBP"):
            data = file_of(photo(2000, 1000), kind, exif=exif, comment=SECRET.encode())
            assert SECRET.encode() in data
            assert SECRET.encode() not in data_of(await penstock.image(data))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "F", "LAB", "HSV", "YCbCr"])
    async def test_any_image_of_pillow_will_do(self, mode: str) -> None:
        """And stays as it was."""
        mine = Image.new(mode, (30, 20))
        mine.info["note"] = 1
        opened(await penstock.image(mine, max_side=20))
        assert (mine.mode, mine.size, mine.info) == (mode, (30, 20), {"note": 1})

    async def test_an_image_of_pillow_that_was_a_photo_becomes_one(self) -> None:
        """It may not have been read yet, and is read in the thread."""
        mine = Image.open(io.BytesIO(file_of(photo(2000, 1000))))
        block: Any = await penstock.image(mine)
        assert (block["source"]["media_type"], mine.size) == ("image/jpeg", (2000, 1000))

    @pytest.mark.lengthy
    async def test_it_works_where_the_system_has_no_files_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They only spare the interpreter's lock."""
        data = file_of(photo(2000, 1000))
        block = await penstock.image(data)
        monkeypatch.delattr(os, "memfd_create", raising=False)
        assert await penstock.image(data) == block


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty, 0 bytes"),
            (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg/>", "an SVG"),
            (b"\n<!DOCTYPE html><html>Not found</html>", "HTML"),
            (b"<HTML><body>", "HTML"),
            (b"%PDF-1.7", "a PDF, which penstock.document takes"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
            (b"RIFF\0\0\0\0WAVEfmt ", "none of JPEG"),
            (SECRET.encode(), "none of JPEG"),
            (b"\xff\xd8\xff", "JPEG is truncated or damaged"),
            (b"BM" + b"\0" * 60, "BMP"),
        ],
    )
    async def test_what_is_no_picture_is_named(self, data: bytes, reason: str, tmp_path: Path) -> None:
        """By its content, whatever its name says, and without quoting it."""
        path = tmp_path / "picture.png"
        path.write_bytes(data)
        for given_ in (data, path):
            with pytest.raises(InvalidImage, match=reason) as caught:
                await penstock.image(given_)
            assert SECRET not in str(caught.value)
            assert caught.value.__cause__ is None

    @pytest.mark.lengthy
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
    async def test_a_truncated_picture_is_refused(self, kind: str) -> None:
        """Wherever it was cut, also if it would not have been touched."""
        data = file_of(photo(300, 200), kind)
        for share in (0.02, 0.3, 0.7, 0.98):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(InvalidImage, match="truncated or damaged"):
                    await penstock.image(data[: int(len(data) * share)])

    async def test_a_png_without_its_end_is_refused(self) -> None:
        """All pixels are there, but nobody knows what is missing."""
        with pytest.raises(InvalidImage, match="truncated"):
            await penstock.image(file_of(photo(30, 20), "PNG")[:-12])

    async def test_an_image_of_pillow_that_can_not_be_read_is_refused(self) -> None:
        """As its file would be."""
        with pytest.raises(InvalidImage, match="JPEG is truncated"):
            await penstock.image(Image.open(io.BytesIO(file_of(photo())[:2000])))

    @pytest.mark.parametrize("size", [(20_000, 20_000), (65_000, 65_000)])
    async def test_a_decompression_bomb_is_not_decoded(self, size: tuple[int, int]) -> None:
        """Its header says how large it would become; nobody is warned, nothing is allocated."""
        width, height = size
        header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        bomb = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")
        packed = zlib.compress(bytes(1_000_000))
        body = b"IDAT" + packed
        bomb += len(packed).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        with pytest.raises(InvalidImage, match=f"{width} × {height} pixels are more than the 100000000"):
            await penstock.image(bomb)

    async def test_the_bound_of_pixels_can_be_set(self) -> None:
        """For files and for images of Pillow."""
        for given_ in (file_of(photo(100, 100)), photo(100, 100)):
            with pytest.raises(InvalidImage, match="max_pixels"):
                await penstock.image(given_, max_pixels=9_999)
            await penstock.image(given_, max_pixels=10_000)

    async def test_a_picture_without_pixels_is_none(self) -> None:
        """Pillow makes such."""
        with pytest.raises(InvalidImage, match="0 × 5 pixels"):
            await penstock.image(Image.new("RGB", (0, 5)))

    async def test_a_jpeg_of_a_thousand_scans_is_a_trap(self) -> None:
        """Each would cost a pass over all pixels."""
        with pytest.raises(InvalidImage, match="scans"):
            await penstock.image(file_of(photo()) + b"\xff\xda" * 200)

    async def test_what_can_not_be_converted_is_refused(self) -> None:
        """Pillow knows pixels that nothing can be made of."""
        with pytest.raises(InvalidImage, match=r"^it can't be converted: ValueError$"):
            await penstock.image(Image.new("La", (20, 20)))

    @pytest.mark.lengthy
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), st.data())
    async def test_damage_is_refused_or_gives_a_picture(self, kind: str, data: st.DataObject) -> None:
        """Bytes changed anywhere: nothing but `InvalidImage` is raised."""
        damaged = bytearray(file_of(photo(40, 30), kind))
        for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=6)):
            damaged[at] = data.draw(st.integers(0, 255))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                block = await penstock.image(bytes(damaged), max_side=20, max_pixels=1_000_000)
            except InvalidImage:
                return
            assert max(opened(block).size) <= 20


class TestSources:
    @pytest.mark.parametrize("url", ["https://example.com/a.png", "http://example.com/a?x=1", "HTTPS://example.com"])
    async def test_a_url_is_passed_on(self, url: str) -> None:
        """Nothing is fetched: the API does that."""
        assert await penstock.image(url) == {"type": "image", "source": {"type": "url", "url": url}}
        assert await penstock.document(url) == {"type": "document", "source": {"type": "url", "url": url}}

    async def test_a_file_id_is_passed_on(self) -> None:
        """Of the Files API."""
        source = {"type": "file", "file_id": "file_011CNha8iCJcU1wXNR6q4V8w"}
        assert await penstock.image(source["file_id"]) == {"type": "image", "source": source}
        assert await penstock.document(source["file_id"]) == {"type": "document", "source": source}

    async def test_a_path_is_text_or_a_path(self, tmp_path: Path) -> None:
        """A name like that of a file id is a path if it has a suffix."""
        path = tmp_path / "file_1.txt"
        path.write_bytes(file_of(photo()))
        assert data_of(await penstock.image(path)) == data_of(await penstock.image(str(path))) == path.read_bytes()

    async def test_a_data_url_is_decoded(self) -> None:
        """As browsers give it."""
        data = file_of(photo(60, 40), "PNG")
        url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
        block: Any = await penstock.image(url)
        assert (block["source"]["media_type"], data_of(block)) == ("image/png", data)
        with pytest.raises(InvalidImage, match="no valid base64") as caught:
            await penstock.image(f"data:image/png;base64,{SECRET}!")
        assert SECRET not in str(caught.value)
        with pytest.raises(InvalidImage, match="more than"):
            await penstock.image(url, max_input_bytes=100)

    async def test_a_missing_file_is_missing(self, tmp_path: Path) -> None:
        """As it is for everyone else."""
        for verb in (penstock.image, penstock.document):
            with pytest.raises(FileNotFoundError, match=r"absent\.png"):
                await verb(tmp_path / "absent.png")

    async def test_what_is_no_file_is_refused(self, tmp_path: Path) -> None:
        """A directory, and a pipe, which would be waited for without end."""
        refused = {tmp_path: "a directory"}
        if hasattr(os, "mkfifo"):
            os.mkfifo(tmp_path / "pipe")
            refused[tmp_path / "pipe"] = "no regular file"
        with anyio.fail_after(5):
            for path, kind in refused.items():
                with pytest.raises(InvalidImage, match=kind):
                    await penstock.image(path)

    async def test_large_input_is_not_read(self, tmp_path: Path) -> None:
        """By its size, before anything is read."""
        path = tmp_path / "large.jpg"
        with path.open("wb") as file:
            file.truncate(10**12)
        with pytest.raises(InvalidImage, match=r"large\.jpg: 953674.3 MiB are more than the 50.0 MiB"):
            await penstock.image(path)
        data = file_of(photo())
        for given_ in (data, bytearray(data), memoryview(data)):
            with pytest.raises(InvalidImage, match="1000 bytes"):
                await penstock.image(given_, max_input_bytes=1_000)

    async def test_a_file_that_grows_is_read_up_to_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the system said of it held a moment ago."""
        found = os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, 10, 0, 0, 0))
        monkeypatch.setattr("pathlib.Path.stat", lambda *_, **__: found)
        with pytest.raises(InvalidImage, match="grew"):
            await penstock.image(__file__, max_input_bytes=100)

    @pytest.mark.parametrize("text", [SECRET * 1_000, f"{SECRET}\n", f"{SECRET}\0"])
    async def test_content_given_as_a_path_is_not_shown(self, text: str) -> None:
        """An error of the system would quote it."""
        for verb in (penstock.image, penstock.document):
            with pytest.raises(InvalidImage, match="is no path") as caught:
                await verb(text)
            assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("given_", [None, 7, ["a.png"], {"type": "image"}, io.BytesIO(b"x")])
    async def test_anything_else_is_a_type_error(self, given_: Any) -> None:
        """It names what would do."""
        with pytest.raises(TypeError, match=r"path|source"):
            await penstock.image(given_)
        with pytest.raises(TypeError, match=r"path|source"):
            await penstock.document(given_)
        with pytest.raises(TypeError, match=r"not as Image"):
            await penstock.document(photo(4, 4))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "fields",
        [
            {"max_side": 0},
            {"max_side": 8_001},
            {"max_side": "model"},
            {"max_bytes": 100},
            {"max_pixels": 0},
            {"max_input_bytes": 0},
        ],
    )
    async def test_an_argument_out_of_range_is_named(self, fields: Any) -> None:
        """Before anything is read."""
        with pytest.raises(ValueError, match=next(iter(fields))):
            await penstock.image("absent.png", **fields)


class TestTokens:
    @pytest.mark.lengthy
    @pytest.mark.parametrize(
        ("size", "old", "new"), [((200, 200), 64, 64), ((1920, 1080), 1560, 2691), ((2000, 1500), 1564, 3888)]
    )
    async def test_a_block_costs_what_the_api_documents(self, size: tuple[int, int], old: int, new: int) -> None:
        """By its size and the model."""
        block = await penstock.image(file_of(Image.new("RGB", size), "PNG"), max_side=8_000)
        assert (penstock.image_tokens(block, "claude-haiku-4-5"), penstock.image_tokens(block, MODEL)) == (old, new)

    async def test_what_has_no_size_costs_the_most(self) -> None:
        """A URL, a file id, or data that is none."""
        for block in (
            await penstock.image("https://example.com/a.png"),
            await penstock.image("file_1"),
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "????"}},
        ):
            assert penstock.image_tokens(block, "claude-haiku-4-5") == 1568  # type: ignore[arg-type]

    @pytest.mark.parametrize("block", [{"type": "text", "text": "x"}, {"type": "image"}, {}])
    def test_what_is_no_image_is_an_error(self, block: Any) -> None:
        """Rather than a price that means nothing."""
        with pytest.raises(ValueError, match="no image block"):
            penstock.image_tokens(block, MODEL)


class TestThreads:
    async def test_only_a_few_work_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that memory stays bounded, however many are asked for; and never on the event loop's thread."""
        threads: list[int] = []
        go_on = threading.Event()
        two = anyio.Event()
        loop = asyncio.get_running_loop()

        def wait(_given: object, _fit: object) -> Picture:
            threads.append(threading.get_ident())
            if len(threads) == 2:
                loop.call_soon_threadsafe(two.set)
            go_on.wait(10)
            return Picture(media_type="image/png", data="")

        monkeypatch.setattr("penstock.content.blocks.prepared", wait)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(penstock.image, b"x")
            with anyio.fail_after(10):
                await two.wait()
            await anyio.sleep(0.02)
            begun = len(threads)
            go_on.set()
        assert 2 <= begun <= 4
        assert len(threads) == 20
        assert threading.get_ident() not in threads

    @pytest.mark.lengthy
    async def test_wherever_it_is_cancelled_the_next_one_is_served(self) -> None:
        """A thread can't be interrupted, but its place is given back."""
        data = file_of(photo(1200, 900))

        async def scenario(cancelled: Cancelled) -> None:
            await cancelled(_as_coroutine(data))
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    for _ in range(6):
                        group.start_soon(penstock.image, data)

        await cancel_at_every_await(scenario)

    async def test_where_pillow_is_missing_the_error_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By its extra."""
        monkeypatch.setitem(sys.modules, "PIL.PngImagePlugin", None)
        with pytest.raises(ImportError, match=r"penstock\[vision\]"):
            await penstock.image(b"x")

    @pytest.mark.lengthy
    def test_pillow_is_loaded_only_where_it_is_needed(self) -> None:
        """And where it is missing, the error says what to install; URLs, file ids and documents work without."""
        code = """
import sys, anyio, penstock
assert not any(name.partition(".")[0] == "PIL" for name in sys.modules)
sys.modules["PIL"] = None
async def main():
    await penstock.image("https://example.com/a.png")
    await penstock.document(text="x")
    try:
        await penstock.image(b"x")
    except ImportError as error:
        print(error)
anyio.run(main)
"""
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "penstock[vision]" in ran.stdout


async def _as_coroutine(data: bytes) -> None:
    await penstock.image(data)


@pytest.mark.lengthy
async def test_blocks_stand_in_messages(simulator: Simulator) -> None:
    """The API takes them as they are."""
    content: Any = [
        await penstock.image(file_of(photo(2000, 1500))),
        await penstock.image(file_of(photo(500, 400), "BMP")),
        await penstock.document(text="Rivers flow.", title="Notes", context="Of a walk", citations=True),
        {"type": "text", "text": "Compare."},
    ]
    messages: Any = [{"role": "user", "content": content}]
    message = await simulator.client().messages.create(model=MODEL, max_tokens=50, messages=messages)
    assert message.usage.input_tokens > sum(penstock.image_tokens(block, MODEL) for block in content[:2])


def test_a_picture_does_not_show_itself() -> None:
    """Megabytes of base64 in a traceback help nobody."""
    assert repr(Picture(media_type="image/png", data=SECRET)) == "<Picture image/png, 6 bytes>"
