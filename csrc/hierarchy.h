// The plan of a multigrid hierarchy: everything about its levels that does not depend on the modulus. The solver on the
// processor and that on the GPU follow the same plan. Host only.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cell_multigrid.h"

namespace elastofast {

// Coarsening ends at a level whose shorter side has no more nodes than this; that level is solved directly. Not studied.
constexpr int kCoarsestNodes = 9;
// Cells that are longer than this ratio times their width are coarsened along the shorter side only, because the smoother
// damps errors along that side alone. A little below 2, so that cells of 2 x 1 become square in one step.
constexpr double kLongCell = 1.9;
// Added to the diagonal of the coarsest matrix, relative to the mean diagonal, where there is a deflated dof: a fixed dof
// that alone stops a rigid motion and that the hierarchy leaves free (see _deflation in forward/grid.py). The coarsest
// matrix is then singular, and a cycle removes the motion from its result. Not studied.
constexpr double kCoarsestRegularization = 1e-6;

// (momentum, gain) of the steps d = momentum d + gain M r, x += d, r -= A d of a polynomial iteration; `semi_iteration` in
// Python gives those of Chebyshev.
using Steps = std::vector<std::pair<double, double>>;

// How one axis of a level is coarsened.
struct Axis {
  std::vector<int> first, width;
  std::vector<double> place;
  std::vector<float> place32;
  int n_fine = 0, n_coarse = 0, regular = 0;

  // `position` holds the coordinates of the fine nodes on entry and those of the coarse nodes on return.
  void coarsen(std::vector<double>& position, bool halve) {
    n_fine = int(position.size());
    const int cells = n_fine - 1;
    n_coarse = (halve ? cells / 2 : cells) + 1;
    std::vector<double> coarse;
    place.assign(n_fine, 0);
    for (int c = 0; c < n_coarse - 1; ++c) {
      first.push_back(halve ? 2 * c : c);
      width.push_back(!halve ? 1 : c == n_coarse - 2 ? cells - 2 * c : 2);  // an odd count makes the last one three wide
      coarse.push_back(position[first[c]]);
      for (int k = 0; k < width[c]; ++k)
        place[first[c] + k] = (position[first[c] + k] - position[first[c]]) /
                              (position[first[c] + width[c]] - position[first[c]]);
    }
    place[cells] = 1;
    coarse.push_back(position[cells]);
    regular = halve ? n_coarse - 2 : 0;  // the last cell also owns the last line of nodes
    place32.assign(place.begin(), place.end());
    position = coarse;
  }
  AxisView view() const { return {n_fine, n_coarse, regular, first.data(), width.data(), place.data()}; }
  int fine_node(int k) const { return k < n_coarse - 1 ? first[k] : n_fine - 1; }
};

// The special patches of a level's smoother, by row of cells: those at the edge of the grid or with a fixed dof. Their
// 4-node blocks differ from those inside a homogeneous body, so that each has an inverse of its own.
struct SpecialPatches {
  std::vector<int> row, column;  // offsets of the rows; columns
  SpecialPatches() = default;
  SpecialPatches(const std::vector<uint8_t>& fixed, int n0, int n1) : row(1, 0) {
    for (int j = 0; j < n0 - 1; ++j) {
      for (int i = 0; i < n1 - 1; ++i) {
        bool special = j == 0 || i == 0 || j == n0 - 2 || i == n1 - 2;
        for (int p = 0; p < kCellDofs && !special; ++p)
          special = fixed[(size_t(component_of(p)) * n0 + j + corner_row(p)) * n1 + i + corner_column(p)] != 0;
        if (special) column.push_back(i);
      }
      row.push_back(int(column.size()));
    }
  }
  // As numbers of cells, n1 - 1 in a row.
  std::vector<int> numbers(int n1) const {
    std::vector<int> cells;
    for (size_t j = 0; j + 1 < row.size(); ++j)
      for (int k = row[j]; k < row[j + 1]; ++k) cells.push_back(int(j) * (n1 - 1) + column[k]);
    return cells;
  }
};

struct LevelPlan {
  int n0 = 0, n1 = 0;          // nodes
  std::vector<uint8_t> fixed;  // flags of the fixed dofs (2, n0, n1); the deflated dof counts as free
  // Not of the coarsest level, which is neither smoothed nor coarsened:
  Axis a0, a1;  // coarsening towards the next level
  SpecialPatches special;
  Patch<float> patch{};  // sizes and inverses in the modes of a homogeneous body; its pointers are set by the solver
  float trace = 0;       // of the 4-node block inside a homogeneous body of modulus one

  size_t nodes() const { return size_t(n0) * n1; }
  // How many weights interpolate interior nodes, see `Transfer`; none on the coarsest level.
  size_t regular_weights() const { return size_t(a0.regular) * kNodeWeights * padded(a1.n_coarse - 1); }
  size_t irregular_weights() const {
    if (!a0.n_coarse) return 0;
    return kCellWeights * (size_t(a0.n_coarse - 1) * (a1.n_coarse - 1) - size_t(a0.regular) * a1.regular);
  }
};

struct HierarchyPlan {
  long deflated_dof;              // or -1
  std::vector<LevelPlan> levels;  // from the grid itself to the coarsest

  HierarchyPlan(const GridForm<double>& form, const uint8_t* fixed, long deflated_dof) : deflated_dof(deflated_dof), levels(1) {
    LevelPlan& finest = levels[0];
    finest.n0 = form.n0, finest.n1 = form.n1;
    finest.fixed.assign(fixed, fixed + 2 * finest.nodes());
    if (deflated_dof >= 0) finest.fixed[deflated_dof] = 0;
    std::vector<double> position0, position1;
    for (int k = 0; k < form.n0; ++k) position0.push_back(k);
    for (int k = 0; k < form.n1; ++k) position1.push_back(k);
    double h0 = 2 / form.law.g[0], h1 = 2 / form.law.g[1], cell[kEntries];  // cell sizes, for g = 2 / spacing
    homogeneous_cell(form.law, form.reduced, cell);
    while (std::min(levels.back().n0, levels.back().n1) > kCoarsestNodes) {
      LevelPlan next, &level = levels.back();
      level.patch.n0 = level.n0, level.patch.n1 = level.n1;
      level.trace = float(patch_modes(cell, level.patch));
      level.special = SpecialPatches(level.fixed, level.n0, level.n1);
      const bool halve0 = h0 < kLongCell * h1, halve1 = h1 < kLongCell * h0;
      level.a0.coarsen(position0, halve0), level.a1.coarsen(position1, halve1);
      if (halve0) h0 *= 2;
      if (halve1) h1 *= 2;
      coarsen_homogeneous(halve0, halve1, cell);
      next.n0 = level.a0.n_coarse, next.n1 = level.a1.n_coarse;
      next.fixed = fixed_on_coarse(level);
      levels.push_back(std::move(next));
    }
  }

  const LevelPlan& coarsest() const { return levels.back(); }
  double coarsest_regularization() const { return deflated_dof < 0 ? 0 : kCoarsestRegularization; }

 private:
  // Flags of the fixed dofs at the nodes that the next level takes over.
  static std::vector<uint8_t> fixed_on_coarse(const LevelPlan& level) {
    const Axis &a0 = level.a0, &a1 = level.a1;
    std::vector<uint8_t> coarse;
    for (int k = 0; k < kDim; ++k)
      for (int j = 0; j < a0.n_coarse; ++j)
        for (int i = 0; i < a1.n_coarse; ++i)
          coarse.push_back(level.fixed[(size_t(k) * level.n0 + a0.fine_node(j)) * level.n1 + a1.fine_node(i)]);
    return coarse;
  }
};

}  // namespace elastofast
