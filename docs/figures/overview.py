"""Draws the overview of the README, for light and for dark pages: `python docs/figures/overview.py`."""

from pathlib import Path

FOLDER = Path(__file__).parent
# name: (background, frozen fill, trained fill, outline, text, faint text)
THEMES = {
    "light": ("none", "#eceff1", "#ffe0b2", "#607d8b", "#212121", "#607d8b"),
    "dark": ("none", "#37474f", "#e65100", "#90a4ae", "#eceff1", "#b0bec5"),
}
# x, y, width, height, title, what it is, trained
BOXES = (
    (10, 70, 120, 64, "audio", "any sample rate", None),
    (165, 70, 140, 64, "MERT", "encoder, frozen", False),
    (340, 70, 140, 64, "features", "7 x 1024 for 30 s, cached", None),
    (515, 70, 130, 64, "adapter", "trained: 4.2 M", True),
    (680, 70, 150, 64, "LLaMA / Vicuna", "language model, frozen", False),
    (865, 70, 125, 64, "answer", "text", None),
    (680, 10, 150, 36, "question", "", None),
)
ARROWS = ((130, 102, 165, 102), (305, 102, 340, 102), (480, 102, 515, 102), (645, 102, 680, 102), (830, 102, 865, 102))
ARROWS += ((755, 46, 755, 70),)


def draw(theme: str) -> str:
    """The drawing as SVG."""
    background, frozen, trained, outline, text, faint = THEMES[theme]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 160" font-family="sans-serif" role="img" '
        'aria-label="audio to MERT (frozen) to features to adapter (trained) to language model (frozen) to answer">',
        f'<rect width="1000" height="160" fill="{background}"/>',
        f'<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{outline}"/></marker>',
    ]
    for x, y, width, height, title, what, is_trained in BOXES:
        fill = "none" if is_trained is None else trained if is_trained else frozen
        dash = ' stroke-dasharray="4 3"' if is_trained is None else ""
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{outline}"{dash}/>'
        )
        middle, up = x + width / 2, y + height / 2 + (-4 if what else 5)
        parts.append(f'<text x="{middle}" y="{up}" font-size="15" text-anchor="middle" fill="{text}">{title}</text>')
        if what:
            parts.append(
                f'<text x="{middle}" y="{up + 19}" font-size="10.5" text-anchor="middle" fill="{faint}">{what}</text>'
            )
    for x1, y1, x2, y2 in ARROWS:
        parts.append(
            f'<path d="M{x1} {y1} {x2 - (x2 > x1)} {y2 - (y2 > y1)}" stroke="{outline}" marker-end="url(#tip)"/>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    for name in THEMES:
        (FOLDER / f"overview-{name}.svg").write_text(draw(name), encoding="utf-8")
