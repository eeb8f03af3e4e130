// Brings the parts of a block's sums together, in a fixed order, and with those of the blocks before it.
#pragma once
#include "tile.hpp"

namespace simmim {

struct Merge {
  float const* parts;  // (count, extent), log2 of sums
  float* total;        // (extent); or null, where it is not wanted. Log2 until the last block, which makes it natural
  int extent, count;
  bool first, last;
};

constexpr int SLICES = 8;

// Of one sum's parts those of a slice.
SIMMIM_DEVICE float merged_slice(Merge const& m, int at, int slice) {
  int const per_slice = (m.count + SLICES - 1) / SLICES;
  int const from = slice * per_slice, to = from + per_slice < m.count ? from + per_slice : m.count;
  float k = -INFINITY, sum = 0.f;
  for (int t = from; t < to; ++t) k = fmaxf(k, m.parts[int64_t(t) * m.extent + at]);
  k = finite(k);
  for (int t = from; t < to; ++t) sum += exp2_of(m.parts[int64_t(t) * m.extent + at] - k);
  return log2_of(sum) + k;
}

// Log2 of 2^a + 2^b.
SIMMIM_DEVICE float join(float a, float b) {
  float const k = finite(fmaxf(a, b));
  return log2_of(exp2_of(a - k) + exp2_of(b - k)) + k;
}

// `slices`, `stride` apart, and what was there before.
SIMMIM_DEVICE void merge_slices(Merge const& m, int at, float const* slices, int stride) {
  float total = slices[0];
  for (int s = 1; s < SLICES; ++s) total = join(total, slices[s * stride]);
  if (!m.first) total = join(m.total[at], total);
  m.total[at] = m.last ? total * LN_2 : total;
}

}  // namespace simmim
