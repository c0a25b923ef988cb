// Backups of a store that is in use.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <csignal>
#include <fstream>
#include <thread>

#include "memstore/store.h"
#include "tests/support/fake_model.h"
#include "tests/support/files_with.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

class StoreBackupTest : public ::testing::Test {
 protected:
  static std::string said(uint64_t number) {
    return "Page " + std::to_string(number) + " of the pilot's book: " + std::string(40 + number % 90, 'w');
  }
  static Expected<MemoryId> append(Store& store, const std::string& memory, uint64_t first, uint64_t count) {
    AppendBatch batch{.memory = memory, .turns = {}, .operation_id = {}, .operation_digest = {}, .now_us = 9};
    for (uint64_t i = first; i < first + count; ++i)
      batch.turns.push_back(
          FakeModel::tokenise({.role = Role::user, .name = {}, .content = said(i), .time_us = 5, .metadata = {}}));
    RECALLD_TRY(const auto replies, store.append({&batch, 1}));
    RECALLD_TRY(const Appended reply, replies.at(0));
    return reply.id;
  }
  void SetUp() override {
    store_ = FakeModel::open(data());
    id_ = append(*store_, "m", 0, 60).value();
    ASSERT_TRUE(FakeModel::settle(*store_, id_));
  }
  std::filesystem::path data() const { return directory_.path() / "data"; }
  std::filesystem::path copy() const { return directory_.path() / "copy"; }
  std::filesystem::path part() const { return directory_.path() / "copy.part"; }

  // The store in `directory` has these turns, first to last, and every chunk that it says is encoded reads back.
  static void expect_whole(const std::filesystem::path& directory, uint64_t turns_min, uint64_t chunks_min) {
    const auto store = FakeModel::open(directory);
    const auto info = store->memory("m");
    ASSERT_TRUE(info) << info.error().message;
    EXPECT_GE(info->turns, turns_min);
    EXPECT_GE(info->encoded_chunks, chunks_min);
    const auto turns = store->turns(info->id, 0, 100'000, 64 << 20);
    ASSERT_TRUE(turns) << turns.error().message;
    ASSERT_EQ(turns->size(), info->turns);
    for (uint64_t i = 0; i < turns->size(); ++i) EXPECT_EQ((*turns)[i].value.content, said(i));
    FakeModel model;
    std::vector<std::byte> kv(FakeModel::kv_bytes);
    for (uint64_t chunk = 0; chunk < info->encoded_chunks; ++chunk) {
      model.read(store->tokens(info->id, chunk * chunk_tokens, chunk_tokens).value());
      const auto fetched = store->fetch(info->id, std::array{chunk}, kv);
      ASSERT_TRUE(fetched) << fetched.error().message;
      const auto expected = model.kv(), landmark = model.landmark();
      EXPECT_EQ(as_text(kv), as_text(std::as_bytes(std::span(expected)))) << chunk;
      const auto stored = store->landmark(info->id, chunk);
      ASSERT_TRUE(stored) << stored.error().message;
      EXPECT_EQ(as_text(std::as_bytes(std::span(*stored))), as_text(std::as_bytes(std::span(landmark)))) << chunk;
    }
    // It goes on as a store does.
    ASSERT_TRUE(append(*store, "m", info->turns, 20));
    ASSERT_TRUE(FakeModel::settle(*store, info->id));
  }

  const TempDir directory_;
  std::unique_ptr<Store> store_;
  MemoryId id_ = 0;
};

TEST_F(StoreBackupTest, IsAStoreOfItsOwnThatOutlivesTheOriginal) {
  const auto made = store_->backup(copy());
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_GT(made->files, 4u);
  EXPECT_GT(made->bytes, 0u);
  EXPECT_LE(made->shared_bytes, made->bytes);
  struct stat status {};
  ASSERT_EQ(::stat(copy().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
  for (const auto& file : std::filesystem::recursive_directory_iterator(copy())) {
    ASSERT_EQ(::stat(file.path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0077, 0u) << file.path();
    if (file.is_regular_file()) {
      EXPECT_EQ(status.st_nlink, 1u) << file.path();
    }
  }
  EXPECT_FALSE(std::filesystem::exists(part()));
  store_.reset();
  std::filesystem::remove_all(data());
  expect_whole(copy(), 60, 10);
}

TEST_F(StoreBackupTest, KeepsTheHolesOfSegmentsAsHoles) {
  for (const std::filesystem::path& to : {copy(), directory_.path() / "again"}) {
    ASSERT_TRUE(store_->backup(to));
    struct stat status {};
    ASSERT_EQ(::stat((to / "kv" / "000000.seg").c_str(), &status), 0);
    EXPECT_EQ(status.st_size, 64 << 20);
    EXPECT_LT(status.st_blocks * 512, 8 << 20);  // some hundred KiB are written
  }
}

TEST_F(StoreBackupTest, TakenWhileAppendsAndEncodingsGoOnHoldsAllThatWasAcknowledgedBefore) {
  std::atomic<bool> stop = false, pause = false;
  std::atomic<uint64_t> acknowledged = 60, encoded = 0;
  std::thread writer([&] {
    while (!stop) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (pause) continue;
      ASSERT_TRUE(append(*store_, "m", acknowledged, 7));
      acknowledged += 7;
    }
  });
  std::thread encoder([&] {
    while (!stop) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (pause) continue;
      ASSERT_TRUE(FakeModel::encode(*store_, store_->memory(id_)->serving, 3));
      encoded = store_->memory(id_)->encoded_chunks;
    }
  });
  for (int round = 0; round < 5; ++round) {
    const std::filesystem::path to = directory_.path() / ("copy" + std::to_string(round));
    const uint64_t turns_before = acknowledged, chunks_before = encoded;
    BackupOptions slow;
    slow.proceed = [](const std::filesystem::path&) -> Expected<void> {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // lets the others go on between two files
      return {};
    };
    const auto made = store_->backup(to, slow);
    ASSERT_TRUE(made) << made.error().message;
    EXPECT_GT(acknowledged, turns_before) << "nothing went on meanwhile";
    pause = true;  // the check takes longer than the backup
    expect_whole(to, turns_before, chunks_before);
    pause = false;
  }
  stop = true;
  writer.join();
  encoder.join();
}

TEST_F(StoreBackupTest, ForgettingWaitsForItAndDoesNotTouchItAfterwards) {
  std::thread eraser;
  std::atomic<bool> erased = false;
  BackupOptions options;
  options.proceed = [&](const std::filesystem::path& file) -> Expected<void> {
    if (file.string().ends_with("000000.seg")) {
      // The snapshot of the catalog is taken, its records are not copied yet.
      EXPECT_TRUE(store_->forget(id_, std::array{TurnRange{0, 58}}));
      eraser = std::thread([&] {
        EXPECT_TRUE(FakeModel::settle(*store_, id_));
        erased = true;
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      EXPECT_FALSE(erased);
    }
    return {};
  };
  const auto made = store_->backup(copy(), options);
  ASSERT_TRUE(eraser.joinable());
  eraser.join();
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_TRUE(erased);
  EXPECT_EQ(store_->turns(id_, 0, 100, 1 << 20)->size(), 1u);
  expect_whole(copy(), 60, 10);
}

TEST_F(StoreBackupTest, LeavesNothingBehindWhereverItFails) {
  uint64_t files = 0;
  for (uint64_t failing = 0;; ++failing) {
    uint64_t at = 0;
    BackupOptions options;
    options.proceed = [&](const std::filesystem::path&) -> Expected<void> {
      if (at++ == failing) return fail(ErrorKind::full, "no space left");
      return {};
    };
    const auto made = store_->backup(copy(), options);
    EXPECT_FALSE(std::filesystem::exists(part()));
    if (made) break;
    EXPECT_EQ(made.error().kind, ErrorKind::full);
    EXPECT_FALSE(std::filesystem::exists(copy()));
    ++files;
  }
  EXPECT_GT(files, 4u);
  expect_whole(copy(), 60, 10);
}

TEST_F(StoreBackupTest, WritesThatFailEndItWithoutATrace) {
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 1 << 20;  // below a segment
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto made = store_->backup(copy());
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, ignored);
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().message, HasSubstr("000000.seg"));
  EXPECT_FALSE(std::filesystem::exists(copy()));
  EXPECT_FALSE(std::filesystem::exists(part()));
  ASSERT_TRUE(store_->backup(copy()));
  expect_whole(copy(), 60, 10);
}

TEST_F(StoreBackupTest, IsRefusedBeforeTheFirstByteWhenThereIsNoRoom) {
  BackupOptions options;
  options.reflink = false;
  options.free_bytes = [](const std::filesystem::path&) -> Expected<uint64_t> { return (1 << 20) + 4096; };
  const auto made = store_->backup(copy(), options);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::full);
  EXPECT_THAT(made.error().message, HasSubstr("make room"));
  EXPECT_FALSE(std::filesystem::exists(part()));
  options.free_bytes = [](const std::filesystem::path&) -> Expected<uint64_t> { return 32 << 20; };  // holes count not
  const auto fits = store_->backup(copy(), options);
  ASSERT_TRUE(fits) << fits.error().message;
  EXPECT_EQ(fits->shared_bytes, 0u);
  expect_whole(copy(), 60, 10);
}

TEST_F(StoreBackupTest, RemovesWhatABackupThatCrashedLeftAndNothingElse) {
  std::filesystem::create_directories(part() / "catalog");
  std::ofstream(part() / "catalog" / "CURRENT") << "half";
  ASSERT_TRUE(store_->backup(copy()));
  EXPECT_FALSE(std::filesystem::exists(part()));
  expect_whole(copy(), 60, 10);

  const std::filesystem::path other = directory_.path() / "other";
  std::filesystem::create_directories(other.string() + ".part");
  std::ofstream(other.string() + ".part/diary.txt") << "mine";
  const auto made = store_->backup(other);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(made.error().message, HasSubstr("diary.txt"));
  EXPECT_TRUE(std::filesystem::exists(other.string() + ".part/diary.txt"));
}

TEST_F(StoreBackupTest, RefusesADirectoryThatItCouldNotMakeAnew) {
  const auto why = [&](const std::filesystem::path& directory) {
    const auto made = store_->backup(directory);
    EXPECT_FALSE(made);
    if (made) return std::string();
    EXPECT_EQ(made.error().kind, ErrorKind::invalid_request);
    return made.error().message;
  };
  EXPECT_THAT(why("copy"), HasSubstr("absolute"));
  EXPECT_THAT(why(directory_.path()), HasSubstr("exists already"));
  EXPECT_THAT(why(directory_.path() / "no" / "copy"), HasSubstr("parent"));
  EXPECT_THAT(why(data() / "copy"), HasSubstr("inside the store"));
  std::filesystem::create_directory_symlink(data(), directory_.path() / "link");
  EXPECT_THAT(why(directory_.path() / "link" / "kv" / "copy"), HasSubstr("inside the store"));
  EXPECT_TRUE(store_->backup(copy() / ""));  // a slash at the end is none too many
  EXPECT_TRUE(std::filesystem::exists(copy() / "FORMAT"));
}

}  // namespace
}  // namespace recalld
