/* Pairwise log-sum-exps on Hopper GPUs (compute capability 9.0), of bfloat16 operands, and the weights of their
 * gradients: a plain C interface, without PyTorch.
 *
 *     s_ij = scale <x_i, y_j> + row_bias_i + col_bias_j
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
#define SIMMIM_CUDA_INTERFACE 1
int simmim_cuda_interface(void);

#define SIMMIM_CUDA_INVALID (-1)

/* Operands are bfloat16, aligned to 16 bytes, as are their rows: d and the strides, in elements, are multiples of 8. */
typedef struct {
  int64_t n, m, d;
  const void *x, *y;
  int64_t x_row, y_row;
  const float *scale;
  const float *row_bias, *col_bias; /* (n) and (m), or NULL */
  const int64_t *positives;         /* (n), the joint pairs' columns, or NULL for the diagonal */
  int64_t first_row, first_column;  /* of a part of a matrix, in the whole, in which the joint pairs are counted */
  int32_t leaves_out;               /* 1: the joint pairs */
  int32_t device;                   /* the ordinal of the device that the pointers belong to */
  void *stream;                     /* a cudaStream_t of it */
  int32_t variant;                  /* of the kernel: an index of simmim_cuda_variants, or -1 for the one to take */
} simmim_cuda_problem;

/* The variants' names, separated by semicolons, in their own order. */
const char *simmim_cuda_variants(void);

/* The bytes of workspace that simmim_cuda_log_sum_exps needs: bounded, whatever n and m. */
int64_t simmim_cuda_workspace(int64_t n, int64_t m);

/* rows (n) and columns (m), in nats, either of which may be NULL where it is not wanted. Every sum is made in an order
 * that depends on n and m alone. */
int simmim_cuda_log_sum_exps(const simmim_cuda_problem *problem, float *rows, float *columns, void *workspace);

/* Weights a_i e^(s_ij - r_i) + b_j e^(s_ij - c_j) of all pairs but those that are left out: (n, stride), bfloat16, aligned
 * to 16 bytes, stride a multiple of 8 and at least m; up to the next multiple of 8 columns are written. References r and c
 * are log-sum-exps in nats, a and b upstream gradients: (n) and (m), both NULL for a side that is not differentiated.
 * A row or column whose reference is -inf has none but left-out pairs, and weighs nothing. */
typedef struct {
  const float *row_reference, *row_upstream, *col_reference, *col_upstream;
  void *weights;
  int64_t stride;
} simmim_cuda_gradient;

int simmim_cuda_weights(const simmim_cuda_problem *problem, const simmim_cuda_gradient *gradient);

/* What went wrong in this thread's last call that returned other than 0. */
const char *simmim_cuda_message(void);

#ifdef __cplusplus
}
#endif
#endif
