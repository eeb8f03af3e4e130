// Register blocks: the one loop that all matrix products are made of, and the packing that feeds it.
//
// Compiled once for every instruction set, within its namespace SIMMIM_ISA.
#pragma once

#include <cstdint>
#include <cstring>

#include "simmim_cpu.h"

namespace SIMMIM_ISA {

template <class T> struct Vectors {
  static constexpr int lanes = SIMMIM_VECTOR_BYTES / int(sizeof(T));
  typedef T type __attribute__((vector_size(SIMMIM_VECTOR_BYTES)));
};
template <class T> using Vector = typename Vectors<T>::type;

template <class T> inline Vector<T> load(const T *from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class T> inline void store(T *to, Vector<T> v) { std::memcpy(to, &v, sizeof v); }
template <class T> inline Vector<T> all(T value) { return value - Vector<T>{}; }

inline int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// A block is SIMMIM_BLOCK_ROWS x two vectors of sums: as many as fit in the registers beside their operands.
constexpr int block_rows = SIMMIM_BLOCK_ROWS;
template <class T> constexpr int block_columns = 2 * Vectors<T>::lanes;

// c = a @ b, or c += a @ b, for a block of c: a has a row every `a_row` and a column every `a_depth` elements, b is
// packed, one row of the block after the other.
template <class T>
inline void multiply_block(int64_t depth, const T *a, int64_t a_row, int64_t a_depth, const T *b, T *c, int64_t c_row,
                           bool add) {
  constexpr int lanes = Vectors<T>::lanes;
  Vector<T> sums[block_rows][2];
#pragma GCC unroll 16
  for (int i = 0; i < block_rows; ++i) {
    sums[i][0] = add ? load(c + i * c_row) : Vector<T>{};
    sums[i][1] = add ? load(c + i * c_row + lanes) : Vector<T>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Vector<T> b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
    for (int i = 0; i < block_rows; ++i) {
      const T value = a[i * a_row];
      sums[i][0] += value * b0;
      sums[i][1] += value * b1;
    }
    a += a_depth;
    b += 2 * lanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < block_rows; ++i) {
    store(c + i * c_row, sums[i][0]);
    store(c + i * c_row + lanes, sums[i][1]);
  }
}

// c (rows, columns) = a @ b, or c += a @ b; rows and columns in whole blocks, b packed by slices of block_columns.
// A slice of b stays in the cache while all rows go past it.
template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, const T *a, int64_t a_row, int64_t a_depth, const T *b, T *c,
              int64_t c_row, bool add) {
  for (int64_t j = 0; j < columns; j += block_columns<T>)
    for (int64_t i = 0; i < rows; i += block_rows)
      multiply_block(depth, a + i * a_row, a_row, a_depth, b + j * depth, c + i * c_row + j, c_row, add);
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A float16 shifted into float32's fields has an exponent 112 too small, denormal numbers included.
inline float from_float16(uint16_t half) {
  const float size = from_bits(uint32_t(half & 0x7fff) << 13) * 0x1p112f;
  const uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  uint32_t bits;
  std::memcpy(&bits, &size, sizeof bits);
  return from_bits(bits | special | uint32_t(half & 0x8000) << 16);
}

// One feature as the compute type.
template <class T> inline T feature(const void *features, int dtype, int64_t at) {
  switch (dtype) {
  case SIMMIM_FLOAT32:
    return T(static_cast<const float *>(features)[at]);
  case SIMMIM_FLOAT64:
    return T(static_cast<const double *>(features)[at]);
  case SIMMIM_BFLOAT16:  // the upper half of a float32
    return T(from_bits(uint32_t(static_cast<const uint16_t *>(features)[at]) << 16));
  default:
    return T(from_float16(static_cast<const uint16_t *>(features)[at]));
  }
}

// A strided matrix of features.
struct Features {
  const void *values;
  int dtype;
  int64_t row, column;
};

// Rows [first, first + count) as (rows, width) of the compute type, zero beyond their end.
template <class T>
void unpack(const Features &f, int64_t first, int64_t count, int64_t rows, int64_t d, int64_t width, T *to) {
  for (int64_t i = 0; i < rows; ++i, to += width) {
    const int64_t at = (first + i) * f.row, have = i < count ? d : 0;
    if (f.dtype == SIMMIM_FLOAT32 && f.column == 1 && sizeof(T) == sizeof(float))
      std::memcpy(to, static_cast<const float *>(f.values) + at, have * sizeof(T));
    else
      for (int64_t k = 0; k < have; ++k) to[k] = feature<T>(f.values, f.dtype, at + k * f.column);
    for (int64_t k = have; k < width; ++k) to[k] = 0;
  }
}

// (rows, width) as the right operand of a product over its rows: slices of block_columns of its columns.
template <class T> void pack(const T *from, int64_t rows, int64_t width, T *to) {
  for (int64_t j = 0; j < width; j += block_columns<T>)
    for (int64_t i = 0; i < rows; ++i, to += block_columns<T>)
      std::memcpy(to, from + i * width + j, sizeof(T) * block_columns<T>);
}

// The transpose of (rows, width), d of its columns, as the right operand of a product over those columns.
template <class T> void pack_transposed(const T *from, int64_t rows, int64_t width, int64_t d, T *to) {
  for (int64_t j = 0; j < rows; j += block_columns<T>)
    for (int64_t k = 0; k < d; ++k)
      for (int64_t i = 0; i < block_columns<T>; ++i) *to++ = from[(j + i) * width + k];
}

}  // namespace SIMMIM_ISA
