#include "augment_kernels.h"

#include "simd.h"

#if SLCA_X86
#include <immintrin.h>
#endif

// GCC 12 warns about the undefined operand inside its own AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace slca::SLCA_ISA {
namespace {

constexpr int kFractionBits = 22;
constexpr uint32_t kHalf = 1u << (kFractionBits - 1);
constexpr int kVectorsPerBlock = kRowBlock / kLanes;

inline UIntV load_levels(const uint8_t* p) {
#if defined(__AVX512F__)
  return bits<UIntV>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return bits<UIntV>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  typedef uint8_t Lanes __attribute__((vector_size(kLanes)));
  return __builtin_convertvector(load<Lanes>(p), UIntV);
#endif
}

// Rounded sums back to bytes. Sums are kept unsigned, so that a wrap inside a sum is defined.
inline void store_levels(uint8_t* p, UIntV sum) {
  IntV v = bits<IntV>(sum) >> kFractionBits;
  v = v < 0 ? IntV{} : v;
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(bits<__m512i>(v)));
#elif defined(__AVX2__)
  const __m256i w = bits<__m256i>(v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(v[i] > 255 ? 255 : v[i]);
#endif
}

inline uint8_t to_level(uint32_t sum) {
  const int32_t v = static_cast<int32_t>(sum) >> kFractionBits;
  return static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

inline void interleave(Bytes a, Bytes b, Bytes& low, Bytes& high) {
  low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Four perfect shuffles of the rows (i with i + 8) move every byte from [r][j] to [j][r].
inline void transpose(Bytes (&block)[16]) {
  Bytes other[16];
  for (int i = 0; i < 8; ++i) interleave(block[i], block[i + 8], other[2 * i], other[2 * i + 1]);
  for (int i = 0; i < 8; ++i) interleave(other[i], other[i + 8], block[2 * i], block[2 * i + 1]);
  for (int i = 0; i < 8; ++i) interleave(block[i], block[i + 8], other[2 * i], other[2 * i + 1]);
  for (int i = 0; i < 8; ++i) interleave(other[i], other[i + 8], block[2 * i], block[2 * i + 1]);
}

void rows_to_columns(const uint8_t* source, int64_t stride, int num_rows, int num_bytes, uint8_t* columns) {
  for (int j = 0; j < num_bytes; j += 16) {
    Bytes block[16] = {};
    if (j + 16 <= num_bytes) {
      for (int r = 0; r < num_rows; ++r) block[r] = load<Bytes>(source + r * stride + j);
    } else {
      for (int r = 0; r < num_rows; ++r) std::memcpy(&block[r], source + r * stride + j, num_bytes - j);
    }
    transpose(block);
    for (int i = 0; i < 16; ++i) store(columns + static_cast<int64_t>(j + i) * 16, block[i]);
  }
}

void columns_to_rows(const uint8_t* columns, int num_rows, int num_bytes, uint8_t* out, int64_t stride) {
  for (int j = 0; j < num_bytes; j += 16) {
    Bytes block[16];
    for (int i = 0; i < 16; ++i) block[i] = load<Bytes>(columns + static_cast<int64_t>(j + i) * 16);
    transpose(block);
    for (int r = 0; r < num_rows; ++r) store(out + r * stride + j, block[r]);
  }
}

template <class T>
inline void normalise_to(const uint8_t* levels, int num_bytes, float brightness, const float* mean,
                         const float* std, T* out) {
  const auto one = [&](const uint8_t* p, const float* m, const float* s, T* to) {
    FloatV v = __builtin_convertvector(bits<IntV>(load_levels(p)), FloatV);
    if (brightness != 1.0f) {
      v = v * brightness;
      v = v < 0.0f ? splat(0.0f) : v;
      v = v > 255.0f ? splat(255.0f) : v;
      v = __builtin_convertvector(__builtin_convertvector(v, IntV), FloatV);
    }
    store_floats(to, (v / 255.0f - load<FloatV>(m)) / load<FloatV>(s));
  };
  int j = 0;
  for (; j + kLanes <= num_bytes; j += kLanes) one(levels + j, mean + j, std + j, out + j);
  if (j < num_bytes) {
    const int rest = num_bytes - j;
    uint8_t last[kLanes] = {};
    float last_mean[kLanes] = {}, last_std[kLanes];
    T last_out[kLanes];
    for (float& s : last_std) s = 1.0f;
    std::memcpy(last, levels + j, rest);
    std::memcpy(last_mean, mean + j, rest * sizeof(float));
    std::memcpy(last_std, std + j, rest * sizeof(float));
    one(last, last_mean, last_std, last_out);
    std::memcpy(out + j, last_out, rest * sizeof(T));
  }
}

}  // namespace

void resample_x(const uint8_t* source, int64_t source_stride, int num_rows, int first_pixel, int num_pixels,
                const Axis& axis, int channel_step, int pixel_step, uint8_t* columns, uint8_t* results,
                uint8_t* out, int64_t out_stride, int out_bytes) {
  rows_to_columns(source, source_stride, num_rows, 3 * num_pixels, columns);
  for (int i = 0; i < axis.size; ++i) {
    const uint8_t* from = columns + static_cast<int64_t>(axis.first[i] - first_pixel) * 3 * kRowBlock;
    const int32_t* weights = axis.weights + static_cast<int64_t>(i) * axis.stride;
    UIntV sum[3 * kVectorsPerBlock];
    for (UIntV& s : sum) s = UIntV{} + kHalf;
    for (int k = 0; k < axis.count[i]; ++k, from += 3 * kRowBlock) {
      const UIntV w = UIntV{} + static_cast<uint32_t>(weights[k]);
      for (int v = 0; v < 3 * kVectorsPerBlock; ++v) sum[v] += w * load_levels(from + v * kLanes);
    }
    for (int c = 0; c < 3; ++c) {
      uint8_t* to = results + static_cast<int64_t>(c * channel_step + i * pixel_step) * kRowBlock;
      for (int v = 0; v < kVectorsPerBlock; ++v) store_levels(to + v * kLanes, sum[c * kVectorsPerBlock + v]);
    }
  }
  columns_to_rows(results, num_rows, out_bytes, out, out_stride);
}

void resample_y(const uint8_t* in, int64_t in_stride, const int32_t* weights, int count, int num_bytes,
                uint8_t* out) {
  constexpr int kUnroll = 4;
  int j = 0;
  for (; j + kUnroll * kLanes <= num_bytes; j += kUnroll * kLanes) {
    UIntV sum[kUnroll];
    for (UIntV& s : sum) s = UIntV{} + kHalf;
    for (int k = 0; k < count; ++k) {
      const UIntV w = UIntV{} + static_cast<uint32_t>(weights[k]);
      const uint8_t* from = in + k * in_stride + j;
      for (int v = 0; v < kUnroll; ++v) sum[v] += w * load_levels(from + v * kLanes);
    }
    for (int v = 0; v < kUnroll; ++v) store_levels(out + j + v * kLanes, sum[v]);
  }
  for (; j < num_bytes; ++j) {
    uint32_t sum = kHalf;
    for (int k = 0; k < count; ++k) sum += static_cast<uint32_t>(weights[k]) * in[k * in_stride + j];
    out[j] = to_level(sum);
  }
}

void normalise(const uint8_t* levels, int num_bytes, float brightness, const float* mean, const float* std,
               float* out) {
  normalise_to(levels, num_bytes, brightness, mean, std, out);
}

void normalise_bf16(const uint8_t* levels, int num_bytes, float brightness, const float* mean, const float* std,
                    uint16_t* out) {
  normalise_to(levels, num_bytes, brightness, mean, std, reinterpret_cast<BFloat16*>(out));
}

}  // namespace slca::SLCA_ISA
