// Which nodes the levels of a hierarchy keep. Host only.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cell_multigrid.h"

namespace elastofast {

// (keep, gain) of the steps d = keep d + gain M r, x += d, r -= A d of a polynomial iteration, see `semi_iteration` in Python.
using Steps = std::vector<std::pair<double, double>>;

// How one axis of a level is coarsened.
struct Axis {
  std::vector<int> first, width;
  std::vector<double> place;
  std::vector<float> place32;
  int n_fine = 0, n_coarse = 0, regular = 0;

  // `position` holds the coordinates of the fine nodes and leaves with those of the coarse nodes.
  void coarsen(std::vector<double>& position, bool halve) {
    n_fine = int(position.size());
    const int cells = n_fine - 1;
    n_coarse = (halve ? cells / 2 : cells) + 1;
    std::vector<double> coarse;
    place.assign(n_fine, 0);
    for (int c = 0; c < n_coarse - 1; ++c) {
      first.push_back(halve ? 2 * c : c);
      width.push_back(!halve ? 1 : c == n_coarse - 2 ? cells - 2 * c : 2);  // an odd count leaves the last one wide
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

// Goes from a grid to coarser and coarser ones.
class Coarsening {
 public:
  Coarsening(int n0, int n1, double h0, double h1) : h0_(h0), h1_(h1) {
    for (int k = 0; k < n0; ++k) position0_.push_back(k);
    for (int k = 0; k < n1; ++k) position1_.push_back(k);
  }
  // An axis with no more nodes than this ends the coarsening; the rest is solved directly.
  static bool small(int n0, int n1) { return std::min(n0, n1) <= 9; }

  void next(Axis& a0, Axis& a1) {
    // cells longer than 1.9 times their width are left to the shorter side until they are about square
    const bool halve0 = h0_ < 1.9 * h1_, halve1 = h1_ < 1.9 * h0_;
    a0.coarsen(position0_, halve0);
    a1.coarsen(position1_, halve1);
    if (a0.n_coarse < a0.n_fine) h0_ *= 2;
    if (a1.n_coarse < a1.n_fine) h1_ *= 2;
  }

  // Flags of the dofs (2, n0, n1) at the nodes that stay.
  static std::vector<uint8_t> keep(const std::vector<uint8_t>& mask, const Axis& a0, const Axis& a1) {
    std::vector<uint8_t> coarse(2 * size_t(a0.n_coarse) * a1.n_coarse);
    for (int k = 0; k < 2; ++k)
      for (int j = 0; j < a0.n_coarse; ++j)
        for (int i = 0; i < a1.n_coarse; ++i)
          coarse[(size_t(k) * a0.n_coarse + j) * a1.n_coarse + i] =
              mask[(size_t(k) * a0.n_fine + a0.fine_node(j)) * a1.n_fine + a1.fine_node(i)];
    return coarse;
  }

 private:
  std::vector<double> position0_, position1_;
  double h0_, h1_;
};

// Special cells of the patch smoother: at the edges of the grid, or with a fixed dof; by row.
struct SpecialCells {
  std::vector<int> row, column;
  SpecialCells() = default;
  SpecialCells(const std::vector<uint8_t>& fixed, int n0, int n1) : row(1, 0) {
    for (int j = 0; j < n0 - 1; ++j) {
      for (int i = 0; i < n1 - 1; ++i) {
        bool special = j == 0 || i == 0 || j == n0 - 2 || i == n1 - 2;
        for (int k = 0; k < 2 && !special; ++k)
          for (int p = 0; p < 4; ++p) special |= fixed[(size_t(k) * n0 + j + p / 2) * n1 + i + p % 2] != 0;
        if (special) column.push_back(i);
      }
      row.push_back(int(column.size()));
    }
  }
};

}  // namespace elastofast
