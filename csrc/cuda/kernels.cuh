// The kernels themselves: for nvcc, which compiles the host's part along with them, and for NVRTC, which knows no host.
#pragma once
#include "ampere.cuh"
#include "hopper.cuh"
#include "lines.cuh"
#include "log_sum_exps.hpp"
#include "merge.hpp"
#include "sums.hpp"
#include "weights.hpp"

namespace simmim {

template <class S, class Epilogue>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(__grid_constant__ CUtensorMap const x, __grid_constant__ CUtensorMap const y, int steps, Grid grid, __grid_constant__ typename Epilogue::Params const params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  Hopper<S> machine;
  products<S, Epilogue>(machine, *reinterpret_cast<Storage<S, Epilogue, HopperBarrier>*>(memory), x, y, steps, grid, params);
#endif
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    narrow(__grid_constant__ CUtensorMap const x, __grid_constant__ CUtensorMap const y, __grid_constant__ NarrowParams const params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  Hopper<S> machine;
  narrow_products<S>(machine, *reinterpret_cast<NarrowStorage<S, HopperBarrier>*>(memory), x, y, params);
#endif
}

template <class S, class Epilogue>
__global__ void __launch_bounds__(WARPGROUP, 2)
    mma_kernel(Matrix<typename S::Element> x, Matrix<typename S::Element> y, int steps, Grid grid, __grid_constant__ typename Epilogue::Params const params) {
  extern __shared__ __align__(1024) char memory[];
  Ampere machine;
  mma_products<S, Epilogue>(machine, *reinterpret_cast<MmaStorage<S, Epilogue>*>(memory), x, y, steps, grid, params);
}

// A block of threads has WARP sums; each of its warps takes a slice of their parts.
template <bool LOG>
__global__ void __launch_bounds__(WARP* SLICES) merge(Merge by_row, Merge by_column, int row_blocks) {
  __shared__ float slices[SLICES][WARP];
  bool const of_row = int(blockIdx.x) < row_blocks;
  // Field by field: a choice between the two as a whole would be made in local memory.
  Merge const m{of_row ? by_row.parts : by_column.parts, of_row ? by_row.total : by_column.total, of_row ? by_row.extent : by_column.extent,
                of_row ? by_row.count : by_column.count, of_row ? by_row.first : by_column.first, of_row ? by_row.last : by_column.last};
  int const lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
  int const at = (blockIdx.x - (of_row ? 0 : row_blocks)) * WARP + lane;
  if (at < m.extent) slices[slice][lane] = merged_slice<LOG>(m, at, slice);
  __syncthreads();
  if (slice == 0 && at < m.extent) merge_slices<LOG>(m, at, &slices[0][lane], WARP);
}

}  // namespace simmim
