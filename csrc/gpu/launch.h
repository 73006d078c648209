// How device code is launched. A kernel is written as a body: a function object of (batch member, index) that holds its
// arguments. Indices do not communicate. A queue runs a body for all indices: on a GPU (queue.h) each index in a thread of its
// own, on the processor (HostQueue below) in a loop, so that every index computation can be tested without a GPU.
//
// A queue offers
//   each(batch, n, body)
//     Calls body(member, index) for all members of the batch and all n indices.
//   gather<T>(batch, n0, n1, cell, out)
//     Sums cell contributions at the n0 x n1 nodes of a grid: cell(member, row, column) returns the CornerForces<T> of one
//     cell, and out(member, node, u, v, before) receives the two sums at a node. `before` is what out.before(member, node)
//     returned: it reads all that `out` needs from memory before the cells are computed, so that both waits overlap.
//   sum(batch, n, term, room, finish)
//     Reductions over the indices, in a fixed order and without atomics: term(member, index, sums) adds an index's terms
//     to up to kChannels sums, finish(member, sums) receives the totals. room: memory for sum_room(n, batch) doubles.
//   together(blocks, body)
//     Calls body(queue, block) in one block of threads each. The body sets the queue's `member` and runs a sequence of
//     each, gather and sum on small data, which then costs one launch instead of many.
//   Recording
//     Repeats a sequence of launches as one (a CUDA graph).
#pragma once
#include <cstring>

#include "../cell.h"

namespace elastofast {

constexpr int kChannels = 2;   // sums that are formed at once
constexpr long kShares = 512;  // blocks of threads that share a sum, at most; for all members together 4 times as many
constexpr long kShare = 2048;  // terms of a block, about. Neither was studied

inline long sum_shares(long n, long batch) {
  const long wanted = (n + kShare - 1) / kShare, most = kShares < 4 * kShares / batch ? kShares : 4 * kShares / batch;
  return wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most;
}
inline long sum_room(long n, long batch) { return batch * sum_shares(n, batch) * kChannels; }

// Tiles of a gather. A block of threads computes a tile of cells, one cell a thread, and forms the sums at the nodes inside
// the tile: first each row of threads adds what horizontal neighbours contribute to the nodes between them, then each adds
// the lower half of the row above. Only cells at the edges of tiles are computed more than once.
struct Tile {
  static constexpr int kColumns = 32, kRows = 12;
  static EF_HD long across(int n1) { return (n1 + kColumns - 2) / (kColumns - 1); }
  static EF_HD long down(int n0) { return (n0 + kRows - 2) / (kRows - 1); }
  // row and column of a thread's cell, which are those of the node at its upper left corner
  static EF_HD int row(long block, int thread) { return int(block) * (kRows - 1) - 1 + thread; }
  static EF_HD int column(long block, int thread) { return int(block) * (kColumns - 1) - 1 + thread; }
};

template <class T, class Cell>
EF_HD CornerForces<T> cell_if_there(int n0, int n1, const Cell& cell, int member, int j, int i) {
  if (j < 0 || j >= n0 - 1 || i < 0 || i >= n1 - 1) return {};
  return cell(member, j, i);
}

// What `together` gives on the processor, for tests: one member of a batch.
struct HostBlock {
  int member = 0;
  template <class Body>
  void each(long, long n, const Body& body) const {
    for (long k = 0; k < n; ++k) body(member, k);
  }
  template <class T, class Cell, class Out>
  void gather(long, int n0, int n1, const Cell& cell, const Out& out) const {
    for (long y = 0; y < Tile::down(n0); ++y)
      for (long x = 0; x < Tile::across(n1); ++x) {
        T low[Tile::kColumns][2];
        for (int ty = 0; ty < Tile::kRows; ++ty) {
          const int j = Tile::row(y, ty);
          CornerForces<T> left{};
          for (int tx = 0; tx < Tile::kColumns; ++tx) {
            const int i = Tile::column(x, tx);
            const CornerForces<T> f = cell_if_there<T>(n0, n1, cell, member, j, i);
            const long node = long(j) * n1 + i;
            if (ty && tx && j < n0 && i < n1)
              out(member, node, low[tx][0] + (left.u.b + f.u.a), low[tx][1] + (left.v.b + f.v.a), out.before(member, node));
            low[tx][0] = left.u.d + f.u.c, low[tx][1] = left.v.d + f.v.c;
            left = f;
          }
        }
      }
  }
  template <class Term, class Finish>
  void sum(long, long n, const Term& term, double*, const Finish& finish) const {
    double sums[kChannels] = {};
    for (long k = 0; k < n; ++k) term(member, k, sums);
    finish(member, sums);
  }
};

// Runs bodies on the processor, for tests: member by member.
struct HostQueue {
  struct Recording {
    template <class Work>
    void run(const HostQueue& queue, const Work& work) { work(queue); }
  };
  template <class Body>
  void each(long batch, long n, const Body& body) const {
    for (int b = 0; b < batch; ++b) HostBlock{b}.each(1, n, body);
  }
  template <class T, class Cell, class Out>
  void gather(long batch, int n0, int n1, const Cell& cell, const Out& out) const {
    for (int b = 0; b < batch; ++b) HostBlock{b}.gather<T>(1, n0, n1, cell, out);
  }
  template <class Term, class Finish>
  void sum(long batch, long n, const Term& term, double* room, const Finish& finish) const {
    for (int b = 0; b < batch; ++b) HostBlock{b}.sum(1, n, term, room, finish);
  }
  template <class Body>
  void together(long blocks, const Body& body) const {
    for (int k = 0; k < blocks; ++k) body(HostBlock{}, k);
  }
  void zero(void* data, size_t bytes) const { std::memset(data, 0, bytes); }
  void begin() const {}
};

}  // namespace elastofast
