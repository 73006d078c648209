// A form on a grid of three axes, and what the multigrid hierarchy on it reads.
//
// All operators are matrix-free. Every level has cells of one size but for the last ones along each axis, which may be longer
// (see `Axis` in hierarchy.h), so that there are up to 8 kinds of cells: bit a of a kind is set for the last cell of axis a.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cell_multigrid.h"

namespace elastofast {

constexpr int kVolumeCorners = 8, kVolumeDofs = 24, kCellKinds = 8;

template <class T>
struct VolumeForm {
  int n[3];      // nodes along the axes
  bool uniform;  // whether the last cells are as long as the others
  ElementLaw<T, 3> law[kCellKinds];

  EF_HD size_t layer() const { return size_t(n[1]) * n[2]; }
  EF_HD size_t nodes() const { return n[0] * layer(); }
};

template <class T>
VolumeForm<T> volume_form(const int* n, const double* spacing, const double* last, double lambda, double mu) {
  VolumeForm<T> form{{n[0], n[1], n[2]}, true, {}};
  for (int kind = 0; kind < kCellKinds; ++kind) {
    double h[3];
    for (int a = 0; a < 3; ++a) h[a] = kind >> a & 1 ? last[a] : spacing[a];
    form.law[kind] = element_law<T, 3>(h, lambda, mu);
  }
  for (int a = 0; a < 3; ++a) form.uniform = form.uniform && last[a] == spacing[a];
  return form;
}

// Patch smoother: the sum of the inverses of the 8-node blocks of the matrix, one for each cell. The blocks are those of a
// homogeneous body at the same place and with the same supports; before and after them dofs are divided by the square root
// of their stiffness over that in the homogeneous body. Cells come in runs along a row.
struct PatchRun {
  int first, last, kind;  // cells [first, last); kind 0: inside the body
};

struct VolumePatches {
  int n[3];
  const float* scale;               // of dofs (3, nodes)
  float blocks[8][kBlockEntries<3>];  // of kind 0, see `element_smooth`
  const int* row;                   // first run of each row of cells, [(n0 - 1) (n1 - 1) + 1]
  const PatchRun* runs;
  const float* dense;               // [kind][column][row] inverses
};

// Transfer between two levels: nodes on edges of coarse cells are interpolated linearly, those on faces and inside as
// described in volume_plan.h. A coarse cell owns fine nodes as in `Transfer` of cell_multigrid.h.
struct TransferTable {
  const int* row;       // by owned node and component: first entry, [3 * nodes + 1]
  const int* offset;    // by owned node: of the fine node from the first corner's
  const int* corner;    // by entry: dof of the coarse cell, component * 8 + corner
  const float* weight;  // by entry
  int nodes;
};

struct VolumeTransfer {
  AxisView axis[3];
  bool halved;               // cells of kind 0 are 2 x 2 x 2 fine ones, and are worked on in vectors
  float face[3][3];          // of kind 0: what component k at the middle of a face takes from the hourglass mode of component l
  float centre[3][3];        // the same at the middle of the cell
  TransferTable table[kCellKinds];

  EF_HD int kind(int J, int I, int K) const {
    return (J == axis[0].n_coarse - 2) | (I == axis[1].n_coarse - 2) << 1 | (K == axis[2].n_coarse - 2) << 2;
  }
  EF_HD size_t fine(int J, int I, int K) const {  // number of the fine node at the first corner of a coarse cell
    return (size_t(axis[0].first[J]) * axis[1].n_fine + axis[1].first[I]) * axis[2].n_fine + axis[2].first[K];
  }
};

// What every entry of K(x) and D(u) is a sum of: for one cell and one of its corners, its rows of all entries by the modulus
// at each corner.
template <class T>
struct CellTables {
  T stiffness[8][8][72];     // [own corner][corner of the modulus][component * 24 + dof]
  T contraction[8][24][24];  // [own corner][dof][component * 8 + corner of the modulus]
};

// K, [dof][dof] in rows, of one cell for the modulus of one corner, or all ones for corner -1.
template <int D>
void element_matrix(const ElementLaw<double, D>& law, int corner, double* matrix) {
  constexpr int kDofs = D << D;
  for (int q = 0; q < kDofs; ++q) {
    double x[1 << D], u[D][1 << D] = {}, f[D][1 << D];
    for (int c = 0; c < 1 << D; ++c) x[c] = corner < 0 || c == corner;
    u[q >> D][q % (1 << D)] = 1;
    element_force<true, D>(law, x, u, f);
    for (int p = 0; p < kDofs; ++p) matrix[p * kDofs + q] = f[p >> D][p % (1 << D)];
  }
}

template <class T>
void fill_tables(const ElementLaw<double, 3>& law, CellTables<T>& tables) {
  double psi[24 * 24];
  for (int m = 0; m < 8; ++m) {
    element_matrix<3>(law, m, psi);
    for (int c = 0; c < 8; ++c)
      for (int k = 0; k < 3; ++k)
        for (int q = 0; q < 24; ++q)
          tables.stiffness[c][m][24 * k + q] = tables.contraction[c][q][8 * k + m] = T(psi[(8 * k + c) * 24 + q]);
  }
}

}  // namespace elastofast
