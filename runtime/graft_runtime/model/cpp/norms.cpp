// Norms by the root of the mean square: x / √(mean(x²) + ε) · (w + shift).

#include <cmath>

#include "vectors.h"

namespace {

using namespace graft;

template <class T>
void norm(T* y, const T* x, const T* w, size_t rows, size_t k, float epsilon, float shift) {
  for (size_t row = 0; row < rows; row++, x += k, y += k) {
    Floats first = {}, second = {};
    for (size_t at = 0; at < k; at += CHUNK) {
      Floats one = Split<T>::first(x + at), other = Split<T>::second(x + at);
      first += one * one;
      second += other * other;
    }
    const float scale = 1 / std::sqrt(total(first + second) / k + epsilon);
    for (size_t at = 0; at < k; at += CHUNK)
      Split<T>::put(y + at, Split<T>::first(x + at) * scale * (Split<T>::first(w + at) + shift),
                    Split<T>::second(x + at) * scale * (Split<T>::second(w + at) + shift));
  }
}

}  // namespace

extern "C" {
void norm_bfloat16(void* y, const void* x, const void* w, int64_t rows, int64_t k, float epsilon, float shift) {
  norm((Half*)y, (const Half*)x, (const Half*)w, rows, k, epsilon, shift);
}

void norm_float32(void* y, const void* x, const void* w, int64_t rows, int64_t k, float epsilon, float shift) {
  norm((float*)y, (const float*)x, (const float*)w, rows, k, epsilon, shift);
}
}
