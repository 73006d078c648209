"""Sidecars: small TOML files that say how to read somebody else's file as a measurement (docs/files.md).

A sidecar names the variables of the file and states what no file says by itself: units, axes and signs, the noise
level, the material law and the load. It is written by ``elastofast inspect``, made to be edited by a person, and read
by ``elastofast reconstruct --with`` and `load_measurement`. A value that nobody has stated yet is a question mark, and
a sidecar with one is refused.
"""

from __future__ import annotations

import difflib
import json
import os
import textwrap
import tomllib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..boundary import CONTACTS
from ..errors import DataError
from .containers import read_container
from .layout import MODULUS, naming

__all__ = ["ESTIMATE", "KEYS", "STATED", "UNITS", "UNKNOWN", "Sidecar"]

STATED = "as the file states it"  # the reason of a value that is no guess
ESTIMATE = "estimate"  # stands for a noise level that the reconstruction is to find
UNKNOWN = "?"  # stands for a value that has to be stated by a person
UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}  # in metres; "px" besides, of the size units.pixel
EDGES = ("top", "bottom", "left", "right")
WIDTH = 100  # of the comments in a sidecar


class Key(NamedTuple):
    """One line of a sidecar.

    Attributes
    ----------
    default : object
        Its value where the line is missing; `UNKNOWN` if it must be there.
    kind : str or tuple of str
        "text", "number", "level" (a number or `ESTIMATE`), "whole", "numbers", "wholes" or "texts" (lists), or the
        words that it may be.
    comment : str
        What it means.
    """

    default: Any
    kind: Any
    comment: str


SECTIONS = {
    "files": "Further files of the same measurement.",
    "axial": "Depth: the direction away from the transducer, along which the tissue is compressed.",
    "lateral": "Across.",
    "units": "Units in the file. elastofast itself works in metres, newtons and pascals.",
    "noise": "How noisy the displacement is. This decides how much of its detail is taken for real.",
    "region": "Which part is used. Values that are missing in the file (NaN) are never used.",
    "law": "The material.",
    "load": "What is known about the forces.",
}

KEYS = {
    "files.more": Key(
        [],
        "texts",
        'names in the folder of the file, or "A -> B": the name of the file with A replaced by B. Their '
        'variables are called "2:name", "3:name", and "2:data" where a file holds one array without a name',
    ),
    "files.frames": Key(
        1,
        "whole",
        "number of frames of one body in the file, such as those of a compression sequence, for one map from all "
        "(reconstruct --joint); {frame} in a name stands for their number, counted from 0",
    ),
    "axial.displacement": Key(
        UNKNOWN,
        "text",
        'variable or column of the axial displacement; "u[0]", "u[..., 1]" or "u[:, :, 7]" take one '
        'component, frame or slice of a larger array, counted from 0, and "u[{frame}, 0]" one of each frame',
    ),
    "axial.coordinate": Key(
        "", "text", "variable or column of the depth; empty if the file has none: state the spacing"
    ),
    "axial.spacing": Key(
        0.0, "number", "distance between rows in units.coordinate, where there is no coordinate; else 0"
    ),
    "axial.array_axis": Key(
        0, "whole", "axis of the arrays along depth: 0 if rows are depths, 1 if columns are; not used for tables"
    ),
    "axial.grows": Key(
        "down", ("down", "up"), "where the depth coordinate (or the row number) grows: down is away from the transducer"
    ),
    "axial.sign": Key(1, (1, -1), "1 if a positive displacement points to where the coordinate grows, else -1"),
    "lateral.displacement": Key("", "text", "variable or column of the lateral displacement; empty if not measured"),
    "lateral.coordinate": Key("", "text", "variable or column of the lateral coordinate, or empty"),
    "lateral.spacing": Key(0.0, "number", "distance between columns in units.coordinate, where there is no coordinate"),
    "lateral.sign": Key(1, (1, -1), "1 if a positive displacement points to where the coordinate grows, else -1"),
    "units.displacement": Key(UNKNOWN, (*UNITS, "px"), "m, cm, mm, um, nm or px"),
    "units.coordinate": Key(UNKNOWN, (*UNITS, "px"), "unit of coordinates and spacings: m, cm, mm, um, nm or px"),
    "units.pixel": Key([], "numbers", "size of a pixel in metres, axial and lateral, where a unit is px; else []"),
    "noise.std": Key(
        UNKNOWN,
        "level",
        "standard deviation of the displacement in units.displacement. Measure it, for "
        "example, as the difference of two displacement fields of the same compression over the square root "
        f'of 2; "{ESTIMATE}" finds it from what no modulus explains; 0 if noise.variable is given',
    ),
    "noise.lateral_std": Key(0.0, "number", "the same for the lateral component; 0: as the axial one"),
    "noise.variable": Key("", "text", "variable or column of the standard deviation at each node, or empty"),
    "noise.lateral_variable": Key("", "text", "the same for the lateral component; empty: as the axial one"),
    "noise.quality": Key(
        "", "text", "variable or column of the quality of the tracking, such as a correlation coefficient, or empty"
    ),
    "noise.threshold": Key(0.0, "number", "values of lower quality count as not measured"),
    "noise.scale": Key(
        "none",
        ("none", "correlation"),
        "correlation: where the correlation coefficient r is low the "
        "standard deviation is larger, as sqrt(1/r^2 - 1); noise.std is then that at the median of r",
    ),
    "noise.correlation": Key(
        [],
        "numbers",
        "correlation length of the noise, axial and lateral, in units.coordinate: that "
        "of overlapping tracker windows; [] if noise is independent from node to node",
    ),
    "region.mask": Key("", "text", "variable or column that says where the displacement was measured, or empty"),
    "region.measured": Key([], "numbers", "values of the mask that mean measured; []: every value but 0"),
    "region.rows": Key([], "wholes", "first and last row that is used, counted from 0 at the transducer; [] for all"),
    "region.columns": Key([], "wholes", "first and last column that is used, counted from 0; [] for all"),
    "law.kind": Key(
        UNKNOWN,
        ("plane_stress", "plane_strain"),
        "plane_stress for thin samples and slices, plane_strain where the tissue cannot move out of the plane",
    ),
    "law.poisson": Key(UNKNOWN, "number", "Poisson ratio, below 0.5; soft tissue 0.495"),
    "law.poisson_variable": Key(
        "", "text", "variable or column of the Poisson ratio at each node, or empty; law.poisson fills its gaps"
    ),
    "load.kind": Key(
        UNKNOWN,
        ("open", "pressure", "strain"),
        "open: the edges are cut out of a larger body, forces there "
        "are unknown and the map has no absolute scale; pressure: a known uniform pressure on the top; "
        "strain: a plate has moved the top by a known fraction of the height. The last two: on a plate, with free "
        "sides",
    ),
    "load.contact": Key(
        "frictionless",
        CONTACTS,
        "if pressure or strain, how the tissue touches the plates: frictionless; bonded: it does not move sideways "
        "there; measured, with a pressure: as the data say",
    ),
    "load.value": Key(0.0, "number", "the pressure in pascals or the strain, positive for compression; 0 if open"),
    "load.values": Key([], "numbers", "of several frames, what load.value is in each; [] if it is the same in all"),
    "load.edges": Key([*EDGES], "edges", "if open: which edges are; the others are free of forces"),
    "load.force": Key(
        0.0,
        "number",
        "measured axial force on the top in newtons per metre of thickness, positive away "
        "from the transducer, which gives the map its absolute scale; 0 if unknown",
    ),
}


@dataclass(frozen=True)
class Sidecar:
    """How to read a file as a measurement.

    Attributes
    ----------
    values : dict
        The value of every key of `KEYS`.
    source : str
        Where it comes from, for messages.
    reasons : dict of str to str
        For keys that were guessed: why. They become comments of the file.
    """

    values: dict[str, Any]
    source: str = "the sidecar"
    reasons: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, key):
        return self.values[key]

    @classmethod
    def read(cls, path: str | os.PathLike) -> Sidecar:
        """Read a sidecar from a TOML file, or from a modulus file that was reconstructed with one.

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If it is no TOML, has a key that is not known or a value of the wrong type, or is a modulus file whose
            settings contain no sidecar.
        """
        path = Path(path)
        if path.suffix.lower() == ".toml":
            try:
                return cls.of(tomllib.loads(path.read_text(encoding="utf-8-sig")), str(path))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: not a TOML file: {error}") from error
        container = read_container(path)
        with naming(path):
            held = "format" in container and container.get("format") == MODULUS and "config" in container
            config = json.loads(container.get("config")) if held else {}
            if not isinstance(config.get("sidecar"), dict):
                raise DataError("a sidecar is a .toml file, or a modulus file that was reconstructed with one")
        return cls.of(config["sidecar"], str(path))

    @classmethod
    def of(cls, sections: Mapping[str, Any], source: str = "the sidecar") -> Sidecar:
        """A sidecar from a dict of sections, each a dict; see `read`."""
        values = {name: key.default for name, key in KEYS.items()}
        for section, content in sections.items():
            if not isinstance(content, Mapping):
                raise DataError(f"{source}: [{section}] must be a section, one of {', '.join(SECTIONS)}")
            for name, value in content.items():
                values[_known(f"{section}.{name}", source)] = value
        for name, value in values.items():
            _check(name, value, source)
        return cls(values, source)

    def changed(self, settings: Sequence[str]) -> Sidecar:
        """With some values replaced, each given as text, ``"units.displacement=mm"``."""
        values = dict(self.values)
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals:
                raise DataError(f"a setting must be of the form KEY=VALUE, such as units.displacement=mm, got {text!r}")
            name = _known(name.strip(), "settings")
            values[name] = _value(value.strip())
            _check(name, values[name], "settings")
        return Sidecar(values, self.source, self.reasons)

    def frame(self, k: int) -> Sidecar:
        """The sidecar of one of the frames in a file, counted from 0."""
        count, loads = self["files.frames"], self["load.values"]
        if not 0 <= k < count:
            raise ValueError(f"files.frames must be at least 1, got {count}" if count < 1 else f"there is no frame {k}")
        if loads and len(loads) != count:
            raise ValueError(f"load.values must have one value for each of {count} frames, got {len(loads)}")
        values = {
            name: value.replace("{frame}", str(k)) if isinstance(value, str) else value
            for name, value in self.values.items()
        }
        if loads:
            values["load.value"] = loads[k]
        return Sidecar(values, self.source, self.reasons)

    def unstated(self) -> list[str]:
        """Keys that still have to be stated."""
        return [name for name, value in self.values.items() if value == UNKNOWN]

    def require(self, given: Container[str] = ()) -> None:
        """Raise ValueError if anything still has to be stated, with what it means.

        Parameters
        ----------
        given : collection of str, optional
            Arguments of `Measurement` that are stated elsewhere: ``law``, ``load``, ``displacement_std``.
        """
        elsewhere = {"law": "law", "load": "load", "displacement_std": "noise"}
        sections = {section for argument, section in elsewhere.items() if argument in given}
        missing = [name for name in self.unstated() if name.partition(".")[0] not in sections]
        if missing:
            brief = len(missing) > 1
            meanings = (KEYS[name].comment.partition(". ")[0] if brief else KEYS[name].comment for name in missing)
            what = "; ".join(f"{name} ({meaning})" for name, meaning in zip(missing, meanings, strict=True))
            raise DataError(
                f"{self.source} does not state {what}. State it in the sidecar, or with --set {missing[0]}=VALUE"
            )

    def sections(self) -> dict[str, dict[str, Any]]:
        """The values as a dict of sections, as `of` takes them."""
        found: dict[str, dict[str, Any]] = {}
        for name, value in self.values.items():
            section, _, key = name.partition(".")
            found.setdefault(section, {})[key] = value
        return found

    def text(self, heading: Sequence[str] = ()) -> str:
        """The TOML file, with a comment above each line: what it means and why it was guessed so."""
        lines = [f"# {line}".rstrip() for line in heading]
        last = ""
        for name, key in KEYS.items():
            section, _, short = name.partition(".")
            if section != last:
                lines += ["", f"[{section}]  # {SECTIONS[section]}"]
                last = section
            lines += textwrap.wrap(key.comment, WIDTH, initial_indent="# ", subsequent_indent="#   ")
            reason = self.reasons.get(name)
            if self.values[name] == UNKNOWN:
                reason = "TO BE STATED" + (f": {reason}" if reason else "")
            elif reason and reason != STATED:
                reason = f"GUESSED: {reason}"
            if reason:
                lines += textwrap.wrap(reason, WIDTH, initial_indent="# ", subsequent_indent="#   ")
            lines.append(f"{short} = {_toml(self.values[name])}")
        return "\n".join(lines).lstrip("\n") + "\n"


def _value(text):
    """A value as TOML has it, or a number or a text as one writes them on a command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        try:
            return float(text)  # such as .5, which is not TOML
        except ValueError:
            return text


def _known(name, source):
    if name not in KEYS:
        close = difflib.get_close_matches(name, KEYS, 1)
        hint = f"; did you mean {close[0]}?" if close else f", expected one of {', '.join(KEYS)}"
        raise DataError(f"{source}: unknown key {name!r}{hint}")
    return name


def _check(name, value, source):
    """Raise ValueError if a value is of the wrong type."""
    kind = KEYS[name].kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    lists = {"numbers": int | float, "wholes": int, "texts": str, "edges": str}
    if value == UNKNOWN:
        return  # which `require` reports
    if isinstance(kind, tuple):
        good, expected = value in kind, f"one of {', '.join(map(str, kind))}"
    elif kind in lists:
        good = isinstance(value, list) and all(isinstance(v, lists[kind]) and v is not True for v in value)
        expected = {"texts": "a list of texts", "edges": f"a list of {', '.join(EDGES)}"}.get(kind, "a list of numbers")
        if kind == "edges" and good:
            good = set(value) <= set(EDGES)
    elif kind == "level":
        good, expected = number or value == ESTIMATE, f'a number or "{ESTIMATE}"'
    else:
        good = {"text": isinstance(value, str), "number": number, "whole": number and isinstance(value, int)}[kind]
        expected = {"text": "a text in quotation marks", "number": "a number", "whole": "a whole number"}[kind]
    if not good:
        raise DataError(f"{source}: {name} must be {expected}, got {value!r}")


def _toml(value) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # the escapes of JSON are among those of TOML
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(float(value)) if isinstance(value, float) else repr(value)
