"""The progress bar of everything that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(
    text: str, unit: str, shown, total: int | None = None, done: int = 0, *, leave: bool = False, always: bool = False
) -> tqdm:
    """A bar on stderr, to be closed or used as a context manager; its ``update`` advances it.

    Parameters
    ----------
    text : str
        What is done, in front of the bar.
    unit : str
        What is counted.
    shown : bool
        If false there is no bar, if true there is one where stderr is a terminal.
    total : int, optional
        How many units there are, where that is known.
    done : int, optional
        How many of them were finished before.
    leave : bool, optional
        Whether the bar stays on the screen when it is closed.
    always : bool, optional
        Show it also where stderr is no terminal, as in a notebook.
    """
    from tqdm import tqdm

    disable = None if shown and not always else not shown  # None: where stderr is not a terminal
    return tqdm(desc=text, total=total, initial=done, unit=unit, leave=leave, disable=disable)
