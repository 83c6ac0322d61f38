"""What a person sees in a file is what the models get; anything else is refused in a sentence."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app import images
from app.errors import UserError
from app.images import load_image

# Pillow warns of what it then refuses or mends.
pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def pattern(width: int = 3, height: int = 2) -> np.ndarray:
    """Different RGB values everywhere, [height, width, 3]."""
    count = width * height * 3
    return (np.arange(count) * 7 % 256).astype(np.uint8).reshape(height, width, 3)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: object, **limits: int) -> np.ndarray:
    return np.asarray(load_image(source, **limits))  # type: ignore[arg-type]


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A one-bit PNG of any declared size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# What EXIF 2.32 says of stored row r, column c of a picture with R rows and C columns: its place
# when shown upright.
EXIF: dict[int, Callable[[int, int, int, int], tuple[int, int]]] = {
    1: lambda r, c, _rows, _columns: (r, c),
    2: lambda r, c, _rows, columns: (r, columns - 1 - c),
    3: lambda r, c, rows, columns: (rows - 1 - r, columns - 1 - c),
    4: lambda r, c, rows, _columns: (rows - 1 - r, c),
    5: lambda r, c, _rows, _columns: (c, r),
    6: lambda r, c, rows, _columns: (c, rows - 1 - r),
    7: lambda r, c, rows, columns: (columns - 1 - c, rows - 1 - r),
    8: lambda r, c, _rows, columns: (columns - 1 - c, r),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(orientation: int, kind: str) -> None:
    stored = pattern()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encoded(Image.fromarray(stored), kind, exif=exif, **options))
    rows, columns, _ = stored.shape
    for r in range(rows):
        for c in range(columns):
            place = EXIF[orientation](r, c, rows, columns)
            assert tuple(found[place]) == tuple(stored[r, c])


def test_broken_exif_does_not_cost_the_photo() -> None:
    broken = encoded(Image.fromarray(pattern()), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(pixels(broken), pattern())


def test_alpha_lies_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    # Black at alpha 128 on white: 255 (1 - 128/255) = 127; alpha 0 hides its red.
    image.putdata([(*BLACK, 128), (*RED, 0), (*RED, 255)])
    assert pixels(encoded(image, "PNG")).tolist() == [[[127] * 3, [*WHITE], [*RED]]]
    grey = image.convert("LA")
    assert pixels(encoded(grey, "PNG"))[0, :2].tolist() == [[127] * 3, [*WHITE]]
    assert pixels(image.convert("RGBa"))[0, 2].tolist() == [*RED]
    assert pixels(grey.convert("La"))[0, 1].tolist() == [*WHITE]


def test_transparent_colours_lie_on_white() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, 0, 255, 0, *BLACK])
    palette.putdata([0, 1, 2])
    shown = pixels(encoded(palette, "PNG", transparency=bytes([255, 0, 128])))
    assert shown.tolist() == [[[*RED], [*WHITE], [127] * 3]]
    assert pixels(encoded(palette, "GIF", transparency=0))[0, 0].tolist() == [*WHITE]
    plain = Image.new("RGB", (1, 1), RED)
    assert pixels(encoded(plain, "PNG", transparency=RED)).tolist() == [[[*WHITE]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    # 65535 = 255 * 257: a 16-bit value of 257 k is the 8-bit value k.
    image = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert pixels(encoded(image, kind))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 257 * 3, 65535]], dtype=np.int32), [0, 3, 255]),
        (np.array([[0, 3, 255]], dtype=np.int32), [0, 3, 255]),
        (np.array([[-10, 0, 10]], dtype=np.int32), [0, 128, 255]),
        (np.array([[np.nan, 0.0, np.inf, 1.0]], dtype=np.float32), [0, 0, 0, 255]),
        (np.full((1, 2), 5.0e9, dtype=np.float32), [0, 0]),
    ],
)
def test_wide_grey_is_scaled(values: np.ndarray, wanted: list[int]) -> None:
    found = pixels(encoded(Image.fromarray(values), "TIFF"))
    assert found[0, :, 1].tolist() == wanted


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("HSV", (0, 255, 255), RED),
        ("LAB", (255, 128, 128), WHITE),
        ("YCbCr", (255, 128, 128), WHITE),
    ],
)
def test_other_colour_spaces_become_rgb(mode: str, colour: object, wanted: tuple[int, ...]) -> None:
    image = Image.new(mode, (2, 2), colour)  # type: ignore[arg-type]
    found = pixels(image if mode in ("HSV", "LAB", "YCbCr") else encoded(image, "TIFF"))
    assert np.abs(found[0, 0].astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_show_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLACK)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(data), np.asarray(frames[0]))


@pytest.mark.parametrize("size", [(1, 1), (5000, 2), (2, 5000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_odd_sizes_are_taken(size: tuple[int, int], kind: str) -> None:
    found = load_image(encoded(Image.new("RGB", size, (90, 90, 90)), kind))
    assert found.size == size
    assert np.abs(np.asarray(found).astype(int) - 90).max() <= 1


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(pattern()), "PNG"))
    assert np.array_equal(pixels(path), pattern())
    assert np.array_equal(pixels(str(path)), pattern())


def test_nothing_but_pixels_comes_through() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    found = load_image(encoded(Image.fromarray(pattern()), "PNG", exif=exif, dpi=(72, 72)))
    assert found.info == {}
    assert not found.getexif()


def test_pillow_images_are_held_to_the_same_rules() -> None:
    assert np.array_equal(pixels(Image.fromarray(pattern())), pattern())
    with pytest.raises(UserError, match=r"4 x 3 = 0\.0 megapixels"):
        load_image(Image.new("RGB", (4, 3)), max_pixels=11)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "No photo was given"),
        ("", "No photo was given"),
        (b"", "No photo was given"),
        (7, "not int"),
        ("/nowhere/photo.png", "cannot be read; upload it again"),
        ("nul\x00byte.png", "cannot be read; upload it again"),
        (b"hello, this is text", "not a picture that can be read here; save it as JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png(13_000, 13_000), "13000 x 13000 = 169.0 megapixels; send one of at most 40"),
        (png(100_000, 100_000), "megapixels; send one of at most 40 megapixels"),
        (png(50, 50), "PNG file is damaged"),
        (encoded(NOISE, "JPEG")[:-200], "JPEG file is damaged"),
        (encoded(NOISE, "JPEG")[:300], "This file is damaged"),
        (encoded(NOISE, "PNG")[:4000], "PNG file is damaged"),
    ],
    ids=[
        "nothing",
        "empty path",
        "empty file",
        "a number",
        "no such file",
        "no such name",
        "text",
        "EPS",
        "169 megapixels",
        "10000 megapixels",
        "no pixels",
        "cut JPEG",
        "cut JPEG header",
        "cut PNG",
    ],
)
def test_bad_input_is_answered_with_a_sentence(source: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(30_000_000_000)
    with pytest.raises(UserError, match=r"has 30000\.0 MB; send one of at most 20 MB"):
        load_image(path)
    with pytest.raises(UserError, match=r"at most 0\.001 MB"):
        load_image(bytes(1001), max_bytes=1000)


def test_an_icon_cannot_hide_a_large_picture() -> None:
    inner = png(13_000, 13_000)
    ico = struct.pack("<HHH", 0, 1, 1) + struct.pack(
        "<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22
    )
    with pytest.raises(UserError, match=r"169\.0 megapixels"):
        load_image(ico + inner)
    small = encoded(Image.fromarray(pattern(16, 16)), "ICO", sizes=[(16, 16)])
    assert np.array_equal(pixels(small), pattern(16, 16))


def test_a_flood_of_icon_headers_is_refused_at_the_first_too_large_one() -> None:
    began = time.perf_counter()
    with pytest.raises(UserError, match="megapixels"):
        load_image(b"icns" + b"ihdr" * 4_900_000)
    assert time.perf_counter() - began < 3


def test_grey_is_scaled_by_its_values_in_all_strips() -> None:
    # Only the last of three strips tells that the values go to 65535.
    values = np.zeros((2 * images.ROWS + 1, 2), dtype=np.int32)
    values[0, 0], values[-1, 1] = 257 * 100, 65535
    found = pixels(encoded(Image.fromarray(values), "TIFF"))[:, :, 0]
    assert (found[0, 0], found[-1, 1], int(found.sum())) == (100, 255, 355)


def test_two_photos_at_most_are_decoded_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    within, most, lock = [0], [0], threading.Lock()
    decode = images._to_rgb

    def counted(image: Image.Image) -> Image.Image:
        with lock:
            within[0] += 1
            most[0] = max(most[0], within[0])
        # Others come meanwhile if they may.
        threading.Event().wait(0.05)
        with lock:
            within[0] -= 1
        return decode(image)

    monkeypatch.setattr(images, "_to_rgb", counted)
    threads = [threading.Thread(target=load_image, args=(SAMPLES["PNG"],)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [2]


PEAKS = """
import io, sys
from pathlib import Path
import numpy as np
from PIL import Image
from app.images import load_image

def held(line):
    return int(Path("/proc/self/status").read_text().split(line + ":")[1].split()[0]) / 1e3

def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()

side = 6300
turned = Image.Exif()
turned[0x0112] = 6
photos = {
    "grey": lambda: encoded(Image.fromarray(np.zeros((side, side), np.uint16)), "PNG"),
    "float": lambda: encoded(
        Image.fromarray(np.zeros((side, side), np.float32)), "TIFF", compression="tiff_lzw"
    ),
    "alpha": lambda: encoded(Image.new("RGBA", (side, side), (1, 2, 3, 100)), "PNG"),
    "turned": lambda: encoded(Image.new("RGBA", (side, side), (1, 2, 3, 9)), "PNG", exif=turned),
}
load_image(encoded(Image.new("RGB", (9, 9)), "PNG"))
for name, make in photos.items():
    data = make()
    Path("/proc/self/clear_refs").write_text("5")
    rest = held("VmRSS")
    load_image(data)
    print(name, held("VmHWM") - rest)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_file_of_forty_megapixels_takes_few_copies_of_its_pixels() -> None:
    # A copy of the pixels takes 159 MB: there may be two, and what the decoder needs.
    told = subprocess.run(
        [sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    peaks = {name: float(size) for name, size in map(str.split, told.splitlines())}
    assert set(peaks) == {"grey", "float", "alpha", "turned"}
    assert max(peaks.values()) < 400, peaks
    assert min(peaks.values()) > 100, peaks


def test_no_setting_of_pillow_or_python_is_changed() -> None:
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    with pytest.raises(UserError):
        load_image(png(10_000, 10_000))
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_a_warning_turned_error_is_a_refusal_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="megapixels"):
            load_image(png(10_000, 10_000))


KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "QOI")
SAMPLES = {kind: encoded(Image.fromarray(pattern(24, 24)), kind) for kind in KINDS}


def taken_or_refused(data: bytes) -> None:
    """Anything but an RGB picture or a UserError fails the test."""
    with contextlib.suppress(UserError):
        found = load_image(data)
        assert found.mode == "RGB"
        assert np.asarray(found).shape == (found.height, found.width, 3)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    taken_or_refused(data)


@given(
    kind=st.sampled_from(KINDS),
    end=st.floats(0, 1),
    position=st.floats(0, 1),
    value=st.integers(0, 255),
)
@settings(deadline=None, max_examples=300)
def test_damaged_files_are_taken_or_refused(
    kind: str, end: float, position: float, value: int
) -> None:
    data = bytearray(SAMPLES[kind])
    data[int(position * (len(data) - 1))] = value
    taken_or_refused(bytes(data[: 1 + int(end * len(data))]))
