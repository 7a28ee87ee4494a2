// Normals do not depend on the instruction set, the number of threads or how rows are split; tails write in bounds.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" int slca_set_isa(int wanted);
extern "C" int slca_philox_normal(int64_t seed, const int64_t* class_ids, int64_t num_classes, int64_t num_samples,
                                  int64_t num_dims, int64_t stream, int64_t sample_offset, float* out, int num_threads);

static int failures = 0;

static void expect(bool ok, const char* what, long long detail) {
  if (ok) return;
  std::printf("FAILED: %s (%lld)\n", what, detail);
  ++failures;
}

int main() {
  const int64_t classes[3] = {7, 0, 123456};
  for (int64_t dims : {0, 1, 3, 4, 63, 64, 65, 130, 768}) {
    const int64_t samples = 5, count = 3 * samples * dims;
    std::vector<float> first;
    for (int isa : {0, 1, 2}) {
      slca_set_isa(isa);
      for (int threads : {1, 3}) {
        std::vector<float> out(static_cast<size_t>(count) + 8, -99.0f);
        expect(slca_philox_normal(-42, classes, 3, samples, dims, 1, 9, out.data(), threads) == 0, "status", dims);
        for (int i = 0; i < 8; ++i) expect(out[static_cast<size_t>(count + i)] == -99.0f, "wrote past the end", dims);
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) {
          expect(std::isfinite(out[static_cast<size_t>(i)]), "finite", i);
          sum += out[static_cast<size_t>(i)];
        }
        expect(count == 0 || std::fabs(sum) < 6 * std::sqrt(static_cast<double>(count)), "mean", dims);
        if (first.empty()) first = out;
        for (int64_t i = 0; i < count; ++i)
          expect(std::fabs(out[static_cast<size_t>(i)] - first[static_cast<size_t>(i)]) < 2e-6f, "same on every set", i);
      }
    }
    slca_set_isa(99);
    std::vector<float> part(static_cast<size_t>(samples * dims) + 1);
    slca_philox_normal(-42, classes + 2, 1, samples - 2, dims, 1, 11, part.data(), 1);
    for (int64_t i = 0; i < (samples - 2) * dims; ++i)
      expect(std::fabs(part[static_cast<size_t>(i)] - first[static_cast<size_t>((2 * samples + 2) * dims + i)]) < 2e-6f,
             "split", i);
  }
  if (failures == 0) std::printf("ok\n");
  return failures != 0;
}
