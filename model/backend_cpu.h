// Appending and searching on the CPU: the lower half and the chunk encoder of Ramba.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/backend.h"
#include "model/ramba.h"

namespace recalld {

// Never fails.
class CpuBackend : public Backend {
 public:
  // The model is borrowed. It runs once here and takes its working memory, so that later only what is stored takes
  // more, and nobody's first request waits for it.
  explicit CpuBackend(Ramba& model);

  std::string describe() const override { return model_.describe(); }

  size_t state_bytes() const override { return model_.lower_state_bytes(); }
  Expected<RecurrentState> zero_state() override { return model_.lower_zero_state(); }
  Expected<RecurrentState> state_from(ByteView bytes) override;
  Expected<std::string> bytes_of(const RecurrentState& state) override;

  uint64_t segment_chunks() const override { return 16; }
  size_t segments_max() const override { return 1; }
  Expected<void> encode(std::span<const Segment> segments) override;
  Expected<uint64_t> encode_until(const Segment& segment, const std::function<bool()>& end_early) override;

  Expected<SearchQuery> query(std::span<const uint32_t> tokens, QueryParts parts) override {
    return model_.query(tokens, parts);
  }

 private:
  Ramba& model_;
  std::vector<float> hidden_;  // [segment_chunks * 64, hidden_size]
};

}  // namespace recalld
