/* SPDX-License-Identifier: Apache-2.0
 * SentencePiece behind the C interface of spm.h; the one C++ file. No exception leaves it. */
#include "config.h"
#include "worker/spm.h"

extern "C" {
#include "lib/bound.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/utf8.h"
#include "proto/limits.h"
}

#include <exception>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <string>
#include <unordered_map>
#include <vector>
#include <xxhash.h>

/* Longest sentence given to the trainer, which leaves out longer ones. */
#define SENTENCE_BYTES_MAX 4000

struct spm {
	sentencepiece::SentencePieceProcessor model;
	char hash[SPM_HASH_TEXT];
};

struct spm_corpus {
	std::vector<std::string> sentences;
	uint64_t bytes, left_out;
};

namespace {

class corpus_iterator : public sentencepiece::SentenceIterator {
public:
	explicit corpus_iterator(const spm_corpus *corpus) : corpus_(corpus) {}
	bool done() const override { return at_ >= corpus_->sentences.size(); }
	void Next() override { at_++; }
	const std::string &value() const override { return corpus_->sentences[at_]; }
	sentencepiece::util::Status status() const override { return {}; }

private:
	const spm_corpus *corpus_;
	size_t at_ = 0;
};

void hash_hex(const void *data, size_t bytes, char hex[SPM_HASH_TEXT])
{
	XXH128_canonical_t digest;

	XXH128_canonicalFromHash(&digest, XXH3_128bits(data, bytes));
	for (size_t i = 0; i < sizeof digest.digest; i++)
		snprintf(hex + 2 * i, 3, "%02x", digest.digest[i]);
}

/* Calls fn; what it throws becomes a sentence. */
template <typename F> int guarded(struct err *e, F fn)
{
	try {
		return fn();
	} catch (const std::exception &thrown) {
		return err_set(e, TF_EINTERNAL, "tokenizer: %s", thrown.what());
	} catch (...) {
		return err_set(e, TF_EINTERNAL, "tokenizer: unknown exception");
	}
}

int load(const char *path, spm *s, struct err *e)
{
	struct buf file = BUF_INIT;
	int rc = file_read(path, LIMIT_TOKENIZER_BYTES, &file, e);

	if (rc < 0) {
		buf_release(&file); /* what was read before it failed */
		return rc;
	}
	hash_hex(file.data, file.len, s->hash);
	std::string model(file.data ? file.data : "", file.len); /* what follows may throw */
	buf_release(&file);
	auto status = s->model.LoadFromSerializedProto(model);
	FAIL_IF(!status.ok(), e, TF_EINVALID, "%s: not a SentencePiece model: %s", path,
		status.ToString().c_str());
	int pieces = s->model.GetPieceSize(), bos = s->model.bos_id(), eos = s->model.eos_id();
	FAIL_IF(pieces < 3 || pieces > LIMIT_TOKENIZER_PIECES, e, TF_EINVALID,
		"%s: %d pieces, expected 3 to %d", path, pieces, LIMIT_TOKENIZER_PIECES);
	FAIL_IF(bos < 0 || eos < 0 || bos >= pieces || eos >= pieces || bos == eos, e, TF_EINVALID,
		"%s: BOS is %d and EOS %d, expected two pieces", path, bos, eos);
	return 0;
}

} // namespace

extern "C" int spm_open(const char *path, struct spm **out, struct err *e)
{
	*out = nullptr;
	return guarded(e, [&] {
		spm *s = new spm();
		int rc = guarded(e, [&] { return load(path, s, e); });

		if (rc < 0)
			delete s;
		else
			*out = s;
		return rc;
	});
}

extern "C" int spm_open_folder(const char *folder, struct spm **out, struct err *e)
{
	char *path = xasprintf("%s/%s", folder, SPM_FILE);
	int rc = spm_open(path, out, e);

	xfree(path);
	return rc;
}

extern "C" void spm_close(struct spm *s)
{
	delete s;
}

extern "C" int32_t spm_pieces(const struct spm *s)
{
	return s->model.GetPieceSize();
}

extern "C" int32_t spm_bos(const struct spm *s)
{
	return s->model.bos_id();
}

extern "C" int32_t spm_eos(const struct spm *s)
{
	return s->model.eos_id();
}

extern "C" const char *spm_hash(const struct spm *s)
{
	return s->hash;
}

extern "C" const char *spm_piece(const struct spm *s, int32_t id)
{
	if (id < 0 || id >= s->model.GetPieceSize())
		return nullptr;
	return s->model.IdToPiece(id).c_str();
}

extern "C" bool spm_is_exact(const struct spm *s)
{
	static const char *const hard[] = { "A red apple.", " two  spaces ", "line\nbreak\ttab", "",
					    "na\xc3\xafve \xf0\x9f\x8d\x8e 12,345", "<s> </s>" };
	bool exact = true;
	struct err e = ERR_INIT;

	for (const char *text : hard) {
		struct buf back = BUF_INIT;
		int32_t *token = nullptr;
		size_t count = 0;
		struct spm *open = const_cast<struct spm *>(s);
		int rc = spm_encode(open, text, strlen(text), &token, &count, &e);

		if (rc == 0)
			rc = spm_decode(open, token, count, &back, &e);
		exact = exact && rc == 0 && std::string(text) == (back.data ? back.data : "");
		xfree(token);
		buf_release(&back);
	}
	return exact;
}

extern "C" int spm_encode(struct spm *s, const char *text, size_t bytes, int32_t **token,
			  size_t *count, struct err *e)
{
	*token = nullptr;
	*count = 0;
	FAIL_IF(!utf8_valid(text, bytes), e, TF_EINVALID, "the text is not UTF-8");
	return guarded(e, [&] {
		std::vector<int> ids;
		auto status = s->model.Encode(std::string_view(text, bytes), &ids);

		FAIL_IF(!status.ok(), e, TF_EINVALID, "tokenizer: %s", status.ToString().c_str());
		*token = static_cast<int32_t *>(xmalloc((ids.size() + 1) * sizeof(int32_t)));
		for (size_t i = 0; i < ids.size(); i++)
			(*token)[i] = ids[i];
		*count = ids.size();
		return 0;
	});
}

extern "C" int spm_decode(struct spm *s, const int32_t *token, size_t count, struct buf *out,
			  struct err *e)
{
	return guarded(e, [&] {
		std::vector<int> ids;
		std::string text;

		for (size_t i = 0; i < count; i++) {
			FAIL_IF(token[i] < 0 || token[i] >= s->model.GetPieceSize(), e, TF_EINVALID,
				"token %d, expected 0 to %d", (int)token[i],
				s->model.GetPieceSize() - 1);
			if (!s->model.IsControl(token[i]))
				ids.push_back(token[i]);
		}
		auto status = s->model.Decode(ids, &text);
		FAIL_IF(!status.ok(), e, TF_EINVALID, "tokenizer: %s", status.ToString().c_str());
		buf_append(out, text.data(), text.size());
		return 0;
	});
}

/* ---- training ---- */

extern "C" struct spm_corpus *spm_corpus_new(void)
{
	return new spm_corpus();
}

extern "C" void spm_corpus_free(struct spm_corpus *c)
{
	delete c;
}

extern "C" uint64_t spm_corpus_bytes(const struct spm_corpus *c)
{
	return c->bytes;
}

extern "C" uint64_t spm_corpus_left_out(const struct spm_corpus *c)
{
	return c->left_out;
}

/* Where to cut a line that is too long: after a space, at least between two characters. */
static size_t cut(const char *line, size_t bytes)
{
	size_t at = SENTENCE_BYTES_MAX;

	if (bytes <= SENTENCE_BYTES_MAX)
		return bytes;
	while (at > SENTENCE_BYTES_MAX / 2 && line[at - 1] != ' ')
		at--;
	return at > SENTENCE_BYTES_MAX / 2 ? at : utf8_cut(line, SENTENCE_BYTES_MAX);
}

extern "C" void spm_corpus_add(struct spm_corpus *c, const char *text, size_t bytes)
{
	if (!utf8_valid(text, bytes) || memchr(text, 0, bytes) ||
	    bytes > bound("corpus-bytes", LIMIT_CORPUS_BYTES) - c->bytes) {
		c->left_out++;
		return;
	}
	for (size_t at = 0, n; at < bytes; at += n) {
		const void *end = memchr(text + at, '\n', bytes - at);
		size_t line = end ? (size_t)((const char *)end - (text + at)) : bytes - at;

		n = cut(text + at, line);
		if (n)
			c->sentences.emplace_back(text + at, n);
		if (n == line && end)
			n++;
	}
	c->bytes += bytes;
}

static sentencepiece::util::Status train_once(const struct spm_corpus *c, int32_t pieces,
					      const char *coverage, std::string *model)
{
	const std::unordered_map<std::string, std::string> settings = {
		{ "model_type", "bpe" },
		{ "vocab_size", std::to_string(pieces) },
		{ "character_coverage", coverage },
		{ "byte_fallback", "true" },
		{ "normalization_rule_name", "identity" },
		{ "add_dummy_prefix", "false" },
		{ "remove_extra_whitespaces", "false" },
		{ "hard_vocab_limit", "false" },
		{ "unk_id", "0" },
		{ "bos_id", "1" },
		{ "eos_id", "2" },
		{ "pad_id", "-1" },
		{ "num_threads", "1" },
		{ "minloglevel", "2" },
	};
	corpus_iterator sentences(c);

	return sentencepiece::SentencePieceTrainer::Train(settings, &sentences, model);
}

extern "C" int spm_train(const struct spm_corpus *c, int32_t pieces, const char *path, int32_t *got,
			 struct err *e)
{
	/* Share of the text whose characters get a piece; the rarest are left to bytes. */
	static const char *const coverages[] = { "0.9995", "0.99", "0.98" };

	FAIL_IF(c->sentences.empty(), e, TF_EINVALID, "there is no text to train a tokenizer on");
	FAIL_IF(pieces < SPM_PIECES_LEAST || pieces > LIMIT_TOKENIZER_PIECES, e, TF_EINVALID,
		"pieces: found %d, expected %d to %d", (int)pieces, SPM_PIECES_LEAST,
		LIMIT_TOKENIZER_PIECES);
	return guarded(e, [&] {
		sentencepiece::util::Status status;
		struct spm *check = nullptr;
		std::string model;
		int rc;

		for (const char *coverage : coverages) {
			model.clear();
			status = train_once(c, pieces, coverage, &model);
			if (status.ok())
				break;
		}
		FAIL_IF(!status.ok(), e, TF_EINVALID,
			"%d pieces are too few for the characters of this text: %s", (int)pieces,
			status.ToString().c_str());
		rc = file_write(path, model.data(), model.size(), 0644, e);
		if (rc == 0)
			rc = spm_open(path, &check, e);
		if (rc == 0)
			*got = spm_pieces(check);
		spm_close(check);
		return rc;
	});
}
