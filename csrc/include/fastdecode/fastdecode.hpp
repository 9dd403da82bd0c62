// fastdecode for C++17: the C interface with spans, exceptions and owned results. Header only; link
// libfastdecode. What is computed, and every default, is in fastdecode.h.
//
// Functions throw fastdecode::Error with the library's message. Besides what the library checks,
// they check that each span is as long as the sizes say. Spans own nothing: what they
// point to must live until the call ends. An optional span that is empty is one that is left out.
// Calls allocate only where a call has more groups than any call of the same object before.
//
// Objects may be used by one thread at a time, different objects by several.
//
// Include this file alone: its parts are in fastdecode/cpp.
#ifndef FASTDECODE_FASTDECODE_HPP
#define FASTDECODE_FASTDECODE_HPP

#include <fastdecode/cpp/base.hpp>
#include <fastdecode/cpp/decoding.hpp>
#include <fastdecode/cpp/grammar.hpp>
#include <fastdecode/cpp/sampling.hpp>

#endif  // FASTDECODE_FASTDECODE_HPP
