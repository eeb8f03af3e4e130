// Matrix tiles: 16 x 32 by 32 x 16 bfloat16 numbers into 16 x 16 float32 sums at once, by Intel's AMX.
//
// A tile is 16 rows of 64 bytes, loaded from memory with any distance between rows. The left operand's are 32 neighbours
// along the depth; the right one's are pairs along the depth, of 16 columns: what pack() and pack_transposed() make.
// With SIMMIM_EMULATED_TILES the same instructions are written out in C++, so that all that leads to them can be tested
// on any processor.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

#include "bfloat16.hpp"

namespace SIMMIM_ISA {

#if defined(__AMX_BF16__)

// Tiles of a thread, while this lives. The kernel must have been asked for them first (dispatch.cpp).
class TileRegisters {
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };

public:
  TileRegisters() {
    const Configuration all;
    // GCC 12's _tile_loadconfig declares 8 bytes of it, and so drops what was written to the others.
    asm volatile("ldtilecfg %0" ::"m"(all));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters &) = delete;
};

// The instructions name tiles in their own text, so that no function can stand for one.
#define SIMMIM_TILE_ZERO(tile) _tile_zero(tile)
#define SIMMIM_TILE_LOAD(tile, from, row_bytes) _tile_loadd(tile, from, row_bytes)
#define SIMMIM_TILE_STORE(tile, to, row_bytes) _tile_stored(tile, to, row_bytes)
#define SIMMIM_TILE_MULTIPLY(sums, a, b) _tile_dpbf16ps(sums, a, b)

#else

class TileRegisters {
  struct Tile {
    unsigned char bytes[16][64];
  };
  static Tile &at(int tile) {
    static thread_local Tile tiles[8];
    return tiles[tile];
  }
  static float sum(const Tile &t, int row, int column) {
    float value;
    std::memcpy(&value, t.bytes[row] + 4 * column, sizeof value);
    return value;
  }
  static float operand(const Tile &t, int row, int place) {
    bfloat16 value;
    std::memcpy(&value, t.bytes[row] + 2 * place, sizeof value);
    return number(value);
  }

public:
  static void zero(int tile) { at(tile) = Tile{}; }
  static void load(int tile, const void *from, int64_t row_bytes) {
    for (int i = 0; i < 16; ++i) std::memcpy(at(tile).bytes[i], static_cast<const char *>(from) + i * row_bytes, 64);
  }
  static void store(int tile, void *to, int64_t row_bytes) {
    for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char *>(to) + i * row_bytes, at(tile).bytes[i], 64);
  }
  static void multiply(int sums, int a, int b) {
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 16; ++column) {
        float total = sum(at(sums), row, column);
        for (int k = 0; k < 32; ++k) total += operand(at(a), row, k) * operand(at(b), k / 2, 2 * column + k % 2);
        std::memcpy(at(sums).bytes[row] + 4 * column, &total, sizeof total);
      }
  }
};

#define SIMMIM_TILE_ZERO(tile) TileRegisters::zero(tile)
#define SIMMIM_TILE_LOAD(tile, from, row_bytes) TileRegisters::load(tile, from, row_bytes)
#define SIMMIM_TILE_STORE(tile, to, row_bytes) TileRegisters::store(tile, to, row_bytes)
#define SIMMIM_TILE_MULTIPLY(sums, a, b) TileRegisters::multiply(sums, a, b)

#endif

constexpr int tile_block = 32;  // rows and columns of a block of four tiles, and the depth of one step

// A right operand: pairs of its depth every `pair` numbers, 32 columns beside each other, the next 32 `slice` further, the
// next part of all of it `plane` further.
struct TileOperand {
  const bfloat16 *from;
  int64_t slice, pair, plane = 0;
};

// sums += a @ b, of four tiles.
inline void add_tiles_block(int64_t depth, const bfloat16 *a, int64_t a_row, const bfloat16 *b, int64_t pair) {
  const int64_t a_bytes = 2 * a_row, b_bytes = 2 * pair;
  for (int64_t k = 0; k < depth; k += tile_block) {
    SIMMIM_TILE_LOAD(4, a, a_bytes);
    SIMMIM_TILE_LOAD(6, b, b_bytes);
    SIMMIM_TILE_LOAD(7, b + tile_block, b_bytes);
    SIMMIM_TILE_LOAD(5, a + 16 * a_row, a_bytes);
    SIMMIM_TILE_MULTIPLY(0, 4, 6);
    SIMMIM_TILE_MULTIPLY(1, 4, 7);
    SIMMIM_TILE_MULTIPLY(2, 5, 6);
    SIMMIM_TILE_MULTIPLY(3, 5, 7);
    a += tile_block;
    b += tile_block / 2 * pair;
  }
}

// c (32, 32) = a @ b, or c += a @ b. Of operands in several parts, `a_plane` and `b_plane` apart and each 2^-8 of the one
// before, those products that are no smaller than the first part's with the last; the smallest first.
template <int parts>
inline void multiply_tiles_block(int64_t depth, const bfloat16 *a, int64_t a_plane, int64_t a_row, const bfloat16 *b,
                                 int64_t b_plane, int64_t pair, float *c, int64_t c_row, bool add) {
  const int64_t c_bytes = 4 * c_row;
  float *const below = c + 16 * c_row;
  if (add) {
    SIMMIM_TILE_LOAD(0, c, c_bytes);
    SIMMIM_TILE_LOAD(1, c + 16, c_bytes);
    SIMMIM_TILE_LOAD(2, below, c_bytes);
    SIMMIM_TILE_LOAD(3, below + 16, c_bytes);
  } else {
    SIMMIM_TILE_ZERO(0);
    SIMMIM_TILE_ZERO(1);
    SIMMIM_TILE_ZERO(2);
    SIMMIM_TILE_ZERO(3);
  }
  for (int order = parts - 1; order >= 0; --order)
    for (int part = 0; part <= order; ++part)
      add_tiles_block(depth, a + part * a_plane, a_row, b + (order - part) * b_plane, pair);
  SIMMIM_TILE_STORE(0, c, c_bytes);
  SIMMIM_TILE_STORE(1, c + 16, c_bytes);
  SIMMIM_TILE_STORE(2, below, c_bytes);
  SIMMIM_TILE_STORE(3, below + 16, c_bytes);
}

// c (rows, columns) = a @ b, or c += a @ b; rows, columns and depth in whole blocks, rows of a in memory as they are.
template <int parts>
inline void multiply_tiles(int64_t rows, int64_t columns, int64_t depth, const bfloat16 *a, int64_t a_plane, int64_t a_row,
                           TileOperand b, float *c, int64_t c_row, bool add) {
  for (int64_t j = 0; j < columns; j += tile_block)
    for (int64_t i = 0; i < rows; i += tile_block)
      multiply_tiles_block<parts>(depth, a + i * a_row, a_plane, a_row, b.from + j / tile_block * b.slice, b.plane, b.pair,
                                  c + i * c_row + j, c_row, add);
}

}  // namespace SIMMIM_ISA
