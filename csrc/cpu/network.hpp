// The network that scores a pair of rows from the two halves of its first layer, x_i and y_j:
//
//     s_ij = output . h_ij + output_bias,   h_ij = relu(x_i + y_j)                               of one hidden layer
//                                           h_ij = relu(weight relu(x_i + y_j) + weight_bias)    of two
//
// Of one layer the lanes of a vector are pairs for the scores and hidden units for the gradients, and nothing is kept. Of
// two, the pairs of one row and a panel are the rows of a matrix of activations, which the register block multiplies.
//
// A unit's gradient passes where its sum is not at most 0, and its value is 0 where the sum is below 0: NaN stays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "blocks.hpp"
#include "memory.hpp"

namespace SIMMIM_ISA {
namespace {

template <class T> Vector<T> relu(Vector<T> sum) { return sum < Vector<T>{} ? Vector<T>{} : sum; }
template <class T> Vector<T> through_relu(Vector<T> sum, Vector<T> gradient) {
  return sum <= Vector<T>{} ? Vector<T>{} : gradient;
}

// Its parameters as the kernels want them, shared by all threads; zero beyond the hidden units.
template <class T> struct Network {
  int64_t layers, d, width;  // of the hidden layers, and that in whole blocks of columns
  int64_t tall;              // of a row of second activations: in whole blocks of rows, too
  T output_bias;
  Buffer<T> output, weight_bias;
  Buffer<T> forward, backward;  // the weight as the right operand of what it makes of activations, and of gradients

  explicit Network(const simmim_problem &p)
      : layers(p.layers), d(p.d), width(round_up(d, block_columns<T>)),
        tall(round_up(round_up(d, block_rows<T>), block_columns<T>)), output_bias(T(p.output_bias)),
        output(padded(p.output)) {
    if (layers < 2) return;
    weight_bias = padded(p.weight_bias);
    forward = allocate<T>(width * d);
    backward = allocate<T>(width * width);
    constexpr int block = block_columns<T>;
    const Features weight{p.weight, std::is_same_v<T, double> ? SIMMIM_FLOAT64 : SIMMIM_FLOAT32, d, 1};
    const Buffer<T> rows = allocate<T>(block * width);
    for (int64_t k = 0; k < width; k += block) {
      unpack(weight, k, std::clamp<int64_t>(d - k, 0, block), block, d, width, rows.get());
      pack_transposed(rows.get(), width, d, forward.get() + k * d);
      pack(rows.get(), block, width, width, backward.get() + k * block);
    }
  }

private:
  Buffer<T> padded(const void *values) const {
    Buffer<T> made = zeros<T>(width);
    std::copy_n(static_cast<const T *>(values), d, made.get());
    return made;
  }
};

// What a thread makes of the pairs of one row and a panel, and of two layers keeps of a strip's rows for the gradients.
template <class T> struct Activations {
  Buffer<T> first, second;             // (pairs, width), and (pairs, tall) of every row that is kept
  Buffer<T> first_gradient, packed;    // (pairs, width)
  int64_t kept_row;

  Activations(const Network<T> &net, int64_t pairs, int64_t rows, bool differentiates)
      : kept_row(differentiates ? pairs * net.tall : 0) {
    if (net.layers < 2) return;
    first = allocate<T>(pairs * net.width);
    second = zeros<T>(pairs * net.tall * (differentiates ? rows : 1));
    if (!differentiates) return;
    first_gradient = allocate<T>(pairs * net.width);
    packed = allocate<T>(pairs * net.width);
  }

  T *second_of(int64_t row) const { return second.get() + row * kept_row; }
};

// Gradients of the parameters: those of a panel, and of all panels before. Of one layer those of `output` come last.
template <class T> struct ParameterGradients {
  int64_t of_weight, width;
  Buffer<T> weight, weight_bias, output;
  Buffer<double> weight_total, weight_bias_total, output_total;
  double output_bias = 0;

  explicit ParameterGradients(const Network<T> &net)
      : of_weight(net.layers < 2 ? 0 : round_up(net.d, block_rows<T>) * net.width), width(net.width),
        weight(zeros<T>(of_weight)), weight_bias(zeros<T>(width)), output(zeros<T>(width)),
        weight_total(zeros<double>(of_weight)), weight_bias_total(zeros<double>(width)),
        output_total(zeros<double>(width)) {}

  void end_panel() {
    end(of_weight, weight.get(), weight_total.get());
    end(width, weight_bias.get(), weight_bias_total.get());
    end(width, output.get(), output_total.get());
  }

  // Another thread's, all of whose panels have ended.
  void add(const ParameterGradients &other) {
    for (int64_t k = 0; k < of_weight; ++k) weight_total[k] += other.weight_total[k];
    for (int64_t k = 0; k < width; ++k) weight_bias_total[k] += other.weight_bias_total[k];
    for (int64_t k = 0; k < width; ++k) output_total[k] += other.output_total[k];
    output_bias += other.output_bias;
  }

private:
  static void end(int64_t size, T *panel, double *total) {
    for (int64_t k = 0; k < size; ++k) total[k] += double(panel[k]), panel[k] = T(0);
  }
};

// Scores of `rows` rows of x and two vectors of pairs; y is transposed, as pack_transposed does it.
template <int rows, class T>
void score_block(const Network<T> &net, const T *x, const T *y, T *scores, int64_t stride) {
  constexpr int lanes = Vectors<T>::lanes;
  Vector<T> sums[rows][2];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) sums[i][0] = sums[i][1] = all(net.output_bias);
  for (int64_t k = 0; k < net.d; ++k, y += 2 * lanes) {
    const Vector<T> y0 = load(y), y1 = load(y + lanes), weight = all(net.output[k]);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const Vector<T> a = all(x[i * net.width + k]);
      sums[i][0] += weight * relu<T>(a + y0);
      sums[i][1] += weight * relu<T>(a + y1);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) store(scores + i * stride, sums[i][0]), store(scores + i * stride + lanes, sums[i][1]);
}

// Of one layer: scores (rows, columns), columns in whole blocks.
template <class T>
void score_pairs(const Network<T> &net, int64_t rows, int64_t columns, const T *x, const T *transposed, T *scores,
                 int64_t stride) {
  for (int64_t j = 0; j < columns; j += block_columns<T>) {
    const T *y = transposed + j * net.d;
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) score_block<4>(net, x + i * net.width, y, scores + i * stride + j, stride);
    for (; i < rows; ++i) score_block<1>(net, x + i * net.width, y, scores + i * stride + j, stride);
  }
}

// For `rows` rows of x and some pairs' y: adds the weights of the pairs in which each unit is active to the unit's sums of
// the rows and of the pairs.
template <int rows, class T>
void add_active_block(int64_t width, int64_t pairs, const T *weights, int64_t stride, const T *x, const T *y, T *of_rows,
                      T *of_pairs) {
  constexpr int lanes = Vectors<T>::lanes;
  for (int64_t k = 0; k < width; k += lanes) {
    Vector<T> sums[rows], a[rows];
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) sums[i] = Vector<T>{}, a[i] = load(x + i * width + k);
    for (int64_t j = 0; j < pairs; ++j) {
      const Vector<T> b = load(y + j * width + k);
      Vector<T> of_pair = load(of_pairs + j * width + k);
#pragma GCC unroll 4
      for (int i = 0; i < rows; ++i) {
        const Vector<T> active = through_relu<T>(a[i] + b, all(weights[i * stride + j]));
        sums[i] += active;
        of_pair += active;
      }
      store(of_pairs + j * width + k, of_pair);
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      T *to = of_rows + i * width + k;
      store(to, load(to) + sums[i]);
    }
  }
}

// Of one layer: sums over pairs of their weights (rows, pairs) where a unit is active, by row and by pair, which times
// `output` are the gradients of x and y. A few pairs' y and sums stay in the innermost cache.
template <class T>
void add_active(const Network<T> &net, int64_t rows, int64_t pairs, const T *weights, int64_t stride, const T *x,
                const T *y, T *of_rows, T *of_pairs) {
  const int64_t width = net.width, step = std::clamp<int64_t>(2048 / width, 1, 64);
  for (int64_t j = 0; j < pairs; j += step) {
    const int64_t count = std::min(step, pairs - j);
    const T *b = y + j * width;
    int64_t i = 0;
    const auto add = [&](auto block) {
      for (; i + block.value <= rows; i += block.value)
        add_active_block<block.value>(width, count, weights + i * stride + j, stride, x + i * width, b,
                                      of_rows + i * width, of_pairs + j * width);
    };
    add(std::integral_constant<int, 4>{});
    add(std::integral_constant<int, 1>{});
  }
}

template <class T>
void activate(const Network<T> &net, int64_t pairs, const T *x, const T *y, T *first) {
  constexpr int lanes = Vectors<T>::lanes;
  for (int64_t j = 0; j < pairs; ++j, y += net.width, first += net.width)
    for (int64_t k = 0; k < net.width; k += lanes) store(first + k, relu<T>(load(x + k) + load(y + k)));
}

// Of two layers: scores of a row's pairs, in whole blocks, and the second layer's sums without their bias.
template <class T>
void score_row(const Network<T> &net, Activations<T> &made, int64_t pairs, const T *x, const T *y, T *second, T *scores) {
  constexpr int lanes = Vectors<T>::lanes;
  activate(net, pairs, x, y, made.first.get());
  multiply<T>(pairs, net.width, net.d, made.first.get(), net.width, 1, net.forward.get(), net.d, second, net.tall, false);
  const T *bias = net.weight_bias.get(), *output = net.output.get();
  for (int64_t j = 0; j < pairs; ++j, second += net.tall) {
    Vector<T> sum{};
    for (int64_t k = 0; k < net.width; k += lanes) sum += load(output + k) * relu<T>(load(second + k) + load(bias + k));
    T score = net.output_bias;
    for (int i = 0; i < lanes; ++i) score += sum[i];
    scores[j] = score;
  }
}

// Of two layers: adds a row's gradients by the parameters, by x and by its pairs' y. `second` is score_row's, and becomes
// the gradient of these sums.
template <class T>
void add_row(const Network<T> &net, Activations<T> &made, ParameterGradients<T> &g, int64_t pairs, const T *weights,
             const T *x, const T *y, T *second, T *of_row, T *of_pairs) {
  constexpr int lanes = Vectors<T>::lanes;
  const int64_t width = net.width, tall = net.tall;
  const T *bias = net.weight_bias.get(), *output = net.output.get();
  for (int64_t j = 0; j < pairs; ++j) {
    const Vector<T> weight = all(weights[j]);
    T *row = second + j * tall;
    for (int64_t k = 0; k < width; k += lanes) {
      const Vector<T> sum = load(row + k) + load(bias + k);
      const Vector<T> gradient = through_relu<T>(sum, weight * load(output + k));
      store(g.output.get() + k, load(g.output.get() + k) + weight * relu<T>(sum));
      store(g.weight_bias.get() + k, load(g.weight_bias.get() + k) + gradient);
      store(row + k, gradient);
    }
  }
  T *first = made.first.get(), *gradient = made.first_gradient.get();
  activate(net, pairs, x, y, first);
  pack(first, pairs, width, pairs, made.packed.get());
  multiply<T>(round_up(net.d, block_rows<T>), width, pairs, second, 1, tall, made.packed.get(), pairs, g.weight.get(),
              width, true);
  multiply<T>(pairs, width, net.d, second, tall, 1, net.backward.get(), width, gradient, width, false);
  for (int64_t j = 0; j < pairs; ++j, first += width, gradient += width, of_pairs += width)
    for (int64_t k = 0; k < width; k += lanes) {
      const Vector<T> passed = through_relu<T>(load(first + k), load(gradient + k));
      store(of_row + k, load(of_row + k) + passed);
      store(of_pairs + k, load(of_pairs + k) + passed);
    }
}

}  // namespace
}  // namespace SIMMIM_ISA
