#include "task_normalized_cross_entropy_kernels.h"

#include "parallel_rows.h"

// scale_i * L_i into loss and, unless `gradient` is null, its gradient. Status 2: a label is out of range.
SLCA_API int slca_task_normalized_cross_entropy(const void* logits, int64_t logits_stride, int is_bfloat16,
                                                const int64_t* target, const float* scale, const int64_t* task_sizes,
                                                float* loss, void* gradient, int64_t num_rows, int64_t num_classes,
                                                int64_t num_tasks, double temperature, double norm_floor,
                                                int num_threads) {
  const slca::TaskNormalizedCrossEntropy args{logits,   logits_stride, target,    scale,       task_sizes, loss,
                                              gradient, num_classes,   num_tasks, temperature, norm_floor};
  const auto row_function = is_bfloat16 ? SLCA_BEST(task_normalized_cross_entropy_row_bfloat16)
                                        : SLCA_BEST(task_normalized_cross_entropy_row_float);
  return slca::parallel_rows(num_rows, num_classes + num_tasks, num_threads,
                             [&](int64_t row, float* scratch) { return row_function(args, row, scratch); });
}
