// QLinear on the CPU: rows of floats to int8 codes, then integer products with a quantized weight, in two phases of
// tasks. The definition is kernels/qlinear/reference.py, and every variant gives its numbers to the bit.
//
// y  [n_rows, out_features]     rows and weight: linear_task.h
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear_task.h"

namespace dlm_edge {

constexpr int kLinearPhases = 2;

class LinearPlan {
 public:
  // Keeps codes in memory of the calling thread until its next plan; the tasks may run on any thread.
  // Throws std::bad_alloc.
  LinearPlan(const LinearWeight& weight, const LinearRows& rows, float* y);
  size_t n_tasks(int phase) const;
  void Run(int phase, size_t index) const;

 private:
  LinearWeight weight_;
  LinearRows rows_;
  float* y_;
  const LinearKernel* kernel_;
  RoundedRows rounded_;
  int64_t n_row_tiles_, n_row_blocks_, block_rows_, n_tiles_, n_column_blocks_;
};

}  // namespace dlm_edge
