// What is linear in the rows and columns: the joint pairs' cross entropies, and the ends of gradients. A warp takes a line of
// an operand, in pieces of 16 bytes. `Machine` reads and writes an operand's elements: value() and element().
#pragma once
#include "pointwise.hpp"

namespace simmim {

// Warps, and so lines, of a block.
constexpr int LINES = 8;

template <class Element>
struct alignas(16) Piece {
  static constexpr int SIZE = 16 / sizeof(Element);
  Element of[SIZE];
};
template <int SIZE>
struct alignas(16) Floats {
  float of[SIZE];
};

// By row or by column.
struct JointSide {
  float const* others;    // (pairs) log-sum-exps of the other pairs, in nats; null for a side that is not wanted
  float const* upstream;  // (pairs), `stride` apart, or null for ones
  int64_t stride;
  float* entropies;  // (pairs), or null
  float* gradient;   // of the log-sum-exps, or null
};

struct JointPairs {
  void const *x, *y;
  int64_t x_row, y_row, d;
  float const *scale, *row_bias, *col_bias;
  int64_t const* positives;
  float lo, hi;
  int pairs;
  int columns;    // of by_column.gradient: those without a joint pair get 0
  bool known;     // scores are read, and not made
  float* scores;  // (pairs), before the clamp
  JointSide by_row, by_column;
  bool weights;       // of upstream gradients a 0 counts for nothing, whatever the cross entropy
  float factor;       // of all upstream gradients
  float const* unit;  // of by_row.gradient and by_column.gradient, or null for 1
  float* gradient;    // (pairs) of the joint scores, or null
  float* terms;       // (pairs) cross entropies times upstream gradients, without the factor, or null
};

// A lane's part of <x_i, y_positive(i)>.
template <Operand OPERAND, class Machine>
SIMMIM_DEVICE float joint_product(Machine const& machine, JointPairs const& p, int i, int lane) {
  using Element = typename ElementOf<OPERAND>::Type;
  using P = Piece<Element>;
  if (p.known || i >= p.pairs) return 0.f;
  auto const* const a = static_cast<Element const*>(p.x) + i * p.x_row;
  auto const* const b = static_cast<Element const*>(p.y) + (p.positives ? p.positives[i] : i) * p.y_row;
  float sum = 0.f;
  for (int64_t k = lane * P::SIZE; k < p.d; k += WARP * P::SIZE) {
    P const u = *reinterpret_cast<P const*>(a + k), v = *reinterpret_cast<P const*>(b + k);
    SIMMIM_UNROLL
    for (int e = 0; e < P::SIZE; ++e) sum = fmaf(machine.template value<OPERAND>(u.of[e]), machine.template value<OPERAND>(v.of[e]), sum);
  }
  return sum;
}

// A cross entropy is softplus(others - joint), with the log-sum-exp of the others: where the joint pair holds nearly all,
// neither it nor its slope is a difference of near equals. Adds the upstream gradient of the others, and a term.
SIMMIM_DEVICE void cross_entropy(JointPairs const& p, JointSide const& side, int i, float joint, float& of_others, float& term) {
  // A joint score of +inf would hide itself: its cross entropy is inf - inf.
  float const hidden = joint == INFINITY ? joint - joint : 0.f;
  Point const v = Softplus::of_one(side.others[i] - joint + hidden);
  if (side.entropies) side.entropies[i] = v.value;
  float const upstream = side.upstream ? side.upstream[i * side.stride] : 1.f;
  bool const counts = !p.weights || upstream != 0.f;
  float const of_side = counts ? p.factor * upstream * v.slope : 0.f;
  if (side.gradient) side.gradient[i] = p.unit ? *p.unit * of_side : of_side;
  of_others += of_side;
  term += counts ? upstream * v.value : 0.f;
}

// Of a pair all that comes of its product.
SIMMIM_DEVICE void joint_pair(JointPairs const& p, int i, float product) {
  if (i >= p.pairs) {
    p.by_column.gradient[i] = 0.f;
    return;
  }
  float s;
  if (p.known) {
    s = p.scores[i];
  } else {
    s = *p.scale * product;
    if (p.row_bias) s += p.row_bias[i];
    if (p.col_bias) s += p.col_bias[p.positives ? p.positives[i] : i];
    p.scores[i] = s;
  }
  // By comparisons, which let NaN through.
  float const joint = s < p.lo ? p.lo : s > p.hi ? p.hi : s;
  float of_others = 0.f, term = 0.f;
  if (p.by_row.others) cross_entropy(p, p.by_row, i, joint, of_others, term);
  if (p.by_column.others) cross_entropy(p, p.by_column, i, joint, of_others, term);
  bool const passes = (p.lo == -INFINITY && p.hi == INFINITY) || (s >= p.lo && s <= p.hi);
  if (p.gradient) p.gradient[i] = passes ? -of_others : 0.f;
  if (p.terms) p.terms[i] = term;
}

// Rows, or columns, whose sums of products with weights become gradients.
struct Ends {
  float const* totals;  // (count, d)
  int count;
  void const *own, *other;  // operands of these lines, and those of the other side's, counted from its first
  int64_t own_row, other_row;
  int64_t const* partners;  // (joints) lines of the other side that are in the joint pairs, or null for those of the same number
  float const* joint;       // (joints) gradients of the joint scores, or null
  int joints;               // the lines that have one: the first
  void* gradient;           // (count, d), or null
  bool wide;                // gradient is float32, and not of the operands' type
  float* bias;              // (count) sums of weights, that become gradients of biases, or null
  float* dots;              // (count) shares of the scale's gradient, or null
};

struct Finish {
  int64_t d;
  float const* scale;
  float const* unit;      // that sums of products and of weights are too large by, or null for 1
  float const* upstream;  // of all that is made, or null for 1
  Ends rows, columns;
};

SIMMIM_DEVICE float upstream_of(Finish const& f) { return f.upstream ? *f.upstream : 1.f; }

// A lane's part of a line, and of <own, gradient before the scale>, which it returns.
template <Operand OPERAND, class Machine>
SIMMIM_DEVICE float end_line(Machine const& machine, Finish const& f, Ends const& ends, int i, int lane) {
  using Element = typename ElementOf<OPERAND>::Type;
  using P = Piece<Element>;
  using F = Floats<P::SIZE>;
  float const shrink = f.unit ? 1.f / *f.unit : 1.f;
  bool const has_joint = ends.joint && i < ends.joints;
  float const joint = has_joint ? ends.joint[i] : 0.f;
  auto const* const own = static_cast<Element const*>(ends.own) + i * ends.own_row;
  auto const* const partner = static_cast<Element const*>(ends.other) + (has_joint ? (ends.partners ? ends.partners[i] : i) : 0) * ends.other_row;
  if (ends.bias && lane == 0) ends.bias[i] = upstream_of(f) * (shrink * ends.bias[i] + joint);
  if (!ends.gradient && !ends.dots) return 0.f;
  float const factor = upstream_of(f) * *f.scale;
  float dot = 0.f;
  for (int64_t k = lane * P::SIZE; k < f.d; k += WARP * P::SIZE) {
    F line = *reinterpret_cast<F const*>(ends.totals + i * f.d + k);
    SIMMIM_UNROLL
    for (int e = 0; e < P::SIZE; ++e) line.of[e] *= shrink;
    if (has_joint) {
      P const v = *reinterpret_cast<P const*>(partner + k);
      SIMMIM_UNROLL
      for (int e = 0; e < P::SIZE; ++e) line.of[e] = fmaf(joint, machine.template value<OPERAND>(v.of[e]), line.of[e]);
    }
    if (ends.dots) {
      P const v = *reinterpret_cast<P const*>(own + k);
      SIMMIM_UNROLL
      for (int e = 0; e < P::SIZE; ++e) dot = fmaf(machine.template value<OPERAND>(v.of[e]), line.of[e], dot);
    }
    if (!ends.gradient) continue;
    SIMMIM_UNROLL
    for (int e = 0; e < P::SIZE; ++e) line.of[e] *= factor;
    if (ends.wide) {
      *reinterpret_cast<F*>(static_cast<float*>(ends.gradient) + i * f.d + k) = line;
    } else {
      P narrow;
      SIMMIM_UNROLL
      for (int e = 0; e < P::SIZE; ++e) narrow.of[e] = machine.template element<OPERAND>(line.of[e]);
      *reinterpret_cast<P*>(static_cast<Element*>(ends.gradient) + i * f.d + k) = narrow;
    }
  }
  return dot;
}

SIMMIM_DEVICE void end_dot(Finish const& f, Ends const& ends, int i, float dot) {
  if (ends.dots) ends.dots[i] = upstream_of(f) * dot;
}

// The sum of a vector times a factor, by one block: a thread's part of it.
constexpr int TOTAL_THREADS = 1024;
struct Total {
  float const* of;
  int64_t count;
  float factor;
  float* sum;
};
SIMMIM_DEVICE float total_part(Total const& t, int thread) {
  float sum = 0.f;
  for (int64_t k = thread; k < t.count; k += TOTAL_THREADS) sum += t.of[k];
  return sum;
}

}  // namespace simmim
