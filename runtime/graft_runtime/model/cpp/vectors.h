// Vectors of float32, and products of rows with rows: what the other files are made of.
//
// Values are summed in float32 and rounded once. What a row gets does not depend on the rows beside it.
// Features are multiples of CHUNK.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace graft {

#ifdef __AVX512F__
constexpr size_t LANES = 16;
#else
constexpr size_t LANES = 8;
#endif
constexpr size_t CHUNK = 2 * LANES;
constexpr size_t SMALL = 1 << 18;  // products that are not worth waking threads for

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef float FloatsAt __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint32_t WordsAt __attribute__((vector_size(LANES * 4), aligned(2), may_alias));

struct Half {
  uint16_t bits;  // of a bfloat16
};

inline float number(float value) { return value; }

inline float number(Half value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float made;
  std::memcpy(&made, &bits, sizeof made);
  return made;
}

// A chunk lies as two vectors. Of bfloat16 they are the even and the odd values: so each widens in one instruction.
template <class T>
struct Split;

template <>
struct Split<float> {
  static Floats first(const float* p) { return *(const FloatsAt*)p; }
  static Floats second(const float* p) { return *(const FloatsAt*)(p + LANES); }
  static size_t place(size_t n) { return n; }
  static void put(float* p, Floats first, Floats second) {
    *(FloatsAt*)p = first;
    *(FloatsAt*)(p + LANES) = second;
  }
};

template <>
struct Split<Half> {
  static Floats first(const Half* p) { return (Floats)(*(const WordsAt*)p << 16); }
  static Floats second(const Half* p) { return (Floats)(*(const WordsAt*)p & 0xffff0000u); }
  static size_t place(size_t n) { return n / CHUNK * CHUNK + n % 2 * LANES + n % CHUNK / 2; }
  static Words rounded(Floats values) {
    Words bits = (Words)values;
    Words even = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    Words number = (Words)(values == values);
    return (even & number) | (0x7fc00000u & ~number);
  }
  static void put(Half* p, Floats first, Floats second) { *(WordsAt*)p = (rounded(first) >> 16) | rounded(second); }
};

// Values that stay in a register: a compiler would read them again for each product.
inline Floats held(Floats values) {
#ifdef __x86_64__
  asm("" : "+v"(values));
#endif
  return values;
}

inline float total(Floats values) {
  float sums[LANES];
  std::memcpy(sums, &values, sizeof sums);
  for (size_t width = LANES / 2; width; width /= 2)
    for (size_t lane = 0; lane < width; lane++) sums[lane] += sums[lane + width];
  return sums[0];
}

// Products of M rows of x, each of k values in split order, with N rows of w. M·N sums and N weights fill the registers.
// Meanwhile memory brings what is wanted next: from `ahead` on, so many bytes for each chunk.
template <size_t M, size_t N, class T>
__attribute__((noinline)) void dots(const float* x, const T* w, size_t k, const char* ahead, size_t bytes,
                                    float (&made)[M][N]) {
  Floats sums[M][N] = {};
  for (size_t at = 0; at < k; at += CHUNK, ahead += bytes) {
    __builtin_prefetch(ahead, 0, 2);
    Floats weights[N];
#pragma GCC unroll 8
    for (size_t n = 0; n < N; n++) weights[n] = held(Split<T>::first(w + n * k + at));
#pragma GCC unroll 8
    for (size_t m = 0; m < M; m++) {
      Floats own = held(*(const FloatsAt*)(x + m * k + at));
#pragma GCC unroll 8
      for (size_t n = 0; n < N; n++) sums[m][n] += own * weights[n];
    }
#pragma GCC unroll 8
    for (size_t n = 0; n < N; n++) weights[n] = held(Split<T>::second(w + n * k + at));
#pragma GCC unroll 8
    for (size_t m = 0; m < M; m++) {
      Floats own = held(*(const FloatsAt*)(x + m * k + at + LANES));
#pragma GCC unroll 8
      for (size_t n = 0; n < N; n++) sums[m][n] += own * weights[n];
    }
  }
  for (size_t m = 0; m < M; m++)
    for (size_t n = 0; n < N; n++) made[m][n] = total(sums[m][n]);
}

// What is wanted after some products: it is brought in equal parts, one while each group of rows is computed.
template <class T>
struct Next {
  const T* w;
  size_t group, groups;

  const char* from(size_t values) const { return (const char*)(w + (group * values) / groups); }
};

// Products of M rows of x with any number of rows of w.
template <size_t M, size_t N, class T, class Put>
inline void products(const float* x, const T* w, size_t k, size_t outputs, Next<T> next, Put put) {
  const char* ahead = next.from(outputs * k);
  const size_t bytes = CHUNK * sizeof(T) / next.groups;  // of a row of w
  size_t n = 0;
  for (; n + N <= outputs; n += N) {
    float made[M][N];
    dots(x, w + n * k, k, ahead + n * k / CHUNK * bytes, N * bytes, made);
    for (size_t m = 0; m < M; m++)
      for (size_t i = 0; i < N; i++) put(m, n + i, made[m][i]);
  }
  for (; n < outputs; n++) {
    float made[M][1];
    dots(x, w + n * k, k, ahead + n * k / CHUNK * bytes, bytes, made);
    for (size_t m = 0; m < M; m++) put(m, n, made[m][0]);
  }
}

// Products of any number of rows of x with any number of rows of w; `next` are as many rows of w.
template <class T, class Put>
inline void all_products(const float* x, const T* w, size_t rows, size_t k, size_t outputs, const T* next, Put put) {
  Next<T> part = {next, 0, std::max<size_t>(1, rows / 6 + rows % 6 / 4 + rows % 6 % 4 / 2 + rows % 2)};
  size_t m = 0;
  for (; m + 6 <= rows; m += 6, part.group++)
    products<6, 2>(x + m * k, w, k, outputs, part, [&](size_t i, size_t n, float value) { put(m + i, n, value); });
  for (; m + 4 <= rows; m += 4, part.group++)
    products<4, 2>(x + m * k, w, k, outputs, part, [&](size_t i, size_t n, float value) { put(m + i, n, value); });
  for (; m + 2 <= rows; m += 2, part.group++)
    products<2, 4>(x + m * k, w, k, outputs, part, [&](size_t i, size_t n, float value) { put(m + i, n, value); });
  for (; m < rows; m++, part.group++)
    products<1, 4>(x + m * k, w, k, outputs, part, [&](size_t, size_t n, float value) { put(m, n, value); });
}

}  // namespace graft
