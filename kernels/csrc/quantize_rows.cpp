// See quantize_rows.h.
#include "quantize_rows.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace dlm_edge {
namespace {

constexpr int64_t kRowsPerTask = 64;

}  // namespace

// By channel a task is one group; rows with scales of their own are independent, and some of them make a task.
QuantizePlan::QuantizePlan(const QuantizeArguments& arguments)
    : arguments_(arguments),
      kernel_(ChosenKernel()),
      rows_per_task_(arguments.by_channel ? arguments.group : kRowsPerTask),
      tasks_per_lead_((arguments.n + rows_per_task_ - 1) / rows_per_task_) {}

size_t QuantizePlan::n_tasks(int) const { return static_cast<size_t>(arguments_.lead * tasks_per_lead_); }

void QuantizePlan::Run(int, size_t index) const {
  const QuantizeArguments& a = arguments_;
  const int64_t lead = static_cast<int64_t>(index) / tasks_per_lead_, place = static_cast<int64_t>(index) % tasks_per_lead_;
  const int64_t begin = place * rows_per_task_, end = std::min(begin + rows_per_task_, a.n);
  const int64_t step = a.by_channel ? a.group : 1, columns = a.by_channel ? a.width : a.width / a.group;
  for (int64_t row = begin; row < end; row += step) {
    const int64_t scales = (lead * (a.n / step) + row / step) * columns;
    kernel_->quantize({a.rows + (lead * a.length + row) * a.width, step, a.width, a.by_channel ? 1 : a.group, a.bits,
                       a.codes + (lead * a.n + row) * (a.width * a.bits / 8), a.scale + scales, a.low + scales});
  }
}

}  // namespace dlm_edge
