// SelectPages as an operator: reads and checks tensors, then runs select_pages.h.
#include "select_pages.h"

#include "operator.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "SelectPages";

enum InputIndex {
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

constexpr Input kInputs[kInputCount] = {
    {"q", ort::kFloat, ort::kRequired, 4},         {"low", ort::kInt8, ort::kRequired, 4},
    {"high", ort::kInt8, ort::kRequired, 4},       {"page_scale", ort::kFloat, ort::kRequired, 3},
    {"q_last", ort::kFloat, ort::kRequired, 4},    {"q_stored", ort::kFloat, ort::kRequired, 4},
    {"masses", ort::kFloat, ort::kRequired, 3},    {"start", ort::kInt64, ort::kRequired, 1},
    {"cache_len", ort::kInt64, ort::kRequired, 1}, {"policy", ort::kInt64, ort::kRequired, 1},
    {"drift", ort::kFloat, ort::kRequired, 1},
};
constexpr ort::ElementType kOutputs[] = {ort::kUint8, ort::kUint8, ort::kFloat, ort::kFloat, ort::kFloat};

struct SelectKernel {
  ort::Api api;
};

std::string CheckShapes(const Tensor (&in)[kInputCount]) {
  const int64_t n_kv_heads = in[kLow].dims[1], n_slots = in[kLow].dims[2], n_rows = in[kQLast].dims[2];
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], n_kv_heads, "low");
  for (int i : {kLow, kHigh})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_kv_heads, n_slots, head_dim]",
                           {1, n_kv_heads, n_slots, in[kQ].dims[3]});
  for (int i : {kPageScale, kMasses})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_kv_heads, n_slots]", {1, n_kv_heads, n_slots});
  for (int i : {kQLast, kQStored})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_heads, n_rows, head_dim]",
                           {1, in[kQ].dims[1], n_rows, in[kQ].dims[3]});
  for (int i : {kStart, kCacheLen, kDrift})
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, "", {1});
  if (problem.empty()) problem = CheckShape(in[kPolicy], "policy", "", {kPolicyNumbers});
  if (problem.empty() && n_slots > INT32_MAX) problem = "low has " + std::to_string(n_slots) + " slots: too many";
  return problem;
}

std::string CheckNumbers(const SelectArguments& a) {
  const std::string problem = CheckStart(a.start);
  if (!problem.empty()) return problem;
  const int64_t n_valid = a.cache_len / a.page_size + (a.cache_len % a.page_size != 0);
  if (a.cache_len < 0 || n_valid > a.n_slots)
    return "cache_len is " + std::to_string(a.cache_len) + ", expected at most " + std::to_string(a.n_slots) +
           " pages of " + std::to_string(a.page_size) + " positions";
  return "";
}

SelectArguments ArgumentsOf(const Tensor (&in)[kInputCount]) {
  SelectArguments a{};
  a.n_heads = in[kQ].dims[1];
  a.n_kv_heads = in[kLow].dims[1];
  a.q_len = in[kQ].dims[2];
  a.head_dim = in[kQ].dims[3];
  a.n_slots = in[kLow].dims[2];
  a.n_rows = in[kQLast].dims[2];
  a.start = *in[kStart].as<int64_t>();
  a.cache_len = *in[kCacheLen].as<int64_t>();
  int64_t* const numbers[kPolicyNumbers] = {&a.mode,     &a.n_pages,      &a.n_active, &a.sink,     &a.recent,
                                            &a.per_head, &a.since_stored, &a.one_list, &a.page_size};
  for (int i = 0; i < kPolicyNumbers; ++i) *numbers[i] = in[kPolicy].as<int64_t>()[i];
  a.drift = *in[kDrift].as<float>();
  a.q = in[kQ].as<float>();
  a.low = in[kLow].as<int8_t>();
  a.high = in[kHigh].as<int8_t>();
  a.page_scale = in[kPageScale].as<float>();
  a.q_last = in[kQLast].as<float>();
  a.q_stored = in[kQStored].as<float>();
  a.masses = in[kMasses].as<float>();
  return a;
}

ort::Status* RunSelection(ort::Api api, ort::KernelContext* context, SelectArguments a) {
  void* outputs[5] = {};
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {a.n_kv_heads, a.q_len}, &outputs[0]));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {a.n_kv_heads, a.n_slots}, &outputs[1]));
  DLM_EDGE_TRY(MakeOutput(api, context, 2, {1, a.n_heads, a.n_rows, a.head_dim}, &outputs[2]));
  DLM_EDGE_TRY(MakeOutput(api, context, 3, {1, a.n_heads, a.n_rows, a.head_dim}, &outputs[3]));
  DLM_EDGE_TRY(MakeOutput(api, context, 4, {4}, &outputs[4]));
  a.active = static_cast<uint8_t*>(outputs[0]);
  a.pages = static_cast<uint8_t*>(outputs[1]);
  a.new_q_last = static_cast<float*>(outputs[2]);
  a.new_q_stored = static_cast<float*>(outputs[3]);
  a.stats = static_cast<float*>(outputs[4]);

  static thread_local SelectPlan plan;
  plan.Build(a);
  for (int phase = 0; phase < SelectPlan::kPhases; ++phase) {
    plan.Begin(phase);
    DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  }
  return nullptr;
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const ort::Api api = static_cast<const SelectKernel*>(opaque)->api;
  try {
    Tensor in[kInputCount];
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, in, &problem));
    if (problem.empty()) problem = CheckShapes(in);
    if (problem.empty()) problem = CheckPolicy(in[kPolicy].as<int64_t>());
    if (!problem.empty()) return Refuse(api, kName, problem);
    const SelectArguments a = ArgumentsOf(in);
    problem = CheckNumbers(a);
    return problem.empty() ? RunSelection(api, context, a) : Refuse(api, kName, problem);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
}

}  // namespace

Operator SelectPagesOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 5, 5);
  made.op.CreateKernelV2 = [](const ort::CustomOp*, ort::Api api, const ort::KernelInfo*, void** kernel) {
    *kernel = new (std::nothrow) SelectKernel{api};
    return *kernel ? static_cast<ort::Status*>(nullptr) : OutOfMemory(api, kName);
  };
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<SelectKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
