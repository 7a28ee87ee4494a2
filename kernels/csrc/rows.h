// What the losses over rows of logits share: what is done along one row.
// Only for *_kernels.cpp, hence the anonymous namespace (see simd.h).
#pragma once

#include "simd.h"

namespace {

// Sums run in float32 over this many elements and in float64 beyond.
constexpr int64_t kChunk = 1024;

template <class T>
inline float row_max(const T* row, int64_t n) {
  FloatV best[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int k = 0; k < 4; ++k) {
      const FloatV x = load_floats(row + i + k * kLanes);
      best[k] = x > best[k] ? x : best[k];
    }
  for (; i < n; i += kLanes) {
    const FloatV x = i + kLanes <= n ? load_floats(row + i) : load_some(row + i, n - i, -INFINITY);
    best[0] = x > best[0] ? x : best[0];
  }
  return max_lanes_nan(max_nan(max_nan(best[0], best[1]), max_nan(best[2], best[3])));
}

// Calls body(i, live) for every vector of the row, live = number of elements in it, and end() after every chunk.
template <class Body, class End>
inline void for_vectors(int64_t n, Body body, End end) {
  for (int64_t chunk = 0; chunk < n; chunk += kChunk) {
    const int64_t stop = n < chunk + kChunk ? n : chunk + kChunk;
    int64_t i = chunk;
    for (; i + 2 * kLanes <= stop; i += 2 * kLanes) {
      body(i, kLanes, 0);
      body(i + kLanes, kLanes, 1);
    }
    for (; i < stop; i += kLanes) body(i, static_cast<int>(stop - i < kLanes ? stop - i : kLanes), 0);
    end();
  }
}

}  // namespace
