#include "tests/support/power_disk.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <optional>
#include <utility>

namespace recalld {
namespace {

constexpr size_t block_bytes = 4096;
constexpr size_t sector_bytes = 512;

using Block = std::array<std::byte, block_bytes>;
using BlockRef = std::shared_ptr<const Block>;  // null: zeros; shared by all copies of a disk

const Block& of(const BlockRef& block) {
  static const Block zeros{};
  return block ? *block : zeros;
}

std::unexpected<Error> missing(const std::filesystem::path& path) {
  return fail(ErrorKind::not_found, path.string() + " does not exist");
}

std::unexpected<Error> dark() {
  return fail(ErrorKind::io, "the power is cut");
}

}  // namespace

struct PowerDisk::File {
  uint64_t bytes = 0;
  uint64_t bytes_durable = 0;
  bool grows_in_order = false;
  std::vector<BlockRef> blocks;  // as reads see them; missing ones are zeros
  // Of each block that changed since the last sync: the durable one, then every later one but that in `blocks`.
  std::map<size_t, std::vector<BlockRef>> before;

  BlockRef block(size_t index) const { return index < blocks.size() ? blocks[index] : nullptr; }
  void set(size_t index, BlockRef block) {
    if (index >= blocks.size()) blocks.resize(index + 1);
    before[index].push_back(std::exchange(blocks[index], std::move(block)));
  }
};

struct PowerDisk::Directory {
  // One change of the entries: `node` appears as `name`, or what was there vanishes. A rename also takes `from` away.
  struct Change {
    std::string name;
    NodeRef node;
    std::string from;
  };
  static void apply(const Change& change, std::map<std::string, NodeRef>& entries) {
    if (!change.from.empty()) {
      // A rename of a file that never came to be is none.
      const auto source = entries.find(change.from);
      if (source == entries.end() || source->second != change.node) return;
      entries.erase(source);
    }
    if (change.node) {
      entries[change.name] = change.node;
    } else {
      entries.erase(change.name);
    }
  }
  void change(Change change) {
    apply(change, entries);
    unsynced.push_back(std::move(change));
  }

  std::map<std::string, NodeRef> entries;
  std::map<std::string, NodeRef> durable;
  std::vector<Change> unsynced;  // in their order
};

struct PowerDisk::Node {
  FileRef file;  // or else
  std::unique_ptr<Directory> directory;
};

PowerDisk::PowerDisk(std::filesystem::path root) : root_(std::move(root)), tree_(std::make_shared<Node>()) {
  tree_->directory = std::make_unique<Directory>();
}

// ---- Power

void PowerDisk::cut_power_at(uint64_t point) {
  const std::lock_guard lock(mutex_);
  points_ = 0;
  cut_at_ = point;
}

uint64_t PowerDisk::points() const {
  const std::lock_guard lock(mutex_);
  return points_;
}

bool PowerDisk::powered() const {
  const std::lock_guard lock(mutex_);
  return power_;
}

Expected<void> PowerDisk::alive() const {
  if (!power_) return dark();
  return {};
}

bool PowerDisk::pass() {
  ++points_;
  if (points_ == cut_at_) power_ = false;
  return power_;
}

// One choice of what survives.
struct PowerDisk::Copying {
  enum class Fate { lost, kept, either };
  std::mt19937_64 random;
  Fate data{};
  Fate sizes{};
  Fate entries{};
  bool entries_in_order = false;
  std::map<const Node*, NodeRef> copies;

  explicit Copying(uint64_t seed) : random(seed) {
    const auto fate = [&] {
      const uint64_t die = below(6);
      return die == 0 ? Fate::lost : die == 1 ? Fate::kept : Fate::either;
    };
    data = fate();
    sizes = fate();
    entries = fate();
    entries_in_order = below(2) == 0;
  }

  uint64_t below(uint64_t bound) { return random() % bound; }
  bool survives(Fate fate) { return fate == Fate::kept || (fate == Fate::either && below(2) == 0); }

  FileRef copy(const File& from) {
    auto to = std::make_shared<File>();
    to->blocks = from.blocks;
    to->grows_in_order = from.grows_in_order;
    if (!from.grows_in_order) {
      for (const auto& [index, versions] : from.before) to->blocks[index] = pick(versions, from.block(index));
    }
    to->bytes = from.bytes;
    if (from.bytes != from.bytes_durable) {
      const auto [low, high] = std::minmax(from.bytes, from.bytes_durable);
      to->bytes = data == Fate::kept || sizes == Fate::kept ? from.bytes
                  : sizes == Fate::lost                     ? from.bytes_durable
                                                            : low + below(high - low + 1);
    }
    // What lies behind the end is never read again.
    to->blocks.resize((to->bytes + block_bytes - 1) / block_bytes);
    if (const size_t rest = to->bytes % block_bytes; rest != 0 && to->blocks.back()) {
      auto last = std::make_shared<Block>(*to->blocks.back());
      std::fill(last->begin() + static_cast<ptrdiff_t>(rest), last->end(), std::byte{0});
      to->blocks.back() = std::move(last);
    }
    to->bytes_durable = to->bytes;
    return to;
  }

  BlockRef pick(const std::vector<BlockRef>& before, const BlockRef& now) {
    if (data == Fate::kept) return now;
    if (data == Fate::lost) return before.front();
    const auto any = [&] {
      const uint64_t which = below(before.size() + 1);
      return which < before.size() ? before[which] : now;
    };
    if (below(3) != 0) return any();
    auto torn = std::make_shared<Block>();
    const BlockRef first = any(), second = any();
    for (size_t at = 0; at < block_bytes; at += sector_bytes)
      std::memcpy(&(*torn)[at], &of(below(2) == 0 ? first : second)[at], sector_bytes);
    return torn;
  }

  std::unique_ptr<Directory> copy(const Directory& from) {
    std::map<std::string, NodeRef> entries_left = from.durable;
    const size_t first_lost = entries == Fate::kept ? from.unsynced.size() : below(from.unsynced.size() + 1);
    bool all_before = true;
    for (size_t i = 0; i < from.unsynced.size(); ++i) {
      const Directory::Change& change = from.unsynced[i];
      const bool alone = change.node && change.from.empty();  // makes a file
      const bool kept = entries == Fate::lost        ? false
                        : entries_in_order || !alone ? all_before && i < first_lost
                                                     : survives(entries);
      if (kept) Directory::apply(change, entries_left);
      all_before = all_before && kept;
    }
    auto to = std::make_unique<Directory>();
    for (const auto& [name, node] : entries_left) to->entries[name] = copy(node);
    to->durable = to->entries;
    return to;
  }

  NodeRef copy(const NodeRef& from) {
    NodeRef& to = copies[from.get()];
    if (to) return to;
    to = std::make_shared<Node>();
    if (from->file) to->file = copy(*from->file);
    if (from->directory) to->directory = copy(*from->directory);
    return to;
  }
};

std::unique_ptr<PowerDisk> PowerDisk::survivor(uint64_t seed) const {
  const std::lock_guard lock(mutex_);
  auto left = std::make_unique<PowerDisk>(root_);
  Copying copying(seed);
  left->tree_ = copying.copy(tree_);
  return left;
}

// ---- Paths

Expected<PowerDisk::NodeRef> PowerDisk::find(const std::filesystem::path& path) const {
  RECALLD_CHECK(alive());
  NodeRef node = tree_;
  const std::filesystem::path below_root = path.lexically_normal().lexically_relative(root_);
  for (const auto& part : below_root) {
    if (part == "." || part.empty()) continue;
    if (!node->directory) return missing(path);
    const auto found = node->directory->entries.find(part.string());
    if (found == node->directory->entries.end()) return missing(path);
    node = found->second;
  }
  return node;
}

Expected<PowerDisk::Directory*> PowerDisk::parent_of(const std::filesystem::path& path) const {
  RECALLD_TRY(const NodeRef node, find(path.parent_path()));
  if (!node->directory) return missing(path.parent_path());
  return node->directory.get();
}

// ---- Files

Expected<PowerDisk::FileRef> PowerDisk::open(const std::filesystem::path& path) const {
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(const NodeRef node, find(path));
  if (!node->file) return missing(path);
  return node->file;
}

Expected<PowerDisk::FileRef> PowerDisk::create(const std::filesystem::path& path, bool exclusive) {
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(Directory* const parent, parent_of(path));
  const std::string name = path.filename().string();
  const auto old = parent->entries.find(name);
  if (old != parent->entries.end() && (exclusive || !old->second->file))
    return fail(ErrorKind::io, path.string() + " exists");
  const bool done = pass();
  FileRef file;
  if (old != parent->entries.end()) {
    file = old->second->file;
    for (size_t i = 0; i < file->blocks.size(); ++i) file->set(i, nullptr);
    file->bytes = 0;
  } else {
    file = std::make_shared<File>();
    auto node = std::make_shared<Node>();
    node->file = file;
    parent->change({name, std::move(node), {}});
  }
  if (!done) return dark();
  return file;
}

Expected<size_t> PowerDisk::read(const File& file, uint64_t offset, ByteSpan into) const {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(alive());
  if (offset >= file.bytes) return 0;
  const size_t bytes = std::min<uint64_t>(into.size(), file.bytes - offset);
  for (size_t at = 0; at < bytes;) {
    const size_t within = (offset + at) % block_bytes;
    const size_t count = std::min(bytes - at, block_bytes - within);
    std::memcpy(&into[at], &of(file.block((offset + at) / block_bytes))[within], count);
    at += count;
  }
  return bytes;
}

Expected<void> PowerDisk::write(File& file, uint64_t offset, ByteView bytes) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(alive());
  const bool done = pass();
  for (size_t at = 0; at < bytes.size();) {
    const size_t index = (offset + at) / block_bytes, within = (offset + at) % block_bytes;
    const size_t count = std::min(bytes.size() - at, block_bytes - within);
    auto block = std::make_shared<Block>(of(file.block(index)));
    std::memcpy(&(*block)[within], &bytes[at], count);
    file.set(index, std::move(block));
    at += count;
  }
  file.bytes = std::max(file.bytes, offset + bytes.size());
  if (!done) return dark();
  return {};
}

Expected<void> PowerDisk::resize(File& file, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(alive());
  const bool done = pass();
  for (size_t index = bytes / block_bytes; index < file.blocks.size(); ++index) {
    if (!file.blocks[index]) continue;
    auto cut = std::make_shared<Block>(*file.blocks[index]);
    const size_t kept =
        std::min<uint64_t>(block_bytes, std::max<uint64_t>(bytes, index * block_bytes) - index * block_bytes);
    std::fill(cut->begin() + static_cast<ptrdiff_t>(kept), cut->end(), std::byte{0});
    file.set(index, std::move(cut));
  }
  file.bytes = bytes;
  if (!done) return dark();
  return {};
}

Expected<void> PowerDisk::punch(File& file, uint64_t offset, uint64_t bytes) {
  assert(offset % block_bytes == 0 && bytes % block_bytes == 0);
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(alive());
  const bool done = pass();
  for (uint64_t at = offset; at < std::min(offset + bytes, file.bytes); at += block_bytes)
    file.set(at / block_bytes, nullptr);
  if (!done) return dark();
  return {};
}

Expected<void> PowerDisk::sync(File& file) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(alive());
  if (!pass()) return dark();
  file.before.clear();
  file.bytes_durable = file.bytes;
  return {};
}

void PowerDisk::grow_in_order(File& file) {
  const std::lock_guard lock(mutex_);
  file.grows_in_order = true;
}

Expected<uint64_t> PowerDisk::size(const File& file) const {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(alive());
  return file.bytes;
}

// ---- Directories

Expected<void> PowerDisk::make_directory(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(Directory* const parent, parent_of(path));
  if (parent->entries.contains(path.filename().string())) return {};
  const bool done = pass();
  auto node = std::make_shared<Node>();
  node->directory = std::make_unique<Directory>();
  parent->change({path.filename().string(), std::move(node), {}});
  if (!done) return dark();
  return {};
}

Expected<void> PowerDisk::rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  assert(from.parent_path() == to.parent_path());
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(const NodeRef node, find(from));
  RECALLD_TRY(Directory* const parent, parent_of(to));
  const bool done = pass();
  parent->change({to.filename().string(), node, from.filename().string()});
  if (!done) return dark();
  return {};
}

Expected<void> PowerDisk::remove(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(find(path));
  RECALLD_TRY(Directory* const parent, parent_of(path));
  const bool done = pass();
  parent->change({path.filename().string(), nullptr, {}});
  if (!done) return dark();
  return {};
}

Expected<void> PowerDisk::sync_directory(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(const NodeRef node, find(path));
  if (!node->directory) return missing(path);
  if (!pass()) return dark();
  node->directory->durable = node->directory->entries;
  node->directory->unsynced.clear();
  return {};
}

Expected<std::vector<std::string>> PowerDisk::list(const std::filesystem::path& path) const {
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(const NodeRef node, find(path));
  if (!node->directory) return missing(path);
  std::vector<std::string> names;
  for (const auto& [name, entry] : node->directory->entries) names.push_back(name);
  return names;
}

Expected<bool> PowerDisk::is_directory(const std::filesystem::path& path) const {
  const std::lock_guard lock(mutex_);
  RECALLD_TRY(const NodeRef node, find(path));
  return node->directory != nullptr;
}

std::map<std::string, std::string> PowerDisk::contents() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, std::string> files;
  const auto add = [&](const auto& self, const Directory& directory, const std::string& prefix) -> void {
    for (const auto& [name, node] : directory.entries) {
      if (node->directory) {
        self(self, *node->directory, prefix + name + "/");
        continue;
      }
      std::string& bytes = files[prefix + name];
      for (size_t i = 0; i * block_bytes < node->file->bytes; ++i) bytes += as_text(of(node->file->block(i)));
      bytes.resize(node->file->bytes);
    }
  };
  add(add, *tree_->directory, "");
  return files;
}

}  // namespace recalld
