/* SPDX-License-Identifier: Apache-2.0
 * UTF-8; see utf8.h. */
#include "config.h"
#include "lib/utf8.h"

#include <stdint.h>
#include <string.h>

size_t utf8_length(const char *text, size_t bytes)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char *p = (const unsigned char *)text;
	uint32_t code;
	size_t n;

	if (!bytes)
		return 0;
	if (p[0] < 0x80)
		return 1;
	n = p[0] >= 0xF0 && p[0] < 0xF8 ? 4 : p[0] >= 0xE0 ? 3 : 2;
	if (p[0] < 0xC0 || p[0] >= 0xF8 || n > bytes)
		return 0;
	code = p[0] & (0x7Fu >> n);
	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xC0) != 0x80)
			return 0;
		code = code << 6 | (p[i] & 0x3F);
	}
	if (code < least[n] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
		return 0;
	return n;
}

bool utf8_valid(const char *text, size_t bytes)
{
	for (size_t i = 0, n; i < bytes; i += n) {
		n = utf8_length(text + i, bytes - i);
		if (!n)
			return false;
	}
	return true;
}

size_t utf8_cut(const char *text, size_t most)
{
	size_t n = strnlen(text, most + 1);

	for (n = n > most ? most : n; n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80; n--)
		;
	return n;
}

void utf8_mend(char *text)
{
	size_t left = strlen(text), n;

	for (; left > 0; text += n, left -= n) {
		n = utf8_length(text, left);
		if (n > 0)
			continue;
		*text = '?';
		n = 1;
	}
}
