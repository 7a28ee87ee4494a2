// The passes of a transformer block, between its matrix products: residual sums with layer norm, GELU, softmax, heads.
#pragma once

#include "isa.h"

// T is float or bfloat16 (as uint16_t): the type of everything that goes into or comes out of a matrix product.
// The residual stream, statistics, parameters and sums over rows are float.
#define SLCA_VIT_PASSES(T, name)                                                                                      \
  /* x' = x + y + bias (y or bias may be null); if gamma: hidden = layer norm of x', with mean and 1/std kept. */     \
  void name##residual_norm(const float* x, const T* y, const float* bias, const float* gamma, const float* beta,     \
                           float eps, int64_t num_rows, int64_t width, float* sum, T* hidden, float* mean,            \
                           float* inv_std);                                                                           \
  /* grad_x = grad_sum + (if gamma: gradient of the layer norm); also rounded. Adds to the sums over rows of          \
     grad_hidden * normalized, grad_hidden and grad_x. */                                                             \
  void name##residual_norm_backward(const T* grad_hidden, const float* sum, const float* mean, const float* inv_std, \
                                    const float* gamma, const float* grad_sum, int64_t num_rows, int64_t width,       \
                                    float* grad_x, T* rounded, float* gamma_sum, float* beta_sum, float* bias_sum);   \
  /* out = GELU(x + bias), slope (may be null) = GELU'(x + bias); slope may be x. */                                  \
  void name##gelu(const T* x, const float* bias, int64_t num_rows, int64_t width, T* out, T* slope);                  \
  /* grad_x = grad * slope; adds its sum over rows. */                                                                \
  void name##gelu_backward(const T* grad, const T* slope, int64_t num_rows, int64_t width, T* grad_x,                 \
                           float* bias_sum);                                                                          \
  /* Softmax of scale * row, in place. */                                                                             \
  void name##softmax(T* scores, float scale, int64_t num_rows, int64_t width);                                        \
  /* Gradient of the scores in place of that of the probabilities. */                                                 \
  void name##softmax_backward(T* grad, const T* probabilities, float scale, int64_t num_rows, int64_t width);         \
  /* One image: [tokens, parts, heads, dim] + bias [parts, heads, dim] (or null) -> parts of [heads, tokens, dim],    \
     part_stride apart. */                                                                                            \
  void name##split_heads(const T* in, const float* bias, int64_t tokens, int64_t parts, int64_t heads, int64_t dim,   \
                         int64_t part_stride, T* out);                                                                \
  /* The way back; adds the sum over tokens (or null). */                                                             \
  void name##merge_heads(const T* in, int64_t tokens, int64_t parts, int64_t heads, int64_t dim,                      \
                         int64_t part_stride, T* out, float* bias_sum);

SLCA_PER_ISA(SLCA_VIT_PASSES(float, float_) SLCA_VIT_PASSES(uint16_t, bf16_))
