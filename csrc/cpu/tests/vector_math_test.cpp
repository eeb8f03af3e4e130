// The greatest error of every function of vector_math.hpp against a wider type, and its special values.
//
// vector_math_test [STRIDE]: every STRIDE-th of all float32 values, 15 without it (odd, so that all low bits occur).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "vector_math.hpp"

using namespace SIMMIM_ISA;

namespace {

template <class T> struct Wider;
template <> struct Wider<float> { typedef double type; };
template <> struct Wider<double> { typedef long double type; };
template <class T> using Wide = typename Wider<T>::type;

template <class W> W softplus_reference(W s) { return s > 0 ? s + std::log1p(std::exp(-s)) : std::log1p(std::exp(s)); }
template <class W> W sigmoid_reference(W s) { return 1 / (1 + std::exp(-s)); }
template <class W> W log1mexp_reference(W s) {
  return s > W(-0.7) ? std::log(-std::expm1(s)) : std::log1p(-std::exp(s));
}
// -inf at both zeros: the limit from below.
template <class W> W log1mexp_slope_reference(W s) { return -1 / (s == 0 ? W(0) : std::expm1(-s)); }

template <class T> struct Function {
  const char *name;
  Vector<T> (*vector)(Vector<T>);
  Wide<T> (*reference)(Wide<T>);
  double bound;
  double greatest = 0;
  T at = 0;
};

template <class T> std::vector<Function<T>> functions() {
  typedef Wide<T> W;
  const bool single = sizeof(T) == sizeof(float);
  return {
      {"exp", exp_of<T>, [](W x) { return std::exp(x); }, 2},
      {"log", log_of<T>, [](W x) { return std::log(x); }, 2},
      {"log1p", log1p_of<T>, [](W x) { return std::log1p(x); }, 2},
      {"expm1", expm1_of<T>, [](W x) { return std::expm1(x); }, single ? 2.0 : 3.0},
      {"softplus", softplus_of<T>, softplus_reference<W>, 2},
      {"sigmoid", sigmoid_of<T>, sigmoid_reference<W>, 3},
      {"sigmoid of e^-|s|", [](Vector<T> s) { return sigmoid_of<T>(s, exp_of_minus_abs<T>(s)); }, sigmoid_reference<W>, 4},
      {"log1mexp", log1mexp_of<T>, log1mexp_reference<W>, 4},
      {"log1mexp_slope", log1mexp_slope<T>, log1mexp_slope_reference<W>, 3},
  };
}

// In units of the last place of the exact value; infinite where one is NaN or infinite and the other is not the same.
template <class T> double error_in_ulp(T value, Wide<T> exact) {
  const T rounded = T(exact);
  if (std::isnan(value) || std::isnan(rounded) || std::isinf(value) || std::isinf(rounded)) {
    const bool same = std::isnan(rounded) ? std::isnan(value) : value == rounded;
    return same ? 0 : std::numeric_limits<double>::infinity();
  }
  const T least = std::numeric_limits<T>::min();
  if (std::fabs(exact) < least && value == 0) return 0;
  const int exponent = std::ilogb(std::max(Wide<T>(std::fabs(exact)), Wide<T>(least)));
  const Wide<T> difference = value - exact;
  return double(std::fabs(std::ldexp(difference, std::numeric_limits<T>::digits - 1 - exponent)));
}

template <class T> void compare(Function<T> &f, const std::vector<T> &arguments) {
  constexpr int lanes = Vectors<T>::lanes;
  for (size_t i = 0; i + lanes <= arguments.size(); i += lanes) {
    T values[lanes];
    store(values, f.vector(load(&arguments[i])));
    for (int k = 0; k < lanes; ++k) {
      const double error = error_in_ulp(values[k], f.reference(Wide<T>(arguments[i + k])));
      if (error > f.greatest) f.greatest = error, f.at = arguments[i + k];
    }
  }
}

template <class T, class Word> T from_word(Word word) {
  T value;
  static_assert(sizeof value == sizeof word, "");
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// Both signs of what separates ranges, 40 neighbours to either side.
template <class T> std::vector<T> borders() {
  typedef std::numeric_limits<T> L;
  std::vector<T> all_of_them;
  for (T x : {T(0), L::denorm_min(), L::min(), L::epsilon(), T(0.5), T(1), T(2), T(32), T(0.34657359027997264),
              T(0.69314718055994531), T(0.70710678118654752), T(0.29289321881345248), T(0.41421356237309505),
              T(1.4142135623730951), T(1.0397207708399179), std::log(L::max()), -std::log(L::min()),
              -std::log(L::denorm_min()), L::max(), L::infinity(), L::quiet_NaN()}) {
    T up = x, down = x;
    for (int i = 0; i < 40; ++i) {
      for (T y : {up, -up, down, -down}) all_of_them.push_back(y);
      up = std::nextafter(up, L::infinity());
      down = std::nextafter(down, -L::infinity());
    }
  }
  for (int k = L::min_exponent; k <= L::max_exponent; ++k)
    for (T y : {T(0.5), T(-0.5), T(1) - L::epsilon() / 2}) all_of_them.push_back(std::ldexp(y, k));
  all_of_them.push_back(from_word<T>(typename Format<T>::Word(~typename Format<T>::Word(0))));
  while (all_of_them.size() % 64) all_of_them.push_back(T(0));
  return all_of_them;
}

constexpr size_t chunk = 1 << 14;

void compare_everywhere(std::vector<Function<float>> &all_functions, uint64_t stride) {
  std::vector<float> arguments;
  for (uint64_t word = 0; word < uint64_t(1) << 32;) {
    arguments.clear();
    for (; arguments.size() < chunk; word += stride) arguments.push_back(from_word<float>(uint32_t(word)));
    for (auto &f : all_functions) compare(f, arguments);
  }
}

void compare_everywhere(std::vector<Function<double>> &all_functions, uint64_t stride) {
  std::mt19937_64 random(1);
  std::vector<double> arguments(chunk);
  const uint64_t chunks = std::max<uint64_t>(1, 1500 / stride);
  for (double width : {0.0, 1e-3, 1.0, 4.0, 40.0, 760.0})
    for (uint64_t i = 0; i < chunks; ++i) {
      for (double &x : arguments)  // any bits, or uniform on [-width, width]
        x = width == 0 ? from_word<double>(uint64_t(random())) : width * (double(random()) * 0x1p-63 - 1);
      for (auto &f : all_functions) compare(f, arguments);
    }
}

template <class T> bool check(const char *type, uint64_t stride) {
  auto all_functions = functions<T>();
  for (auto &f : all_functions) compare(f, borders<T>());
  compare_everywhere(all_functions, stride);
  // Where long double is no wider than double, the references err too.
  const double reference_error = std::numeric_limits<Wide<T>>::digits > std::numeric_limits<T>::digits ? 0 : 2;
  bool good = true;
  for (const auto &f : all_functions) {
    const bool within = f.greatest <= f.bound + reference_error;
    std::printf("%-8s %-15s %6.3f ulp at %.17g%s\n", type, f.name, f.greatest, double(f.at),
                within ? "" : "  TOO MUCH");
    good = good && within;
  }
  return good;
}

// What the ends must be, written down rather than taken from a reference.
template <class T> bool check_ends(const char *type) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const struct {
    const char *name;
    Vector<T> (*function)(Vector<T>);
    T argument, value;
  } ends[] = {
      {"exp", exp_of<T>, inf, inf},
      {"exp", exp_of<T>, -inf, 0},
      {"exp", exp_of<T>, std::numeric_limits<T>::max(), inf},
      {"exp", exp_of<T>, std::numeric_limits<T>::lowest(), 0},
      {"exp", exp_of<T>, 0, 1},
      {"exp", exp_of<T>, nan, nan},
      {"log", log_of<T>, 0, -inf},
      {"log", log_of<T>, -1, nan},
      {"log", log_of<T>, -inf, nan},
      {"log", log_of<T>, inf, inf},
      {"log", log_of<T>, 1, 0},
      {"log", log_of<T>, nan, nan},
      {"log1p", log1p_of<T>, -1, -inf},
      {"log1p", log1p_of<T>, -2, nan},
      {"log1p", log1p_of<T>, inf, inf},
      {"log1p", log1p_of<T>, 0, 0},
      {"log1p", log1p_of<T>, nan, nan},
      {"expm1", expm1_of<T>, inf, inf},
      {"expm1", expm1_of<T>, -inf, -1},
      {"expm1", expm1_of<T>, 0, 0},
      {"expm1", expm1_of<T>, nan, nan},
      {"softplus", softplus_of<T>, inf, inf},
      {"softplus", softplus_of<T>, -inf, 0},
      {"softplus", softplus_of<T>, nan, nan},
      {"sigmoid", sigmoid_of<T>, inf, 1},
      {"sigmoid", sigmoid_of<T>, -inf, 0},
      {"sigmoid", sigmoid_of<T>, 0, T(0.5)},
      {"sigmoid", sigmoid_of<T>, nan, nan},
      {"log1mexp", log1mexp_of<T>, 0, -inf},
      {"log1mexp", log1mexp_of<T>, 1, nan},
      {"log1mexp", log1mexp_of<T>, inf, nan},
      {"log1mexp", log1mexp_of<T>, -inf, 0},
      {"log1mexp", log1mexp_of<T>, nan, nan},
      {"log1mexp_slope", log1mexp_slope<T>, 0, -inf},
      {"log1mexp_slope", log1mexp_slope<T>, -inf, 0},
      {"log1mexp_slope", log1mexp_slope<T>, nan, nan},
  };
  bool good = true;
  for (const auto &end : ends) {
    T values[Vectors<T>::lanes];
    store(values, end.function(all(end.argument)));
    for (T value : values)
      if (std::isnan(end.value) ? !std::isnan(value) : value != end.value) {
        std::printf("%s %s(%g) is %g, not %g\n", type, end.name, double(end.argument), double(value),
                    double(end.value));
        good = false;
        break;
      }
  }
  return good;
}

}  // namespace

int main(int count, char **arguments) {
  const uint64_t stride = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 15;
  if (stride == 0) return std::puts("STRIDE is a positive number"), 1;
  bool good = check_ends<float>("float32");
  good = check_ends<double>("float64") && good;
  good = check<float>("float32", stride) && good;
  good = check<double>("float64", stride) && good;
  if (!good) std::puts("FAILED");
  return good ? 0 : 1;
}
