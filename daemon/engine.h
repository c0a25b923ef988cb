// What recalld does, written as the algorithm: append, encode, search, generate,
// inspect. Knows the model and the store, and
// neither JSON nor sockets.
//
// Threads: tokenise workers (appends, whose order is fixed before, queries, and imports, one at a time in their order),
// one commit thread (turn numbers, one synced write for all that wait), one model thread (encodes behind the replies;
// searches go first, then generations, and memories take turns), a few read workers, and an upkeep thread (erasing,
// verifying, copying). Every function returns at once; `done` is called exactly once, on one of those threads, and must
// not block. Destruction commits and answers what was accepted, leaves what waits to be encoded or erased to the next
// start, checkpoints the states and closes the store.
#pragma once

#include <functional>
#include <memory>

#include "base/error.h"
#include "daemon/device.h"
#include "daemon/requests.h"
#include "memstore/store.h"
#include "model/gpu.h"
#include "model/ramba.h"
#include "model/tokenizer.h"

namespace recalld {

struct EngineOptions {
  std::filesystem::path data;   // directory of the store
  std::filesystem::path model;  // directory of the checkpoint
  Device device = Device::cpu;
  std::function<Expected<std::unique_ptr<Gpu>>(const GpuOptions&)> open_gpu;  // needed unless the device is cpu
  uint64_t gpu_budget_bytes = 0;                                              // as in GpuOptions
  Precision precision = Precision::automatic;
  uint64_t memory_budget_bytes = uint64_t{256} << 20;
  size_t threads = 0;     // of the model; 0: one a core
  bool reencode = false;  // a store that was encoded with another model is encoded anew with this one
  bool repair = false;    // damaged tables of the catalog are dropped before it is opened, and what is missing
                          // then is made again where it can be
  std::function<int64_t()> now_us;  // microseconds since 1970; unset: the system clock
};

class Engine {
 public:
  static Expected<std::unique_ptr<Engine>> open(EngineOptions options);
  ~Engine();

  // The daemon stops soon: verifications and backups end early, and answer busy. Any thread may call this.
  void interrupt();

  // Appends to one memory take effect in the order in which append() was called.
  void append(AppendRequest request, Done<AppendReply> done);
  void search(SearchRequest request, Done<SearchReply> done);
  void generate(GenerateRequest request, Done<GenerateReply> done);
  CancelReply cancel(const Caller& caller);     // ends its generations with what they have written so far
  void connection_closed(uint64_t connection);  // nobody waits for its generations any more

  void memories_list(MemoriesListRequest request, Done<MemoriesListReply> done);
  void memories_get(std::string memory, Done<MemoryView> done);
  void memories_delete(DeleteRequest request, Done<DeleteReply> done);
  void turns_list(TurnsListRequest request, Done<TurnsListReply> done);
  void chunks_list(ChunksListRequest request, Done<ChunksListReply> done);
  void chunks_get(std::string memory, uint64_t chunk, Done<ChunkDetail> done);
  void forget(ForgetRequest request, Done<Receipt> done);
  void verify(VerifyRequest request, Done<VerifyReply> done);
  void export_memory(ExportRequest request, Done<ExportReply> done);
  void import_memory(ImportRequest request, Done<ImportReply> done);
  void backup(BackupRequest request, Done<BackupReply> done);
  void reencode(ReencodeRequest request, Done<JobView> done);
  void stats(Done<StatsReply> done);
  void health(Done<HealthReply> done);
  VersionReply version() const;
  std::string device() const;  // that the model computes on: "cpu", "cuda (NVIDIA H100 80GB HBM3)"

  // Whether the appends that are accepted and not yet durable fill their share of the memory budget. The server hands
  // on no request until it is false again.
  bool overloaded() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace recalld
