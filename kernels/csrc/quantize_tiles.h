// Rows of floats to codes of 8, 4, 3 or 2 bits: the arithmetic of kernels/quantize_rows/reference.py, to the bit.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr double kLargestHalf = 65504.0;
constexpr uint16_t kHalfInfinity = 0x7c00, kHalfNan = 0x7e00;

// The bits of the largest float16 number that is not above x, within float16's range.
DLM_EDGE_INLINE uint16_t HalfBelow(double x) {
  const bool is_negative = x < 0.0;
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= ~((uint64_t)1 << 63);
  double magnitude;
  memcpy(&magnitude, &bits, sizeof magnitude);
  int exponent = (int)(bits >> 52) - 1023;
  if (exponent < -14) exponent = -14;  // subnormal numbers have the steps of the smallest normal ones
  const uint64_t scale_bits = (uint64_t)(1023 + 10 - exponent) << 52;
  double steps_per_unit;
  memcpy(&steps_per_unit, &scale_bits, sizeof steps_per_unit);
  const double steps = magnitude * steps_per_unit;  // exact: a power of two
  int64_t whole = (int64_t)steps;
  if (is_negative && (double)whole != steps) ++whole;
  // `whole` has the leading bit that the format leaves out: it adds 1 to the exponent's field of a normal number.
  return (uint16_t)(((exponent + 14) << 10) + whole) | (is_negative ? 0x8000 : 0);
}

// What the values of a group are, until its grid is known.
struct Extent {
  float *smallest, *largest;
  float* mark;  // 0, or NaN where a value is not finite
};

DLM_EDGE_INLINE Vec Min(Vec a, Vec b) { return a < b ? a : b; }

// One group for each column: group == 1.
DLM_EDGE_INLINE void ScanColumns(const QuantizeTask& task, const Extent& found) {
  int64_t i = 0;
  for (; i + kLanes <= task.width; i += kLanes) {
    Vec smallest = Load(task.values + i), largest = smallest, mark = smallest - smallest;
    for (int64_t row = 1; row < task.n_rows; ++row) {
      const Vec x = Load(task.values + row * task.width + i);
      smallest = Min(x, smallest);
      largest = Max(x, largest);
      mark += x - x;
    }
    Store(smallest, found.smallest + i);
    Store(largest, found.largest + i);
    Store(mark, found.mark + i);
  }
  for (; i < task.width; ++i) {
    float smallest = task.values[i], largest = smallest, mark = smallest - smallest;
    for (int64_t row = 1; row < task.n_rows; ++row) {
      const float x = task.values[row * task.width + i];
      smallest = x < smallest ? x : smallest;
      largest = x > largest ? x : largest;
      mark += x - x;
    }
    found.smallest[i] = smallest;
    found.largest[i] = largest;
    found.mark[i] = mark;
  }
}

// Groups of consecutive values of one row.
DLM_EDGE_INLINE void ScanGroups(const QuantizeTask& task, const Extent& found) {
  for (int64_t g = 0; g < task.width / task.group; ++g) {
    const float* const values = task.values + g * task.group;
    float smallest = values[0], largest = smallest, mark = 0.0f;
    int64_t i = 0;
    if (task.group >= kLanes) {
      Vec low = Load(values), high = low, sum = low - low;
      for (i = kLanes; i + kLanes <= task.group; i += kLanes) {
        const Vec x = Load(values + i);
        low = Min(x, low);
        high = Max(x, high);
        sum += x - x;
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        smallest = low[lane] < smallest ? low[lane] : smallest;
        largest = high[lane] > largest ? high[lane] : largest;
        mark += sum[lane];
      }
    }
    for (; i < task.group; ++i) {
      smallest = values[i] < smallest ? values[i] : smallest;
      largest = values[i] > largest ? values[i] : largest;
      mark += values[i] - values[i];
    }
    found.smallest[g] = smallest;
    found.largest[g] = largest;
    found.mark[g] = mark;
  }
}

// scale and low of each group; as floats `smallest` becomes low, and `largest` scale, or 1 where that is 0.
DLM_EDGE_INLINE void FitGrids(const QuantizeTask& task, const Extent& found) {
  for (int64_t g = 0; g < task.width / task.group; ++g) {
    const double smallest = found.smallest[g], largest = found.largest[g];
    const bool is_unsound = found.mark[g] != 0.0f;  // NaN differs from everything
    if (is_unsound || smallest < -kLargestHalf || largest > kLargestHalf) {
      task.scale[g] = is_unsound ? kHalfNan : kHalfInfinity;
      task.low[g] = 0;
      found.smallest[g] = 0.0f;
      found.largest[g] = 1.0f;
      continue;
    }
    task.low[g] = HalfBelow(smallest);
    found.smallest[g] = HalfToFloat(task.low[g]);
    // Rounded up: the opposite of the opposite, rounded down.
    const double span = largest - (double)found.smallest[g];
    task.scale[g] = HalfBelow(-(span / ((1 << task.bits) - 1))) & 0x7fff;
    found.largest[g] = task.scale[g] == 0 ? 1.0f : HalfToFloat(task.scale[g]);
  }
}

// Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
constexpr float kRounder = 12582912.0f;

DLM_EDGE_INLINE uint8_t Code(float value, float low, float divisor, uint32_t mask) {
  const float shifted = (value - low) / divisor + kRounder;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return (uint8_t)(bits & mask);  // the mask is for groups that cannot be stored: others have no other bits
}

DLM_EDGE_INLINE void Codes(Vec values, Vec low, Vec divisor, uint32_t mask, uint8_t* out) {
  const UintVec codes = (UintVec)((values - low) / divisor + kRounder) & mask;
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)out, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)codes));
#else
  typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));
  const ByteVec bytes = __builtin_convertvector(codes, ByteVec);
  memcpy(out, &bytes, sizeof bytes);
#endif
}

// The codes of one row, one a byte.
DLM_EDGE_INLINE void EncodeRow(const QuantizeTask& task, const float* values, const Extent& grid, uint8_t* fields) {
  const uint32_t mask = (1u << task.bits) - 1;
  const bool by_column = task.group == 1;
  for (int64_t g = 0; g < (by_column ? 1 : task.width / task.group); ++g) {
    const int64_t begin = g * task.group, end = by_column ? task.width : begin + task.group;
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec low = by_column ? Load(grid.smallest + i) : Vec{} + grid.smallest[g];
      const Vec divisor = by_column ? Load(grid.largest + i) : Vec{} + grid.largest[g];
      Codes(Load(values + i), low, divisor, mask, fields + i);
    }
    for (; i < end; ++i) {
      const int64_t at = by_column ? i : g;
      fields[i] = Code(values[i], grid.smallest[at], grid.largest[at], mask);
    }
  }
}

// `width` fields of `bits` bits, each at bit `shift` of its byte, packed with the first one lowest.
template <int bits>
DLM_EDGE_INLINE void PackFields(const uint8_t* fields, int64_t width, int shift, uint8_t* out) {
  constexpr int per_byte = 8 / bits;
  constexpr uint32_t mask = (1u << bits) - 1;
  for (int64_t i = 0; i < width / per_byte; ++i) {
    uint32_t byte = 0;
#pragma GCC unroll 8
    for (int j = 0; j < per_byte; ++j) byte |= (fields[i * per_byte + j] >> shift & mask) << (j * bits);
    out[i] = (uint8_t)byte;
  }
}

void Quantize(const QuantizeTask& task) {
  static thread_local Scratch scratch;
  const int64_t n_groups = task.width / task.group;
  const size_t piece = Aligned(n_groups * sizeof(float));
  char* const memory = scratch.Reserve(3 * piece + task.width);
  const Extent found = {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + piece),
                        reinterpret_cast<float*>(memory + 2 * piece)};
  if (task.group == 1)
    ScanColumns(task, found);
  else
    ScanGroups(task, found);
  FitGrids(task, found);
  const int64_t row_bytes = task.width * task.bits / 8;
  for (int64_t row = 0; row < task.n_rows; ++row) {
    uint8_t* const codes = task.codes + row * row_bytes;
    uint8_t* const fields = task.bits == 8 ? codes : reinterpret_cast<uint8_t*>(memory + 3 * piece);
    EncodeRow(task, task.values + row * task.width, found, fields);
    if (task.bits == 4) PackFields<4>(fields, task.width, 0, codes);
    if (task.bits < 4) PackFields<2>(fields, task.width, 0, codes);
    if (task.bits == 3) PackFields<1>(fields, task.width, 2, codes + task.width / 4);
  }
}

}  // namespace
}  // namespace dlm_edge
