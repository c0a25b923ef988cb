#include "daemon/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/quote.h"

namespace recalld {

struct Generator::Generation {
  GenerateRequest request;
  Done<Generated> done;
  int attempts = 0;

  Generated result;
  std::vector<uint32_t> asked;              // the prompt alone
  std::vector<uint32_t> prompt;             // all that is read before the first token is written
  size_t read = 0;                          // tokens of it
  std::unique_ptr<Decoder::Stream> stream;  // while it goes on
  std::mt19937_64 random;
  size_t told_bytes = 0;  // of the text, through on_text
  bool ended = false;     // and answered

  bool begun() const { return result.memory.id != 0; }  // what it reads from is fixed
  bool writes() const { return begun() && read == prompt.size(); }
};

Generator::Generator(Store& store, const RecordShape& shape, const Tokenizer& tokenizer, Encoder& encoder,
                     Decoder& decoder)
    : store_(store), shape_(shape), tokenizer_(tokenizer), encoder_(encoder), decoder_(decoder) {}
Generator::~Generator() = default;

// ---- From any thread

Expected<void> Generator::announce(const Caller& caller) {
  const std::lock_guard lock(mutex_);
  const auto of_connection = std::ranges::count(callers_, caller.connection, &Caller::connection);
  if (callers_.size() >= open_max || static_cast<size_t>(of_connection) >= open_of_connection_max)
    return fail(ErrorKind::busy, "generate: " + std::to_string(callers_.size()) +
                                     " answers are being written or wait, " + std::to_string(of_connection) +
                                     " of them on this connection; ask again when some are there");
  callers_.insert(caller);
  return {};
}

void Generator::start(GenerateRequest request, std::vector<uint32_t> prompt, Done<Generated> done) {
  auto generation = std::make_unique<Generation>();
  generation->request = std::move(request);
  generation->asked = std::move(prompt);
  generation->done = std::move(done);
  const std::lock_guard lock(mutex_);
  waiting_.push_back(std::move(generation));
}

bool Generator::cancel(const Caller& caller) {
  const std::lock_guard lock(mutex_);
  if (!callers_.contains(caller)) return false;
  cancelled_.insert(caller);
  return true;
}

void Generator::cancel_all(uint64_t connection) {
  const std::lock_guard lock(mutex_);
  for (const Caller& caller : callers_)
    if (caller.connection == connection) cancelled_.insert(caller);
}

void Generator::interrupt() {
  const std::lock_guard lock(mutex_);
  interrupted_ = true;
}

// ---- One step of all

bool Generator::step() {
  admit();
  drop_cancelled();
  const auto writes = std::ranges::find_if(active_, [](const auto& each) { return !each->ended && each->writes(); });
  const auto unread = std::ranges::find_if(active_, [](const auto& each) { return !each->ended && !each->writes(); });
  if (unread != active_.end() && (reads_next_ || writes == active_.end())) {
    Generation& generation = **unread;
    if (auto read = read_block(generation); !read) give_up(generation, std::move(read).error());
    reads_next_ = false;
  } else {
    write_tokens();
    reads_next_ = true;
  }
  std::erase_if(active_, [](const auto& each) { return each->ended; });
  const std::lock_guard lock(mutex_);
  return !active_.empty() || !waiting_.empty();
}

// Cancelled ones are let in at once, to be answered. Of the others that goes first whose connection has the fewest
// answers under way.
void Generator::admit() {
  const std::lock_guard lock(mutex_);
  const auto active_of = [this](const std::unique_ptr<Generation>& waiting) {
    return std::ranges::count_if(active_, [&](const auto& each) {
      return each->request.caller.connection == waiting->request.caller.connection;
    });
  };
  for (auto each = waiting_.begin(); each != waiting_.end();) {
    if (!interrupted_ && !cancelled_.contains((*each)->request.caller)) {
      ++each;
      continue;
    }
    active_.push_back(std::move(*each));
    each = waiting_.erase(each);
  }
  while (!waiting_.empty() && active_.size() < decoder_.streams_max()) {
    const auto next = std::ranges::min_element(waiting_, {}, active_of);
    active_.push_back(std::move(*next));
    waiting_.erase(next);
  }
}

bool Generator::was_cancelled(const Generation& generation) const {
  const std::lock_guard lock(mutex_);
  return cancelled_.contains(generation.request.caller);
}

void Generator::drop_cancelled() {
  const bool interrupted = [&] {
    const std::lock_guard lock(mutex_);
    return interrupted_;
  }();
  for (const auto& generation : active_) {
    if (interrupted) {
      end_with(*generation, {ErrorKind::busy, "the daemon stops before the answer is written; ask again later"});
    } else if (was_cancelled(*generation)) {
      // What was written from turns that are forgotten now is not told.
      if (generation->begun() && !check_unchanged(generation->result.memory)) reset(*generation);
      finish(*generation, Finish::cancelled);
    }
  }
}

// ---- Reading

// Fixes what the generation reads from.
Expected<void> Generator::begin(Generation& generation) {
  const GenerateRequest& request = generation.request;
  RECALLD_TRY(Encoder::Covered covered, encoder_.cover(request.memory));
  const MemoryInfo& memory = covered.memory;
  reset(generation);
  Decoder::Source source{.memory = memory, .stored_chunks = memory.encoded_chunks, .tail_landmarks = {}, .tail_kv = {}};
  uint64_t tail_chunks = 0;
  if (memory.next) {
    // Chunks from here on know of forgotten turns. The next generation's, which do not, are not served yet.
    source.stored_chunks = std::min(source.stored_chunks, memory.next_first_chunk);
  } else if (covered.tail) {
    const Tail& tail = *covered.tail;
    tail_chunks = tail.end_token / chunk_tokens - tail.first_chunk;
    const auto complete = static_cast<ptrdiff_t>(tail_chunks);
    source.tail_landmarks.assign(tail.landmarks.begin(), tail.landmarks.begin() + complete * shape_.landmark_dim);
    source.tail_kv.assign(tail.kv.begin(), tail.kv.begin() + complete * shape_.kv_bytes);
  }

  const StreamInfo& newest = memory.next ? *memory.next : memory.serving;
  const uint64_t first = newest.tokens - std::min(newest.tokens, context_tokens);
  RECALLD_TRY(generation.prompt, store_.tokens(newest, first, newest.tokens - first));
  generation.prompt.insert(generation.prompt.end(), generation.asked.begin(), generation.asked.end());
  generation.random.seed(request.seed.value_or(0));
  generation.result.end_token = (source.stored_chunks + tail_chunks) * chunk_tokens;
  generation.result.unreadable = std::move(covered.unreadable);
  generation.result.memory = std::move(covered.memory);
  RECALLD_TRY(generation.stream, decoder_.open(std::move(source)));
  return {};
}

Expected<void> Generator::check_unchanged(const MemoryInfo& then) const {
  const std::string action = "generate from memory " + in_quotes(then.name) + ": ";
  auto now = store_.memory(then.id);
  if (!now && now.error().kind == ErrorKind::not_found)
    return fail(ErrorKind::not_found, action + "it was deleted meanwhile");
  if (!now) return std::unexpected(std::move(now).error());
  const bool same =
      now->serving.stream == then.serving.stream && now->serving.edition == then.serving.edition &&
      now->next.has_value() == then.next.has_value() &&
      (!now->next || (now->next->stream == then.next->stream && now->next->edition == then.next->edition));
  if (!same) return fail(ErrorKind::busy, action + "turns of it were forgotten meanwhile; ask again");
  return {};
}

// Nothing stays of what it has read and written: it has not begun.
void Generator::reset(Generation& generation) {
  generation.stream.reset();
  generation.result = {};
  generation.prompt.clear();
  generation.read = 0;
}

Expected<void> Generator::read_block(Generation& generation) {
  if (!generation.begun()) RECALLD_CHECK(begin(generation));
  const size_t count = std::min<size_t>(chunk_tokens, generation.prompt.size() - generation.read);
  const auto tokens = std::span(generation.prompt).subspan(generation.read, count);
  generation.read += count;
  RECALLD_TRY(const Decoder::Read read, decoder_.read(*generation.stream, tokens, generation.writes()));
  return take(generation, read);
}

// ---- Writing

void Generator::write_tokens() {
  std::vector<Generation*> writers;
  std::vector<Decoder::Written> tokens;
  for (const auto& generation : active_) {
    if (generation->ended || !generation->writes()) continue;
    writers.push_back(generation.get());
    tokens.push_back({generation->stream.get(), generation->result.tokens.back()});
  }
  if (writers.empty()) return;
  std::vector<std::optional<Expected<Decoder::Read>>> reads = decoder_.write(tokens);
  for (size_t i = 0; i < writers.size(); ++i) {
    if (!reads[i]) continue;  // it waits for chunks, and is offered the same token again
    Expected<Decoder::Read>& read = *reads[i];
    if (!read)
      give_up(*writers[i], std::move(read).error());
    else if (auto taken = take(*writers[i], *read); !taken)
      give_up(*writers[i], std::move(taken).error());
  }
}

// What came of tokens counts if the memory is still what it was.
Expected<void> Generator::take(Generation& generation, const Decoder::Read& read) {
  Generated& result = generation.result;
  RECALLD_CHECK(check_unchanged(result.memory));
  for (const Unreadable& chunks : read.unreadable)
    if (std::ranges::find(result.unreadable, chunks.first, &Unreadable::first) == result.unreadable.end())
      result.unreadable.push_back(chunks);
  if (!generation.writes()) return {};
  for (const auto& [chunk, share] : read.attended) result.attended[chunk] += share;
  take_token(generation, read.logits);
  return {};
}

void Generator::take_token(Generation& generation, std::span<const float> logits) {
  const GenerateRequest& request = generation.request;
  const uint32_t token = choose_token(logits, request.temperature, request.top_p, generation.random);
  if (token == tokenizer_.newline_id()) return finish(generation, Finish::newline);
  generation.result.tokens.push_back(token);
  ++tokens_written_;
  if (generation.result.tokens.size() == request.max_tokens) return finish(generation, Finish::max_tokens);
  tell_text(generation, false);
}

// What is decoded from tokens alone: characters that wait for more bytes come out as U+FFFD, and wait here.
void Generator::tell_text(Generation& generation, bool last) {
  if (!last && !generation.request.on_text) return;
  std::string text = tokenizer_.decode(generation.result.tokens);
  text.erase(0, text.find_first_not_of(' '));
  size_t bytes = text.size();
  constexpr std::string_view unknown = "\xef\xbf\xbd";
  while (!last && std::string_view(text).substr(0, bytes).ends_with(unknown)) bytes -= unknown.size();
  if (generation.request.on_text && bytes > generation.told_bytes) {
    generation.request.on_text(text.substr(generation.told_bytes, bytes - generation.told_bytes));
    generation.told_bytes = bytes;
  }
  generation.result.text = std::move(text);
}

// ---- Ends

// Where turns were forgotten meanwhile it begins anew, unless a part of the answer has been told.
void Generator::give_up(Generation& generation, Error error) {
  if (generation.ended) return;
  if (!generation.begun() && error.kind == ErrorKind::busy)
    error.message = "generate from memory " + in_quotes(generation.request.memory) +
                    ": turns of it are being forgotten all the time; ask again";
  if (generation.begun())
    if (auto same = check_unchanged(generation.result.memory); !same) error = std::move(same).error();
  reset(generation);
  if (error.kind == ErrorKind::busy && generation.told_bytes == 0 && ++generation.attempts < attempts_max) return;
  end_with(generation, std::move(error));
}

void Generator::end_with(Generation& generation, Error error) {
  if (generation.ended) return;
  generation.ended = true;
  generation.stream.reset();
  forget_caller(generation.request.caller);
  generation.done(std::unexpected(std::move(error)));
}

void Generator::finish(Generation& generation, Finish how) {
  if (generation.ended) return;
  generation.ended = true;
  generation.stream.reset();
  tell_text(generation, true);
  generation.result.finish = how;
  // As many tokens were chosen, the newline piece among them.
  const double chosen = static_cast<double>(generation.result.tokens.size() + (how == Finish::newline ? 1 : 0));
  for (auto& [chunk, share] : generation.result.attended) share /= std::max(1.0, chosen);
  std::ranges::sort(generation.result.unreadable, {}, &Unreadable::first);
  forget_caller(generation.request.caller);
  generation.done(std::move(generation.result));
}

void Generator::forget_caller(const Caller& caller) {
  const std::lock_guard lock(mutex_);
  callers_.erase(callers_.find(caller));
  if (!callers_.contains(caller)) cancelled_.erase(caller);
}

uint32_t choose_token(std::span<const float> logits, double temperature, double top_p, std::mt19937_64& random) {
  const auto best = static_cast<uint32_t>(std::ranges::max_element(logits) - logits.begin());
  if (temperature <= 0) return best;
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](uint32_t token) { return logits[token]; });
  std::vector<double> shares;
  double total = 0;
  for (const uint32_t token : order) {
    shares.push_back(std::exp(static_cast<double>(logits[token] - logits[best]) / temperature));
    total += shares.back();
  }
  size_t kept = 0;
  double sum = 0;
  while (kept < shares.size() && (kept == 0 || sum < top_p * total)) sum += shares[kept++];
  // 53 random bits, so that a seed gives the same answer with every standard library.
  double place = static_cast<double>(random() >> 11) * 0x1p-53 * sum;
  for (size_t i = 0; i < kept; ++i) {
    place -= shares[i];
    if (place < 0) return order[i];
  }
  return order[kept - 1];
}

}  // namespace recalld
