// SelectPages as an operator: reads and checks tensors, then runs select_pages.h.
#include "select_pages.h"

#include "select_inputs.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "SelectPages";

using namespace select_inputs;

struct SelectKernel {
  ort::Api api;
};

SelectArguments ArgumentsOf(const Call& call) {
  const Tensor(&in)[kInputCount] = call.in;
  SelectArguments a{};
  a.n_heads = call.n_heads;
  a.n_kv_heads = call.n_kv_heads;
  a.q_len = call.q_len;
  a.head_dim = call.head_dim;
  a.n_slots = call.n_slots;
  a.n_rows = call.n_rows;
  a.start = call.number(kStart);
  a.cache_len = call.number(kCacheLen);
  int64_t* const numbers[kPolicyNumbers] = {&a.mode,     &a.n_pages,      &a.n_active, &a.sink,     &a.recent,
                                            &a.per_head, &a.since_stored, &a.one_list, &a.page_size};
  for (int i = 0; i < kPolicyNumbers; ++i) *numbers[i] = call.policy[i];
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

ort::Status* RunSelection(ort::Api api, ort::KernelContext* context, const Call& call) {
  void* outputs[5] = {};
  DLM_EDGE_TRY(MakeOutputs(api, context, call, outputs));
  SelectArguments a = ArgumentsOf(call);
  a.active = static_cast<uint8_t*>(outputs[0]);
  a.pages = static_cast<uint8_t*>(outputs[1]);
  a.new_q_last = static_cast<float*>(outputs[2]);
  a.new_q_stored = static_cast<float*>(outputs[3]);
  a.stats = static_cast<float*>(outputs[4]);

  static thread_local SelectPlan plan;
  plan.Build(a);
  for (int phase = 0; phase < SelectPlan::kPhases; ++phase) {
    plan.Begin(phase);
    if (!plan.IsShort(phase)) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
    for (size_t i = 0; plan.IsShort(phase) && i < plan.n_tasks(phase); ++i) plan.Run(phase, i);
  }
  return nullptr;
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const ort::Api api = static_cast<const SelectKernel*>(opaque)->api;
  return Answer<Call>(
      api, context, kName, kInputs, kInputCount, [](Call& call) { return call.Check(); },
      [&](const Call& call) { return RunSelection(api, context, call); });
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
