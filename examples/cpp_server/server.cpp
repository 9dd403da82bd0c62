// A server without its network: requests for interleaved text and pictures, each with parameters
// and guidance of its own, decoded by several threads with continuous batching. The library draws,
// walks the grammar and keeps the sequences; the model is made up. Needs nothing else:
//
//     g++ -std=c++17 -O2 -pthread server.cpp $(fastdecode config --cflags --libs) -o server
//     ./server [--requests N] [--workers W] [--slots S] [--threads T] [--device D]
//
// Prints a line for each request: its number, log-probability and ids. What a request gets does not
// depend on the batch around it, so the lines are the same for all W, S and T, and for all devices:
// cpu, cuda, and cuda-graph, which replays a step. The last two are there where the server is built
// with the CUDA library, by CMakeLists.txt or by adding
//
//     -DSERVER_CUDA -I$CUDA/include -lfastdecode_cuda -L$CUDA/lib64 -lcudart_static -ldl -lrt

#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch.h"
#include "calls.h"
#if defined(SERVER_CUDA)
#include "cuda_calls.h"
#endif
#include "grammar.h"
#include "request.h"

namespace {

struct Options {
  int64_t requests = 300;
  int64_t workers = 2;  // threads with a batch each
  int64_t slots = 8;    // of each batch
  int64_t threads = 1;  // of each call; 0: one per processor
  std::string device = "cpu";
};

int64_t whole_number(const std::string& name, const std::string& text, int64_t least,
                     int64_t most) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stop == end && value >= least && value <= most) return value;
  throw std::runtime_error(
      name + (text.empty() ? ": must be followed by" : " " + text + ": must be") +
      " a whole number from " + std::to_string(least) + " to " + std::to_string(most));
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (size_t i = 0; i < words.size(); i += 2) {
    const std::string& name = words[i];
    const std::string text = i + 1 < words.size() ? words[i + 1] : "";
    if (name == "--requests") {
      options.requests = whole_number(name, text, 1, 1000000);
    } else if (name == "--workers") {
      options.workers = whole_number(name, text, 1, 256);
    } else if (name == "--slots") {
      options.slots = whole_number(name, text, 1, 4096);
    } else if (name == "--threads") {
      options.threads = whole_number(name, text, 0, 256);
    } else if (name == "--device") {
      if (text != "cpu" && text != "cuda" && text != "cuda-graph") {
        throw std::runtime_error(name + (text.empty() ? "" : " " + text) +
                                 ": must be cpu, cuda or cuda-graph");
      }
      options.device = text;
    } else {
      throw std::runtime_error(name +
                               ": must be --requests, --workers, --slots, --threads or --device");
    }
  }
  return options;
}

void print(const std::vector<Result>& results) {
  for (size_t number = 0; number < results.size(); ++number) {
    const Result& result = results[number];
    std::printf("%zu %.4f", number, result.logprob);
    for (int64_t id : result.ids) std::printf(" %" PRId64, id);
    if (result.status != FASTDECODE_STATUS_OK) std::printf(" failed: status %d", result.status);
    std::printf("\n");
  }
}

std::unique_ptr<Calls> make_calls(const Grammar& grammar, const Options& options) {
  if (options.device == "cpu") {
    return std::make_unique<CpuCalls>(grammar, options.slots,
                                      static_cast<int32_t>(options.threads));
  }
#if defined(SERVER_CUDA)
  return std::make_unique<CudaCalls>(grammar, options.slots, options.device == "cuda-graph");
#else
  throw std::runtime_error("--device " + options.device +
                           ": this server was built without the CUDA library; build fastdecode "
                           "where nvcc is, with FASTDECODE_CUDA=1, and the server with CMake");
#endif
}

void serve(const Options& options) {
  const Grammar grammar;
  Queue queue(options.requests);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::future<void>> workers;  // which bring a worker's exception here
  for (int64_t worker = 0; worker < options.workers; ++worker) {
    workers.push_back(std::async(std::launch::async, [&] {
      Batch batch(make_calls(grammar, options), options.slots);
      batch.serve(queue);
    }));
  }
  for (std::future<void>& worker : workers) worker.get();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  print(queue.results());
  size_t tokens = 0;
  for (const Result& result : queue.results()) tokens += result.ids.size();
  std::fprintf(stderr, "%zu tokens, %.0f tokens/s\n", tokens, tokens / seconds.count());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    serve(parse({argv + 1, argv + argc}));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "server: %s\n", error.what());
    return 1;
  }
  return 0;
}
