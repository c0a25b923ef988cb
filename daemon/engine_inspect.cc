// Looking at what is there: memories, turns, chunks, and the daemon itself.
#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

#include <unistd.h>

#include "daemon/engine_impl.h"

namespace recalld {
namespace {

uint64_t resident_bytes() {
  uint64_t pages = 0;
  if (std::FILE* statm = std::fopen("/proc/self/statm", "re")) {
    unsigned long long size = 0, resident = 0;
    if (std::fscanf(statm, "%llu %llu", &size, &resident) == 2) pages = resident;
    std::fclose(statm);
  }
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

double norm(std::span<const Bf16> vector) {
  double squares = 0;
  for (const Bf16 x : vector) squares += static_cast<double>(to_float(x)) * static_cast<double>(to_float(x));
  return std::sqrt(squares);
}

}  // namespace

Expected<MemoryView> Engine::Impl::view(MemoryInfo info) const {
  RECALLD_TRY(const auto through, searchable_through(info));
  return MemoryView{std::move(info), through};
}

Expected<MemoriesListReply> Engine::Impl::memories_list(const MemoriesListRequest& request) const {
  RECALLD_TRY(auto page, store_->memories(request.prefix, request.after, request.limit));
  MemoriesListReply reply;
  for (MemoryInfo& info : page.memories) {
    auto viewed = view(std::move(info));
    if (!viewed && viewed.error().kind == ErrorKind::not_found) continue;  // deleted while we were listing
    if (!viewed) return std::unexpected(std::move(viewed).error());
    reply.memories.push_back(*std::move(viewed));
  }
  if (!page.next.empty()) reply.next_after = std::move(page.next);
  return reply;
}

Expected<MemoryView> Engine::Impl::memories_get(const std::string& memory) const {
  RECALLD_TRY(MemoryInfo info, store_->memory(memory));
  return view(std::move(info));
}

Expected<TurnsListReply> Engine::Impl::turns_list(const TurnsListRequest& request) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(request.memory));
  TurnsListReply reply;
  RECALLD_TRY(reply.turns, store_->turns(memory.id, request.first, request.limit, page_bytes_max));
  const bool more = !reply.turns.empty() && reply.turns.back().turn + 1 < memory.next_turn;
  if (more) {
    // What follows may all be forgotten.
    RECALLD_TRY(const auto next, store_->turns(memory.id, reply.turns.back().turn + 1, 1, 0));
    if (!next.empty()) reply.next_first = next.front().turn;
  }
  return reply;
}

Expected<ChunkView> Engine::Impl::chunk_view(MemoryId id, uint64_t chunk, std::vector<size_t>* token_ends) const {
  ChunkView view;
  view.chunk = chunk;
  RECALLD_TRY(view.entry, store_->chunk(id, chunk));
  RECALLD_TRY(view.passage, store_->passage(id, chunk * chunk_tokens, (chunk + 1) * chunk_tokens, token_ends));
  RECALLD_TRY(const auto landmark, store_->landmark(id, chunk));
  view.landmark_norm = norm(landmark);
  return view;
}

Expected<ChunksListReply> Engine::Impl::chunks_list(const ChunksListRequest& request) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(request.memory));
  ChunksListReply reply;
  size_t bytes = 0;
  for (uint64_t chunk = request.first; chunk < memory.encoded_chunks; ++chunk) {
    if (reply.chunks.size() == request.limit || bytes >= page_bytes_max) {
      reply.next_first = chunk;
      break;
    }
    RECALLD_TRY(ChunkView view, chunk_view(memory.id, chunk));
    bytes += view.passage.text.size();
    reply.chunks.push_back(std::move(view));
  }
  return reply;
}

Expected<ChunkDetail> Engine::Impl::chunks_get(const std::string& name, uint64_t chunk) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(name));
  if (chunk >= memory.encoded_chunks)
    return fail(ErrorKind::not_found, "chunk " + std::to_string(chunk) + " of memory " + name + " is not stored: " +
                                          std::to_string(memory.encoded_chunks) + " chunks are, counted from 0");
  ChunkDetail detail;
  std::vector<size_t> ends;
  RECALLD_TRY(detail.view, chunk_view(memory.id, chunk, &ends));
  RECALLD_TRY(detail.token_ids, store_->tokens(memory.id, chunk * chunk_tokens, chunk_tokens));
  for (const uint32_t id : detail.token_ids) detail.token_pieces.push_back(tokenizer_->piece(id));
  size_t begin = 0;
  for (const size_t end : ends) {
    detail.token_texts.push_back(detail.view.passage.text.substr(begin, end - begin));
    begin = end;
  }
  std::vector<std::byte> kv(model_->kv_bytes());
  RECALLD_CHECK(store_->fetch(memory.id, std::array{chunk}, kv));
  detail.kv_bytes = kv.size();
  return detail;
}

Expected<StatsReply> Engine::Impl::stats() const {
  StatsReply reply;
  RECALLD_TRY(reply.store, store_->stats());
  reply.jobs = jobs_.list();
  reply.model_directory = options_.model.string();
  reply.model_hash = hex(model_->hash());
  reply.model_precision = backend_->describe();
  reply.device = gpu_ ? "cuda" : "cpu";
  if (gpu_) {
    const GpuDecoder::Counts counts = gpu_decoder_->counts();
    reply.gpu = GpuStats{.name = gpu_name_,
                         .usage = gpu_->usage(),
                         .cache_slots = gpu_slots_,
                         .cache_hits = counts.hits,
                         .cache_misses = counts.misses,
                         .chunks_read_bytes = counts.read_bytes};
  }
  reply.resident_bytes = resident_bytes();
  reply.memory_budget_bytes = options_.memory_budget_bytes;
  reply.state_cache_bytes = state_bytes_;
  reply.appends_waiting = appends_->waiting();
  reply.searches = searches_;
  reply.generations = generations_;
  reply.tokens_generated = generator_->tokens_written();
  reply.tokens_encoded = tokens_encoded_;
  reply.encode_tokens_per_s =
      encode_us_ == 0 ? 0 : 1e6 * static_cast<double>(tokens_encoded_) / static_cast<double>(encode_us_);
  reply.uptime_s = milliseconds_since(start_) / 1000;
  return reply;
}

Expected<HealthReply> Engine::Impl::health() const {
  RECALLD_TRY(const StoreStats stats, store_->stats());
  const std::lock_guard lock(problem_mutex_);
  return HealthReply{
      .ready = true, .waiting_chunks = stats.waiting_chunks, .problem = problem_.empty() ? damage_ : problem_};
}

}  // namespace recalld
