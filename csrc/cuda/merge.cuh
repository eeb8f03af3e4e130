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

constexpr int SLICES = 8, MERGE_THREADS = WARP * SLICES;

inline int merge_blocks(Merge const& m) { return m.total ? (m.extent + WARP - 1) / WARP : 0; }

// Log2 of 2^a + 2^b.
SIMMIM_DEVICE float join(float a, float b) {
  float const k = finite(fmaxf(a, b));
  return log2_of(exp2_of(a - k) + exp2_of(b - k)) + k;
}

// A block of threads has WARP sums; each of its warps takes a slice of their parts.
__global__ void __launch_bounds__(MERGE_THREADS) merge(Merge by_row, Merge by_column) {
  __shared__ float sliced[SLICES][WARP];
  int const row_blocks = by_row.total ? (by_row.extent + WARP - 1) / WARP : 0;
  bool const of_row = int(blockIdx.x) < row_blocks;
  // Field by field: a choice between the two as a whole would be made in local memory.
  Merge const m{of_row ? by_row.parts : by_column.parts, of_row ? by_row.total : by_column.total, of_row ? by_row.extent : by_column.extent,
                of_row ? by_row.count : by_column.count, of_row ? by_row.first : by_column.first, of_row ? by_row.last : by_column.last};
  int const lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
  int const at = (blockIdx.x - (of_row ? 0 : row_blocks)) * WARP + lane;
  int const per_slice = (m.count + SLICES - 1) / SLICES;
  int const from = slice * per_slice, to = min(from + per_slice, m.count);
  float k = -INFINITY, sum = 0.f;
  if (at < m.extent) {
    for (int t = from; t < to; ++t) k = fmaxf(k, m.parts[int64_t(t) * m.extent + at]);
    k = finite(k);
    for (int t = from; t < to; ++t) sum += exp2_of(m.parts[int64_t(t) * m.extent + at] - k);
  }
  sliced[slice][lane] = log2_of(sum) + k;
  __syncthreads();
  if (slice != 0 || at >= m.extent) return;
  float total = sliced[0][lane];
  for (int s = 1; s < SLICES; ++s) total = join(total, sliced[s][lane]);
  if (!m.first) total = join(m.total[at], total);
  m.total[at] = m.last ? total * LN_2 : total;
}

}  // namespace simmim
