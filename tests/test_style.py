"""Style measures against values computed by hand, by plain Python, and by brute force."""

import itertools
import json
import math
import random
import re
import statistics
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegen.style import StyleReference, Written
from stylegen.style.__main__ import hold_out, main, perplexity_of, read_documents, read_written

ORIGINAL = (
    "It was the best of times, it was the worst of times;\nit was the age of wisdom and of foolishness."
)


ZIPF = list(itertools.accumulate(1 / (rank + 2) for rank in range(400)))


def reference(train=ORIGINAL, validation="Quite other words."):
    return StyleReference.build([("a.txt", train)], [("b.txt", validation)])


def measure(text, train=ORIGINAL, **options):
    return reference(train, **options).measure([Written("", text)])


def made_words(count, seed, favourite=0):
    """Words of a Zipf-like distribution of 400; `favourite` turns the ranks, which is another author."""
    draw = random.Random(seed)
    words = [f"w{(rank + favourite) % 400:03d}" for rank in range(400)]
    return draw.choices(words, cum_weights=ZIPF, k=count)


# --- distance


def plain_distance(train, validation, generated, window, tie):
    """Burrows's Delta ratio of lists of features, as docs/style.md defines it, without numpy.

    tie  feature -> what decides between equally frequent ones
    """
    counts = Counter(train)
    features = sorted(counts, key=lambda feature: (-counts[feature], tie(feature)))[:150]

    length = window // 20

    def passages(text):
        return [Counter(text[start : start + length]) for start in range(0, len(text) - length + 1, length)]

    def z(counters):
        total = sum(map(Counter.total, counters))
        counts = [sum(counted[feature] for counted in counters) for feature in features]
        return [
            (count / total - mean) / scale for count, mean, scale in zip(counts, means, scales, strict=True)
        ]

    def windows(text):
        cut = passages(text)
        number = len(cut) // 20
        return [cut[: number * 20][first::number] for first in range(number)]

    def delta(row, profile):
        return statistics.fmean(abs(a - b) for a, b in zip(row, profile, strict=True))

    def mean(rows):
        return [statistics.fmean(column) for column in zip(*rows, strict=True)]

    shares = [
        [sum(part[feature] for part in each) / window for feature in features] for each in windows(train)
    ]
    means = mean(shares)
    scales = [statistics.pstdev(column) or math.inf for column in zip(*shares, strict=True)]
    known, unseen = [z(each) for each in windows(train)], [z(each) for each in windows(validation)]
    cut = passages(generated)
    own = statistics.fmean(
        statistics.pvariance([part[feature] for part in cut]) / (length * scale) ** 2 / len(cut)
        for feature, scale in zip(features, scales, strict=True)
    )
    scatter = math.sqrt(max(1 - own, 0))
    center, profile, size = z(cut), mean(unseen), len(unseen)
    far = [delta([c + scatter * k for c, k in zip(center, row, strict=True)], profile) for row in known]
    profiles = [mean(known[i : i + size]) for i in range(0, len(known) // size * size, size)]
    near = [delta(row, other) for other in profiles for row in unseen]
    return statistics.median(far) / statistics.median(near)


def test_the_distance_is_that_of_plain_python():
    train, validation, generated = made_words(13_500, 0), made_words(3_200, 1), made_words(2_900, 2, 5)
    measures = StyleReference.build(
        [("a", " ".join(train[:7000])), ("b", " ".join(train[7000:]))], [("c", " ".join(validation))]
    ).measure([Written("", " ".join(generated[:1000])), Written("", " ".join(generated[1000:]))])
    expected = plain_distance(train, validation, generated, 1000, train.index)  # the first one met
    assert measures.distance == pytest.approx(expected, abs=1e-12)


def test_the_distance_of_characters_is_that_of_plain_python():
    texts = [make_text(num_lines, seed) for seed, num_lines in enumerate((1900, 420, 400))]
    expected = plain_distance(
        *([text[i : i + 3] for i in range(len(text) - 2)] for text in texts), 5000, lambda gram: gram
    )
    measures = StyleReference.build([("a", texts[0])], [("b", texts[1])]).measure([Written("", texts[2])])
    assert measures.distance_chars == pytest.approx(expected, abs=1e-12)


def test_an_interval_holds_the_distance_and_narrows_with_more_text():
    built = StyleReference.build(
        [("a", " ".join(made_words(30_000, 0)))], [("b", " ".join(made_words(5_000, 1)))]
    )
    texts = [Written("", " ".join(made_words(1_000, seed))) for seed in range(2, 42)]
    few, many = built.measure(texts[:1]), built.measure(texts)
    for measures in (few, many):
        assert measures.distance_low < measures.distance < measures.distance_high
        assert measures.distance_low < 1 < measures.distance_high
    assert many.distance_high - many.distance_low < 0.6 * (few.distance_high - few.distance_low)
    assert built.measure(texts) == many != built.measure(texts, seed=1)


def test_too_little_text_is_said_and_the_rest_is_measured():
    built = StyleReference.build(
        [("a", " ".join(made_words(10_000, 0)))], [("b", " ".join(made_words(1_000, 1)))]
    )
    short = built.measure([Written("", " ".join(made_words(999, 2)))])
    assert short.distance is short.distance_low is short.distance_high is None
    assert "words: 999 of generated text (needs 1,000)" in short.too_little
    assert short.copy_rate == 0 and short.new_words == 0
    assert "style/distance" not in short.metrics() and "style/copy_rate" in short.metrics()
    assert built.measure([Written("", " ".join(made_words(1_200, 2)))]).distance is not None
    lacking = measure("a word").too_little
    assert "21 of training text (needs 10,000), 3 of validation text (needs 1,000)" in lacking


def test_a_short_validation_text_does_not_make_everything_look_far():
    train = [("a", " ".join(made_words(40_000, 0)))]
    texts = [Written("", " ".join(made_words(20_000, 1)))]
    distances = [
        StyleReference.build(train, [("b", " ".join(made_words(size, seed)))]).measure(texts).distance
        for size, seed in ((1_000, 2), (2_000, 3), (20_000, 4))
    ]
    assert distances == pytest.approx([1, 1, 1], abs=0.12)


def test_short_samples_are_as_near_as_long_ones():
    """A window of many subjects is not nearer than one of few: words here come in stretches of a subject."""

    def subjects(count, seed):
        draw = random.Random(seed)
        return [
            word for _ in range(count // 60) for word in made_words(60, draw.random(), draw.randrange(40))
        ]

    author = StyleReference.build(
        [("a", " ".join(subjects(30_000, 0)))], [("b", " ".join(subjects(15_000, 1)))]
    )
    words = subjects(15_000, 2)
    parts = [words[i : i + 60] for i in range(0, len(words), 60)]
    random.Random(3).shuffle(parts)
    samples = author.measure([Written("", " ".join(part)) for part in parts])
    assert author.measure([Written("", " ".join(words))]).distance == pytest.approx(1, abs=0.05)
    assert samples.distance == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [1_000, 20_000])
def test_gibberish_is_farther_however_little_there_is(size):
    """Half of its words are the author's, in his proportions: windows of it scatter less than his."""
    author = StyleReference.build(
        [("a", " ".join(made_words(40_000, 0)))], [("b", " ".join(made_words(10_000, 1)))]
    )
    own = made_words(size, 2)
    half = [word if number % 2 else f"x{number}" for number, word in enumerate(own)]
    same, gibberish = (author.measure([Written("", " ".join(words))]) for words in (own, half))
    assert same.distance == pytest.approx(1, abs=0.1) and gibberish.distance > 1.15


def test_another_author_is_farther_and_the_same_one_is_not():
    train = " ".join(made_words(40_000, 0))
    author = StyleReference.build([("a", train)], [("b", " ".join(made_words(5_000, 1)))])
    same, near, far = (
        author.measure([Written("", " ".join(made_words(5_000, 2, turn)))]) for turn in (0, 1, 30)
    )
    copied = author.measure([Written("", train[:20_000])])
    assert same.distance < near.distance < far.distance and far.distance_low > 1.5
    assert same.distance_chars < near.distance_chars < far.distance_chars
    assert copied.distance == pytest.approx(1, abs=0.15) and copied.copy_rate == 1 > same.copy_rate


# --- copying


@pytest.mark.parametrize(
    "text, runs",
    [
        ("Hear: it was the worst of times; it was no more", ["it was the worst of times; it was"]),
        # case, punctuation and line breaks do not count
        (
            "HEAR: It was -- the\nworst of times! It, was; the",
            ["It was -- the\nworst of times! It, was; the"],
        ),
        ("it was the worst of times it", []),  # seven words
        (
            "best of times it was the worst of gold it was the age of wisdom and of",
            ["best of times it was the worst of", "it was the age of wisdom and of"],
        ),
        ("it was the age of wisdom and it was the best of times it", []),  # seven and seven
        ("", []),
        ("...", []),
    ],
)
def test_copied_runs_stand_where_they_stand(text, runs):
    built = reference()
    assert [text[start:end] for start, end in built.copied_runs(text)] == runs


def test_runs_that_overlap_or_touch_are_one_but_the_longest_copy_stands_in_one_place():
    first, second = "a b c d e f g h i j", "c d e f g h i j k l"
    built = StyleReference.build([("one", first), ("two", second)], [])
    text = "a b c d e f g h i j k l"
    assert built.copied_runs(text) == [
        (0, len(text))
    ]  # eight words at a time, from the one and from the other
    measures = built.measure([Written("", text)])
    assert measures.copy_rate == 1 and measures.longest_copy == 10
    touching = f"{first} {second}"
    assert built.copied_runs(touching) == [(0, len(touching))]


def test_no_run_reaches_over_the_border_of_two_texts():
    words = "a b c d e f g h".split()
    halves = [("one", " ".join(words[:4])), ("two", " ".join(words[4:]))]
    assert StyleReference.build(halves, []).copied_runs(" ".join(words)) == []
    built = StyleReference.build([("one", " ".join(words))], halves)
    measures = built.measure([Written("", text) for _, text in halves])
    assert measures.copy_rate is measures.copy_rate_validation is None
    assert measures.longest_copy == 0 and measures.longest_place == ""


def test_the_longest_copy_is_found_with_its_file_line_and_word():
    documents = [
        ("one.txt", "alpha beta\n\ngamma " + ORIGINAL),
        ("two.txt", "delta\nepsilon it was the age of wisdom and of zeta"),
    ]
    built = StyleReference.build(documents, [("v.txt", "It was the age of wisdom and of eta")])
    measures = built.measure(
        [Written("", "so epsilon it was the age of wisdom and of"), Written("", "nothing")]
    )
    assert measures.longest_copy == 9 and measures.longest_copy_validation == 8
    assert measures.longest_place == "two.txt, line 2, word 2: epsilon it was the age of wisdom and of"
    assert (measures.copy_rate, measures.copy_rate_validation) == (2 / 3, 1 / 2)


def test_prompts_do_not_count():
    prompted = reference().measure([Written(ORIGINAL, "something of its own that nobody has ever written")])
    assert prompted.copy_rate == 0 and prompted.words == 9


@pytest.mark.parametrize(
    "original, copy",
    [
        (
            "déjà vu était là où naïve garçon cœur",
            unicodedata.normalize("NFD", "Déjà vu était là où naïve GARÇON cœur"),
        ),
        ("don’t they’ll it’s we’ve I’m can’t won’t o’er", "don't they'll it's we've I'm can't won't o'er"),
        ("Straße eins zwei drei vier fünf sechs sieben", "STRASSE eins zwei drei vier fünf sechs sieben"),
        ("國破山河在城春草木", "x國破山河在，城春草木"),
        ("हिन्दी में यह एक बहुत छोटा वाक्य है", "हिन्दी में यह एक, बहुत छोटा वाक्य है।"),
    ],
)
def test_words_are_words_in_any_script(original, copy):
    built = reference(original)
    (start, end), *others = built.copied_runs(copy)
    assert not others and copy[start:end].strip("x।") == copy.strip("x।")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab ", min_size=1, max_size=60), min_size=1, max_size=3), st.text("abc .", max_size=80)
)
def test_copying_is_that_of_brute_force(documents, text):
    if not "".join(documents).strip():
        return
    built = StyleReference.build([(str(n), document) for n, document in enumerate(documents)], [])
    training, words = [document.split() for document in documents], text.replace(".", " ").split()

    def stands(run):
        return any(run == each[i : i + len(run)] for each in training for i in range(len(each)))

    copied = [stands(words[i : i + 8]) for i in range(len(words) - 7)]
    covered = [any(copied[max(i - 7, 0) : i + 1]) for i in range(len(words))]
    runs = built.copied_runs(text)
    inside = [
        any(start <= match.start() < end for start, end in runs) for match in re.finditer(r"[abc]+", text)
    ]
    assert inside == covered
    measures = built.measure([Written("", text)])
    assert measures.copy_rate == (sum(copied) / len(copied) if copied else None)
    longest = max(
        (n for n in range(8, len(words) + 1) for i in range(len(words) - n + 1) if stands(words[i : i + n])),
        default=0,
    )
    assert measures.longest_copy == longest


# --- health


def test_health_by_hand():
    train = "One two three four. Five six seven eight.\nNine ten eleven twelve.\n\n"  # 4 a sentence, 6 a line
    measures = reference(train).measure(
        [Written("", "One two one two one two!\nThree new.\n"), Written("", "Two two")]
    )
    assert measures.words == 10 and measures.texts == 2
    assert measures.new_words == 1 / 10
    # pairs: one-two x3, two-one x2, two-three, three-new | two-two
    assert measures.distinct_2 == 5 / 8
    # one-two-one x2, two-one-two x2, one-two-three, two-three-new
    assert measures.distinct_3 == 4 / 6
    # one-two-one-two x2, two-one-two-one, two-one-two-three, one-two-three-new; the short text has none
    assert measures.repetition_4 == pytest.approx(1 - 4 / 5)
    assert measures.sentence_words == (10 / 2) / 4
    assert measures.line_words == (10 / 2) / 6


def test_new_words_are_not_all_the_same_word():
    assert measure("ah oh uh eh").distinct_2 == 1


def test_distinct_shares_do_not_depend_on_the_amount():
    built = reference(" ".join(made_words(3000, 0)))
    few, many = (built.measure([Written("", " ".join(made_words(size, 1)))]) for size in (4000, 40_000))
    assert few.distinct_2 == pytest.approx(many.distinct_2, abs=0.01)


@pytest.mark.parametrize("texts", [[], [Written("", "")], [Written("a prompt", " \n...")]])
def test_nothing_gives_no_values(texts):
    measures = reference().measure(texts)
    assert measures.metrics() == {"style/copy_rate_validation": 0.0, "style/longest_copy": 0.0} or (
        measures.metrics() == {"style/longest_copy": 0.0}
    )
    assert reference().copied_runs("") == []


def test_the_names_that_are_logged():
    built = StyleReference.build(
        [("a", " ".join(made_words(12_000, 0)))], [("b", " ".join(made_words(2_000, 1)))]
    )
    metrics = built.measure([Written("", " ".join(made_words(2_000, 2)))]).metrics()
    assert set(metrics) == {
        f"style/{name}"
        for name in (
            "distance", "distance_low", "distance_high", "distance_chars", "copy_rate", "copy_rate_validation",
            "longest_copy", "distinct_2", "distinct_3", "repetition_4", "new_words", "sentence_words", "line_words",
        )
    }  # fmt: skip
    assert all(type(value) is float for value in metrics.values())


def test_a_reference_needs_a_word():
    with pytest.raises(ValueError, match="no word in it"):
        StyleReference.build([("a", " ...\n")], [])


# --- command


@pytest.fixture
def files(tmp_path):
    """train.md, validation.txt and two systems: one copies, one is made anew."""
    (tmp_path / "train.md").write_text("# Title\n\n" + make_text(2000, 0), encoding="utf-8")
    (tmp_path / "validation.txt").write_text(make_text(300, 1), encoding="utf-8")
    for name, seed, count in (("copy", 0, 500), ("new", 2, 500)):
        rows = [{"prompt": "KING", "text": make_text(count, seed), "number": 0}]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return tmp_path


def run(files, *flags, texts=("copy.jsonl", "new.jsonl"), validation=True):
    flags = [*flags, *(("--validation", str(files / "validation.txt")) if validation else ())]
    return main(
        ["--train", str(files / "train.md"), *flags, "--texts", *(str(files / name) for name in texts)]
    )


def test_the_table_has_a_row_a_system(files, capsys):
    assert run(files, "--output", str(files / "new folder" / "table.json")) == 0
    shown = capsys.readouterr().out
    header, author, copy, new = shown.splitlines()[:4]
    assert "distance" in header and author.startswith("the author, unseen")
    assert "copy.jsonl" in copy and "new.jsonl" in new and len(copy) == len(new) == len(header)
    rows = json.loads((files / "new folder" / "table.json").read_text())
    assert (
        rows[str(files / "copy.jsonl")]["copy_rate"]
        > 0.99
        > 0.1
        > rows[str(files / "new.jsonl")]["copy_rate"]
    )
    assert rows["the author, unseen"]["distance"] == 1
    assert f"stands in {files / 'train.md'}, line " in shown


def test_without_validation_a_tenth_is_kept_apart(files, capsys):
    assert run(files, validation=False) == 0
    assert "the last tenth of --train is kept apart" in capsys.readouterr().err


def test_a_tenth_is_cut_at_a_line_end():
    documents = [("a", "12345\n" * 10), ("b", "1234\n" * 7), ("c", "123\n")]
    train, validation = hold_out(documents)
    assert train == [("a", "12345\n" * 10), ("b", "1234\n" * 6)]
    assert validation == [("b", "1234\n"), ("c", "123\n")]
    assert hold_out([("a", "no line end at all")]) == ([("a", "no line end at al")], [("a", "l")])


def test_documents_of_one_file_are_told_apart(tmp_path):
    (tmp_path / "two.txt").write_text("one<|endoftext|>two")
    (tmp_path / "one.md").write_text("**bold**\n")
    assert read_documents([str(tmp_path)]) == [
        (str(tmp_path / "one.md"), "bold\n"),
        (f"{tmp_path / 'two.txt'}, document 1", "one"),
        (f"{tmp_path / 'two.txt'}, document 2", "two"),
    ]


def test_texts_of_generate(tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("one\n====\ntwo\nlines\n====\n", encoding="utf-8")
    assert [row.text.strip() for row in read_written(path)] == ["one", "two\nlines", ""]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        '{"prompt": "p", "text": "one"}\n\n{"text": "two"}\n{"prompt": "p", "te', encoding="utf-8"
    )
    assert read_written(path) == [Written("p", "one"), Written("", "two")]
    assert "line 4" in capsys.readouterr().err
    path.write_text('{"text": "whole"}', encoding="utf-8")
    assert read_written(path) == [Written("", "whole")] and not capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.jsonl", None, "none.jsonl does not exist"),
        ("empty.jsonl", "", "holds no text"),
        ("blank.txt", "\n====\n", "holds no text"),
        ("rows.jsonl", '{"prompt": "p"}\n', "line 1 is no row such as"),
        ("rows.jsonl", '{"text": 3}\n', "line 1 is no row such as"),
        ("rows.jsonl", '{"text": "\\ud800"}\n', "line 1 is no row such as"),
        ("rows.jsonl", "[" * 100_000 + "\n", "line 1 is no row such as"),
        ("rows.jsonl", '{"text": "a"}\n[1]\n', "line 2 is no row such as"),
        ("rows.jsonl", '{"te\n{"text": "a"}\n', "line 1 is no row such as"),
        ("bytes.txt", b"\xff\xfe\xfa", "bytes.txt"),
    ],
)
def test_what_cannot_be_measured_is_named(files, capsys, name, content, message):
    if content is not None:
        (files / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(files, texts=(name,)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("\n") == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--texts", "a.jsonl"], "--train"),
        (["--train", "a.txt"], "--texts"),
        (["--train", "no.txt", "--texts", "{new}"], "no.txt does not exist"),
        (["--train", "{empty}", "--texts", "{new}"], "holds no text"),
        (["--train", "{train}", "--texts", "{new}", "--seed", "-1"], "seed is -1"),
        (["--train", "{train}", "--texts", "{new}", "--output", "{train}/x.json"], "cannot be a folder"),
        (["--train", "{train}", "--texts", "{new}", "--start_model", "./nowhere"], "nowhere"),
    ],
)
def test_usage_errors(files, capsys, flags, message):
    (files / "empty.txt").write_text("")
    places = {"train": files / "train.md", "new": files / "new.jsonl", "empty": files / "empty.txt"}
    assert main([flag.format(**places) for flag in flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_too_little_text_is_said_in_the_table(files, capsys):
    (files / "short.txt").write_text("The king and the queen of the night speak of love and of death.\n")
    assert run(files, texts=("short.txt",)) == 0
    shown = capsys.readouterr().out
    assert "words: 14 of generated text (needs 1,000)" in shown and " - " in shown


def test_perplexity_is_exact_over_the_tokens_of_the_texts(model_folder):
    import torch

    from stylegen.model import load_model
    from stylegen.tokenizer import load_tokenizer

    model, tokenizer = (
        load_model(str(model_folder), dtype="float32").eval(),
        load_tokenizer(str(model_folder)),
    )
    window = 32
    texts = [
        Written("KING", " speak\n"),
        Written("", "the"),
        Written("", make_text(5)),
        Written("x" * 50, "ab"),
    ]
    losses = []
    for text in texts:
        prompt = tokenizer(text.prompt)["input_ids"] or [tokenizer.eos_token_id]
        ids = prompt + tokenizer(text.text)["input_ids"]
        done, end = len(prompt), 0
        for place in range(len(prompt), len(ids)):  # one token at a time, seeing what its window sees
            if place >= end:
                done, end = place, max(place + window // 2, window)
            start = max(min(end, len(ids)) - 1 - window, 0)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
            losses.append(-logits.log_softmax(-1)[ids[place]].item())
            assert done <= place
    expected = math.exp(statistics.fmean(losses))
    assert perplexity_of(texts, model, tokenizer) == pytest.approx(expected, rel=1e-5)
    assert perplexity_of([Written("KING", "")], model, tokenizer) is None


def test_the_start_model_gives_a_column(files, capsys, model_folder):
    (files / "short.txt").write_text("The king.\n====\nThe queen.\n")
    assert run(files, "--start_model", str(model_folder), texts=("short.txt",)) == 0
    assert all(float(line.split()[-1]) > 1 for line in capsys.readouterr().out.splitlines()[1:3])


def test_nothing_heavy_is_imported():
    code = "import sys, stylegen.style.__main__ as m; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
