// Bias gradient, g B and g^T u of the LoRA linear in one read of the upstream gradient g.
#include <cstdlib>

#include "lora_linear_kernels.h"

namespace {

constexpr int kOk = 0, kOutOfMemory = 1, kBadRank = 2;
// Rows are cut into this many parts whatever the number of threads, so that sums do not depend on it.
constexpr int64_t kParts = 32;

}  // namespace

// grad [num_rows, num_out] float32 or bfloat16; u [num_rows, rank], b [rank, num_out] float32, rank a multiple of 4.
// through [num_rows, rank] = grad b^T; sums [rank + 1, num_out] = [u, 1]^T grad.
SLCA_API int slca_lora_thin_products(const void* grad, int is_bf16, int64_t num_rows, int64_t num_out,
                                     const float* u, const float* b, int64_t rank, float* through, float* sums,
                                     int num_threads) {
  if (rank <= 0 || rank % slca::kRankBlock != 0) return kBadRank;
  const auto wide = SLCA_BEST(lora_thin_products);
  const auto narrow = SLCA_BEST(lora_thin_products_bf16);
  const int64_t part_rows = (num_rows + kParts - 1) / kParts, block = slca::kRankBlock;
  const int64_t num_sums = (rank + 1) * num_out;
  float* partial = static_cast<float*>(std::calloc(kParts * num_sums + 1, sizeof(float)));
  if (!partial) return kOutOfMemory;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t from = part * part_rows;
    const int64_t count = from + part_rows < num_rows ? part_rows : num_rows - from;
    if (count <= 0) continue;
    float* mine = partial + part * num_sums;
    for (int64_t k = 0; k < rank; k += block) {
      float* bias = k == 0 ? mine + rank * num_out : nullptr;
      const float *u_k = u + from * rank + k, *b_k = b + k * num_out;
      float *through_k = through + from * rank + k, *sums_k = mine + k * num_out;
      if (is_bf16)
        narrow(static_cast<const uint16_t*>(grad) + from * num_out, count, num_out, u_k, b_k, rank, through_k, sums_k,
               bias);
      else
        wide(static_cast<const float*>(grad) + from * num_out, count, num_out, u_k, b_k, rank, through_k, sums_k, bias);
    }
  }
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t i = 0; i < num_sums; ++i) {
    float sum = 0;
    for (int64_t part = 0; part < kParts; ++part) sum += partial[part * num_sums + i];
    sums[i] = sum;
  }
  std::free(partial);
  return kOk;
}
