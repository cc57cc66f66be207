// See simd.h.
#include "simd.h"

#include <atomic>
#include <cstring>

namespace dlm_edge {
namespace {

// From the slowest to the fastest.
#if defined(__x86_64__)
const TileKernel* const kKernels[] = {&kPortableTiles, &kAvx2Tiles, &kAvx512Tiles, &kAvx512VnniTiles};
#else
const TileKernel* const kKernels[] = {&kPortableTiles};
#endif

// How many of kKernels this processor has: all up to its best one.
int SupportedKernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return 1;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return 2;
  return __builtin_cpu_supports("avx512vnni") ? 4 : 3;
#endif
  return 1;
}

const TileKernel* BestKernel() { return kKernels[SupportedKernels() - 1]; }

std::atomic<const TileKernel*>& Chosen() {
  static std::atomic<const TileKernel*> chosen{BestKernel()};
  return chosen;
}

}  // namespace

const TileKernel* ChosenKernel() { return Chosen().load(); }

const char* SimdName() { return ChosenKernel()->name; }

bool SetSimd(const char* name) {
  if (name == nullptr) {
    Chosen() = BestKernel();
    return true;
  }
  for (int i = 0; i < SupportedKernels(); ++i) {
    if (std::strcmp(kKernels[i]->name, name) == 0) {
      Chosen() = kKernels[i];
      return true;
    }
  }
  return false;
}

}  // namespace dlm_edge
