// The kernels' body and their ends of tiles on the CPU, against float64. See host_machine.hpp.
#include <random>
#include <string>
#include <type_traits>

#include "../log_sum_exps.hpp"
#include "../sums.hpp"
#include "../weights.hpp"
#include "host_machine.hpp"
#include "lines_checks.hpp"
#include "mma_machine.hpp"

using namespace simmim;

// How the joint pairs enter: DIAGONAL and POSITIVES leave them out; of POSITIVES the others KEPT and NEGATED.
enum Joint { COUNTED, DIAGONAL, POSITIVES, KEPT, NEGATED };

struct Case {
  int64_t n, m, d;
  int clusters;
  float scale = 0.2f;
  float bias = -1;          // the spread of biases, or none
  int row = 0, column = 0;  // where the block begins
  int run = 1;              // where X stays
  Joint joint = COUNTED;
  float wrong = 0;          // a planted error, of one result
  int ids = 0;
  bool grouped = false;
  float lo = -INFINITY, hi = INFINITY;
};

struct Data {
  int high, wide;
  std::vector<uint16_t> x, y;
  std::vector<float> a, b;
  std::vector<int64_t> positives, row_ids, col_ids;
  // Of the block, in nats: the scores, and the sums of their terms' sizes, which float32 rounds them in proportion to.
  std::vector<double> scores, sizes;
  std::vector<bool> beyond;  // the clamp

  explicit Data(Case const& p)
      : high(int(p.n) - p.row), wide(int(p.m) - p.column), x(p.n * p.d), y(p.m * p.d), a(p.n), b(p.m), positives(p.n), scale_(p.scale) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (auto& v : x) v = host::bfloat16_of(normal(random));
    for (auto& v : y) v = host::bfloat16_of(normal(random));
    for (auto& v : a) v = std::max(p.bias, 0.f) * normal(random);
    for (auto& v : b) v = std::max(p.bias, 0.f) * normal(random);
    for (auto& v : positives) v = random() % p.m;
    row_ids.resize(p.ids * p.n), col_ids.resize(p.ids * p.m);
    for (auto* ids : {&row_ids, &col_ids})
      for (auto& v : *ids) v = int64_t(random() % 3) << 40;
    for (int64_t i = p.row; i < p.n; ++i)
      for (int64_t j = p.column; j < p.m; ++j) {
        double t = 0, size = 0;
        for (int64_t k = 0; k < p.d; ++k) {
          double const term = double(host::float_of(x[i * p.d + k])) * host::float_of(y[j * p.d + k]);
          t += term;
          size += std::fabs(term);
        }
        bool const joint = p.joint != COUNTED && j == (p.joint == DIAGONAL ? i : positives[i]);
        bool out = false;
        for (int k = 0; k < p.ids; ++k) out = out || (row_ids[k * p.n + i] == col_ids[k * p.m + j]) != (p.grouped && k == 0);
        if (joint && p.joint == KEPT) out = false;
        if (joint && (p.joint == DIAGONAL || p.joint == POSITIVES)) out = true;
        double const s = double(p.scale) * t + double(a[i]) + b[j], within = std::min(std::max(s, double(p.lo)), double(p.hi));
        scores.push_back(out ? -INFINITY : joint && p.joint == NEGATED ? -within : within);
        beyond.push_back(s != within);
        sizes.push_back(std::fabs(p.scale) * size + std::fabs(a[i]) + std::fabs(b[j]));
      }
  }
  template <class SCORES>
  SCORES handed(Case const& p) const {
    bool const biased = p.bias >= 0;
    Scores const plain{&scale_, biased ? &a[p.row] : nullptr, biased ? &b[p.column] : nullptr, p.joint > DIAGONAL ? &positives[p.row] : nullptr,
                       p.joint == DIAGONAL || p.joint == POSITIVES, p.row, p.column, high, wide};
    if constexpr (std::is_same_v<SCORES, Scores>)
      return plain;
    else
      return {plain, p.joint == KEPT, p.joint == NEGATED, p.grouped, p.ids, row_ids.data() + p.row, col_ids.data() + p.column, p.n, p.m, p.lo, p.hi};
  }
  std::vector<double> row(int i) const { return {scores.begin() + int64_t(i) * wide, scores.begin() + int64_t(i + 1) * wide}; }
  std::vector<double> column(int j) const {
    std::vector<double> v;
    for (int i = 0; i < high; ++i) v.push_back(scores[int64_t(i) * wide + j]);
    return v;
  }

 private:
  float scale_;
};

static double log_sum(std::vector<double> const& v, double base = std::exp(1.)) {
  double k = -INFINITY, sum = 0;
  for (double x : v) k = std::max(k, x);
  if (std::isinf(k)) return k;
  for (double x : v) sum += std::pow(base, x - k);
  return std::log(sum) / std::log(base) + k;
}
static int tiles(int extent, int tile) { return (extent + tile - 1) / tile; }

// What kernels write to, with a margin on either side that they must leave alone.
template <class T>
class Output {
 public:
  Output(int64_t size, T unwritten) : all_(size + 2 * MARGIN, unwritten), unwritten_(unwritten) {}
  T* data() { return &all_[MARGIN]; }
  T& operator[](int64_t k) { return data()[k]; }
  bool whole() const {
    for (size_t k = 0; k < MARGIN; ++k)
      for (size_t at : {k, all_.size() - 1 - k})
        if (memcmp(&all_[at], &unwritten_, sizeof(T)) != 0) return false;
    return true;
  }

 private:
  static constexpr size_t MARGIN = 1024;
  std::vector<T, std::allocator<T>> all_;
  T unwritten_;
};

using Mma = MmaShape<Operand::BFLOAT16>;

template <class S, class Epilogue>
bool launch(Case const& p, Data const& data, typename Epilogue::Params const& params) {
  Grid const grid{tiles(data.high, TILE_ROWS * S::ABOVE), tiles(data.wide, S::COLUMNS * S::BESIDE), p.row, p.column, p.run};
  if constexpr (std::is_same_v<S, Mma>) {
    Matrix<uint16_t> const x{data.x.data(), p.d, int(p.n), int(p.d)}, y{data.y.data(), p.d, int(p.m), int(p.d)};
    return host::launch<S, Epilogue>(x, y, grid, params);
  } else {
    host::Map<uint16_t> const x{data.x.data(), p.n, p.d, p.d, S::X_PART}, y{data.y.data(), p.m, p.d, p.d, S::Y_PART};
    return host::launch<S, Epilogue>(x, y, grid, params, p.clusters);
  }
}

static constexpr double TOLERANCE = 2e-7, WEIGHT_TOLERANCE = 1. / 256;

// The largest error, relative to the sizes of terms; infinite for a deadlock.
template <class S, bool BY_COLUMN, class SCORES>
double error_of_log_sums(Case const& p) {
  using Epilogue = LogSumExps<S::COLUMNS, BY_COLUMN, SCORES>;
  Data const data(p);
  int const high = data.high, wide = data.wide, across = tiles(wide, S::COLUMNS), down = tiles(high, TILE_ROWS);
  Output<float> rows(across * high, NAN), columns(down * wide, NAN);  // so that what no one wrote is seen
  typename Epilogue::Params const params{data.handed<SCORES>(p), rows.data(), columns.data()};
  if (!launch<S, Epilogue>(p, data, params) || !rows.whole() || !columns.whole()) return INFINITY;
  rows[0] += p.wrong;

  double worst = 0;
  // One row's or column's parts, in base 2, against the scores from `first` on.
  auto const see = [&](float const* parts, int count, int stride, std::vector<double> const& scores, double const* sizes, int sizes_stride) {
    std::vector<double> got;
    double size = 1;
    for (int t = 0; t < count; ++t) got.push_back(parts[int64_t(t) * stride]);
    for (size_t k = 0; k < scores.size(); ++k) size = std::max(size, sizes[k * sizes_stride]);
    double const found = log_sum(got, 2) * std::log(2.), want = log_sum(scores);
    double const error = found == want ? 0 : std::fabs(found - want) / size;
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  };
  for (int i = 0; i < high; ++i) see(&rows[i], across, high, data.row(i), &data.sizes[int64_t(i) * wide], 1);
  for (int j = 0; j < wide && BY_COLUMN; ++j) see(&columns[j], down, wide, data.column(j), &data.sizes[j], wide);
  return worst;
}

// Log-sum-exps of rows, upstream gradients of these, and of columns both.
struct HostSides {
  std::vector<float> r, a, c, b;
};
static HostSides sides_of(Data const& data) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  HostSides made{std::vector<float>(data.high), std::vector<float>(data.high), std::vector<float>(data.wide), std::vector<float>(data.wide)};
  for (int i = 0; i < data.high; ++i) made.r[i] = float(log_sum(data.row(i)));
  for (int j = 0; j < data.wide; ++j) made.c[j] = float(log_sum(data.column(j)));
  for (auto& v : made.a) v = normal(random);
  for (auto& v : made.b) v = normal(random);
  return made;
}

// The largest error, relative to the sizes of a weight's two terms: bfloat16 rounds by 2^-9 of it.
template <class S, class SCORES>
double error_of_weights(Case const& p, bool by_row, bool by_column) {
  using Epilogue = Weights<S::COLUMNS, Operand::BFLOAT16, SCORES>;
  Data const data(p);
  int const high = data.high, wide = data.wide;
  int64_t const stride = (wide + 15) / 8 * 8;
  auto const [r, a, c, b] = sides_of(data);
  Output<uint16_t> weights(high * stride, 0x7fff);  // NaN
  typename Epilogue::Params const params{data.handed<SCORES>(p), by_row ? r.data() : nullptr, by_row ? a.data() : nullptr,
                                         by_column ? c.data() : nullptr, by_column ? b.data() : nullptr, weights.data(), stride};
  if (!launch<S, Epilogue>(p, data, params) || !weights.whole()) return INFINITY;
  double worst = 0;
  for (int i = 0; i < high; ++i)
    for (int j = 0; j < wide; ++j) {
      double const s = data.scores[int64_t(i) * wide + j];
      bool const weighs = s > -INFINITY && !data.beyond[int64_t(i) * wide + j];
      double const of_row = by_row && weighs ? a[i] * std::exp(s - r[i]) : 0;
      double const of_column = by_column && weighs ? b[j] * std::exp(s - c[j]) : 0;
      // float32's rounding of scores and references is relative to their size.
      double const size = (std::fabs(of_row) + std::fabs(of_column)) * (1 + 1e-4 * data.sizes[int64_t(i) * wide + j]) + 1e-18;
      double const error = std::fabs(host::float_of(weights[i * stride + j]) + (i + j == 0 ? p.wrong : 0) - (of_row + of_column)) / size;
      worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
    }
  return worst;
}

// The largest error of G Y and of the weights' sums, relative to the sizes of terms, of which weights are rounded to bfloat16.
template <class S>
double error_of_narrow(Case const& p, int tiles_of_part) {
  Data const data(p);
  int const high = data.high, wide = data.wide, d = int(p.d), blocks = tiles(high, S::X_PART), count = tiles(wide, S::COLUMNS);
  int const parts = tiles(count, tiles_of_part);
  auto const [r, a, c, b] = sides_of(data);
  Output<float> products(int64_t(parts) * high * d, NAN), sums(int64_t(parts) * high, NAN);
  NarrowParams const params{data.handed<Scores>(p), {r.data(), a.data(), c.data(), b.data()}, products.data(), sums.data(), d, tiles_of_part, blocks};
  host::Map<uint16_t> const x{data.x.data(), p.n, p.d, p.d, S::X_PART}, y{data.y.data(), p.m, p.d, p.d, S::Y_PART};
  if (!host::launch_narrow<S>(x, y, params, blocks * parts) || !products.whole() || !sums.whole()) return INFINITY;
  double worst = 0;
  for (int i = 0; i < high; ++i) {
    std::vector<double> want(d + 1), size(d + 1, 1e-18), got(d + 1);
    for (int j = 0; j < wide; ++j) {
      double const s = data.scores[int64_t(i) * wide + j];
      double const of_row = s > -INFINITY ? a[i] * std::exp(s - r[i]) : 0, of_column = s > -INFINITY ? b[j] * std::exp(s - c[j]) : 0;
      double const rounding = (std::fabs(of_row) + std::fabs(of_column)) * (1 + 1e-4 * data.sizes[int64_t(i) * wide + j]);
      for (int k = 0; k <= d; ++k) {
        double const factor = k == d ? 1 : host::float_of(data.y[j * p.d + k]);
        want[k] += (of_row + of_column) * factor;
        size[k] += rounding * std::fabs(factor);
      }
    }
    for (int part = 0; part < parts; ++part) {
      for (int k = 0; k < d; ++k) got[k] += products[(int64_t(part) * high + i) * d + k];
      got[d] += sums[int64_t(part) * high + i];
    }
    got[0] += i == 0 ? p.wrong * size[0] : 0;
    for (int k = 0; k <= d; ++k) {
      double const error = std::fabs(got[k] - want[k]) / size[k];
      worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
    }
  }
  return worst;
}

// The largest error of softplus's sums and of its weights, and of the values that come along with these, relative to the
// sizes of the terms.
template <class S>
double error_of_softplus(Case const& p) {
  Data const data(p);
  int const high = data.high, wide = data.wide, across = tiles(wide, S::COLUMNS), down = tiles(high, TILE_ROWS);
  int64_t const stride = (wide + 15) / 8 * 8;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> a(high), b(wide);
  for (auto& v : a) v = normal(random);
  for (auto& v : b) v = normal(random);
  Output<float> rows(across * high, NAN), columns(down * wide, NAN), along(across * high, NAN), of_weights(across * high, NAN);
  Output<uint16_t> weights(high * stride, 0x7fff);
  auto const scores = data.handed<ScoresWithOptions>(p);
  if (!launch<S, Sums<Softplus, S::COLUMNS>>(p, data, {scores, rows.data(), columns.data()})) return INFINITY;
  using Epilogue = PointwiseWeights<Softplus, S::COLUMNS, Operand::BFLOAT16>;
  if (!launch<S, Epilogue>(p, data, {scores, a.data(), b.data(), weights.data(), stride, along.data(), of_weights.data()})) return INFINITY;
  if (!rows.whole() || !columns.whole() || !along.whole() || !of_weights.whole() || !weights.whole()) return INFINITY;

  double worst = 0;
  std::vector<double> by_row(high), by_column(wide), weighed(high);
  for (int i = 0; i < high; ++i)
    for (int j = 0; j < wide; ++j) {
      int64_t const at = int64_t(i) * wide + j;
      double const s = data.scores[at], value = s > -INFINITY ? std::log1p(std::exp(-std::fabs(s))) + std::max(s, 0.) : 0;
      by_row[i] += value;
      by_column[j] += value;
      int const sign = p.joint == NEGATED && p.column + j == data.positives[p.row + i] ? -1 : 1;
      double const slope = s > -INFINITY && !data.beyond[at] ? sign / (1 + std::exp(-s)) : 0;
      weighed[i] += slope * (a[i] + b[j]);
      double const error = std::fabs(host::float_of(weights[i * stride + j]) - slope * (a[i] + b[j])) / (std::fabs(slope * (a[i] + b[j])) + 1e-6);
      // bfloat16 rounds by up to WEIGHT_TOLERANCE, after float32 has: to the scale of the sums.
      worst = std::isfinite(error) ? std::max(worst, error * TOLERANCE / (1.1 * WEIGHT_TOLERANCE)) : INFINITY;
    }
  auto const see = [&](float const* parts, int count, int step, double want) {
    double sum = 0;
    for (int t = 0; t < count; ++t) sum += parts[int64_t(t) * step];
    double const error = std::fabs(sum - want) / (std::fabs(want) + wide * 0.01 + 1);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  };
  for (int i = 0; i < high; ++i) see(&rows[i], across, high, by_row[i]), see(&along[i], across, high, by_row[i]), see(&of_weights[i], across, high, weighed[i]);
  for (int j = 0; j < wide; ++j) see(&columns[j], down, wide, by_column[j]);
  return worst;
}

static int failures = 0;
static bool only = false;   // the cases whose names hold what is wanted, up to the first failure
static std::string wanted;

static void expect(bool right, std::string const& what, double error) {
  printf("%-78s error %.1e %s\n", what.c_str(), error, right ? "ok" : "FAILED");
  failures += !right;
  if (!right && only) exit(1);
}
static bool runs(std::string const& what) { return what.find(wanted) != std::string::npos; }
template <class S>
std::string named(Case const& p, char const* name) {
  char shape[80] = "by mma", what[160];
  if constexpr (!std::is_same_v<S, Mma>)
    snprintf(shape, sizeof shape, "%dx%d in %dx%d, %d stay, %d clusters", TILE_ROWS, S::COLUMNS, S::ABOVE, S::BESIDE, S::RESIDENT, p.clusters);
  snprintf(what, sizeof what, "%s: n %ld m %ld d %ld; %s", shape, long(p.n), long(p.m), long(p.d), name);
  return what;
}
template <class S, bool BY_COLUMN = true, class SCORES = Scores>
void check(Case const& p, char const* name = "") {
  std::string const what = "log-sum-exps " + named<S>(p, name);
  if (!runs(what)) return;
  double const error = error_of_log_sums<S, BY_COLUMN, SCORES>(p);
  expect(error < TOLERANCE, what, error);
}
template <class S, class SCORES = Scores>
void check_weights(Case const& p, char const* name = "", bool by_row = true, bool by_column = true) {
  std::string const what = "weights " + named<S>(p, name);
  if (!runs(what)) return;
  double const error = error_of_weights<S, SCORES>(p, by_row, by_column);
  expect(error < WEIGHT_TOLERANCE, what, error);
}

template <class S>
void check_narrow(Case const& p, int tiles_of_part, char const* name = "") {
  char what[160];
  snprintf(what, sizeof what, "narrow %d, %d groups: n %ld m %ld d %ld, %d tiles a part; %s", S::WIDTH, S::GROUPS, long(p.n), long(p.m), long(p.d),
           tiles_of_part, name);
  if (!runs(what)) return;
  double const error = error_of_narrow<S>(p, tiles_of_part);
  expect(error < WEIGHT_TOLERANCE, what, error);
}

template <class S>
void check_softplus(Case const& p) {
  std::string const what = "softplus " + named<S>(p, "options");
  if (!runs(what)) return;
  double const error = error_of_softplus<S>(p);
  expect(error < TOLERANCE, what, error);
}

int main(int count, char** arguments) {
  // body_test [SEED [CASES]]
  srand(count > 1 ? atoi(arguments[1]) : 1);  // how late what is asynchronous comes
  only = count > 2;
  if (only) wanted = arguments[2];
  setvbuf(stdout, nullptr, _IONBF, 0);
  using Alone = simmim::Shape<128, 3, 1, 1>;
  using Two = simmim::Shape<128, 4, 2, 1>;
  check<Alone>({1, 1, 8, 1});
  check<Alone>({128, 128, 64, 1});
  check<Alone>({130, 300, 104, 1});
  check<simmim::Shape<128, 6, 1, 1>>({300, 257, 64, 1});
  check<Two>({300, 515, 200, 1});
  check<Two>({520, 257, 72, 2});
  check<simmim::Shape<128, 2, 2, 1>>({1, 900, 328, 1});
  check<simmim::Shape<128, 4, 1, 2>>({300, 400, 136, 1});
  check<simmim::Shape<128, 3, 2, 2>>({400, 700, 72, 2});
  check<simmim::Shape<128, 3, 4, 1>>({700, 130, 72, 1});
  check<simmim::Shape<128, 3, 1, 1, 2>>({130, 900, 104, 2, 0.2f, -1, 0, 0, 3});
  check<simmim::Shape<128, 3, 2, 1, 2>>({700, 900, 72, 2, 0.2f, -1, 0, 0, 5});
  check<simmim::Shape<128, 3, 2, 1, 3>>({700, 650, 136, 1, 0.2f, -1, 0, 0, 1});
  check<simmim::Shape<128, 4, 2, 1, 1>>({600, 700, 64, 2, 0.2f, -1, 256, 128, 4}, "a later block");
  check<Two>({600, 700, 72, 1, 0.2f, -1, 256, 128}, "a later block");
  check<Two>({256, 300, 72, 1, -0.2f}, "negative scale");
  check<Two>({130, 130, 72, 1, 0.f}, "scale 0");
  check<Two>({256, 256, 72, 1, 30.f}, "very unequal");
  check<Two>({256, 256, 72, 1, -30.f}, "very unequal, negative scale");
  check<Two, false>({300, 515, 72, 1}, "rows alone");
  check<Two, false>({256, 256, 72, 1, 30.f}, "rows alone, very unequal");
  check<Two>({300, 300, 72, 1, 0.2f, 1}, "biases");
  check<Two>({300, 300, 72, 1, 0.2f, 200}, "very unequal biases");
  check<Two>({300, 300, 72, 1, 0.2f, -1, 0, 0, 1, DIAGONAL}, "diagonal left out");
  check<Two>({600, 700, 72, 1, 0.2f, 1, 256, 128, 1, DIAGONAL}, "diagonal of a later block");
  check<Two>({600, 700, 72, 1, -0.2f, -1, 256, 128, 1, POSITIVES}, "positives of a later block");
  check<Alone>({1, 1, 8, 1, 0.2f, -1, 0, 0, 1, DIAGONAL}, "nothing left");
  double planted = error_of_log_sums<Alone, true, Scores>({130, 300, 72, 1, 0.2f, -1, 0, 0, 1, COUNTED, 1e-3f});
  expect(planted > TOLERANCE, "a planted error is seen", planted);

  check_weights<Alone>({1, 1, 8, 1});
  check_weights<Two>({300, 515, 200, 1});
  check_weights<Two>({520, 257, 72, 2}, "rows alone", true, false);
  check_weights<Two>({520, 257, 72, 2}, "columns alone", false, true);
  check_weights<Two>({256, 256, 72, 1, 30.f}, "very unequal");
  check_weights<Two>({300, 300, 72, 1, -0.2f, 200}, "very unequal biases");
  check_weights<Two>({600, 700, 72, 1, 0.2f, 1, 256, 128, 1, DIAGONAL}, "diagonal of a later block");
  check_weights<Two>({600, 700, 72, 1, 0.2f, -1, 256, 128, 1, POSITIVES}, "positives of a later block");
  check_weights<Alone>({1, 1, 8, 1, 0.2f, -1, 0, 0, 1, DIAGONAL}, "nothing left");
  check_weights<Alone>({1, 9, 8, 1, 0.2f, -1, 0, 0, 1, DIAGONAL}, "an empty column");
  planted = error_of_weights<Alone, Scores>({130, 300, 72, 1, 0.2f, -1, 0, 0, 1, COUNTED, 1e-2f}, true, true);
  expect(planted > WEIGHT_TOLERANCE, "a planted error is seen in weights", planted);

  using Narrow = simmim::NarrowShape<64, 3, 2>;
  check_narrow<Narrow>({1, 1, 8, 1}, 1);
  check_narrow<Narrow>({128, 128, 64, 1}, 1);
  check_narrow<Narrow>({300, 700, 40, 1}, 6, "a ring gone round");
  check_narrow<Narrow>({130, 900, 64, 1}, 3, "parts");
  check_narrow<simmim::NarrowShape<64, 2, 3>>({300, 400, 64, 1}, 4);
  check_narrow<simmim::NarrowShape<128, 2, 2>>({127, 520, 72, 1}, 5);
  check_narrow<simmim::NarrowShape<128, 3, 2>>({129, 300, 128, 1, -0.2f, 1}, 2, "biases");
  check_narrow<Narrow>({256, 256, 64, 1, 30.f}, 2, "very unequal");
  check_narrow<Narrow>({300, 300, 64, 1, -0.2f, 200}, 3, "very unequal biases");
  check_narrow<Narrow>({300, 300, 64, 1, 0.2f, -1, 0, 0, 1, DIAGONAL}, 3, "diagonal left out");
  check_narrow<Narrow>({300, 300, 64, 1, 0.2f, -1, 0, 0, 1, POSITIVES}, 3, "positives left out");
  check_narrow<Narrow>({1, 1, 8, 1, 0.2f, -1, 0, 0, 1, DIAGONAL}, 1, "nothing left");
  int64_t empty = 0;
  for (int64_t blocks = 1; blocks < 300; ++blocks)
    for (int64_t count = 1; count < 100; ++count) {
      int64_t const parts = narrow_parts(blocks, count), each = (count + parts - 1) / parts;
      empty += parts < 1 || parts > MOST_PARTS || (parts - 1) * each >= count;
    }
  expect(empty == 0, "narrow parts have tiles", double(empty));
  planted = error_of_narrow<Narrow>({130, 300, 64, 1, 0.2f, -1, 0, 0, 1, COUNTED, 1e-2f}, 3);
  expect(planted > WEIGHT_TOLERANCE, "a planted error is seen in narrow products", planted);

  using Mixed = simmim::Shape<128, 4, 1, 2>;
  Case options{300, 300, 72, 1, 0.2f, 1, 0, 0, 1, COUNTED, 0, 1, false, -1, 1};
  Case groups{600, 700, 72, 1, 0.2f, 1, 256, 128, 1, KEPT, 0, 2, true, -2, 2};
  Case negated{600, 700, 72, 1, 0.2f, -1, 256, 128, 1, NEGATED, 0, 0, false, -1, 2};
  check<Mixed, true, ScoresWithOptions>(options, "ids and a clamp");
  check<Mixed, true, ScoresWithOptions>(groups, "a group, ids, a clamp and positives kept, of a later block");
  check_weights<Mixed, ScoresWithOptions>(groups, "a group, ids, a clamp and positives kept, of a later block");
  for (Case const& p : {negated, options, groups}) check_softplus<Mixed>(p);
  for (int options = 0; options < 8; ++options) {
    bool const positives = options & 1, clamps = options & 2, known = options & 4;
    std::string const what = std::string("lines") + (positives ? ", positives" : "") + (clamps ? ", clamped" : "") + (known ? ", known" : "");
    if (!runs(what)) continue;
    double const error = host::error_of_lines(positives, clamps, known);
    expect(error < 1e-6, what, error);
  }

  for (Case const& p : {Case{1, 1, 8, 1}, {1, 520, 64, 1}, {520, 1, 72, 1}, {127, 129, 328, 1}, {128, 128, 32, 1}, {129, 300, 104, 1}, {300, 520, 16, 1}})
    check<Mma, true, ScoresWithOptions>(p);
  check<Mma, true, ScoresWithOptions>({256, 256, 72, 1, -30.f}, "very unequal, negative scale");
  check<Mma, true, ScoresWithOptions>(groups, "a group, ids, a clamp and positives kept, of a later block");
  check<Mma, true, ScoresWithOptions>({600, 700, 72, 1, 0.2f, 1, 256, 128, 1, DIAGONAL}, "diagonal of a later block");
  check_weights<Mma, ScoresWithOptions>({129, 127, 200, 1});
  check_weights<Mma, ScoresWithOptions>(groups, "a group, ids, a clamp and positives kept, of a later block");
  check_softplus<Mma>(negated);
  printf("%d failures, at most %ld steps a launch\n", failures, host::Fibers::longest());
  return failures != 0;
}
