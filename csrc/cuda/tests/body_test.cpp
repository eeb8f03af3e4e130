// The kernels' body and their ends of tiles on the CPU, against float64. See host_machine.hpp.
#include <random>

#include "../log_sum_exps.hpp"
#include "host_machine.hpp"

using namespace simmim;

static double log2_sum(std::vector<double> const& v) {
  double k = -INFINITY, sum = 0;
  for (double x : v) k = std::max(k, x);
  if (std::isinf(k)) return k;
  for (double x : v) sum += std::exp2(x - k);
  return std::log2(sum) + k;
}

struct Case {
  int64_t n, m, d;
  int clusters;
  float scale = 0.3f;
  float bias = -1;     // the spread of biases, or none
  int row = 0, column = 0;  // where the block begins
  int run = 1;         // where X stays
  float wrong = 0;     // a planted error, of a partial sum
};

struct Data {
  std::vector<uint16_t> x, y;
  std::vector<float> a, b;
  // Of the block, in base 2: the scores, and the sums of their terms' sizes, which float32 rounds them in proportion to.
  std::vector<double> scores, sizes;

  explicit Data(Case const& p) : x(p.n * p.d), y(p.m * p.d), a(p.n), b(p.m) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (auto& v : x) v = host::bfloat16_of(normal(random));
    for (auto& v : y) v = host::bfloat16_of(normal(random));
    for (auto& v : a) v = std::max(p.bias, 0.f) * normal(random);
    for (auto& v : b) v = std::max(p.bias, 0.f) * normal(random);
    for (int64_t i = p.row; i < p.n; ++i)
      for (int64_t j = p.column; j < p.m; ++j) {
        double const log2_e = std::log2(std::exp(1.));
        double t = 0, size = 0;
        for (int64_t k = 0; k < p.d; ++k) {
          double const term = double(host::float_of(x[i * p.d + k])) * host::float_of(y[j * p.d + k]);
          t += term;
          size += std::fabs(term);
        }
        scores.push_back(double(p.scale) * t + log2_e * (double(a[i]) + b[j]));
        sizes.push_back(std::fabs(p.scale) * size + log2_e * (std::fabs(a[i]) + std::fabs(b[j])));
      }
  }
};

// The largest error, relative to the sizes of terms; infinite for a deadlock.
template <int COLUMNS, int STAGES, int ABOVE, int BESIDE, int RESIDENT, bool BIAS>
double error_of(Case const& p) {
  using S = simmim::Shape<COLUMNS, STAGES, ABOVE, BESIDE, RESIDENT>;
  using Epilogue = LogSumExps<COLUMNS, BIAS>;
  Data const data(p);
  int const high = int(p.n - p.row), wide = int(p.m - p.column);
  auto const tiles = [](int extent, int tile) { return (extent + tile - 1) / tile; };
  Grid const grid{tiles(high, TILE_ROWS * ABOVE), tiles(wide, COLUMNS * BESIDE), p.row, p.column, p.run};
  int const across = tiles(wide, COLUMNS), down = tiles(high, TILE_ROWS);
  std::vector<float> rows(across * high, NAN), columns(down * wide, NAN);  // so that what no one wrote is seen
  typename Epilogue::Params const params{{p.scale, BIAS ? data.a.data() + p.row : nullptr, BIAS ? data.b.data() + p.column : nullptr, high, wide}, rows.data(), columns.data()};
  if (!host::launch<S, Epilogue>(data.x.data(), data.y.data(), p.n, p.m, p.d, grid, params, p.clusters)) return INFINITY;
  rows[0] += p.wrong;

  double worst = 0;
  // One row's or column's `count` parts against the scores from `first` on.
  auto const see = [&](float const* parts, int part_count, int part_stride, int first, int count, int stride) {
    std::vector<double> got, want;
    double size = 1;
    for (int t = 0; t < part_count; ++t) got.push_back(parts[int64_t(t) * part_stride]);
    for (int k = 0; k < count; ++k) {
      want.push_back(data.scores[first + int64_t(k) * stride]);
      size = std::max(size, data.sizes[first + int64_t(k) * stride]);
    }
    double const error = std::fabs(log2_sum(got) - log2_sum(want)) / size;
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  };
  for (int i = 0; i < high; ++i) see(&rows[i], across, high, i * wide, wide, 1);
  for (int j = 0; j < wide; ++j) see(&columns[j], down, wide, j, high, wide);
  return worst;
}

static constexpr double TOLERANCE = 2e-7;
static int failures = 0;
static void expect(bool right, char const* what, double error) {
  printf("%-60s error %.1e %s\n", what, error, right ? "ok" : "FAILED");
  failures += !right;
}
template <int COLUMNS, int STAGES, int ABOVE, int BESIDE, int RESIDENT = 0, bool BIAS = false>
void check(Case const& p, char const* name = "") {
  double const error = error_of<COLUMNS, STAGES, ABOVE, BESIDE, RESIDENT, BIAS>(p);
  char what[160];
  snprintf(what, sizeof what, "%dx%d in %dx%d, %d stay: n %ld m %ld d %ld, %d clusters %s", TILE_ROWS, COLUMNS, ABOVE, BESIDE, RESIDENT, long(p.n), long(p.m), long(p.d), p.clusters, name);
  expect(error < TOLERANCE, what, error);
}

int main() {
  setvbuf(stdout, nullptr, _IONBF, 0);
  check<128, 3, 1, 1>({1, 1, 8, 1});
  check<128, 3, 1, 1>({128, 128, 64, 1});
  check<128, 3, 1, 1>({130, 300, 104, 1});
  check<128, 6, 1, 1>({300, 257, 64, 1});
  check<128, 4, 2, 1>({300, 515, 200, 1});
  check<128, 4, 2, 1>({520, 257, 72, 2});
  check<128, 2, 2, 1>({1, 900, 328, 1});
  check<128, 4, 1, 2>({300, 400, 136, 1});
  check<128, 3, 2, 2>({400, 700, 72, 2});
  check<128, 3, 4, 1>({700, 130, 72, 1});
  check<160, 3, 2, 1>({300, 500, 72, 1});
  check<128, 3, 1, 1, 2>({130, 900, 104, 2, 0.3f, -1, 0, 0, 3});
  check<128, 3, 2, 1, 2>({700, 900, 72, 2, 0.3f, -1, 0, 0, 5});
  check<128, 3, 2, 1, 3>({700, 650, 136, 1, 0.3f, -1, 0, 0, 1});
  check<128, 4, 2, 1, 1>({600, 700, 64, 2, 0.3f, -1, 256, 128, 4}, "a later block");
  check<128, 4, 2, 1>({600, 700, 72, 1, 0.3f, -1, 256, 128}, "a later block");
  check<128, 4, 2, 1>({256, 300, 72, 1, -0.3f}, "negative scale");
  check<128, 4, 2, 1>({130, 130, 72, 1, 0.f}, "scale 0");
  check<128, 4, 2, 1>({256, 256, 72, 1, 40.f}, "very unequal");
  check<128, 4, 2, 1>({256, 256, 72, 1, -40.f}, "very unequal, negative scale");
  check<128, 4, 2, 1, 0, true>({300, 300, 72, 1, 0.3f, 1}, "biases");
  check<128, 4, 2, 1, 0, true>({300, 300, 72, 1, 0.3f, 200}, "very unequal biases");
  double const planted = error_of<128, 3, 1, 1, 0, false>({130, 300, 72, 1, 0.3f, -1, 0, 0, 1, 1e-3f});
  expect(planted > TOLERANCE, "a planted error is seen", planted);
  printf("%d failures\n", failures);
  return failures != 0;
}
