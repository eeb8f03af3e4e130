// A problem's operands as the products take them: a panel of columns, which is packed once for all threads, and strips of
// rows, of which a thread has one at a time with its tile of scores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>

#include "blocks.hpp"
#include "guide.hpp"
#include "memory.hpp"
#include "network.hpp"

namespace SIMMIM_ISA {
namespace {

// Multiples of every block's rows and columns. A strip and its tile stay in a core's own cache, a panel in the shared.
// Processors without AVX-512 have 256 or 512 KB of the former, of which a tile of 960 columns would leave no room.
constexpr int64_t strip_rows = 96, panel_step = SIMMIM_ROW_STEP, panel_columns = SIMMIM_VECTOR_BYTES == 64 ? 960 : 480,
                  panel_features = 960 * 512;
// Of pairs within groups: the narrower a tile, the fewer pairs of other groups share it with those that are in.
constexpr int64_t group_columns = panel_step;
template <class E> constexpr bool in_whole_blocks =
    strip_rows % block_rows<E> == 0 && panel_step % block_rows<E> == 0 && panel_step % block_columns<E> == 0;
static_assert(in_whole_blocks<float> && in_whole_blocks<double>);
#ifdef SIMMIM_BFLOAT16_PRODUCTS
static_assert(in_whole_blocks<bfloat16>);
#endif
#ifdef SIMMIM_TILES
static_assert(in_whole_blocks<Part<3>> && in_whole_blocks<Part<2>>);
#endif

// Bytes that the threads' strips, tiles and shares may take together, if not for fewer than a block of rows and
// panel_step columns each.
constexpr int64_t workspace = 64 << 20;

// Bytes of a network's second activations that a tile keeps from its scores to its gradients.
constexpr int64_t kept_activations = 512 << 10;

template <class T> constexpr T infinity = std::numeric_limits<T>::infinity();

// What a problem is, with its vectors in the type of the sums.
template <class E> struct Typed {
  using T = Sum<E>;
  const simmim_problem &p;
  const T *row_bias, *col_bias;
  T scale, lo, hi;
  bool clamped, symmetric;
  Features x, y;
  int64_t depth, width;  // of features, in whole steps and in whole blocks
  int64_t kept_row;      // of scores that are kept
  std::unique_ptr<const Network<T>> network;  // or none, for inner products
  const Guide<T> guide;

  explicit Typed(const simmim_problem &problem)
      : p(problem), row_bias(static_cast<const T *>(p.row_bias)), col_bias(static_cast<const T *>(p.col_bias)),
        scale(T(p.scale)), lo(T(p.lo)), hi(T(p.hi)), clamped(p.lo > -infinity<double> || p.hi < infinity<double>),
        symmetric(p.symmetric),
        x{p.x, p.dtype, p.x_row, p.x_column}, y{p.y, p.dtype, p.y_row, p.y_column},
        depth(round_up(p.d, Operand<E>::depth_step)), width(round_up(p.d, block_columns<E>)),
        kept_row(round_up(p.m, panel_step)), network(p.layers ? new Network<T>(p) : nullptr),
        guide(p) {}

  // As many as there are strips for.
  int threads() const {
    const int64_t strips = (p.n + rows_of_strip() - 1) / rows_of_strip();
    return int(std::min<int64_t>(std::max(1, p.threads), strips));
  }
  int64_t columns_of_panel() const {
    if (deep()) return panel_step;
    // Of a column's gradient, and of its scores and weights, the guide's scores among them.
    const int64_t of_pair = 1 + parts<E> + (guide.d ? 1 : 0), of_column = (width + of_pair * rows_of_strip()) * int64_t(sizeof(T));
    const int64_t fit =
        std::min(panel_features / (width + guide.d), of_thread() / 2 / of_column) / panel_step * panel_step;
    const int64_t most = std::min(p.grouped ? group_columns : panel_columns, fit);
    return std::min(round_up(p.m, panel_step), std::max(panel_step, most));
  }
  int64_t rows_of_strip() const {
    if (deep()) {
      const int64_t row = panel_step * network->tall * int64_t(sizeof(T));
      return std::clamp<int64_t>(std::min(kept_activations / row, p.n / std::max(1, p.threads)), 1, strip_rows);
    }
    // Of a row of x, as it is and packed, and of its gradient.
    const int64_t of_row = (std::max(3, 1 + parts<E>) * width + guide.d) * int64_t(sizeof(T));
    const int64_t fit = of_thread() / 2 / of_row / block_rows<E> * block_rows<E>;
    // Of a triangle's strips the first are the longest: more of them are shared out more evenly.
    const int64_t pieces = (symmetric ? 4 : 1) * std::max(1, p.threads);
    const int64_t even = round_up((p.n + pieces - 1) / pieces, block_rows<E>);
    return std::max<int64_t>(block_rows<E>, std::min({strip_rows, fit, even}));
  }

  // Whether the pairs have activations of their own, beside the first that any pair's operands show.
  bool deep() const { return network && network->layers > 1; }

private:
  int64_t of_thread() const { return workspace / std::max(1, p.threads); }
};

// A panel of y, as the right operand of the scores' product and of dx's, or as it is, for a network.
template <class E> struct Panel {
  int64_t first = 0, count = 0;
  int64_t columns = 0, rows = 0;  // as columns of the scores, and as rows of dy, in whole blocks
  Buffer<E> transposed, packed, plain;
  Buffer<Sum<E>> bias;
  Buffer<int64_t> least_id, most_id;  // (ids), of its columns
  GuideColumns<Sum<E>> guide;

  int64_t transposed_plane, packed_plane;  // from one part of them to the next

  Panel(const Typed<E> &t, bool differentiates, bool makes_scores)
      : transposed(t.deep() || !makes_scores ? nullptr : allocate<E>(parts<E> * t.columns_of_panel() * t.depth)),
        packed(differentiates && !t.network ? allocate<E>(parts<E> * t.columns_of_panel() * t.width) : nullptr),
        plain(t.network ? allocate<E>(t.columns_of_panel() * t.width) : nullptr),
        bias(allocate<Sum<E>>(t.columns_of_panel())), least_id(allocate<int64_t>(t.p.ids)),
        most_id(allocate<int64_t>(t.p.ids)), guide(t.guide, makes_scores ? t.columns_of_panel() : 0), transposed_plane(t.columns_of_panel() * t.depth),
        packed_plane(t.columns_of_panel() * t.width) {}
};

// A strip of rows and its tile of scores, which become weights; a thread has one.
template <class E> struct Strip {
  int64_t first = 0, count = 0, rows = 0;  // rows: in whole blocks
  int64_t from = 0;                        // the first column of the panel that is looked at
  int64_t stride;
  int64_t x_plane, weights_plane;          // from one part of x, and of the weights, to the next
  Sum<E> unscale = 1;                      // what the weights as numbers to multiply are to be multiplied by
  Buffer<E> x, packed;
  Buffer<Sum<E>> scores, gradient;
  // The weights as numbers to multiply, where scores are not: pairs along a row, and pairs along a column.
  Buffer<E> by_row, by_column;
  std::unique_ptr<Activations<Sum<E>>> made;  // by a network
  GuideRows<Sum<E>> guide;

  Strip(const Typed<E> &t, bool differentiates)
      : stride(t.columns_of_panel()), guide(t.guide, t.rows_of_strip(), stride) {
    const int64_t most = t.rows_of_strip();
    x_plane = std::max<int64_t>(most, block_columns<E>) * t.width;
    weights_plane = most * stride;
    x = allocate<E>(parts<E> * x_plane);  // which serves to pack y, too
    scores = allocate<Sum<E>>(most * stride);
    if (t.network) made.reset(new Activations<Sum<E>>(*t.network, stride, most, differentiates));
    if (!differentiates) return;
    packed = allocate<E>(parts<E> * x_plane);
    gradient = allocate<Sum<E>>(most * t.width);
    if (Operand<E>::step == 1) return;
    by_row = allocate<E>(parts<E> * weights_plane);
    by_column = allocate<E>(parts<E> * weights_plane);
  }
};

template <class E> void take_panel(const Typed<E> &t, Panel<E> &panel, Strip<E> &strip, int64_t first) {
  constexpr int block = block_columns<E>;
#pragma omp single
  {
    panel.first = first;
    panel.count = std::min(t.p.m - first, t.columns_of_panel());
    panel.columns = round_up(panel.count, block);
    panel.rows = round_up(panel.count, block_rows<E>);
    for (int64_t j = 0; j < panel.columns; ++j)
      panel.bias[j] = t.col_bias && j < panel.count ? t.col_bias[first + j] : Sum<E>(0);
    if (t.network && panel.rows > panel.columns)
      std::fill_n(panel.plain.get() + panel.columns * t.width, (panel.rows - panel.columns) * t.width, E{});
    for (int64_t k = 0; k < t.p.ids; ++k) {
      const int64_t *ids = t.p.col_ids + k * t.p.m + first;
      const auto ends = std::minmax_element(ids, ids + panel.count);
      panel.least_id[k] = *ends.first, panel.most_id[k] = *ends.second;
    }
  }
#pragma omp for schedule(static)
  for (int64_t j = 0; j < panel.columns; j += block) {
    E *rows = t.network ? panel.plain.get() + j * t.width : strip.x.get();
    unpack(t.y, first + j, std::clamp<int64_t>(panel.count - j, 0, block), block, t.p.d, t.width, rows, strip.x_plane);
    for (int part = 0; part < parts<E>; ++part, rows += strip.x_plane) {
      const int64_t in_transposed = part * panel.transposed_plane + j * t.depth;
      const int64_t in_packed = part * panel.packed_plane + j * block;
      if (panel.transposed) pack_transposed(rows, t.width, t.depth, panel.transposed.get() + in_transposed);
      if (panel.packed) pack(rows, block, t.width, panel.columns, panel.packed.get() + in_packed);
    }
  }
  if (panel.guide.packed) panel.guide.take(t.guide, first, panel.count, strip.guide.x.get());
}

// Columns in whole blocks, as columns of the scores and as rows of dy.
template <class E> constexpr int64_t from_step = std::lcm(block_rows<E>, block_columns<E>);

template <class E>
void take_strip(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, int64_t first, int64_t count) {
  strip.first = first;
  strip.count = count;
  strip.from = t.symmetric ? std::max<int64_t>(0, first - panel.first) / from_step<E> * from_step<E> : 0;
  strip.rows = t.network ? count : round_up(count, block_rows<E>);
  unpack(t.x, first, count, strip.rows, t.p.d, t.width, strip.x.get(), strip.x_plane);
}

}  // namespace
}  // namespace SIMMIM_ISA
