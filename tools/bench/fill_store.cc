#include "tools/bench/fill_store.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "tools/bench/daemon_process.h"
#include "tools/bench/prose.h"

namespace recalld::bench {

std::unique_ptr<Store> open_made_up(const std::filesystem::path& directory, StoreOptions options) {
  options.shape = made_up_shape;
  return must(Store::open(directory, options), "open store");
}

void fill_made_up(Store& store, const std::string& memory_name, const RecordShape& shape, uint64_t chunks,
                  const std::function<void(uint64_t number, Turn& turn)>& describe) {
  constexpr uint64_t chunks_at_once = 16, chunks_per_state = 64;
  Prose prose(chunks);
  std::mt19937_64 random(chunks);
  const auto randomise = [&](ByteSpan bytes) {
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(bytes.data() + i, &word, 8);
    }
  };
  const auto known = store.memory(memory_name);
  MemoryInfo memory = known ? *known : MemoryInfo{};
  std::vector<std::byte> kv(chunks_at_once * shape.kv_bytes), state(shape.state_bytes);
  std::vector<Bf16> landmarks(chunks_at_once * shape.landmark_dim);
  for (uint64_t first = memory.encoded_chunks; first < chunks; first += chunks_at_once) {
    const uint64_t count = std::min(chunks_at_once, chunks - first);
    while (memory.tokens < (first + count) * chunk_tokens) {
      AppendBatch batch{.memory = memory_name, .turns = {}, .operation_id = "", .now_us = 1};
      NewTurn turn;
      turn.turn.content = prose.turn();
      const size_t bytes = stream_text(turn.turn).size();
      for (size_t end = 0; end < bytes;) {  // a token covers four bytes
        end = std::min(end + 4, bytes);
        turn.ids.push_back(static_cast<uint32_t>(random() % 30000 + 100));
        turn.ends.push_back(static_cast<uint32_t>(end));
      }
      for (uint64_t i = 0; i < 16; ++i) {
        batch.turns.push_back(turn);
        if (describe) describe(memory.next_turn + i, batch.turns.back().turn);
      }
      for (const auto& appended : must(store.append({&batch, 1}), "append")) must(appended, "append");
      memory = must(store.memory(memory_name), "find memory");
    }
    randomise(kv);
    for (Bf16& x : landmarks) x = to_bf16(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 577.0f);
    std::vector<EncodedChunkView> views;
    for (uint64_t i = 0; i < count; ++i)
      views.push_back({std::span(landmarks).subspan(i * shape.landmark_dim, shape.landmark_dim),
                       ByteView(kv).subspan(i * shape.kv_bytes, shape.kv_bytes)});
    const bool with_state = (first + count) % chunks_per_state == 0;
    if (with_state) randomise(state);
    must(store.put(memory.id, first, views, with_state ? std::optional<ByteView>(state) : std::nullopt), "put");
  }
}

}  // namespace recalld::bench
