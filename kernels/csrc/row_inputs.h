// What DequantizeRows takes, on the CPU and on the CUDA provider; RematerialiseRows takes a weight after it.
#pragma once

#include "operator.h"

namespace dlm_edge::row_inputs {

enum Index { kCodes, kScale, kLow, kTail, kRows, kCacheLen, kWeight, kInputCount = kWeight };

constexpr Input kInputs[kWeight + 1] = {
    {"codes", ort::kUint8, ort::kRequired, 2}, {"scale", ort::kFloat16, ort::kRequired, 2},
    {"low", ort::kFloat16, ort::kRequired, 2}, {"tail", ort::kFloat, ort::kRequired, 2},
    {"rows", ort::kInt64, ort::kRequired, 1},  {"cache_len", ort::kInt64, ort::kRequired, 1},
    {"weight", ort::kFloat16, ort::kRequired, 2},
};

// The attributes: how a row is stored.
struct RowKernel {
  ort::Api api;
  int bits;
  bool by_channel;
};
ort::Status* MakeRowKernel(ort::Api api, const ort::KernelInfo* info, const char* name, void** kernel);

// One call. Check fills in everything but the tensors.
struct Call {
  Tensor in[kWeight + 1];
  int64_t capacity, width, n_rows, n_tail, cache_len;
  int64_t group;  // of columns or, by channel, of rows

  // The first problem of shapes and of cache_len in words, or "". `rows`, which may lie on a device, are not read.
  std::string Check(const RowKernel& kernel);
};

}  // namespace dlm_edge::row_inputs
