#include "daemon/decoder_cpu.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <iterator>
#include <set>
#include <unordered_map>
#include <utility>

namespace recalld {

struct CpuDecoder::CpuStream : Stream {
  Source source;
  RecurrentState lower, upper;
  std::unordered_map<uint64_t, std::vector<Bf16>> kv;  // of the chunks that were attended to last
  std::set<uint64_t> lost;                             // chunks whose K/V is damaged
  std::set<uint64_t> unreadable;                       // first chunks of the pages that were told

  uint64_t end_chunk(size_t landmark_dim) const {
    return source.stored_chunks + source.tail_landmarks.size() / landmark_dim;
  }
};

Expected<std::unique_ptr<Decoder::Stream>> CpuDecoder::open(Source source) {
  auto stream = std::make_unique<CpuStream>();
  stream->source = std::move(source);
  stream->lower = model_.lower_zero_state();
  stream->upper = model_.upper_zero_state();
  return stream;
}

// ---- Reading and writing

Expected<Decoder::Read> CpuDecoder::read(Stream& stream, std::span<const uint32_t> tokens, bool last) {
  auto& reader = static_cast<CpuStream&>(stream);
  assert(tokens.size() <= chunk_tokens);
  const size_t width = model_.config().hidden_size, count = tokens.size();
  std::vector<float> hidden(chunk_tokens * width);
  model_.lower(reader.lower, tokens, hidden);
  Read read;
  for (size_t group = 0; group < model_.groups(); ++group) {
    RECALLD_TRY(const auto attended,
                retrieve(reader, std::span(hidden).first(count * width), count, group, last, read));
    model_.upper(group, reader.upper, hidden, attended);
  }
  if (last) read.logits = model_.logits(model_.final_norm(std::span(hidden).subspan((count - 1) * width, width)));
  return read;
}

// After its error a stream goes through the rest beside the others, and attends to nothing.
std::vector<std::optional<Expected<Decoder::Read>>> CpuDecoder::write(std::span<const Written> tokens) {
  assert(tokens.size() <= streams_max());
  if (tokens.empty()) return {};
  const size_t width = model_.config().hidden_size, heads = model_.config().retrieval_heads();
  std::vector<CpuStream*> writers;
  std::vector<RecurrentState*> lower, upper;
  std::vector<uint32_t> written;
  for (const auto& [stream, token] : tokens) {
    writers.push_back(static_cast<CpuStream*>(stream));
    lower.push_back(&writers.back()->lower);
    upper.push_back(&writers.back()->upper);
    written.push_back(token);
  }
  std::vector<std::optional<Expected<Read>>> reads(writers.size(), Read{});
  std::vector<float> hidden = model_.lower_step(lower, written);
  for (size_t group = 0; group < model_.groups(); ++group) {
    std::vector<std::vector<AttendedChunk>> attended(writers.size() * heads);
    for (size_t i = 0; i < writers.size(); ++i) {
      Expected<Read>& read = *reads[i];
      if (!read) continue;
      auto of_writer = retrieve(*writers[i], std::span(hidden).subspan(i * width, width), 1, group, true, *read);
      if (of_writer)
        std::ranges::move(*of_writer, attended.begin() + static_cast<ptrdiff_t>(i * heads));
      else
        read = std::unexpected(std::move(of_writer).error());
    }
    model_.upper_step(group, upper, hidden, attended);
  }
  const std::vector<float> logits = model_.logits(model_.final_norm(std::span(hidden).first(writers.size() * width)));
  const size_t vocab_size = model_.config().vocab_size;
  for (size_t i = 0; i < writers.size(); ++i) {
    const auto of_writer = std::span(logits).subspan(i * vocab_size, vocab_size);
    if (Expected<Read>& read = *reads[i]; read) read->logits.assign(of_writer.begin(), of_writer.end());
  }
  return reads;
}

// ---- The chunks that a token attends to

// For each token and retrieval head the chunks with their shares, newest first. hidden: [tokens, hidden_size] ·
// shares: those of the last token are added to `read`
Expected<std::vector<std::vector<AttendedChunk>>> CpuDecoder::retrieve(CpuStream& stream, std::span<const float> hidden,
                                                                       size_t tokens, size_t group, bool shares,
                                                                       Read& read) {
  const size_t heads = model_.config().retrieval_heads();
  std::vector<std::vector<AttendedChunk>> attended(tokens * heads);
  if (stream.end_chunk(model_.landmark_dim()) == 0) return attended;
  const std::vector<Bf16> queries = model_.landmark_queries(hidden, group);
  std::vector<std::vector<ScoredChunk>> best;
  for (;;) {
    RECALLD_TRY(best, best_chunks(stream, queries, read));
    RECALLD_TRY(const bool all, fetch(stream, best, read));
    if (all) break;  // else others take the places of those that were lost
  }

  for (size_t i = 0; i < best.size(); ++i) {
    std::ranges::sort(best[i], std::ranges::greater{}, &ScoredChunk::chunk);
    std::vector<float> scores;
    for (const ScoredChunk& chunk : best[i]) scores.push_back(chunk.dot * model_.score_scale());
    const std::vector<float> weights = model_.chunk_weights(scores, group);
    for (size_t c = 0; c < best[i].size(); ++c)
      attended[i].push_back({stream.kv.at(best[i][c].chunk).data(), weights[c]});
    if (!shares || i / heads + 1 != tokens) continue;
    for (size_t c = 0; c < best[i].size(); ++c)
      read.attended[best[i][c].chunk] += static_cast<double>(weights[c]) / static_cast<double>(heads * model_.groups());
  }
  return attended;
}

// The top-k of each query over the stored chunks and the tail, without the damaged ones.
Expected<std::vector<std::vector<ScoredChunk>>> CpuDecoder::best_chunks(CpuStream& stream,
                                                                        std::span<const Bf16> queries, Read& read) {
  const Source& source = stream.source;
  const size_t dim = model_.landmark_dim(), k = model_.config().chunk_topk, count = queries.size() / dim;
  std::vector<Unreadable> unreadable;
  RECALLD_TRY(auto best, store_.top_k_each(source.memory.id, source.stored_chunks, queries, k + stream.lost.size(),
                                           pool_, &unreadable));
  for (Unreadable& page : unreadable)
    if (stream.unreadable.insert(page.first).second) read.unreadable.push_back(std::move(page));
  std::vector<float> dots(source.tail_landmarks.size() / dim);
  for (size_t i = 0; i < count; ++i) {
    TopK top(k);
    for (const ScoredChunk& chunk : best[i])
      if (!stream.lost.contains(chunk.chunk)) top.offer(chunk);
    landmark_dots_cpu(queries.subspan(i * dim, dim), source.tail_landmarks.data(), dots.size(), dots.data());
    for (size_t c = 0; c < dots.size(); ++c) top.offer({source.stored_chunks + c, dots[c]});
    best[i] = top.take();
  }
  return best;
}

// Puts the K/V of all these chunks into stream.kv, reading those that are not there in one batch; false when some are
// damaged, which are lost from now on.
Expected<bool> CpuDecoder::fetch(CpuStream& stream, const std::vector<std::vector<ScoredChunk>>& best, Read& read) {
  const Source& source = stream.source;
  std::set<uint64_t> wanted;
  for (const auto& of_query : best)
    for (const ScoredChunk& chunk : of_query) wanted.insert(chunk.chunk);
  std::erase_if(stream.kv, [&](const auto& each) { return !wanted.contains(each.first); });
  std::vector<uint64_t> missing;
  for (const uint64_t chunk : wanted)
    if (chunk < source.stored_chunks && !stream.kv.contains(chunk)) missing.push_back(chunk);

  const size_t bytes = model_.kv_bytes();
  const auto keep = [&](uint64_t chunk, const std::byte* record) {
    std::vector<Bf16>& kv = stream.kv[chunk];
    kv.resize(bytes / sizeof(Bf16));
    std::memcpy(kv.data(), record, bytes);
  };
  for (const uint64_t chunk : wanted)
    if (chunk >= source.stored_chunks && !stream.kv.contains(chunk))
      keep(chunk, source.tail_kv.data() + (chunk - source.stored_chunks) * bytes);
  if (missing.empty()) return true;
  AlignedBuffer records((missing.size() * bytes + io_alignment - 1) / io_alignment * io_alignment);
  std::vector<Unreadable> damaged;
  RECALLD_CHECK(store_.fetch(source.memory.id, missing, records.bytes().first(missing.size() * bytes), &damaged));
  for (const Unreadable& chunk : damaged) stream.lost.insert(chunk.first);
  for (size_t i = 0; i < missing.size(); ++i)
    if (!stream.lost.contains(missing[i])) keep(missing[i], records.bytes().data() + i * bytes);
  std::ranges::move(damaged, std::back_inserter(read.unreadable));
  return damaged.empty();
}

}  // namespace recalld
