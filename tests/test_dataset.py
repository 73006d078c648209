import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import elastofast as ef
from elastofast import _core, cli, resumable
from elastofast.learning import dataset
from elastofast.learning.dataset import Dataset, build_dataset

h5py = pytest.importorskip("h5py")

SMALL = {"shape": (17, 17), "size": (0.2, 0.35), "count": 4, "validation": 2, "test": 2, "seed": 5}
NAMES = ("modulus", "mask", "displacement", "displacement_std", "unregularised", "errors", "seed", "group", "split")
NAMES += ("source",)
MANY = "--shape 17 --size 0.2 0.35 --count 60 --validation 1 --test 1 --no-unregularised --jobs 1 --quiet".split()


def contents(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def assert_same(a, b):
    a, b = contents(a), contents(b)
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.h5"
    build_dataset(path, **SMALL, jobs=2)
    return path


@pytest.fixture
def inline(monkeypatch):
    """Samples are made in this process, with one thread as in the others: most tests are not about processes."""

    def one_by_one(make, tasks, **where):
        yield from map(make, tasks)

    monkeypatch.setattr(dataset, "worked_on", one_by_one)
    before = _core.build_info()["threads"]
    _core.set_num_threads(1)
    yield
    _core.set_num_threads(before)


def command(path, *options):
    # -P: the installed package, not the sources in the current folder
    return [sys.executable, "-P", "-m", "elastofast", "dataset", str(path), *MANY, *options]


def listen():
    """Ctrl-C reaches a process even if the tests run in the background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(path, made=5):
    """A run that has made some of its samples."""
    process = subprocess.Popen(
        command(path), stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen
    )
    parts = Path(f"{path}.parts")
    deadline = time.monotonic() + 300  # processes may take long to start on a busy machine
    while len(list(parts.glob("[0-9]*.npz"))) < made or not parts.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return process, parts


# what is in a data set ----------------------------------------------------------------------------


def test_file_has_the_documented_arrays_and_configuration(small):
    with h5py.File(small) as file:
        assert set(file) == set(NAMES)
        for name in NAMES:
            assert len(file[name]) == 8 and "units" in file[name].attrs
        assert file["displacement"].shape == (8, 2, 17, 17) and file["displacement"].chunks == (1, 2, 17, 17)
        assert file["modulus"].dtype == np.float32 and file["displacement"].dtype == np.float64
        assert file.attrs["format"] == "elastofast data set" and file.attrs["version"] == 1
        assert file.attrs["elastofast_version"] == ef.__version__
        config = json.loads(file.attrs["config"])
    assert config["seed"] == 5 and config["train"] == 4 and config["size"] == [0.2, 0.35]
    assert not Path(f"{small}.parts").exists()


def test_samples_are_read_by_index_and_split(small):
    with Dataset.open(small) as data:
        assert len(data) == 8 and data.snr == 35.0 and data.config["kind"] == "random"
        assert data.geometry.shape == (17, 17) and data.geometry.spacing == pytest.approx([30e-3 / 16] * 2)
        assert data.law == ef.PlaneStress(0.495)
        assert data.load.force[0].sum() == pytest.approx(100 * 30e-3)
        assert [data.indices(s).tolist() for s in ("train", "validation", "test")] == [[0, 1, 2, 3], [4, 5], [6, 7]]
        x = data.modulus(np.array([3, 0, 3]))
        assert x.shape == (3, 17, 17) and np.array_equal(x[0], x[2]) and np.array_equal(x[1], data.modulus(0))
        assert np.array_equal(data.modulus(-1), data.modulus(7))
        assert data.mask(2).dtype == bool and data.unregularised([1]).shape == (1, 17, 17)
        assert data.modulus([]).shape == (0, 17, 17)
        for bad in (8, -9, [0, 8]):
            with pytest.raises(IndexError, match="the data set has 8 samples"):
                data.modulus(bad)
        with pytest.raises(TypeError, match="an index must be a whole number"):
            data.modulus(0.5)
        with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'all'"):
            data.indices("all")


def test_measurements_are_those_that_were_reconstructed(small, inline):
    with Dataset.open(small) as data:
        for i in (0, 7):
            m = data.measurement(i)
            assert np.array_equal(m.reference, data.modulus(i))
            clean = ef.solve_forward(m.form, m.reference, m.load)
            noise = (m.displacement - clean)[~m.load.fixed]
            assert 10 * np.log10((clean**2).sum() / (noise**2).sum()) == pytest.approx(35, abs=0.6)
            assert np.std(noise / m.displacement_std[~m.load.fixed]) == pytest.approx(1, abs=0.12)
            again = ef.reconstruct(m, prior="none").modulus
            assert np.array_equal(again.astype(np.float32), data.unregularised(i))


def test_noise_model_law_and_snr_are_those_asked_for(inline, tmp_path):
    path = tmp_path / "a.h5"
    build_dataset(path, **SMALL | {"count": 1, "test": 0}, noise="relative", law="plane_strain", snr=50, jobs=1)
    with Dataset.open(path) as data:
        m = data.measurement(0)
        assert m.law == ef.PlaneStrain(0.495) and np.ptp(m.displacement_std[0]) > 0
        clean = ef.solve_forward(m.form, m.reference, m.load)
        snr = 10 * np.log10((clean**2).sum() / ((m.displacement - clean) ** 2).sum())
        assert snr == pytest.approx(50, abs=0.8)


def test_maps_of_the_wide_world_are_measured_each_in_its_own_way(inline, tmp_path):
    from elastofast.learning.settings import Setting

    path = tmp_path / "wide.h5"
    options = {"world": "wide", "shape": (24, 24), "size": (0.2, 0.35), "seed": 2, "jobs": 1}
    with pytest.raises(ValueError, match="snr is drawn for each map of the wide world"):
        build_dataset(path, **options, snr=30)
    with pytest.raises(ValueError, match="tissue must be a share"):
        build_dataset(path, **options, tissue=2)
    build_dataset(path, **options, count=12, validation=1, test=0)
    with Dataset.open(path) as data:
        assert len(data.settings) == 13 and len(set(data.settings)) == 13
        assert data.config["world"] == "wide" and isinstance(data.settings[0], Setting)
        relative = []
        for i, setting in enumerate(data.settings):
            m = data.measurement(i)
            assert m.geometry == setting.grid(data.geometry) and m.law.poisson == setting.poisson
            assert np.array_equal(m.reference, data.modulus(i))
            relative.append(not m.load.force.any())
            # in pascals even where the measurement gives ratios alone
            ratio = np.log(data.unregularised(i) / data.modulus(i))
            assert abs(ratio.mean()) < (1e-5 if relative[-1] else 1)
            assert not relative[-1] or abs(data.errors(i).mean()) < 1e-6
        assert 0 < sum(relative) < 13
        with pytest.raises(ValueError, match="masks are of the world 'lesions'"):
            build_dataset(path, world="wide", masks=tmp_path)


def test_shapes_vary_as_asked(inline, tmp_path):
    from scipy.ndimage import label

    path = tmp_path / "a.h5"
    options = {"count": 100, "validation": 0, "test": 0, "shape": (49, 49)}
    build_dataset(path, **options, unregularised=False, seed=3)
    with Dataset.open(path) as data:
        with pytest.raises(ValueError, match="built without unregularised maps"):
            data.unregularised(0)
        x, mask = data.modulus(np.arange(100)), data.mask(np.arange(100))
    values = [np.unique(a) for a in x]
    sharp = np.array([len(v) == 1 + label(m, np.ones((3, 3)))[1] for v, m in zip(values, mask, strict=True)])
    pieces = np.array([np.sort(np.bincount(label(m, np.ones((3, 3)))[0][m]))[::-1] for m in mask], dtype=object)
    two = np.array([(p > 0.05 * p.max()).sum() == 2 for p in pieces])
    assert 0.04 <= two.mean() <= 0.26  # 0.15 of 100, three standard deviations
    assert 0.12 <= np.mean([len(v) > 6 for v in values]) <= 0.38 and sharp.mean() > 0.5
    background = np.array([v[0] for v in values])
    assert background.min() >= 10e3 and background.max() <= 15e3 and np.std(background) > 1e3
    inside = x[mask]
    assert inside.max() <= 80e3 and np.array([v[-1] for v in values]).min() >= 30e3
    width = 2 * np.sqrt(np.array([m.sum() for m in mask[~two]]) / np.pi) / 48
    assert 0.035 <= width.min() <= 0.1 and 0.3 <= width.max() <= 0.37


def test_test_maps_do_not_depend_on_the_number_of_training_maps(small, inline, tmp_path):
    path = tmp_path / "fewer.h5"
    build_dataset(path, **SMALL | {"count": 1}, jobs=1)
    with Dataset.open(small) as many, Dataset.open(path) as few:
        for split, n in (("train", 1), ("validation", 2), ("test", 2)):
            a, b = many.indices(split)[:n], few.indices(split)
            assert len(b) == n and np.array_equal(many.unregularised(a), few.unregularised(b))
        everything = many.modulus(np.arange(8)).reshape(8, -1)
        assert len(np.unique(everything, axis=0)) == 8


def test_options_change_what_they_name_and_nothing_else(inline, tmp_path):
    base = SMALL | {"count": 2, "validation": 0, "test": 0, "unregularised": False, "jobs": 1}

    def build(**options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        build_dataset(path, **base | {"pairs": 0, "soft": 0} | options)
        with Dataset.open(path) as data:
            return data.modulus([0, 1]), data.mask([0, 1]), data._read("displacement", [0, 1])

    plain, mask, u = build()
    assert all(len(np.unique(x)) == 2 for x in plain)
    assert np.array_equal(build(snr=60.0)[0], plain)
    noisy = build(snr=60.0)[2]
    assert 0 < np.abs(noisy - u).max() < 0.2 * np.abs(u).max()
    textured = build(texture=0.1)[0]
    assert 0.02 < np.std(textured / plain) < 0.2
    varied = build(variation=0.1)
    assert np.array_equal(varied[1], mask)
    spreads = [np.ptp(varied[0][0][side]) for side in (mask[0], ~mask[0])]
    assert spreads[0] == 0 and spreads[1] > 100
    assert build(background=(1e3, 1e3))[0].min() == 1e3


# runs, interruptions, files -----------------------------------------------------------------------


def test_number_of_processes_does_not_matter(small, tmp_path):
    build_dataset(tmp_path / "one.h5", **SMALL, jobs=1)
    assert (tmp_path / "one.h5").read_bytes() == small.read_bytes()


def test_killed_run_makes_no_sample_twice_and_ends_the_same(inline, tmp_path):
    path, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    process, parts = start(path)
    process.kill()
    process.wait()
    made = {part: (part.stat().st_mtime_ns, part.stat().st_ino) for part in parts.glob("[0-9]*.npz")}
    assert 5 <= len(made) < 62 and not path.exists()

    # the processes that made samples end with it
    deadline = time.monotonic() + 10
    while any(os.getsid(int(p)) == process.pid for p in filter(str.isdigit, os.listdir("/proc")) if alive(p)):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    again = subprocess.Popen(command(path))
    kept = True
    while again.poll() is None:
        kept &= not parts.exists() or all(identity(part) in (mark, None) for part, mark in made.items())
        time.sleep(0.05)
    assert again.returncode == 0 and kept  # nothing was made twice
    assert not parts.exists()
    assert cli.main(["dataset", str(whole), *MANY, "--jobs", "2"]) == 0
    assert_same(path, whole)


def identity(part):
    try:
        return part.stat().st_mtime_ns, part.stat().st_ino
    except FileNotFoundError:  # the run is complete
        return None


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("made", [0, 5])
def test_interrupted_run_tells_how_to_go_on(tmp_path, made):
    path = tmp_path / "a.h5"
    process, parts = start(path, made)
    if not made:
        time.sleep(0.4)  # the processes that make samples are just starting
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.count("\n") == 1 and "Traceback" not in err
    made = len(list(parts.glob("[0-9]*.npz")))
    assert f"interrupted with {made} of 62 samples kept in {parts}; the same again goes on from there" in err
    assert not path.exists()


def test_kills_around_the_end_lose_nothing(small, inline, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # while the file is written
        patch.setattr(resumable.os, "replace", lambda a, b, do=os.replace: die() if Path(b) == path else do(a, b))
        with pytest.raises(KeyboardInterrupt, match="8 of 8 samples kept"):
            build_dataset(path, **SMALL, jobs=1)
    assert not path.exists()
    with monkeypatch.context() as patch:  # between its renaming and the removal of the parts
        patch.setattr(dataset, "_sample", die)  # nothing is left to make
        patch.setattr(resumable.ResumableFolder, "remove_items", die)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(path, **SMALL)
    assert_same(path, small)
    parts = Path(f"{path}.parts")
    assert parts.exists()
    stamp = path.stat().st_mtime_ns
    build_dataset(path, **SMALL)
    assert not parts.exists() and path.stat().st_mtime_ns == stamp


def test_a_run_with_other_arguments_is_refused_unless_forced(small, inline, tmp_path):
    path = tmp_path / "a.h5"
    process, parts = start(path)
    process.kill()
    process.wait()
    with pytest.raises(
        ValueError, match=r"a.h5.parts holds an interrupted run with shape \[17, 17\] in place of \[9, 9\]"
    ):
        build_dataset(path, **SMALL | {"shape": (9, 9)})
    assert len(list(parts.glob("*.npz"))) >= 5
    build_dataset(path, **SMALL, force=True)
    assert_same(path, small)

    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"snr 35.0 in place of 30.0; give another name or force"):
        build_dataset(path, **SMALL, snr=30.0)
    assert path.read_bytes() == before
    build_dataset(path, **SMALL | {"count": 1}, force=True, jobs=1)
    with Dataset.open(path) as data:
        assert len(data) == 5


def test_a_full_disk_is_one_line_and_keeps_the_samples(inline, tmp_path):
    """A limit on the size of files stands in for it: the samples fit, the data set does not."""
    path = tmp_path / "a.h5"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY))\n"
        "from elastofast.cli import main\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "limited.py").write_text(code)
    arguments = ["dataset", str(path), *MANY, "--count", "30"]
    done = subprocess.run([sys.executable, tmp_path / "limited.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{path}: cannot write: " in done.stderr
    assert not path.exists() and not list(tmp_path.rglob("*.h5"))
    assert cli.main(arguments) == 0  # with room again
    with Dataset.open(path) as data:
        assert len(data) == 32


def test_a_part_cut_short_is_made_again_and_another_damage_is_named(small, inline, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_dataset(path, **SMALL, jobs=1)
    part = Path(f"{path}.parts") / "000003.npz"
    whole = part.read_bytes()
    part.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    with pytest.raises(ValueError, match=r"000003.npz: damaged: .*; delete it and run again"):
        build_dataset(path, **SMALL, jobs=1)
    part.write_bytes(whole[:300])
    build_dataset(path, **SMALL, jobs=1)
    assert_same(path, small)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"a.h5: cannot be read as a data set: .*; delete it, or force"):
        build_dataset(path, **SMALL, jobs=1)


def test_files_that_are_no_data_sets_are_refused(small, tmp_path):
    path = tmp_path / "bad.h5"
    with pytest.raises(FileNotFoundError, match=r"bad.h5"):
        Dataset.open(path)
    whole = small.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.h5: cannot be read as a data set"):
            Dataset.open(path)
    with h5py.File(path, "w") as file:
        file["modulus"] = np.ones(3)
    with pytest.raises(ValueError, match=r"bad.h5: .* expected a 'elastofast data set' file, it holds \['modulus'\]"):
        Dataset.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 2
    with pytest.raises(ValueError, match="layout version 2, this elastofast reads up to 1"):
        Dataset.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["mask"]
        file["mask"] = np.ones((3, 17, 17), np.uint8)
    with pytest.raises(ValueError, match=r"mask must have shape \(8, 17, 17\), got \(3, 17, 17\)"):
        Dataset.open(path)


def test_damaged_sample_is_named(small, tmp_path):
    path = tmp_path / "bad.h5"
    path.write_bytes(small.read_bytes())
    with h5py.File(path) as file:
        chunk = file["displacement"].id.get_chunk_info(5)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with Dataset.open(path) as data:
        data.measurement(4)
        with pytest.raises(ValueError, match=r"bad.h5: sample 5 is damaged"):
            data.measurement(5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"count": 0}, "count must be a whole number, 1 or more, got 0"),
        ({"test": -1}, "test must be a number of maps or a share below 1, got -1"),
        ({"validation": 1.5}, "validation must be a number of maps"),
        ({"shape": (17,)}, r"shape must hold 2 whole numbers, got \(17,\)"),
        ({"shape": (17, 16.5)}, "shape must hold 2 whole numbers"),
        ({"shape": (1, 17)}, "shape needs at least 2 nodes"),
        ({"extent": (0.03, -0.03)}, "spacing must be positive"),
        ({"law": "solid"}, "law must be plane_stress or plane_strain, got 'solid'"),
        ({"law": "plane_strain", "poisson": 0.5}, "poisson must lie in"),
        ({"noise": "pink"}, "noise must be one of white, relative, got 'pink'"),
        ({"snr": float("nan")}, "snr must be finite"),
        ({"lesion": (80e3, 30e3)}, "lesion must be a pair"),
        ({"size": (0.2, 0.9)}, "size must not exceed"),
        ({"kind": "round"}, "kind must be one of"),
        ({"soft": 1.5}, "soft must be a share from 0 to 1, got 1.5"),
        ({"edge": (3.0, 1.0)}, "edge must be a pair"),
        ({"texture": -0.1}, "texture must be zero or more"),
        ({"pressure": 0.0}, "pressure"),
        ({"jobs": 0}, "jobs must be a whole number, 1 or more, got 0"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        build_dataset(tmp_path / "a.h5", **SMALL | options)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of the output does not exist: .*a.h5"):
        build_dataset(tmp_path / "nowhere/a.h5", **SMALL)


# masks --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Twelve lesions of BUS-BRA: two views each of patients 1 to 4, one each of 5 to 8, and an empty mask."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :80]
    scans = [f"{k:04d}-{side}" for k in range(1, 9) for side in ("lr" if k <= 4 else "l")] + ["0009-l"]
    for name in ("Images", "Masks"):
        (tmp_path / "bra" / name).mkdir(parents=True)
    for scan in scans:
        a, b = rng.uniform(10, 25, 2)
        cy, cx = rng.uniform(26, 54, 2)
        mask = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < (0 if scan == "0009-l" else 1)
        image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"bra/Masks/mask_{scan}.png")
        speckle = rng.integers(0, 255, (80, 80)).astype(np.uint8)
        image.fromarray(speckle).save(tmp_path / f"bra/Images/bus_{scan}.png")
    return tmp_path / "bra"


FAST = {"shape": (17, 17), "unregularised": False, "jobs": 2}


def test_splits_keep_patients_together(folder, inline, tmp_path):
    path = tmp_path / "a.h5"
    seen = set()
    for seed in range(3):
        with pytest.warns(UserWarning, match=r"left out 1 without a lesion \(Masks/mask_0009-l.png\)"):
            build_dataset(path, masks=folder, validation=2, test=0.25, seed=seed, force=True, **FAST)
        with Dataset.open(path) as data:
            assert data.config["masks"]["layout"] == "bus-bra"
            assert sorted(data.sources) == sorted(set(data.sources)) and len(data) == 12
            patients = np.array([source[11:15] for source in data.sources])
            for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
                for labels in (patients, data.groups):
                    assert not set(labels[data.indices(a)]) & set(labels[data.indices(b)])
            counts = [len(data.indices(split)) for split in ("train", "validation", "test")]
            assert counts == [7, 2, 3]
            assert len(set(data.groups)) == 8
            seen.add(tuple(patients[data.indices("test")]))
    assert len(seen) > 1


def test_maps_of_masks_have_their_lesions_and_do_not_depend_on_the_count(folder, inline, tmp_path):
    from elastofast.learning.masks import collect, on_grid, read_mask

    path, few = tmp_path / "a.h5", tmp_path / "few.h5"
    with pytest.warns(UserWarning):
        build_dataset(path, masks=folder, soft=0, test=3, validation=2, **FAST)
        build_dataset(few, masks=folder, soft=0, test=3, validation=2, count=2, **FAST)
    with Dataset.open(path) as data, Dataset.open(few) as part:
        scans = {scan.name: scan for scan in collect(folder, data.geometry).scans}
        for i in range(len(data)):
            mask = on_grid(read_mask(scans[data.sources[i]]), data.geometry)
            assert np.array_equal(data.mask(i), mask)
            x = data.modulus(i)
            assert len(np.unique(x)) == 2 and 30e3 <= x[mask].min() and x[~mask].max() <= 15e3
        assert len(part.indices("train")) == 2
        sources = np.array(data.sources), np.array(part.sources)
        assert set(sources[1][part.indices("train")]) < set(sources[0][data.indices("train")])
        assert np.array_equal(data.modulus(data.indices("test")), part.modulus(part.indices("test")))


def test_changed_masks_are_noticed(folder, inline, tmp_path):
    path = tmp_path / "a.h5"
    with pytest.warns(UserWarning):
        build_dataset(path, masks=folder, **FAST, test=1, validation=1)
        next((folder / "Masks").glob("*0005-l.png")).unlink()
        with pytest.raises(FileExistsError, match=r"made with masks\.scans 12 in place of 11, masks\.digest"):
            build_dataset(path, masks=folder, **FAST, test=1, validation=1)


def test_splits_larger_than_the_groups_are_refused(folder, tmp_path):
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="validation cannot hold out 5 of 12 masks in 8 groups"),
    ):
        build_dataset(tmp_path / "a.h5", masks=folder, **FAST, test=8, validation=5)


# command line -------------------------------------------------------------------------------------


def test_dataset_command_builds_what_it_was_asked_for_and_refuses_to_overwrite(inline, folder, tmp_path, capsys):
    path = tmp_path / "a.h5"
    options = (
        "--validation 0.2 --test 2 --shape 17 21 --extent 0.03 0.04 --no-unregularised --snr 40 --edge 1 2 --seed 3"
    )
    assert cli.main(["dataset", str(path), "--masks", str(folder), *options.split()]) == 0
    out, err = capsys.readouterr()
    assert "40 dB, 8 train, 2 validation, 2 test" in out and str(path) in out
    assert err == f"elastofast: warning: {folder}: left out 1 without a lesion (Masks/mask_0009-l.png)\n"
    with Dataset.open(path) as data:
        assert data.geometry.shape == (17, 21) and data.geometry.spacing == pytest.approx((30e-3 / 16, 2e-3))
        assert data.config["edge"] == [1, 2] and data.config["seed"] == 3
    assert cli.main(["dataset", str(path), "--count", "3"]) == 2
    assert "exists already, made with" in capsys.readouterr().err
    assert cli.main(["dataset", str(tmp_path / "a.npz")]) == 2
    assert "must end in one of .h5, .hdf5" in capsys.readouterr().err
