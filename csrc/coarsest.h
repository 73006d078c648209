// Banded Cholesky factorisation of the coarsest level. Nodes are numbered along the shorter axes first, for a small bandwidth.
#pragma once
#include <cmath>
#include <cstddef>

#include "cell_multigrid.h"

namespace elastofast {

// Pivots are at least this part of the mean diagonal: a smaller one is lost to rounding and belongs to the rigid mode of a
// deflated dof, which each cycle removes from its result.
constexpr double kLeastPivot = 1e-14;

// Symmetric matrix with its lower band; row r holds the columns r - half .. r.
struct BandMatrix {
  size_t rows;
  int half;

  EF_HD size_t size() const { return rows; }
  EF_HD size_t entries() const { return rows * (half + 1); }
  EF_HD size_t at(size_t row, size_t column) const { return row * (half + 1) + (column + half - row); }
  EF_HD size_t first(size_t row) const { return row > size_t(half) ? row - half : 0; }

  // Cholesky factor in place; rows of zeros, those of fixed dofs, get a diagonal.
  EF_HD void factor(double regularization, double* band) const {
    const size_t n = rows;
    double mean = 0;
    for (size_t k = 0; k < n; ++k) mean += band[at(k, k)] / double(n);
    for (size_t k = 0; k < n; ++k) {
      if (band[at(k, k)] == 0) band[at(k, k)] = mean > 0 ? mean : 1;
      band[at(k, k)] += regularization * mean;
    }
    for (size_t row = 0; row < n; ++row)
      for (size_t col = first(row); col <= row; ++col) {
        double sum = band[at(row, col)];
        for (size_t k = first(row) > first(col) ? first(row) : first(col); k < col; ++k)
          sum -= band[at(row, k)] * band[at(col, k)];
        const double least = kLeastPivot * mean;
        band[at(row, col)] = col < row ? sum / band[at(col, col)] : std::sqrt(sum > least ? sum : least);
      }
  }

  // Solves in place; entry k of the vector is work[k * stride].
  EF_HD void solve(const double* band, double* work, size_t stride = 1) const {
    const size_t n = rows;
    for (size_t row = 0; row < n; ++row) {
      double sum = work[row * stride];
      for (size_t k = first(row); k < row; ++k) sum -= band[at(row, k)] * work[k * stride];
      work[row * stride] = sum / band[at(row, row)];
    }
    for (size_t row = n; row-- > 0;) {
      const double value = work[row * stride] /= band[at(row, row)];
      for (size_t k = first(row); k < row; ++k) work[k * stride] -= band[at(row, k)] * value;
    }
  }
};

// That of a grid of two axes.
struct Banded : BandMatrix {
  int n0, n1;  // nodes
  bool transposed;

  EF_HD Banded(int n0, int n1)
      : BandMatrix{2 * size_t(n0) * n1, 2 * ((n0 < n1 ? n0 : n1) + 1) + 1}, n0(n0), n1(n1), transposed(n1 > n0) {}
  EF_HD size_t number(int k, int j, int i) const {
    return 2 * (transposed ? size_t(i) * n0 + j : size_t(j) * n1 + i) + k;
  }
  EF_HD size_t number(size_t dof) const {
    const size_t n = size_t(n0) * n1, node = dof % n;
    return number(int(dof / n), int(node / n1), int(node % n1));
  }

  // Factor of the assembled cell matrices, cell(j, i, e); fixed dofs get a diagonal.
  template <class Cell>
  EF_HD void factor(Cell cell, double regularization, double* band) const {
    for (size_t k = 0; k < entries(); ++k) band[k] = 0;
    for (int j = 0; j < n0 - 1; ++j)
      for (int i = 0; i < n1 - 1; ++i)
        for (int p = 0; p < kCellDofs; ++p)
          for (int q = 0; q < kCellDofs; ++q) {
            const size_t row = number(component_of(p), j + corner_row(p), i + corner_column(p));
            const size_t col = number(component_of(q), j + corner_row(q), i + corner_column(q));
            if (col <= row) band[at(row, col)] += cell(j, i, entry(p, q));
          }
    BandMatrix::factor(regularization, band);
  }
};

}  // namespace elastofast
