// The forward: log-sum-exps and sums by row and by column, and the joint pairs' cross entropies.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "pairs.hpp"
#include "walk.hpp"

namespace SIMMIM_ISA {
namespace {

// Spread of a tile's references for which one exponential serves rows and columns: in nats, far within float32.
constexpr double shared_spread = 40;
// Of an exponential that has underflowed: any finite number, that it be 0 times it.
constexpr double nothing = -1000;

// log sum e^s of many vectors at once, as most + log(total), while tiles come in; and, where there is room for the moment
// sum e^(s - most) (s - most), the entropies of their softmaxes.
template <class T> struct Sums {
  T *most, *total, *moment = nullptr;
  void clear(int64_t size) {
    std::fill_n(most, size, -infinity<T>);
    std::fill_n(total, size, T(0));
  }
  void add(int64_t at, T reference, T sum, T moment_of_sum = 0) {
    const T before = most[at], now = reference > before ? reference : before;
    // Where both are the same infinity nothing is rescaled.
    const T old = before == now ? T(1) : std::exp(before - now), other = reference == now ? T(1) : std::exp(reference - now);
    if (moment) {
      const auto moved = [now](T of, T total, T from) { return of + (from == now || total == 0 ? T(0) : (from - now) * total); };
      // Of what has vanished beside the other not even 0 times infinity is left.
      moment[at] = (old > 0 ? old * moved(moment[at], total[at], before) : T(0)) +
                   (other > 0 ? other * moved(moment_of_sum, sum, reference) : T(0));
    }
    total[at] = total[at] * old + sum * other;
    most[at] = now;
  }
  T result(int64_t at) const { return most[at] + std::log(total[at]); }
  // No large numbers cancel here, as they would in the log-sum-exp less the mean score.
  T entropy(int64_t at) const {
    return total[at] > 0 ? std::max(std::log(total[at]) - moment[at] / total[at], T(0)) : T(0);
  }
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
    leave_out(t, strip, panel, i, s, from, n, -infinity<T>);
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
    Vector<T> sum{}, moment{};
    if (want_rows || shared) {
      for (int64_t j = from; j < n; j += lanes) {
        const Vector<T> v = load(s + j) - reference, e = exp_of<T>(v);
        sum += e;
        if (rows.moment) moment += e * larger<T>(v, all(T(nothing)));
        if (shared) store(column_sum + j, load(column_sum + j) + e);
      }
    }
    if (want_rows) rows.add(strip.first + i, shared ? most : row_most[i], sum_of<T>(sum), sum_of<T>(moment));
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
    leave_out(t, strip, panel, i, s, strip.from, panel.columns, T(0));
    const Untouched<T> diagonal(columns, columns ? diagonal_of(t, panel, row) : -1);
    Vector<T> sum{};
    for (int64_t j = strip.from; j < panel.columns; j += lanes) {
      sum += load(s + j);
      if (columns) store(columns + j, load(columns + j) + load(s + j));
    }
    if (rows) rows[row] += sum_of<T>(sum);
  }
}

// logaddexp(others, joint) - joint. A joint score of inf would hide itself there: its cross entropy is inf - inf.
template <class T> T entropy(T others, T joint) {
  const T excess = others - joint;
  if (joint == infinity<T>) return std::numeric_limits<T>::quiet_NaN();
  return std::max(excess, T(0)) + std::log1p(std::exp(-std::abs(excess)));
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
  T *const joints, *const entropies, *const kept, *const softmax_entropies;
  Buffer<T> row_most;
  std::vector<std::unique_ptr<Share>> shares;

  Forward(const Typed<E> &problem, const simmim_values &v)
      : t(problem), exponential(t.p.function == SIMMIM_LOGSUMEXP),
        rows(static_cast<T *>(t.symmetric && !v.rows ? v.columns : v.rows)), columns(static_cast<T *>(v.columns)),
        joints(static_cast<T *>(v.joint)), entropies(static_cast<T *>(v.entropies)), kept(static_cast<T *>(v.scores)),
        softmax_entropies(static_cast<T *>(v.softmax_entropies)),
        row_most(allocate<T>(exponential && rows ? t.p.n : 0)) {
    if (rows) std::fill_n(rows, t.p.n, T(0));
    if (exponential && rows) std::fill_n(row_most.get(), t.p.n, -infinity<T>);
    if (softmax_entropies) std::fill_n(softmax_entropies, t.p.n, T(0));
  }

  // Of the rows; the moments stand where the entropies go.
  Sums<T> of_rows() const { return {row_most.get(), rows, softmax_entropies}; }

  bool looks_at_joints() const { return joints; }
  bool makes_scores() const { return true; }

  void add_tile(Strip<E> &strip, const Panel<E> &panel, Share &mine) {
    const bool by_column = t.symmetric || columns;
    make_scores(t, strip, panel);
    if (exponential)
      add_exponentials(t, strip, panel, of_rows(), mine.sums(), rows != nullptr, by_column, joints,
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
      of_rows().add(column, merged.most[j], merged.total[j]);
    else
      rows[column] += merged.total[j];
  }

  void run() {
    for_each_tile(t, *this);
    if (exponential && rows)
      for (int64_t i = 0; i < t.p.n; ++i) {
        if (softmax_entropies) softmax_entropies[i] = of_rows().entropy(i);
        rows[i] = of_rows().result(i);
      }
    if (t.symmetric && columns && columns != rows) std::copy_n(rows, t.p.n, columns);
    if (!entropies) return;
    T *to = entropies;
    for (const T *others : {t.symmetric && rows == columns ? nullptr : rows, columns})
      for (int64_t i = 0; others && i < t.p.n; ++i) *to++ = entropy(others[i], joints[i]);
  }
};

}  // namespace
}  // namespace SIMMIM_ISA
