// The walk over all tiles, by threads that each have strips of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

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

// Whether a strip's and a panel's groups show that all pairs of the tile are left out.
template <class E> bool is_left_out(const Typed<E> &t, const Panel<E> &panel, int64_t first, int64_t count) {
  if (!t.p.grouped || t.p.joint == SIMMIM_KEPT) return false;
  const auto ends = std::minmax_element(t.p.row_ids + first, t.p.row_ids + first + count);
  return *ends.first > panel.most_id[0] || *ends.second < panel.least_id[0];
}

// Walks all tiles: a job adds each to its share of the thread that made it, then merges the shares panel by panel.
//
// A thread's strips are neighbours, and the same ones in every panel. Those of a triangle, the first of which are the
// longest, are dealt out in turn, there and back.
inline bool deals(bool symmetric, int64_t strip, int64_t strips, int64_t team, int64_t me) {
  if (!symmetric) return strip >= strips * me / team && strip < strips * (me + 1) / team;
  const int64_t turn = strip % (2 * team);
  return (turn < team ? turn : 2 * team - 1 - turn) == me;
}

template <class E, class Job> void for_each_tile(const Typed<E> &t, Job &job) {
  const simmim_problem &p = t.p;
  const int64_t height = t.rows_of_strip(), width = t.columns_of_panel(), strips = (p.n + height - 1) / height;
  Panel<E> panel(t, Job::differentiates);
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
    try {
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
        const int64_t reach = t.symmetric ? (panel.first + panel.count + height - 1) / height : strips;
        for (int64_t s = 0; s < reach; ++s) {
          const int64_t count = std::min(height, p.n - s * height);
          if (!deals(t.symmetric, s, strips, team, me)) continue;
          if (!job.looks_at_joints() && is_left_out(t, panel, s * height, count)) continue;
          take_strip(t, *strip, panel, s * height, count);
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
