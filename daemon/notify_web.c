/* SPDX-License-Identifier: Apache-2.0
 * Posting a notice to a web address; see notify.h. */
#include "config.h"
#include "daemon/notify.h"

#ifdef HAVE_CURL

#include <curl/curl.h>
#include <stdio.h>

#define ANSWER_BYTES_MAX 65536 /* of an answer nobody reads */
#define TOO_MANY 429
#define REQUEST_TIMEOUT 408

static size_t take_answer(char *data, size_t size, size_t count, void *arg)
{
	size_t *taken = arg;

	(void)data;
	*taken += size * count;
	return *taken > ANSWER_BYTES_MAX ? 0 : size * count;
}

/* "hooks.example.com" of an address. */
static void host_of(const char *url, char out[100])
{
	CURLU *parts = curl_url();
	char *host = NULL;

	if (parts && curl_url_set(parts, CURLUPART_URL, url, 0) == CURLUE_OK)
		curl_url_get(parts, CURLUPART_HOST, &host, 0);
	snprintf(out, 100, "%.99s", host ? host : "the address");
	curl_free(host);
	curl_url_cleanup(parts);
}

static CURLcode perform(CURL *curl, const char *url, const char *body, int64_t timeout_ms)
{
	struct curl_slist *head = curl_slist_append(NULL, "Content-Type: application/json");
	size_t taken = 0;
	CURLcode rc;

	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, head);
	curl_easy_setopt(curl, CURLOPT_USERAGENT, "transfused/" PACKAGE_VERSION);
	curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_answer);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &taken);
	rc = curl_easy_perform(curl);
	curl_slist_free_all(head);
	return rc;
}

int web_post(const char *url, const char *body, int64_t timeout_ms, bool *again, struct err *e)
{
	CURL *curl = curl_easy_init();
	CURLcode rc = CURLE_FAILED_INIT;
	char host[100];
	long status = 0;

	host_of(url, host);
	if (curl) {
		rc = perform(curl, url, body, timeout_ms);
		curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
		curl_easy_cleanup(curl);
	}
	if (rc == CURLE_WRITE_ERROR && status >= 200 && status < 300)
		rc = CURLE_OK; /* a long answer is one too */
	*again = rc != CURLE_OK || status >= 500 || status == TOO_MANY || status == REQUEST_TIMEOUT;
	FAIL_IF(rc != CURLE_OK, e, TF_EREFUSED, "%s: %s", host, curl_easy_strerror(rc));
	FAIL_IF(status < 200 || status >= 300, e, TF_EREFUSED, "%s answered with status %ld", host,
		status);
	return 0;
}

#else

int web_post(const char *url, const char *body, int64_t timeout_ms, bool *again, struct err *e)
{
	(void)url;
	(void)body;
	(void)timeout_ms;
	*again = false;
	return err_set(e, TF_EUNSUPPORTED, "this program was built without libcurl");
}

#endif
