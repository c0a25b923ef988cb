#include "daemon/gpu_decoder.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <future>
#include <iterator>
#include <map>
#include <optional>
#include <utility>

#include <spdlog/spdlog.h>
#include <boost/asio/post.hpp>

namespace recalld {
namespace {

using Clock = std::chrono::steady_clock;

const char* name_of(Placement placement) {
  switch (placement) {
    case Placement::device:
      return "in the GPU's memory";
    case Placement::device_int8:
      return "in the GPU's memory with 8 bits, and whole in the host's";
    case Placement::host:
      return "in the host's memory";
  }
  return "";
}

// What is dropped for want of room or for its damage, nobody waits for.
void tell(const Expected<void>& dropped) {
  if (!dropped) spdlog::error("{}", dropped.error().message);
}

// The chunks of a selection, each once.
void put_distinct(const Gpu::Selection& selection, std::vector<uint64_t>& chunks) {
  chunks.clear();
  for (const uint32_t chunk : selection.chunks)
    if (chunk != Gpu::no_chunk) chunks.push_back(chunk);
  std::ranges::sort(chunks);
  chunks.erase(std::ranges::unique(chunks).begin(), chunks.end());
}

}  // namespace

// One generation of a memory on the GPU.
struct GpuDecoder::Memory {
  ChunkCache::Owner owner = 0;
  MemoryInfo info;                     // as it was when it was loaded last
  std::unique_ptr<GpuMemory> on_gpu;   // null: it was forgotten
  uint64_t stored_chunks = 0;          // whose landmarks came from the store
  std::vector<Unreadable> damage;      // that was found
  size_t streams = 0;                  // that read it
  Placement told = Placement::device;  // in the log

  bool is(const MemoryInfo& other) const {
    return info.id == other.id && info.serving.stream == other.serving.stream &&
           info.serving.edition == other.serving.edition;
  }
};

struct GpuDecoder::MemoryChunk {
  std::shared_ptr<Memory> memory;  // shared: it may be dropped meanwhile
  uint64_t chunk = 0;
};

struct GpuDecoder::GpuStream final : Stream {
  GpuStream(GpuDecoder& of, Source from, std::shared_ptr<Memory> of_memory, uint32_t on_lane, uint64_t end)
      : decoder(of), source(std::move(from)), memory(std::move(of_memory)), lane(on_lane), end_chunk(end) {}
  ~GpuStream() override { decoder.close(*this); }

  GpuDecoder& decoder;
  const Source source;
  const std::shared_ptr<Memory> memory;
  const uint32_t lane;
  const uint64_t end_chunk;
  size_t damage_told = 0;               // of the memory's
  std::map<uint64_t, double> attended;  // by the token under way

  // A chunk on its way to its slot.
  struct Coming {
    uint64_t chunk = 0;
    uint32_t slot = 0;
    ByteSpan record;  // in staging memory
  };
  bool waits = false;                                      // for chunks
  std::vector<uint32_t> held;                              // slots
  bool expects = false;                                    // what is coming is not in its slots yet
  std::vector<Coming> coming;                              // those that are read, and then those from the tail
  std::vector<uint64_t> reads;                             // the chunks of the former
  ByteSpan into;                                           // where they are read to
  std::future<Expected<std::vector<Unreadable>>> reading;  // the damaged ones of them, where another thread reads
  std::vector<MemoryChunk> making_way;                     // whose slots are taken, and whose memories do not know yet
};

GpuDecoder::GpuDecoder(const Store& store, const Ramba& model, Gpu& gpu)
    : store_(store), model_(model), gpu_(gpu), cache_(gpu.slots()), loading_(gpu.slots()), lanes_(Gpu::lanes_max) {}

GpuDecoder::~GpuDecoder() {
  readers_.join();
}

// ---- Streams and the landmarks of their memories

Expected<std::unique_ptr<Decoder::Stream>> GpuDecoder::open(Source source) {
  const auto free = std::ranges::find(lanes_, nullptr);
  if (free == lanes_.end()) return fail(ErrorKind::busy, "generate: all lanes of the GPU are in use; ask again");
  const auto lane = static_cast<uint32_t>(free - lanes_.begin());
  std::shared_ptr<Memory> memory = memory_of(source.memory);
  if (!memory->on_gpu) {
    RECALLD_TRY(memory->on_gpu, gpu_.open_memory());
  }
  if (auto loaded = load(*memory, source); !loaded) {
    if (memory->streams == 0) tell(drop(memory));
    return std::unexpected(std::move(loaded).error());
  }
  RECALLD_CHECK(gpu_.reset(lane));
  const uint64_t tail_chunks = source.tail_landmarks.size() / model_.landmark_dim();
  const uint64_t end_chunk = source.stored_chunks + tail_chunks;
  auto stream = std::make_unique<GpuStream>(*this, std::move(source), std::move(memory), lane, end_chunk);
  ++stream->memory->streams;
  *free = stream.get();
  return stream;
}

void GpuDecoder::close(GpuStream& stream) {
  if (is_being_read(stream)) stream.reading.wait();  // into memory that the next one reads into
  if (!stream.coming.empty()) drop_unread(stream);
  let_go(stream);
  tell(gpu_.reset(stream.lane));  // forget() and the next open() try again
  lanes_[stream.lane] = nullptr;
  // What is damaged now may be mended when the memory is asked again.
  if (--stream.memory->streams == 0 && !stream.memory->damage.empty()) tell(drop(stream.memory));
}

std::shared_ptr<GpuDecoder::Memory> GpuDecoder::memory_of(const MemoryInfo& info) {
  const auto found = std::ranges::find_if(memories_, [&](const auto& each) { return each->is(info); });
  if (found != memories_.end()) {
    memories_.splice(memories_.begin(), memories_, found);
  } else {
    // Other generations of it.
    if (std::ranges::any_of(memories_, [&](const auto& each) { return each->info.id == info.id; }))
      tell(forget(info.id));
    memories_.push_front(std::make_shared<Memory>());
    memories_.front()->owner = ++owners_;
  }
  memories_.front()->info = info;
  return memories_.front();
}

// Brings the landmarks that the source speaks of to the GPU: those from the store that are not there yet, and the tail.
Expected<void> GpuDecoder::load(Memory& memory, const Source& source) {
  constexpr uint64_t chunks_at_once = 16 << 10;
  const size_t dim = model_.landmark_dim();
  std::vector<Bf16> landmarks;
  std::vector<Unreadable> damage;
  const uint64_t end_chunk = source.stored_chunks + source.tail_landmarks.size() / dim;
  if (end_chunk > memory.on_gpu->chunks()) {
    make_room(memory, end_chunk - memory.on_gpu->chunks());
    RECALLD_CHECK(gpu_.reserve(*memory.on_gpu, end_chunk));
  }
  while (memory.stored_chunks < source.stored_chunks) {
    const uint64_t count = std::min(chunks_at_once, source.stored_chunks - memory.stored_chunks);
    landmarks.resize(count * dim);
    RECALLD_CHECK(store_.landmarks(source.memory.id, memory.stored_chunks, landmarks, &damage));
    RECALLD_CHECK(gpu_.write_landmarks(*memory.on_gpu, memory.stored_chunks, landmarks));
    memory.stored_chunks += count;
    std::ranges::move(damage, std::back_inserter(memory.damage));
    damage.clear();
  }
  if (!source.tail_landmarks.empty())
    RECALLD_CHECK(gpu_.write_landmarks(*memory.on_gpu, source.stored_chunks, source.tail_landmarks));
  if (const Placement placement = memory.on_gpu->placement(); placement != memory.told) {
    memory.told = placement;
    spdlog::info("landmarks of memory {}: {} chunks lie {} now; with a larger --gpu-budget answers would be faster",
                 memory.info.id, end_chunk, name_of(placement));
  }
  return {};
}

// Memories that nobody reads now make way, those used longest ago first.
void GpuDecoder::make_room(const Memory& memory, uint64_t chunks) {
  while (!gpu_.has_room(*memory.on_gpu, chunks)) {
    const auto idle = std::find_if(memories_.rbegin(), memories_.rend(), [&](const auto& each) {
      return each->streams == 0 && each.get() != &memory && each->on_gpu;
    });
    if (idle == memories_.rend()) return;
    tell(drop(*idle));
  }
}

// Nothing of it stays on the GPU.
Expected<void> GpuDecoder::drop(std::shared_ptr<Memory> memory) {
  memory->on_gpu.reset();
  std::erase(memories_, memory);
  return erase(cache_.forget(memory->owner));
}

// Overwrites these slots, and those where that failed before: only unerased_ still knows of them. Of these, slots that
// are being filled are left to that: what comes into them may be there already.
Expected<void> GpuDecoder::erase(std::span<const uint32_t> slots) {
  std::vector<uint32_t> now(slots.begin(), slots.end());
  std::ranges::copy_if(unerased_, std::back_inserter(now), [&](uint32_t slot) { return !loading_[slot]; });
  unerased_.insert(unerased_.end(), slots.begin(), slots.end());
  RECALLD_CHECK(gpu_.erase(now));
  std::ranges::sort(now);
  std::erase_if(unerased_, [&](uint32_t slot) { return std::ranges::binary_search(now, slot); });
  return {};
}

// Also where none of its landmarks are here: it may have been encoded, or have made way for others.
Expected<void> GpuDecoder::forget(MemoryId id) {
  settle_all();
  std::vector<std::shared_ptr<Memory>> forgotten;
  for (const auto& memory : memories_)
    if (memory->info.id == id) forgotten.push_back(memory);
  Expected<void> done;
  for (auto& memory : forgotten)
    if (auto dropped = drop(std::move(memory)); !dropped) done = std::move(dropped);
  if (done && !unerased_.empty()) done = erase({});  // whatever earlier calls have left
  // Lanes that nobody uses too: close() may have failed to clear them.
  for (uint32_t lane = 0; lane < lanes_.size(); ++lane)
    if (!lanes_[lane] || !lanes_[lane]->memory->on_gpu)
      if (auto cleared = gpu_.reset(lane); !cleared) done = std::move(cleared);
  if (auto erased = gpu_.erase_scratch(); !erased) done = std::move(erased);
  return done;
}

// ---- Reading and writing

Gpu::LaneWork GpuDecoder::work_of(const GpuStream& stream, std::span<const uint32_t> tokens) const {
  return {.lane = stream.lane, .memory = stream.memory->on_gpu.get(), .chunks = stream.end_chunk, .tokens = tokens};
}

Expected<Decoder::Read> GpuDecoder::read(Stream& of, std::span<const uint32_t> tokens, bool) {
  auto& stream = static_cast<GpuStream&>(of);
  while (true) {
    if (!stream.memory->on_gpu) return fail(ErrorKind::busy, "generate: turns were forgotten meanwhile; ask again");
    RECALLD_TRY(auto results,
                gpu_.step(std::array{work_of(stream, stream.waits ? std::span<const uint32_t>() : tokens)}));
    Gpu::LaneResult& result = results.front();
    RECALLD_TRY(const bool done, take(stream, result, gpu_.block_staging(), true));
    if (done) return outcome(stream, result);
    if (waits_for_others(stream)) settle_all();
    RECALLD_CHECK(finish_reading(stream));
  }
}

std::vector<std::optional<Expected<Decoder::Read>>> GpuDecoder::write(std::span<const Written> tokens) {
  std::vector<std::optional<Expected<Read>>> reads(tokens.size());
  const auto of = [&](size_t i) -> GpuStream& { return static_cast<GpuStream&>(*tokens[i].stream); };
  if (tokens.size() == 1) {
    reads.front() = write_alone(of(0), tokens.front().token);
    return reads;
  }
  while (!tokens.empty() && !std::ranges::any_of(reads, [](const auto& each) { return each.has_value(); })) {
    const uint64_t reads_done = reads_done_;
    for (size_t i = 0; i < tokens.size(); ++i)
      if (!is_being_read(of(i)) && !waits_for_others(of(i)))
        if (auto finished = finish_reading(of(i)); !finished) reads[i] = std::unexpected(std::move(finished).error());

    // Those that begin their token, and those whose chunks have come.
    std::vector<Gpu::LaneWork> work;
    std::vector<size_t> of_work;
    bool under_way = false, has_come = false;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (reads[i]) continue;
      if (!of(i).memory->on_gpu) {
        reads[i] = fail(ErrorKind::busy, "generate: turns were forgotten meanwhile; ask again");
      } else if (of(i).expects) {
        const bool is_read = !is_being_read(of(i));
        under_way |= !is_read;
        has_come |= is_read && !waits_for_others(of(i));
      } else {
        work.push_back(work_of(of(i), of(i).waits ? std::span<const uint32_t>() : std::span(&tokens[i].token, 1)));
        of_work.push_back(i);
      }
    }
    if (work.empty()) {
      if (std::ranges::any_of(reads, [](const auto& each) { return each.has_value(); })) break;
      if (has_come) continue;
      if (under_way)
        reads_done_.wait(reads_done);
      else
        settle_all();
      continue;
    }
    auto results = gpu_.step(work);
    for (size_t w = 0; w < work.size(); ++w) {
      std::optional<Expected<Read>>& read = reads[of_work[w]];
      if (!results) {
        read = std::unexpected(results.error());
        continue;
      }
      GpuStream& stream = of(of_work[w]);
      const auto done = take(stream, (*results)[w], gpu_.staging(stream.lane), false);
      if (!done)
        read = std::unexpected(done.error());
      else if (*done)
        read = outcome(stream, (*results)[w]);
    }
  }
  return reads;
}

// Nothing else is computed meanwhile. So this thread itself reads what is missing, awake, and the GPU is told what
// follows while the disk works.
Expected<Decoder::Read> GpuDecoder::write_alone(GpuStream& stream, uint32_t token) {
  times_ = {};
  times_.begun = Clock::now();
  while (true) {
    if (waits_for_others(stream)) settle_all();
    RECALLD_TRY(std::optional<Gpu::LaneResult> result, resume(stream));
    if (!result) {
      RECALLD_CHECK(finish_reading(stream));
      if (!stream.memory->on_gpu) return fail(ErrorKind::busy, "generate: turns were forgotten meanwhile; ask again");
      RECALLD_TRY(
          auto results,
          gpu_.step(std::array{work_of(stream, stream.waits ? std::span<const uint32_t>() : std::span(&token, 1))}));
      result = std::move(results.front());
      if (!result->selections.empty()) times_.chosen = result->selections.back().told;
    }
    RECALLD_TRY(const bool done, take(stream, *result, gpu_.staging(stream.lane), true));
    if (!done) continue;
    times_.done = Clock::now();
    return outcome(stream, *result);
  }
}

// Reads the chunks of a stream that waits, which goes on when they are there. Nothing where a step() must follow: they
// are in their slots then, or nothing was read.
Expected<std::optional<Gpu::LaneResult>> GpuDecoder::resume(GpuStream& stream) {
  if (!stream.expects || stream.reading.valid() || stream.reads.empty() || !stream.memory->on_gpu) return std::nullopt;
  stream.expects = false;
  std::optional<Expected<void>> prepared;
  size_t arrived = 0;
  const auto arrives = [&](size_t i) {
    if (!prepared || !*prepared) return;
    gpu_.arrived(i);
    ++arrived;
    times_.arrived = Clock::now();
  };
  const auto begun = [&] {
    times_.reading = Clock::now();
    plan_fill(stream);
    prepared = gpu_.prepare(work_of(stream, {}), *stream.memory->on_gpu, fills_, mapped_);
    for (size_t i = stream.reads.size(); i < stream.coming.size(); ++i) arrives(i);  // those from the tail are there
    times_.prepared = Clock::now();
  };
  const auto damaged = fetch(stream.source.memory.id, stream.reads, stream.into,
                             {.reads = {.awake = read_awake_max, .begun = begun}, .whole = arrives});
  if (!prepared) {  // nothing could be read
    RECALLD_CHECK(put(stream, damaged));
    return std::nullopt;
  }
  auto result = *prepared ? gpu_.go_on() : Expected<Gpu::LaneResult>(std::unexpected(std::move(*prepared).error()));
  if (!result || !damaged) {
    lose(stream);
    drop_unread(stream);
    return std::unexpected(!result ? std::move(result).error() : damaged.error());
  }
  // Where not all were told of the lane waits still: some are damaged, or all were read again since the memory was
  // changed, and what was copied is any of both. So it may be where the GPU did not wait so long.
  if (arrived < stream.coming.size() || !result->selections.at(0).cached) {
    lose(stream);
    if (!stream.memory->on_gpu)
      drop_unread(stream);
    else
      RECALLD_CHECK(put(stream, damaged));
    return std::nullopt;
  }
  times_.resumed = result->selections[0].told;
  landed(stream, stream.reads.size());
  return std::move(*result);
}

// What a step made of a stream. Whether its tokens are done; otherwise the chunks that it misses are being read.
Expected<bool> GpuDecoder::take(GpuStream& stream, Gpu::LaneResult& result, ByteSpan staging, bool alone) {
  for (const Gpu::Selection& selection : result.selections) {
    put_distinct(selection, chosen_);
    if (selection.cached) {
      note_attention(stream, selection);
      for (const uint64_t chunk : chosen_) cache_.find(stream.memory->owner, chunk);  // they were used
      if (!stream.waits) hits_ += chosen_.size();
      let_go(stream);
      stream.waits = false;
    } else {
      let_go(stream);
      RECALLD_CHECK(plan(stream, staging, alone));
      stream.waits = true;
    }
  }
  return result.done;
}

// What the last token attended to in one group.
void GpuDecoder::note_attention(GpuStream& stream, const Gpu::Selection& selection) const {
  const Config& config = model_.config();
  const size_t heads = config.retrieval_heads(), k = config.chunk_topk;
  const size_t first = selection.chunks.size() - heads * k;
  for (size_t head = 0; head < heads; ++head) {
    const auto chunks = std::span(selection.chunks).subspan(first + head * k, k);
    const auto found = static_cast<size_t>(std::ranges::find(chunks, Gpu::no_chunk) - chunks.begin());
    const std::vector<float> weights =
        model_.chunk_weights(std::span(selection.scores).subspan(first + head * k, found), selection.group);
    for (size_t i = 0; i < found; ++i)
      stream.attended[chunks[i]] +=
          static_cast<double>(weights[i]) / static_cast<double>(heads * config.num_upper_groups);
  }
}

Decoder::Read GpuDecoder::outcome(GpuStream& stream, Gpu::LaneResult& result) {
  const auto& damage = stream.memory->damage;
  Read read{.logits = std::move(result.logits),
            .attended = std::exchange(stream.attended, {}),
            .unreadable = {damage.begin() + static_cast<ptrdiff_t>(stream.damage_told), damage.end()}};
  stream.damage_told = damage.size();
  return read;
}

// ---- Chunks on their way

// Holds the slots of all chosen chunks, and begins to read those that have none.
Expected<void> GpuDecoder::plan(GpuStream& stream, ByteSpan staging, bool alone) {
  const size_t bytes = model_.kv_bytes();
  const ChunkCache::Owner owner = stream.memory->owner;
  missing_.clear();
  for (const uint64_t chunk : chosen_) {
    if (const auto slot = cache_.find(owner, chunk)) {
      cache_.hold(*slot);
      stream.held.push_back(*slot);
    } else {
      missing_.push_back(chunk);
    }
  }
  if (!stream.waits) hits_ += chosen_.size() - missing_.size();
  misses_ += missing_.size();

  // Chunks that are read come first: the store writes them one after another. They are sorted, and the tail is behind.
  Expected<void> done;
  for (const uint64_t chunk : missing_) {
    const auto taken = cache_.take(owner, chunk);
    if (!taken) {
      done = fail(ErrorKind::internal, "generate: the GPU's cache has no slot left for a chunk");
      break;
    }
    if (taken->evicted) {
      const auto [of, evicted] = *taken->evicted;
      stream.making_way.push_back(
          {*std::ranges::find(memories_, of, [](const auto& each) { return each->owner; }), evicted});
    }
    const ByteSpan record = staging.subspan(stream.coming.size() * bytes, bytes);
    stream.held.push_back(taken->slot);
    loading_[taken->slot] = true;
    stream.coming.push_back({chunk, taken->slot, record});
    if (chunk < stream.source.stored_chunks)
      stream.reads.push_back(chunk);
    else
      std::memcpy(record.data(), stream.source.tail_kv.data() + (chunk - stream.source.stored_chunks) * bytes, bytes);
  }
  // A stream that is alone fills the slots before any other token is computed: then they make way by the same call.
  if (done && !alone) done = make_way(stream);
  if (!done) {
    drop_unread(stream);
    return done;
  }
  stream.into = staging.first(stream.reads.size() * bytes);
  start_reading(stream, alone);
  return {};
}

// Tells memories which of their chunks have lost their slots to the stream's.
Expected<void> GpuDecoder::make_way(GpuStream& stream) {
  if (stream.making_way.empty()) return {};
  return unmap(std::exchange(stream.making_way, {}));
}

// Where that fails nobody knows what the slots of the chunks hold: their memories leave the GPU, and the streams of
// those end with busy.
Expected<void> GpuDecoder::unmap(std::span<const MemoryChunk> chunks) {
  mapped_.clear();
  for (const auto& [memory, chunk] : chunks)
    if (memory->on_gpu) mapped_.push_back({memory->on_gpu.get(), chunk});
  auto done = gpu_.unmap(mapped_);
  if (!done)
    for (const auto& [memory, chunk] : chunks)
      if (memory->on_gpu) tell(drop(memory));
  return done;
}

// On another thread where other streams have something to compute meanwhile, else when it is waited for.
void GpuDecoder::start_reading(GpuStream& stream, bool alone) {
  stream.expects = true;
  if (alone || stream.reads.empty()) return;
  std::packaged_task<Expected<std::vector<Unreadable>>()> task(
      [this, id = stream.source.memory.id, reads = stream.reads, into = stream.into] {
        return fetch(id, reads, into, {});
      });
  stream.reading = task.get_future();
  boost::asio::post(readers_, [this, task = std::move(task)]() mutable {
    task();
    ++reads_done_;
    reads_done_.notify_one();
  });
}

Expected<std::vector<Unreadable>> GpuDecoder::fetch(MemoryId memory, std::span<const uint64_t> chunks, ByteSpan into,
                                                    const FetchWait& wait) const {
  std::vector<Unreadable> damaged;
  if (!chunks.empty()) RECALLD_CHECK(store_.fetch(memory, chunks, into, &damaged, wait));
  return damaged;
}

// On another thread.
bool GpuDecoder::is_being_read(const GpuStream& stream) {
  return stream.reading.valid() && stream.reading.wait_for(std::chrono::seconds(0)) == std::future_status::timeout;
}

// Puts what was read into the slots. Damaged chunks are hidden: others take their places.
Expected<void> GpuDecoder::finish_reading(GpuStream& stream) {
  if (!stream.expects) return {};
  stream.expects = false;
  if (!stream.memory->on_gpu) {  // its next token ends it
    if (stream.reading.valid()) stream.reading.wait();
    stream.reading = {};
    drop_unread(stream);
    return {};
  }
  const auto damaged = stream.reading.valid() ? stream.reading.get()
                                              : fetch(stream.source.memory.id, stream.reads, stream.into,
                                                      {.reads = {.awake = read_awake_max}, .whole = {}});
  return put(stream, damaged);
}

// damaged: what the reading said
Expected<void> GpuDecoder::put(GpuStream& stream, const Expected<std::vector<Unreadable>>& damaged) {
  const size_t reads = stream.reads.size();
  Expected<void> done = damaged ? leave_out(stream, *damaged) : std::unexpected(damaged.error());
  if (done) done = fill(stream);
  if (!done) {
    drop_unread(stream);
    return done;
  }
  landed(stream, reads);
  return {};
}

// All that was coming is in its slots.
void GpuDecoder::landed(GpuStream& stream, size_t reads) {
  for (const GpuStream::Coming& each : stream.coming) {
    loading_[each.slot] = false;
    if (!unerased_.empty()) std::erase(unerased_, each.slot);  // what was there is overwritten by now
  }
  read_bytes_ += reads * model_.kv_bytes();
  stream.coming.clear();
  stream.reads.clear();
  stream.making_way.clear();
}

void GpuDecoder::plan_fill(const GpuStream& stream) {
  fills_.clear();
  for (const GpuStream::Coming& each : stream.coming) fills_.push_back({each.chunk, each.slot, each.record});
  mapped_.clear();
  for (const auto& [memory, chunk] : stream.making_way)
    if (memory->on_gpu) mapped_.push_back({memory->on_gpu.get(), chunk});
}

Expected<void> GpuDecoder::fill(GpuStream& stream) {
  plan_fill(stream);
  auto done = gpu_.fill(*stream.memory->on_gpu, fills_, mapped_);
  if (!done) lose(stream);
  return done;
}

// A part of what is coming may be in its slots: it is not, and what was to make way has made way.
void GpuDecoder::lose(GpuStream& stream) {
  std::vector<MemoryChunk> filled;
  for (const GpuStream::Coming& each : stream.coming) filled.push_back({stream.memory, each.chunk});
  static_cast<void>(make_way(stream));
  static_cast<void>(unmap(filled));
}

Expected<void> GpuDecoder::leave_out(GpuStream& stream, std::span<const Unreadable> damaged) {
  if (damaged.empty()) return {};
  std::vector<GpuStream::Coming> whole, lost;
  for (const GpuStream::Coming& each : stream.coming)
    (std::ranges::find(damaged, each.chunk, &Unreadable::first) != damaged.end() ? lost : whole).push_back(each);
  for (const GpuStream::Coming& each : lost) RECALLD_CHECK(gpu_.hide(*stream.memory->on_gpu, each.chunk));
  stream.coming = std::move(lost);
  drop_unread(stream);
  stream.coming = std::move(whole);
  std::ranges::copy(damaged, std::back_inserter(stream.memory->damage));
  return {};
}

// The chunks that were on their way do not come.
void GpuDecoder::drop_unread(GpuStream& stream) {
  static_cast<void>(make_way(stream));
  std::vector<uint32_t> slots;
  for (const GpuStream::Coming& each : stream.coming) {
    cache_.drop(stream.memory->owner, each.chunk);
    loading_[each.slot] = false;
    slots.push_back(each.slot);
  }
  tell(erase(slots));
  stream.coming.clear();
  stream.reads.clear();
}

// Ends all reads that are under way. Where one fails, its stream asks again.
void GpuDecoder::settle_all() {
  for (GpuStream* const stream : lanes_)
    if (stream) static_cast<void>(finish_reading(*stream));
}

// Whether chunks of it are being read for another stream.
bool GpuDecoder::waits_for_others(const GpuStream& stream) const {
  return std::ranges::any_of(stream.held, [&](uint32_t slot) {
    return loading_[slot] && std::ranges::find(stream.coming, slot, &GpuStream::Coming::slot) == stream.coming.end();
  });
}

void GpuDecoder::let_go(GpuStream& stream) {
  for (const uint32_t slot : stream.held) cache_.let_go(slot);
  stream.held.clear();
}

}  // namespace recalld
