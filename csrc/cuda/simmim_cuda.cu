// The library: how the kernels are launched. nvcc compiles them here; a host's compiler takes them from what NVRTC made of
// them before (build_nvrtc.py).
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <string_view>

#ifdef __CUDACC__
#include "kernels.cuh"
#else
#include "lines.hpp"
#include "merge.hpp"
#include "mma_body.hpp"
#include "narrow.hpp"

// By the names that a host's compiler gives them: each is but an address, by which `find` knows it.
namespace simmim {
template <class S, class Epilogue>
void kernel(CUtensorMap, CUtensorMap, int, Grid, typename Epilogue::Params);
template <class S>
void narrow(CUtensorMap, CUtensorMap, NarrowParams);
template <class S, class Epilogue>
void mma_kernel(Matrix<typename S::Element>, Matrix<typename S::Element>, int, Grid, typename Epilogue::Params);
template <bool LOG>
void merge(Merge, Merge, int);
template <Operand OPERAND>
void joint_pairs(JointPairs, int);
template <Operand OPERAND>
void finish(Finish);
template <int THREADS>
void total(Total);
}  // namespace simmim

struct simmim_cuda_kernel {
  void const* address;
  char const* name;
};
extern "C" {
extern char const simmim_cuda_image[];
extern simmim_cuda_kernel const simmim_cuda_kernels[];
extern int64_t const simmim_cuda_kernel_count;
}
#endif

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

// What the runtime launches for a kernel.
#ifdef __CUDACC__
template <class Kernel>
Status find(void const** found, Kernel* kernel) {
  *found = reinterpret_cast<void const*>(kernel);
  return {};
}
#else
template <class Kernel>
Status find(void const** found, Kernel* kernel) {
  // Of the process, and so one for all devices. Loaded when first asked for.
  struct Image {
    cudaLibrary_t library = nullptr;
    cudaError_t error = cudaLibraryLoadData(&library, simmim_cuda_image, nullptr, nullptr, 0, nullptr, nullptr, 0);
  };
  static Image const image;
  SIMMIM_TRY(image.error);
  for (int64_t k = 0; k < simmim_cuda_kernel_count; ++k) {
    if (simmim_cuda_kernels[k].address != reinterpret_cast<void const*>(kernel)) continue;
    cudaKernel_t handle;
    SIMMIM_TRY(cudaLibraryGetKernel(&handle, image.library, simmim_cuda_kernels[k].name));
    *found = handle;
    return {};
  }
  return refuse("the library has no such kernel");
}
#endif

// SIMMIM_CUDA_ARCHITECTURES comes from the build.
struct Versions {
  static constexpr char const* ARCHITECTURES = SIMMIM_CUDA_ARCHITECTURES;
  static constexpr bool HOPPER = std::string_view(ARCHITECTURES).find("sm_90a") != std::string_view::npos;
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

  // Whether it has Hopper's instructions, and the library kernels of them.
  static bool is_hopper(int device) {
    int major = 0, minor = 0;
    return Versions::HOPPER && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 && minor == 0;
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

template <bool LOG>
Status launch_merge(cudaStream_t stream, Merge const& by_row, Merge const& by_column) {
  auto const blocks = [](Merge const& m) { return m.total ? (m.extent + WARP - 1) / WARP : 0; };
  int const of_rows = blocks(by_row), count = of_rows + blocks(by_column);
  if (count == 0) return {};
  void const* kernel;
  if (Status status = find(&kernel, simmim::merge<LOG>)) return status;
  void const* arguments[] = {&by_row, &by_column, &of_rows};
  SIMMIM_TRY(cudaLaunchKernel(kernel, dim3(count), dim3(WARP * SLICES), const_cast<void**>(arguments), 0, stream));
  return {};
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
    if (Status status = find(&kernel_, kernel<S, Epilogue>)) return status;
    if (clusters_ > 0) return {};
    SIMMIM_TRY(cudaFuncSetAttribute(kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize, MEMORY));
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t const config = configuration(S::BLOCKS, &cluster);
    SIMMIM_TRY(cudaOccupancyMaxActiveClusters(&clusters_, kernel_, &config));
    if (clusters_ <= 0) return refuse("the device has no room for a cluster of the kernel's blocks");
    if (counted) known[p.device].store(clusters_, std::memory_order_relaxed);
    return {};
  }

  Status launch(int64_t row, int64_t column, typename Epilogue::Params const& params) const {
    Grid const grid = grid_of<S>(params.scores, row, column, clusters_);
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t const config = configuration(std::min(clusters_, grid.template units<S>()) * S::BLOCKS, &cluster);
    void const* arguments[] = {&x_, &y_, &steps_, &grid, &params};
    SIMMIM_TRY(cudaLaunchKernelExC(&config, kernel_, const_cast<void**>(arguments)));
    return {};
  }

  template <bool LOG>
  Status merge(Merge const& by_row, Merge const& by_column) const { return launch_merge<LOG>(stream_, by_row, by_column); }

 private:
  static constexpr int DEVICES = 64, MEMORY = sizeof(Storage<S, Epilogue, uint64_t>);
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
  void const* kernel_ = nullptr;
  int steps_ = 0, clusters_ = 0;
  cudaStream_t stream_ = nullptr;
};

template <class S>
class NarrowLauncher {
 public:
  Status launch(simmim_cuda_problem const& p, NarrowParams const& params, int blocks) const {
    constexpr int MEMORY = sizeof(NarrowStorage<S, uint64_t>);
    static_assert(MEMORY <= 227 * 1024);
    CUtensorMap x, y;
    if (Status status = describe<S>(&x, p.x, p.n, p.d, p.x_row, S::X_PART)) return status;
    if (Status status = describe<S>(&y, p.y, p.m, p.d, p.y_row, S::Y_PART)) return status;
    void const* kernel;
    if (Status status = find(&kernel, narrow<S>)) return status;
    SIMMIM_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, MEMORY));
    void const* arguments[] = {&x, &y, &params};
    SIMMIM_TRY(cudaLaunchKernel(kernel, dim3(blocks), dim3(S::THREADS), const_cast<void**>(arguments), MEMORY, static_cast<cudaStream_t>(p.stream)));
    return {};
  }
};

// Launches the kernels of lines.
class LineLauncher {
 public:
  explicit LineLauncher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <Operand OPERAND>
  Status joint_pairs(JointPairs const& p, int lines) const {
    void const* arguments[] = {&p, &lines};
    return launch(simmim::joint_pairs<OPERAND>, blocks_of_lines(lines), WARP * LINES, arguments);
  }
  template <Operand OPERAND>
  Status finish(Finish const& f) const {
    void const* arguments[] = {&f};
    return launch(simmim::finish<OPERAND>, blocks_of_lines(int64_t(f.rows.count) + f.columns.count), WARP * LINES, arguments);
  }
  Status total(Total const& t) const {
    void const* arguments[] = {&t};
    return launch(simmim::total<TOTAL_THREADS>, 1, TOTAL_THREADS, arguments);
  }

 private:
  static unsigned blocks_of_lines(int64_t lines) { return unsigned((lines + LINES - 1) / LINES); }
  template <class Kernel>
  Status launch(Kernel* wanted, unsigned blocks, int threads, void const** arguments) const {
    void const* kernel;
    if (Status status = find(&kernel, wanted)) return status;
    SIMMIM_TRY(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), const_cast<void**>(arguments), 0, stream_));
    return {};
  }

  cudaStream_t stream_;
};

template <Operand OPERAND, class Epilogue>
class Launcher<MmaShape<OPERAND>, Epilogue> {
 public:
  Status prepare(simmim_cuda_problem const& p) {
    stream_ = static_cast<cudaStream_t>(p.stream);
    steps_ = int((p.d + S::DEPTH - 1) / S::DEPTH);
    x_ = {static_cast<Element const*>(p.x), p.x_row, int(p.n), int(p.d)};
    y_ = {static_cast<Element const*>(p.y), p.y_row, int(p.m), int(p.d)};
    return find(&kernel_, mma_kernel<S, Epilogue>);
  }

  Status launch(int64_t row, int64_t column, typename Epilogue::Params const& params) const {
    Grid const grid = grid_of<S>(params.scores, row, column, 1);
    void const* arguments[] = {&x_, &y_, &steps_, &grid, &params};
    SIMMIM_TRY(cudaLaunchKernel(kernel_, dim3(grid.template units<S>()), dim3(WARPGROUP), const_cast<void**>(arguments), MEMORY, stream_));
    return {};
  }

  template <bool LOG>
  Status merge(Merge const& by_row, Merge const& by_column) const { return launch_merge<LOG>(stream_, by_row, by_column); }

 private:
  using S = MmaShape<OPERAND>;
  using Element = typename S::Element;
  // What a kernel may have without being asked to. Two blocks and what the system takes of each are less than any has.
  static constexpr int MEMORY = sizeof(MmaStorage<S, Epilogue>);
  static_assert(MEMORY <= 48 * 1024);

  Matrix<Element> x_, y_;
  void const* kernel_ = nullptr;
  int steps_ = 0;
  cudaStream_t stream_ = nullptr;
};

}  // namespace
}  // namespace simmim

#include "interface.hpp"
#include "lines_interface.hpp"
