// Appending and searching on a GPU: the lower half and the chunk encoder over pieces of many streams at once.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "kernels/elementwise_cuda.h"
#include "model/gpu_ramba_impl.h"

namespace recalld {

// ---- Appending

Expected<RecurrentState> GpuRamba::zero_state() {
  RECALLD_TRY(auto state, states_->take());
  RECALLD_CHECK(gpu_done("clear a recurrent state", cudaMemsetAsync(state->data(), 0, state_bytes(), stream_.get())));
  return RecurrentState{.values = {}, .device = std::move(state)};
}

Expected<RecurrentState> GpuRamba::state_from(ByteView bytes) {
  RECALLD_TRY(auto state, states_->take());
  // Synchronous: pageable memory is staged, and the caller's bytes may go.
  cudaError_t status =
      cudaMemcpyAsync(state->data(), bytes.data(), state_bytes(), cudaMemcpyHostToDevice, stream_.get());
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream_.get());
  RECALLD_CHECK(gpu_done("copy a recurrent state to the GPU", status));
  return RecurrentState{.values = {}, .device = std::move(state)};
}

Expected<std::string> GpuRamba::bytes_of(const RecurrentState& state) {
  std::string bytes(state_bytes(), '\0');
  const auto* const data = static_cast<const GpuStatePool::State&>(*state.device).data();
  cudaError_t status = cudaMemcpyAsync(bytes.data(), data, bytes.size(), cudaMemcpyDeviceToHost, stream_.get());
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream_.get());
  RECALLD_CHECK(gpu_done("copy a recurrent state from the GPU", status));
  return bytes;
}

Expected<GpuRamba::NewStates> GpuRamba::copies_of(std::span<const Segment> segments) {
  NewStates states;
  for (const Segment& segment : segments) {
    RECALLD_TRY(auto copy, states_->take());
    const auto* const from = static_cast<const GpuStatePool::State&>(*segment.state->device).data();
    RECALLD_CHECK(gpu_done("copy a recurrent state", cudaMemcpyAsync(copy->data(), from, state_bytes(),
                                                                     cudaMemcpyDeviceToDevice, stream_.get())));
    states.push_back(std::move(copy));
  }
  return states;
}

// Cuts the segments into passes of at most encode_tokens_ tokens.
std::vector<std::vector<GpuRamba::Piece>> GpuRamba::passes(std::span<const Segment> segments) const {
  std::vector<std::vector<Piece>> result;
  uint32_t room = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    for (size_t done = 0; done < segments[i].tokens.size();) {
      if (room == 0) {
        result.emplace_back();
        room = encode_tokens_;
      }
      const auto count = static_cast<uint32_t>(std::min<size_t>(room, segments[i].tokens.size() - done));
      result.back().push_back({i, done, {.state = nullptr, .first = encode_tokens_ - room, .tokens = count}});
      done += count;
      room -= count;
    }
  }
  return result;
}

Expected<void> GpuRamba::encode(std::span<const Segment> segments) {
  assert(segments.size() <= segments_max_);
  assert(std::ranges::all_of(segments, [](const Segment& each) { return each.tokens.size() % block == 0; }));
  RECALLD_TRY(NewStates states, copies_of(segments));
  // While the device computes a pass, the host takes what came of the one before.
  const auto run = [&]() -> cudaError_t {
    const std::vector<std::vector<Piece>> all = passes(segments);
    for (size_t i = 0; i < all.size(); ++i) {
      RECALLD_CUDA(begin_pass(segments, states, all[i], i % 2));
      if (i > 0) RECALLD_CUDA(end_pass(segments, all[i - 1], (i - 1) % 2));
    }
    return all.empty() ? cudaSuccess : end_pass(segments, all.back(), (all.size() - 1) % 2);
  };
  const cudaError_t status = run();
  if (status != cudaSuccess) static_cast<void>(cudaStreamSynchronize(stream_.get()));  // it may read pinned memory
  RECALLD_CHECK(gpu_done("encode on the GPU", status));
  for (size_t i = 0; i < segments.size(); ++i) segments[i].state->device = std::move(states[i]);
  return {};
}

bool GpuRamba::wants_chunks(std::span<const Segment> segments, const std::vector<Piece>& pieces) const {
  return std::ranges::any_of(pieces, [&](const Piece& piece) { return !segments[piece.segment].kv.empty(); });
}

cudaError_t GpuRamba::begin_pass(std::span<const Segment> segments, const NewStates& states,
                                 const std::vector<Piece>& pieces, size_t half) {
  const uint32_t rows = pieces.back().rows.first + pieces.back().rows.tokens, chunks = rows / block;
  auto* const tokens = reinterpret_cast<uint32_t*>(encoded_half(half));
  for (const Piece& piece : pieces)
    std::ranges::copy(segments[piece.segment].tokens.subspan(piece.first_token, piece.rows.tokens),
                      tokens + piece.rows.first);
  RECALLD_CUDA(
      cudaMemcpyAsync(encode_tokens_in_, tokens, rows * sizeof(uint32_t), cudaMemcpyHostToDevice, stream_.get()));
  RECALLD_CUDA(cuda::embedding_lookup(embeddings_, encode_tokens_in_, rows, static_cast<uint32_t>(config_.hidden_size),
                                      encode_hidden_, stream_.get()));
  std::vector<GpuStreamRows> streams(pieces.size());
  for (size_t layer = 0; layer < lower_.size(); ++layer) {
    for (size_t i = 0; i < pieces.size(); ++i) {
      streams[i] = pieces[i].rows;
      streams[i].state = states[pieces[i].segment]->data() + layer * layer_floats();
    }
    RECALLD_CUDA(lower_[layer].run(gpu_, encode_scratch_, streams, rows, encode_hidden_));
  }
  if (wants_chunks(segments, pieces)) {
    RECALLD_CUDA(encoder_->run(gpu_, encoder_scratch_, encode_hidden_, chunks, encoded_records_, encoded_landmarks_));
    auto* const records = encoded_half(half) + encode_tokens_ * sizeof(uint32_t);
    auto* const landmarks = records + encode_tokens_ / block * kv_bytes();
    RECALLD_CUDA(
        cudaMemcpyAsync(records, encoded_records_, chunks * kv_bytes(), cudaMemcpyDeviceToHost, stream_.get()));
    RECALLD_CUDA(cudaMemcpyAsync(landmarks, encoded_landmarks_, chunks * config_.retrieval_dim * sizeof(Bf16),
                                 cudaMemcpyDeviceToHost, stream_.get()));
  }
  return pass_is_done_[half].record(stream_.get());
}

cudaError_t GpuRamba::end_pass(std::span<const Segment> segments, const std::vector<Piece>& pieces, size_t half) const {
  RECALLD_CUDA(pass_is_done_[half].wait());
  if (!wants_chunks(segments, pieces)) return cudaSuccess;
  const size_t landmark_bytes = config_.retrieval_dim * sizeof(Bf16);
  const auto* const records = encoded_half(half) + encode_tokens_ * sizeof(uint32_t);
  const auto* const landmarks = records + encode_tokens_ / block * kv_bytes();
  for (const Piece& piece : pieces) {
    const Segment& segment = segments[piece.segment];
    if (segment.kv.empty()) continue;
    const size_t from = piece.rows.first / block, to = piece.first_token / block, count = piece.rows.tokens / block;
    std::memcpy(segment.kv.data() + to * kv_bytes(), records + from * kv_bytes(), count * kv_bytes());
    std::memcpy(segment.landmarks.data() + to * config_.retrieval_dim, landmarks + from * landmark_bytes,
                count * landmark_bytes);
  }
  return cudaSuccess;
}

// ---- Searching

Expected<SearchQuery> GpuRamba::query(std::span<const uint32_t> tokens, QueryParts parts) {
  const GpuRetrieval& retrieval = groups_.empty() ? *only_retrieval_ : groups_[0].retrieval;
  RECALLD_TRY(const auto state, states_->take());
  SearchQuery query;
  query.landmark.resize(config_.retrieval_dim * config_.retrieval_heads());
  const bool has_heads = !groups_.empty() && parts == QueryParts::all;
  const size_t heads_floats = has_heads ? config_.num_attention_heads * config_.attention_head_dim : 0;
  query.heads.resize(heads_floats);
  if (tokens.size() > 2) query.tokens.resize((tokens.size() - 2) * heads_floats);
  // What rows of encode_hidden_ ask the first HSA layer with.
  const auto ask = [&](size_t row, size_t rows, float* into) -> cudaError_t {
    RECALLD_CUDA(groups_[0].stages[0].hsa.query(gpu_, hsa_, static_cast<uint32_t>(rows),
                                                encode_hidden_ + row * config_.hidden_size));
    return cudaMemcpyAsync(into, hsa_.q, rows * heads_floats * sizeof(float), cudaMemcpyDeviceToHost, stream_.get());
  };
  const auto read = [&]() -> cudaError_t {
    RECALLD_CUDA(cudaMemsetAsync(state->data(), 0, state_bytes(), stream_.get()));
    uint32_t last = 0;
    for (size_t done = 0; done < tokens.size(); done += encode_tokens_) {
      const auto part = tokens.subspan(done, std::min<size_t>(encode_tokens_, tokens.size() - done));
      const auto rows = static_cast<uint32_t>(part.size());
      std::memcpy(encoded_.data(), part.data(), part.size_bytes());
      RECALLD_CUDA(cudaMemcpyAsync(encode_tokens_in_, encoded_.data(), part.size_bytes(), cudaMemcpyHostToDevice,
                                   stream_.get()));
      RECALLD_CUDA(cuda::embedding_lookup(embeddings_, encode_tokens_in_, rows,
                                          static_cast<uint32_t>(config_.hidden_size), encode_hidden_, stream_.get()));
      for (size_t layer = 0; layer < lower_.size(); ++layer) {
        const GpuStreamRows all{.state = state->data() + layer * layer_floats(), .first = 0, .tokens = rows};
        RECALLD_CUDA(lower_[layer].run(gpu_, encode_scratch_, std::span(&all, 1), rows, encode_hidden_));
      }
      // Of the question itself: all but the first token and the last, as many at once as the layer's scratch takes.
      const size_t end = std::min(done + rows, tokens.size() - 1);
      for (size_t token = std::max<size_t>(done, 1); heads_floats > 0 && token < end; token += block)
        RECALLD_CUDA(
            ask(token - done, std::min<size_t>(block, end - token), query.tokens.data() + (token - 1) * heads_floats));
      RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
      last = rows - 1;
    }
    const float* const hidden = encode_hidden_ + last * config_.hidden_size;
    RECALLD_CUDA(retrieval.run(gpu_, retrieval_, 1, hidden, of_block_.queries));
    RECALLD_CUDA(cudaMemcpyAsync(query.landmark.data(), of_block_.queries, query.landmark.size() * sizeof(Bf16),
                                 cudaMemcpyDeviceToHost, stream_.get()));
    if (heads_floats > 0) RECALLD_CUDA(ask(last, 1, query.heads.data()));
    return cudaStreamSynchronize(stream_.get());
  };
  RECALLD_CHECK(gpu_done("read a query on the GPU", read()));
  // A whole landmark is asked for at once: the parts of the heads lie at different places.
  for (size_t head = 1; head < config_.retrieval_heads(); ++head)
    for (size_t i = 0; i < config_.retrieval_dim; ++i)
      if (const Bf16 part = query.landmark[head * config_.retrieval_dim + i]; part.bits != 0) query.landmark[i] = part;
  query.landmark.resize(config_.retrieval_dim);
  return query;
}

Expected<std::vector<float>> GpuRamba::late_scores(std::span<const float> tokens, std::span<const ByteView> records) {
  std::vector<float> scores(records.size());
  RECALLD_CHECK(gpu_done("compare a question with chunks on the GPU", late_.score(tokens, records, scores)));
  return scores;
}

}  // namespace recalld
