// Transfers through io_uring: a batch costs one system call, and many of its reads are in flight at a time. Files and
// the buffers that are lent out are registered, which saves the kernel looking them up and pinning them each time.
#include <liburing.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <optional>
#include <thread>

#include "memstore/file_io_posix.h"

namespace recalld {
namespace {

constexpr size_t rings_max = 4;       // calls that transfer at a time; further ones wait
constexpr unsigned queue_depth = 64;  // transfers in flight a ring

// Every ring pins the arena, and all of that counts against RLIMIT_MEMLOCK, 8 MiB by default: 4 MiB in sum.
constexpr size_t lent_buffers = 4;
constexpr size_t lent_buffer_bytes = size_t{256} << 10;

constexpr size_t transfer_bytes_max = size_t{1} << 30;  // of one request, whose length has 32 bits

// One submission and completion queue, used by one thread at a time; only (un)register_file comes from any thread.
class Ring {
 public:
  static Expected<std::unique_ptr<Ring>> open(ByteSpan arena) {
    std::unique_ptr<Ring> ring(new Ring);
    RECALLD_CHECK(ring->set_up(arena));
    return ring;
  }

  ~Ring() {
    if (is_set_up_) io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  bool registers() const { return files_registered_ && !arena_.empty(); }

  // A file that cannot be registered is used by its descriptor.
  void register_file(int handle, int descriptor) {
    const auto index = static_cast<unsigned>(handle);
    file_registered_[index] = files_registered_ && io_uring_register_files_update(&ring_, index, &descriptor, 1) == 1;
  }
  void unregister_file(int handle) {
    const auto index = static_cast<unsigned>(handle);
    const int none = -1;
    if (file_registered_[index]) io_uring_register_files_update(&ring_, index, &none, 1);
    file_registered_[index] = false;
  }

  // Queues a transfer under a number of the caller's. At most queue_depth are queued and not yet completed.
  void start(size_t number, bool write, int handle, int descriptor, uint64_t offset, ByteSpan data) {
    io_uring_sqe* const request = io_uring_get_sqe(&ring_);
    const bool fixed_file = file_registered_[static_cast<size_t>(handle)];
    const int of = fixed_file ? handle : descriptor;
    const auto bytes = static_cast<unsigned>(std::min(data.size(), transfer_bytes_max));
    if (in_arena(data)) {
      if (write)
        io_uring_prep_write_fixed(request, of, data.data(), bytes, offset, 0);
      else
        io_uring_prep_read_fixed(request, of, data.data(), bytes, offset, 0);
    } else {
      if (write)
        io_uring_prep_write(request, of, data.data(), bytes, offset);
      else
        io_uring_prep_read(request, of, data.data(), bytes, offset);
    }
    if (fixed_file) io_uring_sqe_set_flags(request, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(request, number);
  }

  // Submits what is queued, waits for completions, and calls completed(number, bytes or -errno) for each. Returns how
  // many there were; after a signal there may be none.
  template <class Completed>
  size_t wait(Completed completed) {
    const int result = io_uring_submit_and_wait(&ring_, 1);
    if (result == -EAGAIN || result == -EBUSY) {
      std::this_thread::yield();  // the kernel is short of memory or of room for completions; nothing is lost
    } else if (result < 0 && result != -EINTR) {
      // The ring itself is broken. Returning would free buffers that the kernel may still write to.
      spdlog::critical("submit to io_uring: {}", system_error("io_uring_enter", -result).message);
      std::abort();
    }
    unsigned head = 0;
    unsigned completions = 0;
    io_uring_cqe* completion = nullptr;
    io_uring_for_each_cqe(&ring_, head, completion) {
      completed(static_cast<size_t>(completion->user_data), completion->res);
      ++completions;
    }
    io_uring_cq_advance(&ring_, completions);
    return completions;
  }

 private:
  Ring() = default;

  Expected<void> set_up(ByteSpan arena) {
    // Completions are only looked for by the thread that waits for them: it need not be interrupted (since Linux 5.19).
    int result = io_uring_queue_init(queue_depth, &ring_, IORING_SETUP_COOP_TASKRUN);
    if (result == -EINVAL) result = io_uring_queue_init(queue_depth, &ring_, 0);
    if (result < 0) return std::unexpected(system_error("set up io_uring", -result));
    is_set_up_ = true;
    files_registered_ = io_uring_register_files_sparse(&ring_, io_files_max) == 0;
    const iovec whole{arena.data(), arena.size()};
    if (io_uring_register_buffers(&ring_, &whole, 1) == 0) arena_ = arena;
    return {};
  }

  bool in_arena(ByteSpan data) const {
    return !arena_.empty() && data.data() >= arena_.data() &&
           data.data() + data.size() <= arena_.data() + arena_.size();
  }

  io_uring ring_{};
  bool is_set_up_ = false;
  bool files_registered_ = false;                     // the table is there
  std::array<bool, io_files_max> file_registered_{};  // by handle; written only while nobody else holds the handle
  ByteSpan arena_;                                    // empty when it could not be registered
};

class UringFileIo final : public PosixFileIo {
 public:
  static Expected<std::unique_ptr<FileIo>> open(DirectIo direct) {
    std::unique_ptr<UringFileIo> io(new UringFileIo(direct));
    RECALLD_TRY(std::unique_ptr<Ring> first, Ring::open(io->arena_.bytes()));
    io->rings_.push_back(std::move(first));
    while (io->rings_.size() < rings_max) {
      Expected<std::unique_ptr<Ring>> another = Ring::open(io->arena_.bytes());
      if (!another) break;  // the kernel spares no more: fewer calls go on at a time
      io->rings_.push_back(*std::move(another));
    }
    for (const auto& ring : io->rings_) io->free_rings_.push_back(ring.get());
    return io;
  }

  Expected<int> create(const std::filesystem::path& path, uint64_t bytes) override {
    return registered(PosixFileIo::create(path, bytes));
  }
  Expected<int> open(const std::filesystem::path& path) override { return registered(PosixFileIo::open(path)); }
  void close(int handle) override {
    for (const auto& ring : rings_) ring->unregister_file(handle);
    PosixFileIo::close(handle);
  }

  AlignedBuffer buffer(size_t bytes) override {
    const std::lock_guard lock(mutex_);
    if (bytes > lent_buffer_bytes || free_buffers_.empty()) return AlignedBuffer(bytes);
    std::byte* const data = free_buffers_.back();
    free_buffers_.pop_back();
    return {ByteSpan(data, bytes), [this](std::byte* lent) {
              const std::lock_guard giving_back(mutex_);
              free_buffers_.push_back(lent);
            }};
  }

  std::string describe() const override {
    bool registers = true;
    for (const auto& ring : rings_) registers = registers && ring->registers();
    return "io_uring, " + describe_caching() + (registers ? "" : ", not registered");
  }

 protected:
  Expected<void> transfer(std::span<Transfer> transfers) override {
    const auto give_back = [this](Ring* ring) { give_back_ring(ring); };
    const std::unique_ptr<Ring, decltype(give_back)> ring(take_ring(), give_back);
    std::vector<size_t> unfinished;  // numbers of transfers of which something is left
    size_t started = 0;              // transfers that were started, the first ones
    size_t in_flight = 0;
    std::optional<Error> failure;
    while (true) {
      while (!failure && in_flight < queue_depth && (!unfinished.empty() || started < transfers.size())) {
        size_t number = started;
        if (unfinished.empty()) {
          ++started;
        } else {
          number = unfinished.back();
          unfinished.pop_back();
        }
        const Transfer& next = transfers[number];
        ring->start(number, next.write, next.file, file(next.file).descriptor.get(), next.offset,
                    {next.data, next.bytes});
        ++in_flight;
      }
      if (in_flight == 0) break;
      in_flight -= ring->wait([&](size_t number, int result) {
        const Expected<void> advanced = advance(transfers[number], result);
        if (!advanced && !failure) failure = advanced.error();
        if (advanced && transfers[number].bytes > 0) unfinished.push_back(number);
      });
    }
    if (failure) return std::unexpected(*std::move(failure));
    return {};
  }

 private:
  explicit UringFileIo(DirectIo direct) : PosixFileIo(direct), arena_(lent_buffers * lent_buffer_bytes) {
    for (size_t i = 0; i < lent_buffers; ++i) free_buffers_.push_back(arena_.bytes().data() + i * lent_buffer_bytes);
  }

  Expected<int> registered(Expected<int> handle) {
    if (handle) {
      for (const auto& ring : rings_) ring->register_file(*handle, file(*handle).descriptor.get());
    }
    return handle;
  }

  Ring* take_ring() {
    std::unique_lock lock(mutex_);
    ring_given_back_.wait(lock, [this] { return !free_rings_.empty(); });
    Ring* const ring = free_rings_.back();
    free_rings_.pop_back();
    return ring;
  }

  void give_back_ring(Ring* ring) {
    {
      const std::lock_guard lock(mutex_);
      free_rings_.push_back(ring);
    }
    ring_given_back_.notify_one();
  }

  const AlignedBuffer arena_;  // of the buffers that are lent out; outlives the rings, which pin it
  std::vector<std::unique_ptr<Ring>> rings_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable ring_given_back_;
  std::vector<Ring*> free_rings_;
  std::vector<std::byte*> free_buffers_;
};

}  // namespace

Expected<std::unique_ptr<FileIo>> open_file_io_uring(DirectIo direct) {
  return UringFileIo::open(direct);
}

}  // namespace recalld
