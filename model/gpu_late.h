// Scores of chunks by the tokens of a question, on an NVIDIA GPU beside what the model computes there: on a stream, in
// buffers and under a lock of its own, so that any thread may ask. Twin: Ramba::late_score().
#pragma once

#include <mutex>
#include <span>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/device_memory.h"
#include "model/config.h"

namespace recalld {

class GpuLate {
 public:
  // What a GpuLate takes of the device.
  static size_t device_bytes(const Config& config);

  cudaError_t open(const Config& config);

  // tokens: [n, heads, head_dim], n from 1 to question_tokens_max · records: [kv_bytes] each, as stored ·
  // scores out: [records]
  // One call waits for another. What the device and pinned memory had of the question and the chunks is overwritten
  // on return, also by a call that fails where the device lets it.
  cudaError_t score(std::span<const float> tokens, std::span<const ByteView> records, std::span<float> scores);

  // Overwrites whatever a call that failed has left, once no call is under way; pinned memory also where the device
  // fails.
  cudaError_t erase();

  // Pinned memory, where a call has the question and the chunks. Zeros when none is under way, for tests.
  ByteSpan pinned() { return staging_; }
  // Likewise on the device.
  const cuda::DeviceBuffer& on_device() const { return device_; }

 private:
  static constexpr size_t chunks_max = 128;  // of one launch: as many as a hybrid search of one memory compares

  cudaError_t score_some(std::span<const float> tokens, std::span<const ByteView> records, std::span<float> scores);

  size_t token_floats_ = 0;  // [heads, head_dim] of one question token
  size_t key_bytes_ = 0;     // of a chunk
  uint32_t heads_ = 0, kv_heads_ = 0, head_dim_ = 0, chunk_tokens_ = 0;

  std::mutex mutex_;  // guards the rest
  cuda::Stream stream_;
  cuda::DeviceBuffer device_;   // the question's tokens, the keys of chunks_max chunks behind them, then their scores
  cuda::PinnedScratch pinned_;  // has staging_
  ByteSpan staging_;            // the same
};

}  // namespace recalld
