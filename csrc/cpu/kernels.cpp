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
#include <memory>
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

// Some neighbouring rows of a problem with all of its columns, as a problem of its own.
template <class T> struct RowsOf {
  simmim_problem p;
  const Buffer<int64_t> positives, ids;

  RowsOf(const simmim_problem &whole, int64_t first, int64_t count)
      : p(whole), positives(allocate<int64_t>(count)), ids(allocate<int64_t>(whole.ids * count)) {
    p.n = count;
    p.x = static_cast<const char *>(whole.x) + first * whole.x_row * size_of(whole.dtype);
    if (whole.row_bias) p.row_bias = static_cast<const T *>(whole.row_bias) + first;
    if (whole.guide_limit) {
      p.guide_x = static_cast<const T *>(whole.guide_x) + first * whole.guide_d;
      p.guide_limit = static_cast<const T *>(whole.guide_limit) + first;
    }
    for (int64_t i = 0; i < count; ++i) positives[i] = whole.positives ? whole.positives[first + i] : first + i;
    p.positives = positives.get();
    for (int64_t k = 0; k < whole.ids; ++k) std::copy_n(whole.row_ids + k * whole.n + first, count, ids.get() + k * count);
    if (whole.ids) p.row_ids = ids.get();
  }

private:
  static int64_t size_of(int32_t dtype) {
    return dtype == SIMMIM_FLOAT64 ? 8 : dtype == SIMMIM_FLOAT32 ? 4 : 2;
  }
};

// A side's gradients from a row on.
template <class T> void *from_row(void *gradient, int64_t row, int64_t width) {
  return gradient ? static_cast<T *>(gradient) + row * width : nullptr;
}

// Forward and backward in one, between which the entropies give way to their gradients; by some rows at a time, where
// they need nothing of the others, so that scores that are too many to keep are made once all the same.
template <class E>
int entropy_sum(const simmim_problem &problem, const simmim_entropy_sum &sum, const simmim_gradients &gradients) {
  using T = Sum<E>;
  const int64_t n = problem.n, sides = (sum.by_row ? 1 : 0) + (sum.by_column ? 1 : 0);
  const bool differentiates = gradients.dx || gradients.dy || gradients.drow || gradients.dcol || gradients.dscale;
  const int64_t step = differentiates ? std::min(n, sum.rows_at_once) : n;
  const Buffer<T> joint = allocate<T>(step), of_sides = allocate<T>(sides * step);
  const Buffer<T> rows = sum.by_row ? allocate<T>(step) : nullptr, columns = sum.by_column ? allocate<T>(problem.m) : nullptr;
  const bool keeps = differentiates && !Typed<E>(problem).clamped;
  const Buffer<T> scores = keeps ? allocate<T>(step * Typed<E>(problem).kept_row) : nullptr;
  double total = 0, dscale = 0;
  for (int64_t first = 0; first < n; first += step) {
    const int64_t count = std::min(step, n - first);
    const std::unique_ptr<const RowsOf<T>> part(step < n ? new RowsOf<T>(problem, first, count) : nullptr);
    const Typed<E> t(part ? part->p : problem);
    Forward<E>(t, {rows.get(), columns.get(), joint.get(), of_sides.get(), scores.get()}).run();
    for (int64_t k = 0; k < sides * count; ++k) {
      const double weight = sum.weights ? double(static_cast<const T *>(sum.weights)[first + k % count]) : 1;
      // What counts for nothing may be infinite, and so may the factor.
      if (weight != 0) total += weight * double(of_sides[k]);
      of_sides[k] = weight != 0 ? T(weight * sum.factor) : T(0);
    }
    if (!differentiates) break;
    simmim_gradients g = gradients;
    g.rows = rows.get(), g.columns = columns.get(), g.joint = joint.get(), g.scores = scores.get();
    g.grad_entropies = of_sides.get();
    g.dx = from_row<T>(g.dx, first, problem.d), g.drow = from_row<T>(g.drow, first, 1);
    Backward<E>(t, g, first > 0).run();
    if (g.dscale) dscale += double(*static_cast<T *>(g.dscale));
  }
  *static_cast<T *>(sum.value) = T(sum.factor * total);
  if (gradients.dscale) *static_cast<T *>(gradients.dscale) = T(dscale);
  return 0;
}

#ifdef SIMMIM_TILES
// Whether bfloat16 parts have all that float32 products of these rows have: no number is infinite, NaN or so large that a
// product overflows in part, and no row is so small that its later parts, or their products, are denormal, which tiles
// take for 0.
bool parts_hold(const Features &f, int64_t rows, int64_t d, int threads) {
  bool held = true;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : held)
  for (int64_t i = 0; i < rows; ++i) {
    float most = 0;
    bool inside = true;
    for (int64_t k = 0; k < d; ++k) {
      const float size = std::abs(feature<float>(f, i * f.row + k * f.column));
      inside &= size < 0x1p50f;
      most = std::max(most, size);
    }
    held = held && inside && (most == 0 || most > 0x1p-40f);
  }
  return held;
}
bool parts_hold(const simmim_problem &p) {
  const int threads = std::max(1, int(p.threads));
  return parts_hold(Features{p.x, p.dtype, p.x_row, p.x_column}, p.n, p.d, threads) &&
         parts_hold(Features{p.y, p.dtype, p.y_row, p.y_column}, p.m, p.d, threads);
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
