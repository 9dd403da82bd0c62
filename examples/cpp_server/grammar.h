// Which token may come next, as tables that the library walks: text, in which a picture may open
// wherever it fits below the limit; a picture is a block of image ids between two markers.
#pragma once

#include <fastdecode/fastdecode.h>

#include <vector>

constexpr int32_t kBeginSequence = 0, kEndSequence = 1, kBeginImage = 2, kEndImage = 3;
constexpr int32_t kFirstImage = 4, kFirstText = 1028, kVocab = 4096;  // image ids, then text ids
constexpr int32_t kBlock = 64;                                        // image ids of a picture

// A group's place in the grammar. Inside a block the place counts, so every place is a mode.
constexpr int32_t kText = 0, kDone = 1, kPicture = 2, kClose = kPicture + kBlock;

inline bool in_picture(int32_t mode) {
  return mode >= kPicture;
}

class Grammar {
 public:
  Grammar() {
    set_of_[kText] = kTextSet;
    tight_set_of_[kText] = kTextWithoutPictureSet;
    room_[kText] = kBlock + 2;  // with its markers
    lead(kText, kText, kPicture, kDone);
    lead(kDone, kDone, kDone, kDone);
    for (int32_t mode = kPicture; mode < kClose; ++mode) {
      set_of_[mode] = kImageSet;
      lead(mode, mode + 1, mode + 1, mode + 1);
    }
    forced_[kClose] = kEndImage;
    lead(kClose, kText, kText, kText);
  }

  // Points both calls' tables here: the grammar must outlive them.
  void bind(fastdecode_sample_args& sample, fastdecode_advance_args& advance) const {
    sample.ranges = ranges_.data();
    sample.set_offsets = set_offsets_.data();
    sample.sets = static_cast<int64_t>(set_offsets_.size()) - 1;
    fastdecode_grammar& tables = advance.grammar;
    tables.modes = kModes;
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
  enum Set { kTextSet, kTextWithoutPictureSet, kImageSet };
  enum Class { kOther, kBegins, kEnds, kClasses };
  static constexpr int32_t kModes = kClose + 1;

  // Where a mode leads to, by the class of the token.
  void lead(int32_t mode, int32_t other, int32_t begins, int32_t ends) {
    following_[mode * kClasses + kOther] = other;
    following_[mode * kClasses + kBegins] = begins;
    following_[mode * kClasses + kEnds] = ends;
  }

  std::vector<int32_t> ranges_ = {
      kEndSequence, kBeginImage + 1, kFirstText, kVocab,  // kTextSet
      kEndSequence, kBeginImage,     kFirstText, kVocab,  // kTextWithoutPictureSet
      kFirstImage,  kFirstText,                           // kImageSet
  };
  std::vector<int32_t> set_offsets_ = {0, 2, 4, 5};  // in pairs: where each set begins
  std::vector<int32_t> class_ranges_ = {
      kEndSequence, kEndSequence + 1, kEnds,    //
      kBeginImage,  kBeginImage + 1,  kBegins,  //
  };
  std::vector<int32_t> set_of_ = std::vector<int32_t>(kModes, -1);
  std::vector<int32_t> tight_set_of_ = std::vector<int32_t>(kModes, -1);
  std::vector<int32_t> room_ = std::vector<int32_t>(kModes, 0);
  std::vector<int32_t> forced_ = std::vector<int32_t>(kModes, -1);
  std::vector<int32_t> following_ = std::vector<int32_t>(kModes * kClasses);
};
