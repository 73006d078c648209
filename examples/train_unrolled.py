"""Train a small network through the solver: an unrolled splitting, whose data steps are layers of the network.

Each of two stages takes the present map of log x, lets a network propose a better one, and moves that towards the
measurement by `elastofast.interop.torch.DataStep`. The loss is the error of the last map, and its gradient passes
through the data steps by implicit differentiation. Needs torch.
"""

import torch
from torch import nn

import elastofast as ef
from elastofast.interop.torch import DataStep


class Proposal(nn.Module):
    """What a few convolutions add to a map of log x, whose median they do not see."""

    def __init__(self, width=16):
        super().__init__()
        layers = [nn.Conv2d(1, width, 5, padding=2), nn.SiLU(), nn.Conv2d(width, width, 5, padding=2), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 5, padding=2))
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, z):
        """The proposal, of the shape of z (B, 1, H, W)."""
        middle = z.flatten(1).median(dim=1).values.reshape(-1, 1, 1, 1)
        return z + self.layers((z - middle).float()).double()


class Unrolled(nn.Module):
    """Stages of a proposal and a data step; the weights of the data steps are learned too."""

    def __init__(self, stages=2):
        super().__init__()
        self.proposals = nn.ModuleList(Proposal() for _ in range(stages))
        self.log_weights = nn.Parameter(torch.linspace(5.0, 6.0, stages, dtype=torch.float64))

    def forward(self, step, start):
        """Maps of log x (B, 1, H, W) from a layer of the data step and first maps."""
        z = start
        for proposal, log_weight in zip(self.proposals, self.log_weights, strict=True):
            z = step(proposal(z), log_weight.exp())
        return z


def batch_of(grid, first, count):
    """Simulated measurements of random lesions, and their maps of log x (count, 1, H, W)."""
    law, load = ef.PlaneStress(poisson=0.495), ef.compression(grid, pressure=100.0)
    maps = [ef.lesion(grid, seed=first + k, size=(0.2, 0.4))[0] for k in range(count)]
    measurements = [ef.simulate(grid, law, load, x, snr=35.0, seed=first + k) for k, x in enumerate(maps)]
    return measurements, torch.stack([torch.tensor(x).log()[None] for x in maps])


def main(nodes=48, batch=4, steps=8, picture=None):
    """Train for some steps, draw a map that the network has not seen, and return the losses.

    These are the first steps of a training, which takes hundreds; a larger batch makes them steadier.
    """
    torch.manual_seed(0)
    grid = ef.Grid(shape=(nodes, nodes), spacing=(32e-3 / (nodes - 1),) * 2)
    network, losses = Unrolled(), []
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for number in range(steps):
        measurements, truth = batch_of(grid, batch * number, batch)
        start = truth.new_full(truth.shape, float(torch.tensor(12.5e3).log()))
        loss = (network(DataStep(measurements), start) - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {number + 1}: mean squared error of log x {losses[-1]:.4f}")
    if picture:
        (unseen,), truth = batch_of(grid, 10_000, 1)
        with torch.no_grad():
            z = network(DataStep([unseen]), torch.full_like(truth, float(torch.tensor(12.5e3).log())))
        maps = {"truth": truth, f"after {steps} steps": z}
        ef.plot_maps({title: own[0, 0].exp().numpy() for title, own in maps.items()}, grid, picture)
    return losses


if __name__ == "__main__":
    main(picture="train_unrolled.png")
