// Continuous batching on fastdecode_decode_step and fastdecode_sample_advance: the page to copy.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "decoder.h"
#include "grammar.h"
#include "request.h"
#include "state.h"

// The pages that a slot can come to need, whatever its request.
inline int64_t most_pages(const Config& config) {
  const int64_t picture = config.image_length + 2;
  return pages_for(config.context) + std::max(pages_for(config.context), pages_for(picture));
}

// Slots that each decode one request at a time. A slot is a group of the library's. One thread
// uses a batch; all batches share the model, the grammar and the queue.
class Batch {
 public:
  Batch(const Model& model, const Grammar& grammar, std::unique_ptr<Calls> calls, int64_t pages,
        int32_t threads)
      : config_(model.config),
        grammar_(grammar),
        calls_(std::move(calls)),
        s_(calls_->state()),
        pages_(pages),
        decoder_(model, pages, threads),
        slots_(s_.sizes.slots) {
    std::fill_n(s_.streams, slots_.size() * kMaxStreams, -1);
    std::fill_n(s_.penalty, slots_.size(), 1.0f);  // must be valid in empty slots too
    std::fill_n(s_.finished, slots_.size(), uint8_t{FASTDECODE_ENDED});  // empty
  }
  Batch(const Batch&) = delete;

  // Decodes until the queue is closed and empty. Throws what the library says of a call that fails.
  void serve(Queue& queue, Answers& answers) {
    while (true) {
      for (size_t slot = 0; slot < slots_.size(); ++slot) {
        if (!slots_[slot].busy && next(queue, answers)) start(slot);
      }
      if (running_ == 0) return;
      step();
      for (size_t slot = 0; slot < slots_.size(); ++slot) {
        if (slots_[slot].busy) collect(slot, answers);
      }
    }
  }

 private:
  struct Slot {
    bool busy = false;
    Request request;
    std::vector<int32_t> tokens;  // of the prompt, then those drawn; each stream is fed the newest
    int32_t begun = 0;            // tokens of the picture it is in; 0: in text
    int64_t streams = 1;          // that a step runs
    Stream stream[kMaxStreams];
  };

  // --- requests -------------------------------------------------------------------------------

  // Makes next_ the request to start now. False: none waits, or its pages are not free yet. A
  // request gets at its start all pages that it can come to need, so that none of those that run
  // must ever be stopped for want of pages.
  bool next(Queue& queue, Answers& answers) {
    while (!next_) {
      Request request;
      // With nothing else to do it waits for a request, or for the end of the queue.
      if (!queue.take(request, /*wait=*/running_ == 0)) return false;
      const int64_t needed = pages_for(request.limit) + guide_pages(request);
      if (needed <= pages_) {
        next_ = std::move(request);
      } else {
        answers.error(request.number, "no room: it takes " + std::to_string(needed) +
                                          " pages of keys and values, and --pages gives " +
                                          std::to_string(pages_));
      }
    }
    return pages_for(next_->limit) + guide_pages(*next_) <= decoder_.free_pages();
  }

  // Gives a slot to the next request, with nothing left of the one before.
  void start(size_t slot) {
    Slot& at = slots_[slot] = Slot();
    at.busy = true;
    at.request = std::move(*next_);
    next_.reset();
    ++running_;
    at.tokens = at.request.prompt;
    const Request& request = at.request;
    const std::vector<int32_t>& prompt = request.prompt;
    s_.seed[slot] = request.seed;
    s_.limit[slot] = request.limit;
    s_.step[slot] = static_cast<int64_t>(prompt.size());
    s_.mode[slot] = grammar_.start(request.mode, prompt);
    s_.finished[slot] = FASTDECODE_RUNNING;
    uint32_t* seen = &s_.seen[slot * s_.words];
    std::fill_n(seen, s_.words, 0);
    for (int32_t token : prompt) seen[token / 32] |= 1u << token % 32;  // the penalty is for these
    calls_->send_seen(slot);
    decoder_.open(at.stream[0], request.limit);
    decoder_.open(at.stream[1], guide_tokens(request));
    // The last token of the prompt is fed by the first step, which needs its logits.
    decoder_.prefill(at.stream[0], prompt.data(), prompt.size() - 1);
    at.begun = grammar_.begun_tokens(request.mode, prompt);
    set_sampling(slot, at.begun > 0 ? request.image : request.text);
    guide(slot);
  }

  // Tokens that the second stream comes to at most.
  int64_t guide_tokens(const Request& request) const {
    if (request.guidance == 1.0) return 0;
    if (request.mode != kTextOnly) return config_.image_length + 2;
    return request.limit - static_cast<int64_t>(request.prompt.size());
  }
  int64_t guide_pages(const Request& request) const { return pages_for(guide_tokens(request)); }

  // --- guidance -------------------------------------------------------------------------------

  // Decides whether the slot is guided from here on, and makes the second stream: the sequence
  // without its condition. That is the begin of sequence and the picture that has begun; where text
  // is guided, it is the prompt's last token. The stream is made where it first acts, so guidance
  // of pictures costs nothing in text.
  void guide(size_t slot) {
    Slot& at = slots_[slot];
    const std::vector<int32_t>& tokens = at.tokens;
    const bool guided =
        at.request.guidance != 1.0 && (at.begun > 0 || at.request.mode == kTextOnly);
    std::vector<int32_t> other;
    if (guided) {
      if (at.begun > 0) other.push_back(config_.begin_sequence);
      other.insert(other.end(), tokens.end() - std::max(at.begun, 1), tokens.end());
    }
    float* weights = &s_.weights[slot * kMaxStreams];
    if (!guided || other == tokens) {  // both streams would be the same
      at.streams = 1;
      weights[0] = 1.0f;
      return;
    }
    // other + scale * (sequence - other)
    at.streams = 2;
    weights[0] = static_cast<float>(at.request.guidance);
    weights[1] = static_cast<float>(1.0 - at.request.guidance);
    at.stream[1].length = 0;
    decoder_.prefill(at.stream[1], other.data(), other.size() - 1);
  }

  void set_sampling(size_t slot, const Sampling& sampling) {
    s_.temperature[slot] = sampling.temperature;
    s_.top_k[slot] = sampling.top_k;
    s_.top_p[slot] = sampling.top_p;
    s_.min_p[slot] = sampling.min_p;
    s_.penalty[slot] = sampling.penalty;
  }

  // --- steps ----------------------------------------------------------------------------------

  // One token for every request that runs: all rows in one call of the model, all draws in another.
  void step() {
    int32_t row = 0;
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      Slot& at = slots_[slot];
      for (int64_t k = 0; k < kMaxStreams; ++k) {
        const bool there = at.busy && k < at.streams;
        s_.streams[slot * kMaxStreams + k] = there ? row++ : -1;
        if (there) decoder_.add_row(at.stream[k], at.tokens.back());
      }
    }
    decoder_.step(s_.logits);
    calls_->draw();
  }

  // Takes what a step has brought to a slot.
  void collect(size_t slot, Answers& answers) {
    Slot& at = slots_[slot];
    if (s_.finished[slot] != FASTDECODE_FAILED) {
      at.tokens.push_back(static_cast<int32_t>(s_.token[slot]));
    }
    if (s_.finished[slot] != FASTDECODE_RUNNING) {
      finish(slot, answers);
      return;
    }
    const bool was_inside = at.begun > 0, inside = grammar_.in_picture(s_.mode[slot]);
    at.begun = inside ? at.begun + 1 : 0;
    if (inside == was_inside) return;
    set_sampling(slot, inside ? at.request.image : at.request.text);
    guide(slot);
  }

  void finish(size_t slot, Answers& answers) {
    Slot& at = slots_[slot];
    if (s_.finished[slot] == FASTDECODE_FAILED) {
      answers.error(at.request.number, s_.status[slot] == FASTDECODE_STATUS_INVALID_LOGITS
                                           ? "the model computed NaN or infinite logits"
                                           : "no token is allowed here");
    } else {
      answers.tokens(at.request.number, at.tokens, at.request.prompt.size());
    }
    for (Stream& stream : at.stream) decoder_.close(stream);
    at.busy = false;
    --running_;
  }

  const Config& config_;
  const Grammar& grammar_;
  std::unique_ptr<Calls> calls_;
  State& s_;
  const int64_t pages_;
  Decoder decoder_;
  std::vector<Slot> slots_;
  std::optional<Request> next_;  // taken from the queue, not started yet
  int64_t running_ = 0;
};
