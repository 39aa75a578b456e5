// Attention of one token of each row over the row's extent: softmax(q·kᵀ)·v, see `over_extents.py`.

#include <cmath>

#include "vectors.h"

namespace {

using namespace graft;

// Strides are in values; features lie one after another.
struct Strides {
  int64_t row, head;
};

template <class T>
struct Call {
  T* out;                    // [rows, heads, value features]
  const T *q, *k, *v;        // [rows, heads, ·], by strides
  T *keys, *values;          // [slots, key heads, capacity, ·]
  const int64_t *slots, *positions;  // of each row
  const T* sinks;            // [heads]; null: none
  Strides strides[3];        // of q, k and v
  int64_t rows, heads, key_heads, features, value_features, capacity;
  int64_t window;            // 0: all is seen
  double scale, softcap;     // 0: no cap
};

// Write the row's key and value of one head to the row's extent.
template <class T>
void keep(const Call<T>& call, size_t row, size_t head) {
  const size_t place = (call.slots[row] * call.key_heads + head) * call.capacity + call.positions[row];
  const T* k = call.k + row * call.strides[1].row + head * call.strides[1].head;
  const T* v = call.v + row * call.strides[2].row + head * call.strides[2].head;
  std::copy(k, k + call.features, call.keys + place * call.features);
  std::copy(v, v + call.value_features, call.values + place * call.value_features);
}

// The sums of all values, by the weights of M heads.
template <size_t M, class T>
void mix(const float* weights, const T* values, size_t seen, size_t features, T* out) {
  for (size_t at = 0; at < features; at += CHUNK) {
    Floats sums[M][2] = {};
    for (size_t key = 0; key < seen; key++) {
      const Floats first = Split<T>::first(values + key * features + at);
      const Floats second = Split<T>::second(values + key * features + at);
#pragma GCC unroll 8
      for (size_t m = 0; m < M; m++) {
        sums[m][0] += weights[m * seen + key] * first;
        sums[m][1] += weights[m * seen + key] * second;
      }
    }
    for (size_t m = 0; m < M; m++) Split<T>::put(out + m * features + at, sums[m][0], sums[m][1]);
  }
}

// One key head of one row: `group` heads of queries.
template <class T>
void attend(const Call<T>& call, size_t row, size_t head, std::vector<float>& wide, std::vector<float>& scores) {
  const size_t group = call.heads / call.key_heads, features = call.features, value_features = call.value_features;
  const size_t end = call.positions[row] + 1, window = call.window ? call.window : end;
  const size_t low = end - std::min(end, window), seen = end - low;
  if (wide.size() < group * features) wide.resize(group * features);
  if (scores.size() < group * seen) scores.resize(group * seen);
  for (size_t g = 0; g < group; g++) {
    const T* q = call.q + row * call.strides[0].row + (head * group + g) * call.strides[0].head;
    for (size_t at = 0; at < features; at += CHUNK)
      Split<float>::put(&wide[g * features + at], Split<T>::first(q + at), Split<T>::second(q + at));
  }
  const size_t place = (call.slots[row] * call.key_heads + head) * call.capacity + low;
  all_products(wide.data(), call.keys + place * features, group, features, seen, call.values + place * value_features,
               [&](size_t g, size_t key, float value) { scores[g * seen + key] = value * (float)call.scale; });
  for (size_t g = 0; g < group; g++) {
    float* own = &scores[g * seen];
    if (call.softcap != 0)
      for (size_t key = 0; key < seen; key++) own[key] = std::tanh(own[key] / (float)call.softcap) * (float)call.softcap;
    const bool sinks = call.sinks != nullptr;
    const float sink = sinks ? number(call.sinks[head * group + g]) : 0;
    float most = *std::max_element(own, own + seen), sum = 0;
    if (sinks) most = std::max(most, sink), sum = std::exp(sink - most);
    for (size_t key = 0; key < seen; key++) sum += own[key] = std::exp(own[key] - most);
    for (size_t key = 0; key < seen; key++) own[key] /= sum;
  }
  const T* values = call.values + place * value_features;
  T* out = call.out + (row * call.heads + head * group) * value_features;
  size_t g = 0;
  for (; g + 4 <= group; g += 4) mix<4>(&scores[g * seen], values, seen, value_features, out + g * value_features);
  for (; g + 2 <= group; g += 2) mix<2>(&scores[g * seen], values, seen, value_features, out + g * value_features);
  for (; g < group; g++) mix<1>(&scores[g * seen], values, seen, value_features, out + g * value_features);
}

template <class T>
void attend_all(const Call<T>& call, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide, scores;
#pragma omp for collapse(2) schedule(static)
    for (int64_t row = 0; row < call.rows; row++)
      for (int64_t head = 0; head < call.key_heads; head++) {
        keep(call, row, head);
        attend(call, row, head, wide, scores);
      }
  }
}

}  // namespace

extern "C" {
void attend_bfloat16(const void* call, int threads) { attend_all(*(const Call<Half>*)call, threads); }

void attend_float32(const void* call, int threads) { attend_all(*(const Call<float>*)call, threads); }
}
