#include "volume.h"

#include <cmath>
#include <numeric>

#include "../lanczos.h"
#include "interrupt.h"
#include "parallel.h"

namespace elastofast {

namespace {

constexpr size_t kRoom = 32;  // numbers that kernels may read beside a field

// body(begin, end) for one band of the layers [0, n) a thread. Kernels that gather compute the cells above a band too, so that
// bands are as few as threads; what they give does not depend on where bands begin.
template <class Body>
void for_bands(int n, size_t layer, Body body) {
  const int bands = band_count(n, int(layer));
#pragma omp parallel for schedule(static) num_threads(bands) if (bands > 1)
  for (int band = 0; band < bands; ++band) body(int(long(n) * band / bands), int(long(n) * (band + 1) / bands));
}

// Weights by which the nodes of a coarse level take from those of the fine one, axis by axis.
struct Averages {
  std::vector<int> row, node;
  std::vector<double> weight;

  // Transposed linear interpolation. With `mean`, of values times the lengths that belong to the fine nodes, over those that
  // belong to the coarse ones; else sums are kept.
  Averages(const Axis& axis, double h, double last, bool mean) : row(1, 0) {
    const int cells = axis.n_fine - 1;
    auto length = [&](int cell) { return cell < 0 || cell >= cells ? 0.0 : cell == cells - 1 ? last : h; };
    for (int c = 0; c < axis.n_coarse; ++c) {
      double total = 0;
      auto add = [&](int k, double share) {
        const double w = share * (mean ? length(k - 1) + length(k) : 1.0);
        if (w == 0) return;
        node.push_back(k), weight.push_back(w), total += w;
      };
      if (c > 0)
        for (int k = 1; k < axis.width[c - 1]; ++k) add(axis.first[c - 1] + k, axis.place[axis.first[c - 1] + k]);
      add(axis.fine_node(c), 1);
      if (c < axis.n_coarse - 1)
        for (int k = 1; k < axis.width[c]; ++k) add(axis.first[c] + k, 1 - axis.place[axis.first[c] + k]);
      for (size_t k = row.back(); mean && k < weight.size(); ++k) weight[k] /= total;
      row.push_back(int(node.size()));
    }
  }
};

// One plane of values on a coarse level from that on the fine level.
void average(const VolumeLevelPlan& fine, const std::vector<Averages>& averages, const float* in, float* out) {
  const Averages &a = averages[0], &b = averages[1], &c = averages[2];
  const size_t n1 = b.row.size() - 1, n2 = c.row.size() - 1;
  for (size_t j = 0; j + 1 < a.row.size(); ++j)
    for (size_t i = 0; i < n1; ++i)
      for (size_t s = 0; s < n2; ++s) {
        double sum = 0;
        for (int p = a.row[j]; p < a.row[j + 1]; ++p)
          for (int q = b.row[i]; q < b.row[i + 1]; ++q) {
            const float* from = in + a.node[p] * fine.layer() + size_t(b.node[q]) * fine.n[2];
            double line = 0;
            for (int r = c.row[s]; r < c.row[s + 1]; ++r) line += c.weight[r] * from[c.node[r]];
            sum += a.weight[p] * b.weight[q] * line;
          }
        out[(j * n1 + i) * n2 + s] = float(sum);
      }
}

double spacing(const ElementLaw<float, 3>& law, int axis) { return 2.0 / law.g[axis]; }

}  // namespace

struct VolumeHierarchy::Level {
  const VolumeLevelPlan& plan;
  const size_t nodes, layer;
  FixedDofs fixed;
  Field modulus, shift;  // over the mean modulus; shift is empty where there is none
  Field scale;           // of the patches
  VolumePatches patches;
  Field x, d, r, s;  // solution, correction, right-hand side, residual
  double lmax = 1;   // largest eigenvalue of smoother x matrix

  explicit Level(const VolumeLevelPlan& plan)
      : plan(plan), nodes(plan.nodes()), layer(plan.layer()), patches(plan.patches) {
    fixed.collect(plan.fixed, plan.n[0], int(layer));
    modulus.allocate(nodes, kRoom);
    for (Field* f : {&x, &d, &r, &s}) f->allocate(3 * nodes, kRoom);
  }
};

// Direct solve of the coarsest level.
struct VolumeHierarchy::Coarsest {
  BandMatrix shape{};
  std::vector<size_t> number;  // of each dof in the matrix
  std::vector<double> band, work;

  Coarsest(const Level& level, const VolumeForm<double>& form, double regularization) {
    const int* n = level.plan.n;
    int order[3] = {2, 1, 0}, stride[3];  // the axes, the shortest first
    std::stable_sort(order, order + 3, [&](int a, int b) { return n[a] < n[b]; });
    stride[order[0]] = 1, stride[order[1]] = n[order[0]], stride[order[2]] = n[order[0]] * n[order[1]];
    shape = {3 * level.nodes, 3 * (stride[0] + stride[1] + stride[2]) + 2};
    number.resize(3 * level.nodes), band.assign(shape.entries(), 0.0), work.resize(shape.size());
    auto node = [&](int j, int i, int s) { return (size_t(j) * n[1] + i) * n[2] + s; };
    for (int k = 0; k < 3; ++k)
      for (int j = 0; j < n[0]; ++j)
        for (int i = 0; i < n[1]; ++i)
          for (int s = 0; s < n[2]; ++s)
            number[k * level.nodes + node(j, i, s)] = 3 * size_t(j * stride[0] + i * stride[1] + s * stride[2]) + k;
    std::vector<double> psi[kCellKinds];
    for (int j = 0; j < n[0] - 1; ++j)
      for (int i = 0; i < n[1] - 1; ++i)
        for (int s = 0; s < n[2] - 1; ++s) {
          const int kind = (j == n[0] - 2) | (i == n[1] - 2) << 1 | (s == n[2] - 2) << 2;
          if (psi[kind].empty()) {
            psi[kind].resize(8 * 576);
            for (int m = 0; m < 8; ++m) element_matrix<3>(form.law[kind], m, psi[kind].data() + m * 576);
          }
          size_t dof[24];
          double cell[576] = {};
          for (int p = 0; p < 24; ++p) dof[p] = p / 8 * level.nodes + node(j + (p >> 2 & 1), i + (p >> 1 & 1), s + (p & 1));
          for (int m = 0; m < 8; ++m)
            for (int e = 0; e < 576; ++e) cell[e] += level.modulus.data[dof[m]] * psi[kind][m * 576 + e];
          for (int p = 0; p < 24; ++p)
            for (int q = 0; q < 24; ++q)
              if (number[dof[q]] <= number[dof[p]] && !level.plan.fixed[dof[p]] && !level.plan.fixed[dof[q]])
                band[shape.at(number[dof[p]], number[dof[q]])] += cell[p * 24 + q];
        }
    for (size_t k = 0; level.shift.data && k < number.size(); ++k)
      if (!level.plan.fixed[k]) band[shape.at(number[k], number[k])] += level.shift.data[k];
    shape.factor(regularization, band.data());
  }

  void solve(const float* b, float* x) {
    for (size_t k = 0; k < work.size(); ++k) work[number[k]] = b[k];
    shape.solve(band.data(), work.data());
    for (size_t k = 0; k < work.size(); ++k) x[k] = float(work[number[k]]);
  }
};

VolumeHierarchy::~VolumeHierarchy() = default;

VolumeHierarchy::VolumeHierarchy(std::shared_ptr<const VolumePlan> plan, const double* x, const double* shift, Steps smoother)
    : plan_(std::move(plan)), smoother_(std::move(smoother)) {
  for (const auto& level : plan_->levels) levels_.emplace_back(new Level(*level));
  set_up(x, shift);
}

void VolumeHierarchy::clear_work() {
  for (const auto& level : levels_)
    for (Field* f : {&level->x, &level->d, &level->r, &level->s}) std::fill(f->memory.begin(), f->memory.end(), 0.f);
}

void VolumeHierarchy::set_up(const double* x, const double* shift) {
  const size_t n = plan_->form.nodes(), layer = plan_->form.layer();
  x_.assign(x, x + n);
  shift_.assign(shift, shift + (shift ? 3 * n : 0));
  modulus_ = sum_rows(layers(), int(layer), [&](int begin, int end) {
    double s = 0;
    for (size_t k = begin * layer; k < end * layer; ++k) s += x_[k];
    return s;
  }) / double(n);
  for (const auto& level : levels_) level->shift = {};
  Level& finest = *levels_[0];
  if (shift) finest.shift.allocate(3 * n, kRoom);
  for (size_t k = 0; k < n; ++k) finest.modulus.data[k] = float(x_[k] / modulus_);
  for (size_t k = 0; shift && k < 3 * n; ++k) finest.shift.data[k] = float(shift_[k] / modulus_);
  for (size_t l = 0; l + 1 < levels_.size(); ++l) {
    stop_if_interrupted();
    Level &fine = *levels_[l], &coarse = *levels_[l + 1];
    const Floats carried = set_scale(fine);
    estimate_eigenvalue(fine);
    std::vector<Averages> means, sums;
    for (int a = 0; a < 3; ++a)
      for (bool mean : {true, false})
        (mean ? means : sums)
            .emplace_back(fine.plan.axis[a], spacing(fine.plan.form.law[0], a), spacing(fine.plan.form.law[1 << a], a), mean);
    average(fine.plan, means, fine.modulus.data, coarse.modulus.data);
    if (carried.empty()) continue;
    coarse.shift.allocate(3 * coarse.nodes, kRoom);
    for (int k = 0; k < 3; ++k)
      average(fine.plan, sums, carried.data() + k * fine.nodes, coarse.shift.data + k * coarse.nodes);
  }
  coarsest_.reset(new Coarsest(*levels_.back(), plan_->coarsest_form, deflated_dofs().empty() ? 0 : kCoarsestRegularization));
}

// Sets the scale of the patches: one over the square root of the stiffness of dofs over that in a homogeneous body of modulus
// one. Returns what the coarse level is to be shifted by, or nothing: the shift, and the stiffness of fixed dofs. That of a
// fixed dof which the coarse level does not have is what its coarse displacements cost there (the truncated interpolation of
// a Galerkin matrix would have the same effect).
Floats VolumeHierarchy::set_scale(Level& L) {
  const VolumeCycle& k = *kernels().volume->cycle;
  Field ones;
  ones.allocate(L.nodes, kRoom);
  std::fill(ones.memory.begin(), ones.memory.end(), 1.f);
  L.scale.allocate(3 * L.nodes, kRoom);
  const bool carries = L.shift.data || !L.fixed.dof.empty();
  Floats carried(carries ? 3 * L.nodes : 0);
  for_bands(L.plan.n[0], L.layer, [&](int begin, int end) {
    k.diagonal(L.plan.form, L.plan.diagonal.data(), L.modulus.data, L.scale.data, begin, end);
    k.diagonal(L.plan.form, L.plan.diagonal.data(), ones.data, L.d.data, begin, end);
    for (int c = 0; c < 3; ++c)
      for (size_t i = c * L.nodes + begin * L.layer; i < c * L.nodes + end * L.layer; ++i) {
        const float shift = L.shift.data ? L.shift.data[i] : 0.f, stiffness = L.scale.data[i] + shift;
        if (carries) carried[i] = L.plan.fixed[i] ? stiffness : shift;
        L.scale.data[i] = std::sqrt(L.d.data[i] / stiffness);
        L.d.data[i] = 0;
      }
  });
  L.patches.scale = L.scale.data;
  return carried;
}

void VolumeHierarchy::estimate_eigenvalue(Level& L) {
  const size_t n = 3 * L.nodes;
  const int n0 = L.plan.n[0];
  Field z, product;
  z.allocate(n, kRoom), product.allocate(n, kRoom);
  float* const residual = L.x.data;
  LanczosStart start;
  for (size_t i = 0; i < n; ++i) residual[i] = start.next();
  L.fixed.clear(residual, n0, int(L.layer), 0, n0);
  const Cycle& k = *kernels().cycle;
  const size_t w = 3 * L.layer;
  auto dot = [&](const float* a, const float* b) {
    return sum_rows(n0, int(w), [&](int begin, int end) { return k.dot(a + begin * w, b + begin * w, (end - begin) * w); });
  };
  auto scale_add = [&](double a, const float* x, double b, float* y) {
    for_rows(n0, int(w), [&](int begin, int end) {
      k.scale_add(float(a), x + begin * w, float(b), y + begin * w, (end - begin) * w);
    });
  };
  Lanczos lanczos;
  lanczos.start();
  for (int step = 0; step < Lanczos::kSteps; ++step) {
    stop_if_interrupted();
    for_bands(n0, L.layer, [&](int begin, int end) {
      kernels().volume->cycle->patch(L.patches, residual, 0.f, 1.f, z.data, nullptr, false, begin, end);
    });
    lanczos.direction(dot(residual, z.data));
    if (lanczos.ended) break;
    scale_add(1, z.data, lanczos.beta, L.d.data);
    residual_minus_product(L, L.d.data, L.s.data, product.data);  // -A d, for s is still zero
    lanczos.step(-dot(L.d.data, product.data));
    if (lanczos.ended) break;
    scale_add(lanczos.alpha, product.data, 1, residual);
  }
  L.lmax = lanczos.largest();
  for (Field* f : {&L.d, &L.x}) std::fill(f->memory.begin(), f->memory.end(), 0.f);
}

void VolumeHierarchy::residual_minus_product(const Level& L, const float* d, const float* r, float* out) const {
  for_bands(L.plan.n[0], L.layer, [&](int begin, int end) {
    kernels().volume->cycle->residual_minus_product(L.plan.form, L.modulus.data, L.shift.data, d, r, out, begin, end);
    L.fixed.clear(out, L.plan.n[0], int(L.layer), begin, end);
  });
}

// Chebyshev smoothing: from zero, which leaves x and its residual s of the right-hand side r; or, `after` the coarse levels,
// of x + d, where s is still the residual of x.
void VolumeHierarchy::smooth(Level& L, bool after) {
  const float* from = after ? L.s.data : L.r.data;
  if (after) residual_minus_product(L, L.d.data, L.s.data, L.s.data);
  for (size_t k = 0; k < smoother_.size(); ++k) {
    const auto [momentum, gain] = smoother_[k];
    if (after && k == 0)
      for_rows(L.plan.n[0], int(L.layer), [&](int begin, int end) {
        for (int c = 0; c < 3; ++c) {
          const size_t at = c * L.nodes + begin * L.layer;
          kernels().cycle->scale_add(1.f, L.d.data + at, 1.f, L.x.data + at, (end - begin) * L.layer);
        }
      });
    for_bands(L.plan.n[0], L.layer, [&, momentum = momentum, gain = gain](int begin, int end) {
      kernels().volume->cycle->patch(L.patches, from, float(momentum), float(gain / L.lmax), L.d.data, L.x.data,
                                     !after && k == 0, begin, end);
    });
    if (after && k + 1 == smoother_.size()) break;  // nobody asks for this residual
    residual_minus_product(L, L.d.data, from, L.s.data);
    from = L.s.data;
  }
}

void VolumeHierarchy::cycle() {
  const VolumeCycle& k = *kernels().volume->cycle;
  const size_t last = levels_.size() - 1;
  for (size_t l = 0; l < last; ++l) {
    Level &L = *levels_[l], &C = *levels_[l + 1];
    smooth(L, false);
    for_bands(C.plan.n[0], C.layer, [&](int begin, int end) {
      k.restrict_layers(L.plan.transfer, L.s.data, C.r.data, begin, end);
      C.fixed.clear(C.r.data, C.plan.n[0], int(C.layer), begin, end);
    });
  }
  coarsest_->solve(levels_.back()->r.data, levels_.back()->x.data);
  for (size_t l = last; l-- > 0;) {
    Level &L = *levels_[l], &C = *levels_[l + 1];
    const int cells = C.plan.n[0] - 1;
    for_bands(cells, C.layer, [&](int begin, int end) {
      k.prolong_layers(L.plan.transfer, C.x.data, L.d.data, begin, end);
      L.fixed.clear(L.d.data, L.plan.n[0], int(L.layer), L.plan.axis[0].first[begin],
                    end < cells ? L.plan.axis[0].first[end] : L.plan.n[0]);
    });
    smooth(L, true);
  }
}

// ------------------------------------------------------------------------------------------------ the finest level

const FixedDofs& VolumeHierarchy::fixed() const { return levels_[0]->fixed; }
float* VolumeHierarchy::residual() { return levels_[0]->r.data; }
float* VolumeHierarchy::solution() { return levels_[0]->x.data; }

double VolumeHierarchy::apply_dot(const double* p, double* q, const FixedDofs& fixed) const {
  const size_t n = x_.size(), width = plan_->form.layer();
  for_bands(layers(), width, [&](int begin, int end) {
    kernels().volume->cycle->apply(plan_->form, x_.data(), shift_.empty() ? nullptr : shift_.data(), p, q, begin, end);
    fixed.clear(q, layers(), int(width), begin, end);
  });
  return sum_rows(layers(), int(width), [&](int begin, int end) {
    double sum = 0;
    for (int c = 0; c < 3; ++c)
      sum += kernels().outer->dot(p + c * n + begin * width, q + c * n + begin * width, (end - begin) * width);
    return sum;
  });
}

std::vector<double> VolumeHierarchy::eigenvalue_bounds() const {
  std::vector<double> bounds;
  for (size_t l = 0; l + 1 < levels_.size(); ++l) bounds.push_back(levels_[l]->lmax);
  return bounds;
}

size_t VolumeHierarchy::bytes() const {
  size_t total = sizeof(double) * (x_.size() + shift_.size() + coarsest_->band.size());
  for (const auto& L : levels_)
    for (const Field* f : {&L->modulus, &L->shift, &L->scale, &L->x, &L->d, &L->r, &L->s})
      total += sizeof(float) * f->memory.size();
  return total;
}

}  // namespace elastofast
