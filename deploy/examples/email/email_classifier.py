"""Tells e-mails that somebody in charge of compliance should see from all others.

The four functions of the standard model definition in one source: ``begin`` (init), ``action`` (score), ``metrics`` and
``train``. Words are stemmed and stop words left out (nltk, gensim), weighed by tf-idf over a dictionary (gensim,
scikit-learn), and judged by a lasso, which is a logistic regression with an L1 penalty.

``train`` leaves ``lasso_model_artifacts.pkl`` in ``outputDir``. Attached to a scoring or metrics job it lies in the
current directory, from where ``begin`` loads it.
"""

# modelop.schema.0: input_schema.avsc
# modelop.schema.1: output_schema.avsc

import functools
import json
import os
import pickle
import threading

import gensim
import nltk
import numpy as np
import pandas as pd
import scipy
import sklearn.feature_extraction.text
import sklearn.linear_model
import sklearn.metrics
from gensim.parsing import preprocessing

ARTIFACTS = "lasso_model_artifacts.pkl"
TAGGER = "averaged_perceptron_tagger_eng"
DOWNLOAD_SECONDS = 3
LABELS = ["Compliant", "Non-Compliant"]


# modelop.init
def begin():
    global lasso_model_artifacts
    lasso_model_artifacts = None
    # A first training has no artifacts to begin with.
    if os.path.exists(ARTIFACTS):
        with open(ARTIFACTS, "rb") as file:
            lasso_model_artifacts = pickle.load(file)
        if lasso_model_artifacts["with_tagger"] and not fetch_tagger():
            print("no tagger of nltk here: proper nouns are told by their capitals")
            lasso_model_artifacts["with_tagger"] = False


# modelop.score
def action(datum):
    x = pd.DataFrame(datum, index=[0])
    predictions = pd.Series(probabilities_of(x) > lasso_model_artifacts["threshold"], index=x.index).astype(int)
    output = pd.concat([x[["id", "content"]], predictions], axis=1)
    output.columns = ["id", "content", "prediction"]
    yield output.to_dict(orient="records")


# modelop.metrics
def metrics(x):
    actuals = x.flagged
    probabilities = probabilities_of(x)
    predictions = (probabilities > lasso_model_artifacts["threshold"]).astype(int)

    fpr, tpr, _ = sklearn.metrics.roc_curve(actuals, probabilities)
    yield {
        "roc_curve": [{"fpr": one[0], "tpr": one[1]} for one in zip(fpr, tpr)],
        "auc": sklearn.metrics.auc(fpr, tpr),
        "f2_score": sklearn.metrics.fbeta_score(actuals, predictions, beta=2),
        "confusion_matrix": matrix_to_dicts(sklearn.metrics.confusion_matrix(actuals, predictions), LABELS),
    }


# modelop.train
def train(data):
    with_tagger = fetch_tagger()
    cleaned = preprocess(data.content, with_tagger)

    dictionary = gensim.corpora.dictionary.Dictionary(documents=cleaned)
    dictionary.filter_extremes(no_below=5, no_above=0.4)
    corpus_sparse = sparse_counts(cleaned, dictionary)

    tfidf_model = sklearn.feature_extraction.text.TfidfTransformer()
    tfidf_vectors = tfidf_model.fit_transform(corpus_sparse)

    # All of L1 and nothing of L2: the lasso.
    logreg = sklearn.linear_model.LogisticRegression(
        l1_ratio=1, solver="liblinear", class_weight="balanced", max_iter=2500, random_state=740189
    )
    lasso_model = logreg.fit(tfidf_vectors, data.flagged)
    threshold = best_threshold(data.flagged, lasso_model.predict_proba(tfidf_vectors)[:, 1])

    artifacts = {
        "lasso_model": lasso_model,
        "dictionary": dictionary,
        "tfidf_model": tfidf_model,
        "threshold": threshold,
        "with_tagger": with_tagger,
    }
    with open(os.path.join("outputDir", ARTIFACTS), "wb") as file:
        pickle.dump(artifacts, file)
    report = {"emails": len(data), "words": len(dictionary), "weighed": int(np.count_nonzero(lasso_model.coef_))}
    with open(os.path.join("outputDir", "training_report.json"), "w", encoding="utf-8") as file:
        json.dump(dict(report, threshold=threshold, with_tagger=with_tagger), file)


def best_threshold(actuals, probabilities):
    """The threshold with the best F2 score: to overlook an e-mail is worse than to look at one too many."""
    candidates = np.arange(5, 96) / 100
    scores = [sklearn.metrics.fbeta_score(actuals, probabilities > one, beta=2) for one in candidates]
    return float(candidates[int(np.argmax(scores))])


def probabilities_of(x):
    """How probable it is that each e-mail of a frame is to be flagged."""
    cleaned = preprocess(x.content, lasso_model_artifacts["with_tagger"])
    corpus_sparse = sparse_counts(cleaned, lasso_model_artifacts["dictionary"])
    tfidf_vectors = lasso_model_artifacts["tfidf_model"].transform(corpus_sparse)
    return lasso_model_artifacts["lasso_model"].predict_proba(tfidf_vectors)[:, 1]


def sparse_counts(cleaned, dictionary):
    """How often each word of the dictionary stands in each e-mail: one row an e-mail, one column a word."""
    corpus = cleaned.apply(dictionary.doc2bow).to_list()
    corpus_sparse = gensim.matutils.corpus2csc(corpus).transpose()
    return pad_sparse_matrix(corpus_sparse, len(cleaned), len(dictionary))


def pad_sparse_matrix(sp_mat, length, width):
    """The matrix with rows and columns of nothing added, for words that none of these e-mails has."""
    sp_mat = sp_mat.tocsr()
    indptr = np.concatenate([sp_mat.indptr, np.full(length - sp_mat.shape[0], sp_mat.indptr[-1])])
    return scipy.sparse.csr_matrix((sp_mat.data, sp_mat.indices, indptr), shape=(length, width))


def matrix_to_dicts(matrix, labels):
    return [dict(zip(labels, row.tolist())) for row in matrix]


# --- Words -----------------------------------------------------------------------------------------------------------


def preprocess(series, with_tagger):
    """The stems of the words that count in each of these texts."""
    filters = [str.lower, preprocessing.strip_tags, preprocessing.strip_punctuation]
    words_of = functools.partial(gensim.parsing.preprocess_string, filters=filters)
    stemmer = nltk.stem.porter.PorterStemmer()

    def clean(text):
        words = map(preprocessing.remove_stopwords, words_of(remove_proper_nouns(text, with_tagger)))
        return [stemmer.stem(word) for word in words if len(word) > 1 and word.isalpha()]

    return series.astype(str).apply(clean)


def remove_proper_nouns(text, with_tagger):
    """The text without names, which would be learned by heart."""
    list_of_words = text.split()
    if with_tagger:
        return " ".join(word for word, tag in nltk.tag.pos_tag(list_of_words) if tag != "NNP")
    # A capital anywhere but at the beginning of a sentence.
    befores = ["."] + list_of_words
    kept = [
        word
        for before, word in zip(befores, list_of_words)
        if not word[:1].isupper() or before.endswith((".", "!", "?", ":"))
    ]
    return " ".join(kept)


def fetch_tagger():
    """Whether nltk's tagger is there, or can be had within some seconds.

    A machine that reaches no network refuses at once or never answers; neither may hold up or fail a job.
    """
    folder = os.path.abspath("nltk_data")
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)
    if not has_tagger():
        download = functools.partial(nltk.download, TAGGER, download_dir=folder, quiet=True)
        waiting = threading.Thread(target=quietly, args=(download,), daemon=True)
        waiting.start()
        waiting.join(DOWNLOAD_SECONDS)
    return has_tagger()


def quietly(call):
    try:
        call()
    except Exception as error:
        print("no tagger of nltk:", error)


def has_tagger():
    """Whether it works: what was fetched may be half there."""
    try:
        nltk.tag.pos_tag(["word"])
    except Exception:
        return False
    return True
