// A store whose memories are made up, decoders over a GPU that computes on the CPU, and the disk between them, which
// can be slow, fail or hold reads back. What a decoder answers is compared with what the CPU answers.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/decoder_cpu.h"
#include "daemon/gpu_decoder.h"
#include "memstore/catalog.h"
#include "memstore/kv_file.h"
#include "memstore/rows.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/cpu_gpu.h"
#include "tests/support/slow_file_io.h"

namespace recalld {

// With the variant: two groups of upper layers, two retrieval heads, four chunks each.
class GpuDecoderTest : public ::testing::Test {
 protected:
  using Call = CpuGpu::Call;

  static constexpr size_t prompt_tokens = 150, answer_tokens = 30;

  // What came of a stream's tokens.
  struct Answer {
    std::vector<std::vector<float>> logits;            // after the prompt and after each token
    std::vector<std::map<uint64_t, double>> attended;  // likewise
    std::vector<uint64_t> told;                        // first chunks of what is unreadable

    void take(Decoder::Read read, bool last) {
      for (const Unreadable& chunks : read.unreadable) told.push_back(chunks.first);
      if (!last) return;
      logits.push_back(std::move(read.logits));
      attended.push_back(std::move(read.attended));
    }
    uint32_t next_token() const {
      return static_cast<uint32_t>(std::ranges::max_element(logits.back()) - logits.back().begin());
    }
    std::set<uint64_t> chunks() const {
      std::set<uint64_t> all;
      for (const auto& of_token : attended)
        for (const auto& [chunk, share] : of_token) all.insert(chunk);
      return all;
    }
  };

  static void expect_same(const Answer& found, const Answer& expected) {
    ASSERT_EQ(found.logits.size(), expected.logits.size());
    for (size_t i = 0; i < found.logits.size(); ++i) {
      EXPECT_TRUE(found.logits[i] == expected.logits[i]) << "after token " << i;
      EXPECT_EQ(found.attended[i], expected.attended[i]) << "after token " << i;
    }
    EXPECT_THAT(found.told, ::testing::UnorderedElementsAreArray(expected.told));
  }

  // A stream and what it has said.
  struct Talk {
    std::unique_ptr<Decoder::Stream> stream;
    Answer answer;
    size_t waited = 0;  // calls in which others went on
  };

  void SetUp() override {
    model_ = must(Ramba::open(variant_checkpoint(), Precision::automatic, Parts::all, pool_));
    open_store();
    m_ = make("m", 300, 1);
    n_ = make("n", 200, 2);
  }

  void open_store() {
    store_.reset();
    StoreOptions options;
    options.shape = {.kv_bytes = static_cast<uint32_t>(model_->kv_bytes()),
                     .landmark_dim = static_cast<uint32_t>(model_->landmark_dim()),
                     .state_bytes = static_cast<uint32_t>(model_->lower_state_bytes()),
                     .model = model_->hash()};
    options.memory_budget_bytes = uint64_t{64} << 20;
    options.file_io = [this]() -> Expected<std::unique_ptr<FileIo>> {
      auto disk = std::make_unique<SlowFileIo>(open_file_io_posix(DirectIo::never));
      disk_ = disk.get();
      return disk;
    };
    store_ = must(Store::open(data(), std::move(options)));
  }
  std::filesystem::path data() const { return directory_.path() / "data"; }

  // Appends one turn.
  MemoryId append(const std::string& name, size_t tokens) {
    AppendBatch batch;
    batch.memory = name;
    NewTurn turn;
    turn.turn.content = std::string(tokens, 'x');
    const size_t prefix = turn_prefix(turn.turn).size();
    for (size_t i = 0; i < tokens; ++i) {
      turn.ids.push_back(static_cast<uint32_t>(i % 500));
      turn.ends.push_back(static_cast<uint32_t>(prefix + i + 1));
    }
    turn.ends.back() = static_cast<uint32_t>(stream_text(turn.turn).size());
    batch.turns.push_back(std::move(turn));
    return must(must(store_->append(std::array{batch})).front()).id;
  }
  // Appends so many chunks to a memory; what they know is random.
  MemoryInfo make(const std::string& name, uint64_t chunks, uint32_t seed) {
    const MemoryId id = append(name, chunks * chunk_tokens);

    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto numbers = [&](size_t count) {
      std::vector<Bf16> values(count);
      for (Bf16& value : values) value = to_bf16(normal(random));
      return values;
    };
    constexpr uint64_t at_once = 100;
    for (MemoryInfo info = must(store_->memory(id)); info.waiting_chunks() > 0; info = must(store_->memory(id))) {
      std::vector<std::vector<Bf16>> made;
      std::vector<EncodedChunkView> views;
      for (uint64_t i = 0; i < std::min(at_once, info.waiting_chunks()); ++i) {
        made.push_back(numbers(model_->landmark_dim()));
        made.push_back(numbers(model_->kv_bytes() / sizeof(Bf16)));
      }
      for (size_t i = 0; i < made.size(); i += 2) views.push_back({made[i], std::as_bytes(std::span(made[i + 1]))});
      must(store_->put(id, info.encoded_chunks, views, {}));
    }
    return must(store_->memory(id));
  }

  // The last `tail` chunks are given along, as if they were not stored yet.
  Decoder::Source source(const MemoryInfo& memory, uint64_t tail = 0) const {
    Decoder::Source source{
        .memory = memory, .stored_chunks = memory.encoded_chunks - tail, .tail_landmarks = {}, .tail_kv = {}};
    source.tail_landmarks.resize(tail * model_->landmark_dim());
    source.tail_kv.resize(tail * model_->kv_bytes());
    if (tail == 0) return source;
    must(store_->landmarks(memory.id, source.stored_chunks, source.tail_landmarks));
    for (uint64_t i = 0; i < tail; ++i) {
      const auto record = kv(memory, source.stored_chunks + i);
      std::ranges::copy(record, source.tail_kv.begin() + static_cast<ptrdiff_t>(i * record.size()));
    }
    return source;
  }
  std::vector<std::byte> kv(const MemoryInfo& memory, uint64_t chunk) const {
    std::vector<std::byte> record(model_->kv_bytes());
    must(store_->fetch(memory.id, std::array{chunk}, record));
    return record;
  }

  std::unique_ptr<CpuGpu> open_gpu(uint32_t slots = 0, uint64_t landmarks_bytes_max = UINT64_MAX) const {
    return must(
        CpuGpu::open({.model = variant_checkpoint(), .slots = slots, .landmarks_bytes_max = landmarks_bytes_max}));
  }

  // ---- Asking
  static Talk begin(Decoder& decoder, Decoder::Source source, uint32_t seed, size_t tokens = prompt_tokens) {
    Talk talk{must(decoder.open(std::move(source))), {}};
    std::mt19937 random(seed);
    std::vector<uint32_t> prompt(tokens);
    for (uint32_t& token : prompt) token = static_cast<uint32_t>(random() % 512);
    for (size_t done = 0; done < tokens; done += chunk_tokens) {
      const auto block = std::span(prompt).subspan(done, std::min<size_t>(chunk_tokens, tokens - done));
      const bool last = done + block.size() == tokens;
      talk.answer.take(must(decoder.read(*talk.stream, block, last)), last);
    }
    return talk;
  }
  // Writes with all of them until each has so many tokens more.
  static void write(Decoder& decoder, std::span<Talk> talks, size_t tokens) {
    std::vector<size_t> written(talks.size());
    while (std::ranges::min(written) < tokens) {
      std::vector<Decoder::Written> next;
      std::vector<size_t> of;
      for (size_t i = 0; i < talks.size(); ++i) {
        if (written[i] == tokens) continue;
        next.push_back({talks[i].stream.get(), talks[i].answer.next_token()});
        of.push_back(i);
      }
      auto reads = decoder.write(next);
      ASSERT_TRUE(std::ranges::any_of(reads, [](const auto& read) { return read.has_value(); }));
      for (size_t i = 0; i < reads.size(); ++i) {
        if (!reads[i]) {
          ++talks[of[i]].waited;
          continue;
        }
        talks[of[i]].answer.take(must(*std::move(reads[i])), true);
        ++written[of[i]];
      }
    }
  }
  static Answer ask(Decoder& decoder, Decoder::Source source, uint32_t seed, size_t tokens = answer_tokens) {
    Talk talk = begin(decoder, std::move(source), seed);
    write(decoder, {&talk, 1}, tokens);
    return std::move(talk.answer);
  }
  // As the CPU answers.
  Answer expected(const Decoder::Source& source, uint32_t seed, size_t tokens = answer_tokens) {
    CpuDecoder cpu(*store_, *model_, pool_);
    return ask(cpu, source, seed, tokens);
  }
  // One write of one stream that fails.
  static Error error_of(Decoder& decoder, Talk& talk) {
    auto reads = decoder.write(std::array{Decoder::Written{talk.stream.get(), talk.answer.next_token()}});
    if (!reads.at(0) || *reads[0]) throw std::runtime_error("the stream did not fail");
    return reads[0]->error();
  }

  // The slots that make all prompts of these seeds evict: as many as one selection takes.
  uint32_t slots_min(const std::vector<std::pair<const MemoryInfo*, uint32_t>>& asked) {
    const auto gpu = open_gpu();
    GpuDecoder decoder(*store_, *model_, *gpu);
    for (const auto& [memory, seed] : asked) ask(decoder, source(*memory), seed);
    return gpu->chosen_max();
  }

  // How many chunks of the memory have their K/V in there.
  size_t chunks_in(ByteView bytes, const MemoryInfo& memory) const {
    constexpr size_t some = 64;  // bytes of a record that tell which it is
    size_t found = 0;
    for (uint64_t chunk = 0; chunk < memory.encoded_chunks; ++chunk) {
      const auto record = kv(memory, chunk);
      found += memmem(bytes.data(), bytes.size(), record.data() + record.size() / 2, some) != nullptr;
    }
    return found;
  }

  // ---- Damage
  std::string overwrite_kv(const MemoryInfo& memory, uint64_t chunk, const std::string& bytes) {
    const ChunkEntry entry = must(store_->chunk(memory.id, chunk));
    std::fstream segment(data() / "kv" / segment_name(entry.segment), std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(uint64_t{entry.slot} * model_->kv_bytes() + 100);
    std::string before(bytes.size(), '\0');
    segment.seekg(at).read(before.data(), static_cast<std::streamsize>(before.size()));
    segment.seekp(at) << bytes;
    EXPECT_TRUE(segment.good());
    return before;
  }
  // Damages the first page of the landmarks.
  void damage_landmarks(const MemoryInfo& memory) {
    const uint64_t page_chunks = store_->page_chunks();
    store_.reset();
    {
      const auto catalog = must(Catalog::open({data() / "catalog", 4 << 20, 1 << 20}));
      Catalog::Batch rows(*catalog);
      const bool whole = memory.encoded_chunks >= page_chunks;
      const StreamId stream = memory.serving.stream;
      rows.put(Family::landmarks, whole ? row_key(stream, 0) : row_key(stream, 0, uint32_t{0}), "short");
      must(catalog->write(rows));
    }
    open_store();
  }

  // ---- Reads that take their time
  // Holds back the reads of one memory.
  void hold_reads_of(const MemoryInfo& memory) {
    std::set<uint64_t> places;
    for (uint64_t chunk = 0; chunk < memory.encoded_chunks; ++chunk)
      places.insert(must(store_->chunk(memory.id, chunk)).slot * uint64_t{model_->kv_bytes()});
    disk_->hold([places](uint64_t offset) { return places.contains(offset); });
  }
  // Reads of other memories until no chunk of this one is cached.
  void crowd_out(GpuDecoder& decoder, CpuGpu& gpu, const MemoryInfo& memory, const MemoryInfo& others) {
    for (uint32_t seed = 100; chunks_in(gpu.cache(), memory) > 0; ++seed) {
      if (seed == 150) throw std::runtime_error("the chunks of " + memory.name + " stay in the cache");
      begin(decoder, source(others), seed);
    }
  }
  // Two streams, of which that of n waits for a read that the disk holds back and that of m has gone on.
  std::pair<Talk, Talk> stall(GpuDecoder& decoder, CpuGpu& gpu) {
    std::pair<Talk, Talk> talks{begin(decoder, source(n_), 1), begin(decoder, source(m_), 2)};
    crowd_out(decoder, gpu, n_, m_);
    hold_reads_of(n_);
    const auto reads =
        decoder.write(std::array<Decoder::Written, 2>{{{talks.first.stream.get(), talks.first.answer.next_token()},
                                                       {talks.second.stream.get(), talks.second.answer.next_token()}}});
    EXPECT_FALSE(reads[0]);
    EXPECT_TRUE(reads[1] && *reads[1]);
    if (reads[1] && *reads[1]) talks.second.answer.take(**reads[1], true);
    EngineDriver::wait_for("a read to be held", [&] { return disk_->holds_a_read(); });
    return talks;
  }
  std::jthread release_soon() {
    return std::jthread([this] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      disk_->release();
    });
  }

  TempDir directory_;
  WorkerPool pool_{2};
  std::unique_ptr<Ramba> model_;
  std::unique_ptr<Store> store_;
  SlowFileIo* disk_ = nullptr;
  MemoryInfo m_, n_;
};

}  // namespace recalld
