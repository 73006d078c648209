#include "multigrid.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "banded.h"
#include "hierarchy.h"
#include "lanczos.h"
#include "parallel.h"

namespace elastofast {

namespace {

// Zeroed memory that begins on a cache line, so that vector loads do not straddle two.
class AlignedFloats {
 public:
  void allocate(size_t n) {
    memory_.assign(n + 16, 0.f);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    offset_ = (64 - address % 64) % 64 / sizeof(float);
  }
  float* data() { return memory_.data() + offset_; }
  size_t size() const { return memory_.size(); }
  void clear() { std::fill(memory_.begin(), memory_.end(), 0.f); }

 private:
  std::vector<float> memory_;
  size_t offset_ = 0;
};

// A level vector: two planes of nodes with room around them, because stencil rows read past the edges.
struct Field {
  AlignedFloats memory;
  float* data = nullptr;
  void allocate(int n0, int n1) {
    const size_t pad = padded(n1);
    memory.allocate(2 * size_t(n0) * n1 + 2 * pad);
    data = memory.data() + pad;
  }
};

// Cell matrices of a whole level, row after row; not initialised, for the rows are written once and whole.
struct CellMatrices {
  int cells0 = 0, cells1 = 0, ld = 0;
  std::unique_ptr<double[]> data;
  void allocate(int c0, int c1) {
    cells0 = c0, cells1 = c1, ld = padded(c1);
    data.reset(new double[size_t(c0) * kEntries * ld]);
  }
  double* row(int j) { return data.get() + size_t(j) * kEntries * ld; }
};

}  // namespace

struct Multigrid::Level {
  int n0 = 0, n1 = 0;
  Axis a0, a1;  // towards the next coarser level
  std::vector<float> regular, irregular;
  Transfer<float> transfer{};
  AlignedFloats matrix_memory, smoother_memory;  // empty on the finest level
  Stencil<float> matrix{}, smoother{};
  FixedDofs fixed;
  Field x, d, r;
  double lmax = 1;

  void allocate(int rows, int columns) {
    n0 = rows, n1 = columns;
    x.allocate(n0, n1), d.allocate(n0, n1), r.allocate(n0, n1);
  }

  // Stored stencil of the assembled cell matrices, and the sum of the inverted 4-node blocks as another.
  void assemble(CellMatrices& cells) {
    matrix = {n0, n1, nullptr};
    matrix_memory.allocate(matrix.row_size() * n0);
    matrix.data = matrix_memory.data();
    smoother = matrix;
    smoother_memory.allocate(matrix.row_size() * n0);
    smoother.data = smoother_memory.data();
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
        write_row(matrix, j, planes.data(), ld);
      }
    });
    for_rows(n0, n1 * 8, [&](int begin, int end) {
      const int lanes = padded(m1);
      std::vector<double> block(size_t(kEntries) * lanes);
      std::vector<float> rows[2], sums[2];  // stencil rows j and j + 1: of the matrix, and of the smoother
      for (int k = 0; k < 2; ++k) rows[k].resize(size_t(kPlanes) * ld), sums[k].resize(size_t(kPlanes) * ld);
      const int start = std::max(begin - 1, 0);
      read_row(matrix, start, rows[start & 1].data(), ld);
      for (int j = start; j < end; ++j) {
        std::vector<float>*upper[2] = {&rows[j & 1], &sums[j & 1]}, *lower[2] = {&rows[~j & 1], &sums[~j & 1]};
        std::fill(lower[1]->begin(), lower[1]->end(), 0.f);
        if (j < m0) {
          read_row(matrix, j + 1, lower[0]->data(), ld);
          each_stencil_entry([&](int p, int q, int row, int plane, int shift) {
            const float* from = (row ? lower : upper)[0]->data() + size_t(plane) * ld + shift;
            double* to = block.data() + size_t(entry(p, q)) * lanes;
            for (int c = 0; c < m1; ++c) to[c] = from[c];
          });
          kernels().setup->invert(block.data(), lanes, m1);
          each_stencil_entry([&](int p, int q, int row, int plane, int shift) {
            const double* from = block.data() + size_t(entry(p, q)) * lanes;
            float* to = (row ? lower : upper)[1]->data() + size_t(plane) * ld + shift;
            for (int c = 0; c < m1; ++c) to[c] += float(from[c]);
          });
        }
        if (j >= begin) write_row(smoother, j, upper[1]->data(), ld);
      }
    });
  }

  static void write_row(const Stencil<float>& A, int j, const float* planes, int ld) {
    for (int b = 0; b < blocks(A.n1); ++b)
      for (int p = 0; p < kPlanes; ++p)
        std::copy_n(planes + size_t(p) * ld + b * kBlockNodes, kBlockNodes, A.block(j, b) + p * kBlockNodes);
  }
  static void read_row(const Stencil<float>& A, int j, float* planes, int ld) {
    for (int b = 0; b < blocks(A.n1); ++b)
      for (int p = 0; p < kPlanes; ++p)
        std::copy_n(A.block(j, b) + p * kBlockNodes, kBlockNodes, planes + size_t(p) * ld + b * kBlockNodes);
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
                     long pin, const double* mode, MultigridOptions options)
    : form_(form), options_(options), n_(size_t(form.n0) * form.n1), x_(x, x + n_), pin_(pin) {
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
  std::vector<double> scaled(n_), share;
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
          const int cells = (j > 0 && j < n0 - 1 ? 2 : 1) * (i > 0 && i < n1 - 1 ? 2 : 1);
          shift32_[at] = float(shift[at] / modulus_);
          share[at] = shift[at] / modulus_ / cells;
        }
  }
  if (pin_ >= 0) {
    translation_[0] = mode[0], translation_[1] = mode[n_];
    bool constant = !shift;
    for (int c = 0; c < 2 && constant; ++c)
      constant = std::all_of(mode + c * n_, mode + (c + 1) * n_, [&](double v) { return v == translation_[c]; });
    if (!constant) mode_.assign(mode, mode + 2 * n_);
  }
  r_.resize(2 * n_), p_.resize(2 * n_), q_.resize(2 * n_);

  // the hierarchy does not know of the pin
  std::vector<uint8_t> mask(fixed, fixed + 2 * n_);
  fixed_.collect(mask, n0, n1);
  if (pin_ >= 0) mask[pin_] = 0;
  const std::vector<uint8_t> finest = mask;

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
    if (!Coarsening::small(N.n0, N.n1)) {
      N.assemble(fine);
      estimate_eigenvalue(N);
    }
  }
  coarsest_.reset(new Coarsest(fine, pin_ < 0 ? 0.0 : 1e-6));
  if (levels_.size() > 1) {
    set_up_patches(finest, scaled.data(), shift ? share.data() : nullptr);
    estimate_eigenvalue(*levels_[0]);
  }
  if (shift && pin_ >= 0) find_mode();
}

// With a shift the motion that the pin holds is no longer rigid: it is the response of the body without the pin to a
// force there, scaled to be one at the pin.
void Multigrid::find_mode() {
  const long pin = pin_;
  pin_ = -1;
  FixedDofs with_pin = levels_[0]->fixed;
  std::swap(with_pin, fixed_);
  std::vector<double> load(2 * n_, 0.0);
  load[pin] = 1;
  std::fill(mode_.begin(), mode_.end(), 0.0);
  solve(load.data(), mode_.data(), 1e-3, 50, true);
  std::swap(with_pin, fixed_);
  pin_ = pin;
  const double at_pin = mode_[pin];
  for (double& v : mode_) v /= at_pin;
}

void Multigrid::set_up_patches(const std::vector<uint8_t>& fixed, const double* x, const double* share) {
  const Level& L = *levels_[0];
  const int n0 = form_.n0, n1 = form_.n1, m0 = n0 - 1, m1 = n1 - 1;
  const Setup& setup = *kernels().setup;
  const size_t cells = size_t(m0) * m1;

  const SpecialCells special(fixed, n0, n1);
  patch_row_ = special.row, patch_col_ = special.column;
  patch_special_.resize(patch_col_.size() * kEntries);
  const int ld = padded(m1);
  for_rows(m0, n1, [&](int begin, int end) {
    std::vector<double> memory(size_t(3) * kEntries * ld);
    std::vector<double> blocks;
    int made = -2;
    for (int j = begin; j < end; ++j) {
      std::vector<const double*> rows(3, nullptr);
      for (int r = std::max(j - 1, 0); r <= std::min(j + 1, m0 - 1); ++r) {
        double* planes = memory.data() + size_t(r % 3) * kEntries * ld;
        if (r > made) {
          setup.cell_matrices(form_, x, share, r, planes, ld);
          L.fixed.clear_cells(planes, ld, m1, r);
          made = r;
        }
        rows[r - j + 1] = planes;
      }
      const int count = patch_row_[j + 1] - patch_row_[j], lanes = padded(count);
      blocks.assign(size_t(kEntries) * lanes, 0.0);
      for (int k = 0; k < count; ++k) {
        double block[kEntries];
        const int i = patch_col_[patch_row_[j] + k];
        patch_block([&](int dj, int di) { return rows[dj + 1] && i + di >= 0 && i + di < m1; },
                    [&](int dj, int di, int e) { return rows[dj + 1][size_t(e) * ld + i + di]; }, block);
        for (int p = 0; p < 8; ++p)
          if (block[entry(p, p)] == 0) block[entry(p, p)] = 1;  // fixed dofs, whose residual is zero
        for (int e = 0; e < kEntries; ++e) blocks[size_t(e) * lanes + k] = block[e];
      }
      setup.invert(blocks.data(), lanes, count);
      for (int k = 0; k < count; ++k)
        for (int e = 0; e < kEntries; ++e)
          patch_special_[size_t(patch_row_[j] + k) * kEntries + e] = float(blocks[size_t(e) * lanes + k]);
    }
  });

  double p[4], q[4], r[4];
  form_.reduced ? patch_modes<true>(form_.law, !share, p, q, r) : patch_modes<false>(form_.law, !share, p, q, r);
  std::copy_n(p, 4, patch_.p), std::copy_n(q, 4, patch_.q), std::copy_n(r, 4, patch_.r);
  patch_.n0 = n0, patch_.n1 = n1;
  patch_scale_.resize(cells);
  if (share) patch_shift0_.resize(cells), patch_shift1_.resize(cells);
  for_rows(m0, n1, [&](int begin, int end) {
    for (int j = begin; j < end; ++j)
      for (int i = 0; i < m1; ++i) {
        const size_t c = size_t(j) * m1 + i, a = size_t(j) * n1 + i;
        const float sum = float(x[a] + x[a + 1] + x[a + n1] + x[a + n1 + 1]);
        patch_scale_[c] = 4 / sum;
        if (share) {
          const float* s = shift32_.data() + a;
          const float* t = s + n_;
          patch_shift0_[c] = (s[0] + s[1] + s[n1] + s[n1 + 1]) / sum;
          patch_shift1_[c] = (t[0] + t[1] + t[n1] + t[n1 + 1]) / sum;
        }
      }
  });
  for (int j = 0; j < m0; ++j)
    for (int k = patch_row_[j]; k < patch_row_[j + 1]; ++k) patch_scale_[size_t(j) * m1 + patch_col_[k]] = 0;
  patch_.scale = patch_scale_.data();
  patch_.shift0 = share ? patch_shift0_.data() : nullptr;
  patch_.shift1 = share ? patch_shift1_.data() : nullptr;
  patch_.special_row = patch_row_.data();
  patch_.special_col = patch_col_.data();
  patch_.special = patch_special_.data();
}

void Multigrid::update(Level& L, const float* r, bool first, float a, float b, float* d, float* y) {
  const Kernels<float>& k = *kernels().f32;
  for_rows(L.n0, L.n1, [&](int begin, int end) {
    if (L.smoother.data)
      k.stencil_update(L.smoother, r, first, a, b, d, y, begin, end);
    else
      k.patch(patch_, r, first, a, b, d, y, begin, end);
  });
}

void Multigrid::subtract(Level& L, bool add_to_solution) {
  const Kernels<float>& k = *kernels().f32;
  const size_t n = size_t(L.n0) * L.n1;
  for_rows(L.n0, L.n1, [&](int begin, int end) {
    if (L.matrix.data) {
      k.stencil_subtract(L.matrix, L.d.data, L.r.data, begin, end);
    } else {
      k.subtract(form32_, x32_.data(), shift32_.empty() ? nullptr : shift32_.data(), L.d.data, L.r.data, begin, end);
      L.fixed.clear(L.r.data, L.n0, L.n1, begin, end);
    }
    if (add_to_solution)
      for (int c = 0; c < 2; ++c) {
        float* x = L.x.data + c * n;
        const float* d = L.d.data + c * n;
        for (size_t i = size_t(begin) * L.n1; i < size_t(end) * L.n1; ++i) x[i] += d[i];
      }
  });
}

void Multigrid::smooth(Level& L, bool zero_guess, bool keep_residual) {
  const double hi = L.lmax, lo = hi / options_.ratio, theta = (hi + lo) / 2, delta = (hi - lo) / 2;
  const double sigma = theta / delta;
  double rho = 1 / sigma;
  update(L, L.r.data, zero_guess, 0.f, float(1 / theta), L.d.data, L.x.data);
  for (int k = 1; k < options_.degree; ++k) {
    subtract(L, false);
    const double next = 1 / (2 * sigma - rho);
    update(L, L.r.data, false, float(next * rho), float(2 * next / delta), L.d.data, L.x.data);
    rho = next;
  }
  if (keep_residual) subtract(L, false);
}

void Multigrid::cycle(size_t l) {
  Level& L = *levels_[l];
  if (l + 1 == levels_.size()) {
    coarsest_->solve(L.r.data, L.x.data);
    return;
  }
  Level& C = *levels_[l + 1];
  const Kernels<float>& k = *kernels().f32;
  smooth(L, true, true);
  for_rows(C.n0, C.n1 * 2, [&](int begin, int end) {
    k.restrict_rows(L.transfer, L.r.data, C.r.data, begin, end);
    C.fixed.clear(C.r.data, C.n0, C.n1, begin, end);
  });
  cycle(l + 1);
  for_rows(C.n0 - 1, C.n1 * 2, [&](int begin, int end) {
    k.prolong_rows(L.transfer, C.x.data, L.d.data, begin, end);
    L.fixed.clear(L.d.data, L.n0, L.n1, L.a0.first[begin], end < C.n0 - 1 ? L.a0.first[end] : L.n0);
  });
  subtract(L, true);
  smooth(L, false, false);
}

void Multigrid::estimate_eigenvalue(Level& L) {
  const size_t n = 2 * size_t(L.n0) * L.n1;
  Field residual, z, product;
  residual.allocate(L.n0, L.n1), z.allocate(L.n0, L.n1), product.allocate(L.n0, L.n1);
  LanczosStart start;
  for (size_t i = 0; i < n; ++i) residual.data[i] = start.next();
  L.fixed.clear(residual.data, L.n0, L.n1, 0, L.n0);
  const Kernels<float>& k = *kernels().f32;
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
    update(L, residual.data, true, 0.f, 1.f, z.data, product.data);
    lanczos.direction(dot(residual.data, z.data));
    if (lanczos.ended) break;
    scale_add(1, z.data, lanczos.beta, L.d.data);
    scale_add(0, z.data, 0, L.r.data);
    subtract(L, false);  // r = -A d
    lanczos.step(-dot(L.d.data, L.r.data));
    if (lanczos.ended) break;
    scale_add(lanczos.alpha, L.r.data, 1, residual.data);
  }
  L.lmax = lanczos.largest();
  L.d.memory.clear();
  L.r.memory.clear();
}

// One V-cycle for a residual that is zero at every fixed dof. The result is the finest level's solution times the factor
// that is returned; values at fixed dofs mean nothing.
double Multigrid::cycle_on(const double* r, double r_norm) {
  Level& L = *levels_[0];
  const int n0 = form_.n0, n1 = form_.n1;
  if (!(r_norm > 0)) r_norm = 1;
  const double scale = 1 / r_norm;
  double net = 0;  // force along the mode that the pin holds
  for (int c = 0; c < 2; ++c) {
    const double sum = sum_rows(n0, n1, [&](int begin, int end) {
      double part = 0;
      const size_t from = c * n_ + size_t(begin) * n1, to = c * n_ + size_t(end) * n1;
#pragma omp simd reduction(+ : part)
      for (size_t i = from; i < to; ++i) {
        L.r.data[i] = float(r[i] * scale);
        part += r[i];
      }
      return mode_.empty() ? part : kernels().f64->dot(mode_.data() + from, r + from, to - from);
    });
    net += mode_.empty() ? translation_[c] * sum : sum;
  }
  if (pin_ >= 0) L.r.data[pin_] = float(-net * scale);  // a reaction that balances it
  cycle(0);
  if (pin_ >= 0) {
    const float at_pin = L.x.data[pin_];
    for (int c = 0; c < 2; ++c) {
      if (mode_.empty() && translation_[c] == 0) continue;
      for_rows(n0, n1, [&](int begin, int end) {
        const size_t from = c * n_ + size_t(begin) * n1, to = c * n_ + size_t(end) * n1;
        const float shift = at_pin * float(translation_[c]);
        if (mode_.empty())
          for (size_t i = from; i < to; ++i) L.x.data[i] -= shift;
        else
          for (size_t i = from; i < to; ++i) L.x.data[i] -= float(at_pin * mode_[i]);
      });
    }
  }
  return r_norm / modulus_;
}

// Calls body(i, value of the V-cycle at dof i) over the rows of a chunk; both planes.
template <class Body>
void Multigrid::each_value(double factor, int begin, int end, Body body) const {
  const float* x = levels_[0]->x.data;
  for (int c = 0; c < 2; ++c)
    for (size_t i = c * n_ + size_t(begin) * form_.n1; i < c * n_ + size_t(end) * form_.n1; ++i) body(i, factor * x[i]);
}

void Multigrid::precondition(const double* r, double* z) {
  const int n0 = form_.n0, n1 = form_.n1;
  double norm = 0;
  std::copy(r, r + 2 * n_, r_.begin());
  fixed_.clear(r_.data(), n0, n1, 0, n0);
  for (size_t i = 0; i < 2 * n_; ++i) norm = std::max(norm, std::abs(r_[i]));
  const double factor = cycle_on(r_.data(), norm);
  for_rows(n0, n1, [&](int begin, int end) {
    each_value(factor, begin, end, [&](size_t i, double v) { z[i] = v; });
    fixed_.clear(z, n0, n1, begin, end);
  });
}

double Multigrid::apply_dot(const double* p, double* q) {
  const double* shift = shift_.empty() ? nullptr : shift_.data();
  return sum_rows(form_.n0, form_.n1, [&](int begin, int end) {
    const double s = kernels().f64->apply_dot(form_, x_.data(), shift, p, q, begin, end);
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
  SolveResult result;
  fixed_.clear(x, n0, n1, 0, n0);
  auto residual = [&]() {
    apply_dot(x, q_.data());
    return sum_rows(n0, n1, [&](int begin, int end) {
      double sum = 0;
      for (int c = 0; c < 2; ++c)
        for (size_t i = c * n_ + size_t(begin) * n1; i < c * n_ + size_t(end) * n1; ++i) r_[i] = b[i] - q_[i];
      fixed_.clear(r_.data(), n0, n1, begin, end);
      for (int c = 0; c < 2; ++c)
        for (size_t i = c * n_ + size_t(begin) * n1; i < c * n_ + size_t(end) * n1; ++i) sum += r_[i] * r_[i];
      return sum;
    });
  };
  const double bb = sum_rows(n0, n1, [&](int begin, int end) {  // r_ serves as room for b without its fixed entries
    double sum = 0;
    for (int c = 0; c < 2; ++c)
      std::copy(b + c * n_ + size_t(begin) * n1, b + c * n_ + size_t(end) * n1, r_.begin() + c * n_ + size_t(begin) * n1);
    fixed_.clear(r_.data(), n0, n1, begin, end);
    for (int c = 0; c < 2; ++c)
      for (size_t i = c * n_ + size_t(begin) * n1; i < c * n_ + size_t(end) * n1; ++i) sum += r_[i] * r_[i];
    return sum;
  });
  const double norm = std::sqrt(bb);
  if (norm == 0) {
    std::fill(x, x + 2 * n_, 0.0);
    return result;
  }
  double rr = residual(), first_energy = 0;
  if (energy) {  // the measure of b, so that a good first guess counts
    std::copy(b, b + 2 * n_, p_.begin());
    fixed_.clear(p_.data(), n0, n1, 0, n0);
    const double factor = cycle_on(p_.data(), norm);
    first_energy = sum_rows(n0, n1, [&](int begin, int end) {
      double sum = 0;
      each_value(factor, begin, end, [&](size_t i, double v) { sum += p_[i] * v; });
      return sum;
    });
  }
  // the recursive residual drifts from the true one at tight tolerances: begin again from the true one
  for (int restart = 0; restart < 4; ++restart) {
    double rz = 0;
    bool small = !energy && std::sqrt(rr) <= rtol * norm;
    while (!small && result.iterations < max_iterations) {
      const double factor = cycle_on(r_.data(), std::sqrt(rr));
      const double next = sum_rows(n0, n1, [&](int begin, int end) {
        double sum = 0;
        const float* x32 = levels_[0]->x.data;
        for (int c = 0; c < 2; ++c) {
          const size_t from = c * n_ + size_t(begin) * n1, to = c * n_ + size_t(end) * n1;
#pragma omp simd reduction(+ : sum)
          for (size_t i = from; i < to; ++i) sum += r_[i] * x32[i];
        }
        return factor * sum;
      });
      if (!std::isfinite(next)) {
        result.converged = false;
        result.residual = std::numeric_limits<double>::quiet_NaN();
        return result;
      }
      if (energy && next <= rtol * rtol * first_energy) break;
      const double beta = rz > 0 ? next / rz : 0;
      rz = next;
      for_rows(n0, n1, [&](int begin, int end) {
        each_value(factor, begin, end, [&](size_t i, double v) { p_[i] = v + beta * p_[i]; });
        fixed_.clear(p_.data(), n0, n1, begin, end);
      });
      const double alpha = rz / apply_dot(p_.data(), q_.data());
      rr = sum_rows(n0, n1, [&](int begin, int end) {
        double sum = 0;
        for (int c = 0; c < 2; ++c) {
          const size_t from = c * n_ + size_t(begin) * n1, to = c * n_ + size_t(end) * n1;
#pragma omp simd reduction(+ : sum)
          for (size_t i = from; i < to; ++i) {
            x[i] += alpha * p_[i];
            r_[i] -= alpha * q_[i];
            sum += r_[i] * r_[i];
          }
        }
        return sum;
      });
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
                 sizeof(float) * (x32_.size() + shift32_.size() + patch_scale_.size() + patch_shift0_.size() +
                                  patch_shift1_.size() + patch_special_.size());
  for (const auto& L : levels_)
    total += sizeof(float) * (L->regular.size() + L->irregular.size() + L->matrix_memory.size() +
                              L->smoother_memory.size() + L->x.memory.size() + L->d.memory.size() + L->r.memory.size());
  return total + sizeof(double) * coarsest_->band.size();
}

}  // namespace elastofast
