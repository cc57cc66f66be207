// See simd.h.
#include "simd.h"

#include <atomic>
#include <cstring>

namespace dlm_edge {
namespace {

const TileKernel* BestKernel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return &kAvx512Tiles;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return &kAvx2Tiles;
#endif
  return &kPortableTiles;
}

std::atomic<const TileKernel*>& Chosen() {
  static std::atomic<const TileKernel*> chosen{BestKernel()};
  return chosen;
}

}  // namespace

const TileKernel* ChosenKernel() { return Chosen().load(); }

const char* SimdName() { return ChosenKernel()->name; }

bool SetSimd(const char* name) {
  const TileKernel* const best = BestKernel();
  if (name == nullptr) {
    Chosen() = best;
    return true;
  }
#if defined(__x86_64__)
  const TileKernel* const known[] = {&kPortableTiles, &kAvx2Tiles, &kAvx512Tiles};
#else
  const TileKernel* const known[] = {&kPortableTiles};
#endif
  for (const TileKernel* kernel : known) {
    // A processor supports every width up to its best one.
    if (kernel->lanes <= best->lanes && std::strcmp(kernel->name, name) == 0) {
      Chosen() = kernel;
      return true;
    }
  }
  return false;
}

}  // namespace dlm_edge
