// Every kernel of every instruction set through the C interface, against loops in double, under sanitize.sh.
//
// Sizes that no block divides, features that end where their allocation ends, every option.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "simmim_cpu.h"

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Case {
  int64_t n, m, d;
  bool biases, ids, clamp, positives;
  int joint, function, threads, dtype;
  bool entropies = false, kept = false;  // of joint pairs, and scores from the forward to the backward
  bool grouped = false;                  // with ids, which are then in order
  bool symmetric = false;                // the columns' operands are the rows' own, and gradients by both come as one
  bool guided = false;                   // some pairs are left out by a guide's scores
};

double softplus(double s) { return std::max(s, 0.0) + std::log1p(std::exp(-std::abs(s))); }

// Statistics and gradients of L = sum_i r_i + sum_j 2 c_j by loops over a whole matrix; of cross entropies, r_i and c_i
// less the joint scores.
struct Truth {
  std::vector<double> rows, columns, dx, dy, drow, dcol, softmax_entropies;
  double dscale = 0;
};

struct Inputs {
  std::vector<float> x, y, a, b;
  std::vector<int64_t> positives, row_ids, col_ids;
  std::vector<float> guide_x, guide_y, guide_limit;  // of whole numbers and halves, so that no rounding matters
  float scale = 0.7f;
};

constexpr int64_t guide_width = 5;

bool above_limit(const Inputs &in, int64_t i, int64_t j) {
  float dot = 0;
  for (int64_t k = 0; k < guide_width; ++k) dot += in.guide_x[i * guide_width + k] * in.guide_y[j * guide_width + k];
  return dot > in.guide_limit[i];
}

bool left_out(const Case &c, const Inputs &in, int64_t i, int64_t j) {
  const bool joint = j == (c.positives ? in.positives[i] : i);
  if (joint && c.entropies) return false;  // made of the others, but of the whole row
  if (joint && c.joint != SIMMIM_COUNTED) return c.joint == SIMMIM_LEFT_OUT;
  if (c.guided && above_limit(in, i, j)) return true;
  return c.ids && (in.row_ids[i] == in.col_ids[j]) != c.grouped;
}

Truth truth_of(const Case &c, const Inputs &in) {
  const bool exponential = c.function == SIMMIM_LOGSUMEXP;
  const double lo = c.clamp ? -0.6 : -infinity, hi = c.clamp ? 0.8 : infinity;
  std::vector<double> raw(c.n * c.m), s(c.n * c.m);
  Truth t{std::vector<double>(c.n), std::vector<double>(c.m), std::vector<double>(c.n * c.d),
          std::vector<double>(c.m * c.d), std::vector<double>(c.n), std::vector<double>(c.m)};
  for (int64_t i = 0; i < c.n; ++i)
    for (int64_t j = 0; j < c.m; ++j) {
      double dot = 0;
      for (int64_t k = 0; k < c.d; ++k) dot += double(in.x[i * c.d + k]) * in.y[j * c.d + k];
      const double score = in.scale * dot + (c.biases ? double(in.a[i]) + in.b[j] : 0.0);
      raw[i * c.m + j] = score;
      s[i * c.m + j] = std::min(std::max(score, lo), hi);
      if (left_out(c, in, i, j)) continue;
      const double value = exponential ? std::exp(s[i * c.m + j]) : softplus(s[i * c.m + j]);
      t.rows[i] += value;
      t.columns[j] += value;
    }
  if (exponential) {
    t.softmax_entropies.resize(c.n);
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t j = 0; j < c.m; ++j) {
        const double share = left_out(c, in, i, j) ? 0 : std::exp(s[i * c.m + j]) / t.rows[i];
        if (share > 0) t.softmax_entropies[i] -= share * std::log(share);
      }
    for (double &r : t.rows) r = std::log(r);
    for (double &r : t.columns) r = std::log(r);
  }
  for (int64_t i = 0; i < c.n; ++i)
    for (int64_t j = 0; j < c.m; ++j) {
      const double score = s[i * c.m + j], before = raw[i * c.m + j];
      if (left_out(c, in, i, j) || before < lo || before > hi) continue;
      double g = exponential ? std::exp(score - t.rows[i]) + (c.entropies && j >= c.n ? 0 : 2) * std::exp(score - t.columns[j])
                                   : 3 / (1 + std::exp(-score));
      if (c.entropies && j == (c.positives ? in.positives[i] : i)) g -= 3;
      t.drow[i] += g;
      t.dcol[j] += g;
      for (int64_t k = 0; k < c.d; ++k) {
        t.dx[i * c.d + k] += g * in.scale * in.y[j * c.d + k];
        t.dy[j * c.d + k] += g * in.scale * in.x[i * c.d + k];
        t.dscale += g * in.x[i * c.d + k] * in.y[j * c.d + k];
      }
    }
  return t;
}

// Cuts values down to bfloat16, which is what is left in place, and gives their bits.
std::vector<uint16_t> bfloat16_of(std::vector<float> &values) {
  std::vector<uint16_t> halves;
  for (float &value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    halves.push_back(uint16_t(bits >> 16));
    bits &= 0xffff0000;
    std::memcpy(&value, &bits, sizeof bits);
  }
  return halves;
}

// Weights may be rounded to bfloat16 where the operands are.
bool close(const char *what, const std::vector<float> &got, const std::vector<double> &want, double tolerance) {
  double most = 0, error = 0;
  for (size_t k = 0; k < want.size(); ++k) {
    most = std::max(most, std::abs(want[k]));
    // Written so that NaN is an error.
    if (!(std::abs(got[k] - want[k]) <= error)) error = std::abs(got[k] - want[k]);
  }
  if (error <= tolerance * most + 1e-6) return true;
  std::printf("  %s: error %g of %g\n", what, error, most);
  return false;
}

// The weighted sum of cross entropies by row, by strips of a few rows, against the same of all rows at once.
bool check_strips(const Case &c, const simmim_problem &p, const std::vector<float> &weights) {
  std::vector<double> want[5];
  for (const int64_t rows : {c.n, int64_t(7)}) {
    std::vector<float> found[] = {std::vector<float>(1), std::vector<float>(c.n * c.d), std::vector<float>(c.m * c.d),
                                  std::vector<float>(c.m), std::vector<float>(1)};
    const simmim_entropy_sum asked{weights.data(), found[0].data(), 0.5, 1, 0, rows};
    simmim_gradients made{};
    made.dx = found[1].data(), made.dy = found[2].data(), made.dcol = found[3].data(), made.dscale = found[4].data();
    if (simmim_cross_entropy_sum(&p, &asked, &made)) return false;
    for (int k = 0; k < 5; ++k) {
      if (rows == c.n) want[k].assign(found[k].begin(), found[k].end());
      else if (!close("by strips", found[k], want[k], 1e-5)) return false;
    }
  }
  return true;
}

// The cross entropies' weighted sum, with its gradients, against the two calls that it stands for.
bool check_sum(const Case &c, const simmim_problem &p, simmim_gradients g, const std::vector<float> &entropies) {
  std::vector<float> weights(c.n), upstream(2 * c.n), value(1), dx(c.n * c.d), dy(c.m * c.d), drow(c.n), dx_sum(dx), dy_sum(dy),
      drow_sum(drow);
  double sum = 0;
  for (int64_t i = 0; i < c.n; ++i) weights[i] = float(i % 3);
  for (int64_t i = 0; i < 2 * c.n; ++i) upstream[i] = weights[i % c.n] / 2, sum += upstream[i] * double(entropies[i]);
  g.grad_entropies = upstream.data(), g.dx = dx.data(), g.drow = drow.data(), g.dscale = g.dcol = nullptr;
  if (!c.symmetric) g.dy = dy.data();
  const simmim_entropy_sum asked{weights.data(), value.data(), 0.5, 1, 1, c.n};
  simmim_gradients made{};
  made.dx = dx_sum.data(), made.dy = c.symmetric ? nullptr : dy_sum.data(), made.drow = drow_sum.data();
  if (simmim_backward(&p, &g) || simmim_cross_entropy_sum(&p, &asked, &made)) return false;
  const auto wide = [](const std::vector<float> &of) { return std::vector<double>(of.begin(), of.end()); };
  bool good = close("sum", value, {sum}, 1e-6) & close("its dx", dx_sum, wide(dx), 1e-6) &
              close("its drow", drow_sum, wide(drow), 1e-6);
  if (!c.symmetric) good &= close("its dy", dy_sum, wide(dy), 1e-6);
  const simmim_gradients none{};
  good &= !simmim_cross_entropy_sum(&p, &asked, &none) & close("sum alone", value, {sum}, 1e-6);
  return c.symmetric ? good : good & check_strips(c, p, weights);
}

bool check(const Case &c) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float> &v, int64_t size) {
    v.resize(size);
    for (float &value : v) value = normal(random);
  };
  Inputs in;
  fill(in.x, c.n * c.d);
  fill(in.y, c.m * c.d);
  fill(in.a, c.n);
  fill(in.b, c.m);
  for (float &value : in.x) value /= std::sqrt(float(c.d));
  for (int64_t i = 0; i < c.n; ++i) in.positives.push_back((7 * i + 3) % c.m), in.row_ids.push_back(c.grouped ? 4 * i / c.n : i % 5);
  for (int64_t j = 0; j < c.m; ++j) in.col_ids.push_back(c.grouped ? 4 * j / c.m : j % 7);
  std::uniform_int_distribution<int> whole(-3, 3);
  for (int64_t k = 0; k < c.n * guide_width; ++k) in.guide_x.push_back(float(whole(random)));
  for (int64_t k = 0; k < c.m * guide_width; ++k) in.guide_y.push_back(float(whole(random)));
  for (int64_t i = 0; i < c.n; ++i) in.guide_limit.push_back(float(whole(random)) + 4.5f);
  if (c.symmetric) {
    in.y = in.x, in.b = in.a, in.col_ids = in.row_ids;
    for (int64_t i = 0; i < c.n; ++i) in.positives[i] = c.n - 1 - i;
  }
  simmim_problem p{};
  std::vector<uint16_t> x, y;
  if (c.dtype == SIMMIM_BFLOAT16) x = bfloat16_of(in.x), y = bfloat16_of(in.y);
  p.n = c.n, p.m = c.m, p.d = c.d;
  p.x = x.empty() ? (const void *)in.x.data() : x.data(), p.y = y.empty() ? (const void *)in.y.data() : y.data();
  p.x_row = p.y_row = c.d, p.x_column = p.y_column = 1;
  p.dtype = c.dtype, p.function = c.function, p.joint = c.joint, p.threads = c.threads, p.scale = in.scale;
  p.symmetric = c.symmetric;
  p.lo = c.clamp ? -0.6 : -infinity, p.hi = c.clamp ? 0.8 : infinity;
  if (c.biases) p.row_bias = in.a.data(), p.col_bias = in.b.data();
  if (c.positives) p.positives = in.positives.data();
  if (c.ids) p.row_ids = in.row_ids.data(), p.col_ids = in.col_ids.data(), p.ids = 1, p.grouped = c.grouped;
  if (c.guided) p.guide_x = in.guide_x.data(), p.guide_y = in.guide_y.data();
  if (c.guided) p.guide_limit = in.guide_limit.data(), p.guide_d = guide_width;
  std::vector<float> rows(c.n), columns(c.m), ones(c.n, 1.0f), twos(c.m, 2.0f), dx(c.n * c.d), dy(c.m * c.d), drow(c.n),
      dcol(c.m), dscale(1), softmax_entropies(c.n);
  simmim_gradients g{};
  g.rows = rows.data(), g.columns = columns.data(), g.grad_rows = ones.data(), g.grad_columns = twos.data();
  g.dx = dx.data(), g.dy = dy.data(), g.drow = drow.data(), g.dcol = dcol.data(), g.dscale = dscale.data();
  if (c.symmetric) g.dy = g.dcol = nullptr;
  simmim_values v{rows.data(), columns.data(), nullptr, nullptr, nullptr, nullptr};
  const bool by_softmax = c.function == SIMMIM_LOGSUMEXP && !c.symmetric && !c.entropies;
  if (by_softmax) v.softmax_entropies = softmax_entropies.data();
  std::vector<float> joint(c.n), entropies(2 * c.n), scores(c.n * ((c.m + SIMMIM_ROW_STEP - 1) / SIMMIM_ROW_STEP) * SIMMIM_ROW_STEP);
  std::vector<float> grad_entropies(c.n, 1.0f);
  grad_entropies.resize(2 * c.n, 2.0f);
  if (c.entropies) v.joint = joint.data(), v.entropies = entropies.data();
  if (c.entropies) g.joint = joint.data(), g.grad_entropies = grad_entropies.data();
  if (c.kept) g.scores = v.scores = scores.data();
  if (simmim_forward(&p, &v) || simmim_backward(&p, &g)) {
    std::printf("  no memory\n");
    return false;
  }
  Truth t = truth_of(c, in);
  for (size_t k = 0; c.symmetric && k < t.dx.size(); ++k) t.dx[k] += t.dy[k];
  for (size_t k = 0; c.symmetric && k < t.drow.size(); ++k) t.drow[k] += t.dcol[k];
  const double sums = 2e-5, products = c.dtype == SIMMIM_BFLOAT16 ? 4e-3 : sums;
  bool good;
  if (c.entropies) {
    // Statistics are of the other pairs: what is compared is made of them and the joint scores.
    std::vector<double> want(t.rows);
    want.insert(want.end(), t.columns.begin(), t.columns.begin() + c.n);
    for (int64_t i = 0; i < 2 * c.n; ++i) want[i] -= joint[i % c.n];
    good = close("entropies", entropies, want, sums);
  } else {
    good = close("rows", rows, t.rows, sums) & close("columns", columns, t.columns, sums);
    if (by_softmax) good &= close("softmax entropies", softmax_entropies, t.softmax_entropies, sums);
  }
  good &= close("drow", drow, t.drow, sums) & close("dx", dx, t.dx, products);
  if (!c.symmetric) good &= close("dcol", dcol, t.dcol, sums) & close("dy", dy, t.dy, products);
  if (c.entropies) good &= check_sum(c, p, g, entropies);
  // One number, by cancellation small beside what it sums.
  return good & (c.dtype == SIMMIM_BFLOAT16 || close("dscale", dscale, {t.dscale}, sums));
}

struct NetworkCase {
  int64_t n, m, d;
  int layers, threads;
};

// A network's scores: L = sum_i r_i + sum_j 2 c_j of log-sum-exps, and all gradients.
bool check_network(const NetworkCase &c) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const auto fill = [&](int64_t size, double scale) {
    std::vector<float> made(size);
    for (float &value : made) value = float(scale) * normal(random);
    return made;
  };
  const int64_t n = c.n, m = c.m, d = c.d;
  const std::vector<float> x = fill(n * d, 1), y = fill(m * d, 1), weight = fill(d * d, std::sqrt(2.0 / d)),
                           weight_bias = fill(d, 0.3), output = fill(d, 1 / std::sqrt(double(d)));
  std::vector<double> s(n * m), rows(n), columns(m), first(d), second(d);
  const auto hidden = [&](int64_t i, int64_t j) {
    for (int64_t k = 0; k < d; ++k) first[k] = std::max(double(x[i * d + k] + y[j * d + k]), 0.0);
    for (int64_t k = 0; k < d && c.layers == 2; ++k) {
      double sum = weight_bias[k];
      for (int64_t f = 0; f < d; ++f) sum += weight[k * d + f] * first[f];
      second[k] = std::max(sum, 0.0);
    }
  };
  const std::vector<double> &last = c.layers == 2 ? second : first;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      hidden(i, j);
      double &score = s[i * m + j] = 0.5;
      for (int64_t k = 0; k < d; ++k) score += output[k] * last[k];
      rows[i] += std::exp(score), columns[j] += std::exp(score);
    }
  for (double &r : rows) r = std::log(r);
  for (double &r : columns) r = std::log(r);
  std::vector<double> dx(n * d), dy(m * d), dweight(d * d), dweight_bias(d), doutput(d), doutput_bias(1), of_first(d);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      hidden(i, j);
      const double g = std::exp(s[i * m + j] - rows[i]) + 2 * std::exp(s[i * m + j] - columns[j]);
      doutput_bias[0] += g;
      std::fill(of_first.begin(), of_first.end(), 0);
      for (int64_t k = 0; k < d; ++k) {
        doutput[k] += g * last[k];
        if (last[k] <= 0) continue;
        if (c.layers == 1) of_first[k] = g * output[k];
        if (c.layers == 1) continue;
        dweight_bias[k] += g * output[k];
        for (int64_t f = 0; f < d; ++f) {
          dweight[k * d + f] += g * output[k] * first[f];
          if (first[f] > 0) of_first[f] += g * output[k] * weight[k * d + f];
        }
      }
      for (int64_t k = 0; k < d; ++k) dx[i * d + k] += of_first[k], dy[j * d + k] += of_first[k];
    }

  simmim_problem p{};
  p.n = n, p.m = m, p.d = d, p.x = x.data(), p.y = y.data(), p.x_row = p.y_row = d, p.x_column = p.y_column = 1;
  p.dtype = SIMMIM_FLOAT32, p.function = SIMMIM_LOGSUMEXP, p.threads = c.threads, p.scale = 1;
  p.lo = -infinity, p.hi = infinity, p.layers = c.layers, p.output = output.data(), p.output_bias = 0.5;
  if (c.layers == 2) p.weight = weight.data(), p.weight_bias = weight_bias.data();
  const auto room = [](const std::vector<double> &of) { return std::vector<float>(of.size(), NAN); };
  std::vector<float> got_rows = room(rows), got_columns = room(columns), ones(n, 1.0f), twos(m, 2.0f);
  std::vector<float> got[] = {room(dx), room(dy), room(doutput), room(doutput_bias), room(dweight), room(dweight_bias)};
  simmim_values v{got_rows.data(), got_columns.data(), nullptr, nullptr, nullptr, nullptr};
  simmim_gradients g{};
  g.rows = got_rows.data(), g.columns = got_columns.data(), g.grad_rows = ones.data(), g.grad_columns = twos.data();
  g.dx = got[0].data(), g.dy = got[1].data(), g.doutput = got[2].data(), g.doutput_bias = got[3].data();
  if (c.layers == 2) g.dweight = got[4].data(), g.dweight_bias = got[5].data();
  if (simmim_forward(&p, &v) || simmim_backward(&p, &g)) {
    std::printf("  no memory\n");
    return false;
  }
  const double allowed = 2e-5;
  bool good = close("rows", got_rows, rows, allowed) & close("columns", got_columns, columns, allowed) &
              close("dx", got[0], dx, allowed) & close("dy", got[1], dy, allowed) &
              close("doutput", got[2], doutput, allowed) & close("doutput_bias", got[3], doutput_bias, allowed);
  if (c.layers == 2) good &= close("dweight", got[4], dweight, allowed) & close("dweight_bias", got[5], dweight_bias, allowed);
  return good;
}

}  // namespace

int main() {
  std::stringstream names(simmim_instruction_sets());
  bool good = true;
  for (std::string name; std::getline(names, name, ',');) {
    simmim_choose(name.c_str());
    for (const int dtype : {SIMMIM_FLOAT32, SIMMIM_BFLOAT16})
      for (const bool kept : {false, true})
        for (const Case &c : {Case{1, 1, 1, true, false, false, false, SIMMIM_LEFT_OUT, SIMMIM_LOGSUMEXP, 1, dtype, true, kept},
                              Case{97, 101, 5, true, false, false, false, SIMMIM_LEFT_OUT, SIMMIM_LOGSUMEXP, 2, dtype, true, kept},
                              Case{65, 1000, 3, false, false, false, false, SIMMIM_LEFT_OUT, SIMMIM_LOGSUMEXP, 3, dtype, true, kept},
                              Case{210, 210, 7, true, false, false, true, SIMMIM_LEFT_OUT, SIMMIM_LOGSUMEXP, 3, dtype, true, kept, false, true},
                              Case{97, 301, 5, true, false, false, false, SIMMIM_LEFT_OUT, SIMMIM_LOGSUMEXP, 2, dtype, true, kept, false, false, true}}) {
          const bool passed = check(c);
          if (!passed)
            std::printf("%s, cross entropies, dtype %d, kept %d, %d x %d x %d: failed\n", name.c_str(), dtype, int(kept),
                        int(c.n), int(c.m), int(c.d));
          good &= passed;
        }
    for (const int layers : {1, 2})
      for (const NetworkCase &c : {NetworkCase{1, 1, 1, layers, 1}, NetworkCase{7, 5, 3, layers, 2},
                                   NetworkCase{37, 101, 17, layers, 3}, NetworkCase{3, 500, 33, layers, 2},
                                   NetworkCase{101, 19, 50, layers, 2}}) {
        const bool passed = check_network(c);
        if (!passed)
          std::printf("%s, network of %d, %d x %d x %d: failed\n", name.c_str(), layers, int(c.n), int(c.m), int(c.d));
        good &= passed;
      }
    for (const int function : {SIMMIM_LOGSUMEXP, SIMMIM_SOFTPLUS})
      for (const int dtype : {SIMMIM_FLOAT32, SIMMIM_BFLOAT16})
        for (const Case &c : {Case{1, 1, 1, false, false, false, false, SIMMIM_COUNTED, function, 1, dtype},
                              Case{37, 53, 5, true, false, true, false, SIMMIM_COUNTED, function, 2, dtype},
                              Case{100, 131, 33, true, true, false, true, SIMMIM_KEPT, function, 3, dtype},
                              Case{70, 97, 17, false, true, true, false, SIMMIM_LEFT_OUT, function, 2, dtype},
                              Case{65, 95, 3, true, false, false, false, SIMMIM_COUNTED, function, 2, dtype},
                              Case{65, 1000, 3, false, false, false, true, SIMMIM_LEFT_OUT, function, 2, dtype},
                              Case{400, 500, 5, true, true, true, false, SIMMIM_LEFT_OUT, function, 3, dtype, false, false, true},
                              Case{70, 97, 3, true, true, false, true, SIMMIM_KEPT, function, 2, dtype, false, false, true},
                              Case{103, 500, 7, true, true, false, true, SIMMIM_KEPT, function, 3, dtype, false, false, false, false, true},
                              Case{65, 97, 3, false, false, true, false, SIMMIM_COUNTED, function, 2, dtype, false, false, false, false, true},
                              Case{1, 1, 3, true, false, true, false, SIMMIM_COUNTED, function, 2, dtype, false, false, false, true},
                              Case{300, 300, 3, true, true, true, true, SIMMIM_KEPT, function, 3, dtype, false, false, false, true},
                              Case{1100, 1100, 2, true, false, false, false, SIMMIM_LEFT_OUT, function, 3, dtype, false, false, false, true},
                              Case{410, 410, 3, true, true, false, false, SIMMIM_LEFT_OUT, function, 2, dtype, false, false, true, true}}) {
          const bool passed = check(c);
          if (!passed)
            std::printf("%s, function %d, dtype %d, %d x %d x %d: failed\n", name.c_str(), function, dtype, int(c.n),
                        int(c.m), int(c.d));
          good &= passed;
        }
  }
  std::printf("%s: %s\n", simmim_instruction_sets(), good ? "passed" : "FAILED");
  return good ? 0 : 1;
}
