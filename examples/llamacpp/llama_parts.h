// What every program on llama.h needs: its errors, text to tokens and back, and a batch.
#pragma once

#include <llama.h>

#include <stdexcept>
#include <string>
#include <vector>

using Tokens = std::vector<llama_token>;

// The first error that llama.cpp has logged, in one line; those after it only say what it led to.
inline std::string& llama_error() {
  static std::string text;
  return text;
}

// From here on llama.cpp's log is silent: what it says of an error comes with ours.
inline void keep_llama_errors() {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level != GGML_LOG_LEVEL_ERROR || !llama_error().empty()) return;
        llama_error() = text;
        llama_error().resize(llama_error().find_last_not_of('\n') + 1);
      },
      nullptr);
}

inline Tokens tokenize(const llama_vocab* vocab, const std::string& text) {
  const int32_t length = static_cast<int32_t>(text.size());
  // Called without room it returns minus the number of tokens.
  Tokens tokens(-llama_tokenize(vocab, text.data(), length, nullptr, 0, true, true));
  llama_tokenize(vocab, text.data(), length, tokens.data(), static_cast<int32_t>(tokens.size()),
                 true, true);
  if (tokens.empty()) {
    throw std::runtime_error(text.empty() ? "this model has no begin of sequence: give --negative"
                                          : "'" + text + "' has no tokens");
  }
  return tokens;
}

inline std::string text_of(const llama_vocab* vocab, const Tokens& tokens) {
  const int32_t count = static_cast<int32_t>(tokens.size());
  std::string text(-llama_detokenize(vocab, tokens.data(), count, nullptr, 0, false, false), '\0');
  llama_detokenize(vocab, tokens.data(), count, text.data(), static_cast<int32_t>(text.size()),
                   false, false);
  return text;
}

// A batch of llama.cpp's, filled token by token.
class Batch {
 public:
  explicit Batch(size_t most) : batch_(llama_batch_init(static_cast<int32_t>(most), 0, 1)) {}
  Batch(const Batch&) = delete;
  ~Batch() { llama_batch_free(batch_); }

  void add(llama_token token, int32_t position, size_t sequence, bool logits) {
    const int32_t i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = static_cast<llama_seq_id>(sequence);
    batch_.logits[i] = logits;
  }
  void decode(llama_context* context) {
    const int32_t error = llama_decode(context, batch_);
    if (error != 0) throw std::runtime_error("llama_decode returned " + std::to_string(error));
    batch_.n_tokens = 0;
  }

 private:
  llama_batch batch_;
};
