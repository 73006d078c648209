"""Training recipes: the samples that each kind of network learns from, its loss, optimizer and validation.

The training loop is in `training`. A recipe for a new kind of network is a subclass of `Recipe` in `RECIPES`. The
defaults are those by which the shipped weights were made (docs/training.md); they were chosen on validation maps where
a comment does not name a source, and no script repeats the choice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..metrics import relative_l2
from ..priors import Critic, PlugAndPlay
from ..priors.networks import build
from ..priors.standard import Standard
from .augmentation import REACH, Draws, blurred, synthetic_errors, widened
from .current import plain_map, reconstruction_errors
from .dataset import scale
from .maps import Maps

__all__ = [
    "RECIPES", "CriticRecipe", "DenoiserRecipe", "Maps", "PaperCriticRecipe", "Recipe", "UNetRecipe",
    "gradient_penalty", "recipe", "wasserstein_loss",
]  # fmt: skip


WARM_UP = 0.02  # share of the steps over which the learning rate rises
AT_A_TIME = 16  # maps that a network validates at once, which bounds the memory


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is trained. The fields are the options of the recipe and are written with the weights.

    A subclass states its ``kind``, gives defaults for the fields, and implements `network`, `sample` and `loss`.
    """

    kind: ClassVar[str]  # a key of `networks.KINDS`
    mixed: ClassVar[bool] = True  # whether bfloat16 is precise enough; for second derivatives in the loss it is not

    steps: int | None = None
    batch: int = 16  # maps in a step of each process
    rate: float = 1e-3  # largest learning rate
    ema: float = 0.999  # decay of the exponential average of the weights, which is kept; 0 keeps the last weights
    clip: float = 1.0  # the gradient is scaled down to this norm; 0 leaves it as it is
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

    def network(self, shape) -> nn.Module:
        """A new network for maps of ``shape``."""
        raise NotImplementedError

    def length(self, maps) -> int:
        """Number of steps for some training maps."""
        assert self.steps is not None  # a recipe without a default overrides this method
        return self.steps

    def refresh_at(self, step, steps) -> bool:
        """Whether the loop asks for new `current_maps` before a step."""
        return False

    def current_maps(self, network, data, count, rng, stopped) -> Maps | None:
        """What the recipe needs of the network as it is, put into ``maps.current``; None if ``stopped()`` became true.

        ``data`` is the data set that may be reconstructed, ``count`` the number of its training maps in use, None for
        all of them.
        """
        raise NotImplementedError

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        """Optimizer of the parameters; the training loop sets its learning rate."""
        return torch.optim.Adam(parameters, lr=self.rate)

    def rate_at(self, step, steps) -> float:
        """Learning rate of a step: it rises linearly at first, and falls to zero along a cosine."""
        return self.rate * min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def sample(self, maps, generator) -> tuple[torch.Tensor, ...]:
        """A random batch in the form that `loss` takes; the generator is on the device of the maps."""
        raise NotImplementedError

    def loss(self, network, batch, generator) -> tuple[torch.Tensor, dict[str, Any]]:
        """Loss of a batch, a tensor of shape (), and a dict of other figures for the log."""
        raise NotImplementedError

    def validator(self, data, device) -> Callable | None:
        """A function that takes a network in evaluation mode and returns a dict of figures; None for no validation.

        The weights with the smallest ``relative_error`` are kept; without that figure, those of the last validation.
        """
        return None


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    """Post-processing UNet of the paper: it learns from pairs of unregularised and true maps (Adam 1e-3)."""

    kind = "unet"

    steps: int | None = 10000
    crop: int | None = 64
    channels: int = 24
    refine: int = 1
    norm: str = "l1"  # of the error in s, l1 or l2
    shift: float = 0.2  # largest constant added to s in both maps of a pair: the same tissue under another load
    amplitude: tuple[float, float] = (0.7, 1.4)  # range of factors on the error of the unregularised map: noise levels

    def __post_init__(self):
        super().__post_init__()
        _check_norm(self.norm)

    def network(self, shape) -> nn.Module:  # noqa: D102
        return build("unet", channels=self.channels, refine=self.refine)

    def sample(self, maps, generator) -> tuple[torch.Tensor, ...]:  # noqa: D102
        take = maps.windows(self.batch, self.crop, generator)
        truth = take(maps.truth)
        error = take(_unregularised(maps)) - truth
        draws = Draws(self.batch, generator)
        truth = truth + draws.uniform(-self.shift, self.shift)
        return truth + error * draws.log_uniform(*self.amplitude), truth

    def loss(self, network, batch, generator) -> tuple[torch.Tensor, dict[str, Any]]:  # noqa: D102
        noisy, truth = batch
        return _norm(self.norm, network(noisy).float() - truth).mean(), {}

    def validator(self, data, device) -> Callable | None:  # noqa: D102
        maps = Maps.read(data, "validation", self.standard, device=device)
        noisy, truth = _unregularised(maps)[:, None], maps.truth[:, None]

        def validate(network):
            return {"relative_error": _relative_error(network, noisy, truth, self.standard)}

        return validate


@dataclass(frozen=True)
class DenoiserRecipe(Recipe):
    """Denoiser that is told neither the level nor the colour of the noise: true maps with white or blurred noise."""

    kind = "dncnn"
    LEVELS: ClassVar[tuple[float, ...]] = (0.03, 0.1, 0.3)  # rms of the noise in s at which it is validated
    WIDTHS: ClassVar[tuple[float, float]] = (0.4, 2.0)  # range of the Gaussians that blur the noise, in pixels

    steps: int | None = 10000
    crop: int | None = 40
    channels: int = 48
    norm: str = "l2"
    noise: tuple[float, float] = (0.02, 1.0)  # range of the rms of the noise in s
    coloured: float = 0.3  # share of maps with blurred noise
    shift: float = 0.2  # largest constant added to s
    reconstructions: int = 20  # validation maps reconstructed to find the best weights; 0: the denoising error does

    def __post_init__(self):
        super().__post_init__()
        _check_norm(self.norm)

    def network(self, shape) -> nn.Module:  # noqa: D102
        return build("dncnn", channels=self.channels)

    def sample(self, maps, generator) -> tuple[torch.Tensor, ...]:  # noqa: D102
        truth = maps.windows(self.batch, self.crop, generator, turn=True)(maps.truth)
        draws = Draws(self.batch, generator)
        truth = truth + draws.uniform(-self.shift, self.shift)
        white = draws.noise(*truth.shape[2:])
        coloured = blurred(white, draws.uniform(*self.WIDTHS))
        noise = torch.where(draws.coin(self.coloured), coloured, white[..., REACH:-REACH, REACH:-REACH])
        level = draws.log_uniform(*self.noise)
        noise = noise * (level / noise.square().mean((1, 2, 3), keepdim=True).sqrt())
        return truth, noise, level

    def loss(self, network, batch, generator) -> tuple[torch.Tensor, dict[str, Any]]:  # noqa: D102
        truth, noise, level = batch
        # divided by the level, so that strong noise does not outweigh the faint one in the last steps of plug-and-play
        return (_norm(self.norm, network(truth + noise).float() - truth) / level).mean(), {}

    def validator(self, data, device) -> Callable | None:  # noqa: D102
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
    """A critic that is the distance of a map to the true maps, trained on true maps with errors of many kinds.

    The training samples are true maps x with an error n, which is one of

    * a draw of the error that a reconstruction makes (`posterior.posterior_errors`);
    * a part of the error of the unregularised map, in half of the cases without its smooth component;
    * the error of a reconstruction with the network as it is, at its end or on its way, in rounds
      (`current.reconstruction_errors`): the network learns from its own mistakes, and then makes others;
    * an error that no measurement made (`augmentation.synthetic_errors`): white or blurred noise of all levels, in half
      of the maps stronger in and around lesions; blurred or sharpened maps; lesions of which one side has another
      modulus; and errors that are almost zero.

    The sharp errors among them are needed: a critic that has not seen them accepts the artefacts that a reconstruction
    makes in a lesion.

    The Wasserstein critic between x + n and x is C(x + n) = |n|. The network computes C = |F|, which is this critic if
    F(x + n) = n. The loss is therefore |F(x + n) - n|^2 over |n|^2. In a share of the steps F is replaced by the
    gradient of C^2 / 2, which equals n too for the optimal critic. This needs second derivatives, and helps optimizers
    that descend along C itself.

    Beside this regression there may be the adversarial loss (8) with the penalty (9), between true maps and current
    reconstructions of other maps: unpaired, and refreshed in rounds as in unrolled adversarial regularisation
    (Mukherjee et al. 2021).
    """

    kind = "critic"
    mixed = False

    steps: int | None = 9000
    crop: int | None = 64
    channels: tuple[int, int, int] = (32, 64, 64)
    drawn: float = 0.4  # share of samples with a draw of the error of a reconstruction
    found: float = 0.3  # share of samples with a part of the error of the unregularised map
    part: tuple[float, float] = (0.05, 1.2)  # range of that part
    direct: float = 1.0  # share of steps whose loss is on F itself
    noise: tuple[float, float] = (0.01, 1.2)  # range of the rms of the other errors in s
    contrast: tuple[float, float] = (0.6, 1.3)  # range of factors on the maps that have the other errors
    reconstructions: int = 20  # validation maps reconstructed to find the best weights; 0: the error of F does
    current: float = 0.0  # share of samples with an error of a current reconstruction
    rounds: int = 3  # times that the current reconstructions are made, if there is a use for them
    reconstructed: int = 150  # training measurements reconstructed in a round
    kept: int = 4  # maps kept of each reconstruction
    regression: float = 1.0  # weight of the regression
    robust: float = 0.0  # relative squared error above which a sample counts with its root only; 0: none does
    wasserstein: float = 0.0  # weight of the adversarial loss
    penalty: float = 5.0  # weight mu of the gradient penalty in (9)
    SMOOTH: ClassVar[tuple[float, float]] = (1.0, 3.0)  # range of the Gaussians for the smooth component, in pixels

    def __post_init__(self):
        super().__post_init__()
        shares = self.drawn, self.found, self.current
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"drawn, found and current are shares with a sum of at most 1, got {shares}")
        if min(self.regression, self.wasserstein, self.penalty) < 0 or self.regression + self.wasserstein == 0:
            raise ValueError("regression, wasserstein and penalty must be zero or more, and one of the first two above")
        for name, low in (("rounds", 1), ("reconstructed", 1), ("kept", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)}")

    def network(self, shape) -> nn.Module:  # noqa: D102
        return build("critic", channels=tuple(self.channels))

    def refresh_at(self, step, steps) -> bool:  # noqa: D102
        return bool(self.current or self.wasserstein) and step % math.ceil(steps / self.rounds) == 0

    def current_maps(self, network, data, count, rng, stopped) -> Maps | None:  # noqa: D102
        indices = np.asarray(data.indices("train"))[:count]
        indices = rng.choice(indices, min(self.reconstructed, len(indices)), replace=False)
        return reconstruction_errors(network, data, indices, self.standard, rng, kept=self.kept, stopped=stopped)

    def sample(self, maps, generator) -> tuple[torch.Tensor, ...]:  # noqa: D102
        if maps.errors is None:
            raise ValueError("the data set has no draws of the error, which a critic is trained on; build it with them")
        noisy = _unregularised(maps)
        drawn, found, current = (round(self.batch * share) for share in (self.drawn, self.found, self.current))
        pairs = []
        if drawn:
            take = maps.windows(drawn, self.crop, generator)
            pairs.append((take(maps.truth), take(maps.errors)))
        if found:
            take = maps.windows(found, self.crop, generator)
            truth = take(maps.truth)
            error = take(noisy) - truth
            draws = Draws(found, generator)
            smooth = blurred(widened(error), draws.uniform(*self.SMOOTH))
            pairs.append((truth, (error - draws.coin() * smooth) * draws.log_uniform(*self.part)))
        if current:
            take = maps.current.windows(current, self.crop, generator)
            pairs.append((take(maps.current.truth), take(maps.current.errors)))
        if other := self.batch - drawn - found - current:
            draws = Draws(other, generator)
            truth = maps.windows(other, self.crop, generator, turn=True)(maps.truth) * draws.uniform(*self.contrast)
            pairs.append((truth, synthetic_errors(truth, self.noise, draws)))
        truths, errors = zip(*pairs, strict=True)
        batch = torch.cat(truths), torch.cat(errors)
        if not self.wasserstein:
            return batch
        take = maps.current.windows(self.batch, self.crop, generator)
        return (
            *batch,
            maps.windows(self.batch, self.crop, generator)(maps.truth),
            take(maps.current.truth) + take(maps.current.errors),
        )

    def loss(self, network, batch, generator) -> tuple[torch.Tensor, dict[str, Any]]:  # noqa: D102
        truth, error, *unpaired = batch
        total = self.regression * self._regression(network, truth, error, generator)
        if not unpaired:
            return total, {}
        real, noisy = unpaired
        adversarial, figures = wasserstein_loss(network, real, noisy, self.penalty, generator)
        return total + self.wasserstein * adversarial, figures

    def _regression(self, network, truth, error, generator):
        """Squared difference between F and the error, relative to the square of the error."""
        s = truth + error
        if Draws(1, generator).coin(self.direct).item():
            found = network.error(s)
        else:
            s.requires_grad_(True)
            (found,) = torch.autograd.grad(0.5 * network.error(s).square().sum(), s, create_graph=True)
        floor = self.noise[0] ** 2
        size = error.square().mean((1, 2, 3))
        relative = (found - error).square().mean((1, 2, 3)) / (size + floor)
        if (
            self.robust
        ):  # otherwise maps of which the network cannot know whether they are true would outweigh all others
            relative = 2 * self.robust * ((1 + relative / self.robust).sqrt() - 1)
        return relative.mean()

    def validator(self, data, device) -> Callable | None:  # noqa: D102
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
    """Wasserstein critic of the paper, (8)-(9): unpaired maps, one-sided gradient penalty, RMSProp 1e-4."""

    kind = "paper-critic"
    mixed = False

    rate: float = 1e-4
    ema: float = 0.0
    clip: float = 0.0
    epochs: int = 100  # passes over the training maps, if ``steps`` is not given
    penalty: float = 5.0  # weight mu of the gradient penalty in (9)
    size: tuple[int, int] | None = None  # the only size of maps that is accepted, if any

    @classmethod
    def paper(cls, **options) -> PaperCriticRecipe:
        """The setting of the paper: maps of 512 x 512 nodes, linear in the modulus, in units of 100 kPa."""
        return cls(**{"standard": Standard(0.0, 100e3, logarithmic=False), "size": (512, 512), **options})

    def network(self, shape) -> nn.Module:  # noqa: D102
        if self.size is not None and tuple(shape) != tuple(self.size):
            raise ValueError(
                f"the paper's preset is for maps of {self.size[0]} x {self.size[1]}, the data set's are "
                f"{shape[0]} x {shape[1]}"
            )
        return build("paper-critic", shape=tuple(shape))

    def length(self, maps) -> int:  # noqa: D102
        return self.steps or math.ceil(self.epochs * len(maps) / self.batch)

    def optimizer(self, parameters) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.RMSprop(parameters, lr=self.rate)

    def rate_at(self, step, steps) -> float:  # noqa: D102
        return self.rate

    def sample(self, maps, generator) -> tuple[torch.Tensor, ...]:  # noqa: D102
        # windows are drawn for each of the two kinds, so they are not of the same maps
        kinds = maps.truth, _unregularised(maps)
        truth, noisy = (maps.windows(self.batch, None, generator)(kind) for kind in kinds)
        return truth, noisy

    def loss(self, network, batch, generator) -> tuple[torch.Tensor, dict[str, Any]]:  # noqa: D102
        truth, noisy = batch
        return wasserstein_loss(network, truth, noisy, self.penalty, generator)

    def validator(self, data, device) -> Callable | None:  # noqa: D102
        maps = Maps.read(data, "validation", self.standard, device=device)
        kinds = _unregularised(maps), maps.truth

        def validate(network):
            noisy, truth = (_batched(network, kind[:, None]) for kind in kinds)
            return {"gap": (noisy.mean() - truth.mean()).item(), "ranked": (noisy > truth).float().mean().item()}

        return validate


RECIPES: dict[str, type[Recipe]] = {r.kind: r for r in (CriticRecipe, PaperCriticRecipe, UNetRecipe, DenoiserRecipe)}


def recipe(kind, *, preset=None, **options) -> Recipe:
    """The recipe of a kind of network, with some of its options changed.

    Parameters
    ----------
    kind : str
        One of `RECIPES`.
    preset : {"paper"}, optional
        The setting of the paper, if the kind has one.
    **options
        Fields of the recipe.

    Raises
    ------
    ValueError
        If there is no such kind, preset or option.
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


def wasserstein_loss(critic, truth, noisy, penalty, generator) -> tuple[torch.Tensor, dict[str, Any]]:
    """Wasserstein loss (8) of a critic with the one-sided gradient penalty (9) of a weight, and figures for the log.

    The penalty is taken between the true and the noisy maps, (B, 1, H, W), which are not of the same bodies.
    """
    gap = critic(noisy).mean() - critic(truth).mean()
    share = torch.rand((len(truth), 1, 1, 1), generator=generator, device=truth.device)
    excess, slope = gradient_penalty(critic, share * truth + (1 - share) * noisy)
    return penalty * excess - gap, {"gap": gap.detach(), "slope": slope.detach()}


def gradient_penalty(critic, s) -> tuple[torch.Tensor, torch.Tensor]:
    """One-sided penalty on the slope of a critic, (9): the mean of max(|gradient| - 1, 0)^2 over a batch (B, 1, H, W).

    Returns
    -------
    penalty, slope : torch.Tensor, shape ()
        The penalty and the mean norm of the gradient, both differentiable with respect to the weights of the critic.
    """
    s = s.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(s).sum(), s, create_graph=True)
    slope = gradient.flatten(1).norm(dim=1)
    return functional.relu(slope - 1).square().mean(), slope.mean()


def _unregularised(maps) -> torch.Tensor:
    if maps.noisy is None:
        raise ValueError("the data set has no unregularised maps, which this network is trained on; build it with them")
    return maps.noisy


def _batched(network, s):
    """``network(s)``, computed for a few maps at a time and without gradients."""
    with torch.inference_mode():
        return torch.cat([network(part) for part in s.split(AT_A_TIME)])


def _reconstructed(prior, network, data, recipe, otherwise) -> float:
    """Mean relative error of the first validation maps when they are reconstructed with a network.

    ``otherwise`` is returned if the recipe asks for no reconstructions.
    """
    indices = data.indices("validation")[: recipe.reconstructions]
    if not len(indices):
        return otherwise
    prior = prior(copy.deepcopy(network), {"standard": recipe.standard._asdict()})
    errors = []
    for i in indices:
        result, truth = plain_map(data.measurement(i), prior), data.modulus(i)
        errors.append(relative_l2(result.modulus * (scale(truth) if result.relative else 1.0), truth))
    return float(np.mean(errors))


def _relative_error(network, noisy, truth, standard) -> float:
    """Mean over the maps of |x - x_true| / |x_true|, where x is the modulus."""
    x, true = standard.invert(_batched(network, noisy)), standard.invert(truth)
    return ((x - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).mean().item()


def _norm(name, error):
    return error.abs() if name == "l1" else error.square()


def _check_norm(name):
    if name not in ("l1", "l2"):
        raise ValueError(f"norm must be l1 or l2, got {name!r}")
