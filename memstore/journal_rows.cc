#include "memstore/journal_rows.h"

#include <algorithm>

namespace recalld {

std::string encode_turn(const Turn& turn, uint64_t first_position, uint64_t tokens) {
  std::string bytes;
  ByteWriter out(bytes);
  out.u8(static_cast<uint8_t>(turn.role));
  out.u8(turn.name.has_value());
  if (turn.name) out.text(*turn.name);
  out.u64(static_cast<uint64_t>(turn.time_us));
  out.varint(first_position);
  out.varint(tokens);
  out.text(turn.metadata);
  out.varint(turn.content.size());
  return bytes.append(turn.content, 0, content_piece_bytes);
}

namespace {

std::optional<TurnRow> decode(std::string_view bytes, bool content) {
  ByteReader in(bytes);
  TurnRow row;
  const uint8_t role = in.u8();
  if (role > static_cast<uint8_t>(Role::tool)) return std::nullopt;
  row.turn.role = static_cast<Role>(role);
  if (in.u8() != 0) row.turn.name = in.text();
  row.turn.time_us = static_cast<int64_t>(in.u64());
  row.first_position = in.varint();
  row.tokens = in.varint();
  row.turn.metadata = in.text();
  row.content_bytes = in.varint();
  if (!in.ok() || in.rest().size() != std::min<uint64_t>(row.content_bytes, content_piece_bytes)) return std::nullopt;
  if (content) row.turn.content = in.rest();
  return row;
}

}  // namespace

std::optional<TurnRow> decode_turn(std::string_view bytes) {
  return decode(bytes, true);
}

std::optional<TurnRow> decode_turn_head(std::string_view bytes) {
  return decode(bytes, false);
}

std::string encode_run(uint64_t turn, uint64_t first_byte, std::span<const uint32_t> ids,
                       std::span<const uint32_t> ends) {
  std::string bytes;
  bytes.reserve(16 + ids.size() * 6);
  ByteWriter out(bytes);
  out.varint(turn);
  out.varint(first_byte);
  out.varint(ids.size());
  for (const uint32_t id : ids) out.u32(id);
  for (const uint32_t end : ends) {
    out.varint(end - first_byte);
    first_byte = end;
  }
  return bytes;
}

std::optional<TokenRun> decode_run(std::string_view key, std::string_view bytes) {
  ByteReader in(bytes);
  TokenRun run;
  run.first_position = number_of(key);
  run.turn = in.varint();
  run.first_byte = in.varint();
  run.count = in.varint();
  if (run.count == 0 || run.count > token_run_max) return std::nullopt;
  run.ids = in.take(run.count * sizeof(uint32_t));
  run.lengths = in.rest();
  return in.ok() ? std::optional(run) : std::nullopt;
}

std::string encode_operation(const Journal::Operation& operation) {
  std::string bytes;
  ByteWriter out(bytes);
  out.text(operation.id);
  bytes += as_text(operation.digest);
  out.varint(operation.reply.first_turn);
  out.varint(operation.reply.last_turn);
  out.varint(operation.reply.tokens);
  out.varint(operation.reply.end_token);
  return bytes;
}

std::optional<Journal::Operation> decode_operation(std::string_view bytes) {
  ByteReader in(bytes);
  Journal::Operation operation;
  operation.id = in.text();
  const std::string_view digest = in.take(operation.digest.size());
  if (in.ok()) std::memcpy(operation.digest.data(), digest.data(), digest.size());
  operation.reply.first_turn = in.varint();
  operation.reply.last_turn = in.varint();
  operation.reply.tokens = in.varint();
  operation.reply.end_token = in.varint();
  return in.done() ? std::optional(std::move(operation)) : std::nullopt;
}

}  // namespace recalld
