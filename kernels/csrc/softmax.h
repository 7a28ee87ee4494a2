// Softmax of rows and its gradient. Only for *_kernels.cpp, hence the anonymous namespace (see simd.h).
#pragma once

#include "exponential.h"

namespace {

// Rows up to this long keep their exponentials at hand; longer ones compute them twice.
constexpr int64_t kKept = 512;

// kVectors rows at once: their chains of dependent steps overlap.
template <int kVectors, class In, class Out>
inline void softmax_rows(const In* in, int64_t in_stride, float scale, int64_t width, Out* out, int64_t out_stride) {
  const float lowest = -INFINITY;
  float kept[kVectors][kKept + kLanes];
  FloatV largest[kVectors], total[kVectors] = {};
  SLCA_EACH largest[k] = splat(lowest);
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    // A NaN may get lost here: it comes back with the sum.
    SLCA_EACH largest[k] = larger(largest[k], get(in + k * in_stride + i, n, lowest));
  });
  float peak[kVectors], inverse[kVectors];
  SLCA_EACH peak[k] = max_lanes(largest[k]) * scale;
  const bool keep = width <= kKept;
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    FloatV value[kVectors];
    SLCA_EACH value[k] = get(in + k * in_stride + i, n, lowest) * scale - peak[k];
    exp_floored<kCoarse<Out>, kVectors>(value, value);
    if (keep) SLCA_EACH store(kept[k] + i, value[k]);
    SLCA_EACH total[k] += value[k];
  });
  SLCA_EACH inverse[k] = 1.0f / sum_lanes(total[k]);
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    FloatV value[kVectors];
    if (keep) {
      SLCA_EACH value[k] = load<FloatV>(kept[k] + i);
    } else {
      SLCA_EACH value[k] = get(in + k * in_stride + i, n, lowest) * scale - peak[k];
      exp_floored<kCoarse<Out>, kVectors>(value, value);
    }
    SLCA_EACH put(out + k * out_stride + i, value[k] * inverse[k], n);
  });
}

// out = softmax(scale * in) by rows, so many numbers from one row to the next; out may be in.
template <class In, class Out>
void softmax_of(const In* in, int64_t in_stride, float scale, int64_t num_rows, int64_t width, Out* out,
                int64_t out_stride) {
  in_fours(num_rows, [&](int64_t row, auto rows) {
    softmax_rows<decltype(rows)::kRows>(in + row * in_stride, in_stride, scale, width, out + row * out_stride,
                                        out_stride);
  });
}

template <int kVectors, class In, class P, class Out>
inline void softmax_gradient_rows(const In* grad, int64_t grad_stride, const P* probabilities, int64_t stride,
                                  float scale, int64_t width, Out* out, int64_t out_stride) {
  FloatV total[kVectors] = {};
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    SLCA_EACH total[k] += get(grad + k * grad_stride + i, n) * get(probabilities + k * stride + i, n);
  });
  float mean[kVectors];
  SLCA_EACH mean[k] = sum_lanes(total[k]);
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    SLCA_EACH {
      const FloatV p = get(probabilities + k * stride + i, n);
      put(out + k * out_stride + i, (get(grad + k * grad_stride + i, n) - mean[k]) * p * scale, n);
    }
  });
}

// The gradient of the scores from that of the probabilities; out may be grad.
template <class In, class P, class Out>
void softmax_gradient(const In* grad, int64_t grad_stride, const P* probabilities, int64_t stride, float scale,
                      int64_t num_rows, int64_t width, Out* out, int64_t out_stride) {
  in_fours(num_rows, [&](int64_t row, auto rows) {
    softmax_gradient_rows<decltype(rows)::kRows>(grad + row * grad_stride, grad_stride, probabilities + row * stride,
                                                 stride, scale, width, out + row * out_stride, out_stride);
  });
}

}  // namespace
