// Where device bodies run. A body is a function of (batch member, index) and its own arguments, with no communication
// between indices; the CUDA queue runs it in one thread each, the host queue in a loop, so that every index computation
// can be tested without a GPU.
//
// A queue offers
//   each(batch, n, body)               body(member, index) for all indices
//   sum(batch, n, term, room, finish)  term(member, index, sums) adds up, finish(member, sums) gets the result; in a fixed
//                                      order and without atomics; room: sum_room(n, batch) doubles
//   together(blocks, body)             body(queue, block): a sequence of each and sum on small data in one go, with a queue
//                                      whose `member` the body sets
//   share(batch)                       how many indices a member should have to keep the device busy
#pragma once
#include <cstring>

#include "host_device.h"

namespace elastofast {

#if !defined(EF_BLOCK)
#define EF_BLOCK 1024
#endif
constexpr int kChannels = 2;  // sums that are made at once
constexpr long kShares = 512;  // blocks that share a sum, for all members 4 times as many

inline long sum_shares(long n, long batch) {
  const long wanted = (n + 2047) / 2048, most = kShares < 4 * kShares / batch ? kShares : 4 * kShares / batch;
  return wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most;
}
inline long sum_room(long n, long batch) { return batch * sum_shares(n, batch) * kChannels; }

// Runs bodies on the processor, for tests.
struct HostQueue {
  long width = 1;  // indices that are wanted in flight at once
  long share(long batch) const { return width / batch; }

  template <class Body>
  void each(long batch, long n, const Body& body) const {
    for (long b = 0; b < batch; ++b)
      for (long k = 0; k < n; ++k) body(int(b), k);
  }
  template <class Term, class Finish>
  void sum(long batch, long n, const Term& term, double*, const Finish& finish) const {
    for (long b = 0; b < batch; ++b) {
      double sums[kChannels] = {};
      for (long k = 0; k < n; ++k) term(int(b), k, sums);
      finish(int(b), sums);
    }
  }
  template <class Body>
  void together(long blocks, const Body& body) const;
  void zero(void* data, size_t bytes) const { std::memset(data, 0, bytes); }
};

// What `together` gives on the processor.
struct HostBlock {
  long width;
  int member = 0;
  long share(long) const { return width; }
  template <class Body>
  void each(long, long n, const Body& body) const {
    for (long k = 0; k < n; ++k) body(member, k);
  }
  template <class Term, class Finish>
  void sum(long, long n, const Term& term, double*, const Finish& finish) const {
    double sums[kChannels] = {};
    for (long k = 0; k < n; ++k) term(member, k, sums);
    finish(member, sums);
  }
};

template <class Body>
void HostQueue::together(long blocks, const Body& body) const {
  for (long k = 0; k < blocks; ++k) body(HostBlock{width}, int(k));
}

// Runs bodies on a CUDA device, in the order of a stream.
struct CudaQueue {
  void* stream;
  long width;

  CudaQueue(int device, void* stream);  // makes the device current
  long share(long batch) const { return width / batch; }
  template <class Body>
  void each(long batch, long n, const Body& body) const;
  template <class Term, class Finish>
  void sum(long batch, long n, const Term& term, double* room, const Finish& finish) const;
  template <class Body>
  void together(long blocks, const Body& body) const;
  void zero(void* data, size_t bytes) const;
};

}  // namespace elastofast

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

namespace elastofast {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class Body>
__global__ void __launch_bounds__(256) run(long n, const __grid_constant__ Body body) {
  const long k = long(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < n) body(int(blockIdx.y), k);
}

// The sums of all threads of a block, in its first thread.
__device__ inline void block_sum(double* sums) {
  __shared__ double warps[kChannels][32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = blockDim.x / 32;
  for (int c = 0; c < kChannels; ++c) {
    for (int step = 16; step > 0; step /= 2) sums[c] += __shfl_down_sync(0xffffffffu, sums[c], step);
    if (lane == 0) warps[c][warp] = sums[c];
  }
  __syncthreads();
  if (warp == 0)
    for (int c = 0; c < kChannels; ++c) {
      sums[c] = lane < count ? warps[c][lane] : 0;
      for (int step = 16; step > 0; step /= 2) sums[c] += __shfl_down_sync(0xffffffffu, sums[c], step);
    }
  __syncthreads();  // the room may be used again
}

template <class Term, class Finish>
__global__ void __launch_bounds__(256)
    run_shares(long n, const __grid_constant__ Term term, double* room, const __grid_constant__ Finish finish) {
  double sums[kChannels] = {};
  const long stride = long(gridDim.x) * blockDim.x;
#pragma unroll 4
  for (long k = long(blockIdx.x) * blockDim.x + threadIdx.x; k < n; k += stride) term(int(blockIdx.y), k, sums);
  block_sum(sums);
  if (threadIdx.x) return;
  if (gridDim.x == 1)
    finish(int(blockIdx.y), sums);
  else
    for (int c = 0; c < kChannels; ++c) room[(long(blockIdx.y) * gridDim.x + blockIdx.x) * kChannels + c] = sums[c];
}

template <class Finish>
__global__ void __launch_bounds__(256)
    run_finish(int shares, const double* room, const __grid_constant__ Finish finish) {
  double sums[kChannels] = {};
  for (int k = threadIdx.x; k < shares; k += blockDim.x)
    for (int c = 0; c < kChannels; ++c) sums[c] += room[(long(blockIdx.x) * shares + k) * kChannels + c];
  block_sum(sums);
  if (threadIdx.x == 0) finish(int(blockIdx.x), sums);
}

// What `together` gives: the threads of one block, which wait for each other after each step.
struct CudaBlock {
  static constexpr int kThreads = EF_BLOCK;
  int member = 0;
  EF_HD long share(long) const { return kThreads; }
  template <class Body>
  __device__ void each(long, long n, const Body& body) const {
    for (long k = threadIdx.x; k < n; k += kThreads) body(member, k);
    __syncthreads();
  }
  template <class Term, class Finish>
  __device__ void sum(long, long n, const Term& term, double*, const Finish& finish) const {
    double sums[kChannels] = {};
    for (long k = threadIdx.x; k < n; k += kThreads) term(member, k, sums);
    block_sum(sums);
    if (threadIdx.x == 0) finish(member, sums);
    __syncthreads();
  }
};

template <class Body>
__global__ void __launch_bounds__(CudaBlock::kThreads) run_together(const __grid_constant__ Body body) {
  body(CudaBlock{}, int(blockIdx.x));
}

template <class Body>
void CudaQueue::each(long batch, long n, const Body& body) const {
  if (batch == 0 || n == 0) return;
  const unsigned threads = n < 256 ? unsigned((n + 31) / 32 * 32) : 256;
  const dim3 grid(unsigned((n + threads - 1) / threads), unsigned(batch));
  run<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(n, body);
  check(cudaGetLastError(), "launch");
}

template <class Term, class Finish>
void CudaQueue::sum(long batch, long n, const Term& term, double* room, const Finish& finish) const {
  if (batch == 0) return;
  const long shares = sum_shares(n, batch);
  const dim3 grid{unsigned(shares), unsigned(batch)};
  run_shares<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(n, term, room, finish);
  if (shares > 1) run_finish<<<unsigned(batch), 256, 0, static_cast<cudaStream_t>(stream)>>>(int(shares), room, finish);
  check(cudaGetLastError(), "launch");
}

template <class Body>
void CudaQueue::together(long blocks, const Body& body) const {
  if (blocks == 0) return;
  run_together<<<unsigned(blocks), CudaBlock::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(body);
  check(cudaGetLastError(), "launch");
}

inline void CudaQueue::zero(void* data, size_t bytes) const {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

// How many threads keep half of a device busy; asked once for each, since a queue is made for every call.
inline long threads_wanted(int device) {
  static std::array<std::atomic<long>, 64> known{};
  if (device < int(known.size()) && known[device]) return known[device];
  int processors = 0, threads = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device), "cudaDeviceGetAttribute");
  const long wanted = long(processors) * threads / 2;
  if (device < int(known.size())) known[device] = wanted;
  return wanted;
}

inline CudaQueue::CudaQueue(int device, void* stream) : stream(stream) {
  check(cudaSetDevice(device), "cudaSetDevice");
  width = threads_wanted(device);
}

}  // namespace elastofast
#endif
