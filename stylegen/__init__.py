"""stylegen: give it text; it trains a language model that writes in that style, and writes."""

__version__ = "0.1.0"
