#include "tests/crash/power_cut.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "memstore/kv_file.h"
#include "tests/crash/model.h"
#include "tests/crash/workload.h"
#include "tests/support/power_disk.h"
#include "tests/support/power_file_io.h"
#include "tests/support/power_file_system.h"

namespace recalld::crash {
namespace {

constexpr uint64_t steps_before_max = 14;  // done before a seed's workload, on a disk that keeps its power
constexpr uint64_t steps_cut_max = 12;     // of a seed's workload
constexpr size_t steps_without_power = 3;  // tried after the cut: each must fail
constexpr uint64_t recovery_cuts_max = 4;  // of one point
constexpr size_t segment_records = 6;      // few, so that segments come and go
constexpr size_t failures_max = 5;         // then a sweep stops
constexpr uint64_t steps_after = 4;        // done to what is left, before it is looked at again
constexpr size_t traces_max = 4;           // looked for of what was erased

// Where the sweep is, for whoever dies in it: an assertion of ours or of RocksDB must be repeatable, too.
std::array<char, 64> where{};

void name_seed_and_point(int signal) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, where.data(), std::strlen(where.data()));
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

// A store on a disk whose power may go.
class PoweredStore {
 public:
  PoweredStore(const std::filesystem::path& directory, const RecordShape& shape)
      : directory_(directory), shape_(shape) {}
  ~PoweredStore() { close(); }

  Expected<void> open(PowerDisk& disk) {
    close();
    mirror_power_disk(disk, directory_ / "kv");
    env_ = power_env(disk);
    disk_ = &disk;
    return open();
  }
  Expected<void> reopen() {
    store_.reset();
    return open();
  }
  void close() {
    store_.reset();
    env_.reset();
  }
  Store& operator*() { return *store_; }

 private:
  Expected<void> open() {
    StoreOptions options{.shape = shape_, .memory_budget_bytes = uint64_t{8} << 20, .file_io = {}};
    options.file_io = [this]() -> Expected<std::unique_ptr<FileIo>> { return std::make_unique<PowerFileIo>(*disk_); };
    options.catalog_env = env_.get();
    options.segment_bytes = segment_records * io_alignment;
    RECALLD_TRY(store_, Store::open(directory_, std::move(options)));
    return {};
  }

  const std::filesystem::path directory_;
  const RecordShape shape_;
  PowerDisk* disk_ = nullptr;
  std::shared_ptr<rocksdb::Env> env_;
  std::unique_ptr<Store> store_;
};

// What one seed does, at whatever point it is cut short.
class Sweep {
 public:
  // `directory` is not there yet, and goes with the sweep.
  Sweep(std::filesystem::path directory, uint64_t seed) : seed_(seed), directory_(std::move(directory)), random_(seed) {
    options_.shape = shape(happens(random_, 3) ? 4096 : 64);  // of the wide ones few make a page
    options_.large_turns = happens(random_, 3) ? 12 : 0;
    options_.erases = !happens(random_, 3);
  }

  ~Sweep() { std::filesystem::remove_all(directory_); }
  Sweep(const Sweep&) = delete;
  Sweep& operator=(const Sweep&) = delete;

  // Fills the disk on which the workload begins; every third one is new.
  std::vector<std::string> prepare() {
    disk_ = std::make_unique<PowerDisk>(directory_);
    if (happens(random_, 3)) return {};
    PoweredStore store(directory_, options_.shape);
    if (const auto opened = store.open(*disk_); !opened) return {"open: " + opened.error().message};
    for (uint64_t left = 1 + below(random_, steps_before_max); left > 0; --left) {
      std::vector<std::string> complaints;
      Step step = next_step(random_, model_, options_);
      const auto done = step.run(*store, complaints);
      if (!done) complaints.push_back(step.what + ": " + done.error().message);
      if (!complaints.empty()) return complaints;
      model_ = std::move(step.outcomes.back());
    }
    return {};
  }

  struct Outcome {
    bool cut = false;  // false: the workload has fewer points
    uint64_t recovery_cuts = 0;
    std::vector<std::string> complaints;
  };

  // Cuts the power at this point of the workload, at points of the recovery too, and judges what is left.
  Outcome cut_at(uint64_t point) {
    Outcome outcome;
    Random luck(seed_ * 1'000'003 + point);
    auto disk = disk_->survivor(luck());
    disk->cut_power_at(point);
    const BrokenOff broken_off = run_workload(*disk, outcome.complaints);
    outcome.cut = !disk->powered();
    if (!outcome.cut) return outcome;
    disk = disk->survivor(luck());

    PoweredStore store(directory_, options_.shape);
    for (uint64_t left = 0; left < recovery_cuts_max && happens(luck, 2); ++left) {
      disk->cut_power_at(1 + below(luck, open_points_));
      (void)store.open(*disk);  // may get through
      store.close();            // and then this may not
      if (!disk->powered()) ++outcome.recovery_cuts;
      disk = disk->survivor(luck());
    }

    if (const auto opened = store.open(*disk); !opened) {
      outcome.complaints.push_back("open: " + opened.error().message);
    } else {
      open_points_ = std::max<uint64_t>(10, disk->points());
      judge(*disk, store, broken_off, luck, outcome.complaints);
    }
    for (std::string& complaint : outcome.complaints)
      complaint = "power went during " + broken_off.step.what + ": " + complaint;
    return outcome;
  }

 private:
  // The step during which the power went.
  struct BrokenOff {
    Step step;
  };

  BrokenOff run_workload(PowerDisk& disk, std::vector<std::string>& complaints) const {
    Random random = random_;
    Model model = model_;
    const auto nothing = [&](std::string what) {
      return BrokenOff{{.what = std::move(what), .run = {}, .outcomes = {model}}};
    };
    PoweredStore store(directory_, options_.shape);
    if (!store.open(disk)) return nothing("opening");
    std::optional<BrokenOff> broken_off;
    size_t steps_dark = 0;
    for (uint64_t left = 2 + below(random, steps_cut_max - 1); left > 0 && steps_dark < steps_without_power; --left) {
      const bool dark = !disk.powered();
      if (dark) ++steps_dark;
      if (!dark && happens(random, 8)) {
        if (!store.reopen()) return nothing("opening again");
        continue;
      }
      Step step = next_step(random, model, options_);
      std::vector<std::string> wrong;
      const auto done = step.run(*store, wrong);
      if (dark) {
        if (done && wrong.empty() && step.writes) complaints.push_back(step.what + " was acknowledged without power");
      } else if (disk.powered()) {
        std::ranges::move(wrong, std::back_inserter(complaints));
        if (!done) complaints.push_back(step.what + ": " + done.error().message);
        model = std::move(step.outcomes.back());
      } else if (done && wrong.empty()) {
        model = std::move(step.outcomes.back());  // the power went behind its back
      } else {
        broken_off = BrokenOff{std::move(step)};
      }
    }
    store.close();
    return broken_off ? *std::move(broken_off) : nothing("closing");
  }

  void judge(const PowerDisk& disk, PoweredStore& store, const BrokenOff& broken_off, Random& luck,
             std::vector<std::string>& complaints) const {
    const auto add = [&](std::vector<std::string> more) { std::ranges::move(more, std::back_inserter(complaints)); };
    // Which of the outcomes is it? The furthest one is tried first.
    std::optional<Model> model;
    std::vector<std::string> differing;
    for (auto outcome = broken_off.step.outcomes.rbegin(); outcome != broken_off.step.outcomes.rend(); ++outcome) {
      differing = differences(*store, *outcome, options_.shape);
      if (differing.empty()) {
        model = *outcome;
        break;
      }
    }
    if (!model) return add(std::move(differing));
    add(leftovers(disk, *store, *model, luck));

    // It is a store like any other.
    const auto run = [&](Step step) {
      const auto done = step.run(*store, complaints);
      if (!done) complaints.push_back("afterwards, " + step.what + ": " + done.error().message);
      if (done) model = std::move(step.outcomes.back());
    };
    if (!broken_off.step.appended.empty()) run(retry_step(*model, broken_off.step));
    // Bytes of a put that was broken off must not outlive the memory either.
    const std::string& encoded = broken_off.step.encoded;
    if (options_.erases && model->memories.contains(encoded) && happens(luck, 2)) run(erase_step(*model, encoded));
    for (uint64_t left = steps_after; left > 0; --left) run(next_step(luck, *model, options_));
    add(differences(*store, *model, options_.shape));
    add(leftovers(disk, *store, *model, luck));
    if (!happens(luck, 3)) return;
    if (const auto opened = store.reopen(); !opened) {
      complaints.push_back("afterwards, open again: " + opened.error().message);
      return;
    }
    add(differences(*store, *model, options_.shape));
    add(leftovers(disk, *store, *model, luck));
  }

  // What a store should not keep: segments without a chunk, and anything of what was erased.
  std::vector<std::string> leftovers(const PowerDisk& disk, Store& store, const Model& model, Random& luck) const {
    std::vector<std::string> found;
    std::set<std::string> named;
    for (const auto& [name, memory] : model.memories) {
      for (uint64_t i = 0; i < memory.encoded_chunks; ++i) {
        if (const auto entry = store.chunk(memory.id, i)) named.insert(segment_name(entry->segment));
      }
    }
    const auto segments = disk.list(directory_ / "kv");
    if (!segments) return {"list segments: " + segments.error().message};
    for (const std::string& segment : *segments) {
      // The last one may have just been begun.
      if (!named.contains(segment) && segment != segments->back()) found.push_back(segment + " holds no chunk");
    }
    if (model.erased.empty()) return found;
    const auto files = disk.contents();
    const auto trace = [&](const std::string& what, std::string_view bytes) {
      for (const auto& [file, contents] : files) {
        if (contents.find(bytes) != std::string::npos) found.push_back(what + " is in " + file);
      }
    };
    for (size_t left = traces_max; left > 0; --left) {
      // The one that was erased last is the most likely to have left something.
      const auto& [id, memory] =
          happens(luck, 2) ? *model.erased.rbegin()
                           : *std::next(model.erased.begin(), static_cast<ptrdiff_t>(below(luck, model.erased.size())));
      const std::string of = " of erased memory " + std::to_string(id);
      const uint64_t turn = below(luck, memory.turns.size());
      const std::string& content = memory.turns[turn]->turn.content;
      if (content.size() >= 16) trace("turn " + std::to_string(turn) + of, std::string_view(content).substr(0, 40));
      if (memory.past.size() == 1) continue;
      const uint64_t number = below(luck, memory.past.size() - 1);
      const Encoded chunk(memory.past[number + 1], options_.shape);
      trace("the K/V of chunk " + std::to_string(number) + of, as_text(ByteView(chunk.kv).first(64)));
      trace("the landmark of chunk " + std::to_string(number) + of,
            as_text(std::as_bytes(std::span(chunk.landmark)).first(64)));
    }
    return found;
  }

  const uint64_t seed_;
  const std::filesystem::path directory_;
  Random random_;  // as it is when the workload begins
  WorkloadOptions options_;
  std::unique_ptr<PowerDisk> disk_;
  Model model_;
  uint64_t open_points_ = 80;  // of the last recovery
};

}  // namespace

SweepResult sweep_power_cuts(const std::filesystem::path& directory, const SweepOptions& options) {
  for (const int signal : {SIGABRT, SIGSEGV}) ::signal(signal, name_seed_and_point);
  SweepResult result;
  const auto failed = [&](const std::string& where, const std::vector<std::string>& complaints) {
    for (const std::string& complaint : complaints) result.failures.push_back(where + ": " + complaint);
    return result.failures.size() >= failures_max;
  };
  for (uint64_t seed = options.first_seed; result.points < options.points_max; ++seed) {
    result.last_seed = seed;
    const std::string name = "seed " + std::to_string(seed);
    Sweep sweep(directory / name, seed);
    if (failed(name + ", before the power went", sweep.prepare())) return result;
    uint64_t point = options.only_point != 0 ? options.only_point : 1 + seed % options.stride;
    for (; result.points < options.points_max; point += options.stride) {
      std::snprintf(where.data(), where.size(), "died at seed %llu, point %llu\n",
                    static_cast<unsigned long long>(seed), static_cast<unsigned long long>(point));
      const Sweep::Outcome outcome = sweep.cut_at(point);
      if (failed(name + ", point " + std::to_string(point), outcome.complaints)) return result;
      result.points += (outcome.cut ? 1 : 0) + outcome.recovery_cuts;
      result.recovery_points += outcome.recovery_cuts;
      if (!outcome.cut || options.only_point != 0) break;
    }
    if (options.only_point != 0) break;
  }
  return result;
}

}  // namespace recalld::crash
