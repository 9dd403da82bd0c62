// libFuzzer's entry: the first byte chooses what is called.

#include "fuzz.h"

namespace fuzz {

uint64_t outcome = 0;

void check_refusal(fastdecode_result result) {
  CHECK(result == FASTDECODE_INVALID_ARGUMENT);
  const char* message = fastdecode_last_error();
  CHECK(message != nullptr && strlen(message) > 10);
  const bool says = strstr(message, ":") != nullptr || strstr(message, "must") != nullptr;
  CHECK(says);
  // Numbers aside, the message is an outcome.
  for (const char* c = message; *c != 0; ++c) {
    if (*c != '-' && (*c < '0' || *c > '9')) note(static_cast<uint64_t>(*c));
    if (*c == '=') break;
  }
}

}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::outcome = 0;
  fuzz::Bytes bytes(data, size);
  const int64_t target = bytes.in(0, 11);
  fuzz::note(static_cast<uint64_t>(target < 6 ? 0 : target));
  if (target < 6) {
    fuzz::fuzz_sample(bytes);
  } else if (target < 8) {
    fuzz::fuzz_advance(bytes);
  } else if (target == 8) {
    fuzz::fuzz_linear(bytes);
  } else if (target < 11) {
    fuzz::fuzz_decode_step(bytes);
  } else {
    fuzz::fuzz_operations(bytes);
  }
  return 0;
}
