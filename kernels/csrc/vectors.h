// Vectors of one width, and the arithmetic on them. attention_avx512.cpp and its siblings set the three constants below
// and include the *_tiles.h, which include this. Like row_task.h, it includes C headers only.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "row_task.h"

#if !defined(DLM_EDGE_LANES) || !defined(DLM_EDGE_MAX_ROW_VECTORS) || !defined(DLM_EDGE_BLOCK)
#error "include this file from attention_<variant>.cpp"
#endif

namespace dlm_edge {
namespace {

constexpr int kLanes = DLM_EDGE_LANES;
constexpr int kMaxRowVectors = DLM_EDGE_MAX_ROW_VECTORS;
constexpr int kBlock = DLM_EDGE_BLOCK;  // keys (or head dims) in one register block

typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));
typedef float LooseVec __attribute__((vector_size(4 * kLanes), may_alias, aligned(4)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes), may_alias));

#define DLM_EDGE_INLINE inline __attribute__((always_inline))

DLM_EDGE_INLINE Vec Load(const float* from) { return *(const LooseVec*)from; }
DLM_EDGE_INLINE void Store(Vec values, float* to) { *(LooseVec*)to = values; }

DLM_EDGE_INLINE Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error below 2e-7; exactly 0 below -126. NaN stays NaN.
DLM_EDGE_INLINE Vec Exp2(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec shifted = x + 12582912.0f;
  const Vec f = x - (shifted - 12582912.0f);
  const Vec power = (Vec)(((UintVec)shifted + (127u - 0x4B400000u)) << 23);  // of no use below -126, then dropped
  // Minimax polynomial of 2^f on [-0.5, 0.5], relative error 2e-9 before rounding.
  Vec p = 0.00015345800784416497f * f + 0.0013399930903688073f;
  p = p * f + 0.009618489071726799f;
  p = p * f + 0.05550328642129898f;
  p = p * f + 0.24022646248340607f;
  p = p * f + 0.6931471824645996f;
  p = p * f + 1.0f;
  return x < -126.0f ? Vec{} : p * power;
}

// sum[n][r] += sum_k a[n * stride_n + k * stride_k] * b[k][r]: N * R accumulators that stay in registers.
template <int N, int R>
DLM_EDGE_INLINE void Multiply(const float* a, ptrdiff_t stride_n, ptrdiff_t stride_k, const Vec* b, int64_t depth,
                              Vec (&sum)[N][R]) {
  for (int64_t k = 0; k < depth; ++k, a += stride_k, b += R) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const float scalar = a[n * stride_n];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[n][r] += scalar * b[r];
    }
  }
}

// scores[n][r] = sum_d k[n][d] * q_t[d][r]
template <int N, int R>
DLM_EDGE_INLINE void ScoreKeys(const float* k, int64_t depth, const Vec* q_t, Vec* scores) {
  Vec sum[N][R] = {};
  Multiply<N, R>(k, depth, 1, q_t, depth, sum);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) scores[n * R + r] = sum[n][r];
}

// float16 bits to float32, exactly; infinity and NaN too.
DLM_EDGE_INLINE float HalfToFloat(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  // Scaling by 2^112 moves the exponent's bias and makes subnormals normal.
  const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
  float value;
  memcpy(&value, &magnitude, sizeof value);
  value *= 5.192296858534828e33f;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;
  bits |= (uint32_t)(half & 0x8000) << 16;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

DLM_EDGE_INLINE void HalvesToFloats(const uint16_t* halves, int64_t count, float* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(out + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)(halves + i))));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(halves + i))));
#endif
  for (; i < count; ++i) out[i] = HalfToFloat(halves[i]);
}

// kLanes bytes as floats. g++ takes the long way round from a vector of bytes, so the short way is spelled out.
DLM_EDGE_INLINE Vec BytesToFloats(const uint8_t* bytes) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtepi32_ps(0xffff,
                                       _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)bytes)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes)));
#else
  typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));
  ByteVec loaded;
  memcpy(&loaded, bytes, sizeof loaded);
  return __builtin_convertvector(__builtin_convertvector(loaded, IntVec), Vec);
#endif
}

DLM_EDGE_INLINE Vec SignedBytesToFloats(const int8_t* bytes) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtepi32_ps(0xffff,
                                       _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)bytes)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)bytes)));
#else
  typedef int8_t ByteVec __attribute__((vector_size(kLanes)));
  ByteVec loaded;
  memcpy(&loaded, bytes, sizeof loaded);
  return __builtin_convertvector(__builtin_convertvector(loaded, IntVec), Vec);
#endif
}

// kLanes nibbles of kLanes / 2 bytes as floats, the low nibble first.
DLM_EDGE_INLINE Vec NibblesToFloats(const uint8_t* bytes) {
  typedef int64_t WideVec __attribute__((vector_size(4 * kLanes), may_alias));
#if defined(__AVX512F__)
  const WideVec wide = (WideVec)_mm512_maskz_cvtepu8_epi64(0xff, _mm_loadl_epi64((const __m128i*)bytes));
#elif defined(__AVX2__)
  int32_t four;
  memcpy(&four, bytes, sizeof four);
  const WideVec wide = (WideVec)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
#else
  typedef uint8_t ByteVec __attribute__((vector_size(kLanes / 2)));
  ByteVec loaded;
  memcpy(&loaded, bytes, sizeof loaded);
  const WideVec wide = __builtin_convertvector(loaded, WideVec);
#endif
  // One byte becomes two 32-bit lanes.
  return __builtin_convertvector((IntVec)((wide | wide << 28) & 0x0000000F0000000F), Vec);
}

// Working memory of one thread, aligned for the widest vectors; it grows and is freed with the thread.
struct Scratch {
  char* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(memory); }
  char* Reserve(size_t wanted) {
    if (wanted > bytes) {
      free(memory);
      bytes = (wanted + 63) / 64 * 64;
      if (posix_memalign(reinterpret_cast<void**>(&memory), 64, bytes) != 0) abort();
    }
    return memory;
  }
};

// Rounds up, so that the next piece of a Scratch is aligned too.
DLM_EDGE_INLINE size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace
}  // namespace dlm_edge
