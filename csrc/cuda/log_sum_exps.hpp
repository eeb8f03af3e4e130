// The forward's end of a tile: the log2 of the sums of 2^s of its rows and, BY_COLUMN, of its columns, one number each.
#pragma once
#include "options.hpp"

namespace simmim {

// SCORES: Scores, or ScoresWithOptions.
template <int COLUMNS, bool BY_COLUMN = true, class SCORES = Scores>
struct LogSumExps {
  using A = Accumulators<COLUMNS>;
  static constexpr int R = A::R, C = A::C, KEPT = C / 8;

  struct Params {
    SCORES scores;
    float* row_parts;  // (tiles in a row of the block, scores.rows)
    float* col_parts;  // (tiles in a column of the block, scores.columns), if BY_COLUMN
  };
  struct Shared {
    float columns[2][WARPS][COLUMNS];  // of the last tile, and of the one before
  };

  // Sums relative to a reference far above them have lost what is below float32's range; those from here on have not.
  static constexpr float ENOUGH = 8.6736174e-19f;  // 2^-60

  // The largest of every SAMPLE-th pair of columns' scores in a warp. It need not be the largest of all: what is far above
  // it overflows, and is then not sound.
  static constexpr int SAMPLE = 4;
  template <class Group>
  SIMMIM_DEVICE static float reference_of(Group& group, A& acc, float factor) {
    float k = acc.at(0, 0);
    if (factor >= 0) {
      SIMMIM_UNROLL
      for (int c = 0; c < C; c += 2 * SAMPLE)
        SIMMIM_UNROLL
        for (int r = 0; r < R; ++r) k = fmaxf(k, fmaxf(acc.at(r, c), acc.at(r, c + 1)));
    } else {
      SIMMIM_UNROLL
      for (int c = 0; c < C; c += 2 * SAMPLE)
        SIMMIM_UNROLL
        for (int r = 0; r < R; ++r) k = fminf(k, fminf(acc.at(r, c), acc.at(r, c + 1)));
    }
    return finite(group.largest(k * factor));
  }

  // Every row and column relative to its own largest score, at an exponential a score for each. `columns` is this warp's.
  template <class Group>
  SIMMIM_DEVICE static int separately(Group& group, A& acc, float factor, float* columns, float (&by_row)[R], float (&by_column)[C]) {
    if (factor != 1.f) {
      SIMMIM_UNROLL
      for (int c = 0; c < C; ++c)
        SIMMIM_UNROLL
        for (int r = 0; r < R; ++r) acc.at(r, c) *= factor;
    }
    SIMMIM_UNROLL
    for (int r = 0; r < R; ++r) {
      float k = -INFINITY, sum = 0.f;
      SIMMIM_UNROLL
      for (int c = 0; c < C; ++c) k = fmaxf(k, acc.at(r, c));
      k = finite(over_quad(group, k, Max{}));
      SIMMIM_UNROLL
      for (int c = 0; c < C; ++c) sum += exp2_of(acc.at(r, c) - k);
      by_row[r] = log2_of(over_quad(group, sum, Add{})) + k;
    }
    if constexpr (!BY_COLUMN) return 0;
    SIMMIM_UNROLL
    for (int c = 0; c < C; ++c) {
      by_column[c] = acc.at(0, c);
      SIMMIM_UNROLL
      for (int r = 1; r < R; ++r) by_column[c] = fmaxf(by_column[c], acc.at(r, c));
    }
    int first = scatter_over_rows(group, by_column, Max{});
    SIMMIM_UNROLL
    for (int c = 0; c < KEPT; ++c) columns[A::column(group.thread(), first + c)] = finite(by_column[c]);
    group.sync_warp();
    SIMMIM_UNROLL
    for (int c = 0; c < C; ++c) {
      float const k = columns[A::column(group.thread(), c)];
      by_column[c] = 0.f;
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) by_column[c] += exp2_of(acc.at(r, c) - k);
    }
    first = scatter_over_rows(group, by_column, Add{});
    SIMMIM_UNROLL
    for (int c = 0; c < KEPT; ++c) by_column[c] = log2_of(by_column[c]) + columns[A::column(group.thread(), first + c)];
    group.sync_warp();  // the same places are written next
    return first;
  }

  // What a warpgroup does with its tiles.
  template <class Group>
  class Of {
   public:
    SIMMIM_DEVICE Of(Group& group, Params const& params, Shared& shared)
        : group_(group), p_(params), shared_(shared), scale_(*params.scores.scale * LOG2_E) {}

    SIMMIM_DEVICE void tile(A& acc, int ti, int tj) {
      int const i0 = ti * TILE_ROWS, j0 = tj * COLUMNS;
      float const factor = prepare<false>(group_, p_.scores, scale_, acc, i0, j0);

      // One exponential a score serves its row and its column: all are relative to a large score of the warp.
      float const reference = reference_of(group_, acc, factor);
      float by_row[R], by_column[C];
      // Their latency is long: some are under way while those before are added.
      float e[2][AT_ONCE][R];
      exponentials(e[0], acc, 0, factor, reference);
      SIMMIM_UNROLL
      for (int c = 0; c < C; c += AT_ONCE) {
        if (c + AT_ONCE < C) exponentials(e[c / AT_ONCE % 2 == 0 ? 1 : 0], acc, c + AT_ONCE, factor, reference);
        SIMMIM_UNROLL
        for (int k = 0; k < AT_ONCE; ++k)
          SIMMIM_UNROLL
          for (int r = 0; r < R; ++r) {
            float const v = e[c / AT_ONCE % 2][k][r];
            by_row[r] = c + k == 0 ? v : by_row[r] + v;
            if constexpr (BY_COLUMN) by_column[c + k] = r == 0 ? v : by_column[c + k] + v;
          }
      }
      int first = 0;
      if constexpr (BY_COLUMN) first = scatter_over_rows(group_, by_column, Add{});
      bool sound = true;  // NaN is not
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) {
        by_row[r] = over_quad(group_, by_row[r], Add{});
        sound = sound && by_row[r] >= ENOUGH && by_row[r] < INFINITY;
      }
      SIMMIM_UNROLL
      for (int c = 0; c < KEPT && BY_COLUMN; ++c) sound = sound && by_column[c] >= ENOUGH && by_column[c] < INFINITY;

      turn_ = 1 - turn_;
      float* const columns = shared_.columns[turn_][group_.thread() / WARP];
      if (group_.all(sound)) {
        SIMMIM_UNROLL
        for (int r = 0; r < R; ++r) by_row[r] = log2_of(by_row[r]) + reference;
        SIMMIM_UNROLL
        for (int c = 0; c < KEPT && BY_COLUMN; ++c) by_column[c] = log2_of(by_column[c]) + reference;
      } else {
        first = separately(group_, acc, factor, columns, by_row, by_column);
      }

      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) {
        int const i = i0 + A::row(group_.thread(), r);
        if (group_.lane() % QUAD == 0 && i < p_.scores.rows) p_.row_parts[int64_t(tj) * p_.scores.rows + i] = by_row[r];
      }
      if constexpr (!BY_COLUMN) return;
      // A warp has a quarter of every column.
      SIMMIM_UNROLL
      for (int c = 0; c < KEPT; ++c) columns[A::column(group_.thread(), first + c)] = by_column[c];
      ti_ = ti;
      tj_ = tj;
    }

    // Brings the last tile's columns together, once all warps of the group have met since: under the next one's products.
    SIMMIM_DEVICE void settle() {
      if (ti_ < 0) return;
      int const j0 = tj_ * COLUMNS;
      for (int j = group_.thread(); j < COLUMNS && j0 + j < p_.scores.columns; j += WARPGROUP) {
        float of_warp[WARPS], sum = 0.f;
        SIMMIM_UNROLL
        for (int w = 0; w < WARPS; ++w) of_warp[w] = shared_.columns[turn_][w][j];
        float const k = finite(fmaxf(fmaxf(of_warp[0], of_warp[1]), fmaxf(of_warp[2], of_warp[3])));
        SIMMIM_UNROLL
        for (int w = 0; w < WARPS; ++w) sum += exp2_of(of_warp[w] - k);
        p_.col_parts[int64_t(ti_) * p_.scores.columns + j0 + j] = log2_of(sum) + k;
      }
      ti_ = -1;
    }

   private:
    static constexpr int AT_ONCE = 4;
    SIMMIM_DEVICE static void exponentials(float (&e)[AT_ONCE][R], A& acc, int from, float factor, float reference) {
      SIMMIM_UNROLL
      for (int c = 0; c < AT_ONCE; ++c)
        SIMMIM_UNROLL
        for (int r = 0; r < R; ++r) e[c][r] = exp2_of(fmaf(acc.at(r, from + c), factor, -reference));
    }

    Group& group_;
    Params const& p_;
    Shared& shared_;
    float scale_;
    int turn_ = 0, ti_ = -1, tj_ = 0;
  };

};

}  // namespace simmim
