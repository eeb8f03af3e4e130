// The weights of a tile's pairs in the gradients: upstream gradients times derivatives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "pairs.hpp"
#include "statistics.hpp"

namespace SIMMIM_ISA {
namespace {

// Its derivative by `others`.
template <class T> T share_of_others(T others, T joint) {
  if (joint == infinity<T>) return std::numeric_limits<T>::quiet_NaN();
  return T(1) / (T(1) + std::exp(joint - others));
}

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
  if (function != SIMMIM_LOGSUMEXP)
    return derivative_of<T>(function, s) * (load(w.column_factor.get() + j) + row_factor);
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
      Vector<T> g;
      if (total) {
        store(values + j, function_and_derivative<T>(t.p.function, clamped, g));
        g *= load(w.column_factor.get() + j) + factor;
      } else
        g = weight(t.p.function, u, w, clamped, j, factor, reference);
      // Comparisons that hold for what is inside, so that NaN is taken for outside, as by the other backends.
      if (t.clamped) g = (raw >= all(t.lo)) & (raw <= all(t.hi)) ? g : Vector<T>{};
      store(s + j, g);
    }
    if (negated.at >= 0) {
      s[negated.at] = negated.derivative() * (w.column_factor[negated.at] + factor);
      values[negated.at] = negated.value();
    }
    leave_out(t, strip, panel, i, s, from, end, T(0), kept);
    if (joint >= 0) s[joint] += of_joint;
    // As a pair of its row and of its column, each of which the products add up.
    const int64_t diagonal = diagonal_of(t, panel, row);
    if (diagonal >= 0) s[diagonal] /= 2;
    if (total) {
      leave_out(t, strip, panel, i, values, from, panel.columns, T(0));
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

// A power of two that brings a tile's weights to about 1, where they are so small or so large that their later parts or
// their products would leave float32's range, else 1.
template <class E> Sum<E> scale_of_weights(const Strip<E> &strip, int64_t end) {
  using T = Sum<E>;
  Vector<T> most{};
  for (int64_t i = 0; i < strip.rows; ++i)
    for (int64_t j = strip.from; j < end; j += Vectors<T>::lanes) {
      const Vector<T> v = load(strip.scores.get() + i * strip.stride + j), minus_v = -v;
      most = larger<T>(larger<T>(v, minus_v), most);
    }
  const T size = most_of<T>(most);
  if (size == 0 || !std::isfinite(size) || (size > T(0x1p-40) && size < T(0x1p40))) return T(1);
  return std::ldexp(T(1), std::clamp(-std::ilogb(size), -120, 120));
}

// Rounds a tile's weights to what products are made of, where scores are not.
template <class E> void round_weights(Strip<E> &strip, const Panel<E> &panel) {
#ifdef SIMMIM_TILES
  if constexpr (parts<E> > 1) {
    const int64_t stride = strip.stride, plane = strip.weights_plane, end = std::max(panel.columns, panel.rows);
    const float scale = scale_of_weights(strip, end);
    strip.unscale = 1 / scale;
    for (int64_t i = 0; i < strip.rows; i += 2) {
      const float *scores = strip.scores.get() + i * stride;
      E *rows = strip.by_row.get() + i * stride, *pairs = strip.by_column.get() + i * stride;
#ifdef __AVX512BF16__
      for (int64_t j = strip.from; j < end; j += 16) {
        __m512 first = _mm512_mul_ps((__m512)load(scores + j), _mm512_set1_ps(scale));
        __m512 second = _mm512_mul_ps((__m512)load(scores + stride + j), _mm512_set1_ps(scale));
        for (int part = 0; part < parts<E>; ++part) {
          const __m256i a = (__m256i)_mm512_cvtneps_pbh(first), b = (__m256i)_mm512_cvtneps_pbh(second);
          _mm256_storeu_si256((__m256i *)(rows + part * plane + j), a);
          _mm256_storeu_si256((__m256i *)(rows + part * plane + stride + j), b);
          const __m512i of_a = _mm512_cvtepu16_epi32(a), of_b = _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16);
          _mm512_storeu_si512(pairs + part * plane + 2 * j, _mm512_or_si512(of_a, of_b));
          first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(of_a, 16)));
          second = _mm512_sub_ps(second, _mm512_castsi512_ps(of_b));
        }
      }
#else
      for (int64_t row = 0; row < 2; ++row)
        for (int64_t j = strip.from; j < end; ++j) {
          split(scores[row * stride + j] * scale, rows + row * stride + j, plane);
          for (int part = 0; part < parts<E>; ++part)
            pairs[part * plane + 2 * j + row] = rows[part * plane + row * stride + j];
        }
#endif
    }
  }
#endif
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

}  // namespace
}  // namespace SIMMIM_ISA
