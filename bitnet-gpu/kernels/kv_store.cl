// Stores new keys and values in the paged KV cache, alone or with the rotation of queries and keys in front (rope() of rows.cl,
// in place). The cache's layout, and the variants, are kv_cache.cl's; who reads it is attention.cl.
//
// Layout of `plan`, i32: at tokens_at, for each new row page * P + slot.
// q, k and v are f32, row-major, at offsets of elements: [rows, heads * D].
//
// Global size {items, rows}, local {BN_STORE_WG, 1}; what an item is stands at each kernel.
//
// Tunables:
//   BN_STORE_WG   work-items of a group
#ifndef BN_STORE_WG
#define BN_STORE_WG 16
#endif

#if BN_KV_TYPE == 2

// Stores the row of one head, from k and v.
void bn_store_row(__global const float* k, __global const float* v, uint token, uint heads, uint g, __global uint* keys,
                  __global uint* values) {
  const uint slot = token % BN_P;
  const ulong page = (ulong)(token / BN_P) * BN_PAGE_WORDS(heads);
  const ulong scale_at = page + BN_SCALES(heads) + g * BN_P + slot;
  float factor;
  keys[scale_at] = as_uint(bn_byte_scale(k, &factor));
  for (uint j = 0; j < BN_W; ++j) keys[page + (g * BN_W + j) * BN_P + slot] = bn_four(k, j, factor);
  values[scale_at] = as_uint(bn_byte_scale(v, &factor));
  for (uint j = 0; j < BN_W; ++j) values[page + (g * BN_P + slot) * BN_W + j] = bn_four(v, j, factor);
}

// A row of one head an item; items: heads of the cache.
__kernel __attribute__((reqd_work_group_size(BN_STORE_WG, 1, 1)))
void store_keys_values(__global const float* restrict k, ulong k_offset, __global const float* restrict v, ulong v_offset,
                       __global const int* restrict plan, uint tokens_at, uint heads, __global uint* restrict keys,
                       __global uint* restrict values) {
  const uint g = get_global_id(0);
  const uint r = get_global_id(1);
  if (g >= heads) return;
  const ulong from = (ulong)r * heads * BN_D + g * BN_D;
  bn_store_row(k + k_offset + from, v + v_offset + from, (uint)plan[tokens_at + r], heads, g, keys, values);
}

#else

// Stores element d of a head.
void bn_store_element(float k, float v, uint token, uint heads, uint g, uint d, __global BN_CACHE* keys,
                      __global BN_CACHE* values) {
  const uint slot = token % BN_P;
  const ulong head = ((ulong)(token / BN_P) * heads + g) * (BN_D * BN_P);
  BN_WRITE(k, keys, head + d * BN_P + slot);
  BN_WRITE(v, values, head + slot * BN_D + d);
}

// An element an item; items: columns of k and v.
__kernel __attribute__((reqd_work_group_size(BN_STORE_WG, 1, 1)))
void store_keys_values(__global const float* restrict k, ulong k_offset, __global const float* restrict v, ulong v_offset,
                       __global const int* restrict plan, uint tokens_at, uint heads, __global BN_CACHE* restrict keys,
                       __global BN_CACHE* restrict values) {
  const uint c = get_global_id(0);
  const uint r = get_global_id(1);
  if (c >= heads * BN_D) return;
  const ulong from = (ulong)r * heads * BN_D + c;
  bn_store_element(k[k_offset + from], v[v_offset + from], (uint)plan[tokens_at + r], heads, c / BN_D, c % BN_D, keys,
                   values);
}

#endif

// Pair i of a head, rotated in place.
void bn_rotate(__global float* head, __global const float* angles, uint i) {
  const uint half_dim = BN_D / 2u;
  const float a = head[i], b = head[half_dim + i];
  const float c = angles[i], s = angles[half_dim + i];
  const float bs = b * s, as = a * s;
  head[i] = fma(a, c, -bs);
  head[half_dim + i] = fma(b, c, as);
}

// rope() of the queries' q_rows rows, then of the keys' rows, and these and the values stored. A part is a pair of elements of
// a head (i8: a head); an item has each items-th part of a row's queries, and of its keys. BN_HEAD_DIM is even.
__kernel __attribute__((reqd_work_group_size(BN_STORE_WG, 1, 1)))
void rope_and_store(__global float* restrict q, ulong q_offset, uint q_rows, __global const int* restrict q_positions,
                    __global float* restrict k, ulong k_offset, __global const int* restrict k_positions,
                    __global const float* restrict table, __global const float* restrict v, ulong v_offset,
                    __global const int* restrict plan, uint tokens_at, uint heads, __global BN_CACHE* restrict keys,
                    __global BN_CACHE* restrict values) {
#if BN_KV_TYPE == 2
  const uint pairs = BN_D / 2u, per_head = 1u;
#else
  const uint pairs = 1u, per_head = BN_D / 2u;
#endif
  const uint r = get_global_id(1);
  const uint of_queries = heads * BN_GROUP * per_head;
  if (r < q_rows) {
    for (uint i = get_global_id(0); i < of_queries; i += get_global_size(0)) {
      __global float* const head = q + q_offset + ((ulong)r * heads * BN_GROUP + i / per_head) * BN_D;
      for (uint p = 0; p < pairs; ++p) bn_rotate(head, table + (ulong)q_positions[r] * BN_D, i % per_head + p);
    }
  }
  const uint token = (uint)plan[tokens_at + r];
  for (uint i = get_global_id(0); i < heads * per_head; i += get_global_size(0)) {
    const uint g = i / per_head, first = i % per_head;
    const ulong at = ((ulong)r * heads + g) * BN_D;
    __global float* const head = k + k_offset + at;
    for (uint p = 0; p < pairs; ++p) bn_rotate(head, table + (ulong)k_positions[r] * BN_D, first + p);
#if BN_KV_TYPE == 2
    bn_store_row(head, v + v_offset + at, token, heads, g, keys, values);
#else
    const uint second = first + BN_D / 2u;
    __global const float* const value = v + v_offset + at;
    bn_store_element(head[first], value[first], token, heads, g, first, keys, values);
    bn_store_element(head[second], value[second], token, heads, g, second, keys, values);
#endif
  }
}
