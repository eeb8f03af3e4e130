// OpenMP's functions, and what they say where the compiler has no OpenMP: its pragmas then mean nothing, and a parallel
// region is one thread's.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#else
// Static: sources that are compiled for different processors share none.
static inline int omp_get_max_threads() { return 1; }
static inline int omp_get_num_threads() { return 1; }
static inline int omp_get_thread_num() { return 0; }
#endif
