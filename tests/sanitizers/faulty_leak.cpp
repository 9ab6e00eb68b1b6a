// Loses a heap array: LeakSanitizer must say so at exit.
#include <cstdlib>

int* volatile lost = nullptr;

int main() {
  lost = static_cast<int*>(std::malloc(100));
  lost = nullptr;
  return 0;
}
