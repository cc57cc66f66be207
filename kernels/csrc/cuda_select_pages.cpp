// SelectPages on the CUDA provider: checks shapes, then makes the launches of kernels/triton/launch.py.
// Queries are float, as on the CPU; their scores are computed from them as float16, which they were in a float16 model.
#include <algorithm>

#include "cuda_launch.h"
#include "cuda_operators.h"

namespace dlm_edge::cuda {
namespace {

constexpr const char* kName = "SelectPages";

enum InputIndex {
  kQ, kLow, kHigh, kPageScale, kQLast, kQStored, kMasses, kStart, kCacheLen, kPolicy, kDrift, kInputCount
};
constexpr uint64_t kHostInputs = 1 << kStart | 1 << kCacheLen | 1 << kPolicy | 1 << kDrift;
enum PolicyNumber { kMode, kNPages, kNActive, kSink, kRecent, kPerHead, kSinceStored, kOneList, kPageSize };
constexpr int64_t kSelect = 1, kReusePages = 3, kSelectRows = 5;  // modes

constexpr Input kInputs[kInputCount] = {
    {"q", ort::kFloat, ort::kRequired, 4},       {"low", ort::kInt8, ort::kRequired, 4},
    {"high", ort::kInt8, ort::kRequired, 4},       {"page_scale", ort::kFloat, ort::kRequired, 3},
    {"q_last", ort::kFloat, ort::kRequired, 4},  {"q_stored", ort::kFloat, ort::kRequired, 4},
    {"masses", ort::kFloat, ort::kRequired, 3},    {"start", ort::kInt64, ort::kRequired, 1},
    {"cache_len", ort::kInt64, ort::kRequired, 1}, {"policy", ort::kInt64, ort::kRequired, 1},
    {"drift", ort::kFloat, ort::kRequired, 1},
};
constexpr ort::ElementType kOutputs[] = {ort::kUint8, ort::kUint8, ort::kFloat, ort::kFloat, ort::kFloat};

struct SelectKernel {
  ort::Api api;
};

struct Call {
  Tensor in[kInputCount];
  int64_t n_heads, n_kv_heads, q_len, head_dim, group, n_slots, n_state_rows, n_rows, n_valid, start;
  const int64_t* policy;
  void *active, *pages, *q_last, *q_stored, *stats;
};

std::string ReadShapes(Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kLow].dims[1], "low");
  if (!problem.empty()) return problem;
  call->n_heads = in[kQ].dims[1];
  call->q_len = in[kQ].dims[2];
  call->head_dim = in[kQ].dims[3];
  call->n_kv_heads = in[kLow].dims[1];
  call->n_slots = in[kLow].dims[2];
  call->group = call->n_heads / call->n_kv_heads;
  call->n_state_rows = in[kQLast].dims[2];
  call->n_rows = std::min(call->q_len, call->n_state_rows);
  auto check = [&](int i, const char* layout, std::initializer_list<int64_t> dims) {
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, layout, dims);
  };
  for (int i : {kLow, kHigh})
    check(i, "[1, n_kv_heads, n_slots, head_dim]", {1, call->n_kv_heads, call->n_slots, call->head_dim});
  for (int i : {kPageScale, kMasses}) check(i, "[1, n_kv_heads, n_slots]", {1, call->n_kv_heads, call->n_slots});
  for (int i : {kQLast, kQStored})
    check(i, "[1, n_heads, n_rows, head_dim]", {1, call->n_heads, call->n_state_rows, call->head_dim});
  for (int i : {kStart, kCacheLen, kDrift}) check(i, "", {1});
  check(kPolicy, "", {kPolicyNumbers});
  if (problem.empty()) problem = CheckPolicy(in[kPolicy].as<int64_t>());
  if (problem.empty() && (call->head_dim % 16 != 0 || HeadBlock(call->head_dim) == 0))
    problem = "q has shape " + Shape(in[kQ]) + "; the CUDA kernels take a head_dim that is a multiple of 16 up to 256";
  return problem;
}

std::string ReadNumbers(Call* call) {
  call->policy = call->in[kPolicy].as<int64_t>();
  call->start = *call->in[kStart].as<int64_t>();
  const int64_t cache_len = *call->in[kCacheLen].as<int64_t>(), page_size = call->policy[kPageSize];
  if (call->start < 0 || call->start > kLargestPosition)
    return "start is " + std::to_string(call->start) + ", expected a position from 0 to 2**30";
  call->n_valid = cache_len / page_size + (cache_len % page_size != 0);
  if (cache_len < 0 || call->n_valid > call->n_slots)
    return "cache_len is " + std::to_string(cache_len) + ", expected at most " + std::to_string(call->n_slots) +
           " pages of " + std::to_string(page_size) + " positions";
  if (StateBlock(call->n_rows) == 0)
    return "q_last has shape " + Shape(call->in[kQLast]) + "; the CUDA kernels take at most 1024 rows of state";
  const int64_t mode = call->policy[kMode];
  if ((mode == kSelect || mode == kReusePages || mode == kSelectRows) && SlotBlock(call->n_valid) == 0)
    return std::to_string(call->n_valid) + " pages hold keys; the CUDA kernels choose from at most 16384: use larger pages";
  return "";
}

ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, Call* call) {
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {call->n_kv_heads, call->q_len}, &call->active));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {call->n_kv_heads, call->n_slots}, &call->pages));
  const auto queries = {int64_t{1}, call->n_heads, call->n_state_rows, call->head_dim};
  DLM_EDGE_TRY(MakeOutput(api, context, 2, queries, &call->q_last));
  DLM_EDGE_TRY(MakeOutput(api, context, 3, queries, &call->q_stored));
  return MakeOutput(api, context, 4, {4}, &call->stats);
}

std::string ChoosePages(const Call& call, const void* scores, int64_t n_score_rows, Device* device) {
  const int64_t* const p = call.policy;
  const int64_t edge = CeilDiv(call.start, p[kPageSize]);
  return device->Launch("choose_pages-b" + std::to_string(SlotBlock(call.n_valid)), call.n_kv_heads, n_score_rows, 1,
                        Arguments()
                            .Pointers(scores, call.active, call.pages)
                            .Numbers(call.q_len, call.group, call.n_slots, call.n_valid, p[kNPages], edge, p[kSink],
                                     p[kRecent], p[kOneList]));
}

std::string Run(const Call& call, Device* device) {
  const Tensor(&in)[kInputCount] = call.in;
  const int64_t* const p = call.policy;
  const int64_t block_d = HeadBlock(call.head_dim), score_rows = call.q_len * call.group;
  const std::string d = "-d" + std::to_string(block_d);
  const bool selects = p[kMode] == kSelect;
  const size_t movement_bytes = static_cast<size_t>(CeilDiv(12 * call.n_kv_heads * std::max<int64_t>(call.n_rows, 1), 256) * 256);
  const int64_t n_scores = selects ? call.n_kv_heads * score_rows * call.n_slots : 0;
  char* movement = nullptr;
  std::string problem = device->Reserve(movement_bytes + 4 * static_cast<size_t>(n_scores), &movement);
  char* const scores = movement + movement_bytes;
  if (problem.empty() && (selects || p[kMode] == kSelectRows) && call.n_rows > 0)
    problem = device->Launch("row_movement" + d, call.n_kv_heads, call.n_rows, 1,
                             Arguments()
                                 .Pointers(in[kQ].data, in[kQLast].data, in[kQStored].data, movement)
                                 .Numbers(call.q_len, call.n_state_rows, call.n_rows, call.group, call.head_dim));
  if (problem.empty())
    problem = device->Launch("choose_rows-r" + std::to_string(StateBlock(call.n_rows)) + "-b1024", call.n_kv_heads, 1, 1,
                             Arguments()
                                 .Pointers(movement, call.active, call.pages)
                                 .Numbers(call.q_len, call.n_rows, call.n_slots, call.n_valid, p[kMode], p[kNActive],
                                          p[kPerHead], p[kSinceStored])
                                 .Float(*in[kDrift].as<float>()));
  if (problem.empty() && selects && call.n_valid > 0) {
    const int64_t block_m = RowBlock(score_rows), block_n = KeyBlock(block_d, 16);
    problem = device->Launch("page_scores-m" + std::to_string(block_m) + "-n" + std::to_string(block_n) + d,
                             call.n_kv_heads, CeilDiv(score_rows, block_m), CeilDiv(call.n_valid, block_n),
                             Arguments()
                                 .Pointers(in[kQ].data, in[kLow].data, in[kHigh].data, in[kPageScale].data, call.active,
                                           scores)
                                 .Numbers(call.q_len, call.group, call.head_dim, call.n_slots, call.n_valid));
    if (problem.empty()) problem = ChoosePages(call, scores, score_rows, device);
  } else if (problem.empty() && (p[kMode] == kReusePages || p[kMode] == kSelectRows) && call.n_valid > 0) {
    problem = ChoosePages(call, in[kMasses].data, 1, device);
  }
  const size_t queries = 4 * static_cast<size_t>(call.n_heads * call.n_state_rows * call.head_dim);
  if (problem.empty()) problem = device->CopyIfApart(call.q_last, in[kQLast].data, queries);
  if (problem.empty()) problem = device->CopyIfApart(call.q_stored, in[kQStored].data, queries);
  if (problem.empty())
    problem = device->Launch("keep_queries" + d + "-b1024", call.n_heads, call.n_rows + 1, 1,
                             Arguments()
                                 .Pointers(in[kQ].data, call.active, call.pages, call.q_last, call.q_stored, call.stats)
                                 .Numbers(call.q_len, call.n_state_rows, call.n_rows, call.group, call.head_dim,
                                          call.n_kv_heads, call.n_slots, call.n_valid, selects));
  return problem;
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const ort::Api api = static_cast<const SelectKernel*>(opaque)->api;
  try {
    Call call{};
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, call.in, &problem));
    if (problem.empty()) problem = ReadShapes(&call);
    if (problem.empty()) problem = ReadNumbers(&call);
    if (!problem.empty()) return Refuse(api, kName, problem);
    DLM_EDGE_TRY(MakeOutputs(api, context, &call));
    void* stream = nullptr;
    DLM_EDGE_TRY(ort::KernelContext_GetGPUComputeStream::call(api, context, &stream));
    Device device;
    problem = device.Open(stream);
    if (problem.empty()) problem = Run(call, &device);
    return problem.empty() ? nullptr
                           : ort::CreateStatus::call(api, ort::kFail, (std::string(kName) + ": " + problem).c_str());
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
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
