/* SPDX-License-Identifier: Apache-2.0
 * Eight bytes of text looked at together, for lists of ten thousands of jobs. Each answer is exact.
 */
#ifndef LIB_BYTES_H
#define LIB_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define BYTES_EACH(byte) (0x0101010101010101u * (byte))
#define BYTES_HIGH BYTES_EACH(0x80)

static inline uint64_t bytes_load(const void *p)
{
	uint64_t word;

	memcpy(&word, p, sizeof word);
	return word;
}

/* In each of these a borrow or carry into a byte comes from one that is found by itself. */

/* All are ASCII and none is NUL. */
static inline bool bytes_are_ascii(uint64_t word)
{
	return (((word - BYTES_EACH(1)) | word) & BYTES_HIGH) == 0;
}

/* All are of ' ' to '~'. */
static inline bool bytes_are_printable(uint64_t word)
{
	return (((word - BYTES_EACH(' ')) | (word + BYTES_EACH(1)) | word) & BYTES_HIGH) == 0;
}

/* None is less than `byte`, which is at most 0x80. */
static inline bool bytes_are_from(uint64_t word, uint8_t byte)
{
	return ((word - BYTES_EACH(byte)) & ~word & BYTES_HIGH) == 0;
}

/* None is `byte`. */
static inline bool bytes_lack(uint64_t word, uint8_t byte)
{
	return bytes_are_from(word ^ BYTES_EACH(byte), 1);
}

#endif
