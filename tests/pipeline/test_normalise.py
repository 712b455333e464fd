import nbformat
import pandas as pd
import pytest

from vlalign_utils.pipeline.normalise import WIDGET, PageError, check_size, digest, merged, normalise
from vlalign_utils.pipeline.page_markup import check_markup

V4 = nbformat.v4
PATHS = {"/a/run-x/": "", "/a": "."}


def executed(*outputs, source="x", tags=()):
    cell = V4.new_code_cell(source, execution_count=7, outputs=list(outputs), metadata={"tags": list(tags)})
    cell.metadata["papermill"] = {"duration": 1.2}
    notebook = V4.new_notebook(cells=[V4.new_markdown_cell("# T"), cell])
    notebook.metadata["papermill"] = {"input_path": "/a/n.ipynb"}
    return notebook


def stream(text, name="stdout"):
    return V4.new_output("stream", name=name, text=text)


def test_what_differs_between_reruns_is_gone():
    result = V4.new_output("execute_result", {"text/plain": "3"}, execution_count=7)
    widget = V4.new_output("display_data", {WIDGET: {"model_id": "abc"}, "text/plain": "0%|  |"})
    notebook = normalise(executed(stream("noise", "stderr"), widget, result), PATHS)
    cell = notebook.cells[1]
    assert [output.output_type for output in cell.outputs] == ["execute_result"]
    assert (cell.execution_count, cell.outputs[0].execution_count) == (1, 1)
    assert ([c.id for c in notebook.cells], dict(cell.metadata)) == (["cell-00", "cell-01"], {"tags": []})
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    nbformat.validate(notebook)


def test_streams_read_as_on_a_screen():
    pieces = [stream("10%\r50%"), stream("hidden", "stderr"), stream("\r100%\nsaved /a/run-x/o.txt in /a\n")]
    outputs = normalise(executed(*pieces), PATHS).cells[1].outputs
    assert [output.text for output in outputs] == ["100%\nsaved o.txt in .\n"]


DEFAULTS = 'arch = "llava"\nout_dir = ""\nband = [\n    2,\n    5,\n]  # layers [first, stop), é\nseed = 0'


def test_the_parameters_are_one_cell_with_the_values_in_use():
    cells = [
        V4.new_markdown_cell("# T"),
        V4.new_code_cell(DEFAULTS, metadata={"tags": ["parameters"]}),
        V4.new_code_cell(
            '# Parameters\nband = [3, 6]\narch = "é"\nout_dir = "/a/run-x"\n',
            metadata={"tags": ["injected-parameters"]},
        ),
        V4.new_code_cell("x"),
    ]
    notebook = normalise(V4.new_notebook(cells=cells), PATHS)
    assert [cell.source for cell in notebook.cells[1:]] == [
        'arch = "é"\nout_dir = ""\nband = [3, 6]  # layers [first, stop), é\nseed = 0',
        "x",
    ]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]


def test_a_notebook_without_injected_values_keeps_its_defaults():
    notebook = V4.new_notebook(cells=[V4.new_code_cell(DEFAULTS, metadata={"tags": ["parameters"]})])
    assert normalise(notebook, PATHS).cells[0].source == DEFAULTS


def test_an_injected_value_must_have_its_parameter():
    with pytest.raises(PageError, match="does not have: sede"):
        merged(DEFAULTS, "sede = 1")
    with pytest.raises(PageError, match="no cell tagged 'parameters'"):
        normalise(executed(source="seed = 1", tags=["injected-parameters"]), PATHS)


def test_digest_ignores_outputs_of_timing_cells_only():
    def of(text, tags):
        return digest(normalise(executed(stream(text), tags=tags), PATHS))

    assert of("1.0 s", ["timing"]) == of("1.1 s", ["timing"])
    assert of("0.93", []) != of("0.94", [])


def test_a_page_too_heavy_names_its_largest_output():
    notebook = executed(
        V4.new_output("display_data", {"image/png": "A" * 500_000, "text/plain": "F"}), stream("x")
    )
    with pytest.raises(
        PageError, match=r"04_causal weighs 50\d kB .* 400 kB .* 500 kB in cell 2 \(image/png\)"
    ):
        check_size(notebook, nbformat.writes(notebook), "04_causal")


def shown(**data):
    return executed(
        V4.new_output("display_data", {key.replace("_", "/"): body for key, body in data.items()})
    )


def test_a_table_escapes_what_it_shows():
    frame = pd.DataFrame({"<b>": ["<script>x</script>", "<img src=x onerror=x()>"]})
    check_markup(shown(text_html=frame.to_html(), text_plain="<script>"), "01_a")
    check_markup(executed(stream("<script>x</script>")), "01_a")


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ({"text_html": "<p>a<script>x</script>"}, "<script>"),
        ({"text_html": "<TD OnClick='x()'>"}, "<td onclick=...>"),
        ({"text_html": "<table><img src=x onerror=x()>"}, "<img>"),
        ({"text_html": "<a href='javascript:x'>"}, "<a>"),
        ({"text_markdown": "**a**"}, "text/markdown"),
        ({"application_javascript": "x()"}, "application/javascript"),
    ],
)
def test_other_markup_is_refused_with_its_cell(data, wrong):
    with pytest.raises(PageError, match=f"^01_a: the output of cell 2 has {wrong}; a page takes text"):
        check_markup(shown(**data), "01_a")
