#include "vit_block_kernels.h"

#include "simd.h"

// The loop bodies are called twice each, for whole vectors and for the end of a row.
#define SLCA_INLINE __attribute__((always_inline))

namespace slca::SLCA_ISA {
namespace {

// How many lanes of a vector count: all, or the first n at the end of a row.
struct Whole {};
struct Some {
  int64_t n;
};

// Calls step(first, Whole or Some) over a row.
template <class Step>
inline SLCA_INLINE void over_row(int64_t width, Step step) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) step(i, Whole{});
  if (i < width) step(i, Some{width - i});
}

template <class T>
inline FloatV get(const T* p, Whole, float = 0.0f) {
  return load_floats(p);
}
template <class T>
inline FloatV get(const T* p, Some some, float fill = 0.0f) {
  return load_some(p, some.n, fill);
}

template <class T>
inline void put(T* p, FloatV v, Whole) {
  store_floats(p, v);
}
template <class T>
inline void put(T* p, FloatV v, Some some) {
  store_some(p, v, some.n);
}

template <class N>
inline void add(float* p, FloatV v, N n) { put(p, get(p, n) + v, n); }

template <class T>
void residual_norm(const float* x, const T* y, const float* bias, const float* gamma, const float* beta, float eps,
                   int64_t num_rows, int64_t width, float* sum, T* hidden, float* mean, float* inv_std) {
  for (int64_t row = 0; row < num_rows; ++row, x += width, sum += width) {
    FloatV total{};
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      FloatV v = get(x + i, n);
      if (y) v += get(y + i, n);
      if (bias) v += get(bias + i, n);
      put(sum + i, v, n);
      total += v;
    });
    if (y) y += width;
    if (!gamma) continue;
    const float mu = sum_lanes(total) / width;
    FloatV squares{};
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      const FloatV centred = get(sum + i, n, mu) - mu;
      squares += centred * centred;
    });
    const float r = 1.0f / __builtin_sqrtf(sum_lanes(squares) / width + eps);
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      put(hidden + i, (get(sum + i, n) - mu) * r * get(gamma + i, n) + get(beta + i, n), n);
    });
    hidden += width;
    mean[row] = mu;
    inv_std[row] = r;
  }
}

template <class T>
void residual_norm_backward(const T* grad_hidden, const float* sum, const float* mean, const float* inv_std,
                            const float* gamma, const float* grad_sum, int64_t num_rows, int64_t width, float* grad_x,
                            T* rounded, float* gamma_sum, float* beta_sum, float* bias_sum) {
  for (int64_t row = 0; row < num_rows; ++row, grad_sum += width, grad_x += width, rounded += width) {
    float mu = 0.0f, r = 0.0f, of_g = 0.0f, of_gx = 0.0f;
    if (gamma) {
      mu = mean[row], r = inv_std[row];
      FloatV total_g{}, total_gx{};
      over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
        const FloatV h = get(grad_hidden + i, n), normalized = (get(sum + i, n) - mu) * r;
        const FloatV g = h * get(gamma + i, n);
        total_g += g;
        total_gx += g * normalized;
        add(gamma_sum + i, h * normalized, n);
        add(beta_sum + i, h, n);
      });
      of_g = sum_lanes(total_g) / width, of_gx = sum_lanes(total_gx) / width;
    }
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      FloatV v = get(grad_sum + i, n);
      if (gamma) {
        const FloatV g = get(grad_hidden + i, n) * get(gamma + i, n), normalized = (get(sum + i, n) - mu) * r;
        v += (g - of_g - normalized * of_gx) * r;
      }
      put(grad_x + i, v, n);
      put(rounded + i, v, n);
      add(bias_sum + i, v, n);
    });
    if (gamma) grad_hidden += width, sum += width;
  }
}

template <class T>
constexpr bool kCoarse = sizeof(T) < sizeof(float);

// e^x for x <= 0, floored at e^-87; not for NaN. Relative error 1e-7, for bfloat16 3e-6 (the last bit is at 4e-3).
template <bool coarse>
inline FloatV exp_finite(FloatV x) {
  const FloatV magic = splat(12582912.0f);  // 1.5 * 2^23, as in exp_nonpositive
  const FloatV clamped = x < -87.0f ? splat(-87.0f) : x;
  const FloatV shifted = clamped * 1.44269504088896341f + magic;
  const FloatV n = shifted - magic;
  FloatV r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // In pairs, for a shorter chain of dependent steps.
  const FloatV r2 = r * r;
  FloatV p;
  if (coarse)
    p = (r * 0.041457436978816986f + 0.1679079532623291f) * r + 0.5000436305999756f;
  else
    p = (r * 0.0082975123077631f + 0.04191527143120766f) * r2 + (r * 0.16667576134204865f + 0.49998897314071655f);
  p = p * r2 + (coarse ? r * 0.9999634623527527f + 0.9999992847442627f : r * 0.9999997019767761f + 1.0000001192092896f);
  return bits<FloatV>(bits<IntV>(p) + (bits<IntV>(shifted) << 23));
}

// exp(z^2) erfc(z) for z >= 0 as a polynomial in 1 / (1 + c z), fitted to a relative error of 1.3e-8 (3e-7 in float
// arithmetic), for bfloat16 1.1e-5.
template <bool coarse>
inline FloatV scaled_erfc(FloatV z) {
  const FloatV t = splat(1.0f) / (z * (coarse ? 0.51f : 0.58f) + 1.0f);
  if (coarse) {
    const FloatV t2 = t * t;
    const FloatV high = (t * -0.19791719317436218f + 0.507972240447998f) * t2;
    const FloatV low = (t * 0.07090774923563004f + 0.3379405438899994f) * t2;
    return high * t2 + low + (t * 0.2806966006755829f + 0.0003887896309606731f);
  }
  FloatV p = splat(0.05206291750073433f);
  p = p * t - 0.2665984332561493f;
  p = p * t + 0.5017104148864746f;
  p = p * t - 0.31821420788764954f;
  p = p * t - 0.15137571096420288f;
  p = p * t + 0.13562996685504913f;
  p = p * t + 0.10756845027208328f;
  p = p * t + 0.28686708211898804f;
  p = p * t + 0.3249299228191376f;
  p = p * t + 0.3274267017841339f;
  return p * t - 7.098330570443068e-06f;
}

// GELU x Phi(x) and its slope Phi(x) + x phi(x), where Phi(-|x|) = exp(-z^2) scaled_erfc(z) / 2 with z = |x| / sqrt 2.
template <bool coarse>
inline FloatV gelu_slope(FloatV x, FloatV* out) {
  const FloatV size = bits<FloatV>(bits<UIntV>(x) & 0x7fffffffu);
  const FloatV bell = exp_finite<coarse>(-0.5f * x * x);
  const FloatV tail = 0.5f * bell * scaled_erfc<coarse>(size * 0.70710678118654752f);
  const FloatV below = x < 0.0f ? tail : 1.0f - tail;
  *out = x * below;
  return below + x * bell * 0.39894228040143268f;
}

template <class T>
void gelu(const T* x, const float* bias, int64_t num_rows, int64_t width, T* out, T* slope) {
  for (int64_t row = 0; row < num_rows; ++row, x += width, out += width) {
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      FloatV value;
      const FloatV steepness = gelu_slope<kCoarse<T>>(get(x + i, n) + get(bias + i, n), &value);
      put(out + i, value, n);
      if (slope) put(slope + i, steepness, n);
    });
    if (slope) slope += width;
  }
}

template <class T>
void gelu_backward(const T* grad, const T* slope, int64_t num_rows, int64_t width, T* grad_x, float* bias_sum) {
  for (int64_t row = 0; row < num_rows; ++row, grad += width, slope += width, grad_x += width)
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      const FloatV v = get(grad + i, n) * get(slope + i, n);
      put(grad_x + i, v, n);
      add(bias_sum + i, v, n);
    });
}

// Rows up to this long keep their exponentials at hand; longer ones compute them twice.
constexpr int64_t kKept = 1024;

template <class T>
void softmax(T* scores, float scale, int64_t num_rows, int64_t width) {
  const float lowest = -INFINITY;
  float kept[kKept + kLanes];
  for (int64_t row = 0; row < num_rows; ++row, scores += width) {
    FloatV largest = splat(lowest);
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      largest = max_nan(largest, get(scores + i, n, lowest));
    });
    const float peak = max_lanes_nan(largest) * scale;
    const bool keep = width <= kKept;
    FloatV total{};
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      const FloatV value = exp_nonpositive(get(scores + i, n, lowest) * scale - peak);
      if (keep) store(kept + i, value);
      total += value;
    });
    const float inverse = 1.0f / sum_lanes(total);
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      const FloatV value =
          keep ? load<FloatV>(kept + i) : exp_nonpositive(get(scores + i, n, lowest) * scale - peak);
      put(scores + i, value * inverse, n);
    });
  }
}

template <class T>
void softmax_backward(T* grad, const T* probabilities, float scale, int64_t num_rows, int64_t width) {
  for (int64_t row = 0; row < num_rows; ++row, grad += width, probabilities += width) {
    FloatV total{};
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      total += get(grad + i, n) * get(probabilities + i, n);
    });
    const float mean = sum_lanes(total);
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      put(grad + i, (get(grad + i, n) - mean) * get(probabilities + i, n) * scale, n);
    });
  }
}

template <class T>
void split_heads(const T* in, const float* bias, int64_t tokens, int64_t parts, int64_t heads, int64_t dim,
                 int64_t part_stride, T* out) {
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t head = 0; head < heads; ++head, in += dim) {
        T* target = out + part * part_stride + (head * tokens + token) * dim;
        const float* shift = bias ? bias + (part * heads + head) * dim : nullptr;
        if (!shift)
          std::memcpy(target, in, dim * sizeof(T));
        else
          over_row(dim, [&](int64_t i, auto n) SLCA_INLINE {
            put(target + i, get(in + i, n) + get(shift + i, n), n);
          });
      }
}

template <class T>
void merge_heads(const T* in, int64_t tokens, int64_t parts, int64_t heads, int64_t dim, int64_t part_stride, T* out,
                 float* bias_sum) {
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t head = 0; head < heads; ++head, out += dim) {
        const T* source = in + part * part_stride + (head * tokens + token) * dim;
        std::memcpy(out, source, dim * sizeof(T));
        if (!bias_sum) continue;
        float* total = bias_sum + (part * heads + head) * dim;
        over_row(dim, [&](int64_t i, auto n) SLCA_INLINE { add(total + i, get(source + i, n), n); });
      }
}

inline BFloat16* as(uint16_t* p) { return reinterpret_cast<BFloat16*>(p); }
inline const BFloat16* as(const uint16_t* p) { return reinterpret_cast<const BFloat16*>(p); }
inline float* as(float* p) { return p; }
inline const float* as(const float* p) { return p; }

}  // namespace

#define SLCA_DEFINE(T, name)                                                                                          \
  void name##residual_norm(const float* x, const T* y, const float* bias, const float* gamma, const float* beta,     \
                           float eps, int64_t num_rows, int64_t width, float* sum, T* hidden, float* mean,            \
                           float* inv_std) {                                                                          \
    residual_norm(x, as(y), bias, gamma, beta, eps, num_rows, width, sum, as(hidden), mean, inv_std);                 \
  }                                                                                                                   \
  void name##residual_norm_backward(const T* grad_hidden, const float* sum, const float* mean, const float* inv_std, \
                                    const float* gamma, const float* grad_sum, int64_t num_rows, int64_t width,       \
                                    float* grad_x, T* rounded, float* gamma_sum, float* beta_sum, float* bias_sum) { \
    residual_norm_backward(as(grad_hidden), sum, mean, inv_std, gamma, grad_sum, num_rows, width, grad_x,             \
                           as(rounded), gamma_sum, beta_sum, bias_sum);                                               \
  }                                                                                                                   \
  void name##gelu(const T* x, const float* bias, int64_t num_rows, int64_t width, T* out, T* slope) {                 \
    gelu(as(x), bias, num_rows, width, as(out), as(slope));                                                           \
  }                                                                                                                   \
  void name##gelu_backward(const T* grad, const T* slope, int64_t num_rows, int64_t width, T* grad_x,                 \
                           float* bias_sum) {                                                                         \
    gelu_backward(as(grad), as(slope), num_rows, width, as(grad_x), bias_sum);                                        \
  }                                                                                                                   \
  void name##softmax(T* scores, float scale, int64_t num_rows, int64_t width) {                                       \
    softmax(as(scores), scale, num_rows, width);                                                                      \
  }                                                                                                                   \
  void name##softmax_backward(T* grad, const T* probabilities, float scale, int64_t num_rows, int64_t width) {        \
    softmax_backward(as(grad), as(probabilities), scale, num_rows, width);                                            \
  }                                                                                                                   \
  void name##split_heads(const T* in, const float* bias, int64_t tokens, int64_t parts, int64_t heads, int64_t dim,   \
                         int64_t part_stride, T* out) {                                                               \
    split_heads(as(in), bias, tokens, parts, heads, dim, part_stride, as(out));                                       \
  }                                                                                                                   \
  void name##merge_heads(const T* in, int64_t tokens, int64_t parts, int64_t heads, int64_t dim,                      \
                         int64_t part_stride, T* out, float* bias_sum) {                                              \
    merge_heads(as(in), tokens, parts, heads, dim, part_stride, as(out), bias_sum);                                   \
  }

SLCA_DEFINE(float, float_)
SLCA_DEFINE(uint16_t, bf16_)

}  // namespace slca::SLCA_ISA
