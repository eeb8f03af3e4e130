// The C interface of simmim_cuda.h, and the launches.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "hopper.cuh"
#include "log_sum_exps.hpp"
#include "merge.cuh"
#include "simmim_cuda.h"
#include "weights.hpp"

namespace simmim {
namespace {

thread_local char message[256];

struct Status {
  int code = 0;
  explicit operator bool() const { return code != 0; }
};

Status refuse(char const* what) {
  snprintf(message, sizeof message, "%s", what);
  return {SIMMIM_CUDA_INVALID};
}
Status check(cudaError_t error, char const* call) {
  if (error == cudaSuccess) return {};
  snprintf(message, sizeof message, "%s: %s", call, cudaGetErrorString(error));
  return {error};
}
#define SIMMIM_TRY(call)                       \
  if (Status status = check(call, #call)) return status

// Makes a device the current one, and afterwards the one before it again.
class OnDevice {
 public:
  Status enter(int device) {
    SIMMIM_TRY(cudaGetDevice(&before_));
    if (device != before_) SIMMIM_TRY(cudaSetDevice(device));
    entered_ = device != before_;
    return {};
  }
  ~OnDevice() {
    if (entered_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool entered_ = false;
};

// (rows, d), loaded in boxes of `box` rows of 128 bytes, swizzled. What lies outside reads as zero.
Status describe(CUtensorMap* map, void const* base, int64_t rows, int64_t d, int64_t stride, int box) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  SIMMIM_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) return check(cudaErrorNotSupported, "the driver has no cuTensorMapEncodeTiled");
  cuuint64_t const sizes[] = {cuuint64_t(d), cuuint64_t(rows)}, strides[] = {cuuint64_t(stride) * 2};
  cuuint32_t const boxes[] = {64, cuuint32_t(box)}, steps[] = {1, 1};
  CUresult const result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(base), sizes, strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return check(result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
}

template <class S, class Epilogue>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(__grid_constant__ CUtensorMap const x, __grid_constant__ CUtensorMap const y, int steps, Grid grid, __grid_constant__ typename Epilogue::Params const params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  Hopper<S::BLOCKS> machine;
  products<S, Epilogue>(machine, *reinterpret_cast<Storage<S, Epilogue, HopperBarrier>*>(memory), x, y, steps, grid, params);
#endif
}

// A kernel, ready to be launched on the current device.
template <class S, class Epilogue>
class Launcher {
 public:
  Status prepare(simmim_cuda_problem const& p) {
    stream_ = static_cast<cudaStream_t>(p.stream);
    steps_ = int((p.d + S::DEPTH - 1) / S::DEPTH);
    if (Status status = describe(&x_, p.x, p.n, p.d, p.x_row, S::X_PART)) return status;
    if (Status status = describe(&y_, p.y, p.m, p.d, p.y_row, S::Y_PART)) return status;
    SIMMIM_TRY(cudaFuncSetAttribute(kernel<S, Epilogue>, cudaFuncAttributeMaxDynamicSharedMemorySize, MEMORY));
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t const config = configuration(S::BLOCKS, &cluster);
    SIMMIM_TRY(cudaOccupancyMaxActiveClusters(&clusters_, kernel<S, Epilogue>, &config));
    return clusters_ > 0 ? Status{} : refuse("the device has no room for a cluster of the kernel's blocks");
  }

  Status launch(int64_t row, int64_t column, typename Epilogue::Params const& params) const {
    constexpr int HIGH = TILE_ROWS * S::ABOVE, WIDE = S::COLUMNS * S::BESIDE;
    Grid grid{(params.scores.rows + HIGH - 1) / HIGH, (params.scores.columns + WIDE - 1) / WIDE, int(row), int(column), 1};
    if (S::RESIDENT) grid.run = run(grid);
    cudaLaunchAttribute cluster;
    int const units = grid.rows * ((grid.columns + grid.run - 1) / grid.run);
    cudaLaunchConfig_t const config = configuration(std::min(clusters_, units) * S::BLOCKS, &cluster);
    SIMMIM_TRY(cudaLaunchKernelEx(&config, kernel<S, Epilogue>, x_, y_, steps_, grid, params));
    return {};
  }

 private:
  static constexpr int MEMORY = sizeof(Storage<S, Epilogue, HopperBarrier>);
  static_assert(MEMORY <= 227 * 1024);

  // The tiles of a run, so that the cluster with the most has as few as can be, in few runs.
  int run(Grid const& grid) const {
    auto const most = [&](int chunks) {
      int const length = (grid.columns + chunks - 1) / chunks;
      return (grid.rows * chunks + clusters_ - 1) / clusters_ * length;
    };
    int best = 1;
    for (int chunks = 2; chunks <= std::min(grid.columns, clusters_); ++chunks)
      if (most(chunks) * 50 < most(best) * 49) best = chunks;
    return (grid.columns + best - 1) / best;
  }

  cudaLaunchConfig_t configuration(int blocks, cudaLaunchAttribute* cluster) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = MEMORY;
    config.stream = stream_;
    cluster->id = cudaLaunchAttributeClusterDimension;
    cluster->val.clusterDim = {S::BLOCKS, 1, 1};
    config.attrs = cluster;
    config.numAttrs = 1;
    return config;
  }

  CUtensorMap x_, y_;
  int steps_ = 0, clusters_ = 0;
  cudaStream_t stream_ = nullptr;
};

// The matrix is done in blocks of at most this many rows and columns, so that the parts of their sums are bounded.
constexpr int64_t BLOCK = 16384;

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

template <class S>
Status log_sum_exps(simmim_cuda_problem const& p, float* rows, float* columns, void* workspace) {
  constexpr int64_t BLOCK_COLUMNS = BLOCK / (S::COLUMNS * S::BESIDE) * (S::COLUMNS * S::BESIDE);
  Launcher<S, LogSumExps<S::COLUMNS>> launcher;
  if (Status status = launcher.prepare(p)) return status;
  auto* const row_parts = static_cast<float*>(workspace);
  float* const col_parts = row_parts + blocks_of(std::min(p.m, BLOCK), S::COLUMNS) * std::min(p.n, BLOCK);
  for (int64_t i = 0; i < p.n; i += BLOCK)
    for (int64_t j = 0; j < p.m; j += BLOCK_COLUMNS) {
      int const high = int(std::min(BLOCK, p.n - i)), wide = int(std::min(BLOCK_COLUMNS, p.m - j));
      if (Status status = launcher.launch(i, j, {scores_of(p, i, j, high, wide), row_parts, col_parts})) return status;
      Merge const by_row{row_parts, rows ? rows + i : nullptr, high, int(blocks_of(wide, S::COLUMNS)), j == 0, j + wide == p.m};
      Merge const by_column{col_parts, columns ? columns + j : nullptr, wide, int(blocks_of(high, TILE_ROWS)), i == 0, i + high == p.n};
      int const blocks = merge_blocks(by_row) + merge_blocks(by_column);
      if (blocks > 0) merge<<<blocks, MERGE_THREADS, 0, static_cast<cudaStream_t>(p.stream)>>>(by_row, by_column);
      SIMMIM_TRY(cudaGetLastError());
    }
  return {};
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
    variant<6, 2, 1>("2x1"),
    variant<4, 2, 1>("2x1, 4 stages"),
    variant<6, 1, 1>("1x1"),
    variant<6, 1, 2>("1x2"),
    variant<6, 2, 2>("2x2"),
    variant<6, 4, 1>("4x1"),
    variant<5, 2, 1, 8>("2x1, X stays"),
    variant<5, 1, 1, 8>("1x1, X stays"),
    variant<8, 1, 1, 4>("1x1, X of 256 stays"),
};
constexpr int VARIANT_COUNT = sizeof VARIANTS / sizeof *VARIANTS;

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

Variant const& variant_of(simmim_cuda_problem const& p) { return VARIANTS[std::max(p.variant, 0)]; }

template <class Call>
Status on_device_of(simmim_cuda_problem const& p, Call call) {
  if (Status status = validate(p)) return status;
  OnDevice device;
  if (Status status = device.enter(p.device)) return status;
  return call(variant_of(p));
}

}  // namespace
}  // namespace simmim

#define SIMMIM_API extern "C" __attribute__((visibility("default")))

SIMMIM_API int simmim_cuda_interface(void) { return SIMMIM_CUDA_INTERFACE; }

SIMMIM_API const char* simmim_cuda_variants(void) {
  static char names[256];
  static bool const made = [] {
    size_t at = 0;
    for (auto const& each : simmim::VARIANTS) at += snprintf(names + at, sizeof names - at, "%s%s", at ? ";" : "", each.name);
    return true;
  }();
  return made ? names : "";
}

SIMMIM_API int64_t simmim_cuda_workspace(int64_t n, int64_t m) {
  using namespace simmim;
  int64_t const high = std::min(n, BLOCK), wide = std::min(m, BLOCK);
  return (blocks_of(wide, 128) * high + blocks_of(high, TILE_ROWS) * wide) * int64_t(sizeof(float));
}

SIMMIM_API int simmim_cuda_log_sum_exps(const simmim_cuda_problem* problem, float* rows, float* columns, void* workspace) {
  return simmim::on_device_of(*problem, [&](simmim::Variant const& variant) { return variant.log_sum_exps(*problem, rows, columns, workspace); }).code;
}

SIMMIM_API int simmim_cuda_weights(const simmim_cuda_problem* problem, const simmim_cuda_gradient* gradient) {
  using namespace simmim;
  return on_device_of(*problem, [&](Variant const& variant) {
           if (gradient->stride % 8 || gradient->stride < problem->m) return refuse("the stride of weights must be a multiple of 8 and at least m");
           if (reinterpret_cast<uintptr_t>(gradient->weights) % 16) return refuse("weights must be aligned to 16 bytes");
           return variant.weights(*problem, *gradient);
         }).code;
}

SIMMIM_API const char* simmim_cuda_message(void) { return simmim::message; }
