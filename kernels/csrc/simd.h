// Which vector width is in use. The whole process shares the choice.
#pragma once

#include "row_task.h"

namespace dlm_edge {

// "avx512", "avx2", "portable"; null chooses the best again. False: unknown, or not supported by this processor.
bool SetSimd(const char* name);
const char* SimdName();
const TileKernel* ChosenKernel();

}  // namespace dlm_edge
