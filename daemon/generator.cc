#include "daemon/generator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "base/quote.h"

namespace recalld {

struct Generator::Generation {
  GenerateRequest request;
  Done<Generated> done;
  int attempts = 0;

  // What it reads from, as it was when it began.
  Generated result;
  uint64_t stored_chunks = 0;        // the first ones of the memory, which are read from the store
  std::vector<Bf16> tail_landmarks;  // of the complete chunks after them
  std::vector<std::byte> tail_kv;    // likewise
  std::set<uint64_t> lost;           // chunks whose K/V is damaged

  std::vector<uint32_t> asked;   // the prompt alone
  std::vector<uint32_t> prompt;  // all that is read before the first token is written; empty: it has not begun
  size_t read = 0;               // tokens of it
  RecurrentState lower, upper;
  std::unordered_map<uint64_t, std::vector<Bf16>> kv;  // of the chunks that were attended to last
  std::mt19937_64 random;
  size_t told_bytes = 0;  // of the text, through on_text
  bool ended = false;     // and answered

  bool begun() const { return !prompt.empty(); }
  bool writes() const { return begun() && read == prompt.size(); }
  uint64_t end_chunk(size_t landmark_dim) const { return stored_chunks + tail_landmarks.size() / landmark_dim; }
};

Generator::Generator(Store& store, Ramba& model, const Tokenizer& tokenizer, Encoder& encoder, WorkerPool& pool)
    : store_(store), model_(model), tokenizer_(tokenizer), encoder_(encoder), pool_(pool) {}
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
  while (!waiting_.empty() && active_.size() < Ramba::streams_max) {
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
  MemoryInfo& memory = covered.memory;
  reset(generation);
  generation.stored_chunks = memory.encoded_chunks;
  if (memory.next) {
    // Chunks from here on know of forgotten turns. The next generation's, which do not, are not served yet.
    generation.stored_chunks = std::min(generation.stored_chunks, memory.next_first_chunk);
  } else if (covered.tail) {
    const Tail& tail = *covered.tail;
    const uint64_t complete = tail.end_token / chunk_tokens - tail.first_chunk;
    generation.tail_landmarks.assign(tail.landmarks.begin(),
                                     tail.landmarks.begin() + static_cast<ptrdiff_t>(complete * model_.landmark_dim()));
    generation.tail_kv.assign(tail.kv.begin(), tail.kv.begin() + static_cast<ptrdiff_t>(complete * model_.kv_bytes()));
  }
  generation.result.end_token = generation.end_chunk(model_.landmark_dim()) * chunk_tokens;
  generation.result.unreadable = std::move(covered.unreadable);

  const StreamInfo& newest = memory.next ? *memory.next : memory.serving;
  const uint64_t first = newest.tokens - std::min(newest.tokens, context_tokens);
  RECALLD_TRY(generation.prompt, store_.tokens(newest, first, newest.tokens - first));
  generation.prompt.insert(generation.prompt.end(), generation.asked.begin(), generation.asked.end());
  generation.lower = model_.lower_zero_state();
  generation.upper = model_.upper_zero_state();
  generation.random.seed(request.seed.value_or(0));
  generation.result.memory = std::move(memory);
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
void Generator::reset(Generation& generation) const {
  generation.result = {};
  generation.stored_chunks = 0;
  generation.tail_landmarks.clear();
  generation.tail_kv.clear();
  generation.lost.clear();
  generation.prompt.clear();
  generation.read = 0;
  std::ranges::fill(generation.lower.values, 0.0f);  // they keep their size: a step may be going on
  std::ranges::fill(generation.upper.values, 0.0f);
  generation.kv.clear();
}

Expected<void> Generator::read_block(Generation& generation) {
  if (!generation.begun()) RECALLD_CHECK(begin(generation));
  const size_t width = model_.config().hidden_size;
  const size_t count = std::min<size_t>(chunk_tokens, generation.prompt.size() - generation.read);
  std::vector<float> hidden(chunk_tokens * width);
  model_.lower(generation.lower, std::span(generation.prompt).subspan(generation.read, count), hidden);
  generation.read += count;
  for (size_t group = 0; group < model_.groups(); ++group) {
    RECALLD_TRY(const auto attended, retrieve(generation, std::span(hidden).first(count * width), count, group));
    model_.upper(group, generation.upper, hidden, attended);
  }
  RECALLD_CHECK(check_unchanged(generation.result.memory));
  if (generation.writes()) {
    const auto last = std::span(hidden).subspan((count - 1) * width, width);
    take_token(generation, model_.logits(model_.final_norm(last)));
  }
  return {};
}

// ---- Writing

void Generator::write_tokens() {
  std::vector<Generation*> writers;
  for (const auto& generation : active_)
    if (!generation->ended && generation->writes()) writers.push_back(generation.get());
  if (writers.empty()) return;
  const size_t width = model_.config().hidden_size, heads = model_.config().retrieval_heads();
  std::vector<RecurrentState*> lower, upper;
  std::vector<uint32_t> tokens;
  for (Generation* writer : writers) {
    lower.push_back(&writer->lower);
    upper.push_back(&writer->upper);
    tokens.push_back(writer->result.tokens.back());
  }
  std::vector<float> hidden = model_.lower_step(lower, tokens);
  for (size_t group = 0; group < model_.groups(); ++group) {
    std::vector<std::vector<AttendedChunk>> attended(writers.size() * heads);
    for (size_t i = 0; i < writers.size(); ++i) {
      if (writers[i]->ended || !writers[i]->begun()) continue;
      auto of_writer = retrieve(*writers[i], std::span(hidden).subspan(i * width, width), 1, group);
      if (of_writer)
        std::ranges::move(*of_writer, attended.begin() + static_cast<ptrdiff_t>(i * heads));
      else
        give_up(*writers[i], std::move(of_writer).error());
    }
    model_.upper_step(group, upper, hidden, attended);
  }
  const std::vector<float> logits = model_.logits(model_.final_norm(std::span(hidden).first(writers.size() * width)));
  const size_t vocab_size = model_.config().vocab_size;
  for (size_t i = 0; i < writers.size(); ++i) {
    if (writers[i]->ended || !writers[i]->begun()) continue;  // or it begins anew
    if (auto same = check_unchanged(writers[i]->result.memory); same)
      take_token(*writers[i], std::span(logits).subspan(i * vocab_size, vocab_size));
    else
      give_up(*writers[i], std::move(same).error());
  }
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

// ---- The chunks that a token attends to

// For each token and retrieval head the chunks with their shares, newest first. hidden: [tokens, hidden_size]
Expected<std::vector<std::vector<AttendedChunk>>> Generator::retrieve(Generation& generation,
                                                                      std::span<const float> hidden, size_t tokens,
                                                                      size_t group) {
  const size_t heads = model_.config().retrieval_heads();
  std::vector<std::vector<AttendedChunk>> attended(tokens * heads);
  if (generation.end_chunk(model_.landmark_dim()) == 0) return attended;
  const std::vector<Bf16> queries = model_.landmark_queries(hidden, group);
  std::vector<std::vector<ScoredChunk>> best;
  for (;;) {
    RECALLD_TRY(best, best_chunks(generation, queries));
    const size_t lost = generation.lost.size();
    const auto fetched = fetch(generation, best);
    if (fetched) break;
    if (generation.lost.size() == lost) return std::unexpected(fetched.error());  // else others take their places
  }

  for (size_t i = 0; i < best.size(); ++i) {
    std::ranges::sort(best[i], std::ranges::greater{}, &ScoredChunk::chunk);
    std::vector<float> scores;
    for (const ScoredChunk& chunk : best[i]) scores.push_back(chunk.dot * model_.score_scale());
    const std::vector<float> weights = model_.chunk_weights(scores);
    for (size_t c = 0; c < best[i].size(); ++c)
      attended[i].push_back({generation.kv.at(best[i][c].chunk).data(), weights[c]});
    // The last token that is read writes the first one of the answer.
    if (!generation.writes() || i / heads + 1 != tokens) continue;
    for (size_t c = 0; c < best[i].size(); ++c)
      generation.result.attended[best[i][c].chunk] +=
          static_cast<double>(weights[c]) / static_cast<double>(heads * model_.groups());
  }
  return attended;
}

// The top-k of each query over the stored chunks and the tail, without the damaged ones.
Expected<std::vector<std::vector<ScoredChunk>>> Generator::best_chunks(Generation& generation,
                                                                       std::span<const Bf16> queries) {
  const size_t dim = model_.landmark_dim(), k = model_.config().chunk_topk, count = queries.size() / dim;
  std::vector<Unreadable> unreadable;
  RECALLD_TRY(auto best, store_.top_k_each(generation.result.memory.id, generation.stored_chunks, queries,
                                           k + generation.lost.size(), pool_, &unreadable));
  for (Unreadable& page : unreadable) {
    const auto known = std::ranges::find(generation.result.unreadable, page.first, &Unreadable::first);
    if (known == generation.result.unreadable.end()) generation.result.unreadable.push_back(std::move(page));
  }
  std::vector<float> dots(generation.tail_landmarks.size() / dim);
  for (size_t i = 0; i < count; ++i) {
    TopK top(k);
    for (const ScoredChunk& chunk : best[i])
      if (!generation.lost.contains(chunk.chunk)) top.offer(chunk);
    landmark_dots_cpu(queries.subspan(i * dim, dim), generation.tail_landmarks.data(), dots.size(), dots.data());
    for (size_t c = 0; c < dots.size(); ++c) top.offer({generation.stored_chunks + c, dots[c]});
    best[i] = top.take();
  }
  return best;
}

// Puts the K/V of all these chunks into generation.kv, reading those that are not there in one batch.
Expected<void> Generator::fetch(Generation& generation, const std::vector<std::vector<ScoredChunk>>& best) {
  std::set<uint64_t> wanted;
  for (const auto& of_query : best)
    for (const ScoredChunk& chunk : of_query) wanted.insert(chunk.chunk);
  std::erase_if(generation.kv, [&](const auto& each) { return !wanted.contains(each.first); });
  std::vector<uint64_t> missing;
  for (const uint64_t chunk : wanted)
    if (chunk < generation.stored_chunks && !generation.kv.contains(chunk)) missing.push_back(chunk);

  const size_t bytes = model_.kv_bytes();
  const auto keep = [&](uint64_t chunk, const std::byte* record) {
    std::vector<Bf16>& kv = generation.kv[chunk];
    kv.resize(bytes / sizeof(Bf16));
    std::memcpy(kv.data(), record, bytes);
  };
  for (const uint64_t chunk : wanted)
    if (chunk >= generation.stored_chunks && !generation.kv.contains(chunk))
      keep(chunk, generation.tail_kv.data() + (chunk - generation.stored_chunks) * bytes);
  if (missing.empty()) return {};
  AlignedBuffer records((missing.size() * bytes + io_alignment - 1) / io_alignment * io_alignment);
  const auto id = generation.result.memory.id;
  const auto fetched = store_.fetch(id, missing, records.bytes().first(missing.size() * bytes));
  if (!fetched && fetched.error().kind == ErrorKind::corrupt) {
    for (const uint64_t chunk : missing) {
      const auto alone = store_.fetch(id, std::span(&chunk, 1), records.bytes().first(bytes));
      if (alone || alone.error().kind != ErrorKind::corrupt || !generation.lost.insert(chunk).second) continue;
      generation.result.unreadable.push_back({chunk, chunk, alone.error().message});
    }
  }
  RECALLD_CHECK(fetched);
  for (size_t i = 0; i < missing.size(); ++i) keep(missing[i], records.bytes().data() + i * bytes);
  return {};
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
  forget_caller(generation.request.caller);
  generation.done(std::unexpected(std::move(error)));
}

void Generator::finish(Generation& generation, Finish how) {
  if (generation.ended) return;
  generation.ended = true;
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
