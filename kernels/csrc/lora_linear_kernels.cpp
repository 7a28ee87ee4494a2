#include "lora_linear_kernels.h"

#include "simd.h"

namespace slca::SLCA_ISA {
namespace {

// kRows rows share each load and store of the column sums.
template <int kRows, class T>
inline void rows(const T* grad, int64_t num_out, const float* u, const float* b, int64_t rank, float* through,
                 float* sums, float* bias) {
  FloatV total[kRows][kRankBlock] = {};
  float rest[kRows][kRankBlock] = {};
  int64_t o = 0;
  for (; o + kLanes <= num_out; o += kLanes) {
    FloatV g[kRows];
    for (int r = 0; r < kRows; ++r) g[r] = load_floats(grad + r * num_out + o);
    for (int k = 0; k < kRankBlock; ++k) {
      const FloatV b_k = load<FloatV>(b + k * num_out + o);
      FloatV sum = load<FloatV>(sums + k * num_out + o);
      for (int r = 0; r < kRows; ++r) {
        total[r][k] += g[r] * b_k;
        sum += g[r] * u[r * rank + k];
      }
      store(sums + k * num_out + o, sum);
    }
    if (bias) {
      FloatV sum = load<FloatV>(bias + o);
      for (int r = 0; r < kRows; ++r) sum += g[r];
      store(bias + o, sum);
    }
  }
  for (; o < num_out; ++o)
    for (int r = 0; r < kRows; ++r) {
      const float g = to_float(grad[r * num_out + o]);
      for (int k = 0; k < kRankBlock; ++k) {
        rest[r][k] += g * b[k * num_out + o];
        sums[k * num_out + o] += g * u[r * rank + k];
      }
      if (bias) bias[o] += g;
    }
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kRankBlock; ++k) through[r * rank + k] = sum_lanes(total[r][k]) + rest[r][k];
}

template <class T>
inline void all_rows(const T* grad, int64_t num_rows, int64_t num_out, const float* u, const float* b, int64_t rank,
                     float* through, float* sums, float* bias) {
  constexpr int kRows = 4;
  int64_t n = 0;
  for (; n + kRows <= num_rows; n += kRows)
    rows<kRows>(grad + n * num_out, num_out, u + n * rank, b, rank, through + n * rank, sums, bias);
  for (; n < num_rows; ++n)
    rows<1>(grad + n * num_out, num_out, u + n * rank, b, rank, through + n * rank, sums, bias);
}

}  // namespace

void lora_thin_products(const float* grad, int64_t num_rows, int64_t num_out, const float* u, const float* b,
                        int64_t rank, float* through, float* sums, float* bias) {
  all_rows(grad, num_rows, num_out, u, b, rank, through, sums, bias);
}

void lora_thin_products_bf16(const uint16_t* grad, int64_t num_rows, int64_t num_out, const float* u,
                             const float* b, int64_t rank, float* through, float* sums, float* bias) {
  all_rows(reinterpret_cast<const BFloat16*>(grad), num_rows, num_out, u, b, rank, through, sums, bias);
}

}  // namespace slca::SLCA_ISA
