// Rows of floats to int8 codes with one scale a row, laid out for the inner loops of QLinear.
#pragma once

#include "linear_gate.h"
#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr float kLargestCode = 127.0f;
constexpr float kSmallestScale = 1.17549435e-38f;  // stands for the scale of a zero row, whose codes are all 0
// Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
constexpr float kToInteger = 12582912.0f;

DLM_EDGE_INLINE Vec Magnitude(Vec x) { return (Vec)((UintVec)x & 0x7fffffffu); }

// The scale of a row, NaN where one of its values is not finite. `x` may have the outliers removed.
DLM_EDGE_INLINE float RowScale(const float* x, int64_t count) {
  Vec largest = {}, mark = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec values = Load(x + i);
    largest = Max(Magnitude(values), largest);
    mark += values - values;
  }
  float peak = 0.0f, sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) {
    peak = largest[lane] > peak ? largest[lane] : peak;
    sum += mark[lane];
  }
  for (; i < count; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    peak = magnitude > peak ? magnitude : peak;
    sum += x[i] - x[i];
  }
  const float scale = peak / kLargestCode;
  return (scale > kSmallestScale ? scale : kSmallestScale) + sum;
}

DLM_EDGE_INLINE void EncodeRow(const float* x, int64_t count, float scale, int8_t* codes) {
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

// Codes [filled] of one row; returns their scale. `own` is memory for a row that is not x as it stands.
DLM_EDGE_INLINE float RoundRow(const LinearWeight& weight, const LinearRows& rows, int64_t row, int64_t filled,
                               float* own, float* outliers, int8_t* codes) {
  const int64_t count = weight.in_features;
  const float* x = rows.x + row * count * (rows.is_gated ? 2 : 1);
  if (rows.is_gated) {
    GateRow(x, x + count, count, own);
    x = own;
  }
  float scale = RowScale(x, count);
  if (weight.n_outliers > 0) {
    if (x != own) memcpy(own, x, count * sizeof(float));
    TakeOutliers(weight, own, outliers);
    x = own;
    if (scale == scale) scale = RowScale(x, count);
  }
  memset(codes + count, 0, filled - count);
  if (scale == scale)
    EncodeRow(x, count, scale, codes);
  else
    memset(codes, 0, count);
  return scale;
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
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t row = task.row_begin + r;
    int8_t* const row_codes = codes + r * filled;
    rounded.scales[row] =
        RoundRow(weight, *task.rows, row, filled, own, rounded.outliers + row * weight.n_outliers, row_codes);
    SumGroups(weight, row_codes, n_rows, rounded.sums + task.row_begin * weight.n_groups + r);
  }
  Interleave(codes, n_rows, filled, rounded.form,
             rounded.codes + task.row_begin * filled * rounded.form.code_bytes());
}

}  // namespace
}  // namespace dlm_edge
