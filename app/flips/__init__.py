"""What the shipped variants answer on a whole test split, as far as it was asked of these very
files: read, searched and counted. Knows neither Gradio nor how an answer is drawn."""

from app.flips.book import Chapter, FlipBook, Trio
from app.flips.orders import ORDERS, orders
from app.flips.patterns import PATTERNS, Pattern, applicable
from app.flips.query import Cell, Flips, Item, Query, find
from app.flips.summary import Reliability, Share, Summary, summarize

__all__ = [
    "ORDERS",
    "PATTERNS",
    "Cell",
    "Chapter",
    "FlipBook",
    "Flips",
    "Item",
    "Pattern",
    "Query",
    "Reliability",
    "Share",
    "Summary",
    "Trio",
    "applicable",
    "find",
    "orders",
    "summarize",
]
