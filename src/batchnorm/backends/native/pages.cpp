#include "pages.h"

#include <cstdint>

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace batchnorm {
namespace {

constexpr std::size_t kPage = std::size_t{64} << 10;  // a multiple of the page size of every common system

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

std::size_t rounded_to_pages(std::size_t size) {
  const std::size_t huge = round_up(size, kHugePage);
  return huge - size <= size / 32 ? huge : round_up(size, kPage);
}

#if defined(__linux__) || defined(__APPLE__)

char* map_pages(std::size_t bytes) {
  const std::size_t more = bytes + kHugePage;  // has an aligned part of `bytes`; the rest goes back at once
  void* const found = mmap(nullptr, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(found);
  const auto address = reinterpret_cast<std::uintptr_t>(first);
  const std::size_t before = round_up(address, kHugePage) - address;
  char* const start = first + before;
  unmap_pages(first, before);
  unmap_pages(start + bytes, more - before - bytes);
#if defined(MADV_HUGEPAGE)
  madvise(start, bytes, MADV_HUGEPAGE);  // a refusal costs time only
#endif
  return start;
}

void unmap_pages(char* start, std::size_t bytes) noexcept {
  if (bytes != 0) munmap(start, bytes);
}

#else

char* map_pages(std::size_t) { return nullptr; }
void unmap_pages(char*, std::size_t) noexcept {}

#endif

}  // namespace batchnorm
