// The inner loops of image resampling: fixed-point, equal to Pillow's level for level.
#pragma once

#include "isa.h"

namespace slca {

// One axis of a resampling: output i is the sum of count[i] inputs from first[i], weights in units of 2^-22.
struct Axis {
  int size;
  const int32_t* first;
  const int32_t* count;
  const int32_t* weights;  // [size, stride]
  int stride;
};

// Rows are resampled along x sixteen at a time, each byte position of a row a column of 16.
constexpr int kRowBlock = 16;

}  // namespace slca

SLCA_PER_ISA(
  // Along x, for up to 16 rows of RGB pixels: row r starts at `source + r * source_stride` with pixel `first_pixel`
  // of the axis and holds `num_pixels`. Channel c of output i goes to out[r * out_stride + c * channel_step + i *
  // pixel_step]; out rows are written up to the next multiple of 16. `columns` holds (3 num_pixels + 15) * 16 bytes,
  // `results` as many for out_bytes, the length of an output row.
  void resample_x(const uint8_t* source, int64_t source_stride, int num_rows, int first_pixel, int num_pixels,
                  const Axis& axis, int channel_step, int pixel_step, uint8_t* columns, uint8_t* results,
                  uint8_t* out, int64_t out_stride, int out_bytes);

  // Along y, one output row: out[j] = sum over k < count of weights[k] * in[k * in_stride + j].
  void resample_y(const uint8_t* in, int64_t in_stride, const int32_t* weights, int count, int num_bytes,
                  uint8_t* out);

  // out[j] = (b(levels[j]) / 255 - mean[j]) / std[j], b = brightness truncated and clamped to 8 bits.
  void normalise(const uint8_t* levels, int num_bytes, float brightness, const float* mean, const float* std,
                 float* out);
  void normalise_bf16(const uint8_t* levels, int num_bytes, float brightness, const float* mean, const float* std,
                      uint16_t* out);
)
