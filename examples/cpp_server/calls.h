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
  // What the server sees and sets. Its calls leave `seen` and `sequences` to these two:
  virtual State& state() = 0;
  virtual void send_seen(int64_t slot) = 0;
  virtual void fetch_sequence(int64_t slot) = 0;
  // Draws and appends a token for each running slot. Throws what the library says of a call that
  // fails.
  virtual void draw() = 0;
};

class CpuCalls : public Calls {
 public:
  CpuCalls(const Grammar& grammar, int64_t slots, int32_t threads) : state_(slots, host_memory) {
    bind(state_, slots, sample_, advance_);
    grammar.bind(sample_, advance_);
    sample_.threads = threads;
  }

  State& state() override { return state_; }
  void send_seen(int64_t) override {}
  void fetch_sequence(int64_t) override {}
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
