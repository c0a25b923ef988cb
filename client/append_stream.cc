#include "client/append_stream.h"

#include <utility>

namespace recalld::client {

namespace {

// The bytes that a turn takes in a request; nothing when its texts are not UTF-8.
std::optional<size_t> json_bytes(const Turn& turn) {
  try {
    constexpr size_t keys_bytes = 64;
    return Json(turn.content).dump().size() + turn.metadata.dump().size() + turn.name.value_or("").size() + keys_bytes;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

AppendStream::AppendStream(Client& client, std::string memory, Options options)
    : client_(client), options_(std::move(options)) {
  next_.memory = std::move(memory);
  next_.wait_searchable = options_.wait_searchable;
}

Expected<void> AppendStream::add(Turn turn, Origin origin) {
  if (failure_) return std::unexpected(*failure_);
  const auto bytes = json_bytes(turn);
  if (!bytes) {
    return failed({0, 1, origin, origin}, {ErrorKind::invalid_request, "the turn is not valid UTF-8"});
  }
  const bool full = next_bytes_ + *bytes > request_bytes_max || next_.turns.size() >= request_turns_max;
  if (full && !next_.turns.empty()) RECALLD_CHECK(send());
  if (next_.turns.empty()) next_first_ = origin;
  next_last_ = origin;
  next_bytes_ += *bytes;
  next_.turns.push_back(std::move(turn));
  return {};
}

Expected<void> AppendStream::flush() {
  if (failure_) return std::unexpected(*failure_);
  if (options_.operation_prefix.empty() && !next_.turns.empty()) RECALLD_CHECK(send());
  while (!in_flight_.empty()) RECALLD_CHECK(take_reply());
  return {};
}

Expected<AppendStream::Total> AppendStream::finish() {
  if (failure_) return std::unexpected(*failure_);
  if (!next_.turns.empty()) RECALLD_CHECK(send());
  return settle();
}

Expected<AppendStream::Total> AppendStream::settle() {
  if (failure_) return std::unexpected(*failure_);
  next_.turns.clear();
  next_bytes_ = 0;
  while (!in_flight_.empty()) RECALLD_CHECK(take_reply());
  return total_;
}

uint64_t AppendStream::turns_in_flight() const {
  uint64_t turns = turns_unanswered_;
  for (const InFlight& sent : in_flight_) turns += sent.turns;
  return turns;
}

Expected<void> AppendStream::send() {
  while (in_flight_.size() >= in_flight_max) RECALLD_CHECK(take_reply());
  if (!options_.operation_prefix.empty()) {
    next_.operation_id = options_.operation_prefix + "-" + std::to_string(requests_sent_);
  }
  InFlight sent{0, next_.turns.size(), next_first_, next_last_};
  auto request = client_.submit("append", params(next_));
  if (!request) return failed(sent, std::move(request).error());
  sent.request = *request;
  in_flight_.push_back(sent);
  ++requests_sent_;
  next_.turns.clear();
  next_bytes_ = 0;
  return {};
}

Expected<void> AppendStream::take_reply() {
  const InFlight sent = in_flight_.front();
  in_flight_.pop_front();
  const auto result = client_.wait(sent.request);
  if (!result && (result.error().kind == ErrorKind::busy || result.error().kind == ErrorKind::io))
    turns_unanswered_ += sent.turns;
  const auto reply = result ? decode<AppendReply>(*result) : std::unexpected(result.error());
  if (!reply) {
    auto error = failed(sent, reply.error());
    // The requests behind the failed one may have been carried out all the same: total() must count them. Yet a daemon
    // that has fallen silent is waited for only once.
    while (!in_flight_.empty() && failure_->kind != ErrorKind::busy) static_cast<void>(take_reply());
    return error;
  }
  ++total_.requests;
  total_.turns += sent.turns;
  total_.tokens += reply->tokens;
  if (!total_.first_turn) total_.first_turn = reply->first_turn;
  total_.last_turn = reply->last_turn;
  total_.searchable_through = reply->searchable_through;
  total_.end_byte = sent.last.end_byte;
  total_.end_line = sent.last.line;
  if (options_.turns_there && reply->last_turn < *options_.turns_there) {
    total_.repeated_turns += sent.turns;
    total_.repeated_tokens += reply->tokens;
  }
  if (options_.on_reply) options_.on_reply(total_);
  return {};
}

std::unexpected<Error> AppendStream::failed(const InFlight& range, Error error) {
  std::string place = options_.source + ", line " + std::to_string(range.first.line);
  if (range.last.line != range.first.line) {
    place = options_.source + ", lines " + std::to_string(range.first.line) + " to " + std::to_string(range.last.line);
  }
  // The name of the memory, for one, stands in no line.
  if (error.kind != ErrorKind::invalid_request || error.message.starts_with("turns")) {
    error = std::move(error).within(place);
  }
  if (!failure_) failure_ = error;
  return std::unexpected(std::move(error));
}

}  // namespace recalld::client
