#!/usr/bin/env bash
# Runs kernels_test under AddressSanitizer and UndefinedBehaviorSanitizer, under ThreadSanitizer, and under valgrind where
# that is installed.
# kernels_test, without arguments, checks every instruction set that the processor has, and exits 0 if all is well.
# Valgrind's processor has no AVX-512: there the best is AVX2. PYTHON names a Python with setuptools.
set -euo pipefail
cd "$(dirname "$0")/../../.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# build NAME FLAG...: the library as setup.py builds it, and the driver, with further flags.
build() {
    local to="$folder/$1"
    shift
    CXXFLAGS="$*" SIMMIM_KERNELS_NATIVE=1 \
        "${PYTHON:-python3}" setup.py -q build_ext --build-lib "$to" --build-temp "$to" >"$to.log"
    ${CXX:-c++} -std=c++17 -fopenmp "$@" -Icsrc/cpu csrc/cpu/tests/kernels_test.cpp \
        "$to/simmim_kernels/backends/native/_native.so" -Wl,-rpath,"$to/simmim_kernels/backends/native" -o "$to/kernels_test"
}

# Leaks count in both, but not what OpenMP keeps for its threads, which live as long as the process.
build sanitized -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 "$folder/sanitized/kernels_test"

# Threads, with pthreads_openmp.cpp in place of libgomp: with its barriers, which must pass, and with others that order
# nothing, which must not. It has GCC's calls of OpenMP; clang's are for LLVM's runtime, which has a tool for this, archer.
threads() {
    ${CXX:-c++} -std=c++17 -O1 -g -fsanitize=thread "$@" -Icsrc/cpu csrc/cpu/tests/kernels_test.cpp \
        csrc/cpu/tests/pthreads_openmp.cpp "$folder"/threads/*.o -o "$folder/threads/kernels_test"
    "$folder/threads/kernels_test"
}
if ${CXX:-c++} --version | grep --quiet clang; then
    echo "ThreadSanitizer needs GCC here: left out" >&2
else
    build threads -O1 -g -fsanitize=thread
    threads
    if threads -DUNORDERED >"$folder/races" 2>&1 || ! grep --quiet "Sanitizer: data race" "$folder/races"; then
        cat "$folder/races" >&2
        echo "ThreadSanitizer missed that barriers order nothing" >&2
        exit 1
    fi
fi

if command -v valgrind >/dev/null; then
    build plain -O1 -g
    valgrind -q --error-exitcode=1 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
        "$folder/plain/kernels_test"
else
    echo "valgrind is not installed: left out" >&2
fi
