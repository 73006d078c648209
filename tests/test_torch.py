"""Derivatives by torch's gradcheck, that is, against central differences; values against the NumPy functions."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from test_fidelity import GEOMETRIES, LAWS, measure, truth

import elastofast as ef

torch = pytest.importorskip("torch")
ei = pytest.importorskip("elastofast.interop.torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

CASES = [(geometry, law) for geometry in ("grid", "mesh") for law in LAWS]


def form_of(geometry, law):
    return ef.ElasticForm(GEOMETRIES[geometry], LAWS[law])


def random(*shape, seed=0, low=None):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) if low is None else rng.uniform(low, 2 * low, shape)
    return torch.tensor(values, requires_grad=True)


def poisson(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("geometry", "law"), CASES)
def test_force_and_sensitivity_twice(geometry, law):
    form = form_of(geometry, law)
    x, u, v = random(2, *form.node_shape), random(*form.dof_shape, seed=1), random(2, *form.dof_shape, seed=2)
    nu = poisson([0.3, 0.4])
    np.testing.assert_allclose(ei.force(form, x, u).detach(), form.force(x.detach(), u.detach()))
    own = ef.ElasticForm(form.geometry, type(form.law)(0.4))
    found = ei.force(form, x, u, poisson=nu)[1].detach()
    np.testing.assert_allclose(found, own.force(x[1].detach(), u.detach()), atol=1e-12)
    for function, inputs in (
        (lambda x, u: ei.force(form, x, u), (x, u)),
        (lambda x, u, nu: ei.force(form, x, u, nu), (x, u, nu)),
        (lambda u, v: ei.sensitivity(form, u, v), (u, v)),
    ):
        assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True, atol=1e-6, rtol=1e-6)
        assert gradgradcheck(function, inputs, fast_mode=True, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["pressure", "strain"])
@pytest.mark.parametrize(("geometry", "law"), CASES)
def test_solve_forward_twice(geometry, law, kind):
    form, load, *_ = truth(geometry, law, kind)
    x, f, g = random(2, *form.node_shape, low=1.0), random(*form.dof_shape), random(2, *form.dof_shape, seed=1)
    nu = poisson(0.3)
    expected = ef.solve_forward(form, x.detach().numpy(), load)
    found = ei.solve_forward(form, x, load)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-7 * np.abs(expected).max())

    def solve(x, f, g, nu):
        return ei.solve_forward(form, x, load, force=f, displacement=g, poisson=nu, rtol=1e-12)

    assert gradcheck(solve, (x, f, g, nu), fast_mode=True, atol=1e-6, rtol=1e-6)
    assert gradgradcheck(solve, (x, f, g, nu), fast_mode=True, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "std", "force_std"),
    [
        ("pressure", "holes", 0.0),
        ("strain", "constant", 0.0),
        ("open side", "constant", 0.0),
        ("pressure", "uneven", 0.05),
    ],
)
@pytest.mark.parametrize(("geometry", "law"), CASES)
def test_misfit(geometry, law, kind, std, force_std):
    m, _ = measure(geometry, law, kind, std, force_std)
    seen = torch.tensor(m.observed)
    x = random(2, *m.form.node_shape, low=1.5)
    u = torch.tensor(m.displacement / 1e-5, requires_grad=True)  # scaled, since gradcheck steps by 1e-6
    f = torch.tensor(m.load.force, requires_grad=True)
    nu = poisson(LAWS[law].poisson - 0.1)
    value, gradient = ef.Fidelity(m, rtol=1e-12)(1e4 * x.detach().numpy())
    found = ei.misfit(m, 1e4 * x, rtol=1e-12)
    np.testing.assert_allclose(found.detach(), value, rtol=1e-9)
    (by_x,) = torch.autograd.grad(found.sum(), x)
    np.testing.assert_allclose(by_x, 1e4 * gradient, rtol=1e-7, atol=1e-7 * np.abs(1e4 * gradient).max())

    def scaled(x, u, f, nu):
        own = torch.where(seen, 1e-5 * u, 0.0)
        return ei.misfit(m, 1e4 * x, displacement=own, force=f, poisson=nu, rtol=1e-12) / found.detach().mean()

    assert gradcheck(scaled, (x, u, f, nu), fast_mode=True, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("geometry", "law"), CASES)
def test_forward_mode_is_the_transpose_of_reverse_mode(geometry, law):
    """<v, J w> = <J^T v, w>, for all arguments and for each alone; reverse mode is compared with differences above."""
    m, _ = measure(geometry, law, "pressure")
    x = random(2, *m.form.node_shape, low=1e4).detach()
    f, u = (random(*m.form.dof_shape, seed=k).detach() for k in range(2))
    nu = poisson([0.3, 0.4]).detach()
    point = (x, f, u, nu)

    def solve(x, f, u, nu):
        return ei.solve_forward(m.form, x, m.load, force=f, displacement=u, poisson=nu, rtol=1e-12)

    def misfit(x, f, u, nu):
        return ei.misfit(m, x, displacement=1e-4 * u, force=f, poisson=nu, rtol=1e-12)

    ways = [random(*a.shape, seed=k).detach() * a.abs().mean() for k, a in enumerate(point)]
    for function in (solve, misfit):
        value, pull_back = torch.func.vjp(function, *point)
        v = random(*value.shape, seed=9).detach()
        for chosen in (range(4), *((k,) for k in range(4))):
            w = [way if k in chosen else torch.zeros_like(way) for k, way in enumerate(ways)]
            pushed = torch.func.jvp(function, point, tuple(w))[1]
            pulled = sum((a * b).sum() for a, b in zip(pull_back(v), w, strict=True))
            torch.testing.assert_close((v * pushed).sum(), pulled, rtol=1e-6, atol=1e-8 * float(pulled.abs()))
    layer = ei.DataStep(m)
    with pytest.raises(NotImplementedError, match="reverse mode only"):
        torch.func.jvp(layer, (torch.log(x[:1]),), (x[:1],))


def test_misfit_of_a_list_and_of_a_fidelity():
    ms = [measure("grid", "plane stress", "pressure", seed=k)[0] for k in range(3)]
    x = random(3, *ms[0].form.node_shape, low=1e4)
    own = [ef.Fidelity(m)(x[k].detach().numpy()) for k, m in enumerate(ms)]
    for given in (ms, [ef.Fidelity(m) for m in ms]):
        found = ei.misfit(given, x)
        np.testing.assert_allclose(found.detach(), [value for value, _ in own], rtol=1e-7)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        scale = np.abs(own[0][1]).max()
        np.testing.assert_allclose(gradient, np.stack([g for _, g in own]), rtol=1e-5, atol=1e-6 * scale)


def test_misfit_of_moduli_that_cannot_be_solved():
    m, x = measure("grid", "plane stress", "pressure")
    x = torch.tensor(np.stack([x, -x, x**30]), requires_grad=True)
    found = ei.misfit(ef.Fidelity(m, on_failure="inf"), x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(found).tolist() == [True, False, False]
    assert gradient[0].any() and not gradient[1:].any()
    with pytest.raises(ef.ModulusError):
        ei.misfit(m, x)
    with pytest.raises(ValueError, match="frozen"):
        ei.misfit(ef.Fidelity(m, "frozen"), x)


@pytest.mark.parametrize(("geometry", "law"), CASES)
def test_transforms_of_functions(geometry, law):
    """torch.func.grad, vmap of it, and vmap over a part of the arguments agree with loops."""
    m, _ = measure(geometry, law, "pressure")
    form = m.form
    x, u = random(3, *form.node_shape, low=1e4).detach(), random(3, *form.dof_shape).detach()
    nu = torch.tensor([0.3, 0.35, 0.4])
    functions = {
        "force": lambda x, u, nu: ei.force(form, x, u, nu).square().sum() * 1e-8,
        "solve": lambda x, u, nu: ei.solve_forward(form, x, m.load, poisson=nu, force=u).square().sum(),
        "misfit": lambda x, u, nu: ei.misfit(m, x, poisson=nu, displacement=1e-4 * u),
    }
    for function in functions.values():
        grad = torch.func.grad(function, argnums=(0, 1, 2))
        for dims in ((0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)):
            own = [a if dim == 0 else a[0] for a, dim in zip((x, u, nu), dims, strict=True)]
            together = torch.vmap(grad, in_dims=dims)(*own)
            for k in range(3):
                alone = grad(*(a[k] if dim == 0 else a for a, dim in zip(own, dims, strict=True)))
                for one, other in zip(together, alone, strict=True):
                    torch.testing.assert_close(one[k], other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_jacobian_of_the_forward_solve():
    form, load, *_ = truth("grid", "plane stress", "pressure")
    x = random(*form.node_shape, low=1.0).detach()
    solve = lambda x: ei.solve_forward(form, x, load, rtol=1e-12)  # noqa: E731
    jacobian = torch.func.jacrev(solve)(x).reshape(x.numel() * 2, -1)
    u = solve(x)
    loaded = load.loaded.ravel()
    k = form.stiffness(x.numpy()).toarray()[np.ix_(loaded, loaded)]
    d = form.contraction(u.numpy()).toarray()[loaded]
    expected = -np.linalg.solve(k, d)
    np.testing.assert_allclose(jacobian.numpy()[loaded], expected, atol=1e-8 * np.abs(expected).max())


def test_single_precision_and_dtypes():
    form, load, *_ = truth("grid", "plane stress", "pressure")
    m, _ = measure("grid", "plane stress", "pressure")
    x = random(*form.node_shape, low=1e4)
    single = x.detach().float().requires_grad_()
    for function in (
        lambda x: ei.force(form, x, torch.ones(form.dof_shape, dtype=x.dtype)),
        lambda x: ei.solve_forward(form, x, load),
        lambda x: ei.misfit(m, x),
    ):
        one, other = function(x).square().sum(), function(single).square().sum()
        assert other.dtype == torch.float32
        (a,), (b,) = torch.autograd.grad(one, x), torch.autograd.grad(other, single)
        assert b.dtype == torch.float32
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


@pytest.mark.parametrize(("kind", "std"), [("pressure", "holes"), ("open side", "constant")])
def test_data_step_by_implicit_differentiation(kind, std):
    ms = [measure("grid", "plane stress", kind, std, seed=k)[0] for k in range(2)]
    form = ms[0].form
    layer = ei.DataStep(ms, weight=3.0, tolerance=1e-9, max_iterations=100, rtol=1e-12)
    v = torch.full((2, 1, *form.node_shape), float(np.log(2e4)), dtype=torch.float64)
    v = (v + 0.1 * random(*v.shape).detach()).requires_grad_()
    z = layer(v)
    for k, m in enumerate(ms):  # the condition of a minimum
        x = torch.exp(z[k, 0]).detach().numpy()
        rest = x * ef.Fidelity(m, rtol=1e-12)(x)[1] + 3.0 * (z - v)[k, 0].detach().numpy()
        assert np.linalg.norm(rest) < 1e-6 * np.linalg.norm(3.0 * (z - v)[k].detach())
    seen = torch.tensor(np.stack([m.observed for m in ms]))
    u = torch.tensor(np.stack([m.displacement for m in ms]) / 1e-5, requires_grad=True)
    f, rho = torch.tensor(ms[0].load.force, requires_grad=True), poisson([3.0, 5.0])

    def step(v, rho, u, f):
        return layer(v, rho[:, None], displacement=torch.where(seen, 1e-5 * u, 0.0), force=f)

    assert gradcheck(step, (v, rho, u, f), fast_mode=True, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_wrong_arguments_of_data_step():
    m, _ = measure("grid", "plane stress", "pressure", "constant")
    layer = ei.DataStep(m)
    for name, value in (("weight", float("nan")), ("tolerance", -1.0), ("max_iterations", 0), ("rtol", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            ei.DataStep(m, **{name: value})
    with pytest.raises(TypeError, match=r"measurements must be .* got JointMeasurement"):
        ei.DataStep(ef.JointMeasurement([m, m]))
    z = torch.full(m.form.node_shape, float(np.log(2e4)), dtype=torch.float64)
    for weight in (float("nan"), -1.0, 0.0):  # NaN compares as false: the target itself would pass for a minimum
        with pytest.raises(ValueError, match="weight must be positive and finite"):
            layer(z, weight=weight)
    for target in (torch.exp(z), z * float("nan")):  # a modulus in place of its logarithm
        with pytest.raises(ValueError, match="target must be the natural logarithm"):
            layer(target)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda form, x: ei.force(form, x.numpy(), x), TypeError, "x must be a torch.Tensor"),
        (lambda form, x: ei.force(form, x, x), ValueError, "u must have shape"),
        (lambda form, x: ei.force(form, x.half(), x), TypeError, "float32 or float64"),
        (lambda form, x: ei.force(form, x, torch.ones(form.dof_shape), torch.tensor(1.0)), ValueError, "poisson"),
        (
            lambda form, x: ei.solve_forward(form, -x, ef.compression(form.geometry, pressure=1.0)),
            ValueError,
            "positive",
        ),
        (lambda form, x: ei.misfit([], x), TypeError, "measurement must be"),
        (lambda form, x: ei.misfit("m", x), TypeError, "measurement must be a Measurement or Fidelity.* got str"),
        (lambda form, x: ei.force(form, x, torch.ones(form.dof_shape), "a"), TypeError, "poisson must be a number"),
        (lambda form, x: form.force(x.requires_grad_(), torch.ones(form.dof_shape)), TypeError, "interop.torch"),
    ],
)
def test_wrong_arguments(call, error, message):
    form = form_of("grid", "plane stress")
    with pytest.raises(error, match=message):
        call(form, torch.ones(form.node_shape))


def test_the_example_trains():
    """A few steps at a small size: the network's stages learn through the data steps."""
    path = Path(__file__).parent.parent / "examples" / "train_unrolled.py"
    losses = run_path(str(path))["main"](nodes=24, batch=2, steps=3)
    assert len(losses) == 3 and np.isfinite(losses).all()
