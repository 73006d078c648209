// Sums over a batch in a fixed order and without atomics: each index adds up a strided share, then shares of shares.
#pragma once
#include "launch.h"

namespace elastofast {

constexpr long kShares = 16384, kGroups = 128;
constexpr int kChannels = 2;
constexpr long kSumRoom = (kShares + kGroups) * kChannels;  // doubles for each batch member

template <class Term>
struct ShareBody {
  Term term;
  long n, shares;
  double* out;
  EF_HD void operator()(int b, long k) const {
    double sum[kChannels] = {};
    for (long i = k; i < n; i += shares) term(b, i, sum);
    for (int c = 0; c < kChannels; ++c) out[kSumRoom * b + c * kShares + k] = sum[c];
  }
};

struct GroupBody {
  long shares, groups;
  double* room;
  EF_HD void operator()(int b, long k) const {
    for (int c = 0; c < kChannels; ++c) {
      const double* in = room + kSumRoom * b + c * kShares;
      double sum = 0;
      for (long i = k; i < shares; i += groups) sum += in[i];
      room[kSumRoom * b + kChannels * kShares + c * kGroups + k] = sum;
    }
  }
};

template <class Finish>
struct FinishBody {
  Finish finish;
  long groups;
  const double* room;
  EF_HD void operator()(int b, long) const {
    double sum[kChannels] = {};
    for (int c = 0; c < kChannels; ++c)
      for (long i = 0; i < groups; ++i) sum[c] += room[kSumRoom * b + kChannels * kShares + c * kGroups + i];
    finish(b, sum);
  }
};

// finish(b, sums) gets what term(b, i, sums) has added up over i < n.
template <class Queue, class Term, class Finish>
void launch_sum(const Queue& queue, long batch, long n, Term term, double* room, Finish finish) {
  const long shares = n < kShares ? n : kShares, groups = shares < kGroups ? shares : kGroups;
  queue.each(batch, shares, ShareBody<Term>{term, n, shares, room});
  queue.each(batch, groups, GroupBody{shares, groups, room});
  queue.each(batch, 1, FinishBody<Finish>{finish, groups, room});
}

}  // namespace elastofast
