// Multigrid of multigrid.h for a batch on a device: the same hierarchy, numbers and cycle, as launches of bodies.
//
// Large levels are launched step by step; the small ones at the end of a hierarchy, where launches would take longer than
// the work, run together in one block of threads for each member.
//
// A plan holds no device memory. Its caller provides three blocks: constants (written once by the plan), a workspace that
// carries the hierarchy of one batch of moduli, and scratch that is free again after the set-up. So a cycle allocates
// nothing and waits for nothing, and its launches can be recorded.
#pragma once
#include <vector>

#include "../hierarchy.h"
#include "setup.h"

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
  // fixed: 2N flags; deflated_dof: a fixed dof that is kept out of the hierarchy, or -1.
  DeviceMultigrid(const GridForm<double>& form, const uint8_t* fixed, bool shifted, long deflated_dof, long batch,
                  const Steps& smoother);

  size_t constants_bytes() const { return constants_.bytes(); }
  size_t workspace_bytes() const { return workspace_.bytes(); }
  size_t scratch_bytes() const { return scratch_.bytes(); }
  void write_constants(char* out) const;  // in host memory

  // The hierarchy for x and shift (data null without one).
  template <class Queue>
  void set_up(const Queue& queue, const DeviceMemory& m, Fields<const double> x, Fields<const double> shift) const {
    form_.reduced ? build<true>(queue, m, x, shift) : build<false>(queue, m, x, shift);
  }

  // z = one V-cycle on r. The mode of the deflated dof is `mode`, or the translation where that is null; unless it
  // `deflates`, that dof counts as free. The recording belongs to the workspace.
  template <class Queue>
  void precondition(const Queue& queue, typename Queue::Recording& recording, const DeviceMemory& m, bool deflates,
                    Fields<const double> mode, const double* translation, const double* r, double* z) const;

  // q = (K(x) + diag(shift)) p, zero at fixed dofs; p must be zero there.
  template <class Queue>
  void apply(const Queue& queue, const DeviceMemory& m, bool deflates, Fields<const double> x, const double* shift,
             const double* p, double* q) const;

  // Where in the workspace the eigenvalue bounds of all but the coarsest level lie, one double a member.
  size_t bounds_offset() const { return lmax_; }
  size_t bounds_count() const { return levels_.size() - 1; }

 private:
  struct Level {
    int n0, n1;
    std::vector<uint8_t> mask;
    Axis a0, a1;  // towards the next coarser level
    std::vector<int> special;  // numbers of the special cells
    Patch<float> patch{};      // the numbers; the pointers depend on the memory
    float whole = 0;           // trace of the homogeneous block
    size_t fixed, special_at;  // constants
    size_t first0, width0, place0, place32_0, first1, width1, place1, place32_1;
    size_t x, d, r, regular, irregular, matrix, patch_scale, patch_special;  // workspace
    long regular_size = 0, irregular_size = 0;
    size_t cells, residual;  // scratch
    long nodes() const { return long(n0) * n1; }
  };

  template <class T>
  static T* at(char* block, size_t offset) { return reinterpret_cast<T*>(block + offset); }
  AxisView axis0(const Level& L, const DeviceMemory& m) const;
  AxisView axis1(const Level& L, const DeviceMemory& m) const;
  BatchTransfer transfer(const Level& L, const DeviceMemory& m) const;
  LevelView view(size_t l, const DeviceMemory& m) const;
  CoarsestView coarsest(const DeviceMemory& m) const;
  SmallLevels small_levels(const DeviceMemory& m) const;
  bool dense() const { return shape_.size() <= kDense; }
  StoredCells stored(size_t l, const DeviceMemory& m) const {
    return {levels_[l].n0 - 1, levels_[l].n1 - 1, at<double>(m.scratch, levels_[l].cells)};
  }

  template <bool kReduced, class Queue>
  void build(const Queue& queue, const DeviceMemory& m, Fields<const double> x, Fields<const double> shift) const;
  template <class Cells, class Queue>
  void special_cells(const Queue& queue, const DeviceMemory& m, size_t l, Cells cells) const;
  template <class Fine, class Queue>
  void coarsen(const Queue& queue, const DeviceMemory& m, size_t l, Fine fine) const;
  template <class Cells, class Queue>
  void factor(const Queue& queue, const DeviceMemory& m, Cells cells) const;
  template <class Queue>
  void cycle(const Queue& queue, const DeviceMemory& m) const;

  static constexpr size_t kDense = 640;  // unknowns up to which the coarsest level is inverted
  GridForm<double> form_;
  GridForm<float> form32_;
  bool shifted_;
  long deflated_dof_, batch_;
  Smoother smoother_{};
  std::vector<uint8_t> all_fixed_;
  std::vector<Level> levels_;
  size_t small_;  // the first of the small levels
  Banded shape_{2, 2};
  Layout constants_, workspace_, scratch_;
  size_t all_fixed_at_, modulus_, scale_, net_, lanczos_, lmax_, sums_, x32_, shift32_, band_, inverse_, work_, row_;
};

inline DeviceMultigrid::DeviceMultigrid(const GridForm<double>& form, const uint8_t* fixed, bool shifted, long deflated_dof,
                                        long batch, const Steps& smoother)
    : form_(form),
      form32_{form.n0, form.n1, form.reduced, {float(form.law.g0), float(form.law.g1), float(form.law.lambda), float(form.law.mu)}},
      shifted_(shifted),
      deflated_dof_(deflated_dof),
      batch_(batch),
      all_fixed_(fixed, fixed + 2 * size_t(form.n0) * form.n1) {
  for (const auto& step : smoother) {
    smoother_.keep[smoother_.count] = float(step.first), smoother_.gain[smoother_.count] = float(step.second);
    ++smoother_.count;
  }
  const size_t n = size_t(form.n0) * form.n1, B = size_t(batch);
  levels_.emplace_back();
  levels_[0].n0 = form.n0, levels_[0].n1 = form.n1;
  levels_[0].mask = all_fixed_;
  if (deflated_dof >= 0) levels_[0].mask[deflated_dof] = 0;
  Coarsening coarsening(form.n0, form.n1, 2 / form.law.g0, 2 / form.law.g1);
  double cell[kEntries];
  homogeneous_cell(form.law, form.reduced, cell);
  while (!Coarsening::small(levels_.back().n0, levels_.back().n1)) {
    Level next;
    Level& L = levels_.back();
    L.whole = float(patch_modes(cell, L.patch));
    L.patch.n0 = L.n0, L.patch.n1 = L.n1;
    const SpecialCells special(L.mask, L.n0, L.n1);
    for (int j = 0; j < L.n0 - 1; ++j)
      for (int k = special.row[j]; k < special.row[j + 1]; ++k) L.special.push_back(j * (L.n1 - 1) + special.column[k]);
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
  small_ = levels_.size();
  while (small_ > 0 && levels_[small_ - 1].nodes() <= SmallLevels::kNodes && levels_.size() - small_ < SmallLevels::kMost)
    --small_;

  all_fixed_at_ = constants_.take<uint8_t>(2 * n);
  modulus_ = workspace_.take<double>(B), scale_ = workspace_.take<double>(B), net_ = workspace_.take<double>(B);
  lanczos_ = workspace_.take<Lanczos>(B * levels_.size());
  lmax_ = workspace_.take<double>(B * levels_.size());
  sums_ = workspace_.take<double>(size_t(sum_room(2 * long(n), batch)));
  x32_ = workspace_.take<float>(B * n);
  shift32_ = workspace_.take<float>(shifted ? 2 * B * n : 0);
  const size_t shared = scratch_.take<float>(2 * B * n);  // levels that are launched follow each other
  for (size_t l = 0; l < levels_.size(); ++l) {
    Level& L = levels_[l];
    const size_t nodes = size_t(L.nodes()), m = size_t(L.n0 - 1) * (L.n1 - 1);
    const bool smoothed = l + 1 < levels_.size(), stored = l > 0 && smoothed;
    L.fixed = constants_.take<uint8_t>(2 * nodes);
    L.special_at = constants_.take<int>(L.special.size());
    L.first0 = constants_.take<int>(L.a0.first.size()), L.width0 = constants_.take<int>(L.a0.width.size());
    L.first1 = constants_.take<int>(L.a1.first.size()), L.width1 = constants_.take<int>(L.a1.width.size());
    L.place0 = constants_.take<double>(L.a0.place.size()), L.place32_0 = constants_.take<float>(L.a0.place.size());
    L.place1 = constants_.take<double>(L.a1.place.size()), L.place32_1 = constants_.take<float>(L.a1.place.size());
    L.x = workspace_.take<float>(2 * B * nodes), L.d = workspace_.take<float>(2 * B * nodes);
    L.r = workspace_.take<float>(2 * B * nodes);
    L.regular = workspace_.take<float>(B * L.regular_size), L.irregular = workspace_.take<float>(B * L.irregular_size);
    L.matrix = workspace_.take<float>(stored ? B * kPlanes * nodes : 0);
    L.patch_scale = workspace_.take<float>(smoothed ? B * m : 0);
    L.patch_special = workspace_.take<float>(B * L.special.size() * kEntries);
    L.cells = scratch_.take<double>(l > 0 ? B * kEntries * m : 0);
    L.residual = l < small_ ? shared : scratch_.take<float>(2 * B * nodes);
  }
  const size_t k = shape_.size();
  band_ = workspace_.take<double>(dense() ? 0 : B * shape_.entries());
  inverse_ = workspace_.take<double>(dense() ? B * k * k : 0);
  work_ = workspace_.take<double>(B * k * (dense() ? DenseProduct::kParts : 1));
  row_ = scratch_.take<double>(dense() ? B * (k + 1) : 0);
}

inline void DeviceMultigrid::write_constants(char* out) const {
  auto put = [&](size_t offset, const auto& values) { std::copy(values.begin(), values.end(), at<typename std::decay_t<decltype(values)>::value_type>(out, offset)); };
  put(all_fixed_at_, all_fixed_);
  for (const Level& L : levels_) {
    put(L.fixed, L.mask);
    put(L.special_at, L.special);
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

inline LevelView DeviceMultigrid::view(size_t l, const DeviceMemory& m) const {
  const Level& L = levels_[l];
  LevelView v{};
  v.n0 = L.n0, v.n1 = L.n1;
  v.fixed = at<uint8_t>(m.constants, L.fixed);
  v.x = at<float>(m.workspace, L.x), v.d = at<float>(m.workspace, L.d), v.r = at<float>(m.workspace, L.r);
  v.lmax = at<double>(m.workspace, lmax_) + l * batch_;
  v.lanczos = at<Lanczos>(m.workspace, lanczos_) + l * batch_;
  v.residual = at<float>(m.scratch, L.residual);
  if (l == 0) {
    v.form = form32_, v.x32 = at<float>(m.workspace, x32_);
    v.shift32 = shifted_ ? at<float>(m.workspace, shift32_) : nullptr;
  } else {
    v.matrix = at<float>(m.workspace, L.matrix);
  }
  v.patch = L.patch;
  v.patch.scale = at<float>(m.workspace, L.patch_scale), v.patch.special = at<float>(m.workspace, L.patch_special);
  v.special_count = long(L.special.size());
  v.transfer = transfer(L, m);
  return v;
}

inline CoarsestView DeviceMultigrid::coarsest(const DeviceMemory& m) const {
  return {shape_, dense(), at<double>(m.workspace, band_), at<double>(m.workspace, inverse_),
          at<double>(m.workspace, work_)};
}

inline SmallLevels DeviceMultigrid::small_levels(const DeviceMemory& m) const {
  SmallLevels s{int(levels_.size() - small_), batch_, {}, coarsest(m), smoother_};
  for (size_t l = small_; l < levels_.size(); ++l) s.level[l - small_] = view(l, m);
  return s;
}

// ---------------------------------------------------------------------------------------------------- set-up

template <bool kReduced, class Queue>
void DeviceMultigrid::build(const Queue& queue, const DeviceMemory& m, Fields<const double> x,
                            Fields<const double> shift) const {
  const Level& F = levels_[0];
  const long n = F.nodes();
  double *modulus = at<double>(m.workspace, modulus_), *sums = at<double>(m.workspace, sums_);
  queue.sum(batch_, n, ModulusTerm{x}, sums, MeanModulus{modulus, n});
  float *x32 = at<float>(m.workspace, x32_), *shift32 = shifted_ ? at<float>(m.workspace, shift32_) : nullptr;
  queue.each(batch_, n, ScaleBody{x, shift, modulus, n, x32, shift32});

  const FinestCells<kReduced> finest{form_.law, F.n0, F.n1, x, shift, modulus, at<uint8_t>(m.constants, F.fixed)};
  const size_t last = levels_.size() - 1;
  for (size_t l = 0; l < last; ++l) l ? coarsen(queue, m, l, stored(l, m)) : coarsen(queue, m, l, finest);
  last ? factor(queue, m, stored(last, m)) : factor(queue, m, finest);

  for (size_t l = 0; l < last; ++l) {
    const Level& L = levels_[l];
    const long cells = long(L.n0 - 1) * (L.n1 - 1);
    float* scale = at<float>(m.workspace, L.patch_scale);
    if (l) {
      float* matrix = at<float>(m.workspace, L.matrix);
      queue.each(batch_, L.nodes(), AssembleBody{stored(l, m), matrix});
      queue.each(batch_, cells, StencilScaleBody{L.n0, L.n1, matrix, L.whole, scale});
      special_cells(queue, m, l, stored(l, m));
    } else {
      queue.each(batch_, cells, FinestScaleBody{L.n0, L.n1, x32, shift32, L.whole, scale});
      special_cells(queue, m, l, finest);
    }
  }
  for (size_t l = 0; l < last && l < small_; ++l) lanczos_steps(queue, batch_, view(l, m), sums);
  if (small_ < last) queue.together(batch_ * long(last - small_), SmallLanczos{small_levels(m)});
  queue.each(1, batch_ * long(last), LargestBody{at<Lanczos>(m.workspace, lanczos_), at<double>(m.workspace, lmax_)});
}

template <class Cells, class Queue>
void DeviceMultigrid::special_cells(const Queue& queue, const DeviceMemory& m, size_t l, Cells cells) const {
  const Level& L = levels_[l];
  const long count = long(L.special.size());
  queue.each(batch_, count,
             SpecialBody<Cells>{cells, at<int>(m.constants, L.special_at), L.n0 - 1, L.n1 - 1, count,
                                at<float>(m.workspace, L.patch_scale), at<float>(m.workspace, L.patch_special)});
}

template <class Fine, class Queue>
void DeviceMultigrid::coarsen(const Queue& queue, const DeviceMemory& m, size_t l, Fine fine) const {
  const Level &L = levels_[l], &C = levels_[l + 1];
  float* regular = at<float>(m.workspace, L.regular);
  if (L.regular_size) queue.zero(regular, sizeof(float) * batch_ * L.regular_size);
  const CoarsenBody<Fine> body{fine,
                               axis0(L, m),
                               axis1(L, m),
                               stored(l + 1, m),
                               at<uint8_t>(m.constants, C.fixed),
                               regular,
                               at<float>(m.workspace, L.irregular),
                               L.regular_size,
                               L.irregular_size};
  queue.each(batch_, long(C.n0 - 1) * (C.n1 - 1), body);
}

template <class Cells, class Queue>
void DeviceMultigrid::factor(const Queue& queue, const DeviceMemory& m, Cells cells) const {
  const double regularization = deflated_dof_ < 0 ? 0.0 : 1e-6;
  if (dense())
    queue.together(batch_, CoarsestInverse<Cells>{{cells, shape_.n0, shape_.n1, at<double>(m.workspace, inverse_)},
                                                  regularization, at<double>(m.scratch, row_)});
  else
    queue.each(batch_, 1, FactorBody<Cells>{cells, shape_, regularization, at<double>(m.workspace, band_)});
}

// ---------------------------------------------------------------------------------------------------- V-cycle

template <class Queue>
void DeviceMultigrid::cycle(const Queue& queue, const DeviceMemory& m) const {
  const size_t last = levels_.size() - 1, launched = small_ < last ? small_ : last;
  for (size_t l = 0; l < launched; ++l) descend(queue, batch_, view(l, m), view(l + 1, m), smoother_);
  if (small_ <= last)
    queue.together(batch_, SmallCycle{small_levels(m)});
  else
    solve_coarsest(queue, batch_, coarsest(m), view(last, m));
  for (size_t l = launched; l-- > 0;) ascend(queue, batch_, view(l, m), view(l + 1, m), smoother_);
}

template <class Queue>
void DeviceMultigrid::precondition(const Queue& queue, typename Queue::Recording& recording, const DeviceMemory& m,
                                   bool deflates, Fields<const double> mode, const double* translation, const double* r,
                                   double* z) const {
  const Level& L = levels_[0];
  const long n = L.nodes();
  const uint8_t* fixed = at<uint8_t>(m.constants, deflates ? all_fixed_at_ : L.fixed);
  const Deflation deflation{deflates ? deflated_dof_ : -1, mode, {translation[0], translation[1]}};
  double *scale = at<double>(m.workspace, scale_), *net = at<double>(m.workspace, net_);
  queue.sum(batch_, 2 * n, LoadTerm{r, fixed, n, deflation}, at<double>(m.workspace, sums_), LoadSums{scale, net});
  queue.each(batch_, 2 * n, LowerBody{r, fixed, n, deflation, scale, net, at<float>(m.workspace, L.r)});
  recording.run(queue, [&](const Queue& q) { cycle(q, m); });
  queue.each(batch_, 2 * n,
             RaiseBody{at<float>(m.workspace, L.x), fixed, n, deflation, scale, at<double>(m.workspace, modulus_), z});
}

template <class Queue>
void DeviceMultigrid::apply(const Queue& queue, const DeviceMemory& m, bool deflates, Fields<const double> x,
                            const double* shift, const double* p, double* q) const {
  const Level& L = levels_[0];
  const uint8_t* fixed = at<uint8_t>(m.constants, deflates ? all_fixed_at_ : L.fixed);
  launch_force<double>(queue, form_, batch_, x, p, StoreShifted<double>{q, L.nodes(), p, shift, fixed});
}

}  // namespace elastofast
