// A client of the daemon's socket that sends what it likes, well-formed or not.
#pragma once

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace recalld {

class RawClient {
 public:
  explicit RawClient(const std::filesystem::path& path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.native().copy(address.sun_path, sizeof address.sun_path - 1);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    const timeval patience{20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  ~RawClient() { hang_up(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void hang_up() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void hang_up_under_way() { ::shutdown(fd_, SHUT_RDWR); }  // while other threads send or wait for a line
  void send_no_more() { ::shutdown(fd_, SHUT_WR); }

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // Bytes that the daemon takes until it lets the client wait for half a second.
  size_t send_until_held_up(std::string_view bytes, size_t bytes_max) {
    const timeval patience{0, 500'000};
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    size_t total = 0;
    while (total < bytes_max) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent > 0) total += static_cast<size_t>(sent);
      if (sent < static_cast<ssize_t>(bytes.size())) return total;
    }
    return total;
  }
  // The next line, or nothing when the daemon hung up (or said nothing for 20 s).
  std::optional<std::string> line() {
    while (true) {
      if (const size_t end = received_.find('\n'); end != received_.npos) {
        std::string line = received_.substr(0, end);
        received_.erase(0, end + 1);
        return line;
      }
      char buffer[64 << 10];
      const ssize_t got = ::recv(fd_, buffer, sizeof buffer, 0);
      if (got <= 0) return std::nullopt;
      received_.append(buffer, static_cast<size_t>(got));
    }
  }

 private:
  int fd_;
  bool connected_ = false;
  std::string received_;
};

}  // namespace recalld
