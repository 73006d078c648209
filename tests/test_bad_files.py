"""Files that were made to do harm: code in pickles, sizes beyond any memory, structures that compiled readers trust."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest

import elastofast as ef
from elastofast.io import load_modulus
from elastofast.io.containers import read_container
from elastofast.io.recognise import propose
from elastofast.io.sidecar import Sidecar
from elastofast.resumable import ResumableFolder
from elastofast.tracking.frames import read_frames


def proposal_of(path):
    return propose([path])


READERS = (ef.load_measurement, load_modulus, proposal_of, read_frames, Sidecar.read)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def bomb(tmp_path):
    mark = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # the bomb works
    mark.rmdir()
    yield Bomb(mark)
    assert not mark.exists()


def refused(path, readers=READERS, match=None):
    for reader in readers:
        with pytest.raises((ValueError, OSError), match=match) as caught:
            reader(path)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mat", "a.pkl", "a.h5", "a.csv", "a.toml"])
def test_pickles_in_the_place_of_measurements_are_not_opened(bomb, tmp_path, name):
    path = tmp_path / name
    objects = np.array([bomb, bomb, None], dtype=object)
    if name == "a.npy":
        np.save(path, objects, allow_pickle=True)
    elif name == "a.npz":
        np.savez(path, **{"format": objects, "displacement": objects, "vertices": objects})
    else:
        path.write_bytes(pickle.dumps(bomb))
    refused(path)
    if path.suffix in (".npy", ".npz"):
        container = read_container(path)
        for variable in container.variables:
            with pytest.raises(ValueError, match="pickle"):
                container.get(variable)


def test_pickles_in_the_place_of_networks_and_checkpoints_are_not_opened(bomb, tmp_path):
    torch, weights_file = pytest.importorskip("torch"), pytest.importorskip("elastofast.priors.weights_file")
    from elastofast.learning.training import CHECKPOINT, VERSION

    path = tmp_path / "w.safetensors"
    for save in (lambda: torch.save({"a": bomb}, path), lambda: path.write_bytes(pickle.dumps(bomb))):
        save()
        with pytest.raises(ValueError, match=r"a pickle .* which can run code when it is opened; elastofast does not"):
            weights_file.load(path)
        with pytest.raises(ValueError, match="a pickle"):
            weights_file.read_tensors(path, CHECKPOINT, VERSION)
        with pytest.raises(ValueError, match="a pickle"):
            ef.priors.Critic.load(path)


def test_pickles_among_the_items_of_an_interrupted_run_are_not_opened(bomb, tmp_path):
    pytest.importorskip("h5py")
    from elastofast.learning.dataset import Dataset

    folder = ResumableFolder(tmp_path / "work")
    with folder.begin({}, content="", advice=""):
        np.save(folder.path / "a.npy", np.array([bomb], dtype=object), allow_pickle=True)
        np.savez(folder.path / "b.npz", modulus=np.array([bomb], dtype=object))
        assert not folder.holds("a.npy")
        for name in ("a.npy", "b.npz"):
            with pytest.raises(ValueError, match=f"{name}: damaged"):
                folder.read(name)
    path = tmp_path / "d.h5"
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        Dataset.open(path)


def test_values_of_sidecars_are_no_code(tmp_path):
    mark = tmp_path / "it ran"
    path = tmp_path / "a.toml"
    path.write_text(f"""[axial]\ndisplacement = '__import__("os").mkdir("{mark}")'\n""")
    table = tmp_path / "a.csv"
    table.write_text("x,y,u,v\n" + "\n".join(f"{i},{j},0,{i}" for i in range(5) for j in range(5)))
    with pytest.raises(ValueError, match=r"a.toml does not state"):
        ef.load_measurement(table, path)
    assert not mark.exists()


# sizes --------------------------------------------------------------------------------------------


def npy(shape, content=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


HUGE = (10**6, 10**6)


def huge_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name in ("u", "v", "vertices"):
            file.create_dataset(name, HUGE, "f8", chunks=(100, 100), compression="gzip")


def huge_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("u", "v", "vertices"):
            file.writestr(f"{name}.npy", npy(HUGE, bytes(1000)))


def huge_nifti(path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.eye(4))
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    data[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    path.write_bytes(data)


def matlab(body, packed=False):
    """A MATLAB v5 file with one variable."""
    variable = struct.pack("<II", 14, len(body)) + body
    if packed:
        packed = zlib.compress(variable)
        variable = struct.pack("<II", 15, len(packed)) + packed
    return b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + variable


def array(kind, shape, *elements, name=b"u"):
    """The elements of an array of a class."""
    head = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack(f"<II{len(shape)}i", 5, 4 * len(shape), *shape)
    return head + struct.pack("<HH4s", 1, len(name), name) + b"".join(elements)


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


FLOATS = element(9, np.arange(4.0).tobytes())
MATLAB = {
    "huge": array(6, (2**20, 2**20), FLOATS),
    "cells": array(1, (2**20, 2**10)),
    "structures": array(2, (2**30, 1), element(5, struct.pack("<i", 8)), element(1, b"")),
    "type": array(6, (2, 2), element(77, bytes(32))),
    "class": array(200, (2, 2), FLOATS),
    "fields": array(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b"abcdefgh")),
    "negative": array(6, (-2, -2), FLOATS),
    "deep": None,
}


def deep(depth):
    inside = array(6, (2, 2), FLOATS, name=b"")
    for level in range(depth):
        name = b"u" if level == depth - 1 else b""
        inside = array(1, (1, 1), struct.pack("<II", 14, len(inside)) + inside, name=name)
    return inside


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("what", MATLAB)
def test_matlab_files_with_an_unsound_structure_are_refused(tmp_path, what, packed):
    path = tmp_path / "a.mat"
    path.write_bytes(matlab(deep(5000) if what == "deep" else MATLAB[what], packed))
    refused(path, READERS[:2], "cannot be read as a MATLAB v5 file")


def test_matlab_files_with_a_sound_structure_are_read(tmp_path):
    path = tmp_path / "a.mat"
    for packed in (False, True):
        path.write_bytes(matlab(array(6, (2, 2), FLOATS), packed))
        np.testing.assert_array_equal(read_container(path).array("u"), [[0, 2], [1, 3]])
        path.write_bytes(matlab(deep(20), packed))
        assert len(read_container(path).variables) == 1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.npy", lambda path: path.write_bytes(npy(HUGE, bytes(1000)))),
        ("a.npz", huge_zip),
        ("a.h5", huge_hdf5),
        ("a.nii", huge_nifti),
    ],
    ids=["npy", "npz", "hdf5", "nifti"],
)
def test_arrays_that_claim_more_than_their_file_can_hold_are_refused_before_memory_is_taken(tmp_path, name, make):
    path = tmp_path / name
    make(path)
    container = read_container(path)
    for variable in container.variables:
        with pytest.raises(ValueError, match=r"would take .* GiB, which neither a file of \d+ bytes"):
            container.get(variable)
    refused(path, [reader for reader in READERS if reader is not proposal_of])  # which looks at shapes alone


def test_data_sets_that_claim_more_than_their_file_can_hold_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    from elastofast.learning.dataset import Dataset

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(format="elastofast data set", version=1, config="{}", snr=35.0, law="plane_stress")
        file.attrs.update(grid_shape=(50000, 50000), grid_spacing=(1e-3, 1e-3), poisson=0.45, pressure=100.0)
        file["seed"] = np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match=r"a.h5: cannot be read as a data set: modulus of shape .* would take"):
        Dataset.open(path)


def test_a_hdf5_file_cannot_make_us_read_another_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(np.arange(100.0).tobytes())
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("u", (10, 10), "f8", external=[(str(tmp_path / "secret"), 0, 800)])
        file["link"] = h5py.ExternalLink(str(tmp_path / "secret"), "/")
        layout = h5py.VirtualLayout((10, 10), "f8")
        layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "u", (10, 10))
        file.create_virtual_dataset("v", layout)
    container = read_container(path)
    assert not container.variables
    assert sorted(container.notes) == [
        f"{name} is kept in another file, which is not read; save it in this one" for name in ("u", "v")
    ]


# the network --------------------------------------------------------------------------------------


def test_nothing_of_it_uses_the_network():
    code = """
import socket, sys

def refuse(*arguments, **named):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import elastofast as ef
from elastofast import cli
grid = ef.Grid((17, 17), (1e-3, 1e-3))
m = ef.simulate(grid, ef.PlaneStress(0.45), ef.compression(grid, pressure=100.0), ef.lesion(grid, seed=1)[0], snr=35.0)
for prior in ("tv", "critic"):
    try:
        ef.reconstruct(m, prior=prior, weight=1.0, max_iterations=1)
    except ImportError:
        pass
assert cli.main(["info"]) == 0
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
