// The real recalld, started on a directory of the test's choice. The test defines RECALLD_BINARY.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/client.h"
#include "tests/support/checkpoints.h"

namespace recalld {

// For a test that names what is found or answered; without it the daemon takes the checkpoint that comes with it.
inline std::vector<std::string> with_starter(std::vector<std::string> flags = {}) {
  flags.insert(flags.end(), {"--model", starter_checkpoint().string()});
  return flags;
}

class DaemonProcess {
 public:
  // Starts recalld with its data in DIRECTORY/data and its socket DIRECTORY/socket, unless `flags` name others, and its
  // log in DIRECTORY/log. No configuration file of the user is read.
  explicit DaemonProcess(std::filesystem::path directory, const std::vector<std::string>& flags = {})
      : directory_(std::move(directory)) {
    std::vector<std::string> words{"env", "XDG_CONFIG_HOME=" + directory_.string(), RECALLD_BINARY};
    const auto set_unless_given = [&](const std::string& flag, const std::filesystem::path& path) {
      if (std::ranges::find(flags, flag) == flags.end()) words.insert(words.end(), {flag, path.string()});
    };
    set_unless_given("--data", directory_ / "data");
    set_unless_given("--socket", socket());
    words.insert(words.end(), flags.begin(), flags.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);

    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, (directory_ / "log").c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    const int error = posix_spawnp(&pid_, "env", &files, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    if (error != 0) throw std::runtime_error("start recalld: error " + std::to_string(error));
  }
  ~DaemonProcess() {
    if (pid_ > 0) kill();
  }
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  std::filesystem::path socket() const { return directory_ / "socket"; }

  // A connection, once the daemon answers; throws with the log when it exits instead, or does nothing for a minute.
  client::Client connect() {
    for (const auto start = Clock::now(); Clock::now() - start < std::chrono::minutes(1);) {
      if (auto client = client::Client::connect(socket()); client && client->health()) return *std::move(client);
      if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
        pid_ = -1;
        throw std::runtime_error("recalld exited: " + log());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    throw std::runtime_error("recalld does not answer: " + log());
  }

  // Ends the daemon and returns its exit status, or minus the signal that ended it.
  int stop() { return end(SIGTERM); }
  int kill() { return end(SIGKILL); }

  // The exit status of a daemon that ends by itself.
  int wait() { return end(0); }

  std::string log() const {
    std::stringstream text;
    text << std::ifstream(directory_ / "log").rdbuf();
    return text.str();
  }

 private:
  using Clock = std::chrono::steady_clock;

  int end(int signal) {
    if (pid_ < 0) throw std::runtime_error("recalld is not running");  // and -1 would signal every process of the user
    ::kill(pid_, signal);
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  std::filesystem::path directory_;
  pid_t pid_ = -1;
};

}  // namespace recalld
