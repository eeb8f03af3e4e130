// The library: kernels, and how they are launched.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "hopper.cuh"
#include "merge.hpp"
#include "status.hpp"

namespace simmim {
namespace {

Status check(cudaError_t error, char const* call) {
  if (error == cudaSuccess) return {};
  snprintf(message, sizeof message, "%s: %s", call, cudaGetErrorString(error));
  return {error};
}
#define SIMMIM_TRY(call) \
  if (Status status = check(call, #call)) return status

// The kernels' instructions are of this architecture alone.
struct Versions {
  static constexpr char const* ARCHITECTURES = "sm_90a";
  static int runtime() { return CUDART_VERSION; }
  static int driver() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
  }
};

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

template <Operand OPERAND>
constexpr CUtensorMapDataType MAP_TYPE = OPERAND == Operand::BFLOAT16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : OPERAND == Operand::FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                       : CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;  // rounds as it loads

// (rows, d), loaded in boxes of `box` rows of 128 bytes, swizzled. What lies outside reads as zero.
template <class S>
Status describe(CUtensorMap* map, void const* base, int64_t rows, int64_t d, int64_t stride, int box) {
  // Of the driver, and so one for all devices.
  static std::atomic<void*> known{nullptr};
  void* entry = known.load(std::memory_order_relaxed);
  if (!entry) {
    cudaDriverEntryPointQueryResult found;
    SIMMIM_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) return check(cudaErrorNotSupported, "the driver has no cuTensorMapEncodeTiled");
    known.store(entry, std::memory_order_relaxed);
  }
  cuuint64_t const sizes[] = {cuuint64_t(d), cuuint64_t(rows)}, strides[] = {cuuint64_t(stride) * sizeof(typename S::Element)};
  cuuint32_t const boxes[] = {S::DEPTH, cuuint32_t(box)}, steps[] = {1, 1};
  CUresult const result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, MAP_TYPE<S::OPERAND>, 2, const_cast<void*>(base), sizes, strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return check(result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
}

template <class S, class Epilogue>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(__grid_constant__ CUtensorMap const x, __grid_constant__ CUtensorMap const y, int steps, Grid grid, __grid_constant__ typename Epilogue::Params const params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  Hopper<S> machine;
  products<S, Epilogue>(machine, *reinterpret_cast<Storage<S, Epilogue, HopperBarrier>*>(memory), x, y, steps, grid, params);
#endif
}

// A block of threads has WARP sums; each of its warps takes a slice of their parts.
template <bool LOG>
__global__ void __launch_bounds__(WARP* SLICES) merge(Merge by_row, Merge by_column, int row_blocks) {
  __shared__ float slices[SLICES][WARP];
  bool const of_row = int(blockIdx.x) < row_blocks;
  // Field by field: a choice between the two as a whole would be made in local memory.
  Merge const m{of_row ? by_row.parts : by_column.parts, of_row ? by_row.total : by_column.total, of_row ? by_row.extent : by_column.extent,
                of_row ? by_row.count : by_column.count, of_row ? by_row.first : by_column.first, of_row ? by_row.last : by_column.last};
  int const lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
  int const at = (blockIdx.x - (of_row ? 0 : row_blocks)) * WARP + lane;
  if (at < m.extent) slices[slice][lane] = merged_slice<LOG>(m, at, slice);
  __syncthreads();
  if (slice == 0 && at < m.extent) merge_slices<LOG>(m, at, &slices[0][lane], WARP);
}

// A kernel, ready to be launched on the current device.
template <class S, class Epilogue>
class Launcher {
 public:
  Status prepare(simmim_cuda_problem const& p) {
    stream_ = static_cast<cudaStream_t>(p.stream);
    steps_ = int((p.d + S::DEPTH - 1) / S::DEPTH);
    if (Status status = describe<S>(&x_, p.x, p.n, p.d, p.x_row, S::X_PART)) return status;
    if (Status status = describe<S>(&y_, p.y, p.m, p.d, p.y_row, S::Y_PART)) return status;
    // Asked for once: it takes longer than a small problem.
    static std::atomic<int> known[DEVICES];
    bool const counted = p.device >= 0 && p.device < DEVICES;
    if (counted) clusters_ = known[p.device].load(std::memory_order_relaxed);
    if (clusters_ > 0) return {};
    SIMMIM_TRY(cudaFuncSetAttribute(kernel<S, Epilogue>, cudaFuncAttributeMaxDynamicSharedMemorySize, MEMORY));
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t const config = configuration(S::BLOCKS, &cluster);
    SIMMIM_TRY(cudaOccupancyMaxActiveClusters(&clusters_, kernel<S, Epilogue>, &config));
    if (clusters_ <= 0) return refuse("the device has no room for a cluster of the kernel's blocks");
    if (counted) known[p.device].store(clusters_, std::memory_order_relaxed);
    return {};
  }

  Status launch(int64_t row, int64_t column, typename Epilogue::Params const& params) const {
    Grid const grid = grid_of<S>(params.scores, row, column, clusters_);
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t const config = configuration(std::min(clusters_, grid.template units<S>()) * S::BLOCKS, &cluster);
    SIMMIM_TRY(cudaLaunchKernelEx(&config, kernel<S, Epilogue>, x_, y_, steps_, grid, params));
    return {};
  }

  template <bool LOG>
  Status merge(Merge const& by_row, Merge const& by_column) const {
    auto const blocks = [](Merge const& m) { return m.total ? (m.extent + WARP - 1) / WARP : 0; };
    if (int const count = blocks(by_row) + blocks(by_column))
      simmim::merge<LOG><<<count, WARP * SLICES, 0, stream_>>>(by_row, by_column, blocks(by_row));
    SIMMIM_TRY(cudaGetLastError());
    return {};
  }

 private:
  static constexpr int DEVICES = 64, MEMORY = sizeof(Storage<S, Epilogue, HopperBarrier>);
  static_assert(MEMORY <= 227 * 1024);

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

}  // namespace
}  // namespace simmim

#include "interface.hpp"
