// Continuous batching on fastdecode_sample_advance: the page to copy from.
#pragma once

#include <fastdecode/fastdecode.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "grammar.h"
#include "model.h"
#include "request.h"

// Slots that each decode one request at a time. A slot is a group of the library's; its streams
// have rows of their own, slot * kMaxStreams and the next ones. One thread uses a batch.
class Batch {
 public:
  Batch(const Grammar& grammar, int64_t slots, int32_t threads);
  Batch(const Batch&) = delete;  // the arguments of the calls point into it

  // Decodes until the queue is empty. Throws what the library says of a call that fails.
  void serve(Queue& queue) {
    int64_t running = 0;
    for (int64_t slot = 0; slot < slots_; ++slot) running += admit(slot, queue);
    while (running > 0) {
      run_model();
      if (fastdecode_sample_advance(&sample_, &advance_) != FASTDECODE_OK) {
        throw std::runtime_error(fastdecode_last_error());  // of this thread, so not later
      }
      for (int64_t slot = 0; slot < slots_; ++slot) {
        // A slot goes to the next request at once; the others do not notice.
        if (collect(slot) && !admit(slot, queue)) --running;
      }
    }
  }

 private:
  // Gives a slot to the next request, with nothing left of the one before. False: none waits.
  bool admit(int64_t slot, Queue& queue) {
    const Job job = queue.take();
    jobs_[slot] = job;
    if (job.request == nullptr) return false;
    const std::vector<int32_t>& prompt = job.request->streams[0].prompt;
    seed_[slot] = job.request->seed;
    limit_[slot] = job.request->limit;
    step_[slot] = 0;
    mode_[slot] = kText;
    finished_[slot] = FASTDECODE_RUNNING;
    uint32_t* seen = &seen_[slot * kWords];
    std::fill_n(seen, kWords, 0);
    for (int32_t id : prompt) seen[id / 32] |= 1u << id % 32;  // the penalty is for these too
    open_stream(slot, 0, prompt.size(), prompt.back());
    end_picture(slot);
    return true;
  }

  // A stream that has `length` ids: its prompt and perhaps more, `input` the last, to be fed next.
  void open_stream(int64_t slot, int64_t k, int64_t length, int64_t input) {
    const int64_t row = slot * kMaxStreams + k;
    streams_[row] = static_cast<int32_t>(row);
    cache_[row] = prefill(jobs_[slot].request->streams[k].prompt);
    lengths_[row] = length;
    inputs_[row] = input;
  }

  // Guidance acts inside pictures: its streams are made here, of their prompts and the marker that
  // the slot has just drawn. In text they cost nothing.
  void begin_picture(int64_t slot) {
    const Request& request = *jobs_[slot].request;
    drawing_[slot] = true;
    set_sampling(slot, request.picture);
    for (size_t k = 0; k < request.streams.size(); ++k) {
      weights_[slot * kMaxStreams + k] = request.streams[k].weight;
      if (k > 0) open_stream(slot, k, request.streams[k].prompt.size() + 1, kBeginImage);
    }
  }

  void end_picture(int64_t slot) {
    drawing_[slot] = false;
    set_sampling(slot, jobs_[slot].request->text);
    weights_[slot * kMaxStreams] = 1.0f;
    std::fill_n(&streams_[slot * kMaxStreams + 1], kMaxStreams - 1, -1);
  }

  void set_sampling(int64_t slot, const Sampling& sampling) {
    temperature_[slot] = sampling.temperature;
    top_k_[slot] = sampling.top_k;
    top_p_[slot] = sampling.top_p;
    min_p_[slot] = sampling.min_p;
    penalty_[slot] = sampling.penalty;
  }

  // Every row that is in use. A real model takes them as one batch.
  void run_model() {
    for (int64_t row = 0; row < slots_ * kMaxStreams; ++row) {
      if (streams_[row] < 0 || finished_[row / kMaxStreams] != FASTDECODE_RUNNING) continue;
      step_model(cache_[row], lengths_[row], inputs_[row], &logits_[row * kVocab]);
    }
  }

  // Takes what a step has brought. True: the slot's request has its answer.
  bool collect(int64_t slot) {
    const Job& job = jobs_[slot];
    if (job.request == nullptr) return false;
    if (status_[slot] == FASTDECODE_STATUS_OK) job.result->logprob += logprob_[slot];
    if (finished_[slot] == FASTDECODE_RUNNING) {
      const bool drawing = in_picture(mode_[slot]);
      if (drawing && !drawing_[slot]) begin_picture(slot);
      if (!drawing && drawing_[slot]) end_picture(slot);
      return false;
    }
    const int64_t* ids = &sequences_[slot * kMaxLimit];
    job.result->ids.assign(ids, ids + step_[slot]);
    if (finished_[slot] == FASTDECODE_FAILED) job.result->status = status_[slot];
    return true;
  }

  static constexpr int64_t kWords = (kVocab + 31) / 32;  // of a set of seen ids

  const int64_t slots_;
  std::vector<Job> jobs_;
  std::vector<uint8_t> drawing_;  // whether a slot has the parameters and streams of a picture
  // By row
  std::vector<Cache> cache_;
  std::vector<float> logits_;
  std::vector<int64_t> inputs_, lengths_;
  // By slot, some with further dimensions
  std::vector<int32_t> streams_, top_k_, mode_, kept_, status_;
  std::vector<uint32_t> seen_;
  std::vector<float> weights_, temperature_, top_p_, min_p_, penalty_, logprob_;
  std::vector<int64_t> seed_, step_, limit_, sequences_, token_;
  std::vector<uint8_t> finished_;
  fastdecode_sample_args sample_;
  fastdecode_advance_args advance_;
};

inline Batch::Batch(const Grammar& grammar, int64_t slots, int32_t threads)
    : slots_(slots),
      jobs_(slots),
      drawing_(slots),
      cache_(slots * kMaxStreams),
      logits_(slots * kMaxStreams * kVocab),
      inputs_(slots * kMaxStreams),
      lengths_(slots * kMaxStreams),
      streams_(slots * kMaxStreams, -1),
      top_k_(slots),
      mode_(slots),
      kept_(slots),
      status_(slots),
      seen_(slots * kWords),
      weights_(slots * kMaxStreams),
      temperature_(slots),
      top_p_(slots),
      min_p_(slots),
      penalty_(slots, 1.0f),  // parameters must be valid in empty slots too
      logprob_(slots),
      seed_(slots),
      step_(slots),
      limit_(slots),
      sequences_(slots * kMaxLimit),
      token_(slots),
      finished_(slots, FASTDECODE_ENDED) {  // empty
  fastdecode_sample_args_init(&sample_);
  sample_.logits = logits_.data();
  sample_.threads = threads;
  sample_.rows = slots * kMaxStreams;
  sample_.vocab = kVocab;
  sample_.row_stride = kVocab;
  sample_.groups = slots;
  sample_.streams_per_group = kMaxStreams;
  sample_.streams = streams_.data();
  sample_.weights = weights_.data();
  sample_.temperature = temperature_.data();
  sample_.top_k = top_k_.data();
  sample_.top_p = top_p_.data();
  sample_.min_p = min_p_.data();
  sample_.penalty = penalty_.data();
  sample_.seed = seed_.data();
  sample_.token = token_.data();
  sample_.logprob = logprob_.data();
  sample_.kept = kept_.data();
  sample_.status = status_.data();

  fastdecode_advance_args_init(&advance_);  // its groups, streams and rows are the sample's
  advance_.mode = mode_.data();
  advance_.step = step_.data();
  advance_.limit = limit_.data();
  advance_.finished = finished_.data();
  advance_.inputs = inputs_.data();
  advance_.lengths = lengths_.data();
  advance_.seen = reinterpret_cast<int32_t*>(seen_.data());
  sample_.seen = advance_.seen;
  advance_.sequences = sequences_.data();
  advance_.capacity = kMaxLimit;
  grammar.bind(sample_, advance_);
}
