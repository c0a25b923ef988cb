#include "tests/support/cpu_gpu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <set>

#include "kernels/landmark_topk.h"

namespace recalld {
namespace {

// A misuse of gpu.h is the test's failure, whatever comes of it.
void promise(bool kept, const char* what) {
  EXPECT_TRUE(kept) << "gpu.h: " << what;
}

}  // namespace

class CpuGpu::State final : public DeviceState {
 public:
  State(RecurrentState of, std::shared_ptr<std::atomic<size_t>> count)
      : state(std::move(of)), count_(std::move(count)) {
    ++*count_;
  }
  ~State() override { --*count_; }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  RecurrentState state;

 private:
  const std::shared_ptr<std::atomic<size_t>> count_;
};

class CpuGpu::Memory final : public GpuMemory {
 public:
  explicit Memory(CpuGpu& gpu) : gpu_(gpu) {}
  ~Memory() override {
    gpu_.move_all();
    for (const Memory*& memory : gpu_.mapped_)
      if (memory == this) memory = nullptr;
    gpu_.landmarks_bytes_ -= device_bytes(placement_, capacity_);
    gpu_.host_landmarks_bytes_ -= host_bytes(placement_, capacity_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint64_t chunks() const override { return landmarks_.size() / dim(); }
  Placement placement() const override { return placement_; }

  bool has_room(uint64_t chunks) const {
    return this->chunks() + chunks <= capacity_ || fits(placement_, this->chunks() + chunks);
  }
  Expected<void> reserve(uint64_t chunks) {
    if (chunks <= capacity_) return {};
    Placement to = placement_;
    while (!fits(to, chunks)) {
      if (to == Placement::host) return fail(ErrorKind::full, "the host's memory for landmarks is full");
      to = static_cast<Placement>(static_cast<uint8_t>(to) + 1);
    }
    gpu_.landmarks_bytes_ += device_bytes(to, chunks) - device_bytes(placement_, capacity_);
    gpu_.host_landmarks_bytes_ += host_bytes(to, chunks) - host_bytes(placement_, capacity_);
    placement_ = to;
    capacity_ = chunks;
    return {};
  }
  Expected<void> write(uint64_t first, std::span<const Bf16> landmarks) {
    promise(first <= chunks(), "landmarks are written behind a gap");
    const uint64_t end = first + landmarks.size() / dim();
    RECALLD_CHECK(reserve(end));
    landmarks_.resize(std::max<size_t>(landmarks_.size(), end * dim()));
    pages_.resize(chunks(), no_slot);
    std::ranges::copy(landmarks, landmarks_.begin() + static_cast<ptrdiff_t>(first * dim()));
    return {};
  }
  void hide(uint64_t chunk) {
    promise(chunk < chunks(), "a chunk is hidden that the memory has not");
    constexpr Bf16 not_a_number{0x7fc0};
    std::ranges::fill(std::span(landmarks_).subspan(chunk * dim(), dim()), not_a_number);
  }

  const Bf16* landmarks() const { return landmarks_.data(); }
  uint32_t& page(uint64_t chunk) { return pages_[chunk]; }
  uint32_t page(uint64_t chunk) const { return pages_[chunk]; }

 private:
  size_t dim() const { return gpu_.model_->landmark_dim(); }
  uint64_t device_bytes(Placement placement, uint64_t chunks) const {
    constexpr uint64_t page = sizeof(uint32_t), scale = sizeof(float);
    if (placement == Placement::host) return 0;
    return chunks * (page + (placement == Placement::device ? dim() * sizeof(Bf16) : dim() + scale));
  }
  uint64_t host_bytes(Placement placement, uint64_t chunks) const {
    if (placement == Placement::device) return 0;
    return chunks * (dim() * sizeof(Bf16) + (placement == Placement::host ? sizeof(uint32_t) : 0));
  }
  bool fits(Placement placement, uint64_t chunks) const {
    const uint64_t others = gpu_.landmarks_bytes_ - device_bytes(placement_, capacity_);
    const uint64_t others_on_host = gpu_.host_landmarks_bytes_ - host_bytes(placement_, capacity_);
    return (others + device_bytes(placement, chunks) <= gpu_.options_.landmarks_bytes_max ||
            placement == Placement::host) &&
           others_on_host + host_bytes(placement, chunks) <= gpu_.options_.host_landmarks_bytes_max;
  }

  CpuGpu& gpu_;
  uint64_t capacity_ = 0;
  Placement placement_ = Placement::device;
  std::vector<Bf16> landmarks_;
  std::vector<uint32_t> pages_;
};

// ---- Opening

Expected<std::unique_ptr<CpuGpu>> CpuGpu::open(const Options& options) {
  auto pool = std::make_unique<WorkerPool>(options.threads);
  RECALLD_TRY(auto model, Ramba::open(options.model, Precision::automatic, Parts::all, *pool));
  return std::unique_ptr<CpuGpu>(new CpuGpu(options, std::move(pool), std::move(model)));
}

CpuGpu::CpuGpu(Options options, std::unique_ptr<WorkerPool> pool, std::unique_ptr<Ramba> model)
    : options_(std::move(options)),
      pool_(std::move(pool)),
      model_(std::move(model)),
      states_(std::make_shared<std::atomic<size_t>>(0)) {
  const auto aligned = [&](size_t records) {
    const size_t bytes = records * model_->kv_bytes();
    return (bytes + io_alignment - 1) / io_alignment * io_alignment;
  };
  const size_t records = (block_tokens + lanes_max) * list_places();
  if (options_.slots == 0) options_.slots = static_cast<uint32_t>(records);
  cache_ = AlignedBuffer(aligned(options_.slots));
  staging_ = AlignedBuffer(aligned(records));
  std::ranges::fill(cache_.bytes(), std::byte{0});
  std::ranges::fill(staging_.bytes(), std::byte{0});
  mapped_.resize(options_.slots);
  for (Lane& lane : lanes_) lane = {model_->lower_zero_state(), model_->upper_zero_state(), 0, 0, {}};
}

CpuGpu::~CpuGpu() {
  promise(landmarks_bytes_ == 0 && host_landmarks_bytes_ == 0, "memories do not outlive the GPU");
}

size_t CpuGpu::list_places() const {
  return model_->config().retrieval_heads() * model_->config().chunk_topk;
}

Expected<void> CpuGpu::called(Call call) {
  promise(!is_prepared_ || call == Call::go_on || call == Call::late_scores,  // any thread may ask for these
          "what was prepared must be gone on with first");
  const auto index = static_cast<size_t>(call);
  ++calls_[index];
  if (failing_[index] == 0) return {};
  --failing_[index];
  return fail(ErrorKind::device, "the GPU fails as the test wants it");
}

GpuUsage CpuGpu::usage() const {
  GpuUsage usage;
  usage.states_bytes = options_.states_max * state_bytes();
  usage.landmarks_bytes = landmarks_bytes_;
  usage.cache_bytes = cache_.bytes().size();
  usage.workspace_bytes = lanes_max * model_->config().hidden_size * sizeof(float);
  usage.host_landmarks_bytes = host_landmarks_bytes_;
  usage.budget_bytes = usage.states_bytes + usage.landmarks_bytes + usage.cache_bytes + usage.workspace_bytes;
  return usage;
}

// ---- Appending and searching

Expected<std::shared_ptr<CpuGpu::State>> CpuGpu::new_state(RecurrentState state) {
  if (*states_ >= options_.states_max) return fail(ErrorKind::device, "all states of the GPU are in use");
  return std::make_shared<State>(std::move(state), states_);
}

Expected<RecurrentState> CpuGpu::zero_state() {
  RECALLD_TRY(auto state, new_state(model_->lower_zero_state()));
  return RecurrentState{.values = {}, .device = std::move(state)};
}

Expected<RecurrentState> CpuGpu::state_from(ByteView bytes) {
  promise(bytes.size() == state_bytes(), "a state has another size");
  RecurrentState values = model_->lower_zero_state();
  std::memcpy(values.values.data(), bytes.data(), bytes.size());
  RECALLD_TRY(auto state, new_state(std::move(values)));
  return RecurrentState{.values = {}, .device = std::move(state)};
}

Expected<std::string> CpuGpu::bytes_of(const RecurrentState& state) {
  const auto& values = static_cast<const State&>(*state.device).state.values;
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

Expected<void> CpuGpu::encode(std::span<const Segment> segments) {
  RECALLD_CHECK(called(Call::encode));
  promise(segments.size() <= segments_max(), "more segments than segments_max()");
  std::vector<std::shared_ptr<State>> states;
  for (const Segment& segment : segments) {
    RECALLD_TRY(auto state, new_state(static_cast<const State&>(*segment.state->device).state));
    states.push_back(std::move(state));
  }
  encoded_.clear();
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    promise(segment.tokens.size() % block_tokens == 0, "a segment has a part of a chunk");
    std::vector<float> hidden(segment.tokens.size() * model_->config().hidden_size);
    model_->lower(states[i]->state, segment.tokens, hidden);
    if (segment.landmarks.empty() && segment.kv.empty()) continue;
    const std::vector<EncodedChunk> chunks = model_->encode_chunks(hidden);
    const size_t dim = model_->landmark_dim(), kv_bytes = model_->kv_bytes();
    for (size_t c = 0; c < chunks.size(); ++c) {
      std::ranges::copy(model_->pack_landmark(chunks[c]), segment.landmarks.subspan(c * dim).begin());
      model_->pack_kv(chunks[c], segment.kv.subspan(c * kv_bytes, kv_bytes));
    }
    encoded_.insert(encoded_.end(), segment.kv.begin(), segment.kv.end());
  }
  for (size_t i = 0; i < segments.size(); ++i) segments[i].state->device = std::move(states[i]);
  return {};
}

Expected<SearchQuery> CpuGpu::query(std::span<const uint32_t> tokens, QueryParts parts) {
  RECALLD_CHECK(called(Call::query));
  return model_->query(tokens, parts);
}

Expected<std::vector<float>> CpuGpu::late_scores(std::span<const float> tokens, std::span<const ByteView> records) {
  RECALLD_CHECK(called(Call::late_scores));
  promise(!tokens.empty(), "no question token is compared with chunks");
  std::vector<float> scores;
  for (const ByteView record : records) {
    promise(record.size() == model_->kv_bytes(), "a record has another size");
    scores.push_back(model_->late_score(tokens, record));
  }
  return scores;
}

// ---- Landmarks

Expected<std::unique_ptr<GpuMemory>> CpuGpu::open_memory() {
  RECALLD_CHECK(called(Call::open_memory));
  return std::make_unique<Memory>(*this);
}

bool CpuGpu::has_room(const GpuMemory& memory, uint64_t chunks) const {
  return static_cast<const Memory&>(memory).has_room(chunks);
}

Expected<void> CpuGpu::reserve(GpuMemory& memory, uint64_t chunks) {
  RECALLD_CHECK(called(Call::reserve));
  return static_cast<Memory&>(memory).reserve(chunks);
}

Expected<void> CpuGpu::write_landmarks(GpuMemory& memory, uint64_t first, std::span<const Bf16> landmarks) {
  RECALLD_CHECK(called(Call::write_landmarks));
  return static_cast<Memory&>(memory).write(first, landmarks);
}

Expected<void> CpuGpu::hide(GpuMemory& memory, uint64_t chunk) {
  RECALLD_CHECK(called(Call::hide));
  static_cast<Memory&>(memory).hide(chunk);
  return {};
}

// ---- The cache

ByteSpan CpuGpu::block_staging() {
  return staging_.bytes().first(block_tokens * list_places() * model_->kv_bytes());
}

ByteSpan CpuGpu::staging(uint32_t lane) {
  const size_t bytes = list_places() * model_->kv_bytes();
  return staging_.bytes().subspan(block_staging().size() + lane * bytes, bytes);
}

ByteView CpuGpu::staging() {
  move_all();
  return staging_.bytes();
}

ByteView CpuGpu::cache() {
  move_all();
  return cache_.bytes();
}

bool CpuGpu::holds(ByteView bytes) {
  for (const ByteView in : {cache(), staging(), ByteView(encoded_)})
    if (memmem(in.data(), in.size(), bytes.data(), bytes.size())) return true;
  return false;
}

bool CpuGpu::is_clear(uint32_t lane) const {
  return lanes_[lane].lower.values == model_->lower_zero_state().values &&
         lanes_[lane].upper.values == model_->upper_zero_state().values;
}

Expected<void> CpuGpu::fill(GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) {
  const auto done = called(Call::fill);
  if (!done) {
    const size_t half = (make_way.size() + fills.size()) / 2;
    fills = fills.first(half - std::min(half, make_way.size()));
    make_way = make_way.first(std::min(half, make_way.size()));
  }
  plan_unmapping(make_way);
  check(memory, fills, make_way);
  for (const Fill& each : fills)
    moves_.push_back({&static_cast<Memory&>(memory), each.chunk, each.slot, each.record.data()});
  return done;
}

void CpuGpu::check(const GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) const {
  const ByteView staged = staging_.bytes();
  for (const Fill& each : fills) {
    promise(each.record.size() == model_->kv_bytes() && each.record.data() >= staged.data() &&
                each.record.data() + each.record.size() <= staged.data() + staged.size(),
            "a record lies outside of staging memory");
    promise(each.slot < slots() && each.chunk < memory.chunks(), "there is no such slot or chunk");
    promise(std::ranges::none_of(
                make_way, [&](const Mapped& other) { return other.memory == &memory && other.chunk == each.chunk; }),
            "a chunk comes and makes way at once");
  }
}

Expected<void> CpuGpu::unmap(std::span<const Mapped> chunks) {
  RECALLD_CHECK(called(Call::unmap));
  plan_unmapping(chunks);
  return {};
}

void CpuGpu::plan_unmapping(std::span<const Mapped> chunks) {
  for (const auto& [memory, chunk] : chunks) {
    promise(memory && chunk < memory->chunks(), "there is no such memory or chunk");
    moves_.push_back({static_cast<Memory*>(memory), chunk, no_slot, nullptr});
  }
}

// What the stream of a real GPU would have done by now.
void CpuGpu::move_all() {
  for (const auto& [memory, chunk, slot, record] : std::exchange(moves_, {})) {
    if (uint32_t& page = memory->page(chunk); page != no_slot) {
      mapped_[page] = nullptr;
      page = no_slot;
    }
    if (slot == no_slot) continue;
    promise(!mapped_[slot], "a slot is filled that a page table still gives to another chunk");
    std::memcpy(slot_data(slot), record, model_->kv_bytes());
    mapped_[slot] = memory;
    memory->page(chunk) = slot;
  }
}

Expected<void> CpuGpu::erase(std::span<const uint32_t> slots) {
  RECALLD_CHECK(called(Call::erase));
  move_all();
  for (const uint32_t slot : slots) std::memset(slot_data(slot), 0, model_->kv_bytes());
  return {};
}

Expected<void> CpuGpu::erase_scratch() {
  RECALLD_CHECK(called(Call::erase_scratch));
  move_all();
  std::ranges::fill(staging_.bytes(), std::byte{0});
  std::ranges::fill(encoded_, std::byte{0});
  return {};
}

// ---- Generating

Expected<void> CpuGpu::reset(uint32_t lane) {
  RECALLD_CHECK(called(Call::reset));
  lanes_[lane] = {model_->lower_zero_state(), model_->upper_zero_state(), 0, 0, {}};
  return {};
}

Expected<std::vector<Gpu::LaneResult>> CpuGpu::step(std::span<const LaneWork> work) {
  RECALLD_CHECK(called(Call::step));
  move_all();
  std::vector<LaneResult> results(work.size());
  if (work.empty()) return results;
  const bool of_block = work.front().tokens.size() > 1 || lanes_[work.front().lane].tokens > 1;
  check(work, of_block);
  for (size_t i = 0; i < work.size(); ++i) of_block ? step_block(work[i], results[i]) : step_token(work[i], results[i]);
  return results;
}

// ---- Chunks that arrive later

Expected<void> CpuGpu::prepare(const LaneWork& lane, GpuMemory& memory, std::span<const Fill> fills,
                               std::span<const Mapped> make_way) {
  if (auto done = called(Call::prepare); !done) {
    plan_unmapping(make_way.first(make_way.size() / 2));
    return done;
  }
  promise(lane.tokens.empty() && lanes_[lane.lane].tokens == 1 && lane.memory == &memory,
          "what is prepared is of a lane that waits with a token");
  const ByteView staged = staging(lane.lane);
  for (const Fill& each : fills)
    promise(each.record.data() >= staged.data() && each.record.data() < staged.data() + staged.size(),
            "a record that is prepared lies in staging memory of its lane");
  check(memory, fills, make_way);
  plan_unmapping(make_way);
  move_all();
  prepared_ = lane;
  awaited_.clear();
  for (const Fill& each : fills)
    awaited_.push_back({&static_cast<Memory&>(memory), each.chunk, each.slot, each.record.data()});
  has_arrived_.assign(fills.size(), false);
  is_prepared_ = true;
  return {};
}

// Copied at once, as the real GPU may.
void CpuGpu::arrived(size_t i) {
  promise(is_prepared_ && i < awaited_.size(), "a record arrives that was not prepared");
  promise(!has_arrived_[i], "a record arrives twice");
  has_arrived_[i] = true;
  const auto arrivals = static_cast<size_t>(std::ranges::count(has_arrived_, true));
  if (impatient_ > 0 && arrivals > patient_arrivals_) return;
  moves_ = {awaited_[i]};
  move_all();
}

Expected<Gpu::LaneResult> CpuGpu::go_on() {
  promise(is_prepared_, "nothing was prepared");
  RECALLD_CHECK([&] {
    auto done = called(Call::go_on);
    is_prepared_ = false;
    return done;
  }());
  impatient_ = std::max(0, impatient_ - 1);
  LaneResult result;
  check(std::span(&prepared_, 1), false);
  step_token(prepared_, result);
  return result;
}

void CpuGpu::check(std::span<const LaneWork> work, bool of_block) const {
  promise(!of_block || work.size() == 1, "a block of tokens is read alone");
  std::set<uint32_t> lanes;
  for (const LaneWork& each : work) {
    const Lane& lane = lanes_[each.lane];
    promise(lanes.insert(each.lane).second, "a lane is named twice");
    promise(each.memory, "a lane has no memory");
    promise(each.tokens.empty() == (lane.tokens > 0), "a lane either waits or reads tokens");
    promise(each.tokens.size() <= block_tokens, "a block has more than 64 tokens");
  }
  for (uint32_t lane = 0; of_block && lane < lanes_max; ++lane)
    promise(lane == work.front().lane || lanes_[lane].tokens <= 1, "another lane has begun a block");
}

// hidden: [tokens, hidden_size] · attended out: [tokens, retrieval_heads], good only if all chunks are cached
Gpu::Selection CpuGpu::select(const LaneWork& work, std::span<const float> hidden,
                              std::vector<std::vector<AttendedChunk>>& attended) {
  const auto& memory = static_cast<const Memory&>(*work.memory);
  const size_t dim = model_->landmark_dim(), k = model_->config().chunk_topk, group = lanes_[work.lane].group;
  const uint64_t n = std::min(work.chunks, memory.chunks());
  const std::vector<Bf16> queries = model_->landmark_queries(hidden, group);
  const size_t lists = queries.size() / dim;
  Selection selection{.group = static_cast<uint32_t>(group),
                      .cached = true,
                      .chunks = std::vector<uint32_t>(lists * k, no_chunk),
                      .scores = std::vector<float>(lists * k),
                      .told = std::chrono::steady_clock::now()};
  attended.assign(lists, {});
  std::vector<float> dots(n);
  std::set<uint64_t> chosen;
  for (size_t list = 0; list < lists; ++list) {
    landmark_dots_cpu(std::span(queries).subspan(list * dim, dim), memory.landmarks(), n, dots.data());
    TopK top(k);
    for (uint64_t chunk = 0; chunk < n; ++chunk)
      if (!std::isnan(dots[chunk])) top.offer({chunk, dots[chunk]});
    std::vector<ScoredChunk> best = top.take();
    std::ranges::sort(best, std::ranges::greater{}, &ScoredChunk::chunk);
    for (size_t i = 0; i < best.size(); ++i) {
      selection.chunks[list * k + i] = static_cast<uint32_t>(best[i].chunk);
      selection.scores[list * k + i] = best[i].dot * model_->score_scale();
    }
    const auto scores = std::span(selection.scores).subspan(list * k, best.size());
    const std::vector<float> weights = model_->chunk_weights(scores, group);
    for (size_t i = 0; i < best.size(); ++i) {
      chosen.insert(best[i].chunk);
      const uint32_t slot = memory.page(best[i].chunk);
      selection.cached &= slot != no_slot;
      if (slot == no_slot) continue;
      attended[list].push_back({reinterpret_cast<const Bf16*>(slot_data(slot)), weights[i]});
    }
  }
  chosen_max_ = std::max(chosen_max_, static_cast<uint32_t>(chosen.size()));
  return selection;
}

void CpuGpu::step_token(const LaneWork& work, LaneResult& result) {
  const size_t width = model_->config().hidden_size;
  Lane& lane = lanes_[work.lane];
  if (!work.tokens.empty()) {
    lane.group = 0;
    lane.tokens = 1;
    lane.hidden = model_->lower_step(std::array{&lane.lower}, work.tokens);
  }
  for (; lane.group < model_->groups(); ++lane.group) {
    std::vector<std::vector<AttendedChunk>> attended;
    result.selections.push_back(select(work, std::span(lane.hidden).first(width), attended));
    if (!result.selections.back().cached) return;
    model_->upper_step(lane.group, std::array{&lane.upper}, lane.hidden, attended);
  }
  result.logits = model_->logits(model_->final_norm(std::span(lane.hidden).first(width)));
  result.done = true;
  lane.group = lane.tokens = 0;
}

void CpuGpu::step_block(const LaneWork& work, LaneResult& result) {
  const size_t width = model_->config().hidden_size;
  Lane& lane = lanes_[work.lane];
  if (!work.tokens.empty()) {
    lane.group = 0;
    lane.tokens = work.tokens.size();
    lane.hidden.resize(block_tokens * width);
    model_->lower(lane.lower, work.tokens, lane.hidden);
  }
  for (; lane.group < model_->groups(); ++lane.group) {
    std::vector<std::vector<AttendedChunk>> attended;
    result.selections.push_back(select(work, std::span(lane.hidden).first(lane.tokens * width), attended));
    if (!result.selections.back().cached) return;
    model_->upper(lane.group, lane.upper, lane.hidden, attended);
  }
  const auto last = std::span(lane.hidden).subspan((lane.tokens - 1) * width, width);
  result.logits = model_->logits(model_->final_norm(last));
  result.done = true;
  lane.group = lane.tokens = 0;
}

}  // namespace recalld
