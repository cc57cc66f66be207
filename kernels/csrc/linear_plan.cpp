// See linear_plan.h.
#include "linear_plan.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "simd.h"

namespace dlm_edge {
namespace {

constexpr int64_t kTilesPerTask = 4;
constexpr int64_t kRowsPerTask = 512;  // about

int64_t CeilDiv(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Memory that is kept from call to call.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }

  char* Reserve(size_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      bytes_ = 0;
      memory_ = static_cast<char*>(std::aligned_alloc(64, bytes));
      if (memory_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  size_t bytes_ = 0;
};

// Cuts `memory` into pieces that begin at cache lines; counts only while it is null.
template <class T>
T* Cut(char* memory, size_t* used, size_t count) {
  T* const piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + *used);
  *used += (count * sizeof(T) + 63) / 64 * 64;
  return piece;
}

size_t Lay(char* memory, const LinearWeight& weight, RoundedRows* rounded) {
  const size_t n_rows = static_cast<size_t>(rounded->n_rows);
  size_t used = 0;
  rounded->codes = Cut<int8_t>(memory, &used, n_rows * rounded->filled_k * rounded->form.code_bytes());
  rounded->sums = Cut<int32_t>(memory, &used, n_rows * weight.n_groups);
  rounded->scales = Cut<float>(memory, &used, n_rows * rounded->n_blocks);
  rounded->outliers = Cut<float>(memory, &used, n_rows * weight.n_outliers);
  return used;
}

}  // namespace

LinearPlan::LinearPlan(const LinearWeight& weight, const LinearRows& rows, float* y)
    : weight_(weight), rows_(rows), y_(y), kernel_(ChosenLinear()), rounded_{} {
  static thread_local Workspace workspace;
  const int64_t n_rows = rounded_.n_rows = rows.n_rows;
  rounded_.filled_k = CeilDiv(weight.in_features, kFilledK) * kFilledK;
  rounded_.form = kernel_->form(weight);
  rounded_.n_blocks = rows.has_blocks ? weight.n_groups : 1;
  Lay(workspace.Reserve(std::max<size_t>(Lay(nullptr, weight, &rounded_), 64)), weight, &rounded_);
  n_row_tiles_ = CeilDiv(n_rows, kernel_->rows_per_tile);
  n_row_blocks_ = CeilDiv(n_rows, kRowsPerTask);
  block_rows_ = CeilDiv(n_row_tiles_, n_row_blocks_) * kernel_->rows_per_tile;
  n_tiles_ = CeilDiv(weight.out_features, kTileColumns);
  n_column_blocks_ = CeilDiv(n_tiles_, kTilesPerTask);
}

size_t LinearPlan::n_tasks(int phase) const {
  return static_cast<size_t>(phase == 0 ? n_row_tiles_ : n_row_blocks_ * n_column_blocks_);
}

void LinearPlan::Run(int phase, size_t index) const {
  const int64_t i = static_cast<int64_t>(index);
  if (phase == 0) {
    const int64_t begin = i * kernel_->rows_per_tile;
    return kernel_->round({&weight_, &rounded_, &rows_, begin, std::min(begin + kernel_->rows_per_tile, rows_.n_rows)});
  }
  const int64_t row = i / n_column_blocks_ * block_rows_, tile = i % n_column_blocks_ * kTilesPerTask;
  kernel_->multiply({&weight_, &rounded_, row, std::min(row + block_rows_, rows_.n_rows), tile,
                     std::min(tile + kTilesPerTask, n_tiles_), y_});
}

}  // namespace dlm_edge
