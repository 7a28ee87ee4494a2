#pragma once

#include "isa.h"

namespace slca {

struct SymmetricCrossEntropy {
  const void* logits;
  int64_t logits_stride;
  const int64_t* target;
  const float* scale;
  float* loss;
  void* gradient;  // contiguous rows, or null
  int64_t num_classes;
  float ce_weight, reverse_weight, floor;
};

}  // namespace slca

// One row, with `scratch` for num_classes floats; returns whether the label was in range.
SLCA_PER_ISA(
  bool symmetric_cross_entropy_row_float(const SymmetricCrossEntropy& args, int64_t row, float* scratch);
  bool symmetric_cross_entropy_row_bfloat16(const SymmetricCrossEntropy& args, int64_t row, float* scratch);
)
