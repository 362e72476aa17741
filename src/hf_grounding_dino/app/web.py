"""The app itself, in Gradio: an image and words on one side, what was found on the other."""

from __future__ import annotations

import html
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..assets import DEMO_IMAGE, DEMO_LABELS
from ..inference.predictor import Predictor
from ..processing.defaults import DEFAULTS, PostProcessing
from .search import KINDS, Kind, SearchResult, as_json, drawn, floor_of, prompt, search, summary, table_rows, words_of

TITLE = "Grounding DINO"

_INTRODUCTION = "Choose an image, write what to look for, and see where it is."
_PLACEHOLDERS: dict[Kind, str] = {
    "Labels": "red square, cyan star",
    "Sentence": "a red square and a cyan star",
}
_HINTS: dict[Kind, str] = {
    "Labels": "Separated by commas or lines.",
    "Sentence": "Each box is called by the words of the sentence that are found in it.",
}
_LONGEST_PROBLEM = 300
_LARGEST_UPLOAD = "64mb"
_WAITING_VISITORS = 32
_SECONDS_KEPT = 3600
_VISITORS_KEPT = 100
"""Whose results are in memory, 2.5 MB each at most; who comes back after so many others searches again."""
_DRAWINGS_AT_ONCE = 4
_CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.problem { color: var(--error-text-color); font-weight: 600; }
footer { display: none !important; }
"""
_DOWNLOAD = """(name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}"""


class Example(NamedTuple):
    """A query to try, and how many different words it finds with the model that ships, above the threshold."""

    title: str
    image: str
    kind: Kind
    words: str
    finds: int


EXAMPLES: tuple[Example, ...] = (
    Example("All eight shapes", str(DEMO_IMAGE), "Labels", ", ".join(DEMO_LABELS), 8),
    Example("One that is not there", str(DEMO_IMAGE), "Labels", "yellow ring, green heart", 1),
    Example("A sentence", str(DEMO_IMAGE), "Sentence", "a red square, a purple cross and a cyan star", 3),
    Example("One thing", str(DEMO_IMAGE), "Sentence", "the small cyan star", 1),
)

Shown = tuple[Any, str, Any, str, str, Any]


def make_app(predictor: Predictor, note: str = "", post: PostProcessing = DEFAULTS) -> gr.Blocks:
    """The app around a model; `start` serves it.

    Visitors share the model, which runs for one of them at a time, and nothing else. The threshold never runs it.

    Args:
        predictor: the model.
        note: a line about it for visitors, plain text.
        post: which boxes are kept, and the threshold that the app begins with.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, _SECONDS_KEPT)) as app:
        gr.HTML(f"<h1>{TITLE}</h1><p>{_INTRODUCTION} {html.escape(note)}</p>")
        result = gr.State(None, time_to_live=_SECONDS_KEPT)
        with gr.Row():
            with gr.Column():
                inputs = _inputs()
                button = gr.Button("Find", variant="primary", elem_id="find")
                problem = gr.HTML(elem_id="problem")
                examples = gr.Examples(
                    examples=[[one.image, one.kind, one.words] for one in EXAMPLES],
                    example_labels=[one.title for one in EXAMPLES],
                    inputs=inputs,
                    label="Examples",
                    api_visibility="private",
                )
            with gr.Column():
                threshold, outputs = _outputs(floor_of(post), post.threshold)
        shows = {
            "fn": show,
            "inputs": [result, threshold],
            "outputs": outputs,
            "show_progress": "hidden",
            "concurrency_limit": _DRAWINGS_AT_ONCE,
            "concurrency_id": "drawing",
        }
        threshold.input(**shows, trigger_mode="always_last", api_name="threshold")
        run = {
            "fn": partial(search_image, predictor, post),
            "inputs": [*inputs, result],
            "outputs": [result, problem],
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "show_progress_on": outputs[0],
        }
        searched = gr.on([button.click, inputs[2].submit], **run, api_name="find", trigger_mode="once")
        example = examples.load_input_event.then(**run, api_visibility="private")
        for event in (searched, example):
            event.then(**shows, scroll_to_output=True, api_visibility="private")
    return app


def _inputs() -> list[Any]:
    """The image, the kind of words, and the words."""
    image: Any = gr.Image(
        label="Image",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=320,
        elem_id="image",
    )
    # Gradio would open the file itself, with words of its own for what is wrong with it.
    image.preprocess = _uploaded_file
    kind: Any = gr.Radio(KINDS, value="Labels", label="Look for", elem_id="kind")
    words = gr.Textbox(
        label="Words", lines=2, max_lines=6, elem_id="words", placeholder=_PLACEHOLDERS["Labels"], info=_HINTS["Labels"]
    )
    kind.change(_textbox_for, kind, words, queue=False, show_progress="hidden", api_visibility="private")
    return [image, kind, words]


def _outputs(floor: float, begin: float) -> tuple[Any, list[Any]]:
    """The threshold, from `floor` on and at first `begin`, and what it changes, in the order of `Shown`."""
    drawing = gr.Image(
        label="Found",
        show_label=False,  # it would lie on the image
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="found",
        alt_text="The image with what was found",
    )
    status = gr.HTML(elem_id="status")
    threshold = gr.Slider(
        floor, 1, begin, step=0.01, label="Threshold", info="Boxes score above it.", elem_id="threshold"
    )
    table = gr.Dataframe(
        headers=["Label", "Score", "Left, top, right, bottom"],
        datatype="str",
        interactive=False,
        wrap=True,
        max_height=320,
        buttons=[],
        elem_id="table",
        show_label=False,
        column_widths=["36%", "18%", "46%"],
        visible=False,
    )
    name, text = gr.Textbox(visible="hidden"), gr.Textbox(visible="hidden")
    download: Any = gr.Button("Download JSON", interactive=False, elem_id="download")
    download.click(None, [name, text], js=_DOWNLOAD, api_visibility="private")
    return threshold, [drawing, status, table, name, text, download]


def _textbox_for(kind: Kind) -> Any:
    return gr.Textbox(placeholder=_PLACEHOLDERS[kind], info=_HINTS[kind])


def _uploaded_file(upload: Any) -> str | None:
    return None if upload is None else upload.path


def search_image(
    predictor: Predictor,
    post: PostProcessing,
    path: str | None,
    kind: Kind,
    text: str,
    earlier: SearchResult | None,
) -> tuple[SearchResult | None, str]:
    """The result of a visitor's query, and what is to be said of its words; or None, and what is wrong, as HTML."""
    try:
        words = words_of(kind, text)
        doubts = prompt(words).doubts(predictor.model)
        said = "".join(f'<p class="note" role="status">{html.escape(doubt)}</p>' for doubt in doubts)
        return search(predictor, path, words, earlier, post), said
    except ValueError as error:
        problem = str(error)
    shortened = problem if len(problem) <= _LONGEST_PROBLEM else f"{problem[:_LONGEST_PROBLEM]}\u2026"
    return None, f'<p class="problem" role="alert">{html.escape(shortened)}</p>'


def show(result: SearchResult | None, threshold: float) -> Shown:
    """What is shown of a result: drawing, sentence, table, file name, JSON, and whether that can be downloaded."""
    if result is None:
        return None, "", gr.Dataframe(visible=False), "", "", gr.Button(interactive=False)
    rows = table_rows(result, threshold)
    return (
        drawn(result, threshold),
        f'<p role="status">{html.escape(summary(result, threshold))}</p>',
        gr.Dataframe(rows, visible=bool(rows)),
        f"{result.name}.json",
        as_json(result, threshold),
        gr.Button(interactive=True),
    )


def start(app: gr.Blocks, *, host: str | None = None, port: int | None = None, share: bool = False) -> str:
    """Serve the app in threads of this process, and give its address; `app.block_thread()` waits for its end.

    Nothing is asked of the network, unless the app is shared.

    Args:
        app: what `make_app` has made.
        host: the address it listens at; by default GRADIO_SERVER_NAME (which Spaces set), or 127.0.0.1.
        port: by default the first free one from GRADIO_SERVER_PORT, or 7860, on.
        share: whether it has a public address too, through a tunnel of gradio.live.

    Raises:
        OSError: it cannot listen there.
    """
    app.queue(max_size=_WAITING_VISITORS).launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=_LARGEST_UPLOAD,
        state_session_capacity=_VISITORS_KEPT,
        ssr_mode=False,
        theme=_theme(),
        css=_CSS,
        footer_links=[],
    )
    return str(app.share_url or app.local_url)


def _theme() -> Any:
    """Fonts of the visitor's own system, and hints that are dark enough to read."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
