// What one instruction set offers, and what dispatch.cpp chooses among.
#pragma once

#include "simmim_cpu.h"

struct Kernels {
  const char *name;
  int (*forward)(const simmim_problem *, const simmim_values *);
  int (*backward)(const simmim_problem *, const simmim_gradients *);
  int (*entropy_sum)(const simmim_problem *, const simmim_entropy_sum *, const simmim_gradients *);
};
