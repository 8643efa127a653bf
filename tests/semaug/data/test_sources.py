"""Readers against the raw bytes of real files where they are found, of small forged ones everywhere, and damaged."""

import csv
import hashlib
import importlib.util
import lzma
import pickle
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from semaug.data import sources
from semaug.data.split import Split

RAW = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def real(name):
    """The folder that holds a real set, or skip."""
    root = sources.data_folder()
    first = {
        "mnist": "MNIST/raw/" + RAW[0],
        "fashion": "FashionMNIST/raw/" + RAW[0],
        "cifar10": "cifar-10-batches-py/data_batch_1",
        "cifar100": "cifar-100-python/train",
        "lfw64": "lfw64/images.npy",
    }[name]
    if not (root / first).exists():
        pytest.skip(f"no real {name} under {root} ($SEMAUG_DATA or the user's cache)")
    return root


def noise(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


# -- the set inside the package ----------------------------------------------------------------------------------------


def test_fashion_mini():
    train, test, classes = sources.fashion_mini(Path())
    assert (len(train), len(test), classes[8]) == (8000, 2000, "Bag")
    assert train.images.shape[1:] == (1, 28, 28)
    assert torch.bincount(train.target).tolist() == [800] * 10
    assert torch.bincount(test.target).tolist() == [200] * 10
    for split in (train, test):
        assert bool((split.factors["index"].diff() > 0).all())  # in the order of the official file, each once
    assert train.target[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # the official file begins with these


def test_fashion_mini_is_the_official_set_at_its_indices():
    raw = real("fashion") / "FashionMNIST" / "raw"
    for split, images, labels in zip(sources.fashion_mini(Path())[:2], RAW[::2], RAW[1::2], strict=True):
        index = split.factors["index"].numpy()
        official = np.frombuffer((raw / images).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
        target = np.frombuffer((raw / labels).read_bytes(), np.uint8, offset=8)
        assert np.array_equal(split.images[:, 0].numpy(), official[index])
        assert np.array_equal(split.target.numpy(), target[index])
        for c in range(10):
            first = np.flatnonzero(target == c)[: len(split) // 10]
            assert np.array_equal(index[split.target.numpy() == c], first)


def test_fashion_mini_is_rebuilt_by_its_script():
    script = Path(__file__).parents[3] / "tools" / "build_embedded.py"
    spec = importlib.util.spec_from_file_location("build_embedded", script)
    build_embedded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_embedded)
    assert build_embedded.TARGET.resolve() == sources.EMBEDDED.resolve()
    payload = build_embedded.payload(real("fashion"))
    assert hashlib.sha256(payload).hexdigest() == sources.EMBEDDED_SHA256
    assert payload == lzma.decompress(sources.EMBEDDED.read_bytes())


@pytest.mark.parametrize("damage", ["cut off", "one bit", "other content", "no xz"])
def test_fashion_mini_damaged(tmp_path, monkeypatch, damage):
    content = sources.EMBEDDED.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    (tmp_path / "fashion.xz").write_bytes(
        {
            "cut off": content[:-1000],
            "one bit": bytes(flipped),
            "other content": lzma.compress(bytes(7_880_000), preset=0),
            "no xz": b"version https://git-lfs.github.com/spec/v1\n",
        }[damage]
    )
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path / "fashion.xz")
    with pytest.raises(ValueError, match=r"fashion-mini: .*fashion\.xz is damaged .*; install the package again"):
        sources.fashion_mini(Path())


def test_fashion_mini_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path / "fashion.xz")
    with pytest.raises(FileNotFoundError, match=r"fashion\.xz is missing; install the package again"):
        sources.fashion_mini(Path())


# -- torchvision's sets, real ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_real_mnist(name):
    root = real(name)
    train, test, classes = sources.READERS[name](root, None, False)
    assert (len(train), len(test), len(classes)) == (60_000, 10_000, 10)
    raw = root / {"mnist": "MNIST", "fashion": "FashionMNIST"}[name] / "raw"
    for split, images, labels in ((train, RAW[0], RAW[1]), (test, RAW[2], RAW[3])):
        official = np.frombuffer((raw / images).read_bytes(), np.uint8, offset=16)
        assert np.array_equal(split.images.numpy().ravel(), official)
        assert np.array_equal(split.target.numpy(), np.frombuffer((raw / labels).read_bytes(), np.uint8, offset=8))


@pytest.mark.parametrize(
    ("name", "files"), [("cifar10", ("data_batch_1", "test_batch")), ("cifar100", ("train", "test"))]
)
def test_real_cifar(name, files):
    root = real(name)
    train, test, classes = sources.READERS[name](root, None, False)
    folder = root / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    assert (len(train), len(test), len(classes)) == (50_000, 10_000, 10 if name == "cifar10" else 100)
    for split, file in ((train, files[0]), (test, files[1])):
        batch = pickle.loads((folder / file).read_bytes(), encoding="bytes")
        rows = len(batch[b"data"])
        assert np.array_equal(split.images[:rows].numpy().reshape(rows, -1), batch[b"data"])
        assert split.target[:rows].tolist() == batch[b"labels" if name == "cifar10" else b"fine_labels"]
    assert train.images.is_contiguous()


def test_real_lfw64():
    train, test, _ = sources.lfw64(real("lfw64"))
    assert len(train) + len(test) == 2181 + 7961 + 1415 + 1498  # the labelled ones
    target = torch.cat([train.target, test.target])
    assert sorted(torch.bincount(target).tolist()) == [1415, 1498, 2181, 7961]
    assert not set(train.factors["person"].tolist()) & set(test.factors["person"].tolist())
    assert len(test) / len(target) == pytest.approx(0.2, abs=0.001)
    assert int(torch.bincount(test.target).min()) > 200


# -- torchvision's sets, forged: small files, whose checksums stand in for the official ones ---------------------------


@pytest.fixture
def mnist_files(tmp_path, monkeypatch):
    """A folder with an MNIST of 20 + 10 images, and its content."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    content = {}
    for name, n in (("train", 20), ("t10k", 10)):
        images, labels = noise(n, 28, 28), np.arange(n, dtype=np.uint8) % 10
        header = b"".join(size.to_bytes(4, "big") for size in (0x803, n, 28, 28))
        content[f"{name}-images-idx3-ubyte"] = header + images.tobytes()
        content[f"{name}-labels-idx1-ubyte"] = (0x801).to_bytes(4, "big") + n.to_bytes(4, "big") + labels.tobytes()
    for file, data in content.items():
        (raw / file).write_bytes(data)
    checksums = {file: hashlib.md5(data).hexdigest() for file, data in content.items()}
    monkeypatch.setitem(sources.RAW_MD5, "mnist", checksums)
    return raw, content


def test_forged_mnist(mnist_files):
    train, test, classes = sources.mnist(mnist_files[0].parents[1])
    assert (len(train), len(test), classes) == (20, 10, tuple("0123456789"))
    assert train.images.numpy().tobytes() == mnist_files[1]["train-images-idx3-ubyte"][16:]


@pytest.mark.parametrize("damage", ["half written", "one byte", "empty"])
@pytest.mark.parametrize("download", [True, False])
def test_damaged_file_is_named_and_left_alone(mnist_files, damage, download):
    raw, content = mnist_files
    good = content["t10k-images-idx3-ubyte"]
    bad = {"half written": good[: len(good) // 2], "one byte": good[:-1] + bytes([good[-1] ^ 1]), "empty": b""}[damage]
    (raw / "t10k-images-idx3-ubyte").write_bytes(bad)
    with pytest.raises(ValueError, match=r"mnist: .*t10k-images-idx3-ubyte is damaged: .* Delete it and load again"):
        sources.mnist(raw.parents[1], download=download)
    assert (raw / "t10k-images-idx3-ubyte").read_bytes() == bad


def test_missing_file_names_path_origin_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        sources.READERS["cifar10"](tmp_path, None, False)
    message = str(caught.value)
    assert str(tmp_path / "cifar-10-batches-py" / "data_batch_1") in message
    assert "(and 6 more)" in message
    assert "$SEMAUG_DATA" in message
    assert "https://www.cs.toronto.edu/" in message
    assert "download=True" in message
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_downloaded(mnist_files, monkeypatch):
    raw, content = mnist_files
    (raw / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(
        datasets.MNIST,
        "download",
        lambda self: (raw / "train-labels-idx1-ubyte").write_bytes(content["train-labels-idx1-ubyte"]),
    )
    assert len(sources.mnist(raw.parents[1])[0]) == 20


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("refused"), "refused"),
        (RuntimeError("Error downloading:\nTried x"), "Error downloading: Tried x"),
    ],
)
def test_failed_download_is_reported(mnist_files, monkeypatch, error, reason):
    def fail(self):
        raise error

    raw, _ = mnist_files
    (raw / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(FileNotFoundError, match=f"train-labels-idx1-ubyte is missing.*downloading it failed: {reason}"):
        sources.mnist(raw.parents[1])


def test_a_server_that_never_answers_is_given_up(mnist_files, monkeypatch):
    raw, _ = mnist_files
    (raw / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server:  # it listens, and takes no call
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        started = time.monotonic()
        with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte is missing.*downloading it failed"):
            sources.mnist(raw.parents[1])
    assert time.monotonic() - started < 30
    assert socket.getdefaulttimeout() == before


def test_half_written_download_is_reported(mnist_files, monkeypatch):
    raw, content = mnist_files
    (raw / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(
        datasets.MNIST,
        "download",
        lambda self: (raw / "train-labels-idx1-ubyte").write_bytes(content["train-labels-idx1-ubyte"][:9]),
    )
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte is damaged"):
        sources.mnist(raw.parents[1])


def test_forged_cifar_and_its_damage(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = {name: noise(n, 3072) for name, n in (("train", 7), ("test", 3))}
    for name, data in pixels.items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": list(range(len(data)))}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {c}" for c in range(7)]}))
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5(folder / "meta")})
    train, test, classes = sources.cifar(tmp_path, name="cifar100")
    assert np.array_equal(train.images.numpy().reshape(7, -1), pixels["train"])
    assert np.array_equal(test.images.numpy().reshape(3, -1), pixels["test"])
    assert (test.target.tolist(), classes[6]) == ([0, 1, 2], "class 6")

    (folder / "meta").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"cifar100: .*meta is damaged"):
        sources.cifar(tmp_path, name="cifar100")


def test_forged_celeba_is_decoded_once(tmp_path, monkeypatch):
    folder, n = tmp_path / "celeba", 12
    (folder / "img_align_celeba").mkdir(parents=True)
    files = [f"{i:06d}.jpg" for i in range(n)]
    for i, file in enumerate(files):
        Image.new("RGB", (178, 218), (20 * i, 0, 0)).save(folder / "img_align_celeba" / file)
    male, smiling = np.arange(n) % 2, np.arange(n) // 2 % 2
    attributes = "\n".join(f"{f}  {2 * m - 1} {2 * s - 1}" for f, m, s in zip(files, male, smiling, strict=True))
    (folder / "list_attr_celeba.txt").write_text(f"{n}\nMale Smiling\n{attributes}\n")
    for file, values in (("list_eval_partition", np.arange(n) // 4), ("identity_CelebA", np.arange(n) + 100)):
        (folder / f"{file}.txt").write_text("".join(f"{f} {v}\n" for f, v in zip(files, values, strict=True)))
    for file in ("list_bbox_celeba", "list_landmarks_align_celeba"):
        (folder / f"{file}.txt").write_text(f"{n}\na b\n" + "".join(f"{f} 1 2\n" for f in files))
    listed = [("", md5(path), path.name) for path in folder.glob("*.txt")]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)

    train, test, classes = sources.celeba(tmp_path)
    assert (len(train), len(test), len(classes)) == (4, 4, 4)  # the official validation images are not used
    assert test.images.shape == (4, 3, 64, 64)
    assert [round(float(image[0].float().mean()) / 20) for image in test.images] == [8, 9, 10, 11]
    assert test.target.tolist() == (2 * male + smiling)[8:].tolist()
    assert test.factors["person"].tolist() == [108, 109, 110, 111]

    (folder / "img_align_celeba" / files[0]).unlink()  # no longer needed: the decoded images are kept
    assert torch.equal(sources.celeba(tmp_path)[0].images, train.images)
    (folder / "decoded-64-train.npy").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"000000\.jpg: not a whole image"):
        sources.celeba(tmp_path)
    (folder / "list_attr_celeba.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"celeba: .*list_attr_celeba\.txt is missing"):
        sources.celeba(tmp_path, download=False)


# -- what you have -----------------------------------------------------------------------------------------------------


def write_faces(root, rows, images=None):
    folder = root / "lfw64"
    folder.mkdir(exist_ok=True)
    if images is None:
        images = noise(len(rows), 64, 64, 3)
    np.save(folder / "images.npy", images)
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "male", "smiling"), *rows])
    return images


def test_forged_lfw64(tmp_path):
    rows = [(f"Person_{p:02d}_{k:04d}", p % 2, (p + k) % 2 if k else -1) for p in range(20) for k in range(5)]
    images = write_faces(tmp_path, rows)
    train, test, classes = sources.lfw64(tmp_path)
    assert (len(train), len(test), classes[3]) == (64, 16, "man, smiling")  # 80 of 100 labelled, a fifth of them
    assert not set(train.factors["person"].tolist()) & set(test.factors["person"].tolist())
    assert torch.equal(train.target, 2 * train.factors["male"] + train.factors["smiling"])
    known = np.array([row[2] >= 0 for row in rows])
    expected = {image.transpose(2, 0, 1).tobytes() for image in images[known]}
    assert {image.numpy().tobytes() for split in (train, test) for image in split.images} == expected
    labels = tmp_path / "lfw64" / "labels.csv"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())  # a byte order mark, as spreadsheets write it
    assert torch.equal(sources.lfw64(tmp_path)[0].target, train.target)


def test_smaller_faces_are_means_of_pixels(tmp_path):
    images = write_faces(tmp_path, [(f"Person_{p:02d}_0001", 0, 1) for p in range(10)])
    train, test, _ = sources.lfw64(tmp_path, 16)
    means = images.reshape(10, 16, 4, 16, 4, 3).mean((2, 4)).round().transpose(0, 3, 1, 2)
    found = torch.cat([train.images, test.images])
    assert {each.numpy().tobytes() for each in found} == {each.astype(np.uint8).tobytes() for each in means}
    with pytest.raises(ValueError, match="size: got 48 for lfw64; takes 64, or 32 or 16"):
        sources.lfw64(tmp_path, 48)


def test_portraits_are_of_one_person(tmp_path):
    rows = [(f"Person_{p}_{k:04d}", 1, k % 2) for p in range(6) for k in range(9 if p == 4 else 5)]
    images = write_faces(tmp_path, rows)
    train, test, classes = sources.portraits(tmp_path)
    assert (len(train), len(test), classes[1]) == (5, 4, "smiling")
    hers = {
        images[n].transpose(2, 0, 1).tobytes(): row[2] for n, row in enumerate(rows) if row[0].startswith("Person_4")
    }
    for split in (train, test):
        for image, label in zip(split.images, split.target.tolist(), strict=True):
            assert hers.pop(image.numpy().tobytes()) == label
    assert not hers, "each of them once"
    others = sources.strangers(tmp_path)
    assert sum(len(split) for split in others[:2]) == len(rows) - 9
    assert others[2] == sources.lfw64(tmp_path)[2]
    seen = {image.numpy().tobytes() for split in others[:2] for image in split.images}
    assert not seen & {image.numpy().tobytes() for split in (train, test) for image in split.images}


def test_hues_are_two_domains():
    train, test, _ = sources.hues(Path(), 16)
    assert (len(train), len(test)) == (8000, 2000)
    assert train.factors["hue"].max() < 0.5 <= test.factors["hue"].min()
    assert train.factors["background_hue"].max() > 0.9, "nothing else differs"


def test_damaged_lfw64(tmp_path):
    rows = [(f"Person_{p:02d}_0001", 0, 1) for p in range(10)]
    with pytest.raises(FileNotFoundError, match=r"lfw64: .*images\.npy is missing"):
        sources.lfw64(tmp_path)
    write_faces(tmp_path, rows, np.zeros((9, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"damaged or of another form.*for 10 labels"):
        sources.lfw64(tmp_path)
    write_faces(tmp_path, rows, np.zeros((10, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"damaged or of another form.*float32"):
        sources.lfw64(tmp_path)
    write_faces(tmp_path, rows)
    path = tmp_path / "lfw64" / "images.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged or of another form"):
        sources.lfw64(tmp_path)
    write_faces(tmp_path, rows)
    (tmp_path / "lfw64" / "labels.csv").write_text("image,male\nA_0001,1\n")
    with pytest.raises(ValueError, match="damaged or of another form"):
        sources.lfw64(tmp_path)


def write_images(folder, n, size=(9, 7), level=0):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", size, (level + i, 100, 200)).save(folder / f"{i}.png")


def test_folder_with_train_and_test(tmp_path):
    for split, n in (("train", 3), ("val", 2)):
        write_images(tmp_path / split / "cat", n)
        write_images(tmp_path / split / "dog", n, level=50)
    train, test, classes = sources.folder(tmp_path)
    assert classes == ["cat", "dog"]
    assert train.images.shape == (6, 3, 7, 9)
    assert train.images.is_contiguous()
    assert train.target.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[:, :, 3, 3].tolist() == [[level, 100, 200] for level in (0, 1, 2, 50, 51, 52)]
    assert len(test) == 4
    resized = sources.folder(tmp_path, size=16)[0].images
    assert resized.shape == (6, 3, 16, 16)
    assert resized[4, :, 8, 8].tolist() == [51, 100, 200]


def test_folder_of_classes_has_no_test_split_yet(tmp_path):
    write_images(tmp_path / "cat", 2)
    train, test, classes = sources.folder(tmp_path)
    assert (len(train), test, classes) == (2, None, ["cat"])
    assert isinstance(train, Split)


def test_folder_of_other_sizes_and_damaged_files(tmp_path):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 1, size=(8, 8))
    with pytest.raises(ValueError, match=r"0\.png: is 8 x 8, .*0\.png is 9 x 7; give size="):
        sources.folder(tmp_path)
    assert sources.folder(tmp_path, size=8)[0].images.shape == (3, 3, 8, 8)
    path = tmp_path / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:45])  # within the pixels
    with pytest.raises(ValueError, match=r"1\.png: not a whole image .*; replace it or take it away"):
        sources.folder(tmp_path, size=8)
    path.write_text("no image at all")
    with pytest.raises(ValueError, match=r"1\.png: not a whole image"):
        sources.folder(tmp_path, size=8)


def test_folder_refuses_layouts(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; takes one with"):
        sources.folder(tmp_path / "nowhere")
    write_images(tmp_path / "train" / "cat", 1)
    with pytest.raises(ValueError, match="has only one of train and test"):
        sources.folder(tmp_path)
    write_images(tmp_path / "test" / "dog", 1)
    with pytest.raises(ValueError, match=r"train has the classes \['cat'\], .*test has \['dog'\]"):
        sources.folder(tmp_path)


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"SEMAUG_DATA": "~/images"}, "images"),
        ("linux", {}, ".cache/semaug"),
        ("linux", {"XDG_CACHE_HOME": ""}, ".cache/semaug"),
        ("darwin", {}, "Library/Caches/semaug"),
        ("win32", {}, "AppData/Local/semaug"),
    ],
)
def test_data_folder(monkeypatch, platform, environment, expected):
    for name in ("SEMAUG_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert sources.data_folder() == Path.home() / expected


def test_data_folder_respects_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("SEMAUG_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.data_folder() == tmp_path / "semaug"
