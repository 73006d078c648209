"""Priors that were learned from maps: an adversarial critic, plug-and-play denoising, and a UNet as post-processing.

Networks come from weights files (`elastofast.priors.weights_file`); those shipped with the package are the default.
Maps cross to torch and back through DLPack; a network follows them to their GPU. Networks were trained on square
pixels; maps with longer ones are interpolated for them, and what they find is read off at the nodes.
"""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import ClassVar

import numpy as np

from ..backend.device import namespace, to_host
from ..geometry import Grid
from .protocol import Linearization, SplittingSettings
from .standard import TISSUE, Standard

__all__ = ["SHIPPED", "SMALLEST_NODES", "Critic", "LearnedPrior", "PaperCritic", "PlugAndPlay", "PostProcessing",
    "SquaredCritic",
]  # fmt: skip

# Nodes along each axis of the smallest maps that learned priors were validated on. They are not used on smaller grids
# and levels.
SMALLEST_NODES = 96
# Ratio of the spacings up to which pixels count as square. Not studied.
NEARLY_SQUARE = 1.5
# The longest pixels that were tried (benchmarks/evidence.py).
LONGEST_PIXELS = 4.0


class LearnedPrior:
    """A network that sees maps: loading, checks, and the way from x or log x to standardised tensors and back."""

    name: ClassVar[str] = ""  # for `reconstruct(prior=...)`
    title: ClassVar[str] = ""  # for tables and figures
    kind: ClassVar[str] = ""  # of the networks that it takes, a key of `networks.KINDS`
    file: ClassVar[str] = ""  # with the shipped weights, in elastofast/weights
    stretch: tuple[float, float] = (1.0, 1.0)  # pixels of the network for each pixel of the maps, along both axes

    def __init__(self, network, configuration):
        found = getattr(network, "kind", type(network).__name__)
        if found != self.kind:
            raise TypeError(f"network must be a {self.kind}, got {found!r}")
        self.network = network.requires_grad_(False).eval()
        self.configuration = configuration
        self.standard = Standard(**configuration.get("standard", {}))

    @classmethod
    def load(cls, path=None, device="cpu"):
        """The prior with weights from a file.

        Parameters
        ----------
        path : path-like, optional
            A weights file by ``elastofast train``; the shipped one by default.
        device : str, optional
            Where the network works, "cpu" or "cuda".

        Raises
        ------
        ValueError
            If the file is anything else than sound weights of the right kind.
        OSError
            If it cannot be opened.
        ImportError
            If torch or safetensors is not installed.
        """
        return cls(*cls._read(path, device, (cls.kind,)))

    @classmethod
    def _read(cls, path, device, kinds):
        """Network of one of some kinds and its configuration, from a file or the shipped one."""
        try:
            from . import weights_file
        except ImportError as error:
            raise ImportError(
                f'learned priors need torch and safetensors: pip install "elastofast[learn]" ({error})'
            ) from error
        if path is not None:
            return weights_file.load(path, kinds, device)
        with as_file(files("elastofast") / "weights" / cls.file) as shipped:
            return weights_file.load(shipped, kinds, device)

    def check(self, geometry):
        """Raise ValueError if the prior cannot see maps of a geometry."""
        if not isinstance(geometry, Grid) or geometry.dim != 2:
            raise ValueError(
                f"learned priors see maps on two-dimensional grids, the measurement is on {geometry!r}; use prior 'tv'"
            )
        if max(_stretch(geometry)) > LONGEST_PIXELS * (1 + 1e-6):
            raise ValueError(
                f"learned priors take pixels of up to {LONGEST_PIXELS:g} : 1, the grid's spacing is "
                f"{geometry.spacing}; resample the displacement or use prior 'tv'"
            )

    def on(self, geometry):
        """The same prior for maps on a geometry, which it sees on square pixels as long as its shorter spacing.

        Parameters
        ----------
        geometry : Grid

        Raises
        ------
        ValueError
            If it cannot see such maps.
        """
        self.check(geometry)
        if _stretch(geometry) == self.stretch:
            return self
        bound = copy.copy(self)
        bound.stretch = _stretch(geometry)
        return bound

    @property
    def note(self) -> str:
        """What is to be said about maps by this prior; nothing if it sees them as they are."""
        if self.stretch == (1.0, 1.0):
            return ""
        return f"The prior's network saw pixels of {max(self.stretch):.3g} : 1 interpolated to square ones."

    def seen_shape(self, shape):
        """Shape of the maps that the network sees in place of those of a shape."""
        return tuple(round((n - 1) * one) + 1 for n, one in zip(shape, self.stretch, strict=True))

    def _tensor(self, x, logarithm=False):
        """Standardised maps (B, 1, H, W), as the network sees them, of moduli x (..., H, W) or of their logarithms."""
        x = _shared(x)
        parameter = next(self.network.parameters())
        if x.is_cuda and x.device != parameter.device:
            parameter = next(self.network.to(x.device).parameters())
        x = x.reshape(-1, 1, *x.shape[-2:]).to(parameter)
        return _interpolated(
            self.standard.apply_to_log(x) if logarithm else self.standard.apply(x), self.seen_shape(x.shape[-2:])
        )

    def _at_tissue(self, s):
        """Standardised logarithms (B, 1, H, W) with their median moved to soft tissue, and the moves (B, 1, 1, 1).

        Only ratios of moduli can then matter to a network that was trained at the level of tissue.
        """
        move = self.standard.apply_to_log(np.log(TISSUE)) - s.flatten(1).median(dim=1).values.reshape(-1, 1, 1, 1)
        return s + move, move

    def _without_error(self, z, shape, estimate):
        """Maps z = log x (..., N) less the error that a function of standardised maps (B, 1, H, W) finds in them."""
        import torch

        with torch.inference_mode(), _single_precision():
            error = _interpolated(estimate(self._tensor(z.reshape(-1, *shape), logarithm=True)), shape)
        return z - self.standard.scale * _given_back(error, z, z.shape)


def _stretch(geometry):
    """Spacings over the shorter one; ones for pixels that are nearly square."""
    low, high = min(geometry.spacing), max(geometry.spacing)
    return tuple(h / low for h in geometry.spacing) if high > NEARLY_SQUARE * low else (1.0, 1.0)


def _interpolated(s, shape):
    """Maps (B, 1, H, W) at the nodes of another grid over the same body."""
    from torch.nn.functional import interpolate

    return s if s.shape[-2:] == tuple(shape) else interpolate(s, tuple(shape), mode="bilinear", align_corners=True)


@contextmanager
def _single_precision():
    """Convolutions in full single precision on a GPU too, where ten bits would be the default."""
    import torch

    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        with cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False):
            yield
        return
    before, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


def _shared(x):
    """An array of any library as a tensor on its device, without a copy unless it is read-only."""
    import torch

    if isinstance(x, torch.Tensor):
        return x
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        x = x.copy()
    return torch.from_dlpack(x)


def _given_back(tensor, like, shape):
    """A tensor as an array of the library and device of another, float64 of a shape."""
    import torch

    if isinstance(like, torch.Tensor):
        return tensor.to(like.device, torch.float64).reshape(shape)
    tensor = tensor.to(torch.float64)
    return namespace(like).from_dlpack(tensor.cpu() if isinstance(like, np.ndarray) else tensor).reshape(shape)


class _CriticEnergy(LearnedPrior):
    """What critics share: the value of the network at x and its gradient, as an explicit energy."""

    def __call__(self, x):
        """Value and gradient per pascal.

        Parameters
        ----------
        x : array, shape (..., H, W)
            Modulus in pascals, of any library and device that speaks DLPack; float64 or float32.

        Returns
        -------
        value : float, or array of shape (...)
        gradient : array, shape of x
        """
        import torch

        with torch.enable_grad(), _single_precision():
            leaf = _shared(x).detach().requires_grad_(True)
            value = self.network(self._tensor(leaf))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        value = value.detach().to(leaf.dtype).reshape(leaf.shape[:-2])
        if isinstance(x, torch.Tensor):
            return value, gradient
        back = namespace(x).from_dlpack
        return (back(value) if value.ndim else float(value)), back(gradient)


class Critic(_CriticEnergy):
    """Adversarial regulariser: a critic trained to tell true maps from those that a reconstruction passes through.

    Called as ``value, gradient = critic(x)`` it is an explicit energy, for L-BFGS and the paper's descent. It also
    names the `target` of a map, the end of its steepest descent, which the default optimizer uses.

    Parameters
    ----------
    network : DistanceCritic
    configuration : dict
        Of its weights file; ``standard`` is used.

    Examples
    --------
    >>> critic = ef.priors.Critic.load("mine.safetensors")  # doctest: +SKIP
    >>> result = ef.reconstruct(m, prior=critic)  # doctest: +SKIP
    """

    name = "critic"
    title = "adversarial"
    kind = "critic"
    file = "critic.safetensors"
    # 19 in 20 maps of the training generator keep what is plausible at 35, 40 and 45 dB (benchmarks/evidence.py).
    splitting = SplittingSettings(
        weight=350.0,
        growth=0.5,
        unpenalised_weight=10.0,
        limiter_slack=0.03,
        plausible=0.0035,
        plausible_decay=0.15,
    )

    def __init__(self, network, configuration):
        super().__init__(network, configuration)
        if not self.standard.logarithmic:
            raise ValueError("a distance critic sees log x; its configuration says that it was trained on x")

    @classmethod
    def load(cls, path=None, device="cpu"):
        """As `LearnedPrior.load`; a file with the paper's critic gives a `PaperCritic`."""
        network, configuration = cls._read(path, device, (cls.kind, PaperCritic.kind))
        return (PaperCritic if network.kind == PaperCritic.kind else cls)(network, configuration)

    def target(self, z, shape):
        """The map that the critic takes for the true one next to z = log x: z less the error that it estimates."""
        return self._without_error(z, shape, self.network.error)


class SquaredCritic:
    """The energy R = C^2 / 2 of a critic with its true gradient, in units of log x: half the squared distance to the
    true maps, for Gauss-Newton, L-BFGS and the paper's descent.

    The curvature is the identity, which majorises that of half a squared distance: it is the curvature along the
    directions in which the distance grows, and more than that along the set of true maps.

    Parameters
    ----------
    critic : Critic
    geometry : Grid
        Whose maps it sees.

    Examples
    --------
    >>> energy = ef.priors.SquaredCritic(ef.priors.Critic.load(), m.geometry)  # doctest: +SKIP
    >>> result = ef.reconstruct(m, prior=energy, weight=100.0)  # doctest: +SKIP
    """

    def __init__(self, critic, geometry):
        self.critic, self.geometry = critic.on(geometry), geometry

    def check(self, geometry):
        """Raise ValueError unless a geometry has the nodes of the one that the energy was made for."""
        self.critic.check(geometry)
        if geometry.node_shape != self.geometry.node_shape:
            raise ValueError(f"the energy was made for {self.geometry!r}, the measurement is on {geometry!r}")

    def __call__(self, x):
        """Value and gradient per pascal at moduli x (..., H, W); values (...), or a float for one map."""
        x = _shared(x) if namespace(x) is not np else np.asarray(x)
        value, gradient = self._model(namespace(x).log(x))
        return (value if value.ndim else float(value)), gradient / x

    def value(self, z):
        """R at z = log x (..., N), in host memory."""
        import torch

        with torch.inference_mode(), _single_precision():
            error = self.critic.network.error(self._standardised(z))
        return self._energy(error).cpu().numpy().reshape(z.shape[:-1])

    def linearize(self, z, dual=None) -> Linearization:
        """Value, gradient and majorising curvature at z = log x (..., N)."""
        value, gradient = self._model(z)
        return Linearization(to_host(value), gradient, lambda v: v, namespace(z).ones_like(z))

    def start_dual(self):
        """Nothing: there is no dual variable."""
        return None

    def step_dual(self, dual, z, dz):
        """Nothing to update."""
        return None

    def _standardised(self, z):
        return self.critic._tensor(z.reshape(-1, *self.geometry.node_shape), logarithm=True)

    def _energy(self, error):
        own = self.critic.standard.scale**2 / math.prod(self.critic.stretch)  # of a node, however many pixels are seen
        return 0.5 * own * error.double().square().flatten(1).sum(1)

    def _model(self, z):
        """Value and gradient at z = log x, (..., N) or (..., H, W)."""
        import torch

        with torch.enable_grad(), _single_precision():
            leaf = _shared(z).detach().requires_grad_(True)
            value = self._energy(self.critic.network.error(self._standardised(leaf)))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        batch = z.shape[: z.ndim - (1 if z.shape[-1] == self.geometry.n_nodes else 2)]
        return _given_back(value.detach(), z, batch), _given_back(gradient, z, z.shape)


class PaperCritic(_CriticEnergy):
    """The critic of Mohammadi, Doyley and Cetin: an explicit energy for maps of one size, because of its dense layers.

    Parameters
    ----------
    network : networks.PaperCritic
    configuration : dict
        Of its weights file; ``standard`` is used.
    """

    kind = "paper-critic"

    def check(self, geometry):
        """Raise ValueError if the prior cannot see maps of a geometry."""
        super().check(geometry)
        shape = self.network.shape
        if _stretch(geometry) != (1.0, 1.0):
            raise ValueError(f"this critic needs nearly square pixels, the grid's spacing is {geometry.spacing}")
        if geometry.shape != shape:
            raise ValueError(
                f"this critic has dense layers and sees maps of {shape[0]} x {shape[1]} nodes only, the "
                f"measurement has {geometry.shape[0]} x {geometry.shape[1]}"
            )


class PlugAndPlay(LearnedPrior):
    """Plug-and-play prior: a denoiser names the `target` that the next data step is drawn to.

    Parameters
    ----------
    network : DnCNN
    configuration : dict
        Of its weights file; ``standard`` is used.
    """

    name = "pnp"
    title = "plug-and-play DnCNN"
    kind = "dncnn"
    file = "dncnn.safetensors"
    splitting = SplittingSettings(weight=100.0, growth=1.0, unpenalised_weight=3.0)

    def __init__(self, network, configuration):
        super().__init__(network.fused() if hasattr(network, "fused") else network, configuration)
        if not self.standard.logarithmic:
            raise ValueError("plug-and-play denoises log x; the configuration of the denoiser says it was trained on x")

    def target(self, z, shape):
        """The denoised maps, as log x of shape (..., N). They do not depend on the unit of x."""

        def error(s):
            seen, _ = self._at_tissue(s)
            return seen - self.network(seen)

        return self._without_error(z, shape, error)


class PostProcessing(LearnedPrior):
    """Supervised post-processing of the unregularised map by a UNet; no prior in the sense of an optimisation.

    Parameters
    ----------
    network : UNet
    configuration : dict
        Of its weights file; ``standard`` is used.
    """

    name = "unet"
    title = "UNet post-processing"
    kind = "unet"
    file = "unet.safetensors"

    def __init__(self, network, configuration):
        super().__init__(network, configuration)
        if not self.standard.logarithmic:
            raise ValueError("post-processing corrects log x; the configuration of the UNet says it was trained on x")

    def apply(self, x):
        """Corrected modulus, shape and unit of x (..., H, W), whatever that unit is."""
        import torch

        with torch.inference_mode(), _single_precision():
            seen, move = self._at_tissue(self._tensor(x))
            out = self.standard.invert(_interpolated(self.network(seen) - move, x.shape[-2:]))
        return _given_back(out, x, x.shape)


# The learned priors, and the post-processing step, that have a name and shipped weights. Tables and figures list them
# in this order and compare the others with the last one.
SHIPPED: tuple[type[LearnedPrior], ...] = (PostProcessing, PlugAndPlay, Critic)
