// The library's C interface on memory of the CPU, by fibers, for tests of what is around the kernels: the host's side of
// them, and the Python that calls it. Slow. "Device" and stream are left alone.
#include "../status.hpp"
#include "host_lines.hpp"
#include "host_machine.hpp"

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

template <class S>
class NarrowLauncher {
 public:
  Status launch(simmim_cuda_problem const& p, NarrowParams const& params, int blocks) const {
    using Element = typename S::Element;
    host::Map<Element> const x{static_cast<Element const*>(p.x), p.n, p.d, p.x_row, S::X_PART};
    host::Map<Element> const y{static_cast<Element const*>(p.y), p.m, p.d, p.y_row, S::Y_PART};
    return host::launch_narrow<S>(x, y, params, blocks) ? Status{} : refuse("a deadlock");
  }
};

class LineLauncher {
 public:
  explicit LineLauncher(void*) {}

  template <Operand OPERAND>
  Status joint_pairs(JointPairs const& p, int lines) const {
    host::joint_pairs<OPERAND>(p, lines);
    return {};
  }
  template <Operand OPERAND>
  Status finish(Finish const& f) const {
    host::finish<OPERAND>(f);
    return {};
  }
  Status total(Total const& t) const {
    host::total(t);
    return {};
  }
};

}  // namespace
}  // namespace simmim

#include "../interface.hpp"
#include "../lines_interface.hpp"
