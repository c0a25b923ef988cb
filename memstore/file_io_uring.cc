// Reads through io_uring: a batch costs one system call, and many reads are in flight at a time. Every thread that
// reads has a ring of its own, with which the files that it reads and a buffer are registered: that saves the kernel
// looking the files up and pinning the buffer each time. Writes are plain system calls: K/V is written in slices so
// large that a ring would add nothing.
#include <liburing.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "memstore/file_io_posix.h"

namespace recalld {
namespace {

// What a ring pins counts against RLIMIT_MEMLOCK, 8 MiB by default, and is resident: 4 MiB in sum.
constexpr size_t ring_buffer_bytes = size_t{512} << 10;

constexpr size_t transfer_bytes_max = size_t{1} << 30;  // of one request, whose length has 32 bits

// Best first; a kernel that does not know one refuses it as EINVAL. With deferred task work, completions are made by
// the thread that waits for them, when it waits (since Linux 6.1); with cooperative, it is at least not interrupted
// (5.19).
constexpr std::array<unsigned, 3> set_up_flags{IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                                               IORING_SETUP_COOP_TASKRUN, 0};

// So many are taken before the reads that follow them are submitted. With all that are there, the disk gets its work in
// bursts and rests in between: at depth 32 that was a tenth of the reads.
constexpr unsigned completions_at_once = 2;

// One submission and completion queue. Only the thread that made it may use it, the kernel insists; but any thread may
// destroy it while it is not in use.
class Ring {
 public:
  // buffer: registered, when `registers`; outlives the ring
  static Expected<std::unique_ptr<Ring>> open(ByteSpan buffer, bool registers) {
    std::unique_ptr<Ring> ring(new Ring);
    RECALLD_CHECK(ring->set_up());
    RECALLD_CHECK(ring->try_out());
    if (registers) ring->register_all(buffer);
    return ring;
  }

  ~Ring() {
    if (!is_set_up_) return;
    // The kernel takes a closed ring apart some time later. Its maker gives back at once what others may wait for.
    if (!buffer_.empty()) io_uring_unregister_buffers(&ring_);
    if (files_registered_) io_uring_unregister_files(&ring_);
    io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  bool registers() const { return files_registered_ && !buffer_.empty(); }

  // Queues a read under a tag of the caller's. At most reads_in_flight_max are queued and not yet completed.
  // generation: of the file that the handle stands for now
  void start(uint64_t tag, int handle, uint64_t generation, int descriptor, uint64_t offset, ByteSpan into) {
    io_uring_sqe* const request = free_request();
    const bool fixed_file = is_registered(handle, generation, descriptor);
    const int file = fixed_file ? handle : descriptor;
    const auto bytes = static_cast<unsigned>(std::min(into.size(), transfer_bytes_max));
    if (in_buffer(into))
      io_uring_prep_read_fixed(request, file, into.data(), bytes, offset, 0);
    else
      io_uring_prep_read(request, file, into.data(), bytes, offset);
    if (fixed_file) io_uring_sqe_set_flags(request, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(request, tag);
  }

  // Submits what is queued, without waiting.
  void submit() { check(io_uring_submit(&ring_)); }

  // Submits what is queued, waits for a completion when it `sleeps`, and calls completed(tag, bytes or -errno) for the
  // first few that are there, which may start others. After a signal there may be none.
  template <class Completed>
  void wait(bool sleeps, Completed completed) {
    check(sleeps ? io_uring_submit_and_wait(&ring_, 1) : io_uring_submit_and_get_events(&ring_));
    unsigned head = 0;
    unsigned completions = 0;
    io_uring_cqe* completion = nullptr;
    io_uring_for_each_cqe(&ring_, head, completion) {
      completed(completion->user_data, completion->res);
      if (++completions == completions_at_once) break;
    }
    io_uring_cq_advance(&ring_, completions);
  }

 private:
  Ring() = default;

  // What the kernel said to a submission.
  static void check(int result) {
    if (result == -EAGAIN || result == -EBUSY) {
      std::this_thread::yield();  // the kernel is short of memory or of room for completions; nothing is lost
    } else if (result < 0 && result != -EINTR) {
      // The ring itself is broken. Returning would free buffers that the kernel may still write to.
      spdlog::critical("submit to io_uring: {}", system_error("io_uring_enter", -result).message);
      std::abort();
    }
  }

  Expected<void> set_up() {
    int result = -EINVAL;
    for (size_t i = 0; result == -EINVAL && i < set_up_flags.size(); ++i)
      result = io_uring_queue_init(reads_in_flight_max, &ring_, set_up_flags[i]);
    if (result < 0) return std::unexpected(system_error("set up io_uring", -result));
    is_set_up_ = true;
    return {};
  }

  // A sandbox may let a process make a ring and refuse to let it submit: wait() could not survive that.
  Expected<void> try_out() {
    io_uring_prep_nop(free_request());
    int result = 0;
    do result = io_uring_submit_and_wait(&ring_, 1);
    while (result == -EINTR || result == -EAGAIN);
    if (result < 0) return std::unexpected(system_error("submit to io_uring", -result));
    io_uring_cq_advance(&ring_, io_uring_cq_ready(&ring_));
    return {};
  }

  io_uring_sqe* free_request() {
    io_uring_sqe* const request = io_uring_get_sqe(&ring_);
    if (request == nullptr) std::abort();  // more than reads_in_flight_max were started: our own mistake
    return request;
  }

  void register_all(ByteSpan buffer) {
    files_registered_ = io_uring_register_files_sparse(&ring_, io_files_max) == 0;
    const iovec whole{buffer.data(), buffer.size()};
    if (io_uring_register_buffers(&ring_, &whole, 1) == 0) buffer_ = buffer;
  }

  // Registers the file when the table holds another one under its handle, or none. So a file that was closed may stay
  // in the table, but is never read. A file that cannot be registered is used by its descriptor.
  bool is_registered(int handle, uint64_t generation, int descriptor) {
    uint64_t& registered = registered_generation_[static_cast<size_t>(handle)];
    if (files_registered_ && registered != generation) {
      const auto index = static_cast<unsigned>(handle);
      registered = io_uring_register_files_update(&ring_, index, &descriptor, 1) == 1 ? generation : 0;
    }
    return registered == generation;
  }

  bool in_buffer(ByteSpan data) const {
    return !buffer_.empty() && data.data() >= buffer_.data() &&
           data.data() + data.size() <= buffer_.data() + buffer_.size();
  }

  io_uring ring_{};
  bool is_set_up_ = false;
  bool files_registered_ = false;                               // the table is there
  std::array<uint64_t, io_files_max> registered_generation_{};  // by handle; 0: none
  ByteSpan buffer_;                                             // empty when it is not registered
};

// The rings of one FileIo, each with its buffer. Any thread may call any function.
class Rings : public std::enable_shared_from_this<Rings> {
 public:
  // Fails when the kernel refuses a ring.
  static Expected<std::shared_ptr<Rings>> open() {
    const auto rings = std::make_shared<Rings>();
    RECALLD_TRY(const std::unique_ptr<Ring> first, Ring::open(rings->buffer_of(0), true));
    rings->may_register_ = first->registers();
    rings->all_register_ = first->registers();
    return rings;
  }

  // The calling thread's, made when it has none and closed when it ends. Null when all are taken or the kernel refuses
  // another one.
  Ring* mine();

  void close(const Ring* ring) {
    const std::lock_guard lock(mutex_);
    std::ranges::find(places_, ring, [](const Place& place) { return place.ring.get(); })->ring.reset();
  }

  // The buffer of the calling thread's ring, unless it is lent already.
  AlignedBuffer buffer(size_t bytes) {
    const Ring* const ring = bytes <= ring_buffer_bytes ? mine() : nullptr;
    if (ring == nullptr) return AlignedBuffer(bytes);
    const std::lock_guard lock(mutex_);
    const auto place = std::ranges::find(places_, ring, [](const Place& of) { return of.ring.get(); });
    if (place->lent) return AlignedBuffer(bytes);
    place->lent = true;
    const ByteSpan lent = buffer_of(static_cast<size_t>(place - places_.begin())).first(bytes);
    return {lent, [this, place](std::byte*) {
              const std::lock_guard giving_back(mutex_);
              place->lent = false;
            }};
  }

  bool registers() const { return all_register_; }  // all of them that were made so far

 private:
  struct Place {
    std::unique_ptr<Ring> ring;  // of some thread
    bool lent = false;           // the buffer, which may outlive the ring
  };

  ByteSpan buffer_of(size_t place) const {
    return buffers_.bytes().subspan(place * ring_buffer_bytes, ring_buffer_bytes);
  }

  const AlignedBuffer buffers_{io_rings_max * ring_buffer_bytes};  // outlives the rings, which pin it
  bool may_register_ = false;                                      // the first ring was allowed to
  std::atomic<bool> all_register_ = false;
  std::mutex mutex_;  // guards what follows
  bool warned_ = false;
  std::array<Place, io_rings_max> places_;
};

// Which ring of which FileIo this thread has. It closes them when it ends; a FileIo that is destroyed first closes its
// own, which is why these pointers are weak, and the rings shared.
class RingsOfThread {
 public:
  RingsOfThread() = default;
  ~RingsOfThread() {
    for (const Held& held : held_) {
      if (const auto rings = held.rings.lock()) rings->close(held.ring);
    }
  }
  RingsOfThread(const RingsOfThread&) = delete;
  RingsOfThread& operator=(const RingsOfThread&) = delete;

  Ring* find(const Rings* rings) const {
    // The weak pointer keeps the address of rings that are gone from being used again, as make_shared made them.
    const auto held = std::ranges::find(held_, rings, &Held::address);
    return held == held_.end() ? nullptr : held->ring;
  }

  void add(std::weak_ptr<Rings> rings, const Rings* address, Ring* ring) {
    std::erase_if(held_, [](const Held& of) { return of.rings.expired(); });
    held_.push_back({std::move(rings), address, ring});
  }

 private:
  struct Held {
    std::weak_ptr<Rings> rings;
    const Rings* address = nullptr;
    Ring* ring = nullptr;
  };
  std::vector<Held> held_;
};

thread_local RingsOfThread rings_of_thread;

Ring* Rings::mine() {
  if (Ring* const ring = rings_of_thread.find(this)) return ring;
  const std::lock_guard lock(mutex_);
  const auto place = std::ranges::find_if(places_, [](const Place& of) { return of.ring == nullptr; });
  if (place == places_.end()) return nullptr;
  Expected<std::unique_ptr<Ring>> ring =
      Ring::open(buffer_of(static_cast<size_t>(place - places_.begin())), may_register_);
  if (!ring) {
    if (!warned_) spdlog::warn("a thread reads segment files without io_uring: {}", ring.error().message);
    warned_ = true;
    return nullptr;
  }
  if (!(*ring)->registers()) all_register_ = false;
  place->ring = *std::move(ring);
  rings_of_thread.add(weak_from_this(), this, place->ring.get());
  return place->ring.get();
}

class UringFileIo final : public PosixFileIo {
 public:
  UringFileIo(DirectIo direct, std::shared_ptr<Rings> rings) : PosixFileIo(direct), rings_(std::move(rings)) {}

  // An exception must not unwind the stack while the kernel writes to buffers of the caller.
  void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) noexcept override {
    using Clock = std::chrono::steady_clock;
    Ring* const ring = rings_->mine();
    if (ring == nullptr) return PosixFileIo::stream(next, done, wait);
    const bool stays_awake = wait.awake.count() > 0;
    const auto sleeps_from = stays_awake ? Clock::now() + wait.awake : Clock::time_point{};
    bool has_begun = !wait.begun;

    struct Flight {
      uint64_t tag = 0;
      Transfer left;
    };
    std::array<Flight, reads_in_flight_max> flights;
    std::array<size_t, reads_in_flight_max> grounded;  // the first `free` are numbers of flights that are not under way
    size_t free = 0;
    while (free < grounded.size()) {
      grounded[free] = free;
      ++free;
    }
    const auto start = [&](size_t flight) {
      const Transfer& left = flights[flight].left;
      const File& of = file(left.file);
      ring->start(flight, left.file, of.generation, of.descriptor.get(), left.offset, {left.data, left.bytes});
    };
    while (true) {
      while (free > 0) {
        const std::optional<FileRead> read = next();
        if (!read) break;
        if (read->into.empty()) {
          done(read->tag, {});
          continue;
        }
        const size_t flight = grounded[--free];
        flights[flight] = {read->tag, {false, read->file, read->offset, read->into.data(), read->into.size()}};
        start(flight);
      }
      if (free == grounded.size()) return;
      if (!std::exchange(has_begun, true)) {
        ring->submit();
        wait.begun();
      }
      const bool sleeps = !stays_awake || Clock::now() >= sleeps_from;
      ring->wait(sleeps, [&](uint64_t flight, int result) {
        Expected<void> advanced = advance(flights[flight].left, result);
        if (advanced && flights[flight].left.bytes > 0) return start(flight);
        grounded[free++] = flight;
        done(flights[flight].tag, std::move(advanced));
      });
    }
  }

  AlignedBuffer buffer(size_t bytes) override { return rings_->buffer(bytes); }

  std::string describe() const override {
    return "io_uring, " + describe_caching() + (rings_->registers() ? "" : ", not registered");
  }

 private:
  const std::shared_ptr<Rings> rings_;
};

}  // namespace

Expected<std::unique_ptr<FileIo>> open_file_io_uring(DirectIo direct) {
  RECALLD_TRY(std::shared_ptr<Rings> rings, Rings::open());
  return std::make_unique<UringFileIo>(direct, std::move(rings));
}

}  // namespace recalld
