// The fused block: a vision transformer's whole block, its passes and its matrix products, forward and backward. Every
// thread takes groups of images through it, so that what one pass or product writes the next one finds in the cache.
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "vit_fused_block.h"
#include "vit_kernels.h"

namespace {

constexpr int kOk = 0, kOutOfMemory = 1;

// A row of probabilities: bfloat16 goes in pairs.
template <class T>
int64_t row_of_scores(int64_t tokens) {
  return sizeof(T) == 2 ? (tokens + 1) / 2 * 2 : tokens;
}

// A thread's own memory, handed out piece by piece.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : start_(static_cast<char*>(std::aligned_alloc(64, padded(bytes)))) {}
  ~Scratch() { std::free(start_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return start_ != nullptr; }
  void take_all_back() { used_ = 0; }
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(start_ + used_);
    used_ += padded(count * sizeof(T));
    return piece;
  }
  static int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  char* start_;
  int64_t used_ = 0;
};

// work(group, first image, number of images, scratch) for every group; false when memory runs out.
template <class Work>
bool in_groups(const SlcaFusedBlock& b, int64_t scratch_bytes, Work work) {
  const int64_t groups = (b.images + b.group - 1) / b.group;
  bool enough = true;
#pragma omp parallel num_threads(b.num_threads) reduction(&& : enough)
  {
    Scratch scratch(scratch_bytes);
    enough = static_cast<bool>(scratch);
#pragma omp for schedule(dynamic)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * b.group, images = b.images - first < b.group ? b.images - first : b.group;
      scratch.take_all_back();
      if (enough) work(group, first, images, scratch);
    }
  }
  return enough;
}

// The rows of a matrix that is kept, or as many of scratch.
template <class T>
T* rows_of(void* kept, int64_t row, int64_t count, int64_t width, Scratch& scratch) {
  return kept ? static_cast<T*>(kept) + row * width : scratch.take<T>(count * width);
}

// Rows of the first token of every image.
void gather(const float* in, int64_t images, int64_t tokens, int64_t width, float* out) {
  for (int64_t i = 0; i < images; ++i) std::memcpy(out + i * width, in + i * tokens * width, width * sizeof(float));
}

template <class T>
int forward(const SlcaFusedBlock& b, const float* x, const T* y, const float* y_bias, float* x_out, T* y_out) {
  const int64_t width = b.heads * b.dim, stride = row_of_scores<T>(b.tokens), scores = b.heads * b.queries * stride;
  const int64_t attention = Best<T>::attention_scratch(b.tokens, b.dim), most = b.group * b.tokens;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(b.dim));
  const float* no_bias = nullptr;
  // The most that is taken below, and what rounding up adds to it.
  const int64_t bytes = sizeof(T) * (most * (7 * width + 2 * b.hidden) + b.group * scores) +
                        4 * most * (2 * width + 4) + 4 * attention + 16 * 64;
  const bool enough = in_groups(b, bytes, [&](int64_t, int64_t image, int64_t images, Scratch& scratch) {
    const int64_t row = image * b.tokens, rows = images * b.tokens;
    const int64_t late = image * b.queries, late_rows = images * b.queries;
    int32_t* memory = scratch.take<int32_t>(attention);
    float* sum1 = rows_of<float>(b.sum1, row, rows, width, scratch);
    float *mean1 = rows_of<float>(b.mean1, row, rows, 1, scratch);
    float* inv_std1 = rows_of<float>(b.inv_std1, row, rows, 1, scratch);
    T* hidden1 = rows_of<T>(b.hidden1, row, rows, width, scratch);
    T* qkv = rows_of<T>(b.qkv_out, row, rows, 3 * width, scratch);
    T* p = rows_of<T>(b.probabilities, image, images, scores, scratch);
    T* context = rows_of<T>(b.context, late, late_rows, width, scratch);
    float *sum2 = x_out + late * width, *mean2 = rows_of<float>(b.mean2, late, late_rows, 1, scratch);
    float* inv_std2 = rows_of<float>(b.inv_std2, late, late_rows, 1, scratch);
    T* hidden2 = rows_of<T>(b.hidden2, late, late_rows, width, scratch);
    T* slope = rows_of<T>(b.slope, late, late_rows, b.hidden, scratch);
    T* activated = rows_of<T>(b.activated, late, late_rows, b.hidden, scratch);
    T* added = scratch.take<T>(late_rows * width);

    Best<T>::residual_norm(x + row * width, y ? y + row * width : y, y_bias, b.gamma1, b.beta1, b.eps1, rows, width,
                           sum1, hidden1, mean1, inv_std1);
    Best<T>::product(hidden1, rows, width, b.qkv, 3 * width, b.qkv_bias, qkv);
    for (int64_t i = 0; i < images; ++i)
      Best<T>::attention(qkv + i * b.tokens * 3 * width, b.tokens, b.queries, b.heads, b.dim, scale, stride,
                         p + i * scores, context + i * b.queries * width, memory);
    Best<T>::product(context, late_rows, width, b.proj, width, no_bias, added);
    const float* stream = sum1;
    if (b.queries < b.tokens) {
      float* gathered = scratch.take<float>(late_rows * width);
      gather(sum1, images, b.tokens, width, gathered);
      stream = gathered;
    }
    Best<T>::residual_norm(stream, added, b.proj_bias, b.gamma2, b.beta2, b.eps2, late_rows, width, sum2, hidden2,
                           mean2, inv_std2);
    Best<T>::product(hidden2, late_rows, width, b.fc1, b.hidden, no_bias, slope);
    Best<T>::gelu(slope, b.fc1_bias, late_rows, b.hidden, activated, b.slope ? slope : nullptr);
    Best<T>::product(activated, late_rows, b.hidden, b.fc2, width, no_bias, y_out + late * width);
  });
  return enough ? kOk : kOutOfMemory;
}

template <class T>
int backward(const SlcaFusedBlock& b, float* grad, const T* rounded, T* grad_fc1, T* grad_proj, T* grad_qkv,
             float* grad_x, T* rounded_x, float* sums) {
  const int64_t width = b.heads * b.dim, stride = row_of_scores<T>(b.tokens), scores = b.heads * b.queries * stride;
  const int64_t attention = Best<T>::attention_scratch(b.tokens, b.dim), most = b.group * b.tokens;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(b.dim));
  const int64_t groups = (b.images + b.group - 1) / b.group, slot = 9 * width + b.hidden;
  float* slots = static_cast<float*>(std::calloc(groups * slot + 1, sizeof(float)));
  if (!slots) return kOutOfMemory;
  const T *slope = static_cast<const T*>(b.slope), *qkv = static_cast<const T*>(b.qkv_out),
          *p = static_cast<const T*>(b.probabilities);
  const float* no_bias = nullptr;
  const int64_t bytes = sizeof(T) * most * width + 4 * attention + 2 * 64;
  const bool enough = in_groups(b, bytes, [&](int64_t group, int64_t image, int64_t images, Scratch& scratch) {
    const int64_t row = image * b.tokens, rows = images * b.tokens, at = row * width;
    const int64_t late = image * b.queries, late_rows = images * b.queries;
    const int64_t late_at = late * width, hidden_at = late * b.hidden;
    int32_t* memory = scratch.take<int32_t>(attention);
    T* inner = scratch.take<T>(rows * width);
    float *of_fc1 = slots + group * slot, *of_norm2 = of_fc1 + b.hidden, *of_qkv = of_norm2 + 3 * width,
          *of_norm1 = of_qkv + 3 * width;
    Best<T>::product(rounded + late_at, late_rows, width, b.fc2_back, b.hidden, no_bias, grad_fc1 + hidden_at);
    Best<T>::gelu_backward(grad_fc1 + hidden_at, slope + hidden_at, late_rows, b.hidden, grad_fc1 + hidden_at, of_fc1);
    Best<T>::product(grad_fc1 + hidden_at, late_rows, b.hidden, b.fc1_back, width, no_bias, inner);
    Best<T>::residual_norm_backward(inner, b.sum2 + late_at, b.mean2 + late, b.inv_std2 + late, b.gamma2,
                                    grad + late_at, late_rows, width, grad + late_at, grad_proj + late_at, of_norm2,
                                    of_norm2 + width, of_norm2 + 2 * width);
    Best<T>::product(grad_proj + late_at, late_rows, width, b.proj_back, width, no_bias, inner);
    for (int64_t i = 0; i < images; ++i)
      Best<T>::attention_backward(qkv + (image + i) * b.tokens * 3 * width, p + (image + i) * scores,
                                  inner + i * b.queries * width, b.tokens, b.queries, b.heads, b.dim, scale, stride,
                                  grad_qkv + (image + i) * b.tokens * 3 * width, memory);
    if (grad_x != grad) {
      std::memset(grad_x + at, 0, rows * width * sizeof(float));
      const int64_t of_queries = b.queries * width;
      for (int64_t i = 0; i < images; ++i)
        std::memcpy(grad_x + at + i * b.tokens * width, grad + late_at + i * of_queries, of_queries * sizeof(float));
    }
    Best<T>::add_rows(grad_qkv + 3 * at, rows, 3 * width, of_qkv);
    Best<T>::product(grad_qkv + 3 * at, rows, 3 * width, b.qkv_back, width, no_bias, inner);
    Best<T>::residual_norm_backward(inner, b.sum1 + at, b.mean1 + row, b.inv_std1 + row, b.gamma1, grad_x + at, rows,
                                    width, grad_x + at, rounded_x + at, of_norm1, of_norm1 + width,
                                    of_norm1 + 2 * width);
  });
  for (int64_t i = 0; i < slot; ++i) {
    float sum = 0;
    for (int64_t group = 0; group < groups; ++group) sum += slots[group * slot + i];
    sums[i] = sum;
  }
  std::free(slots);
  return enough ? kOk : kOutOfMemory;
}

// Cuts the larger side of the sum into as many strips as there are threads.
template <class T>
int outer(const T* a, int64_t a_columns, const T* b, int64_t b_columns, int64_t rows, bool add, float* sum,
          int num_threads) {
  constexpr int64_t kStep = 48;
  const bool by_a = a_columns >= b_columns;
  const int64_t side = by_a ? a_columns : b_columns, steps = (side + kStep - 1) / kStep;
  bool enough = true;
#pragma omp parallel for num_threads(num_threads) schedule(static) reduction(&& : enough)
  for (int64_t thread = 0; thread < num_threads; ++thread) {
    const int64_t first = steps * thread / num_threads * kStep, stop = steps * (thread + 1) / num_threads * kStep;
    const int64_t count = (stop < side ? stop : side) - first;
    if (count <= 0) continue;
    const int64_t a_count = by_a ? count : a_columns, b_count = by_a ? b_columns : count;
    Scratch scratch(sizeof(int32_t) * Best<T>::outer_scratch(a_count, b_count));
    enough = static_cast<bool>(scratch);
    if (!enough) continue;
    Best<T>::outer(by_a ? a + first : a, a_columns, a_count, by_a ? b : b + first, b_columns, b_count, rows, add,
                   sum + (by_a ? first * b_columns : first), b_columns, scratch.take<int32_t>(0));
  }
  return enough ? kOk : kOutOfMemory;
}

constexpr SlcaField kFields[] = {
#define SLCA_FIELD(type, name) {#name, offsetof(SlcaFusedBlock, name), sizeof(SlcaFusedBlock::name)},
    SLCA_FUSED_BLOCK_FIELDS(SLCA_FIELD)
#undef SLCA_FIELD
};

}  // namespace

// How many int32_t the packed form of a matrix takes that has so many columns and is summed over `summed`.
SLCA_API int slca_packed_size(int is_bf16, int64_t summed, int64_t columns, int64_t* size) {
  *size = is_bf16 ? Best<uint16_t>::packed_size(summed, columns) : Best<float>::packed_size(summed, columns);
  return kOk;
}

// weight [out, in], to be multiplied as x weight^T or (transposed) as g weight.
SLCA_API int slca_pack_weight(int is_bf16, const void* weight, int64_t out, int64_t in_, int transposed,
                              int32_t* packed) {
  if (is_bf16)
    Best<uint16_t>::pack_weight(in<uint16_t>(weight), out, in_, transposed != 0, packed);
  else
    Best<float>::pack_weight(in<float>(weight), out, in_, transposed != 0, packed);
  return kOk;
}

// The layout of SlcaFusedBlock, for the caller to compare with its own: its fields in order, and its size in bytes.
SLCA_API int slca_fused_block_layout(const SlcaField** fields, int64_t* num_fields, int64_t* num_bytes) {
  *fields = kFields;
  *num_fields = sizeof kFields / sizeof *kFields;
  *num_bytes = sizeof(SlcaFusedBlock);
  return kOk;
}

// x + y + y_bias is the block's input; x_out + y_out + fc2's bias will be its output.
SLCA_API int slca_fused_block_forward(int is_bf16, const SlcaFusedBlock* block, const float* x, const void* y,
                                      const float* y_bias, float* x_out, void* y_out) {
  if (is_bf16) return forward(*block, x, in<uint16_t>(y), y_bias, x_out, out<uint16_t>(y_out));
  return forward(*block, x, in<float>(y), y_bias, x_out, out<float>(y_out));
}

// grad, and the same rounded: the gradient of the output, [images x queries, width]; grad is overwritten. grad_x, and
// the same rounded: that of the input, [images x tokens, width]; grad_x may be grad if all tokens are queries. Between
// them come out the gradients of what fc1, proj and qkv put out, and sums over rows: those of fc1's bias [hidden], of
// norm2's gamma and beta, proj's bias, qkv's bias [3 width], norm1's gamma and beta and the bias added before the block.
SLCA_API int slca_fused_block_backward(int is_bf16, const SlcaFusedBlock* block, float* grad, const void* rounded,
                                       void* grad_fc1, void* grad_proj, void* grad_qkv, float* grad_x, void* rounded_x,
                                       float* sums) {
  if (is_bf16)
    return backward(*block, grad, in<uint16_t>(rounded), out<uint16_t>(grad_fc1), out<uint16_t>(grad_proj),
                    out<uint16_t>(grad_qkv), grad_x, out<uint16_t>(rounded_x), sums);
  return backward(*block, grad, in<float>(rounded), out<float>(grad_fc1), out<float>(grad_proj), out<float>(grad_qkv),
                  grad_x, out<float>(rounded_x), sums);
}

// sum [a_columns, b_columns] (+)= a^T b over rows.
SLCA_API int slca_outer(int is_bf16, const void* a, int64_t a_columns, const void* b, int64_t b_columns, int64_t rows,
                        int add, float* sum, int num_threads) {
  if (is_bf16)
    return outer(in<uint16_t>(a), a_columns, in<uint16_t>(b), b_columns, rows, add != 0, sum, num_threads);
  return outer(in<float>(a), a_columns, in<float>(b), b_columns, rows, add != 0, sum, num_threads);
}
