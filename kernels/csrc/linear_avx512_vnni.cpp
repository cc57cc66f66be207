// QLinear with 512-bit vpdpbusd: 24 of the 32 registers hold sums.
#define DLM_EDGE_LANES 16
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 8
#include "vectors.h"

namespace dlm_edge {
namespace {

#ifndef TUNE_ROWS
#define TUNE_ROWS 8
#define TUNE_TILES 2
#endif
constexpr int kRows = TUNE_ROWS, kTiles = TUNE_TILES, kByteShift = 0;
constexpr bool kAlwaysUnpacks = false;

DLM_EDGE_INLINE IntVec Dot(IntVec sums, IntVec codes, IntVec rows) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)rows);
}

}  // namespace
}  // namespace dlm_edge

#include "linear_panels.h"

const dlm_edge::LinearKernel dlm_edge::kAvx512VnniLinear = {"avx512_vnni", kRows, FourNeighbours, Round, MultiplyLinear};
