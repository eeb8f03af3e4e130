// Exponentials and logarithms of whole vectors: no branches, no tables, no reliance on -ffast-math.
//
// Compiled once for every instruction set, within its namespace SIMMIM_ISA. The bounds are for float and double alike
// where only one is given, with and without fused multiply-add; a denormal result may be 0 instead. NaN gives NaN.
#pragma once

#include <cstdint>
#include <limits>

#include "blocks.hpp"

namespace SIMMIM_ISA {

// The format of T, and minimax polynomials for the relative error of e^r on |r| <= log(2)/2 and of log(1+f) on
// sqrt(1/2) <= 1+f <= sqrt(2). log(2) is split into a part of few bits, whose product with an exponent is exact, and
// the rest. Adding the rounder, 1.5 * 2^mantissa, rounds to the nearest integer and leaves it in the low bits.
template <class T> struct Format;

template <> struct Format<float> {
  typedef uint32_t Word;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr Word one = 0x3f800000, sqrt_half = 0x3f3504f3;
  static constexpr float rounder = 0x1.8p23f, log2_e = 1.44269504f;
  static constexpr float log_2_high = 0.693359375f, log_2_low = -2.12194440e-4f;
  static constexpr float exp_least = -87.3365402f, exp_greatest = 88.7228317f;
  // (e^r - 1 - r) / r^2, to 2^-28
  static constexpr float exp_tail[] = {0.49999994f, 0.16666521f, 0.04166839f, 0.008368735f, 0.001381456f};
  // (log(1+f) - f + f^2/2) / f^3, to 2^-27
  static constexpr float log_tail[] = {0.3333333f,   -0.2500082f, 0.20001227f, -0.16623357f,
                                       0.14201757f, -0.1316018f, 0.12761576f, -0.07634501f};
};

template <> struct Format<double> {
  typedef uint64_t Word;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr Word one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double rounder = 0x1.8p52, log2_e = 1.4426950408889634;
  static constexpr double log_2_high = 6.93147180369123816490e-01, log_2_low = 1.90821492927058770002e-10;
  static constexpr double exp_least = -708.39641853226408, exp_greatest = 709.78271289338397;
  // (e^r - 1 - r) / r^2, to 2^-57
  static constexpr double exp_tail[] = {0.5000000000000011,     0.16666666666666413,    0.04166666666652987,
                                        0.0083333333334948,     0.0013888888943716122,  0.0001984126950604739,
                                        2.480149300003918e-05,  2.755758666030513e-06,  2.763028670774468e-07,
                                        2.500003196559299e-08};
  // (log((1+s) / (1-s)) - 2s) / s^3 in s^2, to 2^-58
  static constexpr double log_tail[] = {0.6666666666666734,  0.39999999999414343, 0.28571428742469346,
                                        0.2222219856411863,  0.18183564830734514, 0.15314036825741872,
                                        0.14796094870041165};
};

template <class T> struct Words {
  typedef typename Format<T>::Word type __attribute__((vector_size(SIMMIM_VECTOR_BYTES)));
};
template <class T> using WordVector = typename Words<T>::type;
template <class T> inline Vector<T> from_bits(WordVector<T> bits) { return (Vector<T>)bits; }
template <class T> inline WordVector<T> bits_of(Vector<T> x) { return (WordVector<T>)x; }

template <class T, int count> inline Vector<T> polynomial(const T (&coefficients)[count], Vector<T> x) {
  Vector<T> sum = all(coefficients[count - 1]);
#pragma GCC unroll 16
  for (int i = count - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// e^x = 2^k (1 + rest), sqrt(1/2) <= 1 + rest <= sqrt(2), with k shifted to where the exponent is. Means nothing where
// e^x is not a normal number.
template <class T> struct Power {
  Vector<T> rest;
  WordVector<T> shifted;
};

// Cody and Waite: r = x - k log(2), the part of log(2) with few bits first.
template <class T> inline Power<T> power_of(Vector<T> x) {
  using F = Format<T>;
  const Vector<T> rounded = x * F::log2_e + F::rounder, k = rounded - F::rounder;
  const Vector<T> r = (x - k * F::log_2_high) - k * F::log_2_low;
  return {r * r * polynomial<T>(F::exp_tail, r) + r, bits_of<T>(rounded) << F::mantissa};
}

// 2^k (1 + rest) by adding k to the exponent, which is right for normal results; the others are put in by comparison.
template <class T> inline Vector<T> exp_of(Vector<T> x, Power<T> power) {
  using F = Format<T>;
  const Vector<T> y = from_bits<T>(bits_of<T>(power.rest + T(1)) + power.shifted);
  const Vector<T> normal_or_zero = x >= all(F::exp_least) ? y : Vector<T>{};
  const Vector<T> infinite_or_nan = x + std::numeric_limits<T>::infinity();
  return x <= all(F::exp_greatest) ? normal_or_zero : infinite_or_nan;
}

// e^x; 2 ulp.
template <class T> inline Vector<T> exp_of(Vector<T> x) { return exp_of<T>(x, power_of<T>(x)); }

// e^x - 1 = 2^k rest + (2^k - 1), which loses nothing near 0; beyond 32 the 1 is subtracted from e^x, so 2^k always is
// a normal number where it is used. 2 ulp in float, 3 in double.
template <class T> inline Vector<T> expm1_of(Vector<T> x, Power<T> power) {
  const Vector<T> two_k = from_bits<T>(power.shifted + Format<T>::one);
  const Vector<T> near = power.rest * two_k + (two_k - T(1)), far = exp_of<T>(x, power) - T(1);
  return x * x < all(T(32 * 32)) ? near : far;
}
template <class T> inline Vector<T> expm1_of(Vector<T> x) { return expm1_of<T>(x, power_of<T>(x)); }

// k log(2) + log(1+f) for sqrt(1/2) <= 1+f <= sqrt(2): f and k log(2) are exact, so everything small is summed first.
inline Vector<float> log_tail_of(Vector<float> f) {
  return f * f * f * polynomial<float>(Format<float>::log_tail, f);
}
// A polynomial in f would be long: log(1+f) = log((1+s) / (1-s)) = 2s + s^3(...), where 2s = f - s f.
inline Vector<double> log_tail_of(Vector<double> f) {
  const Vector<double> s = f / (f + 2.0), z = s * s;
  return s * (0.5 * f * f + z * polynomial<double>(Format<double>::log_tail, z));
}
template <class T> inline Vector<T> log_of_parts(Vector<T> k, Vector<T> f) {
  using F = Format<T>;
  return k * F::log_2_high + (f + ((log_tail_of(f) + k * F::log_2_low) - T(0.5) * f * f));
}

// x = 2^k m with sqrt(1/2) <= m < sqrt(2), for x > 0, a denormal x by way of a multiple of it. k becomes a number by
// being written into the low bits of a large power of 2.
template <class T> struct Scaled {
  Vector<T> k, m;
  WordVector<T> shifted;
};
template <class T> inline Scaled<T> scaled(Vector<T> x) {
  using F = Format<T>;
  constexpr T large = F::rounder / T(1.5), up = 2 * large;
  const auto denormal = x < all(std::numeric_limits<T>::min());
  const Vector<T> x_up = x * up, normal = denormal ? x_up : x;
  const Vector<T> to_k = denormal ? all(-(large + T(F::bias + F::mantissa + 1))) : all(-(large + T(F::bias)));
  const WordVector<T> biased = (bits_of<T>(normal) + (F::one - F::sqrt_half)) >> F::mantissa;
  const WordVector<T> shifted = (biased - typename F::Word(F::bias)) << F::mantissa;
  return {from_bits<T>(biased + bits_of<T>(all(large))) + to_k, from_bits<T>(bits_of<T>(normal) - shifted), shifted};
}

// The logarithm y of w, with the ends put in: -inf at 0, NaN below, inf at inf.
template <class T> inline Vector<T> log_with_ends(Vector<T> w, Vector<T> y) {
  const Vector<T> infinity = all(std::numeric_limits<T>::infinity()), nan = all(std::numeric_limits<T>::quiet_NaN());
  const Vector<T> at_most_zero = w == Vector<T>{} ? -infinity : nan;
  const Vector<T> finite_or_not = w < infinity ? y : w;
  return w > Vector<T>{} ? finite_or_not : at_most_zero;
}

// log(x); 2 ulp.
template <class T> inline Vector<T> log_of(Vector<T> x) {
  const Scaled<T> s = scaled<T>(x);
  return log_with_ends<T>(x, log_of_parts<T>(s.k, s.m - T(1)));
}

// log(1+u); 2 ulp. What rounding takes from w = 1+u is added to the scaled part of w, in two steps because 2^-k alone
// is no normal number for the greatest k.
template <class T> inline Vector<T> log1p_of(Vector<T> u) {
  const Vector<T> w = u + T(1), lost = u - (w - T(1));
  const Scaled<T> s = scaled<T>(w);
  const Vector<T> twice = from_bits<T>(bits_of<T>(all(T(2))) - s.shifted);
  return log_with_ends<T>(w, log_of_parts<T>(s.k, (s.m - T(1)) + T(0.5) * lost * twice));
}

// log(1 + e^s) = max(s, 0) + log(1+u), u = e^-|s|; 2 ulp. Since 0 <= u <= 1, 1+u needs no scaling but by 1/2.
template <class T> inline Vector<T> softplus_of(Vector<T> s, Vector<T> u) {
  const Vector<T> zero{}, one = all(T(1));
  const auto halve = u > all(T(0.4142135623730950));
  const Vector<T> halved = T(0.5) * u - T(0.5);
  const Vector<T> y = log_of_parts<T>(halve ? one : zero, halve ? halved : u);
  return (s > zero ? s : zero) + y;
}
template <class T> inline Vector<T> exp_of_minus_abs(Vector<T> s) {
  const Vector<T> minus_s = -s;
  return exp_of<T>(s < Vector<T>{} ? s : minus_s);
}
template <class T> inline Vector<T> softplus_of(Vector<T> s) { return softplus_of<T>(s, exp_of_minus_abs<T>(s)); }

// 1 / (1 + e^-s); 3 ulp.
template <class T> inline Vector<T> sigmoid_of(Vector<T> s) { return T(1) / (exp_of<T>(-s) + T(1)); }

// The same of s and u = e^-|s|, which softplus wants, too; 4 ulp.
template <class T> inline Vector<T> sigmoid_of(Vector<T> s, Vector<T> u) {
  const Vector<T> of_positive = T(1) / (u + T(1));
  return s < Vector<T>{} ? u * of_positive : of_positive;
}

// log(1 - e^s), s < 0; 4 ulp. w = 1 - e^s from expm1 is exact enough for its logarithm until k = 0: there f = w - 1 is
// -e^s before rounding.
template <class T> inline Vector<T> log1mexp_of(Vector<T> s) {
  const Power<T> power = power_of<T>(s);
  const Vector<T> w = -expm1_of<T>(s, power), minus_exp = -exp_of<T>(s, power);
  const Scaled<T> parts = scaled<T>(w);
  const Vector<T> f = parts.m - T(1);
  return log_with_ends<T>(w, log_of_parts<T>(parts.k, parts.k == Vector<T>{} ? minus_exp : f));
}

// The derivative of log(1 - e^s): -e^s / (1 - e^s) = -1 / (e^-s - 1); 3 ulp.
template <class T> inline Vector<T> log1mexp_slope(Vector<T> s) { return T(-1) / expm1_of<T>(-s); }

}  // namespace SIMMIM_ISA
