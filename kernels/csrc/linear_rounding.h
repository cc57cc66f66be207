// Rows of floats to int8 codes with one scale for each block of a row, laid out for the inner loops of QLinear.
#pragma once

#include "linear_gate.h"
#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr float kLargestCode = 127.0f;
constexpr float kSmallestScale = 1.17549435e-38f;  // stands for the scale of a block of zeros, whose codes are all 0
// Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
constexpr float kToInteger = 12582912.0f;

DLM_EDGE_INLINE Vec Magnitude(Vec x) { return (Vec)((UintVec)x & 0x7fffffffu); }

DLM_EDGE_INLINE float Highest(Vec values) {
  float lanes[kLanes];
  Store(values, lanes);
#pragma GCC unroll 4
  for (int n = kLanes / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
  return lanes[0];
}

// The largest magnitude; `mark` becomes NaN with a value that is not finite.
DLM_EDGE_INLINE float Peak(const float* x, int64_t count, Vec* mark) {
  Vec largest = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec values = Load(x + i);
    largest = Max(Magnitude(values), largest);
    *mark += values - values;
  }
  float peak = Highest(largest);
  for (; i < count; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    peak = magnitude > peak ? magnitude : peak;
    (*mark)[0] += x[i] - x[i];
  }
  return peak;
}

// The blocks of a row, the last one what is left; their scales lie `stride` apart.
struct RowBlocks {
  int64_t size, count, stride;
};

// Whether all values are finite; the scales are of no use otherwise. `x` may have the outliers removed.
DLM_EDGE_INLINE bool RowScales(const float* x, int64_t count, const RowBlocks& blocks, float* scales) {
  Vec mark = {};
  for (int64_t b = 0; b < blocks.count; ++b) {
    const int64_t left = count - b * blocks.size;
    const float scale = Peak(x + b * blocks.size, left < blocks.size ? left : blocks.size, &mark) / kLargestCode;
    scales[b * blocks.stride] = scale > kSmallestScale ? scale : kSmallestScale;
  }
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += mark[lane];
  return sum == 0.0f;
}

DLM_EDGE_INLINE void Encode(const float* x, int64_t count, float scale, int8_t* codes) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const IntVec shifted = (IntVec)(Load(x + i) / scale + kToInteger);
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)(codes + i), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)shifted));
#else
    typedef int8_t ByteVec __attribute__((vector_size(kLanes)));
    const ByteVec bytes = __builtin_convertvector(shifted, ByteVec);
    memcpy(codes + i, &bytes, sizeof bytes);
#endif
  }
  for (; i < count; ++i) {
    const float shifted = x[i] / scale + kToInteger;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    codes[i] = (int8_t)bits;
  }
}

DLM_EDGE_INLINE void SumGroups(const LinearWeight& weight, const int8_t* codes, int64_t stride, int32_t* sums) {
  for (int64_t g = 0; g < weight.n_groups; ++g) {
    const int64_t begin = g * weight.group_size;
    const int64_t end = weight.in_features - begin < weight.group_size ? weight.in_features : begin + weight.group_size;
    int32_t sum = 0;
    for (int64_t k = begin; k < end; ++k) sum += codes[k];
    sums[g * stride] = sum;
  }
}

// A row's outliers go to `outliers`, and become 0 in it.
DLM_EDGE_INLINE void TakeOutliers(const LinearWeight& weight, float* row, float* outliers) {
  for (int64_t j = 0; j < weight.n_outliers; ++j) {
    outliers[j] = row[weight.outlier_columns[j]];
    row[weight.outlier_columns[j]] = 0.0f;
  }
}

// The codes of a row that is finite.
DLM_EDGE_INLINE void EncodeBlocks(const float* x, int64_t count, const RowBlocks& blocks, const float* scales,
                                  int8_t* codes) {
  for (int64_t b = 0; b < blocks.count; ++b) {
    const int64_t begin = b * blocks.size, left = count - begin;
    Encode(x + begin, left < blocks.size ? left : blocks.size, scales[b * blocks.stride], codes + begin);
  }
}

// Codes [filled] of one row, and their scales. `own` is memory for a row that is not x as it stands.
DLM_EDGE_INLINE void RoundRow(const LinearWeight& weight, const LinearRows& rows, int64_t row, int64_t filled,
                              const RowBlocks& blocks, float* own, float* outliers, float* scales, int8_t* codes) {
  const int64_t count = weight.in_features;
  const float* x = rows.x + row * count * (rows.is_gated ? 2 : 1);
  if (rows.is_gated) {
    GateRow(x, x + count, count, own);
    x = own;
  }
  const bool is_finite = RowScales(x, count, blocks, scales);
  if (weight.n_outliers > 0) {
    if (x != own) memcpy(own, x, count * sizeof(float));
    TakeOutliers(weight, own, outliers);
    x = own;
    if (is_finite) RowScales(x, count, blocks, scales);
  }
  memset(codes + count, 0, filled - count);
  if (is_finite) return EncodeBlocks(x, count, blocks, scales, codes);
  memset(codes, 0, count);
  for (int64_t b = 0; b < blocks.count; ++b) scales[b * blocks.stride] = __builtin_nanf("");
}

// [n_rows, filled] to a row tile.
DLM_EDGE_INLINE void Interleave(const int8_t* codes, int64_t n_rows, int64_t filled, RowForm form, int8_t* out) {
  if (form.has_words) {
    int16_t* words = reinterpret_cast<int16_t*>(out);
    for (int64_t k = 0; k < filled; k += 4)
      for (int64_t r = 0; r < n_rows; ++r, words += 4) {
        const int8_t* const four = codes + r * filled + k;
        words[0] = four[0];
        words[1] = four[2];
        words[2] = four[1];
        words[3] = four[3];
      }
  } else if (form.unit == 4) {
    for (int64_t k = 0; k < filled; k += 4)
      for (int64_t r = 0; r < n_rows; ++r, out += 4) memcpy(out, codes + r * filled + k, 4);
  } else {
    for (int64_t k = 0; k < filled; k += form.unit)
      for (int64_t r = 0; r < n_rows; ++r, out += form.unit) memcpy(out, codes + r * filled + k, form.unit);
  }
}

void Round(const RoundTask& task) {
  static thread_local Scratch scratch;
  const LinearWeight& weight = *task.weight;
  const RoundedRows& rounded = *task.rounded;
  const int64_t n_rows = task.row_end - task.row_begin, filled = rounded.filled_k;
  const size_t codes_bytes = Aligned(n_rows * filled);
  char* const memory = scratch.Reserve(codes_bytes + weight.in_features * sizeof(float));
  int8_t* const codes = reinterpret_cast<int8_t*>(memory);  // [n_rows, filled]
  float* const own = reinterpret_cast<float*>(memory + codes_bytes);
  const RowBlocks blocks = {rounded.n_blocks == 1 ? weight.in_features : weight.group_size, rounded.n_blocks, n_rows};
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t row = task.row_begin + r;
    int8_t* const row_codes = codes + r * filled;
    RoundRow(weight, *task.rows, row, filled, blocks, own, rounded.outliers + row * weight.n_outliers,
             rounded.scales + task.row_begin * rounded.n_blocks + r, row_codes);
    SumGroups(weight, row_codes, n_rows, rounded.sums + task.row_begin * weight.n_groups + r);
  }
  Interleave(codes, n_rows, filled, rounded.form,
             rounded.codes + task.row_begin * filled * rounded.form.code_bytes());
}

}  // namespace
}  // namespace dlm_edge
