// Counter-based normals: Philox 4x32-10 and Box-Muller (kernels/gaussian_sampling/philox.py holds the equation).
#pragma once

#include "isa.h"

// out[d] = normal number d of (seed, class_id, sample, stream), d < num_dims.
SLCA_PER_ISA(void philox_normal_row(uint64_t seed, uint32_t class_id, uint32_t sample, uint32_t stream,
                                    int64_t num_dims, float* out);)
