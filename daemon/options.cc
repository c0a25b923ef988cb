#include "daemon/options.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <system_error>
#include <utility>

#include <toml++/toml.h>
#include <CLI/CLI.hpp>

#include "base/quote.h"
#include "base/shorten.h"
#include "daemon/version.h"

namespace recalld {
namespace {

namespace fs = std::filesystem;

// A setting as it was written, and where: "FILE:LINE: " in the configuration file, "" as a flag.
struct Setting {
  std::string text;
  std::string place;
};

// The settings before anything is made of them; the same names as flags and as keys of the file.
struct Settings {
  std::optional<Setting> data, socket, model, device, gpu_budget, memory_budget, threads, precision, log_level;

  struct Field {
    std::string_view name;
    std::optional<Setting> Settings::*value;
    bool is_path;
    std::string_view help;
  };
  static constexpr auto fields();
};

constexpr auto Settings::fields() {
  return std::array{
      Field{"data", &Settings::data, true, "Directory of the store (default $XDG_DATA_HOME/recalld)"},
      Field{
          "socket", &Settings::socket, true,
          "Unix socket to listen on (default $XDG_RUNTIME_DIR/recalld.sock, else recalld.sock in the data directory)"},
      Field{"model", &Settings::model, true, "Directory of the checkpoint (default: the one that came with recalld)"},
      Field{"device", &Settings::device, false,
            "auto, cpu or cuda (default auto: the GPU if there is one that can be used)"},
      Field{"gpu-budget", &Settings::gpu_budget, false,
            "Memory of the GPU for the model, landmarks and caches together (default 0: half of what is free, at most "
            "8GiB)"},
      Field{"memory-budget", &Settings::memory_budget, false,
            "RAM for landmarks, caches and buffers together, such as 64MiB or 1GiB (default 256MiB)"},
      Field{"threads", &Settings::threads, false, "Threads of the model (default 0: one a core)"},
      Field{"precision", &Settings::precision, false, "Matrix products: auto, f32 or bf16 (default auto)"},
      Field{"log-level", &Settings::log_level, false, "trace, debug, info, warn, error or off (default info)"},
  };
}

std::unexpected<Error> invalid(std::string_view name, std::string_view expected, const Setting& got) {
  return fail(ErrorKind::invalid_request, got.place + std::string(name) + ": expected " + std::string(expected) +
                                              ", got " + in_quotes(shortened(got.text)));
}

// ---- The configuration file

std::string place_in(const fs::path& file, const toml::source_region& where) {
  return file.string() + ":" + std::to_string(where.begin.line) + ": ";
}

std::unexpected<Error> file_error(const fs::path& file, const toml::source_region& where, std::string_view what) {
  return fail(ErrorKind::invalid_request, place_in(file, where) + std::string(what));
}

Expected<Settings> read_file(const fs::path& file) {
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf())) {
    const int cause = errno != 0 ? errno : EIO;
    if (std::error_code error; !in.is_open() || fs::file_size(file, error) != 0 || error)
      return std::unexpected(system_error("read configuration " + file.string(), cause));
  }

  toml::table table;
  try {
    table = toml::parse(text.str(), file.string());
  } catch (const toml::parse_error& error) {
    return file_error(
        file, error.source(),
        std::string(error.description()) +
            "; write each key once as KEY = VALUE, with text in quotes, such as memory-budget = \"1GiB\"");
  }

  Settings settings;
  for (const auto& [key, node] : table) {
    const auto fields = Settings::fields();
    const auto field = std::ranges::find(fields, key.str(), &Settings::Field::name);
    if (field == fields.end()) {
      std::string known;
      for (const Settings::Field& each : fields) known.append(known.empty() ? "" : ", ").append(each.name);
      return file_error(file, key.source(), "unknown key \"" + std::string(key.str()) + "\"; there are " + known);
    }
    if (const auto text_value = node.value_exact<std::string>()) {
      if (field->is_path && text_value->starts_with('~'))
        return file_error(file, node.source(), std::string(field->name) + ": write the path out; no shell reads the ~");
      // A path in the file counts from where the file lies, not from where the daemon was started.
      const bool counts_from_file = field->is_path && !text_value->empty();  // unless it is absolute
      settings.*field->value = {counts_from_file ? (file.parent_path() / *text_value).string() : *text_value,
                                place_in(file, node.source())};
    } else if (const auto number = node.value_exact<int64_t>(); number && !field->is_path) {
      settings.*field->value = {std::to_string(*number), place_in(file, node.source())};
    } else {
      return file_error(
          file, node.source(),
          std::string(field->name) + ": expected a string" + (field->is_path ? "" : " or a whole number"));
    }
  }
  return settings;
}

// ---- Defaults

// The value of an XDG variable; relative ones are to be ignored.
std::optional<fs::path> xdg_directory(const Environment& environment, const char* variable) {
  const fs::path directory = environment.variable(variable);
  if (!directory.is_absolute()) return std::nullopt;
  return directory;
}

std::optional<fs::path> home_directory(const Environment& environment, const char* variable,
                                       const fs::path& below_home) {
  if (auto directory = xdg_directory(environment, variable)) return directory;
  const fs::path home = environment.variable("HOME");
  if (!home.is_absolute()) return std::nullopt;
  return home / below_home;
}

Expected<fs::path> default_data(const Environment& environment) {
  const auto directory = home_directory(environment, "XDG_DATA_HOME", ".local/share");
  if (!directory)
    return fail(ErrorKind::invalid_request, "data: neither XDG_DATA_HOME nor HOME names a directory; pass --data DIR");
  return *directory / "recalld";
}

fs::path default_socket(const Environment& environment, const fs::path& data) {
  return xdg_directory(environment, "XDG_RUNTIME_DIR").value_or(data) / "recalld.sock";
}

// Beside the executable of a build tree, or in the prefix that an installed one belongs to.
Expected<fs::path> default_model(const Environment& environment) {
  const fs::path directory = environment.executable.parent_path();
  const std::array candidates{directory / "share/recalld-models/default",
                              directory.parent_path() / "share/recalld-models/default"};
  for (const fs::path& candidate : candidates) {
    std::error_code error;
    if (fs::is_directory(candidate, error)) return candidate;
  }
  return fail(ErrorKind::invalid_request, "model: no checkpoint in " + candidates[0].string() + " or " +
                                              candidates[1].string() + "; pass --model DIR");
}

// ---- Meaning

// The paths are used after the daemon has left its caller's directory behind; an empty one is a mistake.
Expected<fs::path> absolute(std::string_view name, const Setting& path) {
  if (path.text.empty()) return invalid(name, "a path", path);
  std::error_code error;
  fs::path full = fs::absolute(path.text, error);
  if (error) return fail(ErrorKind::io, path.place + std::string(name) + ": " + path.text + ": " + error.message());
  return full.lexically_normal();
}

Expected<uint64_t> budget(std::string_view name, const Setting& setting) {
  auto bytes = parse_bytes(setting.text);
  if (!bytes) return std::unexpected(std::move(bytes).error().within(setting.place + std::string(name)));
  return bytes;
}

Expected<Options> options_from(const Settings& settings, const Environment& environment) {
  Options options;
  RECALLD_TRY(options.data, settings.data ? absolute("data", *settings.data) : default_data(environment));
  RECALLD_TRY(options.socket,
              settings.socket ? absolute("socket", *settings.socket) : default_socket(environment, options.data));
  RECALLD_TRY(options.model, settings.model ? absolute("model", *settings.model) : default_model(environment));

  const Setting device = settings.device.value_or(Setting{"auto", ""});
  if (device.text == "cpu")
    options.device = Device::cpu;
  else if (device.text == "cuda")
    options.device = Device::cuda;
  else if (device.text != "auto")
    return invalid("device", "auto, cpu or cuda", device);
  if (settings.gpu_budget) {
    RECALLD_TRY(options.gpu_budget_bytes, budget("gpu-budget", *settings.gpu_budget));
    if (options.gpu_budget_bytes != 0 && options.gpu_budget_bytes < gpu_budget_bytes_min)
      return invalid("gpu-budget", "0 or at least " + std::to_string(gpu_budget_bytes_min >> 20) + "MiB",
                     *settings.gpu_budget);
  }

  const Setting precision = settings.precision.value_or(Setting{"auto", ""});
  if (precision.text == "f32")
    options.precision = Precision::f32;
  else if (precision.text == "bf16")
    options.precision = Precision::bf16;
  else if (precision.text != "auto")
    return invalid("precision", "auto, f32 or bf16", precision);

  if (settings.memory_budget) {
    RECALLD_TRY(options.memory_budget_bytes, budget("memory-budget", *settings.memory_budget));
    if (options.memory_budget_bytes < memory_budget_bytes_min)
      return invalid("memory-budget", "at least " + std::to_string(memory_budget_bytes_min >> 20) + "MiB",
                     *settings.memory_budget);
  }
  if (settings.threads) {
    const std::string& text = settings.threads->text;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, options.threads);
    if (error != std::errc() || stop != end || options.threads > threads_max)
      return invalid("threads", "a whole number from 0 to " + std::to_string(threads_max), *settings.threads);
  }
  if (settings.log_level) {
    constexpr std::array<std::string_view, 6> levels{"trace", "debug", "info", "warn", "error", "off"};
    if (std::ranges::find(levels, settings.log_level->text) == levels.end())
      return invalid("log-level", "trace, debug, info, warn, error or off", *settings.log_level);
    options.log_level = settings.log_level->text;
  }
  return options;
}

}  // namespace

Environment process_environment() {
  std::error_code error;
  return {.variable =
              [](const char* name) {
                const char* value = std::getenv(name);
                return std::string(value ? value : "");
              },
          .executable = fs::read_symlink("/proc/self/exe", error)};
}

Expected<CommandLine> read_options(std::span<const char* const> arguments, const Environment& environment) {
  Settings flags;
  std::string config;
  CLI::App app("recalld: an out-of-core memory daemon for agents", "recalld");
  app.footer(
      "Every flag but --config, --reencode, --repair and --version may stand in the configuration file too: "
      "memory-budget = "
      "\"1GiB\".\n"
      "SIGTERM and SIGINT stop the daemon cleanly. Exit status: 0 stopped, 1 failed, 2 wrong usage.");
  for (const Settings::Field& field : Settings::fields())
    app.add_option_function<std::string>(
        "--" + std::string(field.name),
        [&flags, field](const std::string& text) {
          flags.*field.value = {text, ""};
        },
        std::string(field.help));
  app.add_option("--config", config, "TOML file (default $XDG_CONFIG_HOME/recalld/config.toml, if it is there)");
  bool reencode = false;
  app.add_flag("--reencode", reencode,
               "Take over a store that was encoded with another model: encode it anew with this one");
  bool repair = false;
  app.add_flag(
      "--repair", repair,
      "For a store that is refused because tables of its catalog are damaged: drop those that can be made again, "
      "and make them again behind what is served");
  bool version = false;
  app.add_flag("--version", version, "Print the version and exit");
  try {
    app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::CallForHelp&) {
    return CommandLine{.options = {}, .print = app.help()};
  } catch (const CLI::ParseError& error) {
    return fail(ErrorKind::invalid_request, std::string(error.what()) + "; see recalld --help");
  }
  if (version) return CommandLine{.options = {}, .print = std::string("recalld ") + version_string + "\n"};

  Settings settings;
  if (app.count("--config") > 0) {
    RECALLD_TRY(const fs::path file, absolute("config", {config, ""}));
    RECALLD_TRY(settings, read_file(file));
  } else if (const auto directory = home_directory(environment, "XDG_CONFIG_HOME", ".config")) {
    const fs::path file = *directory / "recalld/config.toml";
    std::error_code error;
    if (fs::exists(file, error)) {
      RECALLD_TRY(settings, read_file(file));
    }
  }
  for (const Settings::Field& field : Settings::fields())
    if (flags.*field.value) settings.*field.value = flags.*field.value;

  RECALLD_TRY(Options options, options_from(settings, environment));
  options.reencode = reencode;
  options.repair = repair;
  return CommandLine{.options = std::move(options), .print = {}};
}

Expected<uint64_t> parse_bytes(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, int>, 5> units{
      {{"", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}};
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view suffix = text.substr(static_cast<size_t>(end - text.data()));
  const auto unit = std::ranges::find(units, suffix, &std::pair<std::string_view, int>::first);
  if (error != std::errc() || unit == units.end() || number > std::numeric_limits<uint64_t>::max() >> unit->second)
    return fail(
        ErrorKind::invalid_request,
        "expected bytes or a number with KiB, MiB, GiB or TiB, such as 64MiB, got " + in_quotes(shortened(text)));
  return number << unit->second;
}

}  // namespace recalld
