// What the model on a GPU is made of; for gpu_ramba.cc and the files gpu_ramba_*.cc only.
#pragma once

#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/chunk_selection_cuda.h"
#include "kernels/device_memory.h"
#include "model/config.h"
#include "model/gpu.h"
#include "model/gpu_block.h"
#include "model/gpu_chunk_encoder.h"
#include "model/gpu_landmarks.h"
#include "model/gpu_late.h"
#include "model/gpu_layers.h"
#include "model/gpu_retrieval.h"
#include "model/gpu_states.h"
#include "model/gpu_weights.h"

namespace recalld {

class GpuRamba final : public Gpu {
 public:
  explicit GpuRamba(const Config& config) : config_(config) {}
  ~GpuRamba() override { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  Expected<void> open(const GpuOptions& options);

  std::string describe() const override { return name_ + ", bf16 products"; }
  std::string name() const override { return name_; }
  GpuUsage usage() const override;
  size_t states_max() const override { return states_->count(); }

  size_t state_bytes() const override { return lower_.size() * layer_floats() * sizeof(float); }
  Expected<RecurrentState> zero_state() override;
  Expected<RecurrentState> state_from(ByteView bytes) override;
  Expected<std::string> bytes_of(const RecurrentState& state) override;
  uint64_t segment_chunks() const override { return 64; }
  size_t segments_max() const override { return segments_max_; }
  Expected<void> encode(std::span<const Segment> segments) override;
  Expected<SearchQuery> query(std::span<const uint32_t> tokens, QueryParts parts) override;
  Expected<std::vector<float>> late_scores(std::span<const float> tokens, std::span<const ByteView> records) override;

  Expected<std::unique_ptr<GpuMemory>> open_memory() override;
  bool has_room(const GpuMemory& memory, uint64_t chunks) const override;
  Expected<void> reserve(GpuMemory& memory, uint64_t chunks) override;
  Expected<void> write_landmarks(GpuMemory& memory, uint64_t first, std::span<const Bf16> landmarks) override;
  Expected<void> hide(GpuMemory& memory, uint64_t chunk) override;

  uint32_t slots() const override { return slots_; }
  ByteSpan staging(uint32_t lane) override;
  ByteSpan block_staging() override;
  Expected<void> fill(GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) override;
  Expected<void> unmap(std::span<const Mapped> chunks) override;
  Expected<void> erase(std::span<const uint32_t> slots) override;
  Expected<void> erase_scratch() override;

  Expected<void> reset(uint32_t lane) override;
  Expected<std::vector<LaneResult>> step(std::span<const LaneWork> work) override;
  Expected<void> prepare(const LaneWork& work, GpuMemory& memory, std::span<const Fill> fills,
                         std::span<const Mapped> make_way) override;
  void arrived(size_t i) override;
  Expected<LaneResult> go_on() override;

 private:
  static constexpr uint32_t lanes = lanes_max, block = block_tokens;
  static constexpr uint32_t segments_most = 16;  // of one call of encode()

  struct UpperGroup {
    struct Stage {
      GpuHsa hsa;
      std::vector<GpuBlock> blocks;
    };
    GpuRetrieval retrieval;
    std::vector<Stage> stages;
  };

  // Where the tokens of lanes meet the chunks of one group: the buffers of `rows` tokens.
  struct GroupBuffers {
    Bf16* queries;     // [rows, heads, dim]
    float* dots;       // [rows, heads, k]
    uint64_t* chunks;  // [rows, heads, k]
    uint32_t* slots;   // [rows, heads, k]
    float* scores;     // [rows, heads, k]
    uint32_t* ready;   // [lanes]

    static GroupBuffers carve(const Config& c, size_t rows, Carver& carver) {
      const size_t lists = rows * c.retrieval_heads(), places = lists * c.chunk_topk;
      GroupBuffers buffers{};
      buffers.queries = carver.take<Bf16>(lists * c.retrieval_dim);
      buffers.dots = carver.take<float>(places);
      buffers.chunks = carver.take<uint64_t>(places);
      buffers.slots = carver.take<uint32_t>(places);
      buffers.scores = carver.take<float>(places);
      buffers.ready = carver.take<uint32_t>(lanes);
      return buffers;
    }
  };

  // What the host and the kernel that selects the chunks of one group tell each other, in pinned memory: a graph finds
  // there what differs from step to step, and the host what it found, without copies in between.
  struct GroupTalk {
    cuda::SelectionLane* lanes;  // [lanes] from the host
    uint32_t* ids;               // [rows, heads, k] to it, as the rest
    float* scores;               // [rows, heads, k]
    uint32_t* ready;             // [lanes]

    static GroupTalk carve(const Config& c, size_t rows, Carver& carver) {
      const size_t places = rows * c.retrieval_heads() * c.chunk_topk;
      GroupTalk talk{};
      talk.lanes = carver.take<cuda::SelectionLane>(GpuRamba::lanes);
      talk.ids = carver.take<uint32_t>(places);
      talk.scores = carver.take<float>(places);
      talk.ready = carver.take<uint32_t>(GpuRamba::lanes);
      return talk;
    }
  };

  // What the host tells a step, in pinned memory and on the device.
  struct StepInput {
    uint32_t tokens[lanes];
    uint32_t reads[lanes];  // 1: the lane reads its token
  };

  // Where a lane stands.
  struct Lane {
    uint32_t group = 0;      // that it waits in
    uint32_t tokens = 0;     // that are on their way; 0: none
    bool has_found = false;  // the best chunks of the group, which did not change since
  };

  // Of prepare(), until go_on().
  struct Prepared {
    LaneWork work;
    size_t fills = 0;  // whose arrivals are told
  };

  // Some tokens of one segment, in one pass of encode().
  struct Piece {
    size_t segment;
    size_t first_token;  // of the segment
    GpuStreamRows rows;
  };
  using NewStates = std::vector<std::shared_ptr<GpuStatePool::State>>;

  size_t layer_floats() const { return GpuBlock::state_floats(config_); }
  size_t lower_floats() const { return lower_.size() * layer_floats(); }
  size_t upper_floats() const { return config_.num_upper_layers * layer_floats(); }
  size_t kv_bytes() const {
    return 2 * config_.chunk_size * config_.num_kv_heads * config_.attention_head_dim * sizeof(Bf16);
  }
  size_t list_places() const { return config_.retrieval_heads() * config_.chunk_topk; }  // of one token
  size_t layers_of_group() const { return config_.num_upper_layers / config_.num_upper_groups; }
  float score_scale() const {
    return 1 / std::sqrt(static_cast<float>(config_.retrieval_dim / config_.retrieval_heads()));
  }

  Expected<void> load(const std::filesystem::path& directory);
  Expected<void> divide(const GpuOptions& options);
  size_t carve_encoding(uint32_t tokens, void* base);
  size_t carve_generating(void* base);
  size_t carve_results(void* base);
  cudaError_t capture();

  Expected<NewStates> copies_of(std::span<const Segment> segments);
  std::vector<std::vector<Piece>> passes(std::span<const Segment> segments) const;
  bool wants_chunks(std::span<const Segment> segments, const std::vector<Piece>& pieces) const;
  cudaError_t begin_pass(std::span<const Segment> segments, const NewStates& states, const std::vector<Piece>& pieces,
                         size_t half);
  cudaError_t end_pass(std::span<const Segment> segments, const std::vector<Piece>& pieces, size_t half) const;
  std::byte* encoded_half(size_t half) const { return encoded_.data() + half * encoded_.size() / 2; }

  void plan_unmapping(std::span<const Mapped> chunks);
  void plan_fills(const GpuMemory& memory, std::span<const Fill> fills, const uint32_t* arrivals);
  cudaError_t move_chunks() const;
  cudaError_t read_tokens();
  cudaError_t compute_group(uint32_t group);
  cudaError_t find_chunks(const LaneWork& work, uint32_t tokens, const GroupBuffers& into, uint32_t row);
  cudaError_t find_chunks(const GpuLandmarks& memory, uint64_t n, const Bf16* queries, uint32_t count, float* dots,
                          uint64_t* chunks);
  cuda::SelectionLane selection_lane(const LaneWork& work, uint32_t tokens, const GroupBuffers& of, uint32_t row,
                                     bool enters) const;
  cuda::ChunkSelection selection_of(const GroupBuffers& of, const GroupTalk& talk, uint32_t lane_count) const;
  void tell_lanes(uint32_t group, std::span<const LaneWork> work);
  cudaError_t step_lanes(std::span<const LaneWork> work, std::span<LaneResult> results);
  cudaError_t enqueue_lanes(std::span<const LaneWork> work);
  cudaError_t end_lanes(std::span<const LaneWork> work, std::span<LaneResult> results);
  cudaError_t look_at(uint32_t lane);
  cudaError_t await_told(uint32_t group, uint32_t lane) const;
  cudaError_t end_looks();
  void abandon(size_t fills);
  cudaError_t step_block(const LaneWork& work, LaneResult& result);
  Selection selection(uint32_t group, const GroupTalk& talk, size_t row, size_t rows, bool cached) const;

  const Config config_;
  std::string name_;
  size_t free_bytes_ = 0;  // of the device, when it was opened
  uint64_t budget_bytes_ = 0, weights_bytes_ = 0, states_bytes_ = 0, workspace_bytes_ = 0;
  GpuShare landmarks_share_, host_share_;
  size_t segments_max_ = 1;
  uint32_t encode_tokens_ = 0;  // of one pass
  size_t scratch_bytes_ = 0;    // of the part of workspace_ that nothing is kept in between steps
  size_t encoding_bytes_ = 0;   // of the part that encode() has
  uint32_t slots_ = 0;

  // In this order they are made, and freed in the other.
  cuda::Stream stream_;
  cuda::Matmul matmul_;
  std::vector<cuda::DeviceBuffer> weights_;
  cuda::DeviceBuffer workspace_, lane_states_, cache_;
  GpuLeftovers leftovers_;  // of memories
  cuda::PinnedScratch pinned_;
  cuda::Event pass_is_done_[2];
  std::shared_ptr<GpuStatePool> states_;
  GpuContext gpu_;
  GpuLate late_;  // opened with upper layers alone: without them no token asks

  // The model.
  const Bf16* embeddings_ = nullptr;  // [vocab_size, hidden_size]
  std::vector<GpuBlock> lower_;
  std::optional<GpuChunkEncoder> encoder_;
  std::vector<UpperGroup> groups_;
  std::optional<GpuRetrieval> only_retrieval_;  // of a model without upper layers: searching needs it
  const float* final_norm_ = nullptr;
  GpuLinear head_;

  // Parts of workspace_: for encode() and query(), ...
  uint32_t* encode_tokens_in_ = nullptr;  // [encode_tokens_]
  float* encode_hidden_ = nullptr;        // [encode_tokens_, hidden_size]
  GpuBlock::Scratch encode_scratch_{};
  GpuChunkEncoder::Scratch encoder_scratch_{};
  Bf16* encoded_landmarks_ = nullptr;  // [chunks, landmark_dim]
  Bf16* encoded_records_ = nullptr;    // [chunks, kv_bytes]
  // ... and for generating.
  GpuBlock::Scratch blocks_{};
  GpuHsa::Scratch hsa_{};
  GpuRetrieval::Scratch retrieval_{};
  float* block_hidden_ = nullptr;  // [64, hidden_size]
  float* lane_hidden_ = nullptr;   // [lanes, hidden_size] where each lane stands
  float* hidden_ = nullptr;        // [lanes, hidden_size] of a group under way
  Bf16* normed_ = nullptr;         // [lanes, hidden_size]
  float* logits_ = nullptr;        // [lanes, head_.out]
  StepInput* input_ = nullptr;
  uint32_t* block_tokens_in_ = nullptr;  // [64]
  GroupBuffers of_block_{};
  std::vector<GroupBuffers> of_lanes_;  // by group
  uint32_t* identity_ = nullptr;        // [slots] 0, 1, ...
  uint32_t* arrived_ = nullptr;         // for select_chunks_for()
  void *topk_ = nullptr, *topk_batch_ = nullptr, *topk_int8_ = nullptr;
  float** conv_ = nullptr;  // [layers, lanes] of the half that runs
  float** ssm_ = nullptr;
  float *lower_states_ = nullptr, *upper_states_ = nullptr, *unwanted_states_ = nullptr;

  // Buffers of pinned_.
  ByteSpan staging_, results_;
  ByteSpan encoded_;  // two halves, of passes by turns: tokens in, records and landmarks out

  // Parts of results_.
  StepInput* told_input_ = nullptr;
  uint32_t* told_block_tokens_ = nullptr;  // [64]
  GroupTalk talk_of_block_{};
  std::vector<GroupTalk> talk_of_lanes_;  // by group
  float* told_logits_ = nullptr;          // [lanes, head_.out]
  uint32_t* told_arrivals_ = nullptr;     // [list_places()] of prepare()

  cuda::Graph read_tokens_;
  std::vector<cuda::Graph> compute_group_;
  std::array<Lane, lanes> lanes_{};
  std::vector<cuda::SlotFill> moves_;  // of one call
  std::optional<Prepared> prepared_;
  std::chrono::steady_clock::time_point looked_{};  // when a lane that is alone was seen to be ready or not
  bool may_run_ = false;  // kernels behind a look, which read and write what the host and they tell each other
};

}  // namespace recalld
