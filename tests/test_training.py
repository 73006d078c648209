import json
import math
import os
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("tqdm")

import elastofast as ef  # noqa: E402
from elastofast import cli  # noqa: E402
from elastofast.learning.augmentation import blurred  # noqa: E402
from elastofast.learning.maps import Maps  # noqa: E402
from elastofast.learning.recipes import RECIPES, gradient_penalty, recipe  # noqa: E402
from elastofast.learning.training import train  # noqa: E402
from elastofast.priors import weights_file  # noqa: E402
from elastofast.priors.registry import TRAINABLE  # noqa: E402
from elastofast.priors.standard import Standard  # noqa: E402

SMALL = {
    "unet": {"channels": 4, "crop": 16, "batch": 4},
    "dncnn": {"channels": 8, "crop": 16, "batch": 4, "reconstructions": 0},
    "paper-critic": {"batch": 4},
}


class Toy:
    """A data set in memory: square lesions; the noisy maps are too soft in the lesion and have white noise."""

    def __init__(self, train=6, validation=3, shape=(24, 20)):
        n = train + validation
        rng = np.random.default_rng(0)
        self.masks = np.zeros((n, *shape), bool)
        for mask in self.masks:
            row, column = rng.integers(2, 10, 2)
            mask[row : row + 8, column : column + 8] = True
        self.truths = np.where(self.masks, 50e3, 12e3).astype(np.float32)
        self.noisy = np.where(self.masks, 25e3, 12e3) * np.exp(0.2 * rng.standard_normal(self.masks.shape))
        self.splits = {"train": np.arange(train), "validation": np.arange(train, n)}
        self.config = {"snr": 35.0}

    def indices(self, split):
        return self.splits[split]

    def modulus(self, i):
        return self.truths[i]

    def unregularised(self, i):
        return self.noisy[i].astype(np.float32)

    def mask(self, i):
        return self.masks[i]


def maps(shape=(12, 10), n=5):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(n, *shape, dtype=torch.bool)
    mask[:, 4, 7] = True
    values = torch.rand(2, n, *shape, generator=generator)
    return Maps(values[0], values[1], mask)


def lines(path, kind=None):
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "seconds"} for e in entries if kind in (None, e["kind"])]


def tensors(path):
    return safetensors.load_file(path)


def rounded(tensors):
    """As a weights file holds them."""
    return {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# data ---------------------------------------------------------------------------------------------


def test_maps_are_standardised_and_counted():
    toy = Toy()
    read = Maps.read(toy, "train", Standard(), count=2)
    np.testing.assert_allclose(read.truth, np.log(toy.truths[:2] / 12.5e3) / 0.5, atol=1e-6)
    np.testing.assert_allclose(read.noisy, np.log(toy.noisy[:2] / 12.5e3) / 0.5, atol=1e-6)
    assert torch.equal(read.mask, torch.tensor(toy.masks[:2]))
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"count must be from 1 to the 6 train maps of the data set, got {count}"):
            Maps.read(toy, "train", Standard(), count=count)


@pytest.mark.parametrize("turn", [False, True])
def test_windows_are_parts_of_one_map(turn):
    data = maps()
    take = data.windows(40, 6, torch.Generator().manual_seed(0), turn=turn)
    truth, noisy = take(data.truth), take(data.noisy)
    assert truth.shape == (40, 1, 6, 6)
    symmetries = [lambda a: a, lambda a: a.flip(-1)]
    if turn:
        flips = [*symmetries, lambda a: a.flip(-2), lambda a: a.flip(-1, -2)]
        symmetries = [*flips, *(lambda a, f=f: f(a).mT for f in flips)]
    seen = set()
    for t, n in zip(truth[:, 0], noisy[:, 0], strict=True):
        found = [
            (m, r, c, k)
            for m in range(5) for r in range(7) for c in range(5) for k, f in enumerate(symmetries)
            if torch.equal(f(data.truth[m, r : r + 6, c : c + 6]), t)
        ]  # fmt: skip
        assert len(found) == 1
        m, r, c, k = found[0]
        assert torch.equal(symmetries[k](data.noisy[m, r : r + 6, c : c + 6]), n)
        seen.add(k)
    assert seen == set(range(len(symmetries)))


def test_windows_hit_lesions_as_often_as_asked():
    data = maps()
    for near, share in ((1.0, 1.0), (0.0, None)):
        take = data.windows(400, 3, torch.Generator().manual_seed(0), near=near)
        hit = take(data.mask).flatten(1).any(1).float().mean().item()
        # 3 of 8 places along the columns, 3 of 10 along the rows
        assert hit == share if share else hit == pytest.approx(3 / 8 * 3 / 10, abs=0.05)
    data.mask[:] = False
    assert data.windows(8, 3, torch.Generator().manual_seed(0))(data.truth).shape == (8, 1, 3, 3)


def test_windows_as_large_as_the_maps_are_whole_maps():
    data = maps()
    for crop in (None, 64):
        whole = data.windows(6, crop, torch.Generator().manual_seed(0))(data.truth)
        assert whole.shape == (6, 1, 12, 10)
        for one in whole[:, 0]:  # a map or its mirror image
            assert sum(torch.equal(one, t) or torch.equal(one, t.flip(-1)) for t in data.truth) == 1


def test_denoiser_noise_has_its_level():
    own = recipe("dncnn", batch=200, crop=16, noise=(0.02, 1.0), coloured=0.5, shift=0.0)
    _, noise, level = own.sample(Maps.read(Toy(), "train", Standard()), torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.square().mean((1, 2, 3)).sqrt(), level.flatten())
    logs = level.log().flatten()
    assert math.log(0.02) <= logs.min() < math.log(0.03) and math.log(0.7) < logs.max() <= 0
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean((1, 2, 3)) / level.flatten() ** 2
    assert 0.25 < (neighbours > 0.3).float().mean() < 0.55  # the share that is blurred by more than half a pixel


# losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "penalty"), [(3.0, 4.0), (1.5, 0.25), (1.0, 0.0), (0.5, 0.0)])
def test_gradient_penalty_of_a_linear_critic(slope, penalty):
    direction = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction *= slope / direction.norm()
    value, mean = gradient_penalty(lambda s: (s * direction).sum((1, 2, 3)), torch.randn(4, 1, 6, 5).double())
    assert value.item() == pytest.approx(penalty, abs=1e-12) and mean.item() == pytest.approx(slope)


def test_gradient_penalty_differentiates_twice():
    """C = a/2 |s|^2 has slope a|s|: penalty mean (a|s| - 1)_+^2, derivative mean 2 (a|s| - 1)_+ |s|."""
    s = torch.randn(8, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = torch.tensor(0.35, dtype=torch.float64, requires_grad=True)
    value, _ = gradient_penalty(lambda s: a / 2 * s.square().sum((1, 2, 3)), s)
    norms = s.flatten(1).norm(dim=1)
    excess = (0.35 * norms - 1).clamp(min=0)
    assert 0 < (excess > 0).sum() < 8
    torch.testing.assert_close(value.detach(), excess.square().mean())
    torch.testing.assert_close(torch.autograd.grad(value, a)[0], (2 * excess * norms).mean())


def test_wasserstein_loss_of_a_linear_critic():
    own = recipe("paper-critic", batch=7, penalty=5.0)
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 1), torch.nn.Flatten(0))
    with torch.no_grad():
        critic[1].weight.mul_(10)
    truth, noisy = torch.randn(2, 7, 1, 6, 5)
    loss, figures = own.loss(critic, (truth, noisy), torch.Generator())
    slope = critic[1].weight.detach().norm().item()
    expected = critic(truth).mean().item() - critic(noisy).mean().item() + 5 * (slope - 1) ** 2
    assert slope > 1 and loss.item() == pytest.approx(expected, rel=1e-5)
    assert figures["slope"].item() == pytest.approx(slope, rel=1e-5)


# learning -----------------------------------------------------------------------------------------


def test_unet_learns_the_correction(tmp_path):
    toy = Toy(train=20)
    own = recipe("unet", steps=80, rate=1e-2, ema=0.9, **SMALL["unet"])
    done = train(own, toy, tmp_path / "w.safetensors", validate_every=80, progress=False)
    held = toy.splits["validation"]
    before = np.linalg.norm(toy.noisy[held] - toy.truths[held]) / np.linalg.norm(toy.truths[held])
    assert done["status"] == "finished" and done["best"]["relative_error"] < 0.7 * before
    # the figure is that of the weights in the file
    network, configuration = weights_file.load(tmp_path / "w.safetensors", expected="unet")
    standard = Standard(**configuration["standard"])
    with torch.no_grad():
        s = standard.apply(torch.tensor(toy.noisy[held], dtype=torch.float32))
        x = standard.invert(network(s[:, None]))[:, 0].numpy()
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(x, toy.truths[held], strict=True)]
    assert np.mean(errors) == pytest.approx(done["best"]["relative_error"], rel=1e-3)  # rounded to half precision


def test_denoiser_learns_to_denoise(tmp_path):
    small = {**SMALL["dncnn"], "channels": 16, "batch": 8}
    own = recipe("dncnn", steps=50, rate=3e-3, ema=0.9, noise=(0.3, 1.0), **small)
    done = train(own, Toy(train=20), tmp_path / "w.safetensors", progress=False)
    assert done["best"]["error_0.3"] < 0.6 * 0.5 * 0.3  # left alone, noise of .3 in s is .15 in log x


@pytest.mark.parametrize(("kind", "load"), [("critic", "Critic"), ("dncnn", "PlugAndPlay")])
def test_validation_is_by_reconstructions(tmp_path, kind, load):
    pytest.importorskip("h5py")
    from elastofast.learning.dataset import Dataset, build_dataset

    build_dataset(tmp_path / "maps.h5", count=3, validation=2, test=1, shape=(24, 24), jobs=1)
    own = recipe(kind, steps=2, batch=4, crop=16, reconstructions=2)
    done = train(own, tmp_path / "maps.h5", tmp_path / "w.safetensors", progress=False)
    prior = getattr(ef.priors, load).load(tmp_path / "w.safetensors")
    with Dataset.open(tmp_path / "maps.h5") as data:
        errors = [
            # with a limit of steps, no map is replaced because the data reject it
            ef.metrics.relative_l2(
                ef.reconstruct(data.measurement(i), prior=prior, max_iterations=45).modulus, data.modulus(i)
            )
            for i in data.indices("validation")
        ]
    assert done["best"]["relative_error"] == pytest.approx(np.mean(errors), rel=1e-2)


def test_critic_sees_errors_of_every_kind():
    rng = np.random.default_rng(0)
    truth = torch.zeros(40, 32, 32)
    truth[:, 8:24, 8:24] = 3.0
    noisy = truth + torch.tensor(0.5 * rng.standard_normal(truth.shape), dtype=torch.float32)
    errors = torch.tensor(0.1 * rng.standard_normal((40, 2, 32, 32)), dtype=torch.float32)
    maps = Maps(truth, noisy, truth > 0, errors)
    own = recipe("critic", batch=200, crop=None, drawn=0.4, found=0.3, part=(0.2, 0.4), contrast=(1.0, 1.0))
    true, error = own.sample(maps, torch.Generator().manual_seed(0))
    assert true.shape == error.shape == (200, 1, 32, 32) and torch.isfinite(error).all()
    size = error.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(size[:80], torch.full((80,), 0.1), rtol=0.1, atol=0)
    # parts of the unregularised map's error, some of them without what a blur leaves
    assert 0.2 * 0.4 * 0.8 < size[80:140].min() and size[80:140].max() < 0.5 * 0.4 * 1.1
    assert size[140:].max() < 2.0 and (size[140:] < 0.02).any()


def test_blur_keeps_a_constant():
    flat = torch.full((2, 1, 40, 40), 3.0)
    kept = blurred(flat, torch.tensor([0.5, 2.5])[:, None, None, None])
    torch.testing.assert_close(kept, torch.full((2, 1, 28, 28), 3.0))


def test_critic_learns_the_error_of_a_map(tmp_path):
    toy = Toy(train=20)
    toy.config["errors"] = 1
    rng = np.random.default_rng(1)
    noise = 0.2 * rng.standard_normal((len(toy.truths), 1, *toy.truths.shape[1:])).astype(np.float32)
    toy.errors = lambda i: noise[i]
    small = {"channels": (8, 8, 8), "crop": 16, "drawn": 1.0, "found": 0.0, "reconstructions": 0}
    own = recipe("critic", steps=150, rate=1e-2, ema=0.9, **small)
    done = train(own, toy, tmp_path / "w.safetensors", progress=False)
    assert done["best"]["left"] < 0.6


def test_critic_ranks_noisy_above_true(tmp_path):
    own = recipe("paper-critic", steps=40, **{**SMALL["paper-critic"], "rate": 1e-3})
    done = train(own, Toy(train=20), tmp_path / "w.safetensors", progress=False)
    assert done["best"]["ranked"] == 1.0 and done["best"]["gap"] > 0


def test_log_and_configuration_tell_how_the_weights_were_made(tmp_path):
    own = recipe("dncnn", steps=6, **SMALL["dncnn"])
    train(own, Toy(), tmp_path / "w.safetensors", seed=5, count=4, validate_every=4, log_every=2, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "w.jsonl"}
    assert [e["step"] for e in lines(tmp_path / "w.jsonl", "train")] == [2, 4, 6]
    assert [e["step"] for e in lines(tmp_path / "w.jsonl", "validation")] == [4, 6]
    _, configuration = weights_file.load(tmp_path / "w.safetensors")
    made = configuration["training"]
    assert made["seed"] == 5 and made["maps"] == 4 and made["steps"] == 6 and made["data"] == {"snr": 35.0}
    assert made["recipe"]["kind"] == "dncnn" and made["recipe"]["noise"] == [0.02, 1.0]
    assert made["torch"] == torch.__version__ and made["validation"]["step"] in (4, 6)


def test_the_best_weights_are_kept(tmp_path):
    errors = iter([0.5, 0.2, 0.3])
    seen = []

    def validate(network):
        assert not network.training
        seen.append({name: t.clone() for name, t in network.state_dict().items()})
        return {"relative_error": next(errors)}

    own = recipe("unet", steps=6, **SMALL["unet"])
    done = train(own, Toy(), tmp_path / "w.safetensors", validate=validate, validate_every=2, progress=False)
    assert done["best"] == {"step": 4, "relative_error": 0.2}
    same(tensors(tmp_path / "w.safetensors"), rounded(seen[1]))
    assert not torch.equal(seen[1]["output.weight"], seen[2]["output.weight"])


def test_averaged_weights_are_near_the_last_ones(tmp_path):
    """Without a decay the file holds the optimizer's own weights; with one, others."""
    for ema in (0.0, 0.99):
        own = recipe("unet", steps=4, ema=ema, **SMALL["unet"])
        train(own, Toy(), tmp_path / f"{ema}.safetensors", progress=False)
    a, b = (tensors(tmp_path / f"{ema}.safetensors") for ema in (0.0, 0.99))
    assert 0 < (a["output.weight"] - b["output.weight"]).abs().max() < 0.01


def test_kept_weights_may_be_blended_with_the_first_ones(tmp_path):
    first, own = tmp_path / "first.safetensors", recipe("unet", steps=3, **SMALL["unet"])
    train(own, Toy(), first, progress=False)
    for blend in (1.0, 0.25):
        train(own, Toy(), tmp_path / f"{blend}.safetensors", init=first, blend=blend, seed=1, progress=False)
    a, trained, mean = (tensors(tmp_path / f"{name}.safetensors") for name in ("first", 1.0, 0.25))
    for name in a:
        torch.testing.assert_close(
            mean[name].float(), 0.75 * a[name].float() + 0.25 * trained[name].float(), atol=2e-3, rtol=2e-3
        )
    with pytest.raises(ValueError, match="blend must be above 0 and at most 1, and needs an init"):
        train(own, Toy(), tmp_path / "w.safetensors", blend=0.5, progress=False)


# resuming -----------------------------------------------------------------------------------------


def signals_at(step, number=signal.SIGINT):
    """A validation that stops the run once, as Ctrl-C does."""
    left = [None] * step

    def validate(network):
        if left and (left.pop() or not left):
            os.kill(os.getpid(), number)
        return {}

    return validate


@pytest.mark.parametrize(("kind", "number"), [*((kind, signal.SIGINT) for kind in SMALL), ("unet", signal.SIGTERM)])
def test_resumed_run_is_bit_identical(tmp_path, kind, number):
    own = recipe(kind, steps=7, **SMALL[kind])
    loop = {"validate_every": 2, "log_every": 2, "progress": False}
    train(own, Toy(), tmp_path / "whole.safetensors", validate=lambda network: {}, **loop)
    out = tmp_path / "parts.safetensors"
    done = train(own, Toy(), out, validate=signals_at(2, number), **loop)
    assert done["status"] == "interrupted" and done["step"] == 5
    assert out.with_suffix(".checkpoint").exists()
    done = train(own, Toy(), out, validate=lambda network: {}, resume=True, **loop)
    assert done["status"] == "finished" and not out.with_suffix(".checkpoint").exists()
    same(tensors(out), tensors(tmp_path / "whole.safetensors"))
    whole, parts = (lines(tmp_path / f"{name}.jsonl", "validation") for name in ("whole", "parts"))
    assert parts == whole
    assert lines(tmp_path / "parts.jsonl", "train")[-1]["step"] == 7


def test_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    own = recipe("unet", steps=6, **SMALL["unet"])
    loop = {"validate_every": 2, "log_every": 1, "progress": False}
    train(own, Toy(), tmp_path / "whole.safetensors", **loop)

    def die(network):
        raise ConnectionError("the machine is gone")

    out = tmp_path / "parts.safetensors"
    with pytest.raises(ConnectionError):
        train(own, Toy(), out, validate=die, checkpoint_every=0, **loop)  # at step 2, the checkpoint is of step 1
    train(own, Toy(), out, resume=True, **loop)
    same(tensors(out), tensors(tmp_path / "whole.safetensors"))
    assert lines(out.with_suffix(".jsonl")) == lines(tmp_path / "whole.jsonl")


@pytest.fixture
def interrupted(tmp_path):
    own = recipe("unet", steps=5, **SMALL["unet"])
    train(own, Toy(), tmp_path / "w.safetensors", validate=signals_at(1), validate_every=1, progress=False)
    return own, tmp_path / "w.safetensors"


def test_an_earlier_run_is_not_overwritten(interrupted):
    own, out = interrupted
    with pytest.raises(ValueError, match=r"w.checkpoint is of an earlier run: resume it, or remove it"):
        train(own, Toy(), out, progress=False)


@pytest.mark.parametrize(
    ("options", "arguments", "toy", "text"),
    [
        ({"batch": 5}, {}, {}, "that run had batch = 4, this one has 5"),
        ({"steps": 9}, {}, {}, "that run had steps = 5, this one has 9"),
        ({}, {"seed": 1}, {}, "that run had seed = 0, this one has 1"),
        ({}, {}, {"train": 7}, "that run had maps = 6, this one has 7"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(interrupted, options, arguments, toy, text):
    _, out = interrupted
    own = recipe("unet", **{"steps": 5, **SMALL["unet"], **options})
    with pytest.raises(ValueError, match=text):
        train(own, Toy(**toy), out, resume=True, progress=False, **arguments)


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    own = recipe("unet", steps=2, **SMALL["unet"])
    assert train(own, Toy(), tmp_path / "w.safetensors", resume=True, progress=False)["step"] == 2


def test_a_run_starts_from_given_weights_of_the_same_architecture(tmp_path):
    own = recipe("unet", steps=3, ema=0.0, rate=1e-12, **SMALL["unet"])
    train(own, Toy(), tmp_path / "a.safetensors", seed=1, progress=False)
    train(own, Toy(), tmp_path / "b.safetensors", seed=2, init=tmp_path / "a.safetensors", progress=False)
    a, b = tensors(tmp_path / "a.safetensors"), tensors(tmp_path / "b.safetensors")
    assert all(torch.allclose(a[name], b[name], atol=1e-9) for name in a)
    wider = recipe("unet", steps=3, **{**SMALL["unet"], "channels": 5})
    with pytest.raises(ValueError, match=r"init: .* the recipe's is {'channels': 5"):
        train(wider, Toy(), tmp_path / "c.safetensors", init=tmp_path / "a.safetensors", progress=False)


# options ------------------------------------------------------------------------------------------


def test_divergence_is_an_error_with_advice(tmp_path):
    own = recipe("unet", steps=20, rate=1e30, **SMALL["unet"])
    with pytest.raises(RuntimeError, match=r"the loss of unet is not finite at step \d+: try a rate below 1e\+30"):
        train(own, Toy(), tmp_path / "w.safetensors", log_every=5, checkpoint_every=0, progress=False)


def test_mixed_precision_is_used_but_not_saved(tmp_path):
    own = recipe("unet", steps=20, **SMALL["unet"])
    train(own, Toy(), tmp_path / "w.safetensors", amp=True, progress=False)
    train(own, Toy(), tmp_path / "full.safetensors", progress=False)
    mixed, full = tensors(tmp_path / "w.safetensors"), tensors(tmp_path / "full.safetensors")
    assert not torch.equal(mixed["output.weight"], full["output.weight"])
    assert {t.dtype for t in mixed.values()} == {torch.float16}  # the files' own
    with pytest.raises(ValueError, match="amp does not hold for paper-critic"):
        train(recipe("paper-critic", **SMALL["paper-critic"]), Toy(), tmp_path / "c.safetensors", amp=True)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("gan", {}, "kind must be one of"),
        ("critic", {"drawn": 0.8, "found": 0.3}, r"shares with a sum of at most 1, got \(0.8, 0.3, 0.0\)"),
        ("paper-critic", {"crop": 32}, "paper-critic has no option 'crop'; it has steps, batch"),
        ("unet", {"preset": "paper"}, "unet has no preset 'paper'"),
        ("unet", {"batch": 0}, "batch must be a whole number, 1 or more, got 0"),
        ("unet", {"crop": 4}, "crop"),
        ("unet", {"rate": -1.0}, "rate must be positive"),
        ("unet", {"norm": "l3"}, "norm must be l1 or l2, got 'l3'"),
        ("dncnn", {"ema": 1.0}, "ema"),
    ],
)
def test_recipes_refuse_options_that_do_not_fit(kind, options, text):
    with pytest.raises(ValueError, match=text):
        recipe(kind, **options)


def test_paper_preset_has_the_papers_numbers():
    own = recipe("paper-critic", preset="paper")
    assert own.standard == Standard(0.0, 100e3, logarithmic=False)
    assert (own.batch, own.epochs, own.rate, own.penalty) == (16, 100, 1e-4, 5.0)
    assert own.length(range(541)) == math.ceil(100 * 541 / 16)
    assert own.rate_at(0, 1000) == own.rate_at(999, 1000) == 1e-4
    with pytest.raises(ValueError, match="the paper's preset is for maps of 512 x 512, the data set's are 24 x 20"):
        own.network((24, 20))


def test_tensorboard_is_named_if_missing(tmp_path):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError) as caught:
            train(recipe("unet", steps=1), Toy(), tmp_path / "w.safetensors", log=tmp_path / "board")
        assert caught.value.name == "tensorboard"
    else:
        train(recipe("unet", steps=1, **SMALL["unet"]), Toy(), tmp_path / "w.safetensors", log=tmp_path / "board")
        assert [*(tmp_path / "board").iterdir()]


# command line -------------------------------------------------------------------------------------


def test_train_command_writes_weights_and_names_what_the_data_lack(tmp_path, capsys):
    pytest.importorskip("h5py")
    from elastofast.learning.dataset import build_dataset

    build_dataset(tmp_path / "maps.h5", count=3, validation=1, test=1, shape=(16, 16), unregularised=False, jobs=1)
    command = ["train", "dncnn", "--data", str(tmp_path / "maps.h5"), "--out", str(tmp_path / "w.safetensors")]
    small = ["--steps", "2", "--batch", "2", "--crop", "12", "--channels", "4", "--reconstructions", "1"]
    assert cli.main([*command, *small]) == 0
    assert "relative_error" in capsys.readouterr().out
    assert weights_file.load(tmp_path / "w.safetensors", expected="dncnn")[1]["training"]["data"]["shape"] == [16, 16]
    command[1], small = "unet", small[:-2]
    assert cli.main([*command, *small]) == 2
    assert "unregularised maps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["unet", "--out", "w.pt"], "the output must end in one of .safetensors"),
        (["paper-critic", "--out", "w.safetensors", "--crop", "32"], "paper-critic has no option 'crop'"),
        (["unet", "--out", "w.safetensors"], "none.h5"),
        (["unet", "--out", "w.safetensors", "--device", "cuda"], "torch finds no CUDA device here"),
    ],
)
def test_train_command_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["train", *arguments, "--data", "none.h5"]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_every_recipe_can_be_asked_for():
    assert set(RECIPES) == set(TRAINABLE)


# current reconstructions --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    pytest.importorskip("h5py")
    from elastofast.learning.dataset import build_dataset

    path = tmp_path_factory.mktemp("data") / "maps.h5"
    build_dataset(path, count=4, validation=1, test=0, shape=(24, 24), size=(0.2, 0.35), jobs=1)
    return path


CURRENT = {"channels": (4, 4, 4), "crop": 16, "batch": 8, "current": 0.25, "reconstructed": 2, "kept": 2}
CURRENT |= {"reconstructions": 0, "wasserstein": 0.02, "robust": 1.0}


def test_errors_of_current_reconstructions_are_those_of_its_maps(measured):
    from elastofast.learning.current import plain_map, reconstruction_errors
    from elastofast.learning.dataset import Dataset
    from elastofast.priors.networks import build

    torch.manual_seed(0)
    network, standard, rng = build("critic", channels=(4, 4, 4)), Standard(), np.random.default_rng(0)
    with Dataset.open(measured) as data:
        found = reconstruction_errors(network, data, [1, 3], standard, rng, kept=3, stopped=lambda: False)
        assert found.truth.shape == (2, 24, 24) and found.errors.shape == (2, 3, 24, 24)
        prior = ef.priors.Critic(network, {"standard": standard._asdict()})
        expected = np.log(plain_map(data.measurement(3), prior).modulus / data.modulus(3)) / standard.scale
        np.testing.assert_allclose(found.errors[1, 0], expected, atol=2e-3)
        assert reconstruction_errors(network, data, [1], standard, rng, kept=3, stopped=lambda: True) is None


def test_current_reconstructions_are_refreshed_and_resumed(tmp_path, measured):
    from elastofast.learning.dataset import build_dataset

    other = tmp_path / "other.h5"
    options = {"count": 2, "validation": 0, "test": 0, "shape": (24, 24), "unregularised": False, "errors": 0}
    build_dataset(other, world="wide", tissue=1.0, seed=1, jobs=1, **options)
    own = recipe("critic", steps=6, rounds=2, **CURRENT)
    loop = {"validate_every": 2, "log_every": 1, "progress": False, "checkpoint_every": 0.0, "reconstruct": other}
    train(own, measured, tmp_path / "whole.safetensors", validate=lambda network: {}, **loop)
    out = tmp_path / "parts.safetensors"
    done = train(own, measured, out, validate=signals_at(2), **loop)
    assert done["status"] == "interrupted" and done["step"] == 5
    train(own, measured, out, validate=lambda network: {}, resume=True, **loop)
    same(tensors(out), tensors(tmp_path / "whole.safetensors"))
    assert {"loss", "gap", "slope"} <= set(lines(tmp_path / "whole.jsonl", "train")[0])
    _, configuration = weights_file.load(out, expected="critic")
    assert configuration["training"]["data"]["reconstruct"]["tissue"] == 1.0


def test_the_adversarial_loss_is_added_to_the_regression(measured):
    from elastofast.learning.dataset import Dataset

    alone = recipe("critic", **CURRENT | {"wasserstein": 0.0, "current": 0.0, "robust": 0.0})
    both = recipe("critic", **CURRENT | {"current": 0.0, "robust": 0.0})
    with Dataset.open(measured) as data:
        data_maps = Maps.read(data, "train", Standard())
    import dataclasses

    data_maps = dataclasses.replace(data_maps, current=data_maps)
    generator = torch.Generator().manual_seed(0)
    batch = both.sample(data_maps, generator)
    assert len(batch) == 4 and len(alone.sample(data_maps, generator)) == 2
    network = both.network((24, 24))
    seed = torch.Generator().manual_seed(1)
    total, figures = both.loss(network, batch, seed)
    regression, _ = alone.loss(network, batch[:2], torch.Generator().manual_seed(1))
    gap = network(batch[3]).mean() - network(batch[2]).mean()
    assert figures["gap"] == pytest.approx(gap.item(), rel=1e-5)
    assert (total - regression).item() >= -0.02 * gap.item() - 1e-6
    robust = dataclasses.replace(alone, robust=1.0)
    smaller, _ = robust.loss(network, batch[:2], torch.Generator().manual_seed(1))
    assert 0 < smaller.item() < regression.item()


def test_wrong_recipes_of_current_reconstructions_are_named():
    for wrong, text in (
        ({"current": 0.5, "found": 0.4}, "shares with a sum of at most 1"),
        ({"regression": 0.0}, "one of the first two above"),
        ({"rounds": 0}, "rounds must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            recipe("critic", **wrong)
