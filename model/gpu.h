// The model on an NVIDIA GPU, and the memory of the GPU: landmarks and cached chunks of the memories that generate.
// No CUDA in this header: the library behind it is opened at run time (open_gpu() in daemon/gpu_library.h), so that the
// same daemon starts where there is no driver.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/bf16.h"
#include "model/backend.h"

namespace recalld {

// Bytes of the budget, by what they are for.
struct GpuUsage {
  uint64_t budget_bytes = 0;
  uint64_t weights_bytes = 0;
  uint64_t states_bytes = 0;     // room for recurrent states
  uint64_t landmarks_bytes = 0;  // in use, with page tables
  uint64_t cache_bytes = 0;      // slots for chunks
  uint64_t workspace_bytes = 0;
  uint64_t host_landmarks_bytes = 0;  // of landmarks that lie in host memory, outside the budget
};

// Where the landmarks of a memory lie. Answers do not depend on it.
enum class Placement : uint8_t {
  device,       // bf16 on the device
  device_int8,  // 8 bits on the device, bf16 in host memory for those that are scored again
  host,         // bf16 in host memory, read over the bus
};

// The landmarks of one memory, and which of its chunks lie in which slots of the cache.
class GpuMemory {
 public:
  virtual ~GpuMemory() = default;  // overwrites what it held; where that fails, Gpu::erase_scratch() does it
  virtual uint64_t chunks() const = 0;
  virtual Placement placement() const = 0;
};

// One thread at a time calls its functions, but usage(), name(), describe() and late_scores() any. `device`: the GPU
// failed. States may outlive it, memories may not.
class Gpu : public Backend {
 public:
  virtual std::string name() const = 0;  // "NVIDIA H100 80GB HBM3"
  virtual GpuUsage usage() const = 0;
  // Recurrent states of the lower half that there is room for, those of the segments being encoded among them.
  virtual size_t states_max() const = 0;

  // ---- Searching
  // What Ramba::late_score() gives for each of some chunks, bit for bit where the CPU has fused multiply-add
  // (kernels/late_interaction_cuda.h). On return nothing of the question and of the chunks is left on the GPU or in
  // pinned memory; erase_scratch() waits for a call under way.
  // tokens: [n, heads, head_dim] some of SearchQuery's, 1 to question_tokens_max · records: [kv_bytes] each, as stored
  virtual Expected<std::vector<float>> late_scores(std::span<const float> tokens,
                                                   std::span<const ByteView> records) = 0;

  // ---- Landmarks
  virtual Expected<std::unique_ptr<GpuMemory>> open_memory() = 0;
  // Whether `chunks` more chunks would leave the landmarks in the placement that they have. Where not, the caller may
  // close other memories first: a memory that has gone a step down stays there.
  virtual bool has_room(const GpuMemory& memory, uint64_t chunks) const = 0;
  // Makes room for landmarks of so many chunks in all, at once, in a cheaper placement where there is none. `full`: not
  // even in the cheapest one.
  virtual Expected<void> reserve(GpuMemory& memory, uint64_t chunks) = 0;
  // Writes the landmarks of chunks first, first + 1, ..., first at most memory.chunks(). The memory grows by them as by
  // reserve().
  virtual Expected<void> write_landmarks(GpuMemory& memory, uint64_t first, std::span<const Bf16> landmarks) = 0;
  // No token attends to this chunk any more.
  virtual Expected<void> hide(GpuMemory& memory, uint64_t chunk) = 0;

  // ---- The cache of chunks
  static constexpr uint32_t no_slot = 0xffffffff;
  virtual uint32_t slots() const = 0;
  // Pinned memory for records on their way, at a multiple of 4 KiB: for all that one token of the lane attends to in
  // one group, or for all that a block of tokens does. What a fill() reads from it must stay until the next step() has
  // returned.
  virtual ByteSpan staging(uint32_t lane) = 0;
  virtual ByteSpan block_staging() = 0;
  struct Fill {
    uint64_t chunk = 0;
    uint32_t slot = 0;
    ByteView record;  // [kv_bytes] in staging() or block_staging()
  };
  struct Mapped {
    GpuMemory* memory = nullptr;  // not null
    uint64_t chunk = 0;           // that it has in the cache
  };
  // Copies records into slots and tells the memory so, once those that make way are no longer in the cache. No chunk is
  // among both.
  virtual Expected<void> fill(GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) = 0;
  // Their memories have these chunks no longer in the cache.
  virtual Expected<void> unmap(std::span<const Mapped> chunks) = 0;
  // Overwrites slots; on return it has happened.
  virtual Expected<void> erase(std::span<const uint32_t> slots) = 0;
  // Overwrites what was left behind by work that is done: staging memory, of which nothing may be on its way, hidden
  // states, encoded chunks, states that were given back, and landmarks that could not be overwritten before. Lanes keep
  // their states until they are reset. The host's memory is overwritten even where the device fails.
  virtual Expected<void> erase_scratch() = 0;

  // ---- Generating: lanes, each a stream of its own
  static constexpr uint32_t lanes_max = 8;
  static constexpr uint32_t block_tokens = 64;
  static constexpr uint32_t no_chunk = 0xffffffff;

  // The states of the lane become zero, and what it was waiting for is dropped.
  virtual Expected<void> reset(uint32_t lane) = 0;

  struct LaneWork {
    uint32_t lane = 0;
    const GpuMemory* memory = nullptr;  // not null
    uint64_t chunks = 0;                // the first ones of the memory, which tokens may attend to
    std::span<const uint32_t> tokens;   // to be read now; empty: the lane waits, and goes on where chunks were missing
  };
  // What the tokens of a lane chose in one group: [tokens, retrieval_heads, k] newest first, no_chunk at the end where
  // there are fewer.
  struct Selection {
    uint32_t group = 0;
    bool cached = false;  // all of them; then the group has been computed
    std::vector<uint32_t> chunks;
    std::vector<float> scores;
    std::chrono::steady_clock::time_point told = {};  // when the host knew of it
  };
  struct LaneResult {
    std::vector<Selection> selections;  // of the groups that were reached in this call
    bool done = false;                  // all groups are computed; otherwise chunks of the last selection are missing
    std::vector<float> logits;          // [vocab_size] after the last token; empty unless done
  };
  // One token of each of several lanes, or up to 64 tokens of a single one, which no other lane may have begun and not
  // ended. A lane whose chunks are all cached is done without a round trip to the host in between (a block of tokens:
  // with one a group). A lane's bits do not depend on the others, nor on which chunks were cached before. One that is
  // alone and misses chunks is told of as soon as it has chosen, when kernels behind that may still run.
  virtual Expected<std::vector<LaneResult>> step(std::span<const LaneWork> lanes) = 0;

  // ---- A token that waits while nothing else is computed
  // Enqueues what fill() and then step() do to a lane that waits with a single token, while the records of `fills` are
  // still being read: so nothing but arrived() has to be said when they are there. It must be followed by go_on(), with
  // no call in between but arrived() and those that any thread may make. Fills are of staging(lane), no more than fit
  // there; `fills` and `make_way` are read at once. Where it fails nothing is under way, but some of `make_way` may
  // have left the cache.
  virtual Expected<void> prepare(const LaneWork& lane, GpuMemory& memory, std::span<const Fill> fills,
                                 std::span<const Mapped> make_way) = 0;
  // The record of fills[i] is whole, and stays as it is until go_on() has returned. Once for each.
  virtual void arrived(size_t i) = 0;
  // Waits for what was prepared and returns what step() would. Chunks whose records have not arrived by now do not
  // come, while others may be in the cache; then the lane still waits, and the first selection is not cached. So it may
  // be where the reads took so long that the GPU gave up waiting: a fill() of all and a step() are right then. It waits
  // 0.2 s in each launch, and takes 96 records in one: of more the later ones have the time of the earlier ones too.
  virtual Expected<LaneResult> go_on() = 0;
};

struct GpuOptions {
  std::filesystem::path model;            // directory of the checkpoint
  uint64_t budget_bytes = 0;              // 0: half of what is free on the device, at most 8 GiB
  size_t encode_states = 0;               // recurrent states that the encoder may hold at a time
  uint64_t host_landmarks_bytes_max = 0;  // 0: no bound
};

// The library exports this function with C linkage, under the name "recalld_open_gpu", and as "recalld_gpu_build" one
// of type GpuBuild, to be asked first (model/gpu_build.h). `not_found`: no driver or no device; `device`: an old
// driver, a device of an older architecture than the library was built for, too little memory; invalid_request: the
// budget is too small (the message says what it takes) or the model has a shape that the kernels do not take.
using OpenGpu = Expected<std::unique_ptr<Gpu>> (*)(const GpuOptions& options);
using GpuBuild = const char* (*)();

}  // namespace recalld
