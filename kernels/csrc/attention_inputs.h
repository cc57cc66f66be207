// What PrefixBlockAttention takes, on the CPU and on the CUDA provider: its tensors, and what their shapes say.
#pragma once

#include <array>

#include "operator.h"

namespace dlm_edge::attention_inputs {

enum Index {
  kQ,
  kK,
  kV,
  kKCache,
  kVCache,
  kStart,
  kCacheLen,
  kAttnBlock,
  kActive,
  kPages,
  kPolicy,
  kPrefixOut,
  kPrefixLse,
  kMasses,
  kKScale,
  kKLow,
  kKTail,
  kVScale,
  kVLow,
  kKLower,
  kVLower,
  kPlanes,
  kInputCount
};

// `real` is the type of queries, window and output.
constexpr std::array<Input, kInputCount> Table(ort::ElementType real) {
  return {{
      {"q", real, ort::kRequired, 4},
      {"k", real, ort::kRequired, 4},
      {"v", real, ort::kRequired, 4},
      {"k_cache", ort::kAnyType, ort::kRequired, 4},
      {"v_cache", ort::kAnyType, ort::kRequired, 4},
      {"start", ort::kInt64, ort::kRequired, 1},
      {"cache_len", ort::kInt64, ort::kRequired, 1},
      {"attn_block", ort::kInt64, ort::kRequired, 1},
      {"active", ort::kUint8, ort::kOptional, 2},
      {"pages", ort::kUint8, ort::kOptional, 2},
      {"policy", ort::kInt64, ort::kOptional, 1},
      {"prefix_out", ort::kFloat, ort::kOptional, 4},
      {"prefix_lse", ort::kFloat, ort::kOptional, 3},
      {"masses", ort::kFloat, ort::kOptional, 3},
      {"k_scale", ort::kFloat16, ort::kOptional, 4},
      {"k_low", ort::kFloat16, ort::kOptional, 4},
      {"k_tail", ort::kFloat, ort::kOptional, 4},
      {"v_scale", ort::kFloat16, ort::kOptional, 4},
      {"v_low", ort::kFloat16, ort::kOptional, 4},
      {"k_lower", ort::kUint8, ort::kOptional, 4},
      {"v_lower", ort::kUint8, ort::kOptional, 4},
      {"planes", ort::kInt64, ort::kOptional, 1},
  }};
}

// One call. Check fills in everything but the tensors.
struct Call {
  Tensor in[kInputCount];
  int64_t n_copies;  // fillings of the window, which the CUDA provider takes one of
  int64_t n_heads, n_kv_heads, q_len, head_dim, capacity;
  int64_t n_slots = 1, n_rows = 0;            // of the overloads with pages
  int64_t key_group = 1, value_group = 1;     // of a cache of codes
  int bits = 32;                              // of a cached value: 32, 16, 8 or 4

  bool is_sparse() const { return in[kActive].is_given; }
  bool has_planes() const { return in[kPlanes].is_given; }  // codes of 8 bits, `bits` of them in each of two caches
  bool has_codes() const { return bits < 16; }
  int64_t number(Index i) const { return *in[i].as<int64_t>(); }
  bool measure() const { return is_sparse() && number(kPolicy) == 4; }  // DENSE_KEEP

  // The first problem of shapes and numbers in words, or "". Nothing that may lie on a device is read: `active` is not.
  std::string Check(ort::ElementType real);

 private:
  std::string CheckOverload(ort::ElementType real) const;
  std::string CheckWindowAndCache();
  std::string CheckNumbers() const;
  std::string CheckState();
  std::string CheckScales();
  std::string CheckPlanes() const;
};

}  // namespace dlm_edge::attention_inputs
