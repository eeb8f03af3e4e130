// The forward's end of a tile: the log2 of the sums of 2^s of its rows and of its columns, one number each.
#pragma once
#include "tile.hpp"

namespace simmim {

template <int COLUMNS>
struct LogSumExps {
  using A = Accumulators<COLUMNS>;
  static constexpr int R = A::R, C = A::C, KEPT = C / 8;

  struct Params {
    Scores scores;
    float* row_parts;  // (tiles in a row of the block, scores.rows)
    float* col_parts;  // (tiles in a column of the block, scores.columns)
  };
  struct Shared {
    float columns[WARPS][COLUMNS];
  };

  // Sums relative to a reference far above them have lost what is below float32's range; those from here on have not.
  static constexpr float ENOUGH = 8.6736174e-19f;  // 2^-60

  template <class Group>
  SIMMIM_DEVICE static void tile(Group& group, Params const& p, Shared& shared, A& acc, int ti, int tj) {
    int const i0 = ti * TILE_ROWS, j0 = tj * COLUMNS;
    float const factor = prepare(group, p.scores, acc, i0, j0);

    // One exponential a score serves its row and its column: all are relative to a large score of the warp.
    float const reference = reference_of(group, acc, factor);
    float by_row[R], by_column[C];
    SIMMIM_UNROLL
    for (int c = 0; c < C; ++c)
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) {
        float const e = exp2_of(fmaf(acc.at(r, c), factor, -reference));
        by_row[r] = c == 0 ? e : by_row[r] + e;
        by_column[c] = r == 0 ? e : by_column[c] + e;
      }
    int first = scatter_over_rows(group, by_column, Add{});
    bool sound = true;  // NaN is not
    SIMMIM_UNROLL
    for (int r = 0; r < R; ++r) {
      by_row[r] = over_quad(group, by_row[r], Add{});
      sound = sound && by_row[r] >= ENOUGH && by_row[r] < INFINITY;
    }
    SIMMIM_UNROLL
    for (int c = 0; c < KEPT; ++c) sound = sound && by_column[c] >= ENOUGH && by_column[c] < INFINITY;

    float* const columns = shared.columns[group.thread() / WARP];
    if (group.all(sound)) {
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) by_row[r] = log2_of(by_row[r]) + reference;
      SIMMIM_UNROLL
      for (int c = 0; c < KEPT; ++c) by_column[c] = log2_of(by_column[c]) + reference;
    } else {
      first = separately(group, acc, factor, columns, by_row, by_column);
    }

    SIMMIM_UNROLL
    for (int r = 0; r < R; ++r) {
      int const i = i0 + A::row(group.thread(), r);
      if (group.lane() % QUAD == 0 && i < p.scores.rows) p.row_parts[int64_t(tj) * p.scores.rows + i] = by_row[r];
    }
    // A warp has a quarter of every column.
    SIMMIM_UNROLL
    for (int c = 0; c < KEPT; ++c) columns[A::column(group.thread(), first + c)] = by_column[c];
    group.sync();
    for (int j = group.thread(); j < COLUMNS && j0 + j < p.scores.columns; j += WARPGROUP) {
      float k = shared.columns[0][j], sum = 0.f;
      SIMMIM_UNROLL
      for (int w = 1; w < WARPS; ++w) k = fmaxf(k, shared.columns[w][j]);
      k = finite(k);
      SIMMIM_UNROLL
      for (int w = 0; w < WARPS; ++w) sum += exp2_of(shared.columns[w][j] - k);
      p.col_parts[int64_t(ti) * p.scores.columns + j0 + j] = log2_of(sum) + k;
    }
    group.sync();  // `shared` is the next tile's from here on
  }

 private:
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
    k *= factor;
    SIMMIM_UNROLL
    for (int stride = WARP / 2; stride > 0; stride /= 2) k = fmaxf(k, group.shuffle_xor(k, stride));
    return finite(k);
  }

  // Every row and column relative to its own largest score, at two exponentials a score. `columns` is this warp's.
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
};

}  // namespace simmim
