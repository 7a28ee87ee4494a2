// Vectors of the widest kind of the instruction set being compiled, on the compiler's vector types.
// Only for *_kernels.cpp. Everything sits in an anonymous namespace: an inline function shared between
// instruction sets would be merged by the linker into one of them, and crash on a smaller machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float FloatV __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntV __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UIntV __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfV __attribute__((vector_size(kVectorBytes / 2)));
typedef double DoubleV __attribute__((vector_size(kVectorBytes)));

template <class V, class T>
inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
inline void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline FloatV splat(float x) { return FloatV{} + x; }

// bfloat16 as its 16 bits.
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return bits<float>(static_cast<uint32_t>(x.bits) << 16); }

inline FloatV load_floats(const float* p) { return load<FloatV>(p); }
#if defined(__AVX512F__)
inline FloatV load_floats(const BFloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return bits<FloatV>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#else
inline FloatV load_floats(const BFloat16* p) {
  return bits<FloatV>(__builtin_convertvector(load<HalfV>(p), UIntV) << 16);
}
#endif

// The first n < kLanes elements, `fill` behind them; masked where the instruction set can.
template <class T>
inline FloatV load_some(const T* p, int64_t n, float fill) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? to_float(p[i]) : fill;
  return load<FloatV>(lanes);
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline FloatV load_some(const float* p, int64_t n, float fill) {
  const __mmask16 live = static_cast<__mmask16>((1u << n) - 1);
  return bits<FloatV>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), live, p));
}
inline FloatV load_some(const BFloat16* p, int64_t n, float fill) {
  const __mmask16 live = static_cast<__mmask16>((1u << n) - 1);
  const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, p)), 16);
  return bits<FloatV>(_mm512_mask_blend_ps(live, _mm512_set1_ps(fill), _mm512_castsi512_ps(wide)));
}
inline void store_some(float* p, FloatV v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), bits<__m512>(v));
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}
inline FloatV load_some(const float* p, int64_t n, float fill) {
  const __m256i live = first_lanes(n);
  const __m256 x = _mm256_maskload_ps(p, live);
  return bits<FloatV>(_mm256_blendv_ps(_mm256_set1_ps(fill), x, _mm256_castsi256_ps(live)));
}
inline void store_some(float* p, FloatV v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), bits<__m256>(v)); }
#endif

// Round to nearest even; a NaN stays a NaN. The bits are in the low half of every lane.
inline UIntV bf16_bits(FloatV v) {
  const UIntV u = bits<UIntV>(v);
  const UIntV rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const UIntV nan = (u >> 16) | 0x40u;
  return v != v ? nan : rounded;
}

inline void store_floats(float* p, FloatV v) { store(p, v); }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline __m256i to_bf16(FloatV v) {
#if defined(__AVX512BF16__)
  return bits<__m256i>(_mm512_cvtneps_pbh(bits<__m512>(v)));  // numbers below 1e-38 become 0
#else
  return _mm512_cvtepi32_epi16(bits<__m512i>(bf16_bits(v)));
#endif
}
inline void store_floats(BFloat16* p, FloatV v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v)); }
inline void store_some(BFloat16* p, FloatV v, int64_t n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), to_bf16(v));
}
#else
inline void store_floats(BFloat16* p, FloatV v) { store(p, __builtin_convertvector(bf16_bits(v), HalfV)); }
#endif

inline void store_float(float* p, float x) { *p = x; }
inline void store_float(BFloat16* p, float x) {
  const uint32_t u = bits<uint32_t>(x);
  p->bits = static_cast<uint16_t>(x != x ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

template <class T>
inline void store_some(T* p, FloatV v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) store_float(p + i, lanes[i]);
}

// The larger one, or b where one of them is NaN.
inline FloatV larger(FloatV a, FloatV b) {
#if defined(__AVX512F__)
  return bits<FloatV>(_mm512_max_ps(bits<__m512>(a), bits<__m512>(b)));
#elif defined(__AVX2__)
  return bits<FloatV>(_mm256_max_ps(bits<__m256>(a), bits<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// A NaN in either operand comes out as NaN.
inline FloatV max_nan(FloatV a, FloatV b) { return a != a ? a : larger(a, b); }

// Every lane gets that of the lane so far away; halving distances bring all lanes together in a fixed order.
inline FloatV from_lanes_apart(FloatV v, int distance) {
  IntV lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i ^ distance;
  return __builtin_shuffle(v, lane);
}

inline float sum_lanes(FloatV v) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) v += from_lanes_apart(v, half);
  return v[0];
}

inline float max_lanes(FloatV v) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) v = larger(v, from_lanes_apart(v, half));
  return v[0];
}

inline float max_lanes_nan(FloatV v) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) v = max_nan(v, from_lanes_apart(v, half));
  return v[0];
}

// e^x for x <= 0 to about one unit in the last place; below -87.3 it is 0, NaN stays NaN.
// x = n ln 2 + r with |r| <= ln(2)/2, e^r by a minimax polynomial, times 2^n.
inline FloatV exp_nonpositive(FloatV x) {
  const FloatV magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const FloatV clamped = x < -87.3f ? splat(-87.3f) : x;
  const FloatV shifted = clamped * 1.44269504088896341f + magic;
  const FloatV n = shifted - magic;
  FloatV r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  FloatV p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntV exponent = bits<IntV>(shifted) << 23;  // the low bits of `shifted` are n
  const FloatV value = bits<FloatV>(bits<IntV>(p) + exponent);
  const FloatV flushed = x < -87.3f ? splat(0.0f) : value;
  return x != x ? x : flushed;
}

}  // namespace
