"""Reports: one file that holds everything, readable as HTML, and true to the result."""

import json
from html.parser import HTMLParser
from itertools import permutations

import numpy as np
import pytest

import elastofast as ef
from elastofast.cli import main

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

VOID = {"meta", "img", "br"}
GRID = ef.Grid((20, 24), (1e-3, 1e-3))


class Page(HTMLParser):
    """Text, pictures and links of a page, whose elements must be nested rightly."""

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.sources, self.links = [], "", [], []
        self.feed(path.read_text())
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "src" in attributes:
            self.sources.append(attributes["src"])
            assert attributes["alt"]
        self.links += [attributes[name] for name in ("href", "action", "data") if name in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + " "


@pytest.fixture(scope="module")
def measurement():
    truth, _ = ef.inclusion(GRID, center=(10e-3, 12e-3), radius=4e-3, modulus=40e3, background=10e3)
    return ef.simulate(GRID, ef.PlaneStress(0.4), ef.compression(GRID, pressure=100.0), truth, snr=35.0, seed=0)


@pytest.fixture(scope="module")
def result(measurement):
    known = np.full(GRID.shape, np.nan)
    known[:3] = 10e3
    return ef.reconstruct(measurement, prior="tv", weight=100.0, known=known)


def test_held_nodes_are_in_the_result(result):
    assert np.isfinite(result.known[:3]).all() and np.isnan(result.known[3:]).all()


def test_a_report_needs_nothing_beside_it_and_says_what_the_result_says(tmp_path, measurement, result):
    ef.write_report(tmp_path / "r.html", result, measurement, title="a <b> & c", settings={"prior": "tv"})
    page = Page(tmp_path / "r.html")
    assert len(page.sources) == 2 and not page.links
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    assert "a <b> & c" in page.text
    for shown in (result.status, result.message, f"{result.chi2:.4f}", f"{result.weight:.4g}", '"prior": "tv"'):
        assert shown in page.text
    assert f"History: {len(result.history)} steps" in page.text
    assert "ssim" in page.text  # there is a reference
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_body_of_three_dimensions_has_a_report_without_pictures(tmp_path):
    corner = np.array([*np.ndindex(3, 3, 3)])
    paths = [
        np.cumsum([np.zeros(3, int), *np.eye(3, dtype=int)[list(order)]], axis=0) for order in permutations(range(3))
    ]
    tets = [cube + path for cube in np.ndindex(2, 2, 2) for path in paths]  # Kuhn's six of each cube
    mesh = ef.Mesh(5e-3 * corner, np.array(tets) @ (9, 3, 1))
    m = ef.simulate(mesh, ef.Solid(0.3), ef.compression(mesh, pressure=100.0), np.full(27, 1e4), snr=40.0)
    ef.write_report(tmp_path / "r.html", ef.reconstruct(m, prior="tikhonov", weight=1.0), m)
    page = Page(tmp_path / "r.html")
    assert not page.sources and "plane bodies only" in page.text


def test_command_writes_a_report_of_one_file_and_a_page_of_many(tmp_path, measurement, capsys):
    (tmp_path / "scans").mkdir()
    measurement.save(tmp_path / "scans" / "a.h5")
    measurement.save(tmp_path / "scans" / "b.npz")
    common = ["--prior", "tv", "--weight", "100", "--quiet", "--html", str(tmp_path / "p.html")]
    assert main(["reconstruct", str(tmp_path / "scans" / "a.h5"), "-o", str(tmp_path / "x.npz"), *common]) == 0
    page = Page(tmp_path / "p.html")
    assert "elastofast reconstruct" in page.text and "a.h5" in page.text and len(page.sources) == 2
    assert "weight" in json.JSONDecoder().raw_decode(page.text, page.text.index('{\n "elastofast"'))[0]
    assert main(["reconstruct", str(tmp_path / "scans"), "-o", str(tmp_path / "maps"), *common]) == 0
    page = Page(tmp_path / "p.html")
    assert "2 files" in page.text and "a.h5" in page.text and "b.npz" in page.text
    assert len(page.sources) == 2 and all(source.startswith("data:image/png") for source in page.sources)
    capsys.readouterr()
    assert main(["reconstruct", "--help"]) == 0
    assert "--html" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, measurement, capsys):
    measurement.save(tmp_path / "a.npz")
    arguments = ["reconstruct", str(tmp_path / "a.npz"), "-o", str(tmp_path / "x.npz")]
    assert main([*arguments, "--html", str(tmp_path / "p.docx")]) == 2
    assert "html" in capsys.readouterr().err
    assert main([*arguments, "--html", str(tmp_path / "nowhere" / "p.html")]) == 2
    assert not (tmp_path / "x.npz").exists()
