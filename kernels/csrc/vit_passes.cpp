// The passes of a vision transformer's block, each in one read of memory. Rows go in fixed parts, so that sums over
// rows do not depend on the number of threads.
#include <cstdlib>

#include "vit_kernels.h"

namespace {

constexpr int kOk = 0, kOutOfMemory = 1;
constexpr int64_t kParts = 16;

// work(part, first row, number of rows) for every part that is not empty.
template <class Work>
void in_parts(int64_t num_rows, int num_threads, Work work) {
  const int64_t part_rows = (num_rows + kParts - 1) / kParts;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t first = part * part_rows;
    const int64_t count = first + part_rows < num_rows ? part_rows : num_rows - first;
    if (count > 0) work(part, first, count);
  }
}

// Sums over rows, a slot a part, added up in order.
class Sums {
 public:
  explicit Sums(int64_t width) : width_(width), slots_(static_cast<float*>(std::calloc(kParts * width + 1, 4))) {}
  ~Sums() { std::free(slots_); }
  explicit operator bool() const { return slots_ != nullptr; }
  float* of(int64_t part) { return slots_ + part * width_; }
  void add_up(int64_t first, int64_t count, float* out) const {
    for (int64_t i = 0; i < count; ++i) {
      float sum = 0;
      for (int64_t part = 0; part < kParts; ++part) sum += slots_[part * width_ + first + i];
      out[i] = sum;
    }
  }

 private:
  int64_t width_;
  float* slots_;
};

template <class T>
int residual_norm(const float* x, const T* y, const float* bias, const float* gamma, const float* beta, float eps,
                  int64_t num_rows, int64_t width, float* sum, T* hidden, float* mean, float* inv_std,
                  int num_threads) {
  in_parts(num_rows, num_threads, [&](int64_t, int64_t first, int64_t count) {
    const int64_t at = first * width;
    Best<T>::residual_norm(x + at, y ? y + at : y, bias, gamma, beta, eps, count, width, sum + at,
                           hidden ? hidden + at : hidden, mean ? mean + first : mean,
                           inv_std ? inv_std + first : inv_std);
  });
  return kOk;
}

// sums: [3, width], of gamma (grad_hidden * normalized), beta (grad_hidden) and the bias before (grad_x).
template <class T>
int residual_norm_backward(const T* grad_hidden, const float* sum, const float* mean, const float* inv_std,
                           const float* gamma, const float* grad_sum, int64_t num_rows, int64_t width, float* grad_x,
                           T* rounded, float* sums, int num_threads) {
  Sums slots(3 * width);
  if (!slots) return kOutOfMemory;
  in_parts(num_rows, num_threads, [&](int64_t part, int64_t first, int64_t count) {
    const int64_t at = first * width;
    float* mine = slots.of(part);
    Best<T>::residual_norm_backward(gamma ? grad_hidden + at : grad_hidden, gamma ? sum + at : sum,
                                    gamma ? mean + first : mean, gamma ? inv_std + first : inv_std, gamma,
                                    grad_sum + at, count, width, grad_x + at, rounded + at, mine, mine + width,
                                    mine + 2 * width);
  });
  slots.add_up(0, 3 * width, sums);
  return kOk;
}

template <class T>
int gelu(const T* x, const float* bias, int64_t num_rows, int64_t width, T* out, T* slope, int num_threads) {
  in_parts(num_rows, num_threads, [&](int64_t, int64_t first, int64_t count) {
    const int64_t at = first * width;
    Best<T>::gelu(x + at, bias, count, width, out + at, slope ? slope + at : slope);
  });
  return kOk;
}

template <class T>
int gelu_backward(const T* grad, const T* slope, int64_t num_rows, int64_t width, T* grad_x, float* bias_sum,
                  int num_threads) {
  Sums slots(width);
  if (!slots) return kOutOfMemory;
  in_parts(num_rows, num_threads, [&](int64_t part, int64_t first, int64_t count) {
    const int64_t at = first * width;
    Best<T>::gelu_backward(grad + at, slope + at, count, width, grad_x + at, slots.of(part));
  });
  slots.add_up(0, width, bias_sum);
  return kOk;
}

template <class T>
int softmax(T* scores, float scale, int64_t num_rows, int64_t width, int num_threads) {
  in_parts(num_rows, num_threads, [&](int64_t, int64_t first, int64_t count) {
    Best<T>::softmax(scores + first * width, scale, count, width);
  });
  return kOk;
}

template <class T>
int softmax_backward(T* grad, const T* probabilities, float scale, int64_t num_rows, int64_t width, int num_threads) {
  in_parts(num_rows, num_threads, [&](int64_t, int64_t first, int64_t count) {
    Best<T>::softmax_backward(grad + first * width, probabilities + first * width, scale, count, width);
  });
  return kOk;
}

template <class T>
int split_heads(const T* in, const float* bias, int64_t num_images, int64_t tokens, int64_t parts, int64_t heads,
                int64_t dim, T* out, int num_threads) {
  const int64_t image = tokens * heads * dim, part_stride = num_images * image;
  in_parts(num_images, num_threads, [&](int64_t, int64_t first, int64_t count) {
    for (int64_t b = first; b < first + count; ++b)
      Best<T>::split_heads(in + b * parts * image, bias, tokens, parts, heads, dim, part_stride, out + b * image);
  });
  return kOk;
}

template <class T>
int merge_heads(const T* in, int64_t num_images, int64_t tokens, int64_t parts, int64_t heads, int64_t dim, T* out,
                float* bias_sum, int num_threads) {
  const int64_t image = tokens * heads * dim, part_stride = num_images * image, width = parts * heads * dim;
  Sums slots(width);
  if (!slots) return kOutOfMemory;
  in_parts(num_images, num_threads, [&](int64_t part, int64_t first, int64_t count) {
    for (int64_t b = first; b < first + count; ++b)
      Best<T>::merge_heads(in + b * image, tokens, parts, heads, dim, part_stride, out + b * parts * image,
                           bias_sum ? slots.of(part) : nullptr);
  });
  if (bias_sum) slots.add_up(0, width, bias_sum);
  return kOk;
}

}  // namespace

// Matrices are [num_rows, width], contiguous; is_bf16 tells the type of those that are passed as void.
// vit_passes_kernels.h says what is computed and which pointers may be null.

SLCA_API int slca_residual_norm(int is_bf16, const float* x, const void* y, const float* bias, const float* gamma,
                                const float* beta, float eps, int64_t num_rows, int64_t width, float* sum,
                                void* hidden, float* mean, float* inv_std, int num_threads) {
  if (is_bf16)
    return residual_norm(x, in<uint16_t>(y), bias, gamma, beta, eps, num_rows, width, sum, out<uint16_t>(hidden), mean,
                         inv_std, num_threads);
  return residual_norm(x, in<float>(y), bias, gamma, beta, eps, num_rows, width, sum, out<float>(hidden), mean,
                       inv_std, num_threads);
}

SLCA_API int slca_residual_norm_backward(int is_bf16, const void* grad_hidden, const float* sum, const float* mean,
                                         const float* inv_std, const float* gamma, const float* grad_sum,
                                         int64_t num_rows, int64_t width, float* grad_x, void* rounded, float* sums,
                                         int num_threads) {
  if (is_bf16)
    return residual_norm_backward(in<uint16_t>(grad_hidden), sum, mean, inv_std, gamma, grad_sum, num_rows, width,
                                  grad_x, out<uint16_t>(rounded), sums, num_threads);
  return residual_norm_backward(in<float>(grad_hidden), sum, mean, inv_std, gamma, grad_sum, num_rows, width, grad_x,
                                out<float>(rounded), sums, num_threads);
}

SLCA_API int slca_gelu(int is_bf16, const void* x, const float* bias, int64_t num_rows, int64_t width, void* value,
                       void* slope, int num_threads) {
  if (is_bf16)
    return gelu(in<uint16_t>(x), bias, num_rows, width, out<uint16_t>(value), out<uint16_t>(slope), num_threads);
  return gelu(in<float>(x), bias, num_rows, width, out<float>(value), out<float>(slope), num_threads);
}

SLCA_API int slca_gelu_backward(int is_bf16, const void* grad, const void* slope, int64_t num_rows, int64_t width,
                                void* grad_x, float* bias_sum, int num_threads) {
  if (is_bf16)
    return gelu_backward(in<uint16_t>(grad), in<uint16_t>(slope), num_rows, width, out<uint16_t>(grad_x), bias_sum,
                         num_threads);
  return gelu_backward(in<float>(grad), in<float>(slope), num_rows, width, out<float>(grad_x), bias_sum, num_threads);
}

SLCA_API int slca_softmax(int is_bf16, void* scores, float scale, int64_t num_rows, int64_t width, int num_threads) {
  if (is_bf16) return softmax(out<uint16_t>(scores), scale, num_rows, width, num_threads);
  return softmax(out<float>(scores), scale, num_rows, width, num_threads);
}

SLCA_API int slca_softmax_backward(int is_bf16, void* grad, const void* probabilities, float scale, int64_t num_rows,
                                   int64_t width, int num_threads) {
  if (is_bf16)
    return softmax_backward(out<uint16_t>(grad), in<uint16_t>(probabilities), scale, num_rows, width, num_threads);
  return softmax_backward(out<float>(grad), in<float>(probabilities), scale, num_rows, width, num_threads);
}

// [images, tokens, parts, heads, dim] (+ bias) -> [parts, images, heads, tokens, dim]
SLCA_API int slca_split_heads(int is_bf16, const void* x, const float* bias, int64_t num_images, int64_t tokens,
                              int64_t parts, int64_t heads, int64_t dim, void* y, int num_threads) {
  if (is_bf16)
    return split_heads(in<uint16_t>(x), bias, num_images, tokens, parts, heads, dim, out<uint16_t>(y), num_threads);
  return split_heads(in<float>(x), bias, num_images, tokens, parts, heads, dim, out<float>(y), num_threads);
}

// The way back; bias_sum [parts, heads, dim] (or null) is the sum over images and tokens.
SLCA_API int slca_merge_heads(int is_bf16, const void* x, int64_t num_images, int64_t tokens, int64_t parts,
                              int64_t heads, int64_t dim, void* y, float* bias_sum, int num_threads) {
  if (is_bf16)
    return merge_heads(in<uint16_t>(x), num_images, tokens, parts, heads, dim, out<uint16_t>(y), bias_sum, num_threads);
  return merge_heads(in<float>(x), num_images, tokens, parts, heads, dim, out<float>(y), bias_sum, num_threads);
}
