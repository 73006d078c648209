import errno
import json

import numpy as np
import pytest

from elastofast.resumable import ResumableFolder, difference

CONFIG = {"shape": (8, 9), "methods": ["tv", "unet"], "masks": {"scans": 3}, "seed": 1}
TEXTS = {"content": "a run", "advice": "delete it"}


@pytest.fixture
def folder(tmp_path):
    folder = ResumableFolder(tmp_path / "work", items="parts")
    with folder.begin(CONFIG, **TEXTS):
        yield folder


def test_differences_are_named_however_deep_and_long_values_are_cut():
    stored = json.loads(json.dumps(CONFIG))
    assert difference(stored, CONFIG) == ""
    assert difference(stored, CONFIG | {"seed": 2}) == "seed 1 in place of 2"
    assert difference(stored, CONFIG | {"masks": {"scans": 4}}) == "masks.scans 3 in place of 4"
    assert difference(stored, CONFIG | {"methods": ["tv"]}) == "methods tv unet in place of tv"
    assert difference(stored, CONFIG | {"new": True}) == "new None in place of True"
    assert difference({"maps": [*range(100)]}, {"maps": []}).endswith("... (100) in place of []")


def test_a_folder_belongs_to_one_configuration_and_to_one_process(folder, tmp_path):
    again = ResumableFolder(folder.path, items="parts")
    assert again.difference(CONFIG) == ""
    with (
        pytest.raises(BlockingIOError, match="another process is working on it") as caught,
        again.begin(CONFIG, **TEXTS),
    ):
        pass
    assert caught.value.filename == str(folder.path)
    other = ResumableFolder(tmp_path / "other", items="parts")
    with other.begin(CONFIG, **TEXTS):
        other.add("x.npy", np.ones(3))
    with other.begin(CONFIG, **TEXTS):
        assert other.holds("x.npy")
    with (
        pytest.raises(ValueError, match="other holds a run with seed 1 in place of 2; delete it"),
        other.begin(CONFIG | {"seed": 2}, **TEXTS),
    ):
        pass
    with other.begin(CONFIG | {"seed": 2}, **TEXTS, force=True):
        assert not other.holds("x.npy")
    (other.path / "config.json").write_text("{")
    with (
        pytest.raises(ValueError, match=r"config.json: damaged: .*; delete the folder"),
        other.begin(CONFIG, **TEXTS),
    ):
        pass
    assert not (other.path / ".lock").exists()


def test_a_folder_vanishes_with_its_items_if_they_are_beside_the_configuration(tmp_path):
    folder = ResumableFolder(tmp_path / "parts")
    with folder.begin(CONFIG, **TEXTS):
        folder.add("x.npy", np.ones(3))
    assert {path.name for path in folder.path.iterdir()} == {"config.json", "x.npy"}
    with folder.begin(CONFIG, **TEXTS):
        folder.remove_items()
    assert not folder.path.exists()


def test_items_come_back_as_they_were_added(folder):
    array, several = np.arange(6.0).reshape(2, 3), {"a": np.ones(2), "b": np.zeros(3, bool)}
    folder.add("x.npy", array)
    folder.add("y.npz", several)
    assert folder.holds("x.npy") and not folder.holds("z.npy")
    assert np.array_equal(folder.read("x.npy"), array)
    assert all(np.array_equal(value, several[name]) for name, value in folder.read("y.npz").items())
    for name in ("x.npy", "y.npz"):
        path = folder.items / name
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            assert not folder.holds(name)
        path.write_bytes(whole[:70])
        with pytest.raises(ValueError, match=f"{name}: damaged: .*; delete it and run again"):
            folder.read(name)
    folder.remove_items()
    assert not folder.items.exists() and folder.difference(CONFIG) == ""


def test_what_is_packed_appears_complete_or_not_at_all(folder):
    target = folder.path / "all.bin"

    def pack(error=None):
        with folder.packing(target) as file:
            file.write(b"all")
            if error:
                raise error

    with pytest.raises(OSError, match="cannot write: no space") as caught:
        pack(OSError(errno.ENOSPC, "no space"))
    assert caught.value.filename == str(target) and not target.exists() and not list(folder.items.iterdir())
    pack()
    assert target.read_bytes() == b"all" and not list(folder.items.iterdir())
