// Writes rows of a tile to global memory in pieces of whole sectors.
#pragma once
#include "tile.hpp"

namespace simmim {

// A thread's part of row `r` of its tile, to `p.weights`. Of every 8 columns a thread of a quad has 2.
template <Operand OPERAND, int COLUMNS, class Group, class Params>
SIMMIM_DEVICE void store(Group& group, Params const& p, Accumulators<COLUMNS>& acc, int r, int i0, int j0) {
  using A = Accumulators<COLUMNS>;
  constexpr int C = A::C;
  int const q = group.lane() % QUAD, i = i0 + A::row(group.thread(), r);
  auto* const row = p.weights + int64_t(i) * p.stride;
  if constexpr (OPERAND == Operand::FLOAT32) {
    struct alignas(8) Two {
      float of[2];
    };
    SIMMIM_UNROLL
    for (int c = 0; c < C; c += 2) {
      int const j = j0 + A::column(group.thread(), c);
      // Up to the next multiple of 8 columns, as of the narrower types.
      if (i < p.scores.rows && j - 2 * q < p.scores.columns) *reinterpret_cast<Two*>(row + j) = {{acc.at(r, c), acc.at(r, c + 1)}};
    }
  } else {
    // They exchange, so that each has all 8 of one of 4 such groups: 16 bytes.
    struct alignas(16) Eight {
      uint32_t pair[QUAD];
    };
    SIMMIM_UNROLL
    for (int c0 = 0; c0 < C; c0 += 2 * QUAD) {
      Eight v;
      SIMMIM_UNROLL
      for (int g = 0; g < QUAD; ++g) v.pair[g] = group.template pair<OPERAND>(acc.at(r, c0 + 2 * g), acc.at(r, c0 + 2 * g + 1));
      SIMMIM_UNROLL
      for (int stride = 1; stride < QUAD; stride *= 2)
        SIMMIM_UNROLL
        for (int g = 0; g < QUAD; ++g) {
          if (g & stride) continue;
          bool const upper = q & stride;
          uint32_t const got = group.shuffle_xor(upper ? v.pair[g] : v.pair[g | stride], stride);
          v.pair[g] = upper ? got : v.pair[g];
          v.pair[g | stride] = upper ? v.pair[g | stride] : got;
        }
      int const j = j0 + (c0 / (2 * QUAD) * QUAD + q) * 8;
      if (i < p.scores.rows && j < p.scores.columns) *reinterpret_cast<Eight*>(row + j) = v;
    }
  }
}

}  // namespace simmim
