// The library's C interface on memory of the CPU, by fibers, for tests of what is around the kernels: the host's side of
// them, and the Python that calls it. Slow. "Device" and stream are left alone.
#include "../status.hpp"
#include "host_machine.hpp"

#include "../lines.hpp"
#include "../merge.hpp"

namespace simmim {
namespace {

struct OnDevice {
  Status enter(int) { return {}; }
};

struct Versions {
  static constexpr char const* ARCHITECTURES = "the host";
  static int runtime() { return 0; }
  static int driver() { return 0; }
};

template <class S, class Epilogue>
class Launcher {
 public:
  Status prepare(simmim_cuda_problem const& p) {
    problem_ = p;
    return {};
  }
  Status launch(int64_t row, int64_t column, typename Epilogue::Params const& params) const {
    constexpr int CLUSTERS = 3;  // of a small device
    using Element = typename S::Element;
    host::Map<Element> const x{static_cast<Element const*>(problem_.x), problem_.n, problem_.d, problem_.x_row, S::X_PART};
    host::Map<Element> const y{static_cast<Element const*>(problem_.y), problem_.m, problem_.d, problem_.y_row, S::Y_PART};
    Grid const grid = grid_of<S>(params.scores, row, column, CLUSTERS);
    return host::launch<S, Epilogue>(x, y, grid, params, std::min(CLUSTERS, grid.template units<S>())) ? Status{} : refuse("a deadlock");
  }
  template <bool LOG>
  Status merge(Merge const& by_row, Merge const& by_column) const {
    for (Merge const& m : {by_row, by_column})
      for (int at = 0; m.total && at < m.extent; ++at) {
        float slices[SLICES];
        for (int s = 0; s < SLICES; ++s) slices[s] = merged_slice<LOG>(m, at, s);
        merge_slices<LOG>(m, at, slices, 1);
      }
    return {};
  }

 private:
  simmim_cuda_problem problem_;
};

struct HostElements {
  template <Operand OPERAND>
  float value(typename ElementOf<OPERAND>::Type v) const {
    return host::value_of<OPERAND>(v);
  }
  template <Operand OPERAND>
  typename ElementOf<OPERAND>::Type element(float v) const {
    return host::element_of<OPERAND>(v);
  }
};

class LineLauncher {
 public:
  explicit LineLauncher(void*) {}

  template <Operand OPERAND>
  Status joint_pairs(JointPairs const& p, int lines) const {
    for (int i = 0; i < lines; ++i)
      joint_pair(p, i, over_warp([&](int lane) { return joint_product<OPERAND>(HostElements{}, p, i, lane); }));
    return {};
  }
  template <Operand OPERAND>
  Status finish(Finish const& f) const {
    for (Ends const* ends : {&f.rows, &f.columns})
      for (int i = 0; i < ends->count; ++i)
        end_dot(f, *ends, i, over_warp([&](int lane) { return end_line<OPERAND>(HostElements{}, f, *ends, i, lane); }));
    return {};
  }
  Status total(Total const& t) const {
    std::vector<float> parts(TOTAL_THREADS);
    for (int thread = 0; thread < TOTAL_THREADS; ++thread) parts[thread] = total_part(t, thread);
    for (int half = TOTAL_THREADS / 2; half > 0; half /= 2)
      for (int thread = 0; thread < half; ++thread) parts[thread] += parts[thread + half];
    *t.sum = parts[0] * t.factor;
    return {};
  }

 private:
  template <class Part>
  static float over_warp(Part const& part) {
    float v[WARP];
    for (int lane = 0; lane < WARP; ++lane) v[lane] = part(lane);
    for (int half = WARP / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) v[lane] += v[lane + half];
    return v[0];
  }
};

}  // namespace
}  // namespace simmim

#include "../interface.hpp"
#include "../lines_interface.hpp"
