#include "tools/bench/daemon_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

extern char** environ;

namespace recalld::bench {

using Clock = std::chrono::steady_clock;

DaemonProcess::DaemonProcess(const std::filesystem::path& binary, const std::filesystem::path& data,
                             std::vector<std::string> flags)
    : socket_(data.string() + ".sock") {
  std::vector<std::string> words = {binary.string(),  "--data",      data.string(), "--socket",
                                    socket_.string(), "--log-level", "warn"};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  const auto start = Clock::now();
  if (const int error = posix_spawn(&pid_, binary.c_str(), nullptr, nullptr, arguments.data(), environ))
    give_up("start recalld", std::to_string(error));
  while (true) {
    if (auto client = client::Client::connect(socket_); client && client->health()) break;
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      give_up("start recalld", "it exited; its message stands above");
    }
    if (Clock::now() - start > std::chrono::minutes(2)) {
      stop();
      give_up("start recalld", "no answer within two minutes");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  seconds_to_first_answer_ = std::chrono::duration<double>(Clock::now() - start).count();
}

DaemonProcess::~DaemonProcess() {
  stop();
}

void DaemonProcess::stop() {
  if (pid_ < 0) return;
  kill(pid_, SIGTERM);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    std::fprintf(stderr, "recalld did not stop cleanly (status %d)\n", status);
}

client::Client DaemonProcess::connect() const {
  return must(client::Client::connect(socket_, {.reply_timeout = std::chrono::milliseconds(0)}), "connect");
}

uint64_t DaemonProcess::resident_bytes() const {
  return status_bytes("VmRSS:");
}

uint64_t DaemonProcess::resident_bytes_max() const {
  return status_bytes("VmHWM:");
}

uint64_t DaemonProcess::status_bytes(const char* wanted) const {
  std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string key;
    uint64_t kib = 0;
    if (words >> key >> kib && key == wanted) return kib << 10;
  }
  return 0;
}

std::filesystem::path built_recalld() {
  const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  for (const auto& candidate :
       {here / "recalld", here.parent_path() / "recalld", here.parent_path().parent_path() / "recalld"})
    if (std::filesystem::exists(candidate)) return candidate;
  give_up("find recalld", "it is not beside " + here.string() + "; build the target recalld first");
}

void give_up(const char* what, const std::string& why) {
  throw GaveUp(std::string(what) + ": " + why);
}

}  // namespace recalld::bench
