#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(FASTDECODE_X86)
#include <cpuid.h>
#endif

#include "core/error.h"

namespace fastdecode {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16"};

#if defined(FASTDECODE_X86)
// Asked of the processor here, and not with __builtin_cpu_supports: the run-time libraries of some
// compilers have a stub for it, which says no to everything.
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

// CPUID; zeros for a leaf that the processor does not have.
Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// Which registers the operating system saves (XCR0): only those may be used.
unsigned saved_registers() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr unsigned bit(int n) {
  return 1u << n;
}

constexpr bool has(unsigned flags, unsigned wanted) {
  return (flags & wanted) == wanted;
}
#endif

Isa best() {
#if defined(FASTDECODE_X86)
  const unsigned first = cpuid(1, 0).c;
  constexpr unsigned kFma = bit(12), kOsXsave = bit(27), kAvx = bit(28), kF16c = bit(29);
  if (!has(first, kFma | kOsXsave | kAvx | kF16c)) return Isa::kPortable;
  constexpr unsigned kYmm = bit(1) | bit(2), kZmm = bit(5) | bit(6) | bit(7);
  const unsigned saved = saved_registers(), second = cpuid(7, 0).b;
  constexpr unsigned kAvx2 = bit(5);
  if (!has(saved, kYmm) || !has(second, kAvx2)) return Isa::kPortable;
  constexpr unsigned kAvx512 = bit(16) | bit(17) | bit(30) | bit(31);  // F, DQ, BW, VL
  if (!has(saved, kZmm) || !has(second, kAvx512)) return Isa::kAvx2;
  constexpr unsigned kBf16 = bit(5), kVnni = bit(11);
  const bool both = has(cpuid(7, 1).a, kBf16) && has(cpuid(7, 0).c, kVnni);
  return both ? Isa::kAvx512Bf16 : Isa::kAvx512;
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
