// Multigrid of multigrid.h for a batch on a device: the same hierarchy, numbers and cycle, as launches of bodies.
//
// A plan holds no device memory. Its caller provides three blocks: constants (written once by the plan), a workspace that
// carries the hierarchy of one batch of moduli, and scratch that is free again after the set-up. So nothing is allocated
// and nothing waits for the device, and launches can be captured.
#pragma once
#include <memory>

#include "hierarchy.h"
#include "multigrid_bodies.h"

namespace elastofast {

// A block of memory that is laid out before it exists: each piece is a byte offset.
class Layout {
 public:
  template <class T>
  size_t take(size_t count) {
    const size_t at = bytes_;
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

struct DeviceMemory {
  char *constants, *workspace, *scratch;
};

class DeviceMultigrid {
 public:
  // fixed: 2N flags; pin: a fixed dof that is kept out of the hierarchy, or -1.
  DeviceMultigrid(const GridForm<double>& form, const uint8_t* fixed, bool shifted, long pin, long batch,
                  Steps smoother);

  size_t constants_bytes() const { return constants_.bytes(); }
  size_t workspace_bytes() const { return workspace_.bytes(); }
  size_t scratch_bytes() const { return scratch_.bytes(); }
  void write_constants(char* out) const;  // in host memory

  // The hierarchy for x and shift (data null without one).
  template <class Queue>
  void set_up(const Queue& queue, const DeviceMemory& m, Fields<const double> x, Fields<const double> shift) const;

  // z = one V-cycle on r. The pin's motion is `mode`, or the translation where that is null; without `pinned` the pin
  // counts as free.
  template <class Queue>
  void precondition(const Queue& queue, const DeviceMemory& m, bool pinned, Fields<const double> mode,
                    const double* translation, const double* r, double* z) const;

  // q = (K(x) + diag(shift)) p, zero at fixed dofs; p must be zero there.
  template <class Queue>
  void apply(const Queue& queue, const DeviceMemory& m, bool pinned, Fields<const double> x, const double* shift,
             const double* p, double* q) const;

  // Where in the workspace the eigenvalue bound of a level lies, one double a member.
  size_t bound_offset(size_t level) const { return levels_[level].lmax; }
  size_t level_count() const { return levels_.size(); }

 private:
  struct Level {
    int n0, n1;
    std::vector<uint8_t> mask;
    Axis a0, a1;  // towards the next coarser level
    SpecialCells special;
    Patch<float> patch{};  // the numbers; the pointers depend on the memory
    float whole = 0;       // trace of the homogeneous block
    size_t fixed, special_row, special_column;  // constants
    size_t first0, width0, place0, place32_0, first1, width1, place1, place32_1;
    size_t x, d, r, lmax, regular, irregular, matrix, patch_scale, patch_special;  // workspace
    long regular_size = 0, irregular_size = 0;
    size_t cells;  // scratch
    long nodes() const { return long(n0) * n1; }
  };

  template <class T>
  static T* at(char* block, size_t offset) { return reinterpret_cast<T*>(block + offset); }
  AxisView axis0(const Level& L, const DeviceMemory& m) const;
  AxisView axis1(const Level& L, const DeviceMemory& m) const;
  BatchTransfer transfer(const Level& L, const DeviceMemory& m) const;
  bool dense() const { return shape_.size() <= kDense; }

  template <bool kReduced, class Queue>
  void build(const Queue& queue, const DeviceMemory& m, Fields<const double> x, Fields<const double> shift) const;
  template <class Cells, class Queue>
  void special_cells(const Queue& queue, const DeviceMemory& m, size_t l, Cells cells) const;
  template <class Fine, class Queue>
  void coarsen(const Queue& queue, const DeviceMemory& m, size_t l, Fine fine) const;
  template <class Cells, class Queue>
  void factor(const Queue& queue, const DeviceMemory& m, Cells cells) const;
  template <class Queue>
  void estimate_eigenvalue(const Queue& queue, const DeviceMemory& m, size_t l) const;
  template <class Queue>
  void update(const Queue& queue, const DeviceMemory& m, size_t l, const float* r, Update out) const;
  template <class Queue>
  void subtract(const Queue& queue, const DeviceMemory& m, size_t l, bool add_to_solution) const;
  template <class Queue>
  void smooth(const Queue& queue, const DeviceMemory& m, size_t l, bool zero_guess, bool keep_residual) const;
  template <class Queue>
  void cycle(const Queue& queue, const DeviceMemory& m, size_t l) const;

  static constexpr size_t kDense = 640;  // unknowns up to which the coarsest level is inverted
  GridForm<double> form_;
  GridForm<float> form32_;
  bool shifted_;
  long pin_, batch_;
  Steps smoother_;  // for a largest eigenvalue of one
  std::vector<uint8_t> pinned_;  // fixed dofs, the pin included
  std::vector<Level> levels_;
  Banded shape_{2, 2};
  Layout constants_, workspace_, scratch_;
  size_t pinned_at_;                                                                          // constants
  size_t modulus_, scale_, net_, lanczos_, sums_, x32_, shift32_, band_, inverse_, work_;  // workspace
  size_t residual_, columns_;  // scratch
};

// ---------------------------------------------------------------------------------------------------- layout

inline DeviceMultigrid::DeviceMultigrid(const GridForm<double>& form, const uint8_t* fixed, bool shifted, long pin,
                                        long batch, Steps smoother)
    : form_(form),
      form32_{form.n0, form.n1, form.reduced,
              {float(form.law.g0), float(form.law.g1), float(form.law.lambda), float(form.law.mu)}},
      shifted_(shifted),
      pin_(pin),
      batch_(batch),
      smoother_(std::move(smoother)),
      pinned_(fixed, fixed + 2 * size_t(form.n0) * form.n1) {
  const size_t n = size_t(form.n0) * form.n1, B = size_t(batch);
  levels_.emplace_back();
  levels_[0].n0 = form.n0, levels_[0].n1 = form.n1;
  levels_[0].mask = pinned_;
  if (pin >= 0) levels_[0].mask[pin] = 0;  // the hierarchy does not know of the pin
  Coarsening coarsening(form.n0, form.n1, 2 / form.law.g0, 2 / form.law.g1);
  double cell[kEntries];
  homogeneous_cell(form.law, form.reduced, cell);
  while (!Coarsening::small(levels_.back().n0, levels_.back().n1)) {
    Level next;
    Level& L = levels_.back();
    L.whole = float(patch_modes(cell, L.patch));
    L.patch.n0 = L.n0, L.patch.n1 = L.n1;
    L.special = SpecialCells(L.mask, L.n0, L.n1);
    coarsening.next(L.a0, L.a1);
    coarsen_homogeneous(L.a0.regular > 0, L.a1.regular > 0, cell);
    next.n0 = L.a0.n_coarse, next.n1 = L.a1.n_coarse;
    next.mask = Coarsening::keep(L.mask, L.a0, L.a1);
    const size_t c0 = size_t(next.n0 - 1), c1 = size_t(next.n1 - 1);
    L.regular_size = long(size_t(L.a0.regular) * 16 * padded(int(c1)));
    L.irregular_size = long(64 * (c0 * c1 - size_t(L.a0.regular) * L.a1.regular));
    levels_.push_back(std::move(next));
  }
  shape_ = Banded(levels_.back().n0, levels_.back().n1);

  pinned_at_ = constants_.take<uint8_t>(2 * n);
  modulus_ = workspace_.take<double>(B), scale_ = workspace_.take<double>(B), net_ = workspace_.take<double>(B);
  lanczos_ = workspace_.take<Lanczos>(B);
  sums_ = workspace_.take<double>(B * kSumRoom);
  x32_ = workspace_.take<float>(B * n);
  shift32_ = workspace_.take<float>(shifted ? 2 * B * n : 0);
  for (size_t l = 0; l < levels_.size(); ++l) {
    Level& L = levels_[l];
    const size_t nodes = size_t(L.nodes()), m = size_t(L.n0 - 1) * (L.n1 - 1);
    const bool smoothed = l + 1 < levels_.size(), stored = l > 0 && smoothed;
    L.fixed = constants_.take<uint8_t>(2 * nodes);
    L.special_row = constants_.take<int>(L.special.row.size());
    L.special_column = constants_.take<int>(L.special.column.size());
    L.first0 = constants_.take<int>(L.a0.first.size()), L.width0 = constants_.take<int>(L.a0.width.size());
    L.first1 = constants_.take<int>(L.a1.first.size()), L.width1 = constants_.take<int>(L.a1.width.size());
    L.place0 = constants_.take<double>(L.a0.place.size()), L.place32_0 = constants_.take<float>(L.a0.place.size());
    L.place1 = constants_.take<double>(L.a1.place.size()), L.place32_1 = constants_.take<float>(L.a1.place.size());
    L.x = workspace_.take<float>(2 * B * nodes), L.d = workspace_.take<float>(2 * B * nodes);
    L.r = workspace_.take<float>(2 * B * nodes), L.lmax = workspace_.take<double>(B);
    L.regular = workspace_.take<float>(B * L.regular_size), L.irregular = workspace_.take<float>(B * L.irregular_size);
    L.matrix = workspace_.take<float>(stored ? B * kPlanes * nodes : 0);
    L.patch_scale = workspace_.take<float>(smoothed ? B * m : 0);
    L.patch_special = workspace_.take<float>(B * L.special.column.size() * kEntries);
    L.cells = scratch_.take<double>(l > 0 ? B * kEntries * m : 0);
  }
  const size_t k = shape_.size();
  band_ = workspace_.take<double>(B * shape_.entries());
  inverse_ = workspace_.take<double>(dense() ? B * k * k : 0);
  work_ = workspace_.take<double>(dense() ? 0 : B * k);
  columns_ = scratch_.take<double>(dense() ? B * k * k : 0);
  residual_ = scratch_.take<float>(2 * B * n);
}

inline void DeviceMultigrid::write_constants(char* out) const {
  auto put = [&](size_t offset, const auto& values) { std::copy(values.begin(), values.end(), at<typename std::decay_t<decltype(values)>::value_type>(out, offset)); };
  put(pinned_at_, pinned_);
  for (const Level& L : levels_) {
    put(L.fixed, L.mask);
    put(L.special_row, L.special.row), put(L.special_column, L.special.column);
    put(L.first0, L.a0.first), put(L.width0, L.a0.width), put(L.place0, L.a0.place), put(L.place32_0, L.a0.place32);
    put(L.first1, L.a1.first), put(L.width1, L.a1.width), put(L.place1, L.a1.place), put(L.place32_1, L.a1.place32);
  }
}

inline AxisView DeviceMultigrid::axis0(const Level& L, const DeviceMemory& m) const {
  return {L.a0.n_fine, L.a0.n_coarse, L.a0.regular, at<int>(m.constants, L.first0), at<int>(m.constants, L.width0),
          at<double>(m.constants, L.place0)};
}

inline AxisView DeviceMultigrid::axis1(const Level& L, const DeviceMemory& m) const {
  return {L.a1.n_fine, L.a1.n_coarse, L.a1.regular, at<int>(m.constants, L.first1), at<int>(m.constants, L.width1),
          at<double>(m.constants, L.place1)};
}

inline BatchTransfer DeviceMultigrid::transfer(const Level& L, const DeviceMemory& m) const {
  return {{axis0(L, m), axis1(L, m), at<float>(m.workspace, L.regular), at<float>(m.workspace, L.irregular),
           at<float>(m.constants, L.place32_0), at<float>(m.constants, L.place32_1)},
          L.regular_size, L.irregular_size};
}

// ---------------------------------------------------------------------------------------------------- set-up

template <class Queue>
void DeviceMultigrid::set_up(const Queue& queue, const DeviceMemory& m, Fields<const double> x,
                             Fields<const double> shift) const {
  form_.reduced ? build<true>(queue, m, x, shift) : build<false>(queue, m, x, shift);
}

template <bool kReduced, class Queue>
void DeviceMultigrid::build(const Queue& queue, const DeviceMemory& m, Fields<const double> x,
                            Fields<const double> shift) const {
  const Level& F = levels_[0];
  const long n = F.nodes();
  double* modulus = at<double>(m.workspace, modulus_);
  launch_sum(queue, batch_, n, ModulusTerm{x}, at<double>(m.workspace, sums_), MeanModulus{modulus, n});
  float *x32 = at<float>(m.workspace, x32_), *shift32 = shifted_ ? at<float>(m.workspace, shift32_) : nullptr;
  queue.each(batch_, n, ScaleBody{x, shift, modulus, n, x32, shift32});

  const FinestCells<kReduced> finest{form_.law, F.n0, F.n1, x, shift, modulus, at<uint8_t>(m.constants, F.fixed)};
  auto stored = [&](const Level& L) { return StoredCells{L.n0 - 1, L.n1 - 1, at<double>(m.scratch, L.cells)}; };
  for (size_t l = 0; l + 1 < levels_.size(); ++l)
    l ? coarsen(queue, m, l, stored(levels_[l])) : coarsen(queue, m, l, finest);
  levels_.size() > 1 ? factor(queue, m, stored(levels_.back())) : factor(queue, m, finest);
  if (levels_.size() == 1) return;

  for (size_t l = 0; l + 1 < levels_.size(); ++l) {
    const Level& L = levels_[l];
    const long cells = long(L.n0 - 1) * (L.n1 - 1);
    float* scale = at<float>(m.workspace, L.patch_scale);
    if (l) {
      float* matrix = at<float>(m.workspace, L.matrix);
      queue.each(batch_, L.nodes(), AssembleBody{stored(L), matrix});
      queue.each(batch_, cells, StencilScaleBody{L.n0, L.n1, matrix, L.whole, scale});
      special_cells(queue, m, l, stored(L));
    } else {
      queue.each(batch_, cells, FinestScaleBody{L.n0, L.n1, x32, shift32, L.whole, scale});
      special_cells(queue, m, l, finest);
    }
  }
  for (size_t l = 0; l + 1 < levels_.size(); ++l) estimate_eigenvalue(queue, m, l);
}

template <class Cells, class Queue>
void DeviceMultigrid::special_cells(const Queue& queue, const DeviceMemory& m, size_t l, Cells cells) const {
  const Level& L = levels_[l];
  const long count = long(L.special.column.size());
  queue.each(batch_, count,
             SpecialBody<Cells>{cells, at<int>(m.constants, L.special_row), at<int>(m.constants, L.special_column),
                                L.n0 - 1, L.n1 - 1, count, at<float>(m.workspace, L.patch_scale),
                                at<float>(m.workspace, L.patch_special)});
}

template <class Fine, class Queue>
void DeviceMultigrid::coarsen(const Queue& queue, const DeviceMemory& m, size_t l, Fine fine) const {
  const Level &L = levels_[l], &C = levels_[l + 1];
  float* regular = at<float>(m.workspace, L.regular);
  const CoarsenTask<Fine> task{fine,
                               axis0(L, m),
                               axis1(L, m),
                               {C.n0 - 1, C.n1 - 1, at<double>(m.scratch, C.cells)},
                               at<uint8_t>(m.constants, C.fixed),
                               regular,
                               at<float>(m.workspace, L.irregular),
                               L.regular_size,
                               L.irregular_size};
  if (L.regular_size) queue.zero(regular, sizeof(float) * batch_ * L.regular_size);
  const long count = long(L.a0.regular) * L.a1.regular;
  if (count) queue.each(batch_, count, CoarsenRegular<Fine>{task});
  queue.each(batch_, L.irregular_size / 64, CoarsenIrregular<Fine>{task});
}

template <class Cells, class Queue>
void DeviceMultigrid::factor(const Queue& queue, const DeviceMemory& m, Cells cells) const {
  double* band = at<double>(m.workspace, band_);
  queue.each(batch_, 1, FactorBody<Cells>{cells, shape_, pin_ < 0 ? 0.0 : 1e-6, band});
  if (dense())
    queue.each(batch_, long(shape_.size()),
               InverseBody{shape_, band, at<double>(m.scratch, columns_), at<double>(m.workspace, inverse_)});
}

template <class Queue>
void DeviceMultigrid::estimate_eigenvalue(const Queue& queue, const DeviceMemory& m, size_t l) const {
  const Level& L = levels_[l];
  const long n = 2 * L.nodes();
  Lanczos* state = at<Lanczos>(m.workspace, lanczos_);
  float *residual = at<float>(m.scratch, residual_), *z = at<float>(m.workspace, L.x), *d = at<float>(m.workspace, L.d),
        *r = at<float>(m.workspace, L.r);
  double* sums = at<double>(m.workspace, sums_);
  queue.each(batch_, n, StartBody{residual, at<uint8_t>(m.constants, L.fixed), n, state});
  for (int step = 0; step < Lanczos::kSteps; ++step) {
    update(queue, m, l, residual, {z, z, L.nodes(), true, 0, 1, nullptr});
    launch_sum(queue, batch_, n, DotTerm{residual, z, n}, sums, LanczosDirection{state});
    queue.each(batch_, n, DirectionBody{state, z, d, r, n});
    subtract(queue, m, l, false);  // r = -A d
    launch_sum(queue, batch_, n, DotTerm{d, r, n}, sums, LanczosStep{state});
    queue.each(batch_, n, DescendBody{state, r, residual, n});
  }
  queue.each(batch_, 1, LargestBody{state, at<double>(m.workspace, L.lmax)});
}

// ---------------------------------------------------------------------------------------------------- V-cycle

template <class Queue>
void DeviceMultigrid::update(const Queue& queue, const DeviceMemory& m, size_t l, const float* r, Update out) const {
  const Level& L = levels_[l];
  Patch<float> patch = L.patch;
  patch.scale = at<float>(m.workspace, L.patch_scale);
  patch.special_row = at<int>(m.constants, L.special_row);
  patch.special_col = at<int>(m.constants, L.special_column);
  patch.special = at<float>(m.workspace, L.patch_special);
  const Strips strips = Strips::over(L.n0, L.n1, batch_, queue.width);
  queue.each(batch_, strips.count(), PatchBody{patch, long(L.special.column.size()), strips, r, out});
}

template <class Queue>
void DeviceMultigrid::subtract(const Queue& queue, const DeviceMemory& m, size_t l, bool add_to_solution) const {
  const Level& L = levels_[l];
  const float* d = at<float>(m.workspace, L.d);
  const Residual out{at<float>(m.workspace, L.r), L.nodes(), d, l || !shifted_ ? nullptr : at<float>(m.workspace, shift32_),
                     at<uint8_t>(m.constants, L.fixed), add_to_solution ? at<float>(m.workspace, L.x) : nullptr};
  if (l > 0)
    queue.each(batch_, L.nodes(), StencilBody<Residual>{L.n0, L.n1, at<float>(m.workspace, L.matrix), d, out});
  else
    launch_force<float>(queue, form32_, batch_, Fields<const float>{at<float>(m.workspace, x32_), L.nodes()}, d, out);
}

template <class Queue>
void DeviceMultigrid::smooth(const Queue& queue, const DeviceMemory& m, size_t l, bool zero_guess,
                             bool keep_residual) const {
  const Level& L = levels_[l];
  const float* r = at<float>(m.workspace, L.r);
  Update out{at<float>(m.workspace, L.d), at<float>(m.workspace, L.x), L.nodes(), zero_guess, 0, 0,
             at<double>(m.workspace, L.lmax)};
  for (size_t k = 0; k < smoother_.size(); ++k) {
    if (k) subtract(queue, m, l, false);
    out.first = zero_guess && k == 0;
    out.a = float(smoother_[k].first), out.b = float(smoother_[k].second);
    update(queue, m, l, r, out);
  }
  if (keep_residual) subtract(queue, m, l, false);
}

template <class Queue>
void DeviceMultigrid::cycle(const Queue& queue, const DeviceMemory& m, size_t l) const {
  const Level& L = levels_[l];
  if (l + 1 == levels_.size()) {
    const float* r = at<float>(m.workspace, L.r);
    float* x = at<float>(m.workspace, L.x);
    if (dense())
      queue.each(batch_, long(shape_.size()), DenseSolve{long(shape_.size()), at<double>(m.workspace, inverse_), r, x});
    else
      queue.each(batch_, 1, BandedSolve{shape_, at<double>(m.workspace, band_), at<double>(m.workspace, work_), r, x});
    return;
  }
  const Level& C = levels_[l + 1];
  smooth(queue, m, l, true, true);
  const Strips strips = Strips::over(C.n0, C.n1, batch_, queue.width);
  queue.each(batch_, strips.count(),
             RestrictBody{transfer(L, m), strips, at<float>(m.workspace, L.r),
                          {at<float>(m.workspace, C.r), C.nodes(), nullptr, nullptr, at<uint8_t>(m.constants, C.fixed)}});
  cycle(queue, m, l + 1);
  queue.each(batch_, long(C.n0 - 1) * (C.n1 - 1),
             ProlongBody{transfer(L, m), at<float>(m.workspace, C.x), at<float>(m.workspace, L.d),
                         at<uint8_t>(m.constants, L.fixed)});
  subtract(queue, m, l, true);
  smooth(queue, m, l, false, false);
}

template <class Queue>
void DeviceMultigrid::precondition(const Queue& queue, const DeviceMemory& m, bool pinned, Fields<const double> mode,
                                   const double* translation, const double* r, double* z) const {
  const Level& L = levels_[0];
  const long n = L.nodes();
  const uint8_t* fixed = at<uint8_t>(m.constants, pinned ? pinned_at_ : L.fixed);
  const Pin pin{pinned ? pin_ : -1, mode, {translation[0], translation[1]}};
  double *scale = at<double>(m.workspace, scale_), *net = at<double>(m.workspace, net_);
  launch_sum(queue, batch_, 2 * n, LoadTerm{r, fixed, n, pin}, at<double>(m.workspace, sums_), LoadSums{scale, net});
  queue.each(batch_, 2 * n, LowerBody{r, fixed, n, pin, scale, net, at<float>(m.workspace, L.r)});
  cycle(queue, m, 0);
  queue.each(batch_, 2 * n,
             RaiseBody{at<float>(m.workspace, L.x), fixed, n, pin, scale, at<double>(m.workspace, modulus_), z});
}

template <class Queue>
void DeviceMultigrid::apply(const Queue& queue, const DeviceMemory& m, bool pinned, Fields<const double> x,
                            const double* shift, const double* p, double* q) const {
  const Level& L = levels_[0];
  const uint8_t* fixed = at<uint8_t>(m.constants, pinned ? pinned_at_ : L.fixed);
  launch_force<double>(queue, form_, batch_, x, p, StoreShifted<double>{q, L.nodes(), p, shift, fixed});
}

}  // namespace elastofast
