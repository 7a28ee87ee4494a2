// The equation is in kernels/symmetric_cross_entropy/reference.py. A row is read once from memory: what follows finds it,
// or its exponentials in `scratch`, in the cache.
#include "symmetric_cross_entropy_kernels.h"

#include "rows.h"

namespace {

struct ExpSums {
  double sum = 0.0;
  float smallest = INFINITY;
};

// e_k = exp(z_k - z_max) into e, for n classes none of which is the label.
template <class T>
inline void exponentials(const T* z, float* e, int64_t n, float z_max, ExpSums& sums) {
  FloatV sum[2] = {splat(0.0f), splat(0.0f)};
  FloatV smallest = splat(INFINITY);
  for_vectors(
      n,
      [&](int64_t i, int live, int which) {
        if (live == kLanes) {
          const FloatV value = exp_nonpositive(load_floats(z + i) - z_max);
          store(e + i, value);
          sum[which] += value;
          smallest = value < smallest ? value : smallest;
        } else {
          const FloatV value = exp_nonpositive(load_some(z + i, live, -INFINITY) - z_max);
          store_some(e + i, value, live);
          sum[which] += value;
          for (int k = 0; k < live; ++k) sums.smallest = e[i + k] < sums.smallest ? e[i + k] : sums.smallest;
        }
      },
      [&] {
        sums.sum += sum_lanes(sum[0] + sum[1]);
        sum[0] = sum[1] = splat(0.0f);
      });
  float lanes[kLanes];
  store(lanes, smallest);
  for (int k = 0; k < kLanes; ++k) sums.smallest = lanes[k] < sums.smallest ? lanes[k] : sums.smallest;
}

template <class T>
bool row_loss(const slca::SymmetricCrossEntropy& args, int64_t row, float* scratch) {
  const int64_t num_classes = args.num_classes, label = args.target[row];
  T* gradient = args.gradient ? static_cast<T*>(args.gradient) + row * num_classes : nullptr;
  const float scale = args.scale[row];
  if (scale == 0.0f) {
    args.loss[row] = 0.0f;
    if (gradient) std::memset(gradient, 0, num_classes * sizeof(T));
    return true;
  }
  const T* z = static_cast<const T*>(args.logits) + row * args.logits_stride;
  if (scale != scale || label < 0 || label >= num_classes) {
    args.loss[row] = NAN;
    if (gradient)
      for (int64_t i = 0; i < num_classes; ++i) store_float(gradient + i, NAN);
    return scale != scale;
  }

  const float z_max = row_max(z, num_classes), z_label = to_float(z[label]);
  ExpSums others;
  exponentials(z, scratch, label, z_max, others);
  exponentials(z + label + 1, scratch + label + 1, num_classes - label - 1, z_max, others);
  scratch[label] = 0.0f;
  const double e_label = exp(static_cast<double>(z_label) - z_max), total = others.sum + e_label;

  const float threshold = static_cast<float>(args.floor * total);
  const bool any_floored = !(others.smallest >= threshold);
  double kept_sum = others.sum;
  int64_t num_floored = 0;
  if (any_floored) {
    kept_sum = 0.0;
    FloatV kept[2] = {splat(0.0f), splat(0.0f)};
    IntV count = IntV{};
    for_vectors(
        num_classes,
        [&](int64_t i, int live, int which) {
          const FloatV e = live == kLanes ? load_floats(scratch + i) : load_some(scratch + i, live, INFINITY);
          const IntV is_floored = e < threshold;
          const FloatV nothing = splat(0.0f);
          kept[which] += (is_floored | (e == INFINITY)) ? nothing : e;
          count -= is_floored;
        },
        [&] {
          kept_sum += sum_lanes(kept[0] + kept[1]);
          kept[0] = kept[1] = splat(0.0f);
        });
    int32_t lanes[kLanes];
    store(lanes, count);
    for (int k = 0; k < kLanes; ++k) num_floored += lanes[k];
    num_floored -= 1;  // the label, whose place in scratch holds 0
  }
  const double kept_share = kept_sum / total;
  const double reverse = kept_share + static_cast<double>(args.floor) * num_floored;
  args.loss[row] = static_cast<float>(
      scale * (args.ce_weight * (log(total) + z_max - z_label) + args.reverse_weight * reverse));
  if (!gradient) return true;

  const double factor = scale / total;
  const float below = static_cast<float>(factor * (args.ce_weight - args.reverse_weight * kept_share));
  const float above = static_cast<float>(factor * (args.ce_weight + args.reverse_weight * (1.0 - kept_share)));
  const FloatV below_v = splat(below), above_v = splat(above);
  int64_t i = 0;
  if (any_floored)
    for (; i + kLanes <= num_classes; i += kLanes) {
      const FloatV e = load_floats(scratch + i);
      store_floats(gradient + i, e * (e < threshold ? below_v : above_v));
    }
  else
    for (; i + kLanes <= num_classes; i += kLanes) store_floats(gradient + i, load_floats(scratch + i) * above_v);
  if (i < num_classes) {
    const FloatV e = load_some(scratch + i, num_classes - i, 0.0f);
    store_some(gradient + i, e * (e < threshold ? below_v : above_v), num_classes - i);
  }
  // p_y - 1 as minus the sum of the others: no cancellation when p_y is close to 1
  store_float(gradient + label, static_cast<float>(
      -factor * (args.ce_weight * others.sum + args.reverse_weight * kept_share * e_label)));
  return true;
}

}  // namespace

namespace slca::SLCA_ISA {

bool symmetric_cross_entropy_row_float(const SymmetricCrossEntropy& args, int64_t row, float* scratch) {
  return row_loss<float>(args, row, scratch);
}

bool symmetric_cross_entropy_row_bfloat16(const SymmetricCrossEntropy& args, int64_t row, float* scratch) {
  return row_loss<BFloat16>(args, row, scratch);
}

}  // namespace slca::SLCA_ISA
