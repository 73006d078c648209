"""The forward model, the data term and the priors for DeepInverse, and its denoisers as priors of the library.

DeepInverse's variable is z = log x, x in pascals, as maps (B, 1, H, W); its measurements are displacements in metres,
(B, d, H, W). On meshes N takes the place of H, W.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from deepinv.models import Denoiser
from deepinv.optim import DataFidelity, Prior
from deepinv.physics import Physics
from torch import Tensor, nn

from ..backend.device import namespace
from ..boundary import Boundary
from ..forward.form import ElasticForm
from ..forward.solve import check_problem
from ..geometry import Grid
from ..measurement import Measurement
from ..misfit.fidelity import Fidelity
from ..priors.protocol import EnergyPrior, SplittingSettings, TargetPrior
from ..priors.standard import Standard
from .torch import DataStep, as_tensor, misfit, solve_forward

__all__ = ["DenoiserPrior", "Elastography", "Energy", "Misfit", "TargetDenoiser"]

# Median change of a constant image above which a denoiser looks untrained. DnCNN and DRUNet of DeepInverse with random
# weights change it by .4 to 1.1, UNet by up to .1, its filters by less than .001. Trained networks were not at hand.
CONSTANT_CHANGE = 0.02


class Elastography(Physics):
    """The forward model z -> u with K(exp z) u = f, differentiable any number of times.

    Parameters
    ----------
    form : ElasticForm
    load : Boundary
        Fixed and loaded dofs, without open ones.
    rtol : float
        Relative tolerance of the solves.
    **options
        Of ``deepinv.physics.Physics``, such as ``noise_model``; noise levels are in metres.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """

    def __init__(self, form: ElasticForm, load: Boundary, rtol: float = 1e-8, **options: Any) -> None:
        check_problem(form, load, rtol)
        super().__init__(**options)
        self.form, self.load, self.rtol = form, load, rtol

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Displacements (B, d, H, W) of maps (B, 1, H, W) of the log modulus."""
        return solve_forward(self.form, _maps(x).exp(), self.load, rtol=self.rtol)


class Misfit(DataFidelity):
    """The data term J(exp z), with its gradient and its proximal map.

    Unlike a distance of displacements it knows the noise of each component, its correlation, the noise of the forces,
    open dofs and displacements that were not measured; ``physics`` is not used. The value of a modulus that cannot be
    solved is infinite, so that DeepInverse's backtracking shortens its step. `prox` can be differentiated, by implicit
    differentiation, so that unfolded networks can be trained through it; `grad` cannot.

    Parameters
    ----------
    measurements : Measurement or sequence of Measurement
        On one geometry. A sequence has one for each map of a batch.
    rtol : float
        Relative tolerance of the linear solves.
    tolerance, max_iterations
        Of the proximal map, see `elastofast.interop.torch.DataStep`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    A ``y`` that differs from what the measurements say takes the place of their displacement; each call is then set
    up anew. None stands for theirs.

    Examples
    --------
    >>> prior = deepinv.optim.PnP(denoiser)  # doctest: +SKIP
    >>> model = deepinv.optim.HQS(Misfit(m), prior, stepsize=0.01, sigma_denoiser=0.05)  # doctest: +SKIP
    >>> z = model(y, None, init=start)  # doctest: +SKIP
    """

    def __init__(
        self,
        measurements: Measurement | Sequence[Measurement],
        rtol: float = 1e-8,
        tolerance: float = 1e-3,
        max_iterations: int = 50,
    ) -> None:
        super().__init__()
        self.step = DataStep(measurements, tolerance=tolerance, max_iterations=max_iterations, rtol=rtol)
        self.fidelities = [Fidelity(m, rtol=rtol, on_failure="inf") for m in self.step.measurements]
        self.single = isinstance(measurements, Measurement)

    def fn(self, x: Tensor, y: Tensor | None = None, physics: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """J, shape (B,)."""
        members = self.fidelities[0] if self.single else self.fidelities
        return misfit(members, _maps(x).exp(), displacement=self._other(y))

    def grad(self, x: Tensor, y: Tensor | None = None, physics: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The derivative by z, shape (B, 1, H, W)."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(self.fn(leaf, y).sum(), leaf)[0].nan_to_num(0.0)

    def prox(
        self,
        x: Tensor,
        y: Tensor | None = None,
        physics: Any = None,
        *args: Any,
        gamma: float | Tensor = 1.0,
        **kwargs: Any,
    ) -> Tensor:
        """The minimiser z of gamma J(exp z) + |z - x|^2 / 2, shape (B, 1, H, W)."""
        weight = 1 / torch.as_tensor(gamma, dtype=x.dtype, device=x.device)
        weight = weight.reshape(()) if weight.numel() == 1 else weight.reshape(len(x))
        return self.step(_maps(x), weight, self._other(y))[:, None]

    def _other(self, y):
        """Measured displacements, if they are not the measurements' own."""
        if y is None:
            return None
        own = torch.stack([as_tensor(m.displacement, y) for m in self.step.measurements])
        return None if bool((own == y).all()) else y


class Energy(Prior):
    """A prior with an energy R(x), such as total variation or a critic, as a function of z = log x.

    Parameters
    ----------
    prior : EnergyPrior
        See `elastofast.priors`, such as ``ef.priors.TotalVariation(grid)``.

    Raises
    ------
    TypeError
        If it has no energy.
    """

    def __init__(self, prior: EnergyPrior) -> None:
        if not isinstance(prior, EnergyPrior):
            raise TypeError(f"prior must give the value and gradient of an energy, got {type(prior).__name__}")
        super().__init__()
        self.prior, self.explicit_prior = prior, True

    def fn(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """R(exp z), shape (B,)."""
        return self.prior(_detached(x).exp())[0]

    def grad(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The derivative by z, shape (B, 1, H, W)."""
        modulus = _detached(x).exp()
        return (modulus * self.prior(modulus)[1])[:, None].to(x)


class TargetDenoiser(Denoiser):
    """A prior with a target, such as a critic, as a denoiser of z = log x for DeepInverse's PnP and RED.

    The noise level is ignored: the strength of the prior is the step length's matter. With PnP in
    ``deepinv.optim.HQS(..., stepsize=1 / weight, g_first=True)`` the iteration rests where our splitting does when it
    leaves no direction unpenalised: where (gradient of J) + weight (z - P(z)) = 0, P(z) being the target.

    Parameters
    ----------
    prior : TargetPrior
        See `elastofast.priors`, such as ``ef.priors.Critic.load()``.

    Raises
    ------
    TypeError
        If it has no target.
    """

    def __init__(self, prior: TargetPrior) -> None:
        if not isinstance(prior, TargetPrior):
            raise TypeError(f"prior must have a method target(z, shape), got {type(prior).__name__}")
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: Any = None, **kwargs: Any) -> Tensor:
        """The targets of maps (B, 1, H, W); raises TypeError for a tensor that requires grad."""
        z = _detached(x)
        return self.prior.target(z.double().flatten(1), tuple(z.shape[1:])).reshape(x.shape).to(x)


class DenoiserPrior:
    """A denoiser of DeepInverse as a prior with a target for `elastofast.reconstruct`, on plane grids.

    The denoiser sees an image: log x, with the two moduli of ``modulus_range`` at 0 and 1.

    Parameters
    ----------
    denoiser : torch.nn.Module
        Called as ``denoiser(image, sigma)`` with images (B, channels, H, W).
    sigma : float
        What the denoiser is told: for most the standard deviation of noise in the image.
    modulus_range : (float, float)
        Pascals. By default it holds soft tissue and its lesions with room on both sides.
    channels : int
        Number of equal channels that the denoiser is shown; their mean is the result.
    splitting : SplittingSettings
        The weight of the prior, where `reconstruct` is not given one.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Warns
    -----
    UserWarning
        At its first use, if the denoiser does not leave a constant image alone, as happens with random weights.

    Examples
    --------
    >>> prior = DenoiserPrior(deepinv.models.DRUNet(1, 1), sigma=0.03)  # doctest: +SKIP
    >>> result = ef.reconstruct(m, prior=prior)  # doctest: +SKIP
    """

    def __init__(
        self,
        denoiser: nn.Module,
        sigma: float = 0.03,
        modulus_range: tuple[float, float] = (1e3, 1e5),
        channels: int = 1,
        splitting: SplittingSettings | None = None,
    ) -> None:
        if not callable(denoiser) or isinstance(denoiser, type):
            raise TypeError(f"denoiser must be an object that is called with an image, got {denoiser!r}")
        low, high = map(float, modulus_range)
        if not 0 < low < high < float("inf"):
            raise ValueError(f"modulus_range must be two increasing moduli in pascals, got {modulus_range!r}")
        self.denoiser = denoiser.requires_grad_(False).eval() if isinstance(denoiser, nn.Module) else denoiser
        self.sigma, self.channels = sigma, int(channels)
        self.standard = Standard(low, float(torch.tensor(high / low, dtype=torch.float64).log()))
        self.splitting = splitting or SplittingSettings()

    def check(self, geometry: Any) -> None:
        """Raise ValueError unless the geometry is a plane grid; warn of a denoiser that looks untrained."""
        if not isinstance(geometry, Grid) or geometry.dim != 2:
            raise ValueError(f"denoisers see maps on two-dimensional grids, the measurement is on {geometry!r}")
        flat = torch.full((1, 1, *geometry.shape), 0.5, dtype=torch.float64)
        change = float((self._denoised(flat) - flat).abs().median())  # most denoisers err at the edges
        if change > CONSTANT_CHANGE:
            warnings.warn(
                f"the denoiser changes a constant image of value 0.5 by {change:.2g} at half of its pixels, as "
                "untrained weights do: load its pretrained weights, and check that it expects images in [0, 1]",
                stacklevel=2,
            )

    def target(self, z: Any, shape: tuple[int, ...]) -> Any:
        """The denoised maps of z = log x, of shape (..., N)."""
        own = z if isinstance(z, Tensor) else torch.from_dlpack(z)
        seen = self.standard.apply_to_log(own.double()).reshape(-1, 1, *shape)
        found = own + self.standard.scale * (self._denoised(seen) - seen).reshape(own.shape)
        return found if isinstance(z, Tensor) else namespace(z).from_dlpack(found)

    def _denoised(self, image):
        """An image (B, 1, H, W) after the denoiser, in the dtype of its weights."""
        parameters = self.denoiser.parameters() if isinstance(self.denoiser, nn.Module) else iter(())
        like = next(parameters, image)
        with torch.no_grad():
            seen = image.to(like).expand(-1, self.channels, -1, -1)
            return self.denoiser(seen, self.sigma).mean(dim=1, keepdim=True).to(image)


def _maps(z):
    """Maps (B, 1, H, W) without their channel."""
    if z.shape[1] != 1:
        raise ValueError(f"maps of log x must have one channel, shape (B, 1, H, W), got {tuple(z.shape)}")
    return z[:, 0]


def _detached(z):
    if z.requires_grad and torch.is_grad_enabled():
        raise TypeError("the prior cannot be differentiated through: call it under torch.no_grad()")
    return _maps(z.detach())
