"""Folders of pictures as people have them: every kind of picture, what systems leave, links, names of splits."""

import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from semaug import data

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Two classes of six pictures."""
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(6):
            noise(i).save(tmp_path / "set" / label / f"{i}.png")
    return tmp_path / "set"


def count(root):
    loaded = data.load("folder", root)
    return len(loaded.train) + len(loaded.test), loaded.classes


@pytest.fixture
def shown(tmp_path):
    """What a picture of its own class is loaded as, (H, W, 3)."""

    def show(save):
        folder = tmp_path / "one" / "a"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save(folder)
        (first,) = folder.iterdir()
        for i in range(4):
            shutil.copy(first, first.with_stem(f"x{i}"))
        images = data.load("folder", tmp_path / "one").train.images
        return images[0].permute(1, 2, 0).numpy().astype(int)

    return show


# -- pictures as a viewer shows them -----------------------------------------------------------------------------------


def png(path, bits, colour, rows, *chunks):
    """A PNG written by hand: what Pillow does not write."""
    height, width = rows.shape[:2]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    body = b"".join(chunk(name, content) for name, content in chunks)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


DEEP = {
    "png": lambda folder: Image.fromarray(RAMP.astype(np.uint16) * 257).save(folder / "x.png"),
    "tif": lambda folder: Image.fromarray(RAMP.astype(np.uint16) * 257).save(folder / "x.tif"),
    "big-endian tif": lambda folder: Image.fromarray((RAMP.astype(np.uint16) * 257).astype(">u2")).save(
        folder / "x.tif"
    ),
    "pgm": lambda folder: (folder / "x.pgm").write_bytes(
        b"P5 16 16 65535\n" + (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes()
    ),
    "jp2": lambda folder: Image.fromarray(RAMP.astype(np.uint16) * 257).save(folder / "x.jp2", irreversible=False),
    "white is zero": lambda folder: Image.fromarray((65535 - RAMP.astype(np.uint16) * 257).astype(np.uint16)).save(
        folder / "x.tif", tiffinfo={262: 0}
    ),
    "grey and alpha": lambda folder: png(
        folder / "x.png", 16, 4, np.stack([RAMP.astype(np.int64) * 257, np.full((16, 16), 65535)], -1).astype(">u2")
    ),
    "rgb": lambda folder: png(
        folder / "x.png", 16, 2, np.repeat((RAMP.astype(np.int64) * 257)[..., None], 3, 2).astype(">u2")
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_are_scaled_to_eight(shown, kind):
    assert np.abs(shown(DEEP[kind]) - RAMP[..., None]).max() <= 1


EXPECTED = {  # of 40 | 200: where the picture's own top row lies, by EXIF orientation
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}  # fmt: skip


@pytest.mark.parametrize("orientation", EXPECTED)
@pytest.mark.parametrize("end", ["png", "jpg", "webp", "tif"])
def test_pictures_stand_upright(shown, orientation, end):
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:8, :8], picture[:8, 8:], picture[8:, :8] = 255, (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(end, {})
    got = shown(lambda folder: Image.fromarray(picture).save(folder / f"x.{end}", exif=exif, **options))
    assert np.abs(got - EXPECTED[orientation](picture).astype(int))[::4, ::4].max() < 40


def test_what_is_transparent_is_white(shown):
    alpha = np.where(RAMP < 128, 0, 255).astype(np.uint8)
    wanted = np.where(alpha[..., None] == 0, 255, COLOURS)
    rgba = Image.fromarray(np.dstack([COLOURS, alpha]))
    for end in ("png", "webp", "tif"):
        options = {"lossless": True} if end == "webp" else {}
        assert np.array_equal(shown(lambda folder, e=end, o=options: rgba.save(folder / f"x.{e}", **o)), wanted), end
    half = Image.fromarray(np.dstack([RAMP, np.full_like(RAMP, 128)]), "LA")
    got = shown(lambda folder: half.save(folder / "x.png"))
    assert np.abs(got - (255 - (255 - RAMP[..., None].astype(int)) * 128 / 255)).max() <= 1


@pytest.mark.parametrize("end", ["png", "gif"])
def test_a_palette_is_looked_up_and_its_transparent_colour_is_white(shown, end):
    indices = (RAMP % 3).astype(np.uint8)
    palette = np.array([[10, 200, 30], [250, 5, 60], [0, 0, 255]], np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    assert np.array_equal(shown(lambda folder: picture.save(folder / f"x.{end}")), palette[indices])
    wanted = palette.copy()
    wanted[1] = 255
    got = shown(lambda folder: picture.save(folder / f"x.{end}", transparency=1))
    assert np.array_equal(got, wanted[indices])


@pytest.mark.parametrize(("bits", "transparent"), [(8, 0), (16, 0)])
def test_a_transparent_grey_is_white(shown, bits, transparent):
    rows = RAMP if bits == 8 else (RAMP.astype(np.int64) * 257).astype(">u2")
    got = shown(lambda folder: png(folder / "x.png", bits, 0, rows, (b"tRNS", struct.pack(">H", transparent))))
    assert np.array_equal(got[..., 0], np.where(transparent == RAMP, 255, RAMP))


def test_other_colour_spaces(shown):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for end in ("jpg", "tif"):
        red = shown(lambda folder, e=end: cmyk.save(folder / f"x.{e}"))
        assert np.abs(red - (255, 0, 0)).max() < 10
    lab = Image.new("LAB", (16, 16), (255, 128, 128))
    assert shown(lambda folder: lab.save(folder / "x.tif")).min() > 240
    bits = Image.fromarray(RAMP > 100)
    assert np.array_equal(shown(lambda folder: bits.save(folder / "x.png"))[..., 0], np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("end", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame(shown, end):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if end == "webp" else {}
    got = shown(lambda folder: frames[0].save(folder / f"x.{end}", save_all=True, append_images=frames[1:], **options))
    assert np.array_equal(got, np.broadcast_to((255, 0, 0), got.shape))


@pytest.mark.parametrize(
    "end", ["bmp", "ico", "jfif", "jpeg", "JPG", "pcx", "ppm", "tga", "tiff", "webp", "gif", "avif"]
)
def test_no_ending_is_dropped(root, end):
    kind = "jpeg" if end == "jfif" else None
    noise(9).save(root / "a" / f"more.{end}", format=kind)
    assert count(root) == (13, ("a", "b"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.tif", lambda path: Image.fromarray(np.ones((16, 16), np.float32)).save(path)),
        ("x.tif", lambda path: Image.fromarray(np.ones((16, 16), np.int32)).save(path)),
        ("x.heic", lambda path: path.write_bytes(b"\0\0\0\x18ftypheic")),
        ("x.svg", lambda path: path.write_text("<svg/>")),
        ("x", lambda path: path.write_text("no picture")),
        ("x.png", lambda path: path.write_bytes(b"")),
        ("x.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff\xe1\0\x04")),
        ("x.gif", lambda path: path.write_bytes(b"GIF89a\x10\0\x10\0")),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(root, name, write):
    write(root / "a" / name)
    with pytest.raises(ValueError, match=rf"a/{name}: not a whole image .*; replace it or take it away"):
        count(root)


# -- what lies in folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", ".thumbnails", "lost+found"]
)
def test_folders_of_systems_and_editors_are_no_data(root, name):
    for place in (root, root / "a"):
        (place / name).mkdir()
        noise(7).save(place / name / "copy.png")
        (place / name / "b").mkdir()
        noise(8).save(place / name / "b" / "copy.png")
    (root / "b" / name).mkdir()
    assert count(root) == (12, ("a", "b"))


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".0.png.swp", "0.png~", "~$0.png"]
)
def test_files_of_systems_and_editors_are_no_data(root, name):
    for place in (root, root / "a"):
        (place / name).write_bytes(b"\0\5\x16\7")
    assert count(root) == (12, ("a", "b"))


def test_notes_beside_pictures_are_no_data(root):
    for name in ("README.txt", "labels.csv", "a.json"):
        (root / name).write_text("a note")
        (root / "a" / name).write_text("a note")
    assert count(root) == (12, ("a", "b"))


@pytest.mark.parametrize(
    ("link", "to"),
    [("a/up", ".."), ("a/self", "."), ("a/b", "../b"), ("c", "a"), ("a/deep/up", "../.."), ("a/out", "{outside}")],
)
def test_a_link_to_what_was_met_is_refused(root, tmp_path, link, to):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "back").symlink_to(outside)
    (root / "a" / "deep").mkdir()
    (root / link).symlink_to(to.format(outside=outside))
    with pytest.raises(ValueError, match="again, by a link; takes each folder once"):
        count(root)


@pytest.mark.parametrize(("link", "to"), [("a/gone.png", "nowhere.png"), ("c", "nowhere"), ("a/round", "round")])
def test_a_link_that_leads_nowhere_is_named(root, link, to):
    (root / link).symlink_to(to)
    with pytest.raises(ValueError, match=rf"{link}: got a link that leads nowhere"):
        count(root)


def test_links_to_elsewhere_are_followed(root, tmp_path):
    (tmp_path / "more").mkdir()
    noise(7).save(tmp_path / "more" / "7.png")
    (root / "a" / "more").symlink_to(tmp_path / "more")
    (root / "b" / "7.png").symlink_to(tmp_path / "more" / "7.png")
    assert count(root) == (14, ("a", "b"))


def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "a" / "pipe.png")
    os.mkfifo(root / "pipe")
    assert count(root) == (12, ("a", "b"))


def test_folders_within_a_class_belong_to_it_in_a_fixed_order(root):
    for inner in ("x", "x-1"):
        (root / "a" / inner).mkdir()
        noise(7).save(root / "a" / inner / "0.png")
    assert count(root) == (14, ("a", "b"))


# -- splits ------------------------------------------------------------------------------------------------------------


def splits(root, tmp_path, *names):
    for name in names:
        shutil.copytree(root, tmp_path / "splits" / name)
    return tmp_path / "splits"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *[("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing"), ("train", "val")],
        *[("train", "valid"), ("train", "Validation"), ("training_set", "test_set"), ("train2017", "val2017")],
        *[("train_images", "test_images"), ("trainset", "testset"), ("train", "dev"), ("train-data", "eval")],
    ],
)
def test_splits_by_any_usual_name(root, tmp_path, first, second):
    loaded = data.load("folder", splits(root, tmp_path, first, second))
    assert (len(loaded.train), len(loaded.test), loaded.validation, loaded.classes) == (12, 12, None, ("a", "b"))


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_validation_beside_train_and_test(root, tmp_path, name):
    place = splits(root, tmp_path, "train", "test", name)
    (place / name / "a" / "0.png").unlink()
    (place / "test" / "b" / "0.png").unlink()
    (place / "test" / "b" / "1.png").unlink()
    loaded = data.load("folder", place)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [12, 11, 10]
    assert torch.bincount(loaded.validation.target).tolist() == [5, 6]
    with pytest.raises(ValueError, match=r"validation: got 0.1; takes 0: .* has validation images of its own"):
        data.load("folder", place, validation=0.1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train",), "has only one of train and test"),
        (("Test",), "has only one of train and test"),
        (("test", "val"), "has only one of train and test"),
        (("train", "test", "extra"), "has extra beside train"),
        (("train", "Train", "test"), "has both Train and train"),
        (("train", "test", "val", "validation"), "has both val and validation"),
    ],
)
def test_other_splits_are_refused(root, tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        data.load("folder", splits(root, tmp_path, *names))


@pytest.mark.parametrize("place", ["c", "c/inner", "train/c"])
def test_a_class_without_a_picture_is_named(root, tmp_path, place):
    if place.startswith("train"):
        root = splits(root, tmp_path, "train", "test")
    (root / place).mkdir(parents=True)
    (root / place / "note.txt").write_text("soon")
    with pytest.raises(FileNotFoundError, match=rf"{place.split('/inner')[0]} has no picture; put some there, or take"):
        data.load("folder", root)


def test_a_folder_without_classes_and_a_picture_in_none(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty/<class> has no picture"):
        data.load("folder", tmp_path / "empty")
    noise().save(root / "loose.png")
    with pytest.raises(ValueError, match=r"loose\.png is in no class; takes .*<class>/loose\.png"):
        data.load("folder", root)
