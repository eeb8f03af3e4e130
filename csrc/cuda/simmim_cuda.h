/* Statistics of pairwise scores on NVIDIA GPUs, and the weights of their gradients: a plain C interface, without PyTorch.
 * Hopper (compute capability 9.0) has kernels of its own; those for the others, from 8.0 on, have not been verified on
 * hardware.
 *
 *     s_ij = clamp(scale <x_i, y_j> + row_bias_i + col_bias_j, lo, hi)
 *
 * Pointers are to the device's memory. A call only queues work on the stream, and keeps nothing but what it asked of the
 * device. Every function that returns int returns 0, or a cudaError_t, or a negative number for what is not CUDA's to
 * refuse; simmim_cuda_message then says what happened, to the thread whose call it was. */
#ifndef SIMMIM_CUDA_H
#define SIMMIM_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts the changes of this file, so that a library built from another one is not taken for this one's. */
#define SIMMIM_CUDA_INTERFACE 4
int simmim_cuda_interface(void);

#define SIMMIM_CUDA_INVALID (-1)

/* The CUDA version that the library was built with, and that which the driver is for, 0 where there is none, both as
 * 1000 major + 10 minor; the architectures that there is code for, separated by spaces: sm_90a for Hopper alone, sm_80 for
 * 8.0 and what follows up to 9.0, compute_80 as PTX, of which the driver makes code for whatever follows. Nothing of them
 * starts CUDA. */
int simmim_cuda_runtime(void);
int simmim_cuda_driver(void);
const char *simmim_cuda_architectures(void);

/* Of operands and weights. float32 is multiplied as TF32: rounded to 10 bits of mantissa, and summed in float32. */
enum { SIMMIM_CUDA_BFLOAT16, SIMMIM_CUDA_FLOAT16, SIMMIM_CUDA_FLOAT32 };
/* The log-sum-exp, or a function whose sum it is. */
enum { SIMMIM_CUDA_LOGSUMEXP, SIMMIM_CUDA_IDENTITY, SIMMIM_CUDA_SOFTPLUS, SIMMIM_CUDA_SQUARE, SIMMIM_CUDA_LOG1MEXP };
/* How the joint pairs enter: as any pair, never, whatever the ids say, or, in sums, with the sign of their scores changed. */
enum { SIMMIM_CUDA_COUNTED, SIMMIM_CUDA_LEFT_OUT, SIMMIM_CUDA_KEPT, SIMMIM_CUDA_NEGATED };

/* Operands are aligned to 16 bytes, as are their rows: d and the strides, in elements, are multiples of 8, or of 4 for
 * float32. float16 has no square and no log1mexp, whose weights nothing bounds. */
typedef struct {
  int64_t n, m, d;
  const void *x, *y;
  int64_t x_row, y_row;
  const float *scale;
  const float *row_bias, *col_bias; /* (n) and (m), or NULL */
  const int64_t *positives;         /* (n), the joint pairs' columns, or NULL for the diagonal */
  int64_t first_row, first_column;  /* of a part of a matrix, in the whole, in which the joint pairs are counted */
  /* (ids, n) and (ids, m), with rows these strides apart: pairs with equal ones are left out, or, of the first ones of
   * grouped ids, those with different ones. */
  const int64_t *row_ids, *col_ids;
  int64_t row_ids_row, col_ids_row;
  float lo, hi; /* of the clamp; infinite for none */
  int32_t operand, function, joint, ids, grouped;
  int32_t device;  /* the ordinal of the device that the pointers belong to */
  void *stream;    /* a cudaStream_t of it */
  int32_t variant; /* of the kernel, an index of simmim_cuda_variants, or -1 for the one to take. Those of Hopper are for
                    * log-sum-exps of bfloat16 operands without clamp and ids; the last, which the other devices have
                    * alone, is for all */
} simmim_cuda_problem;

/* Whether kernels of Hopper's run on a device, by its ordinal, and are taken there; simmim_cuda_products needs them. */
int simmim_cuda_hopper(int device);

/* The variants' names, separated by semicolons, in their own order. */
const char *simmim_cuda_variants(void);

/* The bytes of workspace that simmim_cuda_statistics needs: bounded, whatever n and m. */
int64_t simmim_cuda_workspace(int64_t n, int64_t m);

/* rows (n) and columns (m), log-sum-exps in nats or sums, either of which may be NULL where it is not wanted. Every sum is
 * made in an order that depends on n and m alone. */
int simmim_cuda_statistics(const simmim_cuda_problem *problem, float *rows, float *columns, void *workspace);

/* Weights of all pairs but those that are left out: (n, stride) of the operands' type, aligned to 16 bytes, stride a
 * multiple of 8 and at least m; up to the next multiple of 8 columns are written. Of log-sum-exps
 * a_i e^(s_ij - r_i) + b_j e^(s_ij - c_j): references r and c are log-sum-exps in nats, a and b upstream gradients, (n) and
 * (m), both NULL for a side that is not differentiated. A row or column whose reference is -inf has none but left-out pairs,
 * and weighs nothing. Of a function psi (a_i + b_j) psi'(s_ij), without references. */
typedef struct {
  const float *row_reference, *row_upstream, *col_reference, *col_upstream;
  void *weights;
  int64_t stride;
  /* Of a function, for n and m up to 16384: sums of psi and of the weights of each row, (n), set, or added to if `adds`; or
   * NULL. */
  float *sums, *weight_sums;
  void *workspace; /* as much as for statistics, if there are sums */
  int32_t adds;
} simmim_cuda_gradient;

int simmim_cuda_weights(const simmim_cuda_problem *problem, const simmim_cuda_gradient *gradient);

/* Of weights of log-sum-exps as above, rounded to the operands' half precision but never in memory: G Y, (parts, n, d)
 * float32, or, of_columns, G^T X, (parts, m, d); and, if not NULL, the sums of the weights of each row, or column,
 * (parts, n) or (parts, m). The parts are to be added up: as many as simmim_cuda_parts says of the extent whose products
 * they are and of the other, and of d. For d up to SIMMIM_CUDA_NARROW, without clamp, ids, and positives that are left out.
 * Of `gradient` only the references and upstream gradients matter. */
#define SIMMIM_CUDA_NARROW 128
int64_t simmim_cuda_parts(int64_t n, int64_t m, int64_t d);
int simmim_cuda_products(const simmim_cuda_problem *problem, const simmim_cuda_gradient *gradient, int32_t of_columns, float *products, float *sums);

/* Cross entropies of the joint pairs (i, positives[i]), or (i, i) for n <= m, whose scores the statistics leave out:
 * softplus(others - s) for a pair's clamped score s and the log-sum-exp of the other pairs of its row, and without positives of
 * its column. One of a score of +inf is NaN. */
typedef struct {
  float *rows, *columns; /* (n) and (m), log-sum-exps of the other pairs, or NULL for a side that is not wanted */
  float *scores;         /* (n), of the joint pairs, before the clamp */
  int32_t known;         /* whether these three are there already, as another call left them, or are made */
  float *row_entropies, *col_entropies; /* (n) each, or NULL */
  /* Upstream gradients of the cross entropies are the products of factor and these, (n) and so far apart, NULL for 1. Of
   * weights one that is 0 counts for nothing, whatever its cross entropies. */
  const float *row_upstream, *col_upstream;
  int64_t row_upstream_step, col_upstream_step;
  float factor;
  int32_t weights;
  float *value, *terms; /* (1), the sum of all cross entropies times their upstream gradients, and (n) of workspace; or NULL */
  /* Gradients of the log-sum-exps (n) and (m), in units of 1 / *unit where that is not NULL, and of the joint scores before
   * the clamp (n); or NULL. */
  float *row_gradient, *col_gradient, *joint_gradient;
  const float *unit;
} simmim_cuda_entropies;

int simmim_cuda_cross_entropies(const simmim_cuda_problem *problem, const simmim_cuda_entropies *entropies, void *workspace);

/* Lines of one side, rows or columns, whose sums of products with weights become gradients of x or y:
 * upstream scale (totals_i / unit + joint_i other_partner(i)). */
typedef struct {
  const float *totals; /* (count, d), aligned to 16 bytes */
  int64_t count;
  const void *own, *other; /* operands of these lines and of the other side; own only for dots */
  int64_t own_row, other_row;
  const int64_t *partners; /* (joints), lines of the other side; or NULL for those of the same number */
  const float *joint;      /* (joints), gradients of the joint scores of the first lines; or NULL */
  int64_t joints;
  void *gradient; /* (count, d), aligned to 16 bytes, of the operands' type, or of float32 if `wide`; or NULL */
  int32_t wide;
  float *bias; /* (count) sums of weights, which become upstream (bias_i / unit + joint_i); or NULL */
  float *dots; /* (count), products of the lines with their gradients before the scale; or NULL */
} simmim_cuda_ends;

typedef struct {
  int64_t d;
  const float *scale, *unit, *upstream; /* one number each; unit and upstream may be NULL for 1 */
  simmim_cuda_ends rows, columns;       /* with a count of 0 for none */
  /* The gradient of the scale, the sum of `dots` in an order that depends on their number alone; or NULL */
  float *scale_gradient;
  const float *dots;
  int64_t dot_count;
  int32_t operand, device;
  void *stream;
} simmim_cuda_gradients;

int simmim_cuda_finish(const simmim_cuda_gradients *gradients);

/* What went wrong in this thread's last call that returned other than 0. */
const char *simmim_cuda_message(void);

#ifdef __cplusplus
}
#endif
#endif
