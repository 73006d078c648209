"""The checks of an installation: they pass, and each fails where something is wrong by little."""

import json

import numpy as np
import pytest

from elastofast import cli, verification
from elastofast.errors import SolveError
from elastofast.forward.form import ElasticForm
from elastofast.forward.grid import GridBackend
from elastofast.misfit.fidelity import Fidelity

LITTLE = 1 + 1e-6
BY_NAME = {name: (limit, measure) for name, limit, measure in verification.CHECKS}


def names_with(word):
    return [name for name in BY_NAME if word in name]


def fails(word):
    """Whether a check with a word in its name exceeds its limit."""
    return any(not BY_NAME[name][1]() <= BY_NAME[name][0] for name in names_with(word))


def scaled(monkeypatch, owner, name, factor=LITTLE):
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: factor * real(*a, **k))


@pytest.mark.parametrize("word", ["patch", "order", "adjoint", "gradient", "smallest errors", "chi2"])
def test_checks_pass(word):
    for package, names in {"numba": ["mesh"]}.items():
        if any(own in name for name in names_with(word) for own in names):
            pytest.importorskip(package)
    assert not fails(word)


@pytest.mark.parametrize(
    ("owner", "kernel", "word"),
    [
        (ElasticForm, "force", "patch test, grid"),
        (ElasticForm, "force", "adjoint identities, grid"),
        (ElasticForm, "sensitivity", "adjoint identities, grid"),
        (ElasticForm, "stiffness", "adjoint identities, grid"),
        (ElasticForm, "contraction", "adjoint identities, grid"),
        (ElasticForm, "sensitivity", "gradient"),
        (ElasticForm, "stiffness", "smallest errors"),
    ],
)
def test_an_error_of_a_millionth_in_a_kernel_is_found(monkeypatch, owner, kernel, word):
    scaled(monkeypatch, owner, kernel)
    assert fails(word)


def test_an_error_of_a_millionth_in_the_solver_is_found(monkeypatch):
    real = GridBackend.solver

    def solver(self, *arguments, **options):
        made = real(self, *arguments, **options)
        solve = made.solve
        made.solve = lambda *a, **k: (found := solve(*a, **k))._replace(value=LITTLE * found.value)
        return made

    monkeypatch.setattr(GridBackend, "solver", solver)
    assert fails("patch test, grid") and fails("smallest errors")


def test_wrong_noise_levels_values_and_orders_are_found(monkeypatch):
    real = Fidelity.evaluate
    with monkeypatch.context() as changed:
        changed.setattr(Fidelity, "evaluate", lambda *a: (now := real(*a))._replace(value=1.1 * now.value))
        assert fails("chi2") and fails("smallest errors")
    weights = verification.Grid.node_weights
    with monkeypatch.context() as changed:  # of first order: too small by the spacing
        changed.setattr(
            verification.Grid, "node_weights", property(lambda self: weights.__get__(self) * (1 + self.spacing[0]))
        )
        assert fails("order of convergence less 2, smooth")


def test_stored_values_are_those_of_the_shipped_critic_in_double_precision(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from elastofast.priors.learned import Critic

    critic = Critic.load()
    critic.network.double()
    np.testing.assert_allclose(verification.critic_error(critic), verification.CRITIC_VALUES, atol=1e-6)
    assert not fails("critic")
    scaled(monkeypatch, verification, "critic_error", 1.01)
    assert fails("critic")


def test_what_is_not_installed_is_skipped_with_the_reason(monkeypatch):
    real = verification.importlib.util.find_spec
    absent = {"numba", "torch", "cupy"}
    monkeypatch.setattr(
        verification.importlib.util, "find_spec", lambda name, *a: None if name in absent else real(name, *a)
    )
    wanted = [check for check in verification.CHECKS if any(w in check[0] for w in ("mesh", "critic", "GPU"))]
    monkeypatch.setattr(verification, "CHECKS", wanted)
    found = list(verification.verify())
    assert len(found) == 4 and all(check.skipped and check.passed for check in found)
    assert "numba is not installed" in found[0].note


def test_command_has_a_line_for_each_check_and_fails_where_one_fails(monkeypatch, capsys):
    def broken():
        raise SolveError("no solution")

    wanted = (("adjoint", *BY_NAME["adjoint identities, grid"]), ("too large", 1.0, lambda: np.nan))
    monkeypatch.setattr(verification, "CHECKS", wanted[:1])
    assert cli.main(["verify"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("passed  adjoint: ") and "(limit 1e-12)" in out and "1 checks passed, 0 skipped" in out
    monkeypatch.setattr(verification, "CHECKS", (*wanted, ("raises", 1.0, broken)))
    assert cli.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  too large: nan" in out and "FAILED  raises: SolveError: no solution" in out and "2 failed" in out
    assert cli.main(["verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out.replace("NaN", "null"))
    assert [check["passed"] for check in found["checks"]] == [True, False, False] and not found["passed"]
    assert cli.main(["info", "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out.replace("NaN", "null"))
    assert found["core"]["flags"] and found["packages"]["numpy"] == np.__version__ and len(found["checks"]) == 3
