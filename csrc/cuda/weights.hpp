// The backward's end of a tile: scores become weights, a_i e^(s_ij - r_i) + b_j e^(s_ij - c_j), in the type of the
// operands, which the vendor's library multiplies.
#pragma once
#include "options.hpp"
#include "store.hpp"

namespace simmim {

// Log-sum-exps r and c in nats, and the upstream gradients a and b of them; both null for a side without.
struct Sides {
  float const *row_reference, *row_upstream;
  float const *col_reference, *col_upstream;
};

// Of a tile, in base 2: +inf where there is nothing to weigh: past the end, without a side, or of an empty row, whose sum is 0.
template <int COLUMNS, int ROWS = TILE_ROWS>
struct References {
  static_assert(COLUMNS <= WARPGROUP && ROWS <= WARPGROUP, "a thread takes a row and a column");

  struct Shared {
    float row_reference[ROWS], row_factor[ROWS];
    alignas(8) float col_reference[COLUMNS];
    alignas(8) float col_factor[COLUMNS];
    float most[WARPS], least[WARPS];
  };

  // References this near each other, in base 2, share an exponential: their factors stay far within float32's range.
  static constexpr float SPREAD = 60.f;

  SIMMIM_DEVICE static float reference_of(float const* references, int at, int size) {
    if (!references || at >= size) return INFINITY;
    float const reference = references[at] * LOG2_E;
    return reference == -INFINITY ? INFINITY : reference;
  }
  SIMMIM_DEVICE static float present(float reference) { return reference == INFINITY ? -INFINITY : reference; }

  // Puts the tile's references and upstream gradients into `shared`. Where one reference serves all, the factors take it
  // in, and row_reference[0] is it.
  template <class Group>
  SIMMIM_DEVICE static bool find(Group& group, Scores const& p, Sides const& sides, Shared& shared, int i0, int j0) {
    int const t = group.thread(), i = i0 + t, j = j0 + t, warp = t / WARP;
    float const r = t < ROWS ? reference_of(sides.row_reference, i, p.rows) : INFINITY;
    float const c = t < COLUMNS ? reference_of(sides.col_reference, j, p.columns) : INFINITY;
    float a = r == INFINITY ? 0.f : sides.row_upstream[i], b = c == INFINITY ? 0.f : sides.col_upstream[j];
    float most = fmaxf(present(r), present(c)), least = fminf(r, c);
    SIMMIM_UNROLL
    for (int stride = WARP / 2; stride > 0; stride /= 2) {
      most = fmaxf(most, group.shuffle_xor(most, stride));
      least = fminf(least, group.shuffle_xor(least, stride));
    }
    if (group.lane() == 0) {
      shared.most[warp] = most;
      shared.least[warp] = least;
    }
    group.sync();  // and all are done with the last tile's factors
    SIMMIM_UNROLL
    for (int w = 0; w < WARPS; ++w) {
      most = fmaxf(most, shared.most[w]);
      least = fminf(least, shared.least[w]);
    }
    bool const one = most - least >= 0 && most - least <= SPREAD;  // neither for infinities
    if (one) {
      a *= exp2_of(most - r);
      b *= exp2_of(most - c);
    }
    if (t < ROWS) {
      shared.row_reference[t] = one ? most : r;
      shared.row_factor[t] = a;
    }
    if (t < COLUMNS) {
      shared.col_reference[t] = c;
      shared.col_factor[t] = b;
    }
    group.sync();
    return one;
  }
};

// Turns prepared scores, of which `factor` is still to be applied, into weights. `one`: what `find` returned. `done(r)` is
// called with every row, once it is done.
template <int COLUMNS, int ROWS, class Group, class Done>
SIMMIM_DEVICE void weigh(Group& group, typename References<COLUMNS, ROWS>::Shared const& shared, bool one, float factor, Accumulators<COLUMNS, ROWS>& acc,
                         Done const& done) {
  using A = Accumulators<COLUMNS, ROWS>;
  constexpr int R = A::R, C = A::C;
  if (one) {
    // The rows' and columns' common reference is in their factors.
    float const reference = shared.row_reference[0];
    float a[R];
    SIMMIM_UNROLL
    for (int r = 0; r < R; ++r) a[r] = shared.row_factor[A::row(group.thread(), r)];
    SIMMIM_UNROLL
    for (int c = 0; c < C; ++c) {
      float const b = shared.col_factor[A::column(group.thread(), c)];
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) acc.at(r, c) = exp2_of(fmaf(acc.at(r, c), factor, -reference)) * (a[r] + b);
    }
    SIMMIM_UNROLL
    for (int r = 0; r < R; ++r) done(r);
  } else {
    // Row by row, so that there are registers for two exponentials.
    SIMMIM_UNROLL
    for (int r = 0; r < R; ++r) {
      float const a = shared.row_factor[A::row(group.thread(), r)], of_row = shared.row_reference[A::row(group.thread(), r)];
      SIMMIM_UNROLL
      for (int c = 0; c < C; ++c) {
        int const column = A::column(group.thread(), c);
        float const s = acc.at(r, c), by_row = a * exp2_of(fmaf(s, factor, -of_row));
        acc.at(r, c) = by_row + shared.col_factor[column] * exp2_of(fmaf(s, factor, -shared.col_reference[column]));
      }
      done(r);
      group.sync_warp();
    }
  }
}

template <int COLUMNS, Operand OPERAND = Operand::BFLOAT16, class SCORES = Scores>
struct Weights {
  using A = Accumulators<COLUMNS>;

  struct Params {
    SCORES scores;
    Sides sides;
    typename ElementOf<OPERAND>::Type* weights;  // (scores.rows, stride), aligned to 16 bytes
    int64_t stride;                              // a multiple of 8, and room for as many columns
  };
  using Shared = typename References<COLUMNS>::Shared;

  // What a warpgroup does with its tiles.
  template <class Group>
  class Of {
   public:
    SIMMIM_DEVICE Of(Group& group, Params const& params, Shared& shared)
        : group_(group), p_(params), shared_(shared), scale_(*params.scores.scale * LOG2_E) {}

    SIMMIM_DEVICE void tile(A& acc, int ti, int tj) {
      int const i0 = ti * TILE_ROWS, j0 = tj * COLUMNS;
      float const factor = prepare<true>(group_, p_.scores, scale_, acc, i0, j0);
      bool const one = References<COLUMNS>::find(group_, p_.scores, p_.sides, shared_, i0, j0);
      weigh(group_, shared_, one, factor, acc, [&](int r) { store<OPERAND, COLUMNS>(group_, p_, acc, r, i0, j0); });
    }
    SIMMIM_DEVICE void settle() {}

   private:
    Group& group_;
    Params const& p_;
    Shared& shared_;
    float scale_;
  };
};

}  // namespace simmim
