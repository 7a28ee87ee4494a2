// Loops over a row in whole vectors and a rest. Only for *_kernels.cpp, hence the anonymous namespace (see simd.h).
#pragma once

#include "simd.h"

// The loop bodies are called twice each, for whole vectors and for the end of a row.
#define SLCA_INLINE __attribute__((always_inline))

// One step of the arithmetic for kVectors vectors, then the next step: their chains of dependent steps overlap.
#define SLCA_EACH _Pragma("GCC unroll 4") for (int k = 0; k < kVectors; ++k)

namespace {

// How many lanes of a vector count: all, or the first n at the end of a row.
struct Whole {};
struct Some {
  int64_t n;
};

// Calls step(first, Whole or Some) over a row.
template <class Step>
inline SLCA_INLINE void over_row(int64_t width, Step step) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) step(i, Whole{});
  if (i < width) step(i, Some{width - i});
}

template <int kCount>
struct Rows {
  static constexpr int kRows = kCount;
};

// run(first row, Rows<4>) as often as there are four, then run(row, Rows<1>).
template <class Run>
inline void in_fours(int64_t num_rows, Run run) {
  int64_t row = 0;
  for (; row + 4 <= num_rows; row += 4) run(row, Rows<4>{});
  for (; row < num_rows; ++row) run(row, Rows<1>{});
}

template <class T>
inline FloatV get(const T* p, Whole, float = 0.0f) {
  return load_floats(p);
}
template <class T>
inline FloatV get(const T* p, Some some, float fill = 0.0f) {
  return load_some(p, some.n, fill);
}

template <class T>
inline void put(T* p, FloatV v, Whole) {
  store_floats(p, v);
}
template <class T>
inline void put(T* p, FloatV v, Some some) {
  store_some(p, v, some.n);
}

template <class N>
inline void add(float* p, FloatV v, N n) { put(p, get(p, n) + v, n); }

}  // namespace
