// Reads one element past a heap array: AddressSanitizer must end it.
int main(int argc, char**) {
  int* values = new int[4]{1, 2, 3, 4};
  const int past = values[3 + argc];
  delete[] values;
  return past == 12345;
}
