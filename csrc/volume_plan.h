// The plan of a multigrid hierarchy on a grid of three axes: everything that does not depend on the modulus. Host only.
//
// The matrix of every level is that of the same elements on its own nodes (rediscretisation), with averages of the modulus.
// That serves because interpolated displacements do not change the volume of the fine cells more than that of the coarse
// one, on which the mean dilatation acts:
//   edges     Nodes on edges of a coarse cell are interpolated linearly.
//   faces     A displacement that bends a face in its own plane (an hourglass mode) makes some of the fine cells beside it
//             larger and others smaller. Nodes inside the face move to balance that. In a plane they would move as the
//             solution of the plane problem on the face does. Here they move half as far: the displacements of opposite faces
//             that bend in opposite ways add up in the fine cells between them, which half of the motion balances exactly,
//             while for faces that bend alike the nodes inside the cell make up for the other half.
//   inside    The exact solution in a homogeneous body, given all others.
// All weights are therefore those of a homogeneous body and the same for all cells of one shape.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "coarsest.h"
#include "hierarchy.h"
#include "volume.h"

namespace elastofast {

// As kCoarsestNodes on grids of two axes. Not studied.
constexpr int kCoarsestLayers = 5;
// Part of the way to the plane solution that nodes inside a face go, see above; where cells are not coarsened across the face,
// there is no opposite face and no node inside the cell, and they go all of it.
constexpr double kFaceShare = 0.5;

// Solution X of A X = B for a symmetric positive definite matrix A, (n, n), and B, (n, m), by Cholesky's method. A is lost.
inline void solve_dense(std::vector<double>& a, std::vector<double>& b, int n, int m) {
  for (int k = 0; k < n; ++k) {
    for (int j = 0; j <= k; ++j) {
      double sum = a[k * n + j];
      for (int l = 0; l < j; ++l) sum -= a[k * n + l] * a[j * n + l];
      a[k * n + j] = j < k ? sum / a[j * n + j] : std::sqrt(sum);
    }
    for (int c = 0; c < m; ++c) {
      double sum = b[k * m + c];
      for (int l = 0; l < k; ++l) sum -= a[k * n + l] * b[l * m + c];
      b[k * m + c] = sum / a[k * n + k];
    }
  }
  for (int k = n; k-- > 0;)
    for (int c = 0; c < m; ++c) {
      double sum = b[k * m + c];
      for (int l = k + 1; l < n; ++l) sum -= a[l * n + k] * b[l * m + c];
      b[k * m + c] = sum / a[k * n + k];
    }
}

// A block of D-dimensional cells with given lengths along each axis, of a homogeneous body.
template <int D>
struct CellBlock {
  std::array<std::vector<double>, D> length;
  double lambda, mu;

  int nodes_along(int a) const { return int(length[a].size()) + 1; }
  int nodes() const {
    int n = 1;
    for (int a = 0; a < D; ++a) n *= nodes_along(a);
    return n;
  }
  std::array<int, D> place(int node) const {
    std::array<int, D> at;
    for (int a = D; a-- > 0; node /= nodes_along(a)) at[a] = node % nodes_along(a);
    return at;
  }
  int number(const std::array<int, D>& at) const {
    int n = 0;
    for (int a = 0; a < D; ++a) n = n * nodes_along(a) + at[a];
    return n;
  }
  // Fraction of the length of the block along an axis at which a line of nodes lies.
  double fraction(int a, int line) const {
    double to = 0, all = 0;
    for (size_t k = 0; k < length[a].size(); ++k) all += length[a][k], to += int(k) < line ? length[a][k] : 0;
    return to / all;
  }
  // Matrix of all dofs, component * nodes + node.
  std::vector<double> matrix() const {
    constexpr int kDofs = D << D;
    const int n = nodes(), size = D * n;
    std::vector<double> all(size_t(size) * size, 0.0);
    for (int first = 0; first < n; ++first) {
      const std::array<int, D> at = place(first);
      double h[D], k[kDofs * kDofs];
      bool there = true;
      for (int a = 0; a < D && there; ++a) {
        there = at[a] < nodes_along(a) - 1;
        if (there) h[a] = length[a][at[a]];
      }
      if (!there) continue;
      element_matrix<D>(element_law<double, D>(h, lambda, mu), -1, k);
      int dofs[kDofs];
      for (int p = 0; p < kDofs; ++p) {
        std::array<int, D> corner = at;
        for (int a = 0; a < D; ++a) corner[a] += (p & corner_bit<D>(a)) != 0;
        dofs[p] = (p >> D) * n + number(corner);
      }
      for (int p = 0; p < kDofs; ++p)
        for (int q = 0; q < kDofs; ++q) all[size_t(dofs[p]) * size + dofs[q]] += k[p * kDofs + q];
    }
    return all;
  }
  // Replaces the rows of the inner nodes in an interpolation (dofs, columns) by the solution of the homogeneous body.
  void condense(std::vector<double>& interpolation, int columns) const {
    const int n = nodes(), size = D * n;
    std::vector<int> inner;
    std::vector<bool> is_inner(size);
    for (int p = 0; p < size; ++p) {
      const std::array<int, D> at = place(p % n);
      bool inside = true;
      for (int a = 0; a < D; ++a) inside = inside && at[a] > 0 && at[a] < nodes_along(a) - 1;
      if (inside) inner.push_back(p);
      is_inner[p] = inside;
    }
    const int count = int(inner.size());
    if (!count) return;
    const std::vector<double> all = matrix();
    std::vector<double> a(size_t(count) * count), b(size_t(count) * columns, 0.0);
    for (int p = 0; p < count; ++p) {
      const double* row = all.data() + size_t(inner[p]) * size;
      for (int q = 0; q < count; ++q) a[p * count + q] = row[inner[q]];
      for (int q = 0; q < size; ++q)
        for (int c = 0; c < columns && !is_inner[q]; ++c) b[p * columns + c] -= row[q] * interpolation[q * columns + c];
    }
    solve_dense(a, b, count, columns);
    for (int p = 0; p < count; ++p) std::copy_n(&b[p * columns], columns, &interpolation[inner[p] * columns]);
  }
};

// Interpolation of all dofs of a coarse cell, a block of fine ones, from those at its corners, (dofs, 24).
inline std::vector<double> coarse_cell_interpolation(const CellBlock<3>& block) {
  const int n = block.nodes();
  std::vector<double> P(size_t(3) * n * 24, 0.0);
  for (int node = 0; node < n; ++node) {
    const auto at = block.place(node);
    for (int c = 0; c < 8; ++c) {
      double weight = 1;
      for (int a = 0; a < 3; ++a) {
        const double f = block.fraction(a, at[a]);
        weight *= c & corner_bit<3>(a) ? f : 1 - f;
      }
      for (int k = 0; k < 3; ++k) P[(k * n + node) * 24 + 8 * k + c] = weight;
    }
  }
  for (int across = 0; across < 3; ++across) {
    const int axes[2] = {across == 0, across == 2 ? 1 : 2};
    const CellBlock<2> face{{block.length[axes[0]], block.length[axes[1]]}, block.lambda, block.mu};
    const double share = block.length[across].size() > 1 ? kFaceShare : 1.0;
    const int m = face.nodes();
    for (int side = 0; side < 2; ++side) {
      std::vector<double> own(size_t(2) * m * 24);
      auto row = [&](int p) {
        const auto in_face = face.place(p % m);
        std::array<int, 3> at;
        at[across] = side * (block.nodes_along(across) - 1), at[axes[0]] = in_face[0], at[axes[1]] = in_face[1];
        return P.data() + size_t(axes[p / m] * n + block.number(at)) * 24;
      };
      for (int p = 0; p < 2 * m; ++p) std::copy_n(row(p), 24, &own[p * 24]);
      face.condense(own, 24);
      for (int p = 0; p < 2 * m; ++p)
        for (int q = 0; q < 24; ++q) row(p)[q] += share * (own[p * 24 + q] - row(p)[q]);
    }
  }
  block.condense(P, 24);
  return P;
}

struct VolumeLevelPlan {
  int n[3] = {};
  std::vector<uint8_t> fixed;  // flags of the fixed dofs (3, nodes); deflated dofs count as free
  VolumeForm<float> form{};
  // Not of the coarsest level:
  Axis axis[3];
  VolumePatches patches{};           // its pointer to scale is set by the solver
  std::vector<int> patch_row;
  std::vector<PatchRun> patch_runs;
  std::vector<float> dense;
  std::vector<float> diagonal;       // weights of the kernel `diagonal`
  VolumeTransfer transfer{};
  std::vector<int> table_row[kCellKinds], table_offset[kCellKinds], table_corner[kCellKinds];
  std::vector<float> table_weight[kCellKinds];

  size_t layer() const { return size_t(n[1]) * n[2]; }
  size_t nodes() const { return n[0] * layer(); }
};

struct VolumePlan {
  VolumeForm<double> form;
  std::vector<long> deflated_dofs;                       // fixed dofs that the hierarchy leaves free
  std::vector<std::unique_ptr<VolumeLevelPlan>> levels;  // from the grid itself to the coarsest
  VolumeForm<double> coarsest_form{};

  VolumePlan(const int* n, const double* spacing, double lambda, double mu, const uint8_t* fixed,
             std::vector<long> deflated_dofs)
      : form(volume_form<double>(n, spacing, spacing, lambda, mu)),
        deflated_dofs(std::move(deflated_dofs)),
        lambda_(lambda),
        mu_(mu) {
    std::vector<double> position[3];
    double h[3];
    for (int a = 0; a < 3; ++a) {
      h[a] = spacing[a];
      for (int k = 0; k < n[a]; ++k) position[a].push_back(k * spacing[a]);
    }
    std::vector<uint8_t> flags(fixed, fixed + 3 * form.nodes());
    for (const long dof : this->deflated_dofs) flags[dof] = 0;
    while (true) {
      levels.emplace_back(new VolumeLevelPlan);
      VolumeLevelPlan& level = *levels.back();
      double last[3];
      for (int a = 0; a < 3; ++a) {
        level.n[a] = int(position[a].size());
        last[a] = position[a].back() - position[a].end()[-2];
      }
      level.fixed = flags;
      const double* own = levels.size() == 1 ? spacing : h;
      if (levels.size() == 1) std::copy_n(spacing, 3, last);  // exactly
      level.form = volume_form<float>(level.n, own, last, lambda, mu);
      coarsest_form = volume_form<double>(level.n, own, last, lambda, mu);
      if (*std::min_element(level.n, level.n + 3) <= kCoarsestLayers) break;
      set_patches(level, h, last);
      const double least = *std::min_element(h, h + 3);
      for (int a = 0; a < 3; ++a) {
        const bool halve = h[a] < kLongCell * least;
        level.axis[a].coarsen(position[a], halve);
      }
      set_transfer(level, h, last);
      for (int a = 0; a < 3; ++a) h[a] = position[a][1] - position[a][0];
      flags = fixed_on_coarse(level);
    }
  }

 private:
  double lambda_, mu_;

  static std::vector<uint8_t> fixed_on_coarse(const VolumeLevelPlan& level) {
    const Axis* a = level.axis;
    std::vector<uint8_t> coarse;
    for (int k = 0; k < 3; ++k)
      for (int j = 0; j < a[0].n_coarse; ++j)
        for (int i = 0; i < a[1].n_coarse; ++i)
          for (int s = 0; s < a[2].n_coarse; ++s)
            coarse.push_back(level.fixed[k * level.nodes() + a[0].fine_node(j) * level.layer() +
                                         size_t(a[1].fine_node(i)) * level.n[2] + a[2].fine_node(s)]);
    return coarse;
  }

  // Inverses of the 8-node blocks. A kind of block is told by the lengths of the cells around it and by its fixed dofs.
  void set_patches(VolumeLevelPlan& level, const double* h, const double* last) const {
    const int* n = level.n;
    const bool uniform = level.form.uniform;
    std::vector<uint8_t> held(level.nodes(), 0);  // bit k: component k is fixed
    for (int k = 0; k < 3; ++k)
      for (size_t i = 0; i < level.nodes(); ++i) held[i] |= uint8_t((level.fixed[k * level.nodes() + i] != 0) << k);
    // Of a cell along one axis: 1 no cell before it, 2 none behind it, 4 it is longer, 8 that behind it is longer.
    auto place = [&](int a, int cell) {
      const int m = n[a] - 1;
      return (cell == 0) | (cell == m - 1) << 1 | (!uniform && cell == m - 1) << 2 | (!uniform && cell == m - 2) << 3;
    };
    std::map<std::pair<int, int>, int> kinds;
    auto kind_of = [&](int places, int dofs) {
      const auto [at, added] = kinds.insert({{places, dofs}, int(kinds.size())});
      if (added) add_patch(level, h, last, places, dofs);
      return at->second;
    };
    kind_of(0, 0);
    level.patch_row.assign(1, 0);
    for (int j = 0; j < n[0] - 1; ++j)
      for (int i = 0; i < n[1] - 1; ++i) {
        const size_t at = j * level.layer() + size_t(i) * n[2];
        const size_t rows[4] = {at, at + n[2], at + level.layer(), at + level.layer() + n[2]};
        const int first = place(0, j) | place(1, i) << 4;
        for (int s = 0; s < n[2] - 1; ++s) {
          int dofs = 0;
          for (int c = 0; c < 8; ++c) {
            const int flags = held[rows[c >> 1] + s + (c & 1)];
            if (flags)
              for (int k = 0; k < 3; ++k) dofs |= (flags >> k & 1) << (8 * k + c);
          }
          const int places = first | place(2, s) << 8, kind = places || dofs ? kind_of(places, dofs) : 0;
          if (s && level.patch_runs.back().kind == kind) ++level.patch_runs.back().last;
          else level.patch_runs.push_back({s, s + 1, kind});
        }
        level.patch_row.push_back(int(level.patch_runs.size()));
      }
    std::copy_n(n, 3, level.patches.n);
    level.patches.row = level.patch_row.data(), level.patches.runs = level.patch_runs.data();
    level.patches.dense = level.dense.data();
    level.diagonal.resize(size_t(kCellKinds) * 24 * 8);
    for (int kind = 0; kind < kCellKinds; ++kind)
      for (int m = 0; m < 8; ++m) {
        double size[3], psi[24 * 24];
        for (int a = 0; a < 3; ++a) size[a] = kind >> a & 1 ? last[a] : h[a];
        element_matrix<3>(element_law<double, 3>(size, lambda_, mu_), m, psi);
        for (int p = 0; p < 24; ++p) level.diagonal[(kind * 24 + p) * 8 + m] = float(psi[p * 24 + p]);
      }
  }

  void add_patch(VolumeLevelPlan& level, const double* h, const double* last, int places, int dofs) const {
    CellBlock<3> block{{}, lambda_, mu_};
    std::array<int, 3> own;
    for (int a = 0; a < 3; ++a) {
      const int place = places >> 4 * a;
      if (!(place & 1)) block.length[a].push_back(h[a]);
      own[a] = int(block.length[a].size());
      block.length[a].push_back(place & 4 ? last[a] : h[a]);
      if (!(place & 2)) block.length[a].push_back(place & 8 ? last[a] : h[a]);
    }
    const std::vector<double> all = block.matrix();
    const int size = 3 * block.nodes();
    int numbers[24];
    for (int p = 0; p < 24; ++p) {
      std::array<int, 3> at = own;
      for (int a = 0; a < 3; ++a) at[a] += (p & corner_bit<3>(a)) != 0;
      numbers[p] = (p / 8) * block.nodes() + block.number(at);
    }
    std::vector<double> matrix(24 * 24), inverse(24 * 24, 0.0);
    for (int p = 0; p < 24; ++p) {
      inverse[p * 24 + p] = 1;
      for (int q = 0; q < 24; ++q) {
        const bool held = (dofs >> p & 1) || (dofs >> q & 1);
        matrix[p * 24 + q] = held ? double(p == q) : all[size_t(numbers[p]) * size + numbers[q]];
      }
    }
    solve_dense(matrix, inverse, 24, 24);
    const bool inside = level.dense.empty();
    level.dense.insert(level.dense.end(), inverse.begin(), inverse.end());
    if (!inside) return;
    for (int c = 0; c < 8; ++c)
      for (int p = 0; p < 3; ++p)
        for (int q = p; q < 3; ++q) {
          double sum = 0;
          for (int a = 0; a < 8; ++a)
            for (int b = 0; b < 8; ++b)
              sum += mode_sign<3>(c ^ 1 << p, a) * mode_sign<3>(c ^ 1 << q, b) * inverse[(8 * p + a) * 24 + 8 * q + b];
          level.patches.blocks[c][block_entry<3>(p, q)] = float(sum / 64);
        }
  }

  void set_transfer(VolumeLevelPlan& level, const double* h, const double* last) const {
    VolumeTransfer& transfer = level.transfer;
    for (int a = 0; a < 3; ++a) transfer.axis[a] = level.axis[a].view();
    transfer.halved = level.axis[0].width[0] == 2 && level.axis[1].width[0] == 2 && level.axis[2].width[0] == 2;
    for (int kind = 0; kind < kCellKinds; ++kind) {
      CellBlock<3> block{{}, lambda_, mu_};
      for (int a = 0; a < 3; ++a) {
        const bool end = kind >> a & 1;
        block.length[a].assign(end ? level.axis[a].width.back() : level.axis[a].width.front(), h[a]);
        if (end) block.length[a].back() = last[a];
      }
      const std::vector<double> P = coarse_cell_interpolation(block);
      const int n = block.nodes();
      std::vector<int>&row = level.table_row[kind], &offset = level.table_offset[kind], &corner = level.table_corner[kind];
      std::vector<float>& weight = level.table_weight[kind];
      row.assign(1, 0);
      for (int node = 0; node < n; ++node) {
        const auto at = block.place(node);
        bool owned = true;
        for (int a = 0; a < 3; ++a) owned = owned && (at[a] < block.nodes_along(a) - 1 || (kind >> a & 1));
        if (!owned) continue;
        offset.push_back(int(at[0] * level.layer()) + at[1] * level.n[2] + at[2]);
        for (int k = 0; k < 3; ++k) {
          for (int q = 0; q < 24; ++q) {
            const double value = P[(k * n + node) * 24 + q];
            if (std::abs(value) < kNoWeight) continue;
            corner.push_back(q), weight.push_back(float(value));
          }
          row.push_back(int(corner.size()));
        }
      }
      transfer.table[kind] = {row.data(), offset.data(), corner.data(), weight.data(), int(offset.size())};
      if (kind || !transfer.halved) continue;
      for (int k = 0; k < 3; ++k)
        for (int l = 0; l < 3; ++l) {
          if (k == l) continue;
          std::array<int, 3> at{};
          at[k] = at[l] = 1;
          transfer.face[k][l] = float(P[(k * n + block.number(at)) * 24 + 8 * l]);  // from the first corner, of plus sign
          transfer.centre[k][l] = float(P[(k * n + block.number({1, 1, 1})) * 24 + 8 * l]);
        }
    }
  }

  static constexpr double kNoWeight = 1e-12;  // weights that are zero but for rounding
};

}  // namespace elastofast
