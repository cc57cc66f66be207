// PrefixBlockAttention on the CUDA provider: checks shapes, then makes the launches of kernels/triton/launch.py.
// Whether every row has a stored result or is active lies in device memory and is not checked: a row with neither
// attends to the window alone.
#include <algorithm>

#include "attention_inputs.h"
#include "cuda_operators.h"

namespace dlm_edge::cuda {
namespace {

using namespace attention_inputs;

constexpr const char* kName = "PrefixBlockAttention";
constexpr uint64_t kHostInputs = 1 << kStart | 1 << kCacheLen | 1 << kAttnBlock | 1 << kPolicy | 1 << kPlanes;
constexpr auto kInputs = Table(ort::kFloat16);
constexpr ort::ElementType kOutputs[] = {ort::kFloat16, ort::kFloat, ort::kFloat, ort::kFloat};

struct Results {
  void *out, *prefix_out = nullptr, *prefix_lse = nullptr, *masses = nullptr;
};

// What the kernels cannot do that the CPU can.
std::string CheckLimits(const Call& call) {
  if (const std::string problem = CheckOneCopy(call.in[kQ]); !problem.empty()) return problem;
  if (call.has_planes()) return "k_lower is given; the CUDA kernels do not read codes in two planes";
  if (call.bits == 32) return "k_cache is a float tensor; the CUDA kernels take float16, and uint8 with scales";
  if (call.capacity * call.head_dim > INT32_MAX)
    return "k_cache has shape " + Shape(call.in[kKCache]) + ", expected fewer than 2**31 values a head";
  if (call.number(kStart) > kLargestPosition - call.q_len)
    return "start is " + std::to_string(call.number(kStart)) + ", expected a window that ends by 2**30";
  if (call.n_slots < 1) return "pages has shape " + Shape(call.in[kPages]) + ", expected at least one slot";
  return CheckHeadDim(call.in[kQ]);
}

ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, const Call& call, Results* made) {
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {1, call.q_len, call.n_heads * call.head_dim}, &made->out));
  if (!call.is_sparse()) return nullptr;
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {1, call.n_heads, call.n_rows, call.head_dim}, &made->prefix_out));
  DLM_EDGE_TRY(MakeOutput(api, context, 2, {1, call.n_heads, call.n_rows}, &made->prefix_lse));
  return MakeOutput(api, context, 3, {1, call.n_kv_heads, call.n_slots}, &made->masses);
}

struct Work {
  char *partial_out, *partial_lse, *row_lse, *row_list, *row_place, *page_list, *counts;
};

std::string ReserveWork(const Call& call, int64_t n_splits, Device* device, Work* work) {
  const int64_t rows = call.n_heads * call.q_len, splits = std::max<int64_t>(n_splits, 1) * rows;
  Parts parts;
  parts.Ask(&work->partial_out, 4 * splits * call.head_dim);
  parts.Ask(&work->partial_lse, 4 * splits);
  parts.Ask(&work->row_lse, 4 * rows);
  for (char** list : {&work->row_list, &work->row_place}) parts.Ask(list, 4 * call.n_kv_heads * call.q_len);
  parts.Ask(&work->page_list, 4 * call.n_kv_heads * call.n_slots);
  parts.Ask(&work->counts, 8 * call.n_kv_heads);
  return device->Reserve(parts);
}

// State outputs that are not bound to their inputs become copies of them.
std::string CopyState(const Call& call, const Results& made, Device* device) {
  const size_t rows = 4 * static_cast<size_t>(call.n_heads * call.n_rows);
  const size_t dim = static_cast<size_t>(call.head_dim), pages = static_cast<size_t>(call.n_kv_heads * call.n_slots);
  std::string problem = device->CopyIfApart(made.prefix_out, call.in[kPrefixOut].data, rows * dim);
  if (problem.empty()) problem = device->CopyIfApart(made.prefix_lse, call.in[kPrefixLse].data, rows);
  if (problem.empty()) problem = device->CopyIfApart(made.masses, call.in[kMasses].data, 4 * pages);
  return problem;
}

std::string Run(const Call& call, const Results& made, float scale, Device* device) {
  const Tensor(&in)[kInputCount] = call.in;
  const int64_t group = call.n_heads / call.n_kv_heads, page_size = std::max<int64_t>(call.capacity / call.n_slots, 1);
  const int64_t rows = call.q_len * group, block_m = RowBlock(rows), n_tiles = CeilDiv(rows, block_m);
  const int64_t start = call.number(kStart), cache_len = call.number(kCacheLen);
  const int64_t attn_block = std::min(call.number(kAttnBlock), kLargestPosition);  // one block, whichever it is
  const int64_t n_splits = SplitCount(call.n_kv_heads * n_tiles, cache_len, device->n_processors());
  const int64_t block_d = HeadBlock(call.head_dim), window_m = RowBlock(call.q_len);
  const std::string bits = "-b" + std::to_string(call.bits);
  const bool is_sparse = call.is_sparse();
  Work work{};
  std::string problem = ReserveWork(call, n_splits, device, &work);
  if (problem.empty() && is_sparse) problem = CopyState(call, made, device);
  if (problem.empty() && is_sparse)
    problem = device->Launch("compact_rows_and_pages-b1024", call.n_kv_heads, 2, 1,
                             Arguments()
                                 .Pointers(in[kActive].data, in[kPages].data, work.row_list, work.row_place,
                                           work.page_list, work.counts)
                                 .Numbers(call.q_len, call.n_slots));
  if (problem.empty() && n_splits > 0)
    problem = device->Launch(
        Named("attend_pages", bits + (is_sparse ? "-p1" : "-p0"), block_m, KeyBlock(block_d, call.bits), block_d),
        call.n_kv_heads, n_tiles, n_splits,
        Arguments()
            .Pointers(in[kQ].data, in[kKCache].data, in[kVCache].data, in[kKScale].data, in[kKLow].data,
                      in[kKTail].data, in[kVScale].data, in[kVLow].data, work.row_list, work.page_list, work.counts,
                      work.partial_out, work.partial_lse)
            .Float(scale * kLog2E)
            .Numbers(call.q_len, group, call.head_dim, call.capacity, call.n_slots, page_size, start, cache_len,
                     attn_block, call.key_group, call.value_group));
  if (problem.empty())
    problem = device->Launch(
        Named("attend_window", is_sparse ? "-k1" : "-k0", window_m, KeyBlock(block_d, 16), block_d), call.n_heads,
        CeilDiv(call.q_len, window_m), 1,
        Arguments()
            .Pointers(in[kQ].data, in[kK].data, in[kV].data, in[kActive].data, work.row_place, work.partial_out,
                      work.partial_lse, made.prefix_out, made.prefix_lse, work.row_lse, made.out)
            .Float(scale * kLog2E)
            .Numbers(call.q_len, group, call.head_dim, call.n_rows, n_splits, start % attn_block, attn_block));
  if (problem.empty() && call.measure())
    problem = device->Launch(Named("measure_pages", bits, block_m, 16, block_d), call.n_slots, call.n_kv_heads, 1,
                             Arguments()
                                 .Pointers(in[kQ].data, in[kKCache].data, in[kKScale].data, in[kKLow].data,
                                           in[kKTail].data, in[kActive].data, in[kPages].data, work.row_lse,
                                           made.masses)
                                 .Float(scale * kLog2E)
                                 .Numbers(call.q_len, group, call.head_dim, call.capacity, call.n_slots, page_size,
                                          start, cache_len, call.key_group));
  return problem;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  return MakeScaledKernel(api, info, kName, kernel);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const ScaledKernel*>(opaque);
  const ort::Api api = kernel.api;
  const auto check = [](Call& call) {
    const std::string problem = call.Check(ort::kFloat16);
    return problem.empty() ? CheckLimits(call) : problem;
  };
  return Answer<Call>(api, context, kName, kInputs.data(), kInputCount, check, [&](const Call& call) -> ort::Status* {
    Results made{};
    DLM_EDGE_TRY(MakeOutputs(api, context, call, &made));
    const float scale = kernel.ScaleOf(call.head_dim);
    return OnDevice(api, context, kName, [&](Device* device) { return Run(call, made, scale, device); });
  });
}

}  // namespace

Operator AttentionOperator() {
  Operator made = MakeOperator(kName, kInputs.data(), kInputCount, kOutputs, 4, 1);
  PlaceOnCuda<kHostInputs>(&made.op);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<ScaledKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge::cuda
