// The processor's float32 multiply-add peak with as many threads as argument 1 says, in GFLOP/s: what no product exceeds.

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include <omp.h>

#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif
typedef float vector __attribute__((vector_size(bytes)));

constexpr int chains = 12;  // independent ones, enough to hide the latency of an addition

int main(int, char **arguments) {
  const int threads = std::atoi(arguments[1]);
  const long steps = 100'000'000;
  float kept = 0;
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
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
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double rate = 2.0 * threads * steps * chains * (bytes / 4) / seconds.count() / 1e9;
    best = rate > best ? rate : best;
  }
  std::printf("%.1f\n", best);
  return kept == 12345.0f;
}
