// 16 lanes; 8 x 3 accumulators, 3 row vectors, broadcasts from memory: 28 of 32 registers.
#define DLM_EDGE_LANES 16
#define DLM_EDGE_MAX_ROW_VECTORS 3
#define DLM_EDGE_BLOCK 8
#include "attention_tiles.h"
#include "choice_tiles.h"
#include "code_rows.h"
#include "mass_tiles.h"
#include "pool_tiles.h"
#include "quantize_tiles.h"
#include "score_tiles.h"

const dlm_edge::TileKernel dlm_edge::kAvx512Tiles = {
    "avx512", kLanes, kMaxRowVectors, Attend, Measure, Choose, Dequantize, Pool, Quantize, LargestLogit, WeighLogits};
