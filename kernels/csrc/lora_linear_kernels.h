// The thin products of the LoRA backward: one read of the upstream gradient.
#pragma once

#include "isa.h"

namespace slca {

// Ranks are served in blocks of this many; the caller pads with zeros.
constexpr int kRankBlock = 4;

}  // namespace slca

SLCA_PER_ISA(
  // For rows g of grad [num_rows, num_out] and one block of ranks:
  //   through[n * rank + k] = sum over o of g[n, o] * b[k * num_out + o]
  //   sums[k * num_out + o] += sum over n of u[n * rank + k] * g[n, o],  bias[o] += sum over n of g[n, o] (or null).
  void lora_thin_products(const float* grad, int64_t num_rows, int64_t num_out, const float* u, const float* b,
                          int64_t rank, float* through, float* sums, float* bias);
  void lora_thin_products_bf16(const uint16_t* grad, int64_t num_rows, int64_t num_out, const float* u,
                               const float* b, int64_t rank, float* through, float* sums, float* bias);
)
