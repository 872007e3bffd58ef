"""Fabricated ImageNet folders, and pictures decoded to one size."""

import io
import os

import numpy as np
import pytest
from helpers.pictures import Image, encoded, imagenet

from backspike import data
from backspike.data import DataError, Pictures
from backspike.data.formats import picture


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("BACKSPIKE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", ["ImageNet", "ILSVRC2012", "."])
def test_imagenet(tmp_path, place):
    imagenet(tmp_path / "root" / place, n=40)
    sets = data.load("imagenet", tmp_path / "root", size=8)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (116, 4, 6)
    assert (sets.num_classes, sets.events) == (3, False)
    assert sets.note == "126 of 1,331,167 samples"
    assert sets.test.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted([*sets.train.ids, *sets.validation.ids]) == list(range(120))
    for split in (sets.train, sets.validation, sets.test):
        assert isinstance(split.x, Pictures)
        assert (split.x.shape, split.x.nbytes) == ((len(split), 3, 8, 8), len(split) * 192)
        for i in range(len(split)):
            x, y = split[i]
            number = int(os.fsdecode(split.x.names[i]).split("_")[1].split(".")[0])
            assert x.dtype == np.uint8
            np.testing.assert_array_equal(
                x,
                np.broadcast_to(
                    np.array([60 * y, 40 * number % 256, 100])[:, None, None], (3, 8, 8)
                ),
            )
    assert len(data.load("imagenet", tmp_path / "root", limit=7).train) == 7
    assert data.load("imagenet", tmp_path / "root", limit=7).train[0][0].shape == (3, 224, 224)


def test_a_dataloader_accepts_pictures(tmp_path):
    from torch.utils.data import DataLoader

    imagenet(tmp_path)
    split = data.load("imagenet", tmp_path, size=8).test
    batches = list(DataLoader(split, batch_size=4, num_workers=0))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    with pytest.raises(DataError, match="6 pictures do not fit into memory"):
        np.asarray(split.x)


def test_errors_name_missing_and_damaged_pictures(tmp_path):
    imagenet(tmp_path / "ImageNet")
    with pytest.raises(DataError, match="size=0: pictures are square"):
        data.load("imagenet", tmp_path, size=0)
    (tmp_path / "ImageNet" / "val" / "n99999999").mkdir()
    with pytest.raises(DataError, match="class n99999999 has no folder in train"):
        data.load("imagenet", tmp_path)
    (tmp_path / "ImageNet" / "val" / "n99999999").rmdir()
    path = tmp_path / "ImageNet" / "val" / "n01440764" / "n01440764_0.JPEG"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"n01440764_0\.JPEG: byte 0: truncated or damaged picture"):
        data.load("imagenet", tmp_path).test[0]
    path.unlink()
    split = data.load("imagenet", tmp_path).test
    (tmp_path / "ImageNet" / "val" / "n01440764" / "n01440764_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"n01440764_1\.JPEG cannot be read: No such file"):
        split[0]


def test_a_picture_is_cropped_to_its_centre_and_scaled():
    """7/8 of the shorter side, centred: of 16 x 40 pixels, 14 x 14 from row 1 and column 13."""
    array = np.random.default_rng(0).integers(0, 256, (16, 40, 3), np.uint8)
    np.testing.assert_array_equal(
        picture.decode(encoded(array), size=14), array[1:15, 13:27].transpose(2, 0, 1)
    )
    upright = picture.decode(encoded(np.ascontiguousarray(array.transpose(1, 0, 2))), size=14)
    np.testing.assert_array_equal(upright, array[1:15, 13:27].transpose(2, 1, 0))


def test_another_part_can_be_requested():
    array = np.random.default_rng(0).integers(0, 256, (16, 40, 3), np.uint8)
    part = picture.decode(
        encoded(array), size=8, part=lambda width, height: (10 / width, 8 / height, 18 / width, 1.0)
    )
    np.testing.assert_array_equal(part, array[8:16, 10:18].transpose(2, 0, 1))


def test_a_small_part_of_a_large_jpeg_keeps_its_detail():
    """Stripes of 8 pixels: the part needs full size, although an eighth would do for the whole."""
    stripes = np.broadcast_to(
        (np.arange(1024) // 8 % 2 * 255).astype(np.uint8)[None, :, None], (1024, 1024, 3)
    )
    jpeg = encoded(np.ascontiguousarray(stripes), "JPEG", quality=95)
    x = picture.decode(jpeg, size=128, part=lambda width, height: (0.5, 0.5, 0.625, 0.625))
    np.testing.assert_allclose(x, stripes[512:640, 512:640].transpose(2, 0, 1), atol=8)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_other_colour_modes_become_rgb(mode):
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode).save(
        out, "JPEG" if mode in ("L", "CMYK") else "PNG"
    )
    x = picture.decode(out.getvalue(), size=14)
    assert x.shape == (3, 14, 14)
    assert x.min() > 250


def test_a_large_jpeg_is_decoded_near_the_output_size():
    ramp = np.broadcast_to(
        np.linspace(0, 255, 2048).astype(np.uint8)[None, :, None], (2048, 2048, 3)
    )
    x = picture.decode(encoded(np.ascontiguousarray(ramp), "JPEG", quality=95), size=56)
    wanted = (np.arange(56) + 0.5) / 64 * 255 + 4 / 64 * 255
    assert np.abs(x.astype(float).mean((0, 1)) - wanted).max() < 2


def test_a_picture_that_would_unpack_to_gigabytes_is_refused():
    import struct
    import zlib

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"truncated or damaged picture \(DecompressionBomb"):
        picture.decode(bomb)


def test_truncated_pictures_are_refused():
    data = encoded(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    # the last bytes are checksums, which Pillow does not check, and the end mark
    for size in range(len(data) - 20):
        with pytest.raises(DataError, match=r"^f: byte 0: truncated or damaged picture"):
            picture.decode(data[:size], "f")
