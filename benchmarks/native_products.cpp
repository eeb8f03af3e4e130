// Prints the GFLOP/s of the native kernels' three products alone, at the sizes of one tile: native_products THREADS D.
//
// Built with an instruction set's flags and macros, as setup.py has them.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <omp.h>

#include "blocks.hpp"

using namespace SIMMIM_ISA;

int main(int, char **arguments) {
  const int threads = std::atoi(arguments[1]), repeats = 200;
  const int64_t d = std::atoi(arguments[2]), rows = 96, columns = 960;
  // A panel of y in both its packings is shared; the rest is a thread's own.
  const std::vector<float> transposed(columns * d, 0.5f), packed(columns * d, 0.5f);
  double seconds = 0;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> x(rows * d, 0.5f), scores(rows * columns), dx(rows * d), dy(columns * d);
    for (int pass = -1; pass < repeats; ++pass) {
#pragma omp barrier
#pragma omp master
      if (pass <= 0) seconds = -std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
      multiply<float>(rows, columns, d, x.data(), d, 1, transposed.data(), d, scores.data(), columns, false);
      multiply<float>(rows, d, columns, scores.data(), columns, 1, packed.data(), columns, dx.data(), d, false);
      multiply<float>(columns, d, rows, scores.data(), 1, columns, x.data(), rows, dy.data(), d, true);
    }
  }
  seconds += std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  std::printf("%.1f\n", threads * repeats * 3 * 2.0 * rows * columns * d / seconds / 1e9);
}
