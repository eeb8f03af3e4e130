#!/usr/bin/env bash
# Builds the CUDA library: build.sh [OUTPUT [nvcc options]]. NVCC names the compiler, of CUDA 12.9 or later.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
output=${1:-$here/../../simmim_kernels/backends/cuda/_cuda.so}
shift || true
exec "${NVCC:-nvcc}" -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -Xptxas -warn-spills,-warn-lmem-usage,-Werror -cudart static -shared \
  -Xcompiler -fPIC,-fvisibility=hidden -Xlinker --exclude-libs,ALL "$@" "$here/simmim_cuda.cu" -o "$output"
