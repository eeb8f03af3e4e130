// The walk over all tiles, by threads that each have strips of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "strips.hpp"
#include "threads.hpp"

namespace SIMMIM_ISA {
namespace {

// Denormal numbers cost hundreds of cycles each, and what is as small adds nothing to a sum that matters.
class FlushDenormals {
#if defined(__SSE2__)
  unsigned before_ = _mm_getcsr();

public:
  FlushDenormals() { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }
#endif
};

// A strip's rows, and the ends of their groups' ids where there are any.
struct Piece {
  int64_t first, count;
  int64_t least_id = 0, most_id = 0;
};

// The strips of one thread of a team, the same ones in every panel: neighbours, and as many rows as any other thread has.
// Those of a triangle, the first of which are the longest, are dealt out in turn, there and back.
template <class E> std::vector<Piece> pieces_of(const Typed<E> &t, int64_t team, int64_t me) {
  const int64_t n = t.p.n, height = t.rows_of_strip(), block = t.network ? 1 : block_rows<E>;
  std::vector<Piece> pieces;
  if (t.symmetric) {
    for (int64_t first = 0, strip = 0; first < n; first += height, ++strip) {
      const int64_t turn = strip % (2 * team);
      if ((turn < team ? turn : 2 * team - 1 - turn) == me) pieces.push_back({first, std::min(height, n - first)});
    }
  } else {
    const int64_t blocks = (n + block - 1) / block;
    const int64_t begin = blocks * me / team * block, end = std::min(n, blocks * (me + 1) / team * block);
    const int64_t strips = std::max<int64_t>(1, (end - begin + height - 1) / height);
    const int64_t even = round_up((end - begin + strips - 1) / strips, block);
    for (int64_t first = begin; first < end; first += even) pieces.push_back({first, std::min(even, end - first)});
  }
  if (t.p.grouped)
    for (Piece &piece : pieces) {
      const int64_t *ids = t.p.row_ids + piece.first;
      const auto ends = std::minmax_element(ids, ids + piece.count);
      piece.least_id = *ends.first, piece.most_id = *ends.second;
    }
  return pieces;
}

// Whether a strip's and a panel's groups show that all pairs of the tile are left out.
template <class E> bool is_left_out(const Typed<E> &t, const Panel<E> &panel, const Piece &piece) {
  if (!t.p.grouped || t.p.joint == SIMMIM_KEPT) return false;
  return piece.least_id > panel.most_id[0] || piece.most_id < panel.least_id[0];
}

// Walks all tiles: a job adds each to its share of the thread that made it, then merges the shares panel by panel.
template <class E, class Job> void for_each_tile(const Typed<E> &t, Job &job) {
  const simmim_problem &p = t.p;
  const int64_t width = t.columns_of_panel();
  Panel<E> panel(t, Job::differentiates, job.makes_scores());
  job.shares.resize(t.threads());
  bool failed = false;
#pragma omp parallel num_threads(t.threads())
  {
    const FlushDenormals flush;
#ifdef SIMMIM_TILES
    [[maybe_unused]] const TileRegisters tiles;
#endif
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    std::unique_ptr<Strip<E>> strip;
    std::vector<Piece> pieces;
    try {
      pieces = pieces_of(t, team, me);
      strip.reset(new Strip<E>(t, Job::differentiates));
      job.shares[me].reset(new typename Job::Share(t, job));
    } catch (const std::bad_alloc &) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp barrier
    if (!failed) {
      for (int64_t first = 0; first < p.m; first += width) {
        take_panel(t, panel, *strip, first);
        job.shares[me]->clear();
        for (const Piece &piece : pieces) {
          if (t.symmetric && piece.first >= panel.first + panel.count) break;
          if (!job.looks_at_joints() && is_left_out(t, panel, piece)) continue;
          take_strip(t, *strip, panel, piece.first, piece.count);
          job.add_tile(*strip, panel, *job.shares[me]);
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t j = 0; j < panel.count; ++j) job.merge(panel, j, team);
      }
    }
  }
  if (failed) throw std::bad_alloc();
}

}  // namespace
}  // namespace SIMMIM_ISA
