// See dequantize_rows.h.
#include "dequantize_rows.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace dlm_edge {
namespace {

constexpr int64_t kRowsPerTask = 64;

}  // namespace

DequantizePlan::DequantizePlan(const DequantizeArguments& arguments) : arguments_(arguments), kernel_(ChosenKernel()) {}

size_t DequantizePlan::n_tasks(int) const { return (arguments_.n_rows + kRowsPerTask - 1) / kRowsPerTask; }

void DequantizePlan::Run(int, size_t index) const {
  const DequantizeArguments& a = arguments_;
  const int64_t tail_begin = a.n_tail > 0 ? a.cache_len / a.n_tail * a.n_tail : a.cache_len;
  const int64_t begin = static_cast<int64_t>(index) * kRowsPerTask, end = std::min(begin + kRowsPerTask, a.n_rows);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = a.rows[i];
    float* const out = a.out + i * a.width;
    if (row >= tail_begin) {
      std::memcpy(out, a.tail + (row - tail_begin) * a.width, a.width * sizeof(float));
      continue;
    }
    const int64_t scales = row / a.row_group * (a.width / a.token_group);
    kernel_->dequantize({a.codes + row * (a.width * a.bits / 8), a.scale + scales, a.low + scales, a.width,
                         a.token_group, a.bits, out});
  }
}

}  // namespace dlm_edge
