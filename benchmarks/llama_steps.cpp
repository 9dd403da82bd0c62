// Steps of llama.cpp, told line by line, for `llama_rival.py`:  llama_steps MODEL THREADS MMAP
//
//   start B N TOKENS   B sequences of N tokens each (B * N numbers); room for as many more    -> ok
//   logits FILE TOKENS a step with these B tokens; their logits, float32 (B, vocabulary), to FILE
//   -> ok steps S TOKENS     S steps of B tokens each (S * B numbers), every row with its logits ->
//   S times in seconds
//
// After `logits` and `steps` the sequences are again as `start` left them. Between the lines no
// thread runs. What goes wrong is answered by "error: ..." and ends the program.
#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

struct Steps {
  llama_model* model;
  llama_context* context = nullptr;
  ggml_threadpool* threads;
  int thread_count, vocabulary, sequences = 0, length = 0;

  Steps(const char* path, int count, bool mmap) : thread_count(count) {
    auto params = llama_model_default_params();
    params.load_mode = mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    model = llama_model_load_from_file(path, params);
    if (model == nullptr) throw std::runtime_error(std::string("cannot load ") + path);
    vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    auto pool = ggml_threadpool_params_default(count);
    pool.paused = true;
    threads = ggml_threadpool_new(
        &pool);  // as llama.cpp's own programs: without it threads begin at every step
    if (threads == nullptr) throw std::runtime_error("cannot start its threads");
  }

  void decode(const std::vector<llama_token>& tokens, int first, bool logits) {
    const int each = static_cast<int>(tokens.size()) / sequences;
    llama_batch batch = llama_batch_init(static_cast<int>(tokens.size()), 0, 1);
    for (; batch.n_tokens < static_cast<int>(tokens.size()); ++batch.n_tokens) {
      const int i = batch.n_tokens;
      batch.token[i] = tokens[i];
      batch.pos[i] = first + i % each;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = i / each;
      batch.logits[i] = logits;
    }
    const int error = llama_decode(context, batch);
    llama_synchronize(context);
    llama_batch_free(batch);
    if (error != 0) throw std::runtime_error("llama_decode returns " + std::to_string(error));
  }

  void start(int count, const std::vector<llama_token>& tokens) {
    llama_free(context);
    sequences = count;
    length = static_cast<int>(tokens.size()) / count;
    auto params = llama_context_default_params();
    params.n_ctx = 2 * length * count;
    params.n_seq_max = count;
    params.n_batch = std::max<uint32_t>(params.n_batch, tokens.size());
    params.n_threads = params.n_threads_batch = thread_count;
    params.no_perf = true;
    context = llama_init_from_model(model, params);
    if (context == nullptr) throw std::runtime_error("cannot make a context");
    llama_attach_threadpool(context, threads, nullptr);
    decode(tokens, 0, false);
  }

  void rewind() {
    for (int i = 0; i < sequences; ++i)
      llama_memory_seq_rm(llama_get_memory(context), i, length, -1);
  }

  void write_logits(const std::string& file, const std::vector<llama_token>& tokens) {
    decode(tokens, length, true);
    std::FILE* out = std::fopen(file.c_str(), "wb");
    if (out == nullptr) throw std::runtime_error("cannot write " + file);
    const size_t size = size_t(sequences) * vocabulary;
    const size_t written = std::fwrite(llama_get_logits(context), sizeof(float), size, out);
    if (std::fclose(out) != 0 || written != size) throw std::runtime_error("cannot write " + file);
    rewind();
  }

  std::string step(int count, const std::vector<llama_token>& tokens) {
    std::ostringstream times;
    for (int i = 0; i < count; ++i) {
      const std::vector<llama_token> fed(tokens.begin() + i * sequences,
                                         tokens.begin() + (i + 1) * sequences);
      const auto begin = Clock::now();
      decode(fed, length + i, true);
      if (llama_get_logits_ith(context, sequences - 1) == nullptr)
        throw std::runtime_error("no logits");
      times << (i ? " " : "") << std::chrono::duration<double>(Clock::now() - begin).count();
    }
    rewind();
    return times.str();
  }
};

static std::vector<llama_token> numbers(std::istream& line, size_t wanted) {
  std::vector<llama_token> found;
  for (llama_token token; line >> token;) found.push_back(token);
  if (wanted == 0 || found.size() != wanted)
    throw std::runtime_error("not as many tokens as announced");
  return found;
}

static std::string answer(Steps& steps, std::istringstream line) {
  std::string what;
  line >> what;
  if (what == "start") {
    size_t count = 0, length = 0;
    line >> count >> length;
    steps.start(static_cast<int>(count), numbers(line, count * length));
    return "ok";
  }
  if (steps.context == nullptr) throw std::runtime_error("nothing was started");
  if (what == "logits") {
    std::string file;
    line >> file;
    steps.write_logits(file, numbers(line, steps.sequences));
    return "ok";
  }
  if (what != "steps") throw std::runtime_error("unknown: " + what);
  int count = 0;
  line >> count;
  if (count > steps.length) throw std::runtime_error("more steps than there is room for");
  return steps.step(count, numbers(line, size_t(count) * steps.sequences));
}

int main(int count, char** words) try {
  if (count != 4)
    throw std::runtime_error(
        "give a model, a number of threads, and 1 to map the file or 0 to read it");
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::cerr << text;
      },
      nullptr);
  llama_backend_init();
  Steps steps(words[1], std::stoi(words[2]), std::stoi(words[3]) != 0);
  std::cout << "ok" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    ggml_threadpool_resume(steps.threads);
    const std::string said = answer(steps, std::istringstream(line));
    ggml_threadpool_pause(steps.threads);
    std::cout << said << std::endl;
  }
} catch (const std::exception& error) {
  std::cout << "error: " << error.what() << std::endl;
  return 1;
}
