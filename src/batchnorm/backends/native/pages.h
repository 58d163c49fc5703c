// Memory straight from the system, in huge pages where the system has them.
#pragma once

#include <cstddef>

namespace batchnorm {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// The bytes to map for `size` bytes. A last huge page that would be mostly empty is left to ordinary pages, because
// the first write to a huge page makes all of it resident: at most 1/32 is wasted, or 64 KiB.
std::size_t rounded_to_pages(std::size_t size);

// `bytes` (a result of `rounded_to_pages`) that begin at a huge page, or nullptr if the system refuses.
char* map_pages(std::size_t bytes);
void unmap_pages(char* start, std::size_t bytes) noexcept;

#if defined(__linux__) || defined(__APPLE__)
inline constexpr bool kCanMapPages = true;
#else
inline constexpr bool kCanMapPages = false;  // `map_pages` always refuses
#endif

}  // namespace batchnorm
