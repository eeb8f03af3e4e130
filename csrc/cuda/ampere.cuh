// What the mma body needs of GPUs from Ampere (sm_80) on, each instruction in a wrapper of its own. Names and operands are as
// in the PTX ISA 8.x: cp.async, ldmatrix, mma, cvt.rna.
#pragma once
#include "mma_body.hpp"
#include "warpgroup.cuh"

namespace simmim {

#define SIMMIM_MMA(SHAPE_AND_TYPES)                                                                           \
  asm("mma.sync.aligned." SHAPE_AND_TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[at]), "+f"(d[at + 1]), "+f"(d[at + 2]), "+f"(d[at + 3])                                        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

struct Ampere : Warpgroup {
  static constexpr bool TWO_WAYS = false;
  SIMMIM_DEVICE int cluster() const { return blockIdx.x; }
  SIMMIM_DEVICE int clusters() const { return gridDim.x; }
  SIMMIM_DEVICE void sync() { __syncthreads(); }

  // 16 bytes to shared memory, or as many zeros.
  SIMMIM_DEVICE void copy(void* to, void const* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
                 : "memory");
  }
  SIMMIM_DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int UNDER_WAY>
  SIMMIM_DEVICE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(UNDER_WAY) : "memory");
  }

  // 4 matrices of 8 rows of 16 bytes. Of each a lane gets 4 bytes: those at lane % 4 of row lane / 4.
  template <Operand OPERAND>
  SIMMIM_DEVICE void read(uint32_t (&v)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(shared_address(row))
                 : "memory");
    if constexpr (OPERAND == Operand::FLOAT32) {
      SIMMIM_UNROLL
      for (uint32_t& each : v) asm("cvt.rna.tf32.f32 %0, %0;" : "+r"(each));
    }
  }

  // d (16, 8) of a warp, 4 of a lane's from `at` on, += A (16, 32 bytes) B (8, 32 bytes)^T, as `read` gives them.
  template <Operand OPERAND, int COUNT>
  SIMMIM_DEVICE void multiply(float (&d)[COUNT], int at, uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (OPERAND == Operand::BFLOAT16)
      SIMMIM_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    else if constexpr (OPERAND == Operand::FLOAT16)
      SIMMIM_MMA("m16n8k16.row.col.f32.f16.f16.f32");
    else
      SIMMIM_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
};

}  // namespace simmim
