// The multigrid of cpu/solver.h for a batch of moduli on a device: the same plan, numbers and cycle, as launches of bodies.
//
// Large levels are launched step by step; the small ones at the end of a hierarchy, where launches would take longer than
// the work, run together in one block of threads for each batch member.
//
// A DeviceMultigrid holds no device memory. Its caller provides three blocks: constants (written once), a workspace for the
// hierarchy of one batch of moduli, and scratch memory that is needed during the set-up only. A cycle therefore allocates
// nothing and never waits for the device, so that its launches can be recorded.
#pragma once
#include <vector>

#include "../hierarchy.h"
#include "setup.h"

namespace elastofast {

// Layout of a block of memory before it is allocated: `take` returns the byte offset of the next array.
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
  DeviceMultigrid(const DeviceMultigrid&) = delete;  // levels refer to the plan

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
  // Where in memory the pieces of a level lie, as offsets.
  struct AxisPieces {
    size_t first, width, place, place32;
  };
  struct Level {
    const LevelPlan& plan;
    size_t fixed, special;  // constants
    AxisPieces a0, a1;
    size_t x, d, r, regular, irregular, matrix, patch_scale, patch_special;  // workspace
    size_t cells, residual;                                                  // scratch
    long nodes() const { return long(plan.nodes()); }
    long special_count() const { return long(plan.special.column.size()); }
  };

  template <class T>
  static T* at(char* block, size_t offset) { return reinterpret_cast<T*>(block + offset); }
  AxisPieces take_axis(const Axis& axis);
  static AxisView view(const Axis& axis, const AxisPieces& pieces, const DeviceMemory& m);
  BatchTransfer transfer(const Level& L, const DeviceMemory& m) const;
  LevelView view(size_t l, const DeviceMemory& m) const;
  CoarsestView coarsest(const DeviceMemory& m) const;
  SmallLevels small_levels(const DeviceMemory& m) const;
  bool dense() const { return shape_.size() <= kDense; }
  StoredCells stored(size_t l, const DeviceMemory& m) const {
    return {levels_[l].plan.n0 - 1, levels_[l].plan.n1 - 1, at<double>(m.scratch, levels_[l].cells)};
  }

  template <bool kReduced, class Queue>
  void build(const Queue& queue, const DeviceMemory& m, Fields<const double> x, Fields<const double> shift) const;
  template <class Cells, class Queue>
  void special_patches(const Queue& queue, const DeviceMemory& m, size_t l, Cells cells) const;
  template <class Fine, class Queue>
  void coarsen(const Queue& queue, const DeviceMemory& m, size_t l, Fine fine) const;
  template <class Cells, class Queue>
  void factor(const Queue& queue, const DeviceMemory& m, Cells cells) const;
  template <class Queue>
  void cycle(const Queue& queue, const DeviceMemory& m) const;

  static constexpr size_t kDense = 640;  // unknowns up to which the coarsest matrix is inverted. Not studied
  GridForm<double> form_;
  GridForm<float> form32_;
  HierarchyPlan plan_;
  bool shifted_;
  long batch_;
  Smoother smoother_{};
  std::vector<uint8_t> all_fixed_;  // the deflated dof too
  std::vector<Level> levels_;
  size_t small_;  // the first of the small levels
  Banded shape_{2, 2};
  Layout constants_, workspace_, scratch_;
  size_t all_fixed_at_, modulus_, scale_, net_, lanczos_, lmax_, sums_, x32_, shift32_, band_, inverse_, work_, row_;
};

inline DeviceMultigrid::DeviceMultigrid(const GridForm<double>& form, const uint8_t* fixed, bool shifted, long deflated_dof,
                                        long batch, const Steps& smoother)
    : form_(form),
      form32_{form.n0, form.n1, form.reduced,
              {{float(form.law.g[0]), float(form.law.g[1])}, float(form.law.lambda), float(form.law.mu)}},
      plan_(form, fixed, deflated_dof),
      shifted_(shifted),
      batch_(batch),
      all_fixed_(fixed, fixed + 2 * size_t(form.n0) * form.n1) {
  for (const auto& step : smoother) {
    smoother_.momentum[smoother_.count] = float(step.first), smoother_.gain[smoother_.count] = float(step.second);
    ++smoother_.count;
  }
  const size_t n = size_t(form.n0) * form.n1, B = size_t(batch);
  for (const LevelPlan& plan : plan_.levels) levels_.push_back(Level{plan});
  shape_ = Banded(plan_.coarsest().n0, plan_.coarsest().n1);
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
  const size_t shared = scratch_.take<float>(2 * B * n);  // launched levels can share it, because they run one after the other
  for (size_t l = 0; l < levels_.size(); ++l) {
    Level& L = levels_[l];
    const size_t nodes = L.plan.nodes(), m = size_t(L.plan.n0 - 1) * (L.plan.n1 - 1);
    const bool smoothed = l + 1 < levels_.size(), stored = l > 0 && smoothed;
    L.fixed = constants_.take<uint8_t>(2 * nodes);
    L.special = constants_.take<int>(L.plan.special.column.size());
    L.a0 = take_axis(L.plan.a0), L.a1 = take_axis(L.plan.a1);
    L.x = workspace_.take<float>(2 * B * nodes), L.d = workspace_.take<float>(2 * B * nodes);
    L.r = workspace_.take<float>(2 * B * nodes);
    L.regular = workspace_.take<float>(B * L.plan.regular_weights());
    L.irregular = workspace_.take<float>(B * L.plan.irregular_weights());
    L.matrix = workspace_.take<float>(stored ? B * kPlanes * nodes : 0);
    L.patch_scale = workspace_.take<float>(smoothed ? B * m : 0);
    L.patch_special = workspace_.take<float>(B * L.plan.special.column.size() * kEntries);
    L.cells = scratch_.take<double>(l > 0 ? B * kEntries * m : 0);
    L.residual = l < small_ ? shared : scratch_.take<float>(2 * B * nodes);
  }
  const size_t k = shape_.size();
  band_ = workspace_.take<double>(dense() ? 0 : B * shape_.entries());
  inverse_ = workspace_.take<double>(dense() ? B * k * k : 0);
  work_ = workspace_.take<double>(B * k * (dense() ? DenseProduct::kParts : 1));
  row_ = scratch_.take<double>(dense() ? B * (k + 1) : 0);
}

inline DeviceMultigrid::AxisPieces DeviceMultigrid::take_axis(const Axis& a) {
  const size_t first = constants_.take<int>(a.first.size()), width = constants_.take<int>(a.width.size());
  return {first, width, constants_.take<double>(a.place.size()), constants_.take<float>(a.place32.size())};
}

inline void DeviceMultigrid::write_constants(char* out) const {
  auto put = [&](size_t offset, const auto& values) {
    std::copy(values.begin(), values.end(), at<typename std::decay_t<decltype(values)>::value_type>(out, offset));
  };
  auto put_axis = [&](const AxisPieces& pieces, const Axis& a) {
    put(pieces.first, a.first), put(pieces.width, a.width), put(pieces.place, a.place), put(pieces.place32, a.place32);
  };
  put(all_fixed_at_, all_fixed_);
  for (const Level& L : levels_) {
    put(L.fixed, L.plan.fixed);
    put(L.special, L.plan.special.numbers(L.plan.n1));
    put_axis(L.a0, L.plan.a0), put_axis(L.a1, L.plan.a1);
  }
}

inline AxisView DeviceMultigrid::view(const Axis& a, const AxisPieces& pieces, const DeviceMemory& m) {
  return {a.n_fine, a.n_coarse, a.regular, at<int>(m.constants, pieces.first), at<int>(m.constants, pieces.width),
          at<double>(m.constants, pieces.place)};
}

inline BatchTransfer DeviceMultigrid::transfer(const Level& L, const DeviceMemory& m) const {
  return {{view(L.plan.a0, L.a0, m), view(L.plan.a1, L.a1, m), at<float>(m.workspace, L.regular),
           at<float>(m.workspace, L.irregular), at<float>(m.constants, L.a0.place32), at<float>(m.constants, L.a1.place32)},
          long(L.plan.regular_weights()), long(L.plan.irregular_weights())};
}

inline LevelView DeviceMultigrid::view(size_t l, const DeviceMemory& m) const {
  const Level& L = levels_[l];
  LevelView v{};
  v.n0 = L.plan.n0, v.n1 = L.plan.n1;
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
  v.patch = L.plan.patch;
  v.patch.scale = at<float>(m.workspace, L.patch_scale), v.patch.special = at<float>(m.workspace, L.patch_special);
  v.special_count = L.special_count();
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

  const FinestCells<kReduced> finest{form_.law, form_.n0, form_.n1, x, shift, modulus, at<uint8_t>(m.constants, F.fixed)};
  const size_t last = levels_.size() - 1;
  for (size_t l = 0; l < last; ++l) l ? coarsen(queue, m, l, stored(l, m)) : coarsen(queue, m, l, finest);
  last ? factor(queue, m, stored(last, m)) : factor(queue, m, finest);

  for (size_t l = 0; l < last; ++l) {
    const Level& L = levels_[l];
    const int n0 = L.plan.n0, n1 = L.plan.n1;
    const long cells = long(n0 - 1) * (n1 - 1);
    float* scale = at<float>(m.workspace, L.patch_scale);
    if (l) {
      float* matrix = at<float>(m.workspace, L.matrix);
      queue.each(batch_, L.nodes(), AssembleBody{stored(l, m), matrix});
      queue.each(batch_, cells, StencilScaleBody{n0, n1, matrix, L.plan.trace, scale});
      special_patches(queue, m, l, stored(l, m));
    } else {
      queue.each(batch_, cells, FinestScaleBody{n0, n1, x32, shift32, L.plan.trace, scale});
      special_patches(queue, m, l, finest);
    }
  }
  for (size_t l = 0; l < last && l < small_; ++l) lanczos_steps(queue, batch_, view(l, m), sums);
  if (small_ < last) queue.together(batch_ * long(last - small_), SmallLanczos{small_levels(m)});
  queue.each(1, batch_ * long(last), LargestBody{at<Lanczos>(m.workspace, lanczos_), at<double>(m.workspace, lmax_)});
}

template <class Cells, class Queue>
void DeviceMultigrid::special_patches(const Queue& queue, const DeviceMemory& m, size_t l, Cells cells) const {
  const Level& L = levels_[l];
  const long count = L.special_count();
  queue.each(batch_, count,
             SpecialBody<Cells>{cells, at<int>(m.constants, L.special), L.plan.n0 - 1, L.plan.n1 - 1, count,
                                at<float>(m.workspace, L.patch_scale), at<float>(m.workspace, L.patch_special)});
}

template <class Fine, class Queue>
void DeviceMultigrid::coarsen(const Queue& queue, const DeviceMemory& m, size_t l, Fine fine) const {
  const Level &L = levels_[l], &C = levels_[l + 1];
  float* regular = at<float>(m.workspace, L.regular);
  const size_t regular_weights = L.plan.regular_weights();
  if (regular_weights) queue.zero(regular, sizeof(float) * batch_ * regular_weights);
  const CoarsenBody<Fine> body{fine,
                               view(L.plan.a0, L.a0, m),
                               view(L.plan.a1, L.a1, m),
                               stored(l + 1, m),
                               at<uint8_t>(m.constants, C.fixed),
                               regular,
                               at<float>(m.workspace, L.irregular),
                               long(regular_weights),
                               long(L.plan.irregular_weights())};
  queue.each(batch_, long(C.plan.n0 - 1) * (C.plan.n1 - 1), body);
}

template <class Cells, class Queue>
void DeviceMultigrid::factor(const Queue& queue, const DeviceMemory& m, Cells cells) const {
  const double regularization = plan_.coarsest_regularization();
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
  for (size_t l = 0; l < launched; ++l) {
    presmooth(queue, batch_, view(l, m), smoother_);
    restrict(queue, batch_, view(l, m), view(l + 1, m));
  }
  if (small_ <= last)
    queue.together(batch_, SmallCycle{small_levels(m)});
  else
    coarse_solve(queue, batch_, coarsest(m), view(last, m));
  for (size_t l = launched; l-- > 0;) {
    prolong(queue, batch_, view(l, m), view(l + 1, m));
    postsmooth(queue, batch_, view(l, m), smoother_);
  }
}

template <class Queue>
void DeviceMultigrid::precondition(const Queue& queue, typename Queue::Recording& recording, const DeviceMemory& m,
                                   bool deflates, Fields<const double> mode, const double* translation, const double* r,
                                   double* z) const {
  const Level& L = levels_[0];
  const long n = L.nodes();
  const uint8_t* fixed = at<uint8_t>(m.constants, deflates ? all_fixed_at_ : L.fixed);
  const Deflation deflation{deflates ? plan_.deflated_dof : -1, mode, {translation[0], translation[1]}};
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
