// SelectPages on the CUDA provider: checks shapes, then makes the launches of kernels/triton/launch.py.
// Queries are float, as on the CPU; their scores are computed from them as float16, which they were in a float16 model.
#include <algorithm>

#include "cuda_operators.h"
#include "select_inputs.h"

namespace dlm_edge::cuda {
namespace {

using namespace select_inputs;

constexpr const char* kName = "SelectPages";
constexpr uint64_t kHostInputs = 1 << kStart | 1 << kCacheLen | 1 << kPolicy | 1 << kDrift;
constexpr int64_t kSelect = 1, kReusePages = 3, kSelectRows = 5;  // modes

struct SelectKernel {
  ort::Api api;
};

struct Results {
  void *active, *pages, *q_last, *q_stored, *stats;
};

// What the kernels cannot do that the CPU can.
std::string CheckLimits(const Call& call) {
  if (const std::string problem = CheckOneCopy(call.in[kQ]); !problem.empty()) return problem;
  if (call.number(kStart) > kLargestPosition)
    return "start is " + std::to_string(call.number(kStart)) + ", expected a position from 0 to 2**30";
  if (StateBlock(std::min(call.q_len, call.n_rows)) == 0)
    return "q_last has shape " + Shape(call.in[kQLast]) + "; the CUDA kernels take at most 1024 rows of state";
  const int64_t mode = call.policy[kMode];
  if ((mode == kSelect || mode == kReusePages || mode == kSelectRows) && SlotBlock(call.n_valid) == 0)
    return std::to_string(call.n_valid) +
           " pages hold keys; the CUDA kernels choose from at most 16384: use larger pages";
  return CheckHeadDim(call.in[kQ]);
}

std::string ChoosePages(const Call& call, const Results& made, const void* scores, int64_t n_rows, Device* device) {
  const int64_t* const p = call.policy;
  const int64_t edge = CeilDiv(call.number(kStart), p[kPageSize]);
  return device->Launch("choose_pages-b" + std::to_string(SlotBlock(call.n_valid)), call.n_kv_heads, n_rows, 1,
                        Arguments()
                            .Pointers(scores, made.active, made.pages)
                            .Numbers(call.q_len, call.n_heads / call.n_kv_heads, call.n_slots, call.n_valid,
                                     p[kNPages], edge, p[kSink], p[kRecent], p[kOneList]));
}

std::string Run(const Call& call, const Results& made, Device* device) {
  const Tensor(&in)[kInputCount] = call.in;
  const int64_t* const p = call.policy;
  const int64_t group = call.n_heads / call.n_kv_heads, n_rows = std::min(call.q_len, call.n_rows);
  const int64_t block_d = HeadBlock(call.head_dim), score_rows = call.q_len * group;
  const std::string d = "-d" + std::to_string(block_d);
  const bool selects = p[kMode] == kSelect;
  char *movement = nullptr, *scores = nullptr;
  Parts parts;
  parts.Ask(&movement, 12 * call.n_kv_heads * std::max<int64_t>(n_rows, 1));
  parts.Ask(&scores, selects ? 4 * call.n_kv_heads * score_rows * call.n_slots : 0);
  std::string problem = device->Reserve(parts);
  if (problem.empty() && (selects || p[kMode] == kSelectRows) && n_rows > 0)
    problem = device->Launch("row_movement" + d, call.n_kv_heads, n_rows, 1,
                             Arguments()
                                 .Pointers(in[kQ].data, in[kQLast].data, in[kQStored].data, movement)
                                 .Numbers(call.q_len, call.n_rows, n_rows, group, call.head_dim));
  if (problem.empty())
    problem = device->Launch("choose_rows-r" + std::to_string(StateBlock(n_rows)) + "-b1024", call.n_kv_heads, 1, 1,
                             Arguments()
                                 .Pointers(movement, made.active, made.pages)
                                 .Numbers(call.q_len, n_rows, call.n_slots, call.n_valid, p[kMode], p[kNActive],
                                          p[kPerHead], p[kSinceStored])
                                 .Float(*in[kDrift].as<float>()));
  if (problem.empty() && selects && call.n_valid > 0) {
    const int64_t block_m = RowBlock(score_rows), block_n = KeyBlock(block_d, 16);
    problem = device->Launch(Named("page_scores", "", block_m, block_n, block_d), call.n_kv_heads,
                             CeilDiv(score_rows, block_m), CeilDiv(call.n_valid, block_n),
                             Arguments()
                                 .Pointers(in[kQ].data, in[kLow].data, in[kHigh].data, in[kPageScale].data, made.active,
                                           scores)
                                 .Numbers(call.q_len, group, call.head_dim, call.n_slots, call.n_valid));
    if (problem.empty()) problem = ChoosePages(call, made, scores, score_rows, device);
  } else if (problem.empty() && (p[kMode] == kReusePages || p[kMode] == kSelectRows) && call.n_valid > 0) {
    problem = ChoosePages(call, made, in[kMasses].data, 1, device);
  }
  const size_t queries = 4 * static_cast<size_t>(call.n_heads * call.n_rows * call.head_dim);
  if (problem.empty()) problem = device->CopyIfApart(made.q_last, in[kQLast].data, queries);
  if (problem.empty()) problem = device->CopyIfApart(made.q_stored, in[kQStored].data, queries);
  if (problem.empty())
    problem = device->Launch("keep_queries" + d + "-b1024", call.n_heads, n_rows + 1, 1,
                             Arguments()
                                 .Pointers(in[kQ].data, made.active, made.pages, made.q_last, made.q_stored, made.stats)
                                 .Numbers(call.q_len, call.n_rows, n_rows, group, call.head_dim, call.n_kv_heads,
                                          call.n_slots, call.n_valid, selects));
  return problem;
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const ort::Api api = static_cast<const SelectKernel*>(opaque)->api;
  const auto check = [](Call& call) {
    const std::string problem = call.Check();
    return problem.empty() ? CheckLimits(call) : problem;
  };
  return Answer<Call>(api, context, kName, kInputs, kInputCount, check, [&](const Call& call) -> ort::Status* {
    void* outputs[5] = {};
    DLM_EDGE_TRY(MakeOutputs(api, context, call, outputs));
    const Results made{outputs[0], outputs[1], outputs[2], outputs[3], outputs[4]};
    return OnDevice(api, context, kName, [&](Device* device) { return Run(call, made, device); });
  });
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo*, void** kernel) {
  *kernel = new (std::nothrow) SelectKernel{api};
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

}  // namespace

Operator SelectPagesOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 5, 5);
  PlaceOnCuda<kHostInputs>(&made.op);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<SelectKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge::cuda
