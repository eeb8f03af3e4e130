// The C interface: chooses the instruction set once, by what the processor says of itself.

#include <atomic>
#include <cstring>
#include <string>

#ifdef SIMMIM_HAS_AVX2
#include <cpuid.h>
#endif

#include "simmim_cpu.h"
#include "table.hpp"
#include "threads.hpp"

namespace portable { extern const Kernels table; }
#ifdef SIMMIM_HAS_AVX512_BF16
namespace avx512_bf16 { extern const Kernels table; }
#endif
#ifdef SIMMIM_HAS_AVX512
namespace avx512 { extern const Kernels table; }
#endif
#ifdef SIMMIM_HAS_AVX2
namespace avx2 { extern const Kernels table; }
#endif
#ifdef SIMMIM_HAS_NEON
namespace neon { extern const Kernels table; }
#endif

namespace {

struct Candidate {
  const Kernels *kernels;
  bool runs;
};

#ifdef SIMMIM_HAS_AVX2
// By CPUID for F16C, of which clang before 18 cannot ask; whether the system saves these registers, "avx2" asks.
bool runs_avx2() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}
#endif
#ifdef SIMMIM_HAS_AVX512
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first; the portable one runs wherever this file does.
const Candidate *candidates() {
  static const Candidate all[] = {
#ifdef SIMMIM_HAS_AVX512_BF16
      {&avx512_bf16::table, runs_avx512() && __builtin_cpu_supports("avx512bf16")},
#endif
#ifdef SIMMIM_HAS_AVX512
      {&avx512::table, runs_avx512()},
#endif
#ifdef SIMMIM_HAS_AVX2
      {&avx2::table, runs_avx2()},
#endif
#ifdef SIMMIM_HAS_NEON
      {&neon::table, true},
#endif
      {&portable::table, true},
      {nullptr, false},
  };
  return all;
}

const Kernels *best() {
  const Candidate *c = candidates();
  while (!c->runs) ++c;
  return c->kernels;
}

std::string names(bool all) {
  std::string found;
  for (const Candidate *c = candidates(); c->kernels; ++c)
    if (all || c->runs) found += (found.empty() ? "" : ",") + std::string(c->kernels->name);
  return found;
}

std::atomic<const Kernels *> chosen{nullptr};

const Kernels &kernels() {
  const Kernels *now = chosen.load();
  return now ? *now : *best();
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int simmim_interface(void) { return SIMMIM_INTERFACE; }

__attribute__((visibility("default"))) int simmim_forward(const simmim_problem *problem,
                                                          const simmim_values *values) {
  return kernels().forward(problem, values);
}

__attribute__((visibility("default"))) int simmim_backward(const simmim_problem *problem,
                                                           const simmim_gradients *gradients) {
  return kernels().backward(problem, gradients);
}

__attribute__((visibility("default"))) const char *simmim_built_for(void) {
  static const std::string all = names(true);
  return all.c_str();
}

__attribute__((visibility("default"))) const char *simmim_instruction_sets(void) {
  static const std::string running = names(false);
  return running.c_str();
}

__attribute__((visibility("default"))) const char *simmim_in_use(void) { return kernels().name; }

__attribute__((visibility("default"))) int simmim_openmp(void) {
#ifdef _OPENMP
  return _OPENMP;
#else
  return 0;
#endif
}

__attribute__((visibility("default"))) int simmim_openmp_threads(void) { return omp_get_max_threads(); }

__attribute__((visibility("default"))) int simmim_choose(const char *name) {
  if (!name) {
    chosen = nullptr;
    return 0;
  }
  for (const Candidate *c = candidates(); c->kernels; ++c)
    if (c->runs && !std::strcmp(name, c->kernels->name)) {
      chosen = c->kernels;
      return 0;
    }
  return -1;
}

}  // extern "C"
