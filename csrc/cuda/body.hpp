// Tiles of X Y^T, each handed to an Epilogue in registers: the body of the Hopper kernel, over a Machine that also exists
// on the host (tests/host_machine.hpp).
//
// One producer thread keeps a ring of stages in shared memory full. Two warpgroups multiply in turns, a whole tile each,
// so that the exponentials of one run under the products of the other. The blocks of a cluster, ABOVE x BESIDE tiles,
// load together: those in a row of them share X, those in a column Y, each loading a part for all.
#pragma once
#include "tile.hpp"

namespace simmim {

constexpr int CONSUMERS = 2, THREADS = WARPGROUP * (1 + CONSUMERS);

template <int COLUMNS_, int STAGES_, int ABOVE_, int BESIDE_>
struct Shape {
  static constexpr int COLUMNS = COLUMNS_, STAGES = STAGES_, ABOVE = ABOVE_, BESIDE = BESIDE_;
  static constexpr int DEPTH = 64;  // of a stage: 128 bytes, what the swizzle spans
  static constexpr int X_PART = TILE_ROWS / BESIDE, Y_PART = COLUMNS / ABOVE;  // rows that one block loads
  static constexpr int BLOCKS = ABOVE * BESIDE, SHARERS = ABOVE + BESIDE - 1;
  static constexpr uint32_t STAGE_BYTES = (TILE_ROWS + COLUMNS) * DEPTH * sizeof(uint16_t);
  static_assert(X_PART % 8 == 0 && Y_PART % 8 == 0, "the swizzle repeats every 8 rows");
};

template <class S, class Epilogue, class Barrier>
struct alignas(1024) Storage {
  uint16_t x[S::STAGES][TILE_ROWS * S::DEPTH];  // bfloat16
  uint16_t y[S::STAGES][S::COLUMNS * S::DEPTH];
  Barrier full[S::STAGES], empty[S::STAGES];
  typename Epilogue::Shared epilogue[CONSUMERS];
};

// The tiles of clusters in a block of the matrix, a band of HEIGHT rows of them at a time, so that what is loaded again
// is still in the L2 cache.
struct Grid {
  static constexpr int HEIGHT = 16;
  int rows, columns;
  int first_row, first_column;  // of the block, in the matrix

  SIMMIM_DEVICE int count() const { return rows * columns; }
  SIMMIM_DEVICE void tile(int index, int& i, int& j) const {
    int const band = index / (HEIGHT * columns), within = index % (HEIGHT * columns);
    int const left = rows - band * HEIGHT, height = left < HEIGHT ? left : HEIGHT;
    i = band * HEIGHT + within % height;
    j = within / height;
  }
};

template <int STAGES>
struct Place {  // in the ring
  int stage = 0;
  uint32_t phase = 0;  // of the barriers: how often one has gone round, modulo 2

  SIMMIM_DEVICE void advance(int n) {
    int const to = stage + n;
    phase ^= to / STAGES & 1;
    stage = to % STAGES;
  }
  SIMMIM_DEVICE void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <class S, class Machine, class Storage, class Map>
SIMMIM_DEVICE void produce(Machine& machine, Storage& shared, Map const& x, Map const& y, int steps, Grid const& grid) {
  int const above = machine.rank() % S::ABOVE, beside = machine.rank() / S::ABOVE;
  uint16_t row_of_blocks = 0, column_of_blocks = 0;
  for (int b = 0; b < S::BESIDE; ++b) row_of_blocks |= 1 << (above + b * S::ABOVE);
  for (int a = 0; a < S::ABOVE; ++a) column_of_blocks |= 1 << (a + beside * S::ABOVE);
  Place<S::STAGES> at;
  at.phase = 1;  // the ring begins empty
  for (int t = machine.cluster(); t < grid.count(); t += machine.clusters()) {
    int i, j;
    grid.tile(t, i, j);
    int const row = grid.first_row + (i * S::ABOVE + above) * TILE_ROWS + beside * S::X_PART;
    int const column = grid.first_column + (j * S::BESIDE + beside) * S::COLUMNS + above * S::Y_PART;
    for (int k = 0; k < steps; ++k, at.next()) {
      auto& full = shared.full[at.stage];
      shared.empty[at.stage].wait(at.phase);
      full.expect(S::STAGE_BYTES);
      uint16_t* const x_part = &shared.x[at.stage][beside * S::X_PART * S::DEPTH];
      uint16_t* const y_part = &shared.y[at.stage][above * S::Y_PART * S::DEPTH];
      machine.template load<(S::BESIDE > 1)>(x, full, x_part, k * S::DEPTH, row, row_of_blocks);
      machine.template load<(S::ABOVE > 1)>(y, full, y_part, k * S::DEPTH, column, column_of_blocks);
    }
  }
}

template <class S, class Epilogue, class Machine, class Storage>
SIMMIM_DEVICE void consume(Machine& machine, Storage& shared, int steps, Grid const& grid, typename Epilogue::Params const& params) {
  int const mine = machine.group() - 1;
  int const above = machine.rank() % S::ABOVE, beside = machine.rank() / S::ABOVE;
  int const first = machine.cluster(), stride = machine.clusters();
  Place<S::STAGES> at;
  at.advance(mine * steps);
  if (mine == 1 && first < grid.count()) machine.give_turn(0);
  for (int t = first + mine * stride; t < grid.count(); t += CONSUMERS * stride) {
    Accumulators<S::COLUMNS> acc;
    Place<S::STAGES> read = at;
    machine.await_turn(mine);
    machine.fence(acc);
    for (int k = 0; k < steps; ++k, at.next()) {
      shared.full[at.stage].wait(at.phase);
      machine.multiply(acc, shared.x[at.stage], shared.y[at.stage], k > 0);
      if (k > 0) {
        machine.template await_products<1>(acc);
        machine.template release<S>(shared.empty[read.stage]);
        read.next();
      }
    }
    if (t + stride < grid.count()) machine.give_turn(1 - mine);
    machine.template await_products<0>(acc);
    machine.template release<S>(shared.empty[read.stage]);
    at.advance(steps);  // past the other group's tile

    int i, j;
    grid.tile(t, i, j);
    i = i * S::ABOVE + above;
    j = j * S::BESIDE + beside;
    // The last clusters may reach beyond the matrix.
    if (i * TILE_ROWS < params.scores.rows && j * S::COLUMNS < params.scores.columns)
      Epilogue::tile(machine, params, shared.epilogue[mine], acc, i, j);
  }
}

template <class S, class Epilogue, class Machine, class Storage, class Map>
SIMMIM_DEVICE void products(Machine& machine, Storage& shared, Map const& x, Map const& y, int steps, Grid const& grid, typename Epilogue::Params const& params) {
  if (machine.group() == 0 && machine.thread() == 0)
    for (int s = 0; s < S::STAGES; ++s) {
      shared.full[s].init(1);
      shared.empty[s].init(S::SHARERS * WARPS);
    }
  machine.start();
  if (machine.group() == 0) {
    machine.template fewer_registers<40>();
    if (machine.thread() == 0) produce<S>(machine, shared, x, y, steps, grid);
  } else {
    machine.template more_registers<232>();
    consume<S, Epilogue>(machine, shared, steps, grid, params);
  }
  machine.finish();  // no block may leave while another writes to its memory or arrives at its barriers
}

}  // namespace simmim
