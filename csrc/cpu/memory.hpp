// Memory of a kernel's own, aligned for whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace SIMMIM_ISA {
namespace {

struct Free {
  void operator()(void *memory) const { std::free(memory); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;

template <class T> Buffer<T> allocate(int64_t size) {
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, std::max<int64_t>(size, 1) * sizeof(T))) throw std::bad_alloc();
  return Buffer<T>(static_cast<T *>(memory));
}

template <class T> Buffer<T> zeros(int64_t size) {
  Buffer<T> made = allocate<T>(size);
  std::fill_n(made.get(), size, T(0));
  return made;
}

}  // namespace
}  // namespace SIMMIM_ISA
