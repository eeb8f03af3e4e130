// The scores of a tile's pairs: made, clamped, left out, and what functions make of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "strips.hpp"
#include "vector_math.hpp"

namespace SIMMIM_ISA {
namespace {

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

// Puts `fill` in the places of a strip's row that are left out, below the diagonal of symmetric scores, and beyond its
// end. Scores that were kept are -inf where a guide's, which are not made again then, left a pair out.
template <class E>
void leave_out(const Typed<E> &t, const Strip<E> &strip, const Panel<E> &panel, int64_t i, Sum<E> *values, int64_t from,
               int64_t end, Sum<E> fill, const Sum<E> *kept = nullptr) {
  const simmim_problem &p = t.p;
  const int64_t row = strip.first + i;
  const int64_t joint = p.joint == SIMMIM_LEFT_OUT || p.joint == SIMMIM_KEPT ? joint_of(t, panel, row) : -1;
  const bool special = joint >= 0;
  const Sum<E> of_joint = special && p.joint == SIMMIM_KEPT ? values[joint] : fill;
  for (int64_t k = 0; k < p.ids; ++k) {
    const int64_t id = p.row_ids[k * p.n + row], *ids = p.col_ids + k * p.m + panel.first;
    const bool in_if = p.grouped && k == 0;
    if (!in_if && (id < panel.least_id[k] || id > panel.most_id[k])) continue;
    for (int64_t j = from; j < panel.count; ++j) values[j] = (ids[j] == id) == in_if ? values[j] : fill;
  }
  if (t.guide.d) {
    const Sum<E> *guide = strip.guide.scores.get() + i * strip.stride, limit = t.guide.limit[row];
    for (int64_t j = from; j < panel.count; ++j)
      values[j] = (kept ? kept[j] == -infinity<Sum<E>> : guide[j] > limit) ? fill : values[j];
  }
  if (special) values[joint] = of_joint;
  if (t.symmetric) std::fill(values + from, values + std::clamp(row - panel.first, from, end), fill);
  for (int64_t j = panel.count; j < end; ++j) values[j] = fill;
}

// The tile's products, or what a network makes of its pairs; scale, biases and clamp come row by row.
template <class E> void make_scores(const Typed<E> &t, Strip<E> &strip, const Panel<E> &panel) {
  if (t.guide.d) strip.guide.score(t.guide, strip.first, strip.count, panel.guide, panel.count, strip.stride);
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
              false, strip.x_plane, panel.transposed_plane);
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

// Both, of which softplus's share an exponential.
template <class T> Vector<T> function_and_derivative(int function, Vector<T> s, Vector<T> &derivative) {
  if (function == SIMMIM_SOFTPLUS) {
    const Vector<T> u = exp_of_minus_abs<T>(s);
    derivative = sigmoid_of<T>(s, u);
    return softplus_of<T>(s, u);
  }
  derivative = derivative_of<T>(function, s);
  return function_of<T>(function, s);
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

}  // namespace
}  // namespace SIMMIM_ISA
