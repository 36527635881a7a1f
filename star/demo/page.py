"""The web page: a prompt, some models, pictures that grow scale by scale; then variations, inpainting, a gallery.

What it shows and asks for is here, what happens then events.py's and studio.py's. Nothing is fetched from
anywhere: fonts are the system's, and server.py forbids the browser the rest.
"""

from typing import Any

import gradio as gr

from star.demo.events import CANVAS, Events, refusing, refusing_each
from star.demo.studio import LONGEST_PROMPT, MOST_MODELS, MOST_VARIATIONS, Studio

SESSIONS = 64  # whose state is kept: the gallery and the chosen picture; the browser remembers the rest
TITLE = "STAR: text to image, scale by scale"
FONTS = ["system-ui", "sans-serif"]
THEME = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
CSS = """
.drawn img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.drawn { min-height: 220px; }
footer { display: none !important; }
"""


def page(studio: Studio, limit: int = 10) -> gr.Blocks:
    """The page of a studio. limit: requests that may wait; whoever comes after them is told to try again."""
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(600, 3600)) as blocks:
        _Page(studio).build(blocks)
    blocks.state_session_capacity = SESSIONS
    blocks.queue(max_size=limit, default_concurrency_limit=1)
    return blocks


class _Page:
    """The components, laid out and connected."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.events = studio, Events(studio)

    def build(self, blocks: gr.Blocks) -> None:
        """Lays out the page and connects it."""
        gr.Markdown(f"# {TITLE}")
        self.current, self.made = gr.State(""), gr.State([])
        self.kept = gr.BrowserState({}, storage_key="star-demo")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self._asking()
            with gr.Column(scale=2, min_width=320):
                self._showing()
        self._connect(blocks)

    def _asking(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt", value="a red apple, noto emoji style", max_length=LONGEST_PROMPT, lines=2, elem_id="prompt"
        )
        self.chosen = gr.CheckboxGroup(
            self.events.models,
            value=self.events.models[:1],
            label=f"Models, up to {MOST_MODELS} side by side",
            elem_id="models",
        )
        with gr.Row():
            self.seed = gr.Textbox(
                "", label="Seed", placeholder="a new one", max_length=10, min_width=120, elem_id="seed"
            )
            self.guidance = gr.Textbox(
                "", label="Guidance", placeholder="the model's own", max_length=10, min_width=120, elem_id="guidance"
            )
        with gr.Accordion("Further options", open=False):
            self.more = gr.Textbox(
                "", label="As JSON", placeholder='{"temperature": 0.8, "top_p": 0.9}', max_length=1000, elem_id="more"
            )
        self.draw_button = gr.Button("Draw", variant="primary", elem_id="draw")
        self.dropped = gr.File(
            label="A picture from here gives its settings back",
            file_types=[".png"],
            height=150,
            elem_id="drop",
        )

    def _showing(self) -> None:
        self.slots = []
        with gr.Row():
            for number in range(MOST_MODELS):
                self.slots.append(
                    gr.Image(
                        label="Picture",
                        format="png",
                        interactive=False,
                        visible=number == 0,
                        min_width=200,
                        height=280,
                        elem_classes="drawn",
                        elem_id=f"slot-{number}",
                        buttons=["download", "fullscreen"],
                    )
                )
        self.status = gr.Markdown("", elem_id="status")
        self.download = gr.DownloadButton("Download, with all that made it", interactive=False, elem_id="download")
        with gr.Tab("Gallery"):
            gr.Markdown("What was drawn here; choose one to vary it, paint over it or download it.")
            self.gallery = gr.Gallery(
                label="Gallery",
                show_label=False,
                buttons=[],
                columns=6,
                height=260,
                object_fit="contain",
                allow_preview=False,
                fit_columns=False,
                elem_id="gallery",
            )
        with gr.Tab("Variations"):
            self._variations()
        with gr.Tab("Inpainting"):
            self._inpainting()

    def _variations(self) -> None:
        gr.Markdown("The coarse scales of the chosen picture stay, the finer ones are drawn anew from the prompt.")
        varying = self.events.varying
        grids = self.studio.grids(varying[0]) if varying else []
        with gr.Row():
            self.keep = gr.Dropdown(
                grids,
                value=grids[len(grids) // 2] if grids else None,
                label="Keep the scales up to",
                elem_id="keep",
                min_width=140,
            )
            self.count = gr.Slider(1, MOST_VARIATIONS, 4, step=1, label="How many", min_width=140)
        self.vary_button = gr.Button("Vary", elem_id="vary", interactive=bool(varying))
        self.variations = gr.Gallery(
            label="Variations",
            show_label=False,
            buttons=["fullscreen"],
            columns=4,
            height=260,
            object_fit="contain",
            fit_columns=False,
            elem_id="variations",
        )

    def _inpainting(self) -> None:
        gr.Markdown("Paint over what is to be drawn anew from the prompt; the rest stays as it is.")
        self.editor = gr.ImageEditor(
            type="pil",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            canvas_size=(CANVAS, CANVAS),
            brush=gr.Brush(default_size=40, colors=["#ff00ff"], color_mode="fixed"),
            buttons=[],
            label="Picture",
            elem_id="editor",
        )
        self.inpaint_button = gr.Button("Draw anew", elem_id="inpaint", interactive=bool(self.events.varying))
        self.inpainted = gr.Image(
            label="Result",
            format="png",
            interactive=False,
            height=280,
            buttons=["download", "fullscreen"],
            elem_classes="drawn",
            elem_id="inpainted",
        )

    def _connect(self, blocks: gr.Blocks) -> None:
        events, one_at_a_time = self.events, {"concurrency_id": "draw", "concurrency_limit": 1}
        wish = [self.prompt, self.seed, self.guidance, self.more]
        settings = [self.prompt, self.chosen, self.seed, self.guidance, self.more]
        shared = [self.current, self.made, self.gallery, self.download, self.editor]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

        drawn = [*self.slots, self.status, *shared]
        given = [self.chosen, *wish, self.made]
        draw = refusing_each(events.draw)
        hidden: dict[str, Any] = {"show_progress": "hidden", **one_at_a_time}
        clicked = self.draw_button.click(draw, given, drawn, api_name="draw", **hidden)
        entered = self.prompt.submit(draw, given, drawn, api_visibility="private", **hidden)

        on = [self.current, self.chosen, *wish]
        outputs = [self.status, self.made, self.gallery]
        asked = [*on, self.keep, self.count, self.made]
        varied = self.vary_button.click(
            refusing(events.vary), asked, [self.variations, *outputs], api_name="vary", **one_at_a_time
        )
        asked = [*on, self.editor, self.made]
        painted = self.inpaint_button.click(
            refusing(events.inpaint), asked, [self.inpainted, *outputs], api_name="inpaint", **one_at_a_time
        )
        chosen = [self.current, self.download, self.editor, self.status]
        self.gallery.select(refusing(events.choose), [self.made], chosen, **quiet)
        taken = self.dropped.upload(
            refusing(events.take), [self.dropped, self.made], [*settings, self.status, *shared], **quiet
        )
        for done in (clicked, entered, varied, painted, taken):
            done.then(events.remember, [*settings, self.made], self.kept, **quiet)
        blocks.load(events.restore, [self.kept], [*settings, *shared], **quiet)
