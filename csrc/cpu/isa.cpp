#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace fastdecode {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

// The compiler's check asks CPUID and, by XGETBV, whether the system saves the wide registers.
Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  return Isa::kAvx2;
#else
  return Isa::kPortable;
#endif
}

Isa choose() {
  const Isa most = best();
  const char* wanted = std::getenv("FASTDECODE_CPU_ISA");
  if (wanted == nullptr) return most;
  for (int i = 0; i < static_cast<int>(most); ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<Isa>(i);
  }
  return most;
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

}  // namespace fastdecode
