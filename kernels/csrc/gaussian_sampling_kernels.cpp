#include "gaussian_sampling_kernels.h"

#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slca::SLCA_ISA {
namespace {

typedef uint64_t WideV __attribute__((vector_size(kVectorBytes)));
typedef int64_t WideIndexV __attribute__((vector_size(kVectorBytes)));

// Products of the even 32-bit lanes, 64 bits each.
inline WideV multiply_even(WideV a, uint32_t multiplier) {
#if defined(__AVX512F__)
  return bits<WideV>(_mm512_maskz_mul_epu32(0xff, bits<__m512i>(a), _mm512_set1_epi32(static_cast<int>(multiplier))));
#elif defined(__AVX2__)
  return bits<WideV>(_mm256_mul_epu32(bits<__m256i>(a), _mm256_set1_epi32(static_cast<int>(multiplier))));
#elif defined(__x86_64__)
  return bits<WideV>(_mm_mul_epu32(bits<__m128i>(a), _mm_set1_epi32(static_cast<int>(multiplier))));
#else
  return (a & 0xffffffffull) * static_cast<uint64_t>(multiplier);
#endif
}

inline void multiply(UIntV a, uint32_t multiplier, UIntV* high, UIntV* low) {
  const WideV even = multiply_even(bits<WideV>(a), multiplier);
  const WideV odd = multiply_even(bits<WideV>(a) >> 32, multiplier);
  *high = bits<UIntV>((even >> 32) | (odd & ~0xffffffffull));
  *low = bits<UIntV>((even & 0xffffffffull) | (odd << 32));
}

// a0 b0 a1 b1 .. of two vectors, in two halves.
template <class V, class Index>
inline void interleave(V a, V b, V* first, V* second) {
  constexpr int lanes = sizeof(V) / sizeof(a[0]);
  Index low{}, high{};
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + (i % 2) * lanes;
    high[i] = lanes / 2 + i / 2 + (i % 2) * lanes;
  }
#if defined(__clang__)
  for (int i = 0; i < lanes; ++i) {
    (*first)[i] = low[i] < lanes ? a[low[i]] : b[low[i] - lanes];
    (*second)[i] = high[i] < lanes ? a[high[i]] : b[high[i] - lanes];
  }
#else
  *first = __builtin_shuffle(a, b, low);
  *second = __builtin_shuffle(a, b, high);
#endif
}

// ln x for x in (0, 1], normal numbers: x = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m by a minimax polynomial.
inline FloatV log_positive(FloatV x) {
  const IntV shifted = bits<IntV>(x) - 0x3f3504f3;
  const IntV exponent = shifted >> 23;
  const FloatV m = bits<FloatV>(bits<IntV>(x) - (exponent << 23));
  const FloatV e = __builtin_convertvector(exponent, FloatV);
  const FloatV f = m - 1.0f;
  const FloatV z = f * f;
  FloatV p = splat(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const FloatV tail = p * f * z - e * 2.12194440e-4f - 0.5f * z;
  return (tail + f) + e * 0.693359375f;
}

inline FloatV square_root(FloatV x) {
#if defined(__AVX512F__)
  return bits<FloatV>(_mm512_maskz_sqrt_ps(0xffff, bits<__m512>(x)));
#elif defined(__AVX2__)
  return bits<FloatV>(_mm256_sqrt_ps(bits<__m256>(x)));
#elif defined(__x86_64__)
  return bits<FloatV>(_mm_sqrt_ps(bits<__m128>(x)));
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// r cos theta and r sin theta with r = sqrt(-2 ln(w0 2^-32 + 2^-33)), theta = 2 pi w1 2^-32. The angle is reduced to an
// eighth of a turn as an integer, so without rounding.
inline void box_muller(UIntV radius_word, UIntV angle_word, FloatV* cosine, FloatV* sine) {
  const FloatV u = __builtin_convertvector(radius_word, FloatV) * 0x1p-32f + 0x1p-33f;
  const FloatV radius = square_root(-2.0f * log_positive(u));
  const UIntV quadrant = (angle_word + 0x20000000u) >> 30;
  const IntV rest = bits<IntV>(angle_word - (quadrant << 30));
  const FloatV t = __builtin_convertvector(rest, FloatV) * 1.46291807926715968105133780430979e-9f;
  const FloatV t2 = t * t;
  FloatV s = splat(-1.9515295891e-4f);
  s = s * t2 + 8.3321608736e-3f;
  s = s * t2 - 1.6666654611e-1f;
  s = s * t2 * t + t;
  FloatV c = splat(2.443315711809948e-5f);
  c = c * t2 - 1.388731625493765e-3f;
  c = c * t2 + 4.166664568298827e-2f;
  c = c * t2 * t2 - 0.5f * t2 + 1.0f;
  const IntV swap = bits<IntV>(quadrant & 1u) != 0;
  const FloatV cos_part = swap ? s : c;
  const FloatV sin_part = swap ? c : s;
  const UIntV cos_sign = ((quadrant + 1u) & 2u) << 30;
  const UIntV sin_sign = (quadrant & 2u) << 30;
  *cosine = radius * bits<FloatV>(bits<UIntV>(cos_part) ^ cos_sign);
  *sine = radius * bits<FloatV>(bits<UIntV>(sin_part) ^ sin_sign);
}

}  // namespace

void philox_normal_row(uint64_t seed, uint32_t class_id, uint32_t sample, uint32_t stream, int64_t num_dims,
                       float* out) {
  UIntV lane{};
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  for (int64_t start = 0; start < num_dims; start += 4 * kLanes) {
    UIntV word0 = lane + static_cast<uint32_t>(start / 4), word1 = UIntV{} + sample;
    UIntV word2 = UIntV{} + class_id, word3 = UIntV{} + stream;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      UIntV high0, low0, high1, low1;
      multiply(word0, 0xD2511F53u, &high0, &low0);
      multiply(word2, 0xCD9E8D57u, &high1, &low1);
      word0 = high1 ^ word1 ^ key0;
      word2 = high0 ^ word3 ^ key1;
      word1 = low1;
      word3 = low0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    FloatV n0, n1, n2, n3;
    box_muller(word0, word1, &n0, &n1);
    box_muller(word2, word3, &n2, &n3);
    FloatV pair01[2], pair23[2];
    interleave<FloatV, IntV>(n0, n1, &pair01[0], &pair01[1]);
    interleave<FloatV, IntV>(n2, n3, &pair23[0], &pair23[1]);
    DoubleV quads[4];
    for (int half = 0; half < 2; ++half)
      interleave<DoubleV, WideIndexV>(bits<DoubleV>(pair01[half]), bits<DoubleV>(pair23[half]), &quads[2 * half],
                                      &quads[2 * half + 1]);
    const int64_t left = num_dims - start;
    if (left >= 4 * kLanes) {
      std::memcpy(out + start, quads, sizeof quads);
    } else {
      std::memcpy(out + start, quads, static_cast<size_t>(left) * sizeof(float));
    }
  }
}

}  // namespace slca::SLCA_ISA
