// Overflows a signed integer: UndefinedBehaviorSanitizer must end it.
int main(int argc, char**) {
  int value = 2147483647;
  value += argc;
  return value == 5;
}
