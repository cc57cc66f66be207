// DequantizeRows on the CPU: some rows of a quantized matrix. The definition is kernels/dequantize_rows/reference.py.
//
// codes   [capacity, width * bits / 8]
// scale   [capacity, width / group] (token_group = group, row_group = 1), or
//         [capacity / group, width] (token_group = 1, row_group = group); low likewise; float16
// tail    [n_tail, width]: the exact rows of the positions from cache_len / n_tail * n_tail on; n_tail may be 0
// rows    [n_rows], each in [0, cache_len): checked by the caller
// out     [n_rows, width]
#pragma once

#include <cstddef>
#include <cstdint>

#include "row_task.h"

namespace dlm_edge {

struct DequantizeArguments {
  int64_t width, n_rows, n_tail, cache_len;
  int64_t token_group, row_group;
  int bits;
  const uint8_t* codes;
  const uint16_t *scale, *low;
  const float* tail;
  const int64_t* rows;
  float* out;
};

class DequantizePlan {
 public:
  explicit DequantizePlan(const DequantizeArguments& arguments);
  size_t n_tasks(int phase) const;
  void Run(int phase, size_t index) const;

 private:
  DequantizeArguments arguments_;
  const TileKernel* kernel_;
};

}  // namespace dlm_edge
