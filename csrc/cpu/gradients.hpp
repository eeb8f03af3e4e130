// The backward: products of the weights with the operands, by row and by column, and a network's gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "walk.hpp"
#include "weights.hpp"

namespace SIMMIM_ISA {
namespace {

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
                panel.columns, gradient, t.width, false, strip.weights_plane, panel.packed_plane);
  const T unscale = parts<E> > 1 ? strip.unscale : T(1), scale = t.scale * unscale;
  for (int64_t i = 0; i < strip.count; ++i) {
    const T *row = gradient + i * t.width;
    if (dscale) {
      const E *x = strip.x.get() + i * t.width;
      T dot = 0;
      for (int64_t k = 0; k < t.p.d; ++k) {
        T feature = number(x[k]);
        for (int part = 1; part < parts<E>; ++part) feature += number(x[part * strip.x_plane + k]);
        dot += row[k] * feature;
      }
      *dscale += double(unscale) * double(dot);
    }
    if (!dx) continue;
    T *to = dx + (strip.first + i) * t.p.d;
    if (panel.first == 0 && !t.symmetric)
      for (int64_t k = 0; k < t.p.d; ++k) to[k] = scale * row[k];
    else
      for (int64_t k = 0; k < t.p.d; ++k) to[k] += scale * row[k];
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
    for (int part = 0; part < parts<E>; ++part, turned += strip.x_plane) {
      const E *x = strip.x.get() + part * strip.x_plane;
      for (int64_t i = 0; i < row; ++i)
        for (int64_t f = 0; f < t.width; ++f) turned[f * row + i] = x[i * t.width + f];
    }
    for (int64_t f = 0; f < t.width && !add; ++f) std::fill_n(dy + f * strip.stride, from, 0.0f);
    const auto *by_column = reinterpret_cast<const bfloat16 *>(strip.by_column.get()) + Operand<E>::step * from;
    const auto *features = reinterpret_cast<const bfloat16 *>(strip.packed.get());
    const int64_t slice = Operand<E>::step * tile_block, columns = panel.columns - from;
    if (parts<E> == 1 || strip.unscale == 1) {
      const TileOperand weights{by_column, slice, pair, strip.weights_plane};
      multiply_tiles<parts<E>>(t.width, columns, row, features, strip.x_plane, row, weights, dy + from, strip.stride, add);
      return;
    }
    // Scaled weights, block by block: what they add to has another scale.
    alignas(64) float block[tile_block * tile_block];
    for (int64_t f = 0; f < t.width; f += tile_block)
      for (int64_t j = 0; j < columns; j += tile_block) {
        multiply_tiles_block<parts<E>>(row, features + f * row, strip.x_plane, row, by_column + j / tile_block * slice,
                                       strip.weights_plane, pair, block, tile_block, false);
        for (int64_t k = 0; k < tile_block; ++k)
          for (int64_t c = 0; c < tile_block; ++c) {
            float *to = dy + (f + k) * strip.stride + from + j + c;
            *to = (add ? *to : 0.0f) + strip.unscale * block[k * tile_block + c];
          }
      }
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
  const bool adds;  // to the columns' gradients of other rows
  T *dx, *dy, *drow, *dcol, *dscale, *total;
  T *dweight, *dweight_bias, *doutput, *doutput_bias;
  Buffer<T> own_dx, own_dy;  // of a network, whose parameters' gradients are made of both
  std::vector<std::unique_ptr<Share>> shares;

  Backward(const Typed<E> &problem, const simmim_gradients &g, bool adds = false)
      : t(problem), u(problem.p, g), adds(adds),
        dx(static_cast<T *>(g.dx)), dy(static_cast<T *>(g.dy)), drow(static_cast<T *>(g.drow)),
        dcol(static_cast<T *>(g.dcol)), dscale(static_cast<T *>(g.dscale)), total(static_cast<T *>(g.total)),
        dweight(static_cast<T *>(g.dweight)), dweight_bias(static_cast<T *>(g.dweight_bias)),
        doutput(static_cast<T *>(g.doutput)), doutput_bias(static_cast<T *>(g.doutput_bias)) {
    if (drow) std::fill_n(drow, t.p.n, T(0));
    if (t.network && !dx) own_dx = allocate<T>(t.p.n * t.p.d), dx = own_dx.get();
    if (t.network && !dy) own_dy = allocate<T>(t.p.m * t.p.d), dy = own_dy.get();
    // What tiles that are left out add nothing to.
    if (dx && (t.symmetric || t.p.grouped || t.network)) std::fill_n(dx, t.p.n * t.p.d, T(0));
    if (dy && t.p.grouped && !adds) std::fill_n(dy, t.p.m * t.p.d, T(0));
  }

  bool looks_at_joints() const { return u.grad_joint; }
  bool makes_scores() const { return !u.scores; }

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
    bool added = t.symmetric || adds;
    for (int64_t k = 0; k < team; ++k) {
      const Share &share = *shares[k];
      if (share.empty) continue;
      weights += share.dcol[j];
      for (int64_t f = 0; to && f < d; ++f)
        to[f] = (added ? to[f] : T(0)) + t.scale * share.dy[Operand<E>::tiles ? f * share.width + j : j * t.width + f];
      added = true;
    }
    if (of_weights) of_weights[column] = (t.symmetric || adds ? of_weights[column] : T(0)) + weights;
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

}  // namespace
}  // namespace SIMMIM_ISA
