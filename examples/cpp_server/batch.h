// Continuous batching on fastdecode_sample_advance: the page to copy from.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "calls.h"
#include "grammar.h"
#include "model.h"
#include "request.h"
#include "state.h"

// Slots that each decode one request at a time. A slot is a group of the library's; its streams
// have rows of their own, slot * kMaxStreams and the next ones. One thread uses a batch.
class Batch {
 public:
  Batch(std::unique_ptr<Calls> calls, int64_t slots)
      : slots_(slots),
        calls_(std::move(calls)),
        s_(calls_->state()),
        jobs_(slots),
        drawing_(slots),
        cache_(slots * kMaxStreams) {
    std::fill_n(s_.streams, slots * kMaxStreams, -1);
    std::fill_n(s_.penalty, slots, 1.0f);  // parameters must be valid in empty slots too
    std::fill_n(s_.finished, slots, uint8_t{FASTDECODE_ENDED});  // empty
  }
  Batch(const Batch&) = delete;

  // Decodes until the queue is empty. Throws what the library says of a call that fails.
  void serve(Queue& queue) {
    int64_t running = 0;
    for (int64_t slot = 0; slot < slots_; ++slot) running += admit(slot, queue);
    while (running > 0) {
      run_model();
      calls_->draw();
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
    s_.seed[slot] = job.request->seed;
    s_.limit[slot] = job.request->limit;
    s_.step[slot] = 0;
    s_.mode[slot] = kText;
    s_.finished[slot] = FASTDECODE_RUNNING;
    uint32_t* seen = &s_.seen[slot * State::kWords];
    std::fill_n(seen, State::kWords, 0);
    for (int32_t id : prompt) seen[id / 32] |= 1u << id % 32;  // the penalty is for these too
    calls_->send_seen(slot);
    open_stream(slot, 0, prompt.size(), prompt.back());
    end_picture(slot);
    return true;
  }

  // A stream that has `length` ids: its prompt and perhaps more, `input` the last, to be fed next.
  void open_stream(int64_t slot, int64_t k, int64_t length, int64_t input) {
    const int64_t row = slot * kMaxStreams + k;
    s_.streams[row] = static_cast<int32_t>(row);
    cache_[row] = prefill(jobs_[slot].request->streams[k].prompt);
    s_.lengths[row] = length;
    s_.inputs[row] = input;
  }

  // Guidance acts inside pictures: its streams are made here, of their prompts and the marker that
  // the slot has just drawn. In text they cost nothing.
  void begin_picture(int64_t slot) {
    const Request& request = *jobs_[slot].request;
    drawing_[slot] = true;
    set_sampling(slot, request.picture);
    for (size_t k = 0; k < request.streams.size(); ++k) {
      s_.weights[slot * kMaxStreams + k] = request.streams[k].weight;
      if (k > 0) open_stream(slot, k, request.streams[k].prompt.size() + 1, kBeginImage);
    }
  }

  void end_picture(int64_t slot) {
    drawing_[slot] = false;
    set_sampling(slot, jobs_[slot].request->text);
    s_.weights[slot * kMaxStreams] = 1.0f;
    std::fill_n(&s_.streams[slot * kMaxStreams + 1], kMaxStreams - 1, -1);
  }

  void set_sampling(int64_t slot, const Sampling& sampling) {
    s_.temperature[slot] = sampling.temperature;
    s_.top_k[slot] = sampling.top_k;
    s_.top_p[slot] = sampling.top_p;
    s_.min_p[slot] = sampling.min_p;
    s_.penalty[slot] = sampling.penalty;
  }

  // Every row that is in use. A real model takes them as one batch.
  void run_model() {
    for (int64_t row = 0; row < slots_ * kMaxStreams; ++row) {
      if (s_.streams[row] < 0 || s_.finished[row / kMaxStreams] != FASTDECODE_RUNNING) continue;
      step_model(cache_[row], s_.lengths[row], s_.inputs[row], &s_.logits[row * kVocab]);
    }
  }

  // Takes what a step has brought. True: the slot's request has its answer.
  bool collect(int64_t slot) {
    const Job& job = jobs_[slot];
    if (job.request == nullptr) return false;
    if (s_.status[slot] == FASTDECODE_STATUS_OK) job.result->logprob += s_.logprob[slot];
    if (s_.finished[slot] == FASTDECODE_RUNNING) {
      const bool drawing = in_picture(s_.mode[slot]);
      if (drawing && !drawing_[slot]) begin_picture(slot);
      if (!drawing && drawing_[slot]) end_picture(slot);
      return false;
    }
    calls_->fetch_sequence(slot);
    const int64_t* ids = &s_.sequences[slot * kMaxLimit];
    job.result->ids.assign(ids, ids + s_.step[slot]);
    if (s_.finished[slot] == FASTDECODE_FAILED) job.result->status = s_.status[slot];
    return true;
  }

  const int64_t slots_;
  std::unique_ptr<Calls> calls_;
  State& s_;
  std::vector<Job> jobs_;
  std::vector<uint8_t> drawing_;  // whether a slot has the parameters and streams of a picture
  std::vector<Cache> cache_;      // by row
};
