// Both losses against sums written out in double precision, on every instruction set, with labels at the edges.
#include "checks.h"

extern "C" int slca_symmetric_cross_entropy(const void*, int64_t, int, const int64_t*, const float*, float*, void*,
                                            int64_t, int64_t, float, float, float, int);
extern "C" int slca_task_normalized_cross_entropy(const void*, int64_t, int, const int64_t*, const float*,
                                                  const int64_t*, float*, void*, int64_t, int64_t, int64_t, double,
                                                  double, int);

namespace {

double symmetric(const float* z, int64_t n, int64_t label, double a, double reverse) {
  double largest = -INFINITY, total = 0.0, loss = 0.0;
  for (int64_t k = 0; k < n; ++k) largest = std::fmax(largest, z[k]);
  for (int64_t k = 0; k < n; ++k) total += std::exp(z[k] - largest);
  for (int64_t k = 0; k < n; ++k)
    if (k != label) loss += reverse * std::fmax(std::exp(z[k] - largest) / total, 1e-7);
  return loss + a * (std::log(total) + largest - z[label]);
}

double normalized(const float* z, int64_t n, int64_t label, int64_t first, double temperature) {
  double squares[2] = {0.0, 0.0}, largest = -INFINITY, total = 0.0;
  for (int64_t k = 0; k < n; ++k) squares[k >= first] += double(z[k]) * z[k];
  const double tasks = first < n ? 2.0 : 1.0;
  const double scale = ((std::sqrt(squares[0]) + std::sqrt(squares[1])) / tasks + 1e-7) * temperature;
  for (int64_t k = 0; k < n; ++k) largest = std::fmax(largest, z[k] / scale);
  for (int64_t k = 0; k < n; ++k) total += std::exp(z[k] / scale - largest);
  return std::log(total) + largest - z[label] / scale;
}

void check(int64_t num_classes, float spread) {
  const int64_t num_rows = 3, stride = num_classes + 5;
  const auto logits = numbers(num_rows * stride, static_cast<uint32_t>(num_classes), spread);
  std::vector<float> gradient(num_rows * num_classes), loss(num_rows);
  const std::vector<int64_t> target{0, num_classes - 1, num_classes / 2};
  const std::vector<float> scale{1.0f, 0.5f, 0.0f};
  const int status = slca_symmetric_cross_entropy(logits.data(), stride, 0, target.data(), scale.data(), loss.data(),
                                                  gradient.data(), num_rows, num_classes, 0.7f, 2.0f, 1e-7f, 2);
  expect_close(status, 0, 0, "status");
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* z = logits.data() + row * stride;
    expect_close(loss[row], scale[row] * symmetric(z, num_classes, target[row], 0.7, 2.0), 2e-6, "symmetric loss");
    double sum = 0.0;
    for (int64_t k = 0; k < num_classes; ++k) sum += gradient[row * num_classes + k];
    if (scale[row] == 0.0f) expect_close(sum, 0.0, 0.0, "gradient of an ignored row");
  }
  const int64_t first = num_classes > 2 ? num_classes / 3 : num_classes;
  const std::vector<int64_t> sizes{first, num_classes - first};
  const std::vector<float> ones{1.0f, 1.0f, 1.0f};
  const int64_t num_tasks = first < num_classes ? 2 : 1;
  slca_task_normalized_cross_entropy(logits.data(), stride, 0, target.data(), ones.data(), sizes.data(), loss.data(),
                                     gradient.data(), num_rows, num_classes, num_tasks, 0.1, 1e-7, 2);
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* z = logits.data() + row * stride;
    expect_close(loss[row], normalized(z, num_classes, target[row], first, 0.1), 1e-5, "normalized loss");
  }
}

void check_labels_out_of_range() {
  const std::vector<float> logits(8, 1.0f), scale{1.0f, 1.0f};
  std::vector<float> loss(2), gradient(8);
  for (const int64_t label : {int64_t{-1}, int64_t{4}, INT64_MIN, INT64_MAX}) {
    const std::vector<int64_t> target{label, 1};
    const int status = slca_symmetric_cross_entropy(logits.data(), 4, 0, target.data(), scale.data(), loss.data(),
                                                    gradient.data(), 2, 4, 1.0f, 1.0f, 1e-7f, 1);
    expect_close(status, 2, 0, "status of a label out of range");
    if (!std::isnan(loss[0]) || std::isnan(loss[1])) ++failures;
  }
}

}  // namespace

int main() {
  const int best = slca_isa();
  for (int isa = 0; isa <= best; ++isa) {
    slca_set_isa(isa);
    for (const int64_t num_classes : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 1000, 1024, 1025, 2500})
      for (const float spread : {1.0f, 60.0f}) check(num_classes, spread);
    check_labels_out_of_range();
  }
  return failures ? 1 : 0;
}
