"""Networks of the learned priors, each a torch module with a `kind` and the `architecture` that rebuilds it.

All take standardised maps s, float32 of shape (B, 1, H, W); see `standard.Standard`.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["KINDS", "DistanceCritic", "DnCNN", "PaperCritic", "UNet", "build"]


class PaperCritic(nn.Module):
    """The paper's critic (Table 1): six 5 x 5 convolutions, the last four with stride 2, and two dense layers.

    Channels and slope are those of Lunz et al. (2018), whom the paper follows. Because of the dense layers a network is
    for maps of one size.

    Parameters
    ----------
    shape : (int, int)
        Nodes of the maps along both axes.
    """

    kind = "paper-critic"
    CHANNELS = (1, 16, 32, 32, 64, 64, 128)
    STRIDES = (1, 1, 2, 2, 2, 2)
    DENSE = 256
    SLOPE = 0.1

    def __init__(self, shape):
        super().__init__()
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise ValueError(f"shape must be two sizes, got {shape!r}")
        self.shape = tuple(_whole("shape", n, 8, 8192) for n in shape)
        self.architecture = {"shape": list(self.shape)}
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=stride, padding=2)
            for a, b, stride in zip(self.CHANNELS[:-1], self.CHANNELS[1:], self.STRIDES, strict=True)
        )
        height, width = (-(-n // 16) for n in self.shape)  # four times halved, rounded up
        self.dense = nn.Linear(self.CHANNELS[-1] * height * width, self.DENSE)
        self.output = nn.Linear(self.DENSE, 1)

    def forward(self, s) -> torch.Tensor:
        """Critic of (B, 1, *shape) maps, shape (B,): low for true maps, high for noisy ones."""
        if tuple(s.shape[1:]) != (1, *self.shape):
            raise ValueError(f"this critic is for maps of shape {('B', 1, *self.shape)}, got {tuple(s.shape)}")
        for convolution in self.convolutions:
            s = functional.leaky_relu(convolution(s), self.SLOPE)
        s = functional.leaky_relu(self.dense(s.flatten(1)), self.SLOPE)
        return self.output(s)[:, 0]


class DistanceCritic(nn.Module):
    """Fully convolutional critic for maps of any size: an estimate of the distance |F(s)| to the nearest true map.

    F, a residual U-Net on blocks of 2 x 2 pixels, estimates the error of a map, and C(s) = sqrt(|F(s)|^2 + tip^2). From
    anywhere C has the slope one towards the true maps. It thus is the optimal Wasserstein critic between true maps and
    any maps of which they are the projections (Lunz et al. 2018, Theorem 2). Adding a constant to s does not change F,
    so the critic does not depend on the unit of the modulus.

    Parameters
    ----------
    channels : sequence of int, optional
        Numbers of channels at a half, a quarter and an eighth of the resolution.
    tip : float, optional
        Radius in s over which the tip of the cone C is rounded off at the true maps.
    """

    kind = "critic"

    def __init__(self, channels=(32, 64, 64), tip=0.22):
        super().__init__()
        if not isinstance(channels, tuple | list) or len(channels) != 3:
            raise ValueError(f"channels must be three numbers, got {channels!r}")
        fine, middle, coarse = (_whole("channels", c, 1, 1024) for c in channels)
        if not (isinstance(tip, float) and 0 < tip < 10):
            raise ValueError(f"tip must be a positive number, got {tip!r}")
        self.tip = tip
        self.architecture = {"channels": [fine, middle, coarse], "tip": tip}
        self.input = nn.Conv2d(4, fine, 3)
        self.fine = _Residual(fine)
        self.to_middle = nn.Conv2d(fine, middle, 2, stride=2)
        self.middle = _Residual(middle)
        self.to_coarse = nn.Conv2d(middle, coarse, 2, stride=2)
        self.coarse = nn.Sequential(_Residual(coarse), _Residual(coarse))
        self.from_coarse = nn.ConvTranspose2d(coarse, middle, 2, stride=2)
        self.middle_again = _Residual(middle)
        self.from_middle = nn.ConvTranspose2d(middle, fine, 2, stride=2)
        self.fine_again = _Residual(fine)
        self.output = nn.Conv2d(fine, 4, 3, padding=1)

    def error(self, s) -> torch.Tensor:
        """F, the estimated error of (B, 1, H, W) maps, same shape."""
        h = functional.pad(functional.pixel_unshuffle(_pad(s, 8), 2), (1, 1, 1, 1), mode="replicate")
        weight = self.input.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)  # constants have no effect
        fine = self.fine(functional.conv2d(h, weight, self.input.bias))
        middle = self.middle(self.to_middle(fine))
        middle = self.middle_again(middle + self.from_coarse(self.coarse(self.to_coarse(middle))))
        fine = self.fine_again(fine + self.from_middle(middle))
        out = functional.pixel_shuffle(self.output(functional.silu(fine)), 2)
        return out[..., : s.shape[-2], : s.shape[-1]]

    def forward(self, s) -> torch.Tensor:
        """C of (B, 1, H, W) maps, shape (B,): low for true maps, high for noisy ones."""
        return (self.error(s).square().flatten(1).sum(1) + self.tip**2).sqrt()


class _Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.get_parameter("bias"))
        self.second.weight.data.mul_(0.5)  # such that blocks are close to the identity at first

    def forward(self, h) -> torch.Tensor:
        # a smooth activation, so that the gradient of the critic is continuous
        return h + self.second(functional.silu(self.first(functional.silu(h))))


class UNet(nn.Module):
    """UNet that predicts a correction to its input (Table 1): 4 strided and 4 transposed convolutions, skips.

    Maps may have any size: they are padded to a multiple of 16 by repeating their last rows and columns, and the
    correction is cut to their size.

    Parameters
    ----------
    channels : int, optional
        Number of channels of the first level, which doubles at every level, up to eight times as many.
    refine : int, optional
        Number of additional 3 x 3 convolutions after each strided or transposed one; 0 is the network of Table 1.
    """

    kind = "unet"
    LEVELS = 4
    SLOPE = 0.1

    def __init__(self, channels=24, refine=1):
        super().__init__()
        channels, refine = _whole("channels", channels, 1, 1024), _whole("refine", refine, 0, 8)
        self.architecture = {"channels": channels, "refine": refine}
        widths = [channels * 2**level for level in range(self.LEVELS)]
        ins = [1, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(a, b, 4, stride=2, padding=1), *_refinement(b, refine)])
            for a, b in zip(ins, widths, strict=True)
        )
        # from the coarsest level upwards; all but the first also take the skip connection of their level
        ups = [(widths[-1], widths[-2]), *((2 * w, max(w // 2, 1)) for w in widths[-2:0:-1])]
        self.up = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), *_refinement(b, refine)]) for a, b in ups
        )
        self.last = nn.ConvTranspose2d(2 * channels, channels if refine else 1, 4, stride=2, padding=1)
        self.output = nn.Conv2d(channels + 1, 1, 3, padding=1) if refine else None

    def forward(self, s) -> torch.Tensor:
        """Corrected maps, shape of ``s``: (B, 1, H, W)."""
        x = _pad(s, 2**self.LEVELS)
        skips, h = [], x
        for block in self.down:
            h = _chain(block, h, self.SLOPE)
            skips.append(h)
        skips.pop()
        for block in self.up:
            h = torch.cat([_chain(block, h, self.SLOPE), skips.pop()], 1)
        h = self.last(h)
        if self.output is not None:
            h = self.output(torch.cat([functional.leaky_relu(h, self.SLOPE), x], 1))
        return s + h[..., : s.shape[-2], : s.shape[-1]]


class DnCNN(nn.Module):
    """Denoiser that predicts the noise (Table 1): convolution, 10 x (convolution, batch norm), convolution; ReLU.

    The network is not told the noise level. Maps may have any size.

    Parameters
    ----------
    channels : int, optional
        Number of channels of the hidden layers.
    layers : int, optional
        Number of hidden layers.
    batch_norm : bool, optional
        Whether the hidden layers have a batch norm; see `fused`.
    """

    kind = "dncnn"

    def __init__(self, channels=48, layers=10, batch_norm=True):
        super().__init__()
        channels, layers = _whole("channels", channels, 1, 1024), _whole("layers", layers, 1, 100)
        self.architecture = {"channels": channels, "layers": layers, "batch_norm": bool(batch_norm)}
        self.input = nn.Conv2d(1, channels, 3, padding=1)
        # without a bias in front of a batch norm, which would subtract it again
        self.hidden = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(layers if batch_norm else 0))
        self.output = nn.Conv2d(channels, 1, 3, padding=1)
        for convolution in (self.input, *self.hidden):
            _init_pointwise(convolution)
        # at first the denoiser is the identity
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, s) -> torch.Tensor:
        """Denoised maps, shape of ``s``: (B, 1, H, W)."""
        h = functional.relu(self.input(s))
        for index, convolution in enumerate(self.hidden):
            h = convolution(h)
            h = functional.relu(self.norms[index](h) if self.norms else h)
        return s - self.output(h)

    def fused(self) -> DnCNN:
        """The same denoiser for inference, in which each batch norm is merged into its convolution."""
        if not self.norms:
            return copy.deepcopy(self).eval()
        fused = DnCNN(**{**self.architecture, "batch_norm": False})
        fused.input, fused.output = copy.deepcopy(self.input), copy.deepcopy(self.output)
        source = copy.deepcopy(self).eval()
        for index, (convolution, norm) in enumerate(zip(source.hidden, source.norms, strict=True)):
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            fused.hidden[index] = fuse_conv_bn_eval(convolution, norm)
        return fused.eval()


KINDS: dict[str, type[nn.Module]] = {network.kind: network for network in (DistanceCritic, PaperCritic, UNet, DnCNN)}


def build(kind, **architecture) -> nn.Module:
    """A new network.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    **architecture
        Arguments of its class, which become its ``architecture``.

    Raises
    ------
    ValueError
        For an unknown kind or an argument out of range.
    TypeError
        For an argument that the class does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](**architecture)


def _init_pointwise(convolution, spread=0.1):
    """Initialise the weights near an orthogonal matrix that acts on the channels of each pixel (Xiao et al. 2018).

    Signals then pass through a plain stack of layers unchanged. From the usual initialisation the denoiser hardly
    improved for hundreds of steps.
    """
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    with torch.no_grad():
        convolution.weight *= spread
        centre = torch.empty(convolution.weight.shape[:2], device=convolution.weight.device)
        convolution.weight[:, :, 1, 1] += nn.init.orthogonal_(centre, gain=nn.init.calculate_gain("relu"))


def _refinement(channels, count):
    return (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))


def _chain(layers, h, slope):
    for layer in layers:
        h = functional.leaky_relu(layer(h), slope)
    return h


def _pad(s, multiple):
    """Maps padded to a multiple along both axes, by repeating their last rows and columns."""
    rows, columns = (-n % multiple for n in s.shape[-2:])
    return functional.pad(s, (0, columns, 0, rows), mode="replicate") if rows or columns else s


def _whole(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
    return value
