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

#include <new>

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
