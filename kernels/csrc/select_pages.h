// SelectPages on the CPU. No ONNX Runtime types here: arithmetic only. The definition, with the meaning of every number
// of the policy, is kernels/select_pages/reference.py.
//
// q                  [n_heads, q_len, head_dim]
// low, high          [n_kv_heads, n_slots, head_dim]    page_scale, masses [n_kv_heads, n_slots]
// q_last, q_stored   [n_heads, n_rows, head_dim]
// active             [n_kv_heads, q_len]                pages [n_kv_heads, n_slots], stats [4]
//
// The new state may be the same memory as the old one. Every element of the outputs is written. Shapes and policy have
// been checked by the caller. The results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "row_task.h"

namespace dlm_edge {

enum Mode : int64_t { kDense, kSelect, kReuseRows, kReusePages, kDenseKeep, kSelectRows, kModes };

constexpr bool ChoosesRows(int64_t mode) { return mode == kSelect || mode == kSelectRows; }
constexpr bool ReadsMasses(int64_t mode) { return mode == kReusePages || mode == kSelectRows; }

struct SelectArguments {
  int64_t n_heads, n_kv_heads, q_len, head_dim, n_slots, n_rows;
  int64_t start, cache_len;
  int64_t mode, n_pages, n_active, sink, recent, per_head, since_stored, one_list, page_size;
  float drift;
  const float* q;
  const int8_t *low, *high;
  const float *page_scale, *q_last, *q_stored, *masses;
  uint8_t *active, *pages;
  float *new_q_last, *new_q_stored, *stats;
};

class SelectPlan {
 public:
  enum { kMove, kChoose, kStore, kPhases };  // each after all tasks of the one before

  // Keeps a copy of the arguments; reuses the memory of earlier plans of the object.
  void Build(const SelectArguments& arguments);
  // Between two phases, on one thread.
  void Begin(int phase);
  size_t n_tasks(int phase) const;
  void Run(int phase, size_t index) const;
  // Whether one thread is done with the phase before others are awake.
  bool IsShort(int phase) const;

 private:
  void MeasureMovement(int64_t kv_head) const;  // and stores the queries as the last ones
  void PickRows();
  void PickRows(int64_t first_head, int64_t n_heads, std::vector<int32_t>* order);
  void AddChoices();
  void JoinChoices();
  void StoreQueries(int64_t head) const;
  void CountStats();
  bool HasActiveRow(int64_t kv_head) const;

  SelectArguments arguments_{};
  const TileKernel* kernel_ = nullptr;
  int64_t n_stored_ = 0, n_valid_ = 0;              // rows with state; slots with keys
  mutable std::vector<float> moved_, away_, size_;  // [n_kv_heads, n_stored]
  std::vector<uint8_t> forced_;                     // [n_valid]
  std::vector<int32_t> chosen_;                     // active queries of all kv heads
  std::vector<ChoiceTask> choices_;
  std::vector<int64_t> choice_heads_;
  std::vector<uint8_t> picked_;  // [choices][n_valid]
};

}  // namespace dlm_edge
