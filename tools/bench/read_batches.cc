#include "tools/bench/read_batches.h"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <nlohmann/json.hpp>

#include "memstore/file_io.h"
#include "memstore/kv_file.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/gpu_setup.h"

namespace recalld::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t warm_up = 50, batches_timed = 1000;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

void rest_awake(std::chrono::microseconds rest) {
  for (const auto end = Clock::now() + rest; Clock::now() < end;) continue;
}

// A ring that its owner submits one batch at a time to.
class Ring {
 public:
  explicit Ring(unsigned entries) : error_(-io_uring_queue_init(entries, &ring_, 0)) {}
  ~Ring() {
    if (error_ == 0) io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  int error() const { return error_; }

  void add(int file, std::byte* into, size_t bytes, uint64_t offset) {
    io_uring_sqe* const request = io_uring_get_sqe(&ring_);
    if (request == nullptr) give_up("read a batch", "the ring has too few entries");
    io_uring_prep_read(request, file, into, static_cast<unsigned>(bytes), offset);
  }
  // Whether all reads of the batch, each of so many bytes, came back whole.
  bool run(size_t count, size_t bytes) {
    int submitted = 0;
    do submitted = io_uring_submit_and_wait(&ring_, static_cast<unsigned>(count));
    while (submitted == -EINTR);
    if (submitted < 0) return false;
    bool whole = true;
    for (size_t i = 0; i < count; ++i) {
      io_uring_cqe* completion = nullptr;
      int waited = 0;
      do waited = io_uring_wait_cqe(&ring_, &completion);
      while (waited == -EINTR);
      if (waited < 0) return false;
      whole = whole && completion->res == static_cast<int>(bytes);
      io_uring_cqe_seen(&ring_, completion);
    }
    return whole;
  }

 private:
  io_uring ring_{};
  const int error_;
};

// A sandbox may let a process make a ring and refuse to let it submit.
bool uring_works() {
  Ring ring(1);
  if (ring.error() != 0) return false;
  const Descriptor zeros(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  std::byte byte{};
  ring.add(zeros.get(), &byte, 1, 0);
  return ring.run(1, 1);
}

}  // namespace

double fetch_us(const Store& store, const MemoryInfo& memory, uint32_t kv_bytes, size_t count, std::mt19937& random,
                std::chrono::microseconds rest) {
  const size_t bytes = count * kv_bytes;
  const AlignedBuffer buffer((bytes + io_alignment - 1) / io_alignment * io_alignment);
  std::uniform_int_distribution<uint64_t> any(0, memory.encoded_chunks - 1);
  std::vector<uint64_t> chunks(count);
  std::vector<double> us;
  for (size_t i = 0; i < warm_up + batches_timed; ++i) {
    for (uint64_t& chunk : chunks) chunk = any(random);
    rest_awake(rest);
    const auto start = Clock::now();
    must(store.fetch(memory.id, chunks, buffer.bytes().first(bytes), nullptr, {.reads = {.awake = read_awake_max}}),
         "fetch chunks");
    if (i >= warm_up) us.push_back(us_since(start));
  }
  return median(us);
}

ReadBatches::ReadBatches(const Store& store, const MemoryInfo& memory, const std::filesystem::path& data,
                         uint32_t kv_bytes)
    : record_bytes_((kv_bytes + io_alignment - 1) / io_alignment * io_alignment), uring_(uring_works()) {
  for (uint64_t chunk = 0; chunk < memory.encoded_chunks; ++chunk) {
    const ChunkEntry entry = must(store.chunk(memory.id, chunk), "find a chunk");
    Segment& segment = segments_[entry.segment];
    if (segment.file.get() < 0) {
      segment.path = data / "kv" / segment_name(entry.segment);
      segment.file = Descriptor(::open(segment.path.c_str(), O_RDONLY | O_CLOEXEC));
      if (segment.file.get() < 0) give_up("open a segment", segment.path.string() + ": " + std::strerror(errno));
      const int flags = ::fcntl(segment.file.get(), F_GETFL);
      direct_ = direct_ && flags != -1 && ::fcntl(segment.file.get(), F_SETFL, flags | O_DIRECT) == 0;
    }
    const uint64_t offset = uint64_t{entry.slot} * record_bytes_;
    segment.bytes = std::max(segment.bytes, offset + record_bytes_);
    places_.push_back({segment.file.get(), offset});
  }
  if (places_.empty()) give_up("find chunks to read", "none is encoded");
}

std::string ReadBatches::describe() const {
  return std::string(uring_ ? "io_uring, " : "reads one after another, ") + (direct_ ? "O_DIRECT" : "page cache");
}

double ReadBatches::plain_us(size_t count, std::mt19937& random, std::chrono::microseconds rest) const {
  const AlignedBuffer buffer(count * record_bytes_);
  Ring ring(static_cast<unsigned>(count));
  std::uniform_int_distribution<size_t> any(0, places_.size() - 1);
  std::vector<double> us;
  for (size_t batch = 0; batch < warm_up + batches_timed; ++batch) {
    std::vector<Place> places(count);
    for (Place& place : places) place = places_[any(random)];
    rest_awake(rest);
    const auto start = Clock::now();
    bool whole = true;
    for (size_t i = 0; i < count; ++i) {
      std::byte* const into = buffer.bytes().data() + i * record_bytes_;
      const auto offset = static_cast<off_t>(places[i].offset);
      if (uring_)
        ring.add(places[i].file, into, record_bytes_, places[i].offset);
      else
        whole = whole && ::pread(places[i].file, into, record_bytes_, offset) == static_cast<ssize_t>(record_bytes_);
    }
    if (uring_) whole = ring.run(count, record_bytes_);
    if (!whole) give_up("read records", describe() + ": not all came back whole");
    if (batch >= warm_up) us.push_back(us_since(start));
  }
  return median(us);
}

std::optional<double> ReadBatches::fio_us(size_t count, unsigned seconds) const {
  if (std::system("command -v fio >/dev/null") != 0) return std::nullopt;
  // Where nothing was written a read costs no disk: only segments that are as full as the fullest are read, as far as
  // they hold records.
  uint64_t bytes = 0;
  for (const auto& [number, segment] : segments_) bytes = std::max(bytes, segment.bytes);
  std::string names;
  size_t files = 0;
  for (const auto& [number, segment] : segments_) {
    if (segment.bytes != bytes) continue;
    names += (names.empty() ? "" : ":") + segment.path.string();
    ++files;
  }
  // A batch is submitted at once, and the next one when all of it has come.
  std::ostringstream command;
  command << "fio --name=read_batches --readonly --rw=randread --bs=" << record_bytes_ << " --filesize=" << bytes
          << " --size=" << files * bytes << " --direct=" << direct_ << " --numjobs=1 --thread --time_based"
          << " --runtime=" << seconds << " --norandommap=1 --randrepeat=0 --file_service_type=random";
  if (uring_)
    command << " --ioengine=io_uring --fixedbufs=1 --registerfiles=1 --iodepth=" << count
            << " --iodepth_batch_submit=" << count << " --iodepth_batch_complete_min=" << count
            << " --iodepth_batch_complete_max=" << count;
  else
    command << " --ioengine=psync";
  command << " --output-format=json '--filename=" << names << "'";
  std::string output;
  FILE* const pipe = ::popen(command.str().c_str(), "r");
  if (pipe == nullptr) give_up("start fio", std::strerror(errno));
  char part[4096];
  for (size_t n; (n = std::fread(part, 1, sizeof part, pipe)) > 0;) output.append(part, n);
  if (::pclose(pipe) != 0) give_up("run fio", output);
  const auto report = nlohmann::json::parse(output.substr(std::min(output.size(), output.find('{'))), nullptr, false);
  if (report.is_discarded()) give_up("run fio: this is not JSON", output);
  const auto& job = report.at("jobs").at(0);
  if (job.at("error") != 0 || job.at("read").at("total_ios") == 0) give_up("run fio", output);
  return 1e6 * static_cast<double>(count) / job.at("read").at("iops").get<double>();
}

}  // namespace recalld::bench
