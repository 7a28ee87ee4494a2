// The passes of a transformer block at odd sizes, on every instruction set, against sums written out in double.
#include "checks.h"

extern "C" int slca_residual_norm(int, const float*, const void*, const float*, const float*, const float*, float,
                                  int64_t, int64_t, float*, void*, float*, float*, int);
extern "C" int slca_residual_norm_backward(int, const void*, const float*, const float*, const float*, const float*,
                                           const float*, int64_t, int64_t, float*, void*, float*, int);
extern "C" int slca_gelu(int, const void*, const float*, int64_t, int64_t, void*, void*, int);
extern "C" int slca_gelu_backward(int, const void*, const void*, int64_t, int64_t, void*, float*, int);
extern "C" int slca_softmax(int, void*, float, int64_t, int64_t, int);
extern "C" int slca_softmax_backward(int, void*, const void*, float, int64_t, int64_t, int);
extern "C" int slca_split_heads(int, const void*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, void*,
                                int);
extern "C" int slca_merge_heads(int, const void*, int64_t, int64_t, int64_t, int64_t, int64_t, void*, float*, int);

namespace {

void check_rows(int64_t rows, int64_t width) {
  const int64_t n = rows * width;
  const auto x = numbers(n, 1), y = numbers(n, 2), bias = numbers(width, 3), gamma = numbers(width, 4);
  std::vector<float> sum(n), hidden(n), mean(rows), inv_std(rows), slope(n), grad(n), rounded(n), sums(3 * width);
  slca_residual_norm(0, x.data(), y.data(), bias.data(), gamma.data(), bias.data(), 1e-5f, rows, width, sum.data(),
                     hidden.data(), mean.data(), inv_std.data(), 2);
  std::vector<double> column(width, 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    double mu = 0.0, variance = 0.0;
    for (int64_t i = 0; i < width; ++i) mu += (double(x[r * width + i]) + y[r * width + i] + bias[i]) / width;
    for (int64_t i = 0; i < width; ++i) variance += std::pow(sum[r * width + i] - mu, 2) / width;
    for (int64_t i = 0; i < width; ++i) {
      const double normal = (sum[r * width + i] - mu) / std::sqrt(variance + 1e-5);
      expect_close(hidden[r * width + i], normal * gamma[i] + bias[i], width > 1 ? 1e-4 : 1e-2, "layer norm");
      column[i] += y[r * width + i];
    }
  }
  slca_residual_norm_backward(0, nullptr, nullptr, nullptr, nullptr, nullptr, y.data(), rows, width, grad.data(),
                              rounded.data(), sums.data(), 2);
  for (int64_t i = 0; i < width; ++i) expect_close(sums[2 * width + i], column[i], 1e-4, "sum over rows");
  slca_residual_norm_backward(0, y.data(), sum.data(), mean.data(), inv_std.data(), gamma.data(), x.data(), rows,
                              width, grad.data(), rounded.data(), sums.data(), 2);
  for (int64_t i = 0; i < width; ++i) expect_close(sums[width + i], column[i], 1e-4, "gradient of beta");
  std::vector<double> of_gamma(width, 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    double of_g = 0.0, of_gx = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      const double normal = (double(sum[r * width + i]) - mean[r]) * inv_std[r], g = double(y[r * width + i]) * gamma[i];
      of_g += g / width, of_gx += g * normal / width;
      of_gamma[i] += y[r * width + i] * normal;
    }
    for (int64_t i = 0; i < width; ++i) {
      const double normal = (double(sum[r * width + i]) - mean[r]) * inv_std[r], g = double(y[r * width + i]) * gamma[i];
      const double expected = x[r * width + i] + inv_std[r] * (g - of_g - normal * of_gx);
      expect_close(grad[r * width + i], expected, width > 2 ? 1e-3 : 0.2, "gradient of the stream");
    }
  }
  for (int64_t i = 0; i < width; ++i) expect_close(sums[i], of_gamma[i], 1e-3, "gradient of gamma");

  const auto narrow_y = narrow(y);
  std::vector<uint16_t> narrow_hidden(n), narrow_rounded(n);
  std::vector<float> narrow_grad(n), narrow_sums(3 * width);
  slca_residual_norm(1, x.data(), narrow_y.data(), bias.data(), gamma.data(), bias.data(), 1e-5f, rows, width,
                     sum.data(), narrow_hidden.data(), mean.data(), inv_std.data(), 2);
  slca_residual_norm_backward(1, narrow_y.data(), sum.data(), mean.data(), inv_std.data(), gamma.data(), x.data(),
                              rows, width, narrow_grad.data(), narrow_rounded.data(), narrow_sums.data(), 2);
  for (int64_t i = 0; i < n; ++i) {
    const double normal = (double(sum[i]) - mean[i / width]) * inv_std[i / width];
    expect_close(widen(narrow_hidden[i]), normal * gamma[i % width] + bias[i % width], 1e-2, "norm in bfloat16");
    expect_close(widen(narrow_rounded[i]), narrow_grad[i], 5e-3, "rounded gradient");
  }

  auto narrow_x = narrow(x);
  std::vector<uint16_t> out(n), narrow_slope(n);
  slca_gelu(0, x.data(), bias.data(), rows, width, hidden.data(), slope.data(), 2);
  slca_gelu(1, narrow_x.data(), bias.data(), rows, width, out.data(), narrow_slope.data(), 2);
  for (int64_t i = 0; i < n; ++i) {
    const double z = double(x[i]) + bias[i % width], w = widen(narrow_x[i]) + bias[i % width];
    expect_close(hidden[i], 0.5 * z * std::erfc(-z / std::sqrt(2.0)), 1e-6, "GELU");
    expect_close(widen(out[i]), 0.5 * w * std::erfc(-w / std::sqrt(2.0)), 5e-3, "GELU in bfloat16");
  }
  slca_gelu_backward(1, narrow_x.data(), narrow_slope.data(), rows, width, out.data(), sums.data(), 2);
  for (int64_t i = 0; i < n; ++i)
    expect_close(widen(out[i]), widen(narrow_x[i]) * widen(narrow_slope[i]), 5e-3, "gradient of GELU");

  std::vector<float> p = x;
  slca_softmax(0, p.data(), 0.5f, rows, width, 2);
  slca_softmax(1, narrow_x.data(), 0.5f, rows, width, 2);
  for (int64_t r = 0; r < rows; ++r) {
    double total = 0.0;
    for (int64_t i = 0; i < width; ++i) total += std::exp(0.5 * x[r * width + i]);
    for (int64_t i = 0; i < width; ++i) {
      expect_close(p[r * width + i], std::exp(0.5 * x[r * width + i]) / total, 1e-6, "softmax");
      expect_close(widen(narrow_x[r * width + i]), p[r * width + i], 2e-2, "softmax in bfloat16");
    }
  }
  grad = y;
  slca_softmax_backward(0, grad.data(), p.data(), 0.5f, rows, width, 2);
  for (int64_t r = 0; r < rows; ++r) {
    double total = 0.0;
    for (int64_t i = 0; i < width; ++i) total += double(p[r * width + i]) * y[r * width + i];
    for (int64_t i = 0; i < width; ++i)
      expect_close(grad[r * width + i], 0.5 * p[r * width + i] * (y[r * width + i] - total), 1e-6, "scores' gradient");
  }
  auto narrow_g = narrow(y);
  slca_softmax_backward(1, narrow_g.data(), narrow_x.data(), 0.5f, rows, width, 2);
  for (int64_t i = 0; i < n; ++i) expect_close(widen(narrow_g[i]), grad[i], 3e-2, "scores' gradient in bfloat16");
}

void check_heads(int64_t images, int64_t tokens, int64_t parts, int64_t heads, int64_t dim) {
  const int64_t width = parts * heads * dim, n = images * tokens * width;
  const auto x = numbers(n, 7), bias = numbers(width, 8);
  std::vector<float> split(n), merged(n), sums(width);
  slca_split_heads(0, x.data(), bias.data(), images, tokens, parts, heads, dim, split.data(), 2);
  slca_merge_heads(0, split.data(), images, tokens, parts, heads, dim, merged.data(), sums.data(), 2);
  for (int64_t i = 0; i < n; ++i) expect_close(merged[i], x[i] + bias[i % width], 1e-6, "heads there and back");
  const auto narrow_x = narrow(x);
  std::vector<uint16_t> narrow_split(n), narrow_merged(n);
  slca_split_heads(1, narrow_x.data(), nullptr, images, tokens, parts, heads, dim, narrow_split.data(), 2);
  slca_merge_heads(1, narrow_split.data(), images, tokens, parts, heads, dim, narrow_merged.data(), sums.data(), 2);
  for (int64_t i = 0; i < n; ++i) expect_close(narrow_merged[i], narrow_x[i], 0.0, "narrow heads there and back");
  const int64_t b = images - 1, t = tokens - 1, q = parts - 1, h = heads - 1, d = dim - 1;
  expect_close(split[(((q * images + b) * heads + h) * tokens + t) * dim + d], merged[n - 1], 0.0, "place of a head");
}

}  // namespace

int main() {
  const int best = slca_isa();
  for (int isa = 0; isa <= best; ++isa) {
    slca_set_isa(isa);
    for (const int64_t width : {1, 2, 15, 16, 17, 31, 32, 33, 65, 100, 1025})
      for (const int64_t rows : {1, 3, 33}) check_rows(rows, width);
    check_heads(1, 1, 1, 1, 1);
    check_heads(3, 5, 3, 2, 7);
    check_heads(18, 4, 3, 3, 32);
  }
  return failures != 0;
}
