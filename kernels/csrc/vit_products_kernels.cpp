#include "vit_products_kernels.h"

#include "products.h"
#include "softmax.h"

namespace slca::SLCA_ISA {
namespace {

// Units of one chunk of outer(): a panel and a slab of it stay in the nearest cache.
constexpr int64_t kChunkUnits = 96;

template <class T>
int64_t units_of(int64_t summed) {
  return ceil_div(summed, kPerUnit<T>);
}

template <class T>
int64_t slabs_size(int64_t summed, int64_t columns) {
  return ceil_div(columns, kSlabRows) * kSlabRows * units_of<T>(summed);
}

template <class T>
int64_t outer_scratch(int64_t a_columns, int64_t b_columns) {
  const int64_t summed = kChunkUnits * kPerUnit<T>;
  return slabs_size<T>(summed, a_columns) + packed_units(b_columns, kChunkUnits);
}

template <class T>
void outer(const T* a, int64_t a_stride, int64_t a_columns, const T* b, int64_t b_stride, int64_t b_columns,
           int64_t rows, bool add, float* sum, int64_t sum_stride, int32_t* scratch) {
  constexpr int64_t kChunk = kChunkUnits * kPerUnit<T>;
  int32_t* packed = scratch + slabs_size<T>(kChunk, a_columns);
  for (int64_t first = 0; first < rows; first += kChunk) {
    const int64_t count = rows - first < kChunk ? rows - first : kChunk;
    pack_slabs(a + first * a_stride, a_stride, count, a_columns, scratch);
    pack_rows(b + first * b_stride, b_stride, count, b_columns, packed);
    // The next chunk comes from afar while this one is multiplied.
    const int64_t next = first + kChunk, left = rows - next < kChunk ? rows - next : kChunk;
    Ahead<T> more_a(a + next * a_stride, a_stride, left, a_columns), more_b(b + next * b_stride, b_stride, left, b_columns);
    const int64_t tiles = ceil_div(a_columns, kTileRows) * ceil_div(b_columns, kPanelVectors * kLanes);
    const int64_t each_a = ceil_div(more_a.lines(), tiles), each_b = ceil_div(more_b.lines(), tiles);
    product_of_slabs<T>(scratch, a_columns, units_of<T>(count), packed, b_columns, add || first > 0 ? sum : nullptr,
                        sum, sum_stride, [&] {
                          more_a.fetch(each_a);
                          more_b.fetch(each_b);
                        });
  }
}

template <class T>
void add_rows(const T* in, int64_t rows, int64_t width, float* sums) {
  over_row(width, [&](int64_t i, auto n) SLCA_INLINE {
    FloatV total = get(sums + i, n);
    for (int64_t row = 0; row < rows; ++row) total += get(in + row * width + i, n);
    put(sums + i, total, n);
  });
}

template <class T>
int64_t scores_stride(int64_t tokens) {
  return ceil_div(tokens, kLanes) * kLanes;
}

template <class T>
int64_t largest_packed(int64_t tokens, int64_t dim) {
  const int64_t keys = packed_units(tokens, units_of<T>(dim)), rows = packed_units(dim, units_of<T>(tokens));
  return keys > rows ? keys : rows;
}

template <class T>
int64_t attention_scratch(int64_t tokens, int64_t dim) {
  // Scores, their gradient, a packed matrix and slabs.
  return 2 * tokens * scores_stride<T>(tokens) + largest_packed<T>(tokens, dim) + slabs_size<T>(tokens, tokens);
}

template <class T>
void attention(const T* qkv, int64_t tokens, int64_t queries, int64_t heads, int64_t dim, float scale, int64_t stride,
               T* probabilities, T* context, int32_t* scratch) {
  const int64_t width = heads * dim, in = 3 * width, wide = scores_stride<T>(tokens);
  float* scores = reinterpret_cast<float*>(scratch);
  int32_t* packed = scratch + tokens * wide;
  for (int64_t head = 0; head < heads; ++head) {
    const T *q = qkv + head * dim, *k = q + width, *v = k + width;
    T* p = probabilities + head * queries * stride;
    pack_columns(k, in, tokens, dim, packed);
    product(q, in, queries, units_of<T>(dim), packed, tokens, nullptr, scores, wide);
    softmax_of(scores, wide, scale, queries, tokens, p, stride);
    if (stride > tokens)
      for (int64_t row = 0; row < queries; ++row) store_float(p + row * stride + tokens, 0.0f);
    pack_rows(v, in, tokens, dim, packed);
    product(p, stride, queries, units_of<T>(tokens), packed, dim, nullptr, context + head * dim, width);
  }
}

template <class T>
void attention_backward(const T* qkv, const T* probabilities, const T* grad_context, int64_t tokens, int64_t queries,
                        int64_t heads, int64_t dim, float scale, int64_t stride, T* grad_qkv, int32_t* scratch) {
  const int64_t width = heads * dim, in = 3 * width, wide = scores_stride<T>(tokens);
  const int64_t of_tokens = units_of<T>(tokens), of_queries = units_of<T>(queries);
  float* grads = reinterpret_cast<float*>(scratch);
  T* grad_scores = reinterpret_cast<T*>(scratch + tokens * wide);
  int32_t *packed = scratch + 2 * tokens * wide, *slabs = packed + largest_packed<T>(tokens, dim);
  for (int64_t token = queries; token < tokens; ++token) std::memset(grad_qkv + token * in, 0, width * sizeof(T));
  for (int64_t head = 0; head < heads; ++head) {
    const T *q = qkv + head * dim, *k = q + width, *v = k + width, *g = grad_context + head * dim;
    T *grad_q = grad_qkv + head * dim, *grad_k = grad_q + width, *grad_v = grad_k + width;
    const T* p = probabilities + head * queries * stride;
    pack_columns(v, in, tokens, dim, packed);
    product(g, width, queries, units_of<T>(dim), packed, tokens, nullptr, grads, wide);
    softmax_gradient(grads, wide, p, stride, scale, queries, tokens, grad_scores, stride);
    if (stride > tokens)
      for (int64_t row = 0; row < queries; ++row) store_float(grad_scores + row * stride + tokens, 0.0f);
    pack_rows(k, in, tokens, dim, packed);
    product(grad_scores, stride, queries, of_tokens, packed, dim, nullptr, grad_q, in);
    pack_rows(g, width, queries, dim, packed);
    pack_slabs(p, stride, queries, tokens, slabs);
    product_of_slabs<T>(slabs, tokens, of_queries, packed, dim, nullptr, grad_v, in, [] {});
    pack_rows(q, in, queries, dim, packed);
    pack_slabs(grad_scores, stride, queries, tokens, slabs);
    product_of_slabs<T>(slabs, tokens, of_queries, packed, dim, nullptr, grad_k, in, [] {});
  }
}

inline BFloat16* as(uint16_t* p) { return reinterpret_cast<BFloat16*>(p); }
inline const BFloat16* as(const uint16_t* p) { return reinterpret_cast<const BFloat16*>(p); }
inline float* as(float* p) { return p; }
inline const float* as(const float* p) { return p; }

}  // namespace

#define SLCA_DEFINE(T, Kind, name)                                                                                     \
  int64_t name##packed_size(int64_t summed, int64_t columns) { return packed_units(columns, units_of<Kind>(summed)); } \
  void name##pack_weight(const T* weight, int64_t out, int64_t in, bool transposed, int32_t* packed) {                 \
    if (transposed)                                                                                                    \
      pack_rows(as(weight), in, out, in, packed);                                                                      \
    else                                                                                                               \
      pack_columns(as(weight), in, out, in, packed);                                                                   \
  }                                                                                                                    \
  void name##product(const T* a, int64_t rows, int64_t summed, const int32_t* b, int64_t columns, const float* bias,   \
                     T* c) {                                                                                           \
    product(as(a), summed, rows, units_of<Kind>(summed), b, columns, bias, as(c), columns);                            \
  }                                                                                                                    \
  int64_t name##outer_scratch(int64_t a_columns, int64_t b_columns) {                                                  \
    return outer_scratch<Kind>(a_columns, b_columns);                                                                  \
  }                                                                                                                    \
  void name##outer(const T* a, int64_t a_stride, int64_t a_columns, const T* b, int64_t b_stride, int64_t b_columns,   \
                   int64_t rows, bool add, float* sum, int64_t sum_stride, int32_t* scratch) {                         \
    outer(as(a), a_stride, a_columns, as(b), b_stride, b_columns, rows, add, sum, sum_stride, scratch);                \
  }                                                                                                                    \
  void name##add_rows(const T* in, int64_t rows, int64_t width, float* sums) { add_rows(as(in), rows, width, sums); }  \
  int64_t name##attention_scratch(int64_t tokens, int64_t dim) { return attention_scratch<Kind>(tokens, dim); }        \
  void name##attention(const T* qkv, int64_t tokens, int64_t queries, int64_t heads, int64_t dim, float scale,         \
                       int64_t stride, T* probabilities, T* context, int32_t* scratch) {                               \
    attention(as(qkv), tokens, queries, heads, dim, scale, stride, as(probabilities), as(context), scratch);           \
  }                                                                                                                    \
  void name##attention_backward(const T* qkv, const T* probabilities, const T* grad_context, int64_t tokens,           \
                                int64_t queries, int64_t heads, int64_t dim, float scale, int64_t stride, T* grad_qkv, \
                                int32_t* scratch) {                                                                    \
    attention_backward(as(qkv), as(probabilities), as(grad_context), tokens, queries, heads, dim, scale, stride,       \
                       as(grad_qkv), scratch);                                                                         \
  }

SLCA_DEFINE(float, float, float_)
SLCA_DEFINE(uint16_t, BFloat16, bf16_)

}  // namespace slca::SLCA_ISA
