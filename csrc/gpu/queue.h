// The queue of launch.h on a CUDA device.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "launch.h"

namespace elastofast {

// Runs bodies on a CUDA device, in the order of a stream.
struct CudaQueue {
  int device;
  void* stream;
  class Recording;

  void begin() const;  // makes the device current
  template <class Body>
  void each(long batch, long n, const Body& body) const;
  template <class T, class Cell, class Out>
  void gather(long batch, int n0, int n1, const Cell& cell, const Out& out) const;
  template <class Term, class Finish>
  void sum(long batch, long n, const Term& term, double* room, const Finish& finish) const;
  template <class Body>
  void together(long blocks, const Body& body) const;
  void zero(void* data, size_t bytes) const;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would be blamed
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
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

template <class T, class Cell, class Out>
__global__ void __launch_bounds__(Tile::kColumns* Tile::kRows)
    run_gather(int n0, int n1, const __grid_constant__ Cell cell, const __grid_constant__ Out out) {
  __shared__ T low[Tile::kRows][2][Tile::kColumns];
  const int tx = threadIdx.x, ty = threadIdx.y, b = blockIdx.z;
  const int j = Tile::row(blockIdx.y, ty), i = Tile::column(blockIdx.x, tx);
  const bool own = ty && tx && j < n0 && i < n1;
  const long node = long(j) * n1 + i;
  decltype(out.before(0, 0)) before{};
  if (own) before = out.before(b, node);
  const CornerForces<T> f = cell_if_there<T>(n0, n1, cell, b, j, i);
  auto left = [](T value) { return __shfl_up_sync(0xffffffffu, value, 1); };
  low[ty][0][tx] = left(f.u.d) + f.u.c, low[ty][1][tx] = left(f.v.d) + f.v.c;
  const T u = left(f.u.b) + f.u.a, v = left(f.v.b) + f.v.a;
  __syncthreads();
  if (own) out(b, node, low[ty - 1][0][tx] + u, low[ty - 1][1][tx] + v, before);
}

// What `together` gives: the threads of one block, which wait for each other after each step.
struct CudaBlock {
  static constexpr int kThreads = 1024;
  int member = 0;
  static __device__ float* room() {  // one for all gathers of a kernel
    __shared__ float values[4 * kThreads];
    return values;
  }
  template <class Body>
  __device__ void each(long, long n, const Body& body) const {
    for (long k = threadIdx.x; k < n; k += kThreads) body(member, k);
    __syncthreads();
  }
  template <class T, class Cell, class Out>  // for up to kThreads nodes
  __device__ void gather(long, int n0, int n1, const Cell& cell, const Out& out) const {
    static_assert(sizeof(T) == sizeof(float), "single precision only");
    T* sums = room();  // what cells give to the nodes at their right: below, above; two components each
    const int k = threadIdx.x, j = k / n1, i = k % n1;
    const bool there = j < n0;
    CornerForces<T> f{};
    decltype(out.before(0, 0)) before{};
    if (there) {
      before = out.before(member, k);
      f = cell_if_there<T>(n0, n1, cell, member, j, i);
    }
    auto put = [&](int which, T value) { sums[which * kThreads + k] = value; };
    auto take = [&](int which, bool exists, int distance) {
      return exists ? sums[which * kThreads + k - distance] : T(0);
    };
    put(0, f.u.d), put(1, f.v.d), put(2, f.u.b), put(3, f.v.b);
    __syncthreads();
    const bool left = there && i > 0, above = there && j > 0;
    const T cu = take(0, left, 1) + f.u.c, cv = take(1, left, 1) + f.v.c;
    const T u = take(2, left, 1) + f.u.a, v = take(3, left, 1) + f.v.a;
    __syncthreads();
    put(0, cu), put(1, cv);
    __syncthreads();
    if (there) out(member, k, take(0, above, n1) + u, take(1, above, n1) + v, before);
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

template <class T, class Cell, class Out>
void CudaQueue::gather(long batch, int n0, int n1, const Cell& cell, const Out& out) const {
  if (batch == 0) return;
  const dim3 grid{unsigned(Tile::across(n1)), unsigned(Tile::down(n0)), unsigned(batch)};
  const dim3 threads{Tile::kColumns, Tile::kRows};
  run_gather<T><<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(n0, n1, cell, out);
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

inline void CudaQueue::begin() const { check(cudaSetDevice(device), "cudaSetDevice"); }

// Runs a sequence of launches one by one the first times, then as a graph, which takes the processor a tenth of the time.
// It must always be the same sequence on the same memory; the stream may change.
class CudaQueue::Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  ~Recording() {
    if (graph_) cudaGraphExecDestroy(graph_);
  }
  template <class Work>
  void run(const CudaQueue& queue, const Work& work) {
    if (runs_++ < kPlain) return work(queue);
    if (!graph_) record(queue, work);
    check(cudaGraphLaunch(graph_, static_cast<cudaStream_t>(queue.stream)), "cudaGraphLaunch");
  }

 private:
  static constexpr int kPlain = 2;  // making a graph takes about as long as that saves
  template <class Work>
  void record(const CudaQueue& queue, const Work& work) {
    cudaStream_t stream;  // the caller's may be the default stream, which cannot record
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    cudaGraph_t recorded = nullptr;
    try {
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
      try {
        work(CudaQueue{queue.device, stream});
      } catch (...) {
        cudaStreamEndCapture(stream, &recorded);
        throw;
      }
      check(cudaStreamEndCapture(stream, &recorded), "cudaStreamEndCapture");
      check(cudaGraphInstantiateWithFlags(&graph_, recorded, 0), "cudaGraphInstantiateWithFlags");
    } catch (...) {
      if (recorded) cudaGraphDestroy(recorded);
      cudaStreamDestroy(stream);
      throw;
    }
    cudaGraphDestroy(recorded);
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  }

  int runs_ = 0;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace elastofast
