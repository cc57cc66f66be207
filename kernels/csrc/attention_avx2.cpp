// 8 lanes; 4 x 2 accumulators, 2 row vectors, 4 broadcasts: 14 of 16 registers. With 3 row vectors g++ is 10 % faster,
// but clang keeps all broadcasts in registers and spills: half the speed.
#define DLM_EDGE_LANES 8
#define DLM_EDGE_MAX_ROW_VECTORS 2
#define DLM_EDGE_BLOCK 4
#include "attention_tiles.h"
#include "choice_tiles.h"
#include "code_rows.h"
#include "mass_tiles.h"
#include "pool_tiles.h"
#include "quantize_tiles.h"
#include "score_tiles.h"

const dlm_edge::TileKernel dlm_edge::kAvx2Tiles = {
    "avx2", kLanes, kMaxRowVectors, Attend, Measure, Choose, Dequantize, Pool, Quantize, LargestLogit, WeighLogits};
