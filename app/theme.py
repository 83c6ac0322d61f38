"""Colours and fonts of the page: calm, light and dark, and nothing fetched from other hosts."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).resolve().parent / "assets"
STYLES = tuple(sorted(ASSETS.glob("*.css")))
FAVICON = ASSETS / "favicon.png"
FONTS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Arial",
    "sans-serif",
]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
ACCENT, ACCENT_STRONG = "#0f766e", "#115e59"
SOFT, SOFT_DARK = "#6a655d", "#a8a298"


def theme() -> gr.themes.Base:
    """A theme of the visitor's own fonts: Gradio's default would load them from Google."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_sm,
        font=FONTS,
        font_mono=MONO_FONTS,
    ).set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#171614",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1f1e1b",
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_dark=ACCENT,
        button_primary_background_fill_hover=ACCENT_STRONG,
        button_primary_background_fill_hover_dark=ACCENT_STRONG,
        # Gradio's own are too pale to read on white.
        body_text_color_subdued=SOFT,
        body_text_color_subdued_dark=SOFT_DARK,
        block_info_text_color=SOFT,
        block_info_text_color_dark=SOFT_DARK,
        color_accent=ACCENT,
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )
