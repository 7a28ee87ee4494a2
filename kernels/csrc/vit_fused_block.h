// A transformer block as the native library computes it: its sizes, parameters and what it keeps.
#pragma once

#include <cstdint>

// What kernels/vit_block/stack.py fills in; pointers that may be null are marked so.
struct SlcaBlock {
  // tokens x [heads x dim] per image, of which the first `queries` are computed beyond attention (all, or 1 in a last
  // block); hidden: width of the MLP; group: images that go together.
  int64_t images, tokens, queries, heads, dim, hidden, group, num_threads;
  // Packed for x W^T and (null in a forward pass) for g W.
  const int32_t *qkv, *proj, *fc1, *fc2;
  const int32_t *qkv_back, *proj_back, *fc1_back, *fc2_back;
  const float *qkv_bias, *proj_bias, *fc1_bias, *gamma1, *beta1, *gamma2, *beta2;
  float eps1, eps2;
  // What the backward pass needs; all null if there is none.
  float *sum1, *mean1, *inv_std1;
  void *hidden1, *qkv_out, *probabilities, *context;
  float *sum2, *mean2, *inv_std2;
  void *hidden2, *slope, *activated;
};
