#!/usr/bin/env bash
# Looks for errors that give right numbers all the same.
#
#     sanitize.sh               the kernels' body on the host, under AddressSanitizer and UndefinedBehaviorSanitizer
#     sanitize.sh LIBRARY.so    on a GPU: memcheck, racecheck and synccheck of compute-sanitizer at ragged
#                               sizes, and memcheck of every option where the package has the library. PYTHON names a
#                               Python with PyTorch, COMPUTE_SANITIZER the tool.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
if [ $# -eq 0 ]; then
  folder=$(mktemp -d)
  trap 'rm -r "$folder"' EXIT
  "${CXX:-c++}" -std=c++20 -O1 -g -U_FORTIFY_SOURCE -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all \
    "$here/body_test.cpp" -o "$folder/body_test"
  # Fibers have stacks of their own, of which the sanitizer knows nothing.
  ASAN_OPTIONS=detect_stack_use_after_return=0 "$folder/body_test" "${SEED:-1}"
  exit
fi
for tool in memcheck racecheck synccheck; do
  "${COMPUTE_SANITIZER:-compute-sanitizer}" --tool "$tool" --error-exitcode 1 \
    "${PYTHON:-python}" "$here/../../../benchmarks/cuda_kernels.py" "$1" /dev/null --small
done
"${COMPUTE_SANITIZER:-compute-sanitizer}" --tool memcheck --error-exitcode 1 \
  "${PYTHON:-python}" -m pytest -q -x "$here/../../../tests/test_cuda_gpu.py" -k "337 or softplus or tf32"
