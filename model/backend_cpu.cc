#include "model/backend_cpu.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace recalld {

CpuBackend::CpuBackend(Ramba& model)
    : model_(model), hidden_(segment_chunks() * model.config().chunk_size * model.config().hidden_size) {
  const std::vector<uint32_t> tokens(segment_chunks() * model_.config().chunk_size);
  RecurrentState state = model_.lower_zero_state();
  std::vector<Bf16> landmarks(segment_chunks() * model_.landmark_dim());
  std::vector<std::byte> kv(segment_chunks() * model_.kv_bytes());
  encode_until(Segment{&state, tokens, landmarks, kv}, {});
}

Expected<RecurrentState> CpuBackend::state_from(ByteView bytes) {
  assert(bytes.size() == state_bytes());
  RecurrentState state = model_.lower_zero_state();
  std::memcpy(state.values.data(), bytes.data(), bytes.size());
  return state;
}

Expected<std::string> CpuBackend::bytes_of(const RecurrentState& state) {
  return std::string(reinterpret_cast<const char*>(state.values.data()), state.values.size() * sizeof(float));
}

Expected<void> CpuBackend::encode(std::span<const Segment> segments) {
  for (const Segment& segment : segments) RECALLD_CHECK(encode_until(segment, {}));
  return {};
}

Expected<uint64_t> CpuBackend::encode_until(const Segment& segment, const std::function<bool()>& end_early) {
  const auto hidden = std::span(hidden_).first(segment.tokens.size() * model_.config().hidden_size);
  if (segment.landmarks.empty() && segment.kv.empty()) {
    model_.lower(*segment.state, segment.tokens, hidden);
    return segment.tokens.size();
  }
  const std::vector<EncodedChunk> chunks = model_.encode(*segment.state, segment.tokens, hidden, end_early);
  const size_t landmark_dim = model_.landmark_dim(), kv_bytes = model_.kv_bytes();
  for (size_t i = 0; i < chunks.size(); ++i) {
    std::ranges::copy(model_.pack_landmark(chunks[i]), segment.landmarks.subspan(i * landmark_dim).begin());
    model_.pack_kv(chunks[i], segment.kv.subspan(i * kv_bytes, kv_bytes));
  }
  return chunks.size() * model_.config().chunk_size;
}

}  // namespace recalld
