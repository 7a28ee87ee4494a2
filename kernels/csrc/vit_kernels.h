// A transformer block's passes and products by the type of their numbers, on the best instruction set; for the
// <name>.cpp files that run them.
#pragma once

#include "vit_passes_kernels.h"
#include "vit_products_kernels.h"

namespace {

// Best<float> and Best<uint16_t> (bfloat16) have a function for every kernel of the two headers.
template <class T>
struct Best;
#define SLCA_KERNEL(kernel)          \
  template <class... Args>           \
  static auto kernel(Args... args) { \
    return SLCA_PICK(kernel)(args...); \
  }
#define SLCA_KERNELS                                                                                                 \
  SLCA_KERNEL(residual_norm) SLCA_KERNEL(residual_norm_backward) SLCA_KERNEL(gelu) SLCA_KERNEL(gelu_backward)        \
  SLCA_KERNEL(softmax) SLCA_KERNEL(softmax_backward) SLCA_KERNEL(split_heads) SLCA_KERNEL(merge_heads)               \
  SLCA_KERNEL(packed_size) SLCA_KERNEL(pack_weight) SLCA_KERNEL(product) SLCA_KERNEL(outer_scratch)                  \
  SLCA_KERNEL(outer) SLCA_KERNEL(add_rows) SLCA_KERNEL(attention_scratch) SLCA_KERNEL(attention)                     \
  SLCA_KERNEL(attention_backward)
#define SLCA_PICK(kernel) SLCA_BEST(float_##kernel)
template <>
struct Best<float> {
  SLCA_KERNELS
};
#undef SLCA_PICK
#define SLCA_PICK(kernel) SLCA_BEST(bf16_##kernel)
template <>
struct Best<uint16_t> {
  SLCA_KERNELS
};
#undef SLCA_PICK
#undef SLCA_KERNELS
#undef SLCA_KERNEL

// A matrix that came through the C interface, of the type that is_bf16 told.
template <class T>
const T* in(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* out(void* p) {
  return static_cast<T*>(p);
}

}  // namespace
