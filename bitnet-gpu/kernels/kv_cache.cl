// The paged KV cache as the kernels of kv_store.cl and attention.cl see it: where elements lie, and how rows become bytes. Put
// behind common.cl in front of both by src/kernel_set.cpp; it has no kernels of its own.
//
// Layout of one layer's cache, n_pages pages of kv_page_bytes() each for keys and for values; G KV heads, D = BN_HEAD_DIM,
// P = BN_PAGE_SIZE, W = words of four bytes that D bytes need:
//   BN_KV_TYPE 0 f32, 1 f16   keys [pages, G, D, P], values [pages, G, P, D]
//   BN_KV_TYPE 2 i8           keys u32 [pages, (G, W, P) elements then (G, P) f32 scales]; values the same with (G, P, W)
// f16 is a type of storage: vload_half() and vstore_half_rte() are in every OpenCL, without cl_khr_fp16, and what is computed
// is f32 (docs/numerics.md, "Attention").
//
// Variants of both, all set by src/kernel_set.cpp: BN_KV_TYPE, BN_HEAD_DIM, BN_PAGE_SIZE, and
//   BN_GROUP   query heads of a KV head
#ifndef BN_KV_TYPE
#define BN_KV_TYPE 1
#endif
#ifndef BN_HEAD_DIM
#define BN_HEAD_DIM 128
#endif
#ifndef BN_PAGE_SIZE
#define BN_PAGE_SIZE 16
#endif
#ifndef BN_GROUP
#define BN_GROUP 1
#endif

#define BN_D ((uint)BN_HEAD_DIM)
#define BN_P ((uint)BN_PAGE_SIZE)
#define BN_W ((BN_D + 3u) / 4u)

#if BN_KV_TYPE == 0
#define BN_CACHE float
#define BN_READ(p, i) ((p)[i])
#define BN_READ16(p) vload16(0, p)
#define BN_WRITE(x, p, i) ((p)[i] = (x))
#elif BN_KV_TYPE == 1
#define BN_CACHE half
#define BN_READ(p, i) vload_half(i, p)
#define BN_READ16(p) vload_half16(0, p)
#define BN_WRITE(x, p, i) vstore_half_rte(x, i, p)
#else
#define BN_CACHE uint
// Words of a page: the elements, then the scales.
#define BN_SCALES(heads) ((heads) * BN_W * BN_P)
#define BN_PAGE_WORDS(heads) ((heads) * (BN_W + 1u) * BN_P)
#endif

#if BN_KV_TYPE == 2

// The scale of an int8 row of keys, values or queries; *factor is what its elements are multiplied with.
float bn_byte_scale(__global const float* x, float* factor) {
  float largest = 1e-30f;
  for (uint d = 0; d < BN_D; ++d) {
    const float a = fabs(x[d]);
    largest = a > largest ? a : largest;
  }
  *factor = bn_divide(127.0f, largest);
  return largest * (1.0f / 127.0f);
}

// Elements 4 j … 4 j + 3 as bytes; 0 from D on.
uint bn_four(__global const float* x, uint j, float factor) {
  uint word = 0;
  for (uint b = 0; b < 4u && 4u * j + b < BN_D; ++b)
    word |= ((uint)bn_round(x[4u * j + b] * factor) & 255u) << (8u * b);
  return word;
}

#endif
