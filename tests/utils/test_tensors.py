"""Safetensors files with a checksum: any flipped byte and any cut is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from plantlib.utils.io import Damaged
from plantlib.utils.tensors import check_tensors, save_tensors


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_a_file_is_read_as_it_was_written(kind, tmp_path):
    path = save_tensors(tmp_path / "a" / "t.safetensors", {"x": kind([1, 2])}, {"key": "k"})
    assert check_tensors(path) == path
    np.testing.assert_array_equal(load_file(path)["x"], [1, 2])
    assert [p.name for p in path.parent.iterdir()] == ["t.safetensors"]


def test_every_flipped_byte_and_every_cut_is_found_by_name(tmp_path):
    path = save_tensors(tmp_path / "t.safetensors", {"x": np.arange(5)}, {"key": 'a "sha256" b'})
    check_tensors(path)
    whole = path.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [whole[:i] for i in range(len(whole))] + [whole + b"\0"]
    for content in damaged:
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(Damaged, match="t.safetensors is damaged"):
            check_tensors(path)
    save_file({"x": np.arange(5)}, path)
    with pytest.raises(Damaged, match="it has no checksum"):
        check_tensors(path)


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    def full(*_, **__):
        from safetensors import SafetensorError

        raise SafetensorError("No space left on device")

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(
            OSError, match="t.safetensors could not be written, because the disk is full"
        ),
    ):
        patch.setattr("safetensors.numpy.save_file", full)
        save_tensors(tmp_path / "t.safetensors", {"x": np.arange(5)})
    assert not list(tmp_path.iterdir())
