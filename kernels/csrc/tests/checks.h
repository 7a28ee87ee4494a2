// What several tests share: a comparison that counts its failures, and numbers to compute with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" int slca_isa();
extern "C" int slca_set_isa(int);

namespace {

int failures = 0;

[[maybe_unused]] void expect_close(double ours, double expected, double tolerance, const char* what) {
  if (std::fabs(ours - expected) <= tolerance * (1.0 + std::fabs(expected))) return;
  std::printf("%s: %.9g instead of %.9g\n", what, ours, expected);
  ++failures;
}

// n numbers between -size / 2 and size / 2, always the same for a seed.
[[maybe_unused]] std::vector<float> numbers(int64_t n, uint32_t seed, float size = 4.0f) {
  std::vector<float> x(n);
  uint32_t state = seed * 2654435761u + 1u;
  for (float& v : x) {
    state = state * 1664525u + 1013904223u;
    v = (static_cast<float>(state >> 8) / (1 << 24) - 0.5f) * size;
  }
  return x;
}

// To bfloat16, and back.
[[maybe_unused]] std::vector<uint16_t> narrow(const std::vector<float>& x) {
  std::vector<uint16_t> y;
  for (float v : x) {
    uint32_t u;
    __builtin_memcpy(&u, &v, 4);
    y.push_back(static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16));
  }
  return y;
}

[[maybe_unused]] double widen(uint16_t v) {
  const uint32_t u = static_cast<uint32_t>(v) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

}  // namespace
