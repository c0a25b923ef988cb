// Encodes everything that is stored anew, with another model, in the background: into a store of its own in DATA/next,
// while the old encodings serve. The next start with that model puts it in the place of the old one.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "daemon/encoder.h"
#include "daemon/jobs.h"
#include "daemon/model_thread.h"
#include "daemon/successor.h"
#include "model/backend_cpu.h"
#include "model/ramba.h"
#include "model/tokenizer.h"

namespace recalld {

// A model as a store knows it. Fails when the directory holds no checkpoint with a tokenizer that fits it.
struct LoadedModel {
  std::unique_ptr<Ramba> model;
  Tokenizer tokenizer;
  RecordShape shape;
};
Expected<LoadedModel> load_model(const std::filesystem::path& directory, Precision precision, Parts parts,
                                 WorkerPool& pool);

// Used by the model thread alone.
class Reencoder {
 public:
  // Everything is borrowed but the model, which was read from `directory`.
  static Expected<std::unique_ptr<Reencoder>> start(const Store& from, Successor& successor,
                                                    const std::filesystem::path& directory, LoadedModel model,
                                                    uint64_t state_bytes_max, Jobs& jobs, int64_t now_us);
  ~Reencoder();  // checkpoints; the job goes on with the next start

  // Copies a page, or encodes a segment, which `end_early` may end (Encoder::encode_segments); `later` when there is
  // nothing to do for now.
  ModelThread::Outcome step(const std::function<bool()>& end_early = {});

  const std::filesystem::path& model_directory() const { return directory_; }
  uint64_t job() const { return job_; }

 private:
  Reencoder(const Store& from, Successor& successor, std::filesystem::path directory, LoadedModel model,
            uint64_t state_bytes_max, Jobs& jobs, int64_t now_us);
  Expected<bool> advance(const std::function<bool()>& end_early);
  void report();

  const Store& from_;
  Successor& successor_;
  const std::filesystem::path directory_;
  const LoadedModel model_;
  CpuBackend backend_;
  Encoder encoder_;
  Jobs& jobs_;
  const uint64_t job_;
  uint64_t steps_ = 0;
  MemoryId after_ = 0;  // the memory that was encoded last, in the other store's numbers
  bool ready_ = false;  // everything was encoded once; it follows what is appended since
};

}  // namespace recalld
