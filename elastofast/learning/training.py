"""The training loop, one for all recipes: checkpoints, several processes, logs, choice of the best weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import json
import math
import os
import signal
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from .. import __version__
from ..io import write_atomically
from ..priors import weights_file
from ..progress import progress_bar
from .recipes import Maps, Recipe

__all__ = ["train"]

CHECKPOINT = "elastofast checkpoint"
VERSION = 1


def train(
    recipe,
    data,
    out,
    *,
    seed=0,
    count=None,
    device=None,
    amp=False,
    init=None,
    resume=False,
    validate=None,
    validate_every=500,
    checkpoint_every=300.0,
    log_every=50,
    log=None,
    progress=True,
) -> dict:
    """Train a network and write its weights.

    Beside ``out`` it writes ``<stem>.jsonl``, a log of one JSON object a line, and ``<stem>.checkpoint``, which is
    removed at the end. Ctrl-C or SIGTERM ends after the current step with a checkpoint. A resumed run gives bit for bit
    the weights of an uninterrupted one (on the CPU, with as many threads): the random numbers of a step depend on the
    seed, the step and the process alone.

    Under ``torchrun`` each process draws its own batches and the gradients are averaged; process 0 writes.

    Parameters
    ----------
    recipe : Recipe
        What to train and how; see `recipes.recipe`.
    data : path-like or Dataset
        Data set with training and validation maps.
    out : path-like
        Weights file to write, ``.safetensors``: at every validation that is the best one yet.
    seed : int, optional
        Of initial weights and batches.
    count : int, optional
        Use the first so many training maps alone.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; CUDA if there is a device.
    amp : bool, optional
        Compute the network in bfloat16 where it holds, with float32 weights.
    init : path-like, optional
        Weights file of the same kind and architecture to start from.
    resume : bool, optional
        Go on from the checkpoint beside ``out`` if there is one.
    validate : callable, optional
        ``validate(network) -> dict`` of figures in place of the recipe's own. The best weights are those with the
        smallest ``relative_error``; without that figure the latest are kept.
    validate_every : int, optional
        Steps between validations; there is one at the end in any case.
    checkpoint_every : float, optional
        Seconds between checkpoints.
    log_every : int, optional
        Steps between lines of the log, over which its figures are averaged.
    log : path-like, optional
        Folder for TensorBoard.
    progress : bool, optional
        Show a progress bar where stderr is a terminal.

    Returns
    -------
    dict
        ``status`` ("finished" or "interrupted"), ``step``, and ``best``, the figures of the weights in ``out``.

    Raises
    ------
    ValueError
        If an argument, the data set or the checkpoint does not fit.
    RuntimeError
        If the loss stops being finite.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}")
    if amp and not recipe.mixed:
        raise ValueError(f"amp does not hold for {recipe.kind}: its loss has second derivatives, which need float32")
    for name, value in (("validate_every", validate_every), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"the folder of the output does not exist: {out.parent}")
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(_Team(device))
        if not hasattr(data, "indices"):
            from .dataset import Dataset

            data = stack.enter_context(Dataset.open(data))
        maps = Maps.read(data, "train", recipe.standard, count=count, device=team.device)
        run = _Run(recipe, maps, data, team, seed=seed, amp=amp, init=init, out=out)
        if team.leads:
            run.validate = validate or recipe.validator(data, team.device)
        if run.checkpoint.exists():
            if not resume:
                raise ValueError(f"{run.checkpoint} is of an earlier run: resume it, or remove it to start anew")
            run.restore()
        log_file = stack.enter_context(_Log(out.with_suffix(".jsonl"), log, run, progress)) if team.leads else None
        stop = stack.enter_context(_StopSignal(patient=team.size > 1))
        return run.go(stop, log_file, validate_every, checkpoint_every, log_every)


class _Run:
    """A training run: all that a checkpoint holds, and the steps."""

    def __init__(self, recipe, maps, data, team, *, seed, amp, init, out):
        self.recipe, self.maps, self.team, self.out = recipe, maps, team, out
        self.seed, self.amp = seed, amp
        self.checkpoint = out.with_suffix(".checkpoint")
        self.steps = recipe.length(maps)
        self.validate = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = recipe.network(tuple(maps.truth.shape[1:]))
        if init is not None:
            started, _ = weights_file.load(init, expected=recipe.kind)
            if started.architecture != network.architecture:
                raise ValueError(f"init: {init} is of {started.architecture}, the recipe's is {network.architecture}")
            network.load_state_dict(started.state_dict())
        # convolutions on the CPU are 1.2 to 2 times as fast with channels last
        self.network = network.to(team.device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval() if recipe.ema else self.network
        self.optimizer = recipe.optimizer(self.network.parameters())
        self.step, self.best, self.seconds = 0, None, 0.0
        # what a resumed run has to have in common with the one before
        self.settings = {
            "recipe": {"kind": recipe.kind, **dataclasses.asdict(recipe), "standard": recipe.standard._asdict()},
            "steps": self.steps, "seed": seed, "maps": len(maps), "processes": team.size, "amp": amp,
            "init": None if init is None else Path(init).name,
            "data_crc32": zlib.crc32(maps.truth.cpu().numpy().tobytes()),
        }  # fmt: skip
        self.settings = json.loads(json.dumps(self.settings))  # as they are read again: tuples are lists
        self.data_config = data.config

    def go(self, stop, log, validate_every, checkpoint_every, log_every) -> dict:
        generator = torch.Generator(self.team.device)
        saved, started, stopped = time.monotonic(), time.monotonic() - self.seconds, False
        while self.step < self.steps and not stopped:
            loss, figures = self._advance(generator)
            stopped = self.team.any(stop.requested)
            self.seconds = time.monotonic() - started
            if not self.team.leads:
                continue
            log.add(loss, figures)
            last = self.step == self.steps
            if self.step % log_every == 0 or last or stopped:
                log.write(self.step, self.seconds)
            if self.step % validate_every == 0 or last:
                log.write(self.step, self.seconds)
                self._keep_best(log)
            if stopped or (not last and time.monotonic() - saved > checkpoint_every):
                log.check()
                self.save()
                saved = time.monotonic()
        if self.team.leads and self.step == self.steps:
            self.checkpoint.unlink(missing_ok=True)
        status = "finished" if self.step == self.steps else "interrupted"
        return {"status": status, "step": self.step, "best": self.best}

    def _advance(self, generator):
        """One step of the optimizer; loss and figures."""
        recipe, team = self.recipe, self.team
        stream = np.random.SeedSequence((self.seed, self.step, team.rank)).generate_state(1, np.uint64)
        generator.manual_seed(int(stream[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step, self.steps)
        with torch.no_grad():
            batch = recipe.sample(self.maps, generator)
        with torch.autocast(team.device.type, torch.bfloat16, enabled=self.amp):
            loss, figures = recipe.loss(self.network, batch, generator)
        self.optimizer.zero_grad()
        loss.backward()
        team.average(self.network)
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self.optimizer.step()
        if recipe.ema:
            # shorter memory at first, which is not worth remembering
            decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for kept, new in zip(_tensors(self.average), _tensors(self.network), strict=True):
                    kept.lerp_(new, 1 - decay)
        self.step += 1
        return loss.detach(), figures

    def _keep_best(self, log):
        """Validate the averaged weights; write them if they are the best."""
        self.average.eval()
        figures = {"step": self.step, **(self.validate(self.average) if self.validate else {})}
        self.network.train()
        log.validated(figures, self.seconds)
        error = figures.get("relative_error")
        if error is not None and self.best is not None and not error < self.best["relative_error"]:
            return
        self.best = figures
        made = {
            **self.settings, "data": self.data_config, "validation": figures, "seconds": round(self.seconds, 1),
            "elastofast": __version__, "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        weights_file.save(self.out, self.average, {"standard": self.recipe.standard._asdict(), "training": made})

    # checkpoint -----------------------------------------------------------------------------------

    def _state(self):
        """All tensors of the run by name; loading copies into them."""
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        if self.average is not self.network:
            tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        return tensors

    def save(self):
        """Write the checkpoint."""
        tensors = self._state()
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        header = {"settings": self.settings, "step": self.step, "best": self.best, "seconds": self.seconds}
        weights_file.write_tensors(self.checkpoint, CHECKPOINT, VERSION, tensors, header)

    def restore(self):
        """Continue where the checkpoint was written."""
        path = self.checkpoint
        tensors, header = weights_file.read_tensors(path, CHECKPOINT, VERSION)
        _compare(path, header.get("settings"), self.settings)
        optimizer: dict = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = tensors.pop(name)
        own = self._state()
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise ValueError(f"{path}: damaged: {name} is missing or has another shape than {tuple(tensor.shape)}")
            tensor.copy_(tensors[name])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        for parameter, state in self.optimizer.state.items():  # laid out as the parameter, or sums round differently
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        self.step, self.best, self.seconds = header["step"], header["best"], header["seconds"]


class _Team:
    """The processes that torchrun started, or this one alone.

    Gradients are averaged here and not by DistributedDataParallel, whose hooks do not see `torch.autograd.grad`, which
    the critics' slopes are made of. The networks are small: one reduction of everything costs little.
    """

    def __init__(self, device):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch finds no CUDA device here")
        environment = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # as torchrun sets it
        self.size, self.rank, local = (int(os.environ.get(name, value)) for name, value in environment.items())
        self.device = torch.device(device, local) if device == "cuda" else torch.device(device)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def __enter__(self):
        if self.size > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, *error):
        if self.size > 1:
            distributed.destroy_process_group()

    def average(self, network):
        """Replace gradients and float buffers by their means over the processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        tensors = gradients + [b for b in network.buffers() if b.is_floating_point()]
        flat = torch.cat([t.reshape(-1) for t in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def any(self, flag) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        distributed.all_reduce(flags)
        return flags.item() > 0


class _StopSignal:
    """Ctrl-C and SIGTERM ask for an end after the step; a second Ctrl-C ends at once, unless `patient`.

    torchrun passes Ctrl-C on to processes that had it already, hence patience there.
    """

    def __init__(self, patient=False):
        self.patient, self.requested = patient, False

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        if self.requested and not self.patient:
            raise KeyboardInterrupt
        self.requested = True


class _Log:
    """Progress bar, JSON lines and, if asked for, TensorBoard."""

    def __init__(self, path, folder, run, progress):
        self.path, self.run = path, run
        self.board = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # ImportError names tensorboard if it is missing

            self.board = SummaryWriter(folder, purge_step=run.step)
        self.bar = progress_bar(run.recipe.kind, "step", progress, run.steps, run.step, leave=True)
        self.sums: dict[str, Any] = {}
        self.number, self.validation = 0, ""

    def __enter__(self):
        kept = []
        if self.run.step:
            with contextlib.suppress(FileNotFoundError):
                kept = [line for line in self.path.read_text("utf-8").splitlines() if self._stays(line)]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def _stays(self, line):
        """Whether a line is whole and not past the checkpoint: those will come again."""
        try:
            return json.loads(line)["step"] <= self.run.step
        except json.JSONDecodeError:
            return False

    def __exit__(self, *error):
        self.bar.close()
        self.file.close()
        if self.board:
            self.board.close()

    def add(self, loss, figures):
        for name, value in {"loss": loss, **figures}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value  # on the device: no waiting for it at every step
        self.number += 1
        self.bar.update()

    def check(self):
        """Raise if the loss was not finite since the last line."""
        if self.number and not math.isfinite(float(self.sums["loss"])):
            raise RuntimeError(
                f"the loss of {self.run.recipe.kind} is not finite at step {self.run.step}: "
                f"try a rate below {self.run.recipe.rate:g}"
            )

    def write(self, step, seconds):
        if not self.number:
            return
        self.check()
        means = {name: float(total) / self.number for name, total in self.sums.items()}
        self.sums, self.number = {}, 0
        self._line("train", step, seconds, means)
        text = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.bar.set_postfix_str(text + self.validation, refresh=False)

    def validated(self, figures, seconds):
        figures = {name: value for name, value in figures.items() if name != "step"}
        self._line("validation", self.run.step, seconds, figures)
        if "relative_error" in figures:
            self.validation = f", validation {figures['relative_error']:.4f}"

    def _line(self, kind, step, seconds, figures):
        line = {"step": step, "seconds": round(seconds, 2), "kind": kind, **figures}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)


def _tensors(network):
    """Parameters and float buffers."""
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]


def _compare(path, before, now):
    """Refuse a checkpoint of another run, and say what differs."""
    before = before if isinstance(before, dict) else {}
    pairs = [(name, before.get(name), value) for name, value in now.items() if name != "recipe"]
    recipe = before.get("recipe") or {}
    pairs += [(name, recipe.get(name), value) for name, value in now["recipe"].items()]
    for name, old, new in pairs:
        if old != new:
            raise ValueError(f"{path}: that run had {name} = {old!r}, this one has {new!r}; remove it to start anew")
