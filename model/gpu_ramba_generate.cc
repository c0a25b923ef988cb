// Generating on a GPU: landmarks, the cache of chunks, and the steps of lanes.
#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <utility>

#include "kernels/elementwise_cuda.h"
#include "kernels/landmark_topk_batch_cuda.h"
#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_int8_cuda.h"
#include "model/gpu_ramba_impl.h"

namespace recalld {
namespace {

constexpr uint32_t not_told = 2;  // of a lane: neither that it is ready nor that it is not

}  // namespace

// ---- Landmarks and the cache

Expected<std::unique_ptr<GpuMemory>> GpuRamba::open_memory() {
  return std::make_unique<GpuLandmarks>(static_cast<uint32_t>(config_.retrieval_dim), landmarks_share_, host_share_,
                                        leftovers_, stream_.get());
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
  for (Lane& lane : lanes_) lane.has_found = false;  // what waits may have to choose again
  return static_cast<GpuLandmarks&>(memory).hide(chunk);
}

// Pinned memory: the records of a block, then those of each lane.
ByteSpan GpuRamba::block_staging() {
  return staging_.first(block * list_places() * kv_bytes());
}
ByteSpan GpuRamba::staging(uint32_t lane) {
  const size_t of_lane = list_places() * kv_bytes();
  return staging_.subspan(block_staging().size() + lane * of_lane, of_lane);
}

Expected<void> GpuRamba::fill(GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) {
  plan_unmapping(make_way);
  plan_fills(memory, fills, nullptr);
  return gpu_done("copy chunks to the GPU", move_chunks());
}

Expected<void> GpuRamba::unmap(std::span<const Mapped> chunks) {
  plan_unmapping(chunks);
  return gpu_done("drop chunks from the GPU's cache", move_chunks());
}

void GpuRamba::plan_unmapping(std::span<const Mapped> chunks) {
  moves_.clear();
  for (const auto& [memory, chunk] : chunks)
    moves_.push_back({.record = nullptr,
                      .page_table = static_cast<GpuLandmarks&>(*memory).page_table(),
                      .chunk = static_cast<uint32_t>(chunk),
                      .slot = no_slot});
}

// arrivals: [fills.size()], or null where all records are there
void GpuRamba::plan_fills(const GpuMemory& memory, std::span<const Fill> fills, const uint32_t* arrivals) {
  uint32_t* const page_table = static_cast<const GpuLandmarks&>(memory).page_table();
  for (size_t i = 0; i < fills.size(); ++i)
    moves_.push_back({.record = fills[i].record.data(),
                      .page_table = page_table,
                      .chunk = static_cast<uint32_t>(fills[i].chunk),
                      .slot = fills[i].slot,
                      .arrival = arrivals ? arrivals + i : nullptr});
}

cudaError_t GpuRamba::move_chunks() const {
  return cuda::fill_slots(moves_.data(), moves_.size(), static_cast<uint32_t>(kv_bytes()), cache_.data(),
                          stream_.get());
}

Expected<void> GpuRamba::erase(std::span<const uint32_t> slots) {
  const auto overwrite = [&]() -> cudaError_t {
    // One call for each run of slots: a memory may have all of them.
    std::vector<uint32_t> sorted(slots.begin(), slots.end());
    std::ranges::sort(sorted);
    for (size_t first = 0, end = 0; first < sorted.size(); first = end) {
      end = first + 1;
      while (end < sorted.size() && sorted[end] <= sorted[end - 1] + 1) ++end;
      const size_t count = sorted[end - 1] - sorted[first] + 1;
      RECALLD_CUDA(cudaMemsetAsync(cache_.as<char>(sorted[first] * kv_bytes()), 0, count * kv_bytes(), stream_.get()));
    }
    return cudaStreamSynchronize(stream_.get());
  };
  return gpu_done("overwrite chunks on the GPU", overwrite());
}

Expected<void> GpuRamba::erase_scratch() {
  const auto overwrite = [&]() -> cudaError_t {
    RECALLD_CUDA(states_->erase_free(stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(encode_tokens_in_, 0, encoding_bytes_, stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(workspace_.data(), 0, scratch_bytes_, stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(unwanted_states_, 0, lanes * layer_floats() * sizeof(float), stream_.get()));
    return leftovers_.erase(stream_.get());
  };
  cudaError_t status = overwrite();
  const cudaError_t ended = cudaStreamSynchronize(stream_.get());  // also after an error: it may use pinned memory
  if (status == cudaSuccess) status = ended;
  if (status == cudaSuccess) leftovers_.free();
  // The host's memory is overwritten also where the device is lost.
  pinned_.overwrite();
  const cudaError_t of_search = groups_.empty() ? cudaSuccess : late_.erase();
  RECALLD_CHECK(gpu_done("overwrite what is left of chunks on the GPU", status));
  return gpu_done("overwrite what is left of a search on the GPU", of_search);
}

// ---- Generating

Expected<void> GpuRamba::reset(uint32_t lane) {
  lanes_[lane] = {};
  const auto clear = [&]() -> cudaError_t {
    RECALLD_CUDA(
        cudaMemsetAsync(lower_states_ + lane * lower_floats(), 0, lower_floats() * sizeof(float), stream_.get()));
    RECALLD_CUDA(
        cudaMemsetAsync(upper_states_ + lane * upper_floats(), 0, upper_floats() * sizeof(float), stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(lane_hidden_ + lane * config_.hidden_size, 0, config_.hidden_size * sizeof(float),
                                 stream_.get()));
    const size_t places = list_places(), dims = config_.retrieval_heads() * config_.retrieval_dim;
    for (const GroupBuffers& of : of_lanes_) {
      RECALLD_CUDA(cudaMemsetAsync(of.queries + lane * dims, 0, dims * sizeof(Bf16), stream_.get()));
      RECALLD_CUDA(cudaMemsetAsync(of.dots + lane * places, 0, places * sizeof(float), stream_.get()));
      RECALLD_CUDA(cudaMemsetAsync(of.chunks + lane * places, 0, places * sizeof(uint64_t), stream_.get()));
      RECALLD_CUDA(cudaMemsetAsync(of.slots + lane * places, 0, places * sizeof(uint32_t), stream_.get()));
      RECALLD_CUDA(cudaMemsetAsync(of.scores + lane * places, 0, places * sizeof(float), stream_.get()));
    }
    return cudaSuccess;
  };
  return gpu_done("clear the states of an answer", clear());
}

// Lanes that read a token: lower half, then the queries of the first group. Captured once.
cudaError_t GpuRamba::read_tokens() {
  const auto width = static_cast<uint32_t>(config_.hidden_size);
  RECALLD_CUDA(cudaMemcpyAsync(input_, told_input_, sizeof(StepInput), cudaMemcpyHostToDevice, stream_.get()));
  RECALLD_CUDA(cuda::point_states({.ready = input_->reads,
                                   .states = lower_states_,
                                   .lane_floats = lower_floats(),
                                   .unwanted = unwanted_states_,
                                   .layers = static_cast<uint32_t>(lower_.size()),
                                   .layer_floats = layer_floats(),
                                   .conv_floats = GpuBlock::conv_floats(config_),
                                   .conv = conv_,
                                   .ssm = ssm_},
                                  stream_.get()));
  RECALLD_CUDA(cuda::embedding_lookup(embeddings_, input_->tokens, lanes, width, hidden_, stream_.get()));
  for (size_t layer = 0; layer < lower_.size(); ++layer)
    RECALLD_CUDA(lower_[layer].step(gpu_, blocks_, conv_ + layer * lanes, ssm_ + layer * lanes, hidden_));
  RECALLD_CUDA(cuda::copy_rows(hidden_, input_->reads, width, lane_hidden_, stream_.get()));
  return groups_[0].retrieval.run(gpu_, retrieval_, lanes, lane_hidden_, of_lanes_[0].queries);
}

// Lanes that are ready: one group, then the queries of the next one, or the logits, which go to the host. Captured
// once.
cudaError_t GpuRamba::compute_group(uint32_t group) {
  const auto width = static_cast<uint32_t>(config_.hidden_size);
  const GroupBuffers& of = of_lanes_[group];
  RECALLD_CUDA(cuda::point_states({.ready = of.ready,
                                   .states = upper_states_ + group * layers_of_group() * layer_floats(),
                                   .lane_floats = upper_floats(),
                                   .unwanted = unwanted_states_,
                                   .layers = static_cast<uint32_t>(layers_of_group()),
                                   .layer_floats = layer_floats(),
                                   .conv_floats = GpuBlock::conv_floats(config_),
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
    for (const GpuBlock& each : stage.blocks) {
      RECALLD_CUDA(each.step(gpu_, blocks_, conv_ + layer * lanes, ssm_ + layer * lanes, hidden_));
      ++layer;
    }
  }
  RECALLD_CUDA(cuda::copy_rows(hidden_, of.ready, width, lane_hidden_, stream_.get()));
  if (group + 1 < groups_.size())
    return groups_[group + 1].retrieval.run(gpu_, retrieval_, lanes, lane_hidden_, of_lanes_[group + 1].queries);
  RECALLD_CUDA(gpu_.norm(lane_hidden_, final_norm_, lanes, width, config_.layer_norm_epsilon, normed_));
  RECALLD_CUDA(gpu_.multiply(head_, normed_, lanes, logits_));
  return cuda::copy_rows(logits_, of.ready, head_.out, told_logits_, stream_.get());
}

cudaError_t GpuRamba::capture() {
  if (groups_.empty()) return cudaSuccess;
  // Once before it is captured: libraries and kernels take their memory when they first run.
  RECALLD_CUDA(read_tokens());
  for (uint32_t group = 0; group < groups_.size(); ++group) {
    tell_lanes(group, {});
    RECALLD_CUDA(cuda::select_chunks(selection_of(of_lanes_[group], talk_of_lanes_[group], lanes), stream_.get()));
    RECALLD_CUDA(compute_group(group));
  }
  RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
  RECALLD_CUDA(cuda::Graph::capture(
      stream_.get(), [&] { return read_tokens(); }, read_tokens_));
  compute_group_.resize(groups_.size());
  for (uint32_t group = 0; group < groups_.size(); ++group) {
    cuda::ChunkSelection selection = selection_of(of_lanes_[group], talk_of_lanes_[group], lanes);
    if (group > 0) selection.ready_before = of_lanes_[group - 1].ready;
    RECALLD_CUDA(cuda::Graph::capture_if(
        stream_.get(),
        [&](cudaGraphConditionalHandle branch) {
          return cuda::select_chunks_for(branch, selection, arrived_, stream_.get());
        },
        [&] { return compute_group(group); }, compute_group_[group]));
  }
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
cudaError_t GpuRamba::find_chunks(const LaneWork& work, uint32_t tokens, const GroupBuffers& into, uint32_t row) {
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
cuda::ChunkSelection GpuRamba::selection_of(const GroupBuffers& of, const GroupTalk& talk, uint32_t lane_count) const {
  return {.lanes = talk.lanes,
          .lane_count = lane_count,
          .heads = static_cast<uint32_t>(config_.retrieval_heads()),
          .k = static_cast<uint32_t>(config_.chunk_topk),
          .scale = score_scale(),
          .ready_before = nullptr,
          .slots = of.slots,
          .scores = of.scores,
          .ready = of.ready,
          .told_ids = talk.ids,
          .told_scores = talk.scores,
          .told_ready = talk.ready};
}

// The lanes that the group's next selection is of. None may be under way.
void GpuRamba::tell_lanes(uint32_t group, std::span<const LaneWork> work) {
  cuda::SelectionLane* const told = talk_of_lanes_[group].lanes;
  for (uint32_t lane = 0; lane < lanes; ++lane) told[lane] = {.row = lane};
  for (const LaneWork& each : work)
    if (lanes_[each.lane].group <= group)
      told[each.lane] = selection_lane(each, 1, of_lanes_[group], each.lane, lanes_[each.lane].group == group);
}

Gpu::Selection GpuRamba::selection(uint32_t group, const GroupTalk& talk, size_t row, size_t rows, bool cached) const {
  const size_t first = row * list_places(), end = first + rows * list_places();
  return {.group = group,
          .cached = cached,
          .chunks = {talk.ids + first, talk.ids + end},
          .scores = {talk.scores + first, talk.scores + end},
          .told = std::chrono::steady_clock::now()};
}

Expected<std::vector<Gpu::LaneResult>> GpuRamba::step(std::span<const LaneWork> work) {
  std::vector<LaneResult> results(work.size());
  assert(!prepared_);
  if (work.empty()) return results;
  const LaneWork& first = work.front();
  const bool of_block = first.tokens.size() > 1 || lanes_[first.lane].tokens > 1;
  assert(!of_block || work.size() == 1);
  const cudaError_t status = of_block ? step_block(first, results.front()) : step_lanes(work, results);
  if (status != cudaSuccess) static_cast<void>(cudaStreamSynchronize(stream_.get()));  // it may read pinned memory
  RECALLD_CHECK(gpu_done("generate on the GPU", status));
  return results;
}

cudaError_t GpuRamba::step_lanes(std::span<const LaneWork> work, std::span<LaneResult> results) {
  RECALLD_CUDA(end_looks());
  RECALLD_CUDA(enqueue_lanes(work));
  return end_lanes(work, results);
}

// Nothing that was enqueued before may run: it would find what the host tells this step.
cudaError_t GpuRamba::enqueue_lanes(std::span<const LaneWork> work) {
  *told_input_ = {};
  bool reads = false;
  uint32_t first_group = static_cast<uint32_t>(groups_.size());
  for (const LaneWork& each : work) {
    Lane& lane = lanes_[each.lane];
    if (!each.tokens.empty()) {
      lane = {.group = 0, .tokens = 1};
      told_input_->tokens[each.lane] = each.tokens.front();
      told_input_->reads[each.lane] = 1;
      reads = true;
    }
    first_group = std::min(first_group, lane.group);
  }
  if (reads) RECALLD_CUDA(read_tokens_.launch(stream_.get()));
  for (uint32_t group = first_group; group < groups_.size(); ++group) {
    for (const LaneWork& each : work) {
      Lane& lane = lanes_[each.lane];
      if (lane.group > group || (lane.group == group && lane.has_found)) continue;
      RECALLD_CUDA(find_chunks(each, 1, of_lanes_[group], each.lane));
      lane.has_found = lane.group == group;
    }
    tell_lanes(group, work);
    for (const LaneWork& each : work) talk_of_lanes_[group].ready[each.lane] = not_told;
    RECALLD_CUDA(compute_group_[group].launch(stream_.get()));
  }
  return cudaSuccess;
}

// Waits for what was enqueued, of a lane that is alone only until it is known what becomes of it.
cudaError_t GpuRamba::end_lanes(std::span<const LaneWork> work, std::span<LaneResult> results) {
  std::optional<std::chrono::steady_clock::time_point> told;
  if (work.size() == 1) {
    RECALLD_CUDA(look_at(work.front().lane));
    told = looked_;
  } else {
    RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
  }

  for (size_t i = 0; i < work.size(); ++i) {
    Lane& lane = lanes_[work[i].lane];
    LaneResult& result = results[i];
    for (bool ready = true; ready && lane.group < groups_.size();) {
      const GroupTalk& talk = talk_of_lanes_[lane.group];
      ready = talk.ready[work[i].lane] == 1;
      result.selections.push_back(selection(lane.group, talk, work[i].lane, 1, ready));
      if (told) result.selections.back().told = *told;
      lane.has_found = !ready;  // in the group that it stays in
      if (ready) ++lane.group;
    }
    result.done = lane.group == groups_.size();
    if (!result.done) continue;
    const float* const logits = told_logits_ + work[i].lane * size_t{head_.out};
    result.logits.assign(logits, logits + config_.vocab_size);
    lane = {};
  }
  return cudaSuccess;
}

// One lane waits for nobody: where its chunks are missing the host hears so before the kernels behind that have run.
cudaError_t GpuRamba::look_at(uint32_t lane) {
  for (uint32_t group = lanes_[lane].group; group < groups_.size(); ++group) {
    RECALLD_CUDA(await_told(group, lane));
    looked_ = std::chrono::steady_clock::now();
    if (talk_of_lanes_[group].ready[lane] == 0) {
      may_run_ = true;
      return cudaSuccess;
    }
  }
  return cudaStreamSynchronize(stream_.get());
}

// Looks at pinned memory, and now and then whether the device is still at work.
cudaError_t GpuRamba::await_told(uint32_t group, uint32_t lane) const {
  constexpr uint32_t looks_between = 1 << 16;
  const std::atomic_ref<uint32_t> told(talk_of_lanes_[group].ready[lane]);
  for (uint32_t looks = 1; told.load(std::memory_order_acquire) == not_told; ++looks) {
    if (looks % looks_between != 0) continue;
    const cudaError_t status = cudaStreamQuery(stream_.get());
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // that is no error, and must not come from a later call
      continue;
    }
    if (status != cudaSuccess) return status;
    // All has run.
    return told.load(std::memory_order_acquire) == not_told ? cudaErrorUnknown : cudaSuccess;
  }
  return cudaSuccess;
}

// Waits for what ran on behind a look.
cudaError_t GpuRamba::end_looks() {
  return std::exchange(may_run_, false) ? cudaStreamSynchronize(stream_.get()) : cudaSuccess;
}

// ---- Chunks that arrive later

Expected<void> GpuRamba::prepare(const LaneWork& work, GpuMemory& memory, std::span<const Fill> fills,
                                 std::span<const Mapped> make_way) {
  assert(!prepared_ && work.tokens.empty() && lanes_[work.lane].tokens == 1 && fills.size() <= list_places());
  const auto enqueue = [&]() -> cudaError_t {
    RECALLD_CUDA(end_looks());
    std::fill_n(told_arrivals_, fills.size(), cuda::on_its_way);
    plan_unmapping(make_way);
    plan_fills(memory, fills, told_arrivals_);
    RECALLD_CUDA(move_chunks());
    return enqueue_lanes(std::span(&work, 1));
  };
  const cudaError_t status = enqueue();
  if (status == cudaSuccess) {
    prepared_ = {work, fills.size()};
  } else {
    abandon(fills.size());
    static_cast<void>(cudaStreamSynchronize(stream_.get()));
  }
  return gpu_done("tell the GPU what follows the reading of chunks", status);
}

void GpuRamba::arrived(size_t i) {
  assert(prepared_ && i < prepared_->fills);
  std::atomic_ref(told_arrivals_[i]).store(cuda::has_arrived, std::memory_order_release);
}

// Those that have not arrived do not come.
void GpuRamba::abandon(size_t fills) {
  for (size_t i = 0; i < fills; ++i)
    if (told_arrivals_[i] == cuda::on_its_way)
      std::atomic_ref(told_arrivals_[i]).store(cuda::does_not_come, std::memory_order_release);
}

Expected<Gpu::LaneResult> GpuRamba::go_on() {
  assert(prepared_);
  const Prepared prepared = *std::exchange(prepared_, std::nullopt);
  abandon(prepared.fills);
  LaneResult result;
  const cudaError_t status = end_lanes(std::span(&prepared.work, 1), std::span(&result, 1));
  if (status != cudaSuccess) static_cast<void>(cudaStreamSynchronize(stream_.get()));
  RECALLD_CHECK(gpu_done("generate on the GPU", status));
  return result;
}

// ---- A block of tokens

cudaError_t GpuRamba::step_block(const LaneWork& work, LaneResult& result) {
  const auto width = static_cast<uint32_t>(config_.hidden_size);
  Lane& lane = lanes_[work.lane];
  const auto run = [&](std::span<const GpuBlock> blocks, float* states) -> cudaError_t {
    for (const GpuBlock& each : blocks) {
      const GpuStreamRows all{.state = states, .first = 0, .tokens = lane.tokens};
      RECALLD_CUDA(each.run(gpu_, blocks_, std::span(&all, 1), lane.tokens, block_hidden_));
      states += layer_floats();
    }
    return cudaSuccess;
  };
  if (!work.tokens.empty()) {
    lane = {.group = 0, .tokens = static_cast<uint32_t>(work.tokens.size())};
    std::ranges::copy(work.tokens, told_block_tokens_);
    RECALLD_CUDA(cudaMemcpyAsync(block_tokens_in_, told_block_tokens_, work.tokens.size_bytes(), cudaMemcpyHostToDevice,
                                 stream_.get()));
    RECALLD_CUDA(
        cuda::embedding_lookup(embeddings_, block_tokens_in_, lane.tokens, width, block_hidden_, stream_.get()));
    RECALLD_CUDA(run(lower_, lower_states_ + work.lane * lower_floats()));
  }
  while (lane.group < groups_.size()) {
    const UpperGroup& group = groups_[lane.group];
    if (!lane.has_found) {
      RECALLD_CUDA(group.retrieval.run(gpu_, retrieval_, lane.tokens, block_hidden_, of_block_.queries));
      RECALLD_CUDA(find_chunks(work, lane.tokens, of_block_, 0));
    }
    talk_of_block_.lanes[0] = selection_lane(work, lane.tokens, of_block_, 0, true);
    RECALLD_CUDA(cuda::select_chunks(selection_of(of_block_, talk_of_block_, 1), stream_.get()));
    RECALLD_CUDA(cudaStreamSynchronize(stream_.get()));
    const bool ready = talk_of_block_.ready[0] != 0;
    result.selections.push_back(selection(lane.group, talk_of_block_, 0, lane.tokens, ready));
    lane.has_found = !ready;
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
  RECALLD_CUDA(
      gpu_.norm(block_hidden_ + (lane.tokens - 1) * width, final_norm_, 1, width, config_.layer_norm_epsilon, normed_));
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
