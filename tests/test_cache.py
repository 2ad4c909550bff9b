"""The token cache and what is prepared from arguments: found without reading, written once, whole or not there."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_text
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import stylegen.blocks.prepare
from stylegen.blocks import (
    TextCounts,
    TokenCache,
    cut_blocks,
    describe,
    describe_text,
    predicted_bytes,
    prepare_text,
)
from stylegen.config import TrainArguments, UsageError, resolve_arguments
from stylegen.corpus import find_sources
from stylegen.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = train_tokenizer("char", [["abc dé\n"]], 7, None, "none")
    tokenizer.save_pretrained(str(tmp_path_factory.mktemp("tokenizer")))
    return tokenizer


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """`prepare(["a", "b"], ["c"], ...)`: the cache of files with these texts, in tmp_path/cache."""
    folder = tmp_path / "given"
    tokenizer.save_pretrained(str(folder))

    def run(train: list[str], validation: list[str] | None = None, **options) -> TokenCache:
        arguments = arguments_for(tmp_path, train, validation, tokenizer_name=str(folder), **options)
        return prepare_text(arguments, *find_sources(arguments))

    return run


def arguments_for(tmp_path, train, validation=None, **options) -> TrainArguments:
    files = {}
    for side, documents in (("train", train), ("validation", validation or [])):
        files[side] = []
        for number, text in enumerate(documents):
            path = tmp_path / f"{side}-{number}.txt"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            files[side].append(str(path))
    defaults = {"cache_dir": str(tmp_path / "cache"), "block_size": 8}
    options = {**defaults, **options}
    if validation is not None:
        options["validation_file"] = files["validation"]
    return resolve_arguments(TrainArguments(train_file=files["train"], **options), world_size=1)


def entries(tmp_path) -> list[Path]:
    folder = tmp_path / "cache"
    return sorted(folder.iterdir()) if folder.exists() else []


def ids(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text).ids


# What an entry holds


def test_separators_stand_between_documents_and_frame_them(tokenizer, prepare):
    cache = prepare(["ab", "c", "da"], ["cab"])
    end = tokenizer.eos_token_id
    expected = [*ids(tokenizer, "ab"), end, *ids(tokenizer, "c"), end, *ids(tokenizer, "da")]
    assert cache.train.tokens.tolist() == expected
    assert cache.train.framed.tolist() == [end, *expected, end]
    assert cache.train.starts.tolist() == [0, 3, 5, 8]
    assert cache.validation.tokens.tolist() == ids(tokenizer, "cab")
    assert cache.train.prompts is None


def test_the_counts_are_those_of_the_text(prepare):
    cache = prepare(["abé\n", "🎉"], ["abc"])
    # 4 characters and an unseen one spelled as 4 bytes, with a separator between
    assert cache.train.counts == TextCounts(documents=2, characters=5, num_bytes=9, tokens=9)
    assert cache.validation.counts == TextCounts(documents=1, characters=3, num_bytes=3, tokens=3)


def test_documents_of_many_parts_have_the_tokens_of_the_whole(prepare, tokenizer, monkeypatch):
    """Pieces of a few characters while reading, storing and tokenizing change nothing."""
    text = "abc dé\n🎉 " * 50
    monkeypatch.setattr("stylegen.corpus.decode.PIECE_BYTES", 7)
    monkeypatch.setattr("stylegen.corpus.store.CHUNK_BYTES", 5)
    cache = prepare([text, "b", text], ["abc"])
    end = tokenizer.eos_token_id
    whole = ids(tokenizer, text)
    assert cache.train.tokens.tolist() == [*whole, end, *ids(tokenizer, "b"), end, *whole]
    assert cache.train.counts.num_bytes == 2 * len(text.encode()) + 1


@pytest.mark.parametrize(("num_words", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_two_bytes_while_the_vocabulary_allows(tmp_path, num_words, dtype):
    characters = "".join(chr(0x10000 + number) for number in range(num_words - 257))
    tokenizer = train_tokenizer("char", [[characters]], len(characters), None, "none")
    assert len(tokenizer) == num_words
    tokenizer.save_pretrained(str(tmp_path / "given"))
    text = "\U00010000" + "a"  # its bytes are the last words of the vocabulary
    arguments = arguments_for(tmp_path, [text], [text], tokenizer_name=str(tmp_path / "given"))
    cache = prepare_text(arguments, *find_sources(arguments))
    assert cache.train.tokens.dtype == dtype
    assert cache.train.tokens.tolist() == [1, num_words - 256 + ord("a")]


def test_ids_that_leave_a_gap_are_kept(tmp_path):
    """Few words, but one of them with an id beyond two bytes."""
    backend = Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1, "b": 70_000}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(str(tmp_path / "given"))
    arguments = arguments_for(tmp_path, ["abba"], ["ab"], tokenizer_name=str(tmp_path / "given"))
    cache = prepare_text(arguments, *find_sources(arguments))
    assert cache.train.tokens.tolist() == [1, 70_000, 70_000, 1]


# When an entry is found


@pytest.fixture
def built(monkeypatch):
    """Counts how often text is read."""
    calls = []
    real = stylegen.blocks.prepare.read_pieces
    monkeypatch.setattr(
        stylegen.blocks.prepare, "read_pieces", lambda *arguments: calls.append(1) or real(*arguments)
    )
    return calls


def test_the_second_start_reads_no_text(prepare, built):
    first, second = prepare(["ab", "c"], ["cab"]), prepare(["ab", "c"], ["cab"])
    assert len(built) == 2  # both sides, once
    assert first.fingerprints == second.fingerprints
    assert first.train.counts == second.train.counts
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    assert second.tokenizer.backend_tokenizer.to_str() == first.tokenizer.backend_tokenizer.to_str()
    assert second.tokenizer.eos_token_id == first.tokenizer.eos_token_id


def test_a_file_that_was_written_again_is_read_again_and_the_same_text_has_the_same_fingerprint(
    prepare, built, tmp_path
):
    first = prepare(["ab", "c"], ["cab"])
    os.utime(tmp_path / "train-0.txt", ns=(1, 1))
    assert prepare(["ab", "c"], ["cab"]).fingerprints == first.fingerprints
    assert len(built) == 4


def test_a_file_of_the_same_size_with_another_time_is_another_text(prepare, tmp_path):
    first = prepare(["ab"], ["cab"])
    (tmp_path / "train-0.txt").write_text("ba")
    os.utime(tmp_path / "train-0.txt", ns=(5, 5))
    second = prepare(["ba"], ["cab"])
    assert second.fingerprints != first.fingerprints
    assert second.train.tokens.tolist() == first.train.tokens.tolist()[::-1]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (["ab", "d"], ["cab"]),
        (["ab", "c"], ["cad"]),
        (["a", "bc"], ["cab"]),  # the same characters, other documents
        (["abc"], ["cab"]),
        (["c", "ab"], ["cab"]),
        (["ab"], ["c", "cab"]),  # the border between the sides is elsewhere
    ],
)
def test_another_text_has_another_fingerprint(prepare, train, validation):
    assert prepare(["ab", "c"], ["cab"]).fingerprints != prepare(train, validation).fingerprints


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"validation_split_percentage": 20.0}, {"document_separator": "\n"}]
)
def test_another_way_to_read_or_split_is_another_entry(prepare, tmp_path, options):
    texts = [f"ab {number}\ncd" for number in range(100, 130)]
    first, other = prepare(texts), prepare(texts, **options)
    assert first.fingerprints != other.fingerprints
    assert len(entries(tmp_path)) == 2


def test_another_tokenizer_is_another_entry(tmp_path):
    def run(**options):
        arguments = arguments_for(tmp_path, [make_text(100)], [make_text(20)], **options)
        return prepare_text(arguments, *find_sources(arguments))

    runs = [
        run(train_tokenizer="char"),
        run(vocab_size=300),
        run(vocab_size=310),
        run(vocab_size=300, normalizer="nfd"),
    ]
    assert len({tuple(cache.fingerprints.values()) for cache in runs}) == 4
    assert len(run(vocab_size=310, special_tokens=["<scene>"]).tokenizer.encode("<scene>")) == 1


def test_overwriting_reads_again_with_the_same_outcome(prepare, built, tmp_path):
    first = prepare(["ab"], ["cab"], overwrite_cache=True)  # there is nothing to overwrite yet
    second = prepare(["ab"], ["cab"], overwrite_cache=True)
    assert len(built) == 4
    assert first.fingerprints == second.fingerprints
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    assert len(entries(tmp_path)) == 1


# Whole or not there


def test_nothing_but_the_entry_is_left_behind(prepare, tmp_path):
    prepare(["ab"], ["cab"])
    (entry,) = entries(tmp_path)
    assert sorted(path.name for path in entry.iterdir()) == [
        "meta.json", "tokenizer", "train.bin", "train.starts.npy", "validation.bin", "validation.starts.npy",
    ]  # fmt: skip


def test_nothing_is_left_behind_when_tokenizing_fails(prepare, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("stylegen.blocks.cache.DocumentEncoder", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(["ab"], ["cab"])
    assert entries(tmp_path) == []


@pytest.mark.parametrize("lost", ["meta.json", "train.bin", "train.starts.npy", "tokenizer/tokenizer.json"])
def test_an_entry_that_has_lost_a_file_is_made_again(prepare, tokenizer, tmp_path, lost):
    """Clusters clean their scratch folders file by file, and deleting an entry can be interrupted."""
    prepare(["ab"], ["cab"])
    (entries(tmp_path)[0] / lost).unlink()
    assert prepare(["ab"], ["cab"]).train.tokens.tolist() == ids(tokenizer, "ab")


@pytest.mark.parametrize("name", ["train.bin", "train.starts.npy"])
def test_an_entry_cut_short_is_not_trained_on(prepare, tokenizer, tmp_path, name):
    """No token is dropped in silence: a full disk can leave less than the entry says it holds."""
    prepare(["abcd"], ["cab"])
    path = entries(tmp_path)[0] / name
    path.write_bytes(path.read_bytes()[:-2])
    assert prepare(["abcd"], ["cab"]).train.tokens.tolist() == ids(tokenizer, "abcd")


BUILD = """
import sys, time
from stylegen.blocks import prepare_text
from stylegen.config import TrainArguments, resolve_arguments
from stylegen.corpus import find_sources
folder, seconds, text = sys.argv[1], float(sys.argv[2]), sys.argv[3]
import stylegen.blocks.prepare as prepare
real = prepare.write_sides
def slow(*arguments):
    print("building", flush=True)
    time.sleep(seconds)
    return real(*arguments)
prepare.write_sides = slow
arguments = resolve_arguments(TrainArguments(
    train_file=[text], cache_dir=folder, block_size=8, train_tokenizer="char"), 1)
print(prepare_text(arguments, *find_sources(arguments)).fingerprints, flush=True)
"""


def start_builder(folder: Path, text: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(seconds), str(text)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path, text_file):
    first = start_builder(tmp_path / "cache", text_file, 1.0)
    assert first.stdout.readline() == "building\n"
    second = start_builder(tmp_path / "cache", text_file, 0.0)
    one, two = first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]
    assert (
        one.splitlines()[-1] == two.strip()
    )  # the second printed nothing but the fingerprint: it did not build
    assert len(entries(tmp_path)) == 1


def test_what_a_killed_builder_left_is_swept_by_the_next_start_of_any_text(tmp_path, text_file):
    killed = start_builder(tmp_path / "cache", text_file, 60.0)
    assert killed.stdout.readline() == "building\n"
    killed.kill()
    killed.wait()
    assert [path.suffix for path in entries(tmp_path)] == [".lock", ".tmp"]
    other = tmp_path / "other.txt"
    other.write_text(make_text(50))
    done = start_builder(tmp_path / "cache", other, 0.0)
    assert done.wait(timeout=60) == 0
    assert len(entries(tmp_path)) == 1


def test_a_killed_builder_is_followed_by_one_of_the_same_text(tmp_path, text_file):
    killed = start_builder(tmp_path / "cache", text_file, 60.0)
    assert killed.stdout.readline() == "building\n"
    waiting = start_builder(tmp_path / "cache", text_file, 0.0)
    time.sleep(3)
    killed.kill()
    killed.wait()
    assert "building" in waiting.communicate(timeout=60)[0]
    assert [path.suffix for path in entries(tmp_path)] == [""]


def test_what_is_not_ours_in_the_folder_of_the_cache_is_left_alone(prepare, tmp_path):
    folder = tmp_path / "project"
    (folder / "work.tmp").mkdir(parents=True)
    files = [
        folder / name for name in ("uv.lock", "yarn.lock", "work.tmp/thesis.tex", "notes.tmp", "0123.lock")
    ]
    for path in files:
        path.write_text("mine")
    prepare(["ab"], ["cab"], cache_dir=str(folder))
    assert all(path.read_text() == "mine" for path in files)


def test_a_folder_that_cannot_be_a_cache_is_refused(prepare, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        UsageError, match=r"^the token cache .*file cannot be used: .*; choose another --cache_dir$"
    ):
        prepare(["ab"], ["cab"], cache_dir=str(tmp_path / "file"))


def test_a_file_that_changes_while_it_is_read_is_refused(prepare, tmp_path, monkeypatch):
    real = stylegen.blocks.prepare.read_pieces

    def grow(*arguments):
        yield from real(*arguments)
        (tmp_path / "train-0.txt").write_text("abab")

    monkeypatch.setattr(stylegen.blocks.prepare, "read_pieces", grow)
    with pytest.raises(
        UsageError, match=r"changed while it was read; start again when nothing writes to it$"
    ):
        prepare(["ab"], ["cab"])
    assert entries(tmp_path) == []


EMPTY_TRAIN = "^the training text is empty; give more text, or a smaller --validation_split_percentage$"
EMPTY_VALIDATION = (
    r"^the validation text is empty \(the training text has [\d,]+ characters\); give more text"
)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([""], ["ab"], EMPTY_TRAIN),
        ([" \n\t", ""], ["ab"], EMPTY_TRAIN),
        (["ab"], ["", "\n"], EMPTY_VALIDATION),
        (["", " "], [" "], r"train-0\.txt, .*train-1\.txt is empty; give a file with text in it$"),
        (["", " "], None, r"train-0\.txt, .*train-1\.txt is empty; give a file with text in it$"),
    ],
)
def test_an_empty_side_is_refused_and_nothing_is_left(prepare, tmp_path, train, validation, message):
    with pytest.raises(UsageError, match=message):
        prepare(train, validation)
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("train", "validation", "side"), [(["a"], ["ab"], "train"), (["ab"], ["a"], "validation")]
)
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_text_of_one_token_is_refused_each_time(prepare, train, validation, side, repeats):
    message = f"^the {side} text is 1 token long, but predicting one needs two; give more text$"
    for _ in range(repeats):
        with pytest.raises(UsageError, match=message):
            prepare(train, validation)


# Datasets


@pytest.fixture
def dataset(tmp_path):
    """A dataset folder with a validation split of its own."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [json.dumps({"text": f"ab {number}"}) + "\n" for number in range(40)]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "validation.jsonl").write_text("".join(rows[:3]))
    return str(folder)


def prepare_dataset(tmp_path, name, **options):
    options = {"dataset_name": name, "train_tokenizer": "char", "block_size": 8, **options}
    arguments = resolve_arguments(TrainArguments(cache_dir=str(tmp_path / "cache"), **options), world_size=1)
    return prepare_text(arguments, *find_sources(arguments))


def test_the_validation_split_of_a_dataset_is_used(tmp_path, dataset):
    cache = prepare_dataset(tmp_path, dataset)
    assert (cache.train.counts.documents, cache.validation.counts.documents) == (40, 3)


def test_a_percentage_asked_for_goes_before_the_validation_split_of_a_dataset(tmp_path, dataset):
    cache = prepare_dataset(tmp_path, dataset, validation_split_percentage=10.0)
    assert (cache.train.counts.documents, cache.validation.counts.documents) == (36, 4)


def test_a_dataset_without_a_validation_split_is_split(tmp_path, dataset):
    (Path(dataset) / "validation.jsonl").unlink()
    cache = prepare_dataset(tmp_path, dataset)
    assert (cache.train.counts.documents, cache.validation.counts.documents) == (38, 2)


def test_a_dataset_that_is_streamed_is_the_same_text(tmp_path, dataset):
    plain, streamed = prepare_dataset(tmp_path, dataset), prepare_dataset(tmp_path, dataset, streaming=True)
    assert plain.fingerprints == streamed.fingerprints
    (Path(dataset) / "train.jsonl").write_text(json.dumps({"text": "other"}) + "\n")
    assert prepare_dataset(tmp_path, dataset, streaming=True).fingerprints != plain.fingerprints


# Pairs


def pairs(tmp_path, number: int, **options) -> tuple[TrainArguments, TokenCache]:
    rows = [{"prompt": f"abc {index}", "story": "dé " * (1 + index % 7)} for index in range(number)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"train_tokenizer": "char", "block_size": 24, **options}
    arguments = resolve_arguments(
        TrainArguments(
            train_file=[str(path)], prompt_column="prompt", completion_column="story",
            cache_dir=str(tmp_path / "cache"), **options,
        ),
        world_size=1,
    )  # fmt: skip
    return arguments, prepare_text(arguments, *find_sources(arguments))


@pytest.mark.parametrize("normalizer", ["none", "nfd"])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_prompt_tokens_end_where_the_prompt_ends(tmp_path, kind, normalizer):
    _, cache = pairs(tmp_path, 60, train_tokenizer=kind, normalizer=normalizer, completion_only_loss=True)
    for index, prompt in enumerate(cache.train.prompts.tolist()):
        tokens = cache.train.framed[cache.train.starts[index] + 1 : cache.train.starts[index + 1]]
        before, behind = cache.tokenizer.decode(tokens[:prompt]), cache.tokenizer.decode(tokens[prompt:])
        assert "abc" in before
        assert "<sep>" in before
        assert "d" not in before
        assert behind.startswith("d") or behind.startswith(
            " d"
        )  # a token across the border is the completion's


def test_a_special_token_between_prompt_and_completion_is_the_prompts(tmp_path):
    _, cache = pairs(tmp_path, 60, special_tokens=["<sep>"], completion_only_loss=True)
    for index, prompt in enumerate(cache.train.prompts.tolist()):
        tokens = cache.train.framed[cache.train.starts[index] + 1 : cache.train.starts[index + 1]]
        assert cache.tokenizer.decode(tokens[:prompt]).endswith("<sep> ")
        assert cache.tokenizer.decode(tokens[prompt:]).startswith("d")


def test_two_files_are_another_text_as_pairs_than_as_documents(tmp_path):
    for name in ("p.txt", "c.txt"):
        (tmp_path / name).write_text("".join(f"ab {number}\n" for number in range(40)))
    files = [str(tmp_path / "p.txt"), str(tmp_path / "c.txt")]
    caches = []
    for source in ({"train_file": files}, {"prompt_file": files[0], "completion_file": files[1]}):
        arguments = TrainArguments(
            cache_dir=str(tmp_path / "cache"), block_size=16, train_tokenizer="char", **source
        )
        arguments = resolve_arguments(arguments, world_size=1)
        caches.append(prepare_text(arguments, *find_sources(arguments)))
    assert caches[0].train.counts.documents < 38 == caches[1].train.counts.documents


def test_a_link_with_another_suffix_is_read_in_another_way(tmp_path):
    (tmp_path / "a.txt").write_text("# One\n\n" + "*two* three\n" * 50)
    (tmp_path / "b.md").symlink_to(tmp_path / "a.txt")
    characters = []
    for name in ("a.txt", "b.md"):
        arguments = TrainArguments(
            train_file=[str(tmp_path / name)], cache_dir=str(tmp_path / "cache"), train_tokenizer="char"
        )
        arguments = resolve_arguments(arguments, world_size=1)
        cache = prepare_text(arguments, *find_sources(arguments))
        characters.append(cache.train.counts.characters + cache.validation.counts.characters)
    assert characters == [607, 605 - 100]


def test_the_share_of_ignored_labels_is_that_of_the_padding(tmp_path):
    arguments, cache = pairs(tmp_path, 200)
    assert arguments.packing == "pad"
    train, _ = cut_blocks(arguments, cache)
    labels = train.batch(np.arange(len(train)))["labels"]
    lengths = np.minimum(np.diff(cache.train.starts), 24)
    assert int((labels == -100).sum()) == int((24 - lengths).sum())
    assert int((labels == -100).sum()) > 0


def test_a_prompt_that_fills_every_block_is_refused(tmp_path):
    arguments, cache = pairs(tmp_path, 50, block_size=4, completion_only_loss=True)
    with pytest.raises(
        UsageError, match=r"^no train pair has a completion within block_size 4; use a larger one$"
    ):
        cut_blocks(arguments, cache)


# Bytes and words about it


@pytest.mark.parametrize(
    ("documents", "limit", "expected"),
    [
        (["abc d"], None, 4),  # all but the first
        (["abc d"], 2, 2),
        (["éab"], None, 2),  # the first has two bytes
        (["aéb"], 1, 2),
        (["aéb"], None, 3),
        (["ab", "c"], None, 2),  # a separator is no text
        (["ab", "c"], 2, 1),
        (["a", "éb"], 1, 1),  # nothing but a separator: one byte, so that it can be divided by
        # A character that was never seen is spelled as its bytes, one token each.
        (["🎉a"], None, 4),
        (["a🎉b"], 2, 2),
        (["a🎉b"], None, 5),
    ],
)
def test_predicted_bytes_are_those_of_the_text_behind_the_labels(
    prepare, tmp_path, documents, limit, expected
):
    cache = prepare(documents, ["ab"])
    arguments = arguments_for(tmp_path, documents, ["ab"], block_size=1, max_train_samples=limit)
    blocks, _ = cut_blocks(arguments, cache)
    assert predicted_bytes(cache.train, blocks, cache.tokenizer) == expected


@pytest.mark.parametrize(
    ("packing", "limit", "expected"), [("document", None, 6), ("document", 1, 5), ("pad", None, 6)]
)
def test_predicted_bytes_of_whole_documents_are_all_of_them(prepare, tmp_path, packing, limit, expected):
    documents = ["abéa", "c"]
    cache = prepare(documents, ["ab"])
    arguments = arguments_for(
        tmp_path, documents, ["ab"], block_size=5, max_train_samples=limit, packing=packing
    )
    blocks, _ = cut_blocks(arguments, cache)
    assert predicted_bytes(cache.train, blocks, cache.tokenizer) == expected


@pytest.mark.parametrize("normalizer", ["none", "nfd", "nfkc", "nfkd"])
def test_bytes_are_those_of_the_text_as_it_was_given_whatever_it_is_normalized_to(tmp_path, normalizer):
    """In proportion where only a part is predicted: the text is the same all the way."""
    text = "ﬁné ﬁñé\n" * 100
    options = {"train_tokenizer": "char", "normalizer": normalizer, "block_size": 90}
    arguments = arguments_for(tmp_path, [text], [text], max_eval_samples=3, **options)
    cache = prepare_text(arguments, *find_sources(arguments))
    _, blocks = cut_blocks(arguments, cache)
    share = blocks.num_labels(np.arange(3)) / cache.validation.counts.tokens
    expected = pytest.approx(share * len(text.encode()), rel=0.02)
    assert predicted_bytes(cache.validation, blocks, cache.tokenizer) == expected


def test_the_description_says_what_there_is_and_what_is_kept(prepare, tmp_path):
    documents = ["abc " * 5, " ", "abc " * 5]
    cache = prepare(documents, ["abc\n"])
    assert describe_text(cache) == [
        "documents          count      characters          tokens",
        "train                  2              40              41",
        "validation             1               4               4",
        "dropped                1  (1 empty)",
        f"warning: {tmp_path / 'train-2.txt'} has the same content as {tmp_path / 'train-0.txt'}",
    ]

    def line(**options):
        arguments = arguments_for(tmp_path, documents, ["abc\n"], **options)
        return describe("train", cache.train, cut_blocks(arguments, cache)[0])

    assert line() == "train: 5 blocks of 8; kept 100.00 % of the 41 tokens"
    assert line(block_size=7) == "train: 6 blocks of 7, the last with 5; kept 100.00 % of the 41 tokens"
    assert line(max_train_samples=1) == "train: 1 block of 8; kept 20.00 % of the 41 tokens"
    assert line(random_windows=3) == (
        "train: 8 blocks of 8, 3 of them random windows that change with each epoch; kept 100.00 % of the 41 tokens"
    )
    assert line(packing="document", block_size=32) == (
        "train: 2 blocks of 32, 65.62 % of their labels count; kept 100.00 % of the 41 tokens"
    )
    assert (
        line(packing="pad")
        == "train: 2 blocks of 8, 100.00 % of their labels count; kept 38.10 % of the 41 tokens"
    )
