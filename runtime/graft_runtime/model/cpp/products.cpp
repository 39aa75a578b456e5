// Products of linear modules, and what adapters add to them: x·Wᵀ + c, and for each row its own adapters' (x·aᵀ)·b.
//
// Weights are read as they lie, [outputs, inputs].

#include "vectors.h"

namespace {

using namespace graft;

constexpr size_t ROWS = 64;         // of a panel, at most: these outputs are float32 until they are whole
constexpr size_t PANEL = 256;       // outputs of a panel, at most
constexpr size_t CACHED = 1 << 15;  // values of a weight that stay near while rows go over them

// Rows that take columns of the bank: all are whole numbers but the weight.
struct Run {
  double row_, rows_, column_, columns_, weight;
  size_t row() const { return row_; }
  size_t rows() const { return rows_; }
  size_t column() const { return column_; }
  size_t columns() const { return columns_; }
};

template <class T>
struct Call {
  T* y;
  const T *x, *w, *bias, *a, *b;  // w: null where y has the product already
  size_t rows, k, n;
  const Run* runs;
  size_t count;
  int threads;
};

const float* widened(const Call<float>& call, std::vector<float>&) { return call.x; }

const float* widened(const Call<Half>& call, std::vector<float>& into) {
  if (into.size() < call.rows * call.k) into.resize(call.rows * call.k);
  float* wide = into.data();
  const size_t chunks = call.rows * call.k / CHUNK;
#pragma omp parallel for num_threads(call.threads) if (chunks * CHUNK > SMALL)
  for (size_t chunk = 0; chunk < chunks; chunk++) {
    const Half* p = call.x + chunk * CHUNK;
    Split<float>::put(wide + chunk * CHUNK, Split<Half>::first(p), Split<Half>::second(p));
  }
  return wide;
}

// What each row takes of each of its columns: of each run [rows, columns], one run after the other.
template <class T>
const float* taken(const Call<T>& call, const float* x, std::vector<float>& into) {
  size_t values = 0;
  for (size_t i = 0; i < call.count; i++) values += call.runs[i].rows() * call.runs[i].columns();
  if (into.size() < values) into.resize(values);
  float* z = into.data();
#pragma omp parallel num_threads(call.threads) if (values * call.k > SMALL)
  {
    size_t before = 0;
    for (size_t i = 0; i < call.count; i++) {
      const Run& run = call.runs[i];
#pragma omp for schedule(static) nowait
      for (size_t first = 0; first < run.rows(); first += 4) {
        float* own = z + before + first * run.columns();
        all_products(x + (run.row() + first) * call.k, call.a + run.column() * call.k, std::min<size_t>(4, run.rows() - first),
                     call.k, run.columns(), call.a + (run.column() + run.columns()) * call.k,
                     [&](size_t m, size_t n, float value) { own[m * run.columns() + n] = value * (float)run.weight; });
      }
      before += run.rows() * run.columns();
    }
  }
  return z;
}

// The outputs `from` … `to` of the rows `top` … `bottom`.
template <class T>
void panel(const Call<T>& call, const float* x, const float* z, size_t top, size_t bottom, size_t from, size_t to) {
  alignas(64) float outputs[ROWS * PANEL];
  const size_t rows = bottom - top, width = to - from;
  if (call.w != nullptr) {
    const size_t near = std::max<size_t>(12, CACHED / call.k / 12 * 12);
    for (size_t first = 0; first < width; first += near) {
      const T* w = call.w + (from + first) * call.k;
      all_products(x + top * call.k, w, rows, call.k, std::min(near, width - first), w + near * call.k,
                   [&](size_t m, size_t n, float value) { outputs[m * PANEL + Split<T>::place(first + n)] = value; });
    }
  }
  for (size_t m = 0; m < rows; m++) {
    T* y = call.y + (top + m) * call.n + from;
    float* own = outputs + m * PANEL;
    const T* beginning = call.w == nullptr ? y : call.bias == nullptr ? nullptr : call.bias + from;
    if (beginning != nullptr)
      for (size_t at = 0; at < width; at += CHUNK) {
        Floats first = Split<T>::first(beginning + at), second = Split<T>::second(beginning + at);
        if (call.w != nullptr) first += *(FloatsAt*)(own + at), second += *(FloatsAt*)(own + at + LANES);
        Split<float>::put(own + at, first, second);
      }
  }
  for (size_t i = 0, before = 0; i < call.count; before += call.runs[i].rows() * call.runs[i].columns(), i++) {
    const Run& run = call.runs[i];
    const size_t last = std::min<size_t>(bottom, run.row() + run.rows());
    for (size_t row = std::max<size_t>(top, run.row()); row < last; row++) {
      const float* own = z + before + (row - run.row()) * run.columns();
      for (size_t at = 0; at < width; at += CHUNK) {
        float* y = outputs + (row - top) * PANEL + at;
        Floats first = *(FloatsAt*)y, second = *(FloatsAt*)(y + LANES);
        for (size_t column = 0; column < run.columns(); column++) {
          const T* b = call.b + (run.column() + column) * call.n + from + at;
          first += own[column] * Split<T>::first(b);
          second += own[column] * Split<T>::second(b);
        }
        Split<float>::put(y, first, second);
      }
    }
  }
  for (size_t m = 0; m < rows; m++)
    for (size_t at = 0; at < width; at += CHUNK) {
      const float* own = outputs + m * PANEL + at;
      Split<T>::put(call.y + (top + m) * call.n + from + at, *(FloatsAt*)own, *(FloatsAt*)(own + LANES));
    }
}

template <class T>
void linear(const Call<T>& call) {
  static thread_local std::vector<float> wide, columns;
  const float* x = widened(call, wide);
  const float* z = taken(call, x, columns);
  const size_t chunks = call.n / CHUNK, threads = call.threads;
  const size_t each = (chunks + threads - 1) / threads;             // chunks of one thread
  const size_t panels = (each * CHUNK + PANEL - 1) / PANEL;         // of one thread
  const size_t width = (each + panels - 1) / panels * CHUNK;        // of a panel
  const size_t all = (call.n + width - 1) / width;
#pragma omp parallel for num_threads(call.threads) schedule(static)
  for (size_t i = 0; i < all; i++)
    for (size_t top = 0; top < call.rows; top += ROWS)
      panel(call, x, z, top, std::min(top + ROWS, call.rows), i * width, std::min((i + 1) * width, call.n));
}

}  // namespace

extern "C" {
int64_t chunk() { return CHUNK; }

void linear_bfloat16(void* y, const void* x, const void* w, const void* bias, const void* a, const void* b, int64_t rows,
                     int64_t k, int64_t n, const void* runs, int64_t count, int threads) {
  linear(Call<Half>{(Half*)y, (const Half*)x, (const Half*)w, (const Half*)bias, (const Half*)a, (const Half*)b,
                    (size_t)rows, (size_t)k, (size_t)n, (const Run*)runs, (size_t)count, threads});
}

void linear_float32(void* y, const void* x, const void* w, const void* bias, const void* a, const void* b, int64_t rows,
                    int64_t k, int64_t n, const void* runs, int64_t count, int threads) {
  linear(Call<float>{(float*)y, (const float*)x, (const float*)w, (const float*)bias, (const float*)a, (const float*)b,
                     (size_t)rows, (size_t)k, (size_t)n, (const Run*)runs, (size_t)count, threads});
}
}
