// 8 lanes; 4 x 3 accumulators, 3 row vectors, one broadcast: all 16 registers.
#define DLM_EDGE_LANES 8
#define DLM_EDGE_MAX_ROW_VECTORS 3
#define DLM_EDGE_BLOCK 4
#include "attention_tiles.h"

const dlm_edge::TileKernel dlm_edge::kAvx2Tiles = {"avx2", kLanes, kMaxRowVectors, Run};
