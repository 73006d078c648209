// Python bindings: arrays are checked against the form, see arrays.h; their values are Python's to check.
#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "../arrays.h"
#include "interrupt.h"
#include "planar.h"
#include "solver.h"
#include "volume.h"

using namespace elastofast;

namespace {

// How often long work looks whether it is to stop: not so often that it waits for Python's lock more than it works, if other
// threads hold it (up to 5 ms each time). Not studied.
constexpr std::chrono::milliseconds kBetweenLooks{100};

// Python answers signals in its main thread, and that is the one which long work may stop in.
bool in_main_thread() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#else
  return true;  // Python finds out
#endif
}

}  // namespace

void elastofast::stop_if_interrupted() {
  thread_local std::chrono::steady_clock::time_point last{};
  const auto now = std::chrono::steady_clock::now();
  if (now - last < kBetweenLooks) return;
  last = now;
  if (!in_main_thread()) return;
  py::gil_scoped_acquire hold;
  if (PyErr_CheckSignals()) throw py::error_already_set();
}

namespace {

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

// Calls body(T) with the number type of an array, which the others must share.
template <class Body>
auto in_precision_of(const py::array& a, Body body) {
  return py::isinstance<py::array_t<float>>(a) ? body(float()) : body(double());
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

bool force(const FormSpec& f, py::array x, py::array u, py::array out) {
  return in_precision_of(u, [&](auto number) {
    using T = decltype(number);
    const long n = f.nodes(), batch = batch_of(u), moduli = batch_of(x) == 1 ? 1 : batch;
    const T *xp = input<T>(x, "x", {moduli, n}), *up = input<T>(u, "u", {batch, 2, n});
    T* op = output<T>(out, "out", {batch, 2, n});
    const auto form = f.form<T>();
    const long stride = moduli == 1 ? 0 : n;
    return for_batch(f, batch, [&](long b, int begin, int end) {
      return table<T>().force(form, xp + b * stride, up + 2 * n * b, op + 2 * n * b, begin, end);
    });
  });
}

bool sensitivity(const FormSpec& f, py::array u, py::array v, py::array out) {
  return in_precision_of(u, [&](auto number) {
    using T = decltype(number);
    const long n = f.nodes(), batch = batch_of(u);
    const T *up = input<T>(u, "u", {batch, 2, n}), *vp = input<T>(v, "v", {batch, 2, n});
    T* op = output<T>(out, "out", {batch, n});
    const auto form = f.form<T>();
    return for_batch(f, batch, [&](long b, int begin, int end) {
      return table<T>().sensitivity(form, up + 2 * n * b, vp + 2 * n * b, op + n * b, begin, end);
    });
  });
}

// Row starts of a matrix with 2 N rows, whose row of a node lists `columns` values a neighbour. The start of every grid row
// is compared, which finds the pattern of any other grid.
const long long* row_starts(const FormSpec& f, const py::array& indptr, int columns) {
  const long n0 = f.n0, n1 = f.n1, n = f.nodes();
  const long long* starts = input<long long>(indptr, "indptr", {2 * n + 1});
  auto neighbours_before = [&](long j) { return j == 0 ? 0 : (j == n0 ? 3 * n0 - 2 : 3 * j - 1) * (3 * n1 - 2); };
  for (long k = 0; k < 2; ++k)
    for (long j = 0; j < n0 + k; ++j)  // the last one is the number of values
      require(starts[k * n + j * n1] == columns * (k * neighbours_before(n0) + neighbours_before(j)),
              "indptr does not hold the row starts of this form's matrix");
  return starts;
}

void stiffness_values(const FormSpec& f, py::array x, py::array indptr, py::array values) {
  in_precision_of(x, [&](auto number) {
    using T = decltype(number);
    const long n = f.nodes();
    const T* xp = input<T>(x, "x", {n});
    const long long* starts = row_starts(f, indptr, 2);
    T* vp = output<T>(values, "values", {py::ssize_t(starts[2 * n])});
    const auto form = f.form<T>();
    py::gil_scoped_release release;
    for_rows(f.n0, f.n1, [&](int begin, int end) { table<T>().stiffness_values(form, xp, starts, vp, begin, end); });
  });
}

void contraction_values(const FormSpec& f, py::array u, py::array indptr, py::array values) {
  in_precision_of(u, [&](auto number) {
    using T = decltype(number);
    const long n = f.nodes();
    const T* up = input<T>(u, "u", {2, n});
    const long long* starts = row_starts(f, indptr, 1);
    T* vp = output<T>(values, "values", {py::ssize_t(starts[2 * n])});
    const auto form = f.form<T>();
    py::gil_scoped_release release;
    for_rows(f.n0, f.n1, [&](int begin, int end) { table<T>().contraction_values(form, up, starts, vp, begin, end); });
  });
}

using PlanarMultigrid = Multigrid<PlanarHierarchy>;
using VolumeMultigrid = Multigrid<VolumeHierarchy>;

PlanarMultigrid* planar_multigrid(const FormSpec& f, py::array x, py::array fixed, std::optional<py::array> shift,
                                  long deflated_dof, Steps smoother) {
  const long n = f.nodes();
  const double *xp = input<double>(x, "x", {n}), *sp = shift ? input<double>(*shift, "shift", {2, n}) : nullptr;
  const uint8_t* fp = input<uint8_t>(fixed, "fixed", {2, n});
  check_deflated_dof(deflated_dof, fp, 2 * n);
  std::vector<long> deflated_dofs(deflated_dof >= 0, deflated_dof);
  require(!smoother.empty(), "smoother must have at least one step");
  py::gil_scoped_release release;
  return new PlanarMultigrid(f.form<double>(), xp, fp, sp, std::move(deflated_dofs), std::move(smoother));
}

VolumeMultigrid* volume_multigrid(std::shared_ptr<VolumePlan> plan, py::array x, std::optional<py::array> shift, Steps smoother) {
  const long n = long(plan->form.nodes());
  const double *xp = input<double>(x, "x", {n}), *sp = shift ? input<double>(*shift, "shift", {3, n}) : nullptr;
  require(!smoother.empty(), "smoother must have at least one step");
  py::gil_scoped_release release;
  return new VolumeMultigrid(std::shared_ptr<const VolumePlan>(plan), xp, sp, std::move(smoother));
}

// A dof field of a solver, as input and as a new array.
template <class Solver>
const double* dof_field(const Solver& solver, const py::array& a, const char* name) {
  return input<double>(a, name, {Solver::kDim, py::ssize_t(solver.nodes())});
}
template <class Solver>
py::array_t<double> new_dof_field(const Solver& solver) {
  return py::array_t<double>({size_t(Solver::kDim), solver.nodes()});
}

template <class Solver>
void bind_solver(py::class_<Solver>& c) {
  c.def("update",
        [](Solver& self, py::array x, std::optional<py::array> shift) {
          const double* xp = input<double>(x, "x", {py::ssize_t(self.nodes())});
          const double* sp = shift ? dof_field(self, *shift, "shift") : nullptr;
          py::gil_scoped_release release;
          self.update(xp, sp);
        },
        py::arg("x"), py::arg("shift"), "As if newly made for x and shift, and the same fixed dofs")
      .def("deflate",
        [](Solver& self, py::array modes) {
          const auto count = py::ssize_t(self.deflated_dofs().size());
          require(count > 0, "this solver has no deflated dof");
          const double* mp;
          if constexpr (Solver::kDim == 2) mp = dof_field(self, modes, "mode");
          else mp = input<double>(modes, "modes", {count, Solver::kDim, py::ssize_t(self.nodes())});
          py::gil_scoped_release release;
          self.deflate(mp);
        },
        py::arg(Solver::kDim == 2 ? "mode" : "modes"),
        "From now on the deflated dofs are fixed; modes (M, 3, N), with two axes (2, N), are what moves without them, each "
        "one at its own dof and zero at the others")
      .def("accelerated",
           [](Solver& self, py::array b, const Steps& steps) {
             const double* bp = dof_field(self, b, "b");
             require(!steps.empty(), "steps must not be empty");
             py::array_t<double> w = new_dof_field(self);
             double* wp = w.mutable_data();
             py::gil_scoped_release release;
             self.accelerated(bp, wp, steps);
             return w;
           },
           py::arg("b"), py::arg("steps"),
           "Sum of d over the steps (momentum, gain): d = momentum d + gain M r, r -= A d, with M one V-cycle and r = b first")
      .def("apply",
           [](Solver& self, py::array p) {
             const double* pp = dof_field(self, p, "p");
             py::array_t<double> q = new_dof_field(self);
             double* qp = q.mutable_data();
             py::gil_scoped_release release;
             self.apply(pp, qp);
             return q;
           },
           py::arg("p"), "A p, zero at fixed dofs; p counts as zero there")
      .def("solve",
           [](Solver& self, py::array b, py::array x, double rtol, int max_iterations, bool energy) {
             const double* bp = dof_field(self, b, "b");
             double* xp = output<double>(x, "x", {Solver::kDim, py::ssize_t(self.nodes())});
             SolveResult r;
             {
               py::gil_scoped_release release;
               r = self.solve(bp, xp, rtol, max_iterations, energy);
             }
             return py::make_tuple(r.iterations, r.residual, r.converged);
           },
           py::arg("b"), py::arg("x"), py::arg("rtol"), py::arg("max_iterations"), py::arg("energy"),
           "Solves in place from the guess x; returns (iterations, true relative residual, converged)")
      .def_property_readonly("eigenvalue_bounds", &Solver::eigenvalue_bounds)
      .def_property_readonly("nbytes", &Solver::bytes);
}

// ------------------------------------------------------------------------------------------- grids of three axes

template <class T>
const VolumeContractions<T>& volume_table();
template <>
const VolumeContractions<float>& volume_table<float>() {
  return *kernels().volume->f32;
}
template <>
const VolumeContractions<double>& volume_table<double>() {
  return *kernels().volume->f64;
}

// The form on a grid of three axes in both precisions.
struct VolumeSpec {
  double spacing[3], lambda, mu;
  VolumeForm<double> f64;
  VolumeForm<float> f32;
  CellTables<double> t64;
  CellTables<float> t32;

  VolumeSpec(const std::array<int, 3>& n, const std::array<double, 3>& h, double lambda, double mu)
      : spacing{h[0], h[1], h[2]}, lambda(lambda), mu(mu) {
    require(n[0] >= 2 && n[1] >= 2 && n[2] >= 2, "a grid must have at least 2 x 2 x 2 nodes");
    require(n[1] <= kMostNodes / n[0] && n[2] <= kMostNodes / n[0] / n[1], "a grid may have up to 2^28 = 268435456 nodes");
    f64 = volume_form<double>(n.data(), spacing, spacing, lambda, mu);
    f32 = volume_form<float>(n.data(), spacing, spacing, lambda, mu);
    fill_tables(f64.law[0], t64), fill_tables(f64.law[0], t32);
  }
  long nodes() const { return long(f64.nodes()); }
  int layers() const { return f64.n[0]; }
  int layer() const { return int(f64.layer()); }
  template <class T>
  const VolumeForm<T>& form() const {
    if constexpr (std::is_same_v<T, float>) return f32;
    else return f64;
  }
  template <class T>
  const CellTables<T>& tables() const {
    if constexpr (std::is_same_v<T, float>) return t32;
    else return t64;
  }
};

// One kernel over a batch: bands of layers of all fields are shared out over the threads. True if all sums are finite.
template <class Body>
bool for_volumes(const VolumeSpec& f, long batch, Body body) {
  py::gil_scoped_release release;
  const int bands = batch > 1 ? 1 : band_count(f.layers(), f.layer());
  int bad = 0;
#pragma omp parallel for schedule(static) reduction(+ : bad) if (batch * f.nodes() > kSerial)
  for (long k = 0; k < batch * bands; ++k) {
    const int c = int(k % bands);
    bad += !std::isfinite(body(k / bands, int(long(f.layers()) * c / bands), int(long(f.layers()) * (c + 1) / bands)));
  }
  return bad == 0;
}

bool volume_force(const VolumeSpec& f, py::array x, py::array u, py::array out) {
  return in_precision_of(u, [&](auto number) {
    using T = decltype(number);
    const long n = f.nodes(), batch = batch_of(u), moduli = batch_of(x) == 1 ? 1 : batch;
    const T *xp = input<T>(x, "x", {moduli, n}), *up = input<T>(u, "u", {batch, 3, n});
    T* op = output<T>(out, "out", {batch, 3, n});
    const long stride = moduli == 1 ? 0 : n;
    return for_volumes(f, batch, [&](long b, int begin, int end) {
      return volume_table<T>().force(f.form<T>(), xp + b * stride, up + 3 * n * b, op + 3 * n * b, begin, end);
    });
  });
}

bool volume_sensitivity(const VolumeSpec& f, py::array u, py::array v, py::array out) {
  return in_precision_of(u, [&](auto number) {
    using T = decltype(number);
    const long n = f.nodes(), batch = batch_of(u);
    const T *up = input<T>(u, "u", {batch, 3, n}), *vp = input<T>(v, "v", {batch, 3, n});
    T* op = output<T>(out, "out", {batch, n});
    return for_volumes(f, batch, [&](long b, int begin, int end) {
      return volume_table<T>().sensitivity(f.form<T>(), up + 3 * n * b, vp + 3 * n * b, op + n * b, begin, end);
    });
  });
}

// As `row_starts`: the start of every row of nodes is compared.
const long long* volume_row_starts(const VolumeSpec& f, const py::array& indptr, int columns) {
  const int* m = f.f64.n;
  const long n = f.nodes();
  const long long* starts = input<long long>(indptr, "indptr", {3 * n + 1});
  auto before = [](long j, long n) { return j == 0 ? 0 : j == n ? 3 * n - 2 : 3 * j - 1; };
  auto beside = [](long j, long n) { return j == 0 || j == n - 1 ? 2 : 3; };
  const long row = 3 * m[2] - 2, layer = row * (3 * m[1] - 2), all = layer * (3 * m[0] - 2);
  for (long k = 0; k < 3; ++k)
    for (long j = 0; j < m[0]; ++j)
      for (long i = 0; i < m[1]; ++i)
        require(starts[k * n + (j * m[1] + i) * m[2]] ==
                    columns * (k * all + before(j, m[0]) * layer + beside(j, m[0]) * before(i, m[1]) * row),
                "indptr does not hold the row starts of this form's matrix");
  require(starts[3 * n] == columns * 3 * all, "indptr does not hold the row starts of this form's matrix");
  return starts;
}

void volume_stiffness_values(const VolumeSpec& f, py::array x, py::array indptr, py::array values) {
  in_precision_of(x, [&](auto number) {
    using T = decltype(number);
    const T* xp = input<T>(x, "x", {f.nodes()});
    const long long* starts = volume_row_starts(f, indptr, 3);
    T* vp = output<T>(values, "values", {py::ssize_t(starts[3 * f.nodes()])});
    py::gil_scoped_release release;
    for_rows(f.layers(), f.layer(), [&](int begin, int end) {
      volume_table<T>().stiffness_values(f.form<T>(), f.tables<T>(), xp, starts, vp, begin, end);
    });
  });
}

void volume_contraction_values(const VolumeSpec& f, py::array u, py::array indptr, py::array values) {
  in_precision_of(u, [&](auto number) {
    using T = decltype(number);
    const T* up = input<T>(u, "u", {3, f.nodes()});
    const long long* starts = volume_row_starts(f, indptr, 1);
    T* vp = output<T>(values, "values", {py::ssize_t(starts[3 * f.nodes()])});
    py::gil_scoped_release release;
    for_rows(f.layers(), f.layer(), [&](int begin, int end) {
      volume_table<T>().contraction_values(f.form<T>(), f.tables<T>(), up, starts, vp, begin, end);
    });
  });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ kernels of elastofast on structured grids";

  py::class_<FormSpec>(m, "GridForm")
      .def(py::init(&form_spec), py::arg("n0"), py::arg("n1"), py::arg("h0"), py::arg("h1"), py::arg("lambda_"), py::arg("mu"),
           py::arg("reduced"))
      .def("force", &force, py::arg("x"), py::arg("u"), py::arg("out"),
           "out = K(x) u for x (1 or B, N) and u, out (B, 2, N); False if something is not finite")
      .def("sensitivity", &sensitivity, py::arg("u"), py::arg("v"), py::arg("out"),
           "out = v^T Psi_n u for u, v (B, 2, N) and out (B, N); False if something is not finite")
      .def("stiffness_values", &stiffness_values, py::arg("x"), py::arg("indptr"), py::arg("values"),
           "values = entries of K(x) in CSR order for x (N,) and the row starts indptr (2N + 1,)")
      .def("contraction_values", &contraction_values, py::arg("u"), py::arg("indptr"), py::arg("values"),
           "values = entries of D(u) in CSR order for u (2, N) and the row starts indptr (2N + 1,)");

  py::class_<PlanarMultigrid> planar(m, "Multigrid");
  planar.def(py::init(&planar_multigrid), py::arg("form"), py::arg("x"), py::arg("fixed"), py::arg("shift"),
             py::arg("deflated_dof"), py::arg("smoother"),
             "For x (N,), fixed uint8 (2, N), shift (2, N) or None. The deflated dof, or -1, counts as free until `deflate`");
  bind_solver(planar);

  py::class_<VolumeSpec>(m, "VolumeForm")
      .def(py::init<const std::array<int, 3>&, const std::array<double, 3>&, double, double>(), py::arg("shape"),
           py::arg("spacing"), py::arg("lambda_"), py::arg("mu"), "The form on a grid of three axes, with mean dilatations")
      .def("force", &volume_force, py::arg("x"), py::arg("u"), py::arg("out"),
           "out = K(x) u for x (1 or B, N) and u, out (B, 3, N); False if something is not finite")
      .def("sensitivity", &volume_sensitivity, py::arg("u"), py::arg("v"), py::arg("out"),
           "out = v^T Psi_n u for u, v (B, 3, N) and out (B, N); False if something is not finite")
      .def("stiffness_values", &volume_stiffness_values, py::arg("x"), py::arg("indptr"), py::arg("values"),
           "values = entries of K(x) in CSR order for x (N,) and the row starts indptr (3N + 1,)")
      .def("contraction_values", &volume_contraction_values, py::arg("u"), py::arg("indptr"), py::arg("values"),
           "values = entries of D(u) in CSR order for u (3, N) and the row starts indptr (3N + 1,)");
  py::class_<VolumePlan, std::shared_ptr<VolumePlan>>(m, "VolumePlan")
      .def(py::init([](const VolumeSpec& f, py::array fixed, std::vector<long> deflated_dofs) {
             const uint8_t* fp = input<uint8_t>(fixed, "fixed", {3, f.nodes()});
             for (const long dof : deflated_dofs) check_deflated_dof(dof, fp, 3 * f.nodes());
             py::gil_scoped_release release;
             return std::make_shared<VolumePlan>(f.f64.n, f.spacing, f.lambda, f.mu, fp, std::move(deflated_dofs));
           }),
           py::arg("form"), py::arg("fixed"), py::arg("deflated_dofs"),
           "What a hierarchy is made of apart from the modulus, for fixed uint8 (3, N). Deflated dofs count as free until "
           "`deflate`")
      .def_property_readonly("levels", [](const VolumePlan& plan) {
        std::vector<std::array<int, 3>> shapes;
        for (const auto& level : plan.levels) shapes.push_back({level->n[0], level->n[1], level->n[2]});
        return shapes;
      });
  py::class_<VolumeMultigrid> volume(m, "VolumeMultigrid");
  volume.def(py::init(&volume_multigrid), py::arg("plan"), py::arg("x"), py::arg("shift"), py::arg("smoother"),
             "For x (N,) and shift (3, N) or None");
  bind_solver(volume);

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
  }, py::arg("name"));
  m.def("set_num_threads", [](int n) { omp_set_num_threads(n); }, py::arg("n"));
  m.def("get_num_threads", [] { return omp_get_max_threads(); });
}
