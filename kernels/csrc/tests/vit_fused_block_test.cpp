// A fused block at odd sizes, on every instruction set, against one written out in double: its output, and the change
// of the output that its gradient foretells.
#include "../vit_fused_block.h"
#include "checks.h"

extern "C" int slca_packed_size(int, int64_t, int64_t, int64_t*);
extern "C" int slca_pack_weight(int, const void*, int64_t, int64_t, int, int32_t*);
extern "C" int slca_fused_block_forward(int, const SlcaFusedBlock*, const float*, const void*, const float*, float*,
                                        void*);
extern "C" int slca_fused_block_backward(int, const SlcaFusedBlock*, float*, const void*, void*, void*, void*, float*,
                                         void*, float*);
extern "C" int slca_outer(int, const void*, int64_t, const void*, int64_t, int64_t, int, float*, int);

namespace {

struct Sizes {
  int64_t images, tokens, queries, heads, dim, hidden;
  int64_t width() const { return heads * dim; }
};

struct Parameters {
  std::vector<float> qkv, proj, fc1, fc2, qkv_bias, proj_bias, fc1_bias, gamma1, beta1, gamma2, beta2;
  explicit Parameters(const Sizes& s) {
    const int64_t d = s.width(), f = s.hidden;
    qkv = numbers(3 * d * d, 1, 1), proj = numbers(d * d, 2, 1), fc1 = numbers(f * d, 3, 1), fc2 = numbers(d * f, 4, 1);
    qkv_bias = numbers(3 * d, 5, 1), proj_bias = numbers(d, 6, 1), fc1_bias = numbers(f, 7, 1);
    gamma1 = numbers(d, 8, 2), beta1 = numbers(d, 9, 1), gamma2 = numbers(d, 10, 2), beta2 = numbers(d, 11, 1);
  }
};

using Doubles = std::vector<double>;

Doubles norm(const Doubles& x, int64_t width, const std::vector<float>& gamma, const std::vector<float>& beta) {
  Doubles out(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < width; ++i) mean += x[row + i] / width;
    for (int64_t i = 0; i < width; ++i) variance += std::pow(x[row + i] - mean, 2) / width;
    for (int64_t i = 0; i < width; ++i)
      out[row + i] = (x[row + i] - mean) / std::sqrt(variance + 1e-5) * gamma[i] + beta[i];
  }
  return out;
}

Doubles linear(const Doubles& x, int64_t in, const std::vector<float>& weight, const std::vector<float>* bias) {
  const int64_t out = weight.size() / in, rows = x.size() / in;
  Doubles y(rows * out);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias ? (*bias)[o] : 0.0;
      for (int64_t i = 0; i < in; ++i) sum += x[r * in + i] * weight[o * in + i];
      y[r * out + o] = sum;
    }
  return y;
}

// The block without fc2's bias, for the first `queries` tokens of every image.
Doubles truth(const Sizes& s, const Parameters& p, const Doubles& x) {
  const int64_t d = s.width();
  const Doubles qkv = linear(norm(x, d, p.gamma1, p.beta1), d, p.qkv, &p.qkv_bias);
  Doubles context(s.images * s.queries * d), stream(s.images * s.queries * d);
  for (int64_t b = 0; b < s.images; ++b)
    for (int64_t q = 0; q < s.queries; ++q) {
      const double* of_q = &qkv[(b * s.tokens + q) * 3 * d];
      for (int64_t h = 0; h < s.heads; ++h) {
        Doubles weight(s.tokens);
        double total = 0;
        for (int64_t t = 0; t < s.tokens; ++t) {
          const double* of_t = &qkv[(b * s.tokens + t) * 3 * d];
          double score = 0;
          for (int64_t i = h * s.dim; i < (h + 1) * s.dim; ++i) score += of_q[i] * of_t[d + i];
          total += weight[t] = std::exp(score / std::sqrt(double(s.dim)));
        }
        for (int64_t t = 0; t < s.tokens; ++t)
          for (int64_t i = h * s.dim; i < (h + 1) * s.dim; ++i)
            context[(b * s.queries + q) * d + i] += weight[t] / total * qkv[(b * s.tokens + t) * 3 * d + 2 * d + i];
      }
      for (int64_t i = 0; i < d; ++i) stream[(b * s.queries + q) * d + i] = x[(b * s.tokens + q) * d + i];
    }
  const Doubles added = linear(context, d, p.proj, &p.proj_bias);
  for (size_t i = 0; i < stream.size(); ++i) stream[i] += added[i];
  Doubles inner = linear(norm(stream, d, p.gamma2, p.beta2), d, p.fc1, &p.fc1_bias);
  for (double& z : inner) z *= 0.5 * std::erfc(-z / std::sqrt(2.0));
  const Doubles out = linear(inner, s.hidden, p.fc2, nullptr);
  for (size_t i = 0; i < stream.size(); ++i) stream[i] += out[i];
  return stream;
}

template <class T>
struct Numbers;
template <>
struct Numbers<float> {
  static constexpr int kIsBf16 = 0;
  static std::vector<float> of(const std::vector<float>& x) { return x; }
  static double value(float x) { return x; }
};
template <>
struct Numbers<uint16_t> {
  static constexpr int kIsBf16 = 1;
  static std::vector<uint16_t> of(const std::vector<float>& x) { return narrow(x); }
  static double value(uint16_t x) { return widen(x); }
};

template <class T>
std::vector<int32_t> packed(const std::vector<float>& weight, int64_t out, int64_t in, bool transposed) {
  int64_t size = 0;
  slca_packed_size(Numbers<T>::kIsBf16, transposed ? out : in, transposed ? in : out, &size);
  std::vector<int32_t> result(size);
  slca_pack_weight(Numbers<T>::kIsBf16, Numbers<T>::of(weight).data(), out, in, transposed, result.data());
  return result;
}

template <class T>
void check_block(const Sizes& s, double tolerance) {
  const int64_t d = s.width(), f = s.hidden, rows = s.images * s.tokens, late = s.images * s.queries;
  const int64_t stride = sizeof(T) == 2 ? (s.tokens + 1) / 2 * 2 : s.tokens;
  const Parameters p(s);
  SlcaFusedBlock b{};
  b.images = s.images, b.tokens = s.tokens, b.queries = s.queries, b.heads = s.heads, b.dim = s.dim, b.hidden = f;
  b.group = 2, b.num_threads = 2, b.eps1 = b.eps2 = 1e-5f;
  const auto qkv = packed<T>(p.qkv, 3 * d, d, false), proj = packed<T>(p.proj, d, d, false),
             fc1 = packed<T>(p.fc1, f, d, false), fc2 = packed<T>(p.fc2, d, f, false),
             qkv_back = packed<T>(p.qkv, 3 * d, d, true), proj_back = packed<T>(p.proj, d, d, true),
             fc1_back = packed<T>(p.fc1, f, d, true), fc2_back = packed<T>(p.fc2, d, f, true);
  b.qkv = qkv.data(), b.proj = proj.data(), b.fc1 = fc1.data(), b.fc2 = fc2.data();
  b.qkv_back = qkv_back.data(), b.proj_back = proj_back.data(), b.fc1_back = fc1_back.data();
  b.fc2_back = fc2_back.data();
  b.qkv_bias = p.qkv_bias.data(), b.proj_bias = p.proj_bias.data(), b.fc1_bias = p.fc1_bias.data();
  b.gamma1 = p.gamma1.data(), b.beta1 = p.beta1.data(), b.gamma2 = p.gamma2.data(), b.beta2 = p.beta2.data();
  const auto x = numbers(rows * d, 12, 4);
  std::vector<float> out(late * d), again(late * d);
  std::vector<T> y(late * d), y_again(late * d);
  slca_fused_block_forward(Numbers<T>::kIsBf16, &b, x.data(), nullptr, nullptr, out.data(), y.data());

  std::vector<float> sum1(rows * d), mean1(rows), std1(rows), mean2(late), std2(late);
  std::vector<T> hidden1(rows * d), qkv_out(rows * 3 * d), probabilities(late * s.heads * stride), context(late * d),
      hidden2(late * d), slope(late * f), activated(late * f);
  b.sum1 = sum1.data(), b.mean1 = mean1.data(), b.inv_std1 = std1.data(), b.hidden1 = hidden1.data();
  b.qkv_out = qkv_out.data(), b.probabilities = probabilities.data(), b.context = context.data();
  b.sum2 = again.data(), b.mean2 = mean2.data(), b.inv_std2 = std2.data(), b.hidden2 = hidden2.data();
  b.slope = slope.data(), b.activated = activated.data();
  slca_fused_block_forward(Numbers<T>::kIsBf16, &b, x.data(), nullptr, nullptr, again.data(), y_again.data());

  const Doubles wide(x.begin(), x.end()), expected = truth(s, p, wide);
  for (int64_t i = 0; i < late * d; ++i) {
    const double ours = out[i] + Numbers<T>::value(y[i]);
    expect_close(ours, expected[i], tolerance, "output of a block");
    expect_close(again[i] + Numbers<T>::value(y_again[i]), ours, 0.0, "output while training");
  }

  const auto upstream = numbers(late * d, 13, 2), direction = numbers(rows * d, 14, 2);
  std::vector<float> grad = upstream, grad_x(rows * d), sums(f + 9 * d);
  const auto rounded = Numbers<T>::of(upstream);
  std::vector<T> grad_fc1(late * f), grad_proj(late * d), grad_qkv(rows * 3 * d), rounded_x(rows * d);
  slca_fused_block_backward(Numbers<T>::kIsBf16, &b, grad.data(), rounded.data(), grad_fc1.data(), grad_proj.data(),
                          grad_qkv.data(), grad_x.data(), rounded_x.data(), sums.data());
  double foretold = 0, change = 0, size = 0;
  const double step = 1e-5;
  Doubles ahead = wide, behind = wide;
  for (int64_t i = 0; i < rows * d; ++i) {
    foretold += double(grad_x[i]) * direction[i], size += std::fabs(double(grad_x[i]) * direction[i]);
    ahead[i] += step * direction[i], behind[i] -= step * direction[i];
  }
  const Doubles of_ahead = truth(s, p, ahead), of_behind = truth(s, p, behind);
  for (int64_t i = 0; i < late * d; ++i) change += upstream[i] * (of_ahead[i] - of_behind[i]) / (2 * step);
  expect_close(foretold / size, change / size, tolerance, "change foretold by the gradient");
}

void check_outer(int64_t rows, int64_t a_columns, int64_t b_columns) {
  const auto a = numbers(rows * a_columns, 15, 2), b = numbers(rows * b_columns, 16, 2);
  const auto narrow_a = narrow(a), narrow_b = narrow(b);
  std::vector<float> sum(a_columns * b_columns), narrow_sum(a_columns * b_columns);
  slca_outer(0, a.data(), a_columns, b.data(), b_columns, rows, 0, sum.data(), 2);
  slca_outer(0, a.data(), a_columns, b.data(), b_columns, rows, 1, sum.data(), 3);
  slca_outer(1, narrow_a.data(), a_columns, narrow_b.data(), b_columns, rows, 0, narrow_sum.data(), 2);
  for (int64_t i = 0; i < a_columns; ++i)
    for (int64_t j = 0; j < b_columns; ++j) {
      double wide = 0, close = 0;
      for (int64_t r = 0; r < rows; ++r) {
        wide += 2.0 * a[r * a_columns + i] * b[r * b_columns + j];
        close += widen(narrow_a[r * a_columns + i]) * widen(narrow_b[r * b_columns + j]);
      }
      expect_close(sum[i * b_columns + j], wide, 1e-4, "product summed over rows");
      expect_close(narrow_sum[i * b_columns + j], close, 1e-4, "product summed over rows in bfloat16");
    }
}

}  // namespace

int main() {
  const int best = slca_isa();
  for (int isa = 0; isa <= best; ++isa) {
    slca_set_isa(isa);
    for (const Sizes& s : {Sizes{1, 1, 1, 1, 6, 2}, Sizes{3, 5, 5, 2, 6, 10}, Sizes{3, 5, 1, 2, 6, 10},
                           Sizes{2, 19, 19, 3, 16, 50}, Sizes{5, 18, 1, 1, 34, 64}}) {
      check_block<float>(s, 2e-5);
      check_block<uint16_t>(s, 6e-2);
    }
    check_outer(1, 1, 1);
    check_outer(3, 7, 50);
    check_outer(401, 33, 17);
  }
  return failures != 0;
}
