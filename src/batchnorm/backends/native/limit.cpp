#include "limit.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace batchnorm {
namespace {

std::size_t physical_memory() {
#if defined(__unix__) || defined(__APPLE__)
  const auto pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) return static_cast<std::size_t>(pages) * static_cast<std::size_t>(page);
#endif
  return SIZE_MAX;
}

// The number in `file`. No file, or a word such as "max", is no limit.
std::size_t number_in(const std::string& file) {
  std::ifstream stream(file);
  std::size_t number = 0;
  return stream >> number ? number : SIZE_MAX;
}

// A group is also bound by its parents. A container often mounts its own group as the root, and then the path is
// unknown below the mount: the walk ends at the mount itself.
std::size_t least_of_parents(const std::string& mount, std::string group, const std::string& name) {
  std::size_t least = SIZE_MAX;
  while (true) {
    least = std::min(least, number_in(mount + group + "/" + name));
    const auto slash = group.rfind('/');
    if (slash == std::string::npos) return least;
    group.resize(slash);
  }
}

}  // namespace

std::size_t memory_limit(const std::string& root) {
  std::size_t least = physical_memory();
  const std::string mount = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:/path
    std::istringstream fields(line);
    std::string hierarchy, controllers, group;
    std::getline(fields, hierarchy, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, group);
    if (controllers.empty()) {  // version 2, alone or beside version 1
      for (const auto* name : {"memory.max", "memory.high"}) {
        least = std::min(least, least_of_parents(mount, group, name));
        least = std::min(least, least_of_parents(mount + "/unified", group, name));
      }
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      least = std::min(least, least_of_parents(mount + "/memory", group, "memory.limit_in_bytes"));
    }
  }
  return least;
}

}  // namespace batchnorm
