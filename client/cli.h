// What the commands of recall share: the options before the command, exit codes, output, and asking.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/client.h"
#include "client/report.h"

namespace CLI {
class App;
}

namespace recalld::client {

// What the shell sees; --help names the same.
enum ExitCode {
  exit_ok = 0,
  exit_error = 1,
  exit_usage = 2,
  exit_no_daemon = 3,
  exit_not_found = 4,
  exit_interrupted = 130
};

struct Globals {
  std::string socket;
  bool json = false;
  double timeout_s = 120;
  bool timeout_given = false;
};

// Writes "recall: MESSAGE" to standard error and returns the exit code: of its kind, or the one given.
int fail_with(const Error& error);
int fail_with(const Error& error, int code);

// "recall: warning: ..." to standard error.
void warn(std::string_view message);
// Of what damage kept from being read.
void warn(std::span<const Unreadable> damaged);

// Writes to standard output. A reader that has seen enough (`recall turns x | head`) is no error.
int print(std::string_view text);
// One line of JSON, on a terminal without what could steer it.
int print_line(const Json& result);

// `wait_for_ever`: replies of this command may take any time, unless --timeout was given. `stop`: see ClientOptions.
Expected<Client> connect(const Globals& globals, bool wait_for_ever = false, std::function<bool()> stop = {});

// Prints a result: as it is with --json, else as report() words it.
template <class Reply>
int print_reply(const Globals& globals, const Json& result) {
  if (globals.json) return print_line(result);
  const auto reply = decode<Reply>(result);
  if (!reply) return fail_with(reply.error());
  return print(report(*reply, Style::of_standard_output()));
}

// Calls one method and prints its result.
template <class Reply>
int call_and_report(const Globals& globals, std::string_view method, Json params = Json::object(),
                    bool wait_for_ever = false) {
  auto client = connect(globals, wait_for_ever);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const auto result = client->call(method, std::move(params));
  if (!result) return fail_with(result.error());
  return print_reply<Reply>(globals, *result);
}

// Whether somebody sits at standard input, and can be asked.
bool can_ask();
// Asks on the terminal; false unless the answer is yes.
bool confirmed(const std::string& question);

// While it lives, the first Ctrl-C sets seen() instead of ending the process; the second ends it. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  static bool seen();

 private:
  bool ours_ = false;
};

// ---- Checks of options, as CLI11 takes them: "" or what is wrong. Its own take -1 for a very large number and name
// the largest double in their message.
std::string count_check(const std::string& text);  // a whole number from 1 on
std::string index_check(const std::string& text);  // a whole number from 0 on

using Check = std::function<std::string(const std::string&)>;
Check number_check(double least, double most);
Check word_check(std::vector<std::string> words);

// Refuses the empty text, which a variable that is not set leaves behind; `what` completes "expected ...".
Check not_empty(std::string what);

// A number as help shows it, for a default.
std::string default_text(double value);

// ---- Commands. Each function adds one and binds `run` to what it does when chosen.
using Run = std::function<int()>;

void add_search(CLI::App& app, const Globals& globals, Run& run);
void add_ask(CLI::App& app, const Globals& globals, Run& run);
void add_forget(CLI::App& app, const Globals& globals, Run& run);
void add_verify(CLI::App& app, const Globals& globals, Run& run);
void add_backup(CLI::App& app, const Globals& globals, Run& run);
void add_reencode(CLI::App& app, const Globals& globals, Run& run);
void add_export(CLI::App& app, const Globals& globals, Run& run);
void add_import(CLI::App& app, const Globals& globals, Run& run);
int run_memories_delete(const Globals& globals, const std::string& memory, bool yes, bool wait);

}  // namespace recalld::client
