// The backward of narrow operands in one kernel, over a Machine as body.hpp is: G Y, with the weights G never in memory.
//
// A block keeps the rows of X that its groups have, and with them its sums; tiles of Y go through a ring. Each is read
// twice: by rows, for scores, and, as weights in registers come to be the first operand of a product, by columns. While one
// group weighs, the others multiply. G^T X is that of the transposed problem: 4 products in all where blocks of weights in
// memory take 3, but nothing is waited for, and every sum is made in a fixed order.
#pragma once
#include "body.hpp"
#include "weights.hpp"

namespace simmim {

// WIDTH: of rows, with zeros behind d. GROUPS: warpgroups that multiply, of ROWS rows each.
template <int WIDTH_, int STAGES_, int GROUPS_, Operand OPERAND_ = Operand::BFLOAT16>
struct NarrowShape {
  static constexpr Operand OPERAND = OPERAND_;
  using Element = typename ElementOf<OPERAND>::Type;
  static_assert(OPERAND != Operand::FLOAT32, "wgmma reads only half precision by columns");
  static constexpr int WIDTH = WIDTH_, STAGES = STAGES_, GROUPS = GROUPS_, ROWS = 64, COLUMNS = 128;
  static constexpr int DEPTH = 64, SLABS = WIDTH / DEPTH;  // what the swizzle spans
  static constexpr int X_PART = ROWS * GROUPS, Y_PART = COLUMNS, THREADS = WARPGROUP * (1 + GROUPS);
  static constexpr int ABOVE = 1, BESIDE = 1, BLOCKS = 1;
  static constexpr uint32_t X_BYTES = X_PART * WIDTH * sizeof(Element), Y_BYTES = COLUMNS * WIDTH * sizeof(Element);
};

template <class S, class Barrier>
struct alignas(1024) NarrowStorage {
  typename S::Element x[S::SLABS][S::X_PART * S::DEPTH];
  typename S::Element y[S::STAGES][S::SLABS][S::COLUMNS * S::DEPTH];
  Barrier full[S::STAGES], empty[S::STAGES], x_full;
  typename References<S::COLUMNS, S::ROWS>::Shared references[S::GROUPS];
};

struct NarrowParams {
  Scores scores;
  Sides sides;
  float* products;  // (parts, scores.rows, d), aligned to 8 bytes
  float* sums;      // (parts, scores.rows), of weights; or null
  int d;            // even
  int tiles;        // of columns, in a part
  int blocks;       // of rows
};

// How many parts the columns are taken in, so that a device of this many multiprocessors has work for all. Of another's
// number it would be as right, and sums in another order.
constexpr int MULTIPROCESSORS = 132, MOST_PARTS = 8;
inline int64_t narrow_parts(int64_t blocks, int64_t tiles) {
  constexpr int64_t BEGIN = 2;  // what a block's start and end take, in tiles
  auto const time = [&](int64_t parts) {
    return (blocks * parts + MULTIPROCESSORS - 1) / MULTIPROCESSORS * ((tiles + parts - 1) / parts + BEGIN);
  };
  int64_t best = 1;
  for (int64_t parts = 2; parts <= MOST_PARTS && parts <= tiles; ++parts)
    if (time(parts) * 20 < time(best) * 19) best = parts;
  int64_t const each = (tiles + best - 1) / best;
  return (tiles + each - 1) / each;  // none of them empty: sums of no tile are never set
}

// What a block does: the tiles of a part, beside its rows.
template <class S>
struct NarrowWalk {
  int part, row, first, last;

  template <class Machine>
  SIMMIM_DEVICE NarrowWalk(Machine& machine, NarrowParams const& p)
      : part(machine.cluster() / p.blocks), row(machine.cluster() % p.blocks * S::X_PART), first(part * p.tiles), last(first + p.tiles) {
    int const count = (p.scores.columns + S::COLUMNS - 1) / S::COLUMNS;
    if (last > count) last = count;
  }
};

template <class S, class Machine, class Storage, class Map>
SIMMIM_DEVICE void produce_narrow(Machine& machine, Storage& shared, Map const& x, Map const& y, NarrowWalk<S> const& walk) {
  shared.x_full.expect(S::X_BYTES);
  for (int k = 0; k < S::SLABS; ++k) machine.template load<false>(x, shared.x_full, shared.x[k], k * S::DEPTH, walk.row, 0);
  Place<S::STAGES> at;
  at.phase = 1;  // the ring begins empty
  for (int j = walk.first; j < walk.last; ++j, at.next()) {
    auto& full = shared.full[at.stage];
    shared.empty[at.stage].wait(at.phase);
    full.expect(S::Y_BYTES);
    for (int k = 0; k < S::SLABS; ++k) machine.template load<false>(y, full, shared.y[at.stage][k], k * S::DEPTH, j * S::COLUMNS, 0);
  }
}

template <class S, class Machine, class Storage>
SIMMIM_DEVICE void consume_narrow(Machine& machine, Storage& shared, NarrowParams const& p, NarrowWalk<S> const& walk) {
  using A = Accumulators<S::COLUMNS, S::ROWS>;
  using Total = Accumulators<S::WIDTH, S::ROWS>;
  using Found = References<S::COLUMNS, S::ROWS>;
  int const mine = machine.group() - 1, i0 = walk.row + mine * S::ROWS;
  auto& references = shared.references[mine];
  Total total;
  uint32_t weights[A::R * A::C / 2];
  float sums[A::R] = {};
  bool begun = false;
  Place<S::STAGES> at;
  shared.x_full.wait(0);
  for (int j = walk.first; j < walk.last; ++j, begun = true, at.next()) {
    A acc;
    shared.full[at.stage].wait(at.phase);
    machine.fence(acc);
    SIMMIM_UNROLL
    for (int k = 0; k < S::SLABS; ++k) machine.multiply(acc, &shared.x[k][mine * S::ROWS * S::DEPTH], shared.y[at.stage][k], k > 0);
    // Anew, as there is no register to keep it in.
    float const scale = *p.scores.scale * LOG2_E;
    // Under the products of this tile's scores and of the last one's weights.
    bool const one = Found::find(machine, p.scores, p.sides, references, i0, j * S::COLUMNS);
    machine.template await_products<0>(acc);
    machine.fence(total);
    if (begun) machine.release_own(shared.empty[(at.stage + S::STAGES - 1) % S::STAGES]);

    float const factor = prepare<true>(machine, p.scores, scale, acc, i0, j * S::COLUMNS);
    weigh(machine, references, one, factor, acc, [](int) {});
    if (p.sums) {
      SIMMIM_UNROLL
      for (int c = 0; c < A::C; ++c)
        SIMMIM_UNROLL
        for (int r = 0; r < A::R; ++r) sums[r] += acc.at(r, c);
    }
    // As wgmma takes a first operand of 64 x 16 from registers: of every 16 columns a thread has what it has of products.
    SIMMIM_UNROLL
    for (int c = 0; c < A::C; c += 2)
      SIMMIM_UNROLL
      for (int r = 0; r < A::R; ++r) weights[c + r] = machine.template pair<S::OPERAND>(acc.at(r, c), acc.at(r, c + 1));
    machine.multiply_by_columns(total, weights, shared.y[at.stage][0], begun);
  }
  machine.template await_products<0>(total);

  SIMMIM_UNROLL
  for (int r = 0; r < Total::R; ++r) {
    int const i = i0 + Total::row(machine.thread(), r);
    float const sum = p.sums ? over_quad(machine, sums[r], Add{}) : 0.f;
    if (i >= p.scores.rows) continue;
    int64_t const at_row = int64_t(walk.part) * p.scores.rows + i;
    if (p.sums && machine.lane() % QUAD == 0) p.sums[at_row] = sum;
    SIMMIM_UNROLL
    for (int c = 0; c < Total::C; c += 2) {
      struct alignas(8) Two {
        float of[2];
      };
      int const column = Total::column(machine.thread(), c);
      if (column < p.d) *reinterpret_cast<Two*>(p.products + at_row * p.d + column) = {{total.at(r, c), total.at(r, c + 1)}};
    }
  }
}

template <class S, class Machine, class Storage, class Map>
SIMMIM_DEVICE void narrow_products(Machine& machine, Storage& shared, Map const& x, Map const& y, NarrowParams const& p) {
  if (machine.group() == 0 && machine.thread() == 0) {
    for (auto& barrier : shared.full) barrier.init(1);
    for (auto& barrier : shared.empty) barrier.init(S::GROUPS * WARPS);
    shared.x_full.init(1);
  }
  machine.start();
  if (machine.group() == 0) {
    machine.template fewer_registers<S::GROUPS == 2 ? 40 : 32>();
    if (machine.thread() == 0) produce_narrow<S>(machine, shared, x, y, NarrowWalk<S>(machine, p));
  } else {
    machine.template more_registers<S::GROUPS == 2 ? 232 : 160>();
    consume_narrow<S>(machine, shared, p, NarrowWalk<S>(machine, p));
  }
}

}  // namespace simmim
