#include "pool.h"

#include <algorithm>
#include <utility>

#include "pages.h"

namespace batchnorm {
namespace {

constexpr std::uint64_t kWindow = 4096;  // calls

constexpr std::size_t an_eighth_more(std::size_t bytes) { return bytes + bytes / 8; }

}  // namespace

void* Pool::take(std::size_t size) {
  const std::size_t need = rounded_to_pages(size);
  Ranges unwanted;
  {
    const std::lock_guard lock(mutex_);
    count(need);
    if (const Block* const block = find(need)) return block->data;
    unwanted = trim();  // before the new block, so that the total never exceeds the budget
  }
  unmap(unwanted);
  char* data = map_pages(need);
  if (data == nullptr && unmap_idle() != 0) data = map_pages(need);
  const std::lock_guard lock(mutex_);
  if (data == nullptr) {
    live_ -= need;
    return nullptr;
  }
  ++mapped_;
  blocks_.emplace(data, Block{data, need, need});
  return data;
}

void Pool::give_back(void* data) noexcept {
  Ranges unwanted;
  {
    const std::lock_guard lock(mutex_);
    Block& block = blocks_.at(data);
    live_ -= block.need;
    if (block.need < block.capacity) {
      tails_ -= block.capacity - block.need;
      loose_.erase(std::find(loose_.begin(), loose_.end(), &block));
    }
    block.since = block.capacity > idle_limit_ ? 0 : ++clock_;  // such a block goes first, not last
    idle_.insert(first_fit(block.capacity), &block);
    idle_bytes_ += block.capacity;
    unwanted = trim();
  }
  unmap(unwanted);
}

std::size_t Pool::unmap_idle() {
  Ranges unwanted;
  std::size_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    bytes = std::exchange(idle_bytes_, 0);
    peak_ = live_, peak_before_ = 0;
    for (Block* const block : idle_) {
      unwanted.push_back({block->data, block->capacity});
      blocks_.erase(block->data);
    }
    idle_.clear();
  }
  unmap(unwanted);
  return bytes;
}

void Pool::limit_idle(std::size_t bytes) {
  Ranges unwanted;
  {
    const std::lock_guard lock(mutex_);
    idle_limit_ = bytes;
    unwanted = trim();
  }
  unmap(unwanted);
}

Statistics Pool::statistics() {
  const std::lock_guard lock(mutex_);
  return {live_, idle_bytes_, mapped_, hits_, idle_limit_};
}

// The child starts without idle blocks. Their pages are shared with the parent, and a write to a shared page copies it.
void Pool::after_fork_in_child() {
  for (Block* const block : idle_) {
    unmap_pages(block->data, block->capacity);
    blocks_.erase(block->data);
  }
  idle_.clear();
  idle_bytes_ = 0;
  mutex_.unlock();
}

// `need` is already counted as live: the total includes a new block.
Pool::Block* Pool::find(std::size_t need) {
  const auto found = first_fit(need);
  if (found == idle_.end()) return nullptr;
  Block* const block = *found;
  if (block->capacity > an_eighth_more(need) && total() <= budget()) return nullptr;
  idle_.erase(found);
  idle_bytes_ -= block->capacity;
  block->need = need;
  if (need < block->capacity) {
    tails_ += block->capacity - need;
    loose_.push_back(block);
  }
  ++hits_;
  return block;
}

std::vector<Pool::Block*>::iterator Pool::first_fit(std::size_t need) {
  const auto smaller = [](const Block* block, std::size_t bytes) { return block->capacity < bytes; };
  return std::lower_bound(idle_.begin(), idle_.end(), need, smaller);
}

void Pool::count(std::size_t need) {
  if (++calls_ % kWindow == 0) peak_before_ = std::exchange(peak_, live_);
  live_ += need;
  peak_ = std::max(peak_, live_);
}

std::size_t Pool::budget() const { return an_eighth_more(std::max(peak_, peak_before_)); }

// The ranges to unmap so that all blocks fit the budget and the idle ones their limit.
Pool::Ranges Pool::trim() {
  Ranges unwanted;
  while (!idle_.empty() && (idle_bytes_ > idle_limit_ || total() > budget())) {
    const auto earlier = [](const Block* a, const Block* b) { return a->since < b->since; };
    const auto longest = std::min_element(idle_.begin(), idle_.end(), earlier);
    const Block block = **longest;
    idle_.erase(longest);
    idle_bytes_ -= block.capacity;
    unwanted.push_back({block.data, block.capacity});
    blocks_.erase(block.data);
  }
  if (total() > budget()) cut_tails(unwanted);
  return unwanted;
}

// A tensor never reaches into the tail of its block.
void Pool::cut_tails(Ranges& unwanted) {
  for (Block* const block : loose_) {
    unwanted.push_back({block->data + block->need, block->capacity - block->need});
    block->capacity = block->need;
  }
  loose_.clear();
  tails_ = 0;
}

void Pool::unmap(const Ranges& ranges) noexcept {
  for (const Range& range : ranges) unmap_pages(range.start, range.bytes);
}

}  // namespace batchnorm
