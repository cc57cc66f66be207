// Which variant is in use: the instructions, and for caches of codes the arithmetic too. The whole process shares it.
#pragma once

#include "linear_task.h"
#include "row_task.h"

namespace dlm_edge {

// "amx", "avx512_vnni" (codes in integers, fixed_attention.h), "avx512", "avx_vnni", "avx2", "portable"; null chooses the
// best again. False: unknown, or not supported by this processor.
bool SetSimd(const char* name);
const char* SimdName();
const TileKernel* ChosenKernel();
const LinearKernel* ChosenLinear();

}  // namespace dlm_edge
