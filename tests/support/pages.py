"""Made-up help pages, and an independent, slow reading of the rules for near-copies."""

from __future__ import annotations

import random
from pathlib import Path


def plain_words(text: str) -> list[str]:
    return "".join(c if c.isalpha() else " " for c in text.casefold()).split()


def grams(text: str) -> frozenset[tuple[str, ...]]:
    w = plain_words(text)
    return frozenset(zip(w, w[1:], w[2:], strict=False)) or frozenset([tuple(w)])


def near_copies(texts: list[str], held_out: list[str]) -> list[int]:
    """Every text against every held-out one."""
    held = [grams(t) for t in held_out]
    found = []
    for i, text in enumerate(texts):
        a = grams(text)
        if any(not a.isdisjoint(b) and len(a & b) / len(a | b) >= 0.5 for b in held):
            found.append(i)
    return found


def page(body: str) -> str:
    return (
        f'<html><body><p id="par_id1">Menu of the browser</p><div id="DisplayArea">{body}</div>'
        '<div id="DonationFrame"></div><p id="par_id9999">Footer of every page</p></body></html>'
    )


def made_up(pages: int = 60, seed: int = 3) -> tuple[dict[str, str], dict[str, str]]:
    """English and German pages whose sentences share many trigrams with those of other pages."""
    rng = random.Random(seed)
    en_pages, de_pages = {}, {}
    heads = [["opens", "closes", "shows"], ["the", "a"], ["new", "old", "blue"], ["dialog", "window", "page"]]
    for n in range(pages):
        en, de = [], []
        for k in range(8):
            w = [rng.choice(h) for h in heads] + rng.choices(["red", "wide", "tall", "flat", "soft", "late"], k=k % 5)
            en.append(f'<p id="par_id{k}">{" ".join(w).capitalize()}.</p>')
            de.append(f'<p id="par_id{k}">{" ".join(x[::-1] + "ä" for x in w).capitalize()}.</p>')
        en_pages[f"shared/{n:03}.html"], de_pages[f"shared/{n:03}.html"] = page("".join(en)), page("".join(de))
    return en_pages, de_pages


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
