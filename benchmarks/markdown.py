"""Whether reading Markdown takes time in proportion to its length, even where nothing is ever closed.

For each hostile unit, repeated to 30 kB and 120 kB: the seconds and their ratio, which is 4 for linear time and 16 for
quadratic.
"""

import time

from stylegen.corpus.markdown import markdown_text

UNITS = ("a [b *c _d `e\n", "<div>\n<a b='", "\n- x\n", "<br>", "+++\n", "& &amp; <", " ")
SIZES = (30_000, 120_000)


def main() -> None:
    """Print a line a unit."""
    print(f"{'unit':22}{'30 kB s':>10}{'120 kB s':>10}{'ratio':>8}")
    for unit in UNITS:
        seconds = []
        for size in SIZES:
            started = time.perf_counter()
            markdown_text("<div>" + unit * (size // len(unit)))
            seconds.append(time.perf_counter() - started)
        print(f"{unit!r:22}{seconds[0]:>10.3f}{seconds[1]:>10.3f}{seconds[1] / seconds[0]:>8.1f}")


if __name__ == "__main__":
    main()
