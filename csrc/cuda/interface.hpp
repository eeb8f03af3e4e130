// The C interface of simmim_cuda.h over a Launcher, which is the GPU's (simmim_cuda.cu) or, for tests, the host's
// (tests/host_library.cpp). To be included once, after
//
//     template <class S, class Epilogue> class Launcher;   prepare(problem), launch(row, column, params), merge(...)
//     template <class S> class NarrowLauncher;             launch(problem, params, blocks)
//     class OnDevice;                                      enter(ordinal), is_hopper(ordinal)
//     struct Versions;                                     runtime(), driver(), ARCHITECTURES
//
// in namespace simmim::{anonymous}.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <type_traits>
#include <utility>

#include "log_sum_exps.hpp"
#include "merge.hpp"
#include "mma_body.hpp"
#include "narrow.hpp"
#include "sums.hpp"
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
template <class SCORES>
SCORES scores_of(simmim_cuda_problem const& p, int64_t row, int64_t column, int rows, int columns) {
  Scores const plain{p.scale,
                     p.row_bias ? p.row_bias + row : nullptr,
                     p.col_bias ? p.col_bias + column : nullptr,
                     p.positives ? p.positives + row : nullptr,
                     p.joint == SIMMIM_CUDA_LEFT_OUT,
                     int(p.first_row + row),
                     int(p.first_column + column),
                     rows,
                     columns};
  if constexpr (std::is_same_v<SCORES, Scores>)
    return plain;
  else
    return {plain,
            p.joint == SIMMIM_CUDA_KEPT,
            p.joint == SIMMIM_CUDA_NEGATED,
            p.grouped != 0,
            p.ids,
            p.ids ? p.row_ids + row : nullptr,
            p.ids ? p.col_ids + column : nullptr,
            p.row_ids_row,
            p.col_ids_row,
            p.lo,
            p.hi};
}

// Whether plain Scores say all. Joint pairs are kept only where ids would leave them out.
bool is_plain(simmim_cuda_problem const& p) { return p.ids == 0 && p.lo == -INFINITY && p.hi == INFINITY; }

// LOG: sums of exponentials, and so their logarithms. BY_COLUMN: makes parts of columns.
template <class S, class Epilogue, class SCORES, bool LOG, bool BY_COLUMN>
Status passes(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
  static_assert(BLOCK % (TILE_ROWS * S::ABOVE) == 0 && BLOCK % (S::COLUMNS * S::BESIDE) == 0, "only the last tiles are ragged");
  Launcher<S, Epilogue> launcher;
  if (Status status = launcher.prepare(p)) return status;
  auto* const row_parts = static_cast<float*>(workspace);
  float* const col_parts = row_parts + blocks_of(std::min(p.m, BLOCK), S::COLUMNS) * std::min(p.n, BLOCK);
  for (int64_t i = 0; i < p.n; i += BLOCK)
    for (int64_t j = 0; j < p.m; j += BLOCK) {
      int const high = int(std::min(BLOCK, p.n - i)), wide = int(std::min(BLOCK, p.m - j));
      auto const scores = scores_of<SCORES>(p, i, j, high, wide);
      // Parts that no one wants are made where there is no kernel without.
      if (Status status = launcher.launch(i, j, {scores, LOG || rows ? row_parts : nullptr, LOG || columns ? col_parts : nullptr})) return status;
      Merge const by_row{row_parts, rows ? rows + i : nullptr, high, int(blocks_of(wide, S::COLUMNS)), j == 0, j + wide == p.m};
      Merge const by_column{col_parts, BY_COLUMN && columns ? columns + j : nullptr, wide, int(blocks_of(high, TILE_ROWS)), i == 0, i + high == p.n};
      if (Status status = launcher.template merge<LOG>(by_row, by_column)) return status;
    }
  return {};
}

template <class S, class SCORES, bool BY_COLUMN>
Status log_passes(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
  return passes<S, LogSumExps<S::COLUMNS, BY_COLUMN, SCORES>, SCORES, true, BY_COLUMN>(p, rows, columns, workspace);
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

// Of plain scores.
template <class S>
Status log_sum_exps(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
  if (!columns) return log_passes<S, Scores, false>(p, rows, nullptr, workspace);
  if (!rows && !(p.joint == SIMMIM_CUDA_LEFT_OUT && p.positives)) return log_passes<S, Scores, false>(transposed(p), columns, nullptr, workspace);
  return log_passes<S, Scores, true>(p, rows, columns, workspace);
}

template <class S, class SCORES>
Status log_weights(simmim_cuda_problem const& p, simmim_cuda_gradient const& g) {
  Launcher<S, Weights<S::COLUMNS, S::OPERAND, SCORES>> launcher;
  if (Status status = launcher.prepare(p)) return status;
  Sides const sides{g.row_reference, g.row_upstream, g.col_reference, g.col_upstream};
  return launcher.launch(0, 0, {scores_of<SCORES>(p, 0, 0, int(p.n), int(p.m)), sides, static_cast<typename S::Element*>(g.weights), g.stride});
}

// Calls `then` with the shape of narrow kernels for a width: the fastest on an H200.
template <Operand OPERAND, class Then>
auto with_narrow(int64_t d, Then const& then) {
  return d <= 64 ? then(NarrowShape<64, 4, 3, OPERAND>{}) : then(NarrowShape<128, 4, 2, OPERAND>{});
}
template <class S>
int64_t parts_of(S, int64_t n, int64_t m) {
  return narrow_parts(blocks_of(n, S::X_PART), blocks_of(m, S::COLUMNS));
}
template <Operand OPERAND>
Status narrow_products_of(simmim_cuda_problem const& p, Sides const& sides, float* products, float* sums) {
  return with_narrow<OPERAND>(p.d, [&](auto shape) {
    using S = decltype(shape);
    int64_t const blocks = blocks_of(p.n, S::X_PART), tiles = blocks_of(p.m, S::COLUMNS), parts = parts_of(shape, p.n, p.m);
    NarrowParams const params{scores_of<Scores>(p, 0, 0, int(p.n), int(p.m)), sides, products, sums, int(p.d), int(blocks_of(tiles, parts)), int(blocks)};
    return NarrowLauncher<S>().launch(p, params, int(blocks * parts));
  });
}

template <class S, class Function>
Status function_weights(simmim_cuda_problem const& p, simmim_cuda_gradient const& g) {
  Launcher<S, PointwiseWeights<Function, S::COLUMNS, S::OPERAND>> launcher;
  if (Status status = launcher.prepare(p)) return status;
  int const count = int(blocks_of(p.m, S::COLUMNS));
  auto* const parts = static_cast<float*>(g.workspace);
  Merge const values{parts, g.sums, int(p.n), count, !g.adds, true}, weights{parts + p.n * count, g.weight_sums, int(p.n), count, !g.adds, true};
  auto const scores = scores_of<ScoresWithOptions>(p, 0, 0, int(p.n), int(p.m));
  if (Status status = launcher.launch(0, 0, {scores, g.row_upstream, g.col_upstream, static_cast<typename S::Element*>(g.weights), g.stride,
                                             g.sums ? parts : nullptr, g.weight_sums ? parts + p.n * count : nullptr}))
    return status;
  return launcher.template merge<false>(values, weights);
}

// Calls `then` with the function that a problem names.
template <Operand OPERAND, class Then>
Status with_function(simmim_cuda_problem const& p, Then const& then) {
  if (p.function == SIMMIM_CUDA_IDENTITY) return then(Identity{});
  if (p.function == SIMMIM_CUDA_SOFTPLUS) return then(Softplus{});
  if constexpr (OPERAND != Operand::FLOAT16) {
    if (p.function == SIMMIM_CUDA_SQUARE) return then(Square{});
    if (p.function == SIMMIM_CUDA_LOG1MEXP) return then(Log1mexp{});
  }
  return refuse("there is no such function, or not of these operands");
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
  return {name, S::RESIDENT * S::DEPTH, log_sum_exps<S>, log_weights<S, Scores>};
}
constexpr Variant VARIANTS[] = {
    variant<6, 1, 2>("1x2"),
    variant<5, 2, 1, 8>("2x1, X stays"),
    variant<5, 1, 1, 8>("1x1, X stays"),
};
constexpr int VARIANT_COUNT = sizeof VARIANTS / sizeof *VARIANTS;
// After them: the kernels for devices other than Hopper, of whatever problem, which Hopper runs too.
constexpr int MMA = VARIANT_COUNT;
bool by_mma(simmim_cuda_problem const& p) { return p.variant == MMA || !OnDevice::is_hopper(p.device); }

// The fastest of those on an H100, up to here and beyond.
constexpr int64_t NARROW = 256;
Variant const& for_log_sum_exps(simmim_cuda_problem const& p) { return VARIANTS[p.variant >= 0 ? p.variant : p.d <= NARROW ? 1 : 0]; }
Variant const& for_weights(simmim_cuda_problem const& p) { return VARIANTS[p.variant >= 0 ? p.variant : p.d <= NARROW ? 2 : 0]; }
// Whether there are variants, and not only the kernel for any d.
bool has_variants(simmim_cuda_problem const& p) {
  return p.operand == SIMMIM_CUDA_BFLOAT16 && p.function == SIMMIM_CUDA_LOGSUMEXP && is_plain(p) && !by_mma(p);
}

// The kernels for any d, of operands of a type. Those by mma are few: all with options.
template <class S>
struct General {
  static constexpr Operand OPERAND = S::OPERAND;
  static constexpr bool HAS_PLAIN = !std::is_same_v<S, MmaShape<OPERAND>>;

  static Status statistics(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
    if constexpr (HAS_PLAIN) {
      if (p.function == SIMMIM_CUDA_LOGSUMEXP && is_plain(p)) return log_sum_exps<S>(p, rows, columns, workspace);
    }
    if (p.function == SIMMIM_CUDA_LOGSUMEXP) return log_passes<S, ScoresWithOptions, true>(p, rows, columns, workspace);
    return with_function<OPERAND>(p, [&](auto function) {
      return passes<S, Sums<decltype(function), S::COLUMNS>, ScoresWithOptions, false, true>(p, rows, columns, workspace);
    });
  }
  static Status weights(simmim_cuda_problem const& p, simmim_cuda_gradient const& g) {
    if constexpr (HAS_PLAIN) {
      if (p.function == SIMMIM_CUDA_LOGSUMEXP && is_plain(p)) return log_weights<S, Scores>(p, g);
    }
    if (p.function == SIMMIM_CUDA_LOGSUMEXP) return log_weights<S, ScoresWithOptions>(p, g);
    return with_function<OPERAND>(p, [&](auto function) { return function_weights<S, decltype(function)>(p, g); });
  }
  static Status products(simmim_cuda_problem const& p, Sides const& sides, float* products, float* sums) {
    if constexpr (OPERAND != Operand::FLOAT32 && HAS_PLAIN) return narrow_products_of<OPERAND>(p, sides, products, sums);
    return refuse("products are of half precision, on compute capability 9.0");
  }
};

template <Operand OPERAND, class Then>
Status with_shape(simmim_cuda_problem const& p, Then const& then) {
  return by_mma(p) ? then(General<MmaShape<OPERAND>>{}) : then(General<Shape<128, 6, 1, 2, 0, OPERAND>>{});
}

template <class Then>
Status with_operand(simmim_cuda_problem const& p, Then const& then) {
  if (p.operand == SIMMIM_CUDA_BFLOAT16) return with_shape<Operand::BFLOAT16>(p, then);
#ifdef SIMMIM_CUDA_BFLOAT16_ALONE  // for tests, in half the time
  return refuse("bfloat16 operands alone");
#else
  if (p.operand == SIMMIM_CUDA_FLOAT16) return with_shape<Operand::FLOAT16>(p, then);
  return with_shape<Operand::FLOAT32>(p, then);
#endif
}

Status validate(simmim_cuda_problem const& p) {
  constexpr int64_t MOST = INT32_MAX - BLOCK;  // coordinates of tiles are 32 bits
  if (p.n < 1 || p.m < 1 || p.d < 1) return refuse("n, m and d must be at least 1");
  if (p.n > MOST || p.m > MOST || p.d > MOST) return refuse("n, m and d must be below 2^31 - 16384");
  if (p.first_row < 0 || p.first_column < 0 || p.first_row > MOST - p.n || p.first_column > MOST - p.m)
    return refuse("the matrix must have fewer than 2^31 - 16384 rows and columns");
  if (p.operand < SIMMIM_CUDA_BFLOAT16 || p.operand > SIMMIM_CUDA_FLOAT32) return refuse("there is no such type of operands");
  int const unit = p.operand == SIMMIM_CUDA_FLOAT32 ? 4 : 8;
  if (p.d % unit || p.x_row % unit || p.y_row % unit) return refuse("d and the strides of rows must be multiples of 16 bytes");
  if (p.x_row < p.d || p.y_row < p.d) return refuse("the strides of rows must be at least d");
  if (reinterpret_cast<uintptr_t>(p.x) % 16 || reinterpret_cast<uintptr_t>(p.y) % 16) return refuse("x and y must be aligned to 16 bytes");
  if (p.joint < SIMMIM_CUDA_COUNTED || p.joint > (p.function == SIMMIM_CUDA_LOGSUMEXP ? SIMMIM_CUDA_KEPT : SIMMIM_CUDA_NEGATED))
    return refuse("joint pairs cannot be taken so");
  if (p.ids < 0 || (p.ids > 0 && !(p.row_ids && p.col_ids))) return refuse("ids must be given for rows and columns");
  if (p.variant < -1 || p.variant > MMA) return refuse("there is no such variant");
  if (p.variant < 0 || p.variant == MMA) return {};
  if (by_mma(p)) return refuse("this variant is for compute capability 9.0, and a library with code for sm_90a");
  if (VARIANTS[p.variant].most > 0 && p.d > VARIANTS[p.variant].most) return refuse("d is too large for this variant");
  if (p.variant > 0 && !has_variants(p)) return refuse("only log-sum-exps of bfloat16 without clamp and ids have variants");
  return {};
}
Status validate(simmim_cuda_problem const& p, simmim_cuda_gradient const& g) {
  if (g.stride % 8 || g.stride < p.m) return refuse("the stride of weights must be a multiple of 8 and at least m");
  if ((g.sums || g.weight_sums) && (p.function == SIMMIM_CUDA_LOGSUMEXP || p.n > BLOCK || p.m > BLOCK)) return refuse("there are no sums of this function or size");
  if (reinterpret_cast<uintptr_t>(g.weights) % 16) return refuse("weights must be aligned to 16 bytes");
  return validate(p);
}

}  // namespace
}  // namespace simmim

#define SIMMIM_API extern "C" __attribute__((visibility("default")))

SIMMIM_API int simmim_cuda_interface(void) { return SIMMIM_CUDA_INTERFACE; }

SIMMIM_API int simmim_cuda_runtime(void) { return simmim::Versions::runtime(); }
SIMMIM_API int simmim_cuda_driver(void) { return simmim::Versions::driver(); }
SIMMIM_API const char* simmim_cuda_architectures(void) { return simmim::Versions::ARCHITECTURES; }

SIMMIM_API int simmim_cuda_hopper(int device) { return simmim::OnDevice::is_hopper(device); }

SIMMIM_API const char* simmim_cuda_variants(void) {
  struct Names {
    char text[256] = "";
    Names() {
      size_t at = 0;
      for (auto const& each : simmim::VARIANTS) at += snprintf(text + at, sizeof text - at, "%s;", each.name);
      snprintf(text + at, sizeof text - at, "mma");
    }
  };
  static Names const names;
  return names.text;
}

SIMMIM_API int64_t simmim_cuda_workspace(int64_t n, int64_t m) {
  using namespace simmim;
  int64_t const high = std::min(n, BLOCK), wide = std::min(m, BLOCK);
  int64_t const of_rows = blocks_of(wide, 128) * high, of_columns = blocks_of(high, TILE_ROWS) * wide;
  return (of_rows + std::max(of_rows, of_columns)) * int64_t(sizeof(float));  // or two sums of rows
}

SIMMIM_API int simmim_cuda_statistics(const simmim_cuda_problem* problem, float* rows, float* columns, void* workspace) {
  using namespace simmim;
  if (Status status = validate(*problem)) return status.code;
  OnDevice device;
  if (Status status = device.enter(problem->device)) return status.code;
  if (has_variants(*problem)) return for_log_sum_exps(*problem).log_sum_exps(*problem, rows, columns, workspace).code;
  return with_operand(*problem, [&](auto kernels) { return kernels.statistics(*problem, rows, columns, workspace); }).code;
}

SIMMIM_API int simmim_cuda_weights(const simmim_cuda_problem* problem, const simmim_cuda_gradient* gradient) {
  using namespace simmim;
  if (Status status = validate(*problem, *gradient)) return status.code;
  OnDevice device;
  if (Status status = device.enter(problem->device)) return status.code;
  if (has_variants(*problem)) return for_weights(*problem).weights(*problem, *gradient).code;
  return with_operand(*problem, [&](auto kernels) { return kernels.weights(*problem, *gradient); }).code;
}

SIMMIM_API int64_t simmim_cuda_parts(int64_t n, int64_t m, int64_t d) {
  using namespace simmim;
  return with_narrow<Operand::BFLOAT16>(d, [&](auto shape) { return parts_of(shape, n, m); });
}

SIMMIM_API int simmim_cuda_products(const simmim_cuda_problem* problem, const simmim_cuda_gradient* gradient, int32_t of_columns, float* products,
                                    float* sums) {
  using namespace simmim;
  simmim_cuda_problem p = *problem;
  simmim_cuda_gradient const& g = *gradient;
  if (Status status = validate(p)) return status.code;
  if (p.function != SIMMIM_CUDA_LOGSUMEXP || !is_plain(p) || p.operand == SIMMIM_CUDA_FLOAT32 || p.d > SIMMIM_CUDA_NARROW)
    return refuse("products are of log-sum-exps of half precision, without clamp and ids, and of d up to 128").code;
  if (p.joint == SIMMIM_CUDA_LEFT_OUT && p.positives) return refuse("products do not leave out positives").code;
  if (reinterpret_cast<uintptr_t>(products) % 8) return refuse("products must be aligned to 8 bytes").code;
  OnDevice device;
  if (Status status = device.enter(p.device)) return status.code;
  Sides sides{g.row_reference, g.row_upstream, g.col_reference, g.col_upstream};
  if (of_columns) {
    p = transposed(p);
    sides = {g.col_reference, g.col_upstream, g.row_reference, g.row_upstream};
  }
  return with_operand(p, [&](auto kernels) { return kernels.products(p, sides, products, sums); }).code;
}

SIMMIM_API const char* simmim_cuda_message(void) { return simmim::message; }
