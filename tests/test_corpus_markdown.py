"""Markdown -> what a reader of the page sees, and nothing of what he does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegen.corpus.markdown import markdown_text


def test_headings_paragraphs_and_quotes_are_blocks_between_blank_lines():
    source = "# One *day*\n\nIt rained.\n> He said\n> nothing.\n\nSetext\n------\n* * *\nEnd\n"
    assert markdown_text(source) == "One day\n\nIt rained.\n\nHe said\nnothing.\n\nSetext\n\n* * *\n\nEnd\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("*a* **b** _c_ ***d*** ~~e~~", "a b c d e"),
        ("snake_case and 2 * 3 * 4", "snake_case and 2 * 3 * 4"),
        ("[the *link*](http://x.org 'title') and [this][r]\n\n[r]: http://y.org", "the link and this"),
        ("<http://x.org>", "http://x.org"),
        (r"\*no emphasis\* \[no link\]", "*no emphasis* [no link]"),
        ("Fish &amp; chips &mdash; &#8220;hot&#8221;", "Fish & chips — “hot”"),
        ("run `x *= 2` twice", "run x *= 2 twice"),
        ("a note[^1]\n\n[^1]: Of two words.", "a note[^1]\n\n[^1]: Of two words."),
    ],
)
def test_marks_within_a_line_go_and_words_stay(source, text):
    assert markdown_text(source) == text + "\n"


def test_the_lines_of_verse_stay_lines_however_they_are_broken():
    source = "Shall I compare thee  \nto a summer's day?\\\nThou art more lovely\n"
    source += "   and more temperate.<br>\nRough winds"
    assert markdown_text(source).splitlines() == [
        "Shall I compare thee",
        "to a summer's day?",
        "Thou art more lovely",
        "and more temperate.",
        "Rough winds",
    ]


def test_indentation_by_hard_spaces_stays():
    assert markdown_text("One\n&nbsp;&nbsp;two") == "One\n\xa0\xa0two\n"


def test_code_stays_as_it_is():
    block = "def f():\n    *x*, y = 1, 2\n\n\n    return &amp;"
    assert markdown_text(f"```python\n{block}\n```\n") == block + "\n"
    assert markdown_text("    two *spaces*\n      more\n\nText\n") == "two *spaces*\n  more\n\nText\n"


def test_tight_items_are_lines_and_loose_ones_are_blocks():
    assert markdown_text("- a\n- b\n  - c\n  - d\n- e\n\nText\n") == "a\nb\nc\nd\ne\n\nText\n"
    assert markdown_text("* a\n\n* b\n\n  b2\n") == "a\n\nb\n\nb2\n"
    assert markdown_text("- a\n- b\n\n* c\n* d\n") == "a\nb\n\nc\nd\n"


def test_numbers_of_items_are_text_since_a_sentence_may_begin_with_one():
    assert markdown_text("1984. A cold day.\n1985. A warm one.\n") == "1984. A cold day.\n1985. A warm one.\n"
    assert markdown_text("3) a\n   - b\n4) c\n") == "3) a\nb\n4) c\n"
    assert markdown_text("So it ended in\n\n1914.\n") == "So it ended in\n\n1914.\n"


def test_images_count_as_words_only_among_words():
    assert markdown_text("![O](o.png)nce there was ![a cat](cat.png).") == "Once there was a cat.\n"
    assert markdown_text("# Title\n\n[![build](b.svg)](ci) ![a figure](f.png)\n\nText") == "Title\n\nText\n"


def test_a_table_has_a_line_for_each_row_and_tabs_between_cells():
    source = "| who | *what* |\n|:---|---:|\n| cat<br>fish | `purrs` |\n| dog | |\n\nText\n"
    assert markdown_text(source) == "who\twhat\ncat fish\tpurrs\ndog\t\n\nText\n"


@pytest.mark.parametrize(
    ("front", "text"),
    [
        ("---\ntitle: A day\ntags: [x]\n---\n", ""),
        ("---\ntitle: A day\n...\n", ""),
        ("---\n---\n", ""),
        ("+++\ntitle = 'A day'\n\n[extra]\nx = 1\n+++\n", ""),
        ("\ufeff---\ntitle: A day\n---\n", ""),
        ("---\n\nA motto.\n\n---\n", "* * *\n\nA motto.\n\n* * *\n\n"),
        ("---\ntitle: never closed\n", "* * *\n\ntitle: never closed\n"),
        ("+++\nnever closed\n", "+++\nnever closed\n"),
    ],
)
def test_front_matter_goes_and_text_between_two_rules_stays(front, text):
    assert markdown_text(front + "Body\n") == text + "Body\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a <!-- secret --> b <span lang='fr'>oui</span>", "a  b oui\n"),
        ("<!-- secret\n\nstill secret -->\n\nText", "Text\n"),
        ("Text\n\n<!-- never closed\n\nsecret", "Text\n"),
        ("a <script>steal()</script> <STYLE>p {}</STYLE> b", "a   b\n"),
        ("<script>\nif (a < b) { x(); }\n\ny();\n</script>\nText", "Text\n"),
        ("<p>One\n  line</p><p>Fish &amp; chips</p>", "One\nline\n\nFish & chips\n"),
        ("<ul>\n  <li>a</li>\n  <li>b<br>c</li>\n</ul>", "a\nb\nc\n"),
        (
            "<table>\n<tr>\n<td>1</td>\n<td>2</td>\n</tr>\n<tr><td>3</td><td>4</td></tr>\n</table>",
            "1\t2\n3\t4\n",
        ),
        ("<pre>\n  as\n    it   is\n</pre>", "  as\n    it   is\n"),
        ("<div>5 < 6 and <b never closed", "5 < 6 and <b never closed\n"),
        ("a\n<a name='p7'></a>\nb", "a\nb\n"),
    ],
)
def test_tags_go_and_what_a_browser_shows_stays(source, text):
    assert markdown_text(source) == text


@pytest.mark.parametrize("source", ["", "\n \n", "<!-- x -->", "![x](y)", "[r]: http://x.org", "```\n```"])
def test_a_page_without_words_is_empty(source):
    assert markdown_text(source) == ""


@pytest.mark.parametrize("unit", ["[", "![", "> ", "- ", "*a ", "<b>", "`` ` "])
def test_deep_nesting_ends_without_an_error(unit):
    markdown_text(unit * 1000 + "a")


MARKS = r"word ** * _ ` ``` [ ](x) ![ <b> </p> <script> <!-- --> &amp; | |-| # --- +++ \ ~~".split(" ")
PIECES = st.sampled_from([*MARKS, "- ", "1. ", "> ", "    ", " ", "\n", "\n\n"])
WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_gives_nothing_or_lines_that_end_with_one_break(source):
    text = markdown_text(source)
    assert text == "" or (text.strip() and not text.startswith("\n") and text.endswith("\n"))
    assert not text.endswith("\n\n")


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=4).map("\n".join), min_size=1, max_size=5).map("\n\n".join)
)
def test_plain_paragraphs_come_back_as_they_are(source):
    assert markdown_text(source) == source + "\n"
