// Pairwise statistics and their gradients, for one instruction set.
//
// One idea: the matrix of scores is walked in panels of columns and strips of rows. A panel of y is packed once for all
// threads; a thread's tile, strip x panel, stays in its cache from the product that makes it to the exponentials and
// sums (forward) or the two further products (backward) that consume it. Each thread keeps what it adds up for the
// panel's columns to itself, and the threads' shares are merged in their order when the panel ends: the results do not
// depend on who was faster.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include <omp.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "blocks.hpp"
#include "table.hpp"
#include "vector_math.hpp"

namespace SIMMIM_ISA {
namespace {

// Multiples of every block's rows and columns. A strip and its tile stay in a core's own cache, a panel in the shared.
constexpr int64_t strip_rows = 96, panel_step = 96, panel_columns = 960, panel_features = 960 * 512;

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

struct Free {
  void operator()(void *memory) const { std::free(memory); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;

template <class T> Buffer<T> allocate(int64_t size) {
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, std::max<int64_t>(size, 1) * sizeof(T))) throw std::bad_alloc();
  return Buffer<T>(static_cast<T *>(memory));
}

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

// What a problem is, with its vectors in the compute type.
template <class T> struct Typed {
  const simmim_problem &p;
  const T *row_bias, *col_bias;
  T lo, hi;
  bool clamped;
  Features x, y;
  int64_t width;  // of features, in whole blocks

  explicit Typed(const simmim_problem &problem)
      : p(problem), row_bias(static_cast<const T *>(p.row_bias)), col_bias(static_cast<const T *>(p.col_bias)),
        lo(T(p.lo)), hi(T(p.hi)), clamped(p.lo > -infinity<double> || p.hi < infinity<double>),
        x{p.x, p.dtype, p.x_row, p.x_column}, y{p.y, p.dtype, p.y_row, p.y_column},
        width(round_up(p.d, block_columns<T>)) {}

  int64_t columns_of_panel() const {
    const int64_t fit = panel_features / width / panel_step * panel_step;
    return std::min(round_up(p.m, panel_step), std::max(panel_step, std::min(panel_columns, fit)));
  }
  int64_t rows_of_strip(int threads) const {
    return std::min(strip_rows, round_up((p.n + threads - 1) / threads, block_rows));
  }
};

// A panel of y, ready for both of its products.
template <class T> struct Panel {
  int64_t first = 0, count = 0, columns = 0;  // columns: in whole blocks
  Buffer<T> rows, packed, transposed, bias;

  Panel(int64_t most, int64_t width, bool products)
      : rows(allocate<T>(most * width)), packed(products ? allocate<T>(most * width) : nullptr),
        transposed(allocate<T>(most * width)), bias(allocate<T>(most)) {}
};

// A strip of rows and its tile of scores; a thread has one.
template <class T> struct Strip {
  int64_t first = 0, count = 0, rows = 0;  // rows: in whole blocks
  int64_t stride;
  Buffer<T> x, scaled, packed, scores, gradient;
  Buffer<uint8_t> mask;

  Strip(int64_t most, int64_t columns, int64_t width, bool products)
      : stride(columns), x(allocate<T>(most * width)), scaled(allocate<T>(most * width)),
        packed(products ? allocate<T>(most * width) : nullptr), scores(allocate<T>(most * columns)),
        gradient(products ? allocate<T>(most * width) : nullptr), mask(allocate<uint8_t>(columns)) {}
};

template <class T> void take_panel(const Typed<T> &t, Panel<T> &panel, int64_t first, bool products) {
  const int64_t block = block_columns<T>, width = t.width;
#pragma omp single
  {
    panel.first = first;
    panel.count = std::min(t.p.m - first, t.columns_of_panel());
    panel.columns = round_up(panel.count, block);
    for (int64_t j = 0; j < panel.columns; ++j)
      panel.bias[j] = t.col_bias && j < panel.count ? t.col_bias[first + j] : T(0);
  }
#pragma omp for schedule(static)
  for (int64_t j = 0; j < panel.columns; j += block) {
    T *rows = panel.rows.get() + j * width;
    const int64_t have = std::clamp<int64_t>(panel.count - j, 0, block);
    unpack(t.y, first + j, have, block, t.p.d, width, rows);
    pack_transposed(rows, block, width, t.p.d, panel.transposed.get() + j * t.p.d);
  }
  if (products) {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < width; k += block)
      for (int64_t j = 0; j < panel.columns; ++j)
        std::copy_n(panel.rows.get() + j * width + k, block, panel.packed.get() + k * panel.columns + j * block);
  }
}

template <class T> void take_strip(const Typed<T> &t, Strip<T> &strip, int64_t first, int64_t count) {
  strip.first = first;
  strip.count = count;
  strip.rows = round_up(count, block_rows);
  unpack(t.x, first, count, strip.rows, t.p.d, t.width, strip.x.get());
  for (int64_t k = 0; k < strip.rows * t.width; ++k) strip.scaled[k] = strip.x[k] * T(t.p.scale);
}

// Which columns of a row are left out: false where none is.
template <class T> bool mark_left_out(const Typed<T> &t, const Panel<T> &panel, int64_t row, uint8_t *mask) {
  const simmim_problem &p = t.p;
  bool any = false;
  if (p.ids) {
    std::fill_n(mask, panel.count, uint8_t(0));
    for (int64_t k = 0; k < p.ids; ++k) {
      const int64_t id = p.row_ids[k * p.n + row], *ids = p.col_ids + k * p.m + panel.first;
      for (int64_t j = 0; j < panel.count; ++j) mask[j] |= ids[j] == id;
    }
    any = true;
  }
  if (p.joint == SIMMIM_COUNTED) return any;
  const int64_t at = (p.positives ? p.positives[row] : row) - panel.first;
  if (at < 0 || at >= panel.count) return any;
  if (!any) std::fill_n(mask, panel.count, uint8_t(0));
  mask[at] = p.joint == SIMMIM_LEFT_OUT;
  return true;
}

// Puts `fill` in the places of a row that are left out, and beyond its end.
template <class T>
void leave_out(const Typed<T> &t, const Panel<T> &panel, int64_t row, uint8_t *mask, T *values, int64_t end, T fill) {
  if (mark_left_out(t, panel, row, mask))
    for (int64_t j = 0; j < panel.count; ++j) values[j] = mask[j] ? fill : values[j];
  for (int64_t j = panel.count; j < end; ++j) values[j] = fill;
}

// The tile's products; biases and clamp come row by row.
template <class T> void multiply_tile(const Typed<T> &t, Strip<T> &strip, const Panel<T> &panel) {
  multiply<T>(strip.rows, panel.columns, t.p.d, strip.scaled.get(), t.width, 1, panel.transposed.get(),
              strip.scores.get(), strip.stride, false);
}

template <class T> Vector<T> unclamped_score(const Panel<T> &panel, const T *scores, int64_t j, T bias) {
  return load(scores + j) + (load(panel.bias.get() + j) + bias);
}
template <class T> Vector<T> clamped_score(const Typed<T> &t, Vector<T> s) {
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
template <class T>
void add_exponentials(const Typed<T> &t, Strip<T> &strip, const Panel<T> &panel, Sums<T> rows, Sums<T> columns,
                      bool want_rows, bool want_columns, T *column_most, T *column_sum) {
  constexpr int lanes = Vectors<T>::lanes;
  const int64_t n = panel.columns;
  T row_most[strip_rows];
  std::fill_n(column_most, n, -infinity<T>);
  for (int64_t i = 0; i < strip.count; ++i) {
    T *s = strip.scores.get() + i * strip.stride;
    const T bias = t.row_bias ? t.row_bias[strip.first + i] : T(0);
    for (int64_t j = 0; j < n; j += lanes) store(s + j, clamped_score(t, unclamped_score(panel, s, j, bias)));
    leave_out(t, panel, strip.first + i, strip.mask.get(), s, n, -infinity<T>);
    Vector<T> most = all(-infinity<T>);
    for (int64_t j = 0; j < n; j += lanes) {
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
  if (want_columns) see(column_most, panel.count);
  // Not where all pairs are left out, nor where anything is infinite.
  const bool shared = std::isfinite(most) && most - least <= T(shared_spread);
  std::fill_n(column_sum, n, T(0));
  for (int64_t i = 0; i < strip.count; ++i) {
    const T *s = strip.scores.get() + i * strip.stride;
    const T reference = shared ? most : finite(row_most[i]);
    Vector<T> sum{};
    if (want_rows || shared) {
      for (int64_t j = 0; j < n; j += lanes) {
        const Vector<T> e = exp_of<T>(load(s + j) - reference);
        sum += e;
        if (shared) store(column_sum + j, load(column_sum + j) + e);
      }
    }
    if (want_rows) rows.add(strip.first + i, shared ? most : row_most[i], sum_of<T>(sum));
    if (want_columns && !shared)
      for (int64_t j = 0; j < n; j += lanes) {
        const Vector<T> top = load(column_most + j);
        const Vector<T> shift = (top == all(infinity<T>)) | (top == all(-infinity<T>)) ? Vector<T>{} : top;
        store(column_sum + j, load(column_sum + j) + exp_of<T>(load(s + j) - shift));
      }
  }
  if (want_columns)
    for (int64_t j = 0; j < panel.count; ++j) columns.add(j, shared ? most : column_most[j], column_sum[j]);
}

template <class T>
void add_values(const Typed<T> &t, Strip<T> &strip, const Panel<T> &panel, T *rows, T *columns) {
  constexpr int lanes = Vectors<T>::lanes;
  for (int64_t i = 0; i < strip.count; ++i) {
    T *s = strip.scores.get() + i * strip.stride;
    const T bias = t.row_bias ? t.row_bias[strip.first + i] : T(0);
    for (int64_t j = 0; j < panel.columns; j += lanes)
      store(s + j, function_of<T>(t.p.function, clamped_score(t, unclamped_score(panel, s, j, bias))));
    leave_out(t, panel, strip.first + i, strip.mask.get(), s, panel.columns, T(0));
    Vector<T> sum{};
    for (int64_t j = 0; j < panel.columns; j += lanes) {
      sum += load(s + j);
      if (columns) store(columns + j, load(columns + j) + load(s + j));
    }
    if (rows) rows[strip.first + i] += sum_of<T>(sum);
  }
}

// The strips of a thread: neighbours, and the same ones in every panel.
struct Share {
  int64_t first, last;
  Share(int64_t strips) {
    const int64_t team = omp_get_num_threads(), mine = omp_get_thread_num();
    first = strips * mine / team;
    last = strips * (mine + 1) / team;
  }
};

template <class T> void forward(const simmim_problem &problem, T *rows, T *columns) {
  const Typed<T> t(problem);
  const int threads = std::max(1, problem.threads);
  const int64_t n = problem.n, m = problem.m, height = t.rows_of_strip(threads), width = t.columns_of_panel();
  const int64_t strips = (n + height - 1) / height;
  const bool exponential = problem.function == SIMMIM_LOGSUMEXP;
  Panel<T> panel(width, t.width, false);
  const Buffer<T> row_most = allocate<T>(exponential && rows ? n : 0), shares = allocate<T>(2 * threads * width);
  if (rows) std::fill_n(rows, n, T(0));
  if (exponential && rows) std::fill_n(row_most.get(), n, -infinity<T>);
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    std::unique_ptr<Strip<T>> strip;
    Buffer<T> scratch;
    try {
      strip.reset(new Strip<T>(height, width, t.width, false));
      scratch = allocate<T>(2 * width);
    } catch (const std::bad_alloc &) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp barrier
    if (!failed) {
      const Share share(strips);
      const int64_t team = omp_get_num_threads();
      const auto share_of = [&](int64_t thread) {
        return Sums<T>{shares.get() + 2 * thread * width, shares.get() + (2 * thread + 1) * width};
      };
      const Sums<T> mine = share_of(omp_get_thread_num()), by_row{row_most.get(), rows};
      for (int64_t first = 0; first < m; first += width) {
        take_panel(t, panel, first, false);
        Sums<T>(mine).clear(width);
        for (int64_t s = share.first; s < share.last; ++s) {
          take_strip(t, *strip, s * height, std::min(height, n - s * height));
          multiply_tile(t, *strip, panel);
          if (exponential)
            add_exponentials(t, *strip, panel, by_row, mine, rows != nullptr, columns != nullptr, scratch.get(),
                             scratch.get() + width);
          else
            add_values(t, *strip, panel, rows, columns ? mine.total : nullptr);
        }
#pragma omp barrier
        if (columns) {
#pragma omp for schedule(static)
          for (int64_t j = 0; j < panel.count; ++j) {
            Sums<T> merged = share_of(0);
            for (int64_t k = 1; k < team; ++k) {
              const Sums<T> other = share_of(k);
              if (exponential)
                merged.add(j, other.most[j], other.total[j]);
              else
                merged.total[j] += other.total[j];
            }
            columns[first + j] = exponential ? merged.result(j) : merged.total[j];
          }
        }
      }
    }
  }
  if (failed) throw std::bad_alloc();
  if (exponential && rows)
    for (int64_t i = 0; i < n; ++i) rows[i] = Sums<T>{row_most.get(), rows}.result(i);
}

// Upstream gradients and statistics by side, as the weights want them.
template <class T> struct Upstream {
  const T *rows, *columns, *grad_rows, *grad_columns;
};

// One row of e^s (A + B) with one reference for the tile, or alpha e^(s - r) + beta e^(s - c).
template <class T> struct Weights {
  bool shared = false;
  T reference = 0;
  Buffer<T> column_factor, column_reference;

  explicit Weights(int64_t width) : column_factor(allocate<T>(width)), column_reference(allocate<T>(width)) {}

  // An empty row or column has the statistic -inf and no pair to weigh: +inf makes its weights 0, not NaN.
  static T usable(T statistic) { return statistic == -infinity<T> ? infinity<T> : statistic; }

  void prepare(const Upstream<T> &u, const Strip<T> &strip, const Panel<T> &panel) {
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
    shared = ordinary && most - least <= T(shared_spread);
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
Vector<T> weight(const Typed<T> &t, const Upstream<T> &u, const Weights<T> &w, Vector<T> s, int64_t j, T row_factor,
                 T row_reference) {
  if (t.p.function != SIMMIM_LOGSUMEXP) {
    const Vector<T> slope = derivative_of<T>(t.p.function, s);
    return slope * (load(w.column_factor.get() + j) + row_factor);
  }
  if (w.shared) return exp_of<T>(s - w.reference) * (load(w.column_factor.get() + j) + row_factor);
  Vector<T> g{};
  if (u.rows) g += exp_of<T>(s - row_reference) * row_factor;
  if (u.columns) g += exp_of<T>(s - load(w.column_reference.get() + j)) * load(w.column_factor.get() + j);
  return g;
}

// Turns a tile's products into its weights G; adds up their rows and columns, and the function itself, where wanted.
template <class T>
void weigh(const Typed<T> &t, const Upstream<T> &u, Weights<T> &w, Strip<T> &strip, const Panel<T> &panel, T *drow,
           T *dcol, double *total) {
  constexpr int lanes = Vectors<T>::lanes;
  const bool exponential = t.p.function == SIMMIM_LOGSUMEXP;
  if (exponential)
    w.prepare(u, strip, panel);
  else
    for (int64_t j = 0; j < panel.columns; ++j)
      w.column_factor[j] = u.grad_columns && j < panel.count ? u.grad_columns[panel.first + j] : T(0);
  const int64_t end = std::max(panel.columns, round_up(panel.count, block_rows));
  T values[panel_columns];
  for (int64_t i = 0; i < strip.rows; ++i) {
    T *s = strip.scores.get() + i * strip.stride;
    if (i >= strip.count) {
      std::fill_n(s, end, T(0));
      continue;
    }
    const int64_t row = strip.first + i;
    const T bias = t.row_bias ? t.row_bias[row] : T(0);
    const T reference = u.rows ? Weights<T>::usable(u.rows[row]) : infinity<T>;
    T factor = total ? T(1) : u.grad_rows ? u.grad_rows[row] : T(0);
    if (exponential && w.shared) factor *= u.rows ? std::exp(w.reference - reference) : T(0);
    for (int64_t j = 0; j < panel.columns; j += lanes) {
      const Vector<T> raw = unclamped_score(panel, s, j, bias), clamped = clamped_score(t, raw);
      if (total) store(values + j, function_of<T>(t.p.function, clamped));
      Vector<T> g = weight(t, u, w, clamped, j, factor, reference);
      // Comparisons that hold for what is inside, so that NaN is taken for outside, as by the other backends.
      if (t.clamped) g = (raw >= all(t.lo)) & (raw <= all(t.hi)) ? g : Vector<T>{};
      store(s + j, g);
    }
    leave_out(t, panel, row, strip.mask.get(), s, end, T(0));
    if (total) {
      leave_out(t, panel, row, strip.mask.get(), values, panel.columns, T(0));
      Vector<T> sum{};
      for (int64_t j = 0; j < panel.columns; j += lanes) sum += load(values + j);
      *total += double(sum_of<T>(sum));
    }
    if (drow || dcol) {
      Vector<T> sum{};
      for (int64_t j = 0; j < panel.columns; j += lanes) {
        sum += load(s + j);
        if (dcol) store(dcol + j, load(dcol + j) + load(s + j));
      }
      if (drow) drow[row] += sum_of<T>(sum);
    }
  }
}

// Takes a strip's products with the panel into dx and the gradient of the scale.
template <class T>
void add_row_gradients(const Typed<T> &t, Strip<T> &strip, const Panel<T> &panel, T *dx, double *dscale) {
  T *gradient = strip.gradient.get();
  multiply<T>(strip.rows, t.width, panel.columns, strip.scores.get(), strip.stride, 1, panel.packed.get(), gradient,
              t.width, false);
  for (int64_t i = 0; i < strip.count; ++i) {
    const T *row = gradient + i * t.width, *x = strip.x.get() + i * t.width;
    if (dscale) {
      T dot = 0;
      for (int64_t k = 0; k < t.p.d; ++k) dot += row[k] * x[k];
      *dscale += double(dot);
    }
    if (!dx) continue;
    T *to = dx + (strip.first + i) * t.p.d;
    const T scale = T(t.p.scale);
    if (panel.first == 0)
      for (int64_t k = 0; k < t.p.d; ++k) to[k] = scale * row[k];
    else
      for (int64_t k = 0; k < t.p.d; ++k) to[k] += scale * row[k];
  }
}

template <class T> void backward(const simmim_problem &problem, const simmim_gradients &gradients) {
  const Typed<T> t(problem);
  const Upstream<T> u{static_cast<const T *>(gradients.rows), static_cast<const T *>(gradients.columns),
                      static_cast<const T *>(gradients.grad_rows), static_cast<const T *>(gradients.grad_columns)};
  T *dx = static_cast<T *>(gradients.dx), *dy = static_cast<T *>(gradients.dy);
  T *drow = static_cast<T *>(gradients.drow), *dcol = static_cast<T *>(gradients.dcol);
  T *dscale = static_cast<T *>(gradients.dscale), *total = static_cast<T *>(gradients.total);
  const int threads = std::max(1, problem.threads);
  const int64_t n = problem.n, m = problem.m, d = problem.d, height = t.rows_of_strip(threads);
  const int64_t width = t.columns_of_panel(), strips = (n + height - 1) / height;
  Panel<T> panel(width, t.width, true);
  const Buffer<T> shares = allocate<T>(dy ? threads * width * t.width : 0), column_sums = allocate<T>(threads * width);
  const Buffer<double> scalars = allocate<double>(2 * threads);
  std::fill_n(scalars.get(), 2 * threads, 0.0);
  if (drow) std::fill_n(drow, n, T(0));
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    std::unique_ptr<Strip<T>> strip;
    std::unique_ptr<Weights<T>> weights;
    try {
      strip.reset(new Strip<T>(height, width, t.width, true));
      weights.reset(new Weights<T>(width));
    } catch (const std::bad_alloc &) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp barrier
    if (!failed) {
      const Share share(strips);
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      T *my_dy = shares.get() + me * width * t.width, *my_dcol = column_sums.get() + me * width;
      for (int64_t first = 0; first < m; first += width) {
        take_panel(t, panel, first, true);
        std::fill_n(my_dcol, width, T(0));
        for (int64_t s = share.first; s < share.last; ++s) {
          take_strip(t, *strip, s * height, std::min(height, n - s * height));
          multiply_tile(t, *strip, panel);
          weigh(t, u, *weights, *strip, panel, drow, dcol ? my_dcol : nullptr, total ? &scalars[2 * me + 1] : nullptr);
          if (dx || dscale) add_row_gradients(t, *strip, panel, dx, dscale ? &scalars[2 * me] : nullptr);
          if (dy) {
            pack(strip->x.get(), strip->rows, t.width, strip->packed.get());
            multiply<T>(round_up(panel.count, block_rows), t.width, strip->rows, strip->scores.get(), 1, strip->stride,
                        strip->packed.get(), my_dy, t.width, s != share.first);
          }
        }
        if (dy && share.first == share.last) std::fill_n(my_dy, panel.count * t.width, T(0));
#pragma omp barrier
        if (dy) {
#pragma omp for schedule(static)
          for (int64_t j = 0; j < panel.count; ++j)
            for (int64_t k = 0; k < d; ++k) {
              T sum = 0;
              for (int64_t other = 0; other < team; ++other) sum += shares[(other * width + j) * t.width + k];
              dy[(first + j) * d + k] = T(problem.scale) * sum;
            }
        }
        if (dcol) {
#pragma omp for schedule(static)
          for (int64_t j = 0; j < panel.count; ++j) {
            T sum = 0;
            for (int64_t other = 0; other < team; ++other) sum += column_sums[other * width + j];
            dcol[first + j] = sum;
          }
        }
      }
    }
  }
  if (failed) throw std::bad_alloc();
  double sum = 0, value = 0;
  for (int k = 0; k < threads; ++k) sum += scalars[2 * k], value += scalars[2 * k + 1];
  if (dscale) *dscale = T(sum);
  if (total) *total = T(value);
}

int forward_of(const simmim_problem *problem, void *rows, void *columns) {
  try {
    if (problem->dtype == SIMMIM_FLOAT64)
      forward(*problem, static_cast<double *>(rows), static_cast<double *>(columns));
    else
      forward(*problem, static_cast<float *>(rows), static_cast<float *>(columns));
  } catch (const std::bad_alloc &) {
    return -1;
  }
  return 0;
}

int backward_of(const simmim_problem *problem, const simmim_gradients *gradients) {
  try {
    if (problem->dtype == SIMMIM_FLOAT64)
      backward<double>(*problem, *gradients);
    else
      backward<float>(*problem, *gradients);
  } catch (const std::bad_alloc &) {
    return -1;
  }
  return 0;
}

}  // namespace

#define SIMMIM_TEXT(name) #name
#define SIMMIM_NAME(name) SIMMIM_TEXT(name)
extern const Kernels table;
const Kernels table = {SIMMIM_NAME(SIMMIM_ISA), forward_of, backward_of};

}  // namespace SIMMIM_ISA
