#include "vit_passes_kernels.h"

#include "exponential.h"
#include "softmax.h"

namespace slca::SLCA_ISA {
namespace {

// kVectors rows at once: their chains of dependent steps overlap.
template <int kVectors, class T>
inline void residual_norm_rows(const float* x, const T* y, const float* bias, const float* gamma, const float* beta,
                               float eps, int64_t width, float* sum, T* hidden, float* mean, float* inv_std) {
  FloatV total[kVectors] = {};
  if (y && bias)
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      const FloatV shift = get(bias + i, n);
      SLCA_EACH {
        const FloatV v = get(x + k * width + i, n) + get(y + k * width + i, n) + shift;
        put(sum + k * width + i, v, n);
        total[k] += v;
      }
    });
  else
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      SLCA_EACH {
        FloatV v = get(x + k * width + i, n);
        if (y) v += get(y + k * width + i, n);
        if (bias) v += get(bias + i, n);
        put(sum + k * width + i, v, n);
        total[k] += v;
      }
    });
  if (!gamma) return;
  float mu[kVectors], r[kVectors];
  SLCA_EACH mu[k] = sum_lanes(total[k]) / width;
  SLCA_EACH total[k] = FloatV{};
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    SLCA_EACH {
      const FloatV centred = get(sum + k * width + i, n, mu[k]) - mu[k];
      total[k] += centred * centred;
    }
  });
  SLCA_EACH r[k] = 1.0f / __builtin_sqrtf(sum_lanes(total[k]) / width + eps);
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    const FloatV gain = get(gamma + i, n), shift = get(beta + i, n);
    SLCA_EACH put(hidden + k * width + i, (get(sum + k * width + i, n) - mu[k]) * r[k] * gain + shift, n);
  });
  SLCA_EACH mean[k] = mu[k];
  SLCA_EACH inv_std[k] = r[k];
}

template <class T>
void residual_norm(const float* x, const T* y, const float* bias, const float* gamma, const float* beta, float eps,
                   int64_t num_rows, int64_t width, float* sum, T* hidden, float* mean, float* inv_std) {
  const auto run = [&](int64_t row, auto rows) {
    const int64_t at = row * width;
    residual_norm_rows<decltype(rows)::kRows>(x + at, y ? y + at : y, bias, gamma, beta, eps, width, sum + at,
                                              hidden + (gamma ? at : 0), mean + (gamma ? row : 0),
                                              inv_std + (gamma ? row : 0));
  };
  in_fours(num_rows, run);
}

template <int kVectors, class T>
inline void residual_norm_backward_rows(const T* grad_hidden, const float* sum, const float* mean,
                                        const float* inv_std, const float* gamma, const float* grad_sum, int64_t width,
                                        float* grad_x, T* rounded, float* gamma_sum, float* beta_sum,
                                        float* bias_sum) {
  float of_g[kVectors] = {}, of_gx[kVectors] = {}, mu[kVectors] = {}, r[kVectors] = {};
  if (gamma) {
    SLCA_EACH mu[k] = mean[k];
    SLCA_EACH r[k] = inv_std[k];
    FloatV total_g[kVectors] = {}, total_gx[kVectors] = {};
    over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
      const FloatV gain = get(gamma + i, n);
      FloatV of_gamma{}, of_beta{};
      SLCA_EACH {
        const FloatV h = get(grad_hidden + k * width + i, n), g = h * gain;
        const FloatV normalized = (get(sum + k * width + i, n) - mu[k]) * r[k];
        total_g[k] += g;
        total_gx[k] += g * normalized;
        of_gamma += h * normalized;
        of_beta += h;
      }
      add(gamma_sum + i, of_gamma, n);
      add(beta_sum + i, of_beta, n);
    });
    SLCA_EACH of_g[k] = sum_lanes(total_g[k]) / width;
    SLCA_EACH of_gx[k] = sum_lanes(total_gx[k]) / width;
  }
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    const FloatV gain = gamma ? get(gamma + i, n) : FloatV{};
    FloatV of_bias{};
    SLCA_EACH {
      FloatV v = get(grad_sum + k * width + i, n);
      if (gamma) {
        const FloatV normalized = (get(sum + k * width + i, n) - mu[k]) * r[k];
        v += (get(grad_hidden + k * width + i, n) * gain - of_g[k] - normalized * of_gx[k]) * r[k];
      }
      put(grad_x + k * width + i, v, n);
      put(rounded + k * width + i, v, n);
      of_bias += v;
    }
    add(bias_sum + i, of_bias, n);
  });
}

template <class T>
void residual_norm_backward(const T* grad_hidden, const float* sum, const float* mean, const float* inv_std,
                            const float* gamma, const float* grad_sum, int64_t num_rows, int64_t width, float* grad_x,
                            T* rounded, float* gamma_sum, float* beta_sum, float* bias_sum) {
  const auto run = [&](int64_t row, auto rows) {
    const int64_t at = row * width, normed = gamma ? at : 0, one = gamma ? row : 0;
    residual_norm_backward_rows<decltype(rows)::kRows>(grad_hidden + normed, sum + normed, mean + one, inv_std + one,
                                                       gamma, grad_sum + at, width, grad_x + at, rounded + at,
                                                       gamma_sum, beta_sum, bias_sum);
  };
  in_fours(num_rows, run);
}

// exp(z^2) erfc(z) for z >= 0, in 1 / (1 + c z): 1.3e-8 (3e-7 in float arithmetic) with c = 0.58; coarse 1.1e-5, 0.51.
constexpr float kErfc[] = {0.05206291750073433f,  -0.2665984332561493f, 0.5017104148864746f, -0.31821420788764954f,
                           -0.15137571096420288f, 0.13562996685504913f, 0.10756845027208328f, 0.28686708211898804f,
                           0.3249299228191376f,   0.3274267017841339f,  -7.098330570443068e-06f};
constexpr float kErfcCoarse[] = {-0.19791719317436218f, 0.507972240447998f,  0.07090774923563004f,
                                 0.3379405438899994f,   0.2806966006755829f, 0.0003887896309606731f};

// GELU x Phi(x) and its slope Phi(x) + x phi(x), where Phi(-|x|) = erfc(|x| / sqrt 2) / 2.
template <bool coarse, int kVectors>
inline SLCA_INLINE void gelu_of(const FloatV* x, FloatV* out, FloatV* slope) {
  FloatV t[kVectors], bell[kVectors], tail[kVectors];
  SLCA_EACH t[k] = bits<FloatV>(bits<UIntV>(x[k]) & 0x7fffffffu) * ((coarse ? 0.51f : 0.58f) * 0.70710678118654752f);
  SLCA_EACH bell[k] = -0.5f * x[k] * x[k];
  SLCA_EACH t[k] = splat(1.0f) / (t[k] + 1.0f);
  exp_floored<coarse, kVectors>(bell, bell);
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
