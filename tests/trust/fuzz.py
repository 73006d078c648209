"""Fuzzes every reader of files: what a reader does with damaged or malicious bytes must be a documented exception.

    python tests/trust/fuzz.py --seconds 60                 # a minute of processor time for each kind of file
    python tests/trust/fuzz.py mat npz --seconds 600        # two of them, longer
    python tests/trust/fuzz.py --replay findings/mat-*.bin  # inputs that were found before

Inputs are mutated from small valid files: by atheris, guided by the coverage of the Python code, where it is installed
(pip install atheris), else blindly by the mutator below. Each kind runs in a process of its own with bounded memory. A
finding is an exception that is not documented (neither ValueError nor OSError), an input that takes longer than
PATIENCE, memory above MEMORY, or the death of the process; its input is written to the folder of the findings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

PATIENCE = 20  # seconds of processor time for one input
MEMORY = 4 * 2**30  # bytes of address space beyond that of the libraries
DEATHS = 5  # of processes of one kind, after which it is given up
LONGEST = 1 << 16  # bytes of an input
GUIDED = ["elastofast.io", "elastofast.tracking", "elastofast.priors.weights_file", "elastofast.learning.dataset",
          "elastofast.resumable", "meshio.vtu", "meshio.gmsh", "nibabel.nifti1", "nibabel.volumeutils"]  # fmt: skip
DOCUMENTED = (ValueError, OSError)  # which every reader's docstring names; ElastofastError for files is a ValueError


# valid files to begin with ------------------------------------------------------------------------


def _measurement():
    import elastofast as ef

    grid = ef.Grid((5, 6), (1e-3, 1.2e-3))
    load = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, ef.PlaneStress(0.45)), np.full(grid.shape, 1e4), load)
    return ef.Measurement(grid, ef.PlaneStress(0.45), load, u, 1e-7, reference=np.full(grid.shape, 1e4))


def _saved(suffix):
    def make(folder):
        _measurement().save(folder / f"m{suffix}")
        _modulus(folder / f"x{suffix}")

    return make


def _modulus(path):
    from elastofast.io import save_modulus

    m = _measurement()
    save_modulus(path, m.reference, m.geometry, config={"prior": "tv", "sidecar": {"units": {"displacement": "mm"}}})


def _foreign():
    """Fields by the names that other programs use."""
    y, x = np.mgrid[0:20, 0:18] * 0.5
    return {"x": x, "y": y, "u": 0.002 * x, "v": -0.01 * y, "exx": np.full(x.shape, 0.002), "sigma": np.zeros(x.shape)}


def _foreign_mat(folder):
    from scipy.io import savemat

    _saved(".mat")(folder)
    fields = _foreign()
    savemat(folder / "a.mat", fields | {"s": {"u": fields["u"]}, "c": np.array([fields["v"], "text"], dtype=object)})
    savemat(folder / "b.mat", fields, do_compression=True)


def _foreign_hdf5(folder):
    import h5py

    _saved(".h5")(folder)
    with h5py.File(folder / "a.h5", "w", libver="earliest") as file:
        for name, value in _foreign().items():
            file.create_dataset(f"data/{name}", data=value, chunks=(5, 6), compression="gzip")
            file[f"data/{name}"].attrs["units"] = "mm"
    with h5py.File(folder / "b.h5", "w", userblock_size=512) as file:  # as MATLAB v7.3
        file["u"], file["name"] = np.ones((4, 5)), np.array([[117], [118]], np.uint16)
        file["u"].attrs["MATLAB_class"], file["name"].attrs["MATLAB_class"] = np.bytes_("double"), np.bytes_("char")
        cells = file.create_dataset("c", (1, 2), h5py.ref_dtype)
        cells[0, 0], cells[0, 1] = file["u"].ref, file["name"].ref


def _foreign_npz(folder):
    _saved(".npz")(folder)
    np.savez(folder / "a.npz", **_foreign())


def _npy(folder):
    np.save(folder / "a.npy", _foreign()["v"])
    np.save(folder / "b.npy", np.stack([np.eye(20, dtype=np.int16)] * 3))


def _tables(folder):
    fields = _foreign()
    rows = np.stack([field.ravel() for field in fields.values()], axis=1)
    for name, separator in (("a.csv", ","), ("b.csv", ";")):
        lines = [separator.join(fields), *(separator.join(f"{v:.6g}" for v in row) for row in rows[::3])]
        (folder / name).write_text("\n".join(lines))
    np.savetxt(folder / "c.csv", fields["v"])
    (folder / "d.csv").write_text("Zeile;x [mm];u [mm]\n1;0,5;0,01\n2;1,0;NaN\n")


def _nifti(folder):
    import nibabel

    image = nibabel.Nifti1Image(np.arange(60.0, dtype=np.float32).reshape(5, 6, 2), np.diag([0.5, 0.5, 1, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / "a.nii")


def _images(folder):
    from PIL import Image

    image = (np.arange(20 * 18).reshape(20, 18) % 251).astype(np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(np.stack([image] * 3, axis=-1)).save(folder / "b.png")
    Image.fromarray(image.astype(np.float32)).save(folder / "c.tif")
    pages = [Image.fromarray(image), Image.fromarray(255 - image)]
    pages[0].save(folder / "d.tif", save_all=True, append_images=pages[1:], compression="tiff_deflate")


def _meshes(folder):
    import meshio

    points = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    for cells in ([("triangle", np.array([[0, 1, 2], [0, 2, 3]]))], [("quad", np.array([[0, 1, 2, 3]]))]):
        name = cells[0][0]
        meshio.Mesh(points, cells).write(folder / f"{name}.vtu")
    (folder / "b.vtu").write_bytes((folder / "quad.vtu").read_bytes().replace(b"zlib", b"none"))


def _gmsh(folder):
    import meshio

    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    mesh = meshio.Mesh(points, [("tetra", np.array([[0, 1, 2, 3]]))])
    for name, kind in (("a.msh", "gmsh22"), ("b.msh", "gmsh")):
        meshio.write(folder / name, mesh, file_format=kind, binary=False)
    meshio.write(folder / "c.msh", mesh, file_format="gmsh", binary=True)


def _weights(folder):
    from elastofast.priors import networks, weights_file

    weights_file.save(folder / "a.safetensors", networks.UNet(channels=1), {"standard": {}})


def _checkpoint(folder):
    import torch

    from elastofast.learning.training import CHECKPOINT, VERSION
    from elastofast.priors import weights_file

    tensors = {"network.a": torch.ones(3), "optimizer.0.step": torch.tensor(1.0)}
    header = {"settings": {"seed": 0}, "step": 1, "best": None, "seconds": 0.1}
    weights_file.write_tensors(folder / "a.checkpoint", CHECKPOINT, VERSION, tensors, header)


def _dataset(folder):
    from elastofast.learning.dataset import build_dataset

    build_dataset(folder / "a.h5", shape=(12, 12), size=(0.3, 0.5), count=1, validation=0, test=1, errors=1, jobs=1)


def _sidecars(folder):
    from elastofast.io.recognise import propose

    with tempfile.TemporaryDirectory() as other:
        _tables(Path(other))
        for name in ("a.csv", "b.csv"):
            (folder / f"{name}.toml").write_text(propose([Path(other, name)]).sidecar.text())


def _rows(folder):
    (folder / "a.jsonl").write_text('{"file": "a", "status": "converged", "chi2": 1.0}\n{"file": "b"}\n')
    (folder / "config.jsonl").write_text(json.dumps({"shape": [8, 9], "methods": ["tv"]}))


# what the readers are asked to do -----------------------------------------------------------------


def _read_any(path):
    """All that is done with a file of a measurement, of frames or of a modulus, each by itself."""
    import elastofast as ef
    from elastofast.io import load_modulus
    from elastofast.io.containers import read_container
    from elastofast.io.recognise import propose
    from elastofast.io.sidecar import Sidecar
    from elastofast.tracking.frames import read_frames

    def everything():
        container = read_container(path)
        for name in container.variables:
            _documented(lambda name=name: container.get(name))

    def proposed():
        sidecar = propose([path]).sidecar
        if sidecar is not None:
            changes = [f"{name}=1e-3" if name == "noise.std" else f"{name}={_STATED.get(name, '0.4')}"
                       for name in sidecar.unstated()]  # fmt: skip
            ef.load_measurement(path, sidecar.changed(changes))

    for task in (everything, proposed, lambda: ef.load_measurement(path), lambda: load_modulus(path),
                 lambda: read_frames(path), lambda: Sidecar.read(path)):  # fmt: skip
        _documented(task)


_STATED = {"law.kind": "plane_strain", "load.kind": "pressure", "load.value": "100.0", "units.displacement": "mm",
           "units.coordinate": "mm"}  # fmt: skip


def _read_mesh(path):
    import elastofast as ef

    ef.Mesh.read(path)


def _read_weights(path):
    from elastofast.priors import weights_file

    weights_file.load(path)


def _read_checkpoint(path):
    from elastofast.learning.training import CHECKPOINT, VERSION
    from elastofast.priors import weights_file

    weights_file.read_tensors(path, CHECKPOINT, VERSION)


def _read_dataset(path):
    from elastofast.learning.dataset import Dataset

    with Dataset.open(path) as data:
        for i in range(min(len(data), 4)):
            for read in (data.modulus, data.mask, data.unregularised, data.errors, data.measurement):
                _documented(lambda read=read, i=i: read(i))


def _read_sidecar(path):
    import elastofast as ef

    table = path.with_name("table.csv")
    if not table.exists():
        with tempfile.TemporaryDirectory() as other:
            _tables(Path(other))
            table.write_bytes(Path(other, "a.csv").read_bytes())
    ef.load_measurement(table, path)


def _read_rows(path):
    from elastofast.resumable import ResumableFolder, RowFile

    _documented(lambda: RowFile(path))
    path.replace(path.with_name("config.json"))
    ResumableFolder(path.parent).difference({"shape": (8, 9)})


KINDS = {
    "mat": (".mat", _foreign_mat, _read_any),
    "hdf5": (".h5", _foreign_hdf5, _read_any),
    "npz": (".npz", _foreign_npz, _read_any),
    "npy": (".npy", _npy, _read_any),
    "text": (".csv", _tables, _read_any),
    "nifti": (".nii", _nifti, _read_any),
    "image": (".tif", _images, _read_any),
    "vtu": (".vtu", _meshes, _read_mesh),
    "gmsh": (".msh", _gmsh, _read_mesh),
    "weights": (".safetensors", _weights, _read_weights),
    "checkpoint": (".checkpoint", _checkpoint, _read_checkpoint),
    "dataset": (".h5", _dataset, _read_dataset),
    "sidecar": (".toml", _sidecars, _read_sidecar),
    "rows": (".jsonl", _rows, _read_rows),
}


def _documented(task):
    """Do it; a documented exception is a good end."""
    try:
        task()
    except DOCUMENTED:
        pass


# one process for a kind ---------------------------------------------------------------------------


class Findings:
    """Inputs with undocumented ends, one for each place where that happens."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.places = kind, Path(folder), set()

    def add(self, data, error):
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "elastofast" in frame.filename] or frames
        place = (type(error).__name__, f"{Path(own[-1].filename).name}:{own[-1].lineno}",
                 f"{Path(frames[-1].filename).name}:{frames[-1].lineno}")  # fmt: skip
        if place in self.places:
            return
        self.places.add(place)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.kind}-{len(self.places)}-{os.getpid()}"
        (self.folder / f"{name}.bin").write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self.folder / f"{name}.txt").write_text(text)
        print(f"  finding {name}: {' '.join(place)}: {str(error)[:120]}", flush=True)


class Target:
    """Reads an input as a file of a kind."""

    def __init__(self, kind, work, findings):
        self.suffix, _, self.read = KINDS[kind]
        self.work, self.findings, self.count, self.slowest = Path(work), findings, 0, 0.0
        self.current = self.work / "current.bin"

    def __call__(self, data):
        self.count += 1
        path = self.work / f"input{self.suffix}"
        path.write_bytes(data)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _documented(lambda: self.read(path))
        except Exception as error:  # which is what is looked for
            self.findings.add(data, error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self.slowest = max(self.slowest, time.process_time() - began)


class TooSlow(Exception):
    """An input took longer than PATIENCE."""


def _too_slow(number, frame):
    raise TooSlow(f"more than {PATIENCE} s")


def _mutated(seeds, rng):
    """A seed with some bytes changed, doubled, dropped, or taken from another one."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, way = rng.randrange(len(data) + 1), rng.randrange(7)
        length = rng.choice((1, 2, 4, 8, 64))
        if way == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[place : place + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])
        elif way == 2:  # sizes and offsets
            value = rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, rng.getrandbits(32)))
            data[place : place + 8] = struct.pack(rng.choice("<>") + "Q", value)
        elif way == 3:
            del data[place : place + length]
        elif way == 4:
            data[place:place] = data[place : place + length]
        elif way == 5:
            del data[place:]
        else:
            other = rng.choice(seeds)
            data[place : place + length] = other[place : place + length]
    return bytes(data[:LONGEST])


def child(kind, seconds, folder, seed):
    """Fuzz one kind in this process; prints a line of figures at the end."""
    _import_libraries(kind)
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is not None:
        with atheris.instrument_imports(include=GUIDED):
            _import_readers(kind)
    else:
        _import_readers(kind)
    signal.signal(signal.SIGVTALRM, _too_slow)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as work:
        corpus = Path(work, "corpus")
        corpus.mkdir()
        KINDS[kind][1](corpus)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        target = Target(kind, work, Findings(kind, folder))
        seeds = [path.read_bytes() for path in sorted(corpus.iterdir()) if path.is_file()]
        for data in seeds:
            target(data)
        began = time.process_time()

        def report():
            figures = {"kind": kind, "inputs": target.count, "seconds": round(time.process_time() - began, 1),
                       "findings": len(target.findings.places), "slowest": round(target.slowest, 2),
                       "guided": atheris is not None}  # fmt: skip
            print(json.dumps(figures), flush=True)

        if atheris is not None:

            def once(data):
                if time.process_time() - began > seconds:
                    report()
                    os._exit(0)
                target(data)

            options = [f"-seed={seed}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/{kind}-", "-rss_limit_mb=0",
                       "-close_fd_mask=0", "-verbosity=0", "-detect_leaks=0", str(corpus)]  # fmt: skip
            atheris.Setup([sys.argv[0], *options], once)
            atheris.Fuzz()
        rng = random.Random(seed)
        while time.process_time() - began < seconds:
            data = _mutated(seeds, rng)
            Path(work, "current.bin").write_bytes(data)
            target(data)
        report()


def _import_libraries(kind):
    """The libraries that are too large to be instrumented."""
    import scipy.io  # noqa: F401

    if kind in ("weights", "checkpoint"):
        import torch  # noqa: F401


def _import_readers(kind):
    """What reads, so that it is instrumented, and nothing is imported for the first time under the memory limit."""
    import elastofast.io.recognise
    import elastofast.resumable
    import elastofast.tracking.frames

    if kind in ("vtu", "gmsh"):
        import meshio  # noqa: F401
    elif kind == "nifti":
        import nibabel  # noqa: F401
    elif kind in ("weights", "checkpoint"):
        import elastofast.learning.training
    elif kind == "dataset":
        import elastofast.learning.dataset  # noqa: F401


def replay(files):
    """Run inputs again that were found before; how many of them still end in an undocumented way."""
    signal.signal(signal.SIGVTALRM, _too_slow)
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        for file in map(Path, files):
            kind = file.name.partition("-")[0]
            target = Target(kind, work, Findings(kind, Path(work, "again")))
            target(file.read_bytes())
            bad += bool(target.findings.places)
            print(f"{file}: {'still bad' if target.findings.places else 'good'}")
    return bad


def main():
    """Run the children one after the other, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"kinds of files (default: all): {', '.join(KINDS)}")
    parser.add_argument("--seconds", type=float, default=30.0, help="of processor time for each kind (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: 1)")
    parser.add_argument("--findings", default="findings", help="folder for inputs that are found (default: findings)")
    parser.add_argument("--replay", nargs="+", metavar="FILE", help="run inputs of such a folder again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    if options.child:
        child(options.child, options.seconds, options.findings, options.seed)
        return 0
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown kinds {', '.join(sorted(unknown))}")
    inputs, seconds, findings = 0, 0.0, 0
    for kind in options.kinds or KINDS:
        left, seed, deaths = options.seconds, options.seed, 0
        while left > 1 and deaths < DEATHS:
            command = [sys.executable, __file__, "--child", kind, "--seconds", str(left), "--seed", str(seed),
                       "--findings", options.findings]  # fmt: skip
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            lines = done.stdout.splitlines()
            print("\n".join(line for line in lines if line.startswith(("  ", "{"))), flush=True)
            last = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), None)
            if done.returncode == 0 and last:
                inputs, seconds, findings = (
                    inputs + last["inputs"],
                    seconds + last["seconds"],
                    findings + last["findings"],
                )
                break
            findings, deaths = findings + 1, deaths + 1
            print(f"  {kind}: the process died with {done.returncode}: {done.stderr[-600:]}", flush=True)
            left, seed = left - (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began.ru_utime), seed + 1
    print(f"{inputs} inputs in {seconds:.0f} s, {findings} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
