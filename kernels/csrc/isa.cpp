#include "isa.h"

#include <atomic>

namespace slca {
namespace {

Isa best_isa() {
#if SLCA_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::generic;
}

std::atomic<int> chosen{-1};

}  // namespace

Isa current_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(best_isa());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

}  // namespace slca

// 0 generic, 1 AVX2, 2 AVX-512, 3 AVX-512 with bfloat16 products.
SLCA_API int slca_isa() { return static_cast<int>(slca::current_isa()); }

// Lowers (or restores, with a large number) the instruction set; returns the one now in use.
SLCA_API int slca_set_isa(int wanted) {
  const int best = static_cast<int>(slca::best_isa());
  slca::chosen.store(wanted < 0 || wanted > best ? best : wanted, std::memory_order_relaxed);
  return slca_isa();
}
