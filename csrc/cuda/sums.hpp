// The ends of a tile for sums of a pointwise function: the values of its rows and columns, and the weights of a backward,
// with which the values of rows may come along.
#pragma once
#include "options.hpp"
#include "pointwise.hpp"
#include "store.hpp"

namespace simmim {

// Scores of a row that a function takes together.
constexpr int AT_ONCE = 4;

// Whether all pairs of a tile count and weigh as they are, as in nearly all tiles they do.
template <int COLUMNS>
SIMMIM_DEVICE bool is_untouched(ScoresWithOptions const& p, int i0, int j0) {
  int const ahead = p.first_row + i0 - (p.first_column + j0);  // of the diagonal
  bool const meets_joint = (p.leaves_out || p.negates) && (p.positives || (ahead < COLUMNS && ahead > -TILE_ROWS));
  bool const ragged = i0 + TILE_ROWS > p.rows || j0 + COLUMNS > p.columns;
  return !meets_joint && !ragged && p.ids == 0 && p.lo == -INFINITY && p.hi == INFINITY;
}

// Such a tile's scores, in nats.
template <int COLUMNS>
struct UntouchedTile {
  template <class Group>
  SIMMIM_DEVICE UntouchedTile(Group& group, ScoresWithOptions const& p, Accumulators<COLUMNS>& acc, int i0, int j0) {
    scores_of_products(group, p, acc, i0, j0);
  }
  template <class Function, int K>
  SIMMIM_DEVICE void of(Accumulators<COLUMNS>& acc, int r, int c, Point (&found)[K]) const {
    float s[K];
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) s[k] = acc.at(r, c + k);
    Function::of(s, found);
  }
  SIMMIM_DEVICE bool weighs(int, int) const { return true; }
};

// Of any other the scores in nats, clamped, and which of them count, weigh and have their sign changed.
template <int COLUMNS>
struct PointwiseTile {
  PairBits<COLUMNS> counted, weighed, negated;

  template <class Group>
  SIMMIM_DEVICE PointwiseTile(Group& group, ScoresWithOptions const& p, Accumulators<COLUMNS>& acc, int i0, int j0) {
    auto const joint = joint_bits<COLUMNS>(group, p, i0, j0);
    weighed = counted = counted_bits<COLUMNS>(group, p, joint, i0, j0);
    negated = p.negates ? joint : PairBits<COLUMNS>{};
    scores_of_products(group, p, acc, i0, j0);
    if (p.lo == -INFINITY && p.hi == INFINITY) return;
    SIMMIM_UNROLL
    for (int c = 0; c < Accumulators<COLUMNS>::C; ++c)
      SIMMIM_UNROLL
      for (int r = 0; r < Accumulators<COLUMNS>::R; ++r) {
        float& s = acc.at(r, c);
        bool const beyond = s < p.lo || s > p.hi;  // and not NaN
        if (beyond) weighed.of[r] &= ~(1u << c);
        s = s < p.lo ? p.lo : s > p.hi ? p.hi : s;
      }
  }

  // No gradient passes beyond the clamp, where the slope is 0.
  template <class Function, int K>
  SIMMIM_DEVICE void of(Accumulators<COLUMNS>& acc, int r, int c, Point (&found)[K]) const {
    float s[K];
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) s[k] = negated.at(r, c + k) ? -acc.at(r, c + k) : acc.at(r, c + k);
    Function::of(s, found);
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) {
      auto& [value, slope] = found[k];
      value = counted.at(r, c + k) ? value : 0.f;
      slope = weighed.at(r, c + k) ? (negated.at(r, c + k) ? -slope : slope) : 0.f;
    }
  }
  SIMMIM_DEVICE bool weighs(int r, int c) const { return weighed.at(r, c); }
};

template <class Function, int COLUMNS>
struct Sums {
  using A = Accumulators<COLUMNS>;
  static constexpr int R = A::R, C = A::C, KEPT = C / 8;

  struct Params {
    ScoresWithOptions scores;
    float* row_parts;  // (tiles in a row of the block, scores.rows), or null
    float* col_parts;  // (tiles in a column of the block, scores.columns), or null
  };
  struct Shared {
    float columns[2][WARPS][COLUMNS];  // of the last tile, and of the one before
  };

  template <class Group>
  class Of {
   public:
    SIMMIM_DEVICE Of(Group& group, Params const& params, Shared& shared) : group_(group), p_(params), shared_(shared) {}

    SIMMIM_DEVICE void tile(A& acc, int ti, int tj) {
      int const i0 = ti * TILE_ROWS, j0 = tj * COLUMNS;
      float by_row[R], by_column[C];
      if (is_untouched<COLUMNS>(p_.scores, i0, j0))
        add(UntouchedTile<COLUMNS>(group_, p_.scores, acc, i0, j0), acc, by_row, by_column);
      else
        add(PointwiseTile<COLUMNS>(group_, p_.scores, acc, i0, j0), acc, by_row, by_column);
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) {
        int const i = i0 + A::row(group_.thread(), r);
        float const sum = over_quad(group_, by_row[r], Add{});
        if (p_.row_parts && group_.lane() % QUAD == 0 && i < p_.scores.rows) p_.row_parts[int64_t(tj) * p_.scores.rows + i] = sum;
      }
      if (!p_.col_parts) return;
      turn_ = 1 - turn_;
      int const first = scatter_over_rows(group_, by_column, Add{});
      SIMMIM_UNROLL
      for (int c = 0; c < KEPT; ++c) shared_.columns[turn_][group_.thread() / WARP][A::column(group_.thread(), first + c)] = by_column[c];
      ti_ = ti;
      tj_ = tj;
    }

    // As of log-sum-exps: the last tile's columns, under the next one's products.
    SIMMIM_DEVICE void settle() {
      if (ti_ < 0) return;
      int const j0 = tj_ * COLUMNS;
      for (int j = group_.thread(); j < COLUMNS && j0 + j < p_.scores.columns; j += WARPGROUP) {
        float sum = 0.f;
        SIMMIM_UNROLL
        for (int w = 0; w < WARPS; ++w) sum += shared_.columns[turn_][w][j];
        p_.col_parts[int64_t(ti_) * p_.scores.columns + j0 + j] = sum;
      }
      ti_ = -1;
    }

   private:
    template <class Tile>
    SIMMIM_DEVICE static void add(Tile const& tile, A& acc, float (&by_row)[R], float (&by_column)[C]) {
      SIMMIM_UNROLL
      for (int c = 0; c < C; c += AT_ONCE)
        SIMMIM_UNROLL
        for (int r = 0; r < R; ++r) {
          Point v[AT_ONCE];
          tile.template of<Function>(acc, r, c, v);
          SIMMIM_UNROLL
          for (int k = 0; k < AT_ONCE; ++k) {
            by_row[r] = c + k == 0 ? v[k].value : by_row[r] + v[k].value;
            by_column[c + k] = r == 0 ? v[k].value : by_column[c + k] + v[k].value;
          }
        }
    }

    Group& group_;
    Params const& p_;
    Shared& shared_;
    int turn_ = 0, ti_ = -1, tj_ = 0;
  };
};

// (a_i + b_j) psi'(s_ij)
template <class Function, int COLUMNS, Operand OPERAND>
struct PointwiseWeights {
  using A = Accumulators<COLUMNS>;
  static constexpr int R = A::R, C = A::C;

  struct Params {
    ScoresWithOptions scores;
    float const *row_upstream, *col_upstream;  // a and b, or null for a side without
    typename ElementOf<OPERAND>::Type* weights;  // as Weights has them
    int64_t stride;
    float *row_parts, *weight_parts;  // sums of values and of weights: (tiles in a row of the block, scores.rows), or null
  };
  struct Shared {
    float row[TILE_ROWS];
    alignas(8) float column[COLUMNS];
  };
  static_assert(COLUMNS <= WARPGROUP && TILE_ROWS == WARPGROUP, "a thread takes a row and a column");

  template <class Group>
  class Of {
   public:
    SIMMIM_DEVICE Of(Group& group, Params const& params, Shared& shared) : group_(group), p_(params), shared_(shared) {}

    SIMMIM_DEVICE void tile(A& acc, int ti, int tj) {
      int const i0 = ti * TILE_ROWS, j0 = tj * COLUMNS, t = group_.thread();
      group_.sync();  // all are done with the last tile's
      shared_.row[t] = p_.row_upstream && i0 + t < p_.scores.rows ? p_.row_upstream[i0 + t] : 0.f;
      if (t < COLUMNS) shared_.column[t] = p_.col_upstream && j0 + t < p_.scores.columns ? p_.col_upstream[j0 + t] : 0.f;
      // For both ways float32 weights have no registers, nor have weights beside mma.sync.
      if (OPERAND != Operand::FLOAT32 && Group::TWO_WAYS && is_untouched<COLUMNS>(p_.scores, i0, j0))
        weigh(UntouchedTile<COLUMNS>(group_, p_.scores, acc, i0, j0), acc, i0, j0, tj);
      else
        weigh(PointwiseTile<COLUMNS>(group_, p_.scores, acc, i0, j0), acc, i0, j0, tj);
    }
    SIMMIM_DEVICE void settle() {}

   private:
    template <class Tile>
    SIMMIM_DEVICE void weigh(Tile const& tile, A& acc, int i0, int j0, int tj) {
      int const t = group_.thread();
      group_.sync();
      // Row by row, for which there are registers.
      SIMMIM_UNROLL
      for (int r = 0; r < R; ++r) {
        float const a = shared_.row[A::row(t, r)];
        float sum = 0.f, sum_of_weights = 0.f;
        SIMMIM_UNROLL
        for (int c = 0; c < C; c += AT_ONCE) {
          Point v[AT_ONCE];
          tile.template of<Function>(acc, r, c, v);
          SIMMIM_UNROLL
          for (int k = 0; k < AT_ONCE; ++k) {
            sum += v[k].value;
            // What does not count weighs nothing, whatever its upstream gradient is.
            acc.at(r, c + k) = tile.weighs(r, c + k) ? v[k].slope * (a + shared_.column[A::column(t, c + k)]) : 0.f;
            sum_of_weights += acc.at(r, c + k);
          }
        }
        int const i = i0 + A::row(t, r);
        part(p_.row_parts, sum, i, tj);
        part(p_.weight_parts, sum_of_weights, i, tj);
        store<OPERAND, COLUMNS>(group_, p_, acc, r, i0, j0);
        group_.sync_warp();
      }
    }

    SIMMIM_DEVICE void part(float* parts, float sum, int i, int tj) {
      if (!parts) return;
      sum = over_quad(group_, sum, Add{});
      if (group_.lane() % QUAD == 0 && i < p_.scores.rows) parts[int64_t(tj) * p_.scores.rows + i] = sum;
    }

    Group& group_;
    Params const& p_;
    Shared& shared_;
  };
};

}  // namespace simmim
