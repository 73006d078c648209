// Python bindings of what runs on a device, for any queue. Python validates arrays and passes their addresses; this file
// trusts them.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../arrays.h"
#include "solver.h"

namespace elastofast {

template <class T>
T* address(uintptr_t p) { return reinterpret_cast<T*>(p); }

inline DeviceMemory memory(uintptr_t constants, uintptr_t workspace, uintptr_t scratch) {
  return {address<char>(constants), address<char>(workspace), address<char>(scratch)};
}

template <class T, class Queue>
void bind_form(py::class_<FormSpec>& c, const char* suffix) {
  const std::string s = suffix;
  c.def(("force_" + s).c_str(),
        [](const FormSpec& f, const Queue& q, long batch, uintptr_t x, long stride, uintptr_t u, uintptr_t out) {
          q.begin();
          launch_force<T>(q, f.form<T>(), batch, Fields<const T>{address<T>(x), stride}, address<const T>(u),
                          StoreForce<T>{address<T>(out), f.nodes()});
        },
        py::arg("queue"), py::arg("batch"), py::arg("x"), py::arg("x_stride"), py::arg("u"), py::arg("out"));
  c.def(("sensitivity_" + s).c_str(),
        [](const FormSpec& f, const Queue& q, long batch, uintptr_t u, uintptr_t v, uintptr_t out) {
          q.begin();
          launch_sensitivity<T>(q, f.form<T>(), batch, address<const T>(u), address<const T>(v), address<T>(out));
        },
        py::arg("queue"), py::arg("batch"), py::arg("u"), py::arg("v"), py::arg("out"));
  c.def(("stiffness_values_" + s).c_str(),
        [](const FormSpec& f, const Queue& q, uintptr_t x, uintptr_t indptr, uintptr_t values) {
          q.begin();
          launch_rows<StiffnessBody>(q, f.form<T>(), address<const T>(x), address<const long long>(indptr),
                                     address<T>(values));
        },
        py::arg("queue"), py::arg("x"), py::arg("indptr"), py::arg("values"));
  c.def(("contraction_values_" + s).c_str(),
        [](const FormSpec& f, const Queue& q, uintptr_t u, uintptr_t indptr, uintptr_t values) {
          q.begin();
          launch_rows<ContractionBody>(q, f.form<T>(), address<const T>(u), address<const long long>(indptr),
                                       address<T>(values));
        },
        py::arg("queue"), py::arg("u"), py::arg("indptr"), py::arg("values"));
}

template <class Queue>
void bind_device(py::module_& m) {
  m.def("sum_room", sum_room, py::arg("n"), py::arg("batch"));
  py::class_<typename Queue::Recording>(m, "Recording", "A cycle on one workspace, to be repeated", py::module_local())
      .def(py::init());
  m.def("dots", [](const Queue& q, long batch, long n, uintptr_t a, uintptr_t b, uintptr_t room, uintptr_t out) {
    q.begin();
    q.sum(batch, n, ProductTerm{address<const double>(a), address<const double>(b), n}, address<double>(room),
          StoreSum{address<double>(out)});
  }, py::arg("queue"), py::arg("batch"), py::arg("n"), py::arg("a"), py::arg("b"), py::arg("room"), py::arg("out"));
  py::class_<FormSpec> form(m, "GridForm", py::module_local());  // two modules have these classes
  form.def(py::init(&form_spec), py::arg("n0"), py::arg("n1"), py::arg("h0"), py::arg("h1"), py::arg("lambda_"),
           py::arg("mu"), py::arg("reduced"));
  bind_form<double, Queue>(form, "float64");
  bind_form<float, Queue>(form, "float32");

  py::class_<DeviceMultigrid>(m, "Multigrid", py::module_local())
      .def(py::init([](const FormSpec& f, py::array fixed, bool shifted, long deflated_dof, long batch,
                       const Steps& smoother) {
             const uint8_t* fp = input<uint8_t>(fixed, "fixed", {2, f.nodes()});
             check_deflated_dof(deflated_dof, fp, 2 * f.nodes());
             require(batch > 0, "batch must be positive");
             require(!smoother.empty() && smoother.size() <= Smoother::kMost, "smoother must have 1 to 16 steps");
             return new DeviceMultigrid(f.form<double>(), fp, shifted, deflated_dof, batch, smoother);
           }),
           py::arg("form"), py::arg("fixed"), py::arg("shifted"), py::arg("deflated_dof"), py::arg("batch"),
           py::arg("smoother"))
      .def_property_readonly("workspace_bytes", &DeviceMultigrid::workspace_bytes)
      .def_property_readonly("scratch_bytes", &DeviceMultigrid::scratch_bytes)
      .def_property_readonly("bounds",
                             [](const DeviceMultigrid& p) { return py::make_tuple(p.bounds_offset(), p.bounds_count()); },
                             "Offset of the eigenvalue bounds in the workspace, and the number of levels that have one")
      .def("constants",
           [](const DeviceMultigrid& p) {
             py::array_t<uint8_t> block(py::ssize_t(p.constants_bytes()));
             p.write_constants(reinterpret_cast<char*>(block.mutable_data()));
             return block;
           },
           "What the plan reads, to be copied to the device once")
      .def("set_up",
           [](const DeviceMultigrid& p, const Queue& q, uintptr_t constants, uintptr_t workspace, uintptr_t scratch,
              uintptr_t x, long x_stride, uintptr_t shift, long shift_stride) {
             q.begin();
             p.set_up(q, memory(constants, workspace, scratch), {address<const double>(x), x_stride},
                      {address<const double>(shift), shift_stride});
           },
           py::arg("queue"), py::arg("constants"), py::arg("workspace"), py::arg("scratch"), py::arg("x"), py::arg("x_stride"),
           py::arg("shift"), py::arg("shift_stride"), "Sets the hierarchy up in the workspace; scratch is free again after it")
      .def("precondition",
           [](const DeviceMultigrid& p, const Queue& q, typename Queue::Recording& recording, uintptr_t constants,
              uintptr_t workspace, bool deflates, uintptr_t mode, long mode_stride, double t0, double t1, uintptr_t r,
              uintptr_t z) {
             q.begin();
             const double translation[2] = {t0, t1};
             p.precondition(q, recording, memory(constants, workspace, 0), deflates, {address<const double>(mode), mode_stride},
                            translation, address<const double>(r), address<double>(z));
           },
           py::arg("queue"), py::arg("recording"), py::arg("constants"), py::arg("workspace"), py::arg("deflates"),
           py::arg("mode"), py::arg("mode_stride"), py::arg("t0"), py::arg("t1"), py::arg("r"), py::arg("z"),
           "z = one V-cycle on r. The mode of the deflated dof is (t0, t1) at every node where its address is 0; without "
           "`deflates` the dof counts as free")
      .def("apply",
           [](const DeviceMultigrid& p, const Queue& q, uintptr_t constants, bool deflates, uintptr_t x, long x_stride,
              uintptr_t shift, uintptr_t in, uintptr_t out) {
             q.begin();
             p.apply(q, memory(constants, 0, 0), deflates, {address<const double>(x), x_stride},
                     address<const double>(shift), address<const double>(in), address<double>(out));
           },
           py::arg("queue"), py::arg("constants"), py::arg("deflates"), py::arg("x"), py::arg("x_stride"), py::arg("shift"),
           py::arg("p"), py::arg("q"), "q = A p, zero at fixed dofs");
}

}  // namespace elastofast
