// QLinear with 512-bit vpdpbusd: 16 of the 32 registers hold sums.
#define DLM_EDGE_LANES 16
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 8
#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 8, kTiles = 2;
constexpr int kPackedRowTiles = 1 << 30;  // always: two operations for 16 dot products

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
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)row);
}

RowForm Form(const LinearWeight&) { return {4, false}; }

}  // namespace
}  // namespace dlm_edge

#include "linear_panels.h"

const dlm_edge::LinearKernel dlm_edge::kAvx512VnniLinear = {"avx512_vnni", kRows, Form, Round, MultiplyLinear};
