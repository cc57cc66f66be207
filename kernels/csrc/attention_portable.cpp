// 4 lanes: what every 64-bit processor has (SSE2, NEON). Block sizes for 16 registers.
#define DLM_EDGE_LANES 4
#define DLM_EDGE_MAX_ROW_VECTORS 2
#define DLM_EDGE_BLOCK 4
#include "attention_tiles.h"
#include "choice_tiles.h"
#include "code_rows.h"
#include "mass_tiles.h"
#include "pool_tiles.h"
#include "quantize_tiles.h"
#include "score_tiles.h"

const dlm_edge::TileKernel dlm_edge::kPortableTiles = {
    "portable", kLanes, kMaxRowVectors, Attend, Measure, Choose, Dequantize, Pool, Quantize, LargestLogit, WeighLogits};
