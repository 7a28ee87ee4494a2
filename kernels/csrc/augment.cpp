// Crop, antialiased bicubic resize, flip, brightness and normalisation of a ragged batch of RGB images.
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "augment_kernels.h"

namespace {

using slca::Axis;
using slca::kRowBlock;

constexpr int kOk = 0, kOutOfMemory = 1;
constexpr double kFilterRadius = 2.0;
constexpr double kOne = 1 << 22;

// Memory of one thread, grown as images ask for it.
template <class T>
struct Scratch {
  T* data = nullptr;
  int64_t length = 0;
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data); }
  bool reserve(int64_t wanted) {
    if (wanted <= length) return true;
    std::free(data);
    data = static_cast<T*>(std::malloc(wanted * sizeof(T)));
    length = data ? wanted : 0;
    return data != nullptr;
  }
};

double bicubic(double t) {
  t = std::fabs(t);
  if (t < 1.0) return (1.5 * t - 2.5) * t * t + 1.0;
  if (t < 2.0) return (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5;
  return 0.0;
}

struct AxisScratch {
  Scratch<int32_t> ints;
  Scratch<double> taps;

  // The weights of [start, stop) of an axis of `length` pixels on `size` outputs, in the order `is_reversed` says.
  // In double without contraction, in Pillow's order of operations: the rounded weights are Pillow's.
  bool build(int length, double start, double stop, int size, bool is_reversed, Axis* axis) {
    const double scale = (stop - start) / size;
    const double stretch = scale < 1.0 ? 1.0 : scale;
    const double support = kFilterRadius * stretch, inverse = 1.0 / stretch;
    const int stride = static_cast<int>(std::ceil(support)) * 2 + 1;
    if (!ints.reserve(static_cast<int64_t>(size) * (stride + 2)) || !taps.reserve(stride)) return false;
    int32_t *first = ints.data, *count = first + size, *weights = count + size;
    for (int i = 0; i < size; ++i) {
      const double centre = start + (i + 0.5) * scale;
      int from = static_cast<int>(centre - support + 0.5);
      if (from < 0) from = 0;
      int to = static_cast<int>(centre + support + 0.5);
      if (to > length) to = length;
      double total = 0.0;
      for (int j = from; j < to; ++j) total += taps.data[j - from] = bicubic((j - centre + 0.5) * inverse);
      const int at = is_reversed ? size - 1 - i : i;
      first[at] = from;
      count[at] = to - from;
      for (int j = 0; j < to - from; ++j) {
        const double w = taps.data[j] / total * kOne;
        weights[static_cast<int64_t>(at) * stride + j] = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
      }
    }
    *axis = Axis{size, first, count, weights, stride};
    return true;
  }
};

int64_t round_up(int64_t n) { return (n + kRowBlock - 1) / kRowBlock * kRowBlock; }

struct Plan {
  int size;
  bool channels_last, is_bf16;
  const float *mean, *std;  // per byte of an output row
  int channel_step, pixel_step, row_bytes;
};

struct Worker {
  AxisScratch x_scratch, y_scratch;
  Scratch<uint8_t> columns, results, rows, levels;
  decltype(&slca::generic::resample_x) resample_x = SLCA_BEST(resample_x);
  decltype(&slca::generic::resample_y) resample_y = SLCA_BEST(resample_y);
  decltype(&slca::generic::normalise) normalise = SLCA_BEST(normalise);
  decltype(&slca::generic::normalise_bf16) normalise_bf16 = SLCA_BEST(normalise_bf16);

  void finish(const Plan& plan, const uint8_t* row, int y, float brightness, void* image) const {
    const int64_t size = plan.size, plane = size * size;
    const int parts = plan.channels_last ? 1 : 3, length = plan.channels_last ? 3 * plan.size : plan.size;
    for (int c = 0; c < parts; ++c) {
      const int at = c * plan.channel_step;
      const int64_t to = plan.channels_last ? y * 3 * size : c * plane + y * size;
      if (plan.is_bf16)
        normalise_bf16(row + at, length, brightness, plan.mean + at, plan.std + at,
                       static_cast<uint16_t*>(image) + to);
      else
        normalise(row + at, length, brightness, plan.mean + at, plan.std + at, static_cast<float*>(image) + to);
    }
  }

  bool run(const Plan& plan, const uint8_t* pixels, int width, const double* box, const int32_t* clip, bool flip,
           float brightness, void* image) {
    const int size = plan.size, window_width = clip[2] - clip[0], window_height = clip[3] - clip[1];
    Axis x, y;
    if (!x_scratch.build(window_width, box[0] - clip[0], box[2] - clip[0], size, flip, &x) ||
        !y_scratch.build(window_height, box[1] - clip[1], box[3] - clip[1], size, false, &y))
      return false;
    const int left = flip ? size - 1 : 0, right = size - 1 - left;
    const int first_pixel = x.first[left], num_pixels = x.first[right] + x.count[right] - first_pixel;
    const int first_row = y.first[0], num_rows = y.first[size - 1] + y.count[size - 1] - first_row;
    const int64_t stride = static_cast<int64_t>(width) * 3;
    const uint8_t* window = pixels + (clip[1] + first_row) * stride + (clip[0] + first_pixel) * int64_t{3};
    // Pillow 13 takes y first where the whole window, resized at this scale, shrinks much more along y.
    const double shrink_y = window_height - std::rint(window_height * static_cast<double>(size) / (box[3] - box[1]));
    const double shrink_x = window_width - std::rint(window_width * static_cast<double>(size) / (box[2] - box[0]));
    const bool y_first = shrink_y > 0 && shrink_y > 2 * shrink_x;
    const int64_t short_bytes = 3 * static_cast<int64_t>(num_pixels);
    if (!columns.reserve(round_up(short_bytes) * kRowBlock) ||
        !results.reserve(round_up(plan.row_bytes) * kRowBlock) ||
        !rows.reserve(y_first ? kRowBlock * short_bytes : round_up(num_rows) * round_up(plan.row_bytes)) ||
        !levels.reserve(kRowBlock * round_up(plan.row_bytes)))
      return false;
    const int64_t row_stride = round_up(plan.row_bytes);
    const auto along_x = [&](const uint8_t* from, int64_t from_stride, int count, uint8_t* to) {
      resample_x(from, from_stride, count, first_pixel, num_pixels, x, plan.channel_step, plan.pixel_step,
                 columns.data, results.data, to, row_stride, plan.row_bytes);
    };
    if (y_first) {
      for (int top = 0; top < size; top += kRowBlock) {
        const int count = size - top < kRowBlock ? size - top : kRowBlock;
        for (int r = 0; r < count; ++r)
          resample_y(window + (y.first[top + r] - first_row) * stride, stride,
                     y.weights + static_cast<int64_t>(top + r) * y.stride, y.count[top + r],
                     static_cast<int>(short_bytes), rows.data + r * short_bytes);
        along_x(rows.data, short_bytes, count, levels.data);
        for (int r = 0; r < count; ++r) finish(plan, levels.data + r * row_stride, top + r, brightness, image);
      }
      return true;
    }
    for (int top = 0; top < num_rows; top += kRowBlock)
      along_x(window + top * stride, stride, num_rows - top < kRowBlock ? num_rows - top : kRowBlock,
              rows.data + top * row_stride);
    for (int i = 0; i < size; ++i) {
      resample_y(rows.data + (y.first[i] - first_row) * row_stride, row_stride,
                 y.weights + static_cast<int64_t>(i) * y.stride, y.count[i], plan.row_bytes, levels.data);
      finish(plan, levels.data, i, brightness, image);
    }
    return true;
  }
};

}  // namespace

// pixels: RGB bytes of all images; image n starts at offset[n] and has width[n] pixels a row. box [N, 4] x0 y0 x1 y1
// in pixels of the image, inside clip [N, 4], which is inside the image (the caller checks). mean, std [3].
// out: [N, 3, size, size] float32 or bfloat16, each image in planes or (channels_last) in pixels.
SLCA_API int slca_augment(const uint8_t* pixels, const int64_t* offset, const int32_t* width, const double* box,
                          const int32_t* clip, const uint8_t* flip, const float* brightness, int64_t num_images,
                          int size, const float* mean, const float* std, int is_bf16, int channels_last, void* out,
                          int num_threads) {
  Plan plan;
  plan.size = size;
  plan.is_bf16 = is_bf16 != 0;
  plan.channels_last = channels_last != 0;
  const int plane = static_cast<int>(round_up(size));
  plan.channel_step = plan.channels_last ? 1 : plane;
  plan.pixel_step = plan.channels_last ? 3 : 1;
  plan.row_bytes = static_cast<int>(plan.channels_last ? round_up(3 * size) : 3 * plane);
  Scratch<float> mean_row, std_row;
  if (!mean_row.reserve(plan.row_bytes) || !std_row.reserve(plan.row_bytes)) return kOutOfMemory;
  for (int j = 0; j < plan.row_bytes; ++j) {
    const int c = plan.channels_last ? j % 3 : j / plane;
    mean_row.data[j] = mean[c];
    std_row.data[j] = std[c];
  }
  plan.mean = mean_row.data;
  plan.std = std_row.data;

  const int64_t image_bytes = int64_t{3} * size * size * (plan.is_bf16 ? 2 : 4);
  std::atomic<int> status{kOk};
#pragma omp parallel num_threads(num_threads)
  {
    Worker worker;
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < num_images; ++n) {
      const bool done = worker.run(plan, pixels + offset[n], width[n], box + 4 * n, clip + 4 * n, flip[n] != 0,
                                   brightness[n], static_cast<uint8_t*>(out) + n * image_bytes);
      if (!done) status.store(kOutOfMemory, std::memory_order_relaxed);
    }
  }
  return status.load();
}
