// main() for compilers without libFuzzer: mutates inputs and keeps those with a new outcome.
//
//   fuzz_abi [--seed N] [--seconds N] [--runs N] [FILE...]
//
// Ends after so many seconds or runs, whichever is first; FILEs are run once each instead. The
// input that is running is written to crash.bin in the working directory if the program aborts.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <set>
#include <string>

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Every error ends in abort(), where the input is saved.
extern "C" const char* __asan_default_options() {
  return "abort_on_error=1:detect_leaks=1";
}
extern "C" const char* __ubsan_default_options() {
  return "abort_on_error=1:print_stacktrace=1";
}

namespace {

using Input = std::vector<uint8_t>;

constexpr size_t kLongest = 768;
constexpr size_t kCorpus = 20000;

Input current;

void save_and_end(int) {
  FILE* file = fopen("crash.bin", "wb");
  if (file != nullptr) {
    fwrite(current.data(), 1, current.size(), file);
    fclose(file);
    fprintf(stderr, "the input is in crash.bin, of %zu bytes\n", current.size());
  }
  _exit(1);
}

Input fresh(fuzz::Random& random) {
  Input made(1 + random.below(kLongest));
  for (uint8_t& byte : made) byte = static_cast<uint8_t>(random.next());
  return made;
}

void mutate(Input& input, const std::vector<Input>& corpus, fuzz::Random& random) {
  const uint64_t at = random.below(input.size());
  switch (random.below(7)) {
    case 0:
      input[at] ^= static_cast<uint8_t>(1u << random.below(8));
      break;
    case 1:
      input[at] = static_cast<uint8_t>(random.next());
      break;
    case 2: {
      static const uint8_t telling[] = {0, 1, 2, 127, 128, 254, 255};
      input[at] = telling[random.below(sizeof telling)];
      break;
    }
    case 3: {
      const Input more = fresh(random);
      input.insert(input.begin() + static_cast<int64_t>(at), more.begin(),
                   more.begin() + static_cast<int64_t>(random.below(9) % more.size()));
      break;
    }
    case 4:
      input.erase(input.begin() + static_cast<int64_t>(at),
                  input.begin() +
                      static_cast<int64_t>(std::min<uint64_t>(input.size(), at + random.below(9))));
      break;
    case 5: {  // the end of another input
      const Input& other = corpus[random.below(corpus.size())];
      const size_t from = std::min<size_t>(at, other.size());
      input.resize(at);
      input.insert(input.end(), other.begin() + static_cast<int64_t>(from), other.end());
      break;
    }
    default: {  // a part again, elsewhere
      const size_t length = std::min<size_t>(1 + random.below(16), input.size() - at);
      const Input part(input.begin() + static_cast<int64_t>(at),
                       input.begin() + static_cast<int64_t>(at + length));
      const uint64_t to = random.below(input.size());
      for (size_t i = 0; i < length && to + i < input.size(); ++i) input[to + i] = part[i];
      break;
    }
  }
  if (input.empty()) input.push_back(0);
  if (input.size() > kLongest) input.resize(kLongest);
}

int run_files(int count, char** names) {
  for (int i = 0; i < count; ++i) {
    FILE* file = fopen(names[i], "rb");
    if (file == nullptr) {
      perror(names[i]);
      return 2;
    }
    current.assign(1 << 20, 0);
    current.resize(fread(current.data(), 1, current.size(), file));
    fclose(file);
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  printf("runs %d\n", count);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t seed = 0, runs = UINT64_MAX;
  double seconds = 1e9;
  int at = 1;
  for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
    const std::string name = argv[at];
    if (name == "--seed") seed = strtoull(argv[at + 1], nullptr, 10);
    if (name == "--runs") runs = strtoull(argv[at + 1], nullptr, 10);
    if (name == "--seconds") seconds = strtod(argv[at + 1], nullptr);
  }
  signal(SIGABRT, save_and_end);
  if (at < argc) return run_files(argc - at, argv + at);
  if (runs == UINT64_MAX && seconds > 1e8) seconds = 10;

  fuzz::Random random(seed);
  std::vector<Input> corpus = {fresh(random)};
  std::set<uint64_t> outcomes;
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  uint64_t run = 0;
  for (; run < runs && passed() < seconds; ++run) {
    if (random.below(8) == 0) {
      current = fresh(random);
    } else {
      current = corpus[random.below(corpus.size())];
      for (uint64_t times = 1 + random.below(5); times > 0; --times)
        mutate(current, corpus, random);
    }
    LLVMFuzzerTestOneInput(current.data(), current.size());
    if (!outcomes.insert(fuzz::outcome).second) continue;
    if (corpus.size() < kCorpus) {
      corpus.push_back(current);
    } else {
      corpus[random.below(kCorpus)] = current;
    }
  }
  printf("runs %llu, seconds %.1f, outcomes %zu, corpus %zu, seed %llu, up to %s\n",
         static_cast<unsigned long long>(run), passed(), outcomes.size(), corpus.size(),
         static_cast<unsigned long long>(seed), fastdecode_cpu_isa());
  return 0;
}
