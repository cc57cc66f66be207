// What SelectPages takes, on the CPU and on the CUDA provider, which reads the same types. Of several copies of the
// window it reads the queries of the first one; the CUDA provider takes one.
#pragma once

#include "operator.h"

namespace dlm_edge::select_inputs {

enum Index {
  kQ,
  kLow,
  kHigh,
  kPageScale,
  kQLast,
  kQStored,
  kMasses,
  kStart,
  kCacheLen,
  kPolicy,
  kDrift,
  kInputCount
};
enum PolicyNumber { kMode, kNPages, kNActive, kSink, kRecent, kPerHead, kSinceStored, kOneList, kPageSize };

constexpr Input kInputs[kInputCount] = {
    {"q", ort::kFloat, ort::kRequired, 4},         {"low", ort::kInt8, ort::kRequired, 4},
    {"high", ort::kInt8, ort::kRequired, 4},       {"page_scale", ort::kFloat, ort::kRequired, 3},
    {"q_last", ort::kFloat, ort::kRequired, 4},    {"q_stored", ort::kFloat, ort::kRequired, 4},
    {"masses", ort::kFloat, ort::kRequired, 3},    {"start", ort::kInt64, ort::kRequired, 1},
    {"cache_len", ort::kInt64, ort::kRequired, 1}, {"policy", ort::kInt64, ort::kRequired, 1},
    {"drift", ort::kFloat, ort::kRequired, 1},
};
constexpr ort::ElementType kOutputs[] = {ort::kUint8, ort::kUint8, ort::kFloat, ort::kFloat, ort::kFloat};

// One call. Check fills in everything but the tensors.
struct Call {
  Tensor in[kInputCount];
  int64_t n_heads, n_kv_heads, q_len, head_dim, n_slots, n_rows;  // n_rows: of state
  int64_t n_valid;                                                // slots that hold keys
  const int64_t* policy;

  int64_t number(Index i) const { return *in[i].as<int64_t>(); }

  // The first problem of shapes and numbers in words, or "".
  std::string Check();
};

// Memory of the outputs, in their order.
ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, const Call& call, void* (&made)[5]);

}  // namespace dlm_edge::select_inputs
