// See select_pages.h. The pages that one query ranks first are chosen in choice_tiles.h.
#include "select_pages.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "simd.h"

namespace dlm_edge {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// With less to read, waking other threads takes longer than what they would do.
constexpr int64_t kFloatsWorthThreads = 1 << 17;

// Several sums, so that the additions do not wait for each other.
float SquaredDifference(const float* a, const float* b, int64_t count) {
  constexpr int kSums = 16;
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int64_t j = 0; j < kSums; ++j) sums[j] += (a[i + j] - b[i + j]) * (a[i + j] - b[i + j]);
  for (; i < count; ++i) sums[0] += (a[i] - b[i]) * (a[i] - b[i]);
  for (int n = kSums / 2; n > 0; n /= 2)
    for (int j = 0; j < n; ++j) sums[j] += sums[j + n];
  return sums[0];
}

float Squared(const float* a, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * a[i];
  return sum;
}

}  // namespace

void SelectPlan::Build(const SelectArguments& arguments) {
  arguments_ = arguments;
  kernel_ = ChosenKernel();
  const SelectArguments& a = arguments_;
  n_stored_ = std::min(a.q_len, a.n_rows);
  n_valid_ = CeilDiv(a.cache_len, a.page_size);
  choices_.clear();
  choice_heads_.clear();

  const bool reuse_rows = a.mode == kReuseRows || ChoosesRows(a.mode);  // selected rows are marked later
  const bool all_pages = a.mode != kSelect && !ReadsMasses(a.mode);  // chosen pages are marked later
  for (int64_t head = 0; head < a.n_kv_heads; ++head) {
    uint8_t *const active = a.active + head * a.q_len, *const pages = a.pages + head * a.n_slots;
    std::fill_n(active, n_stored_, uint8_t{!reuse_rows});
    std::fill(active + n_stored_, active + a.q_len, uint8_t{1});
    std::fill_n(pages, n_valid_, uint8_t{all_pages});
    std::fill(pages + n_valid_, pages + a.n_slots, uint8_t{0});
  }
  forced_.assign(n_valid_, 0);
  std::fill_n(forced_.begin(), std::min(a.sink, n_valid_), uint8_t{1});
  const int64_t edge = CeilDiv(a.start, a.page_size), last = std::min(edge, n_valid_);
  const int64_t first = std::clamp(edge - a.recent, int64_t{0}, last);
  std::fill(forced_.begin() + first, forced_.begin() + last, uint8_t{1});
  if (ChoosesRows(a.mode)) {
    const size_t n = static_cast<size_t>(a.n_kv_heads * n_stored_);
    moved_.resize(n);
    away_.resize(n);
    size_.resize(n);
  }
  if (ReadsMasses(a.mode)) AddChoices();
}

void SelectPlan::Begin(int phase) {
  const SelectArguments& a = arguments_;
  if (phase == kChoose && ChoosesRows(a.mode)) PickRows();
  if (phase == kChoose && a.mode == kSelect) AddChoices();
  if (phase != kStore) return;
  if (a.mode == kSelect || ReadsMasses(a.mode)) JoinChoices();
  for (int64_t head = 0; a.mode == kReuseRows && head < a.n_kv_heads; ++head)
    if (!HasActiveRow(head)) std::fill_n(a.pages + head * a.n_slots, a.n_slots, uint8_t{0});
  CountStats();
}

size_t SelectPlan::n_tasks(int phase) const {
  const SelectArguments& a = arguments_;
  if (phase == kMove) return ChoosesRows(a.mode) || ReadsMasses(a.mode) ? a.n_kv_heads : 0;
  if (phase == kChoose) return a.mode == kSelect ? choices_.size() : 0;
  return a.n_heads;
}

void SelectPlan::Run(int phase, size_t index) const {
  if (phase == kMove && ChoosesRows(arguments_.mode)) MeasureMovement(static_cast<int64_t>(index));
  // Which pages hold most does not depend on the rows.
  if (phase == kMove && ReadsMasses(arguments_.mode)) kernel_->choose(choices_[index]);
  if (phase == kChoose) kernel_->choose(choices_[index]);
  if (phase == kStore) StoreQueries(static_cast<int64_t>(index));
}

bool SelectPlan::IsShort(int phase) const {
  const SelectArguments& a = arguments_;
  const int64_t state = a.n_heads * std::max(a.q_len, a.n_rows) * a.head_dim;
  return phase != kChoose && state + (phase == kMove ? a.n_kv_heads * n_valid_ : 0) <= kFloatsWorthThreads;
}

void SelectPlan::MeasureMovement(int64_t kv_head) const {
  const SelectArguments& a = arguments_;
  const int64_t group = a.n_heads / a.n_kv_heads, dim = a.head_dim;
  const bool drifts = std::isfinite(a.drift), needs_stored = drifts || a.since_stored != 0;
  float *const moved = moved_.data() + kv_head * n_stored_, *const away = away_.data() + kv_head * n_stored_;
  float* const size = size_.data() + kv_head * n_stored_;
  for (float* sums : {moved, away, size}) std::fill_n(sums, n_stored_, 0.0f);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t i = 0; i < n_stored_; ++i) {
      const float* const q = a.q + (head * a.q_len + i) * dim;
      const int64_t state = (head * a.n_rows + i) * dim;
      if (a.since_stored == 0) moved[i] += SquaredDifference(q, a.q_last + state, dim);
      if (needs_stored) away[i] += SquaredDifference(q, a.q_stored + state, dim);
      if (drifts) size[i] += Squared(a.q_stored + state, dim);
      std::memcpy(a.new_q_last + state, q, dim * sizeof(float));  // while both are near
    }
  }
  if (a.since_stored != 0) std::copy_n(away, n_stored_, moved);
}

void SelectPlan::PickRows() {
  const SelectArguments& a = arguments_;
  std::vector<int32_t> order(n_stored_);
  if (a.per_head != 0) {
    for (int64_t head = 0; head < a.n_kv_heads; ++head) PickRows(head, 1, &order);
    return;
  }
  for (int64_t head = 1; head < a.n_kv_heads; ++head)
    for (int64_t i = 0; i < n_stored_; ++i) {
      moved_[i] += moved_[head * n_stored_ + i];
      away_[i] += away_[head * n_stored_ + i];
      size_[i] += size_[head * n_stored_ + i];
    }
  PickRows(0, a.n_kv_heads, &order);
}

// Marks the rows that kv heads [first_head, first_head + n_heads) share, from the sums of the first of them.
void SelectPlan::PickRows(int64_t first_head, int64_t n_heads, std::vector<int32_t>* order) {
  const SelectArguments& a = arguments_;
  const float* const moved = moved_.data() + first_head * n_stored_;
  const int64_t count = std::min(a.n_active, n_stored_);
  std::iota(order->begin(), order->end(), 0);
  // NaN comes last; the order of indices makes it a total one.
  auto before = [moved](int32_t x, int32_t y) {
    const bool x_nan = std::isnan(moved[x]), y_nan = std::isnan(moved[y]);
    if (x_nan || y_nan) return x_nan == y_nan ? x < y : y_nan;
    return moved[x] != moved[y] ? moved[x] > moved[y] : x < y;
  };
  std::partial_sort(order->begin(), order->begin() + count, order->end(), before);
  for (int64_t head = first_head; head < first_head + n_heads; ++head)
    for (int64_t i = 0; i < count; ++i) a.active[head * a.q_len + (*order)[i]] = 1;
  if (!std::isfinite(a.drift)) return;
  for (int64_t i = 0; i < n_stored_; ++i) {
    const int64_t at = first_head * n_stored_ + i;
    if (!(away_[at] > a.drift * size_[at])) continue;
    for (int64_t head = first_head; head < first_head + n_heads; ++head) a.active[head * a.q_len + i] = 1;
  }
}

void SelectPlan::AddChoices() {
  const SelectArguments& a = arguments_;
  const int64_t group = a.n_heads / a.n_kv_heads;
  const int64_t rows_per_task = kernel_->lanes * kernel_->max_row_vectors;
  chosen_.resize(a.n_kv_heads * a.q_len);
  for (int64_t head = 0; head < a.n_kv_heads; ++head) {
    ChoiceTask task{};
    const int64_t slots = head * a.n_slots;
    task.low = a.low + slots * a.head_dim;
    task.high = a.high + slots * a.head_dim;
    task.page_scale = a.page_scale + slots;
    task.forced = forced_.data();
    task.n_slots = a.n_slots;
    task.n_valid = n_valid_;
    task.n_pages = a.n_pages;
    int64_t n_rows = 1;
    int32_t* const chosen = chosen_.data() + head * a.q_len;
    if (ReadsMasses(a.mode)) {  // one list for all rows
      task.masses = a.masses + slots;
    } else {
      int64_t n_active = 0;
      for (int64_t i = 0; i < a.q_len; ++i)
        if (a.active[head * a.q_len + i] != 0) chosen[n_active++] = static_cast<int32_t>(i);
      n_rows = n_active * group;
    }
    const float* q = a.q + head * group * a.q_len * a.head_dim;
    for (int64_t row = 0; row < n_rows; row += rows_per_task) {
      task.rows = {q, chosen, group, a.q_len, a.head_dim, row, std::min(row + rows_per_task, n_rows)};
      choices_.push_back(task);
      choice_heads_.push_back(head);
    }
  }
  picked_.resize(choices_.size() * n_valid_);
  for (size_t i = 0; i < choices_.size(); ++i) choices_[i].picked = picked_.data() + i * n_valid_;
}

void SelectPlan::JoinChoices() {
  const SelectArguments& a = arguments_;
  auto add = [n = n_valid_](const uint8_t* more, uint8_t* pages) {
    for (int64_t slot = 0; slot < n; ++slot) pages[slot] |= more[slot];
  };
  for (int64_t head = 0; head < a.n_kv_heads; ++head)
    if (HasActiveRow(head)) add(forced_.data(), a.pages + head * a.n_slots);
  for (size_t i = 0; i < choices_.size(); ++i)
    if (HasActiveRow(choice_heads_[i])) add(choices_[i].picked, a.pages + choice_heads_[i] * a.n_slots);
  if (a.one_list == 0) return;
  for (int64_t head = 1; head < a.n_kv_heads; ++head) add(a.pages + head * a.n_slots, a.pages);
  for (int64_t head = 1; head < a.n_kv_heads; ++head) std::copy_n(a.pages, a.n_slots, a.pages + head * a.n_slots);
}

bool SelectPlan::HasActiveRow(int64_t kv_head) const {
  const uint8_t* const active = arguments_.active + kv_head * arguments_.q_len;
  return std::any_of(active, active + arguments_.q_len, [](uint8_t each) { return each != 0; });
}

// The new state of one query head.
void SelectPlan::StoreQueries(int64_t head) const {
  const SelectArguments& a = arguments_;
  const int64_t dim = a.head_dim, kv_head = head / (a.n_heads / a.n_kv_heads);
  const size_t row_bytes = dim * sizeof(float);
  for (int64_t i = 0; i < a.n_rows; ++i) {
    const int64_t state = (head * a.n_rows + i) * dim;
    const float* const q = a.q + (head * a.q_len + i) * dim;
    const bool is_fresh = i < n_stored_ && a.active[kv_head * a.q_len + i] != 0;
    const float* const last = i < n_stored_ ? q : a.q_last + state;
    const float* const stored = is_fresh ? q : a.q_stored + state;
    const bool has_last = i < n_stored_ && ChoosesRows(a.mode);  // MeasureMovement stored it
    if (!has_last && a.new_q_last + state != last) std::memcpy(a.new_q_last + state, last, row_bytes);
    if (a.new_q_stored + state != stored) std::memcpy(a.new_q_stored + state, stored, row_bytes);
  }
}

void SelectPlan::CountStats() {
  const SelectArguments& a = arguments_;
  auto count = [](const uint8_t* bits, int64_t n) {
    return static_cast<float>(std::accumulate(bits, bits + n, int64_t{0}));
  };
  a.stats[0] = count(a.active, a.n_kv_heads * a.q_len);
  a.stats[1] = count(a.pages, a.n_kv_heads * a.n_slots);
  a.stats[2] = static_cast<float>(a.n_kv_heads * n_valid_);
  a.stats[3] = a.mode == kSelect ? 1.0f : 0.0f;
}

}  // namespace dlm_edge
