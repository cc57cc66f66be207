// QLinear with 256-bit vpdpbusd, for processors that have it without AVX-512: 12 of the 16 registers hold sums.
#define DLM_EDGE_LANES 8
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 4
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 6, kTiles = 1, kByteShift = 0;
constexpr bool kAlwaysUnpacks = false;

DLM_EDGE_INLINE IntVec Dot(IntVec sums, IntVec codes, IntVec rows) {
#if defined(__AVXVNNI__)
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)codes, (__m256i)rows);
#else  // the same instruction in its AVX-512 encoding, for tests on processors that have only that
  return (IntVec)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)codes, (__m256i)rows);
#endif
}

}  // namespace
}  // namespace dlm_edge

#include "linear_panels.h"

const dlm_edge::LinearKernel dlm_edge::kAvxVnniLinear = {"avx_vnni", kRows, FourNeighbours, Round, MultiplyLinear};
