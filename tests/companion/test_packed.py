"""Arrays beside a record: packed, and unpacked again."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from companion import records


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_beside_a_record_come_back_and_images_look_the_same(tmp_path, channels):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2, 3, channels, 4, 6)).astype(np.uint8)
    images = np.stack([np.kron(image, np.ones((8, 4))) for image in coarse.reshape(-1, 4, 6)])
    images = gaussian_filter(images, (0, 3, 3)).astype(np.uint8).reshape(2, 3, channels, 32, 24)
    arrays = {"strips": images, "codes": generator.normal(size=(5, 2)).astype(np.float32), "target": np.arange(5)}
    (tmp_path / "run.npz").write_bytes(records.pack(arrays))
    found = records.unpack(tmp_path / "run.npz")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in ("codes", "target"))
    assert (found["strips"].shape, found["strips"].dtype) == (images.shape, np.uint8)
    off = np.abs(found["strips"].astype(int) - images)
    assert off.mean() < 4, "of 255; the colours at half the resolution"
    assert np.abs(images.astype(int) - np.roll(images, 1, 1)).mean() > 20, "which tells images apart"


def test_an_array_of_bytes_that_is_no_image_comes_back_as_it_is(tmp_path):
    arrays = {
        "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "pairs": np.arange(16, dtype=np.uint8).reshape(2, 2, 2, 2),
    }
    (tmp_path / "run.npz").write_bytes(records.pack(arrays))
    found = records.unpack(tmp_path / "run.npz")
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_more_images_than_one_webp_is_high_come_back_in_their_order(tmp_path):
    values = np.arange(0, 250, 10, dtype=np.uint8).repeat(11)[:270]
    images = np.broadcast_to(values[:, None, None, None], (270, 3, 64, 16)).copy()
    (tmp_path / "run.npz").write_bytes(records.pack({"tiles": images.reshape(27, 10, 3, 64, 16)}))
    found = records.unpack(tmp_path / "run.npz")["tiles"]
    assert records.TALLEST < 270 * 64
    assert found.shape == (27, 10, 3, 64, 16)
    assert np.abs(found.reshape(270, -1).astype(int) - values[:, None]).max() <= 3
