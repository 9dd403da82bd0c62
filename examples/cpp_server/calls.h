// Where a batch's tokens are drawn: by the library on the CPU, or as in cuda_calls.h on a GPU.
#pragma once

#include <fastdecode/fastdecode.h>

#include <memory>
#include <stdexcept>

#include "grammar.h"
#include "state.h"

class Calls {
 public:
  virtual ~Calls() = default;
  // What the server sees and sets, except `seen`, which is the calls' own after send_seen.
  virtual State& state() = 0;
  virtual void send_seen(int64_t slot) = 0;
  // Draws and appends a token for each running slot. Throws what the library says of a call that
  // fails.
  virtual void draw() = 0;
};

class CpuCalls : public Calls {
 public:
  CpuCalls(const Grammar& grammar, const Sizes& sizes, int32_t threads)
      : state_(sizes, host_memory) {
    bind(state_, sample_, advance_);
    grammar.bind(sample_, advance_);
    sample_.threads = threads;
  }

  State& state() override { return state_; }
  void send_seen(int64_t) override {}
  void draw() override {
    if (fastdecode_sample_advance(&sample_, &advance_) != FASTDECODE_OK) {
      throw std::runtime_error(fastdecode_last_error());  // of this thread, so not later
    }
  }

 private:
  State state_;
  fastdecode_sample_args sample_;
  fastdecode_advance_args advance_;
};
