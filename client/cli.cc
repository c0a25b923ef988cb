#include "client/cli.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "base/shorten.h"
#include "client/text.h"

namespace recalld::client {

namespace {

volatile std::sig_atomic_t interrupted = 0;

extern "C" void take_interrupt(int) {
  interrupted = 1;
}

std::string whole_number(const std::string& text, uint64_t least) {
  uint64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error == std::errc() && stop == end && number >= least) return "";
  return "expected a whole number from " + std::to_string(least) + " on, got '" + shortened(text) + "'";
}

}  // namespace

int fail_with(const Error& error, int code) {
  std::fprintf(stderr, "recall: %s\n", printable(error.message).c_str());
  return code;
}

int fail_with(const Error& error) {
  switch (error.kind) {
    case ErrorKind::not_found:
      return fail_with(error, exit_not_found);
    case ErrorKind::invalid_request:
      return fail_with(error, exit_usage);
    default:
      return fail_with(error, exit_error);
  }
}

void warn(std::string_view message) {
  std::fprintf(stderr, "recall: warning: %s\n", printable(message).c_str());
}

void warn(std::span<const Unreadable> damaged) {
  for (const Unreadable& lost : damaged)
    warn("chunks " + std::to_string(lost.first) + " to " + std::to_string(lost.last) +
         (lost.memory.empty() ? "" : " of " + lost.memory) + " are damaged and were not read; run recall verify");
}

int print(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (written) return exit_ok;
  if (errno == EPIPE) std::_Exit(exit_ok);
  return fail_with(system_error("write to standard output", errno));
}

int print_line(const Json& result) {
  const std::string line = result.dump(-1, ' ', false, Json::error_handler_t::replace);
  return print((isatty(STDOUT_FILENO) != 0 ? printable_json(line) : line) + "\n");
}

Expected<Client> connect(const Globals& globals, bool wait_for_ever, std::function<bool()> stop) {
  ClientOptions options;
  options.stop = std::move(stop);
  // Upwards: however short, it is no 0, which means for ever.
  options.reply_timeout =
      std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(globals.timeout_s));
  if (wait_for_ever && !globals.timeout_given) options.reply_timeout = std::chrono::milliseconds(0);
  return Client::connect(globals.socket, std::move(options));
}

bool can_ask() {
  return isatty(STDIN_FILENO) != 0;
}

bool confirmed(const std::string& question) {
  std::fprintf(stderr, "%s [y/N] ", printable(question).c_str());
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

Interrupt::Interrupt() {
  interrupted = 0;
  // Who started the process with Ctrl-C ignored, as nohup and `&` do, does not mean it.
  struct sigaction before {};
  if (sigaction(SIGINT, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) return;
  ours_ = true;
  // Without SA_RESTART, so that a read that waits ends; reset, so that a second Ctrl-C does what it always does.
  struct sigaction action {};
  action.sa_handler = take_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
}

Interrupt::~Interrupt() {
  if (ours_) std::signal(SIGINT, SIG_DFL);
}

bool Interrupt::seen() {
  return interrupted != 0;
}

std::string count_check(const std::string& text) {
  return whole_number(text, 1);
}

std::string index_check(const std::string& text) {
  return whole_number(text, 0);
}

Check number_check(double least, double most) {
  return [=](const std::string& text) -> std::string {
    double number = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    if (error == std::errc() && stop == end && number >= least && number <= most) return "";
    return "expected a number from " + default_text(least) + " to " + default_text(most) + ", got '" + shortened(text) +
           "'";
  };
}

Check word_check(std::vector<std::string> words) {
  return [words = std::move(words)](const std::string& text) -> std::string {
    std::string expected;
    for (const std::string& word : words) {
      if (word == text) return "";
      expected += (expected.empty() ? "" : word == words.back() ? " or " : ", ") + word;
    }
    return "expected " + expected + ", got '" + shortened(text) + "'";
  };
}

Check not_empty(std::string what) {
  return [what = std::move(what)](const std::string& text) {
    return text.empty() ? "expected " + what + ", not an empty text" : "";
  };
}

std::string default_text(double value) {
  std::array<char, 32> text{};
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  return error == std::errc() ? std::string(text.data(), end) : "";
}

}  // namespace recalld::client
