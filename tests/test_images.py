"""The one reader of images, against plain numpy: depths, orientations, transparency, damage."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lbutils.data import images
from lbutils.data.images import Files, ImageError, decode

RNG = np.random.default_rng(0)


def saved(array_or_image, form, **options):
    image = array_or_image
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(values, depth, transparent=None):
    """A PNG of values (H, W, C) by the format's specification; Pillow writes no such depths."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, bands = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = []
    for row in values.reshape(height, -1):
        bits = "".join(f"{value:0{depth}b}" for value in row.tolist())
        bits += "0" * (-len(bits) % 8)
        rows.append(b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    if transparent is not None:
        parts += chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in transparent))
    parts += chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(values, *, photometric=None, big=False):
    """A TIFF of values (H, W) or (H, W, 3), uncompressed, by the format's specification."""
    order = ">" if big else "<"
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bands = 1 if values.ndim == 2 else values.shape[2]
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = 8 * values.dtype.itemsize
    photometric = (1 if bands == 1 else 2) if photometric is None else photometric
    more = struct.pack(f"{order}{bands}H", *[bits] * bands) if bands > 1 else b""
    height, width = values.shape[:2]
    start = 8 + 2 + 12 * 10 + 4
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, bands, start if more else bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, start + len(more)),
        (277, 3, 1, bands),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample),
    ]
    out = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}IH", 8, len(entries))
    for tag, kind, number, value in entries:
        short = kind == 3 and number == 1
        packed = struct.pack(f"{order}H2x" if short else f"{order}I", value)
        out += struct.pack(f"{order}HHI", tag, kind, number) + packed
    return out + struct.pack(f"{order}I", 0) + more + data


def eight(values):
    """The stated rule for integers, value by value."""
    depth = next(bits for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    return (values // 2 ** (depth - 8)).astype(np.uint8)


def on_white(grey_or_colours, alpha):
    """Composition in exact arithmetic; Pillow's may differ by one."""
    colours = grey_or_colours.astype(float)
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def pixels(content, **options):
    return np.asarray(decode(content, **options))


# --- plain images --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_colours_of_eight_bits_are_as_they_were(form):
    flat = np.repeat(RNG.integers(0, 256, (1, 4, 3), dtype=np.uint8), 9, axis=0)
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode(saved(flat, form, **options))
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), flat)


def test_bytes_and_a_path_are_the_same(tmp_path):
    content = saved(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    assert decode(tmp_path / "a.png").tobytes() == decode(str(tmp_path / "a.png")).tobytes()
    assert decode(tmp_path / "a.png").tobytes() == decode(content).tobytes()
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "b.png")


def test_cmyk_and_other_colour_models():
    colours = Image.new("RGB", (8, 8), (200, 40, 90))
    for form in ("JPEG", "TIFF"):
        found = pixels(saved(colours.convert("CMYK"), form)).astype(int)
        assert np.abs(found - (200, 40, 90)).max() <= 6
    palette = colours.quantize(4)
    assert np.array_equal(pixels(saved(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(RNG.integers(0, 2, (6, 5)).astype(bool))
    for form in ("PNG", "BMP", "TIFF"):
        expected = np.asarray(bits).astype(np.uint8)[..., None].repeat(3, 2) * 255
        assert np.array_equal(pixels(saved(bits, form)), expected)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue", "green")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        image = decode(content)
        assert image.getpixel((3, 3)) == (255, 0, 0) and image.size == (6, 6)


# --- depths --------------------------------------------------------------------------------


@settings(max_examples=examples(60))
@given(
    bits=st.sampled_from([8, 9, 10, 12, 13, 14, 16]),
    seed=st.integers(0, 99),
    form=st.sampled_from(["png", "tiff", "tiff, big"]),
    bands=st.sampled_from([1, 3]),
)
def test_sixteen_bits_are_scaled_by_the_stated_rule(bits, seed, form, bands):
    shape = (5, 6) if bands == 1 else (5, 6, 3)
    values = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint16)
    values.flat[0] = 2**bits - 1
    content = png(values, 16) if form == "png" else tiff(values, big="big" in form)
    expected = eight(values)
    expected = expected if bands == 3 else expected[..., None].repeat(3, 2)
    assert np.array_equal(pixels(content), expected)
    assert expected.max() >= 127  # neither nearly black nor white


@pytest.mark.parametrize("bits", [12, 16])
def test_sixteen_bits_beside_alpha(bits):
    for bands in (2, 4):
        values = RNG.integers(0, 2**bits, (5, 6, bands)).astype(np.uint16)
        values[0, 0] = 2**bits - 1
        colours = eight(values[..., :-1])
        colours = colours if bands == 4 else colours.repeat(3, 2)
        alpha = eight(values[..., -1])
        found = pixels(png(values, 16), transparent=True)
        assert np.array_equal(found, np.dstack([colours, alpha]))
        flat = pixels(png(values, 16)).astype(float)
        assert np.abs(flat - on_white(colours, alpha)).max() <= 1


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_sixteen_bit_tiff_of_pillow(compression):
    values = RNG.integers(0, 4096, (9, 4)).astype(np.uint16)
    content = saved(values, "TIFF", compression=compression)
    assert np.array_equal(pixels(content)[..., 1], eight(values))


def test_white_is_zero():
    values = RNG.integers(0, 65536, (5, 6)).astype(np.uint16)
    values[0, 0] = 65535
    assert np.array_equal(pixels(tiff(values, photometric=0))[..., 0], 255 - eight(values))


@pytest.mark.parametrize("big", [False, True])
def test_floats(big):
    share = RNG.random((5, 6)).astype(np.float32)
    found = pixels(tiff(share, big=big))[..., 0]
    assert np.array_equal(found, np.rint(share * 255))
    assert np.array_equal(pixels(tiff(share * 255, big=big))[..., 0], np.floor(share * 255))
    high = share * 60_000
    high[0, 0] = 60_000
    assert np.array_equal(pixels(tiff(high, big=big))[..., 0], np.floor(high / 256).astype(int))


@pytest.mark.parametrize(
    "values", [np.array([[-1000, 0, 3000]], np.int16), np.array([[-2.5, 0.0, 1e9]], np.float32)]
)
def test_values_of_no_depth_are_stretched(values):
    low, high = float(values.min()), float(values.max())
    expected = np.rint((values.astype(float) - low) / (high - low) * 255)
    assert np.array_equal(pixels(tiff(values))[..., 2], expected)
    same = np.full((2, 2), -7, np.int16)
    assert not pixels(tiff(same)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    with pytest.raises(ImageError, match="not finite"):
        decode(tiff(np.array([[0.5, value]], np.float32)))


# --- transparency --------------------------------------------------------------------------


@settings(max_examples=examples(60))
@given(
    depth=st.sampled_from([1, 2, 4, 8, 16]), bands=st.sampled_from([1, 3]), seed=st.integers(0, 99)
)
def test_one_transparent_colour(depth, bands, seed):
    """Of a PNG's tRNS chunk, whose values are of the file's depth."""
    depth = depth if bands == 1 else max(depth, 8)
    values = np.random.default_rng(seed).integers(0, 2**depth, (4, 5, bands)).astype(np.uint16)
    values[0, 1] = 2**depth - 1
    key = values[0, 0]
    hidden = (values == key).all(-1)
    shown = eight(values) if depth >= 8 else values * (255 // (2**depth - 1))
    expected = np.where(hidden[..., None], 255, shown.repeat(3 // bands, 2))
    content = png(values, depth, transparent=key.tolist())
    assert np.array_equal(pixels(content), expected)
    assert np.array_equal(pixels(content, transparent=True)[..., 3], np.where(hidden, 0, 255))


def test_palettes_with_transparency():
    palette = Image.new("P", (4, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30, 200, 0, 0, 0, 90, 0])
    palette.putdata([0, 1, 2, 3])
    for transparency in (1, bytes([255, 0, 255, 255])):
        found = pixels(saved(palette, "PNG", transparency=transparency))
        assert found[0].tolist() == [[0, 0, 0], [255, 255, 255], [200, 0, 0], [0, 90, 0]]
    found = pixels(saved(palette, "GIF", transparency=2))
    assert found[0].tolist() == [[0, 0, 0], [10, 20, 30], [255, 255, 255], [0, 90, 0]]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_on_white(form, bands):
    values = RNG.integers(0, 256, (6, 7, bands), dtype=np.uint8)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    content = saved(values, form, **options)
    colours = values[..., :-1].repeat(3 if bands == 2 else 1, 2)
    difference = pixels(content).astype(float) - on_white(colours, values[..., -1])
    assert np.abs(difference).max() <= 1
    assert np.array_equal(pixels(content, transparent=True), np.dstack([colours, values[..., -1]]))


# --- orientation ---------------------------------------------------------------------------

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF, packed"])
@pytest.mark.parametrize("orientation", TURNS)
def test_images_stand_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(form, {})
    if "packed" in form:
        options = {"compression": "tiff_lzw"}
    content = saved(blocks, form.partition(",")[0], exif=exif, **options)
    expected = TURNS[orientation](blocks)
    found = pixels(content)
    assert found.shape == expected.shape
    centres = (slice(8, None, 16), slice(8, None, 16))
    tolerance = 12 if form == "JPEG" else 0
    assert np.abs(found[centres].astype(int) - expected[centres]).max() <= tolerance


def test_deep_and_transparent_images_stand_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = RNG.integers(0, 4096, (4, 6)).astype(np.uint16)
    assert np.array_equal(pixels(saved(deep, "PNG", exif=exif))[..., 0], np.rot90(eight(deep), -1))
    alpha = RNG.integers(0, 256, (4, 6, 4), dtype=np.uint8)
    found = pixels(saved(alpha, "PNG", exif=exif), transparent=True)
    assert np.array_equal(found, np.rot90(alpha, -1))


@pytest.mark.parametrize("note", [b"II*\0\xff\xff\xff\xff", b"nonsense", b""])
def test_a_damaged_note_on_orientation_costs_no_image(note):
    colours = np.full((8, 8, 3), 77, np.uint8)
    assert pixels(saved(colours, "JPEG", exif=b"Exif\0\0" + note)).shape == (8, 8, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    exif = Image.Exif()
    exif[0x0112] = value
    colours = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(pixels(saved(colours, "PNG", exif=exif)), colours)


# --- limits and damage ---------------------------------------------------------------------


def test_the_aspect_limit(monkeypatch):
    line = saved(Image.new("L", (images.MAX_RATIO * 2, 2)), "PNG")
    assert decode(line).size == (2000, 2)
    for size in ((images.MAX_RATIO * 2 + 1, 2), (2, images.MAX_RATIO * 2 + 1)):
        with pytest.raises(ImageError, match=r"decompression bomb, .*no side 1000 times the other"):
            decode(saved(Image.new("L", size), "PNG"))


def test_the_limits_of_pixels_and_bytes(monkeypatch, tmp_path):
    content = saved(Image.new("RGB", (20, 30)), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    assert decode(content).size == (20, 30)
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(ImageError, match="20 x 30 pixels where 599 are admitted"):
        decode(content)
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(images, "MAX_BYTES", len(content))
    assert decode(tmp_path / "a.png").size == (20, 30)
    monkeypatch.setattr(images, "MAX_BYTES", len(content) - 1)
    for source in (content, tmp_path / "a.png"):
        with pytest.raises(ImageError, match=f"has {len(content):,} bytes"):
            decode(source)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_image_is_refused_in_one_line(content):
    with pytest.raises(ImageError, match="^is unreadable: ") as caught:
        decode(content)
    assert "\n" not in str(caught.value)


EXIF = Image.Exif()
EXIF[0x0112] = 3
SOUND = {
    form: saved(RNG.integers(0, 256, (16, 12, 3), dtype=np.uint8), form, **options)
    for form, options in {
        "JPEG": {"exif": EXIF},
        "PNG": {"exif": EXIF},
        "WEBP": {"exif": EXIF},
        "GIF": {},
        "BMP": {},
        "TIFF": {"compression": "tiff_lzw"},
    }.items()
} | {
    "16 bits": png(RNG.integers(0, 4096, (9, 8, 3)).astype(np.uint16), 16, transparent=(1, 2, 3)),
    "float": tiff(RNG.random((7, 8)).astype(np.float32)),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=examples(300))
@given(
    form=st.sampled_from(sorted(SOUND)),
    at=st.floats(0, 1),
    junk=st.binary(max_size=24),
    cut=st.booleans(),
)
def test_damage_is_read_or_refused_and_raises_nothing_else(form, at, junk, cut):
    data = SOUND[form]
    place = int(at * len(data))
    data = data[:place] + junk + (b"" if cut else data[place + len(junk) :])
    try:
        image = decode(data)
    except ImageError as error:
        assert "\n" not in str(error) and str(error).startswith(("is ", "has "))
    else:
        assert image.mode == "RGB" and min(image.size) > 0


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", sorted(SOUND))
def test_half_a_file_is_refused(form):
    with pytest.raises(ImageError):
        decode(SOUND[form][: len(SOUND[form]) // 2])


def test_large_images_are_shrunk_on_request():
    content = saved(RNG.integers(0, 256, (96, 48, 3), dtype=np.uint8), "PNG")
    assert decode(content, short_side=24).size == (24, 48)
    assert decode(content, short_side=48).size == (48, 96)


# --- files ---------------------------------------------------------------------------------


def test_the_stamp_sees_a_file_replaced_by_one_of_equal_size_and_time(tmp_path):
    place = tmp_path / "a.bmp"
    place.write_bytes(saved(Image.new("RGB", (4, 4), "red"), "BMP"))
    state = place.stat()
    source = Files(tmp_path)
    first = source.stamp("a.bmp")
    other = saved(Image.new("RGB", (4, 4), "blue"), "BMP")
    place.write_bytes(other)
    os.utime(place, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (place.stat().st_size, place.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert source.stamp("a.bmp") != first
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "a.bmp").write_bytes(other)
    assert Files(copy).stamp("a.bmp") == source.stamp("a.bmp")


def test_a_file_that_nobody_touches_is_hashed_once(tmp_path, monkeypatch):
    place = tmp_path / "a.png"
    place.write_bytes(b"content")
    images.sha256(place)
    later = place.stat().st_ctime_ns + 10 * images._SETTLED
    monkeypatch.setattr(images.time, "time_ns", lambda: later)
    first = images.sha256(place)
    with monkeypatch.context() as patched:
        patched.setattr(images.hashlib, "sha256", lambda *_: pytest.fail("hashed twice"))
        assert images.sha256(place) == first
    replacement = tmp_path / "b.png"
    replacement.write_bytes(b"another")
    os.utime(replacement, ns=(place.stat().st_atime_ns, place.stat().st_mtime_ns))
    replacement.replace(place)
    assert images.sha256(place) != first
