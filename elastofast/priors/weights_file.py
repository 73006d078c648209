"""Weights files: a safetensors file with the tensors of a network and, as JSON in its header, how they were made.

A file contains data only: the kind of the network, which is one of `networks.KINDS`, its arguments, and its tensors,
all of which are checked against that network before they are used. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as _serialize
from torch import nn

from ..io import write_atomically
from .networks import KINDS, build

__all__ = ["load", "read_tensors", "save", "write_tensors"]

FORMAT = "elastofast weights"
VERSION = 1  # of the layout
HEADER_LIMIT = 1 << 20  # bytes; the header of a network with hundreds of layers has a tenth of that


def save(path, network, configuration) -> None:
    """Write a network to a weights file, in half precision, whose rounding changes maps far less than noise does.

    Parameters
    ----------
    path : path-like
        The file, usually ``.safetensors``. An existing one is replaced once the new one is complete.
    network : torch.nn.Module
        One of `networks.KINDS`.
    configuration : dict
        How the network was made, as JSON can hold it; ``standard`` are the fields of its `standard.Standard`.

    Raises
    ------
    ValueError
        If a weight is not finite or too large for half precision.
    OSError
        If the file cannot be written.
    """
    header = {"kind": network.kind, "architecture": network.architecture, **configuration}
    tensors = {name: t.half() if t.dtype == torch.float32 else t for name, t in network.state_dict().items()}
    _check_finite(path, tensors)
    write_tensors(path, FORMAT, VERSION, tensors, header)


def load(path, expected=None, device="cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Read a network from a weights file.

    Parameters
    ----------
    path : path-like
        A file that `save` wrote.
    expected : str or tuple of str, optional
        The accepted kinds of network, of `networks.KINDS`; all by default.
    device : str or torch.device, optional
        Where to put the network.

    Returns
    -------
    network : torch.nn.Module
        In evaluation mode and single precision, with weights that need no gradients.
    configuration : dict
        What the file says about the network, with its ``kind`` and ``architecture``.

    Raises
    ------
    ValueError
        If the file is anything else than sound weights of an expected kind; the message says what it is.
    OSError
        If the file cannot be opened.
    """
    tensors, header = read_tensors(path, FORMAT, VERSION)
    kind = header.get("kind")
    architecture: Any = header.get("architecture")
    wanted = tuple(KINDS) if expected is None else (expected,) if isinstance(expected, str) else tuple(expected)
    if kind not in wanted:
        raise ValueError(f"{path}: expected weights of {' or '.join(wanted)}, the file holds {kind!r}")
    try:
        with torch.device("meta"):  # only shapes, so that a damaged file cannot ask for any amount of memory
            network = build(kind, **architecture).float()  # independently of the default type of torch
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its architecture is not one of {kind}: {error}") from error
    own = network.state_dict()
    if missing := sorted(own.keys() - tensors.keys()):
        raise ValueError(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]!r}")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise ValueError(f"{path}: {len(surplus)} tensors are not part of {kind}, the first is {surplus[0]!r}")
    tensors = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise ValueError(
                f"{path}: {name} must be {own[name].dtype} of shape {tuple(own[name].shape)}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    _check_finite(path, tensors)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).to(device).eval(), header


def write_tensors(path, kind_of_file, version, tensors, header) -> None:
    """Write named tensors and a JSON header as one safetensors file, atomically."""
    header = {"format": kind_of_file, "version": version, **header}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, _serialize(tensors, metadata={"elastofast": json.dumps(header, allow_nan=False)}))


def read_tensors(path, kind_of_file, version) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_tensors` wrote; ValueError if it is anything else."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
    length = int.from_bytes(head, "little")
    plausible = len(head) == 8 and 2 <= length <= HEADER_LIMIT
    if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and not plausible):
        raise ValueError(
            f"{path}: expected {kind_of_file} (safetensors), this is a pickle (.pt, .pth, .pkl), which can run code "
            f"when it is opened; elastofast does not open it"
        )
    if not plausible:
        raise ValueError(f"{path}: expected {kind_of_file} (safetensors), the file starts with {head!r}")
    if 8 + length > size:
        raise ValueError(f"{path}: cut short: its header alone takes {8 + length} bytes, the file has {size}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("elastofast")
            header = json.loads(text) if text is not None else None
            if not isinstance(header, dict) or header.get("format") != kind_of_file:
                what = header.get("format") if isinstance(header, dict) else None
                raise ValueError(
                    f"{path}: expected {kind_of_file}, this safetensors file "
                    f"{f'is {what}' if what else 'is not by elastofast'}"
                )
            if header.get("version") != version:
                raise ValueError(
                    f"{path}: {kind_of_file} of version {header.get('version')!r}, this elastofast reads {version}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or cut short: {error}") from error


def _check_finite(path, tensors):
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} has values that are not finite in the file's precision")
