// A Hopper block, or a cluster of them, as fibers on the CPU, for the body of the kernels (body.hpp).
//
// What is asynchronous there is as late as it may be here, or, by a seeded coin, at once: a load lands when someone waits
// for it, a product reads shared memory when it is awaited. A stage that is released too early so shows as a wrong sum, one
// that is released too late as a deadlock.
// Fortified jumps refuse those from one stack to another: compile with -U_FORTIFY_SOURCE.
#pragma once
#include <csetjmp>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../narrow.hpp"

namespace simmim::host {

template <class To, class From>
To bits_of(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline float float_of(uint16_t bfloat16) { return bits_of<float>(uint32_t(bfloat16) << 16); }
inline uint16_t bfloat16_of(float v) {
  uint32_t const bits = bits_of<uint32_t>(v);
  if (v != v) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float float_of_half(uint16_t half) {
  uint32_t const sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
  if (exponent == 0) return bits_of<float>(sign | bits_of<uint32_t>(float(mantissa) * 0x1p-24f));
  return bits_of<float>(sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13);
}
inline uint16_t half_of(float v) {
  uint16_t const sign = uint16_t(bits_of<uint32_t>(v) >> 16 & 0x8000);
  float const size = std::fabs(v);
  if (v != v) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | uint16_t(std::nearbyint(size * 0x1p24f));
  uint32_t const bits = bits_of<uint32_t>(size) - (112u << 23);
  return sign | uint16_t((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}
// To the nearest of 10 bits of mantissa. Of those halfway the device may take the other.
inline float tf32_of(float v) {
  if (!std::isfinite(v)) return v;
  uint32_t const bits = bits_of<uint32_t>(v);
  return bits_of<float>((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu);
}
template <Operand OPERAND>
float value_of(typename ElementOf<OPERAND>::Type v) {
  if constexpr (OPERAND == Operand::FLOAT32)
    return v;
  else
    return OPERAND == Operand::FLOAT16 ? float_of_half(v) : float_of(v);
}
template <Operand OPERAND>
typename ElementOf<OPERAND>::Type element_of(float v) {
  if constexpr (OPERAND == Operand::FLOAT32)
    return v;
  else
    return OPERAND == Operand::FLOAT16 ? half_of(v) : bfloat16_of(v);
}

// Threads that take turns: repeatable, and a switch costs less than a wake-up. One that waits says for what, and is not
// switched to until that has come. Virtual steps, and no clock, end what does not end by itself.
class Fibers {
 public:
  explicit Fibers(int count) : fibers_(count), states_(count), stacks_(new char[count * STACK]) {}

  // False for a deadlock: all wait, and nothing is under way.
  bool run(std::function<void(int)> body) {
    body_ = std::move(body);
    active() = this;
    steps_ = 0;
    int const count = int(fibers_.size());
    left_ = count;
    for (int t = 0; t < count; ++t) {
      states_[t] = {};
      getcontext(&fibers_[t]);
      fibers_[t].uc_stack.ss_sp = &stacks_[t * STACK];
      fibers_[t].uc_stack.ss_size = STACK;
      makecontext(&fibers_[t], enter, 0);
    }
    while (left_) {
      moved_ = false;
      for (int t = 0; t < count; ++t) {
        State& state = states_[t];
        if (state.ended || (state.ready && !state.ready(state.condition))) continue;
        state.ready = nullptr;
        current_ = t;
        moved_ = true;
        go_to(t);
      }
      if (!moved_) return false;
    }
    return true;
  }
  static void yield() {
    Fibers* const f = active();
    if (_setjmp(f->states_[f->current_].at) == 0) _longjmp(f->main_, 1);
  }
  template <class Condition>
  static void until(Condition condition) {
    if (condition()) return;
    State& state = active()->states_[active()->current_];
    state.condition = &condition;
    state.ready = [](void* it) { return (*static_cast<Condition*>(it))(); };
    yield();
  }
  // Something happened, though no thread went on.
  static void moved() { active()->moved_ = true; }
  // Of whatever a thread does. The largest launch of the tests needs a twentieth of MOST.
  static void step() {
    constexpr long MOST = 14'000'000;
    if (++active()->steps_ > MOST) {
      printf("more than %ld steps: a loop without an end\n", MOST);
      exit(1);
    }
  }
  static long& longest() {
    static long steps;
    return steps;
  }

 private:
  static constexpr size_t STACK = 1 << 18;
  struct State {
    jmp_buf at;
    bool begun = false, ended = false;
    bool (*ready)(void*) = nullptr;  // of a thread that waits
    void* condition = nullptr;
  };
  static Fibers*& active() {
    static Fibers* it;
    return it;
  }
  static void enter() {
    Fibers* const f = active();
    f->body_(f->current_);
    f->states_[f->current_].ended = true;
    --f->left_;
    longest() = std::max(longest(), f->steps_);
    _longjmp(f->main_, 1);
  }
  // By jumps once a thread has begun: a switch of contexts would ask the system for the signals each time.
  void go_to(int t) {
    State& state = states_[t];
    if (_setjmp(main_) != 0) return;
    if (state.begun) _longjmp(state.at, 1);
    state.begun = true;
    setcontext(&fibers_[t]);
  }

  int current_ = 0, left_ = 0;
  long steps_ = 0;
  bool moved_ = false;
  jmp_buf main_;
  std::vector<ucontext_t> fibers_;
  std::vector<State> states_;
  std::unique_ptr<char[]> stacks_;
  std::function<void(int)> body_;
};

struct Meeting {  // a named barrier
  int arrived = 0, turn = 0;
  void arrive(int count) {
    Fibers::step();
    if (++arrived == count) {
      arrived = 0;
      ++turn;
    }
  }
  void meet(int count) {
    int const mine = turn;
    arrive(count);
    Fibers::until([&] { return turn != mine; });
  }
};

struct Barrier {  // an mbarrier
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  std::vector<std::function<void()>> loads;  // under way

  void init(int count) {
    expected = pending = count;
    bytes = 0;
    phase = 0;
  }
  void settle() {
    if (pending == 0 && bytes == 0) {
      phase ^= 1;
      pending = expected;
    }
  }
  void arrive() {
    if (pending == 0) {
      printf("too many arrivals at a barrier\n");
      exit(1);
    }
    --pending;
    settle();
  }
  void expect(uint32_t count) {
    bytes += count;
    arrive();
  }
  void complete(uint32_t count) {
    bytes -= count;
    settle();
  }
  void wait(uint32_t parity) {
    Fibers::step();
    Fibers::until([&] {
      if (phase != parity) return true;
      auto const landing = std::move(loads);
      loads.clear();
      for (auto const& load : landing) load();
      if (!landing.empty()) Fibers::moved();
      return phase != parity;
    });
  }
};

// What the threads of a warpgroup do together.
class Warpgroup {
 public:
  struct Slots {
    uint32_t of[WARP];
  };
  Warpgroup(int index, Meeting& warp, Slots& slots) : index_(index), warp_(warp), slots_(slots) {}

  int thread() const { return index_ % WARPGROUP; }
  int lane() const { return index_ % WARP; }
  void sync_warp() { warp_.meet(WARP); }
  template <class T>
  T shuffle_xor(T v, int mask) {
    memcpy(&slots_.of[lane()], &v, 4);
    sync_warp();
    T got;
    memcpy(&got, &slots_.of[lane() ^ mask], 4);
    sync_warp();
    return got;
  }
  bool all(bool v) {
    int count = v;
    for (int stride = WARP / 2; stride; stride /= 2) count += shuffle_xor(count, stride);
    return count == WARP;
  }
  float largest(float v) {
    for (int stride = WARP / 2; stride > 0; stride /= 2) v = fmaxf(v, shuffle_xor(v, stride));
    return v;
  }
  template <Operand OPERAND>
  uint32_t pair(float low, float high) {
    return element_of<OPERAND>(low) | uint32_t(element_of<OPERAND>(high)) << 16;
  }

 protected:
  int index_;  // of the thread in its block

 private:
  Meeting& warp_;
  Slots& slots_;
};

template <class Element>
struct Map {  // what a CUtensorMap describes
  Element const* data;
  int64_t rows, d, stride;
  int box;
};

template <class S, class Shared, int THREADS = simmim::THREADS>
class Machine : public Warpgroup {
 public:
  static constexpr bool TWO_WAYS = true;
  struct Block {
    Shared shared;
    Meeting warps[THREADS / WARP], groups[THREADS / WARPGROUP], turns[CONSUMERS];
    Slots slots[THREADS / WARP];
    uint32_t weights[THREADS][S::COLUMNS / QUAD];  // of products by columns
  };
  using Element = typename S::Element;
  using Blocks = std::vector<std::unique_ptr<Block>>;

  Machine(Blocks& blocks, Meeting& everyone, int rank, int index, int cluster, int clusters)
      : Warpgroup(index, blocks[rank]->warps[index / WARP], blocks[rank]->slots[index / WARP]),
        blocks_(blocks), everyone_(everyone), rank_(rank), cluster_(cluster), clusters_(clusters) {}

  Block& block() { return *blocks_[rank_]; }
  int group() const { return index_ / WARPGROUP; }
  int rank() const { return rank_; }
  int cluster() const { return cluster_; }
  int clusters() const { return clusters_; }

  void start() { everyone_.meet(THREADS * S::BLOCKS); }
  void finish() { everyone_.meet(THREADS * S::BLOCKS); }
  template <int N>
  void fewer_registers() {}
  template <int N>
  void more_registers() {}

  template <bool MULTICAST>
  void load(Map<Element> const& map, Barrier& full, Element* to, int column, int row, uint16_t blocks) {
    size_t const place = offset(to), barrier_place = offset(&full);
    for (int b = 0; b < S::BLOCKS; ++b) {
      if (MULTICAST ? !(blocks >> b & 1) : b != rank_) continue;
      auto* const memory = reinterpret_cast<char*>(&blocks_[b]->shared);
      auto* const there = reinterpret_cast<Element*>(memory + place);
      auto& barrier = *reinterpret_cast<Barrier*>(memory + barrier_place);
      auto landing = [=, &map, &barrier] {
        land(map, there, column, row);
        barrier.complete(map.box * S::DEPTH * sizeof(Element));
      };
      if (rand() % 2)
        landing();
      else
        barrier.loads.push_back(landing);
    }
  }

  void await_turn(int whose) { block().turns[whose].meet(WARPGROUP * CONSUMERS); }
  void give_turn(int to) { block().turns[to].arrive(WARPGROUP * CONSUMERS); }
  void sync() { block().groups[group()].meet(WARPGROUP); }
  void release(Barrier& empty) {
    sync_warp();
    size_t const stage = &empty - block().shared.empty;
    int const b = lane();
    if (b < S::BLOCKS && (b % S::ABOVE == rank_ % S::ABOVE || b / S::ABOVE == rank_ / S::ABOVE)) blocks_[b]->shared.empty[stage].arrive();
  }

  void release_own(Barrier& empty) {
    sync_warp();
    if (lane() == 0) empty.arrive();
  }

  template <class Acc>
  void fence(Acc&) {}
  template <class Acc>
  void multiply(Acc& acc, Element const* x, Element const* y, bool add) {
    products_.push_back([=, this, &acc] {
      for (int r = 0; r < Acc::R; ++r)
        for (int c = 0; c < Acc::C; ++c) {
          float total = add ? acc.at(r, c) : 0.f;
          int const i = Acc::row(thread(), r), j = Acc::column(thread(), c);
          for (int k = 0; k < S::DEPTH; ++k) total += value_of<S::OPERAND>(x[swizzled(i, k)]) * value_of<S::OPERAND>(y[swizzled(j, k)]);
          acc.at(r, c) = total;
        }
    });
  }
  // Registers are read as late as shared memory is. Those of a quad make its rows together.
  template <class Total, int COUNT>
  void multiply_by_columns(Total& total, uint32_t (&weights)[COUNT], Element const* y, bool add) {
    static_assert(COUNT == S::COLUMNS / QUAD && Total::R == 2);
    sync_warp();  // all have awaited the last ones
    memcpy(block().weights[index_], weights, sizeof weights);
    sync_warp();
    products_.push_back([=, this, &total] {
      for (int r = 0; r < Total::R; ++r)
        for (int c = 0; c < Total::C; ++c) {
          float sum = add ? total.at(r, c) : 0.f;
          int const n = Total::column(thread(), c);
          for (int k = 0; k < S::COLUMNS; ++k) {
            // Column k of every 16 is the quad's thread k % 8 / 2's.
            uint32_t const two = block().weights[index_ / QUAD * QUAD + k % 8 / 2][k / 16 * 4 + k % 16 / 8 * 2 + r];
            float const w = value_of<S::OPERAND>(Element(two >> k % 2 * 16));
            sum += w * value_of<S::OPERAND>(y[n / S::DEPTH * S::COLUMNS * S::DEPTH + swizzled(k, n % S::DEPTH)]);
          }
          total.at(r, c) = sum;
        }
    });
  }
  template <int UNDER_WAY, class Acc>
  void await_products(Acc&) {
    Fibers::yield();
    for (; int(products_.size()) > UNDER_WAY; products_.erase(products_.begin())) products_.front()();
  }

 private:
  size_t offset(void const* p) { return static_cast<char const*>(p) - reinterpret_cast<char const*>(&block().shared); }
  // Rows of 8 pieces of 16 bytes; piece p of row r is at p ^ r % 8.
  static int swizzled(int row, int column) {
    constexpr int PIECE = 16 / sizeof(Element);
    return row * S::DEPTH + ((column / PIECE) ^ (row % 8)) * PIECE + column % PIECE;
  }
  static void land(Map<Element> const& map, Element* to, int column, int row) {
    for (int r = 0; r < map.box; ++r)
      for (int c = 0; c < S::DEPTH; ++c) {
        Element v = row + r < map.rows && column + c < map.d ? map.data[(row + r) * map.stride + column + c] : 0;
        if constexpr (S::OPERAND == Operand::FLOAT32) v = tf32_of(v);
        to[swizzled(r, c)] = v;
      }
  }

  Blocks& blocks_;
  Meeting& everyone_;
  int rank_, cluster_, clusters_;
  std::vector<std::function<void()>> products_;  // issued, not yet awaited
};

// All of one launch's clusters, one after the other: they share nothing but the outputs. False for a deadlock.
template <class M, class S, int THREADS, class Body>
bool launch_bodies(int clusters, Body const& body) {
  Fibers fibers(THREADS * S::BLOCKS);
  for (int c = 0; c < clusters; ++c) {
    typename M::Blocks blocks;
    for (int r = 0; r < S::BLOCKS; ++r) {
      blocks.push_back(std::make_unique<typename M::Block>());
      memset(&blocks[r]->shared.x, 0xff, sizeof blocks[r]->shared.x);  // NaN
      memset(&blocks[r]->shared.y, 0xff, sizeof blocks[r]->shared.y);
    }
    Meeting everyone;
    bool const ended = fibers.run([&](int t) {
      M machine(blocks, everyone, t / THREADS, t % THREADS, c, clusters);
      body(machine);
    });
    if (!ended) return false;
  }
  return true;
}

template <class S, class Epilogue>
bool launch(Map<typename S::Element> const& x, Map<typename S::Element> const& y, Grid const& grid, typename Epilogue::Params const& params, int clusters) {
  using M = Machine<S, Storage<S, Epilogue, Barrier>>;
  return launch_bodies<M, S, THREADS>(clusters, [&](M& machine) {
    products<S, Epilogue>(machine, machine.block().shared, x, y, int((x.d + S::DEPTH - 1) / S::DEPTH), grid, params);
  });
}
template <class S>
bool launch_narrow(Map<typename S::Element> const& x, Map<typename S::Element> const& y, NarrowParams const& params, int blocks) {
  using M = Machine<S, NarrowStorage<S, Barrier>, S::THREADS>;
  return launch_bodies<M, S, S::THREADS>(blocks, [&](M& machine) { narrow_products<S>(machine, machine.block().shared, x, y, params); });
}

}  // namespace simmim::host
