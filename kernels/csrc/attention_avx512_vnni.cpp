// As attention_avx512.cpp; caches of codes are worked on in integers.
#define DLM_EDGE_LANES 16
#define DLM_EDGE_MAX_ROW_VECTORS 3
#define DLM_EDGE_BLOCK 8
#include "choice_tiles.h"
#include "code_rows.h"
#include "fixed_attention.h"
#include "fixed_masses.h"
#include "pool_tiles.h"
#include "quantize_tiles.h"
#include "score_tiles.h"

const dlm_edge::TileKernel dlm_edge::kAvx512VnniTiles = {
    "avx512_vnni", kLanes, kMaxRowVectors, AttendFixed, MeasureFixed, Choose, Dequantize, Pool, Quantize, LargestLogit,
    WeighLogits};
