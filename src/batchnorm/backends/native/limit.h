// Memory that this process may use.
#pragma once

#include <cstddef>
#include <string>

namespace batchnorm {

// The least of the machine's memory and of the limits of this process's control groups, in bytes.
// `root` stands before /proc and /sys: a test gives the folder of its own files.
std::size_t memory_limit(const std::string& root);

}  // namespace batchnorm
