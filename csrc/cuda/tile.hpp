// One tile of scores as the 128 threads of a warpgroup hold it, in registers, and what they do with it together.
//
// The same source runs on the device and, for tests, on the host (tests/host_machine.hpp). `Group` is the warpgroup:
// thread(), lane(), shuffle_xor(), largest(), all(), sync_warp(), sync() and pair().
#pragma once
#ifdef __CUDACC_RTC__  // which has no headers of its own
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <cmath>
#include <cstdint>
#endif

#ifdef __CUDACC__
#define SIMMIM_DEVICE __device__ __forceinline__
#define SIMMIM_EVERYWHERE __host__ __device__ __forceinline__
#define SIMMIM_UNROLL _Pragma("unroll")
#define SIMMIM_NO_UNROLL _Pragma("unroll 1")
#else
#define SIMMIM_DEVICE inline
#define SIMMIM_EVERYWHERE inline
#define SIMMIM_UNROLL
#define SIMMIM_NO_UNROLL
#endif

namespace simmim {

constexpr int WARPGROUP = 128, WARP = 32, WARPS = WARPGROUP / WARP, QUAD = 4;
constexpr int TILE_ROWS = 128;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// What operands and weights are in memory, numbered as simmim_cuda.h does. float32 is multiplied as TF32.
enum class Operand { BFLOAT16, FLOAT16, FLOAT32 };
template <Operand>
struct ElementOf {
  using Type = uint16_t;
};
template <>
struct ElementOf<Operand::FLOAT32> {
  using Type = float;
};

#ifdef __CUDACC__
SIMMIM_DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMMIM_DEVICE float log2_of(float x) { return __log2f(x); }
SIMMIM_DEVICE float reciprocal_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
inline float exp2_of(float x) { return exp2f(x); }
inline float log2_of(float x) { return log2f(x); }
inline float reciprocal_of(float x) { return 1.f / x; }
#endif

// As a reference that is subtracted: exponentials relative to an infinite one would be NaN.
SIMMIM_DEVICE float finite(float x) { return fabsf(x) == INFINITY ? 0.f : x; }

// What a thread holds of ROWS x COLUMNS products: of every 32 rows one, and of every 8 columns 2. The order in memory is
// that of wgmma instructions of 64 rows, one below the other.
template <int COLUMNS, int ROWS_ = TILE_ROWS>
struct Accumulators {
  static constexpr int ROWS = ROWS_, R = ROWS / 32, C = COLUMNS / QUAD;
  float of[ROWS / 64][COLUMNS / 2];

  SIMMIM_DEVICE float& at(int r, int c) { return of[r / 2][c / 2 * 4 + r % 2 * 2 + c % 2]; }
  SIMMIM_DEVICE static int row(int thread, int r) { return r / 2 * 64 + thread / WARP * 16 + thread % WARP / QUAD + r % 2 * 8; }
  SIMMIM_DEVICE static int column(int thread, int c) { return c / 2 * 8 + thread % QUAD * 2 + c % 2; }
};

struct Add {
  SIMMIM_DEVICE float operator()(float a, float b) const { return a + b; }
};
struct Max {
  SIMMIM_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Of a row's four threads.
template <class Group, class Op>
SIMMIM_DEVICE float over_quad(Group& group, float v, Op op) {
  v = op(v, group.shuffle_xor(v, 1));
  return op(v, group.shuffle_xor(v, 2));
}

// Reduces COUNT values over the 8 lanes that hold the same columns. Each lane is left with COUNT / 8 of the results,
// those from the returned index on, at the front: every step halves what is exchanged.
template <int COUNT, class Group, class Op>
SIMMIM_DEVICE int scatter_over_rows(Group& group, float (&v)[COUNT], Op op) {
  static_assert(COUNT % 8 == 0);
  int first = 0;
  SIMMIM_UNROLL
  for (int step = 0; step < 3; ++step) {
    int const stride = WARP / 2 >> step, half = COUNT / 2 >> step;
    bool const upper = group.lane() & stride;
    SIMMIM_UNROLL
    for (int k = 0; k < COUNT / 2; ++k) {
      if (k >= half) continue;
      float const sent = upper ? v[k] : v[k + half], kept = upper ? v[k + half] : v[k];
      v[k] = op(kept, group.shuffle_xor(sent, stride));
    }
    first += upper ? half : 0;
  }
  return first;
}

// The scores of the block that a launch is for, s_ij = scale <x_i, y_j> + row_bias_i + col_bias_j in nats. Vectors begin
// where the block does.
struct Scores {
  float const* scale;
  float const *row_bias, *col_bias;  // or null
  int64_t const* positives;          // the joint pairs' columns, counted from the matrix's first; or null for the diagonal
  bool leaves_out;                   // the joint pairs
  int first_row, first_column;       // of the block, in the matrix
  int rows, columns;                 // of the block
};

// The columns within a tile of the joint pairs of a thread's rows that are left out; -1 for those outside.
template <int COLUMNS, int R, class Group>
SIMMIM_DEVICE bool joint_columns(Group& group, Scores const& p, int i0, int j0, int (&joint)[R]) {
  bool any = false;
  SIMMIM_UNROLL
  for (int r = 0; r < R; ++r) {
    int const i = i0 + Accumulators<COLUMNS>::row(group.thread(), r);
    int64_t const j = i >= p.rows ? -1 : (p.positives ? p.positives[i] : p.first_row + int64_t(i)) - p.first_column - j0;
    joint[r] = j >= 0 && j < COLUMNS ? int(j) : -1;
    any = any || joint[r] >= 0;
  }
  return !group.all(!any);
}

// `scale` is in base 2. Makes base 2 scores of the products where something else than the scale is to be done, with -inf for pairs that are left
// out or outside of the block. Returns the factor that is still to be applied.
// Weights are made of plain scores as of others.
template <bool WEIGHS, int COLUMNS, int ROWS, class Group>
SIMMIM_DEVICE float prepare(Group& group, Scores const& p, float scale, Accumulators<COLUMNS, ROWS>& acc, int i0, int j0) {
  using A = Accumulators<COLUMNS, ROWS>;
  bool const ragged = i0 + ROWS > p.rows || j0 + COLUMNS > p.columns;
  int const ahead = p.first_row + i0 - (p.first_column + j0);  // of the diagonal
  bool meets_joint = p.leaves_out && (p.positives || (ahead < COLUMNS && ahead > -ROWS));
  int joint[A::R];
  if (meets_joint) meets_joint = joint_columns<COLUMNS>(group, p, i0, j0, joint);
  if (!ragged && !meets_joint && !p.row_bias && !p.col_bias) return scale;
  SIMMIM_UNROLL
  for (int r = 0; r < A::R; ++r) {
    int const i = i0 + A::row(group.thread(), r);
    float const a = p.row_bias && i < p.rows ? p.row_bias[i] * LOG2_E : 0.f;
    SIMMIM_UNROLL
    for (int c = 0; c < A::C; ++c) acc.at(r, c) = acc.at(r, c) * scale + a;
  }
  if (p.col_bias) {
    SIMMIM_UNROLL
    for (int c = 0; c < A::C; ++c) {
      int const j = j0 + A::column(group.thread(), c);
      float const b = j < p.columns ? p.col_bias[j] * LOG2_E : 0.f;
      SIMMIM_UNROLL
      for (int r = 0; r < A::R; ++r) acc.at(r, c) += b;
    }
  }
  if (meets_joint) {
    SIMMIM_UNROLL
    for (int r = 0; r < A::R; ++r)
      SIMMIM_UNROLL
      for (int c = 0; c < A::C; ++c)
        if (A::column(group.thread(), c) == joint[r]) acc.at(r, c) = -INFINITY;
  }
  if (ragged) {
    SIMMIM_UNROLL
    for (int r = 0; r < A::R; ++r) {
      bool const in = i0 + A::row(group.thread(), r) < p.rows;
      SIMMIM_UNROLL
      for (int c = 0; c < A::C; ++c)
        if (!in || j0 + A::column(group.thread(), c) >= p.columns) acc.at(r, c) = -INFINITY;
    }
  }
  return 1.f;
}

}  // namespace simmim
