// PrefixBlockAttention on the CUDA provider: checks shapes, then makes the launches of kernels/triton/launch.py.
// Whether every row has a stored result or is active lies in device memory and is not checked: a row with neither
// attends to the window alone.
#include <algorithm>
#include <cmath>

#include "cuda_launch.h"
#include "cuda_operators.h"

namespace dlm_edge::cuda {
namespace {

constexpr const char* kName = "PrefixBlockAttention";
constexpr float kLog2E = 1.44269504088896341f;
constexpr int64_t kDenseKeep = 4;

enum InputIndex {
  kQ, kK, kV, kKCache, kVCache, kStart, kCacheLen, kAttnBlock,
  kActive, kPages, kPolicy, kPrefixOut, kPrefixLse, kMasses,
  kKScale, kKLow, kKTail, kVScale, kVLow, kInputCount
};
constexpr uint64_t kHostInputs = 1 << kStart | 1 << kCacheLen | 1 << kAttnBlock | 1 << kPolicy;

constexpr Input kInputs[kInputCount] = {
    {"q", ort::kFloat16, ort::kRequired, 4},        {"k", ort::kFloat16, ort::kRequired, 4},
    {"v", ort::kFloat16, ort::kRequired, 4},        {"k_cache", ort::kAnyType, ort::kRequired, 4},
    {"v_cache", ort::kAnyType, ort::kRequired, 4},  {"start", ort::kInt64, ort::kRequired, 1},
    {"cache_len", ort::kInt64, ort::kRequired, 1},  {"attn_block", ort::kInt64, ort::kRequired, 1},
    {"active", ort::kUint8, ort::kOptional, 2},     {"pages", ort::kUint8, ort::kOptional, 2},
    {"policy", ort::kInt64, ort::kOptional, 1},     {"prefix_out", ort::kFloat, ort::kOptional, 4},
    {"prefix_lse", ort::kFloat, ort::kOptional, 3}, {"masses", ort::kFloat, ort::kOptional, 3},
    {"k_scale", ort::kFloat16, ort::kOptional, 4},  {"k_low", ort::kFloat16, ort::kOptional, 4},
    {"k_tail", ort::kFloat, ort::kOptional, 4},     {"v_scale", ort::kFloat16, ort::kOptional, 4},
    {"v_low", ort::kFloat16, ort::kOptional, 4},
};
constexpr ort::ElementType kOutputs[] = {ort::kFloat16, ort::kFloat, ort::kFloat, ort::kFloat};

struct AttentionKernel {
  ort::Api api;
  float scale;
};

// One call: the inputs, what their shapes say, and where the results go.
struct Call {
  Tensor in[kInputCount];
  int64_t n_heads, n_kv_heads, q_len, head_dim, group, capacity, n_slots = 1, n_rows = 0;
  int64_t start, cache_len, attn_block, key_group = 1, value_group = 1;
  int bits = 16;
  bool is_sparse = false, measure = false;
  float scale_log2;
  void *out, *prefix_out = nullptr, *prefix_lse = nullptr, *masses = nullptr;

  int64_t page_size() const { return std::max<int64_t>(capacity / n_slots, 1); }
  int64_t head_block() const { return HeadBlock(head_dim); }
};

std::string Wrong(int input, const Tensor& tensor, const std::string& expected) {
  return std::string(kInputs[input].name) + " has shape " + Shape(tensor) + ", expected " + expected;
}

std::string CheckOverload(Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  call->is_sparse = in[kActive].is_given;
  const bool has_codes = in[kKCache].type == ort::kUint8;
  for (int i = kActive; i < kInputCount; ++i) {
    const bool is_wanted = i <= kMasses ? call->is_sparse : call->is_sparse && has_codes;
    if (in[i].is_given != is_wanted)
      return std::string(kInputs[i].name) + (is_wanted ? " is missing" : " is given in an overload without it");
  }
  if (in[kKCache].type != in[kVCache].type || (in[kKCache].type != ort::kFloat16 && !(has_codes && call->is_sparse)))
    return "k_cache and v_cache have element types " + std::to_string(in[kKCache].type) + " and " +
           std::to_string(in[kVCache].type) + "; the CUDA kernels take float16, and uint8 with scales";
  return "";
}

std::string ReadShapes(Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kK].dims[1], "k");
  if (!problem.empty()) return problem;
  call->n_heads = in[kQ].dims[1];
  call->n_kv_heads = in[kK].dims[1];
  call->q_len = in[kQ].dims[2];
  call->head_dim = in[kQ].dims[3];
  call->group = call->n_heads / call->n_kv_heads;
  call->capacity = in[kKCache].dims[2];
  if (call->head_dim % 16 != 0 || call->head_block() == 0)
    return Wrong(kQ, in[kQ], "a head_dim that is a multiple of 16 up to 256: the CUDA kernels take no other");
  int64_t width = call->head_dim;
  if (in[kKCache].type == ort::kUint8) {
    call->bits = in[kKCache].dims[3] == call->head_dim ? 8 : 4;
    width = call->head_dim * call->bits / 8;
  }
  for (int i : {kK, kV})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_kv_heads, q_len, head_dim]",
                           {1, call->n_kv_heads, call->q_len, call->head_dim});
  for (int i : {kKCache, kVCache})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_kv_heads, capacity, width]",
                           {1, call->n_kv_heads, call->capacity, width});
  for (int i : {kStart, kCacheLen, kAttnBlock})
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, "", {1});
  if (problem.empty() && call->capacity * call->head_dim > INT32_MAX)
    problem = Wrong(kKCache, in[kKCache], "fewer than 2**31 values a head");
  return problem;
}

std::string ReadNumbers(Call* call) {
  call->start = *call->in[kStart].as<int64_t>();
  call->cache_len = *call->in[kCacheLen].as<int64_t>();
  call->attn_block = *call->in[kAttnBlock].as<int64_t>();
  if (call->start < 0 || call->start > kLargestPosition - call->q_len)
    return "start is " + std::to_string(call->start) + ", expected a position from 0, and a window that ends by 2**30";
  if (call->attn_block < 1)
    return "attn_block is " + std::to_string(call->attn_block) + ", expected a block length of at least 1";
  call->attn_block = std::min(call->attn_block, kLargestPosition);  // one block, whichever it is
  return CheckCapacity(call->cache_len, call->capacity);
}

std::string ReadState(Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  call->n_slots = in[kPages].dims[1];
  call->n_rows = in[kPrefixOut].dims[2];
  std::string problem = CheckShape(in[kActive], "active", "[n_kv_heads, q_len]", {call->n_kv_heads, call->q_len});
  auto check = [&](int i, const char* layout, std::initializer_list<int64_t> dims) {
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, layout, dims);
  };
  check(kPages, "[n_kv_heads, n_slots]", {call->n_kv_heads, call->n_slots});
  check(kPolicy, "", {kPolicyNumbers});
  if (problem.empty()) problem = CheckPolicy(in[kPolicy].as<int64_t>());
  check(kPrefixOut, "[1, n_heads, n_rows, head_dim]", {1, call->n_heads, call->n_rows, call->head_dim});
  check(kPrefixLse, "[1, n_heads, n_rows]", {1, call->n_heads, call->n_rows});
  check(kMasses, "[1, n_kv_heads, n_slots]", {1, call->n_kv_heads, call->n_slots});
  if (!problem.empty()) return problem;
  call->measure = *in[kPolicy].as<int64_t>() == kDenseKeep;
  if (call->n_slots < 1 || call->capacity % call->n_slots != 0)
    return Wrong(kPages, in[kPages], "whole pages of the cache's " + std::to_string(call->capacity) + " positions");
  return "";
}

std::string ReadScales(Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  call->key_group = in[kKTail].dims[2];
  const int64_t n_groups = in[kVScale].dims[3];
  if (call->key_group < 1 || call->capacity % call->key_group != 0)
    return Wrong(kKTail, in[kKTail], "a group that divides the cache's " + std::to_string(call->capacity) + " positions");
  if (n_groups < 1 || call->head_dim % n_groups != 0)
    return Wrong(kVScale, in[kVScale], "groups that divide head_dim, " + std::to_string(call->head_dim));
  call->value_group = call->head_dim / n_groups;
  std::string problem;
  auto check = [&](int i, const char* layout, int64_t length, int64_t width) {
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, layout, {1, call->n_kv_heads, length, width});
  };
  check(kKTail, "[1, n_kv_heads, group, head_dim]", call->key_group, call->head_dim);
  for (int i : {kKScale, kKLow})
    check(i, "[1, n_kv_heads, capacity / group, head_dim]", call->capacity / call->key_group, call->head_dim);
  for (int i : {kVScale, kVLow}) check(i, "[1, n_kv_heads, capacity, groups]", call->capacity, n_groups);
  return problem;
}

ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, Call* call) {
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {1, call->q_len, call->n_heads * call->head_dim}, &call->out));
  if (!call->is_sparse) return nullptr;
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {1, call->n_heads, call->n_rows, call->head_dim}, &call->prefix_out));
  DLM_EDGE_TRY(MakeOutput(api, context, 2, {1, call->n_heads, call->n_rows}, &call->prefix_lse));
  return MakeOutput(api, context, 3, {1, call->n_kv_heads, call->n_slots}, &call->masses);
}

// The working memory of one call: parts of one block, each at a multiple of 256 bytes.
struct Work {
  char *partial_out, *partial_lse, *row_lse, *row_list, *row_place, *page_list, *page_place, *counts;
};

std::string ReserveWork(const Call& call, int64_t n_splits, Device* device, Work* work) {
  const int64_t rows = call.n_heads * call.q_len, parts = std::max<int64_t>(n_splits, 1) * rows;
  const int64_t list = call.n_kv_heads * call.q_len, pages = call.n_kv_heads * call.n_slots;
  const int64_t words[] = {parts * call.head_dim, parts, rows, list, list, pages, pages, 2 * call.n_kv_heads};
  char** const members[] = {&work->partial_out, &work->partial_lse, &work->row_lse,    &work->row_list,
                            &work->row_place,   &work->page_list,   &work->page_place, &work->counts};
  size_t offsets[8], total = 0;
  for (int i = 0; i < 8; ++i) {
    offsets[i] = total;
    total += static_cast<size_t>(CeilDiv(4 * words[i], 256) * 256);
  }
  char* memory = nullptr;
  const std::string problem = device->Reserve(total, &memory);
  for (int i = 0; i < 8; ++i) *members[i] = memory + offsets[i];
  return problem;
}

std::string Named(const char* function, const std::string& flags, int64_t m, int64_t n, int64_t d) {
  return function + flags + "-m" + std::to_string(m) + "-n" + std::to_string(n) + "-d" + std::to_string(d);
}

std::string Run(const Call& call, Device* device) {
  const Tensor(&in)[kInputCount] = call.in;
  const int64_t rows = call.q_len * call.group, block_m = RowBlock(rows), n_tiles = CeilDiv(rows, block_m);
  const int64_t n_splits = SplitCount(call.n_kv_heads * n_tiles, call.cache_len, device->n_processors());
  const int64_t block_d = call.head_block(), block_n = KeyBlock(block_d, 16);
  const std::string bits = "-b" + std::to_string(call.bits);
  Work work{};
  std::string problem = ReserveWork(call, n_splits, device, &work);
  if (problem.empty() && call.is_sparse) {
    const size_t state = 4 * static_cast<size_t>(call.n_heads * call.n_rows);
    problem = device->CopyIfApart(call.prefix_out, in[kPrefixOut].data, state * static_cast<size_t>(call.head_dim));
    if (problem.empty()) problem = device->CopyIfApart(call.prefix_lse, in[kPrefixLse].data, state);
    if (problem.empty())
      problem = device->CopyIfApart(call.masses, in[kMasses].data,
                                    4 * static_cast<size_t>(call.n_kv_heads * call.n_slots));
    if (problem.empty())
      problem = device->Launch("compact_rows_and_pages-b1024", call.n_kv_heads, 2, 1,
                               Arguments()
                                   .Pointers(in[kActive].data, in[kPages].data, work.row_list, work.row_place,
                                             work.page_list, work.page_place, work.counts)
                                   .Numbers(call.q_len, call.n_slots));
  }
  if (problem.empty() && n_splits > 0)
    problem = device->Launch(
        Named("attend_pages", bits + (call.is_sparse ? "-p1" : "-p0"), block_m, KeyBlock(block_d, call.bits), block_d),
        call.n_kv_heads, n_tiles, n_splits,
        Arguments()
            .Pointers(in[kQ].data, in[kKCache].data, in[kVCache].data, in[kKScale].data, in[kKLow].data,
                      in[kKTail].data, in[kVScale].data, in[kVLow].data, work.row_list, work.page_list, work.counts,
                      work.partial_out, work.partial_lse)
            .Float(call.scale_log2)
            .Numbers(call.q_len, call.group, call.head_dim, call.capacity, call.n_slots, call.page_size(), call.start,
                     call.cache_len, call.attn_block, call.key_group, call.value_group));
  if (problem.empty())
    problem = device->Launch(
        Named("attend_window", call.is_sparse ? "-k1" : "-k0", RowBlock(call.q_len), block_n, block_d), call.n_heads,
        CeilDiv(call.q_len, RowBlock(call.q_len)), 1,
        Arguments()
            .Pointers(in[kQ].data, in[kK].data, in[kV].data, in[kActive].data, work.row_place, work.partial_out,
                      work.partial_lse, call.prefix_out, call.prefix_lse, work.row_lse, call.out)
            .Float(call.scale_log2)
            .Numbers(call.q_len, call.group, call.head_dim, call.n_rows, n_splits, call.start % call.attn_block,
                     call.attn_block));
  if (problem.empty() && call.measure)
    problem = device->Launch(Named("measure_pages", bits, block_m, 16, block_d), call.n_slots, call.n_kv_heads, 1,
                             Arguments()
                                 .Pointers(in[kQ].data, in[kKCache].data, in[kKScale].data, in[kKLow].data,
                                           in[kKTail].data, in[kActive].data, in[kPages].data, work.row_lse,
                                           call.masses)
                                 .Float(call.scale_log2)
                                 .Numbers(call.q_len, call.group, call.head_dim, call.capacity, call.n_slots,
                                          call.page_size(), call.start, call.cache_len, call.key_group));
  return problem;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  float scale = 0.0f;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_float::call(api, info, "scale", &scale)) {
    ort::ReleaseStatus::call(api, absent);
    scale = 0.0f;
  }
  *kernel = new (std::nothrow) AttentionKernel{api, scale};
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const AttentionKernel*>(opaque);
  const ort::Api api = kernel.api;
  try {
    Call call{};
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, call.in, &problem));
    if (problem.empty()) problem = CheckOverload(&call);
    if (problem.empty()) problem = ReadShapes(&call);
    if (problem.empty()) problem = ReadNumbers(&call);
    if (problem.empty() && call.is_sparse) problem = ReadState(&call);
    if (problem.empty() && call.bits != 16) problem = ReadScales(&call);
    if (!problem.empty()) return Refuse(api, kName, problem);
    const float scale = kernel.scale != 0.0f ? kernel.scale : 1.0f / std::sqrt(static_cast<float>(call.head_dim));
    call.scale_log2 = scale * kLog2E;
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

}  // namespace

Operator AttentionOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 4, 1);
  PlaceOnCuda<kHostInputs>(&made.op);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<AttentionKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge::cuda
