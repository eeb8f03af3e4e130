#!/usr/bin/env bash
# Builds the CUDA library: build.sh [OUTPUT [nvcc options]]. NVCC names the compiler, of CUDA 12.9 or later; ARCHITECTURES,
# in its words, what it compiles for: sm_90a is Hopper, others have kernels of their own, and compute_80 is PTX.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
output=${1:-$here/../../simmim_kernels/backends/cuda/_cuda.so}
shift || true
architectures=${ARCHITECTURES:-sm_80 sm_90a compute_80}
targets=()
for each in $architectures; do targets+=(-gencode "arch=compute_${each#*_},code=$each"); done
exec "${NVCC:-nvcc}" -std=c++17 -O3 "${targets[@]}" --threads 2 "-DSIMMIM_CUDA_ARCHITECTURES=\"$architectures\"" \
  -Xptxas -warn-spills,-warn-lmem-usage,-Werror -cudart static -shared \
  -Xcompiler -fPIC,-fvisibility=hidden -Xlinker --exclude-libs,ALL "$@" "$here/simmim_cuda.cu" -o "$output"
