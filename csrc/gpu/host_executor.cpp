// _host_executor: the device bodies and all their index computations as plain loops, for tests without a GPU.
#define EF_SMALL  // compiles quickly
#include "bindings.h"

using namespace elastofast;

PYBIND11_MODULE(_host_executor, m) {
  m.doc() = "The CUDA kernels of elastofast run by the processor, one index after the other";
  py::class_<HostQueue>(m, "Queue").def(py::init());
  bind_device<HostQueue>(m);
}
