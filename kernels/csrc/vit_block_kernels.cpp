#include "vit_block_kernels.h"

#include "over_row.h"
#include "softmax.h"

namespace slca::SLCA_ISA {
namespace {

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

// Polynomials, highest power first, fitted to relative errors. For bfloat16 (last bit 4e-3) the coarse ones do.
// e^r for |r| <= ln(2) / 2: 7.5e-8; coarse 2.6e-6.
constexpr float kExp[] = {0.0082975123077631f, 0.04191527143120766f, 0.16667576134204865f,
                          0.49998897314071655f, 0.9999997019767761f, 1.0000001192092896f};
constexpr float kExpCoarse[] = {0.041457436978816986f, 0.1679079532623291f, 0.5000436305999756f, 0.9999634623527527f,
                                0.9999992847442627f};
// exp(z^2) erfc(z) for z >= 0, in 1 / (1 + c z): 1.3e-8 (3e-7 in float arithmetic) with c = 0.58; coarse 1.1e-5, 0.51.
constexpr float kErfc[] = {0.05206291750073433f,  -0.2665984332561493f, 0.5017104148864746f, -0.31821420788764954f,
                           -0.15137571096420288f, 0.13562996685504913f, 0.10756845027208328f, 0.28686708211898804f,
                           0.3249299228191376f,   0.3274267017841339f,  -7.098330570443068e-06f};
constexpr float kErfcCoarse[] = {-0.19791719317436218f, 0.507972240447998f,  0.07090774923563004f,
                                 0.3379405438899994f,   0.2806966006755829f, 0.0003887896309606731f};

// p[k] = polynomial(x[k])
template <int kVectors, int kTerms>
inline SLCA_INLINE void polynomial(const float (&coefficients)[kTerms], const FloatV* x, FloatV* p) {
  SLCA_EACH p[k] = x[k] * coefficients[0] + coefficients[1];
#pragma GCC unroll 16
  for (int i = 2; i < kTerms; ++i) SLCA_EACH p[k] = p[k] * x[k] + coefficients[i];
}

// p[k] = e^x[k] for x <= 0, floored at e^-87; not for NaN.
template <bool coarse, int kVectors>
inline SLCA_INLINE void exp_finite(const FloatV* x, FloatV* p) {
  const FloatV magic = splat(12582912.0f);  // 1.5 * 2^23, as in exp_nonpositive
  FloatV r[kVectors], shifted[kVectors];
  SLCA_EACH r[k] = x[k] < -87.0f ? splat(-87.0f) : x[k];
  SLCA_EACH shifted[k] = r[k] * 1.44269504088896341f + magic;
  if (coarse) {
    SLCA_EACH r[k] = r[k] - (shifted[k] - magic) * 0.69314718055994531f;
    polynomial<kVectors>(kExpCoarse, r, p);
  } else {
    SLCA_EACH r[k] = r[k] - (shifted[k] - magic) * 0.693359375f + (shifted[k] - magic) * 2.12194440e-4f;
    polynomial<kVectors>(kExp, r, p);
  }
  SLCA_EACH p[k] = bits<FloatV>(bits<IntV>(p[k]) + (bits<IntV>(shifted[k]) << 23));
}

// GELU x Phi(x) and its slope Phi(x) + x phi(x), where Phi(-|x|) = erfc(|x| / sqrt 2) / 2.
template <bool coarse, int kVectors>
inline SLCA_INLINE void gelu_of(const FloatV* x, FloatV* out, FloatV* slope) {
  FloatV t[kVectors], bell[kVectors], tail[kVectors];
  SLCA_EACH t[k] = bits<FloatV>(bits<UIntV>(x[k]) & 0x7fffffffu) * ((coarse ? 0.51f : 0.58f) * 0.70710678118654752f);
  SLCA_EACH bell[k] = -0.5f * x[k] * x[k];
  SLCA_EACH t[k] = splat(1.0f) / (t[k] + 1.0f);
  exp_finite<coarse, kVectors>(bell, bell);
  if (coarse)
    polynomial<kVectors>(kErfcCoarse, t, tail);
  else
    polynomial<kVectors>(kErfc, t, tail);
  SLCA_EACH tail[k] = (0.5f * bell[k]) * tail[k];
  SLCA_EACH tail[k] = x[k] < 0.0f ? tail[k] : 1.0f - tail[k];
  SLCA_EACH out[k] = x[k] * tail[k];
  SLCA_EACH slope[k] = tail[k] + x[k] * (bell[k] * 0.39894228040143268f);
}

template <class T>
void gelu(const T* x, const float* bias, int64_t num_rows, int64_t width, T* out, T* slope) {
  constexpr int kVectors = 4;
  for (int64_t row = 0; row < num_rows; ++row, x += width, out += width) {
    FloatV v[kVectors], value[kVectors], steepness[kVectors];
    int64_t i = 0;
    for (; i + kVectors * kLanes <= width; i += kVectors * kLanes) {
      SLCA_EACH v[k] = load_floats(x + i + k * kLanes) + load_floats(bias + i + k * kLanes);
      gelu_of<kCoarse<T>, kVectors>(v, value, steepness);
      SLCA_EACH store_floats(out + i + k * kLanes, value[k]);
      if (slope) SLCA_EACH store_floats(slope + i + k * kLanes, steepness[k]);
    }
    over_row(width - i, [&](int64_t j, auto n) SLCA_INLINE {
      v[0] = get(x + i + j, n) + get(bias + i + j, n);
      gelu_of<kCoarse<T>, 1>(v, value, steepness);
      put(out + i + j, value[0], n);
      if (slope) put(slope + i + j, steepness[0], n);
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

template <class T>
void softmax(T* scores, float scale, int64_t num_rows, int64_t width) {
  softmax_of(scores, width, scale, num_rows, width, scores, width);
}

template <class T>
void softmax_backward(T* grad, const T* probabilities, float scale, int64_t num_rows, int64_t width) {
  softmax_gradient(grad, width, probabilities, width, scale, num_rows, width, grad, width);
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
