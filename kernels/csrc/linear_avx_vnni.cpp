// QLinear with 256-bit vpdpbusd, for processors that have it without AVX-512: 12 of the 16 registers hold sums.
#define DLM_EDGE_LANES 8
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 4
#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 6, kTiles = 1;
constexpr int kPackedRowTiles = 1;

constexpr int kRowBytes = 4;

typedef IntVec CodeOperand;
typedef IntVec RowOperand;

DLM_EDGE_INLINE IntVec Operand(IntVec codes) { return codes; }

DLM_EDGE_INLINE IntVec RowOf(const int8_t* four) {
  int32_t word;
  memcpy(&word, four, sizeof word);
  return IntVec{} + word;
}

DLM_EDGE_INLINE IntVec Dot(IntVec sums, IntVec codes, IntVec row) {
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)codes, (__m256i)row);
}

RowForm Form(const LinearWeight&) { return {4, false}; }

}  // namespace
}  // namespace dlm_edge

#include "linear_panels.h"

const dlm_edge::LinearKernel dlm_edge::kAvxVnniLinear = {"avx_vnni", kRows, Form, Round, MultiplyLinear};
