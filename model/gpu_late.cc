#include "model/gpu_late.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "kernels/late_interaction_cuda.h"
#include "model/backend.h"
#include "model/gpu_weights.h"

namespace recalld {
namespace {

size_t token_floats(const Config& c) {
  return c.num_attention_heads * c.attention_head_dim;
}
size_t key_bytes(const Config& c) {
  return c.chunk_size * c.num_kv_heads * c.attention_head_dim * sizeof(Bf16);
}

static_assert(question_tokens_max <= cuda::late_question_tokens_max);

}  // namespace

size_t GpuLate::device_bytes(const Config& config) {
  return question_tokens_max * token_floats(config) * sizeof(float) + chunks_max * (key_bytes(config) + sizeof(float));
}

cudaError_t GpuLate::open(const Config& config) {
  token_floats_ = token_floats(config);
  key_bytes_ = key_bytes(config);
  heads_ = static_cast<uint32_t>(config.num_attention_heads);
  kv_heads_ = static_cast<uint32_t>(config.num_kv_heads);
  head_dim_ = static_cast<uint32_t>(config.attention_head_dim);
  chunk_tokens_ = static_cast<uint32_t>(config.chunk_size);
  RECALLD_CUDA(cuda::Stream::open(stream_));
  RECALLD_CUDA(cuda::DeviceBuffer::allocate(device_bytes(config), device_));
  return pinned_.allocate(device_bytes(config), staging_);
}

cudaError_t GpuLate::score(std::span<const float> tokens, std::span<const ByteView> records, std::span<float> scores) {
  assert(!tokens.empty() && tokens.size() % token_floats_ == 0 &&
         tokens.size() <= question_tokens_max * token_floats_ && records.size() == scores.size());
  const std::lock_guard lock(mutex_);
  for (size_t first = 0; first < records.size(); first += chunks_max) {
    const size_t count = std::min(chunks_max, records.size() - first);
    RECALLD_CUDA(score_some(tokens, records.subspan(first, count), scores.subspan(first, count)));
  }
  return cudaSuccess;
}

// Tokens, keys and scores follow each other, so that one copy takes the first two and all are overwritten at once.
cudaError_t GpuLate::score_some(std::span<const float> tokens, std::span<const ByteView> records,
                                std::span<float> scores) {
  const size_t in_bytes = tokens.size_bytes() + records.size() * key_bytes_;
  const size_t used_bytes = in_bytes + scores.size_bytes();
  std::memcpy(staging_.data(), tokens.data(), tokens.size_bytes());
  for (size_t i = 0; i < records.size(); ++i)  // K comes first in a record
    std::memcpy(staging_.data() + tokens.size_bytes() + i * key_bytes_, records[i].data(), key_bytes_);
  auto* const device_scores = device_.as<float>(in_bytes);
  auto* const told_scores = staging_.data() + in_bytes;

  const auto run = [&]() -> cudaError_t {
    RECALLD_CUDA(cudaMemcpyAsync(device_.data(), staging_.data(), in_bytes, cudaMemcpyHostToDevice, stream_.get()));
    RECALLD_CUDA(cuda::late_interaction({.q = device_.as<float>(),
                                         .k = device_.as<Bf16>(tokens.size_bytes()),
                                         .scores = device_scores,
                                         .n = static_cast<uint32_t>(tokens.size() / token_floats_),
                                         .heads = heads_,
                                         .kv_heads = kv_heads_,
                                         .head_dim = head_dim_,
                                         .tokens = chunk_tokens_,
                                         .chunks = static_cast<uint32_t>(records.size())},
                                        stream_.get()));
    return cudaMemcpyAsync(told_scores, device_scores, scores.size_bytes(), cudaMemcpyDeviceToHost, stream_.get());
  };
  const cudaError_t computed = run();
  const cudaError_t overwritten = cudaMemsetAsync(device_.data(), 0, used_bytes, stream_.get());
  const cudaError_t done = cudaStreamSynchronize(stream_.get());  // also after an error: it may read pinned memory
  if (computed == cudaSuccess && done == cudaSuccess) std::memcpy(scores.data(), told_scores, scores.size_bytes());
  std::memset(staging_.data(), 0, used_bytes);
  return computed != cudaSuccess ? computed : overwritten != cudaSuccess ? overwritten : done;
}

cudaError_t GpuLate::erase() {
  const std::lock_guard lock(mutex_);
  const cudaError_t overwritten = cudaMemsetAsync(device_.data(), 0, device_.bytes(), stream_.get());
  const cudaError_t done = cudaStreamSynchronize(stream_.get());  // also after an error: it may use pinned memory
  pinned_.overwrite();
  return overwritten != cudaSuccess ? overwritten : done;
}

}  // namespace recalld
