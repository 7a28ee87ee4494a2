#include "symmetric_cross_entropy_kernels.h"

#include "parallel_rows.h"

// scale_i * L_i into loss and, unless `gradient` is null, its gradient. Status 2: a label is out of range.
SLCA_API int slca_symmetric_cross_entropy(const void* logits, int64_t logits_stride, int is_bfloat16,
                                          const int64_t* target, const float* scale, float* loss, void* gradient,
                                          int64_t num_rows, int64_t num_classes, float ce_weight,
                                          float reverse_weight, float floor, int num_threads) {
  const slca::SymmetricCrossEntropy args{logits,      logits_stride, target,         scale, loss, gradient,
                                         num_classes, ce_weight,     reverse_weight, floor};
  const auto row_function = is_bfloat16 ? SLCA_BEST(symmetric_cross_entropy_row_bfloat16)
                                        : SLCA_BEST(symmetric_cross_entropy_row_float);
  return slca::parallel_rows(num_rows, num_classes, num_threads,
                             [&](int64_t row, float* scratch) { return row_function(args, row, scratch); });
}
