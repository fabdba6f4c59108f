/* Attention of a few new tokens a row over keys and values that lie scattered in the pool, read in
 * place: nothing is gathered. One thread takes a row and a KV head at a time, so that what the
 * query heads of a group share is read once. Compiled by paged.py. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define AHEAD 6 /* slots lie anywhere: ask for them a few in advance */

static inline __attribute__((always_inline)) void fetch(const float *pool, const int64_t *slots,
                                                        int64_t j, int64_t length,
                                                        int64_t slot_size, const int64_t dim) {
    if (j < length)
        for (int64_t d = 0; d < dim; d += 16)
            __builtin_prefetch(pool + slots[j] * slot_size + d);
}

/* One row and KV head. query, output: the first of its `fresh` tokens; a group of `group` query
 * heads reads this KV head. scores: room for fresh * group * length. Inlined with a constant dim,
 * the inner loops become a few vector instructions. */
static inline __attribute__((always_inline)) void
attend(const float *query, int64_t token_stride, int64_t head_stride, const float *keys,
       const float *values, const int64_t *slots, int64_t slot_size, int64_t length, int64_t fresh,
       int64_t group, float scale, float *scores, float *output, int64_t output_stride,
       const int64_t dim) {
    for (int64_t j = 0; j < length; j++) {
        const float *k = keys + slots[j] * slot_size;
        fetch(keys, slots, j + AHEAD, length, slot_size, dim);
        for (int64_t i = 0; i < fresh * group; i++) {
            const float *q = query + i / group * token_stride + i % group * head_stride;
            float dot = 0;
            for (int64_t d = 0; d < dim; d++)
                dot += q[d] * k[d];
            scores[i * length + j] = dot * scale;
        }
    }
    for (int64_t i = 0; i < fresh * group; i++) {
        float *s = scores + i * length, *out = output + i / group * output_stride + i % group * dim;
        /* the row's new tokens see one another in order */
        const int64_t visible = length - fresh + i / group + 1;
        float highest = s[0], total = 0, sum[dim];
        for (int64_t j = 1; j < visible; j++)
            highest = s[j] > highest ? s[j] : highest;
        for (int64_t j = 0; j < visible; j++) {
            s[j] = expf(s[j] - highest);
            total += s[j];
        }
        for (int64_t d = 0; d < dim; d++)
            sum[d] = 0;
        for (int64_t j = 0; j < visible; j++) {
            const float *v = values + slots[j] * slot_size;
            fetch(values, slots, j + AHEAD, visible, slot_size, dim);
            for (int64_t d = 0; d < dim; d++)
                sum[d] += s[j] * v[d];
        }
        for (int64_t d = 0; d < dim; d++)
            out[d] = sum[d] / total;
    }
}

/* count rows of `fresh` new tokens each, row r's are r * fresh <= t < (r + 1) * fresh.
 * query: token t, head h at query + t * token_stride + h * head_stride, dim floats.
 * keys, values: [slot, kv_heads, dim]. tables: row r's slots at tables + rows[r] * width, of which
 * lengths[r] are visible to the row's last token. output: [token, heads, dim].
 * Returns 0, or 1 without memory. */
int npr_paged_attention(const float *query, int64_t token_stride, int64_t head_stride,
                        const float *keys, const float *values, const int64_t *tables,
                        int64_t width, const int64_t *rows, const int64_t *lengths, int64_t count,
                        int64_t fresh, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                        float *output) {
    const int64_t group = heads / kv_heads, slot_size = kv_heads * dim;
    int failed = 0;
    int64_t work = 0;
    for (int64_t r = 0; r < count; r++)
        work += lengths[r] * fresh * heads * dim;
    /* waking threads takes about a tenth of a millisecond */
#pragma omp parallel for collapse(2) schedule(dynamic) if (work > 1000000)
    for (int64_t r = 0; r < count; r++)
        for (int64_t kv = 0; kv < kv_heads; kv++) {
            float *scores = malloc(sizeof(float) * fresh * group * lengths[r]);
            if (!scores) {
                failed = 1;
                continue;
            }
#define ATTEND(DIM)                                                                                \
    attend(query + r * fresh * token_stride + kv * group * head_stride, token_stride, head_stride, \
           keys + kv * dim, values + kv * dim, tables + rows[r] * width, slot_size, lengths[r],    \
           fresh, group, scale, scores, output + (r * fresh * heads + kv * group) * dim,           \
           heads * dim, DIM)
            switch (dim) {
            case 24: ATTEND(24); break;
            case 32: ATTEND(32); break;
            case 64: ATTEND(64); break;
            case 128: ATTEND(128); break;
            default: ATTEND(dim);
            }
            free(scores);
        }
    return failed;
}
