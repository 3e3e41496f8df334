"""Atomic writes and JSON files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plantlib.utils.io import atomic_path, read_json, write_json


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = write_json(tmp_path / "a.json", {"n": np.int64(1), "set": {"b", "a"}})
    assert read_json(path) == {"n": 1, "set": ["a", "b"]}
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path)["n"] == 1 and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "b"):
        pass
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"n": float("nan")})
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON .line 1"):
        read_json(path)


def test_atomic_path_replaces_a_folder_as_a_whole(tmp_path):
    for content in ("one", "two"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(json.dumps(content))
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
