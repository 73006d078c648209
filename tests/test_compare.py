import csv
import itertools
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

import elastofast as ef
from elastofast import cli
from elastofast.evaluation import methods, report
from elastofast.evaluation.experiment import compare
from elastofast.evaluation.results import COLUMNS, Comparison
from elastofast.evaluation.scenarios import Condition, measure
from elastofast.learning.dataset import Dataset, build_dataset

h5py = pytest.importorskip("h5py")
for package in ("matplotlib", "skimage"):
    pytest.importorskip(package)

SMALL = {"shape": (24, 24), "size": (0.3, 0.35), "pairs": 0.0, "count": 1, "validation": 0, "seed": 5, "jobs": 1}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.h5"
    build_dataset(path, **SMALL, test=3, unregularised=False)
    return path


@pytest.fixture
def quiet(monkeypatch):
    """No figures and no page, which are most of the work."""
    monkeypatch.setattr(report, "write_report", lambda *_: None)


def found(modulus, status="converged"):
    timing = {"data": 0.0, "prior": 0.0, "rest": 0.0}
    return SimpleNamespace(
        modulus=modulus, chi2=1.0, status=status, weight=0.0, message="made up", timing=timing, relative=False
    )


def scaled(factor):
    """A method whose relative error is |factor - 1| by construction."""
    return lambda m: found(m.reference * factor)


# conditions ---------------------------------------------------------------------------------------


def simulated(data, i, law):
    return ef.solve_forward(ef.ElasticForm(data.geometry, law), data.modulus(i).astype(float), data.load)


def test_the_clean_scenario_is_the_stored_measurement_and_other_levels_scale_one_noise(maps):
    with Dataset.open(maps) as data:
        i = int(data.indices("test")[0])
        stored, mask = measure(data, i, Condition(35.0))
        assert np.array_equal(stored.displacement, data.measurement(i).displacement)
        assert np.array_equal(mask, data.mask(i))
        u = simulated(data, i, data.law)
        noise = {level: measure(data, i, Condition(level), seed=1)[0].displacement - u for level in (25.0, 45.0)}
        free = ~data.load.fixed
        for level, n in noise.items():
            ratio = 10 * np.log10((u**2).sum() / (n[free] ** 2).sum())
            assert ratio == pytest.approx(level, abs=0.5)
        assert np.allclose(noise[25.0], 10 * noise[45.0], rtol=1e-3, atol=1e-3 * noise[25.0].std())
        other = measure(data, i, Condition(25.0), seed=2)[0].displacement - u
        assert abs(np.corrcoef(other[free], noise[25.0][free])[0, 1]) < 0.15


def test_the_poisson_scenario_is_simulated_with_another_ratio_than_it_states(maps):
    with Dataset.open(maps) as data:
        m, _ = measure(data, 1, Condition(100.0, "poisson"))
        assert m.law == data.law == ef.PlaneStress(0.495)
        u = simulated(data, 1, ef.PlaneStress(0.465))
        assert np.linalg.norm(m.displacement - u) < 1e-4 * np.linalg.norm(u)
        assert np.linalg.norm(u - simulated(data, 1, data.law)) > 1e-2 * np.linalg.norm(u)


def test_the_correlated_scenario_blurs_the_noise_and_keeps_its_size(maps):
    with Dataset.open(maps) as data:
        m, _ = measure(data, 2, Condition(30.0, "correlated"))
        noise = (m.displacement - simulated(data, 2, data.law)) / m.displacement_std
        inner = noise[:, 1:-1, 1:-1]
        assert inner.std() == pytest.approx(1.0, abs=0.1)
        # two Gaussians of 1.5 nodes, one node apart: exp(-1 / (4 * 1.5^2))
        assert np.mean(inner[:, 1:] * inner[:, :-1]) == pytest.approx(np.exp(-1 / 9) * inner.var(), abs=0.06)
        assert (m.displacement[data.load.fixed] == data.load.displacement[data.load.fixed]).all()


def test_texture_and_two_lesions_are_new_truths(maps):
    from scipy.ndimage import label

    with Dataset.open(maps) as data:
        m, mask = measure(data, 1, Condition(35.0, "texture"))
        texture = np.log(m.reference / data.modulus(1))
        assert texture.std() == pytest.approx(0.1, abs=0.03) and np.array_equal(mask, data.mask(1))
        m, mask = measure(data, 1, Condition(35.0, "two-lesions"))
        assert label(mask)[1] == 2
        assert 10e3 <= m.reference.min() < 15e3 and 30e3 <= m.reference[mask].max() <= 80e3
        m, mask = measure(data, 1, Condition(35.0, "no-lesion"))
        assert not mask.any() and np.ptp(m.reference) == 0 and 10e3 <= m.reference[0, 0] < 15e3
        for scenario in ("level-sets", "folds"):
            m, mask = measure(data, 1, Condition(35.0, scenario))
            again, _ = measure(data, 1, Condition(35.0, scenario))
            assert mask.any() and not mask.all() and np.array_equal(m.reference, again.reference)
            assert m.reference[mask].min() > np.median(m.reference[~mask])
        with pytest.raises(ValueError, match=r"world must be one of clean, texture, .*, got 'dark'"):
            measure(data, 1, Condition(35.0, "dark"))


def test_generators_for_testing_share_no_code_with_those_for_training():
    import ast
    from pathlib import Path

    from elastofast.evaluation import other_tissue

    tree = ast.parse(Path(other_tissue.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert imported == {"__future__", "numpy", "geometry"}


# statistics ---------------------------------------------------------------------------------------


def comparison(errors, **config):
    """Of a table of relative errors (method: errors), None where there is no map."""
    rows = []
    for method, values in errors.items():
        for k, e in enumerate(values):
            row = dict.fromkeys(COLUMNS) | {"condition": "35dB-clean", "map": k, "method": method, "jobs": 1}
            row |= {"status": "error" if e is None else "converged", "relative_error": e, "seconds": 2.0 * k}
            rows.append(row)
    return Comparison(None, {"methods": [*errors], "conditions": ["35dB-clean"], **config}, rows, 0, "")


def test_summary_is_over_the_maps_that_every_method_gave():
    done = comparison({"tv": [0.1, 0.2, 0.3, 0.6], "unet": [0.1, None, 0.2, 0.3]})
    assert done.common("35dB-clean") == [0, 2, 3]
    tv, unet = done.summary()
    assert tv["maps"] == 3 and (tv["failed"], unet["failed"]) == (0, 1)
    assert tv["relative_error"] == pytest.approx(1 / 3)
    assert tv["relative_error_std"] == pytest.approx(np.sqrt(((1 / 3 - 0.1) ** 2 + (1 / 30) ** 2 + (0.8 / 3) ** 2) / 2))
    assert unet["best"] == ["relative_error"] and tv["best"] == [] and np.isnan(tv["ssim"])
    assert tv["seconds"] == pytest.approx(10 / 3)
    text = str(done)
    assert "3 maps" in text and "0.2000 ± 0.1000*" in text and "0.3333 ± 0.2517 " in text


def test_the_last_method_is_tested_against_each_other_one():
    others = np.array([0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
    done = comparison(
        {"none": [*others[::-1]], "tv": [*others], "critic": [*(others * [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])]}
    )
    none, tv = done.tests()
    assert (tv["method"], tv["against"], tv["wins"], tv["maps"]) == ("critic", "tv", 6, 6)
    assert tv["difference"] == pytest.approx(np.mean([-0.5, -0.4, -0.3, -0.2, -0.1, -0.05]))
    assert tv["p"] == pytest.approx(2 / 2**6)  # all signs alike: one of 64 ways, and its mirror image
    signs = np.array(done.values("35dB-clean", "critic", "relative_error")) - others[::-1]
    ranks = np.abs(signs).argsort().argsort() + 1
    ways = [ranks[list(way)].sum() for n in range(7) for way in itertools.combinations(range(6), n)]
    low = min(ranks[signs > 0].sum(), ranks[signs < 0].sum())
    assert none["p"] == pytest.approx(min(1.0, 2 * np.mean(np.array(ways) <= low)))
    assert comparison({"a": [0.1, 0.2], "b": [0.1, 0.2]}).tests()[0]["p"] == 1.0
    assert np.isnan(comparison({"a": [None], "b": [0.1]}).tests()[0]["p"])


def test_paired_tests_of_other_metrics_know_which_way_is_better():
    done = comparison({"tv": [0.1, 0.2, 0.3], "critic": [0.1, 0.2, 0.3]})
    for row in done.rows:
        row["dice"] = (0.8 if row["method"] == "tv" else 0.9) if row["map"] else None
    (test,) = done.tests(["dice"])
    assert (test["metric"], test["maps"], test["wins"]) == ("dice", 2, 2)
    assert test["difference"] == pytest.approx(0.9 / 0.8 - 1)


def test_detection_is_the_diameter_from_which_on_lesions_are_found():
    done = comparison({"tv": [0.1] * 12, "critic": [0.1] * 12})
    for row in done.rows:
        k = row["map"]
        row |= {"diameter": 1e-3 * (k + 1), "false_alarms": k % 2, "found": float(k >= 3 or row["method"] == "tv")}
        if k == 11:  # no lesion
            row |= {"diameter": None, "found": None}
    tv, critic = done.detection()
    assert (tv["diameter"], tv["found"], tv["false_alarms"]) == (1e-3, 1.0, 0.5)
    assert critic["diameter"] == pytest.approx(4e-3)  # of eight found and none missed
    assert critic["found"] == pytest.approx(8 / 11)
    for row in done.rows:
        row["found"] = 0.0
    assert done.detection()[0]["diameter"] == np.inf and "found from" in str(done)


# running ------------------------------------------------------------------------------------------


def test_compare_measures_the_errors_that_maps_have_by_construction(tmp_path, maps, quiet):
    done = compare(tmp_path / "out", data=maps, methods=[("low", scaled(0.9)), ("high", scaled(1.25))])
    assert done.missing == 0 and len(done.rows) == 6
    for row in done.rows:
        assert row["relative_error"] == pytest.approx(0.1 if row["method"] == "low" else 0.25)
        assert row["contrast_ratio_error"] == pytest.approx(0, abs=1e-12) and row["gcnr"] > 0.9
        assert row["seconds"] > 0 and row["seconds_rest"] == row["seconds"]
    with h5py.File(tmp_path / "out" / "maps.h5") as file, Dataset.open(maps) as data:
        truth = data.modulus(data.indices("test"))
        assert file["35dB-clean/high"].dtype == np.float32
        assert np.array_equal(file["35dB-clean/truth"][()], truth)
        assert np.allclose(file["35dB-clean/high"][()], 1.25 * truth, rtol=1e-6)
    assert not (tmp_path / "out" / "parts").exists()


def test_tissue_without_a_lesion_is_compared_too(tmp_path, maps):
    done = compare(tmp_path / "out", data=maps, maps=2, world=["no-lesion"], methods=[("same", scaled(1.1))])
    assert [(row["false_alarms"], row["found"], row["diameter"]) for row in done.rows] == [(0, None, None)] * 2
    assert (tmp_path / "out" / "report.html").exists()


def test_a_failure_is_a_row_and_no_crash(tmp_path, maps, quiet):
    with Dataset.open(maps) as data:
        second = data.measurement(int(data.indices("test")[1])).displacement

    def fragile(m):
        if np.array_equal(m.displacement, second):
            raise RuntimeError("the solver gave up")
        return found(m.reference * 1.1, "max_iterations")

    broken = lambda m: found(np.full(m.geometry.shape, np.nan))  # noqa: E731
    done = compare(tmp_path / "out", data=maps, methods=[("fragile", fragile), ("plain", scaled(1.2))])
    rows = [row for row in done.rows if row["method"] == "fragile"]
    assert [row["status"] for row in rows] == ["max_iterations", "error", "max_iterations"]
    assert rows[1]["message"].startswith("RuntimeError: the solver gave up (test_compare.py, line ")
    assert rows[1]["relative_error"] is None and len(done.rows) == 6
    assert done.common("35dB-clean") == [0, 2]
    fragile_line, plain_line = done.summary()
    assert (fragile_line["failed"], fragile_line["unconverged"], fragile_line["maps"]) == (1, 2, 2)
    assert (plain_line["failed"], plain_line["unconverged"], plain_line["maps"]) == (0, 0, 2)
    with h5py.File(tmp_path / "out" / "maps.h5") as file:
        assert np.isnan(file["35dB-clean/fragile"][1]).all() and np.isfinite(file["35dB-clean/plain"][1]).all()
    done = compare(tmp_path / "other", data=maps, maps=1, methods=[("broken", broken)])
    assert done.rows[0]["status"] == "error" and "finite" in done.rows[0]["message"]


def test_an_interrupted_comparison_goes_on(tmp_path, maps, quiet):
    calls = []

    def method(m):
        calls.append(m)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found(m.reference * 1.1)

    arguments = {"data": maps, "snr": [30, 35], "methods": [("a", method), ("b", scaled(1.3))]}
    done = compare(tmp_path, **arguments)
    assert done.missing == 8 and len(done.rows) == 4 and (tmp_path / "parts").exists()
    lines = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(lines[:-20])  # as a kill while writing leaves it
    done = compare(tmp_path, **arguments)
    assert done.missing == 0 and len(done.rows) == 12 and len(calls) == 3 + 4
    assert [(r["snr"], r["map"], r["method"]) for r in done.rows] == [*itertools.product([30, 35], range(3), "ab")]
    assert (tmp_path / "results.jsonl").read_text().startswith(lines[: lines.rindex("\n", 0, -20)])
    again = compare(tmp_path, **arguments)
    assert again.rows == done.rows and len(calls) == 7


def test_ctrl_c_before_anything_is_finished_leaves_as_such(tmp_path, maps):
    def method(m):
        return found(m.reference, "interrupted")

    with pytest.raises(KeyboardInterrupt, match="before any"):
        compare(tmp_path, data=maps, methods=[("a", method)])


def test_another_configuration_in_the_same_folder_is_told(tmp_path, maps, quiet):
    compare(tmp_path, data=maps, methods=[("a", scaled(1.1))])
    with pytest.raises(ValueError, match="holds a comparison with conditions 35dB-clean in place of 25dB-clean"):
        compare(tmp_path, data=maps, methods=[("a", scaled(1.1))], snr=[25])
    with pytest.raises(ValueError, match="methods a in place of b; give another folder or its arguments"):
        compare(tmp_path, data=maps, methods=[("b", scaled(1.1))])


def test_several_processes_give_what_one_gives(tmp_path, maps, quiet):
    one, two = (compare(tmp_path / str(n), data=maps, maps=2, methods=["none"], jobs=n) for n in (1, 2))
    assert [r["jobs"] for r in one.rows] == [1, 1] and [r["jobs"] for r in two.rows] == [2, 2]
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a["relative_error"] == pytest.approx(b["relative_error"], rel=1e-3)
    assert two.parallel() and "several jobs" in str(two) and not one.parallel()


def test_learned_methods_take_weights_of_ones_own(tmp_path, maps, quiet):
    torch, weights_file = pytest.importorskip("torch"), pytest.importorskip("elastofast.priors.weights_file")
    from elastofast.priors.networks import build
    from elastofast.priors.standard import Standard

    torch.manual_seed(0)
    standard = {"standard": Standard()._asdict()}
    sizes = {"critic": {"channels": (4, 4, 4)}, "unet": {"channels": 4}, "dncnn": {"channels": 4, "layers": 2}}
    sizes |= {"paper-critic": {"shape": (24, 24)}}
    files = {name: tmp_path / f"{name}.safetensors" for name in sizes}
    for name, path in files.items():
        weights_file.save(path, build(name, **sizes[name]), standard)
    methods = ["unet", "pnp", "paper", "critic-paper", "adversarial-energy", "critic"]
    done = compare(tmp_path / "out", data=maps, maps=1, methods=methods, weights=files)
    assert [row["method"] for row in done.rows] == methods
    for row in done.rows:
        assert row["relative_error"] is not None, row["message"]
        assert row["seconds_prior"] > 0 and row["seconds_data"] > 0
        assert sum(row[f"seconds_{name}"] for name in ("data", "prior", "rest")) == pytest.approx(row["seconds"])
    with Dataset.open(maps) as data:
        i = int(data.indices("test")[0])
        m, truth = data.measurement(i), data.modulus(i)
    prior = ef.priors.PostProcessing.load(files["unet"])
    expected = ef.metrics.relative_l2(ef.reconstruct(m, prior=prior).modulus, truth)
    assert done.rows[0]["relative_error"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="expected weights of unet, the file holds 'dncnn'"):
        compare(tmp_path / "wrong", data=maps, methods=["unet"], weights={"unet": files["dncnn"]})
    with pytest.raises(ValueError, match="method 'paper' needs weights of its paper-critic"):
        compare(tmp_path / "without", data=maps, methods=["paper"])
    weights_file.save(files["unet"], build("unet", channels=5), standard)  # other weights under the same name
    with pytest.raises(ValueError, match=r"comparison with weights\.unet"):
        compare(tmp_path / "out", data=maps, maps=1, methods=methods, weights=files)


def test_built_in_maps_are_test_maps_that_no_data_set_trains_on(tmp_path, quiet):
    arguments = {"size": 16, "maps": 1, "methods": [("a", scaled(1.1))]}
    done = compare(tmp_path, **arguments, seed=5)
    build_dataset(
        tmp_path / "same.h5", shape=(16, 16), count=2, validation=1, test=1, seed=5, jobs=1, unregularised=False
    )
    with Dataset.open(tmp_path / "same.h5") as data:
        assert done.config["maps"] == [int(data.seeds[3])] and data.indices("test").tolist() == [3]
    with pytest.raises(ValueError, match=r"holds a comparison with seed 5 in place of 6; give another folder"):
        compare(tmp_path, **arguments, seed=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["tvv"]}, "methods must be among none, tv, unet, pnp, paper, critic-paper, .*, got 'tvv'"),
        ({"methods": ["tv", "tv"]}, "methods names 'tv' twice"),
        ({"methods": [("tv", scaled(1))]}, "a method of your own needs a new name and a function"),
        ({"methods": [("truth", scaled(1))]}, "not truth, got 'truth'"),
        ({"methods": []}, "methods is empty"),
        ({"methods": ["tv"], "world": ["dark"]}, "world must list some of clean, .*, got .'dark'"),
        ({"methods": ["tv"], "world": "clean"}, "world must list some of"),
        ({"methods": ["tv"], "snr": [30, 30]}, "snr must list finite decibels, each once"),
        ({"methods": ["tv"], "maps": 4}, "maps must be at most the 3 test maps"),
        ({"methods": ["tv"], "jobs": 0}, "jobs must be a whole number, 1 or more, got 0"),
        ({"methods": ["tv"], "size": 64}, "size is that of built-in maps"),
        (
            {"methods": ["tv"], "weights": {"net": "x"}},
            "weights must be given for unet, dncnn, critic, paper-critic, got 'net'",
        ),
    ],
)
def test_compare_refuses_wrong_arguments_before_it_writes(tmp_path, maps, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "out", data=maps, **arguments)
    assert not (tmp_path / "out").exists()


def test_compare_refuses_data_sets_without_test_maps_or_lesions(tmp_path, maps):
    bare, empty = tmp_path / "bare.h5", tmp_path / "empty.h5"
    for path in (bare, empty):
        shutil.copy(maps, path)
    with h5py.File(bare, "a") as file:
        file["split"][...] = 0
    with h5py.File(empty, "a") as file:
        file["mask"][-1] = 0
    with pytest.raises(ValueError, match="has no test maps; build one with --test"):
        compare(tmp_path / "out", data=bare, methods=["tv"])
    with pytest.raises(ValueError, match="sample 3 has no lesion"):
        compare(tmp_path / "out", data=empty, methods=["tv"])


def test_compare_without_matplotlib_says_how_to_install_it(tmp_path, maps, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["compare", str(tmp_path / "out"), "--data", str(maps), "--methods", "tv"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


# report -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.tables, self.text = [], [], [], 0, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [v for k, v in attributes.items() if k in ("src", "href", "srcset") and not v.startswith("data:")]
        self.tables += tag == "table"
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_compare_command_writes_tables_and_a_page_that_agree_with_the_library(tmp_path, maps, capsys):
    out = tmp_path / "out"
    words = f"compare {out} --data {maps} --maps 2 --world clean poisson --methods none tikhonov".split()
    assert cli.main(words) == 2 and "got 'tikhonov'" in capsys.readouterr().err
    words[-1] = "tv"
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "35dB-clean: 2 maps" in text and "35dB-poisson: 2 maps" in text and f"wrote {out / 'report.html'}" in text

    with open(out / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and tuple(rows[0]) == COLUMNS
    with Dataset.open(maps) as data:
        i = int(data.indices("test")[1])
        m, mask = data.measurement(i), data.mask(i)
    expected = ef.metrics.evaluate(ef.reconstruct(m, prior="tv").modulus, m.reference, m.geometry, mask=mask)
    row = next(r for r in rows if (r["world"], r["map"], r["method"]) == ("clean", "1", "tv"))
    assert float(row["relative_error"]) == pytest.approx(expected["relative_l2"], rel=1e-3)
    assert float(row["cnre_db"]) == pytest.approx(expected["cnre_db"], rel=1e-2)
    assert float(row["seconds_data"]) > 0 and float(row["seconds_prior"]) > 0

    page = (out / "report.html").read_text()
    seen = Page(page)
    assert not seen.links and "url(" not in page and "<script" not in page
    assert len(seen.images) == 6 and all(len(image["alt"]) > 20 for image in seen.images)
    assert seen.tables == 1 + 2 * 4 + len(re.findall("<details><summary>[0-9]+ runs", page))
    whole = " ".join(seen.text)
    assert f"elastofast compare {out} --data {maps} --maps 2" in whole and np.__version__ in whole
    with open(out / "summary.csv") as file:
        clean_tv = next(r for r in csv.DictReader(file) if (r["condition"], r["method"]) == ("35dB-clean", "tv"))
    assert f"{float(clean_tv['relative_error']):.4f} ± {float(clean_tv['relative_error_std']):.4f}" in whole
    assert json.loads((out / "config.json").read_text())["methods"] == ["none", "tv"]


def test_an_interrupted_command_reports_and_says_how_to_go_on(tmp_path, maps, capsys, monkeypatch):
    real, calls = methods.reconstruct, []

    def reconstruct(m, **settings):
        calls.append(m)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(m, **settings)

    monkeypatch.setattr(methods, "reconstruct", reconstruct)
    words = ["compare", str(tmp_path), "--data", str(maps), "--methods", "none", "--maps", "2"]
    assert cli.main(words) == 130
    assert "1 reconstructions missing; the same command goes on from there" in capsys.readouterr().out
    assert "Incomplete: 1 reconstructions" in (tmp_path / "report.html").read_text()
