// Which variant is in use: the instructions, and for caches of codes the arithmetic too. The whole process shares it.
#pragma once

#include "row_task.h"

namespace dlm_edge {

// "avx512_vnni" (codes in integers, fixed_attention.h), "avx512", "avx2", "portable"; null chooses the best again. False: unknown, or not supported by this processor.
bool SetSimd(const char* name);
const char* SimdName();
const TileKernel* ChosenKernel();

}  // namespace dlm_edge
