// The kernels that take lines one by one (lines.hpp), for any GPU.
#pragma once
#include "lines.hpp"

namespace simmim {

struct DeviceElements {
  template <Operand OPERAND>
  SIMMIM_DEVICE float value(typename ElementOf<OPERAND>::Type v) const {
    if constexpr (OPERAND == Operand::FLOAT32) {
      return v;
    } else if constexpr (OPERAND == Operand::BFLOAT16) {
      return __uint_as_float(uint32_t(v) << 16);
    } else {
      float wide;
      asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v));
      return wide;
    }
  }
  template <Operand OPERAND>
  SIMMIM_DEVICE typename ElementOf<OPERAND>::Type element(float v) const {
    if constexpr (OPERAND == Operand::FLOAT32) {
      return v;
    } else {
      uint16_t narrow;
      if constexpr (OPERAND == Operand::BFLOAT16)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
      else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
      return narrow;
    }
  }
};

SIMMIM_DEVICE float over_warp(float v) {
  SIMMIM_UNROLL
  for (int stride = WARP / 2; stride > 0; stride /= 2) v += __shfl_xor_sync(~0u, v, stride);
  return v;
}

template <Operand OPERAND>
__global__ void __launch_bounds__(WARP* LINES) joint_pairs(__grid_constant__ JointPairs const p, int lines) {
  int const i = blockIdx.x * LINES + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (i >= lines) return;
  float const product = over_warp(joint_product<OPERAND>(DeviceElements{}, p, i, lane));
  if (lane == 0) joint_pair(p, i, product);
}

// 4 blocks a multiprocessor: left to itself ptxas saves registers, and spills some.
template <Operand OPERAND>
__global__ void __launch_bounds__(WARP* LINES, 4) finish(__grid_constant__ Finish const f) {
  int64_t const line = int64_t(blockIdx.x) * LINES + threadIdx.x / WARP;
  int const lane = threadIdx.x % WARP;
  auto const end = [&](Ends const& ends, int i) {
    float const dot = over_warp(end_line<OPERAND>(DeviceElements{}, f, ends, i, lane));
    if (lane == 0) end_dot(f, ends, i, dot);
  };
  if (line < f.rows.count)
    end(f.rows, int(line));
  else if (line - f.rows.count < f.columns.count)
    end(f.columns, int(line - f.rows.count));
}

// By one block.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) total(Total t) {
  __shared__ float parts[THREADS];
  parts[threadIdx.x] = total_part(t, threadIdx.x);
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *t.sum = parts[0] * t.factor;
}

}  // namespace simmim
