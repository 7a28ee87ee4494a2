// Splits rows over threads, each with scratch memory; for <name>.cpp files.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace slca {

// Below this much work a second thread costs more than it saves.
constexpr int64_t kSerialFloats = 65536;

enum RowStatus : int { kRowsDone = 0, kOutOfMemory = 1, kLabelOutOfRange = 2 };

// row_function(row, scratch) -> whether the row's label was in range; scratch holds scratch_floats floats.
template <class RowFunction>
int parallel_rows(int64_t num_rows, int64_t scratch_floats, int num_threads, RowFunction row_function) {
  std::atomic<int> status{kRowsDone};
#pragma omp parallel num_threads(num_threads) if (num_rows * scratch_floats > kSerialFloats)
  {
    const size_t bytes = (scratch_floats * sizeof(float) + 127) / 64 * 64;
    float* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!scratch) status = kOutOfMemory;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
      if (scratch && !row_function(row, scratch)) status = kLabelOutOfRange;
    std::free(scratch);
  }
  return status;
}

}  // namespace slca
