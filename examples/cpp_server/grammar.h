// Which token may come next, as tables that the library walks. Text, in which a picture may begin
// wherever it fits below the limit; a picture is a block of image tokens between two markers.
#pragma once

#include <fastdecode/fastdecode.h>

#include <cstdint>
#include <vector>

#include "config.h"

// What a request may answer with. Each has places of its own in the tables.
enum Mode { kTextOnly, kImageOnly, kInterleaved, kModes };

class Grammar {
 public:
  explicit Grammar(const Config& config)
      : config_(config), places_(kPicture + static_cast<int32_t>(config.image_length) + 1) {
    const auto is = [&](int64_t token, int32_t special) { return token == special; };
    const std::vector<bool>& image = config.is_image;
    for (int mode = 0; mode < kModes; ++mode) {
      const bool draws = mode != kTextOnly;
      std::vector<bool> text(config.vocab), without_begin(config.vocab);
      for (int64_t token = 0; token < config.vocab; ++token) {
        // Where pictures are read back from the tokens, nothing may come that would not parse.
        const bool never =
            is(token, config.end_image) || is(token, config.placeholder) ||
            ((is(token, config.pad) || is(token, config.begin_sequence)) && !config.is_end[token]);
        text[token] = !image[token] && !(draws && never);
        without_begin[token] = text[token] && !(draws && is(token, config.begin_image));
      }
      add_set(text);
      add_set(without_begin);
      add_set(image);
      add_places(mode);
    }
    for (int32_t token = 0; token < config.vocab; ++token) {
      const int32_t kind = config.is_end[token]          ? kEnds
                           : token == config.begin_image ? kBegins
                                                         : kOther;
      if (kind != kOther) class_ranges_.insert(class_ranges_.end(), {token, token + 1, kind});
    }
  }
  Grammar(const Grammar&) = delete;

  // The place behind a prompt, which may end in an unfinished picture.
  int32_t start(Mode mode, const std::vector<int32_t>& prompt) const {
    const int32_t begun = begun_tokens(mode, prompt);
    return mode * places_ + (begun > 0 ? kPicture + begun - 1 : mode == kImageOnly ? kOpen : kText);
  }

  // How many tokens at the end of a prompt belong to an unfinished picture; 0: none is.
  int32_t begun_tokens(Mode mode, const std::vector<int32_t>& prompt) const {
    if (mode == kTextOnly) return 0;
    for (int64_t back = 1; back <= config_.image_length + 1; ++back) {
      if (back > static_cast<int64_t>(prompt.size())) break;
      const int32_t token = prompt[prompt.size() - back];
      if (token == config_.begin_image) return static_cast<int32_t>(back);
      if (!config_.is_image[token]) break;
    }
    return 0;
  }

  bool in_picture(int32_t place) const { return place % places_ >= kPicture; }

  // Points both calls' tables here: the grammar must outlive them.
  void bind(fastdecode_sample_args& sample, fastdecode_advance_args& advance) const {
    sample.ranges = ranges_.data();
    sample.set_offsets = set_offsets_.data();
    sample.sets = static_cast<int64_t>(set_offsets_.size()) - 1;
    fastdecode_grammar& tables = advance.grammar;
    tables.modes = static_cast<int64_t>(set_of_.size());
    tables.classes = kClasses;
    tables.set_of = set_of_.data();
    tables.tight_set_of = tight_set_of_.data();
    tables.room = room_.data();
    tables.forced = forced_.data();
    tables.following = following_.data();
    tables.class_ranges = class_ranges_.data();
    tables.class_range_count = static_cast<int64_t>(class_ranges_.size()) / 3;
  }

 private:
  // In a picture every token has a place of its own, so that the tables count them.
  enum Place { kText, kDone, kOpen, kPicture };
  enum Set { kTextSet, kTextWithoutBeginSet, kImageSet, kSets };
  enum Class { kOther, kBegins, kEnds, kClasses };

  void add_set(const std::vector<bool>& tokens) {
    const int32_t size = static_cast<int32_t>(tokens.size());
    for (int32_t low = 0; low < size; ++low) {
      if (!tokens[low]) continue;
      int32_t high = low;
      while (high < size && tokens[high]) ++high;
      ranges_.insert(ranges_.end(), {low, high});
      low = high;
    }
    set_offsets_.push_back(static_cast<int32_t>(ranges_.size()) / 2);
  }

  void add_places(int mode) {
    const int32_t first = mode * places_, close = places_ - 1, sets = mode * kSets;
    // A place: the set to draw from, or the token that is forced, and where each class leads.
    const auto add = [&](int32_t set, int32_t forced, int32_t other, int32_t begins, int32_t ends) {
      const int32_t tight = set == kTextSet ? kTextWithoutBeginSet : set;
      set_of_.push_back(set < 0 ? -1 : sets + set);
      tight_set_of_.push_back(set < 0 ? -1 : sets + tight);
      room_.push_back(set == kTextSet ? static_cast<int32_t>(config_.image_length) + 2 : 0);
      forced_.push_back(forced);
      following_.insert(following_.end(), {first + other, first + begins, first + ends});
    };
    add(kTextSet, -1, kText, mode == kTextOnly ? kText : kPicture, kDone);
    add(-1, -1, kDone, kDone, kDone);
    add(-1, config_.begin_image, kPicture, kPicture, kDone);
    for (int32_t place = kPicture; place < close; ++place) {
      add(kImageSet, -1, place + 1, place + 1, place + 1);
    }
    const int32_t behind = mode == kImageOnly ? kDone : kText;
    add(-1, config_.end_image, behind, behind, kDone);
  }

  const Config& config_;
  const int32_t places_;                                            // of each mode
  std::vector<int32_t> ranges_, class_ranges_, set_offsets_ = {0};  // offsets in pairs of ranges_
  std::vector<int32_t> set_of_, tight_set_of_, room_, forced_, following_;
};
