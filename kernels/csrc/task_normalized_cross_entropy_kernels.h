#pragma once

#include "isa.h"

namespace slca {

struct TaskNormalizedCrossEntropy {
  const void* logits;
  int64_t logits_stride;
  const int64_t* target;
  const float* scale;
  const int64_t* task_sizes;
  float* loss;
  void* gradient;  // contiguous rows, or null
  int64_t num_classes, num_tasks;
  double temperature, norm_floor;
};

}  // namespace slca

// One row, with `scratch` for num_classes + num_tasks floats; returns whether the label was in range.
SLCA_PER_ISA(
  bool task_normalized_cross_entropy_row_float(const TaskNormalizedCrossEntropy& args, int64_t row, float* scratch);
  bool task_normalized_cross_entropy_row_bfloat16(const TaskNormalizedCrossEntropy& args, int64_t row, float* scratch);
)
