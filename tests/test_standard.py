import math

import numpy as np
import pytest

from elastofast.priors.standard import Standard

KINDS = [Standard(), Standard(5e3, 2.0), Standard(1e3, 100e3, logarithmic=False)]
MODULI = np.geomspace(1e3, 200e3, 30).reshape(5, 6)


def test_values_of_the_defaults_and_of_the_unit_of_the_paper():
    x = 12.5e3 * np.array([1.0, math.exp(0.5), math.exp(-1.0)])
    np.testing.assert_allclose(Standard().apply(x), [0.0, 1.0, -2.0], atol=1e-15)
    assert Standard(0.0, 100e3, logarithmic=False).apply(np.array(50e3)) == 0.5


@pytest.mark.parametrize("standard", KINDS)
def test_it_inverts_itself_and_takes_logarithms(standard):
    s = standard.apply(MODULI)
    np.testing.assert_allclose(standard.invert(s), MODULI, rtol=1e-14)
    np.testing.assert_allclose(standard.apply_to_log(np.log(MODULI)), s, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("standard", KINDS)
def test_tensors_have_the_values_of_arrays(standard):
    torch = pytest.importorskip("torch")
    x = torch.tensor(MODULI)
    s = standard.apply(MODULI)
    torch.testing.assert_close(standard.apply(x), torch.tensor(s))
    torch.testing.assert_close(standard.apply_to_log(x.log()), torch.tensor(s))
    torch.testing.assert_close(standard.invert(torch.tensor(s)), x)
