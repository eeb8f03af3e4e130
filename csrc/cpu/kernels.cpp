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
#include <cstdint>
#include <new>
#include <type_traits>

#include "gradients.hpp"
#include "statistics.hpp"
#include "table.hpp"

namespace SIMMIM_ISA {
namespace {

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

// Forward and backward in one, between which the entropies give way to their gradients.
template <class E>
int entropy_sum(const simmim_problem &problem, const simmim_entropy_sum &sum, const simmim_gradients &gradients) {
  using T = Sum<E>;
  const Typed<E> t(problem);
  const int64_t n = problem.n, entropies = (sum.by_row ? n : 0) + (sum.by_column ? n : 0);
  const Buffer<T> joint = allocate<T>(n), of_sides = allocate<T>(entropies);
  const Buffer<T> rows = sum.by_row ? allocate<T>(n) : nullptr, columns = sum.by_column ? allocate<T>(problem.m) : nullptr;
  simmim_gradients g = gradients;
  const bool differentiates = g.dx || g.dy || g.drow || g.dcol || g.dscale;
  const Buffer<T> scores = differentiates && !t.clamped ? allocate<T>(n * t.kept_row) : nullptr;
  Forward<E>(t, {rows.get(), columns.get(), joint.get(), of_sides.get(), scores.get()}).run();

  double total = 0;
  for (int64_t k = 0; k < entropies; ++k) {
    const double weight = sum.weights ? double(static_cast<const T *>(sum.weights)[k % n]) : 1;
    // What counts for nothing may be infinite, and so may the factor.
    if (weight != 0) total += weight * double(of_sides[k]);
    of_sides[k] = weight != 0 ? T(weight * sum.factor) : T(0);
  }
  *static_cast<T *>(sum.value) = T(sum.factor * total);
  if (!differentiates) return 0;
  g.rows = rows.get(), g.columns = columns.get(), g.joint = joint.get(), g.scores = scores.get();
  g.grad_entropies = of_sides.get();
  Backward<E>(t, g).run();
  return 0;
}

#ifdef SIMMIM_TILES
// Whether bfloat16 parts have all that float32 products of these rows have: no number is infinite, NaN or so large that a
// product overflows in part, and no row is so small that its later parts, or their products, are denormal, which tiles
// take for 0.
bool parts_hold(const Features &f, int64_t rows, int64_t d) {
  bool held = true;
  for (int64_t i = 0; i < rows && held; ++i) {
    float most = 0;
    for (int64_t k = 0; k < d; ++k) {
      const float size = std::abs(feature<float>(f, i * f.row + k * f.column));
      held &= size < 0x1p50f;
      most = std::max(most, size);
    }
    held &= most == 0 || most > 0x1p-40f;
  }
  return held;
}
bool parts_hold(const simmim_problem &p) {
  return parts_hold(Features{p.x, p.dtype, p.x_row, p.x_column}, p.n, p.d) &&
         parts_hold(Features{p.y, p.dtype, p.y_row, p.y_column}, p.m, p.d);
}
#endif

// Runs what is given the type of the operands, as a null pointer.
template <class F> int of_type(const simmim_problem &problem, const F &run) {
  try {
    if (problem.dtype == SIMMIM_FLOAT64) return run(static_cast<double *>(nullptr));
#ifdef SIMMIM_BFLOAT16_PRODUCTS
    if (problem.dtype == SIMMIM_BFLOAT16 && !problem.layers) return run(static_cast<bfloat16 *>(nullptr));
#endif
#ifdef SIMMIM_TILES
    if (problem.dtype != SIMMIM_BFLOAT16 && !problem.layers && parts_hold(problem))
      return problem.coarse ? run(static_cast<Part<2> *>(nullptr)) : run(static_cast<Part<3> *>(nullptr));
#endif
    return run(static_cast<float *>(nullptr));
  } catch (const std::bad_alloc &) {
    return -1;
  }
}

int forward_of(const simmim_problem *problem, const simmim_values *values) {
  return of_type(*problem, [&](auto *type) { return forward<std::remove_pointer_t<decltype(type)>>(*problem, *values); });
}

int backward_of(const simmim_problem *problem, const simmim_gradients *gradients) {
  return of_type(*problem,
                 [&](auto *type) { return backward<std::remove_pointer_t<decltype(type)>>(*problem, *gradients); });
}

int entropy_sum_of(const simmim_problem *problem, const simmim_entropy_sum *sum, const simmim_gradients *gradients) {
  return of_type(*problem, [&](auto *type) {
    return entropy_sum<std::remove_pointer_t<decltype(type)>>(*problem, *sum, *gradients);
  });
}

}  // namespace

#define SIMMIM_TEXT(name) #name
#define SIMMIM_NAME(name) SIMMIM_TEXT(name)
extern const Kernels table;
const Kernels table = {SIMMIM_NAME(SIMMIM_ISA), forward_of, backward_of, entropy_sum_of};

}  // namespace SIMMIM_ISA
