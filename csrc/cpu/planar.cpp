#include "planar.h"

#include <cmath>
#include <cstring>

#include "../coarsest.h"
#include "../lanczos.h"
#include "interrupt.h"
#include "parallel.h"

namespace elastofast {

namespace {

// Removes the fixed dofs from the cell matrices of cell row j.
void clear_cells(const FixedDofs& fixed, double* planes, int ld, int cells, int j) {
  for (int s = 0; s < 2; ++s)
    for (int e = fixed.row[j + s]; e < fixed.row[j + s + 1]; ++e)
      for (int t = 0; t < 2; ++t) {
        const int c = fixed.dof[e].second - t, p = kCorners * fixed.dof[e].first + 2 * s + t;
        if (c < 0 || c >= cells) continue;
        for (int q = 0; q < kCellDofs; ++q) planes[size_t(entry(p, q)) * ld + c] = 0;
      }
}

// Bytes of a processor's own cache that a block of rows may take while it is smoothed, and the fewest and most rows of a
// block. Sized for second-level caches of 1 MB and more; not studied.
constexpr size_t kCache = 1 << 19, kFewestRows = 4, kMostRows = 64;

// Schedule of a temporally blocked sweep over the rows [begin, end) of n0. Stage k needs the rows of stage k - 1 from the
// one above its own to the one below, so that it can follow one row behind: stage(k, from, to) runs all stages on a block of
// rows while these are in cache, then goes on to the next block.
template <class Stage>
void temporally_blocked_sweep(int n0, int begin, int end, int stages, int block, Stage stage) {
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

struct PlanarHierarchy::Level {
  const LevelPlan& plan;
  const int n0, n1;
  FixedDofs fixed;
  Floats regular, irregular;  // weights of the transfer to the next coarser level
  Transfer<float> transfer{};
  Floats matrix_memory;  // empty on the finest level
  Stencil<float> matrix{};
  Floats patch_scale, patch_special;
  Patch<float> patch;
  Field x, d, r, s;  // solution, correction, right-hand side, residual
  double lmax = 1;   // largest eigenvalue of smoother x matrix

  explicit Level(const LevelPlan& plan) : plan(plan), n0(plan.n0), n1(plan.n1), patch(plan.patch) {
    fixed.collect(plan.fixed, n0, n1);
    for (Field* f : {&x, &d, &r, &s}) f->allocate(2 * size_t(n0) * n1, padded(n1));
  }
  Rows<float> rows(const Field& f) const { return Rows<float>::field(f.data, n0, n1); }
};

// ---------------------------------------------------------------------------------------------------- set-up

// Cell matrices of the finest level. They would take more memory than all the rest, so that they are made a row at a time
// when they are needed.
struct PlanarHierarchy::FinestCells {
  const GridForm<double>& form;
  const double *modulus, *shift;  // scaled; a node's shift is shared out to the cells around it; null without one
  const Level& level;
  int ld = padded(form.n1 - 1);

  static constexpr bool kStored = false;
  const double* row(int j, double* room) const {
    kernels().setup->cell_matrices(form, modulus, shift, j, room, ld);
    clear_cells(level.fixed, room, ld, form.n1 - 1, j);
    return room;
  }
  void load(int j, int i, double* out) const {
    const size_t n1 = form.n1, n = form.n0 * n1, at = j * n1 + i;
    const Corners<double> c = {modulus[at], modulus[at + 1], modulus[at + n1], modulus[at + n1 + 1]};
    form.reduced ? packed_cell<true>(form.law, c, out) : packed_cell<false>(form.law, c, out);
    for (int p = 0; shift && p < kCellDofs; ++p)
      out[entry(p, p)] += shift[component_of(p) * n + at + corner_row(p) * n1 + corner_column(p)];
    clear_fixed(level.plan.fixed.data(), long(n), form.n1, long(at), out);
  }
};

// Stored cell matrices of a coarser level, row after row.
struct PlanarHierarchy::CellMatrices {
  int cells0 = 0, cells1 = 0, ld = 0;
  Doubles data;

  CellMatrices() = default;
  CellMatrices(int c0, int c1) : cells0(c0), cells1(c1), ld(padded(c1)) { data.resize(size_t(c0) * kEntries * ld); }

  static constexpr bool kStored = true;
  double* row(int j) { return data.data() + size_t(j) * kEntries * ld; }
  const double* row(int j, double* = nullptr) const { return data.data() + size_t(j) * kEntries * ld; }
  void load(int j, int i, double* out) const {
    for (int e = 0; e < kEntries; ++e) out[e] = row(j)[size_t(e) * ld + i];
  }
};

// Direct solve of the coarsest level.
struct PlanarHierarchy::Coarsest {
  Banded shape;
  std::vector<double> band, work;

  Coarsest(const CellMatrices& cells, double regularization)
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

PlanarHierarchy::~PlanarHierarchy() = default;

PlanarHierarchy::PlanarHierarchy(const GridForm<double>& form, const double* x, const uint8_t* fixed, const double* shift,
                                 std::vector<long> deflated_dofs, Steps smoother)
    : form_(form),
      form32_{form.n0, form.n1, form.reduced,
              {{float(form.law.g[0]), float(form.law.g[1])}, float(form.law.lambda), float(form.law.mu)}},
      deflated_dofs_(std::move(deflated_dofs)),
      plan_(form, fixed, deflated_dofs_.empty() ? -1 : deflated_dofs_[0]),
      smoother_(std::move(smoother)),
      n_(size_t(form.n0) * form.n1) {
  for (const LevelPlan& plan : plan_.levels) levels_.emplace_back(new Level(plan));
  set_up(x, shift);
}

void PlanarHierarchy::clear_work() {
  for (const auto& level : levels_)
    for (Field* f : {&level->x, &level->d, &level->r, &level->s}) std::fill(f->memory.begin(), f->memory.end(), 0.f);
  windows_.clear();
}

void PlanarHierarchy::set_up(const double* x, const double* shift) {
  x_.assign(x, x + n_);
  const Doubles modulus = scale_modulus(), shares = shift ? scale_shift(shift) : Doubles();
  if (!shift) shift_.clear(), shift32_.clear();

  const FinestCells finest{form_, modulus.data(), shift ? shares.data() : nullptr, *levels_[0]};
  CellMatrices cells;  // of level l
  for (size_t l = 0; l + 1 < levels_.size(); ++l) {
    stop_if_interrupted();
    Level& L = *levels_[l];
    if (l) assemble_stencil(L, cells);
    l ? set_up_patches(L, cells) : set_up_patches(L, finest);
    estimate_eigenvalue(L);  // asks too
    stop_if_interrupted();
    cells = l ? coarsen(l, cells) : coarsen(l, finest);
  }
  if (levels_.size() == 1) {
    cells = CellMatrices(form_.n0 - 1, form_.n1 - 1);
    for (int j = 0; j < cells.cells0; ++j) finest.row(j, cells.row(j));
  }
  coarsest_.reset(new Coarsest(cells, plan_.coarsest_regularization()));
}

// The hierarchy works on x over its mean, so that single precision suffices in any unit. Returns x over its mean.
Doubles PlanarHierarchy::scale_modulus() {
  const int n0 = form_.n0, n1 = form_.n1;
  modulus_ = sum_rows(n0, n1, [&](int begin, int end) {
    double s = 0;
    for (size_t k = size_t(begin) * n1; k < size_t(end) * n1; ++k) s += x_[k];
    return s;
  }) / double(n_);
  x32_.resize(n_);
  Doubles scaled(n_);
  for_rows(n0, n1, [&](int begin, int end) {
    for (size_t k = size_t(begin) * n1; k < size_t(end) * n1; ++k) {
      scaled[k] = x_[k] / modulus_;
      x32_[k] = float(scaled[k]);
    }
  });
  return scaled;
}

// The same for the shift. Returns the share of each cell around a node.
Doubles PlanarHierarchy::scale_shift(const double* shift) {
  const int n0 = form_.n0, n1 = form_.n1;
  shift_.assign(shift, shift + 2 * n_);
  shift32_.resize(2 * n_);
  Doubles shares(2 * n_);
  for (int k = 0; k < 2; ++k)
    for (int j = 0; j < n0; ++j)
      for (int i = 0; i < n1; ++i) {
        const size_t at = (size_t(k) * n0 + j) * n1 + i;
        shift32_[at] = float(shift[at] / modulus_);
        shares[at] = shift[at] / modulus_ / cells_around(n0, n1, j, i);
      }
  return shares;
}

// Sets up the transfer from level l to the next coarser one; returns the cell matrices of that level, which are Galerkin
// products.
template <class Cells>
PlanarHierarchy::CellMatrices PlanarHierarchy::coarsen(size_t l, const Cells& cells) {
  Level &L = *levels_[l], &C = *levels_[l + 1];
  const AxisView a0 = L.plan.a0.view(), a1 = L.plan.a1.view();
  const int c0 = C.n0 - 1, c1 = C.n1 - 1, ld = cells.ld, ld_interior = padded(c1);
  CellMatrices coarse(c0, c1);
  L.regular.assign(L.plan.regular_weights(), 0.f);
  std::vector<double> irregular(L.plan.irregular_weights(), 0.0);
  for_rows(c0, c1 * kCellDofs, [&](int begin, int end) {
    std::vector<double> room(Cells::kStored ? 0 : size_t(3) * kEntries * ld), interior(size_t(kNodeWeights) * ld_interior);
    for (int J = begin; J < end; ++J) {
      const double* fine[3] = {};  // the up to three rows of cells that make up the coarse one
      for (int k = 0; k < a0.width[J]; ++k) fine[k] = cells.row(a0.first[J] + k, room.data() + size_t(k) * kEntries * ld);
      kernels().setup->coarsen_row(a0, a1, J, fine, ld, coarse.row(J), coarse.ld, interior.data(), ld_interior,
                                   irregular.data());
      clear_cells(C.fixed, coarse.row(J), coarse.ld, c1, J);
      if (J >= a0.regular) continue;
      float* out = L.regular.data() + size_t(J) * interior.size();
      for (int k = 0; k < kNodeWeights; ++k)
        for (int I = 0; I < a1.regular; ++I) out[k * ld_interior + I] = float(interior[k * ld_interior + I]);
    }
  });
  L.irregular.assign(irregular.begin(), irregular.end());
  L.transfer = {a0, a1, L.regular.data(), L.irregular.data(), L.plan.a0.place32.data(), L.plan.a1.place32.data()};
  return coarse;
}

// Stored stencil of the assembled cell matrices.
void PlanarHierarchy::assemble_stencil(Level& L, const CellMatrices& cells) {
  const int n0 = L.n0, n1 = L.n1, ld = padded(n1), m0 = n0 - 1, m1 = n1 - 1;
  L.matrix = {n0, n1, nullptr};
  L.matrix_memory.resize(L.matrix.row_size() * n0);
  L.matrix.data = L.matrix_memory.data();
  for_rows(n0, n1 * kCellDofs, [&](int begin, int end) {
    std::vector<float> planes(size_t(kPlanes) * ld);
    for (int j = begin; j < end; ++j) {
      std::fill(planes.begin(), planes.end(), 0.f);
      each_stencil_entry([&](int p, int q, int row, int plane, int column) {
        if (j - row < 0 || j - row >= m0) return;
        const double* from = cells.row(j - row) + size_t(entry(p, q)) * cells.ld;
        float* to = planes.data() + size_t(plane) * ld + column;
        for (int c = 0; c < m1; ++c) to[c] += float(from[c]);
      });
      for (int k = 0; k < 3; k += 2)  // diagonal of fixed dofs: anything regular, their residual is zero
        for (int i = 0; i < n1; ++i)
          if (planes[size_t(k) * ld + i] == 0) planes[size_t(k) * ld + i] = 1;
      for (int b = 0; b < blocks(n1); ++b)
        for (int p = 0; p < kPlanes; ++p)
          std::copy_n(planes.data() + size_t(p) * ld + b * kBlockNodes, kBlockNodes,
                      L.matrix.block(j, b) + p * kBlockNodes);
    }
  });
}

template <class Cells>
void PlanarHierarchy::set_up_patches(Level& L, const Cells& cells) {
  const int m0 = L.n0 - 1, m1 = L.n1 - 1;
  const SpecialPatches& special = L.plan.special;
  L.patch_scale.resize(size_t(m0) * m1);
  L.patch_special.resize(special.column.size() * kCellDofs * kCellDofs);
  for_rows(m0, L.n1, [&](int begin, int end) {
    for (int j = begin; j < end; ++j) {
      float* scale = L.patch_scale.data() + size_t(j) * m1;
      patch_traces(L, j, scale);
      for (int i = 0; i < m1; ++i) scale[i] = L.plan.trace / scale[i];
      for (int k = special.row[j]; k < special.row[j + 1]; ++k) {
        double block[kEntries];
        special_inverse(j, special.column[k], m0, m1, [&](int y, int z, double* out) { cells.load(y, z, out); }, block);
        float* inverse = L.patch_special.data() + size_t(k) * kCellDofs * kCellDofs;
        for (int e = 0; e < kCellDofs * kCellDofs; ++e) inverse[e] = float(block[entry(e / kCellDofs, e % kCellDofs)]);
        scale[special.column[k]] = 0;
      }
    }
  });
  L.patch.scale = L.patch_scale.data();
  L.patch.special_row = special.row.data(), L.patch.special_col = special.column.data();
  L.patch.special = L.patch_special.data();
}

// Traces of the 4-node blocks of one row of cells.
void PlanarHierarchy::patch_traces(const Level& L, int j, float* trace) const {
  const int n1 = L.n1;
  if (L.matrix.data) {
    auto diagonal = [&](int row, int i) {
      const float* block = L.matrix.block(row, i / kBlockNodes) + i % kBlockNodes;
      return block[0] + block[2 * kBlockNodes];
    };
    for (int i = 0; i < n1 - 1; ++i)
      trace[i] = diagonal(j, i) + diagonal(j, i + 1) + diagonal(j + 1, i) + diagonal(j + 1, i + 1);
    return;
  }
  auto sum = [&](const float* f, int i) { return f[i] + f[i + 1] + f[n1 + i] + f[n1 + i + 1]; };
  const float* row = x32_.data() + size_t(j) * n1;
  for (int i = 0; i < n1 - 1; ++i) trace[i] = 0.25f * L.plan.trace * sum(row, i);
  for (int c = 0; !shift32_.empty() && c < 2; ++c) {
    const float* shift = shift32_.data() + c * n_ + size_t(j) * n1;
    for (int i = 0; i < n1 - 1; ++i) trace[i] += sum(shift, i);
  }
}

void PlanarHierarchy::estimate_eigenvalue(Level& L) {
  const size_t n = 2 * size_t(L.n0) * L.n1;
  Field residual, z, product;
  for (Field* f : {&residual, &z, &product}) f->allocate(n, padded(L.n1));
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
    stop_if_interrupted();
    for_rows(L.n0, L.n1, [&](int begin, int end) { k.patch(L.patch, L.rows(residual), 0.f, 1.f, L.rows(z), begin, end); });
    lanczos.direction(dot(residual.data, z.data));
    if (lanczos.ended) break;
    scale_add(1, z.data, lanczos.beta, L.d.data);
    for_rows(L.n0, L.n1, [&](int begin, int end) {
      residual_minus_product(L, L.rows(L.d), L.rows(L.s), L.rows(product), begin, end);  // -A d, for s is still zero
    });
    lanczos.step(-dot(L.d.data, product.data));
    if (lanczos.ended) break;
    scale_add(lanczos.alpha, product.data, 1, residual.data);
  }
  L.lmax = lanczos.largest();
  std::fill(L.d.memory.begin(), L.d.memory.end(), 0.f);
}

// --------------------------------------------------------------------------------------------------- V-cycle

void PlanarHierarchy::cycle() {
  const size_t last = levels_.size() - 1;
  for (size_t l = 0; l < last; ++l) {
    presmooth(*levels_[l]);
    restrict(*levels_[l], *levels_[l + 1]);
  }
  coarse_solve();
  for (size_t l = last; l-- > 0;) {
    prolong(*levels_[l], *levels_[l + 1]);
    postsmooth(*levels_[l]);
  }
}

// x = smoothing of r from zero, s = r - A x.
void PlanarHierarchy::presmooth(Level& L) { smooth(L, false); }

// Right-hand side of the coarse level from the residual s.
void PlanarHierarchy::restrict(const Level& L, Level& C) {
  for_rows(C.n0, C.n1 * 2, [&](int begin, int end) {
    kernels().cycle->restrict_rows(L.transfer, L.s.data, C.r.data, begin, end);
    C.fixed.clear(C.rows(C.r), begin, end);
  });
}

void PlanarHierarchy::coarse_solve() { coarsest_->solve(levels_.back()->r.data, levels_.back()->x.data); }

// Correction d from the solution of the coarse level.
void PlanarHierarchy::prolong(Level& L, const Level& C) {
  for_rows(C.n0 - 1, C.n1 * 2, [&](int begin, int end) {
    kernels().cycle->prolong_rows(L.transfer, C.x.data, L.d.data, begin, end);
    L.fixed.clear(L.rows(L.d), L.plan.a0.first[begin], end < C.n0 - 1 ? L.plan.a0.first[end] : L.n0);
  });
}

// x = x + d, smoothed.
void PlanarHierarchy::postsmooth(Level& L) { smooth(L, true); }

// out = r - A d at rows [begin, end)
void PlanarHierarchy::residual_minus_product(const Level& L, Rows<const float> d, Rows<const float> r, Rows<float> out,
                                       int begin, int end) const {
  const Cycle& k = *kernels().cycle;
  if (L.matrix.data) {
    k.stencil_residual_minus_product(L.matrix, d, r, out, begin, end);
  } else {
    k.residual_minus_product(form32_, x32_.data(), shift32_.empty() ? nullptr : shift32_.data(), d, r, out, begin, end);
    L.fixed.clear(out, begin, end);
  }
}

// Chebyshev smoothing: from zero, which leaves x and its residual s of the right-hand side r; or, `after` the coarse levels,
// of x + d, where s is still the residual of x.
//
// This is a temporally blocked sweep: all steps of the smoothing are done on a block of rows before the next block, each
// step one row behind the one before, so that main memory is read by the first step and written by the last only. Between
// them the rows of the direction d and of the residual t stand in two windows that fit in the processor's own cache. Threads
// share the rows out in bands, and each computes the few rows beyond its band that it needs by itself.
void PlanarHierarchy::smooth(Level& L, bool after) {
  const int stages = 2 * int(smoother_.size()), n0 = L.n0, n1 = L.n1;
  const size_t row_bytes = sizeof(float) * n1 * (L.matrix.data ? 10 + kPlanes : 12);  // of all fields that a row reads
  int slots = 8;
  while (slots < int(std::clamp(kCache / row_bytes, kFewestRows, kMostRows)) + stages + 2) slots *= 2;
  const int block = slots - stages - 2, bands = band_count(n0, n1);
  const size_t room = 2 * size_t(padded(n1)) + 2 * size_t(slots) * n1;
  windows_.resize(std::max(windows_.size(), size_t(bands)));
  for (Floats& w : windows_)
    if (w.size() < 2 * room) w.assign(2 * room, 0.f);
  const Cycle& kernel = *kernels().cycle;
  const Rows<float> x = L.rows(L.x), correction = L.rows(L.d), r = L.rows(L.r), s = L.rows(L.s);

#pragma omp parallel for schedule(static) num_threads(bands) if (bands > 1)
  for (int band = 0; band < bands; ++band) {
    const int begin = int(long(n0) * band / bands), end = int(long(n0) * (band + 1) / bands);
    auto window = [&](int k) {
      return Rows<float>{windows_[band].data() + k * room + padded(n1), size_t(slots) * n1, n1, unsigned(slots - 1)};
    };
    const Rows<float> d = window(0), t = window(1);
    auto add_to_x = [&](Rows<float> v, bool x_is_set, int from, int to) {
      for (int j = std::max(from, begin); j < std::min(to, end); ++j)
        for (int c = 0; c < 2; ++c) kernel.scale_add(1.f, v.row(c, j), float(x_is_set), x.row(c, j), n1);
    };
    temporally_blocked_sweep(n0, begin, end, stages, block, [&](int stage, int from, int to) {
      const bool update = stage % 2 == int(after), first = stage <= int(!after), last = stage == stages - 1;
      if (update) {
        const auto [momentum, gain] = smoother_[stage / 2];
        kernel.patch(L.patch, first ? r : t, float(momentum), float(gain / L.lmax), d, from, to);
        add_to_x(d, stage > 0, from, to);
      } else if (after && stage == 0) {
        residual_minus_product(L, correction, s, t, from, to);
        add_to_x(correction, true, from, to);
      } else {
        residual_minus_product(L, d, first ? r : t, last ? s : t, from, to);
      }
    });
  }
}

// ------------------------------------------------------------------------------------------------ the finest level

const FixedDofs& PlanarHierarchy::fixed() const { return levels_[0]->fixed; }
float* PlanarHierarchy::residual() { return levels_[0]->r.data; }
float* PlanarHierarchy::solution() { return levels_[0]->x.data; }

double PlanarHierarchy::apply_dot(const double* p, double* q, const FixedDofs& fixed) const {
  const double* shift = shift_.empty() ? nullptr : shift_.data();
  return sum_rows(form_.n0, form_.n1, [&](int begin, int end) {
    const double s = kernels().outer->apply_dot(form_, x_.data(), shift, p, q, begin, end);
    fixed.clear(q, form_.n0, form_.n1, begin, end);
    return s;
  });
}

std::vector<double> PlanarHierarchy::eigenvalue_bounds() const {
  std::vector<double> bounds;
  for (size_t l = 0; l + 1 < levels_.size(); ++l) bounds.push_back(levels_[l]->lmax);
  return bounds;
}

size_t PlanarHierarchy::bytes() const {
  size_t total = sizeof(double) * (x_.size() + shift_.size()) + sizeof(float) * (x32_.size() + shift32_.size());
  for (const Floats& w : windows_) total += sizeof(float) * w.size();
  for (const auto& L : levels_)
    total += sizeof(float) * (L->regular.size() + L->irregular.size() + L->matrix_memory.size() + L->patch_scale.size() +
                              L->patch_special.size() + L->x.memory.size() + L->d.memory.size() + L->r.memory.size() +
                              L->s.memory.size());
  return total + sizeof(double) * coarsest_->band.size();
}

}  // namespace elastofast
