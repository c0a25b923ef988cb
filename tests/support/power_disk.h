// A disk in memory that loses its power: it tells what was synced from what was only written, and plays what a real
// one may hold afterwards. Segments (PowerFileIo) and the catalog (power_file_system) write through the same one.
//
// Durable are the contents of a file once it is synced, and the entries of a directory (files made, renamed and removed
// in it) once the directory is. Every call that changes or syncs something is one point, numbered from 1 in the order
// of the calls; power can be cut at each of them. The call at that point fails, having done all, nothing or a part of
// its work, and so does every later call.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"

namespace recalld {

// Any thread may call any function of a disk. Paths lie below its root.
class PowerDisk {
 public:
  struct File;
  using FileRef = std::shared_ptr<File>;  // an open file, of this disk; it may be removed meanwhile

  // Holds an empty directory `root`, durably.
  explicit PowerDisk(std::filesystem::path root);

  // ---- Power
  void cut_power_at(uint64_t point);  // counted from now on, the next one being 1; 0: not any more
  uint64_t points() const;            // passed since then
  bool powered() const;

  // What may be found on the disk when power is cut now: of each 4 KiB block the synced contents, any later ones, or a
  // mixture of two at its 512-byte sectors; any size of a file between the synced one and the last. Of the changes of a
  // directory that were not synced a beginning is found, or any of the files made, but a file renamed or removed only
  // when all changes before it are found: file systems with a journal keep that order, and RocksDB's recovery, which
  // renames before it syncs the directory, counts on it. The seed decides; now and then all or nothing of it survives.
  std::unique_ptr<PowerDisk> survivor(uint64_t seed) const;

  // ---- Files
  // Fail with not_found when a file or its directory does not exist, and with io without power.
  Expected<FileRef> open(const std::filesystem::path& path) const;
  Expected<FileRef> create(const std::filesystem::path& path, bool exclusive);  // exclusive: else an old one is emptied
  Expected<size_t> read(const File& file, uint64_t offset, ByteSpan into) const;  // bytes, fewer at the end
  Expected<void> write(File& file, uint64_t offset, ByteView bytes);
  Expected<void> resize(File& file, uint64_t bytes);
  Expected<void> punch(File& file, uint64_t offset, uint64_t bytes);  // whole blocks
  Expected<void> sync(File& file);

  // From now on this file grows as file systems let it that write data before sizes: of what was appended and not
  // synced a beginning is found, never a torn or missing part before a later one.
  void grow_in_order(File& file);

  Expected<uint64_t> size(const File& file) const;

  // ---- Directories
  Expected<void> make_directory(const std::filesystem::path& path);                           // it may exist already
  Expected<void> rename(const std::filesystem::path& from, const std::filesystem::path& to);  // within one directory
  Expected<void> remove(const std::filesystem::path& path);
  Expected<void> sync_directory(const std::filesystem::path& path);
  Expected<std::vector<std::string>> list(const std::filesystem::path& path) const;
  Expected<bool> is_directory(const std::filesystem::path& path) const;  // not_found: there is neither

  // What all files hold, by path below the root, power or not; for tests of what must be gone.
  std::map<std::string, std::string> contents() const;

 private:
  struct Directory;
  struct Node;
  struct Copying;
  using NodeRef = std::shared_ptr<Node>;

  // The functions below want mutex_ held.
  Expected<void> alive() const;
  bool pass();  // counts a point; false: power goes at it
  Expected<NodeRef> find(const std::filesystem::path& path) const;
  Expected<Directory*> parent_of(const std::filesystem::path& path) const;

  const std::filesystem::path root_;
  mutable std::mutex mutex_;  // guards what follows, and all files and directories
  NodeRef tree_;
  uint64_t points_ = 0;
  uint64_t cut_at_ = 0;
  bool power_ = true;
};

}  // namespace recalld
