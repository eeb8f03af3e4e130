// What the threads of a warpgroup do together, on any device from sm_80 on: what a Group of tile.hpp is to have, but sync().
#pragma once
#include "tile.hpp"

namespace simmim {

SIMMIM_DEVICE uint32_t shared_address(void const* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

struct Warpgroup {
  SIMMIM_DEVICE int thread() const { return threadIdx.x % WARPGROUP; }
  SIMMIM_DEVICE int lane() const { return threadIdx.x % WARP; }
  SIMMIM_DEVICE void sync_warp() { __syncwarp(); }
  SIMMIM_DEVICE bool all(bool v) { return __all_sync(~0u, v); }
  template <class T>
  SIMMIM_DEVICE T shuffle_xor(T v, int mask) { return __shfl_xor_sync(~0u, v, mask); }
  // Of a warp, NaN before all else. By integers, which are in the order of the floats that they are made from.
  SIMMIM_DEVICE float largest(float v) {
    auto const ordered = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
    return __int_as_float(ordered(__reduce_max_sync(~0u, ordered(__float_as_int(v)))));
  }
  template <Operand OPERAND>
  SIMMIM_DEVICE uint32_t pair(float low, float high) {
    uint32_t pair;
    if constexpr (OPERAND == Operand::BFLOAT16)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
};

}  // namespace simmim
