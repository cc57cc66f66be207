// PatternAttention on the CUDA provider: checks shapes, then makes the launches of kernels/triton/launch_pattern.py.
#include <algorithm>

#include "cuda_operators.h"
#include "pattern_inputs.h"

namespace dlm_edge::cuda {
namespace {

using namespace pattern_inputs;

constexpr const char* kName = "PatternAttention";
constexpr int64_t kMeasuredKeys = 32;  // MEASURED_BLOCK_KEYS of tiles.py
constexpr uint64_t kHostInputs = 1 << kPolicy;
constexpr auto kInputs = Table(ort::kFloat16);
constexpr ort::ElementType kOutputs[] = {ort::kFloat16, ort::kUint8, ort::kFloat};

struct Work {
  char *block_list, *counts, *row_lse, *masses;
};

// What the kernels cannot do that the CPU can.
std::string CheckLimits(const Call& call) {
  if (call.n_heads > INT32_MAX / call.head_dim / call.q_len)
    return "q has shape " + Shape(call.in[kQ]) + ", expected fewer than 2**31 values";
  if (call.mode != kPatternDense &&
      (PatternBlock(call.n_slots) == 0 || call.n_heads > INT32_MAX / call.n_slots / call.n_slots))
    return "pattern has shape " + Shape(call.in[kPattern]) +
           "; the CUDA kernels take at most 4096 slots and fewer than 2**31 values: use larger blocks";
  return CheckHeadDim(call.in[kQ]);
}

std::string ReserveWork(const Call& call, Device* device, Work* work) {
  const int64_t pairs = call.n_heads * call.n_blocks * call.n_blocks;
  Parts parts;
  parts.Ask(&work->block_list, call.mode == kPatternReuse ? 4 * pairs : 0);
  parts.Ask(&work->counts, call.mode == kPatternReuse ? 4 * call.n_heads * call.n_blocks : 0);
  parts.Ask(&work->row_lse, 4 * call.n_heads * call.q_len);
  parts.Ask(&work->masses, call.mode == kPatternKeep ? 4 * pairs : 0);
  return device->Reserve(parts);
}

std::string Attend(const Call& call, const Work& work, void* out, float scale, int64_t size, Device* device) {
  const Tensor(&in)[kInputCount] = call.in;
  // Without lists the sequence is one block of queries that reads everything.
  const bool is_listed = call.mode == kPatternReuse;
  const int64_t rows = is_listed ? size : call.q_len, n_blocks = is_listed ? call.n_blocks : 1;
  const int64_t block_m = BlockRows(rows), block_d = HeadBlock(call.head_dim);
  return device->Launch(Named("attend_blocks", is_listed ? "-l1" : "-l0", block_m, KeyBlock(block_d, 16), block_d),
                        n_blocks * CeilDiv(rows, block_m), call.n_heads, 1,
                        Arguments()
                            .Pointers(in[kQ].data, in[kK].data, in[kV].data, work.block_list, work.counts, work.row_lse,
                                      out)
                            .Float(scale * kLog2E)
                            .Numbers(call.q_len, call.n_heads / call.n_kv_heads, call.head_dim, n_blocks, rows));
}

std::string Choose(const Call& call, const Work& work, void* pattern, float scale, int64_t size, Device* device) {
  const int64_t block_m = BlockRows(size), block_d = HeadBlock(call.head_dim);
  const std::string problem =
      device->Launch(Named("measure_blocks", "", block_m, kMeasuredKeys, block_d), call.n_blocks, call.n_blocks,
                     call.n_heads,
                     Arguments()
                         .Pointers(call.in[kQ].data, call.in[kK].data, work.row_lse, work.masses)
                         .Float(scale * kLog2E)
                         .Numbers(call.q_len, call.n_heads / call.n_kv_heads, call.head_dim, size));
  if (!problem.empty()) return problem;
  return device->Launch("choose_blocks-b" + std::to_string(PatternBlock(call.n_slots)), call.n_slots, call.n_heads, 1,
                        Arguments()
                            .Pointers(work.masses, pattern)
                            .Numbers(call.q_len, call.n_blocks, call.n_slots, size, call.n_prompt, call.n_prompt_kept,
                                     call.n_others_kept));
}

std::string Run(const Call& call, void* const (&made)[3], float scale, Device* device) {
  const int64_t size = std::min(call.block_size, call.q_len), n_pairs = call.n_heads * call.n_blocks * call.n_blocks;
  const bool is_listed = call.mode == kPatternReuse;
  const void* const pattern = call.in[kPattern].data;
  Work work{};
  std::string problem = ReserveWork(call, device, &work);
  if (problem.empty() && is_listed)
    problem = device->Launch("compact_blocks-b1024", call.n_heads, call.n_blocks, 1,
                             Arguments().Pointers(pattern, work.block_list, work.counts).Numbers(call.n_blocks,
                                                                                                call.n_slots));
  if (problem.empty()) problem = Attend(call, work, made[0], scale, size, device);
  if (problem.empty() && call.mode == kPatternKeep) problem = Choose(call, work, made[1], scale, size, device);
  if (problem.empty() && call.mode != kPatternKeep)
    problem = device->CopyIfApart(made[1], pattern, static_cast<size_t>(call.n_heads * call.n_slots * call.n_slots));
  if (problem.empty())
    problem = device->Launch("count_pairs-b1024", 1, 1, 1,
                             Arguments()
                                 .Pointers(work.counts, made[2])
                                 .Numbers(is_listed ? call.n_heads * call.n_blocks : 0, call.n_kv_heads * call.q_len,
                                          n_pairs));
  return problem;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  return MakeScaledKernel(api, info, kName, kernel);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const ScaledKernel*>(opaque);
  const ort::Api api = kernel.api;
  const auto check = [](Call& call) {
    const std::string problem = call.Check();
    return problem.empty() ? CheckLimits(call) : problem;
  };
  return Answer<Call>(api, context, kName, kInputs.data(), kInputCount, check, [&](const Call& call) -> ort::Status* {
    void* made[3] = {};
    DLM_EDGE_TRY(MakeOutputs(api, context, call, made));
    const float scale = kernel.ScaleOf(call.head_dim);
    return OnDevice(api, context, kName, [&](Device* device) { return Run(call, made, scale, device); });
  });
}

}  // namespace

Operator PatternAttentionOperator() {
  Operator made = MakeOperator(kName, kInputs.data(), kInputCount, kOutputs, 3, 3);
  PlaceOnCuda<kHostInputs>(&made.op);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<ScaledKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge::cuda
