// Blocks of memory for large outputs: mapped in huge pages, kept when they are given back, and used again.
//
// Fresh memory costs a page fault at the first write to each page, which takes longer than the write itself.
//
// Policy. All blocks together stay within a budget of 9/8 of the peak of live blocks, in bytes.
//   1. The smallest idle block that is large enough serves if it is at most 1/8 too large.
//   2. Otherwise a new block is mapped if it fits the budget.
//   3. Otherwise the smallest idle block that is large enough serves, however large it is.
//   4. Otherwise the longest idle blocks are unmapped, then the unused tails of live blocks, and a new one is mapped.
// The peak is that of the last 4,096 to 8,192 calls: a program that turns to smaller outputs gives memory back.
// Idle blocks also have a limit of their own (`limit_idle`).
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace batchnorm {

struct Statistics {
  std::size_t live, idle;      // bytes
  std::uint64_t mapped, hits;  // calls served by new and by used blocks
  std::size_t idle_limit;      // bytes
};

class Pool {
 public:
  void* take(std::size_t size);  // nullptr if the system refuses even after all idle blocks are unmapped
  void give_back(void* data) noexcept;
  std::size_t unmap_idle();  // returns bytes; the peak begins anew
  void limit_idle(std::size_t bytes);
  Statistics statistics();

  // A fork waits until no thread is inside the pool, so the child's copy is whole and unlocked.
  void before_fork() { mutex_.lock(); }
  void after_fork_in_parent() { mutex_.unlock(); }
  void after_fork_in_child();

 private:
  struct Block {
    char* data;
    std::size_t capacity;     // mapped bytes
    std::size_t need;         // bytes in use, rounded to pages; the rest is the tail
    std::uint64_t since = 0;  // the time on `clock_` at which it was given back
  };
  struct Range {
    char* start;
    std::size_t bytes;
  };
  using Ranges = std::vector<Range>;

  Block* find(std::size_t need);
  std::vector<Block*>::iterator first_fit(std::size_t need);
  void count(std::size_t need);
  std::size_t total() const { return live_ + tails_ + idle_bytes_; }
  std::size_t budget() const;
  Ranges trim();
  void cut_tails(Ranges& unwanted);
  static void unmap(const Ranges& ranges) noexcept;

  std::mutex mutex_;  // guards all below; blocks are mapped and unmapped without it
  std::unordered_map<void*, Block> blocks_;  // by address
  std::vector<Block*> idle_;                 // by capacity; of equal ones the last given back comes first
  std::vector<Block*> loose_;                // live blocks with a tail
  std::size_t live_ = 0, tails_ = 0, idle_bytes_ = 0;
  std::size_t idle_limit_ = SIZE_MAX;
  std::size_t peak_ = 0, peak_before_ = 0;  // of `live_`, in this window of calls and in the one before
  std::uint64_t calls_ = 0, clock_ = 0, mapped_ = 0, hits_ = 0;
};

}  // namespace batchnorm
