"""Training by several processes; the module is also the script that torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from test_training import SMALL, Toy  # noqa: E402

from elastofast.learning.recipes import RECIPES  # noqa: E402
from elastofast.learning.training import _Team, train  # noqa: E402

RANKS, STEPS = 2, 4
KILLED_AT = 2  # step of the last recipe at which process 1 is lost
OPTIONS = {**SMALL, "critic": {"channels": (4, 4, 4), "crop": 16, "batch": 4, "reconstructions": 0, "direct": 0.0}}
OPTIONS = {kind: {**own, "batch": 4, "steps": STEPS} for kind, own in OPTIONS.items()}
NETWORKS: list = []  # those that were trained here, the last one at the end


class WithErrors(Toy):
    """The data set, with draws of the error for the critic."""

    def __init__(self):
        super().__init__()
        self.config["errors"] = 1
        rng = np.random.default_rng(1)
        self.drawn = 0.2 * rng.standard_normal((len(self.truths), 1, *self.truths.shape[1:])).astype(np.float32)

    def errors(self, i):
        return self.drawn[i]


def exact(kind):
    """The recipe in double precision, in which the order of sums does not show behind Adam's division by the slope."""

    class Exact(RECIPES[kind]):
        def network(self, shape):
            NETWORKS.append(super().network(shape).double())
            return NETWORKS[-1]

        def sample(self, maps, generator):
            return tuple(part.double() for part in super().sample(maps, generator))

    return Exact


def alone(kind):
    """The recipe for one process, with the samples of all: the mean of the losses of their batches."""
    base = exact(kind)

    class Alone(base):
        def sample(self, maps, generator):
            self.__dict__["maps"] = maps
            return (None,)

        def loss(self, network, batch, generator):
            step = self.__dict__["step"] = self.__dict__.get("step", -1) + 1
            floating = [b for b in network.buffers() if b.is_floating_point()]
            before, after, losses = [b.clone() for b in floating], [], []
            for rank in range(RANKS):
                stream = np.random.SeedSequence((0, step, rank)).generate_state(1, np.uint64)
                generator.manual_seed(int(stream[0]))
                for buffer, value in zip(floating, before, strict=True):
                    buffer.data.copy_(value)  # past autograd, which takes no part in it
                losses.append(super().loss(network, base.sample(self, self.maps, generator), generator)[0])
                after.append([b.clone() for b in floating])
            for buffer, *values in zip(floating, *after, strict=True):  # batch norm: the mean over the processes
                buffer.data.copy_(sum(values) / RANKS)
            return sum(losses) / RANKS, {}

    return Alone


def run(recipe, out, **loop):
    """Train; the weights as they are, which the file rounds."""
    done = train(recipe, WithErrors(), out, device="cpu", validate=loop.pop("validate", lambda _: {}), **loop)
    assert done["step"] == STEPS
    state = NETWORKS[-1].state_dict()
    NETWORKS.clear()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def work(folder):
    """What each process does: every recipe, and in its first life one is lost during the last recipe."""
    rank, lives = os.environ["RANK"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    for kind, options in OPTIONS.items():
        kept = folder / f"{kind}-{rank}"
        if kept.exists():
            continue
        recipe = exact(kind)(**options)
        last = kind == [*OPTIONS][-1]
        if last and rank == "1" and not lives:
            average = _Team.average

            def lost(team, network, average=average):
                lost.step += 1
                if lost.step > KILLED_AT:
                    os._exit(9)
                average(team, network)

            lost.step = 0
            _Team.average = lost
        # only process 0 sees its folder, as on machines that share no files
        own = folder / f"files-{rank}"
        own.mkdir(exist_ok=True)
        state = run(recipe, own / f"{kind}.safetensors", checkpoint_every=0, log_every=1, progress=False)
        safetensors.save_file(state, kept)
    with pytest.raises(ValueError, match="the processes have not the same options and data"):
        run(recipe, own / "other.safetensors", count=4 + int(rank), progress=False)
    (folder / f"lives-{rank}").write_text(str(lives))


def test_every_recipe_is_trained_by_two_processes_as_by_one_although_a_process_is_lost(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += ["--max-restarts", "1", __file__, str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert {(tmp_path / f"lives-{rank}").read_text() for rank in range(RANKS)} == {"1"}
    assert not any((tmp_path / "files-1").iterdir())
    assert set(OPTIONS) == set(RECIPES)
    for kind, options in OPTIONS.items():
        a, b = (safetensors.load_file(tmp_path / f"{kind}-{rank}") for rank in range(RANKS))
        one = run(alone(kind)(**options), tmp_path / f"{kind}.safetensors", progress=False)
        assert a.keys() == b.keys() == one.keys()
        for name, tensor in one.items():
            assert torch.equal(a[name], b[name]), (kind, name)
            if name.endswith("num_batches_tracked"):  # one process passes the batches one after the other
                continue
            torch.testing.assert_close(a[name], tensor, rtol=1e-9, atol=1e-12, msg=f"{kind} {name}")
        rounded = safetensors.load_file(tmp_path / "files-0" / f"{kind}.safetensors")
        assert rounded.keys() == a.keys()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
