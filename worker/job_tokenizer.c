/* SPDX-License-Identifier: Apache-2.0
 * Making a tokenizer: trained on texts and captions of files or of datasets (their training split
 * alone), or imported as a SentencePiece model. */
#include "config.h"
#include "lib/bound.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/dataset.h"
#include "worker/source.h"
#include "worker/spm.h"
#include "worker/worker.h"

#include <inttypes.h>
#include <string.h>

static int read_files(struct job *job, struct spm_corpus *corpus, struct err *e)
{
	const Tf__Assignment *a = job->assignment;
	struct source *source = NULL;
	struct source_item item;
	uint64_t done = 0, bad = 0;
	int rc = source_open(a->source, a->n_source, NULL, "", &source, e);

	if (rc == 0)
		source_skip_pictures(source);
	while (rc == 0) {
		rc = job_should_stop(job) ? job_stopped(job, e) : source_next(source, &item, e);
		if (rc < 0 || item.what == SOURCE_END)
			break;
		if (item.what == SOURCE_SAMPLE)
			spm_corpus_add(corpus, item.text, item.text_bytes);
		else if (bad++ == 0)
			log_warn("left out %s: %s", item.name, item.text);
		job_report(job, "reading", ++done, 0, "text");
	}
	if (bad)
		log_warn("left out %" PRIu64 " texts", bad);
	source_close(source);
	return rc;
}

static int read_dataset(struct job *job, const char *path, struct spm_corpus *corpus,
			struct err *e)
{
	struct dataset *d = NULL;
	uint64_t count;
	int rc = dataset_open(path, &d, e);

	count = d ? dataset_info(d)->samples[DATASET_TRAIN] : 0;
	for (uint64_t i = 0; rc == 0 && i < count; i++) {
		struct sample s;

		rc = job_should_stop(job) ? job_stopped(job, e)
					  : dataset_get(d, DATASET_TRAIN, i, &s, e);
		if (rc == 0)
			spm_corpus_add(corpus, s.text, s.text_bytes);
		job_report(job, "reading", i + 1, count, "text");
	}
	dataset_close(d);
	return rc;
}

static int read_all(struct job *job, struct spm_corpus *corpus, struct err *e)
{
	const Tf__Input *in;

	if (job->assignment->n_source)
		TRY(read_files(job, corpus, e));
	for (size_t i = 0; (in = job_input(job, "data", i)) != NULL; i++)
		TRY(read_dataset(job, in->path, corpus, e));
	if (spm_corpus_left_out(corpus))
		log_warn("left out %" PRIu64 " texts: not UTF-8, or beyond %" PRIu64
			 " bytes of text",
			 spm_corpus_left_out(corpus), bound("corpus-bytes", LIMIT_CORPUS_BYTES));
	return 0;
}

static int train(struct job *job, const char *path, struct err *e)
{
	int32_t asked = (int32_t)job->spec->tokenizer->pieces, got = 0;
	struct spm_corpus *corpus = spm_corpus_new();
	int rc = read_all(job, corpus, e);

	if (rc == 0) {
		log_info("training %d pieces on %" PRIu64 " bytes", (int)asked,
			 spm_corpus_bytes(corpus));
		job_report(job, "training", 0, 1, "tokenizer");
		rc = spm_train(corpus, asked, path, &got, e);
	}
	if (rc == 0 && got < asked)
		log_info("the text is enough for %d pieces, %d were asked for", (int)got,
			 (int)asked);
	if (rc == 0)
		job_fact(job, "corpus_bytes", "%" PRIu64, spm_corpus_bytes(corpus));
	spm_corpus_free(corpus);
	return rc;
}

static int import(struct job *job, const char *path, struct err *e)
{
	const Tf__Assignment *a = job->assignment;
	struct buf model = BUF_INIT;
	struct spm *check = NULL;
	int rc;

	FAIL_IF(a->n_source != 1, e, TF_EINVALID, "found %zu files, expected one model to import",
		a->n_source);
	TRY(spm_open(a->source[0], &check, e));
	spm_close(check);
	rc = file_read(a->source[0], LIMIT_TOKENIZER_BYTES, &model, e);
	if (rc >= 0)
		rc = file_write(path, model.data, model.len, 0644, e);
	buf_release(&model);
	return rc;
}

static int state_facts(struct job *job, const char *path, struct err *e)
{
	struct spm *s;
	bool exact;

	TRY(spm_open(path, &s, e));
	exact = spm_is_exact(s);
	if (!exact)
		log_warn("texts do not come back exactly from this tokenizer");
	job_artefact(job, TF__ARTEFACT_KIND__TOKENIZER_MODEL, spm_hash(s));
	job_fact(job, "pieces", "%d", (int)spm_pieces(s));
	job_fact(job, "exact", "%s", exact ? "yes" : "no");
	job_result(job, "pieces", spm_pieces(s));
	job_report(job, "training", 1, 1, "tokenizer");
	spm_close(s);
	return 0;
}

int job_tokenizer(struct job *job, struct err *e)
{
	const Tf__TokenizerSpec *spec = job->spec->tokenizer;
	char *path;
	int rc;

	FAIL_IF(!spec || !job->output, e, TF_EINVALID,
		"the job has no tokenizer in its spec, or no folder for it");
	path = job_path(job->output, SPM_FILE);
	rc = spec->import ? import(job, path, e) : train(job, path, e);
	if (rc == 0)
		rc = state_facts(job, path, e);
	xfree(path);
	return rc;
}
