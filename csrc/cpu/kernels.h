// Loops over grid rows, built once for each instruction set and chosen at run time.
//
// All kernels work on rows [begin, end) of the nodes they write, so that callers split the work over threads; every
// output value is gathered by one thread in a fixed order, so results do not depend on the number of threads.
// Dof fields are two planes of n0 * n1 values, component after component.
#pragma once
#include <cstddef>
#include <type_traits>

#include "../cell_multigrid.h"
#include "../volume.h"

namespace elastofast {

// Stored half stencil of a level, see numbering.h: rows of blocks of nodes.
template <class T>
struct Stencil {
  int n0, n1;
  T* data;
  size_t row_size() const { return size_t(blocks(n1)) * kPlanes * kBlockNodes; }
  T* block(int j, int b) const { return data + j * row_size() + size_t(b) * kPlanes * kBlockNodes; }
};

// A dof field, or a window of its rows that moves on: row j of component k lies in slot j & mask.
template <class T>
struct Rows {
  T* data;
  size_t plane;
  int n1;
  unsigned mask;
  static Rows field(T* data, int n0, int n1) { return {data, size_t(n0) * n1, n1, ~0u}; }
  EF_HD T* row(int k, int j) const { return data + k * plane + size_t(unsigned(j) & mask) * n1; }
  template <class U, class = std::enable_if_t<std::is_same_v<U, const T>>>
  operator Rows<U>() const { return {data, plane, n1, mask}; }
};

// The form's contractions.
template <class T>
struct Contractions {
  // f = K(x) u; returns the sum of f over the rows, which is not finite if an input was not
  double (*force)(const GridForm<T>&, const T* x, const T* u, T* f, int begin, int end);
  // v^T Psi_n u for every node n; returns their sum
  double (*sensitivity)(const GridForm<T>&, const T* u, const T* v, T* g, int begin, int end);
  // values of K(x) and D(u) in CSR order (rows of one component; columns of the stencil in order)
  void (*stiffness_values)(const GridForm<T>&, const T* x, const long long* indptr, T* values, int begin, int end);
  void (*contraction_values)(const GridForm<T>&, const T* u, const long long* indptr, T* values, int begin, int end);
};

// The V-cycle, in single precision.
struct Cycle {
  // out = r - (K(x) + diag(shift)) d;  shift may be null, out may be r
  void (*residual_minus_product)(const GridForm<float>&, const float* x, const float* shift, Rows<const float> d,
                                 Rows<const float> r, Rows<float> out, int begin, int end);
  // the same with a stored stencil in place of K(x) + diag(shift)
  void (*stencil_residual_minus_product)(const Stencil<float>&, Rows<const float> d, Rows<const float> r, Rows<float> out,
                                         int begin, int end);
  // d = a d + b B r with B the sum of inverted blocks, d not read where a = 0
  void (*patch)(const Patch<float>&, Rows<const float> r, float a, float b, Rows<float> d, int begin, int end);
  void (*restrict_rows)(const Transfer<float>&, const float* fine, float* coarse, int begin, int end);  // coarse node rows
  void (*prolong_rows)(const Transfer<float>&, const float* coarse, float* fine, int begin, int end);   // coarse cell rows
  double (*dot)(const float* a, const float* b, size_t n);
  void (*scale_add)(float a, const float* x, float b, float* y, size_t n);  // y = a x + b y
};

// Conjugate gradients in double precision around it.
struct Outer {
  // q = (K(x) + diag(shift)) p, returns p.q over these rows
  double (*apply_dot)(const GridForm<double>&, const double* x, const double* shift, const double* p, double* q, int begin,
                      int end);
  double (*dot)(const double* a, const double* b, size_t n);
  void (*scale_add)(double a, const double* x, double b, double* y, size_t n);  // y = a x + b y
  double (*lower)(double scale, const double* x, float* low, size_t n);         // low = scale x, returns the sum of x
  double (*dot_low)(const double* x, const float* low, size_t n);
  void (*raise_add)(double a, const float* low, double b, double* y, size_t n);  // y = a low + b y
  // x += step p, r -= step q, returns r.r
  double (*cg_update)(double step, const double* p, const double* q, double* x, double* r, size_t n);
};

// Set-up of one level, in double precision.
struct Setup {
  // stiffness entries of cell row j into planes[36][ld]
  void (*cell_matrices)(const GridForm<double>&, const double* x, const double* share, int j, double* planes, int ld);
  // Galerkin matrix and interior interpolation of one row of coarse cells from the fine cell rows below it
  void (*coarsen_row)(const AxisView& a0, const AxisView& a1, int row, const double* const* fine, int ld_fine,
                      double* coarse, int ld_coarse, double* interior, int ld_interior, double* irregular);
};

// The same on grids of three axes. Layers are those of axis 0; dof fields are three planes.
template <class T>
struct VolumeContractions {
  double (*force)(const VolumeForm<T>&, const T* x, const T* u, T* f, int begin, int end);
  double (*sensitivity)(const VolumeForm<T>&, const T* u, const T* v, T* g, int begin, int end);
  void (*stiffness_values)(const VolumeForm<T>&, const CellTables<T>&, const T* x, const long long* indptr, T* values,
                           int begin, int end);
  void (*contraction_values)(const VolumeForm<T>&, const CellTables<T>&, const T* u, const long long* indptr, T* values,
                             int begin, int end);
};

struct VolumeCycle {
  // out = r - (K(x) + diag(shift)) d;  shift may be null, out may be r
  void (*residual_minus_product)(const VolumeForm<float>&, const float* x, const float* shift, const float* d, const float* r,
                                 float* out, int begin, int end);
  // q = (K(x) + diag(shift)) p
  void (*apply)(const VolumeForm<double>&, const double* x, const double* shift, const double* p, double* q, int begin,
                int end);
  // diagonal of K(x); weights [kind of cell][dof][corner of the modulus]
  void (*diagonal)(const VolumeForm<float>&, const float* weights, const float* x, float* out, int begin, int end);
  // d = a d + b B r with B the sum of inverted blocks, d not read where a = 0; then sum += d, or sum = d if it is the first,
  // unless sum is null
  void (*patch)(const VolumePatches&, const float* r, float a, float b, float* d, float* sum, bool first, int begin, int end);
  void (*restrict_layers)(const VolumeTransfer&, const float* fine, float* coarse, int begin, int end);  // of coarse nodes
  void (*prolong_layers)(const VolumeTransfer&, const float* coarse, float* fine, int begin, int end);   // of coarse cells
};

struct VolumeTable {
  const VolumeContractions<float>* f32;
  const VolumeContractions<double>* f64;
  const VolumeCycle* cycle;
};

struct KernelTable {
  const char* name;
  const Contractions<float>* f32;
  const Contractions<double>* f64;
  const Cycle* cycle;
  const Outer* outer;
  const Setup* setup;
  const VolumeTable* volume;
};

const KernelTable& kernels();             // the table in use
bool select_kernels(const char* name);    // false if the name is unknown or the processor cannot run it
const char* available_kernels(int i);     // names that this processor can run, nullptr past the last

}  // namespace elastofast
