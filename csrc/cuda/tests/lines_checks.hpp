// Holds what is linear in the rows and columns (lines.hpp) against float64.
#pragma once
#include <random>

#include "host_lines.hpp"

namespace simmim::host {

// The largest error, relative to the sizes of terms. Without positives the joint pairs are on the diagonal.
inline double error_of_lines(bool positives, bool clamps, bool known) {
  int64_t const n = 1100, m = 1109, d = 264, stride = 272;
  float const scale = 0.3f, unit = 8.f, upstream = -1.5f, factor = 0.25f, lo = clamps ? -1.f : -INFINITY, hi = clamps ? 2.f : INFINITY;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  auto const vector = [&](int64_t size) {
    std::vector<float> v(size);
    for (auto& each : v) each = normal(random);
    return v;
  };
  auto const narrow = [](std::vector<float> const& of) {
    std::vector<uint16_t> v;
    for (float each : of) v.push_back(bfloat16_of(each));
    return v;
  };
  struct alignas(16) Block {
    uint16_t of[8];
  };
  auto const aligned = [](std::vector<uint16_t> const& of) {
    std::vector<Block> v(of.size() / 8);
    memcpy(v.data(), of.data(), of.size() * sizeof(uint16_t));
    return v;
  };
  auto const xs = narrow(vector(n * stride)), ys = narrow(vector(m * stride));
  auto const x = aligned(xs), y = aligned(ys);
  auto const row_bias = vector(n), col_bias = vector(m);
  auto rows = vector(n), columns = vector(m), weights = vector(n);
  for (int i = 0; i < n; i += 3) weights[i] = 0.f;
  rows[3] = NAN;  // which has no weight
  std::vector<int64_t> partner(n);
  for (int i = 0; i < n; ++i) partner[i] = positives ? (i * 7) % m : i;
  std::vector<float> scores(n, NAN), by_row(n, NAN), by_column(n, NAN), a(n, NAN), b(m, NAN), g(n, NAN), terms(n, NAN);
  bool const both = !positives;
  JointPairs p{x.data(), y.data(), stride, stride, d, &scale, row_bias.data(), col_bias.data(), positives ? partner.data() : nullptr, lo, hi, int(n), int(m),
               false, scores.data(), {rows.data(), weights.data(), 1, by_row.data(), a.data()},
               {both ? columns.data() : nullptr, weights.data(), 1, both ? by_column.data() : nullptr, both ? b.data() : nullptr}, true, factor, &unit,
               g.data(), terms.data()};
  joint_pairs<Operand::BFLOAT16>(p, int(both ? m : n));
  if (known) {
    p.known = true;
    p.x = p.y = nullptr;
    joint_pairs<Operand::BFLOAT16>(p, int(both ? m : n));
  }
  float value;
  total({terms.data(), n, factor, &value});

  double worst = 0, sum = 0, size_of_sum = 0;
  auto const see = [&](double got, double want, double size, double tolerance) {
    double const error = std::fabs(got - want) / (size + 1e-30) * (1e-6 / tolerance);
    worst = error <= worst ? worst : error == error ? error : INFINITY;
  };
  auto const product = [&](int i, int64_t j, double* size) {
    double sum = 0;
    for (int k = 0; k < d; ++k) {
      double const term = double(float_of(xs[i * stride + k])) * float_of(ys[j * stride + k]);
      sum += term;
      *size += std::fabs(term);
    }
    return sum;
  };
  for (int i = 0; i < n; ++i) {
    double size = 0, s = scale * product(i, partner[i], &size) + row_bias[i] + col_bias[partner[i]], of_others = 0, term = 0;
    see(scores[i], s, size, 1e-6);
    s = scores[i];
    double const joint = std::min(std::max(s, double(lo)), double(hi));
    for (bool column : {false, true}) {
      if (column && !both) continue;
      double const t = (column ? columns : rows)[i] - joint, entropy = std::max(t, 0.) + std::log1p(std::exp(-std::fabs(t)));
      double const weight = weights[i], gradient = weight == 0 ? 0 : factor * weight / (1 + std::exp(-t));
      if (entropy == entropy) see((column ? by_column : by_row)[i], entropy, entropy + 1e-3, 1e-5);
      see((column ? b : a)[i], unit * gradient, std::fabs(unit * gradient) + 1e-6, 1e-5);
      of_others += gradient;
      term += weight == 0 ? 0 : weight * entropy;
    }
    see(g[i], joint == s ? -of_others : 0, std::fabs(of_others) + 1e-6, 1e-5);
    sum += factor * term;
    size_of_sum += std::fabs(factor * term);
  }
  for (int64_t j = n; j < m && both; ++j) see(b[j], 0, 1, 1e-6);
  see(value, sum, size_of_sum, 1e-5);

  // The ends of both sides' gradients.
  struct alignas(16) Four {
    float of[4];
  };
  std::vector<Four> totals(m * d / 4), wide(m * d / 4);
  for (auto& four : totals)
    for (float& v : four.of) v = normal(random);
  std::vector<Block> gradient(n * d / 8);
  std::vector<float> drow = vector(n), dcol = vector(m), dots(n, NAN);
  auto const drow_before = drow, dcol_before = dcol;
  Finish const f{d, &scale, &unit, &upstream,
                 {&totals[0].of[0], int(n), x.data(), y.data(), stride, stride, positives ? partner.data() : nullptr, g.data(), int(n), gradient.data(), false,
                  drow.data(), dots.data()},
                 {&totals[0].of[0], int(m), y.data(), x.data(), stride, stride, nullptr, both ? g.data() : nullptr, int(n), wide.data(), true, dcol.data(),
                  nullptr}};
  finish<Operand::BFLOAT16>(f);
  auto const at = [](auto const& blocks, int64_t k) {
    constexpr int SIZE = sizeof blocks[0].of / sizeof blocks[0].of[0];
    return blocks[k / SIZE].of[k % SIZE];
  };
  for (int64_t i = 0; i < m; ++i) {
    double dot = 0, size = 0;
    for (int k = 0; k < d; ++k) {
      double const before = at(totals, i * d + k) / double(unit);
      if (i < n) {
        double const line = before + double(g[i]) * float_of(ys[partner[i] * stride + k]);
        see(float_of(at(gradient, i * d + k)), upstream * scale * line, std::fabs(upstream * scale * line) + 1e-3, 1. / 200);
        dot += upstream * line * float_of(xs[i * stride + k]);
        size += std::fabs(upstream * line * float_of(xs[i * stride + k]));
      }
      double const line = before + (both && i < n ? double(g[i]) * float_of(xs[i * stride + k]) : 0);
      see(at(wide, i * d + k), upstream * scale * line, std::fabs(line) + 0.1, 1e-5);
    }
    if (i < n) {
      see(dots[i], dot, size, 1e-6);
      see(drow[i], upstream * (drow_before[i] / double(unit) + g[i]), 1, 1e-5);
    }
    see(dcol[i], upstream * (dcol_before[i] / double(unit) + (both && i < n ? g[i] : 0)), 1, 1e-5);
  }

  // A joint score of +inf.
  float const infinite = INFINITY;
  float entropy = 0;
  p = JointPairs{};
  p.lo = -INFINITY, p.hi = INFINITY, p.pairs = 1, p.known = true, p.factor = 1;
  p.scores = const_cast<float*>(&infinite);
  p.by_row = {&scale, nullptr, 0, &entropy, nullptr};
  joint_pair(p, 0, 0);
  return entropy == entropy ? INFINITY : worst;
}

}  // namespace simmim::host
