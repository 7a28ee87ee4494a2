// A fused block as the native library takes it: sizes, parameters and what its backward needs.
#pragma once

#include <cstdint>

// What kernels/vit_block/fused.py fills in, field by field in this order; it compares the layout before the first use.
#define SLCA_FUSED_BLOCK_FIELDS(FIELD)                                                                              \
  /* tokens x [heads x dim] per image, of which the first `queries` are computed beyond attention (all, or 1 in a   \
     last block); hidden: width of the MLP; group: images that go together. */                                      \
  FIELD(int64_t, images) FIELD(int64_t, tokens) FIELD(int64_t, queries) FIELD(int64_t, heads)                       \
  FIELD(int64_t, dim) FIELD(int64_t, hidden) FIELD(int64_t, group) FIELD(int64_t, num_threads)                      \
  /* Packed for x W^T and (null in a forward pass) for g W. */                                                      \
  FIELD(const int32_t*, qkv) FIELD(const int32_t*, proj) FIELD(const int32_t*, fc1) FIELD(const int32_t*, fc2)      \
  FIELD(const int32_t*, qkv_back) FIELD(const int32_t*, proj_back)                                                  \
  FIELD(const int32_t*, fc1_back) FIELD(const int32_t*, fc2_back)                                                   \
  FIELD(const float*, qkv_bias) FIELD(const float*, proj_bias) FIELD(const float*, fc1_bias)                        \
  FIELD(const float*, gamma1) FIELD(const float*, beta1) FIELD(const float*, gamma2) FIELD(const float*, beta2)     \
  FIELD(float, eps1) FIELD(float, eps2)                                                                             \
  /* What the backward pass needs; all null if there is none. */                                                    \
  FIELD(float*, sum1) FIELD(float*, mean1) FIELD(float*, inv_std1) FIELD(void*, hidden1) FIELD(void*, qkv_out)      \
  FIELD(void*, probabilities) FIELD(void*, context)                                                                 \
  FIELD(float*, sum2) FIELD(float*, mean2) FIELD(float*, inv_std2) FIELD(void*, hidden2) FIELD(void*, slope)        \
  FIELD(void*, activated)

struct SlcaFusedBlock {
#define SLCA_FIELD(type, name) type name;
  SLCA_FUSED_BLOCK_FIELDS(SLCA_FIELD)
#undef SLCA_FIELD
};

// Where a field lies, in bytes.
struct SlcaField {
  const char* name;
  int64_t offset, size;
};
