import contextlib
import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from visiontune.data.decode import BrokenPicture, Picture, Reading, decode_whole, read_picture
from visiontune.data.header import MAX_PIXELS, read_header
from visiontune.data.jpeg import decode_jpeg
from visiontune.data.read import read_file
from visiontune.data.resize import cut_by_area
from visiontune.data.views import View, random_box

PHOTOS = [np.ascontiguousarray(x) for x in load_sample_images().images]  # 427x640, real
RGB = PHOTOS[0][100:160:, 200:280]


def encoded(pixels, kind, **settings):
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **settings)
    return out.getvalue()


def psnr(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize(
    ("kind", "settings"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]
)
def test_formats_without_loss_come_out_as_they_went_in(kind, settings):
    assert np.array_equal(decode_whole(encoded(RGB, kind, **settings)), RGB)


def test_what_is_not_rgb_becomes_rgb():
    image = Image.fromarray(RGB)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(decode_whole(encoded(image.convert("L"), "PNG")), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(decode_whole(encoded(image.convert("1"), "PNG")), np.asarray(image.convert("1").convert("RGB")))
    for palette in (encoded(image.quantize(64), "PNG"), encoded(image.quantize(64), "GIF"), encoded(image.quantize(64), "BMP")):
        assert np.array_equal(decode_whole(palette), np.asarray(image.quantize(64).convert("RGB")))
    cmyk = encoded(image.convert("CMYK"), "JPEG", quality=95)
    assert psnr(decode_whole(cmyk), RGB) > 30
    grey_jpeg = encoded(image.convert("L"), "JPEG", quality=95)
    assert psnr(decode_whole(grey_jpeg), np.repeat(grey[..., None], 3, axis=2)) > 35


def test_transparency_lies_on_the_background():
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[:20, :, 3] = 0
    rgba[20:40, :, 3] = 128
    for kind in ("PNG", "TIFF", "WEBP"):
        data = encoded(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        got = decode_whole(data, Reading(background=(10, 20, 30)))
        assert (got[:20] == (10, 20, 30)).all(), kind
        assert np.array_equal(got[40:], RGB[40:]), kind
        mixed = RGB[20:40] * (128 / 255) + np.array([10, 20, 30]) * (127 / 255)
        assert np.abs(got[20:40] - mixed).max() <= 1, kind
    palette = Image.fromarray(RGB).quantize(16)
    palette.info["transparency"] = 3
    got = decode_whole(encoded(palette, "PNG", transparency=3), Reading(background=(1, 2, 3)))
    hidden = np.asarray(palette) == 3
    assert hidden.any()
    assert (got[hidden] == (1, 2, 3)).all()
    grey_alpha = Image.fromarray(rgba[..., [0, 3]].copy(), "LA")
    assert (decode_whole(encoded(grey_alpha, "PNG"))[:20] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    deep = (RGB.astype(np.uint16) << 8) + 77
    for suffix in (".png", ".tiff"):
        colour = cv2.imencode(suffix, np.ascontiguousarray(deep[..., ::-1]))[1].tobytes()
        assert np.abs(decode_whole(colour).astype(int) - RGB).max() <= 1, suffix
        grey = cv2.imencode(suffix, np.ascontiguousarray(deep[..., 0]))[1].tobytes()
        assert np.array_equal(decode_whole(grey), np.repeat(RGB[..., :1], 3, axis=2)), suffix
        assert np.array_equal(decode_whole(grey, Reading(channels=1))[..., 0], RGB[..., 0]), suffix


def test_a_value_range_stretches_what_lies_in_it():
    twelve = RGB[..., 0].astype(np.uint16) * 16  # 12 bits of a microscope in 16
    data = cv2.imencode(".tiff", twelve)[1].tobytes()
    got = decode_whole(data, Reading(channels=1, value_range=(0, 4080)))
    assert np.array_equal(got[..., 0], RGB[..., 0])
    for suffix in (".png", ".tiff"):
        colour = cv2.imencode(suffix, np.ascontiguousarray(RGB[..., ::-1].astype(np.uint16) * 16))[1].tobytes()
        assert np.array_equal(decode_whole(colour, Reading(value_range=(0, 4080))), RGB), suffix
        grey = cv2.imencode(suffix, twelve)[1].tobytes()
        assert np.array_equal(decode_whole(grey, Reading(channels=1, value_range=(0, 4080)))[..., 0], RGB[..., 0]), suffix
    for kind in ("|u1", ">u2"):
        file = io.BytesIO()
        np.save(file, RGB if kind == "|u1" else (RGB.astype(np.uint16) << 8).astype(kind))
        span = (0, 4080) if kind == "|u1" else None  # of 8 bits it says nothing
        assert np.array_equal(decode_whole(file.getvalue(), Reading(value_range=span)), RGB)
    floats = io.BytesIO()
    np.save(floats, RGB.astype(np.float32) / 255)
    assert np.array_equal(decode_whole(floats.getvalue()), RGB)
    signed = io.BytesIO()
    np.save(signed, RGB.astype(np.int16))
    with pytest.raises(BrokenPicture, match="int16.*data.value_range"):
        decode_whole(signed.getvalue())


@pytest.mark.parametrize("channels", [2, 4, 6, 13])
def test_other_numbers_of_channels_come_from_npy_and_tiff(channels):
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 50, channels), dtype=np.uint8)
    files = []
    for array in (pixels, np.ascontiguousarray(pixels.transpose(2, 0, 1))):
        file = io.BytesIO()
        np.save(file, array)
        files.append(file.getvalue())
    for planar in ("contig", "separate"):
        file = io.BytesIO()
        array = pixels if planar == "contig" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        tifffile.imwrite(file, array, planarconfig=planar, photometric="minisblack", metadata=None)
        files.append(file.getvalue())
    for data in files:
        picture = Picture(data, Reading(channels=channels))
        assert (picture.height, picture.width) == (40, 50)
        assert np.array_equal(picture.whole(), pixels)
        (part,) = Picture(data, Reading(channels=channels)).cut([(4, 6, 20, 20)], [(20, 20)])
        assert np.array_equal(part, pixels[4:24, 6:26])
    with pytest.raises(BrokenPicture, match=f"has {channels} channels where data.channels says 5"):
        decode_whole(files[0], Reading(channels=5))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_come_upright_and_crops_are_where_they_should_be(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    smooth = cv2.GaussianBlur(PHOTOS[0], (0, 0), 4)  # without detail only a wrong place makes a difference
    data = encoded(smooth, kind, exif=exif, **settings)
    with Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    picture = Picture(data)
    assert (picture.height, picture.width) == reference.shape[:2]
    assert np.array_equal(picture.whole(), reference)
    small, large = picture.cut([(40, 61, 203, 250), (0, 0, 420, 420)], [(203, 250), (50, 40)])
    assert np.array_equal(small, reference[40:243, 61:311])
    assert psnr(large, cut_by_area(reference, (0, 0, 420, 420), (50, 40))) > 36
    # decoded at a quarter: the crop stays where it is, to a fraction of a pixel
    (quarter,) = picture.cut([(13, 7, 404, 402)], [(100, 100)], exact=False)
    assert psnr(quarter, cut_by_area(reference, (13, 7, 404, 402), (100, 100))) > 38


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_deep_tiff_comes_upright_too(orientation):
    tifffile = pytest.importorskip("tifffile")
    deep = PHOTOS[0][..., 0].astype(np.uint16) * 257
    file = io.BytesIO()
    tifffile.imwrite(file, deep, extratags=[(274, "H", 1, orientation, True)])
    picture = Picture(file.getvalue(), Reading(channels=1))
    turned = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    assert (picture.height, picture.width) == np.rot90(deep, turned).shape
    assert np.array_equal(picture.whole()[..., 0], np.rot90(PHOTOS[0][..., 0], turned))


@pytest.mark.parametrize("photo", [0, 1])
def test_a_reduced_decode_equals_decoding_whole(photo):
    """The bounds that the README states: against decoding all of it and resizing by Pillow, which averages (bilinear, antialiased)."""
    big = cv2.resize(PHOTOS[photo], (3000, 2000), interpolation=cv2.INTER_CUBIC)
    data = encoded(big, "JPEG", quality=88)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    for k in (2, 4, 8):  # libjpeg's reduced picture is the mean of k x k pixels
        reduced = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | {2: 16, 4: 32, 8: 64}[k])
        assert psnr(reduced, cv2.resize(whole, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)) > 50
    rng = np.random.default_rng(0)
    fast, exact, used = [], [], set()
    for _ in range(25):
        top, left, h, w = box = random_box(View(crop_scale=(0.08, 1.0)), 2000, 3000, rng)
        reference = np.asarray(Image.fromarray(whole[top : top + h, left : left + w]).resize((224, 224), Image.BILINEAR))
        picture = Picture(data)
        used.add(picture.reduction([box], [(224, 224)]))
        fast.append(psnr(picture.cut([box], [(224, 224)])[0], reference))
        exact.append(psnr(picture.cut([box], [(224, 224)], exact=True)[0], reference))
    assert used >= {2, 4}
    assert min(fast) > 28
    assert np.median(fast) > 34
    assert min(exact) > 33


def test_no_more_is_decoded_than_the_crops_need():
    data = encoded(cv2.resize(PHOTOS[0], (3000, 2000)), "JPEG", quality=80)
    picture = Picture(data)
    cases = {8: [(0, 0, 1800, 1800)], 4: [(0, 0, 1700, 1800)], 2: [(0, 0, 1800, 1800), (0, 0, 450, 450)], 1: [(0, 0, 300, 300)]}
    for reduction, boxes in cases.items():
        assert picture.reduction(boxes, [(224, 224)] * len(boxes)) == reduction
    assert picture.reduction([(0, 0, 400, 400)], [(48, 48)]) == 8
    assert picture._decode(8).shape == (250, 375, 3)


@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("reduce", [1, 2, 4])
def test_rows_below_the_crop_are_not_decoded_and_make_no_difference(quality, subsampling, reduce):
    data = encoded(cv2.resize(PHOTOS[1], (901, 777)), "JPEG", quality=quality, subsampling=subsampling)
    header = read_header(data)
    assert header.height_at
    whole = decode_jpeg(data, header, channels=3, reduce=reduce)
    for rows in (1, 15, 16, 17, 333, 700, 760, 777):
        part = decode_jpeg(data, header, channels=3, reduce=reduce, rows=rows)
        needed = -(-rows // reduce)
        assert np.array_equal(part[:needed], whole[:needed])
        assert len(part) <= needed + 32
    (crop,) = Picture(data).cut([(100, 50, 301, 299)], [(301, 299)])
    assert np.array_equal(crop, decode_whole(data)[100:401, 50:349])


def test_pixels_that_end_early_are_found_whatever_the_crop():
    half = JPEG[: len(JPEG) // 2] + b"\xff\xd9"  # as some tools mend a download
    for box in ((0, 0, 340, 400), (100, 100, 300, 300), (0, 0, 427, 640)):
        with pytest.raises(BrokenPicture, match="cut off"):
            Picture(half).cut([box], [(100, 100)])
    sky = encoded(np.full((400, 400, 3), 200, np.uint8), "JPEG")  # nothing is missing here
    assert Picture(sky).cut([(0, 0, 200, 200)], [(50, 50)])[0].mean() == 200


def test_a_progressive_jpeg_that_was_cut_is_broken_wherever_it_was_cut():
    whole = encoded(PHOTOS[0][:200, :200], "JPEG", progressive=True)
    for at in range(700, len(whole) - 2, 97):
        with pytest.raises(BrokenPicture):
            decode_whole(whole[:at])


def test_rows_are_only_left_out_where_they_come_from_top_to_bottom():
    progressive = encoded(PHOTOS[0], "JPEG", progressive=True)
    assert not read_header(progressive).height_at
    assert not read_header(JPEG[:-30]).height_at  # nor where the end is missing: that has to be found
    with pytest.raises(BrokenPicture, match="cut off"):
        Picture(JPEG[: len(JPEG) * 9 // 10]).cut([(0, 0, 100, 100)], [(50, 50)])
    restarts = encoded(PHOTOS[0], "JPEG", restart_marker_rows=1)
    (crop,) = Picture(restarts).cut([(30, 40, 100, 90)], [(100, 90)])
    assert np.array_equal(crop, decode_whole(restarts)[30:130, 40:130])


def test_decoders_agree_and_say_nothing_on_the_terminal(capfd):
    odd = JPEG.replace(b"\xff\xd9", b"\x00\x01\x02\xff\xd9")  # bytes between the pixels and the end: a warning of libjpeg's
    for data in (JPEG, odd, encoded(PHOTOS[0], "JPEG", progressive=True)):
        assert np.array_equal(decode_whole(data), np.asarray(Image.open(io.BytesIO(data))))
    assert capfd.readouterr().err == ""


def test_two_views_decode_once(monkeypatch):
    picture = Picture(encoded(PHOTOS[0], "JPEG"))
    count = []
    whole = picture._decode
    monkeypatch.setattr(picture, "_decode", lambda *way, **more: (count.append(way), whole(*way, **more))[1])
    assert len(picture.cut([(0, 0, 100, 100)] * 3, [(20, 20)] * 3)) == 3
    assert len(count) == 1


PNG = encoded(RGB, "PNG")
JPEG = encoded(PHOTOS[0], "JPEG", quality=90)


def png_header(width, height):
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT"


def array_header(kind, shape):
    return b"\x93NUMPY\x01\x00v\x00" + f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(118)


BROKEN = {
    "empty": (b"", "^empty file"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "^cut off"),
    "nearly a whole JPEG": (JPEG[:-2000], "^cut off"),
    "a JPEG's first bytes": (JPEG[:4], "^cut off"),
    "a JPEG's header": (JPEG[:400], "^cut off"),
    "half a PNG": (PNG[: len(PNG) // 2], "^cut off"),
    "a PNG's header": (PNG[:40], "^cut off|^damaged"),
    "half a WebP": (encoded(RGB, "WEBP")[:900], "^cut off|header"),
    "half a BMP": (encoded(RGB, "BMP")[:4000], "^cut off"),
    "half a TIFF": (encoded(RGB, "TIFF")[:4000], "cut off|header|damaged"),
    "half a GIF": (encoded(Image.fromarray(RGB).quantize(64), "GIF")[:1500], "^cut off"),
    "half an array": (array_header("|u1", (40, 50, 3)), "^cut off"),
    "a web page": (b"\n<!DOCTYPE html><html>not found</html>", "^a web page"),
    "an archive": (b"PK\x03\x04rest of it", "^an archive"),
    "zeros": (b"\0" * 5000, "^nothing but zeros"),
    "text": (b"hello, I am no picture", "^not a picture .begins with b'hello"),
    "a bomb": (png_header(60_000, 60_000), "60000x60000 pixels, more than 300 million|more than 600 million"),
    "a smaller bomb": (png_header(20_000, 20_000), "20000x20000 pixels, more than 300 million"),
    "no pixels": (array_header("|u1", (40, 0, 3)), "^no pixels"),
    "pickled": (
        array_header("|O", (40, 50, 3)),
        "^an array of shape",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("reduce", [False, True])
def test_broken_pictures_have_a_cause(kind, reduce, capfd):
    data, cause = BROKEN[kind]

    def read():
        picture = Picture(data)
        return picture.cut([(0, 0, picture.height, picture.width)], [(8, 8)]) if reduce else picture.whole()

    with pytest.raises(BrokenPicture, match=cause):
        read()


def test_a_damaged_middle_does_not_end_anything():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "NPY"):
        file = io.BytesIO()
        np.save(file, RGB)
        whole = file.getvalue() if kind == "NPY" else encoded(Image.fromarray(RGB).quantize(64) if kind == "GIF" else RGB, kind)
        for _ in range(40):
            data = bytearray(whole)
            for at in rng.integers(0, rng.choice([300, len(data)]), 6):
                data[at] = rng.integers(256)
            with contextlib.suppress(BrokenPicture):
                picture = Picture(bytes(data))
                (crop,) = picture.cut([(0, 0, picture.height, picture.width)], [(9, 9)])
                assert crop.shape == (9, 9, 3)
                assert picture.whole().shape == (picture.height, picture.width, 3)


def test_a_bomb_is_refused_by_its_header_alone(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)  # nothing is decoded
    assert MAX_PIXELS < 20_000 * 20_000
    with pytest.raises(BrokenPicture, match="million"):
        read_header(png_header(20_000, 20_000))
    jpeg = bytearray(JPEG)
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"  # 65535 x 65535
    with pytest.raises(BrokenPicture, match="65535x65535 pixels"):
        read_header(bytes(jpeg))


def test_what_cannot_be_opened_has_a_cause(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it the usual way would wait for ever
    for name, cause in (
        ("link.jpg", "a link that leads nowhere"),
        ("loop.jpg", "a link that leads back to itself"),
        ("gone.jpg", "file is gone"),
        ("folder.jpg", "a folder, not a file"),
        ("pipe.jpg", "a pipe or device"),
    ):
        with pytest.raises(BrokenPicture, match=cause):
            read_picture(str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_has_a_cause(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    os.chmod(tmp_path / "secret.jpg", 0)
    with pytest.raises(BrokenPicture, match="no permission"):
        read_picture(str(tmp_path / "secret.jpg"))


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert read_file(str(tmp_path / "a.jpg")) == JPEG


def test_a_wrong_name_does_not_matter(tmp_path):
    (tmp_path / "png.jpg").write_bytes(PNG)
    assert np.array_equal(read_picture(str(tmp_path / "png.jpg")), RGB)
