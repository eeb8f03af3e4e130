// Tiles of X Y^T by matrix instructions of single warps, each handed to an Epilogue in registers: the body of the kernels
// for GPUs other than Hopper, over a Machine that also exists on the host (tests/mma_machine.hpp).
//
// A block of threads is one warpgroup and does one tile. It copies strips of X and Y, 64 bytes of each row, into a ring in
// shared memory, two strips ahead of that which it multiplies. Two blocks have room on any multiprocessor, by registers and
// by shared memory: the exponentials of one run beside the products of the other. The ring, once read, is the epilogue's.
#pragma once
#include "body.hpp"

namespace simmim {

template <Operand OPERAND_ = Operand::BFLOAT16>
struct MmaShape {
  static constexpr Operand OPERAND = OPERAND_;
  using Element = typename ElementOf<OPERAND>::Type;
  static constexpr int COLUMNS = 128, STAGES = 3;
  static constexpr int PIECES = 4, PIECE = 16 / sizeof(Element);  // of a row of a stage; elements of one, which is copied at once
  static constexpr int DEPTH = PIECES * PIECE;
  // As Walk and grid_of ask: no clusters, and nothing that stays.
  static constexpr int ABOVE = 1, BESIDE = 1, RESIDENT = 0;

  // Of an element in a stage. Pieces of one number and 8 rows, which are read at once, are in 8 different sixteenths of 128 bytes.
  SIMMIM_DEVICE static int place(int row, int piece) { return (row * PIECES + (piece ^ row / 2 % PIECES)) * PIECE; }
};

template <class Element>
struct Matrix {
  Element const* data;
  int64_t stride;  // of rows, in elements
  int rows, depth;
};

template <class S, class Epilogue>
struct alignas(128) MmaStorage {
  struct Stage {
    typename S::Element x[TILE_ROWS * S::DEPTH], y[S::COLUMNS * S::DEPTH];
  };
  union {
    Stage ring[S::STAGES];
    typename Epilogue::Shared epilogue;
  };
};

// A thread's pieces of 128 rows, strip by strip, with zeros for what lies outside of the matrix.
template <class S>
class Strips {
 public:
  using Element = typename S::Element;

  SIMMIM_DEVICE Strips(Matrix<Element> const& of, int first_row, int thread)
      : row_(thread / S::PIECES), piece_(thread % S::PIECES), rows_(of.rows - first_row - row_), depth_(of.depth - piece_ * S::PIECE),
        further_(of.stride * ROWS_AT_ONCE), next_(of.data + (first_row + row_) * of.stride + piece_ * S::PIECE) {}

  template <class Machine>
  SIMMIM_DEVICE void copy(Machine& machine, Element* to) {
    SIMMIM_UNROLL
    for (int k = 0; k < TILE_ROWS / ROWS_AT_ONCE; ++k)
      machine.copy(to + S::place(row_ + k * ROWS_AT_ONCE, piece_), next_ + k * further_, k * ROWS_AT_ONCE < rows_ && depth_ > 0);
    next_ += S::DEPTH;
    depth_ -= S::DEPTH;
  }

 private:
  static constexpr int ROWS_AT_ONCE = WARPGROUP / S::PIECES;
  static_assert(TILE_ROWS == S::COLUMNS, "strips of both operands are alike");

  int row_, piece_;    // of the first piece
  int rows_, depth_;   // that the matrix has from there on
  int64_t further_;
  Element const* next_;
};

// acc += X Y^T of a stage. An instruction takes 16 rows, 8 columns and 2 pieces of each; a warp has the rows of Accumulators.
template <class S, class Machine>
SIMMIM_DEVICE void multiply_stage(Machine& machine, Accumulators<S::COLUMNS>& acc, typename S::Element const* x, typename S::Element const* y) {
  int const lane = machine.lane(), warp = machine.thread() / WARP;
  SIMMIM_UNROLL
  for (int piece = 0; piece < S::PIECES; piece += 2) {
    uint32_t a[TILE_ROWS / 64][4];
    // Each lane says where a row of 16 bytes is: 8 lanes those of one of the 4 matrices that are read.
    SIMMIM_UNROLL
    for (int half = 0; half < TILE_ROWS / 64; ++half)
      machine.template read<S::OPERAND>(a[half], x + S::place(half * 64 + warp * 16 + lane % 16, piece + lane / 16));
    SIMMIM_UNROLL
    for (int c = 0; c < S::COLUMNS; c += 16) {
      uint32_t b[4];
      machine.template read<S::OPERAND>(b, y + S::place(c + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2));
      SIMMIM_UNROLL
      for (int half = 0; half < TILE_ROWS / 64; ++half) {
        machine.template multiply<S::OPERAND>(acc.of[half], c / 2, a[half], b[0], b[1]);
        machine.template multiply<S::OPERAND>(acc.of[half], c / 2 + 4, a[half], b[2], b[3]);
      }
    }
  }
}

template <class S, class Epilogue, class Machine, class Storage>
SIMMIM_DEVICE void mma_products(Machine& machine, Storage& shared, Matrix<typename S::Element> const& x, Matrix<typename S::Element> const& y,
                                int steps, Grid const& grid, typename Epilogue::Params const& params) {
  constexpr int AHEAD = S::STAGES - 1;
  Walk<S> const walk(grid, machine.cluster(), machine.clusters());
  int const i = walk.row(), j = walk.column();
  Strips<S> x_strips(x, grid.first_row + i * TILE_ROWS, machine.thread()), y_strips(y, grid.first_column + j * S::COLUMNS, machine.thread());
  auto const fetch = [&](int step, int stage) {
    if (step < steps) {
      x_strips.copy(machine, shared.ring[stage].x);
      y_strips.copy(machine, shared.ring[stage].y);
    }
    machine.commit();  // nothing at the end, so that one counts the same way throughout
  };
  Accumulators<S::COLUMNS> acc;
  SIMMIM_UNROLL
  for (auto& half : acc.of)
    SIMMIM_UNROLL
    for (float& v : half) v = 0.f;

  for (int step = 0; step < AHEAD; ++step) fetch(step, step);
  int reads = 0, writes = AHEAD;
  auto const next = [](int stage) { return stage + 1 == S::STAGES ? 0 : stage + 1; };
  SIMMIM_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    machine.template await_copies<AHEAD - 1>();  // this thread's of this step
    machine.sync();  // and so all threads'; and all have read the stage that is written next
    fetch(step + AHEAD, writes);
    multiply_stage<S>(machine, acc, shared.ring[reads].x, shared.ring[reads].y);
    reads = next(reads);
    writes = next(writes);
  }
  machine.sync();  // all have read the last stage, and no copy is under way
  typename Epilogue::template Of<Machine> epilogue(machine, params, shared.epilogue);
  epilogue.tile(acc, i, j);
  machine.sync();
  epilogue.settle();
}

}  // namespace simmim
