// QuantizeRows on the CPU: the first rows of a window to codes. The definition is kernels/quantize_rows/reference.py.
//
// rows        [lead, length, width]
// codes       [lead, n, width * bits / 8]
// scale, low  float16 [lead, n, width / group] (by token), or [lead, n / group, width] (by channel)
// tail        [lead, count - n, width], by channel only: the rows from n = count / group * group on
#pragma once

#include <cstddef>
#include <cstdint>

#include "row_task.h"

namespace dlm_edge {

struct QuantizeArguments {
  int64_t lead, length, width, count, n, group;
  bool by_channel;
  int bits;
  const float* rows;
  uint8_t* codes;
  uint16_t *scale, *low;
  float* tail;
};

class QuantizePlan {
 public:
  explicit QuantizePlan(const QuantizeArguments& arguments);
  size_t n_tasks(int phase) const;
  void Run(int phase, size_t index) const;

 private:
  QuantizeArguments arguments_;
  const TileKernel* kernel_;
  int64_t rows_per_task_, tasks_per_lead_;
};

}  // namespace dlm_edge
