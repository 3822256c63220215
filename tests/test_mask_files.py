"""Masks as tools write them: what may change is 1, whatever stands for yes in the file."""

from pathlib import Path

import numpy as np
import pytest
from picture_files import integers, load, save

from uam_jax.encoding import encode_mask
from uam_jax.errors import InputError
from uam_jax.mask_files import read_mask


def test_a_mask_is_white_where_it_may_change(tmp_path: Path) -> None:
    array = np.array([[0, 128], [255, 64]], np.uint8)
    expected = array / 255
    for name, values in {
        "grey.png": array,
        "colour.png": np.dstack([array] * 3),
        "painted.png": np.dstack([np.full_like(array, 255)] * 3 + [array]),
        "deep.png": array.astype(np.uint16) * 257,
    }.items():
        mask = read_mask(save(tmp_path / name, values), (2, 2))
        np.testing.assert_allclose(mask, expected, atol=1e-6)
        assert mask[0, 0] == 0


def test_labels_0_and_1_are_a_mask(tmp_path: Path) -> None:
    array = np.array([[0, 1], [1, 0]], np.uint8)
    np.testing.assert_allclose(read_mask(save(tmp_path / "m.png", array), (2, 2)), array)


def test_a_mask_that_cannot_be_meant(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(InputError, match=r"6x4 pixels, its picture 5x4"):
        read_mask(path, (4, 5))
    with pytest.raises(InputError, match="all black"):
        read_mask(path, (4, 6))


def test_a_written_mask_is_read_back(tmp_path: Path) -> None:
    mask = (integers(4, 5) / np.float32(255)).astype(np.float32)
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    assert load(tmp_path / "m.png")[0] == "L"
    np.testing.assert_allclose(read_mask(tmp_path / "m.png", (4, 5)), mask, atol=1e-6)
