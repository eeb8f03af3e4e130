// Functions of a score in nats whose sums over pairs are statistics, each with its derivative, in float32. One exponential
// serves both. Polynomials go through the Chebyshev nodes of their interval, to 1.2e-7 of the result.
#pragma once
#include "tile.hpp"

namespace simmim {

struct Point {
  float value, slope;
};

// `Function::of(scores, found)` takes several; a function that is short takes each by itself.
template <class Function>
struct OneByOne {
  template <int K>
  SIMMIM_DEVICE static void of(float const (&s)[K], Point (&found)[K]) {
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) found[k] = Function::of_one(s[k]);
  }
};

struct Identity : OneByOne<Identity> {
  SIMMIM_DEVICE static Point of_one(float s) { return {s, 1.f}; }
};

struct Square : OneByOne<Square> {
  SIMMIM_DEVICE static Point of_one(float s) { return {s * s, 2.f * s}; }
};

// log(1 + e^s) as max(s, 0) + log(1 + u), u = e^-|s|: u times a polynomial. Of several scores step by step, as the compiler
// would make one after the other, each step of which waits for the one before.
struct Softplus {
  template <int K>
  SIMMIM_DEVICE static void of(float const (&s)[K], Point (&found)[K]) {
    constexpr float COEFFICIENTS[] = {-0.029074065387248993f, 0.0775160863995552f, -0.13602247834205627f, 0.19076880812644958f,
                                      -0.2483539879322052f,   0.3331812024116516f, -0.4999944567680359f,  0.9999999403953552f};
    float u[K], p[K], r[K];
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) u[k] = exp2_of(-fabsf(s[k]) * LOG2_E);
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) r[k] = reciprocal_of(1.f + u[k]);
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) p[k] = 0.0051261018961668015f;
    SIMMIM_UNROLL
    for (int c = 0; c < 8; ++c)
      SIMMIM_UNROLL
      for (int k = 0; k < K; ++k) p[k] = fmaf(p[k], u[k], COEFFICIENTS[c]);
    // By comparisons, which let NaN through.
    SIMMIM_UNROLL
    for (int k = 0; k < K; ++k) found[k] = {(s[k] > 0 ? s[k] : 0.f) + p[k] * u[k], (s[k] < 0 ? u[k] : 1.f) * r[k]};
  }
  SIMMIM_DEVICE static Point of_one(float s) {
    float const scores[] = {s};
    Point found[1];
    of(scores, found);
    return found[0];
  }
};

// log(1 - e^s) for s < 0, -inf at 0 and NaN above; the branches are those of Maechler (2012). 1 - e^s near 0 is -s times a
// polynomial of s; far from it the logarithm is u = e^s times one of u.
struct Log1mexp : OneByOne<Log1mexp> {
  SIMMIM_DEVICE static Point of_one(float s) {
    bool const near_zero = s > -LN_2;
    float const u = exp2_of(s * LOG2_E), t = -s;
    float q = fmaf(t, 0.00014710497634951025f, -0.0013426432851701975f);
    q = fmaf(q, t, 0.008312082849442959f);
    q = fmaf(q, t, -0.04166159778833389f);
    q = fmaf(q, t, 0.16666609048843384f);
    q = fmaf(q, t, -0.4999999701976776f);
    q = fmaf(q, t, 1.f);
    float p = fmaf(u, 1.7770181894302368f, -2.5557680130004883f);
    p = fmaf(p, u, 2.049731969833374f);
    p = fmaf(p, u, -0.6350128650665283f);
    p = fmaf(p, u, 0.35381534695625305f);
    p = fmaf(p, u, 0.17321175336837769f);
    p = fmaf(p, u, 0.2521698474884033f);
    p = fmaf(p, u, 0.3332449793815613f);
    p = fmaf(p, u, 0.5000013709068298f);
    p = fmaf(p, u, 1.0f);
    float const rest = near_zero ? t * q : 1.f - u;  // 1 - e^s
    return {near_zero ? log2_of(rest) * LN_2 : -u * p, -u * reciprocal_of(rest)};
  }
};

}  // namespace simmim
