// The instruction set that the CPU kernels use: several are compiled for more than one.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best that this processor and operating system support. FASTDECODE_CPU_ISA (portable, avx2,
// avx512, avx512bf16) may lower it; it is read once.
Isa cpu_isa();

// FASTDECODE_INVALID_ARGUMENT, with the message set, if FASTDECODE_CPU_ISA names an instruction set
// that is unknown or not supported here.
fastdecode_result check_isa();

const char* isa_name(Isa isa);

}  // namespace fastdecode
