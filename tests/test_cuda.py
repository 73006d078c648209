"""The compiled CUDA module: that it loads anywhere and says what is missing."""

import os
import sys

import numpy as np
import pytest

import elastofast as ef
from elastofast.backend import device as arrays


@pytest.fixture
def cuda():
    return pytest.importorskip("elastofast._cuda", reason="elastofast._cuda is not built: there was no nvcc")


def devices(cuda):
    try:
        return cuda.device_count()
    except RuntimeError:
        return 0


def test_build_info_names_toolkit_and_architectures(cuda):
    info = cuda.build_info()
    assert {"toolkit", "architectures"} == set(info)
    if "ELASTOFAST_CUDA_ARCH" not in os.environ:
        assert info["architectures"] == "sm_80, sm_90, PTX 90"


def test_without_a_device_the_reason_is_said(cuda):
    if devices(cuda):
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="no CUDA device can be used: "):
        cuda.device_count()
    with pytest.raises(RuntimeError, match="cudaSetDevice: "):
        cuda.dots(cuda.Queue(0, 0), 1, 1, 0, 0, 0, 0)


def test_without_the_module_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "elastofast._cuda", None)
    monkeypatch.delattr(ef, "_cuda", raising=False)
    arrays._kernels.cache_clear()
    with pytest.raises(RuntimeError, match=r"cuda:0 \(CuPy\) need elastofast._cuda.* ELASTOFAST_CUDA=1"):
        _ = arrays.CudaDevice(0).kernels


def test_host_arrays_need_no_array_library(monkeypatch):
    for name in ("cupy", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for value in (np.ones(3), [1.0, 2.0], 3.0):
        assert arrays.device_of(x=value) is arrays.HOST
    assert arrays.device_of(x=None) is arrays.HOST
    assert arrays.namespace(np.ones(2)) is np


@pytest.mark.gpu
def test_results_do_not_change_between_runs(cuda):
    if not devices(cuda):
        pytest.skip("no CUDA device")
    cupy = pytest.importorskip("cupy")
    form = ef.ElasticForm(ef.Grid((300, 257), (1e-3, 1e-3)), ef.PlaneStrain(0.495))
    x = cupy.exp(cupy.random.default_rng(0).standard_normal(form.node_shape))
    load = ef.compression(form.geometry, pressure=100.0)
    first, second = (ef.solve_forward(form, x, load) for _ in range(2))
    assert bool((first == second).all())


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["cupy", "torch"])
def test_work_follows_the_current_stream(cuda, library):
    if not devices(cuda):
        pytest.skip("no CUDA device")
    module = pytest.importorskip(library)
    form = ef.ElasticForm(ef.Grid((512, 512), (1e-3, 1e-3)), ef.PlaneStress(0.495))
    rng = np.random.default_rng(0)
    x, u = rng.uniform(1, 2, form.node_shape), rng.normal(size=form.dof_shape)
    if library == "cupy":
        with module.cuda.Stream(non_blocking=True) as stream:
            f = form.force(module.asarray(x), module.asarray(u))
            stream.synchronize()
        found = module.asnumpy(f)
    else:
        stream = module.cuda.Stream()
        with module.cuda.stream(stream):
            f = form.force(module.as_tensor(x, device="cuda"), module.as_tensor(u, device="cuda"))
        stream.synchronize()
        found = f.cpu().numpy()
    np.testing.assert_allclose(found, form.force(x, u), rtol=1e-12, atol=1e-12)
