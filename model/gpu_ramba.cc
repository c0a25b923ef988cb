#include "model/gpu_ramba.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/chunk_selection_cuda.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/encoder_attention_cuda.h"
#include "kernels/hsa_attention_cuda.h"
#include "kernels/landmark_topk_batch_cuda.h"
#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_int8_cuda.h"
#include "model/config.h"
#include "model/gpu_chunk_encoder.h"
#include "model/gpu_landmarks.h"
#include "model/gpu_layers.h"
#include "model/gpu_retrieval.h"
#include "model/gpu_states.h"
#include "model/gpu_weights.h"

namespace recalld {
namespace {

constexpr uint32_t lanes = Gpu::lanes_max;
constexpr uint32_t block = Gpu::block_tokens;
constexpr uint32_t segments_most = 16;  // of one call of encode()
static_assert(lanes == cuda::lanes_max && Gpu::no_slot == cuda::no_chunk && Gpu::no_chunk == cuda::no_chunk);
static_assert(cuda::landmark_topk_max == cuda::hsa_k_max && cuda::landmark_topk_max == cuda::selection_k_max);

std::string layer_name(size_t index) {
  return "backbone.layers." + std::to_string(index);
}

uint64_t mib(uint64_t bytes) {
  return (bytes + (1 << 20) - 1) >> 20;
}

// What the kernels take, said of the config's keys.
Expected<void> check_shape(const Config& c) {
  const auto refuse = [](const std::string& key, size_t value, const std::string& wanted) {
    return fail(ErrorKind::invalid_request, "open the model on the GPU: " + key + " is " + std::to_string(value) +
                                                ", and its kernels take " + wanted + "; use --device cpu");
  };
  const auto at_most = [&](const std::string& key, size_t value, size_t most) -> Expected<void> {
    if (value > most) return refuse(key, value, "at most " + std::to_string(most));
    return {};
  };
  if (c.chunk_size != block) return refuse("chunk_size", c.chunk_size, "64");
  if (c.head_dim != 64) return refuse("head_dim", c.head_dim, "64");
  if (c.state_size != 64 && c.state_size != 128) return refuse("state_size", c.state_size, "64 or 128");
  if (c.conv_kernel < 2 || c.conv_kernel > 4) return refuse("conv_kernel", c.conv_kernel, "2 to 4");
  if (c.attention_head_dim != cuda::hsa_head_dim) return refuse("attention_head_dim", c.attention_head_dim, "64");
  if (c.retrieval_dim % 32 != 0) return refuse("retrieval_dim", c.retrieval_dim, "multiples of 32");
  if (c.hidden_size % 16 != 0) return refuse("hidden_size", c.hidden_size, "multiples of 16");
  RECALLD_CHECK(at_most("retrieval_dim", c.retrieval_dim, 8192));
  RECALLD_CHECK(at_most("vocab_size", c.vocab_size, cuda::matmul_width_max));
  RECALLD_CHECK(at_most("num_heads", c.num_heads, cuda::elementwise_width_max / c.head_dim));
  RECALLD_CHECK(at_most("chunk_topk", c.chunk_topk, cuda::landmark_topk_max));
  // A block of tokens attends at once: tokens x KV heads x tiles of 16 query heads.
  const size_t group = c.num_attention_heads / c.num_kv_heads, tiles = c.num_kv_heads * ((group + 15) / 16);
  if (group > cuda::hsa_group_heads_max || tiles * block > cuda::hsa_decode_tiles_max)
    return refuse("num_attention_heads", c.num_attention_heads,
                  "at most 32 for a KV head, and 16 KV heads (or 8 of more than 16 heads)");
  if (c.encoder_layers > 0)
    RECALLD_CHECK(at_most("hidden_size / num_attention_heads", c.hidden_size / c.num_attention_heads,
                          cuda::encoder_head_dim_max));
  return {};
}

struct UpperGroup {
  struct Stage {
    GpuHsa hsa;
    std::vector<GpuMamba2> blocks;
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
  uint32_t* ids;     // [rows, heads, k], and the scores behind them: one copy to the host
  float* scores;     // [rows, heads, k]
  uint32_t* ready;   // [lanes]

  static GroupBuffers carve(const Config& c, size_t rows, Carver& carver) {
    const size_t lists = rows * c.retrieval_heads(), places = lists * c.chunk_topk;
    GroupBuffers buffers{};
    buffers.queries = carver.take<Bf16>(lists * c.retrieval_dim);
    buffers.dots = carver.take<float>(places);
    buffers.chunks = carver.take<uint64_t>(places);
    buffers.slots = carver.take<uint32_t>(places);
    buffers.ids = carver.take<uint32_t>(2 * places);
    buffers.scores = reinterpret_cast<float*>(buffers.ids + places);
    buffers.ready = carver.take<uint32_t>(lanes);
    return buffers;
  }
};

// What the host tells a step, in pinned memory and on the device.
struct StepInput {
  uint32_t tokens[lanes];
  uint32_t reads[lanes];  // 1: the lane reads its token
};

// Where a lane stands.
struct Lane {
  uint32_t group = 0;   // that it waits in
  uint32_t tokens = 0;  // that are on their way; 0: none
};

}  // namespace

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
  Expected<SearchQuery> query(std::span<const uint32_t> tokens) override;

  Expected<std::unique_ptr<GpuMemory>> open_memory() override;
  bool has_room(const GpuMemory& memory, uint64_t chunks) const override;
  Expected<void> reserve(GpuMemory& memory, uint64_t chunks) override;
  Expected<void> write_landmarks(GpuMemory& memory, uint64_t first, std::span<const Bf16> landmarks) override;
  Expected<void> hide(GpuMemory& memory, uint64_t chunk) override;

  uint32_t slots() const override { return slots_; }
  ByteSpan staging(uint32_t lane) override;
  ByteSpan block_staging() override;
  Expected<void> fill(GpuMemory& memory, std::span<const Fill> fills) override;
  Expected<void> unmap(GpuMemory& memory, std::span<const uint64_t> chunks) override;
  Expected<void> erase(std::span<const uint32_t> slots) override;
  Expected<void> erase_scratch() override;

  Expected<void> reset(uint32_t lane) override;
  Expected<std::vector<LaneResult>> step(std::span<const LaneWork> work) override;

 private:
  // Some tokens of one segment, in one pass of encode().
  struct Piece {
    size_t segment;
    size_t first_token;  // of the segment
    GpuStreamRows rows;
  };
  using NewStates = std::vector<std::shared_ptr<GpuStatePool::State>>;

  size_t layer_floats() const { return GpuMamba2::state_floats(config_); }
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
  cudaError_t capture();

  Expected<NewStates> copies_of(std::span<const Segment> segments);
  std::vector<std::vector<Piece>> passes(std::span<const Segment> segments) const;
  cudaError_t run_pass(std::span<const Segment> segments, const NewStates& states, std::vector<Piece>& pieces);

  cudaError_t read_tokens();
  cudaError_t compute_group(uint32_t group);
  cudaError_t find_chunks(uint32_t group, const LaneWork& work, uint32_t tokens, const GroupBuffers& into,
                          uint32_t row);
  cudaError_t find_chunks(const GpuLandmarks& memory, uint64_t n, const Bf16* queries, uint32_t count, float* dots,
                          uint64_t* chunks);
  cuda::SelectionLane selection_lane(const LaneWork& work, uint32_t tokens, const GroupBuffers& of, uint32_t row,
                                     bool enters) const;
  cudaError_t select(uint32_t group, std::span<const LaneWork> work);
  cudaError_t step_lanes(std::span<const LaneWork> work, std::vector<LaneResult>& results);
  cudaError_t step_block(const LaneWork& work, LaneResult& result);
  Selection selection(uint32_t group, const uint32_t* ids, size_t row, size_t rows, size_t places, bool cached) const;

  const Config config_;
  std::string name_;
  size_t free_bytes_ = 0;  // of the device, when it was opened
  uint64_t budget_bytes_ = 0, weights_bytes_ = 0, states_bytes_ = 0, workspace_bytes_ = 0;
  GpuShare landmarks_share_, host_share_;
  size_t segments_max_ = 1;
  uint32_t encode_tokens_ = 0;  // of one pass
  size_t encoding_bytes_ = 0;   // of the part of workspace_ that encode() has
  uint32_t slots_ = 0;

  // In this order they are made, and freed in the other.
  cuda::Stream stream_;
  cuda::Matmul matmul_;
  std::vector<cuda::DeviceBuffer> weights_;
  cuda::DeviceBuffer workspace_, lane_states_, cache_;
  cuda::PinnedBuffer staging_, encoded_, results_;
  std::shared_ptr<GpuStatePool> states_;
  GpuContext gpu_;

  // The model.
  const Bf16* embeddings_ = nullptr;  // [vocab_size, hidden_size]
  std::vector<GpuMamba2> lower_;
  std::optional<GpuChunkEncoder> encoder_;
  std::vector<UpperGroup> groups_;
  std::optional<GpuRetrieval> only_retrieval_;  // of a model without upper layers: searching needs it
  const float* final_norm_ = nullptr;
  GpuLinear head_;

  // Parts of workspace_: for encode() and query(), ...
  uint32_t* encode_tokens_in_ = nullptr;  // [encode_tokens_]
  float* encode_hidden_ = nullptr;        // [encode_tokens_, hidden_size]
  GpuMamba2::Scratch encode_scratch_{};
  GpuChunkEncoder::Scratch encoder_scratch_{};
  Bf16* encoded_landmarks_ = nullptr;  // [chunks, landmark_dim]
  Bf16* encoded_records_ = nullptr;    // [chunks, kv_bytes]
  // ... and for generating.
  GpuMamba2::Scratch mamba_{};
  GpuHsa::Scratch hsa_{};
  GpuRetrieval::Scratch retrieval_{};
  float* block_hidden_ = nullptr;  // [64, hidden_size]
  float* lane_hidden_ = nullptr;   // [lanes, hidden_size] where each lane stands
  float* hidden_ = nullptr;        // [lanes, hidden_size] of a group under way
  Bf16* normed_ = nullptr;         // [lanes, hidden_size]
  float* logits_ = nullptr;        // [lanes, vocab_size]
  StepInput* input_ = nullptr;
  uint32_t* block_tokens_in_ = nullptr;  // [64]
  GroupBuffers of_block_{};
  std::vector<GroupBuffers> of_lanes_;  // by group
  uint32_t* identity_ = nullptr;        // [slots] 0, 1, ...
  void *topk_ = nullptr, *topk_batch_ = nullptr, *topk_int8_ = nullptr;
  float** conv_ = nullptr;  // [layers, lanes] of the half that runs
  float** ssm_ = nullptr;
  float *lower_states_ = nullptr, *upper_states_ = nullptr, *unwanted_states_ = nullptr;

  cuda::Graph read_tokens_;
  std::vector<cuda::Graph> compute_group_;
  std::array<Lane, lanes> lanes_{};
};

// ---- Opening

Expected<std::unique_ptr<Gpu>> open_gpu_ramba(const GpuOptions& options) {
  RECALLD_TRY(const Config config, Config::read(options.model / "config.json"));
  RECALLD_CHECK(check_shape(config));
  auto gpu = std::make_unique<GpuRamba>(config);
  RECALLD_CHECK(gpu->open(options));
  return gpu;
}

Expected<void> GpuRamba::open(const GpuOptions& options) {
  const auto begin = [&]() -> cudaError_t {
    int device = 0;
    cudaDeviceProp properties{};
    size_t all_bytes = 0;
    RECALLD_CUDA(cudaGetDevice(&device));
    RECALLD_CUDA(cudaGetDeviceProperties(&properties, device));
    name_ = properties.name;
    RECALLD_CUDA(cudaMemGetInfo(&free_bytes_, &all_bytes));
    RECALLD_CUDA(cuda::Stream::open(stream_));
    return cuda::Matmul::open(matmul_);
  };
  RECALLD_CHECK(gpu_done("open the GPU", begin()));
  RECALLD_CHECK(load(options.model));
  RECALLD_CHECK(divide(options));
  return gpu_done("capture the steps of generating", capture());
}

Expected<void> GpuRamba::load(const std::filesystem::path& directory) {
  RECALLD_TRY(const Weights on_disk, Weights::open(directory / "model.safetensors"));
  GpuWeights weights(on_disk, matmul_);
  const auto load_blocks = [&](size_t first, size_t count, std::vector<GpuMamba2>& blocks) -> Expected<void> {
    for (size_t i = 0; i < count; ++i) {
      RECALLD_TRY(const GpuMamba2 loaded, GpuMamba2::load(weights, layer_name(first + i), config_));
      blocks.push_back(loaded);
    }
    return {};
  };
  const char* const embeddings = "backbone.embeddings.weight";
  const bool generates = config_.num_upper_layers > 0;
  if (generates) {
    const char* const head = config_.tie_word_embeddings ? embeddings : "lm_head.weight";
    RECALLD_TRY(head_, weights.linear({{head, config_.vocab_size}}, config_.hidden_size));
    RECALLD_TRY(final_norm_, weights.floats("backbone.norm_f.weight", {config_.hidden_size}));
    embeddings_ = head_.w;
  }
  if (!generates || !config_.tie_word_embeddings) {
    RECALLD_TRY(const auto values, on_disk.bf16(embeddings, {config_.vocab_size, config_.hidden_size}));
    RECALLD_TRY(embeddings_, weights.upload(values));
  }
  RECALLD_CHECK(load_blocks(0, config_.num_lower_layers, lower_));
  size_t layer = config_.num_lower_layers;
  RECALLD_TRY(encoder_, GpuChunkEncoder::load(weights, layer_name(layer++), config_));
  if (!generates) {
    RECALLD_TRY(only_retrieval_, GpuRetrieval::load(weights, layer_name(layer), config_));
  }
  for (size_t group = 0; generates && group < config_.num_upper_groups; ++group) {
    RECALLD_TRY(GpuRetrieval retrieval, GpuRetrieval::load(weights, layer_name(layer++), config_));
    UpperGroup upper{.retrieval = std::move(retrieval), .stages = {}};
    for (size_t stage = 0; stage < config_.hsa_layers() / config_.num_upper_groups; ++stage) {
      RECALLD_TRY(GpuHsa hsa, GpuHsa::load(weights, layer_name(layer++), config_));
      std::vector<GpuMamba2> blocks;
      RECALLD_CHECK(load_blocks(layer, config_.num_mamba_per_gca, blocks));
      layer += config_.num_mamba_per_gca;
      upper.stages.push_back({std::move(hsa), std::move(blocks)});
    }
    groups_.push_back(std::move(upper));
  }
  weights_bytes_ = weights.bytes();
  weights_ = weights.take();
  return gpu_done("copy weights to the GPU", cudaDeviceSynchronize());
}

// What encode() and query() work with. Returns the bytes; with a null base it only counts.
size_t GpuRamba::carve_encoding(uint32_t tokens, void* base) {
  const uint32_t chunks = tokens / block;
  Carver carver(base);
  encode_tokens_in_ = carver.take<uint32_t>(tokens);
  encode_hidden_ = carver.take<float>(size_t{tokens} * config_.hidden_size);
  encoded_landmarks_ = carver.take<Bf16>(size_t{chunks} * config_.retrieval_dim);
  encoded_records_ = carver.take<Bf16>(chunks * kv_bytes() / sizeof(Bf16));
  // The lower half is done when the encoder begins.
  char* const shared = carver.take<char>(0);
  Carver lower(shared), encoder(shared);
  encode_scratch_ = GpuMamba2::scratch(config_, tokens, segments_most, lower);
  encoder_scratch_ = GpuChunkEncoder::scratch(config_, chunks, encoder);
  return carver.used() + std::max(lower.used(), encoder.used());
}

// What step() works with; likewise.
size_t GpuRamba::carve_generating(void* base) {
  Carver carver(base);
  gpu_.matmul_workspace = carver.take<char>(cuda::matmul_workspace);
  mamba_ = GpuMamba2::scratch(config_, block, 1, carver);
  hsa_ = GpuHsa::scratch(config_, block, carver);
  retrieval_ = GpuRetrieval::scratch(config_, block, carver);
  block_hidden_ = carver.take<float>(block * config_.hidden_size);
  lane_hidden_ = carver.take<float>(lanes * config_.hidden_size);
  hidden_ = carver.take<float>(lanes * config_.hidden_size);
  normed_ = carver.take<Bf16>(lanes * config_.hidden_size);
  logits_ = carver.take<float>(lanes * size_t{head_.out});
  input_ = carver.take<StepInput>(1);
  block_tokens_in_ = carver.take<uint32_t>(block);
  of_block_ = GroupBuffers::carve(config_, block, carver);
  of_lanes_.clear();
  for (size_t group = 0; group < groups_.size(); ++group)
    of_lanes_.push_back(GroupBuffers::carve(config_, lanes, carver));
  const auto k = static_cast<uint32_t>(config_.chunk_topk);
  topk_ = carver.take<char>(cuda::landmark_topk_workspace(k));
  topk_batch_ = carver.take<char>(cuda::landmark_topk_batch_workspace(k));
  topk_int8_ = carver.take<char>(cuda::landmark_topk_int8_workspace(k));
  const size_t layers = std::max(lower_.size(), config_.num_upper_layers);
  conv_ = carver.take<float*>(layers * lanes);
  ssm_ = carver.take<float*>(layers * lanes);
  return carver.used();
}

// Divides the budget: weights, states and workspace take what they need, the landmarks of memories and the cache of
// their chunks a half each of the rest.
Expected<void> GpuRamba::divide(const GpuOptions& options) {
  constexpr uint64_t automatic_max = uint64_t{8} << 30;
  budget_bytes_ = options.budget_bytes != 0 ? options.budget_bytes : std::min<uint64_t>(free_bytes_ / 2, automatic_max);

  const size_t record = kv_bytes(), lane_bytes = (lower_floats() + upper_floats() + layer_floats()) * sizeof(float);
  const size_t records_of_block = block * list_places(), records_of_lane = list_places();
  const size_t slots_min = records_of_block + lanes * records_of_lane;
  const uint64_t half_min = slots_min * (record + sizeof(uint32_t));
  const size_t generating = carve_generating(nullptr);

  // As many tokens in a pass and as many states as a part of the budget allows, and less where it must be.
  constexpr uint32_t tokens_best = 16 << 10, tokens_min = 1 << 10;
  constexpr size_t states_min = 8;
  size_t states = std::clamp<size_t>(budget_bytes_ / 8 / std::max<size_t>(1, state_bytes()), states_min,
                                     std::max(states_min, options.encode_states));
  const auto fixed_bytes = [&] {
    workspace_bytes_ = generating + carve_encoding(encode_tokens_, nullptr);
    states_bytes_ = states * state_bytes() + lanes * lane_bytes;
    return weights_bytes_ + workspace_bytes_ + states_bytes_;
  };
  const auto is_too_much = [&](uint64_t part) {
    return fixed_bytes() + 2 * half_min > budget_bytes_ || workspace_bytes_ > part;
  };
  encode_tokens_ = tokens_best;
  while (encode_tokens_ > tokens_min && is_too_much(budget_bytes_ / 4)) encode_tokens_ /= 2;
  while (states > states_min && is_too_much(UINT64_MAX)) --states;
  segments_max_ = std::clamp<size_t>(states / 4, 1, segments_most);
  const uint64_t fixed = fixed_bytes();
  if (budget_bytes_ < fixed + 2 * half_min)
    return fail(ErrorKind::invalid_request,
                "open the GPU: a budget of " + std::to_string(budget_bytes_ >> 20) +
                    " MiB is too small: " + std::to_string(mib(weights_bytes_)) + " MiB for weights, " +
                    std::to_string(mib(states_bytes_)) + " for states, " + std::to_string(mib(workspace_bytes_)) +
                    " for workspace and " + std::to_string(mib(2 * half_min)) +
                    " for landmarks and cached chunks at the least; raise --gpu-budget to " +
                    std::to_string(mib(fixed + 2 * half_min)) + "MiB or more");
  const uint64_t half = (budget_bytes_ - fixed) / 2;
  slots_ = static_cast<uint32_t>(std::min<uint64_t>(half / (record + sizeof(uint32_t)), no_slot - 1));
  landmarks_share_.allow(half);
  host_share_.allow(UINT64_MAX);

  const auto allocate = [&]() -> cudaError_t {
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(workspace_bytes_, workspace_));
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(lanes * lane_bytes, lane_states_));
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(uint64_t{slots_} * (record + sizeof(uint32_t)), cache_));
    RECALLD_CUDA(cuda::PinnedBuffer::allocate((records_of_block + lanes * records_of_lane) * record, staging_));
    const size_t results = sizeof(StepInput) + (groups_.size() + block) * 2 * lanes * list_places() * sizeof(uint32_t) +
                           lanes * (groups_.size() + head_.out + 1) * sizeof(float);
    RECALLD_CUDA(cuda::PinnedBuffer::allocate(results, results_));
    const size_t chunks = encode_tokens_ / block;
    RECALLD_CUDA(cuda::PinnedBuffer::allocate(
        encode_tokens_ * sizeof(uint32_t) + chunks * (record + config_.retrieval_dim * sizeof(Bf16)), encoded_));
    std::memset(results_.as<void>(), 0, results_.bytes());  // tokens that are read when steps are captured
    RECALLD_CUDA(cudaMemsetAsync(workspace_.data(), 0, workspace_bytes_, stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(lane_states_.data(), 0, lane_states_.bytes(), stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(cache_.data(), 0, cache_.bytes(), stream_.get()));
    std::memset(staging_.as<void>(), 0, staging_.bytes());
    carve_generating(workspace_.data());
    encoding_bytes_ = carve_encoding(encode_tokens_, workspace_.as<char>(generating));
    lower_states_ = lane_states_.as<float>();
    upper_states_ = lower_states_ + lanes * lower_floats();
    unwanted_states_ = upper_states_ + lanes * upper_floats();
    identity_ = cache_.as<uint32_t>(uint64_t{slots_} * record);
    std::vector<uint32_t> numbers(slots_);
    for (uint32_t i = 0; i < slots_; ++i) numbers[i] = i;
    RECALLD_CUDA(cudaMemcpyAsync(identity_, numbers.data(), numbers.size() * sizeof(uint32_t), cudaMemcpyHostToDevice,
                                 stream_.get()));
    return cudaStreamSynchronize(stream_.get());
  };
  RECALLD_CHECK(gpu_done("take " + std::to_string(mib(budget_bytes_)) + " MiB of the GPU's " +
                             std::to_string(mib(free_bytes_)) + " MiB that are free",
                         allocate()));
  RECALLD_TRY(states_, GpuStatePool::open(states, state_bytes()));
  gpu_.matmul = &matmul_;
  gpu_.stream = stream_.get();
  return {};
}

GpuUsage GpuRamba::usage() const {
  return {.budget_bytes = budget_bytes_,
          .weights_bytes = weights_bytes_,
          .states_bytes = states_bytes_,
          .landmarks_bytes = landmarks_share_.bytes(),
          .cache_bytes = cache_.bytes(),
          .workspace_bytes = workspace_bytes_,
          .host_landmarks_bytes = host_share_.bytes()};
}

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
  for (std::vector<Piece>& pieces : passes(segments))
    RECALLD_CHECK(gpu_done("encode on the GPU", run_pass(segments, states, pieces)));
  for (size_t i = 0; i < segments.size(); ++i) segments[i].state->device = std::move(states[i]);
  return {};
}

cudaError_t GpuRamba::run_pass(std::span<const Segment> segments, const NewStates& states, std::vector<Piece>& pieces) {
  const uint32_t rows = pieces.back().rows.first + pieces.back().rows.tokens, chunks = rows / block;
  auto* const tokens = encoded_.as<uint32_t>();
  bool wanted = false;
  for (const Piece& piece : pieces) {
    std::ranges::copy(segments[piece.segment].tokens.subspan(piece.first_token, piece.rows.tokens),
                      tokens + piece.rows.first);
    wanted |= !segments[piece.segment].kv.empty();
  }
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
  if (!wanted) return cudaStreamSynchronize(stream_.get());

  RECALLD_CUDA(encoder_->run(gpu_, encoder_scratch_, encode_hidden_, chunks, encoded_records_, encoded_landmarks_));
  const size_t landmark_bytes = config_.retrieval_dim * sizeof(Bf16);
  auto* const records = encoded_.as<std::byte>(encode_tokens_ * sizeof(uint32_t));
  auto* const landmarks = records + encode_tokens_ / block * kv_bytes();
  RECALLD_CUDA(cudaMemcpyAsync(records, encoded_records_, chunks * kv_bytes(), cudaMemcpyDeviceToHost, stream_.get()));
  RECALLD_CUDA(
      cudaMemcpyAsync(landmarks, encoded_landmarks_, chunks * landmark_bytes, cudaMemcpyDeviceToHost, stream_.get()));
  RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
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

Expected<SearchQuery> GpuRamba::query(std::span<const uint32_t> tokens) {
  const GpuRetrieval& retrieval = groups_.empty() ? *only_retrieval_ : groups_[0].retrieval;
  RECALLD_TRY(const auto state, states_->take());
  SearchQuery query;
  query.landmark.resize(config_.retrieval_dim * config_.retrieval_heads());
  if (!groups_.empty()) query.heads.resize(config_.num_attention_heads * config_.attention_head_dim);
  const auto read = [&]() -> cudaError_t {
    RECALLD_CUDA(cudaMemsetAsync(state->data(), 0, state_bytes(), stream_.get()));
    uint32_t last = 0;
    for (size_t done = 0; done < tokens.size(); done += encode_tokens_) {
      const auto part = tokens.subspan(done, std::min<size_t>(encode_tokens_, tokens.size() - done));
      const auto rows = static_cast<uint32_t>(part.size());
      std::ranges::copy(part, encoded_.as<uint32_t>());
      RECALLD_CUDA(cudaMemcpyAsync(encode_tokens_in_, encoded_.as<void>(), part.size_bytes(), cudaMemcpyHostToDevice,
                                   stream_.get()));
      RECALLD_CUDA(cuda::embedding_lookup(embeddings_, encode_tokens_in_, rows,
                                          static_cast<uint32_t>(config_.hidden_size), encode_hidden_, stream_.get()));
      for (size_t layer = 0; layer < lower_.size(); ++layer) {
        const GpuStreamRows all{.state = state->data() + layer * layer_floats(), .first = 0, .tokens = rows};
        RECALLD_CUDA(lower_[layer].run(gpu_, encode_scratch_, std::span(&all, 1), rows, encode_hidden_));
      }
      RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
      last = rows - 1;
    }
    const float* const hidden = encode_hidden_ + last * config_.hidden_size;
    RECALLD_CUDA(retrieval.run(gpu_, retrieval_, 1, hidden, of_block_.queries));
    RECALLD_CUDA(cudaMemcpyAsync(query.landmark.data(), of_block_.queries, query.landmark.size() * sizeof(Bf16),
                                 cudaMemcpyDeviceToHost, stream_.get()));
    if (!groups_.empty()) {
      RECALLD_CUDA(groups_[0].stages[0].hsa.query(gpu_, hsa_, 1, hidden));
      RECALLD_CUDA(cudaMemcpyAsync(query.heads.data(), hsa_.q, query.heads.size() * sizeof(float),
                                   cudaMemcpyDeviceToHost, stream_.get()));
    }
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

// ---- Landmarks and the cache

Expected<std::unique_ptr<GpuMemory>> GpuRamba::open_memory() {
  return std::make_unique<GpuLandmarks>(static_cast<uint32_t>(config_.retrieval_dim), landmarks_share_, host_share_,
                                        stream_.get());
}

bool GpuRamba::has_room(const GpuMemory& memory, uint64_t chunks) const {
  return static_cast<const GpuLandmarks&>(memory).has_room(chunks);
}

Expected<void> GpuRamba::reserve(GpuMemory& memory, uint64_t chunks) {
  return static_cast<GpuLandmarks&>(memory).reserve(chunks);
}

Expected<void> GpuRamba::write_landmarks(GpuMemory& memory, uint64_t first, std::span<const Bf16> landmarks) {
  return static_cast<GpuLandmarks&>(memory).write(first, landmarks);
}

Expected<void> GpuRamba::hide(GpuMemory& memory, uint64_t chunk) {
  return static_cast<GpuLandmarks&>(memory).hide(chunk);
}

// Pinned memory: the records of a block, then those of each lane.
ByteSpan GpuRamba::block_staging() {
  return {staging_.as<std::byte>(), block * list_places() * kv_bytes()};
}
ByteSpan GpuRamba::staging(uint32_t lane) {
  const size_t of_lane = list_places() * kv_bytes();
  return {staging_.as<std::byte>(block_staging().size() + lane * of_lane), of_lane};
}

Expected<void> GpuRamba::fill(GpuMemory& memory, std::span<const Fill> fills) {
  uint32_t* const page_table = static_cast<GpuLandmarks&>(memory).page_table();
  std::vector<cuda::SlotFill> items;
  for (const Fill& each : fills)
    items.push_back({.record = each.record.data(),
                     .page_table = page_table,
                     .chunk = static_cast<uint32_t>(each.chunk),
                     .slot = each.slot});
  return gpu_done(
      "copy chunks to the GPU",
      cuda::fill_slots(items.data(), items.size(), static_cast<uint32_t>(kv_bytes()), cache_.data(), stream_.get()));
}

Expected<void> GpuRamba::unmap(GpuMemory& memory, std::span<const uint64_t> chunks) {
  uint32_t* const page_table = static_cast<GpuLandmarks&>(memory).page_table();
  std::vector<cuda::SlotFill> items;
  for (const uint64_t chunk : chunks)
    items.push_back(
        {.record = nullptr, .page_table = page_table, .chunk = static_cast<uint32_t>(chunk), .slot = no_slot});
  return gpu_done(
      "drop chunks from the GPU's cache",
      cuda::fill_slots(items.data(), items.size(), static_cast<uint32_t>(kv_bytes()), cache_.data(), stream_.get()));
}

Expected<void> GpuRamba::erase(std::span<const uint32_t> slots) {
  const auto overwrite = [&]() -> cudaError_t {
    for (const uint32_t slot : slots)
      RECALLD_CUDA(cudaMemsetAsync(cache_.as<char>(slot * kv_bytes()), 0, kv_bytes(), stream_.get()));
    return cudaStreamSynchronize(stream_.get());
  };
  return gpu_done("overwrite chunks on the GPU", overwrite());
}

Expected<void> GpuRamba::erase_scratch() {
  const size_t width = config_.hidden_size;
  const auto overwrite = [&]() -> cudaError_t {
    RECALLD_CUDA(states_->erase_free(stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(encode_tokens_in_, 0, encoding_bytes_, stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(block_hidden_, 0, block * width * sizeof(float), stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(hidden_, 0, lanes * width * sizeof(float), stream_.get()));
    return cudaStreamSynchronize(stream_.get());
  };
  RECALLD_CHECK(gpu_done("overwrite what is left of chunks on the GPU", overwrite()));
  for (const cuda::PinnedBuffer* buffer : {&staging_, &encoded_, &results_})
    std::memset(buffer->as<void>(), 0, buffer->bytes());
  return {};
}

// ---- Generating

Expected<void> GpuRamba::reset(uint32_t lane) {
  lanes_[lane] = {};
  const auto clear = [&]() -> cudaError_t {
    RECALLD_CUDA(
        cudaMemsetAsync(lower_states_ + lane * lower_floats(), 0, lower_floats() * sizeof(float), stream_.get()));
    return cudaMemsetAsync(upper_states_ + lane * upper_floats(), 0, upper_floats() * sizeof(float), stream_.get());
  };
  return gpu_done("clear the states of an answer", clear());
}

// Lanes that read a token: lower half, then the queries of the first group. Captured once.
cudaError_t GpuRamba::read_tokens() {
  const auto width = static_cast<uint32_t>(config_.hidden_size);
  RECALLD_CUDA(
      cudaMemcpyAsync(input_, results_.as<StepInput>(), sizeof(StepInput), cudaMemcpyHostToDevice, stream_.get()));
  RECALLD_CUDA(cuda::point_states({.ready = input_->reads,
                                   .states = lower_states_,
                                   .lane_floats = lower_floats(),
                                   .unwanted = unwanted_states_,
                                   .layers = static_cast<uint32_t>(lower_.size()),
                                   .layer_floats = layer_floats(),
                                   .conv_floats = GpuMamba2::conv_floats(config_),
                                   .conv = conv_,
                                   .ssm = ssm_},
                                  stream_.get()));
  RECALLD_CUDA(cuda::embedding_lookup(embeddings_, input_->tokens, lanes, width, hidden_, stream_.get()));
  for (size_t layer = 0; layer < lower_.size(); ++layer)
    RECALLD_CUDA(lower_[layer].step(gpu_, mamba_, conv_ + layer * lanes, ssm_ + layer * lanes, hidden_));
  RECALLD_CUDA(cuda::copy_rows(hidden_, input_->reads, width, lane_hidden_, stream_.get()));
  return groups_[0].retrieval.run(gpu_, retrieval_, lanes, lane_hidden_, of_lanes_[0].queries);
}

// Lanes that are ready: one group, then the queries of the next one, or the logits. Captured once.
cudaError_t GpuRamba::compute_group(uint32_t group) {
  const auto width = static_cast<uint32_t>(config_.hidden_size);
  const GroupBuffers& of = of_lanes_[group];
  RECALLD_CUDA(cuda::point_states({.ready = of.ready,
                                   .states = upper_states_ + group * layers_of_group() * layer_floats(),
                                   .lane_floats = upper_floats(),
                                   .unwanted = unwanted_states_,
                                   .layers = static_cast<uint32_t>(layers_of_group()),
                                   .layer_floats = layer_floats(),
                                   .conv_floats = GpuMamba2::conv_floats(config_),
                                   .conv = conv_,
                                   .ssm = ssm_},
                                  stream_.get()));
  RECALLD_CUDA(cudaMemcpyAsync(hidden_, lane_hidden_, size_t{lanes} * width * sizeof(float), cudaMemcpyDeviceToDevice,
                               stream_.get()));
  size_t layer = 0;
  for (const UpperGroup::Stage& stage : groups_[group].stages) {
    RECALLD_CUDA(stage.hsa.run(
        gpu_, hsa_, {.slots = of.slots, .scores = of.scores, .identity = identity_, .cache = cache_.as<Bf16>()}, lanes,
        hidden_));
    for (const GpuMamba2& mamba : stage.blocks) {
      RECALLD_CUDA(mamba.step(gpu_, mamba_, conv_ + layer * lanes, ssm_ + layer * lanes, hidden_));
      ++layer;
    }
  }
  RECALLD_CUDA(cuda::copy_rows(hidden_, of.ready, width, lane_hidden_, stream_.get()));
  if (group + 1 < groups_.size())
    return groups_[group + 1].retrieval.run(gpu_, retrieval_, lanes, lane_hidden_, of_lanes_[group + 1].queries);
  RECALLD_CUDA(cuda::rmsnorm({.x = lane_hidden_,
                              .x_stride = width,
                              .weight = final_norm_,
                              .rows = lanes,
                              .heads = 1,
                              .width = width,
                              .eps = config_.layer_norm_epsilon},
                             normed_, stream_.get()));
  return gpu_.multiply(head_, normed_, lanes, logits_);
}

cudaError_t GpuRamba::capture() {
  if (groups_.empty()) return cudaSuccess;
  // Once before it is captured: libraries and kernels take their memory when they first run.
  RECALLD_CUDA(read_tokens());
  for (uint32_t group = 0; group < groups_.size(); ++group) RECALLD_CUDA(compute_group(group));
  RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
  RECALLD_CUDA(cuda::Graph::capture(
      stream_.get(), [&] { return read_tokens(); }, read_tokens_));
  compute_group_.resize(groups_.size());
  for (uint32_t group = 0; group < groups_.size(); ++group)
    RECALLD_CUDA(cuda::Graph::capture(
        stream_.get(), [&] { return compute_group(group); }, compute_group_[group]));
  return cudaSuccess;
}

// The best landmarks of each of `count` queries, wherever the landmarks lie.
cudaError_t GpuRamba::find_chunks(const GpuLandmarks& memory, uint64_t n, const Bf16* queries, uint32_t count,
                                  float* dots, uint64_t* chunks) {
  const auto dim = static_cast<uint32_t>(config_.retrieval_dim), k = static_cast<uint32_t>(config_.chunk_topk);
  const bool int8 = memory.placement() == Placement::device_int8;
  if (count > 1 && !int8) {
    for (uint32_t done = 0; done < count; done += cuda::landmark_topk_batch_max)
      RECALLD_CUDA(cuda::landmark_topk_batch({.queries = queries + size_t{done} * dim,
                                              .count = std::min(cuda::landmark_topk_batch_max, count - done),
                                              .landmarks = memory.landmarks(),
                                              .n = n,
                                              .dim = dim,
                                              .k = k,
                                              .dots = dots + size_t{done} * k,
                                              .chunks = chunks + size_t{done} * k,
                                              .workspace = topk_batch_},
                                             stream_.get()));
    return cudaSuccess;
  }
  for (uint32_t i = 0; i < count; ++i) {
    const Bf16* const query = queries + size_t{i} * dim;
    if (int8)
      RECALLD_CUDA(cuda::landmark_topk_int8({.query = query,
                                             .codes = memory.codes(),
                                             .scales = memory.scales(),
                                             .landmarks = memory.landmarks(),
                                             .n = n,
                                             .dim = dim,
                                             .k = k,
                                             .dots = dots + size_t{i} * k,
                                             .chunks = chunks + size_t{i} * k,
                                             .workspace = topk_int8_},
                                            stream_.get()));
    else
      RECALLD_CUDA(cuda::landmark_topk({.query = query,
                                        .landmarks = memory.landmarks(),
                                        .n = n,
                                        .dim = dim,
                                        .k = k,
                                        .dots = dots + size_t{i} * k,
                                        .chunks = chunks + size_t{i} * k,
                                        .workspace = topk_},
                                       stream_.get()));
  }
  return cudaSuccess;
}

// row: of the lane's first token in the group's buffers.
cudaError_t GpuRamba::find_chunks(uint32_t, const LaneWork& work, uint32_t tokens, const GroupBuffers& into,
                                  uint32_t row) {
  const auto heads = static_cast<uint32_t>(config_.retrieval_heads());
  const auto& memory = static_cast<const GpuLandmarks&>(*work.memory);
  const uint64_t n = std::min(work.chunks, memory.chunks());
  if (n == 0) return cudaSuccess;
  return find_chunks(memory, n, into.queries + size_t{row} * heads * config_.retrieval_dim, tokens * heads,
                     into.dots + row * list_places(), into.chunks + row * list_places());
}

cuda::SelectionLane GpuRamba::selection_lane(const LaneWork& work, uint32_t tokens, const GroupBuffers& of,
                                             uint32_t row, bool enters) const {
  const auto& memory = static_cast<const GpuLandmarks&>(*work.memory);
  const uint64_t n = std::min(work.chunks, memory.chunks());
  return {.dots = of.dots + row * list_places(),
          .chunks = of.chunks + row * list_places(),
          .page_table = memory.page_table(),
          .tokens = tokens,
          .found = static_cast<uint32_t>(std::min<uint64_t>(n, config_.chunk_topk)),
          .row = row,
          .enters = enters};
}

// Which lanes have all the chunks of their tokens in the cache, and where.
cudaError_t GpuRamba::select(uint32_t group, std::span<const LaneWork> work) {
  const GroupBuffers& of = of_lanes_[group];
  cuda::ChunkSelection selection;
  selection.lane_count = lanes;
  selection.heads = static_cast<uint32_t>(config_.retrieval_heads());
  selection.k = static_cast<uint32_t>(config_.chunk_topk);
  selection.scale = score_scale();
  selection.ready_before = group > 0 ? of_lanes_[group - 1].ready : nullptr;
  selection.slots = of.slots;
  selection.ids = of.ids;
  selection.scores = of.scores;
  selection.ready = of.ready;
  for (uint32_t lane = 0; lane < lanes; ++lane) selection.lanes[lane].row = lane;
  for (const LaneWork& each : work)
    if (lanes_[each.lane].group <= group)
      selection.lanes[each.lane] = selection_lane(each, 1, of, each.lane, lanes_[each.lane].group == group);
  return cuda::select_chunks(selection, stream_.get());
}

Gpu::Selection GpuRamba::selection(uint32_t group, const uint32_t* ids, size_t row, size_t rows, size_t places,
                                   bool cached) const {
  const auto* const scores = reinterpret_cast<const float*>(ids + places);
  const size_t first = row * list_places(), end = first + rows * list_places();
  return {
      .group = group, .cached = cached, .chunks = {ids + first, ids + end}, .scores = {scores + first, scores + end}};
}

Expected<std::vector<Gpu::LaneResult>> GpuRamba::step(std::span<const LaneWork> work) {
  std::vector<LaneResult> results(work.size());
  if (work.empty()) return results;
  const LaneWork& first = work.front();
  const bool of_block = first.tokens.size() > 1 || lanes_[first.lane].tokens > 1;
  assert(!of_block || work.size() == 1);
  const cudaError_t status = of_block ? step_block(first, results.front()) : step_lanes(work, results);
  if (status != cudaSuccess) static_cast<void>(cudaStreamSynchronize(stream_.get()));  // it may read pinned memory
  RECALLD_CHECK(gpu_done("generate on the GPU", status));
  return results;
}

cudaError_t GpuRamba::step_lanes(std::span<const LaneWork> work, std::vector<LaneResult>& results) {
  auto* const input = results_.as<StepInput>();
  *input = {};
  bool reads = false;
  uint32_t first_group = static_cast<uint32_t>(groups_.size());
  for (const LaneWork& each : work) {
    Lane& lane = lanes_[each.lane];
    if (!each.tokens.empty()) {
      lane = {.group = 0, .tokens = 1};
      input->tokens[each.lane] = each.tokens.front();
      input->reads[each.lane] = 1;
      reads = true;
    }
    first_group = std::min(first_group, lane.group);
  }
  if (reads) RECALLD_CUDA(read_tokens_.launch(stream_.get()));
  const size_t places = lanes * list_places(), group_words = 2 * places + lanes;
  auto* const selected = reinterpret_cast<uint32_t*>(input + 1);  // [groups] ids, scores, ready
  for (uint32_t group = first_group; group < groups_.size(); ++group) {
    const GroupBuffers& of = of_lanes_[group];
    for (const LaneWork& each : work)
      if (lanes_[each.lane].group <= group) RECALLD_CUDA(find_chunks(group, each, 1, of, each.lane));
    RECALLD_CUDA(select(group, work));
    RECALLD_CUDA(compute_group_[group].launch(stream_.get()));
    uint32_t* const to = selected + group * group_words;
    RECALLD_CUDA(cudaMemcpyAsync(to, of.ids, 2 * places * sizeof(uint32_t), cudaMemcpyDeviceToHost, stream_.get()));
    RECALLD_CUDA(
        cudaMemcpyAsync(to + 2 * places, of.ready, lanes * sizeof(uint32_t), cudaMemcpyDeviceToHost, stream_.get()));
  }
  auto* const logits = reinterpret_cast<float*>(selected + groups_.size() * group_words);
  for (const LaneWork& each : work)
    RECALLD_CUDA(cudaMemcpyAsync(logits + each.lane * size_t{config_.vocab_size},
                                 logits_ + each.lane * size_t{head_.out}, config_.vocab_size * sizeof(float),
                                 cudaMemcpyDeviceToHost, stream_.get()));
  RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));

  for (size_t i = 0; i < work.size(); ++i) {
    Lane& lane = lanes_[work[i].lane];
    LaneResult& result = results[i];
    for (bool ready = true; ready && lane.group < groups_.size();) {
      const uint32_t* const of = selected + lane.group * group_words;
      ready = of[2 * places + work[i].lane] != 0;
      result.selections.push_back(selection(lane.group, of, work[i].lane, 1, places, ready));
      if (ready) ++lane.group;
    }
    result.done = lane.group == groups_.size();
    if (!result.done) continue;
    const float* const of_lane = logits + work[i].lane * size_t{config_.vocab_size};
    result.logits.assign(of_lane, of_lane + config_.vocab_size);
    lane = {};
  }
  return cudaSuccess;
}

cudaError_t GpuRamba::step_block(const LaneWork& work, LaneResult& result) {
  const auto width = static_cast<uint32_t>(config_.hidden_size);
  Lane& lane = lanes_[work.lane];
  const auto run = [&](std::span<const GpuMamba2> blocks, float* states) -> cudaError_t {
    for (const GpuMamba2& mamba : blocks) {
      const GpuStreamRows all{.state = states, .first = 0, .tokens = lane.tokens};
      RECALLD_CUDA(mamba.run(gpu_, mamba_, std::span(&all, 1), lane.tokens, block_hidden_));
      states += layer_floats();
    }
    return cudaSuccess;
  };
  if (!work.tokens.empty()) {
    lane = {.group = 0, .tokens = static_cast<uint32_t>(work.tokens.size())};
    std::ranges::copy(work.tokens, results_.as<uint32_t>());
    RECALLD_CUDA(cudaMemcpyAsync(block_tokens_in_, results_.as<void>(), work.tokens.size_bytes(),
                                 cudaMemcpyHostToDevice, stream_.get()));
    RECALLD_CUDA(
        cuda::embedding_lookup(embeddings_, block_tokens_in_, lane.tokens, width, block_hidden_, stream_.get()));
    RECALLD_CUDA(run(lower_, lower_states_ + work.lane * lower_floats()));
  }
  const size_t places = block * list_places();
  auto* const selected = reinterpret_cast<uint32_t*>(results_.as<StepInput>() + 1);
  while (lane.group < groups_.size()) {
    const UpperGroup& group = groups_[lane.group];
    RECALLD_CUDA(group.retrieval.run(gpu_, retrieval_, lane.tokens, block_hidden_, of_block_.queries));
    RECALLD_CUDA(find_chunks(lane.group, work, lane.tokens, of_block_, 0));
    cuda::ChunkSelection selection_of{.lanes = {},
                                      .lane_count = 1,
                                      .heads = static_cast<uint32_t>(config_.retrieval_heads()),
                                      .k = static_cast<uint32_t>(config_.chunk_topk),
                                      .scale = score_scale(),
                                      .ready_before = nullptr,
                                      .slots = of_block_.slots,
                                      .ids = of_block_.ids,
                                      .scores = of_block_.scores,
                                      .ready = of_block_.ready};
    selection_of.lanes[0] = selection_lane(work, lane.tokens, of_block_, 0, true);
    RECALLD_CUDA(cuda::select_chunks(selection_of, stream_.get()));
    RECALLD_CUDA(
        cudaMemcpyAsync(selected, of_block_.ids, 2 * places * sizeof(uint32_t), cudaMemcpyDeviceToHost, stream_.get()));
    RECALLD_CUDA(cudaMemcpyAsync(selected + 2 * places, of_block_.ready, sizeof(uint32_t), cudaMemcpyDeviceToHost,
                                 stream_.get()));
    RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
    const bool ready = selected[2 * places] != 0;
    result.selections.push_back(selection(lane.group, selected, 0, lane.tokens, places, ready));
    if (!ready) return cudaSuccess;
    float* states = upper_states_ + work.lane * upper_floats() + lane.group * layers_of_group() * layer_floats();
    for (const UpperGroup::Stage& stage : group.stages) {
      RECALLD_CUDA(stage.hsa.run(
          gpu_, hsa_,
          {.slots = of_block_.slots, .scores = of_block_.scores, .identity = identity_, .cache = cache_.as<Bf16>()},
          lane.tokens, block_hidden_));
      RECALLD_CUDA(run(stage.blocks, states));
      states += stage.blocks.size() * layer_floats();
    }
    ++lane.group;
  }
  RECALLD_CUDA(cuda::rmsnorm({.x = block_hidden_ + (lane.tokens - 1) * width,
                              .x_stride = width,
                              .weight = final_norm_,
                              .rows = 1,
                              .heads = 1,
                              .width = width,
                              .eps = config_.layer_norm_epsilon},
                             normed_, stream_.get()));
  RECALLD_CUDA(gpu_.multiply(head_, normed_, 1, logits_));
  result.logits.resize(config_.vocab_size);
  RECALLD_CUDA(cudaMemcpyAsync(result.logits.data(), logits_, config_.vocab_size * sizeof(float),
                               cudaMemcpyDeviceToHost, stream_.get()));
  RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
  result.done = true;
  lane = {};
  return cudaSuccess;
}

}  // namespace recalld
