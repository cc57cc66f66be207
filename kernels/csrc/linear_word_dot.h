// The dot product of QLinear in 16-bit words, for instruction sets that multiply and add pairs of words. Exact for all
// codes: even and odd k of a vector of codes are split by a mask and a shift, those of a row lie split already.
#pragma once

#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kRowBytes = 8;

struct CodeOperand {
  IntVec even, odd;
};
typedef CodeOperand RowOperand;

DLM_EDGE_INLINE CodeOperand Operand(IntVec codes) {
  return {codes & 0x00ff00ff, (IntVec)((UintVec)codes >> 8 & 0x00ff00ffu)};
}

DLM_EDGE_INLINE RowOperand RowOf(const int8_t* words) {
  int32_t even, odd;
  memcpy(&even, words, sizeof even);
  memcpy(&odd, words + sizeof even, sizeof odd);
  return {IntVec{} + even, IntVec{} + odd};
}

DLM_EDGE_INLINE IntVec AddProducts(IntVec sums, IntVec codes, IntVec row) {
#if defined(__AVX2__)
  return sums + (IntVec)_mm256_madd_epi16((__m256i)codes, (__m256i)row);
#elif defined(__SSE2__)
  return sums + (IntVec)_mm_madd_epi16((__m128i)codes, (__m128i)row);
#else
  return sums + (codes & 0xffff) * (IntVec)((UintVec)row << 16) / 65536 + (codes >> 16) * (row >> 16);
#endif
}

DLM_EDGE_INLINE IntVec Dot(IntVec sums, const CodeOperand& codes, const RowOperand& row) {
#if defined(__x86_64__)
  asm("" : "+x"(sums));  // g++ would compute several products first, which takes more registers than there are
#endif
  return AddProducts(AddProducts(sums, codes.even, row.even), codes.odd, row.odd);
}

}  // namespace
}  // namespace dlm_edge
