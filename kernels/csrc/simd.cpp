// See simd.h.
#include "simd.h"

#include <atomic>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dlm_edge {
namespace {

struct Variant {
  const char* name;
  const TileKernel* tiles;
  const LinearKernel* linear;
  bool (*is_supported)();
};

bool Always() { return true; }

#if defined(__x86_64__)
bool HasAvx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool HasAvx512Vnni() { return HasAvx512() && __builtin_cpu_supports("avx512vnni"); }

// Compilers name these two differently, or not at all.
struct Leaf7 {
  unsigned avx_vnni, amx_tile, amx_int8;

  Leaf7() : avx_vnni(0), amx_tile(0), amx_int8(0) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    amx_tile = d >> 24 & 1;
    amx_int8 = d >> 25 & 1;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avx_vnni = a >> 4 & 1;
  }
};

bool HasAvxVnni() { return HasAvx2() && Leaf7().avx_vnni; }

// The tiles are state that Linux saves only for processes that ask for it.
bool HasAmx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  const Leaf7 leaf;
  return HasAvx512Vnni() && leaf.amx_tile && leaf.amx_int8 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// From the slowest to the fastest.
const Variant kVariants[] = {
    {"portable", &kPortableTiles, &kPortableLinear, Always},
#if defined(__x86_64__)
    {"avx2", &kAvx2Tiles, &kAvx2Linear, HasAvx2},
    {"avx_vnni", &kAvx2Tiles, &kAvxVnniLinear, HasAvxVnni},
    {"avx512", &kAvx512Tiles, &kAvx2Linear, HasAvx512},
    {"avx512_vnni", &kAvx512VnniTiles, &kAvx512VnniLinear, HasAvx512Vnni},
    {"amx", &kAvx512VnniTiles, &kAmxLinear, HasAmx},
#endif
};

const Variant* BestVariant() {
  const Variant* best = kVariants;
  for (const Variant& each : kVariants)
    if (each.is_supported()) best = &each;
  return best;
}

std::atomic<const Variant*>& Chosen() {
  static std::atomic<const Variant*> chosen{BestVariant()};
  return chosen;
}

}  // namespace

const TileKernel* ChosenKernel() { return Chosen().load()->tiles; }

const LinearKernel* ChosenLinear() { return Chosen().load()->linear; }

const char* SimdName() { return Chosen().load()->name; }

bool SetSimd(const char* name) {
  if (name == nullptr) {
    Chosen() = BestVariant();
    return true;
  }
  for (const Variant& each : kVariants) {
    if (std::strcmp(each.name, name) == 0 && each.is_supported()) {
      Chosen() = &each;
      return true;
    }
  }
  return false;
}

}  // namespace dlm_edge
