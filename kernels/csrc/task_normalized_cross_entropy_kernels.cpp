// The equation is in kernels/task_normalized_cross_entropy/reference.py.
#include "task_normalized_cross_entropy_kernels.h"

#include "rows.h"

namespace {

template <class T>
inline double sum_of_squares(const T* z, int64_t n) {
  double total = 0.0;
  FloatV sum[2] = {splat(0.0f), splat(0.0f)};
  for_vectors(
      n,
      [&](int64_t i, int live, int which) {
        const FloatV x = live == kLanes ? load_floats(z + i) : load_some(z + i, live, 0.0f);
        sum[which] += x * x;
      },
      [&] {
        total += sum_lanes(sum[0] + sum[1]);
        sum[0] = sum[1] = splat(0.0f);
      });
  return total;
}

struct ExpSums {
  double sum = 0.0;     // of e_k
  double moment = 0.0;  // of e_k (z_k - z_label)
};

// e_k = exp((z_k - z_max) * inverse) into e, for n classes none of which is the label.
template <class T>
inline void exponentials(const T* z, float* e, int64_t n, float z_max, float z_label, float inverse, ExpSums& sums) {
  FloatV sum[2] = {splat(0.0f), splat(0.0f)}, moment[2] = {splat(0.0f), splat(0.0f)};
  for_vectors(
      n,
      [&](int64_t i, int live, int which) {
        const bool whole = live == kLanes;
        const FloatV x = whole ? load_floats(z + i) : load_some(z + i, live, -INFINITY);
        const FloatV value = exp_nonpositive((x - z_max) * inverse);
        if (whole)
          store(e + i, value);
        else
          store_some(e + i, value, live);
        sum[which] += value;
        moment[which] += value == 0.0f ? splat(0.0f) : value * (x - z_label);
      },
      [&] {
        sums.sum += sum_lanes(sum[0] + sum[1]);
        sums.moment += sum_lanes(moment[0] + moment[1]);
        sum[0] = sum[1] = moment[0] = moment[1] = splat(0.0f);
      });
}

template <class T>
bool row_loss(const slca::TaskNormalizedCrossEntropy& args, int64_t row, float* scratch) {
  const int64_t num_classes = args.num_classes, label = args.target[row];
  T* gradient = args.gradient ? static_cast<T*>(args.gradient) + row * num_classes : nullptr;
  const float scale = args.scale[row];
  const T* z = static_cast<const T*>(args.logits) + row * args.logits_stride;
  if (label < 0 || label >= num_classes) {
    args.loss[row] = NAN;
    if (gradient)
      for (int64_t i = 0; i < num_classes; ++i) store_float(gradient + i, NAN);
    return false;
  }

  float* norms = scratch + num_classes;
  double mean_norm = 0.0;
  for (int64_t task = 0, start = 0; task < args.num_tasks; start += args.task_sizes[task++]) {
    const double norm = sqrt(sum_of_squares(z + start, args.task_sizes[task]));
    norms[task] = static_cast<float>(norm);
    mean_norm += norm;
  }
  mean_norm = mean_norm / args.num_tasks + args.norm_floor;
  const double inverse = 1.0 / (mean_norm * args.temperature);

  const float z_max = row_max(z, num_classes), z_label = to_float(z[label]);
  ExpSums others;
  const float inverse_float = static_cast<float>(inverse);
  exponentials(z, scratch, label, z_max, z_label, inverse_float, others);
  exponentials(z + label + 1, scratch + label + 1, num_classes - label - 1, z_max, z_label, inverse_float, others);
  scratch[label] = 0.0f;
  const double total = others.sum + exp((static_cast<double>(z_label) - z_max) * inverse);
  args.loss[row] = static_cast<float>(scale * (log(total) + (static_cast<double>(z_max) - z_label) * inverse));
  if (!gradient) return true;

  const double factor = scale * inverse;
  const float share = static_cast<float>(factor / total);
  const double along = others.moment / total / mean_norm;
  for (int64_t task = 0, start = 0; task < args.num_tasks; ++task) {
    const double norm = norms[task];
    const float pull = norm > 0.0 ? static_cast<float>(factor * along / (args.num_tasks * norm)) : 0.0f;
    const int64_t stop = start + args.task_sizes[task];
    int64_t i = start;
    for (; i + kLanes <= stop; i += kLanes)
      store_floats(gradient + i, load_floats(scratch + i) * share - load_floats(z + i) * pull);
    if (i < stop) {
      const FloatV e = load_some(scratch + i, stop - i, 0.0f), x = load_some(z + i, stop - i, 0.0f);
      store_some(gradient + i, e * share - x * pull, stop - i);
    }
    if (label >= start && label < stop)  // p_y - 1 as minus the sum of the others
      store_float(gradient + label, static_cast<float>(-factor * others.sum / total) - z_label * pull);
    start = stop;
  }
  return true;
}

}  // namespace

namespace slca::SLCA_ISA {

bool task_normalized_cross_entropy_row_float(const TaskNormalizedCrossEntropy& args, int64_t row, float* scratch) {
  return row_loss<float>(args, row, scratch);
}

bool task_normalized_cross_entropy_row_bfloat16(const TaskNormalizedCrossEntropy& args, int64_t row, float* scratch) {
  return row_loss<BFloat16>(args, row, scratch);
}

}  // namespace slca::SLCA_ISA
