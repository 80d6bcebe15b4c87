/* SPDX-License-Identifier: Apache-2.0
 * CIDEr-D, how well captions agree with references (Vedantam, Zitnick and Parikh 2015, "CIDEr:
 * Consensus-based image description evaluation", equations 1 to 4).
 *
 * A caption is its words: runs of letters, digits and bytes beyond ASCII, in lower case. For n
 * = 1..4 the vector g_n(s) has for each n-gram w the value h_w(s) log(N / max(1, d_w)): h_w its
 * count, N the pictures, d_w the pictures of which some reference has w. Then for candidate c and
 * references s_j
 *
 *   CIDEr-D_n = 10 / m sum_j exp(-(l(c) - l(s_j))^2 / (2 6^2)) min(g_n(c), g_n(s_j)) . g_n(s_j)
 *                                                              / (|g_n(c)| |g_n(s_j)|)
 *
 * with l the number of words and min taken for each n-gram; the score is the mean over n. A
 * caption of fewer than four words has no 4-grams and cannot reach 10. */
#ifndef WORKER_CIDER_H
#define WORKER_CIDER_H

#include <stddef.h>

struct cider_item {
	const char *candidate;
	const char *const *reference;
	size_t references; /* at least 1 */
};

/* The mean over the items; each (may be NULL) gets the score of every item. 0 for no items. */
double cider_score(const struct cider_item *item, size_t count, double *each);

#endif
