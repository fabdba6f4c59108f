/* Attention of a few new tokens a row over keys and values that lie scattered in the pool, read in
 * place: nothing is gathered. One thread takes a row and a KV head at a time, so that what the
 * query heads of a group share is read once. Compiled by paged.py. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

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
    const int64_t group = heads / kv_heads, slot_size = kv_heads * dim, queries = fresh * group;
    int failed = 0;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int64_t r = 0; r < count; r++)
        for (int64_t kv = 0; kv < kv_heads; kv++) {
            const int64_t *slots = tables + rows[r] * width, length = lengths[r];
            float *scores = malloc(sizeof(float) * queries * length);
            if (!scores) {
                failed = 1;
                continue;
            }
            for (int64_t j = 0; j < length; j++) {
                const float *k = keys + slots[j] * slot_size + kv * dim;
                for (int64_t i = 0; i < queries; i++) {
                    const float *q = query + (r * fresh + i / group) * token_stride +
                                     (kv * group + i % group) * head_stride;
                    float dot = 0;
                    for (int64_t d = 0; d < dim; d++)
                        dot += q[d] * k[d];
                    scores[i * length + j] = dot * scale;
                }
            }
            for (int64_t i = 0; i < queries; i++) {
                float *s = scores + i * length, highest = s[0], total = 0;
                /* the row's new tokens see one another in order */
                const int64_t visible = length - fresh + i / group + 1;
                for (int64_t j = 1; j < visible; j++)
                    highest = s[j] > highest ? s[j] : highest;
                for (int64_t j = 0; j < visible; j++) {
                    s[j] = expf(s[j] - highest);
                    total += s[j];
                }
                for (int64_t j = 0; j < visible; j++)
                    s[j] /= total;
                for (int64_t j = visible; j < length; j++)
                    s[j] = 0;
                float *out = output + ((r * fresh + i / group) * heads + kv * group + i % group) * dim;
                for (int64_t d = 0; d < dim; d++)
                    out[d] = 0;
            }
            for (int64_t j = 0; j < length; j++) {
                const float *v = values + slots[j] * slot_size + kv * dim;
                for (int64_t i = 0; i < queries; i++) {
                    float *out = output +
                                 ((r * fresh + i / group) * heads + kv * group + i % group) * dim;
                    const float weight = scores[i * length + j];
                    for (int64_t d = 0; d < dim; d++)
                        out[d] += weight * v[d];
                }
            }
            free(scores);
        }
    return failed;
}
