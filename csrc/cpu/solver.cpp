#include "solver.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "../coarsest.h"
#include "../lanczos.h"
#include "parallel.h"

namespace elastofast {

namespace {

// A level vector: two planes of nodes with room around them, because stencil rows read past the edges.
struct Field {
  Floats memory;
  float* data = nullptr;
  void allocate(int n0, int n1) {
    const size_t pad = padded(n1);
    memory.assign(2 * size_t(n0) * n1 + 2 * pad, 0.f);
    data = memory.data() + pad;
  }
};

// Cell matrices of a whole level, row after row.
struct CellMatrices {
  int cells0 = 0, cells1 = 0, ld = 0;
  Doubles data;
  void allocate(int c0, int c1) {
    cells0 = c0, cells1 = c1, ld = padded(c1);
    data.resize(size_t(c0) * kEntries * ld);
  }
  double* row(int j) { return data.data() + size_t(j) * kEntries * ld; }
};

constexpr size_t kCache = 1 << 19;  // bytes of a processor's own cache that a block of rows may take

// stage(k, from, to) for all stages of a sweep that makes the rows [begin, end) of n0: stage k needs the rows from the
// one above to the one below its own of stage k - 1. The first runs ahead by a block of rows.
template <class Stage>
void follow(int n0, int begin, int end, int stages, int block, Stage stage) {
  std::vector<int> done(stages);
  for (int k = 0; k < stages; ++k) done[k] = std::max(begin - (stages - 1 - k), 0);
  while (done.back() < end) {
    int ready = done[0] + block;
    for (int k = 0; k < stages; ++k) {
      const int to = std::min({ready, end + stages - 1 - k, n0});
      if (to > done[k]) stage(k, done[k], to);
      done[k] = std::max(done[k], to);
      ready = done[k] == n0 ? n0 : done[k] - 1;
    }
  }
}

}  // namespace

struct Multigrid::Level {
  int n0 = 0, n1 = 0;
  Axis a0, a1;  // towards the next coarser level
  Floats regular, irregular;
  Transfer<float> transfer{};
  Floats matrix_memory;  // empty on the finest level
  Stencil<float> matrix{};
  SpecialCells special;
  Floats patch_scale, patch_special;
  Patch<float> patch{};
  FixedDofs fixed;
  Field x, d, r, s;  // solution, correction, right-hand side, what is left of it
  double lmax = 1;

  void allocate(int rows, int columns) {
    n0 = rows, n1 = columns;
    x.allocate(n0, n1), d.allocate(n0, n1), r.allocate(n0, n1), s.allocate(n0, n1);
  }
  Rows<float> rows(const Field& f) const { return Rows<float>::field(f.data, n0, n1); }

  // Stored stencil of the assembled cell matrices.
  void assemble(CellMatrices& cells) {
    matrix = {n0, n1, nullptr};
    matrix_memory.resize(matrix.row_size() * n0);
    matrix.data = matrix_memory.data();
    const int ld = padded(n1), m0 = n0 - 1, m1 = n1 - 1;
    for_rows(n0, n1 * 8, [&](int begin, int end) {
      std::vector<float> planes(size_t(kPlanes) * ld);
      for (int j = begin; j < end; ++j) {
        std::fill(planes.begin(), planes.end(), 0.f);
        each_stencil_entry([&](int p, int q, int row, int plane, int shift) {
          if (j - row < 0 || j - row >= m0) return;
          const double* from = cells.row(j - row) + size_t(entry(p, q)) * cells.ld;
          float* to = planes.data() + size_t(plane) * ld + shift;
          for (int c = 0; c < m1; ++c) to[c] += float(from[c]);
        });
        for (int k = 0; k < 3; k += 2)  // fixed dofs: anything regular, their residual is zero
          for (int i = 0; i < n1; ++i)
            if (planes[size_t(k) * ld + i] == 0) planes[size_t(k) * ld + i] = 1;
        for (int b = 0; b < blocks(n1); ++b)
          for (int p = 0; p < kPlanes; ++p)
            std::copy_n(planes.data() + size_t(p) * ld + b * kBlockNodes, kBlockNodes,
                        matrix.block(j, b) + p * kBlockNodes);
      }
    });
  }

  // Patch smoother. trace(j, scale) gives the traces of the 4-node blocks of cell row j; load(j, i, out) a cell's matrix.
  template <class Trace, class Load>
  void set_up_patches(const double* cell, const std::vector<uint8_t>& mask, Trace trace, Load load) {
    const int m0 = n0 - 1, m1 = n1 - 1;
    const float whole = float(patch_modes(cell, patch));
    special = SpecialCells(mask, n0, n1);
    patch_scale.resize(size_t(m0) * m1);
    patch_special.resize(special.column.size() * kEntries);
    for_rows(m0, n1, [&](int begin, int end) {
      for (int j = begin; j < end; ++j) {
        float* scale = patch_scale.data() + size_t(j) * m1;
        trace(whole, j, scale);
        for (int i = 0; i < m1; ++i) scale[i] = whole / scale[i];
        for (int k = special.row[j]; k < special.row[j + 1]; ++k) {
          double block[kEntries];
          special_inverse(j, special.column[k], m0, m1, load, block);
          std::copy_n(block, kEntries, patch_special.data() + size_t(k) * kEntries);
          scale[special.column[k]] = 0;
        }
      }
    });
    patch.n0 = n0, patch.n1 = n1;
    patch.scale = patch_scale.data();
    patch.special_row = special.row.data(), patch.special_col = special.column.data();
    patch.special = patch_special.data();
  }
};

// Direct solve of the coarsest level.
struct Multigrid::Coarsest {
  Banded shape;
  std::vector<double> band, work;

  Coarsest(CellMatrices& cells, double regularization)
      : shape(cells.cells0 + 1, cells.cells1 + 1), band(shape.entries()), work(shape.size()) {
    shape.factor([&](int j, int i, int e) { return cells.row(j)[size_t(e) * cells.ld + i]; }, regularization,
                 band.data());
  }

  void solve(const float* b, float* x) {
    for (size_t k = 0; k < work.size(); ++k) work[shape.number(k)] = b[k];
    shape.solve(band.data(), work.data());
    for (size_t k = 0; k < work.size(); ++k) x[k] = float(work[shape.number(k)]);
  }
};

Multigrid::~Multigrid() = default;

Multigrid::Multigrid(const GridForm<double>& form, const double* x, const uint8_t* fixed, const double* shift,
                     long deflated_dof, Steps smoother)
    : form_(form), smoother_(std::move(smoother)), n_(size_t(form.n0) * form.n1), x_(x, x + n_), deflated_dof_(deflated_dof) {
  const int n0 = form.n0, n1 = form.n1;
  const Setup& setup = *kernels().setup;
  form32_ = {n0, n1, form.reduced,
             {float(form.law.g0), float(form.law.g1), float(form.law.lambda), float(form.law.mu)}};
  modulus_ = sum_rows(n0, n1, [&](int begin, int end) {
    double s = 0;
    for (size_t k = size_t(begin) * n1; k < size_t(end) * n1; ++k) s += x[k];
    return s;
  }) / double(n_);
  x32_.resize(n_);
  Doubles scaled(n_), share;
  for_rows(n0, n1, [&](int begin, int end) {
    for (size_t k = size_t(begin) * n1; k < size_t(end) * n1; ++k) {
      scaled[k] = x[k] / modulus_;
      x32_[k] = float(scaled[k]);
    }
  });
  if (shift) {
    shift_.assign(shift, shift + 2 * n_);
    shift32_.resize(2 * n_);
    share.resize(2 * n_);
    for (int k = 0; k < 2; ++k)
      for (int j = 0; j < n0; ++j)
        for (int i = 0; i < n1; ++i) {
          const size_t at = (size_t(k) * n0 + j) * n1 + i;
          shift32_[at] = float(shift[at] / modulus_);
          share[at] = shift[at] / modulus_ / cells_around(n0, n1, j, i);
        }
  }
  r_.resize(2 * n_), p_.resize(2 * n_), q_.resize(2 * n_);

  std::vector<uint8_t> mask(fixed, fixed + 2 * n_);
  if (deflated_dof_ >= 0) mask[deflated_dof_] = 0;
  fixed_.collect(mask, n0, n1);
  const std::vector<uint8_t> finest = mask;
  double cell[kEntries];
  homogeneous_cell(form.law, form.reduced, cell);

  levels_.emplace_back(new Level);
  levels_[0]->allocate(n0, n1);
  levels_[0]->fixed.collect(mask, n0, n1);

  Coarsening coarsening(n0, n1, 2 / form.law.g0, 2 / form.law.g1);
  GridForm<double> unit = form;

  CellMatrices fine;  // of the level being coarsened; level 0 makes its rows on the way
  auto finest_row = [&](int j, double* planes, int ld) {
    setup.cell_matrices(unit, scaled.data(), shift ? share.data() : nullptr, j, planes, ld);
    levels_[0]->fixed.clear_cells(planes, ld, n1 - 1, j);
  };
  if (Coarsening::small(n0, n1)) {
    fine.allocate(n0 - 1, n1 - 1);
    for (int j = 0; j < n0 - 1; ++j) finest_row(j, fine.row(j), fine.ld);
  }
  while (!Coarsening::small(levels_.back()->n0, levels_.back()->n1)) {
    Level& L = *levels_.back();
    const bool first = levels_.size() == 1;
    coarsening.next(L.a0, L.a1);
    const AxisView v0 = L.a0.view(), v1 = L.a1.view();
    const int c0 = v0.n_coarse - 1, c1 = v1.n_coarse - 1, ld = first ? padded(L.n1 - 1) : fine.ld;
    CellMatrices coarse;
    coarse.allocate(c0, c1);
    const size_t wide = size_t(c0) * c1 - size_t(v0.regular) * v1.regular;
    L.regular.assign(size_t(v0.regular) * 16 * padded(c1), 0.f);
    std::vector<double> irregular(64 * wide, 0.0);

    std::unique_ptr<Level> next(new Level);
    next->allocate(v0.n_coarse, v1.n_coarse);
    mask = Coarsening::keep(mask, L.a0, L.a1);
    next->fixed.collect(mask, next->n0, next->n1);

    for_rows(c0, c1 * 8, [&](int begin, int end) {
      std::vector<double> rows(first ? size_t(3) * kEntries * ld : 0), interior(size_t(16) * padded(c1));
      for (int J = begin; J < end; ++J) {
        const double* below[3] = {};
        for (int k = 0; k < v0.width[J]; ++k) {
          if (first) {
            double* planes = rows.data() + size_t(k) * kEntries * ld;
            finest_row(v0.first[J] + k, planes, ld);
            below[k] = planes;
          } else {
            below[k] = fine.row(v0.first[J] + k);
          }
        }
        setup.coarsen_row(v0, v1, J, below, ld, coarse.row(J), coarse.ld, interior.data(), padded(c1), irregular.data());
        next->fixed.clear_cells(coarse.row(J), coarse.ld, c1, J);
        if (J < v0.regular) {
          float* out = L.regular.data() + size_t(J) * interior.size();
          for (int k = 0; k < 16; ++k)
            for (int I = 0; I < v1.regular; ++I) out[k * padded(c1) + I] = float(interior[k * padded(c1) + I]);
        }
      }
    });
    L.irregular.assign(irregular.begin(), irregular.end());
    L.transfer = {v0, v1, L.regular.data(), L.irregular.data(), L.a0.place32.data(), L.a1.place32.data()};
    levels_.push_back(std::move(next));
    fine = std::move(coarse);
    Level& N = *levels_.back();
    coarsen_homogeneous(L.a0.regular > 0, L.a1.regular > 0, cell);
    if (!Coarsening::small(N.n0, N.n1)) {
      N.assemble(fine);
      N.set_up_patches(
          cell, mask,
          [&](float, int j, float* trace) {
            auto diagonal = [&](int row, int i) {
              const float* block = N.matrix.block(row, i / kBlockNodes) + i % kBlockNodes;
              return block[0] + block[2 * kBlockNodes];
            };
            for (int i = 0; i < N.n1 - 1; ++i)
              trace[i] = diagonal(j, i) + diagonal(j, i + 1) + diagonal(j + 1, i) + diagonal(j + 1, i + 1);
          },
          [&](int j, int i, double* out) {
            for (int e = 0; e < kEntries; ++e) out[e] = fine.row(j)[size_t(e) * fine.ld + i];
          });
      estimate_eigenvalue(N);
    }
  }
  coarsest_.reset(new Coarsest(fine, deflated_dof_ < 0 ? 0.0 : 1e-6));
  if (levels_.size() > 1) {
    homogeneous_cell(form.law, form.reduced, cell);
    levels_[0]->set_up_patches(
        cell, finest,
        [&](float whole, int j, float* trace) {
          auto sum = [&](const float* f, int i) { return f[i] + f[i + 1] + f[n1 + i] + f[n1 + i + 1]; };
          const float* row = x32_.data() + size_t(j) * n1;
          for (int i = 0; i < n1 - 1; ++i) trace[i] = 0.25f * whole * sum(row, i);
          for (int c = 0; shift && c < 2; ++c) {
            const float* held = shift32_.data() + c * n_ + size_t(j) * n1;
            for (int i = 0; i < n1 - 1; ++i) trace[i] += sum(held, i);
          }
        },
        [&](int j, int i, double* out) {
          const size_t at = size_t(j) * n1 + i;
          const Corners<double> c = {scaled[at], scaled[at + 1], scaled[at + n1], scaled[at + n1 + 1]};
          form.reduced ? packed_cell<true>(form.law, c, out) : packed_cell<false>(form.law, c, out);
          for (int p = 0; shift && p < 8; ++p) out[entry(p, p)] += share[p / 4 * n_ + at + p % 4 / 2 * n1 + p % 2];
          clear_fixed(finest.data(), long(n_), n1, long(at), out);
        });
    estimate_eigenvalue(*levels_[0]);
  }
}

void Multigrid::deflate(const double* mode) {
  translation_[0] = mode[0], translation_[1] = mode[n_];
  bool constant = true;
  for (int c = 0; c < 2 && constant; ++c)
    constant = std::all_of(mode + c * n_, mode + (c + 1) * n_, [&](double v) { return v == translation_[c]; });
  mode_.assign(mode, mode + (constant ? 0 : 2 * n_));
  if (!deflates_) fixed_.add(size_t(deflated_dof_), form_.n0, form_.n1);
  deflates_ = true;
}

// out = r - A d at rows [begin, end)
void Multigrid::subtract(const Level& L, Rows<const float> d, Rows<const float> r, Rows<float> out, int begin,
                         int end) const {
  const Cycle& k = *kernels().cycle;
  if (L.matrix.data) {
    k.stencil_subtract(L.matrix, d, r, out, begin, end);
  } else {
    k.subtract(form32_, x32_.data(), shift32_.empty() ? nullptr : shift32_.data(), d, r, out, begin, end);
    L.fixed.clear(out, begin, end);
  }
}

// Chebyshev smoothing from zero, which leaves x and the residual s of the right-hand side r; or, `after` the coarse
// levels, of x + d with s still the residual of x.
//
// The steps of the smoothing follow each other down the rows, a block of rows at a time and each one row behind the
// one before, so that only the first reads from memory and the last writes to it; between them the rows stand in two
// windows that fit in the processor's own cache. Threads share the rows out in bands and make the few rows
// around theirs that they need for themselves.
void Multigrid::smooth(Level& L, bool after) {
  const int stages = 2 * int(smoother_.size()), n0 = L.n0, n1 = L.n1;
  const size_t row_bytes = sizeof(float) * n1 * (L.matrix.data ? 10 + kPlanes : 12);
  int slots = 8;
  while (slots < int(std::clamp(kCache / row_bytes, size_t(4), size_t(64))) + stages + 2) slots *= 2;
  const int block = slots - stages - 2, bands = band_count(n0, n1);
  const size_t room = 2 * size_t(padded(n1)) + 2 * size_t(slots) * n1;
  windows_.resize(std::max(windows_.size(), size_t(bands)));
  for (Floats& w : windows_)
    if (w.size() < 2 * room) w.assign(2 * room, 0.f);
  const Cycle& kernel = *kernels().cycle;
  const Rows<float> x = L.rows(L.x), e = L.rows(L.d), r = L.rows(L.r), s = L.rows(L.s);

#pragma omp parallel for schedule(static) num_threads(bands) if (bands > 1)
  for (int band = 0; band < bands; ++band) {
    const int begin = int(long(n0) * band / bands), end = int(long(n0) * (band + 1) / bands);
    auto window = [&](int k) {
      return Rows<float>{windows_[band].data() + k * room + padded(n1), size_t(slots) * n1, n1, unsigned(slots - 1)};
    };
    const Rows<float> d = window(0), t = window(1);
    auto add = [&](Rows<float> v, bool keep, int from, int to) {
      for (int j = std::max(from, begin); j < std::min(to, end); ++j)
        for (int c = 0; c < 2; ++c) kernel.scale_add(1.f, v.row(c, j), float(keep), x.row(c, j), n1);
    };
    follow(n0, begin, end, stages, block, [&](int stage, int from, int to) {
      const bool update = stage % 2 == int(after), first = stage <= int(!after), last = stage == stages - 1;
      if (update) {
        const auto [keep, gain] = smoother_[stage / 2];
        kernel.patch(L.patch, first ? r : t, float(keep), float(gain / L.lmax), d, from, to);
        add(d, stage > 0, from, to);
      } else if (after && stage == 0) {
        subtract(L, e, s, t, from, to);
        add(e, true, from, to);
      } else {
        subtract(L, d, first ? r : t, last ? s : t, from, to);
      }
    });
  }
}

void Multigrid::cycle(size_t l) {
  Level& L = *levels_[l];
  if (l + 1 == levels_.size()) {
    coarsest_->solve(L.r.data, L.x.data);
    return;
  }
  Level& C = *levels_[l + 1];
  const Cycle& k = *kernels().cycle;
  smooth(L, false);
  for_rows(C.n0, C.n1 * 2, [&](int begin, int end) {
    k.restrict_rows(L.transfer, L.s.data, C.r.data, begin, end);
    C.fixed.clear(C.rows(C.r), begin, end);
  });
  cycle(l + 1);
  for_rows(C.n0 - 1, C.n1 * 2, [&](int begin, int end) {
    k.prolong_rows(L.transfer, C.x.data, L.d.data, begin, end);
    L.fixed.clear(L.rows(L.d), L.a0.first[begin], end < C.n0 - 1 ? L.a0.first[end] : L.n0);
  });
  smooth(L, true);
}

void Multigrid::estimate_eigenvalue(Level& L) {
  const size_t n = 2 * size_t(L.n0) * L.n1;
  Field residual, z, product;
  residual.allocate(L.n0, L.n1), z.allocate(L.n0, L.n1), product.allocate(L.n0, L.n1);
  LanczosStart start;
  for (size_t i = 0; i < n; ++i) residual.data[i] = start.next();
  L.fixed.clear(L.rows(residual), 0, L.n0);
  const Cycle& k = *kernels().cycle;
  const size_t w = 2 * size_t(L.n1);
  auto dot = [&](const float* a, const float* b) {
    return sum_rows(L.n0, 2 * L.n1,
                    [&](int begin, int end) { return k.dot(a + begin * w, b + begin * w, (end - begin) * w); });
  };
  auto scale_add = [&](double a, const float* x, double b, float* y) {
    for_rows(L.n0, 2 * L.n1, [&](int begin, int end) {
      k.scale_add(float(a), x + begin * w, float(b), y + begin * w, (end - begin) * w);
    });
  };
  Lanczos lanczos;
  lanczos.start();
  for (int step = 0; step < Lanczos::kSteps; ++step) {
    for_rows(L.n0, L.n1, [&](int begin, int end) { k.patch(L.patch, L.rows(residual), 0.f, 1.f, L.rows(z), begin, end); });
    lanczos.direction(dot(residual.data, z.data));
    if (lanczos.ended) break;
    scale_add(1, z.data, lanczos.beta, L.d.data);
    for_rows(L.n0, L.n1, [&](int begin, int end) {
      subtract(L, L.rows(L.d), L.rows(L.s), L.rows(product), begin, end);  // -A d, for s is still zero
    });
    lanczos.step(-dot(L.d.data, product.data));
    if (lanczos.ended) break;
    scale_add(lanczos.alpha, product.data, 1, residual.data);
  }
  L.lmax = lanczos.largest();
  std::fill(L.d.memory.begin(), L.d.memory.end(), 0.f);
}

// One V-cycle for a residual that is zero at every fixed dof. The result is the finest level's solution times the factor
// that is returned; values at fixed dofs mean nothing.
double Multigrid::cycle_on(const double* r, double r_norm) {
  Level& L = *levels_[0];
  const int n0 = form_.n0, n1 = form_.n1;
  if (!(r_norm > 0)) r_norm = 1;
  const double scale = 1 / r_norm;
  double net = 0;  // force along the mode of the deflated dof
  for (int c = 0; c < 2; ++c) {
    const double sum = sum_rows(n0, n1, [&](int begin, int end) {
      const size_t from = c * n_ + size_t(begin) * n1, count = size_t(end - begin) * n1;
      const double part = kernels().outer->lower(scale, r + from, L.r.data + from, count);
      return mode_.empty() ? part : kernels().outer->dot(mode_.data() + from, r + from, count);
    });
    net += mode_.empty() ? translation_[c] * sum : sum;
  }
  if (deflates_) L.r.data[deflated_dof_] = float(-net * scale);  // the reaction that balances it
  cycle(0);
  if (deflates_) {
    const float at_dof = L.x.data[deflated_dof_];
    for (int c = 0; c < 2; ++c) {
      if (mode_.empty() && translation_[c] == 0) continue;
      for_rows(n0, n1, [&](int begin, int end) {
        const size_t from = c * n_ + size_t(begin) * n1, to = c * n_ + size_t(end) * n1;
        const float offset = at_dof * float(translation_[c]);
        if (mode_.empty())
          for (size_t i = from; i < to; ++i) L.x.data[i] -= offset;
        else
          for (size_t i = from; i < to; ++i) L.x.data[i] -= float(at_dof * mode_[i]);
      });
    }
  }
  return r_norm / modulus_;
}

// The sum of body(first dof, number of dofs) over chunks of both planes.
template <class Body>
double Multigrid::sum_planes(Body body) const {
  return sum_rows(form_.n0, form_.n1, [&](int begin, int end) {
    const size_t from = size_t(begin) * form_.n1, count = size_t(end - begin) * form_.n1;
    return body(from, count) + body(n_ + from, count);
  });
}

// r = b - product, or b without one, zero at fixed dofs; returns |r|^2.
double Multigrid::take_residual(const double* b, const double* product) {
  const int n0 = form_.n0, n1 = form_.n1;
  return sum_rows(n0, n1, [&](int begin, int end) {
    double sum = 0;
    for (int c = 0; c < 2; ++c)
      for (size_t i = c * n_ + size_t(begin) * n1; i < c * n_ + size_t(end) * n1; ++i)
        r_[i] = product ? b[i] - product[i] : b[i];
    fixed_.clear(r_.data(), n0, n1, begin, end);
    for (int c = 0; c < 2; ++c) {
      const double* r = &r_[c * n_ + size_t(begin) * n1];
      sum += kernels().outer->dot(r, r, size_t(end - begin) * n1);
    }
    return sum;
  });
}

void Multigrid::accelerated(const double* b, double* w, const Steps& steps) {
  const int n0 = form_.n0, n1 = form_.n1;
  const Outer& k = *kernels().outer;
  const double norm = std::sqrt(take_residual(b, nullptr));
  for (size_t step = 0; step < steps.size(); ++step) {
    const auto [keep, gain] = steps[step];
    const double factor = cycle_on(r_.data(), norm);
    const float* low = levels_[0]->x.data;
    double* d = steps.size() > 1 ? p_.data() : w;  // a single one needs no room of its own
    for_rows(n0, n1, [&](int begin, int end) {
      const size_t count = size_t(end - begin) * n1;
      for (int c = 0; c < 2; ++c) {
        const size_t i = c * n_ + size_t(begin) * n1;
        k.raise_add(gain * factor, low + i, keep, d + i, count);
      }
      fixed_.clear(d, n0, n1, begin, end);
      for (int c = 0; c < 2 && d != w; ++c) {
        const size_t i = c * n_ + size_t(begin) * n1;
        if (step) k.scale_add(1.0, d + i, 1.0, w + i, count);
        else std::copy_n(d + i, count, w + i);
      }
    });
    if (step + 1 == steps.size()) break;
    apply_dot(d, q_.data());
    take_residual(r_.data(), q_.data());
  }
}

double Multigrid::apply_dot(const double* p, double* q) {
  const double* shift = shift_.empty() ? nullptr : shift_.data();
  return sum_rows(form_.n0, form_.n1, [&](int begin, int end) {
    const double s = kernels().outer->apply_dot(form_, x_.data(), shift, p, q, begin, end);
    fixed_.clear(q, form_.n0, form_.n1, begin, end);
    return s;
  });
}

void Multigrid::apply(const double* p, double* q) {
  std::copy(p, p + 2 * n_, p_.begin());
  fixed_.clear(p_.data(), form_.n0, form_.n1, 0, form_.n0);
  apply_dot(p_.data(), q);
}

SolveResult Multigrid::solve(const double* b, double* x, double rtol, int max_iterations, bool energy) {
  const int n0 = form_.n0, n1 = form_.n1;
  const Outer& k = *kernels().outer;
  SolveResult result;
  fixed_.clear(x, n0, n1, 0, n0);
  const double bb = take_residual(b, nullptr);
  const double norm = std::sqrt(bb);
  if (norm == 0) {
    std::fill(x, x + 2 * n_, 0.0);
    return result;
  }
  const bool from_zero = std::all_of(x, x + 2 * n_, [](double v) { return v == 0; });
  auto residual = [&] {
    apply_dot(x, q_.data());
    return take_residual(b, q_.data());
  };
  double rr = bb, first_energy = 0;
  if (energy) {  // the measure of b, so that a good first guess counts
    const double factor = cycle_on(r_.data(), norm);
    const float* low = levels_[0]->x.data;
    first_energy = factor * sum_planes([&](size_t i, size_t n) { return k.dot_low(&r_[i], low + i, n); });
  }
  if (!from_zero) rr = residual();
  // the recursive residual drifts from the true one at tight tolerances: begin again from the true one
  for (int restart = 0; restart < 4; ++restart) {
    double rz = 0;
    bool small = !energy && std::sqrt(rr) <= rtol * norm;
    while (!small && result.iterations < max_iterations) {
      const double factor = cycle_on(r_.data(), std::sqrt(rr));
      const float* low = levels_[0]->x.data;
      const double next = factor * sum_planes([&](size_t i, size_t n) { return k.dot_low(&r_[i], low + i, n); });
      if (!std::isfinite(next)) {
        result.converged = false;
        result.residual = std::numeric_limits<double>::quiet_NaN();
        return result;
      }
      if (energy && next <= rtol * rtol * first_energy) break;
      const double beta = rz > 0 ? next / rz : 0;
      rz = next;
      for_rows(n0, n1, [&](int begin, int end) {
        for (int c = 0; c < 2; ++c) {
          const size_t i = c * n_ + size_t(begin) * n1;
          k.raise_add(factor, low + i, beta, &p_[i], size_t(end - begin) * n1);
        }
        fixed_.clear(p_.data(), n0, n1, begin, end);
      });
      const double alpha = rz / apply_dot(p_.data(), q_.data());
      rr = sum_planes([&](size_t i, size_t n) { return k.descend(alpha, &p_[i], &q_[i], x + i, &r_[i], n); });
      ++result.iterations;
      small = !energy && std::sqrt(rr) <= rtol * norm;
    }
    if (energy) break;
    rr = residual();
    if (std::sqrt(rr) <= rtol * norm || result.iterations >= max_iterations) break;
  }
  result.residual = std::sqrt(rr) / norm;
  result.converged = energy ? result.iterations < max_iterations : result.residual <= rtol;
  return result;
}

std::vector<double> Multigrid::eigenvalue_bounds() const {
  std::vector<double> bounds;
  for (size_t l = 0; l + 1 < levels_.size(); ++l) bounds.push_back(levels_[l]->lmax);
  return bounds;
}

size_t Multigrid::bytes() const {
  size_t total = sizeof(double) * (x_.size() + shift_.size() + mode_.size() + r_.size() + p_.size() + q_.size()) +
                 sizeof(float) * (x32_.size() + shift32_.size());
  for (const Floats& w : windows_) total += sizeof(float) * w.size();
  for (const auto& L : levels_)
    total += sizeof(float) * (L->regular.size() + L->irregular.size() + L->matrix_memory.size() + L->patch_scale.size() +
                              L->patch_special.size() + L->x.memory.size() + L->d.memory.size() + L->r.memory.size() +
                              L->s.memory.size());
  return total + sizeof(double) * coarsest_->band.size();
}

}  // namespace elastofast
