// Brings the parts of a block's sums together, in a fixed order, and with those of the blocks before it.
#pragma once
#include "tile.hpp"

namespace simmim {

struct Merge {
  float const* parts;  // (count, extent): sums, or log2 of sums
  float* total;        // (extent); or null, where it is not wanted. Of log2 so until the last block, which makes it natural
  int extent, count;
  bool first, last;
};

constexpr int SLICES = 8;

// Of one sum's parts those of a slice. LOG: of logarithms.
template <bool LOG>
SIMMIM_DEVICE float merged_slice(Merge const& m, int at, int slice) {
  int const per_slice = (m.count + SLICES - 1) / SLICES;
  int const from = slice * per_slice, to = from + per_slice < m.count ? from + per_slice : m.count;
  float k = -INFINITY, sum = 0.f;
  if constexpr (LOG) {
    for (int t = from; t < to; ++t) k = fmaxf(k, m.parts[int64_t(t) * m.extent + at]);
    k = finite(k);
    for (int t = from; t < to; ++t) sum += exp2_of(m.parts[int64_t(t) * m.extent + at] - k);
    return log2_of(sum) + k;
  } else {
    for (int t = from; t < to; ++t) sum += m.parts[int64_t(t) * m.extent + at];
    return sum;
  }
}

// a + b, or the log2 of 2^a + 2^b.
template <bool LOG>
SIMMIM_DEVICE float join(float a, float b) {
  if constexpr (LOG) {
    float const k = finite(fmaxf(a, b));
    return log2_of(exp2_of(a - k) + exp2_of(b - k)) + k;
  } else {
    return a + b;
  }
}

// `slices`, `stride` apart, and what was there before.
template <bool LOG>
SIMMIM_DEVICE void merge_slices(Merge const& m, int at, float const* slices, int stride) {
  float total = slices[0];
  for (int s = 1; s < SLICES; ++s) total = join<LOG>(total, slices[s * stride]);
  if (!m.first) total = join<LOG>(m.total[at], total);
  m.total[at] = LOG && m.last ? total * LN_2 : total;
}

}  // namespace simmim
