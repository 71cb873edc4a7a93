"""Pictures of attention: what is refused, what the page holds, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

import llmcore
from llmcore.errors import ConfigError, DTypeError, ShapeError
from llmcore.viz import AttentionMap, attention_page, attention_png, save_attention_page
from llmcore.viz.attention import visible

# Tokens that end elements, strings and lines, in scripts that are read from right to left, or not
# visible at all.
STRANGE = ["</script>", "<!--", '"\\', "&amp;", " a\n", "שלום", "你好", "\u202e", "\ud800", ""]


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def random_map(rng, kind, layers=2, heads=3, queries=STRANGE, keys=STRANGE, sharpness=2.0):
    if isinstance(queries, int):
        queries = keys = [f" t{index}" for index in range(queries)]
    scores = sharpness * rng.normal(size=(layers, heads, len(queries), len(keys)))
    if kind == "decoder":
        scores = np.where(np.tri(len(queries), len(keys)) > 0, scores, -np.inf)
    return AttentionMap(kind, softmax(scores), queries, keys)


@pytest.fixture
def maps(rng):
    return [
        random_map(rng, "encoder", queries=STRANGE[:7], keys=STRANGE[:7], sharpness=0.5),
        random_map(rng, "decoder", sharpness=0.5),
        random_map(rng, "cross", keys=STRANGE[:7], sharpness=0.5),
    ]


# ----------------------------------------------------------------------------- the map


def test_a_map_numbers_its_layers_and_heads(rng):
    attention = random_map(rng, "decoder", 2, 3)
    assert (attention.layers, attention.heads) == ((0, 1), (0, 1, 2))
    assert repr(attention) == "AttentionMap(decoder: 2 layers × 3 heads, 10 queries × 10 keys)"
    assert attention.weights.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"weights": np.zeros((2, 2))}, ShapeError, r"weights: expected \[layers, .* \[2, 2\]"),
        ({"weights": np.zeros((1, 0, 2, 2))}, ShapeError, r"at least 1, got .* \[1, 0, 2, 2\]"),
        ({"weights": [["a"]]}, DTypeError, "weights: expected an array of numbers"),
        ({"weights": [[1.0], [1.0, 2.0]]}, DTypeError, "weights: expected an array of numbers"),
        ({"queries": ["a"]}, ShapeError, r"queries: expected 2 for .* \[1, 1, 2, 2\], got 1"),
        ({"keys": ["a", "b", "c"]}, ShapeError, "keys: expected 2 .* got 3"),
        ({"layers": [0, 1]}, ShapeError, "layers: expected 1 .* got 2"),
        ({"heads": [0, 1]}, ShapeError, "heads: expected 1 .* got 2"),
        (
            {"kind": "self"},
            ConfigError,
            "kind: expected one of encoder, decoder, cross, got 'self'",
        ),
        ({"keys": [5, 6]}, ConfigError, "keys: expected tokens as text, got 5; decode the ids"),
        ({"layers": ["first"]}, ConfigError, "layers: expected whole numbers, each once"),
        (
            {"weights": np.full((1, 1, 2, 2), np.nan)},
            ConfigError,
            "expected finite numbers, got nan",
        ),
        ({"weights": [[[[1, 0], [-0.5, 1]]]]}, ConfigError, "expected nothing below 0, got -0.5"),
        ({"weights": [[[[1, 0], [1, 1]]]]}, ConfigError, r"query\] \[0, 0, 1\] sums to 2"),
    ],
)
def test_a_bad_map_is_refused_in_one_sentence(changes, error, words):
    good = {"kind": "encoder", "weights": np.eye(2)[None, None], "queries": "ab", "keys": "ab"}
    AttentionMap(**good)
    with pytest.raises(error, match=words):
        AttentionMap(**{**good, **changes})


def test_every_problem_is_listed_and_rounding_is_none():
    with pytest.raises(ConfigError, match="2 problems"):
        AttentionMap("self", [[[[2.0]]]], ["a"], ["a"])
    with pytest.raises(ConfigError, match="each once"):
        AttentionMap("encoder", np.zeros((2, 1, 1, 1)), ["a"], ["a"], layers=[3, 3])
    AttentionMap("encoder", [[[[1.0009]]]], ["a"], ["a"])  # a sum of bfloat16 weights
    AttentionMap("encoder", [[[[0.0]]]], ["a"], ["a"])  # all masked


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the ", "␣the␣"),
        ("\t\r\n\x00\x7f\x85", "⇥␍↵␀␡[U+0085]"),
        ("\u00a0\u3000", "⍽␣"),
        ("", "∅"),
        ("a\u202eb\u200b", "a[U+202E]b[U+200B]"),
        ("\u0301", "◌\u0301"),
        ("\ud83d", "\ufffd"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("<&\"'", "<&\"'"),
    ],
)
def test_every_character_of_a_token_is_visible(token, shown):
    assert visible(token) == shown


# ----------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """The elements of a page, its texts by element, and its data; fails where tags do not match."""

    VOID = ("meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []
        self.data = json.loads(self.texts["script"][0])

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def weights(self, index):
        """What the page knows of a map, decoded: [L, H, T, S]."""
        drawn = self.data["maps"][index]
        levels = {letter: level for level, letter in enumerate(self.data["alphabet"])}
        decoded = np.zeros([len(drawn[name]) for name in ("layers", "heads", "queries", "keys")])
        for layer, heads in enumerate(drawn["weights"]):
            for head, text in enumerate(heads):
                rows = text.split(" ")
                assert len(rows) == len(drawn["queries"])
                for query, row in enumerate(rows):
                    decoded[layer, head, query, : len(row)] = [levels[c] / 255 for c in row]
        return decoded


def test_page_is_well_formed_and_its_texts_are_escaped(maps):
    title = '</title><script>alert("x")</script>'
    page = Page(attention_page(maps, title=title))
    assert page.texts["title"] == page.texts["h1"] == [title]
    assert len(page.texts["script"]) == 2
    decoder = page.data["maps"][1]
    assert decoder["queries"] == [visible(token) for token in STRANGE]
    assert decoder["queries"][:5] == ["</script>", "<!--", '"\\', "&amp;", "␣a↵"]
    assert (decoder["layers"], decoder["heads"]) == ([0, 1], [0, 1, 2])


def test_page_asks_nothing_of_the_network(maps, tmp_path):
    save_attention_page(tmp_path / "page.html", maps)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    for reference in ("http:", "https:", "//www", "src=", "url(", "@import", "fetch(", "innerHTML"):
        assert reference not in text, reference
    policy = next(v for _, name, v in Page(text).attributes if name == "content" and "default" in v)
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("sharpness", [0.0, 2.0, 50.0])
def test_weights_come_back_within_their_rounding(rng, kind, sharpness):
    attention = random_map(rng, kind, sharpness=sharpness)
    page = Page(attention_page([attention]))
    assert np.abs(page.weights(0) - attention.weights).max() <= 0.5 / 255 + 1e-6


def test_every_level_has_a_letter_of_its_own():
    levels = np.arange(256) / 255
    attention = AttentionMap("cross", levels[None, None, :, None], ["q"] * 256, ["k"])
    page = Page(attention_page([attention]))
    assert len(set(page.data["alphabet"])) == 256
    np.testing.assert_allclose(page.weights(0)[0, 0, :, 0], levels)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 20.0])
def test_page_of_twelve_layers_stays_small(rng, sharpness):
    attention = random_map(rng, "encoder", 12, 12, 40, sharpness=sharpness)
    assert len(attention_page([attention]).encode()) < 300_000
    causal = random_map(rng, "decoder", 12, 12, 40, sharpness=sharpness)
    assert len(attention_page([causal]).encode()) < 200_000


def test_next_tokens_belong_to_the_positions_that_predict(maps):
    encoder, _decoder, cross = maps
    following = [[(" a\n", 0.75), ("<b>", 0.25)]] * len(cross.queries)
    page = Page(attention_page([encoder, cross], next_tokens=following))
    assert page.data["next"] == [[["␣a↵", 0.75], ["<b>", 0.25]]] * len(cross.queries)
    assert Page(attention_page([encoder])).data["next"] is None
    with pytest.raises(ShapeError, match="one list for each of 7 positions, got 10"):
        attention_page([encoder], next_tokens=following)
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=f"from 0 to 1, got {bad} for 'x' at position 0"):
            attention_page([encoder], next_tokens=[[("x", bad)]] * len(encoder.queries))


def test_maps_that_do_not_belong_together_are_refused(rng, maps):
    encoder, decoder, cross = maps
    for several in ([], [encoder, encoder]):
        with pytest.raises(ConfigError, match="expected one map of each kind"):
            attention_page(several)
    with pytest.raises(ShapeError, match="queries of the cross map to be the decoder's 4 tokens"):
        attention_page([random_map(rng, "decoder", queries=4), cross])
    with pytest.raises(ShapeError, match="keys of the cross map to be the encoder's 4 tokens"):
        attention_page([random_map(rng, "encoder", queries=4), cross])
    attention_page([cross, decoder, encoder])


@pytest.mark.parametrize("take", [np.asarray, llmcore.tensor])
def test_plain_weights_are_drawn(rng, take):
    causal = random_map(rng, "decoder", 2, 3, queries=4).weights
    both = softmax(rng.normal(size=(2, 3, 4, 4)))
    aside = softmax(rng.normal(size=(2, 3, 4, 5)))
    for weights, kind in ((causal, "decoder"), (both, "encoder"), (aside, "cross")):
        numbered = AttentionMap(
            kind, weights, ["0", "1", "2", "3"], list("01234")[: weights.shape[3]]
        )
        wanted = attention_page([numbered])
        weights = weights.astype(np.float32)
        for form in (take(weights), take(weights[None]), [take(weights)]):
            assert attention_page(form) == wanted
        alone = AttentionMap(kind, weights[:1, :1])
        assert attention_page(take(weights[0, 0])) == attention_page(alone)
    assert (
        len(
            Page(
                attention_page([take(causal.astype(np.float32)), take(aside.astype(np.float32))])
            ).data["maps"]
        )
        == 2
    )


def test_what_is_neither_a_map_nor_weights_is_named():
    for wrong in (None, 3, "text", [None], {"a": 1}, [1.0, 2.0]):
        with pytest.raises(DTypeError, match="must be an AttentionMap or its weights"):
            attention_page(wrong)
    with pytest.raises(ShapeError, match="each at least 1, got the shape"):
        attention_page(np.ones((2, 1, 1, 1, 1), np.float32))


# What someone might do on the page; what went wrong and what was seen end up in the title.
VISIT = """
const seen = [];
const wrong = [];
addEventListener("error", ({ message }) => wrong.push(message));
const all = (selector) => [...document.querySelectorAll(selector)];
const press = (element, key) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const turn = () => new Promise((resolve) => setTimeout(resolve, 50));

for (const kind of ["encoder", "decoder", "cross"]) {
  for (const view of ["overview", "heat", "links", "alignment"]) {
    location.hash = `#map=${kind}&view=${view}&layer=1&head=2,0&query=3`;
    await turn();
    const [drawn, tokens] = [all("#view canvas").length, all("#view .token").length];
    seen.push([drawn, tokens, all("#details li").length, all("#details .next").length]);
  }
}
location.hash = "#map=decoder&view=heat&layer=0&head=1";
await turn();
press(all(".field canvas")[0], "ArrowDown");
seen.push([location.hash, document.getElementById("said").textContent]);
all(".down .token")[4].focus();
press(document.activeElement, "ArrowDown");
seen.push([all(".down .token").indexOf(document.activeElement)]);
press(document.body, "Escape");
all("#heads-2")[0].click();
all("#view-2")[0].click();
all("#heads-0")[0].focus();
all("#heads-0")[0].click();
seen.push([location.hash, document.activeElement.id]);
await turn();
document.title = JSON.stringify({ seen, wrong });
"""


def test_a_browser_draws_every_view_without_complaint(maps, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    following = [[("x", 0.5)]] * len(STRANGE)
    text = attention_page(maps, next_tokens=following)
    file = tmp_path / "page.html"
    visit = f'<script type="module">{VISIT}</script>'
    file.write_bytes(text.replace("</body>", f"{visit}</body>").encode())
    # A temporary profile; as root, the rule in containers, its sandbox cannot work.
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    options += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", "--dump-dom"]
    run = subprocess.run(
        [browser, *options, file.as_uri()], capture_output=True, timeout=120, check=True
    )
    assert "CONSOLE" not in run.stderr.decode()
    title = re.search("<title>(.*?)</title>", run.stdout.decode(), re.DOTALL).group(1)
    found = json.loads(unescape(title))
    assert found["wrong"] == []
    # Canvases, tokens, bars and lists of next tokens. Bars are at most six keys (the decoder's
    # fourth query sees four) and the one token that may come next.
    overview, source, target = [6, 0, 0, 0], 7, len(STRANGE)
    one = {"encoder": [1, 2 * source, 6, 0], "decoder": [1, 2 * target, 4 + 1, 1]}
    one["cross"] = [1, target + source, 6 + 1, 1]
    assert found["seen"][:4] == [overview, one["encoder"], one["encoder"], overview]
    assert found["seen"][4:8] == [overview, one["decoder"], one["decoder"], overview]
    assert found["seen"][8:12] == [overview, one["cross"], one["cross"], one["cross"]]
    weight = maps[1].weights[0, 1, 1, 0]
    cell, said = found["seen"][12]
    assert cell.endswith("&query=1&key=0")
    assert said.startswith("<!-- looks at </script>: ")
    assert abs(float(said.split(": ")[1]) - weight) < 0.5 / 255 + 0.005
    assert found["seen"][13] == [5]
    assert found["seen"][14] == ["#map=decoder&view=links&layer=0&head=0,2", "heads-0"]


# ----------------------------------------------------------------------------- PNG


def test_png_of_one_head_and_of_all(rng, tmp_path):
    pytest.importorskip("matplotlib")
    attention = random_map(rng, "cross", 2, 3, ["$x^", " a\n", "<b>", "_{", "z" * 99], ["a", "b"])
    sizes = []
    for options in ({}, {"layer": 1}, {"layer": 1, "head": 2, "title": "$ one"}):
        attention_png(tmp_path / "a.png", attention, **options)
        content = (tmp_path / "a.png").read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append(tuple(int.from_bytes(content[at : at + 4], "big") for at in (16, 20)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert sizes[1][0] == sizes[0][0]  # as wide with one layer,
    assert sizes[1][1] < sizes[0][1]  # but not as high


def test_png_shows_the_weights(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    attention = AttentionMap("decoder", [[[[1.0, 0.0], [0.0, 1.0]]]], ["a", "b"], ["a", "b"])
    attention_png(tmp_path / "a.png", attention)
    pixels = np.rint(image.imread(tmp_path / "a.png")[..., :3] * 255).astype(int)
    deep = (pixels == [0x0B, 0x2A, 0x55]).all(axis=-1)
    rows, columns = np.nonzero(deep[:, : deep.shape[1] * 2 // 3])  # without the scale at the right
    upper = columns[rows < (rows.min() + rows.max()) / 2]
    lower = columns[rows > (rows.min() + rows.max()) / 2]
    assert upper.max() <= lower.min()  # a diagonal: two squares that touch at a corner


def test_png_says_what_is_missing(rng, tmp_path, monkeypatch):
    attention = random_map(rng, "decoder", 1, 2)
    with pytest.raises(ConfigError, match="attention_png: head: expected one of 0, 1, got 7"):
        attention_png(tmp_path / "a.png", attention, head=7)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib, which is not installed; install it"):
        attention_png(tmp_path / "a.png", attention)
    assert list(tmp_path.iterdir()) == []
