// e^x of several vectors at once. Only for *_kernels.cpp, hence the anonymous namespace (see simd.h).
#pragma once

#include "over_row.h"

namespace {

template <class T>
constexpr bool kCoarse = sizeof(T) < sizeof(float);

// Polynomials, highest power first, fitted to relative errors. For bfloat16 (last bit 4e-3) the coarse ones do.
// e^r for |r| <= ln(2) / 2: 7.5e-8; coarse 2.6e-6.
constexpr float kExp[] = {0.0082975123077631f, 0.04191527143120766f, 0.16667576134204865f,
                          0.49998897314071655f, 0.9999997019767761f, 1.0000001192092896f};
constexpr float kExpCoarse[] = {0.041457436978816986f, 0.1679079532623291f, 0.5000436305999756f, 0.9999634623527527f,
                                0.9999992847442627f};

// p[k] = polynomial(x[k])
template <int kVectors, int kTerms>
inline SLCA_INLINE void polynomial(const float (&coefficients)[kTerms], const FloatV* x, FloatV* p) {
  SLCA_EACH p[k] = x[k] * coefficients[0] + coefficients[1];
#pragma GCC unroll 16
  for (int i = 2; i < kTerms; ++i) SLCA_EACH p[k] = p[k] * x[k] + coefficients[i];
}

// p[k] = e^x[k] for x <= 0, floored at e^-87; NaN stays NaN.
template <bool coarse, int kVectors>
inline SLCA_INLINE void exp_floored(const FloatV* x, FloatV* p) {
  // 1.5 * 2^23 rounds to an integer n in the low bits; with 127 added they are the exponent of 2^n.
  const FloatV magic = splat(12582912.0f + 127.0f);
  FloatV r[kVectors], shifted[kVectors];
  SLCA_EACH r[k] = larger(splat(-87.0f), x[k]);
  SLCA_EACH shifted[k] = r[k] * 1.44269504088896341f + magic;
  if (coarse) {
    SLCA_EACH r[k] = r[k] - (shifted[k] - magic) * 0.69314718055994531f;
    polynomial<kVectors>(kExpCoarse, r, p);
  } else {
    SLCA_EACH r[k] = r[k] - (shifted[k] - magic) * 0.693359375f + (shifted[k] - magic) * 2.12194440e-4f;
    polynomial<kVectors>(kExp, r, p);
  }
  SLCA_EACH p[k] = p[k] * bits<FloatV>(bits<IntV>(shifted[k]) << 23);
}

}  // namespace
