// A block of the mma body (mma_body.hpp) as fibers on the CPU: cp.async, ldmatrix and mma as the PTX ISA has them.
//
// A copy is made at once or, by a seeded coin, when its thread awaits it. Of every 16 bytes of shared memory is known since
// which meeting of the block its copy may be read by all, and before which it was read last. What is read too early, or
// copied over too early, is so seen in whatever order threads run. That order varies too, for the epilogue, whose memory is
// not watched.
#pragma once
#include <utility>

#include "../mma_body.hpp"
#include "host_machine.hpp"

namespace simmim::host {

template <class S, class Epilogue>
class MmaMachine : public Warpgroup {
 public:
  static constexpr bool TWO_WAYS = false;
  using Element = typename S::Element;
  using Storage = MmaStorage<S, Epilogue>;
  using Stage = typename Storage::Stage;
  struct Piece {
    int copying = 0;              // copies that are issued and not yet awaited
    int landed = -1, read = -1;   // the number of meetings before the last of these, or never
  };
  struct Block {
    Storage shared;
    Piece pieces[sizeof(Storage::ring) / 16];
    Meeting warps[WARPS], group;
    Slots slots[WARPS];
    void const* rows[WARPGROUP];  // of a read
    uint32_t operands[2][WARPGROUP][6];
    char const* wrong = nullptr;  // what was, or null
  };

  MmaMachine(Block& block, int index, int cluster, int clusters, Matrix<Element> const& x, Matrix<Element> const& y)
      : Warpgroup(index, block.warps[index / WARP], block.slots[index / WARP]), block_(block), cluster_(cluster), clusters_(clusters), x_(x), y_(y) {}

  ~MmaMachine() {
    for (auto const& group : groups_)
      if (!group.empty()) fail("a copy that no one awaited");
  }

  int cluster() const { return cluster_; }
  int clusters() const { return clusters_; }
  void sync() {
    block_.group.meet(WARPGROUP);
    ++meetings_;
    // A warp may be much later than another.
    if (lane() == 0)
      for (int wait = rand() % 4 * 100; wait > 0; --wait) Fibers::yield();
  }

  void copy(Element* to, Element const* from, bool inside) {
    Fibers::step();
    Piece* const piece = piece_at(to);
    if (!piece || (inside && !within(x_, from) && !within(y_, from))) return fail("a copy out of bounds");
    if (piece->copying) return fail("two copies at once to one place");
    if (piece->read == meetings_) return fail("a copy over what others may still read");
    ++piece->copying;
    auto const land = [=] {
      for (int k = 0; k < S::PIECE; ++k) to[k] = inside ? from[k] : Element(0);
    };
    bool const late = rand() % 2;
    if (!late) land();
    copies_.push_back([=, this] {
      if (late) land();
      --piece->copying;
      piece->landed = meetings_;
    });
  }
  void commit() { groups_.push_back(std::exchange(copies_, {})); }
  template <int UNDER_WAY>
  void await_copies() {
    for (; int(groups_.size()) > UNDER_WAY; groups_.erase(groups_.begin()))
      for (auto const& each : groups_.front()) each();
  }

  template <Operand OPERAND>
  void read(uint32_t (&v)[4], Element const* row) {
    Fibers::step();
    block_.rows[index_] = row;
    sync_warp();
    auto const* const rows = &block_.rows[index_ / WARP * WARP];
    for (int k = 0; k < 4; ++k) {
      auto* const of = static_cast<Element const*>(rows[k * 8 + lane() / 4]);
      uint32_t banks = 0;
      for (int r = 0; r < 8; ++r) banks |= 1u << reinterpret_cast<uintptr_t>(rows[k * 8 + r]) / 16 % 8;
      if (banks != 0xff) return fail("rows of a matrix in one bank");
      Piece* const piece = piece_at(of);
      if (!piece) return fail("a read out of bounds");
      if (piece->copying || piece->landed < 0 || piece->landed >= meetings_) return fail("a read of what has not landed for all");
      piece->read = meetings_;
      memcpy(&v[k], reinterpret_cast<char const*>(of) + lane() % 4 * 4, 4);
      if constexpr (OPERAND == Operand::FLOAT32) v[k] = bits_of<uint32_t>(tf32_of(bits_of<float>(v[k])));
    }
    sync_warp();
  }

  // Operands of lane l: of A rows l / 4 and below, + 8, in the first 16 bytes of a row and then in the second; of B columns.
  template <Operand OPERAND, int COUNT>
  void multiply(float (&d)[COUNT], int at, uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    auto& all = block_.operands[turn_];
    turn_ = 1 - turn_;  // so that one meeting will do
    uint32_t const mine[] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(all[index_], mine, sizeof mine);
    sync_warp();
    auto const* const warp = &all[index_ / WARP * WARP];
    for (int k = 0; k < 4; ++k) {
      int const row = lane() / 4, below = k / 2, column = lane() % 4 * 2 + k % 2;
      float total = d[at + k];
      for (int half = 0; half < 2; ++half)
        for (int q = 0; q < 4; ++q) {
          uint32_t const left = warp[row * 4 + q][half * 2 + below], right = warp[column * 4 + q][4 + half];
          if constexpr (OPERAND == Operand::FLOAT32) {
            total += bits_of<float>(left) * bits_of<float>(right);
          } else {
            total += value_of<OPERAND>(uint16_t(left)) * value_of<OPERAND>(uint16_t(right));
            total += value_of<OPERAND>(uint16_t(left >> 16)) * value_of<OPERAND>(uint16_t(right >> 16));
          }
        }
      d[at + k] = total;
    }
  }

 private:
  void fail(char const* what) { block_.wrong = what; }
  Piece* piece_at(Element const* place) {
    auto const at = reinterpret_cast<char const*>(place) - reinterpret_cast<char const*>(block_.shared.ring);
    return at < 0 || at >= int64_t(sizeof block_.shared.ring) || at % 16 ? nullptr : &block_.pieces[at / 16];
  }
  static bool within(Matrix<Element> const& m, Element const* from) {
    int64_t const at = from - m.data;
    return at >= 0 && at / m.stride < m.rows && at % m.stride + S::PIECE <= m.depth;
  }

  Block& block_;
  int cluster_, clusters_, meetings_ = 0, turn_ = 0;
  Matrix<Element> const &x_, &y_;
  std::vector<std::function<void()>> copies_;               // not yet committed
  std::vector<std::vector<std::function<void()>>> groups_;  // not yet awaited
};

// All blocks of one launch, one after the other. False for a deadlock, or for what a machine finds wrong.
template <class S, class Epilogue>
bool launch(Matrix<typename S::Element> const& x, Matrix<typename S::Element> const& y, Grid const& grid, typename Epilogue::Params const& params) {
  using M = MmaMachine<S, Epilogue>;
  Fibers fibers(WARPGROUP);
  int const steps = (x.depth + S::DEPTH - 1) / S::DEPTH, blocks = grid.units<S>();
  for (int b = 0; b < blocks; ++b) {
    auto const block = std::make_unique<typename M::Block>();
    memset(&block->shared, 0xff, sizeof block->shared);  // NaN
    bool const ended = fibers.run([&](int t) {
      M machine(*block, t, b, blocks, x, y);
      mma_products<S, Epilogue>(machine, block->shared, x, y, steps, grid, params);
    });
    if (block->wrong) printf("%s\n", block->wrong);
    if (!ended || block->wrong) return false;
  }
  return true;
}

}  // namespace simmim::host
