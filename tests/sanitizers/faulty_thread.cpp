// Two threads write one variable without a lock: ThreadSanitizer must report it.
#include <thread>

int shared_value = 0;

int main() {
  std::thread other([] {
    for (int i = 0; i < 100000; ++i) ++shared_value;
  });
  for (int i = 0; i < 100000; ++i) ++shared_value;
  other.join();
  return 0;
}
