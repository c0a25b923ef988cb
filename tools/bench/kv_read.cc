// How fast K/V records are read at random, against fio on the same files: how many a second, how late the slowest of a
// hundred is, and what a read costs in CPU.
//
// Usage: kv_read [rounds=5] [seconds=2] [depths=1,8,32,64; none: ""] [parent directory=the temporary one]
//                [fetches=1,2,4,8; none: ""]
// Makes 1 GiB of segments, and then a store of 320 MiB, below the parent directory, whose file system is what is
// measured, and removes them.
// Ours is KvFile::stream, as a fetch from the store uses it, on one thread, with `depth` reads in flight all the time;
// once into memory of KvFile::buffer, and once into the middle of other memory, where records are copied to. fio reads
// the same records with O_DIRECT through io_uring, on one thread, with registered files and buffers.
// Order of measurement in a round: fio, ours, ours copied, ours copied, ours, fio. Medians over the rounds are printed,
// and medians of the ratios of each round. Other work on the machine shows in all of them: the load is printed too.
//
// Then what a few chunks take from a store, fetched as an answer waits for them that is written alone, beside batches
// of reads of as many records by io_uring alone; one after another, and with rests between them as long as a GPU
// computes a token. Order: reads, fetches, fetches, reads.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "memstore/kv_file.h"
#include "memstore/store.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill_store.h"
#include "tools/bench/gpu_setup.h"
#include "tools/bench/read_batches.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

constexpr uint32_t kv_bytes = 16384;  // the starter's
constexpr uint32_t segments = 16;

// The disk rests before each measurement. It does so while fio starts, too, and some disks give bursts after a rest.
constexpr std::chrono::milliseconds pause{500};

using Clock = std::chrono::steady_clock;

// The segments, and their directory.
class Files {
 public:
  explicit Files(const std::filesystem::path& parent)
      : directory_(parent / ("recalld-bench-kv-read-" + std::to_string(getpid()))),
        kv_(must(KvFile::open(directory_, kv_bytes, open_file_io(), {}), "make segments")) {
    std::mt19937_64 random(5);
    std::vector<uint64_t> words(kv_bytes / sizeof(uint64_t) + records());
    for (uint64_t& word : words) word = random();
    // Record i is the words from i on: none is like another, and its first word tells which one it is.
    first_words_.assign(words.begin(), words.begin() + records());
    const uint32_t at_a_time = kv_->slots_per_segment();
    for (uint32_t first = 0; first < records(); first += at_a_time) {
      std::vector<ByteView> slice;
      for (uint32_t i = first; i < first + at_a_time; ++i)
        slice.push_back(std::as_bytes(std::span(words).subspan(i, kv_bytes / sizeof(uint64_t))));
      must(kv_->append(slice), "fill segments");
    }
  }
  ~Files() {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  const KvFile& kv() const { return *kv_; }
  uint32_t records() const { return segments * kv_->slots_per_segment(); }
  KvPlace place(uint32_t record) const {
    return {record / kv_->slots_per_segment(), record % kv_->slots_per_segment()};
  }
  bool is(uint32_t record, ByteView bytes) const { return std::memcmp(&first_words_[record], bytes.data(), 8) == 0; }

  std::string names_for_fio() const {
    std::string names;
    for (uint32_t segment = 0; segment < segments; ++segment)
      names += (segment == 0 ? "" : ":") + (directory_ / segment_name(segment)).string();
    return names;
  }

 private:
  const std::filesystem::path directory_;
  const std::unique_ptr<KvFile> kv_;
  std::vector<uint64_t> first_words_;
};

struct Figures {
  double reads_per_s = 0;
  double p99_us = 0;
  double cpu_us = 0;  // of the reading thread, a read
};

double thread_cpu_us() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  const auto us = [](timeval time) {
    return 1e6 * static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

Figures read_by_fio(const Files& files, size_t depth, unsigned seconds) {
  std::this_thread::sleep_for(pause);
  // Latency runs from taking a read up to its completion, and no sequence of records is read twice, for both.
  std::ostringstream command;
  command << "fio --name=kv_read --rw=randread --bs=" << kv_bytes << " --ioengine=io_uring --direct=1 --fixedbufs=1"
          << " --registerfiles=1 --numjobs=1 --thread --iodepth=" << depth << " --time_based --runtime=" << seconds
          << " --norandommap=1 --randrepeat=0 --file_service_type=random --lat_percentiles=1 --clat_percentiles=0"
          << " --output-format=json '--filename=" << files.names_for_fio() << "'";
  std::string output;
  FILE* const pipe = ::popen(command.str().c_str(), "r");
  if (pipe == nullptr) give_up("start fio", std::strerror(errno));
  char part[4096];
  for (size_t bytes; (bytes = std::fread(part, 1, sizeof part, pipe)) > 0;) output.append(part, bytes);
  if (::pclose(pipe) != 0) give_up("run fio", output);
  const auto report = nlohmann::json::parse(output.substr(std::min(output.size(), output.find('{'))), nullptr, false);
  if (report.is_discarded()) give_up("run fio: this is not JSON", output);
  const auto& job = report.at("jobs").at(0);
  const auto& read = job.at("read");
  if (job.at("error") != 0 || read.at("total_ios") == 0) give_up("run fio", output);
  const double cpu_share = (job.at("usr_cpu").get<double>() + job.at("sys_cpu").get<double>()) / 100;
  return {read.at("iops"), read.at("lat_ns").at("percentile").at("99.000000").get<double>() / 1e3,
          cpu_share * 1e3 * job.at("job_runtime").get<double>() / read.at("total_ios").get<double>()};
}

enum class Into { lent, copied };

Figures read_by_us(const Files& files, size_t depth, unsigned seconds, Into into, std::mt19937& random) {
  std::this_thread::sleep_for(pause);
  struct Read {
    ByteSpan bytes;
    uint32_t record = 0;
    Clock::time_point start;
  };
  // Memory as a reader gets it that asks for no more than is lent at a time.
  constexpr size_t part_reads = 32;
  std::vector<AlignedBuffer> buffers;
  std::vector<std::byte> elsewhere(into == Into::copied ? depth * kv_bytes + 8 : 0);
  std::vector<Read> reads(depth);
  for (size_t i = 0; i < depth; ++i) {
    if (into == Into::copied) {
      reads[i].bytes = std::span(elsewhere).subspan(8 + i * kv_bytes, kv_bytes);
      continue;
    }
    if (i % part_reads == 0) buffers.push_back(files.kv().buffer(std::min(part_reads, depth - i) * kv_bytes));
    reads[i].bytes = buffers.back().bytes().subspan(i % part_reads * kv_bytes, kv_bytes);
  }
  std::vector<size_t> free;
  for (size_t i = 0; i < depth; ++i) free.push_back(i);
  std::vector<float> latency_us;
  latency_us.reserve(1 << 20);
  std::uniform_int_distribution<uint32_t> any(0, files.records() - 1);
  std::string failure;

  const double cpu_before_us = thread_cpu_us();
  const auto start = Clock::now();
  auto now = start;
  const auto end = start + std::chrono::seconds(seconds);
  const auto next = [&]() -> std::optional<KvRead> {
    if (free.empty()) return std::nullopt;
    const auto given = Clock::now();
    if (given >= end || !failure.empty()) return std::nullopt;
    const size_t i = free.back();
    free.pop_back();
    Read& read = reads[i];
    read.record = any(random);
    read.start = given;
    return KvRead{files.place(read.record), read.bytes, i};
  };
  const auto done = [&](uint64_t i, Expected<void> result) {
    now = Clock::now();
    const Read& read = reads[i];
    latency_us.push_back(std::chrono::duration<float, std::micro>(now - read.start).count());
    if (!result)
      failure = result.error().message;
    else if (!files.is(read.record, read.bytes))
      failure = "record " + std::to_string(read.record) + " is not what was written";
    free.push_back(i);
  };
  files.kv().stream(next, done);
  if (!failure.empty()) give_up("read records", failure);
  const double cpu_us = thread_cpu_us() - cpu_before_us;
  const auto count = static_cast<double>(latency_us.size());
  const auto p99 = latency_us.begin() + static_cast<std::ptrdiff_t>(0.99 * count);
  std::ranges::nth_element(latency_us, p99);
  return {count / std::chrono::duration<double>(now - start).count(), *p99, cpu_us / count};
}

Figures middle(Figures a, Figures b) {
  return {(a.reads_per_s + b.reads_per_s) / 2, (a.p99_us + b.p99_us) / 2, (a.cpu_us + b.cpu_us) / 2};
}

Figures medians(const std::vector<Figures>& of) {
  const auto median_of = [&](auto member) {
    std::vector<double> values;
    for (const Figures& figures : of) values.push_back(figures.*member);
    return median(values);
  };
  return {median_of(&Figures::reads_per_s), median_of(&Figures::p99_us), median_of(&Figures::cpu_us)};
}

void print(const char* what, const Figures& figures, const char* format) {
  std::printf("%-12s", what);
  std::printf(format, figures.reads_per_s, figures.p99_us, figures.cpu_us);
}

double load() {
  double average = 0;
  return ::getloadavg(&average, 1) == 1 ? average : -1;
}

std::vector<size_t> numbers(const std::string& list) {
  std::vector<size_t> numbers;
  std::istringstream in(list);
  for (std::string number; std::getline(in, number, ',');) numbers.push_back(std::stoul(number));
  return numbers;
}

void compare_with_fio(const std::filesystem::path& parent, const std::vector<size_t>& depths, size_t rounds,
                      unsigned seconds) {
  if (std::system("command -v fio >/dev/null") != 0) give_up("find fio", "apt-get install fio");
  const Files files(parent);
  std::printf("%u segments of %llu MiB, records of 16 KiB; ours: %s; %zu rounds of %u s a measurement\n", segments,
              static_cast<unsigned long long>(kv_segment_bytes >> 20), files.kv().describe().c_str(), rounds, seconds);
  std::mt19937 random(9);
  for (const size_t depth : depths) {
    std::vector<Figures> fio, ours, copied, ours_ratio, copied_ratio;
    const auto ratio = [](Figures a, Figures b) {
      return Figures{a.reads_per_s / b.reads_per_s, a.p99_us / b.p99_us, a.cpu_us / b.cpu_us};
    };
    for (size_t round = 0; round < rounds; ++round) {
      const Figures fio_first = read_by_fio(files, depth, seconds);
      const Figures ours_first = read_by_us(files, depth, seconds, Into::lent, random);
      const Figures copied_first = read_by_us(files, depth, seconds, Into::copied, random);
      copied.push_back(middle(copied_first, read_by_us(files, depth, seconds, Into::copied, random)));
      ours.push_back(middle(ours_first, read_by_us(files, depth, seconds, Into::lent, random)));
      fio.push_back(middle(fio_first, read_by_fio(files, depth, seconds)));
      ours_ratio.push_back(ratio(ours.back(), fio.back()));
      copied_ratio.push_back(ratio(copied.back(), fio.back()));
    }
    constexpr char figures[] = "%9.0f reads/s   p99 %7.0f us   CPU %6.2f us a read\n";
    constexpr char ratios[] = "%9.2f           p99 %7.2f      CPU %6.2f\n";
    std::printf("\ndepth %zu (load average %.1f)\n", depth, load());
    print("fio", medians(fio), figures);
    print("ours", medians(ours), figures);
    print("  to fio", medians(ours_ratio), ratios);
    print("copied", medians(copied), figures);
    print("  to fio", medians(copied_ratio), ratios);
    std::fflush(stdout);
  }
}

// ---- Fetches from a store

class StoreDirectory {
 public:
  explicit StoreDirectory(const std::filesystem::path& parent)
      : path_(parent / ("recalld-bench-kv-fetch-" + std::to_string(getpid()))) {}
  ~StoreDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  StoreDirectory(const StoreDirectory&) = delete;
  StoreDirectory& operator=(const StoreDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  const std::filesystem::path path_;
};

void compare_fetches(const std::filesystem::path& parent, const std::vector<size_t>& counts, size_t rounds) {
  constexpr uint64_t chunks = 20'000;
  constexpr RecordShape shape{.kv_bytes = kv_bytes, .landmark_dim = 128, .state_bytes = 4096};
  const StoreDirectory directory(parent);
  const auto open = [&] {
    StoreOptions options;
    options.shape = shape;
    return must(Store::open(directory.path(), std::move(options)), "open store");
  };
  fill_made_up(*open(), "bench/fetch", shape, chunks);
  const auto store = open();  // what was filled lies in tables now
  const MemoryInfo memory = must(store->memory("bench/fetch"), "find memory");
  const ReadBatches reads(*store, memory, directory.path(), kv_bytes);
  std::printf("\nfetches of random chunks of %llu, us; beside %s; %zu rounds\n",
              static_cast<unsigned long long>(chunks), reads.describe().c_str(), rounds);
  std::mt19937 random(11);
  const auto compare = [&](size_t count, std::chrono::microseconds rest) {
    std::vector<double> plain, fetched, ratios;
    for (size_t round = 0; round < rounds; ++round) {
      const double plain_first = reads.plain_us(count, random, rest);
      const double fetched_first = fetch_us(*store, memory, kv_bytes, count, random, rest);
      fetched.push_back((fetched_first + fetch_us(*store, memory, kv_bytes, count, random, rest)) / 2);
      plain.push_back((plain_first + reads.plain_us(count, random, rest)) / 2);
      ratios.push_back(fetched.back() / plain.back());
    }
    std::printf("%zu chunks, rests of %3lld us: reads %.1f, fetch %.1f, ratio %.2f (load average %.1f)\n", count,
                static_cast<long long>(rest.count()), median(plain), median(fetched), median(ratios), load());
    std::fflush(stdout);
  };
  for (const size_t count : counts)
    for (const std::chrono::microseconds rest : {std::chrono::microseconds(0), std::chrono::microseconds(300)})
      compare(count, rest);
}

}  // namespace

int main(int argc, char** argv) try {
  const size_t rounds = argc > 1 ? std::stoul(argv[1]) : 5;
  const auto seconds = static_cast<unsigned>(argc > 2 ? std::stoul(argv[2]) : 2);
  const std::vector<size_t> depths = numbers(argc > 3 ? argv[3] : "1,8,32,64");
  const std::filesystem::path parent = argc > 4 ? argv[4] : std::filesystem::temp_directory_path();
  const std::vector<size_t> fetches = numbers(argc > 5 ? argv[5] : "1,2,4,8");
  if (!depths.empty()) compare_with_fio(parent, depths, rounds, seconds);
  if (!fetches.empty()) compare_fetches(parent, fetches, rounds);
  return 0;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "kv_read: %s\n", reason.what());
  return 1;
}
