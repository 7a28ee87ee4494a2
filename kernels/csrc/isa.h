// How one source serves every instruction set: *_kernels.cpp is compiled once per set, the best is chosen at run time.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define SLCA_X86 1
#else
#define SLCA_X86 0
#endif

// An exported C function: SLCA_API int slca_name(...). Everything else stays hidden.
#define SLCA_API extern "C" __attribute__((visibility("default")))

namespace slca {

enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// The best instruction set of this machine, or a lower one set by slca_set_isa (tests compare them).
Isa current_isa();

}  // namespace slca

// Declares the same functions in namespace slca::generic, slca::avx2, slca::avx512 and slca::avx512bf16. Use it in <name>_kernels.h.
#if SLCA_X86
#define SLCA_PER_ISA(...)                       \
  namespace slca::generic { __VA_ARGS__ }       \
  namespace slca::avx2 { __VA_ARGS__ }          \
  namespace slca::avx512 { __VA_ARGS__ }        \
  namespace slca::avx512bf16 { __VA_ARGS__ }
// The version of `function` for this machine: SLCA_BEST(sce_rows)(args...).
#define SLCA_BEST(function)                                                     \
  (::slca::current_isa() == ::slca::Isa::avx512bf16 ? &::slca::avx512bf16::function \
   : ::slca::current_isa() == ::slca::Isa::avx512 ? &::slca::avx512::function   \
   : ::slca::current_isa() == ::slca::Isa::avx2 ? &::slca::avx2::function       \
                                                : &::slca::generic::function)
#else
#define SLCA_PER_ISA(...) \
  namespace slca::generic { __VA_ARGS__ }
#define SLCA_BEST(function) (&::slca::generic::function)
#endif
