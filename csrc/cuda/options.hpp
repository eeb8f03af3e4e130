// Scores with what fewer problems ask for: a clamp, ids, joint pairs that are kept or negated. Kernels for them are others
// than those for plain scores, which so keep their registers.
#pragma once
#include "tile.hpp"

namespace simmim {

// Pair (i, j) is left out where row_ids[k, i] == col_ids[k, j] for any k, but for k = 0 of grouped ones, for which it is
// left out where they differ.
struct ScoresWithOptions : Scores {
  bool keeps, negates;  // the joint pairs: whatever the ids say; by the sign of their scores
  bool grouped;
  int ids;
  int64_t const *row_ids, *col_ids;         // (ids, rows) and (ids, columns) of the block, if ids > 0
  int64_t row_ids_stride, col_ids_stride;
  float lo, hi;  // of the clamp, in nats; infinite for none
};

// A bit for each of a thread's columns, in each of its rows.
template <int COLUMNS>
struct PairBits {
  static constexpr int R = Accumulators<COLUMNS>::R, C = Accumulators<COLUMNS>::C;
  static_assert(C <= 32);
  uint32_t of[R];

  SIMMIM_DEVICE bool at(int r, int c) const { return of[r] >> c & 1; }
};

// The joint pairs, where they matter, and none elsewhere.
template <int COLUMNS, class Group>
SIMMIM_DEVICE PairBits<COLUMNS> joint_bits(Group& group, ScoresWithOptions const& p, int i0, int j0) {
  using A = Accumulators<COLUMNS>;
  PairBits<COLUMNS> joint{};
  int const ahead = p.first_row + i0 - (p.first_column + j0);  // of the diagonal
  if (!(p.leaves_out || p.keeps || p.negates) || !(p.positives || (ahead < COLUMNS && ahead > -TILE_ROWS))) return joint;
  int columns[A::R];
  joint_columns<COLUMNS>(group, p, i0, j0, columns);
  SIMMIM_UNROLL
  for (int r = 0; r < A::R; ++r) {
    int const j = columns[r];
    if (j >= 0 && j % 8 / 2 == group.thread() % QUAD) joint.of[r] = 1u << (j / 8 * 2 + j % 2);
  }
  return joint;
}

// The pairs that are not left out and within the block.
template <int COLUMNS, class Group>
SIMMIM_DEVICE PairBits<COLUMNS> counted_bits(Group& group, ScoresWithOptions const& p, PairBits<COLUMNS> const& joint, int i0, int j0) {
  using A = Accumulators<COLUMNS>;
  uint32_t inside = 0;  // of the columns
  for (int c = 0; c < A::C; ++c) inside |= uint32_t(j0 + A::column(group.thread(), c) < p.columns) << c;
  PairBits<COLUMNS> out{};
  for (int k = 0; k < p.ids; ++k) {
    bool const differing = p.grouped && k == 0;
    int64_t mine[A::R];
    SIMMIM_UNROLL
    for (int r = 0; r < A::R; ++r) {
      int const i = i0 + A::row(group.thread(), r);
      mine[r] = i < p.rows ? p.row_ids[k * p.row_ids_stride + i] : 0;
    }
    for (int c = 0; c < A::C; ++c) {
      int const j = j0 + A::column(group.thread(), c);
      int64_t const other = j < p.columns ? p.col_ids[k * p.col_ids_stride + j] : 0;
      SIMMIM_UNROLL
      for (int r = 0; r < A::R; ++r) out.of[r] |= uint32_t((mine[r] == other) != differing) << c;
    }
  }
  PairBits<COLUMNS> in;
  SIMMIM_UNROLL
  for (int r = 0; r < A::R; ++r) {
    if (p.keeps) out.of[r] &= ~joint.of[r];
    if (p.leaves_out) out.of[r] |= joint.of[r];
    in.of[r] = i0 + A::row(group.thread(), r) < p.rows ? inside & ~out.of[r] : 0;
  }
  return in;
}

// Makes scores of products, in nats and before the clamp.
template <int COLUMNS, class Group>
SIMMIM_DEVICE void scores_of_products(Group& group, ScoresWithOptions const& p, Accumulators<COLUMNS>& acc, int i0, int j0) {
  using A = Accumulators<COLUMNS>;
  float const scale = *p.scale;
  float a[A::R];
  SIMMIM_UNROLL
  for (int r = 0; r < A::R; ++r) {
    int const i = i0 + A::row(group.thread(), r);
    a[r] = p.row_bias && i < p.rows ? p.row_bias[i] : 0.f;
  }
  SIMMIM_UNROLL
  for (int c = 0; c < A::C; ++c) {
    int const j = j0 + A::column(group.thread(), c);
    float const b = p.col_bias && j < p.columns ? p.col_bias[j] : 0.f;
    SIMMIM_UNROLL
    for (int r = 0; r < A::R; ++r) acc.at(r, c) = acc.at(r, c) * scale + (a[r] + b);
  }
}

// As of plain scores (tile.hpp). To be weighed, pairs beyond the clamp are left out too: no gradient passes there.
template <bool WEIGHS, int COLUMNS, class Group>
SIMMIM_DEVICE float prepare(Group& group, ScoresWithOptions const& p, float, Accumulators<COLUMNS>& acc, int i0, int j0) {
  using A = Accumulators<COLUMNS>;
  auto const in = counted_bits<COLUMNS>(group, p, joint_bits<COLUMNS>(group, p, i0, j0), i0, j0);
  scores_of_products(group, p, acc, i0, j0);
  SIMMIM_UNROLL
  for (int c = 0; c < A::C; ++c)
    SIMMIM_UNROLL
    for (int r = 0; r < A::R; ++r) {
      float s = acc.at(r, c);
      // By comparisons, which let NaN through.
      if (s < p.lo) s = WEIGHS ? -INFINITY : p.lo;
      if (s > p.hi) s = WEIGHS ? -INFINITY : p.hi;
      acc.at(r, c) = in.at(r, c) ? s * LOG2_E : -INFINITY;
    }
  return 1.f;
}

}  // namespace simmim
