// QLinear without a dot product instruction. vpmaddubsw adds two products into 16 bits, which must not saturate:
//
//   codes up to 15   2 * 15 * 127 = 3810, so that the sums of eight of them fit too before they are widened
//   codes of 8 bits  count as code - 128; |code - 128| <= 128 is the unsigned factor and its sign goes to the row's byte:
//                    2 * 128 * 127 = 32512
#define DLM_EDGE_LANES 8
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 4
#include "vectors.h"

namespace dlm_edge {
namespace {

#ifndef TUNE_ROWS2
#define TUNE_ROWS2 4
#endif
constexpr int kRows = TUNE_ROWS2, kTiles = 1, kByteShift = 128;
constexpr bool kAlwaysUnpacks = false;

}  // namespace
}  // namespace dlm_edge

#include "linear_avx2_panels.h"

const dlm_edge::LinearKernel dlm_edge::kAvx2Linear = {"avx2", kRows, FourNeighbours, Round, MultiplyLinear};
