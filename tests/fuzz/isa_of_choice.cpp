// In place of csrc/cpu/isa.cpp: the instruction set is chosen call by call.

#include "fuzz.h"

namespace {

fastdecode::Isa chosen = fuzz::best_isa();

}  // namespace

namespace fuzz {

void use_isa(fastdecode::Isa isa) {
  chosen = isa;
}

fastdecode::Isa best_isa() {
#if defined(FASTDECODE_X86)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return fastdecode::Isa::kPortable;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!wide) return fastdecode::Isa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? fastdecode::Isa::kAvx512Bf16
                                              : fastdecode::Isa::kAvx512;
#else
  return fastdecode::Isa::kPortable;
#endif
}

}  // namespace fuzz

namespace fastdecode {

Isa cpu_isa() {
  return chosen;
}

fastdecode_result check_isa() {
  return FASTDECODE_OK;
}

const char* isa_name(Isa isa) {
  static const char* const names[] = {"portable", "avx2", "avx512", "avx512bf16"};
  return names[static_cast<int>(isa)];
}

}  // namespace fastdecode
