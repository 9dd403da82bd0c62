// Guided text from a GGUF: llama.cpp computes the logits, fastdecode mixes them and samples.
//
//     ./guided model.gguf --scale 1.5 --negative "I am unsure." "A line about rain." "And snow."
//
// Every prompt is a request. A request is two sequences of llama.cpp's: the prompt, and the
// negative prompt in its place (without one: the begin of sequence alone). All sequences of all
// requests go through the model as one batch; then one call of fastdecode_sample takes, for each
// request, the logits u + scale * (c - u) of its two rows, filters them and samples a token, which
// is fed to both.

#include <fastdecode/fastdecode.h>
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama_parts.h"
#include "options.h"

namespace {

struct Request {
  std::string prompt;
  Tokens streams[2];        // what its sequences begin with: conditional, unconditional
  int32_t lengths[2] = {};  // tokens in llama.cpp's memory
  Tokens made;
  bool done = false;
};

// The next token of each of these requests, from `logits` (2 rows for each, one after another).
void sample(const float* logits, int64_t vocab, const Options& options,
            const std::vector<size_t>& numbers, std::vector<Request>& requests, std::FILE* dump) {
  const size_t groups = numbers.size();
  std::vector<int32_t> streams, kept(groups), status(groups);
  std::vector<float> weights, logprob(groups);
  std::vector<int64_t> seeds, steps, tokens(groups);
  for (size_t g = 0; g < groups; ++g) {
    for (int k = 0; k < 2; ++k) streams.push_back(static_cast<int32_t>(2 * g + k));
    weights.insert(weights.end(), {options.scale, 1.0f - options.scale});
    seeds.push_back(options.seed + static_cast<int64_t>(numbers[g]));
    // Seed and step are all that the noise depends on, so a request's text is its own, whatever
    // the batch around it, as far as llama.cpp's logits are.
    steps.push_back(static_cast<int64_t>(requests[numbers[g]].made.size()));
  }
  fastdecode_sample_args args;
  fastdecode_sample_args_init(&args);
  args.logits = logits;  // where llama.cpp left them: nothing is copied
  args.rows = static_cast<int64_t>(2 * groups);
  args.vocab = vocab;
  args.row_stride = vocab;
  args.groups = static_cast<int64_t>(groups);
  args.streams_per_group = 2;
  args.streams = streams.data();
  args.weights = weights.data();
  args.seed = seeds.data();
  args.step = steps.data();
  args.temperature_value = options.temperature;
  args.top_k_value = options.top_k;
  args.top_p_value = options.top_p;
  args.min_p_value = options.min_p;
  args.token = tokens.data();
  args.logprob = logprob.data();
  args.kept = kept.data();
  args.status = status.data();
  if (fastdecode_sample(&args) != FASTDECODE_OK) throw std::runtime_error(fastdecode_last_error());
  for (size_t g = 0; g < groups; ++g) {
    if (tokens[g] < 0) throw std::runtime_error("the model computed NaN or infinite logits");
    requests[numbers[g]].made.push_back(static_cast<llama_token>(tokens[g]));
    if (dump == nullptr) continue;
    // For tests: three int64, request, step and token, then the two rows of float32.
    const int64_t head[] = {static_cast<int64_t>(numbers[g]), steps[g], tokens[g]};
    const size_t size = static_cast<size_t>(2 * vocab);
    if (std::fwrite(head, sizeof head, 1, dump) != 1 ||
        std::fwrite(logits + g * size, sizeof(float), size, dump) != size) {
      throw std::runtime_error("--dump-logits: the file cannot be written");
    }
  }
}

void write(const Options& options) {
  llama_model_params model_params = llama_model_default_params();
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(options.model.c_str(), model_params), llama_model_free);
  if (!model) throw std::runtime_error(options.model + " cannot be loaded: " + llama_error());
  const llama_vocab* vocab = llama_model_get_vocab(model.get());

  std::vector<Request> requests;
  size_t prompts = 0, longest = 0;
  for (const std::string& prompt : options.prompts) {
    Request request;
    request.prompt = prompt;
    request.streams[0] = tokenize(vocab, prompt);
    request.streams[1] = tokenize(vocab, options.negative);
    for (const Tokens& tokens : request.streams) {
      prompts += tokens.size();
      longest = std::max(longest, tokens.size());
    }
    requests.push_back(std::move(request));
  }
  const size_t context_length = longest + static_cast<size_t>(options.tokens);
  const size_t trained = static_cast<size_t>(llama_model_n_ctx_train(model.get()));
  if (context_length > trained) {
    throw std::runtime_error("a prompt of " + std::to_string(longest) + " tokens and --tokens " +
                             std::to_string(options.tokens) + " do not fit into the model's " +
                             std::to_string(trained));
  }
  llama_context_params params = llama_context_default_params();
  params.n_seq_max = static_cast<uint32_t>(2 * requests.size());
  params.n_ctx = static_cast<uint32_t>(context_length) * params.n_seq_max;  // of all sequences
  params.n_batch = static_cast<uint32_t>(prompts);
  params.n_threads = params.n_threads_batch = options.threads;
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(
      llama_init_from_model(model.get(), params), llama_free);
  if (!context) throw std::runtime_error("no context for these requests: " + llama_error());
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> dump(
      options.dump.empty() ? nullptr : std::fopen(options.dump.c_str(), "wb"),
      [](std::FILE* file) { return file == nullptr ? 0 : std::fclose(file); });
  if (!options.dump.empty() && !dump) throw std::runtime_error(options.dump + ": cannot be opened");

  Batch batch(prompts);
  for (int32_t step = 0; step < options.tokens; ++step) {
    std::vector<size_t> running;
    for (size_t number = 0; number < requests.size(); ++number) {
      Request& request = requests[number];
      if (request.done) continue;
      running.push_back(number);
      for (size_t k = 0; k < 2; ++k) {
        // The whole prompts first, and then what was sampled, which both sequences get. Logits are
        // wanted behind the last token of each.
        const Tokens& fed = step == 0 ? request.streams[k] : Tokens{request.made.back()};
        for (size_t i = 0; i < fed.size(); ++i) {
          batch.add(fed[i], request.lengths[k]++, 2 * number + k, i + 1 == fed.size());
        }
      }
    }
    if (running.empty()) break;
    batch.decode(context.get());
    sample(llama_get_logits(context.get()), llama_vocab_n_tokens(vocab), options, running, requests,
           dump.get());
    for (size_t number : running) {
      Request& request = requests[number];
      request.done =
          llama_vocab_is_eog(vocab, request.made.back());  // its rows are in no batch now
    }
  }
  for (const Request& request : requests) {
    std::cout << request.prompt << " ->" << text_of(vocab, request.made) << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  keep_llama_errors();
  try {
    const Options options = Options::parse({argv + 1, argv + argc});
    if (options.help) {
      std::fputs(Options::kHelp, stdout);
      return 0;
    }
    write(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "guided: %s\n", error.what());
    return 1;
  }
  return 0;
}
