/* Pairwise log-sum-exps on Hopper GPUs (compute capability 9.0), of bfloat16 operands: a plain C interface, without
 * PyTorch.
 *
 *     s_ij = scale <x_i, y_j> + row_bias_i + col_bias_j
 *
 * Pointers are to the device's memory. A call only queues work on the stream, and keeps nothing. Every function that
 * returns int returns 0, or a cudaError_t, or a negative number for what is not CUDA's to refuse; simmim_cuda_message then
 * says what happened, to the thread whose call it was. */
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

/* Operands are aligned to 16 bytes, as are their rows: d and the strides, in elements, are multiples of 8. */
typedef struct {
  int64_t n, m, d;
  const void *x, *y;
  int64_t x_row, y_row;
  float scale;
  const float *row_bias, *col_bias; /* (n) and (m), or NULL */
  int32_t device;                   /* the ordinal of the device that the pointers belong to */
  void *stream;                     /* a cudaStream_t of it */
  int32_t variant;                  /* of the kernel: an index of simmim_cuda_variants */
} simmim_cuda_problem;

/* The variants' names, separated by commas, the one to take first. */
const char *simmim_cuda_variants(void);

/* The bytes of workspace that simmim_cuda_log_sum_exps needs: bounded, whatever n and m. */
int64_t simmim_cuda_workspace(int64_t n, int64_t m);

/* rows (n) and columns (m), in nats, either of which may be NULL where it is not wanted. Every sum is made in an order
 * that depends on n and m alone. */
int simmim_cuda_log_sum_exps(const simmim_cuda_problem *problem, float *rows, float *columns, void *workspace);

/* What went wrong in this thread's last call that returned other than 0. */
const char *simmim_cuda_message(void);

#ifdef __cplusplus
}
#endif
#endif
