// Tiles of X Y^T, each handed to an Epilogue in registers: the body of the Hopper kernel, over a Machine that also exists
// on the host (tests/host_machine.hpp).
//
// One producer thread keeps a ring of stages in shared memory full. Two warpgroups multiply in turns, a whole tile each,
// so that the exponentials of one run under the products of the other. The blocks of a cluster, ABOVE x BESIDE tiles,
// load together: those in a row of them share X, those in a column Y, each loading a part for all. Where all of a tile's X
// fits beside the ring, it stays there for the tiles of a whole run along a row, and Y alone goes through the ring.
#pragma once
#include "tile.hpp"

namespace simmim {

constexpr int CONSUMERS = 2, THREADS = WARPGROUP * (1 + CONSUMERS);

// RESIDENT: the steps of DEPTH that X may have to stay, or 0 where it goes through the ring.
template <int COLUMNS_, int STAGES_, int ABOVE_, int BESIDE_, int RESIDENT_ = 0, Operand OPERAND_ = Operand::BFLOAT16>
struct Shape {
  static constexpr Operand OPERAND = OPERAND_;
  using Element = typename ElementOf<OPERAND>::Type;
  static constexpr int COLUMNS = COLUMNS_, STAGES = STAGES_, ABOVE = ABOVE_, BESIDE = BESIDE_, RESIDENT = RESIDENT_;
  static constexpr int DEPTH = 128 / sizeof(Element);  // of a stage: what the swizzle spans
  static constexpr int X_PART = TILE_ROWS / BESIDE, Y_PART = COLUMNS / ABOVE;  // rows that one block loads
  static constexpr int BLOCKS = ABOVE * BESIDE, SHARERS = ABOVE + BESIDE - 1;
  static constexpr uint32_t X_BYTES = TILE_ROWS * DEPTH * sizeof(Element), Y_BYTES = COLUMNS * DEPTH * sizeof(Element);
  static_assert(BESIDE == 1 || RESIDENT == 0, "X that stays is not shared");
  static_assert(X_PART % 8 == 0 && Y_PART % 8 == 0, "the swizzle repeats every 8 rows");
};

template <class S, class Epilogue, class Barrier>
struct alignas(1024) Storage {
  typename S::Element x[S::RESIDENT ? S::RESIDENT : S::STAGES][TILE_ROWS * S::DEPTH];
  typename S::Element y[S::STAGES][S::COLUMNS * S::DEPTH];
  Barrier full[S::STAGES], empty[S::STAGES];
  Barrier x_full[S::RESIDENT ? S::RESIDENT : 1], x_empty;
  typename Epilogue::Shared epilogue[CONSUMERS];
};

// The tiles of clusters in a block of the matrix.
struct Grid {
  int rows, columns;
  int first_row, first_column;  // of the block, in the matrix
  int run;                      // tiles along a row that one cluster does, where X stays

  // What one cluster does at a time: a run, or a tile.
  template <class S>
  SIMMIM_EVERYWHERE int units() const {
    return rows * (S::RESIDENT ? (columns + run - 1) / run : columns);
  }
};

// Where X stays, runs are such that the cluster with the most tiles has as few as can be, in few runs.
template <class S>
Grid grid_of(Scores const& scores, int64_t row, int64_t column, int clusters) {
  constexpr int HIGH = TILE_ROWS * S::ABOVE, WIDE = S::COLUMNS * S::BESIDE;
  Grid grid{(scores.rows + HIGH - 1) / HIGH, (scores.columns + WIDE - 1) / WIDE, int(row), int(column), 1};
  if (S::RESIDENT == 0) return grid;
  auto const length = [&](int chunks) { return (grid.columns + chunks - 1) / chunks; };
  auto const most = [&](int chunks) { return (grid.rows * chunks + clusters - 1) / clusters * length(chunks); };
  int best = 1;
  for (int chunks = 2; chunks <= grid.columns && chunks <= clusters; ++chunks)
    if (most(chunks) * 50 < most(best) * 49) best = chunks;
  grid.run = length(best);
  return grid;
}

// The tiles of one cluster, one after the other.
template <class S>
class Walk {
 public:
  SIMMIM_DEVICE Walk(Grid const& grid, int cluster, int clusters) : grid_(grid), clusters_(clusters), unit_(cluster), within_(cluster) { enter(); }

  SIMMIM_DEVICE bool valid() const { return unit_ < units(); }
  SIMMIM_DEVICE bool more() const { return done_ + 1 < length_ || unit_ + clusters_ < units(); }
  SIMMIM_DEVICE void next() {
    if (++done_ < length_) {
      if (++j_ == end_) j_ = end_ - length_;
      return;
    }
    unit_ += clusters_;
    within_ += clusters_;
    enter();
  }
  SIMMIM_DEVICE int row() const { return i_; }
  SIMMIM_DEVICE int column() const { return j_; }
  // Within a run, which without one is a single tile.
  SIMMIM_DEVICE bool first() const { return done_ == 0; }
  SIMMIM_DEVICE int left() const { return length_ - done_ - 1; }

 private:
  // A band of HEIGHT rows of single tiles at a time, so that what is loaded again is still in the L2 cache. Of runs, every
  // TOGETHER read the same columns at the same time, and their neighbours those AHEAD: all at once would be in each
  // other's way there.
  static constexpr int HEIGHT = 16, TOGETHER = 8, AHEAD = 2;

  SIMMIM_DEVICE int units() const { return grid_.template units<S>(); }
  SIMMIM_DEVICE void enter() {
    done_ = 0;
    if constexpr (S::RESIDENT > 0) {
      i_ = unit_ % grid_.rows;
      int const begin = unit_ / grid_.rows * grid_.run;
      end_ = begin + grid_.run < grid_.columns ? begin + grid_.run : grid_.columns;
      length_ = end_ - begin;
      j_ = begin + i_ / TOGETHER * AHEAD % (length_ > 0 ? length_ : 1);
    } else {
      while (within_ >= HEIGHT * grid_.columns && band_ + HEIGHT < grid_.rows) {
        within_ -= HEIGHT * grid_.columns;
        band_ += HEIGHT;
      }
      int const height = grid_.rows - band_;
      i_ = band_ + (height < HEIGHT ? within_ % height : within_ % HEIGHT);
      j_ = height < HEIGHT ? within_ / height : within_ / HEIGHT;
      end_ = j_ + 1;
      length_ = 1;
    }
  }

  Grid const& grid_;
  int clusters_, unit_, within_, band_ = 0;
  int i_ = 0, j_ = 0, end_ = 0, length_ = 1, done_ = 0;
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
  uint32_t x_phase = 1;
  for (Walk<S> walk(grid, machine.cluster(), machine.clusters()); walk.valid(); walk.next()) {
    int const row = grid.first_row + (walk.row() * S::ABOVE + above) * TILE_ROWS + beside * S::X_PART;
    int const column = grid.first_column + (walk.column() * S::BESIDE + beside) * S::COLUMNS + above * S::Y_PART;
    bool const enters = S::RESIDENT && walk.first();
    if (enters) {
      shared.x_empty.wait(x_phase);
      x_phase ^= 1;
    }
    for (int k = 0; k < steps; ++k, at.next()) {
      if (enters) {
        shared.x_full[k].expect(S::X_BYTES);
        machine.template load<false>(x, shared.x_full[k], shared.x[k], k * S::DEPTH, row, 0);
      }
      auto& full = shared.full[at.stage];
      shared.empty[at.stage].wait(at.phase);
      full.expect(S::Y_BYTES + (S::RESIDENT ? 0 : S::X_BYTES));
      if constexpr (S::RESIDENT == 0)
        machine.template load<(S::BESIDE > 1)>(x, full, &shared.x[at.stage][beside * S::X_PART * S::DEPTH], k * S::DEPTH, row, row_of_blocks);
      machine.template load<(S::ABOVE > 1)>(y, full, &shared.y[at.stage][above * S::Y_PART * S::DEPTH], k * S::DEPTH, column, column_of_blocks);
    }
  }
}

template <class S, class Epilogue, class Machine, class Storage>
SIMMIM_DEVICE void consume(Machine& machine, Storage& shared, int steps, Grid const& grid, typename Epilogue::Params const& params) {
  int const mine = machine.group() - 1;
  int const above = machine.rank() % S::ABOVE, beside = machine.rank() / S::ABOVE;
  typename Epilogue::template Of<Machine> epilogue(machine, params, shared.epilogue[mine]);
  Place<S::STAGES> at;
  uint32_t x_phase = 0;
  Walk<S> walk(grid, machine.cluster(), machine.clusters());
  if (mine == 1 && walk.valid()) machine.give_turn(0);
  for (int whose = 0; walk.valid(); walk.next(), whose = 1 - whose) {
    if (whose == mine) {
      Accumulators<S::COLUMNS> acc;
      Place<S::STAGES> read = at;
      machine.await_turn(mine);
      machine.fence(acc);
      for (int k = 0; k < steps; ++k, at.next()) {
        if constexpr (S::RESIDENT > 0) shared.x_full[k].wait(x_phase);
        shared.full[at.stage].wait(at.phase);
        machine.multiply(acc, shared.x[S::RESIDENT ? k : at.stage], shared.y[at.stage], k > 0);
        if (k > 0) {
          machine.template await_products<1>(acc);
          machine.release(shared.empty[read.stage]);
          read.next();
        }
      }
      if (walk.more()) machine.give_turn(1 - mine);
      epilogue.settle();
      machine.template await_products<0>(acc);
      machine.release(shared.empty[read.stage]);
      if (S::RESIDENT && walk.left() < CONSUMERS) machine.release_own(shared.x_empty);  // this group's last tile of the run

      int const i = walk.row() * S::ABOVE + above, j = walk.column() * S::BESIDE + beside;
      // The last clusters may reach beyond the matrix.
      if (i * TILE_ROWS < params.scores.rows && j * S::COLUMNS < params.scores.columns)
        epilogue.tile(acc, i, j);
    } else {
      at.advance(steps);
      if (S::RESIDENT && walk.first() && walk.left() == 0) machine.release_own(shared.x_empty);  // it has no tile of this run
    }
    if (walk.left() == 0) x_phase ^= 1;
  }
  machine.sync();
  epilogue.settle();
}

template <class S, class Epilogue, class Machine, class Storage, class Map>
SIMMIM_DEVICE void products(Machine& machine, Storage& shared, Map const& x, Map const& y, int steps, Grid const& grid, typename Epilogue::Params const& params) {
  if (machine.group() == 0 && machine.thread() == 0) {
    for (auto& barrier : shared.full) barrier.init(1);
    for (auto& barrier : shared.empty) barrier.init(S::SHARERS * WARPS);
    for (auto& barrier : shared.x_full) barrier.init(1);
    shared.x_empty.init(CONSUMERS * WARPS);
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
