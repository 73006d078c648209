// Python bindings. Python validates shapes, values and devices; this file trusts them.
#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>

#include "parallel.h"
#include "solver.h"

namespace py = pybind11;
using namespace elastofast;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
const Contractions<T>& table();
template <>
const Contractions<float>& table<float>() {
  return *kernels().f32;
}
template <>
const Contractions<double>& table<double>() {
  return *kernels().f64;
}

// One kernel over a batch: chunks of rows of all fields are shared out over the threads. True if all sums are finite.
template <class Body>
bool for_batch(const FormSpec& f, long batch, Body body) {
  py::gil_scoped_release release;
  const int chunks = chunk_count(f.n0, f.n1);
  int bad = 0;
#pragma omp parallel for schedule(static) reduction(+ : bad) if (batch * long(f.nodes()) > kSerial)
  for (long k = 0; k < batch * chunks; ++k) {
    const int c = int(k % chunks);
    bad += !std::isfinite(body(k / chunks, int(long(f.n0) * c / chunks), int(long(f.n0) * (c + 1) / chunks)));
  }
  return bad == 0;
}

template <class T>
bool force(const FormSpec& f, Array<T> x, Array<T> u, Array<T> out) {
  const long batch = u.shape(0);
  const auto form = f.form<T>();
  const size_t n = f.nodes(), stride = x.shape(0) == 1 ? 0 : n;
  const T *xp = x.data(), *up = u.data();
  T* o = out.mutable_data();
  return for_batch(f, batch, [&](long b, int begin, int end) {
    return table<T>().force(form, xp + b * stride, up + 2 * n * b, o + 2 * n * b, begin, end);
  });
}

template <class T>
bool sensitivity(const FormSpec& f, Array<T> u, Array<T> v, Array<T> out) {
  const long batch = u.shape(0);
  const auto form = f.form<T>();
  const size_t n = f.nodes();
  const T *up = u.data(), *vp = v.data();
  T* o = out.mutable_data();
  return for_batch(f, batch, [&](long b, int begin, int end) {
    return table<T>().sensitivity(form, up + 2 * n * b, vp + 2 * n * b, o + n * b, begin, end);
  });
}

template <class T>
void stiffness_values(const FormSpec& f, Array<T> x, Array<long long> indptr, Array<T> values) {
  const auto form = f.form<T>();
  const T* xp = x.data();
  const long long* ip = indptr.data();
  T* o = values.mutable_data();
  py::gil_scoped_release release;
  for_rows(f.n0, f.n1, [&](int begin, int end) { table<T>().stiffness_values(form, xp, ip, o, begin, end); });
}

template <class T>
void contraction_values(const FormSpec& f, Array<T> u, Array<long long> indptr, Array<T> values) {
  const auto form = f.form<T>();
  const T* up = u.data();
  const long long* ip = indptr.data();
  T* o = values.mutable_data();
  py::gil_scoped_release release;
  for_rows(f.n0, f.n1, [&](int begin, int end) { table<T>().contraction_values(form, up, ip, o, begin, end); });
}

template <class T>
void bind_form(py::class_<FormSpec>& c) {
  c.def("force", &force<T>, "out = K(x) u for x (1 or B, N) and u, out (B, 2, N); False if something is not finite")
      .def("sensitivity", &sensitivity<T>, "out = v^T Psi_n u for u, v (B, 2, N) and out (B, N); False if something is not finite")
      .def("stiffness_values", &stiffness_values<T>)
      .def("contraction_values", &contraction_values<T>);
}

Array<double> like(const Array<double>& a) { return Array<double>(std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim())); }

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ kernels of elastofast on structured grids";

  py::class_<FormSpec> form(m, "GridForm");
  form.def(py::init([](int n0, int n1, double h0, double h1, double lambda, double mu, bool reduced) {
    return FormSpec{n0, n1, h0, h1, lambda, mu, reduced};
  }));
  bind_form<double>(form);
  bind_form<float>(form);

  py::class_<Multigrid>(m, "Multigrid")
      .def(py::init([](const FormSpec& f, Array<double> x, Array<uint8_t> fixed, py::object shift, long pin,
                       Array<double> mode, Steps smoother) {
             Array<double> s = shift.is_none() ? Array<double>() : shift.cast<Array<double>>();
             const double *xp = x.data(), *sp = shift.is_none() ? nullptr : s.data(), *mp = mode.data();
             const uint8_t* fp = fixed.data();
             py::gil_scoped_release release;
             return new Multigrid(f.form<double>(), xp, fp, sp, pin, mp, std::move(smoother));
           }),
           py::arg("form"), py::arg("x"), py::arg("fixed"), py::arg("shift"), py::arg("pin"), py::arg("mode"),
           py::arg("smoother"))
      .def("accelerated",
           [](Multigrid& self, Array<double> b, const Steps& steps) {
             Array<double> w = like(b);
             const double* bp = b.data();
             double* wp = w.mutable_data();
             py::gil_scoped_release release;
             self.accelerated(bp, wp, steps);
             return w;
           },
           "Sum of d over the steps (keep, gain): d = keep d + gain M r, r -= A d, with M one V-cycle and r = b at first")
      .def("apply",
           [](Multigrid& self, Array<double> p) {
             Array<double> q = like(p);
             const double* pp = p.data();
             double* qp = q.mutable_data();
             py::gil_scoped_release release;
             self.apply(pp, qp);
             return q;
           })
      .def("solve",
           [](Multigrid& self, Array<double> b, Array<double> x, double rtol, int max_iterations, bool energy) {
             const double* bp = b.data();
             double* xp = x.mutable_data();
             SolveResult r;
             {
               py::gil_scoped_release release;
               r = self.solve(bp, xp, rtol, max_iterations, energy);
             }
             return py::make_tuple(r.iterations, r.residual, r.converged);
           },
           "Solves in place from the guess x; returns (iterations, true relative residual, converged)")
      .def_property_readonly("eigenvalue_bounds", &Multigrid::eigenvalue_bounds)
      .def_property_readonly("nbytes", &Multigrid::bytes);

  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = EF_COMPILER;
    info["flags"] = EF_FLAGS;
    py::list isa;
    for (int i = 0; available_kernels(i); ++i) isa.append(available_kernels(i));
    info["instruction_sets"] = isa;
    info["instruction_set"] = kernels().name;
    info["threads"] = omp_get_max_threads();
    return info;
  });
  m.def("select_instruction_set", [](const std::string& name) {
    if (!select_kernels(name.c_str())) throw py::value_error("unknown or unsupported instruction set " + name);
  });
  m.def("set_num_threads", [](int n) { omp_set_num_threads(n); });
  m.def("get_num_threads", [] { return omp_get_max_threads(); });
}
