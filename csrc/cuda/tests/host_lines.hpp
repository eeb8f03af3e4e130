// The kernels of lines (lines.cuh) on the CPU, lane after lane.
#pragma once
#include "../lines.hpp"
#include "host_machine.hpp"

namespace simmim::host {

struct Elements {
  template <Operand OPERAND>
  float value(typename ElementOf<OPERAND>::Type v) const {
    return value_of<OPERAND>(v);
  }
  template <Operand OPERAND>
  typename ElementOf<OPERAND>::Type element(float v) const {
    return element_of<OPERAND>(v);
  }
};

// Halves are added, as those that exchange do.
template <int COUNT, class Part>
float added(Part const& part) {
  std::vector<float> v(COUNT);
  for (int k = 0; k < COUNT; ++k) v[k] = part(k);
  for (int half = COUNT / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) v[k] += v[k + half];
  return v[0];
}

template <Operand OPERAND>
void joint_pairs(JointPairs const& p, int lines) {
  for (int i = 0; i < lines; ++i) joint_pair(p, i, added<WARP>([&](int lane) { return joint_product<OPERAND>(Elements{}, p, i, lane); }));
}

template <Operand OPERAND>
void finish(Finish const& f) {
  for (Ends const* ends : {&f.rows, &f.columns})
    for (int i = 0; i < ends->count; ++i)
      end_dot(f, *ends, i, added<WARP>([&](int lane) { return end_line<OPERAND>(Elements{}, f, *ends, i, lane); }));
}

inline void total(Total const& t) {
  *t.sum = t.factor * added<TOTAL_THREADS>([&](int thread) { return total_part(t, thread); });
}

}  // namespace simmim::host
