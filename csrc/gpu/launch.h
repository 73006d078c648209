// Where device bodies run. A body is a function of (batch member, index) and its own arguments, with no communication
// between indices; the CUDA queue runs it in one thread each, the host queue in a loop, so that every index computation
// can be tested without a GPU.
//
// A queue offers
//   each(batch, n, body)               body(member, index) for all indices
//   gather<T>(batch, n0, n1, cell, out)  cell(member, row, column) gives CornerForces<T> of a cell of n0 x n1 nodes,
//                                      out(member, node, u, v, kept) takes what the cells around a node add up to; kept is
//                                      what out.keep(member, node) has read before: memory is waited for once, not twice
//   sum(batch, n, term, room, finish)  term(member, index, sums) adds up, finish(member, sums) gets the result; in a fixed
//                                      order and without atomics; room: sum_room(n, batch) doubles
//   together(blocks, body)             body(queue, block): a sequence of each, gather and sum on small data in one go, with
//                                      a queue whose `member` the body sets
//   Recording                          repeats a sequence of launches as one
#pragma once
#include <cstring>

#include "../cell.h"

namespace elastofast {

constexpr int kChannels = 2;  // sums that are made at once
constexpr long kShares = 512;  // blocks that share a sum, for all members 4 times as many

inline long sum_shares(long n, long batch) {
  const long wanted = (n + 2047) / 2048, most = kShares < 4 * kShares / batch ? kShares : 4 * kShares / batch;
  return wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most;
}
inline long sum_room(long n, long batch) { return batch * sum_shares(n, batch) * kChannels; }

// Tiles of a gather. A thread computes one cell; a row of them adds up what neighbours to the left and right give to the
// nodes between them, and hands the lower half down to the next row. Each cell is so computed once but at the edges of tiles.
struct Tile {
  static constexpr int kColumns = 32, kRows = 12;
  static EF_HD long across(int n1) { return (n1 + kColumns - 2) / (kColumns - 1); }
  static EF_HD long down(int n0) { return (n0 + kRows - 2) / (kRows - 1); }
  // of the cell of a thread, which is that of the node at its upper left corner, in block (across, down)
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
              out(member, node, low[tx][0] + (left.u.b + f.u.a), low[tx][1] + (left.v.b + f.v.a), out.keep(member, node));
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
