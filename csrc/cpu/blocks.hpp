// Register blocks: the one loop that all matrix products are made of, and the packing that feeds it.
//
// Compiled once for every instruction set, within its namespace SIMMIM_ISA.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "bfloat16.hpp"
#include "simmim_cpu.h"
#if defined(__AMX_BF16__) || defined(SIMMIM_EMULATED_TILES)
#define SIMMIM_TILES
#include "tiles.hpp"
#endif
// Whether there are products of bfloat16 numbers; where there are none they are taken for float32.
#if defined(__AVX512BF16__) || defined(SIMMIM_TILES)
#define SIMMIM_BFLOAT16_PRODUCTS
#endif

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

// A block is SIMMIM_BLOCK_ROWS x two vectors of sums: as many as fit in the registers beside their operands. Or it is
// four tiles.
//
// How numbers of a type are multiplied: `step` neighbours along the depth of a product at once, into sums of type Sum,
// and the depth in multiples of `depth_step`.
template <class E> struct Operand {
  using Sum = E;
  static constexpr bool tiles = false;
  static constexpr int parts = 1;
  static constexpr int step = 1, depth_step = 1, block_rows = SIMMIM_BLOCK_ROWS;
  static Vector<E> product_added(Vector<E> sum, const E *a, Vector<E> b) { return sum + *a * b; }
  static Vector<E> vector(const E *from) { return load(from); }
};
#if defined(SIMMIM_TILES)
template <int count> struct OnTiles {
  using Sum = float;
  static constexpr bool tiles = true;
  static constexpr int parts = count;
  static constexpr int step = 2, depth_step = tile_block, block_rows = tile_block;
};
template <> struct Operand<bfloat16> : OnTiles<1> {};
template <int count> struct Operand<Part<count>> : OnTiles<count> {};
#elif defined(__AVX512BF16__)
template <> struct Operand<bfloat16> {
  using Sum = float;
  static constexpr bool tiles = false;
  static constexpr int parts = 1;
  static constexpr int step = 2, depth_step = 2, block_rows = SIMMIM_BLOCK_ROWS;
  static Vector<float> product_added(Vector<float> sum, const bfloat16 *a, __m512bh b) {
    int pair;
    std::memcpy(&pair, a, sizeof pair);
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), b);
  }
  static __m512bh vector(const bfloat16 *from) { return (__m512bh)_mm512_loadu_si512(from); }
};
#endif
template <class E> using Sum = typename Operand<E>::Sum;

template <class E> constexpr int parts = Operand<E>::parts;
template <class E> constexpr int block_rows = Operand<E>::block_rows;
template <class E> constexpr int block_columns = Operand<E>::tiles ? 32 : 2 * Vectors<Sum<E>>::lanes;

// c = a @ b, or c += a @ b, for a block of c: a has a row every `a_row` numbers and a step of its depth every `a_step`,
// b is packed, one step of its block after the other.
template <class E>
inline void multiply_block(int64_t depth, const E *a, int64_t a_row, int64_t a_step, const E *b, Sum<E> *c,
                           int64_t c_row, bool add) {
  constexpr int step = Operand<E>::step, lanes = Vectors<Sum<E>>::lanes;
  Vector<Sum<E>> sums[block_rows<E>][2];
#pragma GCC unroll 16
  for (int i = 0; i < block_rows<E>; ++i) {
    sums[i][0] = Vector<Sum<E>>{};
    sums[i][1] = Vector<Sum<E>>{};
  }
  for (int64_t k = 0; k < depth; k += step) {
    const auto b0 = Operand<E>::vector(b), b1 = Operand<E>::vector(b + lanes * step);
#pragma GCC unroll 16
    for (int i = 0; i < block_rows<E>; ++i) {
      sums[i][0] = Operand<E>::product_added(sums[i][0], a + i * a_row, b0);
      sums[i][1] = Operand<E>::product_added(sums[i][1], a + i * a_row, b1);
    }
    a += a_step;
    b += 2 * lanes * step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < block_rows<E>; ++i) {
    // What is there comes last: begun with, it would be another way into the loop, which then spills.
    store(c + i * c_row, add ? load(c + i * c_row) + sums[i][0] : sums[i][0]);
    store(c + i * c_row + lanes, add ? load(c + i * c_row + lanes) + sums[i][1] : sums[i][1]);
  }
}

// c (rows, columns) = a @ b, or c += a @ b; rows and columns in whole blocks, depth in whole steps, b packed by slices
// of block_columns with b_depth steps each. A slice of b stays in the cache while all rows go past it. Operands in several
// parts have them a_plane and b_plane apart.
template <class E>
void multiply(int64_t rows, int64_t columns, int64_t depth, const E *a, int64_t a_row, int64_t a_step, const E *b,
              int64_t b_depth, Sum<E> *c, int64_t c_row, bool add, [[maybe_unused]] int64_t a_plane = 0,
              [[maybe_unused]] int64_t b_plane = 0) {
#if defined(SIMMIM_TILES)
  if constexpr (Operand<E>::tiles) {
    const int64_t slice = b_depth * block_columns<E>, pair = 2 * block_columns<E>;
    multiply_tiles<parts<E>>(rows, columns, depth, reinterpret_cast<const bfloat16 *>(a), a_plane, a_row,
                             {reinterpret_cast<const bfloat16 *>(b), slice, pair, b_plane}, c, c_row, add);
    return;
  } else
#endif
  for (int64_t j = 0; j < columns; j += block_columns<E>)
    for (int64_t i = 0; i < rows; i += block_rows<E>)
      multiply_block(depth, a + i * a_row, a_row, a_step, b + j * b_depth, c + i * c_row + j, c_row, add);
}

// A float16 shifted into float32's fields has an exponent 112 too small, denormal numbers included.
inline float from_float16(uint16_t half) {
  const float size = from_bits(uint32_t(half & 0x7fff) << 13) * 0x1p112f;
  const uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  uint32_t bits;
  std::memcpy(&bits, &size, sizeof bits);
  return from_bits(bits | special | uint32_t(half & 0x8000) << 16);
}

inline float number(float value) { return value; }
inline double number(double value) { return value; }

// A strided matrix of features.
struct Features {
  const void *values;
  int dtype;
  int64_t row, column;
};

template <class T> inline T feature(const Features &f, int64_t at) {
  switch (f.dtype) {
  case SIMMIM_FLOAT32:
    return T(static_cast<const float *>(f.values)[at]);
  case SIMMIM_FLOAT64:
    return T(static_cast<const double *>(f.values)[at]);
  case SIMMIM_BFLOAT16:
    return T(number(static_cast<const bfloat16 *>(f.values)[at]));
  default:
    return T(from_float16(static_cast<const uint16_t *>(f.values)[at]));
  }
}
// bfloat16 operands are made of bfloat16 features alone.
template <> inline bfloat16 feature(const Features &f, int64_t at) { return static_cast<const bfloat16 *>(f.values)[at]; }

// Whether features lie in memory as operands do.
template <class E> bool as_they_are(const Features &f) {
  return f.column == 1 && (sizeof(E) == sizeof(float) ? f.dtype == SIMMIM_FLOAT32 : sizeof(E) == sizeof(bfloat16));
}

// Rows [first, first + count) as operands (rows, width), zero beyond their end.
template <class E>
void unpack(const Features &f, int64_t first, int64_t count, int64_t rows, int64_t d, int64_t width, E *to,
            [[maybe_unused]] int64_t plane = 0) {
  if constexpr (parts<E> > 1) {
    for (int64_t i = 0; i < rows; ++i, to += width)
      for (int64_t k = 0; k < width; ++k)
        split(i < count && k < d ? feature<float>(f, (first + i) * f.row + k * f.column) : 0.0f, to + k, plane);
    return;
  } else {
    const bool copied = as_they_are<E>(f);
    for (int64_t i = 0; i < rows; ++i, to += width) {
      const int64_t at = (first + i) * f.row, have = i < count ? d : 0;
      if (copied)
        std::memcpy(to, static_cast<const E *>(f.values) + at, have * sizeof(E));
      else
        for (int64_t k = 0; k < have; ++k) to[k] = feature<E>(f, at + k * f.column);
      for (int64_t k = have; k < width; ++k) to[k] = E{};
    }
  }
}

// (rows, width) among the `depth` rows of the right operand of a product over them: slices of block_columns of its
// columns, each slice with one step of rows after the other.
template <class E> void pack(const E *from, int64_t rows, int64_t width, int64_t depth, E *to) {
  constexpr int step = Operand<E>::step, block = block_columns<E>;
  for (int64_t k = 0; k < width; k += block, to += depth * block)
    for (int64_t i = 0; i < rows; i += step)
      for (int64_t c = 0; c < block; ++c)
        for (int64_t s = 0; s < step; ++s) to[i * block + c * step + s] = from[(i + s) * width + k + c];
}

// The transpose of (block_columns, width), `depth` of its columns, as a slice of the right operand of a product over
// those columns.
template <class E> void pack_transposed(const E *from, int64_t width, int64_t depth, E *to) {
  constexpr int step = Operand<E>::step;
  for (int64_t k = 0; k < depth; k += step)
    for (int64_t i = 0; i < block_columns<E>; ++i, to += step) std::memcpy(to, from + i * width + k, step * sizeof(E));
}

}  // namespace SIMMIM_ISA
