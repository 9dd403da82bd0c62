#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace fastdecode {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16"};

// __builtin_cpu_supports asks CPUID, and XGETBV whether the system saves the wide registers.
Isa best() {
#if defined(FASTDECODE_X86)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return Isa::kPortable;
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  }
  return Isa::kAvx2;
#else
  return Isa::kPortable;
#endif
}

const char* wanted() {
  const char* name = std::getenv("FASTDECODE_CPU_ISA");
  return name != nullptr && name[0] != 0 ? name : nullptr;
}

struct Choice {
  Isa isa;
  bool supported;  // whether FASTDECODE_CPU_ISA, if set, names an instruction set that is here
};

Choice choose() {
  const Isa most = best();
  const char* name = wanted();
  if (name == nullptr) return {most, true};
  for (int i = 0; i <= static_cast<int>(most); ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return {static_cast<Isa>(i), true};
  }
  return {most, false};
}

const Choice& choice() {
  static const Choice made = choose();
  return made;
}

}  // namespace

Isa cpu_isa() {
  return choice().isa;
}

fastdecode_result check_isa() {
  if (choice().supported) return FASTDECODE_OK;
  return fail(
      FASTDECODE_INVALID_ARGUMENT,
      "FASTDECODE_CPU_ISA = %s: must be portable, avx2, avx512 or avx512bf16, and this machine "
      "has up to %s",
      wanted() != nullptr ? wanted() : "", isa_name(cpu_isa()));
}

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

}  // namespace fastdecode
