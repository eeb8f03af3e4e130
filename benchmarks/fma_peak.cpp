// What no product exceeds, in GFLOP/s, with as many threads as argument 1 says: the processor's float32 multiply-adds, or,
// where argument 2 is "tiles", its bfloat16 products on Intel's AMX.
//
// Tiles need a compiler with -mamx-tile -mamx-bf16, a processor that has them, and a kernel that grants them; where any of
// these is missing the program says so on stderr, and exits with status 3.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <omp.h>

#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.hpp"  // of csrc/cpu
#endif

#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif
typedef float vector __attribute__((vector_size(bytes)));

constexpr int chains = 12;  // independent ones, enough to hide the latency of an addition

template <class F> double best_rate(double flop, const F &run) {
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, flop / seconds.count() / 1e9);
  }
  return best;
}

double multiply_adds(int threads) {
  const long steps = 100'000'000;
  float kept = 0;
  const double rate = best_rate(2.0 * threads * steps * chains * (bytes / 4), [&] {
#pragma omp parallel num_threads(threads) reduction(+ : kept)
    {
      vector sums[chains] = {}, a = {}, b = {};
      a += 0.5f, b += 1.0f + float(omp_get_thread_num());
      // Unlike ones: of equal chains the compiler would keep a single one.
#pragma GCC unroll 16
      for (int i = 0; i < chains; ++i) sums[i] += float(i);
      for (long k = 0; k < steps; ++k) {
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) sums[i] = sums[i] * a + b;
        asm volatile("" : "+x"(a));
      }
      for (const vector &sum : sums) kept += sum[0];
    }
  });
  return kept == 12345.0f ? 0 : rate;
}

#if defined(__AMX_BF16__)
const char *without_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24)) return "the processor has no AMX";
  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, 0x1023, 18) ? "the kernel does not grant AMX's tiles" : nullptr;
}

double tiles(int threads) {
  const long steps = 10'000'000;
  return best_rate(threads * steps * 4 * 2.0 * 16 * 16 * 32, [&] {
#pragma omp parallel num_threads(threads)
    {
      const SIMMIM_ISA::TileRegisters registers;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(4);
      _tile_zero(5);
      _tile_zero(6);
      _tile_zero(7);
      for (long k = 0; k < steps; ++k) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  });
}
#else
const char *without_tiles() { return "built without AMX"; }
double tiles(int) { return 0; }
#endif

int main(int count, char **arguments) {
  const int threads = std::atoi(arguments[1]);
  if (count < 3 || std::strcmp(arguments[2], "tiles")) {
    std::printf("%.1f\n", multiply_adds(threads));
    return 0;
  }
  if (const char *reason = without_tiles()) {
    std::fprintf(stderr, "no peak of tiles: %s\n", reason);
    return 3;
  }
  std::printf("%.1f\n", tiles(threads));
}
