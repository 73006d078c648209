// Layer kernels of kernels.h, for grids of three axes. Compiled once for each instruction set, as kernels.cpp, and under the
// same rule: everything in it must stay internal.
#include <cstdlib>
#include <new>
#include <type_traits>

#include "kernels.h"
#include "vectors.h"

namespace elastofast {
namespace {

template <class T>
constexpr int kWidth = sizeof(Vector<T>) / sizeof(T);

// Memory for one call.
template <class T>
struct Scratch {
  T* data;
  explicit Scratch(size_t n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64))) {
    if (!data) throw std::bad_alloc();
    for (size_t i = 0; i < n; ++i) data[i] = T(0);
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
};

// Contributions of one row of cells to their corners: at(value, cell), with room for a cell before and a vector behind the
// row. Value is component * 8 + corner. Cells that are not there contribute nothing.
template <class T>
struct CellRow {
  T* data;
  int cells;
  static int pitch(int cells) { return (cells + 2 + kWidth<T>) / kWidth<T> * kWidth<T> + 2 * kWidth<T>; }
  T* at(int value, int cell) const { return data + size_t(value) * pitch(cells) + kWidth<T> + cell; }
};

// Calls body(c, V) so that all cells of [lo, hi) of a row are covered by vectors. Where there are fewer of them than a vector
// is long, `spare` says that what lies behind them may be read; what is computed from that is not used.
template <class T, class Body>
EF_HD void for_cells(int lo, int hi, bool spare, Body body) {
  if (hi - lo < kWidth<T> && hi > lo && spare) body(lo, Vector<T>{});
  else for_vectors<T>(lo, hi, body);
}

// Sums cell contributions at the nodes of layers [begin, end) of a grid.
//   cells(j, i, row)        sets the contributions of row (j, i) of cells; always the same ones, whatever the layers
//   out(j, i, k, sums)      receives the sums of component k at the nodes of row (j, i)
// Every node gets its sum in the same order, so that results do not depend on where layers are split.
template <class T, int NC, class Cells, class Out>
inline void gather_layers(const int* n, int begin, int end, Cells cells, Out out) {
  const int n1 = n[1], n2 = n[2], m2 = n2 - 1;
  const size_t pitch = CellRow<T>::pitch(m2), ld = (n2 + kWidth<T>) / kWidth<T> * kWidth<T>;
  // carried: from the layer of cells above to rows of nodes; beside: from the row of cells before, to this layer of nodes
  // and to the next
  const Scratch<T> room(NC * 8 * pitch + NC * (n1 + 3) * ld);
  const CellRow<T> row{room.data, m2};
  T *const carried = room.data + NC * 8 * pitch, *const beside = carried + NC * n1 * ld, *const sums = beside + 2 * NC * ld;
  for (int j = begin > 0 ? begin - 1 : 0; j < end; ++j) {
    const bool writes = j >= begin;
    for (size_t i = 0; i < 2 * NC * ld; ++i) beside[i] = T(0);
    for (int i = 0; i < n1; ++i) {
      const bool there = j < n[0] - 1 && i < n1 - 1;
      if (there) cells(j, i, row);
      for (int k = 0; k < NC; ++k) {
        T *__restrict up = carried + (size_t(k) * n1 + i) * ld, *__restrict now = beside + size_t(k) * ld,
          *__restrict next = now + NC * ld, *__restrict sum = sums + size_t(k) * ld;
        auto low = [&](int corner) { return row.at(8 * k + corner, 0); };
        auto high = [&](int corner) { return row.at(8 * k + corner + 1, -1); };
        if (there) {
          for (int c = 0; c < 8; c += 2)  // beside the row there are no cells
            *(low(c) + m2) = T(0), *high(c) = T(0);
          const T *__restrict a = low(0), *__restrict b = high(0), *__restrict c = low(2), *__restrict d = high(2),
                  *__restrict e = low(4), *__restrict f = high(4), *__restrict g = low(6), *__restrict h = high(6);
#pragma GCC ivdep
          for (int s = 0; s < n2; ++s) {
            sum[s] = up[s] + now[s] + (a[s] + b[s]);
            now[s] = c[s] + d[s];
            up[s] = next[s] + (e[s] + f[s]);
            next[s] = g[s] + h[s];
          }
        } else {
#pragma GCC ivdep
          for (int s = 0; s < n2; ++s) sum[s] = up[s] + now[s], up[s] = next[s];
        }
      }
      if (writes)
        for (int k = 0; k < NC; ++k) out(j, i, k, sums + size_t(k) * ld);
    }
  }
}

// Values at the corners of cells: p is that of the first cell's first corner.
template <class V, class T>
EF_HD void corner_values(const T* p, size_t row, size_t layer, V* out) {
  out[0] = load<V>(p), out[1] = load<V>(p + 1), out[2] = load<V>(p + row), out[3] = load<V>(p + row + 1);
  p += layer;
  out[4] = load<V>(p), out[5] = load<V>(p + 1), out[6] = load<V>(p + row), out[7] = load<V>(p + row + 1);
}

template <class V, class T>
EF_HD void store_cells(const CellRow<T>& row, int c, const V (&f)[3][8]) {
  unrolled<24>([&](auto p) EF_LAMBDA { store(row.at(decltype(p)::value, c), f[decltype(p)::value / 8][decltype(p)::value % 8]); });
}

// Calls body(first cell, last cell, law) for the stretches of row (j, i) with one law.
template <class T, class Body>
EF_HD void for_laws(const VolumeForm<T>& g, int j, int i, Body body) {
  const int m2 = g.n[2] - 1, kind = (j == g.n[0] - 2) | (i == g.n[1] - 2) << 1;
  if (g.uniform) return body(0, m2, g.law[0]);
  body(0, m2 - 1, g.law[kind]);
  body(m2 - 1, m2, g.law[kind | 4]);
}

// Whether a vector may be read from every cell of the row whose first node is `at`: the fields end behind the last node.
template <class T>
EF_HD bool spare(const int* n, size_t at) {
  const size_t row = n[2], layer = n[1] * row;
  return at + layer + row + row + kWidth<T> <= n[0] * layer;
}

template <class T, class Out>
inline void force_layers(const VolumeForm<T>& g, const T* x, const T* u, int begin, int end, Out out) {
  const size_t n = g.nodes(), layer = g.layer(), n2 = g.n[2];
  gather_layers<T, 3>(
      g.n, begin, end,
      [&](int j, int i, const CellRow<T>& row) {
        const size_t at = j * layer + i * n2;
        for_laws(g, j, i, [&](int lo, int hi, const ElementLaw<T, 3>& law) {
          for_cells<T>(lo, hi, spare<T>(g.n, at), [&](int c, auto number) EF_LAMBDA {
            using V = decltype(number);
            V xc[8], uc[3][8], f[3][8];
            corner_values(x + at + c, n2, layer, xc);
            for (int k = 0; k < 3; ++k) corner_values(u + k * n + at + c, n2, layer, uc[k]);
            element_force<true, 3>(law, xc, uc, f);
            store_cells(row, c, f);
          });
        });
      },
      out);
}

template <class T>
double force(const VolumeForm<T>& g, const T* x, const T* u, T* f, int begin, int end) {
  const size_t n = g.nodes(), layer = g.layer(), n2 = g.n[2];
  force_layers(g, x, u, begin, end, [&](int j, int i, int k, const T* __restrict sums) {
    T* __restrict o = f + k * n + j * layer + i * n2;
    for (size_t s = 0; s < n2; ++s) o[s] = sums[s];
  });
  double total = 0;
  for (int k = 0; k < 3; ++k) total += sum(f + k * n + begin * layer, (end - begin) * layer);
  return total;
}

template <class T>
double sensitivity(const VolumeForm<T>& g, const T* u, const T* v, T* out, int begin, int end) {
  const size_t n = g.nodes(), layer = g.layer(), n2 = g.n[2];
  gather_layers<T, 1>(
      g.n, begin, end,
      [&](int j, int i, const CellRow<T>& row) {
        const size_t at = j * layer + i * n2;
        for_laws(g, j, i, [&](int lo, int hi, const ElementLaw<T, 3>& law) {
          for_cells<T>(lo, hi, spare<T>(g.n, at), [&](int c, auto number) EF_LAMBDA {
            using V = decltype(number);
            V uc[3][8], vc[3][8], q[8];
            for (int k = 0; k < 3; ++k) {
              corner_values(u + k * n + at + c, n2, layer, uc[k]);
              corner_values(v + k * n + at + c, n2, layer, vc[k]);
            }
            element_sensitivity<true, 3>(law, uc, vc, q);
            unrolled<8>([&](auto p) EF_LAMBDA { store(row.at(decltype(p)::value, c), q[decltype(p)::value]); });
          });
        });
      },
      [&](int j, int i, int, const T* __restrict sums) {
        T* __restrict o = out + j * layer + i * n2;
        for (size_t s = 0; s < n2; ++s) o[s] = sums[s];
      });
  return sum(out + begin * layer, (end - begin) * layer);
}

// ---------------------------------------------------------------------------------- compressed sparse rows

// Rows of a matrix of one node: for each of 3 components, kBlocks groups of its up to 27 neighbours. add(own corner, first
// corner's node, entries) adds one cell's row: [component][group][corner].
template <int kBlocks, class T, class Add>
inline void sparse_rows(const VolumeForm<T>& g, const long long* indptr, T* values, int begin, int end, Add add) {
  const int *n = g.n, n1 = n[1], n2 = n[2];
  const size_t nodes = g.nodes(), layer = g.layer();
  for (int j = begin; j < end; ++j)
    for (int i = 0; i < n1; ++i)
      for (int s = 0; s < n2; ++s) {
        T sums[3][kBlocks][27] = {};
        for (int own = 0; own < 8; ++own) {
          const int J = j - (own >> 2), I = i - (own >> 1 & 1), S = s - (own & 1);
          if (J < 0 || J >= n[0] - 1 || I < 0 || I >= n1 - 1 || S < 0 || S >= n2 - 1) continue;
          T entries[3][kBlocks][8];
          add(own, J * layer + size_t(I) * n2 + S, &entries[0][0][0]);
          const int base = 13 - 9 * (own >> 2) - 3 * (own >> 1 & 1) - (own & 1);
          for (int k = 0; k < 3; ++k)
            for (int b = 0; b < kBlocks; ++b)
              for (int c = 0; c < 8; ++c) sums[k][b][base + 9 * (c >> 2) + 3 * (c >> 1 & 1) + (c & 1)] += entries[k][b][c];
        }
        const bool inside = j > 0 && j < n[0] - 1 && i > 0 && i < n1 - 1 && s > 0 && s < n2 - 1;
        for (int k = 0; k < 3; ++k) {
          T* __restrict o = values + indptr[k * nodes + j * layer + size_t(i) * n2 + s];
          for (int b = 0; b < kBlocks; ++b)
            for (int e = 0; e < 27; ++e) {
              const int J = j + e / 9 - 1, I = i + e / 3 % 3 - 1, S = s + e % 3 - 1;
              if (inside || (J >= 0 && J < n[0] && I >= 0 && I < n1 && S >= 0 && S < n2)) *o++ = sums[k][b][e];
            }
        }
      }
}

// out = in (count) times a table (count, kLength).
template <int kLength, class T>
inline void combine(const T* in, const T* table, int count, T* out) {
  T sums[kLength] = {};
  for (int q = 0; q < count; ++q)
    for (int e = 0; e < kLength; ++e) sums[e] += in[q] * table[q * kLength + e];
  for (int e = 0; e < kLength; ++e) out[e] = sums[e];
}

template <class T>
void stiffness_values(const VolumeForm<T>& g, const CellTables<T>& tables, const T* x, const long long* indptr, T* values,
                      int begin, int end) {
  sparse_rows<3>(g, indptr, values, begin, end, [&](int own, size_t at, T* entries) {
    T xc[8];
    corner_values(x + at, g.n[2], g.layer(), xc);
    combine<72>(xc, &tables.stiffness[own][0][0], 8, entries);
  });
}

template <class T>
void contraction_values(const VolumeForm<T>& g, const CellTables<T>& tables, const T* u, const long long* indptr, T* values,
                        int begin, int end) {
  sparse_rows<1>(g, indptr, values, begin, end, [&](int own, size_t at, T* entries) {
    T uc[24];
    for (int k = 0; k < 3; ++k) corner_values(u + k * g.nodes() + at, g.n[2], g.layer(), uc + 8 * k);
    combine<24>(uc, &tables.contraction[own][0][0], 24, entries);
  });
}

// -------------------------------------------------------------------------------------------- the hierarchy

template <class T, bool kResidual>
inline void apply_layers(const VolumeForm<T>& g, const T* x, const T* shift, const T* d, const T* r, T* out, int begin, int end) {
  const size_t n = g.nodes(), layer = g.layer(), n2 = g.n[2];
  force_layers(g, x, d, begin, end, [&](int j, int i, int k, const T* __restrict sums) {
    const size_t at = k * n + j * layer + i * n2;
    const T *own = d + at, *from = r + at, *s = shift + at;
    T* o = out + at;
#pragma GCC ivdep
    for (size_t c = 0; c < n2; ++c) {
      const T f = shift ? sums[c] + s[c] * own[c] : sums[c];
      o[c] = kResidual ? from[c] - f : f;
    }
  });
}

void residual_minus_product(const VolumeForm<float>& g, const float* x, const float* shift, const float* d, const float* r,
                            float* out, int begin, int end) {
  apply_layers<float, true>(g, x, shift, d, r, out, begin, end);
}

void apply(const VolumeForm<double>& g, const double* x, const double* shift, const double* p, double* q, int begin, int end) {
  apply_layers<double, false>(g, x, shift, p, nullptr, q, begin, end);
}

void diagonal(const VolumeForm<float>& g, const float* weights, const float* x, float* out, int begin, int end) {
  const size_t n = g.nodes(), layer = g.layer(), n2 = g.n[2];
  gather_layers<float, 3>(
      g.n, begin, end,
      [&](int j, int i, const CellRow<float>& row) {
        const size_t at = j * layer + i * n2;
        for (int c = 0; c < g.n[2] - 1; ++c) {
          const int kind = (j == g.n[0] - 2) | (i == g.n[1] - 2) << 1 | (c == g.n[2] - 2) << 2;
          float xc[8];
          corner_values(x + at + c, n2, layer, xc);
          for (int p = 0; p < 24; ++p) {
            float sum = 0;
            for (int m = 0; m < 8; ++m) sum += weights[(kind * 24 + p) * 8 + m] * xc[m];
            *row.at(p, c) = sum;
          }
        }
      },
      [&](int j, int i, int k, const float* __restrict sums) {
        float* __restrict o = out + k * n + j * layer + i * n2;
        for (size_t s = 0; s < n2; ++s) o[s] = sums[s];
      });
}

// Dense inverse times the residual of cells, as many as V has numbers.
template <class V>
EF_HD void dense_smooth(const float* inverse, const V (&r)[3][8], V (&z)[3][8]) {
  V sums[24] = {};
  for (int q = 0; q < 24; ++q) {
    const V in = r[q / 8][q % 8];
    for (int p = 0; p < 24; ++p) sums[p] += in * inverse[q * 24 + p];
  }
  for (int p = 0; p < 24; ++p) z[p / 8][p % 8] = sums[p];
}

void patch(const VolumePatches& B, const float* r, float a, float b, float* d, float* sum, bool first, int begin, int end) {
  const int n1 = B.n[1], m1 = n1 - 1;
  const size_t n2 = B.n[2], layer = n1 * n2, n = B.n[0] * layer;
  gather_layers<float, 3>(
      B.n, begin, end,
      [&](int j, int i, const CellRow<float>& row) {
        const size_t at = j * layer + i * n2;
        const bool room = spare<float>(B.n, at);
        auto smooth = [&](const PatchRun& run, auto solve) EF_LAMBDA {
          for_cells<float>(run.first, run.last, room, [&](int c, auto number) EF_LAMBDA {
            using V = decltype(number);
            V in[3][8], z[3][8], scale[8];
            for (int k = 0; k < 3; ++k) {
              corner_values(r + k * n + at + c, n2, layer, in[k]);
              corner_values(B.scale + k * n + at + c, n2, layer, scale);
              unrolled<8>([&](auto p) EF_LAMBDA { in[k][decltype(p)::value] *= scale[decltype(p)::value]; });
            }
            solve(in, z);
            store_cells(row, c, z);
          });
        };
        const size_t cell_row = size_t(j) * m1 + i;
        for (int k = B.row[cell_row]; k < B.row[cell_row + 1]; ++k) {
          const PatchRun run = B.runs[k];
          const float* inverse = B.dense + size_t(run.kind) * 576;
          if (run.kind == 0) smooth(run, [&](const auto& in, auto& z) EF_LAMBDA { element_smooth<3>(B.blocks, 1.f, in, z); });
          else smooth(run, [&](const auto& in, auto& z) EF_LAMBDA { dense_smooth(inverse, in, z); });
        }
      },
      [&](int j, int i, int k, const float* __restrict sums) {
        const size_t at = k * n + j * layer + i * n2;
        const float* __restrict scale = B.scale + at;
        float *__restrict o = d + at, *__restrict x = sum + at;
        for (size_t c = 0; c < n2; ++c) {
          const float z = b * (scale[c] * sums[c]);
          o[c] = a == 0 ? z : a * o[c] + z;
        }
        if (!sum) return;
        if (first)
          for (size_t c = 0; c < n2; ++c) x[c] = o[c];
        else
          for (size_t c = 0; c < n2; ++c) x[c] += o[c];
      });
}

constexpr int kAxisBit[3] = {4, 2, 1};  // of corners, and of the owned nodes of a coarse cell

// Restriction from the owned nodes of coarse cells of 2 x 2 x 2 fine ones to their corners.
template <class V>
EF_HD void restrict_cell(const VolumeTransfer& P, const V (&y)[3][8], V (&f)[3][8]) {
  unrolled<3>([&](auto component) EF_LAMBDA {
    constexpr int K = decltype(component)::value;
    unrolled<8>([&](auto corner) EF_LAMBDA {
      constexpr int C = decltype(corner)::value;
      V sum = {};
      unrolled<8>([&](auto node) EF_LAMBDA {  // linear along the axes along which the node lies between corners
        constexpr int N = decltype(node)::value;
        if constexpr ((C & ~N) == 0) sum += y[K][N] * float(third_to(0) / (1 << bits_in(N)));
      });
      unrolled<3>([&](auto other) EF_LAMBDA {
        constexpr int L = decltype(other)::value;
        if constexpr (L != K) {
          constexpr int kPair = kAxisBit[K] | kAxisBit[L];
          constexpr bool kPlus = bits_in(C & kPair) % 2 == 0;
          if constexpr ((C & ~kPair) == 0) sum += y[L][kPair] * (kPlus ? P.face[L][K] : -P.face[L][K]);
          sum += y[L][7] * (kPlus ? P.centre[L][K] : -P.centre[L][K]);
        }
      });
      f[K][C] = sum;
    });
  });
}

template <class V>
EF_HD void prolong_cell(const VolumeTransfer& P, const V (&u)[3][8], V (&y)[3][8]) {
  unrolled<3>([&](auto component) EF_LAMBDA {
    constexpr int K = decltype(component)::value;
    unrolled<8>([&](auto node) EF_LAMBDA {
      constexpr int N = decltype(node)::value;
      V sum = {};
      unrolled<8>([&](auto corner) EF_LAMBDA {
        constexpr int C = decltype(corner)::value;
        if constexpr ((C & ~N) == 0) sum += u[K][C];
      });
      sum *= 1.f / (1 << bits_in(N));
      unrolled<3>([&](auto other) EF_LAMBDA {
        constexpr int L = decltype(other)::value;
        if constexpr (L != K) {
          constexpr int kPair = kAxisBit[K] | kAxisBit[L];
          if constexpr (N == kPair || N == 7) {
            V hourglass = {};
            unrolled<8>([&](auto corner) EF_LAMBDA {
              constexpr int C = decltype(corner)::value;
              if constexpr ((C & ~N) == 0) {
                if constexpr (bits_in(C & kPair) % 2 == 0) hourglass += u[L][C];
                else hourglass -= u[L][C];
              }
            });
            sum += hourglass * (N == 7 ? P.centre[K][L] : P.face[K][L]);
          }
        }
      });
      y[K][N] = sum;
    });
  });
}

// Coarse cells of row (J, I) that are worked on in vectors: [0, end)
EF_HD int vector_cells(const VolumeTransfer& P, int J, int I) {
  return P.halved && P.kind(J, I, 0) % 4 == 0 ? P.axis[2].n_coarse - 2 : 0;
}

void restrict_layers(const VolumeTransfer& P, const float* fine, float* coarse, int begin, int end) {
  const int n[3] = {P.axis[0].n_coarse, P.axis[1].n_coarse, P.axis[2].n_coarse};
  const size_t row_f = P.axis[2].n_fine, layer_f = P.axis[1].n_fine * row_f, nf = P.axis[0].n_fine * layer_f;
  const size_t n2 = n[2], layer = n[1] * n2, nc = n[0] * layer;
  gather_layers<float, 3>(
      n, begin, end,
      [&](int J, int I, const CellRow<float>& row) {
        const int whole = vector_cells(P, J, I);
        for_vectors<float>(0, whole, [&](int c, auto number) EF_LAMBDA {
          using V = decltype(number);
          V y[3][8], f[3][8];
          for (int k = 0; k < 3; ++k)
            for (int e = 0; e < 4; ++e) {
              const float* from = fine + k * nf + (2 * J + e / 2) * layer_f + (2 * I + e % 2) * row_f + 2 * c;
              y[k][2 * e] = even<V>(from), y[k][2 * e + 1] = odd<V>(from);
            }
          restrict_cell(P, y, f);
          store_cells(row, c, f);
        });
        for (int c = whole; c < n[2] - 1; ++c) {
          const TransferTable& t = P.table[P.kind(J, I, c)];
          const float* from = fine + P.fine(J, I, c);
          float f[24] = {};
          for (int node = 0; node < t.nodes; ++node)
            for (int k = 0; k < 3; ++k) {
              const float value = from[k * nf + t.offset[node]];
              for (int e = t.row[3 * node + k]; e < t.row[3 * node + k + 1]; ++e) f[t.corner[e]] += t.weight[e] * value;
            }
          for (int p = 0; p < 24; ++p) *row.at(p, c) = f[p];
        }
      },
      [&](int j, int i, int k, const float* __restrict sums) {
        float* __restrict o = coarse + k * nc + j * layer + i * n2;
        for (size_t s = 0; s < n2; ++s) o[s] = sums[s];
      });
}

void prolong_layers(const VolumeTransfer& P, const float* coarse, float* fine, int begin, int end) {
  const int m1 = P.axis[1].n_coarse - 1, m2 = P.axis[2].n_coarse - 1;
  const size_t row_f = P.axis[2].n_fine, layer_f = P.axis[1].n_fine * row_f, nf = P.axis[0].n_fine * layer_f;
  const size_t n2 = m2 + 1, layer = (m1 + 1) * n2, nc = P.axis[0].n_coarse * layer;
  const Scratch<float> room(24 * CellRow<float>::pitch(m2));
  const CellRow<float> row{room.data, m2};
  for (int J = begin; J < end; ++J)
    for (int I = 0; I < m1; ++I) {
      const size_t at = J * layer + I * n2;
      const int whole = vector_cells(P, J, I);
      for_vectors<float>(0, whole, [&](int c, auto number) EF_LAMBDA {
        using V = decltype(number);
        V u[3][8], y[3][8];
        for (int k = 0; k < 3; ++k) corner_values(coarse + k * nc + at + c, n2, layer, u[k]);
        prolong_cell(P, u, y);
        store_cells(row, c, y);
      });
      for (int k = 0; whole && k < 3; ++k)
        for (int e = 0; e < 4; ++e) {
          const float *__restrict a = row.at(8 * k + 2 * e, 0), *__restrict b = row.at(8 * k + 2 * e + 1, 0);
          float* __restrict o = fine + k * nf + (2 * J + e / 2) * layer_f + (2 * I + e % 2) * row_f;
#pragma GCC ivdep
          for (int c = 0; c < whole; ++c) o[2 * c] = a[c], o[2 * c + 1] = b[c];
        }
      for (int c = whole; c < m2; ++c) {
        const TransferTable& t = P.table[P.kind(J, I, c)];
        float* to = fine + P.fine(J, I, c);
        float u[24];
        for (int k = 0; k < 3; ++k) corner_values(coarse + k * nc + at + c, n2, layer, u + 8 * k);
        for (int node = 0; node < t.nodes; ++node)
          for (int k = 0; k < 3; ++k) {
            float value = 0;
            for (int e = t.row[3 * node + k]; e < t.row[3 * node + k + 1]; ++e) value += t.weight[e] * u[t.corner[e]];
            to[k * nf + t.offset[node]] = value;
          }
      }
    }
}

template <class T>
constexpr VolumeContractions<T> kContractions = {force<T>, sensitivity<T>, stiffness_values<T>, contraction_values<T>};
constexpr VolumeCycle kCycle = {residual_minus_product, apply, diagonal, patch, restrict_layers, prolong_layers};

}  // namespace

#define EF_JOIN_(a, b) a##b
#define EF_JOIN(a, b) EF_JOIN_(a, b)

extern const VolumeTable EF_JOIN(volume_kernels_, EF_ISA);
const VolumeTable EF_JOIN(volume_kernels_, EF_ISA) = {&kContractions<float>, &kContractions<double>, &kCycle};

}  // namespace elastofast
