// Every instruction set against a plain loop over the definition of the resampling, on buffers of exact size.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "isa.h"

SLCA_API int slca_set_isa(int wanted);
SLCA_API int slca_augment(const uint8_t* pixels, const int64_t* offset, const int32_t* width, const double* box,
                          const int32_t* clip, const uint8_t* flip, const float* brightness, int64_t num_images,
                          int size, const float* mean, const float* std, int is_bf16, int channels_last, void* out,
                          int num_threads);

namespace {

struct Image {
  int height, width;
  double box[4];
  int32_t clip[4];
};

double bicubic(double t) {
  t = std::fabs(t);
  return t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? (((t - 5) * t + 8) * t - 4) * -0.5 : 0;
}

// One weight per pixel of the axis, most of them 0.
std::vector<int64_t> weights(int length, double start, double stop, int size, int i) {
  const double scale = (stop - start) / size, stretch = scale < 1 ? 1 : scale, centre = start + (i + 0.5) * scale;
  std::vector<double> w(length);
  double total = 0;
  for (int j = 0; j < length; ++j) {
    const bool inside = j >= static_cast<int>(centre - 2 * stretch + 0.5) && j < static_cast<int>(centre + 2 * stretch + 0.5);
    total += w[j] = inside ? bicubic((j - centre + 0.5) * (1 / stretch)) : 0;
  }
  std::vector<int64_t> rounded(length);
  for (int j = 0; j < length; ++j) rounded[j] = std::lround(w[j] / total * (1 << 22));
  return rounded;
}

uint8_t to_level(int64_t sum) {
  const int64_t v = (sum + (1 << 21)) >> 22;
  return static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

// x first: the images below never shrink along y so much more that Pillow would turn the order round.
uint8_t expected(const Image& image, const uint8_t* pixels, int size, int c, int y, int x) {
  const int left = image.clip[0], top = image.clip[1];
  const auto along_x = weights(image.clip[2] - left, image.box[0] - left, image.box[2] - left, size, x);
  const auto along_y = weights(image.clip[3] - top, image.box[1] - top, image.box[3] - top, size, y);
  int64_t sum = 0;
  for (size_t r = 0; r < along_y.size(); ++r) {
    if (along_y[r] == 0) continue;
    int64_t row = 0;
    for (size_t j = 0; j < along_x.size(); ++j)
      row += along_x[j] * pixels[((top + static_cast<int64_t>(r)) * image.width + left + static_cast<int64_t>(j)) * 3 + c];
    sum += along_y[r] * to_level(row);
  }
  return to_level(sum);
}

}  // namespace

int main() {
  const std::vector<Image> images = {
      {1, 1, {0, 0, 1, 1}, {0, 0, 1, 1}},        {23, 37, {1.5, 2.25, 36, 20}, {0, 0, 37, 23}},
      {40, 40, {3, 4, 40, 40}, {3, 4, 40, 40}},  {5, 90, {0, 0, 90, 5}, {0, 0, 90, 5}},
      {7, 6, {2, 3, 5, 4}, {2, 3, 5, 4}},
  };
  std::vector<uint8_t> pixels;
  std::vector<int64_t> offset;
  std::vector<int32_t> width, clip;
  std::vector<double> box;
  std::vector<uint8_t> flip;
  uint32_t state = 1;
  for (const Image& image : images) {
    offset.push_back(static_cast<int64_t>(pixels.size()));
    for (int i = 0; i < image.height * image.width * 3; ++i) pixels.push_back((state = state * 1664525u + 1013904223u) >> 24);
    width.push_back(image.width);
    flip.push_back(flip.size() % 2);
    box.insert(box.end(), image.box, image.box + 4);
    clip.insert(clip.end(), image.clip, image.clip + 4);
  }
  pixels.shrink_to_fit();
  const std::vector<float> brightness(images.size(), 1.0f);
  const float mean[3] = {0, 0, 0}, std[3] = {1.0f / 255, 1.0f / 255, 1.0f / 255};
  int failures = 0;
  for (int isa = 0; isa <= 2; ++isa) {
    if (slca_set_isa(isa) != isa) continue;
    for (const int size : {1, 3, 17, 32}) {
      for (const int channels_last : {0, 1}) {
        const size_t plane = static_cast<size_t>(size) * size;
        std::vector<float> out(images.size() * 3 * plane, NAN);
        if (slca_augment(pixels.data(), offset.data(), width.data(), box.data(), clip.data(), flip.data(),
                         brightness.data(), static_cast<int64_t>(images.size()), size, mean, std, 0, channels_last,
                         out.data(), 2) != 0)
          ++failures;
        for (size_t n = 0; n < images.size(); ++n)
          for (int c = 0; c < 3; ++c)
            for (int y = 0; y < size; ++y)
              for (int x = 0; x < size; ++x) {
                const int at = flip[n] ? size - 1 - x : x;
                const size_t index = channels_last ? (y * static_cast<size_t>(size) + at) * 3 + c : c * plane + y * size + at;
                const float got = out[n * 3 * plane + index];
                const uint8_t want = expected(images[n], pixels.data() + offset[n], size, c, y, x);
                if (!(std::fabs(got - want) < 1e-3f)) {
                  if (++failures < 10)
                    std::printf("isa %d size %d image %zu channel %d (%d, %d): %g, not %d\n", isa, size, n, c, y, x, got, want);
                }
              }
      }
    }
  }
  return failures == 0 ? 0 : 1;
}
