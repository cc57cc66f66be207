// What the operators share between ONNX Runtime's table and the arithmetic: reading tensors, checking them with
// messages that name them, and running the tasks of a plan on the runtime's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <string>

#include "ort_abi.h"

#define DLM_EDGE_TRY(call) \
  if (ort::Status* status = (call)) return status

namespace dlm_edge {

constexpr int kOperatorVersion = 2;
constexpr int64_t kMaxStart = int64_t{1} << 62;  // keeps start + q_len from overflowing

constexpr int kAnyRank = -1;

struct Input {
  const char* name;
  ort::ElementType type;  // kAnyType: the operator checks it
  ort::Characteristic characteristic;
  int rank;  // kAnyRank: the operator checks it
};

// One operator. Inputs and outputs of later overloads are appended as kOptional: a model that does not have
// them simply passes fewer.
struct Operator {
  ort::CustomOp op;  // first, so that a CustomOp* is an Operator*
  const char* name;
  const Input* inputs;
  size_t n_inputs;
  const ort::ElementType* outputs;
  size_t n_outputs, n_required_outputs;
};

Operator AttentionOperator();
Operator SelectPagesOperator();
Operator DequantizeRowsOperator();
Operator PatternAttentionOperator();
Operator QuantizeRowsOperator();
Operator QLinearOperator();

// Fills in everything but the three functions that are the operator's own.
Operator MakeOperator(const char* name, const Input* inputs, size_t n_inputs, const ort::ElementType* outputs,
                      size_t n_outputs, size_t n_required_outputs);

struct Tensor {
  void* data = nullptr;
  bool is_given = false;  // false: an optional input that is not there
  int type = 0;
  size_t rank = 0;
  int64_t dims[4] = {};

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

std::string Shape(const Tensor& tensor);
ort::Status* Describe(ort::Api api, const ort::Value* value, Tensor* tensor);

// All inputs, each checked against the table for element type and rank; required ones for being there.
// The first problem, if any, is named in *problem.
ort::Status* ReadInputs(ort::Api api, const ort::KernelContext* context, const Input* table, size_t n_inputs,
                        Tensor* inputs, std::string* problem);

// The memory of an output of this shape.
ort::Status* MakeOutput(ort::Api api, ort::KernelContext* context, size_t index, std::initializer_list<int64_t> dims,
                        void** data);

// Every Check* returns the problem in words, or "".
std::string CheckShape(const Tensor& tensor, const char* name, const char* layout, std::initializer_list<int64_t> dims);
std::string CheckQuery(const Tensor& q);
std::string CheckOneCopy(const Tensor& q);  // for operators that take no more than one filling of the window
std::string CheckHeads(int64_t n_heads, int64_t n_kv_heads, const char* owner);
std::string CheckStart(int64_t start);
std::string CheckCapacity(int64_t cache_len, int64_t capacity);

// The policy of SelectPages, which PrefixBlockAttention receives too.
constexpr int kPolicyNumbers = 9;
std::string CheckPolicy(const int64_t* policy);

// What an attention operator keeps of its node. The attribute "scale" is 0 where it is absent: 1 / sqrt(head_dim) then.
struct ScaledKernel {
  ort::Api api;
  float scale;

  float ScaleOf(int64_t head_dim) const;
};
ort::Status* MakeScaledKernel(ort::Api api, const ort::KernelInfo* info, const char* name, void** kernel);

template <class Plan>
ort::Status* RunPhase(ort::Api api, ort::KernelContext* context, Plan* plan, int phase) {
  struct Call {
    Plan* plan;
    int phase;
  } call{plan, phase};
  const size_t n_tasks = plan->n_tasks(phase);
  if (n_tasks == 0) return nullptr;
  auto run = [](void* p, size_t i) { static_cast<Call*>(p)->plan->Run(static_cast<Call*>(p)->phase, i); };
  return ort::KernelContext_ParallelFor::call(api, context, static_cast<void (*)(void*, size_t)>(run), n_tasks,
                                              size_t{0}, static_cast<void*>(&call));
}

// Makes a status of the first non-empty problem of an operator.
inline ort::Status* Refuse(ort::Api api, const char* name, const std::string& problem) {
  return ort::CreateStatus::call(api, ort::kInvalidArgument, (std::string(name) + ": " + problem).c_str());
}

inline ort::Status* OutOfMemory(ort::Api api, const char* name) {
  return ort::CreateStatus::call(api, ort::kFail, (std::string(name) + ": out of memory").c_str());
}

// A call of an operator: its inputs are read into Call::in and checked, then `work` makes the outputs. `check` names the
// first problem, or gives an empty text.
template <class Call, class Check, class Work>
ort::Status* Answer(ort::Api api, const ort::KernelContext* context, const char* name, const Input* table,
                    size_t n_inputs, Check check, Work work) {
  try {
    Call call{};
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, table, n_inputs, call.in, &problem));
    if (problem.empty()) problem = check(call);
    return problem.empty() ? work(call) : Refuse(api, name, problem);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, name);
  }
}

}  // namespace dlm_edge
