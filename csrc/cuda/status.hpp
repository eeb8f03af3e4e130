// What a call of the C interface returns, and says.
#pragma once
#include <cstdio>

#include "simmim_cuda.h"

namespace simmim {
namespace {

thread_local char message[256];

struct Status {
  int code = 0;
  explicit operator bool() const { return code != 0; }
};

Status refuse(char const* what) {
  snprintf(message, sizeof message, "%s", what);
  return {SIMMIM_CUDA_INVALID};
}

}  // namespace
}  // namespace simmim
