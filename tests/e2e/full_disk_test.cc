// The real recalld on a disk that is full: a file system of a few MiB in memory, which only root may mount.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>

#include "client/client.h"
#include "tests/support/daemon_process.h"
#include "tests/support/files_with.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using client::Client;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr uint64_t mib = uint64_t{1} << 20;
constexpr char fact[] = "The code for the lamp room is 60417.";
constexpr char question[] = "What is the code for the lamp room?";
constexpr char secret[] = "Quillon keeps the marzipan ledger under the third slab.";

template <class T>
T must(Expected<T> value) {
  if (!value) throw std::runtime_error(value.error().message);
  return *std::move(value);
}

std::string log_entry(size_t number) {
  return "Entry " + std::to_string(number) + ": the tide turned at " + std::to_string(number % 12) + " and " +
         std::to_string(number % 5) + " boats came in with herring, rope and wet sails.";
}

class FullDisk : public ::testing::Test {
 protected:
  void mount(uint64_t bytes) {
    std::filesystem::create_directory(disk());
    const std::string options = "size=" + std::to_string(bytes);
    if (::mount("tmpfs", disk().c_str(), "tmpfs", 0, options.c_str()) != 0)
      GTEST_SKIP() << "mount a small file system: " << std::strerror(errno) << "; needs root";
    mounted_ = true;
  }
  ~FullDisk() override {
    if (mounted_) ::umount2(disk().c_str(), MNT_DETACH);
  }

  const std::filesystem::path& directory() const { return directory_.path(); }
  std::filesystem::path disk() const { return directory_.path() / "disk"; }
  std::vector<std::string> flags() const {
    return with_starter({"--data", (disk() / "data").string(), "--memory-budget", "64MiB"});
  }

  uint64_t free_bytes() const {
    struct statvfs of {};
    ::statvfs(disk().c_str(), &of);
    return static_cast<uint64_t>(of.f_bavail) * of.f_frsize;
  }
  // Takes all that is free.
  void fill() const {
    std::ofstream out(disk() / "filler", std::ios::binary | std::ios::app);
    const std::string page(4096, 'x');
    while (out.write(page.data(), static_cast<std::streamsize>(page.size())).flush()) {
    }
  }
  void make_room() const { std::filesystem::remove(disk() / "filler"); }

  Expected<client::AppendReply> append(Client& client, const std::string& memory, std::vector<std::string> contents,
                                       bool searchable = false, size_t padding_bytes = 0) {
    client::AppendRequest request;
    request.memory = memory;
    request.wait_searchable = searchable;
    for (std::string& content : contents) {
      client::Turn turn;
      turn.content = std::move(content);
      if (padding_bytes > 0) turn.metadata["padding"] = noise(padding_bytes);
      request.turns.push_back(std::move(turn));
    }
    return client.append(request);
  }
  // Metadata takes room and is not encoded.
  std::string noise(size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += static_cast<char>('!' + 1 + random_() % 56);
    return text;
  }
  std::string found(Client& client, const std::string& memory, const std::string& query) {
    client::SearchRequest request;
    request.memory = memory;
    request.query = query;
    std::string text;
    for (const auto& result : must(client.search(request)).results) text += result.text;
    return text;
  }
  std::vector<std::string> turns(Client& client, const std::string& memory) {
    std::vector<std::string> contents;
    client::PageRequest request;
    request.memory = memory;
    while (true) {
      auto page = must(client.turns(request));
      for (auto& turn : page.turns) contents.push_back(std::move(turn.turn.content));
      if (!page.next_cursor) return contents;
      request.cursor = *page.next_cursor;
    }
  }
  // Whether it becomes so within half a minute: a daemon looks for room once a second.
  static bool soon(const std::function<bool()>& is_so) {
    for (int i = 0; i < 300; ++i) {
      if (is_so()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return false;
  }

 private:
  TempDir directory_;
  bool mounted_ = false;
  std::mt19937_64 random_{20261126};
};

TEST_F(FullDisk, ASmallDiskHoldsAStoreAsLongAsThereIsRoomForWhatIsStored) {
  mount(48 * mib);
  if (IsSkipped()) return;
  DaemonProcess daemon(directory(), flags());
  Client client = daemon.connect();
  std::vector<std::string> log;
  for (size_t i = 0; i < 60; ++i) log.push_back(i == 20 ? fact : log_entry(i));
  const auto reply = append(client, "m", log, true);
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_THAT(found(client, "m", question), HasSubstr("60417"));
  EXPECT_EQ(must(client.health()).problem, "");
  EXPECT_GT(must(client.memory("m")).encoded_chunks, 20u);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

TEST_F(FullDisk, AppendsAreRefusedNothingIsLostAndAllGoesOnWhenThereIsRoomAgain) {
  mount(48 * mib);
  if (IsSkipped()) return;
  std::vector<std::string> acknowledged;
  {
    DaemonProcess daemon(directory(), flags());
    Client client = daemon.connect();
    for (size_t i = 0; i < 60; ++i) acknowledged.push_back(i == 20 ? fact : log_entry(i));
    must(append(client, "m", acknowledged, true));
    fill();
    size_t refused = 0;
    for (size_t i = 60; i < 1000 && refused < 3; ++i) {
      const std::string content = log_entry(i);
      const auto reply = append(client, "m", {content}, false, 15'000);
      if (reply) {
        acknowledged.push_back(content);
        continue;
      }
      EXPECT_EQ(reply.error().kind, ErrorKind::full) << reply.error().message;
      EXPECT_THAT(reply.error().message, HasSubstr("make room"));
      ++refused;
    }
    EXPECT_EQ(refused, 3u);
    EXPECT_EQ(turns(client, "m"), acknowledged);
    EXPECT_THAT(found(client, "m", question), HasSubstr("60417"));

    make_room();
    EXPECT_TRUE(soon([&] {
      const auto reply = append(client, "m", {"There is room again."});
      if (reply) acknowledged.emplace_back("There is room again.");
      return reply.has_value();
    }));
    EXPECT_TRUE(soon([&] { return must(client.health()).waiting_chunks == 0; })) << must(client.health()).problem;
    EXPECT_EQ(must(client.health()).problem, "");
    fill();
    daemon.kill();
  }
  fill();
  DaemonProcess daemon(directory(), flags());
  Client client = daemon.connect();
  EXPECT_EQ(turns(client, "m"), acknowledged);
  EXPECT_THAT(found(client, "m", "Is there room?"), HasSubstr("room again"));
  make_room();
  EXPECT_TRUE(soon([&] { return append(client, "m", {"And once more."}).has_value(); }));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

TEST_F(FullDisk, WhatIsForgottenOnAFullDiskIsGoneAtOnceAndErasedWhenThereIsRoom) {
  mount(48 * mib);
  if (IsSkipped()) return;
  DaemonProcess daemon(directory(), flags());
  Client client = daemon.connect();
  std::vector<std::string> log;
  for (size_t i = 0; i < 80; ++i) log.push_back(i == 20 ? fact : i == 30 ? secret : log_entry(i));
  must(append(client, "m", log, true));
  must(append(client, "other", log, true));
  fill();
  auto last = append(client, "m", {log_entry(0)}, false, 15'000);
  while (last) last = append(client, "m", {log_entry(0)}, false, 15'000);
  ASSERT_EQ(last.error().kind, ErrorKind::full) << last.error().message;
  ASSERT_LT(free_bytes(), 64 * 1024);

  client::ForgetRequest request;
  request.memory = "m";
  request.turns = {{30, 30}};
  request.wait = false;
  const auto receipt = client.forget(request);
  ASSERT_TRUE(receipt) << receipt.error().message << daemon.log();
  EXPECT_EQ(receipt->turn_count, 1u);
  const auto removed = client.delete_memory("other", false);
  ASSERT_TRUE(removed) << removed.error().message << daemon.log();
  EXPECT_EQ(client.memory("other").error().kind, ErrorKind::not_found);
  for (const auto& turn : must(client.turns({.memory = "m"})).turns) EXPECT_NE(turn.turn.content, secret);
  EXPECT_THAT(found(client, "m", question), HasSubstr("60417"));

  make_room();
  const auto all_done = [&] {
    const client::Json jobs = must(client.stats())["jobs"];
    return std::ranges::all_of(jobs, [](const client::Json& job) { return job["state"] == "done"; });
  };
  EXPECT_TRUE(soon(all_done)) << must(client.stats()).dump() << daemon.log();
  EXPECT_THAT(files_with(disk() / "data", "marzipan ledger"), IsEmpty());
  EXPECT_TRUE(soon([&] { return must(client.health()).waiting_chunks == 0; })) << must(client.health()).problem;
  EXPECT_THAT(found(client, "m", question), HasSubstr("60417"));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

}  // namespace
}  // namespace recalld
