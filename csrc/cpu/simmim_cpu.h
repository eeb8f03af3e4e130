/* Pairwise statistics of scores and their gradients on the CPU: a plain C interface, without PyTorch.
 *
 *     s_ij = clamp(scale <x_i, y_j> + row_bias_i + col_bias_j, lo, hi)
 *
 * or, of a network of one or two hidden layers, with its score of the pair in the place of <x_i, y_j>:
 *
 *     output . relu(x_i + y_j) + output_bias
 *     output . relu(weight relu(x_i + y_j) + weight_bias) + output_bias
 *
 * All pointers may be used from any thread; nothing is kept between calls. Every function returns 0, or -1 where the
 * workspace could not be allocated. */
#ifndef SIMMIM_CPU_H
#define SIMMIM_CPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts the changes of this file, so that a library built from another one is not taken for this one's. */
#define SIMMIM_INTERFACE 11
int simmim_interface(void);

enum simmim_dtype { SIMMIM_FLOAT32, SIMMIM_FLOAT64, SIMMIM_BFLOAT16, SIMMIM_FLOAT16 };
enum simmim_function { SIMMIM_LOGSUMEXP, SIMMIM_IDENTITY, SIMMIM_SOFTPLUS, SIMMIM_SQUARE, SIMMIM_LOG1MEXP };
enum simmim_joint { SIMMIM_COUNTED, SIMMIM_LEFT_OUT, SIMMIM_KEPT, SIMMIM_NEGATED };

/* Strides count elements. Vectors are contiguous and have the compute type: double for float64 operands, else float. */
typedef struct {
  int64_t n, m, d;
  const void *x, *y;
  int64_t x_row, x_column, y_row, y_column;
  int32_t dtype;    /* of x and y */
  int32_t function;
  int32_t joint;
  int32_t symmetric; /* 1: y is x, col_bias row_bias and col_ids row_ids, and so are the positives' positives the rows */
  int32_t threads;
  int32_t layers;    /* of a network, 1 or 2, or 0 for inner products; its scale is 1, and it is not symmetric */
  int32_t coarse;    /* 1: products of float32 and float16 may be made to 16 bits, where that is faster */
  double scale, lo, hi;
  const void *row_bias, *col_bias;         /* or NULL */
  const int64_t *positives;                /* (n), or NULL for the diagonal */
  const int64_t *row_ids, *col_ids;        /* (ids, n) and (ids, m) */
  int64_t ids;
  int64_t grouped;  /* 1: a pair is left out where its first ids differ, and not where they are equal as of all others */
  const void *weight, *weight_bias, *output;  /* (d, d) as of what follows by what is before, (d) and (d); of a network */
  double output_bias;
  /* A pair is left out where <guide_x_i, guide_y_j> > guide_limit_i: (n, guide_d) and (m, guide_d), contiguous, and (n),
   * in the compute type, or NULL; of a problem that is not symmetric. */
  const void *guide_x, *guide_y, *guide_limit;
  int64_t guide_d;
} simmim_problem;

/* rows (n) and columns (m), either of which may be NULL where it is not wanted.
 *
 * entropies, if not NULL, takes the joint pairs' cross entropies, softplus(log-sum-exp - joint): (n) by row where rows
 * are wanted, then (n) by column where columns are; joint (n) then takes the joint scores. That is for log-sum-exps of
 * problems whose joint pairs are left out, and by column for those without positives.
 *
 * scores, if not NULL, keeps all scores for simmim_backward, which then need not make them again: n rows, each of m
 * rounded up to a multiple of SIMMIM_ROW_STEP. Of log-sum-exps without a clamp.
 *
 * softmax_entropies (n), if not NULL, takes the entropy of each row's softmax, 0 of a row without pairs. That is for
 * log-sum-exps of problems that are not symmetric, where rows are wanted. */
#define SIMMIM_ROW_STEP 96
typedef struct {
  void *rows, *columns, *joint, *entropies, *scores, *softmax_entropies;
} simmim_values;

int simmim_forward(const simmim_problem *problem, const simmim_values *values);

/* Statistics and upstream gradients by side, NULL where the side is not wanted; gradients likewise.
 * grad_entropies, if not NULL, is of entropies, as long as these and in place of the sides' own; joint is as it was made.
 * Of a symmetric problem dx and drow take the gradients of both sides, and dy and dcol are NULL.
 * total, if not NULL, takes the sum of the function over all pairs, and the weights are then its derivative alone. */
typedef struct {
  const void *rows, *columns, *grad_rows, *grad_columns;
  const void *joint, *grad_entropies;
  const void *scores;  /* as they were kept, or NULL */
  void *dx, *dy;       /* (n, d) and (m, d), contiguous, in the compute type */
  void *drow, *dcol;   /* (n), (m) */
  void *dscale;        /* one element */
  void *total;
  void *dweight, *dweight_bias, *doutput;  /* as of the problem; dscale is then NULL */
  void *doutput_bias;  /* one element */
} simmim_gradients;

int simmim_backward(const simmim_problem *problem, const simmim_gradients *gradients);

/* The joint pairs' cross entropies, by row, by column or both, as one number: factor times the sum of weight_i entropy_i,
 * into `value`. What has weight 0 counts for nothing, whatever its entropy. */
typedef struct {
  const void *weights; /* (n), or NULL for ones */
  void *value;         /* one element */
  double factor;
  int32_t by_row, by_column;
  int64_t rows_at_once; /* whose scores are kept from the number to its gradients; of fewer than n it takes sums by row
                         * alone, of scores that are not symmetric */
} simmim_entropy_sum;

/* That number and its gradients, as simmim_forward and simmim_backward would make them one after the other, with scores
 * that are made once. Of the gradients those of inner products are taken: dx, dy, drow, dcol and dscale, and where all of
 * them are NULL the number alone is made. */
int simmim_cross_entropy_sum(const simmim_problem *problem, const simmim_entropy_sum *sum,
                             const simmim_gradients *gradients);

/* The instruction sets that this build has, best first, separated by commas, and those of them that this processor runs. */
const char *simmim_built_for(void);
const char *simmim_instruction_sets(void);
/* The one of them that calls take now. */
const char *simmim_in_use(void);
/* Chooses one of them by name for all further calls, or for NULL the best of those that have been checked on hardware.
 * -1 for one that is not among them. */
int simmim_choose(const char *name);

/* The OpenMP that this build has, as its _OPENMP says, or 0: calls then run on one thread, whatever their problem asks. */
int simmim_openmp(void);
/* The threads of a parallel region that asks for no number, in the calling thread: omp_get_max_threads(). Kernels ask
 * for the number in their problem. 1 without OpenMP. */
int simmim_openmp_threads(void);

#ifdef __cplusplus
}
#endif
#endif
