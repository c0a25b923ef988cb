// A daemon for tests of the client: answers the lines of one connection as the test says.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/temp_dir.h"

namespace recalld::client {

class FakeDaemon {
 public:
  // What to send back for a line, verbatim; hang_up closes the connection afterwards.
  struct Answer {
    std::string bytes;
    bool hang_up = false;
  };
  using Script = std::function<Answer(const std::string& line)>;

  explicit FakeDaemon(Script script) : script_(std::move(script)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket().native().copy(address.sun_path, sizeof(address.sun_path) - 1);
    listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(listener_, 8) != 0) {
      throw std::runtime_error("listen on a temporary socket");
    }
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeDaemon() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }

  std::filesystem::path socket() const { return directory_.path() / "s"; }
  std::vector<std::string> lines() const {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

 private:
  void serve() {
    for (;;) {
      const int connection = accept(listener_, nullptr, nullptr);
      if (connection < 0) return;
      answer_lines(connection);
      close(connection);
    }
  }

  void answer_lines(int connection) {
    std::string received;
    char buffer[4096];
    for (ssize_t got = 0; (got = read(connection, buffer, sizeof(buffer))) > 0;) {
      received.append(buffer, static_cast<size_t>(got));
      for (size_t end = received.find('\n'); end != std::string::npos; end = received.find('\n')) {
        const std::string line = received.substr(0, end);
        received.erase(0, end + 1);
        {
          const std::lock_guard lock(mutex_);
          lines_.push_back(line);
        }
        const Answer answer = script_(line);
        if (send(connection, answer.bytes.data(), answer.bytes.size(), MSG_NOSIGNAL) < 0 || answer.hang_up) return;
      }
    }
  }

  TempDir directory_;
  Script script_;
  int listener_ = -1;
  mutable std::mutex mutex_;
  std::vector<std::string> lines_;
  std::thread thread_;
};

}  // namespace recalld::client
