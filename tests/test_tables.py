import re

import numpy as np
import pytest

from elastofast.io.containers import read_container
from elastofast.io.tables import read_table, stated_unit

ROWS = np.array([[x, y, 0.01 * x - 0.002 * y, -0.5e-3 * x * y] for y in range(4) for x in range(5)], float)


def write(path, head, rows, separator, decimal=".", end="", encoding="utf-8"):
    lines = [*head, *(separator.join(f"{v:g}".replace(".", decimal) for v in row) + end for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("head", "separator", "decimal", "end", "encoding"),
    [
        (["x,y,u,v"], ",", ".", "", "utf-8"),
        (["x;y;u;v"], ";", ",", "", "utf-8"),
        (["x;y;u;v;"], ";", ".", ";", "utf-8-sig"),
        (["tracker 2.1", "frame: 1, factor 0.5", '"x","y","u","v"'], ",", ".", "", "latin-1"),
        (["# x y u v"], "\t", ".", "", "utf-8"),
        (["% made by hand, see notes", "", "% x  y  u  v"], "  ", ".", "", "utf-16"),
        (["x\ty\tu\tv"], "\t", ",", "", "utf-8"),
    ],
)
def test_tables_of_every_style_are_read(tmp_path, head, separator, decimal, end, encoding):
    table = read_table(write(tmp_path / "a.csv", head, ROWS, separator, decimal, end, encoding))
    assert table.columns == ["x", "y", "u", "v"] and table.named and not table.notes
    np.testing.assert_allclose(table.values, ROWS, rtol=1e-5)


def test_missing_entries_are_nan_and_strange_ones_are_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y,u,v\n0,0,1,2\n1,0,,nan\n0,1,N/A,\n1,1,***,4\n2,1,5,6\n")
    table = read_table(path)
    assert np.isnan(table.values[1:3, 2:]).all() and np.isnan(table.values[3, 2]) and table.values[3, 3] == 4
    assert table.notes == ["1 entries of u are no numbers, such as '***': read as missing"]


def test_columns_of_text_are_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y,u,state\n0,0,1,good\n1,0,2,bad\n")
    table = read_table(path)
    assert table.columns == ["x", "y", "u"] and table.values.shape == (2, 3)
    assert table.notes[-1] == "without any number: state"


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
def test_a_matrix_is_told_from_a_table_without_headings(tmp_path, separator):
    matrix = np.random.default_rng(0).normal(size=(7, 4))
    matrix[0] = matrix[3, 1] = np.nan
    np.savetxt(tmp_path / "a.txt", matrix, delimiter=separator, fmt="%.9g")
    table = read_table(tmp_path / "a.txt")
    assert table.columns is None
    np.testing.assert_allclose(table.values, matrix, rtol=1e-8)
    np.savetxt(tmp_path / "b.txt", ROWS[[3, 1, 0, *range(4, 20)]], delimiter=separator)  # any order, one node missing
    assert read_table(tmp_path / "b.txt").columns == ["column 1", "column 2", "column 3", "column 4"]


def test_lines_cut_short_are_named(tmp_path):
    path = write(tmp_path / "a.csv", ["x,y,u,v"], ROWS, ",")
    text = path.read_text()
    path.write_text(text[: text.rstrip().rfind(",")])
    with pytest.raises(ValueError, match=r"a.csv: line 21 has 3 columns where the lines above have 4: .*cut short"):
        read_container(path)
    lines = text.splitlines()
    path.write_text("\n".join([*lines[:9], "1,2", *lines[9:]]))
    with pytest.raises(ValueError, match=r"line 10 has 2 columns .*: damaged or another table"):
        read_container(path)


def test_text_without_numbers_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("hello\nworld\n")
    with pytest.raises(ValueError, match=r"a\.csv: the text has no rows of numbers"):
        read_container(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("u [mm]", "mm"),
        ("x_px", "px"),
        ("V (µm)", "µm"),
        ("u [px/frame]", "px"),
        ("sigma", ""),
        ("z_m", "m"),
        ("um", ""),
    ],
)
def test_units_in_headings(name, unit):
    assert stated_unit(name) == unit


def test_headings_with_descriptions(tmp_path):
    head = ['"id";"Image X [Pixel]";"Image Y [Pixel]";"Horizontal Displacement U [mm]"']
    table = read_table(write(tmp_path / "a.csv", head, ROWS, ";", ","))
    assert re.match("Horizontal", table.columns[3]) and stated_unit(table.columns[1]) == "Pixel"
