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
#define SIMMIM_CUDA_INTERFACE 3
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
  /* Of a function, for n and m up to 16384: psi of each row, (n), set, or added to if `adds`; or NULL. */
  float *sums;
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

/* What went wrong in this thread's last call that returned other than 0. */
const char *simmim_cuda_message(void);

#ifdef __cplusplus
}
#endif
#endif
