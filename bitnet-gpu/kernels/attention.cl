// Causal attention over the paged KV cache with an online softmax. The order of every sum is that of docs/numerics.md,
// "Attention": tiles of 128 keys by absolute position, chains of multiply-adds inside them, 16 lanes for the sum of the weights,
// tiles merged in ascending order. Grouped queries share what they read of a KV head (BN_WIDE 1), or the caches do (BN_WIDE 0).
// The cache's layout is kv_cache.cl's; who fills it is kv_store.cl.
//
// Layout of `plan`, i32: at queries_at, for each queried row the number of keys that it sees and where in `plan` its sequence's
// page list begins.
// q and out are f32, row-major, at offsets of elements: [rows, heads * D].
//
// BN_WIDE 0: a work-group for each (query head, row), global size {heads * BN_ATTENTION_WG, rows}, local {BN_ATTENTION_WG, 1}.
// BN_WIDE 1: a work-item for BN_HEADS query heads of a KV head, global size {heads / BN_HEADS, rows}.
// BN_PARTS 1, for long contexts and few rows: the same with a work-group, or an item, for each of n_tiles tiles, global size
//   {… * n_tiles, rows}; `out` is then f32 [rows, heads, n_tiles, D + 2]: the tile's sums of values, its largest score, its sum of
//   weights. attention_merge puts a row's tiles together in ascending order, as the other variant does while it goes: the same
//   bits, however many there are. Its global size is {heads * BN_ATTENTION_WG, rows}, local {BN_ATTENTION_WG, 1}; with BN_WIDE 1
//   {heads, rows}, local {1, 1}.
//
// Variants: those of kv_cache.cl, and BN_PARTS, and
//   BN_HEADS   query heads of a work-item with BN_WIDE 1
//
// Tunables:
//   BN_ATTENTION_WG   work-items of a group with BN_WIDE 0, 16 at least
#ifndef BN_HEADS
#define BN_HEADS 1
#endif
#ifndef BN_PARTS
#define BN_PARTS 0
#endif
#ifndef BN_ATTENTION_WG
#define BN_ATTENTION_WG 128
#endif

#define BN_TILE 128u

#if BN_PARTS
#define BN_PART (BN_D + 2u)
#define BN_PART_OF(r, h, t) ((((ulong)(r) * heads * BN_GROUP + (h)) * n_tiles + (t)) * BN_PART)

// Adds a tile to the largest score and the sum of weights so far; the factors are of the values' sums so far and of its own.
void bn_merge(__global const float* part, float* largest, float* sum, float* old_factor, float* new_factor) {
  const float both = part[BN_D] > *largest ? part[BN_D] : *largest;
  *old_factor = bn_exp(*largest - both);
  *new_factor = bn_exp(part[BN_D] - both);
  *largest = both;
  *sum = fma(part[BN_D + 1u], *new_factor, *sum * *old_factor);
}
#endif

#if BN_WIDE

// Where the cache has key t of a sequence: the page's part for KV head g, and the slot in it.
#if BN_KV_TYPE == 2
#define BN_HEAD_OF(cache, t) ((cache) + (ulong)pages[(t) / BN_P] * BN_PAGE_WORDS(heads) + g * (BN_W * BN_P))
#else
#define BN_HEAD_OF(cache, t) ((cache) + ((ulong)pages[(t) / BN_P] * heads + g) * (BN_D * BN_P))
#endif

#if BN_KV_TYPE == 2
float16 bn_scales16(__global const uint* cache, __global const int* pages, uint heads, uint g, uint t, uint n_keys) {
  float s[16];
  for (uint i = 0; i < 16u; ++i) {
    const uint at = min(t + i, n_keys - 1u);
    s[i] = as_float(cache[(ulong)pages[at / BN_P] * BN_PAGE_WORDS(heads) + BN_SCALES(heads) + g * BN_P + at % BN_P]);
  }
  return vload16(0, s);
}
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void attention(__global const float* restrict q, ulong q_offset, __global const BN_CACHE* restrict keys,
               __global const BN_CACHE* restrict values, __global const int* restrict plan, uint queries_at, uint heads,
               float scale, __global float* restrict out, ulong out_offset, uint n_tiles) {
  const uint first_head = get_global_id(0) / n_tiles * BN_HEADS;
  const uint g = first_head / BN_GROUP;
  const uint r = get_global_id(1);
  const uint n_keys = (uint)plan[queries_at + 2u * r];
  __global const int* const pages = plan + plan[queries_at + 2u * r + 1u];
  const ulong row = ((ulong)r * heads * BN_GROUP + first_head) * BN_D;
  __global const float* const query = q + q_offset + row;
#if BN_PARTS
  const uint first_tile = get_global_id(0) % n_tiles, from_key = first_tile * BN_TILE;
  if (from_key >= n_keys) return;
  const uint to_key = min(from_key + BN_TILE, n_keys), next_head = n_tiles * BN_PART;
  __global float* const result = out + out_offset + BN_PART_OF(r, first_head, first_tile);
#else
  const uint from_key = 0u, to_key = n_keys, next_head = BN_D;
  __global float* const result = out + out_offset + row;  // holds the values' sums meanwhile
#endif

  float p[BN_HEADS][BN_TILE];
  float largest[BN_HEADS], sum[BN_HEADS];
#if BN_KV_TYPE == 2
  int bytes[BN_HEADS][BN_W * 4];
  float query_scale[BN_HEADS], unit[BN_HEADS];
  for (uint h = 0; h < BN_HEADS; ++h) {
    float factor;
    query_scale[h] = bn_byte_scale(query + h * BN_D, &factor) * scale;
    for (uint d = 0; d < BN_W * 4u; ++d) bytes[h][d] = d < BN_D ? bn_round(query[h * BN_D + d] * factor) : 0;
  }
#else
  float scaled[BN_HEADS][BN_D];
  for (uint h = 0; h < BN_HEADS; ++h)
    for (uint d = 0; d < BN_D; ++d) scaled[h][d] = query[h * BN_D + d] * scale;
#endif

  for (uint tile = from_key; tile < to_key; tile += BN_TILE) {
    const uint n = min(n_keys - tile, BN_TILE);
    for (uint t = 0; t < n; t += 16u) {
#if BN_KV_TYPE == 2
      int16 dot[BN_HEADS];
      BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) dot[h] = (int16)(0);
#else
      float16 dot[BN_HEADS];
      BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) dot[h] = (float16)(0.0f);
#endif
#if BN_PAGE_SIZE % 16 == 0
      __global const BN_CACHE* const block = BN_HEAD_OF(keys, tile + t) + (tile + t) % BN_P;
#endif
#if BN_KV_TYPE == 2
      for (uint j = 0; j < BN_W; ++j) {
#if BN_PAGE_SIZE % 16 == 0
        const int16 four = as_int16(vload16(0, block + j * BN_P));
#else
        uint gathered[16];
        for (uint i = 0; i < 16u; ++i) {
          const uint at = min(tile + t + i, n_keys - 1u);
          gathered[i] = BN_HEAD_OF(keys, at)[j * BN_P + at % BN_P];
        }
        const int16 four = as_int16(vload16(0, gathered));
#endif
        BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h)
          dot[h] += ((four << 24) >> 24) * (int16)(bytes[h][4u * j]) + ((four << 16) >> 24) * (int16)(bytes[h][4u * j + 1u]) +
                    ((four << 8) >> 24) * (int16)(bytes[h][4u * j + 2u]) + (four >> 24) * (int16)(bytes[h][4u * j + 3u]);
      }
      const float16 key_scale = bn_scales16(keys, pages, heads, g, tile + t, n_keys);
      for (uint h = 0; h < BN_HEADS; ++h)
        vstore16(convert_float16(dot[h]) * (float16)(query_scale[h]) * key_scale, 0, p[h] + t);
#else
      for (uint d = 0; d < BN_D; ++d) {
#if BN_PAGE_SIZE % 16 == 0
        const float16 key = BN_READ16(block + d * BN_P);
#else
        float gathered[16];
        for (uint i = 0; i < 16u; ++i) {
          const uint at = min(tile + t + i, n_keys - 1u);
          gathered[i] = BN_READ(BN_HEAD_OF(keys, at), d * BN_P + at % BN_P);
        }
        const float16 key = vload16(0, gathered);
#endif
        BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) dot[h] = fma((float16)(scaled[h][d]), key, dot[h]);
      }
      for (uint h = 0; h < BN_HEADS; ++h) vstore16(dot[h], 0, p[h] + t);
#endif
    }

    float old_factor[BN_HEADS], new_factor[BN_HEADS];
    for (uint h = 0; h < BN_HEADS; ++h) {
      for (uint t = n; t % 16u != 0; ++t) p[h][t] = -BN_INFINITY;  // whose exponential is 0
      float16 most = (float16)(-BN_INFINITY);
      for (uint t = 0; t < n; t += 16u) {
        const float16 s = vload16(0, p[h] + t);
        most = s > most ? s : most;
      }
      float lane[16];
      vstore16(most, 0, lane);
      float m = -BN_INFINITY;
      for (uint i = 0; i < 16u; ++i) m = lane[i] > m ? lane[i] : m;
      float16 total = (float16)(0.0f);
      for (uint t = 0; t < n; t += 16u) {
        const float16 weight = bn_exp16(vload16(0, p[h] + t) - (float16)(m));
        total += weight;
        vstore16(weight, 0, p[h] + t);
      }
      const float l = bn_fold(total);
      if (tile == from_key) {
        largest[h] = m;
        sum[h] = l;
      } else {
        const float both = m > largest[h] ? m : largest[h];
        old_factor[h] = bn_exp(largest[h] - both);
        new_factor[h] = bn_exp(m - both);
        largest[h] = both;
        sum[h] = fma(l, new_factor[h], sum[h] * old_factor[h]);
      }
#if BN_KV_TYPE == 2
      float w_most = 0.0f;
      for (uint t = 0; t < n; ++t) {
        const uint at = tile + t;
        p[h][t] *= as_float(
            values[(ulong)pages[at / BN_P] * BN_PAGE_WORDS(heads) + BN_SCALES(heads) + g * BN_P + at % BN_P]);
        w_most = p[h][t] > w_most ? p[h][t] : w_most;
      }
      const float units = w_most > 0.0f ? bn_divide(255.0f, w_most) : 0.0f;
      for (uint t = 0; t < n; ++t) p[h][t] = (float)(bn_round(p[h][t] * units) & 255);  // integers from here on
      unit[h] = w_most * (1.0f / 255.0f);
#endif
    }

    for (uint d = 0; d < BN_D; d += 16u) {
      const uint columns = min(BN_D - d, 16u);
#if BN_KV_TYPE == 2
      int16 total[BN_HEADS];
      BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) total[h] = (int16)(0);
#else
      float16 total[BN_HEADS];
      BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) total[h] = (float16)(0.0f);
#endif
      for (uint t = 0; t < n; ++t) {
#if BN_KV_TYPE == 2
        __global const char* const value =
            (__global const char*)(BN_HEAD_OF(values, tile + t) + (tile + t) % BN_P * BN_W) + d;
#if BN_HEAD_DIM % 16 == 0
        const int16 v = convert_int16(vload16(0, value));
#else
        char part[16];
        for (uint i = 0; i < 16u; ++i) part[i] = i < columns ? value[i] : (char)0;
        const int16 v = convert_int16(vload16(0, part));
#endif
        BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) total[h] += v * (int16)((int)p[h][t]);
#else
        __global const BN_CACHE* const value = BN_HEAD_OF(values, tile + t) + (tile + t) % BN_P * BN_D + d;
#if BN_HEAD_DIM % 16 == 0
        const float16 v = BN_READ16(value);
#else
        float part[16];
        for (uint i = 0; i < 16u; ++i) part[i] = i < columns ? BN_READ(value, i) : 0.0f;
        const float16 v = vload16(0, part);
#endif
        BN_UNROLL for (uint h = 0; h < BN_HEADS; ++h) total[h] = fma((float16)(p[h][t]), v, total[h]);
#endif
      }
      for (uint h = 0; h < BN_HEADS; ++h) {
#if BN_KV_TYPE == 2
        float16 part_sum = convert_float16(total[h]) * (float16)(unit[h]);
#else
        float16 part_sum = total[h];
#endif
        if (tile != from_key)
          part_sum = fma(part_sum, (float16)(new_factor[h]),
                         bn_load16(result + h * next_head, d, BN_D, 0.0f) * (float16)(old_factor[h]));
        bn_store16(part_sum, result + h * next_head, d, BN_D);
      }
    }
  }
#if BN_PARTS
  for (uint h = 0; h < BN_HEADS; ++h) {
    result[h * next_head + BN_D] = largest[h];
    result[h * next_head + BN_D + 1u] = sum[h];
  }
#else
  for (uint h = 0; h < BN_HEADS; ++h) {
    const float16 inverse = (float16)(bn_divide(1.0f, sum[h]));
    for (uint d = 0; d < BN_D; d += 16u)
      bn_store16(bn_load16(result + h * next_head, d, BN_D, 0.0f) * inverse, result + h * next_head, d, BN_D);
  }
#endif
}

#if BN_PARTS
__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void attention_merge(__global const float* restrict parts, __global const int* restrict plan, uint queries_at, uint n_tiles,
                     __global float* restrict out, ulong out_offset) {
  const uint h = get_global_id(0), n_heads = get_global_size(0), r = get_global_id(1);
  const uint n_keys = (uint)plan[queries_at + 2u * r];
  __global const float* const first = parts + ((ulong)r * n_heads + h) * n_tiles * BN_PART;
  __global float* const result = out + out_offset + ((ulong)r * n_heads + h) * BN_D;
  float largest = first[BN_D], sum = first[BN_D + 1u];
  for (uint d = 0; d < BN_D; d += 16u) bn_store16(bn_load16(first, d, BN_D, 0.0f), result, d, BN_D);
  for (uint t = 1; t * BN_TILE < n_keys; ++t) {
    __global const float* const part = first + (ulong)t * BN_PART;
    float old_factor, new_factor;
    bn_merge(part, &largest, &sum, &old_factor, &new_factor);
    for (uint d = 0; d < BN_D; d += 16u)
      bn_store16(fma(bn_load16(part, d, BN_D, 0.0f), (float16)(new_factor),
                     bn_load16(result, d, BN_D, 0.0f) * (float16)(old_factor)),
                 result, d, BN_D);
  }
  const float16 inverse = (float16)(bn_divide(1.0f, sum));
  for (uint d = 0; d < BN_D; d += 16u) bn_store16(bn_load16(result, d, BN_D, 0.0f) * inverse, result, d, BN_D);
}
#endif

#else

#define BN_COLUMNS ((BN_HEAD_DIM + BN_ATTENTION_WG - 1) / BN_ATTENTION_WG)

// One float that item 0 computes from the 16 lanes, for all items.
float bn_largest(__local const float* lanes) {
  float m = lanes[0];
  for (uint i = 1; i < 16u; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

__kernel __attribute__((reqd_work_group_size(BN_ATTENTION_WG, 1, 1)))
void attention(__global const float* restrict q, ulong q_offset, __global const BN_CACHE* restrict keys,
               __global const BN_CACHE* restrict values, __global const int* restrict plan, uint queries_at, uint heads,
               float scale, __global float* restrict out, ulong out_offset, uint n_tiles) {
  __local float p[128];        // BN_TILE: scores, then weights
  __local float lanes[16];
  __local float shared[5];     // largest and sum so far, factors of a merge, unit of an int8 weight
  const uint h = get_group_id(0) / n_tiles;
  const uint g = h / BN_GROUP;
  const uint r = get_group_id(1);
  const uint item = get_local_id(0);
  const uint n_keys = (uint)plan[queries_at + 2u * r];
  __global const int* const pages = plan + plan[queries_at + 2u * r + 1u];
  const ulong row = ((ulong)r * heads * BN_GROUP + h) * BN_D;
  __global const float* const query = q + q_offset + row;
#if BN_PARTS
  const uint first_tile = get_group_id(0) % n_tiles, from_key = first_tile * BN_TILE;
  if (from_key >= n_keys) return;
  const uint to_key = min(from_key + BN_TILE, n_keys);
#else
  const uint from_key = 0u, to_key = n_keys;
#endif
  float mine[BN_COLUMNS];      // sums of columns item, item + BN_ATTENTION_WG, …
#if BN_KV_TYPE == 2
  __local uint bytes[BN_W];
  __local float query_scale;
  if (item == 0u) {
    float factor;
    query_scale = bn_byte_scale(query, &factor) * scale;
    for (uint j = 0; j < BN_W; ++j) bytes[j] = bn_four(query, j, factor);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
#endif

  for (uint tile = from_key; tile < to_key; tile += BN_TILE) {
    const uint n = min(n_keys - tile, BN_TILE);
    for (uint t = item; t < n; t += BN_ATTENTION_WG) {
      const uint slot = (tile + t) % BN_P;
#if BN_KV_TYPE == 2
      __global const uint* const page = keys + (ulong)pages[(tile + t) / BN_P] * BN_PAGE_WORDS(heads);
      int dot = 0;
      for (uint j = 0; j < BN_W; ++j) dot = BN_DOT4_SIGNED(bytes[j], page[(g * BN_W + j) * BN_P + slot], dot);
      p[t] = (float)dot * query_scale * as_float(page[BN_SCALES(heads) + g * BN_P + slot]);
#else
      __global const BN_CACHE* const head = keys + ((ulong)pages[(tile + t) / BN_P] * heads + g) * (BN_D * BN_P) + slot;
      float dot = 0.0f;
      for (uint d = 0; d < BN_D; ++d) dot = fma(query[d] * scale, BN_READ(head, d * BN_P), dot);
      p[t] = dot;
#endif
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item < 16u) {
      float m = -BN_INFINITY;
      for (uint t = item; t < n; t += 16u) m = p[t] > m ? p[t] : m;
      lanes[item] = m;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const float m = bn_largest(lanes);
    for (uint t = item; t < n; t += BN_ATTENTION_WG) p[t] = bn_exp(p[t] - m);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item < 16u) {
      float l = 0.0f;
      for (uint t = item; t < n; t += 16u) l += p[t];
      lanes[item] = l;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item == 0u) {
      const float l = bn_fold(vload16(0, lanes));
      if (tile == from_key) {
        shared[0] = m;
        shared[1] = l;
      } else {
        const float both = m > shared[0] ? m : shared[0];
        shared[2] = bn_exp(shared[0] - both);
        shared[3] = bn_exp(m - both);
        shared[0] = both;
        shared[1] = fma(l, shared[3], shared[1] * shared[2]);
      }
    }
#if BN_KV_TYPE == 2
    for (uint t = item; t < n; t += BN_ATTENTION_WG) {
      const uint at = tile + t;
      p[t] *= as_float(values[(ulong)pages[at / BN_P] * BN_PAGE_WORDS(heads) + BN_SCALES(heads) + g * BN_P + at % BN_P]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item < 16u) {
      float most = 0.0f;
      for (uint t = item; t < n; t += 16u) most = p[t] > most ? p[t] : most;
      lanes[item] = most;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const float most = bn_largest(lanes);
    const float units = most > 0.0f ? bn_divide(255.0f, most) : 0.0f;
    if (item == 0u) shared[4] = most * (1.0f / 255.0f);
    for (uint t = item; t < n; t += BN_ATTENTION_WG) p[t] = (float)(bn_round(p[t] * units) & 255);  // integers from here on
#endif
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint c = 0; c < BN_COLUMNS; ++c) {
      const uint d = item + c * BN_ATTENTION_WG;
      if (d >= BN_D) break;
#if BN_KV_TYPE == 2
      int total = 0;
      for (uint t = 0; t < n; ++t) {
        const uint at = tile + t;
        const uint word = values[(ulong)pages[at / BN_P] * BN_PAGE_WORDS(heads) + (g * BN_P + at % BN_P) * BN_W + d / 4u];
        total += (int)p[t] * (int)(char)((word >> (8u * (d % 4u))) & 255u);
      }
      const float sum = (float)total * shared[4];
#else
      float sum = 0.0f;
      for (uint t = 0; t < n; ++t) {
        const uint at = tile + t;
        sum = fma(p[t], BN_READ(values + ((ulong)pages[at / BN_P] * heads + g) * (BN_D * BN_P), at % BN_P * BN_D + d), sum);
      }
#endif
      mine[c] = tile == from_key ? sum : fma(sum, shared[3], mine[c] * shared[2]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
  }
#if BN_PARTS
  __global float* const part = out + out_offset + BN_PART_OF(r, h, first_tile);
  for (uint c = 0; c < BN_COLUMNS; ++c)
    if (item + c * BN_ATTENTION_WG < BN_D) part[item + c * BN_ATTENTION_WG] = mine[c];
  if (item < 2u) part[BN_D + item] = shared[item];
#else
  const float inverse = bn_divide(1.0f, shared[1]);
  for (uint c = 0; c < BN_COLUMNS; ++c)
    if (item + c * BN_ATTENTION_WG < BN_D) out[out_offset + row + item + c * BN_ATTENTION_WG] = mine[c] * inverse;
#endif
}

#if BN_PARTS
__kernel __attribute__((reqd_work_group_size(BN_ATTENTION_WG, 1, 1)))
void attention_merge(__global const float* restrict parts, __global const int* restrict plan, uint queries_at, uint n_tiles,
                     __global float* restrict out, ulong out_offset) {
  const uint h = get_group_id(0), n_heads = get_num_groups(0), r = get_group_id(1);
  const uint n_keys = (uint)plan[queries_at + 2u * r];
  __global const float* const first = parts + ((ulong)r * n_heads + h) * n_tiles * BN_PART;
  for (uint d = get_local_id(0); d < BN_D; d += BN_ATTENTION_WG) {
    float largest = first[BN_D], sum = first[BN_D + 1u], mine = first[d];
    for (uint t = 1; t * BN_TILE < n_keys; ++t) {
      __global const float* const part = first + (ulong)t * BN_PART;
      float old_factor, new_factor;
      bn_merge(part, &largest, &sum, &old_factor, &new_factor);
      mine = fma(part[d], new_factor, mine * old_factor);
    }
    out[out_offset + ((ulong)r * n_heads + h) * BN_D + d] = mine * bn_divide(1.0f, sum);
  }
}
#endif

#endif
