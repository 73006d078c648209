// Where numbers lie: the dofs of a cell, the entries of its packed matrix, the planes of a stored stencil, the weights of
// an interpolation, nodes in blocks. Shared by CPU and CUDA.
#pragma once
#include <cstddef>

#include "host_device.h"

namespace elastofast {

// Corners of a cell are numbered row by row; its dofs are component * kCorners + corner.
constexpr int kDim = 2;
constexpr int kCorners = 1 << kDim;
constexpr int kCellDofs = kDim * kCorners;
EF_HD constexpr int component_of(int dof) { return dof / kCorners; }
EF_HD constexpr int corner_row(int dof) { return dof % kCorners / 2; }  // 0 or 1 within the cell; also of a corner
EF_HD constexpr int corner_column(int dof) { return dof % 2; }

// Packed upper triangle of the symmetric cell matrix, row by row.
constexpr int kEntries = kCellDofs * (kCellDofs + 1) / 2;
EF_HD constexpr int entry(int p, int q) {
  return p <= q ? p * (2 * kCellDofs - 1 - p) / 2 + q : q * (2 * kCellDofs - 1 - q) / 2 + p;
}

// Half of a symmetric 9-point stencil of 2 x 2 blocks, in 19 planes: the node itself (00, 01, 11) and its neighbours
// towards (0,+1), (+1,-1), (+1,0), (+1,+1) (00, 01, 10, 11 each: row component, then the neighbour's component).
constexpr int kPlanes = 19;
constexpr int kEast = 3, kSouthWest = 7, kSouth = 11, kSouthEast = 15;

// Calls body(p, q, row, plane, column) for the 36 entries (p, q) of a cell: where each lies in the half stencil, as plane
// of the node at corner (row, column).
template <class Body>
EF_HD void each_stencil_entry(Body body) {
  for (int corner = 0; corner < 4; ++corner) {
    body(corner, corner, corner / 2, 0, corner % 2);
    body(corner, 4 + corner, corner / 2, 1, corner % 2);
    body(4 + corner, 4 + corner, corner / 2, 2, corner % 2);
  }
  for (int k = 0; k < 4; ++k) {
    const int p = 4 * (k / 2), q = 4 * (k % 2);
    body(p + 0, q + 1, 0, kEast + k, 0);
    body(p + 2, q + 3, 1, kEast + k, 0);
    body(p + 0, q + 2, 0, kSouth + k, 0);
    body(p + 1, q + 3, 0, kSouth + k, 1);
    body(p + 0, q + 3, 0, kSouthEast + k, 0);
    body(p + 1, q + 2, 0, kSouthWest + k, 1);
  }
}

// Weights that interpolate an interior node of a coarse cell from the cell's dofs, both components of the node. A coarse
// cell of up to 3 x 3 fine cells has up to 4 interior nodes.
constexpr int kNodeWeights = kDim * kCellDofs;
constexpr int kCellWeights = 4 * kNodeWeights;

// Number of cells around a node: what is added at a node is shared out to them.
EF_HD int cells_around(int n0, int n1, int j, int i) {
  return (j > 0 && j < n0 - 1 ? 2 : 1) * (i > 0 && i < n1 - 1 ? 2 : 1);
}

// Rows of nodes in blocks: the coefficients of kBlockNodes nodes stand together, coefficient after coefficient; those past
// the end of a row are zero. Vectors may read up to kPad numbers beside a row.
constexpr int kBlockNodes = 16;
constexpr int kPad = 16;
EF_HD constexpr int blocks(int n) { return (n + kBlockNodes - 1) / kBlockNodes; }
EF_HD constexpr int padded(int n) { return blocks(n) * kBlockNodes + 2 * kPad; }

}  // namespace elastofast
