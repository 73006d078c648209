// elastofast._cuda: the device bodies as CUDA kernels. Loads on machines without a GPU.
#include "bindings.h"
#include "queue.h"

using namespace elastofast;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of elastofast on structured grids";
  py::class_<CudaQueue>(m, "Queue").def(
      py::init([](int device, uintptr_t stream) { return CudaQueue{device, address<void>(stream)}; }), py::arg("device"),
      py::arg("stream"));
  bind_device<CudaQueue>(m);

  m.def("device_count", [] {
    int count = 0;
    check(cudaGetDeviceCount(&count), "no CUDA device can be used");
    return count;
  }, "Number of CUDA devices; raises RuntimeError with the reason if there is none");
  m.def("build_info", [] {
    py::dict info;
    info["toolkit"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
    info["architectures"] = EF_CUDA_ARCH;
    return info;
  });
}
