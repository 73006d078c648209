"""Training recipes: what each kind of network sees, its loss, optimizer and validation. The loop is `training`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from ..inversion.reconstruct import reconstruct
from ..metrics import relative_l2
from ..priors import Critic, PlugAndPlay
from ..priors.networks import build
from ..priors.standard import Standard

__all__ = [
    "RECIPES", "CriticRecipe", "DenoiserRecipe", "Maps", "PaperCriticRecipe", "Recipe", "UNetRecipe",
    "gradient_penalty", "recipe",
]  # fmt: skip


@dataclass(frozen=True)
class Maps:
    """Standardised maps of one split of a data set, in memory, all of shape (n, H, W)."""

    truth: torch.Tensor
    noisy: torch.Tensor | None  # the unregularised ones, where the data set has them
    mask: torch.Tensor  # bool, inside a lesion
    errors: torch.Tensor | None = None  # draws of a reconstruction's error of s, (n, draws, H, W)

    @classmethod
    def read(cls, data, split, standard, *, count=None, device="cpu"):
        """Maps of a data set's split, the first `count` of them.

        Parameters
        ----------
        data : Dataset
            Open.
        split : {"train", "validation", "test"}
            Which.
        standard : Standard
            How to standardise them.
        count : int, optional
            How many; all by default.
        device : str or torch.device, optional
            Where to keep them.

        Raises
        ------
        ValueError
            If the split has no or too few maps.
        """
        indices = np.asarray(data.indices(split))
        if count is not None and not 1 <= count <= len(indices):
            raise ValueError(f"count must be from 1 to the {len(indices)} {split} maps of the data set, got {count}")
        if not len(indices):
            raise ValueError(f"the data set has no {split} maps")
        indices = indices[:count]

        def standardised(modulus):
            return standard.apply(torch.as_tensor(modulus, dtype=torch.float32, device=device))

        noisy = standardised(data.unregularised(indices)) if data.config.get("unregularised", True) else None
        mask = torch.as_tensor(data.mask(indices), device=device).bool()
        errors = None
        if data.config.get("errors") and standard.logarithmic:
            errors = torch.as_tensor(data.errors(indices), device=device) / standard.scale
        return cls(standardised(data.modulus(indices)), noisy, mask, errors)

    def __len__(self):
        return len(self.truth)

    def windows(self, batch, crop, generator, *, near=0.8, turn=False) -> Callable:
        """Places of a random batch: a function that takes (n, H, W) maps to their (batch, 1, height, width) windows.

        Parameters
        ----------
        batch : int
            Windows, each of a map drawn with replacement.
        crop : int or None
            Side of a window, at most the maps'; None takes whole maps.
        generator : torch.Generator
            On the maps' device.
        near : float, optional
            Share of windows that contain a random point of a lesion: background alone teaches little.
        turn : bool, optional
            Whether to flip along both axes and to swap them (square windows); else they are flipped laterally alone,
            which is the one symmetry of an unregularised map.
        """
        at = {"generator": generator, "device": self.truth.device}
        n, *shape = self.truth.shape
        sides = [size if crop is None else min(crop, size) for size in shape]
        index = torch.randint(n, (batch,), **at)
        start = [(torch.rand(batch, **at) * (size - side + 1)).long() for size, side in zip(shape, sides, strict=True)]
        if crop is not None and near:
            inside = self.mask[index].flatten(1).float()
            wanted = (torch.rand(batch, **at) < near) & inside.any(1)
            # a map without a lesion needs some weights, and what they give is not used
            point = torch.multinomial(torch.where(wanted[:, None], inside, 1.0), 1, generator=generator)[:, 0]
            for axis, place in enumerate((point // shape[1], point % shape[1])):
                first = place - (torch.rand(batch, **at) * sides[axis]).long()
                start[axis] = torch.where(wanted, first.clamp(0, shape[axis] - sides[axis]), start[axis])
        rows, columns = (s[:, None] + torch.arange(side, device=s.device) for s, side in zip(start, sides, strict=True))
        columns = torch.where(_coin(batch, at)[:, None], columns.flip(1), columns)
        swap = None
        if turn:
            rows = torch.where(_coin(batch, at)[:, None], rows.flip(1), rows)
            swap = _coin(batch, at)[:, None, None] if sides[0] == sides[1] else None

        def take(maps):
            if maps.ndim == 4:  # several a sample: a random one of each
                draw = torch.randint(maps.shape[1], (batch,), **at)
                out = maps[index[:, None, None], draw[:, None, None], rows[:, :, None], columns[:, None, :]]
                return (out if swap is None else torch.where(swap, out.mT, out))[:, None]
            out = maps[index[:, None, None], rows[:, :, None], columns[:, None, :]]
            return (out if swap is None else torch.where(swap, out.mT, out))[:, None]

        return take


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is trained; the fields are its options, and are kept with the weights.

    A new recipe states its `kind`, gives defaults for the fields and fills in `sample` and `loss`.
    """

    kind: ClassVar[str]
    mixed: ClassVar[bool] = True  # whether bfloat16 holds: not where the loss has second derivatives

    steps: int | None = None
    batch: int = 16  # of each process
    rate: float = 1e-3
    ema: float = 0.999  # decay of the averaged weights, which are the ones kept; 0 keeps the last ones
    clip: float = 1.0  # largest norm of the gradient; 0 leaves it
    standard: Standard = field(default_factory=Standard)

    def __post_init__(self):
        for name, low in (("steps", 1), ("batch", 1), ("crop", 8)):
            value = getattr(self, name, None)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ValueError(f"{name} must be a whole number, {low} or more, got {value!r}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be positive and finite, got {self.rate}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be from 0 to below 1, got {self.ema}")
        if not 0 <= self.clip < math.inf:
            raise ValueError(f"clip must be 0 or more and finite, got {self.clip}")

    def network(self, shape):
        """A new network for maps of ``shape``."""
        raise NotImplementedError

    def length(self, maps) -> int:
        """Number of steps for training maps."""
        assert self.steps is not None  # a recipe without a default says here how many
        return self.steps

    def optimizer(self, parameters):
        """Optimizer of the parameters; the loop sets its rate."""
        return torch.optim.Adam(parameters, lr=self.rate)

    def rate_at(self, step, steps) -> float:
        """Learning rate of a step: up over the first 2 %, then down along a cosine to nothing."""
        return self.rate * min(1.0, (step + 1) / (0.02 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def sample(self, maps, generator):
        """A batch, whatever `loss` takes, drawn by a generator on the maps' device."""
        raise NotImplementedError

    def loss(self, network, batch, generator):
        """Loss of a batch, a tensor (), and a dict of further figures to log, tensors () or numbers."""
        raise NotImplementedError

    def validator(self, data, device):
        """A function of a network in evaluation mode that returns a dict of figures, or None.

        Weights are kept where the figure ``relative_error`` is smallest; without it, those of the last validation.
        """
        return None


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    """Pairs of unregularised and true maps, as the paper's post-processing UNet is trained (Adam 1e-3)."""

    kind = "unet"

    steps: int | None = 10000
    crop: int | None = 64
    channels: int = 24
    refine: int = 1
    norm: str = "l1"  # of the error in s; or l2
    shift: float = 0.2  # both maps of a pair are shifted by up to this: other moduli under another load
    amplitude: tuple[float, float] = (0.7, 1.4)  # the error of the unregularised map is scaled by a factor between

    def __post_init__(self):
        super().__post_init__()
        _check_norm(self.norm)

    def network(self, shape):  # noqa: D102
        return build("unet", channels=self.channels, refine=self.refine)

    def sample(self, maps, generator):  # noqa: D102
        if maps.noisy is None:
            raise ValueError("the data set has no unregularised maps, which training on pairs needs")
        take = maps.windows(self.batch, self.crop, generator)
        truth = take(maps.truth)
        error = take(maps.noisy) - truth
        truth = truth + _uniform((-self.shift, self.shift), truth, generator)
        return truth + error * _log_uniform(self.amplitude, truth, generator), truth

    def loss(self, network, batch, generator):  # noqa: D102
        noisy, truth = batch
        return _norm(self.norm, network(noisy).float() - truth).mean(), {}

    def validator(self, data, device):  # noqa: D102
        maps = Maps.read(data, "validation", self.standard, device=device)

        def validate(network):
            return {"relative_error": _relative_error(network, maps.noisy[:, None], maps.truth[:, None], self.standard)}

        return validate


@dataclass(frozen=True)
class DenoiserRecipe(Recipe):
    """True maps with Gaussian noise of a random level, white or blurred: a denoiser that is blind to both."""

    kind = "dncnn"
    LEVELS: ClassVar[tuple[float, ...]] = (0.03, 0.1, 0.3)  # of noise, where it is validated

    steps: int | None = 10000
    crop: int | None = 40
    channels: int = 48
    norm: str = "l2"
    noise: tuple[float, float] = (0.02, 1.0)  # range of the noise's rms in s
    coloured: float = 0.3  # share of maps with blurred noise
    shift: float = 0.2
    reconstructions: int = 20  # validation maps reconstructed to tell the best weights; 0: its own error tells

    def __post_init__(self):
        super().__post_init__()
        _check_norm(self.norm)

    def network(self, shape):  # noqa: D102
        return build("dncnn", channels=self.channels)

    def sample(self, maps, generator):  # noqa: D102
        truth = maps.windows(self.batch, self.crop, generator, turn=True)(maps.truth)
        truth = truth + _uniform((-self.shift, self.shift), truth, generator)
        at = {"generator": generator, "device": truth.device}
        margin = 2 * _REACH  # so that blurring does not fade at the edges
        noise = torch.randn((*truth.shape[:2], *(n + margin for n in truth.shape[2:])), **at)
        blurred = _blurred(noise, _uniform((0.4, 2.0), truth, generator))
        noise = noise[..., _REACH:-_REACH, _REACH:-_REACH]
        noise = torch.where(_coin(self.batch, at, self.coloured)[:, None, None, None], blurred, noise)
        level = _log_uniform(self.noise, truth, generator)
        noise = noise * (level / noise.square().mean((1, 2, 3), keepdim=True).sqrt())
        return truth, noise, level

    def loss(self, network, batch, generator):  # noqa: D102
        truth, noise, level = batch
        # over the level, so that loud maps do not outweigh the faint ones that the last steps of plug-and-play see
        return (_norm(self.norm, network(truth + noise).float() - truth) / level).mean(), {}

    def validator(self, data, device):  # noqa: D102
        maps = Maps.read(data, "validation", self.standard, device=device)
        generator = torch.Generator(device).manual_seed(0)
        truth = maps.truth[:, None]
        noise = torch.randn(truth.shape, generator=generator, device=device)

        def validate(network):
            errors = {
                f"error_{level}": _relative_error(network, truth + level * noise, truth, self.standard)
                for level in self.LEVELS
            }
            mean = sum(errors.values()) / len(errors)
            return {**errors, "relative_error": _reconstructed(PlugAndPlay, network, data, self, otherwise=mean)}

        return validate


@dataclass(frozen=True)
class CriticRecipe(Recipe):
    """A critic as the distance to the true maps, trained against errors of every kind and size.

    The negatives are true maps x plus an error n: draws of the error that a reconstruction has
    (`perturbation.posterior_errors`), a part of the error of the unregularised map, and noise, white or blurred, at
    all levels, half of it stronger in and around lesions, blurred or over-sharpened maps, lesions of which a part has
    another modulus, and the maps themselves. Without the sharp errors among them a critic lets pass what a
    reconstruction has once made of a lesion.

    The Wasserstein critic between x + n and x is C(x + n) = |n|, and C = |F| is that if F(x + n) = n: the loss is the
    squared departure from it, relative to |n|^2. In a share of the steps the gradient of C^2 / 2 takes the place of F,
    which is n as well; that needs second derivatives, and helps optimizers that use C as an energy.
    """

    kind = "critic"
    mixed = False

    steps: int | None = 9000
    crop: int | None = 64
    channels: tuple[int, int, int] = (32, 64, 64)
    drawn: float = 0.4  # share of negatives with a drawn error
    found: float = 0.3  # share of negatives with a part of the unregularised map's error
    part: tuple[float, float] = (0.05, 1.2)  # range of that part
    direct: float = 1.0  # share of steps on F
    noise: tuple[float, float] = (0.01, 1.2)  # range of the rms of other errors in s
    contrast: tuple[float, float] = (0.6, 1.3)  # of the maps under other errors
    reconstructions: int = 20  # validation maps reconstructed to tell the best weights; 0: its own error tells

    def __post_init__(self):
        super().__post_init__()
        if min(self.drawn, self.found) < 0 or self.drawn + self.found > 1:
            raise ValueError(f"drawn and found are shares with a sum of at most 1, got {self.drawn} and {self.found}")

    def network(self, shape):  # noqa: D102
        return build("critic", channels=tuple(self.channels))

    def sample(self, maps, generator):  # noqa: D102
        if maps.errors is None:
            raise ValueError("the data set has no draws of the error, which a critic is trained on; build it with them")
        if maps.noisy is None:
            raise ValueError("the data set has no unregularised maps, which a critic is trained against")
        drawn, found = round(self.batch * self.drawn), round(self.batch * self.found)
        pairs = []
        if drawn:
            take = maps.windows(drawn, self.crop, generator)
            pairs.append((take(maps.truth), take(maps.errors)))
        if found:
            take = maps.windows(found, self.crop, generator)
            truth = take(maps.truth)
            error = take(maps.noisy) - truth
            smooth = _blurred(_widened(error), _uniform((1.0, 3.0), error, generator))
            sharp = _coin(found, {"generator": generator, "device": error.device})[:, None, None, None]
            pairs.append((truth, (error - sharp * smooth) * _log_uniform(self.part, error, generator)))
        if drawn + found < self.batch:
            other = maps.windows(self.batch - drawn - found, self.crop, generator, turn=True)(maps.truth)
            other = other * _uniform(self.contrast, other, generator)
            pairs.append((other, self._made_up(other, generator)))
        truths, errors = zip(*pairs, strict=True)
        return torch.cat(truths), torch.cat(errors)

    def _made_up(self, truth, generator):
        """Errors of true maps (B, 1, H, W) that no measurement made."""
        at = {"generator": generator, "device": truth.device}
        batch = len(truth)

        def some(share):
            return _coin(batch, at, share)[:, None, None, None]

        wide = torch.exp(_uniform((math.log(0.3), math.log(2.5)), truth, generator))
        smooth = _blurred(_widened(truth), wide)
        margin = 2 * _REACH
        white = torch.randn((*truth.shape[:2], *(n + margin for n in truth.shape[2:])), **at)
        slow = functional.interpolate(torch.randn((batch, 1, 8, 8), **at), truth.shape[2:], mode="bicubic")
        noise = torch.where(some(0.6), _blurred(white, wide), white[..., _REACH:-_REACH, _REACH:-_REACH])
        noise = torch.where(some(0.2), slow, noise)
        near = (smooth - truth.flatten(2).median(2)[0][..., None, None]).abs()
        near = near / near.amax((2, 3), keepdim=True).clamp(min=0.2)
        even = _uniform((0.0, 1.0), truth, generator) ** 2
        noise = torch.where(some(0.5), noise * (even + (1 - even) * near + 0.02), noise)
        level = _log_uniform(self.noise, truth, generator)
        noise = noise * (level / noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6))
        blur = (smooth - truth) * _uniform((-0.3, 1.0), truth, generator)
        faint = noise * (0.1 * _uniform((0.0, 1.0), truth, generator))
        noise = torch.where(some(0.25), blur + faint, noise)
        # lesions of which the part on one side of a line has another modulus
        rows, columns = (torch.arange(n, device=truth.device) / n - 0.5 for n in truth.shape[2:])
        angle = _uniform((0.0, 2 * math.pi), truth, generator)
        side = rows[:, None] * angle.cos() + columns * angle.sin() > _uniform((-0.3, 0.3), truth, generator)
        size = _log_uniform((0.05, 0.8), truth, generator)
        size = torch.where(some(0.5), size, -size)
        noise = torch.where(some(0.15), faint + size * (side & (near > 0.5)), noise)
        return torch.where(some(0.1), 0.01 * noise, noise)

    def loss(self, network, batch, generator):  # noqa: D102
        truth, error = batch
        s = truth + error
        if _coin(1, {"generator": generator, "device": s.device}, self.direct).item():
            found = network.error(s)
        else:
            s.requires_grad_(True)
            (found,) = torch.autograd.grad(0.5 * network.error(s).square().sum(), s, create_graph=True)
        floor = self.noise[0] ** 2
        size = error.square().mean((1, 2, 3))
        return ((found - error).square().mean((1, 2, 3)) / (size + floor)).mean(), {}

    def validator(self, data, device):  # noqa: D102
        maps = Maps.read(data, "validation", self.standard, device=device)
        if maps.errors is None:
            return None
        error = maps.errors[:, :1]
        noisy = maps.truth[:, None] + error

        def validate(network):
            left = (_batched(network.error, noisy) - error).flatten(1).norm(dim=1) / error.flatten(1).norm(dim=1)
            left = left.mean().item()
            return {"left": left, "relative_error": _reconstructed(Critic, network, data, self, otherwise=left)}

        return validate


@dataclass(frozen=True)
class PaperCriticRecipe(Recipe):
    """The paper's Wasserstein critic, (8)-(9): unpaired maps, one-sided gradient penalty, RMSProp 1e-4."""

    kind = "paper-critic"
    mixed = False

    rate: float = 1e-4
    ema: float = 0.0
    clip: float = 0.0
    epochs: int = 100
    penalty: float = 5.0  # mu
    size: tuple[int, int] | None = None  # the maps' size that it insists on

    @classmethod
    def paper(cls, **options):
        """The paper's own setting: 512 x 512 maps, linear, in units of 100 kPa."""
        return cls(**{"standard": Standard(0.0, 100e3, logarithmic=False), "size": (512, 512), **options})

    def network(self, shape):  # noqa: D102
        if self.size is not None and tuple(shape) != tuple(self.size):
            raise ValueError(
                f"the paper's preset is for maps of {self.size[0]} x {self.size[1]}, the data set's are "
                f"{shape[0]} x {shape[1]}"
            )
        return build("paper-critic", shape=tuple(shape))

    def length(self, maps):  # noqa: D102
        return self.steps or math.ceil(self.epochs * len(maps) / self.batch)

    def optimizer(self, parameters):  # noqa: D102
        return torch.optim.RMSprop(parameters, lr=self.rate)

    def rate_at(self, step, steps):  # noqa: D102
        return self.rate

    def sample(self, maps, generator):  # noqa: D102
        if maps.noisy is None:
            raise ValueError("the data set has no unregularised maps, which a critic is trained against")
        truth, noisy = (
            maps.windows(self.batch, None, generator)(kind)
            for kind in (maps.truth, maps.noisy)  # unpaired
        )
        return truth, noisy

    def loss(self, network, batch, generator):  # noqa: D102
        truth, noisy = batch
        gap = network(noisy).mean() - network(truth).mean()
        share = torch.rand((len(truth), 1, 1, 1), generator=generator, device=truth.device)
        penalty, slope = gradient_penalty(network, share * truth + (1 - share) * noisy)
        return self.penalty * penalty - gap, {"gap": gap.detach(), "slope": slope.detach()}

    def validator(self, data, device):  # noqa: D102
        maps = Maps.read(data, "validation", self.standard, device=device)

        def validate(network):
            noisy, truth = (_batched(network, kind[:, None]) for kind in (maps.noisy, maps.truth))
            return {"gap": (noisy.mean() - truth.mean()).item(), "ranked": (noisy > truth).float().mean().item()}

        return validate


RECIPES: dict[str, type[Recipe]] = {r.kind: r for r in (CriticRecipe, PaperCriticRecipe, UNetRecipe, DenoiserRecipe)}


def recipe(kind, *, preset=None, **options) -> Recipe:
    """The recipe of a kind of network with some options changed.

    Parameters
    ----------
    kind : str
        One of `RECIPES`.
    preset : {"paper"}, optional
        Where the kind has one, the paper's own setting.
    **options
        Fields of the recipe.

    Raises
    ------
    ValueError
        For a kind, preset or option that there is not.
    """
    if kind not in RECIPES:
        raise ValueError(f"kind must be one of {', '.join(RECIPES)}, got {kind!r}")
    own = RECIPES[kind]
    names = [f.name for f in fields(own)]
    if unknown := sorted(options.keys() - set(names)):
        raise ValueError(f"{kind} has no option {unknown[0]!r}; it has {', '.join(names)}")
    if preset is None:
        return own(**options)
    if not hasattr(own, preset):
        raise ValueError(f"{kind} has no preset {preset!r}")
    return getattr(own, preset)(**options)


def gradient_penalty(critic, s):
    """One-sided penalty on a critic's slope, (9): mean of max(|gradient| - 1, 0)^2 over a batch (B, 1, H, W).

    Returns
    -------
    penalty, slope : torch.Tensor
        Of shape (): the penalty, and the mean norm of the gradient. Both can be differentiated by the weights.
    """
    s = s.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(s).sum(), s, create_graph=True)
    slope = gradient.flatten(1).norm(dim=1)
    return functional.relu(slope - 1).square().mean(), slope.mean()


def _batched(network, s, size=16):
    """``network(s)`` a few maps at a time, without gradients."""
    with torch.inference_mode():
        return torch.cat([network(part) for part in s.split(size)])


def _reconstructed(prior, network, data, recipe, otherwise) -> float:
    """Mean relative error of the first validation maps, reconstructed with a network as it is now."""
    indices = data.indices("validation")[: recipe.reconstructions]
    if not len(indices):
        return otherwise
    prior = prior(copy.deepcopy(network), {"standard": recipe.standard._asdict()})
    maps = (reconstruct(data.measurement(i), prior=prior).modulus for i in indices)
    return float(np.mean([relative_l2(x, data.modulus(i)) for x, i in zip(maps, indices, strict=True)]))


def _relative_error(network, noisy, truth, standard) -> float:
    """Mean over maps of |x - x_true| / |x_true| in pascals."""
    x, true = standard.invert(_batched(network, noisy)), standard.invert(truth)
    return ((x - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).mean().item()


def _norm(name, error):
    return error.abs() if name == "l1" else error.square()


def _check_norm(name):
    if name not in ("l1", "l2"):
        raise ValueError(f"norm must be l1 or l2, got {name!r}")


def _coin(count, at, share=0.5):
    return torch.rand(count, **at) < share


def _uniform(bounds, like, generator):
    """One number a map, (B, 1, 1, 1)."""
    low, high = bounds
    return low + (high - low) * torch.rand((len(like), 1, 1, 1), generator=generator, device=like.device)


def _log_uniform(bounds, like, generator):
    return torch.exp(_uniform([math.log(bound) for bound in bounds], like, generator))


_REACH = 6  # pixels, of the widest kernel to each side


def _widened(maps):
    """Maps with room around them for `_blurred`."""
    return functional.pad(maps, (_REACH,) * 4, mode="replicate")


def _blurred(noise, width):
    """Each map of (B, 1, H, W) blurred by a Gaussian of its own width in pixels, (B, 1, 1, 1); no padding."""
    offsets = torch.arange(-_REACH, _REACH + 1, device=noise.device)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)  # (B, 1, 1, 13)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    maps = noise.transpose(0, 1)  # one group of channels a map
    maps = functional.conv2d(functional.conv2d(maps, kernel, groups=len(noise)), kernel.mT, groups=len(noise))
    return maps.transpose(0, 1)
