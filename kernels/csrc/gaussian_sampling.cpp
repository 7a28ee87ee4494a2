#include "gaussian_sampling_kernels.h"

// out [num_classes, num_samples, num_dims] float32. Every row is a function of its own counters, so of no thread count.
SLCA_API int slca_philox_normal(int64_t seed, const int64_t* class_ids, int64_t num_classes, int64_t num_samples,
                                int64_t num_dims, int64_t stream, int64_t sample_offset, float* out, int num_threads) {
  const auto row = SLCA_BEST(philox_normal_row);
  const int64_t num_rows = num_classes * num_samples;
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t r = 0; r < num_rows; ++r)
    row(static_cast<uint64_t>(seed), static_cast<uint32_t>(class_ids[r / num_samples]),
        static_cast<uint32_t>(sample_offset + r % num_samples), static_cast<uint32_t>(stream), num_dims,
        out + r * num_dims);
  return 0;
}
