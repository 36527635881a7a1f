"""The page and the Markdown table: they stand alone, say what the records say, and nothing in a name breaks them."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from star.cli import main
from star.data.errors import InputError
from star.eval.report import gallery, plots, tables
from star.eval.report.comparison import Comparison, gather
from star.eval.report.markdown import to_markdown
from star.eval.report.report import html, markdown, reproduction, write_report
from tests.eval.records import CATEGORIES, PROMPTS, PROTOCOL, SCORE, estimate, record, save

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Texts by the tags around them, attributes, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if "td" in self.open or "th" in self.open:
            separator = " " if self.open[-1] == "small" else ""
            self.rows[-1][-1] += separator + data

    def named(self, tag: str) -> Iterator[dict[str, str]]:
        return (attributes for name, attributes in self.tags if name == tag)


def two_records(folder: Path) -> Comparison:
    return gather(save(folder, record("first", fd=30, rank=0.5), record("second", fd=31, rank=0.9)))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return two_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def text(comparison: Comparison) -> str:
    return html(comparison)


@pytest.fixture
def benchmark(comparison: Comparison, tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark"
    meta = {key: {"category": CATEGORIES[i % 3], "prompt": prompt} for i, (key, prompt) in enumerate(PROMPTS.items())}
    pictures = comparison.entries[0].path.with_suffix("") / "pictures"
    for key, about in meta.items():
        (folder / about["category"]).mkdir(parents=True, exist_ok=True)
        (folder / about["category"] / f"{key}.png").write_bytes((pictures / f"{key}.png").read_bytes())
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


def test_the_page_asks_for_nothing(comparison: Comparison, benchmark: Path) -> None:
    text = html(comparison, benchmark=benchmark)
    page = Page(text)
    assert page.open == []
    links = [a[name] for _, a in page.tags for name in ("src", "href", "xlink:href", "action", "data") if name in a]
    assert len(links) > 50
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_links_lead_to_one_place_each(text: str) -> None:
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in page.named("a")} <= set(ids)
    used = {a["xlink:href"].removeprefix("#") for a in page.named("use")}
    assert used
    assert used <= set(ids)


def test_figures_of_the_page_are_those_of_the_records(text: str) -> None:
    table = Page(text).rows
    rows = {row[0]: row[1:] for row in table if row}
    assert rows["FD ↓ judge-emoji"] == ["30.00 29.00 to 31.00", "31.00 30.00 to 32.00"]
    assert rows["true prompt first of 20 ↑ clip-emoji †"] == ["0.500 0.450 to 0.550", "0.900 0.850 to 0.950"]
    assert rows["pictures scored"] == ["12", "12"]
    assert [row[:4] for row in table if row[1:2] == ["star"]] == [
        ["first", "star", "1.2 M", "64 x 64"],
        ["second", "star", "1.2 M", "64 x 64"],
    ]
    timed = [row for row in table if row[:2] == ["first", "1"]]
    assert timed == [["first", "1", "300.0", "30.0", "150.0", "120.0", "300", "5", "CPU (of the test)", "1"]]


def test_every_figure_of_every_record_is_in_both_files(comparison: Comparison, text: str) -> None:
    page = " ".join(words for _, words in Page(text).texts)
    lines = markdown(comparison)
    for entry in comparison.entries:
        for group in entry.record.metrics.values():
            for name, value in group.items():
                for end in (value.value, value.low, value.high):
                    assert end is not None
                    assert tables.number(name, end) in page
                    assert tables.number(name, end) in lines


def test_best_and_tied_are_marked(comparison: Comparison, text: str) -> None:
    assert "<b>30.00</b>" in text
    assert '<span class="tied">31.00</span>' in text
    assert "<b>0.900</b>" in text
    assert '<span class="tied">0.500</span>' not in text
    lines = markdown(comparison)
    assert "**30.00** (29.00 to 31.00)" in lines
    assert "≈ 31.00 (30.00 to 32.00)" in lines


def test_the_whole_protocol_is_told_and_digests_are_cut_but_kept(text: str) -> None:
    page = Page(text)
    titles = {a["title"] for a in page.named("span") if "title" in a}
    for digest in (PROTOCOL.prompts, PROTOCOL.references, *PROTOCOL.extractors.values()):
        assert digest in titles
        assert any(words == digest[:12] for _, words in page.texts)
    told = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert told["resize rule"] == "lanczos-antialias"
    assert told["size of references (H x W)"] == "64 x 64"
    assert set(tables.FIELDS.values()) <= set(told)


def test_real_pictures_have_a_row_below_the_models_where_their_score_is_known(tmp_path: Path) -> None:
    known = replace(record(), references={"overall": {SCORE: estimate(0.7, 0.01)}})
    rows = tables.summary(gather(save(tmp_path, known, record("other")))).rows
    place = next(number for number, row in enumerate(rows) if row[0].text == "the real pictures")
    assert rows[place][0].detail == "CLIP score ↑ clip-emoji"
    assert [cell.text for cell in rows[place][1:]] == ["0.7000", "–"]
    assert [row[0].text for row in rows].count("the real pictures") == 1
    assert rows[place - 1][0].text == "CLIP score ↑"


def test_a_record_made_before_a_metric_shows_a_dash_and_notes_name_their_models(tmp_path: Path) -> None:
    name, note = "subject_1/judge-emoji", "left out: the <benchmark> names no subjects"
    newer, noted = record("newer"), record("noted")
    newer.metrics["overall"][name] = estimate(0.25, 0.125)
    paths = save(tmp_path, record("older"), newer, replace(noted, notes={name: note}))
    older = json.loads(paths[0].read_text())
    del older["notes"]  # as records were before there were notes
    paths[0].write_text(json.dumps(older))
    comparison = gather(paths)
    line = next(line for line in markdown(comparison).splitlines() if line.startswith("| subject named right"))
    assert line == "| subject named right ↑ (judge-emoji) | – | 0.250 (0.125 to 0.375) | – |"
    said = "Subject named right by judge-emoji: left out: the &lt;benchmark&gt; names no subjects (noted)."
    assert said in markdown(comparison)
    assert said in html(comparison)
    everyone = gather(save(tmp_path / "all", replace(noted, notes={name: note})))
    assert said.replace(" (noted)", "") in markdown(everyone)


def test_what_training_showed_to_each_model_stands_first(tmp_path: Path) -> None:
    told = record("told")
    told = replace(told, measured=replace(told.measured, images_seen=1_052_928))
    plain = gather(save(tmp_path / "plain", record("one"), record("two")))
    assert "images seen" not in markdown(plain)
    table = tables.summary(gather(save(tmp_path / "told", record("plain"), told)))
    assert [cell.text for cell in table.rows[0]] == ["images seen in training", "–", "1,052,928"]


def test_what_models_remark_stands_with_their_names(tmp_path: Path) -> None:
    told = record("told")
    told = replace(told, measured=replace(told.measured, remark="3 of 9 prompts ask for <more>"))
    comparison = gather(save(tmp_path, record("plain"), told))
    for page in (markdown(comparison), html(comparison)):
        assert page.count("3 of 9 prompts ask for &lt;more&gt; (told).") == 1


def test_a_network_that_models_were_trained_with_is_noted(comparison: Comparison) -> None:
    table = tables.summary(comparison)
    assert "† clip-emoji has a text tower that began as that of guide-emoji" in table.note
    assert [row[0].detail for row in table.rows if row[0].detail.endswith("†")] == ["clip-emoji †"] * 2


def test_categories_of_few_pictures_are_neither_ranked_nor_plotted(tmp_path: Path) -> None:
    one, other = record("one", fd=30), record("two", fd=90)
    one.metrics["food"]["fd/judge-emoji"] = estimate(30, pictures=29)
    comparison = gather(save(tmp_path, one, other))
    assert comparison.marks("food", "fd/judge-emoji") == ["", ""]
    assert comparison.marks("logo", "fd/judge-emoji") == ["best", ""]
    table = tables.by_category(comparison)[0]
    assert table.note == "Not ranked, and in no radar, with fewer than 30 pictures: food."
    assert tables.by_category(comparison)[1].note == ""
    assert len(plots.radars(comparison)) == 1  # distances have two axes left, which are no radar


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    bad = '<script>alert("1")</script> & \' | *'
    prompts = {key: f"{bad} {key}" for key in PROMPTS}
    evil = replace(record(bad), skipped={bad: ["<img src=x onerror=y>"]})
    evil = replace(evil, measured=replace(evil.measured, options={bad: bad}))
    other = record("other", benchmark=bad)
    comparison = gather(save(tmp_path, evil, other, prompts=prompts), mix_protocols=True)
    page = Page(html(comparison))
    assert not {"script", "iframe"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:") for image in page.named("img"))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert any(image["alt"] == f"{bad} 0000" for image in page.named("img"))
    lines = markdown(comparison)
    assert "<script>" not in "\n".join(line for line in lines.splitlines() if line.startswith("|"))


def test_markdown_tables_have_as_many_cells_in_every_row(tmp_path: Path) -> None:
    comparison = gather(save(tmp_path, record("a | b\n* c"), record("plain")))
    for table in tables.all_tables(comparison):
        lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert cells == {len(table.head) + 1}
        assert re.fullmatch(r"\|( -{3}:? \|)+", lines[1])


def test_mixed_protocols_are_marked_on_every_table_of_figures(tmp_path: Path) -> None:
    comparison = gather(save(tmp_path, record("a"), record("b", fd=90, pictures=7)), mix_protocols=True)
    figures = (tables.summary(comparison), tables.protocol(comparison), *tables.by_category(comparison))
    assert all(table.warning == tables.MIXED for table in figures)
    page = Page(html(comparison))
    assert sum(text == tables.MIXED for _, text in page.texts) == len(figures)
    assert not list(page.named("b"))
    assert markdown(comparison).count(tables.MIXED) == len(figures)


def test_reported_figures_stand_apart(text: str) -> None:
    published_numbers = tables.published_numbers()
    assert all(row[-1].text.startswith("as reported: ") for row in published_numbers.rows)
    star = next(row for row in published_numbers.rows if row[0].text == "STAR d30, 512")
    assert "FID 4.73" in star[2].text
    page = Page(text)
    assert not any("4.73" in cell for row in page.rows if "first" in row[0] for cell in row)


def test_gallery_holds_the_same_prompts_for_all_and_the_real_picture_first(
    comparison: Comparison, benchmark: Path
) -> None:
    content = gallery.side_by_side(comparison, 5, benchmark)
    assert content is not None
    assert content.columns == ("real", "first", "second")
    assert len(content.rows) == 5
    for picture, (real, first, second) in content.rows:
        assert picture.prompt == real.prompt == first.prompt == second.prompt
        assert real.data == first.data  # the first model's pictures serve as the real ones here
        assert first.data != second.data
    without = gallery.side_by_side(comparison, 100)
    assert without is not None
    assert without.columns == ("first", "second")
    assert len(without.rows) == len(PROMPTS)


def test_another_benchmark_is_refused(comparison: Comparison, benchmark: Path) -> None:
    meta = json.loads((benchmark / "meta_data.json").read_text())
    meta["0000"]["prompt"] = "something else"
    (benchmark / "meta_data.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="no picture for the prompt 'picture number 0 of all'"):
        html(comparison, benchmark=benchmark)


def test_best_and_worst_are_in_order(comparison: Comparison) -> None:
    first, second = gallery.extremes(comparison)
    assert (first.label, second.label) == ("first", "second")
    assert [shown.caption for shown in first.best] == ["0.1100", "0.1000", "0.0900", "0.0800", "0.0700", "0.0600"]
    assert [shown.caption for shown in first.worst] == ["0.0000", "0.0100", "0.0200", "0.0300", "0.0400", "0.0500"]
    assert not {shown.data for shown in first.best} & {shown.data for shown in first.worst}


def test_records_without_pictures_or_speed_still_make_a_page(tmp_path: Path) -> None:
    paths = save(tmp_path, replace(record(), speed=(), metrics={"overall": {"fd/judge-emoji": estimate(3.0, None)}}))
    (tmp_path / "0" / "pictures.jsonl").unlink()
    page = Page(html(gather(paths)))
    assert not list(page.named("img"))
    assert not list(page.named("svg"))
    assert "summary" in {a.get("id") for a in page.named("section")}
    assert "gallery" not in {a.get("id") for a in page.named("section")}


def test_a_picture_that_is_gone_leaves_a_gap_not_a_failure(tmp_path: Path) -> None:
    comparison = two_records(tmp_path)
    (tmp_path / "1" / "pictures" / "0000.png").unlink()
    (tmp_path / "1" / "pictures" / "0001.png").write_bytes(b"no picture")
    assert html(comparison).count('class="gone"') >= 2


def test_large_pictures_become_small(tmp_path: Path) -> None:
    from PIL import Image

    noise = Image.effect_noise((1024, 512), 90)
    noise.save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 300_000
    assert 1000 < len(gallery.as_data(tmp_path / "noise.png")) < 16_000


def test_the_page_is_a_function_of_the_records(comparison: Comparison, text: str) -> None:
    assert html(comparison) == text


def test_commands_that_made_it_are_told(tmp_path: Path) -> None:
    one = record("star emoji")
    one = replace(one, measured=replace(one.measured, options={"guidance_scale": 3.0, "top_k": 0}))
    comparison = gather([*save(tmp_path / "a", one), *save(tmp_path / "b", record("other"))])
    assert reproduction(comparison) == [
        "star eval 'star emoji' --benchmark emoji-mjhq --out a/0.json --protocol emoji-mjhq --pictures 12 --seed 0 "
        "--guidance-scale 3.0 --top-k 0",
        "star eval other --benchmark emoji-mjhq --out b/0.json --protocol emoji-mjhq --pictures 12 --seed 0",
        "star compare a/0.json b/0.json --out comparison",
    ]


def test_shares_of_the_best() -> None:
    assert plots.shares_of_best([10, 20, 40], "lower") == [1, 0.5, 0.25]
    assert plots.shares_of_best([0.2, 0.4, 0], "higher") == [0.5, 1, 0]
    assert plots.shares_of_best([0, 5], "lower") == [1, 0]
    assert plots.shares_of_best([-1, 5], "higher") is None
    assert plots.shares_of_best([0, 0], "higher") is None


def test_plots_state_their_scale_and_take_the_colours_of_the_page(comparison: Comparison) -> None:
    radars, scatters = plots.radars(comparison), plots.scatters(comparison)
    assert [len(radars), len(scatters)] == [2, 2]
    assert "the outer ring is the best" in radars[0].caption
    assert "bottom left" in scatters[0].caption
    assert "top left" in scatters[1].caption
    assert "CPU (of the test), 1 thread" in scatters[0].caption
    for drawing in (*radars, *scatters):
        assert "var(--series-0)" in drawing.svg
        assert "var(--series-1)" in drawing.svg
        assert not re.search(r"#fe0[01]", drawing.svg)


def test_files_are_written_and_an_impossible_place_is_told(
    comparison: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in write_report(comparison, tmp_path / "out"):
        assert path.stat().st_size > 1000
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.html", "comparison.md"}
    (tmp_path / "file").write_text("")
    records = [str(entry.path) for entry in comparison.entries]
    assert main(["compare", *records, "--out", str(tmp_path / "file")]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_a_page_of_emoji_stays_small(shared: Path, tmp_path: Path) -> None:
    """Real pictures at their full size, as four models' galleries of 24 prompts."""
    from star.eval.run.layout import read_layout, spread

    items = spread(read_layout(shared / "data" / "emoji-mjhq"), 36)
    paths = save(
        tmp_path, *(record(str(number)) for number in range(4)), prompts={item.key: item.prompt for item in items}
    )
    for path in paths:
        for item in items:
            (path.with_suffix("") / "pictures" / f"{item.key}.png").write_bytes(item.picture.read_bytes())
    html_path, _ = write_report(gather(paths), tmp_path / "out", benchmark=shared / "data" / "emoji-mjhq")
    assert 100_000 < html_path.stat().st_size < 3_000_000
