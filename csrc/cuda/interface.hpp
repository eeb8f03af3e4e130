// The C interface of simmim_cuda.h over a Launcher, which is the GPU's (simmim_cuda.cu) or, for tests, the host's
// (tests/host_library.cpp). To be included once, after
//
//     template <class S, class Epilogue> class Launcher;   prepare(problem), launch(row, column, params), merge(...)
//     class OnDevice;                                      enter(ordinal)
//
// in namespace simmim::{anonymous}.
#pragma once
#include <algorithm>
#include <cstdio>
#include <utility>

#include "log_sum_exps.hpp"
#include "merge.hpp"
#include "weights.hpp"

namespace simmim {
namespace {

// The matrix is done in blocks of at most this many rows and columns, so that the parts of their sums are bounded.
#ifndef SIMMIM_CUDA_BLOCK
#define SIMMIM_CUDA_BLOCK 16384
#endif
constexpr int64_t BLOCK = SIMMIM_CUDA_BLOCK;

int64_t blocks_of(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

// The part of a problem that begins at a row and a column.
Scores scores_of(simmim_cuda_problem const& p, int64_t row, int64_t column, int rows, int columns) {
  return {p.scale,
          p.row_bias ? p.row_bias + row : nullptr,
          p.col_bias ? p.col_bias + column : nullptr,
          p.positives ? p.positives + row : nullptr,
          p.leaves_out != 0,
          int(p.first_row + row),
          int(p.first_column + column),
          rows,
          columns};
}

template <class S, bool BY_COLUMN>
Status passes(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
  static_assert(BLOCK % (TILE_ROWS * S::ABOVE) == 0 && BLOCK % (S::COLUMNS * S::BESIDE) == 0, "only the last tiles are ragged");
  Launcher<S, LogSumExps<S::COLUMNS, BY_COLUMN>> launcher;
  if (Status status = launcher.prepare(p)) return status;
  auto* const row_parts = static_cast<float*>(workspace);
  float* const col_parts = row_parts + blocks_of(std::min(p.m, BLOCK), S::COLUMNS) * std::min(p.n, BLOCK);
  for (int64_t i = 0; i < p.n; i += BLOCK)
    for (int64_t j = 0; j < p.m; j += BLOCK) {
      int const high = int(std::min(BLOCK, p.n - i)), wide = int(std::min(BLOCK, p.m - j));
      if (Status status = launcher.launch(i, j, {scores_of(p, i, j, high, wide), row_parts, col_parts})) return status;
      Merge const by_row{row_parts, rows ? rows + i : nullptr, high, int(blocks_of(wide, S::COLUMNS)), j == 0, j + wide == p.m};
      Merge const by_column{col_parts, columns ? columns + j : nullptr, wide, int(blocks_of(high, TILE_ROWS)), i == 0, i + high == p.n};
      if (Status status = launcher.merge(by_row, by_column)) return status;
    }
  return {};
}

// With rows and columns in each other's places. Positives have no columns to be listed by.
simmim_cuda_problem transposed(simmim_cuda_problem p) {
  std::swap(p.n, p.m);
  std::swap(p.x, p.y);
  std::swap(p.x_row, p.y_row);
  std::swap(p.row_bias, p.col_bias);
  std::swap(p.first_row, p.first_column);
  return p;
}

template <class S>
Status log_sum_exps(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
  if (!columns) return passes<S, false>(p, rows, nullptr, workspace);
  if (!rows && !(p.leaves_out && p.positives)) return passes<S, false>(transposed(p), columns, nullptr, workspace);
  return passes<S, true>(p, rows, columns, workspace);
}

template <class S>
Status weights(simmim_cuda_problem const& p, simmim_cuda_gradient const& g) {
  Launcher<S, Weights<S::COLUMNS>> launcher;
  if (Status status = launcher.prepare(p)) return status;
  return launcher.launch(0, 0, {scores_of(p, 0, 0, int(p.n), int(p.m)), g.row_reference, g.row_upstream, g.col_reference, g.col_upstream,
                                static_cast<uint16_t*>(g.weights), g.stride});
}

struct Variant {
  char const* name;
  int64_t most;  // the largest d, or 0 for any
  Status (*log_sum_exps)(simmim_cuda_problem const&, float*, float*, void*);
  Status (*weights)(simmim_cuda_problem const&, simmim_cuda_gradient const&);
};
template <int STAGES, int ABOVE, int BESIDE, int RESIDENT = 0>
constexpr Variant variant(char const* name) {
  using S = Shape<128, STAGES, ABOVE, BESIDE, RESIDENT>;
  return {name, S::RESIDENT * S::DEPTH, log_sum_exps<S>, weights<S>};
}
constexpr Variant VARIANTS[] = {
    variant<6, 1, 2>("1x2"),
    variant<5, 2, 1, 8>("2x1, X stays"),
    variant<5, 1, 1, 8>("1x1, X stays"),
};
constexpr int VARIANT_COUNT = sizeof VARIANTS / sizeof *VARIANTS;

// The fastest of those on an H100, up to here and beyond.
constexpr int64_t NARROW = 256;
Variant const& for_log_sum_exps(simmim_cuda_problem const& p) { return VARIANTS[p.variant >= 0 ? p.variant : p.d <= NARROW ? 1 : 0]; }
Variant const& for_weights(simmim_cuda_problem const& p) { return VARIANTS[p.variant >= 0 ? p.variant : p.d <= NARROW ? 2 : 0]; }

Status validate(simmim_cuda_problem const& p) {
  constexpr int64_t MOST = INT32_MAX - BLOCK;  // coordinates of tiles are 32 bits
  if (p.n < 1 || p.m < 1 || p.d < 1) return refuse("n, m and d must be at least 1");
  if (p.n > MOST || p.m > MOST || p.d > MOST) return refuse("n, m and d must be below 2^31 - 16384");
  if (p.first_row < 0 || p.first_column < 0 || p.first_row > MOST - p.n || p.first_column > MOST - p.m)
    return refuse("the matrix must have fewer than 2^31 - 16384 rows and columns");
  if (p.d % 8 || p.x_row % 8 || p.y_row % 8) return refuse("d and the strides of rows must be multiples of 8");
  if (p.x_row < p.d || p.y_row < p.d) return refuse("the strides of rows must be at least d");
  if (reinterpret_cast<uintptr_t>(p.x) % 16 || reinterpret_cast<uintptr_t>(p.y) % 16) return refuse("x and y must be aligned to 16 bytes");
  if (p.variant < -1 || p.variant >= VARIANT_COUNT) return refuse("there is no such variant");
  if (p.variant >= 0 && VARIANTS[p.variant].most > 0 && p.d > VARIANTS[p.variant].most) return refuse("d is too large for this variant");
  return {};
}
Status validate(simmim_cuda_problem const& p, simmim_cuda_gradient const& g) {
  if (g.stride % 8 || g.stride < p.m) return refuse("the stride of weights must be a multiple of 8 and at least m");
  if (reinterpret_cast<uintptr_t>(g.weights) % 16) return refuse("weights must be aligned to 16 bytes");
  return validate(p);
}

}  // namespace
}  // namespace simmim

#define SIMMIM_API extern "C" __attribute__((visibility("default")))

SIMMIM_API int simmim_cuda_interface(void) { return SIMMIM_CUDA_INTERFACE; }

SIMMIM_API const char* simmim_cuda_variants(void) {
  struct Names {
    char text[256] = "";
    Names() {
      size_t at = 0;
      for (auto const& each : simmim::VARIANTS) at += snprintf(text + at, sizeof text - at, "%s%s", at ? ";" : "", each.name);
    }
  };
  static Names const names;
  return names.text;
}

SIMMIM_API int64_t simmim_cuda_workspace(int64_t n, int64_t m) {
  using namespace simmim;
  int64_t const high = std::min(n, BLOCK), wide = std::min(m, BLOCK);
  return (blocks_of(wide, 128) * high + blocks_of(high, TILE_ROWS) * wide) * int64_t(sizeof(float));
}

SIMMIM_API int simmim_cuda_log_sum_exps(const simmim_cuda_problem* problem, float* rows, float* columns, void* workspace) {
  using namespace simmim;
  if (Status status = validate(*problem)) return status.code;
  OnDevice device;
  if (Status status = device.enter(problem->device)) return status.code;
  return for_log_sum_exps(*problem).log_sum_exps(*problem, rows, columns, workspace).code;
}

SIMMIM_API int simmim_cuda_weights(const simmim_cuda_problem* problem, const simmim_cuda_gradient* gradient) {
  using namespace simmim;
  if (Status status = validate(*problem, *gradient)) return status.code;
  OnDevice device;
  if (Status status = device.enter(problem->device)) return status.code;
  return for_weights(*problem).weights(*problem, *gradient).code;
}

SIMMIM_API const char* simmim_cuda_message(void) { return simmim::message; }
