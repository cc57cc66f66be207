// QLinear with 4 lanes: what every 64-bit processor has.
#define DLM_EDGE_LANES 4
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 4
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 2, kTiles = 1, kByteShift = 0;
constexpr bool kAlwaysUnpacks = true;  // most of the work is then done once for all rows

DLM_EDGE_INLINE IntVec Dot(IntVec sums, IntVec codes, IntVec rows) {
#if defined(__SSE2__)
  // 16-bit lanes: the codes of even and of odd k, and the rows' bytes with their signs.
  const __m128i low = _mm_set1_epi16(0xff), all = (__m128i)codes, row = (__m128i)rows;
  const __m128i even = _mm_and_si128(all, low), odd = _mm_srli_epi16(all, 8);
  const __m128i row_even = _mm_srai_epi16(_mm_slli_epi16(row, 8), 8), row_odd = _mm_srai_epi16(row, 8);
  return sums + (IntVec)_mm_madd_epi16(even, row_even) + (IntVec)_mm_madd_epi16(odd, row_odd);
#else
  const UintVec bytes = (UintVec)codes;
  for (int j = 0; j < 4; ++j)
    sums += (IntVec)(bytes >> (8 * j) & 255u) * ((IntVec)((UintVec)rows << (24 - 8 * j)) >> 24);
  return sums;
#endif
}

}  // namespace
}  // namespace dlm_edge

#include "linear_panels.h"

const dlm_edge::LinearKernel dlm_edge::kPortableLinear = {"portable", kRows, FourNeighbours, Round, MultiplyLinear};
