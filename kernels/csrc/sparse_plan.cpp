// How a sparse attention call is cut into tasks. See sparse_attention.h; what the tasks give is put together in
// sparse_merge.cpp.
#include <algorithm>
#include <cstring>

#include "simd.h"
#include "sparse_attention.h"

namespace dlm_edge {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
// As in attention.cpp; but key ranges are split before rows are: a page should be read, and dequantized, once.
constexpr int64_t kWantedTasks = 16;
constexpr int64_t kMaxTilesPerTask = 4;
constexpr int64_t kMinKeysPerSplit = 128;
constexpr int64_t kPagesPerMassTask = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

RowChunks ChunksOf(int64_t n_rows, const TileKernel& kernel) {
  const int64_t n_vectors = CeilDiv(n_rows, kernel.lanes);
  return {n_rows, n_vectors, CeilDiv(n_vectors, kernel.max_row_vectors * kMaxTilesPerTask), kernel.lanes};
}

}  // namespace

void SparsePlan::Build(const SparseArguments& arguments) {
  arguments_ = arguments;
  kernel_ = ChosenKernel();
  tasks_.clear();
  task_ranges_.clear();
  task_heads_.clear();
  ranges_.clear();
  mass_tasks_.clear();
  mass_ranges_.clear();
  mass_heads_.clear();
  page_ranges_.clear();
  page_of_range_.clear();
  const SparseArguments& a = arguments_;
  ChooseRowsAndKeys();
  for (int64_t head = 0; head < a.n_kv_heads; ++head) {
    AddPrefixTasks(head);
    AddWindowTasks(head);
    task_heads_.resize(tasks_.size(), head);
  }
  CountTasks();
  for (int64_t head = 0; a.measure && head < a.n_kv_heads; ++head) AddMassTasks(head);
  GiveMemory();

  const size_t n_masses = static_cast<size_t>(a.n_kv_heads * a.n_slots);
  if (a.measure) std::fill_n(a.new_masses, n_masses, 0.0f);
  if (!a.measure && a.masses != a.new_masses && n_masses > 0)
    std::memcpy(a.new_masses, a.masses, n_masses * sizeof(float));
}

void SparsePlan::ChooseRowsAndKeys() {
  const SparseArguments& a = arguments_;
  const int64_t page_size = a.capacity > 0 ? a.capacity / a.n_slots : 0, group = a.n_heads / a.n_kv_heads;
  heads_.resize(a.n_kv_heads);
  rows_.resize(2 * a.n_kv_heads * a.q_len);
  for (int64_t kv_head = 0; kv_head < a.n_kv_heads; ++kv_head) {
    Head& head = heads_[kv_head];
    int32_t* const chosen = rows_.data() + 2 * kv_head * a.q_len;
    int32_t* const rank = chosen + a.q_len;
    head.chosen = chosen;
    head.rank = rank;
    head.n_active = 0;
    for (int64_t i = 0; i < a.q_len; ++i) {
      const bool is_active = a.active[kv_head * a.q_len + i] != 0;
      rank[i] = is_active ? static_cast<int32_t>(head.n_active) : -1;
      if (is_active) chosen[head.n_active++] = static_cast<int32_t>(i);
    }
    head.prefix_rows = ChunksOf(head.n_active * group, *kernel_);
    head.window_rows = ChunksOf(a.q_len * group, *kernel_);
    head.ranges.clear();
    const uint8_t* const pages = a.pages + kv_head * a.n_slots;
    const int64_t n_used = page_size > 0 ? CeilDiv(a.cache_len, page_size) : 0;
    for (int64_t first = 0, last; first < n_used; first = last) {
      for (last = first + 1; last < n_used && (pages[last] != 0) == (pages[first] != 0);) ++last;
      if (pages[first] != 0)
        AppendOutsideWindow(kv_head, first * page_size, std::min(last * page_size, a.cache_len), &head.ranges);
    }
    if (head.n_active == 0) head.ranges.clear();
    head.n_keys = 0;
    for (const KeyRange& range : head.ranges) head.n_keys += range.count;
  }
}

KeyRange SparsePlan::RangeOf(int64_t kv_head, int64_t begin, int64_t end) const {
  const SparseArguments& a = arguments_;
  if (a.cache_type != kFloatCache) return {nullptr, nullptr, begin, end - begin};
  const int64_t offset = (kv_head * a.capacity + begin) * a.head_dim;
  return {static_cast<const float*>(a.k_cache) + offset, static_cast<const float*>(a.v_cache) + offset, begin,
          end - begin};
}

void SparsePlan::AppendOutsideWindow(int64_t kv_head, int64_t begin, int64_t end, std::vector<KeyRange>* ranges) const {
  const int64_t before_end = std::min(end, arguments_.start);
  const int64_t after_begin = std::max(begin, arguments_.start + arguments_.q_len);
  if (begin < before_end) ranges->push_back(RangeOf(kv_head, begin, before_end));
  if (after_begin < end) ranges->push_back(RangeOf(kv_head, after_begin, end));
}

QueryRows SparsePlan::RowsOf(int64_t kv_head) const {
  const SparseArguments& a = arguments_;
  const int64_t group = a.n_heads / a.n_kv_heads;
  return {a.q + kv_head * group * a.q_len * a.head_dim, nullptr, group, a.q_len, a.head_dim, 0, 0};
}

void SparsePlan::AddPrefixTasks(int64_t kv_head) {
  Head& head = heads_[kv_head];
  head.first_prefix_task = tasks_.size();
  head.n_splits = 0;
  if (head.n_keys == 0) return;
  int64_t total = 0;
  for (const Head& each : heads_) total += each.prefix_rows.n_vectors * each.n_keys;
  const int64_t share = head.prefix_rows.n_vectors * head.n_keys * kWantedTasks;
  const int64_t wanted = CeilDiv(CeilDiv(share, total), head.prefix_rows.n_chunks);
  head.n_splits = std::clamp(head.n_keys / kMinKeysPerSplit, int64_t{1}, wanted);

  RowTask task{};
  task.rows = RowsOf(kv_head);
  task.rows.chosen = head.chosen;
  task.scale_log2 = arguments_.scale * kLog2E;
  for (int64_t split = 0; split < head.n_splits; ++split) {
    const size_t first_range = ranges_.size();
    int64_t skip = head.n_keys * split / head.n_splits;
    int64_t take = head.n_keys * (split + 1) / head.n_splits - skip;
    for (const KeyRange& range : head.ranges) {
      const int64_t from = std::min(skip, range.count), count = std::min(take, range.count - from);
      skip -= from;
      take -= count;
      if (count > 0) ranges_.push_back(RangeOf(kv_head, range.position + from, range.position + from + count));
    }
    task.n_ranges = static_cast<int64_t>(ranges_.size() - first_range);
    for (int64_t chunk = 0; chunk < head.prefix_rows.n_chunks; ++chunk) {
      task.rows.row_begin = head.prefix_rows.Begin(chunk);
      task.rows.row_end = head.prefix_rows.End(chunk);
      tasks_.push_back(task);
      task_ranges_.push_back(first_range);
    }
  }
}

void SparsePlan::AddWindowTasks(int64_t kv_head) {
  const SparseArguments& a = arguments_;
  Head& head = heads_[kv_head];
  head.first_window_task = tasks_.size();
  const int64_t offset = kv_head * a.q_len * a.head_dim;
  RowTask task{};
  task.rows = RowsOf(kv_head);
  task.start = a.start;
  task.attn_block = a.attn_block;
  task.scale_log2 = a.scale * kLog2E;
  task.n_ranges = 1;
  for (int64_t chunk = 0; chunk < head.window_rows.n_chunks; ++chunk) {
    task.rows.row_begin = head.window_rows.Begin(chunk);
    task.rows.row_end = head.window_rows.End(chunk);
    const int64_t last_query = (task.rows.row_end - 1) / task.rows.group;
    const int64_t n_keys = std::min(VisibleEnd(a.start + last_query, a.attn_block) - a.start, a.q_len);
    tasks_.push_back(task);
    task_ranges_.push_back(ranges_.size());
    ranges_.push_back({a.k + offset, a.v + offset, a.start, n_keys});
  }
}

void SparsePlan::AddMassTasks(int64_t kv_head) {
  const SparseArguments& a = arguments_;
  const Head& head = heads_[kv_head];
  if (head.n_keys == 0) return;
  MassTask task{};
  task.rows = RowsOf(kv_head);
  task.rows.chosen = head.chosen;
  task.rows.row_end = head.prefix_rows.n_rows;
  task.scale_log2 = a.scale * kLog2E;
  task.masses = a.new_masses + kv_head * a.n_slots;
  const int64_t page_size = a.capacity / a.n_slots;
  for (int64_t begin = 0; begin < a.n_slots; begin += kPagesPerMassTask) {
    const size_t first_range = page_ranges_.size();
    for (int64_t slot = begin; slot < std::min(begin + kPagesPerMassTask, a.n_slots); ++slot) {
      const int64_t end = std::min((slot + 1) * page_size, a.cache_len);
      if (a.pages[kv_head * a.n_slots + slot] == 0 || slot * page_size >= end) continue;
      AppendOutsideWindow(kv_head, slot * page_size, end, &page_ranges_);
      page_of_range_.resize(page_ranges_.size(), slot);
    }
    task.n_ranges = static_cast<int64_t>(page_ranges_.size() - first_range);
    if (task.n_ranges == 0) continue;
    mass_tasks_.push_back(task);
    mass_ranges_.push_back(first_range);
    mass_heads_.push_back(kv_head);
  }
}

void SparsePlan::CountTasks() {
  const int64_t n_heads = arguments_.n_kv_heads;
  if (n_left_heads_ < n_heads) {
    n_left_.reset(new std::atomic<size_t>[n_heads]);
    n_left_heads_ = n_heads;
  }
  for (int64_t head = 0; head < n_heads; ++head) n_left_[head] = 0;
  for (const int64_t head : task_heads_) n_left_[head].fetch_add(1, std::memory_order_relaxed);
}

void SparsePlan::GiveMemory() {
  const SparseArguments& a = arguments_;
  size_t floats = heads_.size() * a.head_dim;
  for (const RowTask& task : tasks_) floats += (task.rows.row_end - task.rows.row_begin) * (a.head_dim + 2);
  for (const Head& head : heads_) floats += head.prefix_rows.n_rows;
  if (memory_.size() < floats) memory_.resize(floats);

  caches_.resize(a.n_kv_heads);
  for (int64_t head = 0; head < a.n_kv_heads && a.cache_type != kFloatCache; ++head) caches_[head] = CacheOf(head);
  float* next = memory_.data();
  for (size_t i = 0; i < tasks_.size(); ++i) {
    RowTask& task = tasks_[i];
    task.partial = next;
    task.ranges = ranges_.data() + task_ranges_[i];
    next += (task.rows.row_end - task.rows.row_begin) * (a.head_dim + 2);
  }
  for (int64_t kv_head = 0; kv_head < a.n_kv_heads; ++kv_head) {
    Head& head = heads_[kv_head];
    head.row_lse = next;
    head.row = next + head.prefix_rows.n_rows;
    next = head.row + a.head_dim;
    const size_t n_prefix_tasks = head.n_splits * head.prefix_rows.n_chunks;
    for (size_t i = 0; i < n_prefix_tasks && a.cache_type != kFloatCache; ++i)
      tasks_[head.first_prefix_task + i].cache = &caches_[kv_head];
  }
  for (size_t i = 0; i < mass_tasks_.size(); ++i) {
    MassTask& task = mass_tasks_[i];
    task.row_lse = heads_[mass_heads_[i]].row_lse;
    task.ranges = page_ranges_.data() + mass_ranges_[i];
    task.pages = page_of_range_.data() + mass_ranges_[i];
    task.cache = a.cache_type != kFloatCache ? &caches_[mass_heads_[i]] : nullptr;
  }
}

KeyCache SparsePlan::CacheOf(int64_t kv_head) const {
  const SparseArguments& a = arguments_;
  const int64_t row_bytes = a.cache_type == kHalfCache   ? 2 * a.head_dim
                            : a.cache_type == kByteCache ? a.head_dim
                                                         : a.head_dim / 2;
  const int64_t offset = kv_head * a.capacity * row_bytes;
  KeyCache cache{};
  cache.type = a.cache_type;
  cache.k = static_cast<const char*>(a.k_cache) + offset;
  cache.v = static_cast<const char*>(a.v_cache) + offset;
  if (a.cache_type == kHalfCache) return cache;
  if (a.cache_type == kPlanesCache) {
    cache.k_lower = static_cast<const char*>(a.k_lower) + offset;
    cache.v_lower = static_cast<const char*>(a.v_lower) + offset;
  }
  cache.is_upper = a.is_upper;
  const int64_t k_scales = a.capacity / a.k_group * a.head_dim, v_scales = a.capacity * (a.head_dim / a.v_group);
  cache.k_scale = a.k_scale + kv_head * k_scales;
  cache.k_low = a.k_low + kv_head * k_scales;
  cache.v_scale = a.v_scale + kv_head * v_scales;
  cache.v_low = a.v_low + kv_head * v_scales;
  cache.k_tail = a.k_tail + kv_head * a.k_group * a.head_dim;
  cache.k_group = a.k_group;
  cache.v_group = a.v_group;
  cache.tail_begin = a.cache_len / a.k_group * a.k_group;
  return cache;
}

}  // namespace dlm_edge
