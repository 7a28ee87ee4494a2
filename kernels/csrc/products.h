// Matrix products out of packed panels. Only for *_kernels.cpp, hence the anonymous namespace (see simd.h).
//
// A product C = A B walks over the summed dimension in units: one float, or a pair of bfloat16. B lies in panels of up
// to kPanelVectors vectors: [panel][unit][column of the panel], columns that do not exist being 0. A is read where it
// is, by rows, or from slabs [slab][unit][kSlabRows] where its rows are the columns of a stored matrix.
#pragma once

#include "over_row.h"

namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kPanelVectors = 3;
constexpr int kSlabRows = 2 * kTileRows;

inline constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// What is multiplied in one step, kLanes of it, and one of it.
typedef int32_t UnitV __attribute__((vector_size(kVectorBytes)));
template <class T>
constexpr int kPerUnit = 4 / sizeof(T);

inline SLCA_INLINE FloatV multiply_add(float, UnitV a, UnitV b, FloatV sum) {
  return bits<FloatV>(a) * bits<FloatV>(b) + sum;
}
inline SLCA_INLINE FloatV multiply_add(BFloat16, UnitV a, UnitV b, FloatV sum) {
#if defined(__AVX512BF16__)
  return bits<FloatV>(_mm512_dpbf16_ps(bits<__m512>(sum), bits<__m512bh>(a), bits<__m512bh>(b)));
#else
  const UnitV high = UnitV{} + static_cast<int32_t>(0xffff0000u);
  sum = bits<FloatV>(a & high) * bits<FloatV>(b & high) + sum;
  return bits<FloatV>(a << 16) * bits<FloatV>(b << 16) + sum;
#endif
}

inline UnitV splat_unit(const void* p) {
  int32_t unit;
  std::memcpy(&unit, p, 4);
  return UnitV{} + unit;
}

// Whole panels of a matrix with so many columns: the width that leaves the fewest columns over.
inline int64_t panel_vectors(int64_t columns) {
  return columns % (3 * kLanes) == 0 || columns % (2 * kLanes) != 0 ? kPanelVectors : 2;
}

// Calls step(first column, vectors, live columns, first unit of the panel in a matrix of so many units).
template <class Step>
inline void over_panels(int64_t columns, int64_t units, Step step) {
  const int64_t whole = panel_vectors(columns) * kLanes;
  for (int64_t first = 0; first < columns; first += whole) {
    const int64_t live = columns - first < whole ? columns - first : whole;
    step(first, ceil_div(live, kLanes), live, first * units);
  }
}

inline int64_t packed_units(int64_t columns, int64_t units) { return ceil_div(columns, kLanes) * kLanes * units; }

// A unit from each of kLanes columns of a stored matrix whose rows are summed over; 0 where there is no column or row.
template <class T>
inline SLCA_INLINE UnitV units_at(const T* in, int64_t stride, int64_t unit, int64_t rows, int64_t columns) {
  const T* row = in + unit * kPerUnit<T> * stride;
  const auto low = bits<UIntV>(columns >= kLanes ? load_floats(row) : load_some(row, columns, 0.0f));
  if constexpr (kPerUnit<T> == 1) {
    return bits<UnitV>(low);
  } else {
    if (2 * unit + 1 >= rows) return bits<UnitV>(low >> 16);
    row += stride;
    const auto high = bits<UIntV>(columns >= kLanes ? load_floats(row) : load_some(row, columns, 0.0f));
    return bits<UnitV>((low >> 16) | high);
  }
}

// Packing goes by so many units at a time: a matrix is read by whole rows.
constexpr int64_t kPackedAtOnce = 4;

// The row-major [rows, columns] as B, summed over rows.
template <class T>
void pack_rows(const T* in, int64_t stride, int64_t rows, int64_t columns, int32_t* out) {
  const int64_t units = ceil_div(rows, kPerUnit<T>);
  for (int64_t start = 0; start < units; start += kPackedAtOnce) {
    const int64_t stop = units - start < kPackedAtOnce ? units : start + kPackedAtOnce;
    over_panels(columns, units, [&](int64_t first, int64_t vectors, int64_t live, int64_t at) {
      for (int64_t u = start; u < stop; ++u)
        for (int64_t v = 0; v < vectors; ++v)
          store(out + at + (u * vectors + v) * kLanes,
                units_at(in + first + v * kLanes, stride, u, rows, live - v * kLanes));
    });
  }
}

// The row-major [rows, columns] as B transposed, summed over columns; bfloat16 needs an even number of them.
template <class T>
void pack_columns(const T* in, int64_t stride, int64_t rows, int64_t columns, int32_t* out) {
  const int64_t units = columns / kPerUnit<T>;
  over_panels(rows, units, [&](int64_t first, int64_t vectors, int64_t live, int64_t at) {
    const int64_t width = vectors * kLanes;
    for (int64_t block = 0; block < width; block += kLanes)
      for (int64_t u = 0; u < units; ++u) {
        int32_t* target = out + at + u * width + block;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          target[lane] = 0;
          if (block + lane < live)
            std::memcpy(target + lane, in + (first + block + lane) * stride + u * kPerUnit<T>, 4);
        }
      }
  });
}

// The row-major [rows, columns] as A transposed, summed over rows, in slabs.
template <class T>
void pack_slabs(const T* in, int64_t stride, int64_t rows, int64_t columns, int32_t* out) {
  const int64_t units = ceil_div(rows, kPerUnit<T>);
  for (int64_t start = 0; start < units; start += kPackedAtOnce) {
    const int64_t stop = units - start < kPackedAtOnce ? units : start + kPackedAtOnce;
    for (int64_t first = 0; first < columns; first += kSlabRows)
      for (int64_t u = start; u < stop; ++u)
        for (int64_t v = 0; v < kSlabRows; v += kLanes) {
          const int64_t left = columns - first - v;
          store(out + first * units + u * kSlabRows + v,
                left > 0 ? units_at(in + first + v, stride, u, rows, left) : UnitV{});
        }
  }
}

// sums[i][j] += the tile of A B; a_row bytes from a row of A to the next, a_unit from a unit to the next.
template <class T, int kRows, int kVectors>
inline SLCA_INLINE void tile(const char* a, int64_t a_row, int64_t a_unit, const int32_t* b, int64_t units,
                             FloatV (&sums)[kRows][kVectors]) {
  for (int64_t u = 0; u < units; ++u, a += a_unit, b += kVectors * kLanes) {
    UnitV vectors[kVectors];
    SLCA_EACH vectors[k] = load<UnitV>(b + k * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const UnitV one = splat_unit(a + i * a_row);
      SLCA_EACH sums[i][k] = multiply_add(T{}, one, vectors[k], sums[i][k]);
    }
  }
}

// One tile: C = start + A B. start is a row (bias), or C itself, or 0 where it is null; live columns of C are written.
template <class T, class Out, int kRows, int kVectors>
inline void tile_to(const char* a, int64_t a_row, int64_t a_unit, const int32_t* b, int64_t units, const float* start,
                    int64_t start_stride, int64_t live, Out* c, int64_t c_stride) {
  FloatV sums[kRows][kVectors] = {};
  const bool whole = live == kVectors * kLanes;
  const int64_t rest = live - (kVectors - 1) * kLanes;  // only a panel's last vector may be cut
  if (start) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const float* from = start + i * start_stride;
#pragma GCC unroll 4
      for (int k = 0; k + 1 < kVectors; ++k) sums[i][k] = load_floats(from + k * kLanes);
      from += (kVectors - 1) * kLanes;
      sums[i][kVectors - 1] = whole ? load_floats(from) : load_some(from, rest, 0.0f);
    }
  }
  tile<T, kRows, kVectors>(a, a_row, a_unit, b, units, sums);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    Out* to = c + i * c_stride;
#pragma GCC unroll 4
    for (int k = 0; k + 1 < kVectors; ++k) store_floats(to + k * kLanes, sums[i][k]);
    to += (kVectors - 1) * kLanes;
    if (whole)
      store_floats(to, sums[i][kVectors - 1]);
    else
      store_some(to, sums[i][kVectors - 1], rest);
  }
}

// Asks for a stored matrix line by line, so that it is at hand when it is needed.
template <class T>
class Ahead {
 public:
  Ahead(const T* in, int64_t stride, int64_t rows, int64_t columns)
      : row_(reinterpret_cast<const char*>(in)), stride_(stride * sizeof(T)), rows_(rows), bytes_(columns * sizeof(T)) {}
  int64_t lines() const { return rows_ * ceil_div(bytes_, kLine); }
  void fetch(int64_t lines) {
    for (; lines > 0 && rows_ > 0; --lines) {
      __builtin_prefetch(row_ + at_, 0, 2);
      if ((at_ += kLine) < bytes_) continue;
      at_ = 0, row_ += stride_, --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_;
  int64_t stride_, rows_, bytes_, at_ = 0;
};

// The tile of a run-time number of rows and vectors.
template <class T, class Out, int kVectors, int kRows = kTileRows>
inline void tile_of(int64_t rows, const char* a, int64_t a_row, int64_t a_unit, const int32_t* b, int64_t units,
                    const float* start, int64_t start_stride, int64_t live, Out* c, int64_t c_stride) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return tile_of<T, Out, kVectors, kRows - 1>(rows, a, a_row, a_unit, b, units, start, start_stride, live, c,
                                                  c_stride);
  }
  tile_to<T, Out, kRows, kVectors>(a, a_row, a_unit, b, units, start, start_stride, live, c, c_stride);
}

template <class T, class Out>
inline void tile_of(int64_t vectors, int64_t rows, const char* a, int64_t a_row, int64_t a_unit, const int32_t* b,
                    int64_t units, const float* start, int64_t start_stride, int64_t live, Out* c, int64_t c_stride) {
  const auto run = vectors == 3   ? tile_of<T, Out, 3>
                   : vectors == 2 ? tile_of<T, Out, 2>
                                  : tile_of<T, Out, 1>;
  run(rows, a, a_row, a_unit, b, units, start, start_stride, live, c, c_stride);
}

// C [rows, columns] = bias (or null) + A [rows, units] B (packed).
template <class T, class Out>
void product(const T* a, int64_t a_stride, int64_t rows, int64_t units, const int32_t* b, int64_t columns,
             const float* bias, Out* c, int64_t c_stride) {
  const int64_t row_bytes = a_stride * static_cast<int64_t>(sizeof(T));
  over_panels(columns, units, [&](int64_t first, int64_t vectors, int64_t live, int64_t at) {
    for (int64_t row = 0; row < rows; row += kTileRows)
      tile_of<T, Out>(vectors, rows - row < kTileRows ? rows - row : kTileRows,
                      reinterpret_cast<const char*>(a) + row * row_bytes, row_bytes, 4, b + at, units,
                      bias ? bias + first : nullptr, 0, live, c + row * c_stride + first, c_stride);
  });
}

// C [a_columns, b_columns] (+)= A^T B with A [rows, a_columns] in slabs and B packed; meanwhile() is called every tile.
template <class T, class Out, class Meanwhile>
void product_of_slabs(const int32_t* slabs, int64_t a_columns, int64_t units, const int32_t* b, int64_t b_columns,
                      const float* start, Out* c, int64_t c_stride, Meanwhile meanwhile) {
  over_panels(b_columns, units, [&](int64_t first, int64_t vectors, int64_t live, int64_t at) {
    for (int64_t row = 0; row < a_columns; row += kTileRows) {
      const int32_t* a = slabs + row / kSlabRows * (kSlabRows * units) + row % kSlabRows;
      const int64_t offset = row * c_stride + first;
      tile_of<T, Out>(vectors, a_columns - row < kTileRows ? a_columns - row : kTileRows,
                      reinterpret_cast<const char*>(a), 4, 4 * kSlabRows, b + at, units, start ? start + offset : nullptr,
                      c_stride, live, c + offset, c_stride);
      meanwhile();
    }
  });
}

}  // namespace
