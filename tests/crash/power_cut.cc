#include "tests/crash/power_cut.h"

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

#include "memstore/catalog.h"
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
constexpr uint64_t recovery_points = 100;  // about as many as a recovery has
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
    mirror_power_disk(disk, directory_ / "catalog");
    env_ = power_env(disk);
    disk_ = &disk;
    return open();
  }
  Expected<void> reopen() {
    store_.reset();
    mirror_power_disk(*disk_, directory_ / "catalog");
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
    const CatalogFiles files{env_.get()};
    options.catalog_files = &files;
    options.segment_bytes = segment_records * io_alignment;
    options.read_metadata = [](std::string_view) { return std::vector<Attribute>(); };  // turns are indexed
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
  // `directory` is not there yet, and goes with the sweep. Counts in `result`.
  Sweep(std::filesystem::path directory, uint64_t seed, SweepResult& result)
      : seed_(seed), directory_(std::move(directory)), random_(seed), result_(result) {
    options_.shape = shape(happens(random_, 2) ? 8192 : 64);  // of the wide ones few make a page
    options_.large_turns = happens(random_, 3) ? 12 : 0;
    options_.erases = !happens(random_, 3);
    options_.forgets = !happens(random_, 4);
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
    bool recovered_before = false;
    for (uint64_t left = 0; left < recovery_cuts_max && happens(luck, 2); ++left) {
      disk->cut_power_at(1 + below(luck, recovery_points));
      recovered_before = true;
      if (store.open(*disk)) (void)erase_as_at_start(*store);  // may get through
      store.close();                                           // and then this may not
      if (!disk->powered()) ++outcome.recovery_cuts;
      disk = disk->survivor(luck());
    }

    if (const auto opened = store.open(*disk); !opened) {
      outcome.complaints.push_back("open: " + opened.error().message);
    } else {
      judge(*disk, store, broken_off, recovered_before, luck, outcome.complaints);
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

  // What a daemon does when it has opened the store.
  static Expected<void> erase_as_at_start(Store& store) {
    RECALLD_TRY(const auto ids, store.to_erase());
    for (const MemoryId id : ids) {
      const auto memory = store.memory(id);
      if (!memory || !memory->next) RECALLD_CHECK(store.erase_forgotten(id));
    }
    return {};
  }

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
      if (done && step.forgets) ++result_.forgettings;
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

  void judge(const PowerDisk& disk, PoweredStore& store, const BrokenOff& broken_off, bool recovery_erased,
             Random& luck, std::vector<std::string>& complaints) const {
    const auto add = [&](std::vector<std::string> more) { std::ranges::move(more, std::back_inserter(complaints)); };
    // Which of the outcomes is it? The furthest one is tried first. Recovery may have erased what was forgotten.
    const auto to_erase = store_ids(*store);
    std::optional<Model> model;
    std::vector<std::string> differing;
    for (auto outcome = broken_off.step.outcomes.rbegin(); outcome != broken_off.step.outcomes.rend(); ++outcome) {
      Model recovered = *outcome;
      for (const MemoryId id : outcome->to_erase) {
        if (recovery_erased && !to_erase.contains(id)) recovered.erase_forgotten(id);
      }
      differing = differences(*store, recovered, options_.shape);
      if (differing.empty()) {
        model = std::move(recovered);
        break;
      }
    }
    if (!model) return add(std::move(differing));
    add(traces(disk, *model, luck));

    // It is a store like any other.
    const auto run = [&](Step step) {
      const auto done = step.run(*store, complaints);
      if (!done) complaints.push_back("afterwards, " + step.what + ": " + done.error().message);
      if (done) model = std::move(step.outcomes.back());
      return done.has_value();
    };
    if (!broken_off.step.appended.empty()) run(retry_step(*model, broken_off.step));
    // Bytes of a put that was broken off must not outlive the memory either.
    const std::string& encoded = broken_off.step.encoded;
    if (options_.erases && model->memories.contains(encoded) && happens(luck, 2)) run(erase_step(*model, encoded));
    for (uint64_t left = steps_after; left > 0; --left) run(next_step(luck, *model, options_));
    add(differences(*store, *model, options_.shape));
    add(traces(disk, *model, luck));
    for (auto step = settling_step(luck, *model, options_); step && run(*std::move(step));)
      step = settling_step(luck, *model, options_);
    if (!model->settled()) return;
    add(damage(*store, *model));
    add(differences(*store, *model, options_.shape));
    add(traces(disk, *model, luck));
    add(empty_segments(disk, *store, *model));
    if (!happens(luck, 3)) return;
    if (const auto opened = store.reopen(); !opened) {
      complaints.push_back("afterwards, open again: " + opened.error().message);
      return;
    }
    add(differences(*store, *model, options_.shape));
    add(traces(disk, *model, luck));
    add(empty_segments(disk, *store, *model));
  }

  // What the store itself finds wrong with what it holds.
  static std::vector<std::string> damage(Store& store, const Model& model) {
    std::vector<std::string> found;
    const auto add = [&](const std::vector<Problem>& problems) {
      // Segments are looked for in the operating system's directory, where their twins are empty.
      for (const Problem& problem : problems)
        if (problem.part != "segment") found.push_back("verify: " + problem.part + ": " + problem.message);
    };
    for (const auto& [name, memory] : model.memories) {
      const auto verified = store.verify(memory.id, [](uint64_t, uint64_t) { return true; });
      if (!verified) return {"verify memory " + name + ": " + verified.error().message};
      add(verified->problems);
      for (const auto& lost : verified->lost) {
        if (lost.to_make() || lost.to_drop()) found.push_back("verify: memory " + name + " is to be mended");
      }
    }
    const auto others = store.verify_store(false);
    if (!others) return {"verify the store: " + others.error().message};
    add(*others);
    return found;
  }

  static std::set<MemoryId> store_ids(const Store& store) {
    const auto ids = store.to_erase();
    return ids ? std::set(ids->begin(), ids->end()) : std::set<MemoryId>{};
  }

  // Of a store that has encoded and erased everything: segments without a chunk are not kept.
  std::vector<std::string> empty_segments(const PowerDisk& disk, Store& store, const Model& model) const {
    std::vector<std::string> found;
    std::set<std::string> named;
    for (const auto& [name, memory] : model.memories) {
      for (uint64_t i = 0; i < memory.serving.chunks; ++i) {
        if (const auto entry = store.chunk(memory.id, i)) named.insert(segment_name(entry->segment));
      }
    }
    const auto segments = disk.list(directory_ / "kv");
    if (!segments) return {"list segments: " + segments.error().message};
    for (const std::string& segment : *segments) {
      // The last one may have just been begun.
      if (!named.contains(segment) && segment != segments->back()) found.push_back(segment + " holds no chunk");
    }
    return found;
  }

  // Of what was forgotten, or of memories that were removed, once that is erased: none is anywhere on the disk. And of
  // what is there, so that somebody sees the looking fail.
  std::vector<std::string> traces(const PowerDisk& disk, const Model& model, Random& luck) const {
    if (model.gone.empty()) return {};
    std::vector<std::string> found;
    const auto files = disk.contents();
    const auto is_in = [&](std::string_view bytes) -> std::optional<std::string> {
      for (const auto& [file, contents] : files) {
        if (contents.find(bytes) != std::string::npos) return file;
      }
      return std::nullopt;
    };
    const auto must_be_gone = [&](const std::string& what, std::string_view bytes) {
      ++result_.traces;
      if (const auto file = is_in(bytes)) found.push_back(what + " is in " + *file);
    };
    const auto any_of = [&](const auto& of) {
      return *std::next(of.begin(), static_cast<ptrdiff_t>(below(luck, of.size())));
    };
    std::set<Hash128> there;  // the same chunks may have been encoded again
    for (const auto& [name, memory] : model.memories) {
      const MemoryModel::Traces live = memory.everything();
      there.insert(live.pasts.begin(), live.pasts.end());
      if (!live.texts.empty() && happens(luck, 4)) {
        const auto text = live.texts[below(luck, live.texts.size())].second;
        ++result_.controls;
        result_.controls_found += is_in(text) ? 1 : 0;
      }
    }
    for (size_t left = traces_max; left > 0; --left) {
      const auto& [id, gone] = any_of(model.gone);
      // What was erased last is the most likely to have left something.
      if (!gone.texts.empty()) {
        const size_t last = gone.texts.size() - 1;
        const auto& [what, bytes] =
            gone.texts[last - (happens(luck, 2) ? std::min(last, below(luck, 4)) : below(luck, last + 1))];
        must_be_gone(what, bytes);
      }
      if (gone.pasts.empty()) continue;
      const Hash128 past = any_of(gone.pasts);
      if (there.contains(past)) continue;
      const std::string of = " of an erased chunk of memory " + std::to_string(id);
      const Encoded chunk(past, options_.shape);
      must_be_gone("the K/V" + of, as_text(ByteView(chunk.kv).first(64)));
      must_be_gone("the landmark" + of, as_text(std::as_bytes(std::span(chunk.landmark)).first(64)));
      must_be_gone("the state after it" + of, std::string_view(state_of(past, options_.shape)).substr(0, 64));
    }
    return found;
  }

  const uint64_t seed_;
  const std::filesystem::path directory_;
  Random random_;  // as it is when the workload begins
  WorkloadOptions options_;
  std::unique_ptr<PowerDisk> disk_;
  Model model_;
  SweepResult& result_;
};

}  // namespace

SweepResult sweep_power_cuts(const std::filesystem::path& directory, const SweepOptions& options) {
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE}) ::signal(signal, name_seed_and_point);
  SweepResult result;
  const auto failed = [&](const std::string& where, const std::vector<std::string>& complaints) {
    for (const std::string& complaint : complaints) result.failures.push_back(where + ": " + complaint);
    return result.failures.size() >= failures_max;
  };
  for (uint64_t seed = options.first_seed; result.points < options.points_max; ++seed) {
    result.last_seed = seed;
    const std::string name = "seed " + std::to_string(seed);
    Sweep sweep(directory / name, seed, result);
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
