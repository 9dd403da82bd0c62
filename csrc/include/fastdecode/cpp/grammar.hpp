// Part of fastdecode.hpp: grammars, the state of groups, and tokens appended to them.
#ifndef FASTDECODE_CPP_GRAMMAR_HPP
#define FASTDECODE_CPP_GRAMMAR_HPP

#include <fastdecode/fastdecode.h>
#include <fastdecode/cpp/base.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastdecode {

// The tables of a grammar: see fastdecode_grammar.
struct Grammar {
  std::int64_t classes = 1;
  std::vector<std::int32_t> set_of, forced;      // (modes,)
  std::vector<std::int32_t> tight_set_of, room;  // (modes,) or empty
  std::vector<std::int32_t> following;           // (modes, classes)
  std::vector<std::int32_t> class_ranges;        // (n, 3)

  std::int64_t modes() const { return detail::length(set_of.size()); }

  fastdecode_grammar tables() const {
    detail::check_length("forced", forced.size(), modes());
    detail::check_length("following", following.size(), modes(), classes);
    if (class_ranges.size() % 3 != 0) {
      throw Error(FASTDECODE_INVALID_ARGUMENT,
                  "class_ranges: has " + std::to_string(class_ranges.size()) +
                      " elements; must have 3 for each range: lo, hi and class");
    }
    fastdecode_grammar tables = {};
    tables.modes = modes();
    tables.classes = classes;
    tables.set_of = set_of.data();
    tables.tight_set_of =
        detail::optional<const std::int32_t>("tight_set_of", tight_set_of, modes());
    tables.room = detail::optional<const std::int32_t>("room", room, modes());
    tables.forced = forced.data();
    tables.following = following.data();
    tables.class_ranges = class_ranges.data();
    tables.class_range_count = detail::length(class_ranges.size()) / 3;
    return tables;
  }
};

// The state of groups, which it owns: see fastdecode_advance_args.
struct GroupState {
  std::vector<std::int32_t> mode;
  std::vector<std::int64_t> step, limit;  // limit may be empty
  std::vector<std::uint8_t> finished;
  std::vector<std::int64_t> inputs, lengths;  // (rows,) or empty
  std::vector<std::int32_t> seen;             // (groups, (vocab + 31) / 32) or empty
  std::vector<std::int64_t> sequences;        // (groups, capacity) or empty
  std::int64_t capacity = 0;

  GroupState() = default;
  // Of groups that begin in a mode, with room for `capacity` tokens each.
  GroupState(std::int64_t groups, std::int64_t rows, std::int64_t vocab, std::int64_t capacity_,
             std::int32_t first_mode = 0)
      : mode(count(groups), first_mode),
        step(count(groups)),
        finished(count(groups)),
        inputs(count(rows)),
        lengths(count(rows)),
        seen(count(groups, detail::words(vocab))),
        sequences(count(groups, capacity_)),
        capacity(capacity_) {}

  fastdecode_advance_args arguments(const Grammar& grammar, std::int64_t groups, std::int64_t rows,
                                    std::int64_t vocab) {
    fastdecode_advance_args args;
    check(fastdecode_advance_args_init(&args));
    args.grammar = grammar.tables();
    args.groups = groups;
    args.rows = rows;
    args.vocab = vocab;
    detail::check_length("mode", mode.size(), groups);
    detail::check_length("step", step.size(), groups);
    detail::check_length("finished", finished.size(), groups);
    args.mode = mode.data();
    args.step = step.data();
    args.finished = finished.data();
    args.limit = detail::optional<std::int64_t>("limit", limit, groups);
    args.inputs = detail::optional<std::int64_t>("inputs", inputs, rows);
    args.lengths = detail::optional<std::int64_t>("lengths", lengths, rows);
    args.seen = detail::optional<std::int32_t>("seen", seen, groups, detail::words(vocab));
    args.sequences = detail::optional<std::int64_t>("sequences", sequences, groups, capacity);
    args.capacity = capacity;
    return args;
  }

 private:
  // Elements of an array of a * b.
  static std::size_t count(std::int64_t a, std::int64_t b = 1) {
    constexpr std::int64_t kMost = std::int64_t{1} << 47;
    for (const std::int64_t n : {a, b}) {
      if (n >= 0 && n <= kMost) continue;
      throw Error(FASTDECODE_INVALID_ARGUMENT,
                  "GroupState: a size is " + std::to_string(n) + "; must be in [0, 2^47]");
    }
    if (b > 0 && a > kMost / b) {
      throw Error(FASTDECODE_INVALID_ARGUMENT, "GroupState: an array would have " +
                                                   std::to_string(a) + " * " + std::to_string(b) +
                                                   " elements; must have at most 2^47");
    }
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
  }
};

// Appends given tokens to the groups of `state`: fastdecode_advance. `streams` as in SampleOptions.
inline void advance(Span<const std::int64_t> token, const Grammar& grammar, GroupState& state,
                    std::int64_t rows, std::int64_t vocab, Span<const std::int32_t> streams = {},
                    std::int64_t streams_per_group = 1) {
  const std::int64_t groups = detail::length(token.size());
  fastdecode_advance_args args = state.arguments(grammar, groups, rows, vocab);
  args.token = token.data();
  args.streams = detail::optional("streams", streams, groups, streams_per_group);
  args.streams_per_group = streams_per_group;
  check(fastdecode_advance(&args));
}

}  // namespace fastdecode

#endif  // FASTDECODE_CPP_GRAMMAR_HPP
