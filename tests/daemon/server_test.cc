#include "daemon/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include <boost/asio/post.hpp>

#include "tests/support/raw_client.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// Answers each line by its own text, except "later", which is kept, and "big N", which gets N bytes.
class ServerTest : public ::testing::Test {
 protected:
  void start(ServerLimits limits = {}) {
    limits.connection.line_bytes_max = 1 << 20;
    auto server = Server::open(io_, socket(), service(), limits);
    ASSERT_TRUE(server) << server.error().message;
    server_ = *std::move(server);
    server_->start();
    thread_ = std::thread([this] { io_.run(); });
  }
  // A clean stop; true when it came about by itself within `patience`.
  bool stop(std::chrono::milliseconds patience = 20s) {
    std::promise<void> stopped;
    boost::asio::post(io_, [&] { server_->stop([&stopped] { stopped.set_value(); }); });
    auto future = stopped.get_future();
    const bool in_time = future.wait_for(patience) == std::future_status::ready;
    if (!in_time) {
      boost::asio::post(io_, [this] { server_->stop_now(); });
      future.wait();
    }
    thread_.join();
    return in_time;
  }
  void TearDown() override {
    if (thread_.joinable()) stop();
    const std::lock_guard lock(mutex_);
    kept_.clear();
  }

  std::filesystem::path socket() const { return directory_.path() / "run/s"; }

  LineService service() {
    return {.serve =
                [this](std::string line, const Client& client, Respond respond) {
                  ++served_;
                  if (line == "tell") {
                    std::thread([&client] {
                      client.notify("first");
                      client.notify("second");
                    }).join();
                    respond("told");
                  } else if (line == "later" || line == "long") {
                    if (line == "long") client.set_aside();
                    const std::lock_guard lock(mutex_);
                    kept_.push_back(std::move(respond));
                  } else if (line.starts_with("big ")) {
                    respond(std::string(std::stoul(line.substr(4)), 'x'));
                  } else {
                    respond(line == "quiet" ? "" : line);
                  }
                },
            .closed = [this](uint64_t connection) { closed_ = connection; },
            .overloaded = [this] { return overloaded_.load(); },
            .overlong_reply = "too long",
            .refusal = "too many"};
  }
  void wait_until_kept(size_t count) {
    for (int i = 0; i < 2000; ++i) {
      {
        const std::lock_guard lock(mutex_);
        if (kept_.size() == count) return;
      }
      std::this_thread::sleep_for(5ms);
    }
    ADD_FAILURE() << count << " lines did not arrive";
  }
  // From a thread of its own, as the engine answers. Returns how many there were.
  size_t answer_kept(const std::string& text) {
    size_t count = 0;
    std::thread([&] {
      const std::lock_guard lock(mutex_);
      count = kept_.size();
      for (Respond& respond : kept_) respond(text);
      kept_.clear();
    }).join();
    return count;
  }

  // Answers the next `count` lines as they come.
  void answer_further(size_t count, const std::string& text) {
    for (int i = 0; i < 2000 && count > 0; ++i) {
      count -= std::min(count, answer_kept(text));
      std::this_thread::sleep_for(5ms);
    }
    EXPECT_EQ(count, 0u) << "lines did not arrive";
  }

  void expect_served() {
    RawClient client(socket());
    ASSERT_TRUE(client.send("still there\n"));
    EXPECT_EQ(client.line(), "still there");
  }

  TempDir directory_;
  std::mutex mutex_;
  std::vector<Respond> kept_;
  std::atomic<int> served_ = 0;
  std::atomic<uint64_t> closed_ = 0;  // the connection that closed last
  std::atomic<bool> overloaded_ = false;
  boost::asio::io_context io_{1};
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

TEST_F(ServerTest, TheSocketIsTheOwnersAlone) {
  start();
  struct stat status {};
  ASSERT_EQ(::stat(socket().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  ASSERT_EQ(::stat(socket().parent_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
}

TEST_F(ServerTest, LinesAreAnsweredHoweverTheyArrive) {
  start();
  RawClient client(socket());
  for (const char c : std::string("by\nbytes\r\n\n")) ASSERT_TRUE(client.send({&c, 1}));
  EXPECT_EQ(client.line(), "by");
  EXPECT_EQ(client.line(), "bytes");
  std::string many;
  for (int i = 0; i < 1000; ++i) many += std::to_string(i) + "\n";
  ASSERT_TRUE(client.send(many));
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(client.line(), std::to_string(i));
}

TEST_F(ServerTest, ARequestWithoutAReplyGetsNone) {
  start();
  RawClient client(socket());
  ASSERT_TRUE(client.send("quiet\nloud\n"));
  EXPECT_EQ(client.line(), "loud");
}

TEST_F(ServerTest, ASlowRequestHoldsUpNoOther) {
  start();
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\nquick\n"));
  EXPECT_EQ(client.line(), "quick");
  answer_kept("at last");
  EXPECT_EQ(client.line(), "at last");
}

TEST_F(ServerTest, NotificationsArriveInTheirOrderBeforeTheReply) {
  start();
  RawClient client(socket());
  ASSERT_TRUE(client.send("tell\n"));
  EXPECT_EQ(client.line(), "first");
  EXPECT_EQ(client.line(), "second");
  EXPECT_EQ(client.line(), "told");
}

TEST_F(ServerTest, WhatTakesLongKeepsNoFurtherLineFromBeingServed) {
  start();
  RawClient client(socket());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(client.send("long\n"));  // more than a new connection may have in flight
  wait_until_kept(20);
  ASSERT_TRUE(client.send("quick\n"));
  EXPECT_EQ(client.line(), "quick");
  answer_kept("at last");
  for (int i = 0; i < 20; ++i) EXPECT_EQ(client.line(), "at last");
  expect_served();
}

TEST_F(ServerTest, AClientThatIsGoneIsNoticedWhileItsRequestsAreUnderWay) {
  start();
  for (const char* line : {"long\n", "later\n", "long\nlater\nlater\n"}) {
    const uint64_t before = closed_;
    { RawClient(socket()).send(line); }
    for (int i = 0; i < 2000 && closed_ == before; ++i) std::this_thread::sleep_for(5ms);
    EXPECT_EQ(closed_, before + 1) << line;
  }
  answer_kept("nobody is there");
  expect_served();
}

TEST_F(ServerTest, TheServiceLearnsWhichConnectionHasClosed) {
  start();
  { RawClient first(socket()); }
  for (int i = 0; i < 2000 && closed_ != 1; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(closed_, 1u);
  { RawClient second(socket()); }
  for (int i = 0; i < 2000 && closed_ != 2; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(closed_, 2u);
}

TEST_F(ServerTest, AnOverlongLineIsRefusedAndTheNextOneServed) {
  start();
  RawClient client(socket());
  const std::string part(1 << 20, 'x');
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(client.send(part));
  ASSERT_TRUE(client.send("\ngood\n"));
  EXPECT_EQ(client.line(), "too long");
  EXPECT_EQ(client.line(), "good");
}

TEST_F(ServerTest, AClientThatSendsNoMoreStillGetsItsReplies) {
  start();
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\ntail without an end"));
  client.send_no_more();
  wait_until_kept(1);
  answer_kept("here you are");
  EXPECT_EQ(client.line(), "here you are");
  EXPECT_EQ(client.line(), std::nullopt);
  EXPECT_EQ(served_, 1);
}

TEST_F(ServerTest, AClientThatHangsUpHarmsNobody) {
  start();
  for (int i = 0; i < 50; ++i) {
    RawClient client(socket());
    ASSERT_TRUE(client.send("big 1000000\nlater\nhalf a li"));
  }
  wait_until_kept(50);
  answer_kept("nobody is there");
  expect_served();
}

TEST_F(ServerTest, RequestsInFlightAreBounded) {
  ServerLimits limits;
  limits.connection.requests_in_flight_max = 4;
  start(limits);
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\nlater\nlater\nlater\nfifth\n"));
  wait_until_kept(4);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(served_, 4);
  answer_kept("done");
  std::vector<std::string> replies;
  for (int i = 0; i < 5; ++i) replies.push_back(client.line().value_or("hung up"));
  EXPECT_EQ(replies[0], "done");
  EXPECT_THAT(replies, UnorderedElementsAre("done", "done", "done", "done", "fifth"));
}

TEST_F(ServerTest, AClientSendsAheadAsFarAsItsRepliesLetExpect) {
  ServerLimits limits;
  limits.connection.reply_bytes_queued_max = 400'000;
  start(limits);
  RawClient client(socket());
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "later\n";
  ASSERT_TRUE(client.send(lines));
  wait_until_kept(4);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(served_, 4);
  answer_kept("small");
  wait_until_kept(8);  // as many as were answered more
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(served_, 12);
  answer_kept(std::string(100'000, 'x'));
  for (int i = 0; i < 12; ++i) EXPECT_TRUE(client.line());
  wait_until_kept(4);  // of which 400,000 bytes are expected
  std::this_thread::sleep_for(50ms);
  EXPECT_LE(served_, 12 + 5);
  answer_further(8, "done");
  for (int i = 0; i < 8; ++i) EXPECT_EQ(client.line(), "done");
}

TEST_F(ServerTest, BytesOfRequestsInFlightAreBounded) {
  ServerLimits limits;
  limits.connection.request_bytes_in_flight_max = 10;  // two lines of "later" fill it
  start(limits);
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\nlater\nlater\n"));
  wait_until_kept(2);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(served_, 2);
  answer_kept("done");
  wait_until_kept(1);
  answer_kept("done");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.line(), "done");
}

TEST_F(ServerTest, AClientThatDoesNotReadIsNotServedOn) {
  ServerLimits limits;
  limits.connection.reply_bytes_queued_max = 1 << 20;
  start(limits);
  RawClient client(socket());
  std::string requests;
  for (int i = 0; i < 1000; ++i) requests += "big 100000\n";
  EXPECT_LT(client.send_until_held_up(requests, 64 << 20), size_t{8} << 20);
  // What the socket's own buffer holds comes on top of the bound.
  EXPECT_LT(served_, 10 + 64 + 10);
  const int served_unread = served_;
  for (int i = 0; i < served_unread; ++i) ASSERT_THAT(*client.line(), SizeIs(100'000));
  ASSERT_THAT(*client.line(), SizeIs(100'000));  // it goes on once the client reads
  expect_served();
}

TEST_F(ServerTest, RepliesBeyondEveryBoundEndTheConnection) {
  ServerLimits limits;
  limits.connection.reply_bytes_unread_max = 4 << 20;
  limits.connection.requests_in_flight_first = 8;
  start(limits);
  RawClient client(socket());
  std::string requests;
  for (int i = 0; i < 8; ++i) requests += "later\n";
  ASSERT_TRUE(client.send(requests));
  wait_until_kept(8);
  answer_kept(std::string(1 << 20, 'x'));
  size_t replies = 0;
  while (client.line()) ++replies;
  EXPECT_LT(replies, 8u);
  expect_served();
}

TEST_F(ServerTest, OneReplyPassesWhateverItsSize) {
  ServerLimits limits;
  limits.connection.reply_bytes_unread_max = 1 << 10;
  start(limits);
  RawClient client(socket());
  ASSERT_TRUE(client.send("big 5000000\n"));
  EXPECT_THAT(client.line().value_or(""), SizeIs(5'000'000));
}

TEST_F(ServerTest, AClientThatReadsNothingForTooLongIsHungUpOn) {
  ServerLimits limits;
  limits.connection.write_timeout = 200ms;
  start(limits);
  RawClient client(socket());
  ASSERT_TRUE(client.send("big 5000000\n"));
  std::this_thread::sleep_for(600ms);
  EXPECT_EQ(client.line(), std::nullopt);
  expect_served();
}

TEST_F(ServerTest, NothingIsServedWhileTheServiceIsOverloaded) {
  start();
  overloaded_ = true;
  RawClient client(socket());
  ASSERT_TRUE(client.send("patience\n"));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(served_, 0);
  overloaded_ = false;
  EXPECT_EQ(client.line(), "patience");
}

TEST_F(ServerTest, AClientBeyondTheBoundIsToldSoAndHungUpOn) {
  ServerLimits limits;
  limits.connections_max = 2;
  start(limits);
  RawClient first(socket());
  RawClient second(socket());
  ASSERT_TRUE(first.send("a\n") && second.send("b\n"));
  EXPECT_EQ(first.line(), "a");
  EXPECT_EQ(second.line(), "b");
  RawClient third(socket());
  EXPECT_EQ(third.line(), "too many");
  EXPECT_EQ(third.line(), std::nullopt);
  first.hang_up();
  for (int i = 0; i < 200; ++i) {
    RawClient again(socket());
    if (again.send("c\n") && again.line() == "c") return;
    std::this_thread::sleep_for(10ms);
  }
  FAIL() << "the place of a client that left was not given to another";
}

TEST_F(ServerTest, WhoSendsOneLineAtATimeIsServedHoweverManyOthersSendAhead) {
  ServerLimits limits;
  limits.requests_in_flight_many = 8;
  limits.connection.requests_in_flight_first = 64;
  start(limits);
  RawClient first(socket());
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "later\n";
  ASSERT_TRUE(first.send(lines));
  wait_until_kept(8);
  RawClient second(socket());
  ASSERT_TRUE(second.send(lines));
  wait_until_kept(10);  // its fair share of two
  expect_served();
  EXPECT_EQ(served_, 11);
  answer_further(40, "done");
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(first.line(), "done");
    EXPECT_EQ(second.line(), "done");
  }
}

TEST_F(ServerTest, RequestsOfClientsThatHungUpCountToo) {
  ServerLimits limits;
  limits.requests_in_flight_max = 20;
  start(limits);
  for (int i = 0; i < 10; ++i) {
    RawClient client(socket());
    ASSERT_TRUE(client.send("later\nlater\nlater\n"));
  }
  wait_until_kept(20);
  RawClient last(socket());
  ASSERT_TRUE(last.send("patience\n"));
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(served_, 20);
  answer_kept("nobody is there");
  EXPECT_EQ(last.line(), "patience");
  wait_until_kept(10);
}

TEST_F(ServerTest, LongLinesInFlightAreBoundedTogetherAndShortOnesPass) {
  ServerLimits limits;
  limits.request_bytes_in_flight_max = 10;  // two lines of "later" fill it
  limits.short_line_bytes_max = 5;
  start(limits);
  RawClient first(socket());
  RawClient second(socket());
  RawClient third(socket());
  ASSERT_TRUE(first.send("later\n") && second.send("later\n"));
  wait_until_kept(2);
  ASSERT_TRUE(third.send("longer\n"));
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(served_, 2);
  ASSERT_TRUE(first.send("short\n"));
  EXPECT_EQ(first.line(), "short");
  answer_kept("done");
  EXPECT_EQ(third.line(), "longer");
}

TEST_F(ServerTest, WhenAllPlacesAreTakenTheOneThatDawdlesAmidALineGivesWay) {
  ServerLimits limits;
  limits.connections_max = 3;
  limits.silence_max = 300ms;
  start(limits);
  RawClient idle(socket());
  ASSERT_TRUE(idle.send("a\n"));
  EXPECT_EQ(idle.line(), "a");
  RawClient slow(socket());
  RawClient busy(socket());
  ASSERT_TRUE(busy.send("later\n"));
  wait_until_kept(1);
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(slow.send("x"));  // never silent for long, and never done
    std::this_thread::sleep_for(10ms);
  }
  RawClient newcomer(socket());
  ASSERT_TRUE(newcomer.send("b\n"));
  EXPECT_EQ(newcomer.line(), "b");
  EXPECT_EQ(slow.line(), "too many");
  EXPECT_EQ(slow.line(), std::nullopt);
  // The next one takes the place of the idle one, and none that of a client whose request is under way.
  RawClient another(socket());
  ASSERT_TRUE(another.send("c\n"));
  EXPECT_EQ(another.line(), "c");
  EXPECT_EQ(idle.line(), "too many");
  answer_kept("done");
  EXPECT_EQ(busy.line(), "done");
}

TEST_F(ServerTest, AnIdleConnectionIsKeptWhileThereAreOtherPlaces) {
  ServerLimits limits;
  limits.connections_max = 3;
  limits.silence_max = 50ms;
  start(limits);
  RawClient idle(socket());
  RawClient amid_line(socket());
  ASSERT_TRUE(amid_line.send("half "));
  std::this_thread::sleep_for(200ms);
  expect_served();
  ASSERT_TRUE(idle.send("a\n") && amid_line.send("and half\n"));
  EXPECT_EQ(idle.line(), "a");
  EXPECT_EQ(amid_line.line(), "half and half");
}

TEST_F(ServerTest, AClientThatLeavesAReplyUnreadGivesItsPlaceAway) {
  ServerLimits limits;
  limits.connections_max = 2;
  limits.silence_max = 200ms;
  start(limits);
  RawClient deaf(socket());
  ASSERT_TRUE(deaf.send("big 5000000\n"));
  std::this_thread::sleep_for(250ms);
  RawClient fresh(socket());
  ASSERT_TRUE(fresh.send("a\n"));
  EXPECT_EQ(fresh.line(), "a");
  expect_served();
  EXPECT_EQ(deaf.line(), std::nullopt);  // in the middle of the reply, into which no farewell is mixed
  ASSERT_TRUE(fresh.send("b\n"));
  EXPECT_EQ(fresh.line(), "b");
}

TEST_F(ServerTest, LongLinesWaitForRoomAndAreAllServed) {
  ServerLimits limits;
  limits.long_line_bytes_max = 1 << 20;
  limits.long_line_time_max = 20s;
  start(limits);
  std::vector<std::thread> clients;
  std::atomic<int> right = 0;
  for (int id = 0; id < 16; ++id)
    clients.emplace_back([&, id] {
      RawClient client(socket());
      const std::string text(1'000'000, static_cast<char>('a' + id));
      for (int i = 0; i < 4; ++i)
        if (client.send(text) && client.send("\n") && client.line() == text) ++right;
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 64);
}

TEST_F(ServerTest, LongLinesWithoutAnEndTakeNoMoreThanTheirRoomAndHoldUpNoShortOnes) {
  ServerLimits limits;
  limits.long_line_bytes_max = 1 << 20;
  limits.long_line_time_max = 20s;
  start(limits);
  const std::string part(1'000'000, 'x');
  std::deque<RawClient> hogs;
  size_t taken = 0;
  for (int i = 0; i < 6; ++i) taken += hogs.emplace_back(socket()).send_until_held_up(part, part.size());
  // One of them fills the room; the others are held up with what the sockets hold.
  EXPECT_LT(taken, size_t{4'500'000});
  const auto start_time = std::chrono::steady_clock::now();
  expect_served();
  EXPECT_LT(std::chrono::steady_clock::now() - start_time, 2s);
}

TEST_F(ServerTest, LongLinesWithoutAnEndGiveWayToOthers) {
  ServerLimits limits;
  limits.long_line_bytes_max = 1 << 20;
  limits.long_line_time_max = 300ms;
  start(limits);
  const std::string part(1'000'000, 'x');
  std::deque<RawClient> hogs;
  for (int i = 0; i < 6; ++i) hogs.emplace_back(socket()).send_until_held_up(part, part.size());
  RawClient honest(socket());
  ASSERT_TRUE(honest.send(part) && honest.send("\n"));
  EXPECT_EQ(honest.line(), part);
  expect_served();
}

TEST_F(ServerTest, UnreadRepliesOfAllClientsTogetherAreBounded) {
  ServerLimits limits;
  limits.reply_bytes_unread_max = 8 << 20;
  start(limits);
  std::deque<RawClient> modest;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(modest.emplace_back(socket()).send("big 1000000\n"));
  while (served_ < 5) std::this_thread::sleep_for(5ms);
  RawClient greedy(socket());
  ASSERT_TRUE(greedy.send("big 6000000\n"));
  EXPECT_EQ(greedy.line(), std::nullopt);
  for (RawClient& client : modest) EXPECT_THAT(client.line().value_or(""), SizeIs(1'000'000));
}

TEST_F(ServerTest, StopFinishesWhatWasAccepted) {
  start();
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\n"));
  wait_until_kept(1);
  std::thread answering([this] {
    std::this_thread::sleep_for(100ms);
    answer_kept("finished");
  });
  EXPECT_TRUE(stop());
  answering.join();
  EXPECT_EQ(client.line(), "finished");
  EXPECT_EQ(client.line(), std::nullopt);
  EXPECT_FALSE(std::filesystem::exists(socket()));
  EXPECT_FALSE(RawClient(socket()).connected());
}

TEST_F(ServerTest, StopWaitsNoLongerThanItsBound) {
  ServerLimits limits;
  limits.stop_time_max = 100ms;
  start(limits);
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\n"));
  wait_until_kept(1);
  EXPECT_TRUE(stop());
  EXPECT_EQ(client.line(), std::nullopt);
  answer_kept("too late");
}

TEST_F(ServerTest, ASecondSignalEndsAStopAtOnce) {
  start();
  RawClient client(socket());
  ASSERT_TRUE(client.send("later\n"));
  wait_until_kept(1);
  EXPECT_FALSE(stop(50ms));
  EXPECT_EQ(client.line(), std::nullopt);
}

TEST_F(ServerTest, ALiveSocketIsNotTakenOver) {
  start();
  boost::asio::io_context io;
  const auto second = Server::open(io, socket(), service());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind, ErrorKind::busy);
  EXPECT_THAT(second.error().message, HasSubstr("another daemon listens on " + socket().string()));
  expect_served();
}

TEST_F(ServerTest, AStaleSocketIsTakenOver) {
  std::filesystem::create_directories(socket().parent_path());
  const int dead = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket().native().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(dead, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ::close(dead);  // the file stays, as after SIGKILL
  start();
  expect_served();
}

TEST_F(ServerTest, AFileThatIsNoSocketIsLeftAlone) {
  std::filesystem::create_directories(socket().parent_path());
  std::ofstream(socket()) << "notes";
  const auto server = Server::open(io_, socket(), service());
  ASSERT_FALSE(server);
  EXPECT_EQ(server.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(server.error().message, HasSubstr("--socket"));
  EXPECT_EQ(std::filesystem::file_size(socket()), 5u);
}

TEST_F(ServerTest, APathTooLongForASocketIsRefusedWithTheBound) {
  const auto server = Server::open(io_, "/tmp/" + std::string(200, 'x'), service());
  ASSERT_FALSE(server);
  EXPECT_THAT(server.error().message, HasSubstr("has 205 bytes; a socket's has 1 to 107"));
}

TEST_F(ServerTest, AStopLeavesASocketAloneThatAnotherDaemonMadeSince) {
  start();
  std::filesystem::remove(socket());
  std::ofstream(socket()) << "another's";
  EXPECT_TRUE(stop());
  EXPECT_TRUE(std::filesystem::exists(socket()));
}

TEST_F(ServerTest, ManyClientsAtOnceAreAllServed) {
  start();
  std::vector<std::thread> clients;
  std::atomic<int> right = 0;
  for (int id = 0; id < 32; ++id)
    clients.emplace_back([&, id] {
      RawClient client(socket());
      for (int i = 0; i < 100; ++i) {
        const std::string text = std::to_string(id) + ":" + std::to_string(i);
        if (client.send(text + "\n") && client.line() == text) ++right;
      }
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 3200);
}

}  // namespace
}  // namespace recalld
