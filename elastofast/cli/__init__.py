"""The command line, ``elastofast COMMAND``: a module for each command.

Such a module has a text and an example for the help, ``HELP`` and ``EXAMPLE``; a function that adds its options,
``add_options(option)``, where ``option`` is ``add_argument`` of the parser; and ``run(options)``, which does the work
and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

from . import compare, dataset, demo, info, inspect, reconstruct, simulate, track, train, verify
from .shared import BROKEN_PIPE, INTERRUPTED, one_line, version

__all__ = ["main"]

COMMANDS = (
    demo,
    simulate,
    dataset,
    track,
    inspect,
    reconstruct,
    compare,
    train,
    info,
    verify,
)  # in the order of the help


def main(argv=None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments, ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0; 2 after an error, which is reported in one line on stderr; 130 after Ctrl-C; 141 if nobody reads the output.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or the error
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.run(options)
    except KeyboardInterrupt as stop:
        print(f"elastofast: interrupted {stop}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if options.debug:
            raise
        print(f"elastofast: error: {one_line(error)}", file=sys.stderr)
        return 2


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Warnings in one line, without the source line that Python shows."""
    print(f"elastofast: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"elastofast: error: {message} (see {self.prog} --help)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the example as it is written, and the default of each option that has one."""

    def _get_help_string(self, action):
        shown = isinstance(action.default, str | float | int) and not isinstance(action.default, bool)
        shown = shown and action.default != argparse.SUPPRESS
        return action.help + (" (default: %(default)s)" if shown else "")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="elastofast", description="Tissue stiffness maps from noisy ultrasound displacement fields.")
    parser.add_argument(
        "--version", action="version", version=f"elastofast {version('elastofast') or '(not installed)'}"
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=textwrap.fill(f"{command.HELP[0].upper()}{command.HELP[1:]}.", 100),
            epilog=f"example:\n  elastofast {name} {command.EXAMPLE}".rstrip(),
            formatter_class=_Help,
        )
        sub.set_defaults(run=command.run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_options(_adder(sub))
    return parser


def _adder(parser) -> Callable:
    """``add_argument`` of a parser, where options of one ``group`` exclude each other."""
    groups: dict[str, Any] = {}

    def option(*names, group=None, **settings):
        if group is not None and group not in groups:
            groups[group] = parser.add_mutually_exclusive_group()
        (parser if group is None else groups[group]).add_argument(*names, **settings)

    return option
