// A work-group that reads what a neighbour writes without a barrier between the two.
__kernel void faulty(__global int* out, __local int* shared) {
  shared[get_local_id(0)] = (int)get_local_id(0);
  out[get_global_id(0)] = shared[(get_local_id(0) + 1) % get_local_size(0)];
}
