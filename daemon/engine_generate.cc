// Generate: the prompt's tokens, the answer, and the text of what it was read from.
#include <algorithm>
#include <utility>

#include "daemon/engine_impl.h"

namespace recalld {

void Engine::Impl::generate(GenerateRequest request, Done<GenerateReply> done) {
  if (model_->config().num_upper_layers == 0)
    return done(
        fail(ErrorKind::invalid_request,
             "generate: the model has no upper layers and can only search; start recalld with another --model"));
  if (auto announced = generator_->announce(request.caller); !announced)
    return done(std::unexpected(std::move(announced).error()));
  if (request.temperature > 0 && !request.seed)
    request.seed = static_cast<uint64_t>(options_.now_us()) + seeds_++;  // two in one microsecond differ too
  boost::asio::post(tokenisers_,
                    [this, request = std::move(request), done = std::move(done), start = Clock::now()]() mutable {
                      std::vector<uint32_t> prompt = tokenizer_->encode_query(request.prompt);
                      write({std::move(request), std::move(prompt), std::move(done), start});
                    });
}

void Engine::Impl::write(Writing writing) {
  GenerateRequest request = writing.request;
  std::vector<uint32_t> prompt = writing.prompt;
  auto answer = [this, writing = std::move(writing)](Expected<Generated> generated) mutable {
    boost::asio::post(readers_, [this, writing = std::move(writing), generated = std::move(generated)]() mutable {
      finish_writing(std::move(writing), std::move(generated));
    });
  };
  generator_->start(std::move(request), std::move(prompt), std::move(answer));
  model_thread_->generate();
}

void Engine::Impl::finish_writing(Writing writing, Expected<Generated> generated) {
  if (!generated) return writing.done(std::unexpected(std::move(generated).error()));
  tell_damage(generated->memory.id, generated->unreadable);
  const bool cancelled = generated->finish == Finish::cancelled;
  Expected<GenerateReply> reply = collect(*std::move(generated));
  // Turns were forgotten since it was written: it begins anew, unless a part of it may have been told.
  const bool anew = !reply && reply.error().kind == ErrorKind::busy && !cancelled && !writing.request.on_text &&
                    ++writing.attempts < Generator::attempts_max && !model_thread_ended_;
  if (anew && generator_->announce(writing.request.caller)) return write(std::move(writing));
  if (reply) reply->took_ms = milliseconds_since(writing.start);
  if (reply && writing.request.temperature > 0) reply->seed = writing.request.seed;
  ++generations_;
  writing.done(std::move(reply));
}

// The answer and the chunks that weighed most in it, with their text; those whose text is damaged are left out.
Expected<GenerateReply> Engine::Impl::collect(Generated generated) const {
  GenerateReply reply{.text = std::move(generated.text),
                      .tokens = generated.tokens.size(),
                      .finish = generated.finish,
                      .chunks = {},
                      .unreadable = std::move(generated.unreadable),
                      .searchable_through = {},
                      .unread = {},
                      .seed = {},
                      .took_ms = 0};
  if (generated.memory.id == 0) return reply;  // it was cancelled before it began
  const auto read = read_sources(generated, reply);
  // What was forgotten since it was written must not be told any more.
  RECALLD_CHECK(generator_->check_unchanged(generated.memory));
  RECALLD_CHECK(read);
  return reply;
}

Expected<void> Engine::Impl::read_sources(const Generated& generated, GenerateReply& reply) const {
  const MemoryId id = generated.memory.id;
  RECALLD_TRY(reply.searchable_through, through(id, generated.end_token));
  auto unread = unread_turns(generated, reply.searchable_through);
  if (!unread && unread.error().kind != ErrorKind::corrupt) return std::unexpected(std::move(unread).error());
  if (unread) reply.unread = *unread;
  std::vector<std::pair<uint64_t, double>> attended(generated.attended.begin(), generated.attended.end());
  std::ranges::stable_sort(attended, std::ranges::greater{}, &std::pair<uint64_t, double>::second);
  for (const auto& [chunk, weight] : attended) {
    if (reply.chunks.size() == generate_sources_max) break;
    auto passage = store_->passage(id, chunk * chunk_tokens, (chunk + 1) * chunk_tokens);
    if (!passage && passage.error().kind == ErrorKind::corrupt) continue;  // what the model read was whole
    if (!passage) return std::unexpected(std::move(passage).error());
    reply.chunks.push_back({chunk, weight, *std::move(passage)});
  }
  return {};
}

// The turns behind the last one that lies in chunks which the answer could be read from. One of which the newline alone
// is left out was read.
Expected<std::optional<GenerateReply::Unread>> Engine::Impl::unread_turns(const Generated& generated,
                                                                          std::optional<uint64_t> read_through) const {
  using Unread = GenerateReply::Unread;
  const MemoryInfo& memory = generated.memory;
  const StreamInfo& newest = memory.next ? *memory.next : memory.serving;
  if (generated.end_token >= newest.tokens) return std::nullopt;
  RECALLD_TRY(const auto last, store_->last_turn_within(memory.id, memory.tokens));
  RECALLD_TRY(auto first, store_->turns(memory.id, read_through ? *read_through + 1 : 0, 1, 0));
  if (!first.empty() && first.front().first_token + first.front().tokens == generated.end_token + 1) {
    RECALLD_TRY(first, store_->turns(memory.id, first.front().turn + 1, 1, 0));
  }
  if (!last || first.empty() || first.front().turn > *last) return std::nullopt;
  Unread unread{.turns = {first.front().turn, *last}};
  if (newest.complete_chunks() * chunk_tokens > generated.end_token)
    unread.reason = memory.next ? Unread::Reason::forgetting : Unread::Reason::encoding;
  return unread;
}

}  // namespace recalld
