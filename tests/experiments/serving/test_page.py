"""The page in a browser: what a reader does, and 50 texts that would like to be scripts."""

import re
import shutil

import pytest

from experiments.serving import page_files
from tests.experiments.serving.page_server import Documents, serving

sync_api = pytest.importorskip(
    "playwright.sync_api",
    reason="the page is tested with playwright, which is not here",
)
_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    _BROWSER is None, reason="there is no chromium: apt-get install chromium"
)
_ICELAND = {
    "id": "geography/iceland.txt",
    "title": "Iceland",
    "uri": "https://example.org/iceland",
    "licence": "public domain",
    "text": "Population of Iceland: total: 364,036 (2024 est.) Area of Iceland: total: "
    "103,000 sq km. The terrain is mostly plateau \U0001f30b with mountain peaks.",
}
_NORWAY = {
    "id": "geography/norway.txt",
    "title": "Norway",
    "text": "Population of Norway: total: 5,509,733 (2024 est.) Area: 323,802 sq km.",
}
_PROMPT = "What is the population of Iceland? The"
_XSS = [
    payload.replace("RUN", "window.hacked=1")
    for payload in (
        "<script>RUN</script>",
        "<ScRiPt>RUN</sCrIpT>",
        "<script src=data:text/javascript,RUN></script>",
        "<script type=module>RUN</script>",
        "<scr<script>ipt>RUN</scr</script>ipt>",
        "<img src=x onerror=RUN>",
        "<img src=x onerror='RUN'>",
        '"><img src=x onerror="RUN">',
        "'><img src=x onerror=RUN>",
        "<img/src=x/onerror=RUN>",
        "<image src=x onerror=RUN>",
        "<svg onload=RUN>",
        "<svg/onload=RUN>",
        "<svg><script>RUN</script></svg>",
        "<svg><animate onbegin=RUN attributeName=x dur=1s>",
        "<svg><set onbegin=RUN attributename=x>",
        "<svg><a xlink:href='javascript:RUN'><text>x</text></a></svg>",
        "<math><mtext><table><mglyph><style><img src=x onerror=RUN>",
        "<math href='javascript:RUN'>x</math>",
        "<body onload=RUN>",
        "<body onpageshow=RUN>",
        "<iframe src='javascript:RUN'></iframe>",
        "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
        "<iframe onload=RUN>",
        "<object data='javascript:RUN'></object>",
        "<embed src='javascript:RUN'>",
        "<input autofocus onfocus=RUN>",
        "<select autofocus onfocus=RUN>",
        "<textarea autofocus onfocus=RUN>",
        "<button autofocus onfocus=RUN>x</button>",
        "<details open ontoggle=RUN>x</details>",
        "<video src=x onerror=RUN></video>",
        "<video><source onerror=RUN></video>",
        "<audio src=x onerror=RUN></audio>",
        "<marquee onstart=RUN>x</marquee>",
        "<link rel=stylesheet href='javascript:RUN'>",
        "<link rel=import href='data:text/html,<script>RUN</script>'>",
        "<meta http-equiv=refresh content='0;url=javascript:RUN'>",
        "<base href='javascript:RUN//'>",
        "<form action='javascript:RUN'><input type=submit></form>",
        "<style>@import 'javascript:RUN';</style>",
        "<div style='animation-name:x' onanimationstart=RUN>x</div>",
        "<p onmouseover=RUN>x</p>",
        "<a href='javascript:RUN' autofocus>x</a>",
        "</textarea><script>RUN</script>",
        "</title><script>RUN</script>",
        "--><script>RUN</script><!--",
        "&lt;script&gt;RUN&lt;/script&gt;",
        "\u0000<script>RUN</script>",
        "javascript:RUN",
    )
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # As root, and in a container, Chromium has no sandbox of its own.
        opened = playwright.chromium.launch(
            executable_path=_BROWSER, args=["--no-sandbox"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page_of(browser):
    """Opens the page on documents; what a browser refuses or reports fails the test."""
    faults: list[str] = []
    with_contexts = []

    def opened(documents: Documents, **settings):
        server = serving(documents)
        address = server.__enter__()
        context = browser.new_context(**settings)
        context.set_default_timeout(60_000)
        with_contexts.append((context, server))
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text))
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith(address) or faults.append(f"asked {asked.url}")
            ),
        )
        page.goto(address)
        sync_api.expect(page.locator("#about")).to_contain_text("version")
        return page

    yield opened
    for context, server in with_contexts:
        context.close()
        server.__exit__(None, None, None)
    assert faults == []


def _write(page, prompt: str = _PROMPT) -> None:
    page.fill("#prompt", prompt)
    page.click("#write")
    sync_api.expect(page.locator("#stop")).to_be_hidden()


def test_each_chunk_stands_beside_the_passages_that_it_read(page_of):
    documents = Documents([_ICELAND, _NORWAY])
    page = page_of(documents)
    _write(page)
    assert page.inner_text("#run-a .given") == _PROMPT
    shown = "".join(page.locator("#run-a .chunk").evaluate_all(_WITHOUT_NUMBERS))
    assert shown == _ICELAND["text"]  # characters beyond 16 bits count once
    sent = documents.asked[-1]
    assert (sent["retrieval"], sent["num_neighbours"], sent["effects"]) == (
        True,
        2,
        True,
    )
    chunks = page.locator("#run-a .chunk")
    chunks.nth(1).hover()
    assert page.inner_text("#passages h2") == "Chunk 2, run A"
    cards = page.locator("#passages .card")
    assert cards.locator("h3").all_inner_texts() == ["1 Iceland", "2 Norway"]
    told = cards.nth(0).locator(".evidence dd").all_inner_texts()
    assert told == ["72 %", "221\u00d7 likelier (+5.4 nats)"]
    assert cards.nth(1).locator(".evidence dd").all_inner_texts() == [
        "20 %",
        "2.0\u00d7 less likely (\u22120.7 nats)",
    ]
    widths = page.locator("#passages .attention .fill").evaluate_all(
        "all => all.map((each) => each.style.width)"
    )
    assert widths == ["72%", "20%"]
    assert page.get_attribute("#passages .where a", "href") == _ICELAND["uri"]
    said = page.locator("#run-a .summary .value").all_inner_texts()
    assert re.fullmatch(r"\+\d+\.\d nats in \d chunks", said[0])
    # By keyboard alone.
    chunks.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    last = chunks.count()
    assert page.inner_text("#passages h2") == f"Chunk {last}, run A"
    pressed = "#run-a .chunk[aria-pressed=true]"
    assert page.locator(pressed).count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "passages"


_WITHOUT_NUMBERS = """all => all.map((chunk) => {
  const copy = chunk.cloneNode(true);
  copy.querySelectorAll("sup").forEach((each) => each.remove());
  return copy.textContent;
})"""


def test_a_verbatim_span_finds_all_documents_that_hold_it(page_of):
    copy = _ICELAND | {"id": "copy.txt", "title": "A copy"}
    page = page_of(Documents([_ICELAND, _NORWAY, copy]))
    _write(page)
    span = page.locator("#passages .span").first
    span.focus()
    words = span.inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector("#results .card")
    assert page.input_value("#query") == words
    assert (
        page.inner_text("#search-status") == "3 passages; 2 hold these words exactly."
    )
    assert page.locator("#results h3").all_inner_texts()[:2] == ["Iceland", "A copy"]
    page.fill("#query", "Norway")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#results h3").first).to_have_text("Norway")
    assert page.inner_text("#results .card:first-child mark") == "Norway"


def test_two_runs_stand_side_by_side_with_their_own_settings(page_of):
    documents = Documents([_ICELAND, _NORWAY])
    page = page_of(documents)
    page.check("#compare")
    page.fill("#k-A", "1")
    _write(page)
    sent = {each["retrieval"]: each for each in documents.asked}
    assert sent[True]["num_neighbours"] == 1 and "num_neighbours" not in sent[False]
    assert "364,036" in page.inner_text("#run-a .prose")
    assert "not known" in page.inner_text("#run-b .prose")
    assert page.inner_text("#run-b .note").endswith("reading was off.")
    assert page.locator("#passages .card").count() == 1
    boxes = [page.locator(each).bounding_box() for each in ("#run-a", "#run-b")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_a_changed_document_changes_the_text_beside_the_earlier_one(page_of):
    documents = Documents([_ICELAND, _NORWAY])
    page = page_of(documents)
    _write(page)
    page.locator("#passages .quiet:not(.back)").first.click()
    sync_api.expect(page.locator("#document-text")).to_have_value(_ICELAND["text"])
    page.fill("#document-text", _ICELAND["text"].replace("364,036", "777,777"))
    page.click("#document-form button[value=replace]")
    page.wait_for_selector("#again")
    said = page.inner_text("#document-status")
    assert said == f"Replaced: {_ICELAND['id']}. The database is version 1 now."
    page.click("#again")
    sync_api.expect(page.locator("#stop")).to_be_hidden()
    assert "364,036" in page.inner_text("#run-a .prose")
    assert "777,777" in page.inner_text("#run-b .prose")
    status = page.locator("#document-status")
    # A document that is new, and one that goes, which is asked for twice.
    page.click("#tab-documents")
    page.fill("#document-id", "new")
    page.fill("#document-text", "Something new.")
    page.click("#document-form button[value=add]")
    sync_api.expect(status).to_contain_text("Added: new")
    assert documents.by_id["new"]["text"] == "Something new."
    page.fill("#document-id", _ICELAND["id"])
    page.click("#document-form button[value=delete]")
    sync_api.expect(status).to_contain_text("Press Delete again")
    assert _ICELAND["id"] in documents.by_id
    page.click("#document-form button[value=delete]")
    sync_api.expect(status).to_contain_text("Deleted")
    assert _ICELAND["id"] not in documents.by_id


def test_what_goes_wrong_is_said(page_of):
    documents = Documents([_ICELAND])
    page = page_of(documents)
    documents.problem = "the service at <b>db</b> is away"
    _write(page)
    assert documents.problem in page.inner_text("#passages .problem")
    documents.problem = None


def test_nothing_runs_over_the_edge_and_contrast_is_enough(page_of):
    long = _ICELAND | {"title": "x" * 300, "uri": "file:/" + "y" * 300}
    page = page_of(Documents([long, _NORWAY]))
    page.check("#compare")
    _write(page)
    for width in (1440, 360):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(_CONTRAST) == []
    # On a telephone a tap brings the passages into view, and one goes back.
    page.locator("#run-a .chunk").first.click()
    top = "document.getElementById('sources').getBoundingClientRect().top"
    assert page.evaluate(top) < 800
    assert page.is_visible(".back")


# Every element with text of its own against the first ground behind it that is opaque.
_CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const [a, b] = [numbers(getComputedStyle(element).color).slice(0, 3), ground(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${element.localName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


def test_no_text_of_a_database_becomes_a_script(page_of):
    assert len(_XSS) == 50
    hostile = [
        {
            "id": payload,
            "title": payload,
            "uri": payload,
            "licence": payload,
            "text": f"{payload} population {payload}",
        }
        for payload in _XSS
    ]
    documents = Documents(hostile)
    page = page_of(documents)
    page.evaluate("document.getElementById('k-A').max = 50")
    page.fill("#k-A", "50")
    _write(page, "population")
    assert page.locator("#passages .card").count() == 50
    titles = page.locator("#passages h3").all_inner_texts()
    for payload in _XSS:
        shown = " ".join(payload.replace("\u0000", "\ufffd").split())
        assert any(shown in " ".join(t.split()) or payload in t for t in titles)
    page.locator("#passages .span").first.click()  # and a search shows them once more
    page.wait_for_selector("#results .card")
    page.locator("#results .quiet").last.click()
    sync_api.expect(page.locator("#document-id")).not_to_have_value("")
    for link in page.locator("a[href]").all():
        assert not (link.get_attribute("href") or "").lower().startswith("javascript")
    assert page.evaluate("window.hacked") is None
    assert (
        page.evaluate("document.querySelectorAll('aside img, aside svg').length") == 0
    )


def test_the_page_reads_no_markup_and_asks_no_other_host():
    for path, (_, content) in page_files.files().items():
        text = content.decode()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text
        )
        assert not re.search(r"\beval\(|new Function|\bstyle=|\bon\w+=\"", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
