// A guide's scores of a tile's pairs: where one exceeds its row's limit, the pair is left out. They are made in the type of
// the sums, whatever the operands' own, since a rounding would change which pairs there are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks.hpp"
#include "memory.hpp"

namespace SIMMIM_ISA {
namespace {

// What a problem says of it. `d` is 0 where there is none.
template <class T> struct Guide {
  Features x, y;
  const T *limit;
  int64_t d;

  explicit Guide(const simmim_problem &p)
      : x(rows_of(p.guide_x, p.guide_d)), y(rows_of(p.guide_y, p.guide_d)), limit(static_cast<const T *>(p.guide_limit)),
        d(p.guide_limit ? p.guide_d : 0) {}

private:
  static Features rows_of(const void *values, int64_t d) {
    return {values, sizeof(T) == sizeof(double) ? SIMMIM_FLOAT64 : SIMMIM_FLOAT32, d, 1};
  }
};

// A panel's columns, as the right operand.
template <class T> struct GuideColumns {
  Buffer<T> packed;
  GuideColumns(const Guide<T> &guide, int64_t columns) {
    if (guide.d && columns) packed = allocate<T>(columns * guide.d);
  }

  // Shared among a team's threads, each of which has room for a block of columns as they are.
  void take(const Guide<T> &guide, int64_t first, int64_t count, T *room) {
    constexpr int block = block_columns<T>;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < count; j += block) {
      unpack(guide.y, first + j, std::min<int64_t>(count - j, block), block, guide.d, guide.d, room);
      pack_transposed(room, guide.d, guide.d, packed.get() + j * guide.d);
    }
  }
};

// A strip's rows, and the guide's scores of its tile.
template <class T> struct GuideRows {
  Buffer<T> x, scores;
  GuideRows(const Guide<T> &guide, int64_t rows, int64_t stride) {
    if (!guide.d) return;
    const int64_t most = round_up(rows, block_rows<T>);
    x = allocate<T>(std::max<int64_t>(most, block_columns<T>) * guide.d);  // which serves to pack y, too
    scores = allocate<T>(most * stride);
  }

  void score(const Guide<T> &guide, int64_t first, int64_t count, const GuideColumns<T> &columns, int64_t of_panel,
             int64_t stride) {
    const int64_t rows = round_up(count, block_rows<T>);
    unpack(guide.x, first, count, rows, guide.d, guide.d, x.get());
    multiply<T>(rows, round_up(of_panel, block_columns<T>), guide.d, x.get(), guide.d, 1, columns.packed.get(), guide.d,
                scores.get(), stride, false);
  }
};

}  // namespace
}  // namespace SIMMIM_ISA
