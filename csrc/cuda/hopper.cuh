// What the kernels' body needs of Hopper (sm_90a), each instruction in a wrapper of its own. Names and operands are as in
// the PTX ISA 8.x: mbarrier, cp.async.bulk.tensor, wgmma.mma_async, setmaxnreg.
#pragma once
#ifdef __CUDACC_RTC__
struct alignas(64) CUtensorMap_st {  // as <cuda.h> has it
  unsigned long opaque[16];
};
using CUtensorMap = CUtensorMap_st;
#else
#include <cuda.h>
#endif

#include "narrow.hpp"
#include "warpgroup.cuh"

namespace simmim {

struct HopperBarrier {
  uint64_t state;

  SIMMIM_DEVICE void init(uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count) : "memory");
  }
  SIMMIM_DEVICE void expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes) : "memory");
  }
  SIMMIM_DEVICE void wait(uint32_t parity) {
    uint32_t done;
    do {
      asm volatile(
          "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
          : "=r"(done)
          : "r"(shared_address(this)), "r"(parity)
          : "memory");
    } while (!done);
  }
  // At this barrier of another block of the cluster. Says that asynchronous reads have ended, which were awaited: no
  // writes are to be seen there, and to release them too, at the scope of the cluster, would cost a fence of the device.
  SIMMIM_DEVICE void arrive_at(uint32_t block) {
    asm volatile(
        "{.reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [a];}" ::"r"(shared_address(this)),
        "r"(block)
        : "memory");
  }
  SIMMIM_DEVICE void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory"); }
};

// What a warpgroup's instructions add to, by places in their text and as operands: 32 numbers a thread, or 64.
#define SIMMIM_PLACES_32                                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                             \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SIMMIM_PLACES_64                                                                                               \
  SIMMIM_PLACES_32 ", "                                                                                                \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                   \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SIMMIM_SUMS_32                                                                                                 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                      \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),                \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),              \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define SIMMIM_SUMS_64                                                                                                 \
  SIMMIM_SUMS_32,                                                                                                      \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),              \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),              \
  "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),              \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// d (64, 128) of a warpgroup, + or = X (64, 32 bytes) Y (128, 32 bytes)^T, both in shared memory, row by row. MAJOR says so
// where there is a choice, which there is none of for TF32.
#define SIMMIM_WGMMA(SHAPE_AND_TYPES, MAJOR)                                                                           \
  asm volatile(                                                                                                        \
      "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"                                                                        \
      "wgmma.mma_async.sync.aligned." SHAPE_AND_TYPES " {" SIMMIM_PLACES_64 "}, %64, %65, p, 1, 1" MAJOR ";}"          \
      : SIMMIM_SUMS_64                                                                                                 \
      : "l"(x), "l"(y), "r"(add))

template <Operand OPERAND>
SIMMIM_DEVICE void wgmma(float (&d)[64], uint64_t x, uint64_t y, int add) {
  if constexpr (OPERAND == Operand::BFLOAT16)
    SIMMIM_WGMMA("m64n128k16.f32.bf16.bf16", ", 0, 0");
  else if constexpr (OPERAND == Operand::FLOAT16)
    SIMMIM_WGMMA("m64n128k16.f32.f16.f16", ", 0, 0");
  else
    SIMMIM_WGMMA("m64n128k8.f32.tf32.tf32", "");
}

// d (64, 128) or (64, 64) of a warpgroup, + or = G (64, 16) Y (16, 128 or 64), G in registers and Y in shared memory, read by
// columns. G, Y and ADD are where these three are in the text.
#define SIMMIM_WGMMA_BY_COLUMNS(SHAPE_AND_TYPES, PLACES, SUMS, G, Y, ADD)                                              \
  asm volatile(                                                                                                        \
      "{.reg .pred p; setp.ne.b32 p, " ADD ", 0;\n"                                                                    \
      "wgmma.mma_async.sync.aligned." SHAPE_AND_TYPES " {" PLACES "}, {" G "}, " Y ", p, 1, 1, 1;}"                    \
      : SUMS                                                                                                           \
      : "r"(g[0]), "r"(g[1]), "r"(g[2]), "r"(g[3]), "l"(y), "r"(add))
#define SIMMIM_WGMMA_BY_128(TYPES) \
  SIMMIM_WGMMA_BY_COLUMNS("m64n128k16." TYPES, SIMMIM_PLACES_64, SIMMIM_SUMS_64, "%64, %65, %66, %67", "%68", "%69")
#define SIMMIM_WGMMA_BY_64(TYPES) \
  SIMMIM_WGMMA_BY_COLUMNS("m64n64k16." TYPES, SIMMIM_PLACES_32, SIMMIM_SUMS_32, "%32, %33, %34, %35", "%36", "%37")

template <Operand OPERAND>
SIMMIM_DEVICE void wgmma_by_columns(float (&d)[64], uint32_t const* g, uint64_t y, int add) {
  if constexpr (OPERAND == Operand::BFLOAT16)
    SIMMIM_WGMMA_BY_128("f32.bf16.bf16");
  else
    SIMMIM_WGMMA_BY_128("f32.f16.f16");
}
template <Operand OPERAND>
SIMMIM_DEVICE void wgmma_by_columns(float (&d)[32], uint32_t const* g, uint64_t y, int add) {
  if constexpr (OPERAND == Operand::BFLOAT16)
    SIMMIM_WGMMA_BY_64("f32.bf16.bf16");
  else
    SIMMIM_WGMMA_BY_64("f32.f16.f16");
}

template <class S>
struct Hopper : Warpgroup {
  static constexpr bool TWO_WAYS = true;  // through an epilogue: there are registers for them
  static constexpr int BLOCKS = S::BLOCKS;
  using Barrier = HopperBarrier;
  // Named barriers; 0 is __syncthreads'.
  static constexpr int OWN = 1, TURNS = OWN + CONSUMERS;

  SIMMIM_DEVICE int group() const { return __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0); }
  SIMMIM_DEVICE int rank() const {
    if constexpr (BLOCKS == 1) return 0;
    uint32_t r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
  }
  SIMMIM_DEVICE int cluster() const { return blockIdx.x / BLOCKS; }
  SIMMIM_DEVICE int clusters() const { return gridDim.x / BLOCKS; }

  SIMMIM_DEVICE void start() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    meet();
  }
  SIMMIM_DEVICE void finish() {
    if constexpr (BLOCKS > 1) meet();
  }
  template <int N>
  SIMMIM_DEVICE void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
  }
  template <int N>
  SIMMIM_DEVICE void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
  }

  template <bool MULTICAST>
  SIMMIM_DEVICE void load(CUtensorMap const& map, Barrier& full, void* to, int column, int row, uint16_t blocks) {
    if constexpr (MULTICAST)
      asm volatile(
          "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
              shared_address(to)),
          "l"(&map), "r"(column), "r"(row), "r"(shared_address(&full)), "h"(blocks)
          : "memory");
    else
      asm volatile(
          "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
          "l"(&map), "r"(column), "r"(row), "r"(shared_address(&full))
          : "memory");
  }

  SIMMIM_DEVICE void await_turn(int whose) { asm volatile("bar.sync %0, %1;" ::"r"(TURNS + whose), "n"(WARPGROUP * CONSUMERS) : "memory"); }
  SIMMIM_DEVICE void give_turn(int to) { asm volatile("bar.arrive %0, %1;" ::"r"(TURNS + to), "n"(WARPGROUP * CONSUMERS) : "memory"); }
  SIMMIM_DEVICE void sync() { asm volatile("bar.sync %0, %1;" ::"r"(int(threadIdx.x) / WARPGROUP - 1 + OWN), "n"(WARPGROUP) : "memory"); }

  // Every warp says by itself that it has read a stage, to all blocks that write to it.
  SIMMIM_DEVICE void release(Barrier& empty) {
    if constexpr (BLOCKS == 1) {
      release_own(empty);
    } else {
      int const b = lane(), r = rank();
      if (b < BLOCKS && (b % S::ABOVE == r % S::ABOVE || b / S::ABOVE == r / S::ABOVE)) empty.arrive_at(b);
    }
  }

  SIMMIM_DEVICE void release_own(Barrier& empty) {
    if (lane() == 0) empty.arrive();
  }

  // The compiler must not move reads or writes of the accumulators, which products change behind its back, over this.
  template <class A>
  SIMMIM_DEVICE void fence(A& acc) {
    SIMMIM_UNROLL
    for (auto& rows : acc.of)
      SIMMIM_UNROLL
      for (float& v : rows) asm volatile("" : "+f"(v)::"memory");
  }
  template <class A>
  SIMMIM_DEVICE void multiply(A& acc, void const* x, void const* y, bool add) {
    static_assert(S::COLUMNS == 128);
    constexpr int STAGE = 128, STEP = 32;  // bytes of a row in a stage; in an instruction
    uint64_t const dx = descriptor(x), dy = descriptor(y);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    SIMMIM_UNROLL
    for (int k = 0; k < STAGE / STEP; ++k)
      SIMMIM_UNROLL
      for (int half = 0; half < A::ROWS / 64; ++half)
        // Addresses count 16 bytes.
        wgmma<S::OPERAND>(acc.of[half], dx + half * (64 * STAGE / 16) + k * (STEP / 16), dy + k * (STEP / 16), add || k > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  // total (64, WIDTH) + or = weights (64, 128) y (128, WIDTH), of slabs of 64 columns.
  template <class Total, int COUNT>
  SIMMIM_DEVICE void multiply_by_columns(Total& total, uint32_t (&weights)[COUNT], void const* y, bool add) {
    constexpr int EACH = 4, STEP = 16 * 128;  // registers; bytes that 16 rows of a slab have
    uint64_t const dy = descriptor(y) + (uint64_t(S::COLUMNS * 128 / 16 - 1) << 16);  // to the next slab
    for (uint32_t& w : weights) asm volatile("" : "+r"(w)::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    SIMMIM_UNROLL
    for (int k = 0; k < COUNT / EACH; ++k) wgmma_by_columns<S::OPERAND>(total.of[0], &weights[k * EACH], dy + k * (STEP / 16), add || k > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  template <int UNDER_WAY, class A>
  SIMMIM_DEVICE void await_products(A& acc) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(UNDER_WAY) : "memory");
    if constexpr (UNDER_WAY == 0) fence(acc);
  }

 private:
  SIMMIM_DEVICE static void meet() {
    if constexpr (BLOCKS > 1)
      asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
    else
      __syncthreads();
  }
  // Rows of 128 bytes, swizzled over them, 8 rows in 1024 bytes, the next 8 right below (section "Matrix Descriptor").
  SIMMIM_DEVICE static uint64_t descriptor(void const* p) {
    return uint64_t(shared_address(p) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
  }
};

}  // namespace simmim
