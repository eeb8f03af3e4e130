// The C interface: chooses the instruction set once, by what the processor says of itself.

#include <atomic>
#include <cstring>
#include <string>

#ifdef SIMMIM_HAS_AVX512_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef SIMMIM_HAS_AVX2
#include <cpuid.h>
#endif

#include "simmim_cpu.h"
#include "table.hpp"
#include "threads.hpp"

namespace portable { extern const Kernels table; }
#ifdef SIMMIM_HAS_EMULATED_TILES
namespace emulated_tiles { extern const Kernels table; }
#endif
#ifdef SIMMIM_HAS_AVX512_AMX
namespace avx512_amx { extern const Kernels table; }
#endif
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
  bool by_name_alone = false;  // what has not been checked on a processor that has it
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

#ifdef SIMMIM_HAS_AVX512_AMX
// Linux gives a process the tiles' registers where it asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
// Kernels before 5.16 know no such call, and sandboxes may refuse it: an instruction on tiles is then an illegal one.
bool runs_amx() {
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;  // CPUID 7.0, EDX
  unsigned a, b, c, d;
  static const bool granted = runs_avx512() && __builtin_cpu_supports("avx512bf16") &&
                              __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tile) &&
                              syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}
#endif

// Best first; the portable one runs wherever this file does.
const Candidate *candidates() {
  static const Candidate all[] = {
#ifdef SIMMIM_HAS_AVX512_AMX
      {&avx512_amx::table, runs_amx(), true},
#endif
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
#ifdef SIMMIM_HAS_EMULATED_TILES
      {&emulated_tiles::table, true, true},
#endif
      {nullptr, false},
  };
  return all;
}

const Kernels *best() {
  const Candidate *c = candidates();
  while (!c->runs || c->by_name_alone) ++c;
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

__attribute__((visibility("default"))) int simmim_cross_entropy_sum(const simmim_problem *problem,
                                                                    const simmim_entropy_sum *sum,
                                                                    const simmim_gradients *gradients) {
  return kernels().entropy_sum(problem, sum, gradients);
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
