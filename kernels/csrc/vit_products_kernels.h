// The matrix products of a transformer block, by one thread on some of its rows (or columns).
#pragma once

#include "isa.h"

// T is float or bfloat16 (as uint16_t). Packed matrices are int32_t, see products.h.
#define SLCA_VIT_PRODUCTS(T, name)                                                                                     \
  /* How many int32_t a packed matrix takes that is summed over `summed`. */                         \
  int64_t name##packed_size(int64_t summed, int64_t columns);                                                          \
  /* weight [out, in] for x weight^T (transposed: for g weight). */                                                   \
  void name##pack_weight(const T* weight, int64_t out, int64_t in, bool transposed, int32_t* packed);                  \
  /* c [rows, columns] = bias (or null) + a [rows, summed] b. */                                                       \
  void name##product(const T* a, int64_t rows, int64_t summed, const int32_t* b, int64_t columns, const float* bias,   \
                     T* c);                                                                                            \
  /* sum [a_columns, b_columns] (+)= a^T b over rows; scratch takes outer_scratch(a_columns, b_columns) int32_t. */    \
  int64_t name##outer_scratch(int64_t a_columns, int64_t b_columns);                                                   \
  void name##outer(const T* a, int64_t a_stride, int64_t a_columns, const T* b, int64_t b_stride, int64_t b_columns,   \
                   int64_t rows, bool add, float* sum, int64_t sum_stride, int32_t* scratch);                          \
  /* sums [width] += sums over rows. */                                                                                \
  void name##add_rows(const T* in, int64_t rows, int64_t width, float* sums);                                          \
  /* One image and its first so many queries: qkv [tokens, 3, heads, dim] -> probabilities [heads, queries, stride]     \
     (the last column 0 if stride is tokens + 1), context [queries, heads, dim]. */                                    \
  int64_t name##attention_scratch(int64_t tokens, int64_t dim);                                                        \
  void name##attention(const T* qkv, int64_t tokens, int64_t queries, int64_t heads, int64_t dim, float scale,         \
                       int64_t stride, T* probabilities, T* context, int32_t* scratch);                                \
  /* grad_qkv [tokens, 3, heads, dim] from the gradient of context. */                                                 \
  void name##attention_backward(const T* qkv, const T* probabilities, const T* grad_context, int64_t tokens,           \
                                int64_t queries, int64_t heads, int64_t dim, float scale, int64_t stride, T* grad_qkv, \
                                int32_t* scratch);

SLCA_PER_ISA(SLCA_VIT_PRODUCTS(float, float_) SLCA_VIT_PRODUCTS(uint16_t, bf16_))
