// Pairwise statistics and their gradients, for one instruction set.
//
// One idea: the matrix of scores is walked in panels of columns and strips of rows. A panel of y is packed once for all
// threads; a thread's tile, strip x panel, stays in its cache from the product that makes it to the exponentials and
// sums (forward) or the two further products (backward) that consume it. Each thread keeps what it adds up for the
// panel's columns to itself, and the threads' shares are merged in their order when the panel ends: the results do not
// depend on who was faster.
//
// Of symmetric scores only the pairs on and above the diagonal are looked at. One above it stands for its mirror image,
// too: what it adds to its column is added to the row of that number.
//
// Where a network scores the pairs (network.hpp), it makes a tile's scores and takes the weights in place of products.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "blocks.hpp"
#include "memory.hpp"
#include "network.hpp"
#include "table.hpp"
#include "threads.hpp"
#include "vector_math.hpp"

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

// Bytes that the threads' strips, tiles and shares may take together, if not for fewer than a block of rows and
// panel_step columns each.
constexpr int64_t workspace = 64 << 20;

// Bytes of a network's second activations that a tile keeps from its scores to its gradients.
constexpr int64_t kept_activations = 512 << 10;

// Spread of a tile's references for which one exponential serves rows and columns: in nats, far within float32.
constexpr double shared_spread = 40;

// Denormal numbers cost hundreds of cycles each, and what is as small adds nothing to a sum that matters.
class FlushDenormals {
#if defined(__SSE2__)
  unsigned before_ = _mm_getcsr();

public:
  FlushDenormals() { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }
#endif
};

template <class T> constexpr T infinity = std::numeric_limits<T>::infinity();

// A reference for exponentials: 0 stands for an infinite one, since inf - inf would be NaN.
template <class T> T finite(T reference) { return std::isinf(reference) ? T(0) : reference; }

template <class T> T sum_of(Vector<T> v) {
  T total = 0;
  for (int i = 0; i < Vectors<T>::lanes; ++i) total += v[i];
  return total;
}
template <class T> T most_of(Vector<T> v) {
  T most = v[0];
  for (int i = 1; i < Vectors<T>::lanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}
template <class T> Vector<T> larger(Vector<T> a, Vector<T> b) { return a > b ? a : b; }

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

  explicit Typed(const simmim_problem &problem)
      : p(problem), row_bias(static_cast<const T *>(p.row_bias)), col_bias(static_cast<const T *>(p.col_bias)),
        scale(T(p.scale)), lo(T(p.lo)), hi(T(p.hi)), clamped(p.lo > -infinity<double> || p.hi < infinity<double>),
        symmetric(p.symmetric),
        x{p.x, p.dtype, p.x_row, p.x_column}, y{p.y, p.dtype, p.y_row, p.y_column},
        depth(round_up(p.d, Operand<E>::depth_step)), width(round_up(p.d, block_columns<E>)),
        kept_row(round_up(p.m, panel_step)), network(p.layers ? new Network<T>(p) : nullptr) {}

  // As many as there are strips for.
  int threads() const {
    const int64_t strips = (p.n + rows_of_strip() - 1) / rows_of_strip();
    return int(std::min<int64_t>(std::max(1, p.threads), strips));
  }
  int64_t columns_of_panel() const {
    if (deep()) return panel_step;
    const int64_t of_column = (width + 2 * rows_of_strip()) * int64_t(sizeof(T));
    const int64_t fit = std::min(panel_features / width, of_thread() / 2 / of_column) / panel_step * panel_step;
    const int64_t most = std::min(p.grouped ? group_columns : panel_columns, fit);
    return std::min(round_up(p.m, panel_step), std::max(panel_step, most));
  }
  int64_t rows_of_strip() const {
    if (deep()) {
      const int64_t row = panel_step * network->tall * int64_t(sizeof(T));
      return std::clamp<int64_t>(std::min(kept_activations / row, p.n / std::max(1, p.threads)), 1, strip_rows);
    }
    const int64_t fit = of_thread() / 2 / (3 * width * int64_t(sizeof(T))) / block_rows<E> * block_rows<E>;
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

  Panel(const Typed<E> &t, bool differentiates)
      : transposed(t.deep() ? nullptr : allocate<E>(t.columns_of_panel() * t.depth)),
        packed(differentiates && !t.network ? allocate<E>(t.columns_of_panel() * t.width) : nullptr),
        plain(t.network ? allocate<E>(t.columns_of_panel() * t.width) : nullptr),
        bias(allocate<Sum<E>>(t.columns_of_panel())), least_id(allocate<int64_t>(t.p.ids)),
        most_id(allocate<int64_t>(t.p.ids)) {}
};

// A strip of rows and its tile of scores, which become weights; a thread has one.
template <class E> struct Strip {
  int64_t first = 0, count = 0, rows = 0;  // rows: in whole blocks
  int64_t from = 0;                        // the first column of the panel that is looked at
  int64_t stride;
  Buffer<E> x, packed;
  Buffer<Sum<E>> scores, gradient;
  // The weights as numbers to multiply, where scores are not: pairs along a row, and pairs along a column.
  Buffer<E> by_row, by_column;
  std::unique_ptr<Activations<Sum<E>>> made;  // by a network

  Strip(const Typed<E> &t, bool differentiates) : stride(t.columns_of_panel()) {
    const int64_t most = t.rows_of_strip();
    x = allocate<E>(std::max<int64_t>(most, block_columns<E>) * t.width);  // which serves to pack y, too
    scores = allocate<Sum<E>>(most * stride);
    if (t.network) made.reset(new Activations<Sum<E>>(*t.network, stride, most, differentiates));
    if (!differentiates) return;
    packed = allocate<E>(most * t.width);
    gradient = allocate<Sum<E>>(most * t.width);
    if (Operand<E>::step == 1) return;
    by_row = allocate<E>(most * stride);
    by_column = allocate<E>(most * stride);
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
    unpack(t.y, first + j, std::clamp<int64_t>(panel.count - j, 0, block), block, t.p.d, t.width, rows);
    if (panel.transposed) pack_transposed(rows, t.width, t.depth, panel.transposed.get() + j * t.depth);
    if (panel.packed) pack(rows, block, t.width, panel.columns, panel.packed.get() + j * block);
  }
}

// Columns in whole blocks, as columns of the scores and as rows of dy.
template <class E> constexpr int64_t from_step = std::lcm(block_rows<E>, block_columns<E>);

template <class E>
void take_strip(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, int64_t first, int64_t count) {
  strip.first = first;
  strip.count = count;
  strip.from = t.symmetric ? std::max<int64_t>(0, first - panel.first) / from_step<E> * from_step<E> : 0;
  strip.rows = t.network ? count : round_up(count, block_rows<E>);
  unpack(t.x, first, count, strip.rows, t.p.d, t.width, strip.x.get());
}

// Where a row's joint pair is among the panel's columns that are looked at, or -1.
template <class E> int64_t joint_of(const Typed<E> &t, const Panel<E> &panel, int64_t row) {
  const int64_t column = t.p.positives ? t.p.positives[row] : row, joint = column - panel.first;
  return joint >= 0 && joint < panel.count && !(t.symmetric && column < row) ? joint : -1;
}

// Where the diagonal of symmetric scores crosses a row, among the panel's columns, or -1.
template <class E> int64_t diagonal_of(const Typed<E> &t, const Panel<E> &panel, int64_t row) {
  const int64_t diagonal = row - panel.first;
  return t.symmetric && diagonal >= 0 && diagonal < panel.count ? diagonal : -1;
}

// Keeps one of some values, at -1 none, as it is while others are added to.
template <class T> class Untouched {
  T *at_ = nullptr, before_ = 0;

public:
  Untouched(T *values, int64_t at) {
    if (at >= 0) at_ = values + at, before_ = *at_;
  }
  ~Untouched() {
    if (at_) *at_ = before_;
  }
};

// Puts `fill` in the places of a row that are left out, below the diagonal of symmetric scores, and beyond its end.
template <class E>
void leave_out(const Typed<E> &t, const Panel<E> &panel, int64_t row, Sum<E> *values, int64_t from, int64_t end,
               Sum<E> fill) {
  const simmim_problem &p = t.p;
  const int64_t joint = p.joint == SIMMIM_LEFT_OUT || p.joint == SIMMIM_KEPT ? joint_of(t, panel, row) : -1;
  const bool special = joint >= 0;
  const Sum<E> of_joint = special && p.joint == SIMMIM_KEPT ? values[joint] : fill;
  for (int64_t k = 0; k < p.ids; ++k) {
    const int64_t id = p.row_ids[k * p.n + row], *ids = p.col_ids + k * p.m + panel.first;
    const bool in_if = p.grouped && k == 0;
    if (!in_if && (id < panel.least_id[k] || id > panel.most_id[k])) continue;
    for (int64_t j = from; j < panel.count; ++j) values[j] = (ids[j] == id) == in_if ? values[j] : fill;
  }
  if (special) values[joint] = of_joint;
  if (t.symmetric) std::fill(values + from, values + std::clamp(row - panel.first, from, end), fill);
  for (int64_t j = panel.count; j < end; ++j) values[j] = fill;
}

// Whether a strip's and a panel's groups show that all pairs of the tile are left out.
template <class E> bool is_left_out(const Typed<E> &t, const Panel<E> &panel, int64_t first, int64_t count) {
  if (!t.p.grouped || t.p.joint == SIMMIM_KEPT) return false;
  const auto ends = std::minmax_element(t.p.row_ids + first, t.p.row_ids + first + count);
  return *ends.first > panel.most_id[0] || *ends.second < panel.least_id[0];
}

// The tile's products, or what a network makes of its pairs; scale, biases and clamp come row by row.
template <class E> void make_scores(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel) {
  if constexpr (std::is_same_v<E, Sum<E>>) {
    if (t.deep()) {
      for (int64_t i = 0; i < strip.count; ++i)
        score_row(*t.network, *strip.made, panel.rows, strip.x.get() + i * t.width, panel.plain.get(),
                  strip.made->second_of(i), strip.scores.get() + i * strip.stride);
      return;
    }
    if (t.network) {
      score_pairs(*t.network, strip.count, panel.columns, strip.x.get(), panel.transposed.get(), strip.scores.get(),
                  strip.stride);
      return;
    }
  }
  multiply<E>(strip.rows, panel.columns - strip.from, t.depth, strip.x.get(), t.width, Operand<E>::step,
              panel.transposed.get() + strip.from * t.depth, t.depth, strip.scores.get() + strip.from, strip.stride,
              false);
}

template <class E>
Vector<Sum<E>> unclamped_score(const Typed<E> &t, const Panel<E> &panel, const Sum<E> *scores, int64_t j, Sum<E> bias) {
  return load(scores + j) * t.scale + (load(panel.bias.get() + j) + bias);
}
template <class E> Vector<Sum<E>> clamped_score(const Typed<E> &t, Vector<Sum<E>> s) {
  using T = Sum<E>;
  if (!t.clamped) return s;
  const Vector<T> lo = all(t.lo), hi = all(t.hi);
  const Vector<T> below = s < lo ? lo : s;
  return s > hi ? hi : below;
}

template <class T> Vector<T> function_of(int function, Vector<T> s) {
  switch (function) {
  case SIMMIM_SOFTPLUS: return softplus_of<T>(s);
  case SIMMIM_SQUARE: return s * s;
  case SIMMIM_LOG1MEXP: return log1mexp_of<T>(s);
  default: return s;
  }
}
template <class T> Vector<T> derivative_of(int function, Vector<T> s) {
  switch (function) {
  case SIMMIM_SOFTPLUS: return sigmoid_of<T>(s);
  case SIMMIM_SQUARE: return T(2) * s;
  case SIMMIM_LOG1MEXP: return log1mexp_slope<T>(s);
  default: return all(T(1));
  }
}

// log sum e^s of many vectors at once, as most + log(total), while tiles come in.
template <class T> struct Sums {
  T *most, *total;
  void clear(int64_t size) {
    std::fill_n(most, size, -infinity<T>);
    std::fill_n(total, size, T(0));
  }
  void add(int64_t at, T reference, T sum) {
    const T before = most[at], now = reference > before ? reference : before;
    // Where both are the same infinity nothing is rescaled.
    total[at] = total[at] * (before == now ? T(1) : std::exp(before - now)) +
                sum * (reference == now ? T(1) : std::exp(reference - now));
    most[at] = now;
  }
  T result(int64_t at) const { return most[at] + std::log(total[at]); }
};

// Log-sum-exps of the rows and of the columns of a tile, by one exponential where one reference serves all.
template <class E>
void add_exponentials(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, Sums<Sum<E>> rows,
                      Sums<Sum<E>> columns, bool want_rows, bool want_columns, Sum<E> *joints, Sum<E> *kept,
                      Sum<E> *column_most, Sum<E> *column_sum) {
  using T = Sum<E>;
  constexpr int lanes = Vectors<T>::lanes;
  const int64_t from = strip.from, n = panel.columns;
  T row_most[strip_rows];
  std::fill_n(column_most, n, -infinity<T>);
  for (int64_t i = 0; i < strip.count; ++i) {
    const int64_t row = strip.first + i;
    T *s = strip.scores.get() + i * strip.stride;
    const T bias = t.row_bias ? t.row_bias[row] : T(0);
    for (int64_t j = from; j < n; j += lanes) store(s + j, clamped_score(t, unclamped_score(t, panel, s, j, bias)));
    if (const int64_t joint = joints ? joint_of(t, panel, row) : -1; joint >= 0) {
      joints[row] = s[joint];
      if (t.symmetric) joints[panel.first + joint] = s[joint];
    }
    leave_out(t, panel, row, s, from, n, -infinity<T>);
    if (kept) std::copy(s + from, s + n, kept + row * t.kept_row + panel.first + from);
    const Untouched<T> diagonal(column_most, diagonal_of(t, panel, row));
    Vector<T> most = all(-infinity<T>);
    for (int64_t j = from; j < n; j += lanes) {
      const Vector<T> v = load(s + j);
      most = larger<T>(v, most);
      store(column_most + j, larger<T>(v, load(column_most + j)));
    }
    row_most[i] = most_of<T>(most);
  }
  T most = -infinity<T>, least = infinity<T>;
  const auto see = [&](const T *values, int64_t size) {
    for (int64_t k = 0; k < size; ++k) {
      most = values[k] > most ? values[k] : most;
      least = values[k] > -infinity<T> && values[k] < least ? values[k] : least;
    }
  };
  if (want_rows) see(row_most, strip.count);
  if (want_columns) see(column_most + from, panel.count - from);
  // Not where all pairs are left out, nor where anything is infinite.
  const bool shared = std::isfinite(most) && most - least <= T(shared_spread);
  std::fill_n(column_sum, n, T(0));
  for (int64_t i = 0; i < strip.count; ++i) {
    const T *s = strip.scores.get() + i * strip.stride;
    const T reference = shared ? most : finite(row_most[i]);
    const Untouched<T> diagonal(column_sum, diagonal_of(t, panel, strip.first + i));
    Vector<T> sum{};
    if (want_rows || shared) {
      for (int64_t j = from; j < n; j += lanes) {
        const Vector<T> e = exp_of<T>(load(s + j) - reference);
        sum += e;
        if (shared) store(column_sum + j, load(column_sum + j) + e);
      }
    }
    if (want_rows) rows.add(strip.first + i, shared ? most : row_most[i], sum_of<T>(sum));
    if (want_columns && !shared)
      for (int64_t j = from; j < n; j += lanes) {
        const Vector<T> top = load(column_most + j);
        const Vector<T> shift = (top == all(infinity<T>)) | (top == all(-infinity<T>)) ? Vector<T>{} : top;
        store(column_sum + j, load(column_sum + j) + exp_of<T>(load(s + j) - shift));
      }
  }
  if (want_columns)
    for (int64_t j = from; j < panel.count; ++j) columns.add(j, shared ? most : column_most[j], column_sum[j]);
}

// A row's joint pair, where it is negated: the function, or its derivative, takes the score with its sign changed.
template <class E> struct Negated {
  using T = Sum<E>;
  const Typed<E> &t;
  const int64_t at;
  T raw = 0, score = 0;
  Negated(const Typed<E> &t, const Panel<E> &panel, int64_t row, const T *products, T bias)
      : t(t), at(t.p.joint == SIMMIM_NEGATED ? joint_of(t, panel, row) : -1) {
    if (at < 0) return;
    raw = products[at] * t.scale + (panel.bias[at] + bias);
    score = -clamped_score(t, all(raw))[0];
  }
  T value() const { return function_of<T>(t.p.function, all(score))[0]; }
  T derivative() const {
    return !t.clamped || (raw >= t.lo && raw <= t.hi) ? -derivative_of<T>(t.p.function, all(score))[0] : T(0);
  }
};

template <class E>
void add_values(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, Sum<E> *rows, Sum<E> *columns) {
  using T = Sum<E>;
  constexpr int lanes = Vectors<T>::lanes;
  for (int64_t i = 0; i < strip.count; ++i) {
    const int64_t row = strip.first + i;
    T *s = strip.scores.get() + i * strip.stride;
    const T bias = t.row_bias ? t.row_bias[row] : T(0);
    const Negated<E> joint(t, panel, row, s, bias);
    for (int64_t j = strip.from; j < panel.columns; j += lanes)
      store(s + j, function_of<T>(t.p.function, clamped_score(t, unclamped_score(t, panel, s, j, bias))));
    if (joint.at >= 0) s[joint.at] = joint.value();
    leave_out(t, panel, row, s, strip.from, panel.columns, T(0));
    const Untouched<T> diagonal(columns, columns ? diagonal_of(t, panel, row) : -1);
    Vector<T> sum{};
    for (int64_t j = strip.from; j < panel.columns; j += lanes) {
      sum += load(s + j);
      if (columns) store(columns + j, load(columns + j) + load(s + j));
    }
    if (rows) rows[row] += sum_of<T>(sum);
  }
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

// logaddexp(others, joint) - joint. A joint score of inf would hide itself there: its cross entropy is inf - inf.
template <class T> T entropy(T others, T joint) {
  const T excess = others - joint;
  if (joint == infinity<T>) return std::numeric_limits<T>::quiet_NaN();
  return std::max(excess, T(0)) + std::log1p(std::exp(-std::abs(excess)));
}
// Its derivative by `others`.
template <class T> T share_of_others(T others, T joint) {
  if (joint == infinity<T>) return std::numeric_limits<T>::quiet_NaN();
  return T(1) / (T(1) + std::exp(joint - others));
}

template <class E> struct Forward {
  using T = Sum<E>;
  static constexpr bool differentiates = false;

  // Of the columns of a panel.
  struct Share {
    int64_t width;
    Buffer<T> most, total, scratch;
    Share(const Typed<E> &t, const Forward &)
        : width(t.columns_of_panel()), most(allocate<T>(width)), total(allocate<T>(width)),
          scratch(allocate<T>(2 * width)) {}
    void clear() { sums().clear(width); }
    Sums<T> sums() const { return {most.get(), total.get()}; }
  };

  const Typed<E> &t;
  const bool exponential;
  T *const rows, *const columns;  // of symmetric scores one of the two, and the other's place afterwards
  T *const joints, *const entropies, *const kept;
  Buffer<T> row_most;
  std::vector<std::unique_ptr<Share>> shares;

  Forward(const Typed<E> &problem, const simmim_values &v)
      : t(problem), exponential(t.p.function == SIMMIM_LOGSUMEXP),
        rows(static_cast<T *>(t.symmetric && !v.rows ? v.columns : v.rows)), columns(static_cast<T *>(v.columns)),
        joints(static_cast<T *>(v.joint)), entropies(static_cast<T *>(v.entropies)), kept(static_cast<T *>(v.scores)),
        row_most(allocate<T>(exponential && rows ? t.p.n : 0)) {
    if (rows) std::fill_n(rows, t.p.n, T(0));
    if (exponential && rows) std::fill_n(row_most.get(), t.p.n, -infinity<T>);
  }

  bool looks_at_joints() const { return joints; }

  void add_tile(Strip<E> &strip, const Panel<E> &panel, Share &mine) {
    const bool by_column = t.symmetric || columns;
    make_scores(t, strip, panel);
    if (exponential)
      add_exponentials(t, strip, panel, Sums<T>{row_most.get(), rows}, mine.sums(), rows != nullptr, by_column, joints,
                       kept, mine.scratch.get(), mine.scratch.get() + mine.width);
    else
      add_values(t, strip, panel, rows, by_column ? mine.total.get() : nullptr);
  }

  void merge(const Panel<E> &panel, int64_t j, int64_t team) {
    if (!t.symmetric && !columns) return;
    Sums<T> merged = shares[0]->sums();
    for (int64_t k = 1; k < team; ++k) {
      const Sums<T> other = shares[k]->sums();
      if (exponential)
        merged.add(j, other.most[j], other.total[j]);
      else
        merged.total[j] += other.total[j];
    }
    const int64_t column = panel.first + j;
    if (!t.symmetric)
      columns[column] = exponential ? merged.result(j) : merged.total[j];
    else if (exponential)
      Sums<T>{row_most.get(), rows}.add(column, merged.most[j], merged.total[j]);
    else
      rows[column] += merged.total[j];
  }

  void run() {
    for_each_tile(t, *this);
    if (exponential && rows)
      for (int64_t i = 0; i < t.p.n; ++i) rows[i] = Sums<T>{row_most.get(), rows}.result(i);
    if (t.symmetric && columns && columns != rows) std::copy_n(rows, t.p.n, columns);
    if (!entropies) return;
    T *to = entropies;
    for (const T *others : {t.symmetric && rows == columns ? nullptr : rows, columns})
      for (int64_t i = 0; others && i < t.p.n; ++i) *to++ = entropy(others[i], joints[i]);
  }
};

// Upstream gradients and statistics by side, as the weights want them.
template <class T> struct Upstream {
  const T *rows, *columns, *grad_rows, *grad_columns, *grad_joint = nullptr, *scores;
  Buffer<T> made, both;

  Upstream(const simmim_problem &p, const simmim_gradients &g)
      : rows(static_cast<const T *>(g.rows)), columns(static_cast<const T *>(g.columns)),
        grad_rows(static_cast<const T *>(g.grad_rows)), grad_columns(static_cast<const T *>(g.grad_columns)),
        scores(static_cast<const T *>(g.scores)) {
    if (g.grad_entropies) take_entropies(p.n, p.m, static_cast<const T *>(g.joint), static_cast<const T *>(g.grad_entropies));
    if (p.symmetric) add_mirrored(p.n, g.total);
  }

private:
  // From gradients of cross entropies to those of log-sum-exps and joint scores.
  void take_entropies(int64_t n, int64_t m, const T *joint, const T *grad) {
    made = allocate<T>(2 * n + m);
    T *of_rows = made.get(), *of_joint = of_rows + n, *of_columns = of_joint + n;
    std::fill_n(made.get(), 2 * n + m, T(0));
    const auto take = [&](const T *others, T *to) {
      for (int64_t i = 0; i < n; ++i) {
        to[i] = *grad++ * share_of_others(others[i], joint[i]);
        of_joint[i] -= to[i];
      }
    };
    if (rows) take(rows, of_rows);
    if (columns) take(columns, of_columns);
    grad_rows = of_rows, grad_columns = of_columns, grad_joint = of_joint;
  }

  // Of symmetric scores: G_ij + G_ji, which is alike by row and by column. The total's weights wait for no gradient.
  void add_mirrored(int64_t n, bool total) {
    both = allocate<T>(n);
    for (int64_t i = 0; i < n; ++i)
      both[i] = total ? T(1) : (grad_rows ? grad_rows[i] : T(0)) + (grad_columns ? grad_columns[i] : T(0));
    rows = columns = rows ? rows : columns;
    grad_rows = grad_columns = both.get();
  }
};

// One row of e^s (A + B) with one reference for the tile, or alpha e^(s - r) + beta e^(s - c).
template <class T> struct Weights {
  bool shared = false;
  T reference = 0;
  Buffer<T> column_factor, column_reference;

  explicit Weights(int64_t width) : column_factor(allocate<T>(width)), column_reference(allocate<T>(width)) {}

  // An empty row or column has the statistic -inf and no pair to weigh: +inf makes its weights 0, not NaN.
  static T usable(T statistic) { return statistic == -infinity<T> ? infinity<T> : statistic; }

  template <class E> void prepare(const Upstream<T> &u, const Strip<E> &strip, const Panel<E> &panel) {
    T most = -infinity<T>, least = infinity<T>;
    bool ordinary = true;
    const auto see = [&](const T *statistics, int64_t size) {
      for (int64_t k = 0; k < size; ++k) {
        if (statistics[k] == -infinity<T>) continue;
        ordinary &= std::isfinite(statistics[k]);
        most = std::max(most, statistics[k]);
        least = std::min(least, statistics[k]);
      }
    };
    if (u.rows) see(u.rows + strip.first, strip.count);
    if (u.columns) see(u.columns + panel.first, panel.count);
    // Not where every statistic is -inf: there is no reference then, and no pair to weigh.
    shared = ordinary && most >= least && most - least <= T(shared_spread);
    reference = shared ? (most + least) / 2 : T(0);
    for (int64_t j = 0; j < panel.columns; ++j) {
      const bool inside = u.columns && j < panel.count;
      column_reference[j] = inside ? usable(u.columns[panel.first + j]) : infinity<T>;
      column_factor[j] = inside ? u.grad_columns[panel.first + j] : T(0);
      if (shared) column_factor[j] *= std::exp(reference - column_reference[j]);
    }
  }
};

template <class T>
Vector<T> weight(int function, const Upstream<T> &u, const Weights<T> &w, Vector<T> s, int64_t j, T row_factor,
                 T row_reference) {
  if (function != SIMMIM_LOGSUMEXP) {
    const Vector<T> slope = derivative_of<T>(function, s);
    return slope * (load(w.column_factor.get() + j) + row_factor);
  }
  if (w.shared) return exp_of<T>(s - w.reference) * (load(w.column_factor.get() + j) + row_factor);
  Vector<T> g{};
  if (u.rows) g += exp_of<T>(s - row_reference) * row_factor;
  if (u.columns) g += exp_of<T>(s - load(w.column_reference.get() + j)) * load(w.column_factor.get() + j);
  return g;
}

// Turns a tile's products into its weights G; adds up their rows and columns, and the function itself, where wanted.
template <class E>
void weigh(const Typed<E> &t, const Upstream<Sum<E>> &u, Weights<Sum<E>> &w, Strip<E> &strip, const Panel<E> &panel,
           Sum<E> *drow, Sum<E> *dcol, double *total) {
  using T = Sum<E>;
  constexpr int lanes = Vectors<T>::lanes;
  const bool exponential = t.p.function == SIMMIM_LOGSUMEXP;
  if (exponential)
    w.prepare(u, strip, panel);
  else
    for (int64_t j = 0; j < panel.columns; ++j)
      w.column_factor[j] = u.grad_columns && j < panel.count ? u.grad_columns[panel.first + j] : T(0);
  // In whole vectors, as round_weights takes them.
  const int64_t from = strip.from, end = round_up(std::max(panel.columns, panel.rows), lanes);
  T values[panel_columns];
  for (int64_t i = 0; i < strip.rows; ++i) {
    T *s = strip.scores.get() + i * strip.stride;
    if (i >= strip.count) {
      std::fill(s + from, s + end, T(0));
      continue;
    }
    const int64_t row = strip.first + i;
    const T bias = t.row_bias ? t.row_bias[row] : T(0);
    const T *kept = u.scores ? u.scores + row * t.kept_row + panel.first : nullptr;
    const T reference = u.rows ? Weights<T>::usable(u.rows[row]) : infinity<T>;
    T factor = u.grad_rows ? u.grad_rows[row] : T(total ? 1 : 0);
    if (exponential && w.shared) factor *= u.rows ? std::exp(w.reference - reference) : T(0);
    const int64_t joint = u.grad_joint ? joint_of(t, panel, row) : -1;
    T of_joint = 0;
    if (joint >= 0) {
      const T score = t.clamped ? s[joint] * t.scale + (panel.bias[joint] + bias) : T(0);
      if (!t.clamped || (score >= t.lo && score <= t.hi))
        of_joint = u.grad_joint[row] + (t.symmetric ? u.grad_joint[panel.first + joint] : T(0));
    }
    const Negated<E> negated(t, panel, row, s, bias);
    for (int64_t j = from; j < panel.columns; j += lanes) {
      const Vector<T> raw = kept ? load(kept + j) : unclamped_score(t, panel, s, j, bias);
      const Vector<T> clamped = clamped_score(t, raw);
      if (total) store(values + j, function_of<T>(t.p.function, clamped));
      Vector<T> g = weight(t.p.function, u, w, clamped, j, factor, reference);
      // Comparisons that hold for what is inside, so that NaN is taken for outside, as by the other backends.
      if (t.clamped) g = (raw >= all(t.lo)) & (raw <= all(t.hi)) ? g : Vector<T>{};
      store(s + j, g);
    }
    if (negated.at >= 0) {
      s[negated.at] = negated.derivative() * (w.column_factor[negated.at] + factor);
      values[negated.at] = negated.value();
    }
    leave_out(t, panel, row, s, from, end, T(0));
    if (joint >= 0) s[joint] += of_joint;
    // As a pair of its row and of its column, each of which the products add up.
    const int64_t diagonal = diagonal_of(t, panel, row);
    if (diagonal >= 0) s[diagonal] /= 2;
    if (total) {
      leave_out(t, panel, row, values, from, panel.columns, T(0));
      Vector<T> sum{};
      for (int64_t j = from; j < panel.columns; j += lanes) sum += load(values + j);
      const double once = double(sum_of<T>(sum));
      *total += !t.symmetric ? once : 2 * once - (diagonal >= 0 ? double(values[diagonal]) : 0);
    }
    if (drow || dcol) {
      Vector<T> sum{};
      for (int64_t j = from; j < panel.columns; j += lanes) {
        sum += load(s + j);
        if (dcol) store(dcol + j, load(dcol + j) + load(s + j));
      }
      if (drow) drow[row] += sum_of<T>(sum);
    }
  }
}

// Rounds a tile's weights to what products are made of, where scores are not.
template <class E> void round_weights(Strip<E> &strip, const Panel<E> &panel) {
#ifdef SIMMIM_BFLOAT16_PRODUCTS
  if constexpr (std::is_same_v<E, bfloat16>) {
    const int64_t stride = strip.stride, end = std::max(panel.columns, panel.rows);
    for (int64_t i = 0; i < strip.rows; i += 2) {
      const float *scores = strip.scores.get() + i * stride;
      bfloat16 *rows = strip.by_row.get() + i * stride, *pairs = strip.by_column.get() + i * stride;
#ifdef __AVX512BF16__
      for (int64_t j = strip.from; j < end; j += 16) {
        const __m256i first = (__m256i)_mm512_cvtneps_pbh((__m512)load(scores + j));
        const __m256i second = (__m256i)_mm512_cvtneps_pbh((__m512)load(scores + stride + j));
        _mm256_storeu_si256((__m256i *)(rows + j), first);
        _mm256_storeu_si256((__m256i *)(rows + stride + j), second);
        const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16);
        _mm512_storeu_si512(pairs + 2 * j, _mm512_or_si512(_mm512_cvtepu16_epi32(first), upper));
      }
#else
      for (int64_t j = strip.from; j < end; ++j) {
        pairs[2 * j] = rows[j] = rounded(scores[j]);
        pairs[2 * j + 1] = rows[stride + j] = rounded(scores[stride + j]);
      }
#endif
    }
  }
#endif
}

// Takes a strip's products with the panel into dx and the gradient of the scale.
template <class E>
void add_row_gradients(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, Sum<E> *dx, double *dscale) {
  using T = Sum<E>;
  T *gradient = strip.gradient.get();
  const int64_t columns = panel.columns - strip.from;
  const E *packed = panel.packed.get() + strip.from * block_columns<E>;
  if constexpr (Operand<E>::step == 1)
    multiply<E>(strip.rows, t.width, columns, strip.scores.get() + strip.from, strip.stride, 1, packed, panel.columns,
                gradient, t.width, false);
  else
    multiply<E>(strip.rows, t.width, columns, strip.by_row.get() + strip.from, strip.stride, Operand<E>::step, packed,
                panel.columns, gradient, t.width, false);
  for (int64_t i = 0; i < strip.count; ++i) {
    const T *row = gradient + i * t.width;
    if (dscale) {
      const E *x = strip.x.get() + i * t.width;
      T dot = 0;
      for (int64_t k = 0; k < t.p.d; ++k) dot += row[k] * number(x[k]);
      *dscale += double(dot);
    }
    if (!dx) continue;
    T *to = dx + (strip.first + i) * t.p.d;
    if (panel.first == 0 && !t.symmetric)
      for (int64_t k = 0; k < t.p.d; ++k) to[k] = t.scale * row[k];
    else
      for (int64_t k = 0; k < t.p.d; ++k) to[k] += t.scale * row[k];
  }
}

// Takes a panel's products with a strip into the thread's dy; by tiles, which take G for their right operand alone, into
// its transpose.
template <class E>
void add_column_gradients(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, Sum<E> *dy, bool add) {
#ifdef SIMMIM_TILES
  if constexpr (Operand<E>::tiles) {
    const int64_t from = strip.from, row = strip.rows, pair = Operand<E>::step * strip.stride;
    E *turned = strip.packed.get();
    for (int64_t i = 0; i < row; ++i)
      for (int64_t f = 0; f < t.width; ++f) turned[f * row + i] = strip.x[i * t.width + f];
    for (int64_t f = 0; f < t.width && !add; ++f) std::fill_n(dy + f * strip.stride, from, 0.0f);
    const TileOperand weights{strip.by_column.get() + Operand<E>::step * from, Operand<E>::step * tile_block, pair};
    multiply_tiles(t.width, panel.columns - from, row, turned, row, weights, dy + from, strip.stride, add);
    return;
  }
#endif
  pack(strip.x.get(), strip.rows, t.width, strip.rows, strip.packed.get());
  const int64_t from = strip.from, rows = panel.rows - from;
  if (!add) std::fill_n(dy, from * t.width, Sum<E>(0));
  dy += from * t.width;
  if constexpr (Operand<E>::step == 1)
    multiply<E>(rows, t.width, strip.rows, strip.scores.get() + from, 1, strip.stride, strip.packed.get(), strip.rows,
                dy, t.width, add);
  else
    multiply<E>(rows, t.width, strip.rows, strip.by_column.get() + Operand<E>::step * from, Operand<E>::step,
                Operand<E>::step * strip.stride, strip.packed.get(), strip.rows, dy, t.width, add);
}

// Takes a tile's weights through the network: into x's gradient, the pairs' of the panel, and the parameters'. Those of
// one layer wait for their factor, `output`.
template <class E>
void add_network_gradients(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel, Sum<E> *dx, Sum<E> *dy,
                           ParameterGradients<Sum<E>> &parameters) {
  using T = Sum<E>;
  const int64_t rows = strip.count, width = t.width;
  T *gradient = strip.gradient.get();
  std::fill_n(gradient, rows * width, T(0));
  for (int64_t i = 0; i < rows; ++i) {
    const T *weights = strip.scores.get() + i * strip.stride;
    T sum = 0;
    for (int64_t j = 0; j < panel.count; ++j) sum += weights[j];
    parameters.output_bias += double(sum);
  }
  if constexpr (std::is_same_v<E, T>) {
    if (t.deep())
      for (int64_t i = 0; i < rows; ++i)
        add_row(*t.network, *strip.made, parameters, panel.rows, strip.scores.get() + i * strip.stride,
                strip.x.get() + i * width, panel.plain.get(), strip.made->second_of(i), gradient + i * width, dy);
    else
      add_active(*t.network, rows, panel.count, strip.scores.get(), strip.stride, strip.x.get(), panel.plain.get(),
                 gradient, dy);
  }
  for (int64_t i = 0; i < rows; ++i) {
    T *to = dx + (strip.first + i) * t.p.d;
    for (int64_t k = 0; k < t.p.d; ++k) to[k] += gradient[i * width + k];
  }
}

template <class E> struct Backward {
  using T = Sum<E>;
  static constexpr bool differentiates = true;

  // Of the columns of a panel, and of the two scalars.
  struct Share {
    bool empty = true;
    double dscale = 0, total = 0;
    int64_t width;
    Weights<T> weights;
    Buffer<T> dy, dcol;
    int64_t of_dy;
    std::unique_ptr<ParameterGradients<T>> parameters;  // of a network
    Share(const Typed<E> &t, const Backward &job)
        : width(t.columns_of_panel()), weights(width), dcol(allocate<T>(width)),
          of_dy(job.wants_columns() ? width * t.width : 0) {
      dy = allocate<T>(of_dy);
      if (t.network) parameters.reset(new ParameterGradients<T>(*t.network));
    }
    void clear() {
      empty = true;
      std::fill_n(dcol.get(), width, T(0));
      if (!parameters) return;
      std::fill_n(dy.get(), of_dy, T(0));
      parameters->end_panel();
    }
  };

  const Typed<E> &t;
  const Upstream<T> u;
  T *dx, *dy, *drow, *dcol, *dscale, *total;
  T *dweight, *dweight_bias, *doutput, *doutput_bias;
  Buffer<T> own_dx, own_dy;  // of a network, whose parameters' gradients are made of both
  std::vector<std::unique_ptr<Share>> shares;

  Backward(const Typed<E> &problem, const simmim_gradients &g)
      : t(problem), u(problem.p, g),
        dx(static_cast<T *>(g.dx)), dy(static_cast<T *>(g.dy)), drow(static_cast<T *>(g.drow)),
        dcol(static_cast<T *>(g.dcol)), dscale(static_cast<T *>(g.dscale)), total(static_cast<T *>(g.total)),
        dweight(static_cast<T *>(g.dweight)), dweight_bias(static_cast<T *>(g.dweight_bias)),
        doutput(static_cast<T *>(g.doutput)), doutput_bias(static_cast<T *>(g.doutput_bias)) {
    if (drow) std::fill_n(drow, t.p.n, T(0));
    if (t.network && !dx) own_dx = allocate<T>(t.p.n * t.p.d), dx = own_dx.get();
    if (t.network && !dy) own_dy = allocate<T>(t.p.m * t.p.d), dy = own_dy.get();
    // What tiles that are left out add nothing to.
    if (dx && (t.symmetric || t.p.grouped || t.network)) std::fill_n(dx, t.p.n * t.p.d, T(0));
    if (dy && t.p.grouped) std::fill_n(dy, t.p.m * t.p.d, T(0));
  }

  bool looks_at_joints() const { return u.grad_joint; }

  // Whether the columns' gradients are made: of symmetric scores they belong to dx.
  bool wants_columns() const { return t.symmetric ? dx : dy; }

  void add_tile(Strip<E> &strip, const Panel<E> &panel, Share &mine) {
    T *const by_column = (t.symmetric ? drow : dcol) ? mine.dcol.get() : nullptr;
    const bool first = mine.empty;
    if (!u.scores) make_scores(t, strip, panel);
    weigh(t, u, mine.weights, strip, panel, drow, by_column, total ? &mine.total : nullptr);
    mine.empty = false;
    if (t.network) return add_network_gradients(t, strip, panel, dx, mine.dy.get(), *mine.parameters);
    round_weights(strip, panel);
    if (dx || dscale) add_row_gradients(t, strip, panel, dx, dscale ? &mine.dscale : nullptr);
    if (wants_columns()) add_column_gradients(t, strip, panel, mine.dy.get(), !first);
  }

  void merge(const Panel<E> &panel, int64_t j, int64_t team) {
    const int64_t d = t.p.d, column = panel.first + j;
    T *const of_weights = t.symmetric ? drow : dcol, *to = t.symmetric ? dx : dy;
    if (to) to += column * d;
    T weights = 0;
    bool added = t.symmetric;
    for (int64_t k = 0; k < team; ++k) {
      const Share &share = *shares[k];
      if (share.empty) continue;
      weights += share.dcol[j];
      for (int64_t f = 0; to && f < d; ++f)
        to[f] = (added ? to[f] : T(0)) + t.scale * share.dy[Operand<E>::tiles ? f * share.width + j : j * t.width + f];
      added = true;
    }
    if (of_weights) of_weights[column] = (t.symmetric ? of_weights[column] : T(0)) + weights;
  }

  void run() {
    for_each_tile(t, *this);
    double scale_sum = 0, value = 0;
    for (const auto &share : shares)
      if (share) scale_sum += share->dscale, value += share->total;
    if (dscale) *dscale = T(scale_sum);
    if (total) *total = T(value);
    if (t.network) finish_network();
  }

private:
  // The threads' gradients of the parameters, in their order; of one layer, out of the sums by row and by column.
  void finish_network() {
    ParameterGradients<T> &sum = *shares[0]->parameters;
    sum.end_panel();
    for (size_t k = 1; k < shares.size(); ++k)
      if (shares[k]) shares[k]->parameters->end_panel(), sum.add(*shares[k]->parameters);
    if (!t.deep()) {
      take_factor(t.x, t.p.n, dx, sum.output_total.get());
      take_factor(t.y, t.p.m, dy, sum.output_total.get());
    }
    const int64_t d = t.p.d;
    for (int64_t k = 0; dweight && k < d; ++k) give(sum.weight_total.get() + k * t.width, d, dweight + k * d);
    give(sum.weight_bias_total.get(), d, dweight_bias);
    give(sum.output_total.get(), d, doutput);
    give(&sum.output_bias, 1, doutput_bias);
  }

  static void give(const double *from, int64_t size, T *to) {
    for (int64_t k = 0; to && k < size; ++k) to[k] = T(from[k]);
  }

  // From sums over the pairs in which a unit is active to gradients, which are these times the unit's output; times its
  // operand they are their side's share of the gradient by the output.
  void take_factor(const Features &operand, int64_t rows, T *sums, double *output) {
    const int64_t d = t.p.d;
    const Buffer<T> row = allocate<T>(d);
    for (int64_t i = 0; i < rows; ++i, sums += d) {
      unpack(operand, i, 1, 1, d, d, row.get());
      for (int64_t k = 0; k < d; ++k) {
        // Of a unit that is in no pair active the operand may be infinite.
        if (sums[k] != T(0)) output[k] += double(row[k]) * double(sums[k]);
        sums[k] *= t.network->output[k];
      }
    }
  }
};

template <class E> int forward(const simmim_problem &problem, const simmim_values &values) {
  const Typed<E> t(problem);
  Forward<E>(t, values).run();
  return 0;
}

template <class E> int backward(const simmim_problem &problem, const simmim_gradients &gradients) {
  const Typed<E> t(problem);
  Backward<E>(t, gradients).run();
  return 0;
}

int forward_of(const simmim_problem *problem, const simmim_values *values) {
  try {
    if (problem->dtype == SIMMIM_FLOAT64) return forward<double>(*problem, *values);
#ifdef SIMMIM_BFLOAT16_PRODUCTS
    if (problem->dtype == SIMMIM_BFLOAT16 && !problem->layers) return forward<bfloat16>(*problem, *values);
#endif
    return forward<float>(*problem, *values);
  } catch (const std::bad_alloc &) {
    return -1;
  }
}

int backward_of(const simmim_problem *problem, const simmim_gradients *gradients) {
  try {
    if (problem->dtype == SIMMIM_FLOAT64) return backward<double>(*problem, *gradients);
#ifdef SIMMIM_BFLOAT16_PRODUCTS
    if (problem->dtype == SIMMIM_BFLOAT16 && !problem->layers) return backward<bfloat16>(*problem, *gradients);
#endif
    return backward<float>(*problem, *gradients);
  } catch (const std::bad_alloc &) {
    return -1;
  }
}

}  // namespace

#define SIMMIM_TEXT(name) #name
#define SIMMIM_NAME(name) SIMMIM_TEXT(name)
extern const Kernels table;
const Kernels table = {SIMMIM_NAME(SIMMIM_ISA), forward_of, backward_of};

}  // namespace SIMMIM_ISA
