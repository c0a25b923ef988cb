// Answers in the model's own words: every token that the model reads or writes attends to chunks of the memory, which
// are fetched from the store for it (HSA, arXiv 2504.16795, section 3).
//
// A generation reads the last tokens of its memory and the prompt in blocks of 64, and then writes token by token; up
// to Decoder::streams_max() of them write side by side. What an answer says does not depend on the others.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "daemon/decoder.h"
#include "daemon/encoder.h"
#include "daemon/requests.h"
#include "memstore/store.h"
#include "model/tokenizer.h"

namespace recalld {

// What a generation ends with.
struct Generated {
  MemoryInfo memory;             // as it was when the generation began
  uint64_t end_token = 0;        // chunks that end after this token of the memory were not considered
  std::vector<uint32_t> tokens;  // without the newline piece
  std::string text;
  Finish finish = Finish::newline;
  std::map<uint64_t, double> attended;  // by chunk, its share of the attention of all tokens written
  std::vector<Unreadable> unreadable;
};

class Generator {
 public:
  static constexpr uint64_t context_tokens = 192;  // of the memory's end, which are read before the prompt
  static constexpr int attempts_max = 8;           // of one generation, when turns are forgotten meanwhile
  // Generations that are announced and not answered, in all and on one connection.
  static constexpr size_t open_max = 256;
  static constexpr size_t open_of_connection_max = 64;

  // Everything is borrowed, but for the shape, which is the store's.
  Generator(Store& store, const RecordShape& shape, const Tokenizer& tokenizer, Encoder& encoder, Decoder& decoder);
  ~Generator();  // after interrupt() and the step() that follows it, so that all are answered

  // ---- Any thread
  // A generation of this caller is on its way to start(): from here on it can be cancelled. busy: too many are open.
  Expected<void> announce(const Caller& caller);
  // After announce(). `done` is called on the thread of step(), as is request.on_text.
  // prompt: what is read after the end of the memory, <|recall|> last
  void start(GenerateRequest request, std::vector<uint32_t> prompt, Done<Generated> done);
  // Ends the generations of this caller, or of all callers on a connection, with what they have written so far.
  // Whether there was one.
  bool cancel(const Caller& caller);
  void cancel_all(uint64_t connection);
  // All generations, and those still to come, end with busy: the daemon stops.
  void interrupt();

  // ---- The model thread
  // Writes a token of each answer that is begun or, in turn with that, reads one block of the oldest prompt that is not
  // read. Whether there is more to do.
  bool step();

  uint64_t tokens_written() const { return tokens_written_; }

  // ---- Any thread
  // Fails where the chunks of a memory may not be what they were `then`: busy when turns were forgotten since,
  // not_found when it was deleted. The message says so of a generation.
  Expected<void> check_unchanged(const MemoryInfo& then) const;

 private:
  struct Generation;

  void admit();
  void drop_cancelled();
  Expected<void> begin(Generation& generation);
  Expected<void> read_block(Generation& generation);
  void write_tokens();
  Expected<void> take(Generation& generation, const Decoder::Read& read);
  void take_token(Generation& generation, std::span<const float> logits);
  void tell_text(Generation& generation, bool last);
  static void reset(Generation& generation);
  void give_up(Generation& generation, Error error);
  void end_with(Generation& generation, Error error);
  void forget_caller(const Caller& caller);
  void finish(Generation& generation, Finish how);
  bool was_cancelled(const Generation& generation) const;

  Store& store_;
  const RecordShape shape_;
  const Tokenizer& tokenizer_;
  Encoder& encoder_;
  Decoder& decoder_;
  std::list<std::unique_ptr<Generation>> active_;  // the model thread's alone
  bool reads_next_ = false;                        // likewise: a prompt has its turn
  std::atomic<uint64_t> tokens_written_ = 0;

  mutable std::mutex mutex_;  // guards what follows
  std::deque<std::unique_ptr<Generation>> waiting_;
  std::multiset<Caller> callers_;  // of the announced, the waiting and the active
  std::set<Caller> cancelled_;
  bool interrupted_ = false;
};

// The token that the model writes next: the best, of equals the lowest, or with a temperature a random one of the
// fewest best ones whose probabilities add up to top_p. logits: [vocab_size]
uint32_t choose_token(std::span<const float> logits, double temperature, double top_p, std::mt19937_64& random);

}  // namespace recalld
