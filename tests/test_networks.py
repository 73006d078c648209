import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from elastofast.priors.networks import KINDS, DnCNN, PaperCritic, UNet, build  # noqa: E402

SMALL = {"paper-critic": {"shape": (20, 17)}, "unet": {"channels": 4}, "dncnn": {"channels": 4, "layers": 3}}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(network, shape=(16, 16)):
    """A denoiser with batch norms of some statistics, scales and shifts, and no layer at its zeros of the start."""
    nn.init.normal_(network.output.weight, std=0.2)
    for norm in network.norms:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    with torch.no_grad():
        for _ in range(5):
            network.train()(2 + torch.randn(4, 1, *shape))
    return network.eval()


# architectures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_architecture_builds_the_same_network_again(kind):
    network = build(kind, **SMALL.get(kind, {}))
    again = build(kind, **network.architecture)
    assert network.kind == kind and again.architecture == network.architecture
    shapes = [{name: t.shape for name, t in n.state_dict().items()} for n in (network, again)]
    assert shapes[0] == shapes[1]


def test_paper_critic_is_table_1():
    critic = PaperCritic((128, 96))
    layers = [(c.in_channels, c.out_channels, c.kernel_size, c.stride[0]) for c in critic.convolutions]
    widths = [1, 16, 32, 32, 64, 64, 128]
    assert layers == [(a, b, (5, 5), s) for a, b, s in zip(widths[:-1], widths[1:], [1, 1, 2, 2, 2, 2], strict=True)]
    assert critic.dense.in_features == 128 * 8 * 6 and critic.dense.out_features == 256
    assert critic.output.in_features == 256 and critic.output.out_features == 1


def test_paper_critic_is_its_plain_layers():
    critic = PaperCritic((20, 17))
    layers = [layer for c in critic.convolutions for layer in (c, nn.LeakyReLU(0.1))]
    plain = nn.Sequential(*layers, nn.Flatten(), critic.dense, nn.LeakyReLU(0.1), critic.output)
    s = torch.randn(5, 1, 20, 17)
    torch.testing.assert_close(critic(s), plain(s)[:, 0])


def test_paper_critic_refuses_another_size():
    with pytest.raises(ValueError, match=r"maps of shape \('B', 1, 20, 17\), got \(2, 1, 20, 20\)"):
        PaperCritic((20, 17))(torch.zeros(2, 1, 20, 20))


def test_unet_without_refinement_is_table_1():
    layers = [m for m in UNet(channels=8, refine=0).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [type(m) for m in layers] == [nn.Conv2d] * 4 + [nn.ConvTranspose2d] * 4
    assert all(m.stride == (2, 2) for m in layers)
    widths = [(m.in_channels, m.out_channels) for m in layers]
    assert widths[:4] == [(1, 8), (8, 16), (16, 32), (32, 64)]
    assert widths[4:] == [(64, 32), (32 + 32, 16), (16 + 16, 8), (8 + 8, 1)]  # skips beside what comes from below


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("shape", [(32, 48), (17, 23), (33, 16), (9, 8)])
def test_unet_takes_any_size_as_if_padded_by_replication(refine, shape):
    network = UNet(4, refine)
    s = torch.randn(2, 1, *shape)
    rows, columns = (-n % 16 for n in shape)
    padded = torch.from_numpy(np.pad(s.numpy(), ((0, 0), (0, 0), (0, rows), (0, columns)), mode="edge"))
    with torch.no_grad():
        out, wide = network(s), network(padded)
    assert out.shape == s.shape
    torch.testing.assert_close(out, wide[..., : shape[0], : shape[1]])


def test_dncnn_subtracts_what_its_plain_layers_find():
    network = trained(DnCNN(channels=6, layers=4)).train()
    middle = [layer for pair in zip(network.hidden, network.norms, strict=True) for layer in (*pair, nn.ReLU())]
    plain = nn.Sequential(network.input, nn.ReLU(), *middle, network.output)
    s = torch.randn(3, 1, 14, 11)
    torch.testing.assert_close(network(s), s - plain(s))


def test_fused_batch_norm_is_the_same_denoiser():
    network = trained(DnCNN(channels=8, layers=5))
    fused = network.fused()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) and not fused.training
    s = torch.randn(2, 1, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(fused(s), network(s), rtol=1e-5, atol=1e-5)
        assert (network.train()(s) - fused(s)).abs().max() > 1e-2  # the batch's own statistics give something else
        torch.testing.assert_close(fused.fused()(s), fused(s))


@pytest.mark.parametrize(
    ("kind", "architecture", "text"),
    [
        ("resnet", {}, "kind must be one of"),
        ("unet", {"channels": 0}, "channels must be a whole number from 1 to 1024, got 0"),
        ("unet", {"channels": 1.5}, "channels"),
        ("unet", {"refine": True}, "refine"),
        ("dncnn", {"layers": 10**9}, "layers"),
        ("paper-critic", {"shape": 16}, "shape"),
        ("paper-critic", {"shape": (16, 4)}, "shape"),
    ],
)
def test_architectures_that_cannot_be_are_refused(kind, architecture, text):
    with pytest.raises(ValueError, match=text):
        build(kind, **architecture)
