/* A set of small whole numbers, one bit for each; it grows as numbers are added. */

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS (sizeof(uint64_t) * CHAR_BIT)

struct bitset {
    uint64_t *words;
    size_t length; /* words that are allocated */
};

void bitset_init(struct bitset *set)
{
    set->words = NULL;
    set->length = 0;
}

void bitset_free(struct bitset *set)
{
    free(set->words);
    bitset_init(set);
}

/* Makes room for at least `length` words. Returns false where memory is short; the set is as
 * it was then. */
static bool bitset_grow(struct bitset *set, size_t length)
{
    if (length <= set->length)
        return true;
    size_t wanted = set->length * 2 > length ? set->length * 2 : length;
    if (wanted > SIZE_MAX / sizeof(*set->words))
        return false;
    uint64_t *words = realloc(set->words, wanted * sizeof(*words));
    if (words == NULL)
        return false;
    memset(words + set->length, 0, (wanted - set->length) * sizeof(*words));
    set->words = words;
    set->length = wanted;
    return true;
}

bool bitset_add(struct bitset *set, size_t number)
{
    size_t word = number / WORD_BITS;
    if (!bitset_grow(set, word + 1))
        return false;
    set->words[word] |= UINT64_C(1) << (number % WORD_BITS);
    return true;
}

void bitset_remove(struct bitset *set, size_t number)
{
    size_t word = number / WORD_BITS;
    if (word < set->length)
        set->words[word] &= ~(UINT64_C(1) << (number % WORD_BITS));
}

bool bitset_contains(const struct bitset *set, size_t number)
{
    size_t word = number / WORD_BITS;
    return word < set->length && (set->words[word] >> (number % WORD_BITS) & 1) != 0;
}

/* How many numbers are in the set. */
size_t bitset_count(const struct bitset *set)
{
    size_t count = 0;
    for (size_t i = 0; i < set->length; i++)
        for (uint64_t word = set->words[i]; word != 0; word &= word - 1)
            count++;
    return count;
}

/* Adds every number of `other` to `set`. */
bool bitset_union(struct bitset *set, const struct bitset *other)
{
    if (!bitset_grow(set, other->length))
        return false;
    for (size_t i = 0; i < other->length; i++)
        set->words[i] |= other->words[i];
    return true;
}
