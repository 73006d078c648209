"""The training loop of all recipes: checkpoints, several processes, logs, and the choice of the best weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import itertools
import json
import math
import os
import signal
import tempfile
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from .. import __version__
from ..io.atomic import only_process, write_atomically
from ..priors import weights_file
from ..progress import progress_bar
from .recipes import Maps, Recipe

__all__ = ["train"]

CHECKPOINT = "elastofast checkpoint"
VERSION = 1  # of the layout of checkpoints
CURRENT = ("truth", "mask", "errors")  # what of the current maps is in a checkpoint
EMA_DELAY = 10  # steps; the average has the decay (1 + step) / (EMA_DELAY + step) until that reaches the recipe's


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
    blend=1.0,
    reconstruct=None,
    resume=False,
    validate=None,
    validate_every=500,
    checkpoint_every=300.0,
    log_every=50,
    log=None,
    progress=True,
) -> dict:
    """Train a network and write its weights.

    Beside ``out`` there are ``<stem>.jsonl``, a log with one JSON object in each line, and ``<stem>.checkpoint``, which
    is removed at the end. Ctrl-C or SIGTERM ends the training after the current step and a checkpoint. A resumed run
    gives bit for bit the same weights as an uninterrupted one (on the CPU with the same number of threads), because the
    random numbers of a step depend on the seed, the step and the process alone.

    Under ``torchrun`` each process draws its own batches, the gradients are averaged, and process 0 writes the files.
    Only process 0 needs the checkpoint, so machines need not share a file system; each of them needs the data set.
    Where torchrun starts all processes again, because one was lost, they go on from the checkpoint: docs/training.md.

    Parameters
    ----------
    recipe : Recipe
        What is trained and how; see `recipes.recipe`.
    data : path-like or Dataset
        Data set with training and validation maps.
    out : path-like
        Weights file (``.safetensors``), which is written whenever a validation is the best one yet.
    seed : int, optional
        Seed of the initial weights and the batches.
    count : int, optional
        Use only the first ``count`` training maps.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; by default CUDA if there is a device.
    amp : bool, optional
        Compute the network in bfloat16 where that is precise enough, with weights in float32.
    init : path-like, optional
        Weights file of the same kind and architecture to start from.
    blend : float, optional
        Share of the trained weights in those that are kept; the rest is those of ``init``. Means between a network and
        what it became by further training are often better than both ends where the data differ from those of the
        further training (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
    reconstruct : path-like or Dataset, optional
        Data set whose training measurements are reconstructed with the network as it is, for recipes that ask for that;
        default ``data``. It needs neither unregularised maps nor drawn errors, only maps of the same shape.
    resume : bool, optional
        Go on from the checkpoint beside ``out`` if there is one, as processes do that torchrun has started again.
    validate : callable, optional
        ``validate(network) -> dict`` of figures, in place of the validation of the recipe. The best weights are those
        with the smallest ``relative_error``; without that figure the latest weights are kept.
    validate_every : int, optional
        Steps between validations; there is always one at the end.
    checkpoint_every : float, optional
        Seconds between checkpoints.
    log_every : int, optional
        Steps between the lines of the log, whose figures are means over these steps.
    log : path-like, optional
        Folder for TensorBoard.
    progress : bool, optional
        Show a progress bar where stderr is a terminal.

    Returns
    -------
    dict
        ``status`` ("finished" or "interrupted"), ``step``, and ``best``, the validation of the weights in ``out``.

    Raises
    ------
    ValueError
        If an argument, the data set or the checkpoint does not fit, or not all processes have the same ones.
    OSError
        If a file cannot be read or written, or another process is training the same weights (BlockingIOError).
    RuntimeError
        If the loss is not finite any more.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}")
    if amp and not recipe.mixed:
        raise ValueError(f"amp does not hold for {recipe.kind}: its loss has second derivatives, which need float32")
    for name, value in (("validate_every", validate_every), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not 0 < blend <= 1 or (blend < 1 and init is None):
        raise ValueError(f"blend must be above 0 and at most 1, and needs an init below 1, got {blend}")
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"the folder of the output does not exist: {out.parent}")
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(_Team(device))
        data = _opened(data, stack)
        measured = data if reconstruct is None else _opened(reconstruct, stack)
        maps = Maps.read(data, "train", recipe.standard, count=count, device=team.device)
        run = _Run(recipe, maps, data, measured, team, seed=seed, amp=amp, init=init, blend=blend, out=out)
        team.agree(run.settings)
        if team.leads:
            stack.enter_context(only_process(out.with_name(f".{out.name}.lock"), out))
            run.validate = validate or recipe.validator(data, team.device)
        with team.file_of_leader(run.checkpoint) as checkpoint:
            if checkpoint is not None:
                if not resume and not team.restarts:
                    raise ValueError(f"{run.checkpoint} is of an earlier run: resume it, or remove it to start anew")
                run.restore(checkpoint)
        log_file = stack.enter_context(_Log(out.with_suffix(".jsonl"), log, run, progress)) if team.leads else None
        stop = stack.enter_context(_StopSignal(patient=team.size > 1))
        return run.go(stop, log_file, validate_every, checkpoint_every, log_every)


def _opened(data, stack):
    """A data set, opened if it is a path."""
    if hasattr(data, "indices"):
        return data
    from .dataset import Dataset

    return stack.enter_context(Dataset.open(data))


class _Run:
    """A training run: its state, all of which is in a checkpoint, and its steps."""

    def __init__(self, recipe, maps, data, measured, team, *, seed, amp, init, blend, out):
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
        self.blend = blend
        self.first = copy.deepcopy(network).to(team.device) if blend < 1 else None
        # with channels last convolutions on the CPU are 1.2 to 2 times as fast
        self.network = network.to(team.device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval() if recipe.ema else self.network
        self.optimizer = recipe.optimizer(self.network.parameters())
        self.step, self.best, self.seconds = 0, None, 0.0
        # a run can be resumed only with the same settings
        self.settings = {
            "recipe": {"kind": recipe.kind, **dataclasses.asdict(recipe), "standard": recipe.standard._asdict()},
            "steps": self.steps, "seed": seed, "maps": len(maps), "processes": team.size, "amp": amp,
            "init": None if init is None else Path(init).name, "blend": blend,
            "reconstruct": None if measured is data else measured.config,
            "data_crc32": zlib.crc32(maps.truth.cpu().numpy().tobytes()),
        }  # fmt: skip
        self.settings = json.loads(json.dumps(self.settings))  # with lists for tuples, as a checkpoint gives them back
        self.measured, self.data_config = measured, data.config
        # of a data set that is the training data itself, only as many maps are reconstructed as are trained on
        self.measured_count = len(maps) if measured is data else None
        if measured is not data:
            self.data_config = {**data.config, "reconstruct": measured.config}
        if team.size > 1 and recipe.refresh_at(0, self.steps):
            raise ValueError(f"{recipe.kind}: reconstructions of the current network are made by one process only")

    def go(self, stop, log, validate_every, checkpoint_every, log_every) -> dict:
        generator = torch.Generator(self.team.device)
        saved, started, stopped = time.monotonic(), time.monotonic() - self.seconds, False
        while self.step < self.steps and not stopped:
            if self.recipe.refresh_at(self.step, self.steps) and not self._refresh(stop):
                self.save()  # without the new maps: a resumed run makes them again
                break
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

    def _refresh(self, stop) -> bool:
        """Make the maps that depend on the averaged network as it is; whether that was not stopped."""
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, self.step), spawn_key=(1,)))
        current = self.recipe.current_maps(
            self.average.eval(), self.measured, self.measured_count, rng, lambda: stop.requested
        )
        self.network.train()
        if current is None:
            return False
        self.maps = dataclasses.replace(self.maps, current=current.to(self.team.device))
        return True

    def _advance(self, generator):
        """Make one step of the optimizer; its loss and other figures."""
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
            # the average forgets faster at first, because early weights are bad
            decay = min(recipe.ema, (1 + self.step) / (EMA_DELAY + self.step))
            with torch.no_grad():
                for kept, new in zip(_tensors(self.average), _tensors(self.network), strict=True):
                    kept.lerp_(new, 1 - decay)
        self.step += 1
        return loss.detach(), figures

    def _keep_best(self, log):
        """Validate the averaged weights, and write them if they are the best ones yet."""
        kept = self._kept()
        figures = {"step": self.step, **(self.validate(kept) if self.validate else {})}
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
        weights_file.save(self.out, kept, {"standard": self.recipe.standard._asdict(), "training": made})

    def _kept(self):
        """The network as it is written: the averaged weights, or their mean with those that training began with."""
        if self.first is None:
            return self.average.eval()
        kept = copy.deepcopy(self.average).eval()
        with torch.no_grad():
            for tensor, first in zip(_tensors(kept), _tensors(self.first), strict=True):
                tensor.lerp_(first, 1 - self.blend)
        return kept

    # checkpoint -----------------------------------------------------------------------------------

    def _state(self):
        """The tensors of network and average by name; `restore` copies into them."""
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        if self.average is not self.network:
            tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        return tensors

    def save(self):
        """Write the checkpoint."""
        tensors = self._state()
        if self.maps.current is not None:
            tensors |= {f"current.{name}": getattr(self.maps.current, name) for name in CURRENT}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        header = {"settings": self.settings, "step": self.step, "best": self.best, "seconds": self.seconds}
        weights_file.write_tensors(self.checkpoint, CHECKPOINT, VERSION, tensors, header)

    def restore(self, path):
        """Set the state to that of a checkpoint."""
        tensors, header = weights_file.read_tensors(path, CHECKPOINT, VERSION)
        _compare(path, header.get("settings"), self.settings)
        current = {name: tensors.pop(f"current.{name}") for name in CURRENT if f"current.{name}" in tensors}
        if current:
            maps = Maps(current["truth"], None, current["mask"], current["errors"])
            self.maps = dataclasses.replace(self.maps, current=maps.to(self.team.device))
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
        # with another memory layout than that of the parameter, sums would be rounded differently
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        self.step, self.best, self.seconds = header["step"], header["best"], header["seconds"]
        if self.best is not None and self.team.leads:
            try:
                weights_file.load(self.out)
            except (OSError, ValueError) as error:
                warnings.warn(f"the best weights up to step {self.step} are lost: {error}", stacklevel=3)
                self.best = None


class _Team:
    """The processes that torchrun started, or this process alone.

    Gradients are averaged here and not by DistributedDataParallel, because its hooks do not see `torch.autograd.grad`,
    by which the slopes of critics are computed. The networks are small, so one reduction of all gradients costs little.
    """

    trainings = itertools.count()  # of this process

    def __init__(self, device):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch finds no CUDA device here")
        # variables that torchrun sets, and their defaults
        environment = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "TORCHELASTIC_RESTART_COUNT": 0}
        given = (int(os.environ.get(name, value)) for name, value in environment.items())
        self.size, self.rank, local, self.restarts = given
        self.device = torch.device(device, local) if device == "cuda" else torch.device(device)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0

    def __enter__(self):
        if self.size > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            # torchrun may keep one store (torch 2.13 does) for all trainings and all lives of its processes; a new
            # group must not find there the addresses of an earlier one
            store, _, _ = next(distributed.rendezvous("env://"))
            store = distributed.PrefixStore(f"life {self.restarts}, training {next(self.trainings)}", store)
            distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        return self

    def __exit__(self, *error):
        if self.size > 1:
            distributed.destroy_process_group()

    def agree(self, settings):
        """Raise ValueError unless all processes have the same settings, which a digest of the data is part of."""
        if self.size == 1:
            return
        mark = zlib.crc32(json.dumps(settings).encode())
        extremes = torch.tensor([mark, -mark], device=self.device)
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        if extremes.sum().item() != 0:
            raise ValueError("the processes have not the same options and data; give all the same command and data set")

    @contextlib.contextmanager
    def file_of_leader(self, path):
        """A path under which a file of process 0 can be read here; None if it is not there."""
        if self.size == 1:
            yield path if path.exists() else None
            return
        content = path.read_bytes() if self.leads and path.exists() else b""
        header = torch.tensor([len(content)], device=self.device)
        distributed.broadcast(header, 0)
        length = int(header.item())
        if not length:
            yield None
            return
        data = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.leads:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        distributed.broadcast(data, 0)
        if self.leads:
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / path.name
            here.write_bytes(data.cpu().numpy().tobytes())
            yield here

    def average(self, network):
        """Replace gradients and floating-point buffers by their means over the processes."""
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
    """Ctrl-C and SIGTERM request an end after the current step; a second one ends at once, unless ``patient``.

    Under torchrun the processes must be patient: they receive Ctrl-C from the terminal, and again from torchrun.
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
    """The log of a run: progress bar, JSON lines and, if a folder is given, TensorBoard."""

    def __init__(self, path, folder, run, progress):
        self.path, self.run = path, run
        self.board = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # if tensorboard is missing, the ImportError names it

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
        """Whether a line of an earlier log is complete and not beyond the checkpoint, from where steps are repeated."""
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
            self.sums[name] = self.sums.get(name, 0.0) + value  # on the device, so that no step waits for the value
        self.number += 1
        self.bar.update()

    def check(self):
        """Raise RuntimeError if the loss has not been finite since the last line."""
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
    """Parameters and floating-point buffers."""
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]


def _compare(path, before, now):
    """Raise ValueError if a checkpoint has other settings; the message says which."""
    before = before if isinstance(before, dict) else {}
    pairs = [(name, before.get(name), value) for name, value in now.items() if name != "recipe"]
    recipe = before.get("recipe") or {}
    pairs += [(name, recipe.get(name), value) for name, value in now["recipe"].items()]
    for name, old, new in pairs:
        if old != new:
            raise ValueError(f"{path}: that run had {name} = {old!r}, this one has {new!r}; remove it to start anew")
