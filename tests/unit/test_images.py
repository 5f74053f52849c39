"""Pictures: what is refused, in which words; what is let in equals transformers' processor."""

import base64
import io
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.ExifTags import Base as ExifTag

from model.checkpoint import Checkpoint, read_checkpoint
from model.errors import InvalidImage, InvalidRequest
from model.serving.images import (
    SERVER_BOUNDS,
    DecodedImage,
    ImageSource,
    PixelBounds,
    classify,
    decode_base64,
    decode_image,
    smart_resize,
)
from model.settings import ImageSettings
from tests.pictures import gif_bomb, jpeg_size, picture, png_bomb, png_chunk, saved, webp_bomb

# As in production: the module sets this filter at import, pytest replaces all filters in each test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MIB = 1 << 20
BUNDLED = Path(__file__).parents[2] / "model" / "demo" / "checkpoint"
CHECKPOINT = Checkpoint(
    path=Path("none"),
    dtype="float32",
    vocab_size=1024,
    max_position_embeddings=4096,
    eos_token_ids=frozenset(),
    image_token_id=1,
    vision_start_token_id=2,
    vision_end_token_id=3,
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    min_pixels=64 * 64,
    max_pixels=256 * 256,
    default_sampling=read_checkpoint(BUNDLED).default_sampling,
)
LIMITS = ImageSettings()


def decode(
    value: bytes | str, bounds: PixelBounds = SERVER_BOUNDS, **limits: float
) -> DecodedImage:
    return decode_image(value, CHECKPOINT, LIMITS.model_copy(update=limits), bounds)


def decoded_or_refusal(encoded: bytes) -> DecodedImage | str:
    """The picture or the text of InvalidImage; any other exception fails the test."""
    try:
        return decode(encoded, max_source_pixels=1_000_000)
    except InvalidImage as e:
        return str(e)


JPEG = saved(picture(), "JPEG", quality=90)
PROGRESSIVE = saved(picture(), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


NOT_ONE = "image is not a JPEG, PNG, WebP or GIF"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(b"", "image is empty: it has 0 bytes", id="empty bytes"),
        pytest.param(
            b"hello, world, this is text",
            f"{NOT_ONE}: it starts with 'hello, world, th' and has 26 bytes",
            id="text is shown, but only its beginning",
        ),
        pytest.param(
            b"\x00\x01\xfe<script>alert(1)</script>",
            f"{NOT_ONE}: it starts with bytes 00 01 fe 3c 73 63 72 69 and has 28 bytes",
            id="unprintable bytes are shown as hex",
        ),
        pytest.param(
            b"\x00\x00\x00\x18ftypheic\x00\x00",
            f"{NOT_ONE}: it is a HEIC picture",
            id="HEIC, the camera format of telephones",
        ),
        pytest.param(
            base64.b64encode(JPEG),
            f"{NOT_ONE}: it is base64 text; it must be decoded, or declared as base64",
            id="base64 that nobody declared",
        ),
        pytest.param(
            saved(picture(), "BMP"),
            f"{NOT_ONE}: it is a BMP picture",
            id="a format Pillow could read but that is not let in",
        ),
        pytest.param(
            saved(picture(), "TIFF"),
            f"{NOT_ONE}: it is a TIFF picture",
            id="TIFF",
        ),
        pytest.param(
            b"<!DOCTYPE html><html>",
            f"{NOT_ONE}: it is an HTML page",
            id="the error page of a download",
        ),
        pytest.param(
            b"https://example.com/cat.jpg",
            "image is a URL, which is not a picture yet",
            id="a URL as bytes",
        ),
        pytest.param(
            "HTTP://example.com/cat.jpg",
            "image is a URL, which is not a picture yet",
            id="a URL as text, whatever its case",
        ),
        pytest.param(
            "file:///etc/passwd",
            "image is neither a data: URL nor an http(s) URL: it starts with 'file:///etc/pass'",
            id="another scheme",
        ),
        pytest.param(
            "\ud83d\x00",
            "image is neither a data: URL nor an http(s) URL: it starts with bytes 3f 00",
            id="text that is no Unicode",
        ),
        pytest.param(
            JPEG[:3],
            "image is a JPEG whose header is corrupt or cut short",
            id="a JPEG's signature alone",
        ),
        pytest.param(
            saved(picture())[:12],
            "image is a PNG whose header is corrupt or cut short",
            id="a PNG's signature alone",
        ),
        pytest.param(
            b"GIF89a", "image is a GIF whose header is corrupt or cut short", id="a GIF's alone"
        ),
        pytest.param(
            webp_bomb(10, 10),
            "image is a WebP whose header is corrupt or cut short",
            id="an empty WebP",
        ),
        pytest.param(
            JPEG[:-50],
            "image is a JPEG of 48 x 40 pixels that cannot be decoded: it is corrupt or cut short",
            id="a JPEG without its end",
        ),
        pytest.param(
            saved(picture(20_000, 150, "L")),
            "image of 20000 x 150 pixels has a side over the limit of 16384",
            id="a side over the limit",
        ),
        pytest.param(
            saved(picture(402, 2)),
            "image of 402 x 2 pixels has sides 201:1; the limit is 200:1",
            id="an aspect just over the limit",
        ),
        pytest.param(
            PROGRESSIVE[:-2] + LAST_SCAN * 100 + b"\xff\xd9",
            "image is a JPEG of over 64 scans, which is the limit",
            id="a JPEG of a hundred scans",
        ),
        pytest.param(
            JPEG[:2] + b"\xff\xfe\x00\x02" * 3000 + JPEG[2:],
            "image is a JPEG of over 2000 segments, which is the limit",
            id="a JPEG of thousands of empty comments",
        ),
    ],
)
def test_bad_input_is_refused_in_these_words(value: bytes | str, message: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode(value)
    assert str(caught.value) == message
    assert type(caught.value) is InvalidImage


def test_encoded_size_is_limited_before_anything_is_read() -> None:
    with pytest.raises(InvalidImage, match=r"^image has 101 bytes encoded; the limit is 100$"):
        decode(JPEG[:101], max_bytes=100)


@pytest.mark.parametrize(
    ("bomb", "size"),
    [
        pytest.param(png_bomb(30_000, 30_000), "30000 x 30000", id="PNG of 900 megapixels"),
        pytest.param(
            png_bomb(12_000, 12_000), "12000 x 12000", id="PNG at which Pillow only warns"
        ),
        pytest.param(jpeg_size(JPEG, 65_500, 65_500), "65500 x 65500", id="JPEG of 4 gigapixels"),
        pytest.param(
            jpeg_size(JPEG, 11_000, 11_000), "11000 x 11000", id="JPEG at which Pillow only warns"
        ),
        pytest.param(
            webp_bomb(11_000, 11_000), "11000 x 11000", id="WebP whose canvas Pillow allocates"
        ),
        pytest.param(
            webp_bomb(1 << 24, 1 << 24), "16777216 x 16777216", id="WebP of the largest canvas"
        ),
        pytest.param(
            gif_bomb(7_000, 7_000), "7000 x 7000", id="GIF with a frame larger than its screen"
        ),
    ],
)
def test_a_bomb_is_refused_by_its_header(bomb: bytes, size: str) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(InvalidImage, match=f"^image of {size} pixels has .* limit"):
        decode(bomb)
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak_bytes < MIB


def test_a_gif_frame_beyond_pillows_own_limit_is_refused_too() -> None:
    with pytest.raises(InvalidImage):
        decode(gif_bomb(65_535, 65_535))


def test_the_pixel_limit_names_both_numbers() -> None:
    message = "^image of 48 x 40 pixels has 1920 pixels; the limit is 1919$"
    with pytest.raises(InvalidImage, match=message):
        decode(JPEG, max_source_pixels=1919)
    assert decode(JPEG, max_source_pixels=1920).source_width == 48


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_cut_anywhere_is_whole_or_refused(form: str) -> None:
    encoded = saved(picture(), form)
    whole = decode(encoded)
    results = [decoded_or_refusal(encoded[:length]) for length in range(0, len(encoded), 7)]
    refusals = [result for result in results if isinstance(result, str)]
    assert not any("0x" in refusal for refusal in refusals)
    assert len(refusals) > 0.9 * len(results)
    for image in results:
        assert isinstance(image, str) or image.pixels.shape == whole.pixels.shape


VALID = [
    JPEG,
    PROGRESSIVE,
    saved(picture(mode="RGBA")),
    saved(picture(mode="P"), transparency=0),
    saved(picture(), "WEBP", quality=50),
    saved(picture(mode="RGBA"), "WEBP", lossless=True),
    saved(picture(mode="P"), "GIF", save_all=True, append_images=[picture(mode="P").rotate(90)]),
    saved(
        picture(),
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    ),
]


@hypothesis_settings(max_examples=500, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_a_mutated_file_is_decoded_or_refused(encoded: bytes, data: st.DataObject) -> None:
    mutated = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(mutated)))
        length = data.draw(st.integers(0, 8))
        mutated[start : start + length] = data.draw(st.binary(max_size=8))
    image = decoded_or_refusal(bytes(mutated))
    if isinstance(image, str):
        assert "0x" not in image
    else:
        assert image.pixels.dtype == np.uint8
        assert image.pixels.shape == (image.grid_height * 16, image.grid_width * 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    encoded = saved(picture(96, 64), form, exif=exif, **options)
    image = decode(encoded)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert (image.source_width, image.source_height) == upright.size
    assert np.array_equal(image.pixels, resized(upright.convert("RGB"), image))


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"Exif\0\0", id="empty"),
        pytest.param(b"Exif\0\0garbage that is no TIFF header", id="no TIFF"),
        pytest.param(b"Exif\0\0II*\0\xff\xff\xff\x7f", id="directory beyond the end"),
        pytest.param(b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0", id="directory cut short"),
        pytest.param(
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
            id="orientation 99",
        ),
        pytest.param(
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0\x36\0\0\0\0\0\0\0", id="text"
        ),
    ],
)
def test_broken_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    image = decode(saved(picture(96, 64), "JPEG", exif=exif))
    plain = decode(saved(picture(96, 64), "JPEG"))
    assert np.array_equal(image.pixels, plain.pixels)


def test_an_orientation_behind_the_pixels_of_a_png_is_found() -> None:
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    encoded = saved(picture(96, 64))
    end = len(encoded) - 12
    image = decode(encoded[:end] + png_chunk(b"eXIf", exif) + encoded[end:])
    assert (image.source_width, image.source_height) == (64, 96)


def resized(image: Image.Image, like: DecodedImage) -> np.ndarray:
    height, width, _ = like.pixels.shape
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def test_16_bit_grey_keeps_its_high_byte() -> None:
    grey = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    image = decode(saved(Image.fromarray(grey)))
    expected = Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    assert np.array_equal(image.pixels, resized(expected, image))


def test_16_bit_grey_with_a_transparent_value_shows_white_there() -> None:
    grey = np.full((64, 64), 1000, dtype=np.uint16)
    grey[:32] = 7
    image = decode(saved(Image.fromarray(grey), transparency=7))
    assert image.pixels[8, 8].tolist() == [255, 255, 255]
    assert image.pixels[-8, -8].tolist() == [3, 3, 3]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(form: str) -> None:
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode(saved(red, form, save_all=True, append_images=[blue], duration=100, **options))
    assert image.pixels.reshape(-1, 3).max(0).tolist() == [255, 0, 0]


def test_a_fully_transparent_picture_is_white() -> None:
    image = decode(saved(Image.new("RGBA", (64, 64), (10, 20, 30, 0))))
    assert image.pixels.min() == 255


SIZES = [
    pytest.param(1, 1, id="one pixel, enlarged"),
    pytest.param(200, 1, id="200:1, the longest allowed"),
    pytest.param(1, 200, id="1:200"),
    pytest.param(31, 33, id="around one token"),
    pytest.param(64, 64, id="fits as it is"),
    pytest.param(80, 48, id="halves round to even"),
    pytest.param(111, 77, id="odd sides"),
    pytest.param(256, 257, id="one row over the area"),
    pytest.param(640, 480, id="shrunk"),
    pytest.param(1000, 20, id="shrunk and flat"),
]


@pytest.fixture(scope="module")
def processor():  # noqa: ANN201 - transformers has no types
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": CHECKPOINT.min_pixels, "longest_edge": CHECKPOINT.max_pixels},
        do_rescale=False,
        do_normalize=False,
    )


def patches(image: DecodedImage) -> np.ndarray:
    """Patches as transformers orders them: by merge block, then channel, time, row, column."""
    rows, columns = image.grid_height // 2, image.grid_width // 2
    blocks = image.pixels.reshape(rows, 2, 16, columns, 2, 16, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None].repeat(2, axis=5)
    return blocks.reshape(rows * columns * 4, -1)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_grid_and_pixels_equal_transformers(processor, width: int, height: int, mode: str) -> None:  # noqa: ANN001
    encoded = saved(picture(width, height, mode))
    expected = processor(images=[Image.open(io.BytesIO(encoded))], return_tensors="np")
    image = decode(encoded)
    assert expected["image_grid_thw"].tolist() == [[1, image.grid_height, image.grid_width]]
    assert image.num_tokens == image.grid_height * image.grid_width // 4
    assert np.array_equal(expected["pixel_values"], patches(image))
    assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(saved(picture(300, 200, "CMYK"), "JPEG"), id="CMYK JPEG"),
        pytest.param(saved(picture(300, 200, "L"), "JPEG"), id="grey JPEG"),
        pytest.param(saved(picture(300, 200), "JPEG", progressive=True), id="progressive JPEG"),
        pytest.param(saved(picture(300, 200, "P"), transparency=3), id="palette, one transparent"),
        pytest.param(
            saved(picture(300, 200, "P"), transparency=bytes(range(256))), id="palette, alphas"
        ),
        pytest.param(saved(picture(300, 200), transparency=(0, 0, 0)), id="RGB, one transparent"),
        pytest.param(saved(picture(300, 200, "L"), transparency=9), id="grey, one transparent"),
        pytest.param(
            saved(picture(300, 200, "P"), "GIF", transparency=3), id="GIF, one transparent"
        ),
        pytest.param(saved(picture(300, 200, "RGBA"), "WEBP"), id="WebP with alpha"),
    ],
)
def test_pixels_of_special_modes_equal_transformers(processor, encoded: bytes) -> None:  # noqa: ANN001
    expected = processor(images=[Image.open(io.BytesIO(encoded))], return_tensors="np")
    assert np.array_equal(expected["pixel_values"], patches(decode(encoded)))


@hypothesis_settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    factor=st.sampled_from([28, 32]),
    min_pixels=st.integers(1, 1 << 20),
    max_pixels=st.integers(1 << 10, 1 << 24),
)
@example(height=16, width=48, factor=32, min_pixels=1, max_pixels=1 << 20)
@example(height=1, width=200, factor=32, min_pixels=1, max_pixels=1 << 10)
def test_smart_resize_equals_transformers(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> None:
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as theirs

    if max(height, width) / min(height, width) > 200:
        with pytest.raises(
            InvalidImage, match=f"image of {width} x {height} pixels .* at most 200:1"
        ):
            smart_resize(height, width, factor, min_pixels, max_pixels)
        return
    expected = theirs.smart_resize(height, width, factor, min_pixels, max_pixels)
    assert smart_resize(height, width, factor, min_pixels, max_pixels) == expected
    assert min(expected) >= factor


@pytest.mark.parametrize(
    ("bounds", "num_tokens"),
    [
        pytest.param(PixelBounds(), 48, id="the checkpoint's"),
        pytest.param(PixelBounds(max_pixels=64 * 64), 2, id="smaller"),
        pytest.param(PixelBounds(max_pixels=1), 1, id="max_pixels below one token gives one token"),
        pytest.param(
            PixelBounds(max_pixels=32 * 32), 1, id="max_pixels below the server's min_pixels"
        ),
        pytest.param(PixelBounds(min_pixels=256 * 256, max_pixels=256 * 256), 70, id="enlarged"),
    ],
)
def test_a_request_may_choose_the_area(bounds: PixelBounds, num_tokens: int) -> None:
    assert decode(saved(picture(256, 192)), bounds).num_tokens == num_tokens


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        pytest.param((0, None), "min_pixels is 0; it must be from 1 to 65536", id="zero"),
        pytest.param((None, -5), "max_pixels is -5; it must be from 1 to 65536", id="negative"),
        pytest.param(
            (None, 65537), "max_pixels is 65537; it must be from 1 to 65536", id="over the cap"
        ),
        pytest.param(
            (500, 499),
            "min_pixels is 500; it must be at most max_pixels, which is 499",
            id="crossed",
        ),
    ],
)
def test_a_bad_area_is_refused(bounds: tuple[int | None, int | None], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(JPEG, PixelBounds(*bounds))
    assert str(caught.value) == message


def test_the_settings_override_the_checkpoint() -> None:
    assert decode(saved(picture(256, 192)), max_pixels=128 * 128).num_tokens == 12
    with pytest.raises(InvalidRequest, match="from 1 to 16384"):
        decode(JPEG, PixelBounds(max_pixels=20_000), max_pixels=16_384)


def test_the_digest_tells_files_and_sizes_apart() -> None:
    wide, tall = (decode(saved(Image.new("RGB", size, "red"))) for size in ((100, 30), (30, 100)))
    assert wide.pixels.tobytes() == tall.pixels.tobytes()
    other = decode(saved(Image.new("RGB", (100, 30), "blue")))
    again = decode(saved(Image.new("RGB", (100, 30), "red")))
    large = saved(picture(300, 200))
    smaller = decode(large, PixelBounds(max_pixels=96 * 96))
    digests = {wide.digest, tall.digest, other.digest, smaller.digest, decode(large).digest}
    assert len(digests) == 5
    assert again.digest == wide.digest


def test_palettes_that_share_their_indices_are_other_pictures() -> None:
    indices = Image.new("P", (64, 64), 1)
    pictures = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        indices.putpalette([0, 0, 0, *colour])
        pictures.append(decode(saved(indices)))
    assert pictures[0].pixels[0, 0].tolist() == [255, 0, 0]
    assert pictures[1].pixels[0, 0].tolist() == [0, 0, 255]
    assert pictures[0].digest != pictures[1].digest


@pytest.mark.parametrize("orientation", [1, 6], ids=["upright", "sideways"])
def test_a_large_jpeg_is_decoded_coarsely_and_looks_the_same(orientation: int) -> None:
    source = picture(1500, 1100)
    exif = Image.Exif()
    exif[ExifTag.Orientation] = orientation
    large = decode(saved(source, "JPEG", quality=90, exif=exif))
    upright = source if orientation == 1 else source.transpose(Image.Transpose.ROTATE_270)
    assert (large.source_width, large.source_height) == upright.size
    exact = decode(saved(upright)).pixels.astype(int)
    assert exact.shape == large.pixels.shape
    assert np.abs(large.pixels - exact).mean() < 1.0


def test_placed_carries_everything_over() -> None:
    decoded = decode(JPEG)
    placed = decoded.placed(7)
    assert placed.offset == 7
    assert placed.end == 7 + decoded.num_tokens
    for name in (
        "grid_height",
        "grid_width",
        "num_tokens",
        "digest",
        "source_width",
        "source_height",
    ):
        assert getattr(placed, name) == getattr(decoded, name)
    assert placed.pixels is decoded.pixels


BASE64 = base64.b64encode(JPEG).decode()


@pytest.mark.parametrize(
    ("value", "base64_text", "source"),
    [
        pytest.param(JPEG, False, ImageSource.ENCODED, id="bytes"),
        pytest.param(
            BASE64.encode(), True, ImageSource.BASE64, id="base64 where the caller says so"
        ),
        pytest.param(BASE64, True, ImageSource.BASE64, id="base64 as str"),
        pytest.param("DATA:image/png;base64,", False, ImageSource.DATA_URL, id="data URL"),
        pytest.param(b"data:,", True, ImageSource.DATA_URL, id="data URL where base64 is declared"),
        pytest.param(b"HTTPS://h/", True, ImageSource.URL, id="URL where base64 is declared"),
        pytest.param(b"httpx", False, ImageSource.ENCODED, id="bytes that only resemble a URL"),
    ],
)
def test_classify(value: bytes | str, base64_text: bool, source: ImageSource) -> None:
    assert classify(value, base64_text=base64_text) is source


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(f"data:image/jpeg;base64,{BASE64}", id="data URL"),
        pytest.param(f"DATA:;BASE64,{BASE64}", id="data URL without a type"),
        pytest.param(
            f"data:image/png;charset=utf-8;base64,{BASE64}", id="the declared type is not believed"
        ),
        pytest.param(base64.encodebytes(JPEG).decode(), id="broken into lines"),
        pytest.param(BASE64.encode(), id="as bytes"),
    ],
)
def test_base64_is_decoded(value: bytes | str) -> None:
    assert decode_base64(value, MIB) == JPEG
    image = decode_image(value, CHECKPOINT, LIMITS, base64_text=True)
    assert image.digest == decode(JPEG).digest


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(
            "AA-_", "character 2 is '-', not one of A-Z a-z 0-9 [+] / =", id="URL-safe alphabet"
        ),
        pytest.param("AAé=", r"character 2 is '\\xe9'", id="not ASCII"),
        pytest.param("AAAAA", "its 5 characters are cut short or wrongly padded", id="cut short"),
        pytest.param(
            "A=AA", "its 4 characters are cut short or wrongly padded", id="padding inside"
        ),
        pytest.param(
            "AA", "its 2 characters are cut short or wrongly padded", id="padding left out"
        ),
        pytest.param(
            "data:image/png,AAAA", "data: URL without ';base64'", id="data URL in percent form"
        ),
        pytest.param(
            "data:image/png;base64", "data: URL without a comma", id="data URL without a comma"
        ),
        pytest.param(
            "A" * 2_000_000, "image has 1500000 bytes encoded; the limit is 1048576", id="too long"
        ),
    ],
)
def test_bad_base64_is_refused(value: str, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        decode_base64(value, MIB)


@given(st.binary(max_size=64), st.data())
def test_base64_is_read_as_the_standard_library_reads_it(
    content: bytes, data: st.DataObject
) -> None:
    text = base64.b64encode(content).decode()
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.sampled_from("A=+/- \n\0é")) + text[place:]
    for one in (text, changed, changed[1:]):
        try:
            expected = base64.b64decode("".join(one.split()), validate=True)
        except ValueError:
            with pytest.raises(InvalidImage, match="not base64"):
                decode_base64(one, 1024)
        else:
            assert decode_base64(one, 1024) == expected
