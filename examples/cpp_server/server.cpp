// A server without its network: requests for text and pictures are lines on standard input, their
// answers are lines on standard output, and in between a checkpoint decodes them with continuous
// batching, each with parameters and guidance of its own. Nothing of it needs Python or torch:
//
//     g++ -std=c++17 -O2 -pthread server.cpp $(fastdecode config --cflags --libs) -o server
//     echo "mode=image-only guidance=3 seed=7 temperature=1 0 613 520 656 545 529 578 277 262" |
//         ./server $(fastdecode config --cmake-prefix)/assets/blocks
//
// `./server --help` describes the lines. What a request gets depends on nothing around it, so
// answers are the same for all --workers, --slots and --threads, for all devices, and as
// fastdecode.generate(..., deterministic=True) in Python. The devices cuda and cuda-graph, which
// draw on a GPU, are there where the server is built with the CUDA library, by CMakeLists.txt or by
// adding
//
//     -DSERVER_CUDA -I$CUDA/include -lfastdecode_cuda -L$CUDA/lib64 -lcudart_static -ldl -lrt

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <future>
#include <iostream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "batch.h"
#include "calls.h"
#if defined(SERVER_CUDA)
#include "cuda_calls.h"
#endif
#include "grammar.h"
#include "model.h"
#include "request.h"

namespace {

constexpr char kUsage[] =
    "usage: server MODEL [--workers W] [--slots S] [--threads T] [--pages P] [--device D]\n"
    "\n"
    "Decodes a Chameleon checkpoint: the folder MODEL has model.safetensors and config.json.\n"
    "  --workers W   threads with a batch each (default 1)\n"
    "  --slots S     requests that a worker decodes at once (default 8)\n"
    "  --threads T   threads of each call of the library; 0: one per processor (default 1)\n"
    "  --pages P     pages of keys and values of a worker, 16 tokens each (default: enough for\n"
    "                every slot, whatever the request)\n"
    "  --device D    where tokens are drawn: cpu (default), cuda, or cuda-graph\n"
    "\n";

constexpr char kAnswerHelp[] =
    "\n"
    "An answer is a line too: the number of the request's line, `ok` and the new tokens, or "
    "`error`\n"
    "and what is wrong with the request. Answers come when they are there, in no order. The exit\n"
    "status is 0 if every answer is ok, 1 if some are not, and 2 if nothing could be served.\n";

struct Options {
  std::string model;
  int64_t workers = 1;
  int64_t slots = 8;
  int64_t threads = 1;
  int64_t pages = 0;  // 0: enough
  std::string device = "cpu";
};

int64_t whole_number(const std::string& name, const std::string& text, int64_t least,
                     int64_t most) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (!text.empty() && *end == '\0' && errno == 0 && value >= least && value <= most) return value;
  throw std::runtime_error(
      name + (text.empty() ? ": must be followed by" : " " + text + ": must be") +
      " a whole number from " + std::to_string(least) + " to " + std::to_string(most));
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& name = words[i];
    if (name.compare(0, 2, "--") != 0) {
      if (!options.model.empty()) {
        throw std::runtime_error(name + ": the model is " + options.model + " already");
      }
      options.model = name;
      continue;
    }
    const std::string text = ++i < words.size() ? words[i] : "";
    if (name == "--workers") {
      options.workers = whole_number(name, text, 1, 256);
    } else if (name == "--slots") {
      options.slots = whole_number(name, text, 1, 4096);
    } else if (name == "--threads") {
      options.threads = whole_number(name, text, 0, 256);
    } else if (name == "--pages") {
      options.pages = whole_number(name, text, 1, 1 << 24);
    } else if (name == "--device") {
      if (text != "cpu" && text != "cuda" && text != "cuda-graph") {
        throw std::runtime_error(name + (text.empty() ? "" : " " + text) +
                                 ": must be cpu, cuda or cuda-graph");
      }
      options.device = text;
    } else {
      throw std::runtime_error(
          name + ": must be --workers, --slots, --threads, --pages, --device or --help");
    }
  }
  if (options.model.empty()) throw std::runtime_error("give the folder of a model; see --help");
  return options;
}

std::unique_ptr<Calls> make_calls(const Grammar& grammar, const Sizes& sizes,
                                  const Options& options) {
  if (options.device == "cpu") {
    return std::make_unique<CpuCalls>(grammar, sizes, static_cast<int32_t>(options.threads));
  }
#if defined(SERVER_CUDA)
  return std::make_unique<CudaCalls>(grammar, sizes, options.device == "cuda-graph");
#else
  throw std::runtime_error("--device " + options.device +
                           ": this server was built without the CUDA library; build fastdecode "
                           "where nvcc is, with FASTDECODE_CUDA=1, and the server with CMake");
#endif
}

// Puts every line of standard input into the queue; answers those that are wrong.
void read_requests(const RequestReader& reader, Queue& queue, Answers& answers) {
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    try {
      if (!queue.put(reader.read(number, line))) return;
    } catch (const std::invalid_argument& error) {
      answers.error(number, error.what());
    }
  }
}

// Whether every answer is ok.
bool serve(const Options& options) {
  const Model model(options.model);
  const Grammar grammar(model.config);
  const Sizes sizes = {options.slots, model.config.vocab};
  const int64_t pages =
      options.pages > 0 ? options.pages : options.slots * most_pages(model.config);
  std::vector<std::unique_ptr<Batch>> batches;  // made here: one that cannot be made is an error
  for (int64_t worker = 0; worker < options.workers; ++worker) {
    batches.push_back(std::make_unique<Batch>(model, grammar, make_calls(grammar, sizes, options),
                                              pages, static_cast<int32_t>(options.threads)));
  }
  Queue queue;
  Answers answers;
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::future<void>> workers;  // which bring a worker's exception here
  // Futures wait for their threads, and these for requests: also where an exception ends this.
  const std::shared_ptr<Queue> closing(&queue, [](Queue* waiting) { waiting->close(); });
  try {
    for (const std::unique_ptr<Batch>& batch : batches) {
      workers.push_back(std::async(std::launch::async, [&] {
        try {
          batch->serve(queue, answers);
        } catch (...) {
          queue.close();  // the others end with what they have
          throw;
        }
      }));
    }
  } catch (const std::system_error&) {
    throw std::runtime_error("no more threads can be started: try fewer --workers");
  }
  read_requests(RequestReader(model.config, grammar), queue, answers);
  queue.close();
  for (std::future<void>& worker : workers) worker.get();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::fprintf(stderr, "%lld tokens, %.0f tokens/s\n", static_cast<long long>(answers.made()),
               static_cast<double>(answers.made()) / seconds.count());
  return !answers.failed();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  for (const std::string& word : words) {
    if (word != "--help" && word != "-h") continue;
    std::printf("%s%s%s", kUsage, kLineHelp, kAnswerHelp);
    return 0;
  }
  try {
    return serve(parse(words)) ? 0 : 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "server: not enough memory: try fewer --slots, --workers or --pages\n");
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "server: %s\n", error.what());
    return 2;
  }
}
