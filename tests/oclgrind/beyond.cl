// The last work-item writes one element past the buffer.
__kernel void faulty(__global int* out, __local int* shared) {
  shared[get_local_id(0)] = 1;
  out[get_global_id(0) + 1] = shared[get_local_id(0)];
}
